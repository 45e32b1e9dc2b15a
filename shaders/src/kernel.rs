//! What a kernel is: one WGSL module and its CPU twin over the same bindings and parameters.

use bytemuck::{Pod, Zeroable};

/// How a kernel touches a binding. WGSL has no write-only storage: `Write` and `ReadWrite` are both
/// `read_write` there; the planner may hand a `Write` binding memory with arbitrary content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Fully overwritten before anything reads it.
    Write,
    /// Read and updated.
    ReadWrite,
}

/// One storage binding; binding 0 of every module is the uniform with the parameters, so the first
/// entry of [`Kernel::bindings`] is `@group(0) @binding(1)`.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// Name of the variable in the module.
    pub name: &'static str,
    /// Access.
    pub access: Access,
}

/// A read-only binding.
pub const fn read(name: &'static str) -> Binding {
    Binding { name, access: Access::Read }
}
/// An overwritten binding.
pub const fn write(name: &'static str) -> Binding {
    Binding { name, access: Access::Write }
}
/// An updated binding.
pub const fn update(name: &'static str) -> Binding {
    Binding { name, access: Access::ReadWrite }
}

/// Parameters of one dispatch: at most 16 words, a `repr(C)` struct seen by WGSL as `var<uniform> p: Params`.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Params(pub [u32; 16]);

impl Params {
    /// Packs a parameter struct (a multiple of 4 bytes, at most 64).
    pub fn new<T: Pod>(value: &T) -> Self {
        let mut words = [0u32; 16];
        let bytes = bytemuck::bytes_of(value);
        bytemuck::cast_slice_mut::<u32, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self(words)
    }
    /// Reads it back as the struct it was packed from.
    pub fn get<T: Pod>(&self) -> T {
        bytemuck::pod_read_unaligned(&bytemuck::cast_slice::<u32, u8>(&self.0)[..size_of::<T>()])
    }
}

/// A kernel: name, revision, module, bindings, dispatch size and twin.
pub struct Kernel {
    /// Unique name.
    pub name: &'static str,
    /// Raised when the twin's results change; part of every key that uses the kernel.
    pub revision: u32,
    /// Pieces of the WGSL module, joined in order; the entry point is `main`.
    pub wgsl: &'static [&'static str],
    /// Storage bindings in order, at most 8 (WebGPU's default limit).
    pub bindings: &'static [Binding],
    /// Number of workgroups; each dimension at most 65,535.
    pub grid: fn(&Params) -> [u32; 3],
    /// The CPU twin.
    pub cpu: fn(&Params, Bufs<'_>),
}

impl Kernel {
    /// The whole WGSL module.
    pub fn source(&self) -> String {
        self.wgsl.concat()
    }
}

/// One buffer as the twin sees it.
pub enum Buf<'a> {
    /// Read-only words.
    R(&'a [u32]),
    /// Writable words.
    W(&'a mut [u32]),
}

/// All buffers of one dispatch, in binding order.
pub struct Bufs<'a>(pub Vec<Buf<'a>>);

impl<'a> Bufs<'a> {
    /// Takes them apart; `N` is the number of bindings, checked when the program is built.
    pub fn take<const N: usize>(self) -> [Buf<'a>; N] {
        match self.0.try_into() {
            Ok(array) => array,
            Err(v) => unreachable!("{} buffers for {N} bindings", Vec::<Buf>::len(&v)),
        }
    }
}

impl<'a> Buf<'a> {
    /// As words.
    pub fn u32(self) -> &'a [u32] {
        match self {
            Buf::R(x) => x,
            Buf::W(x) => x,
        }
    }
    /// As floats.
    pub fn f32(self) -> &'a [f32] {
        bytemuck::cast_slice(self.u32())
    }
    /// As signed words.
    pub fn i32(self) -> &'a [i32] {
        bytemuck::cast_slice(self.u32())
    }
    /// As writable words.
    pub fn u32_mut(self) -> &'a mut [u32] {
        match self {
            Buf::R(_) => unreachable!("binding declared read-only"),
            Buf::W(x) => x,
        }
    }
    /// As writable floats.
    pub fn f32_mut(self) -> &'a mut [f32] {
        bytemuck::cast_slice_mut(self.u32_mut())
    }
    /// As writable signed words.
    pub fn i32_mut(self) -> &'a mut [i32] {
        bytemuck::cast_slice_mut(self.u32_mut())
    }
}

/// Workgroups for `n` items at `per` items each, folded into two dimensions under the dispatch limit.
/// The flat workgroup index is `id.y * 65535 + id.x`… of a grid that is `[min(g, 65535), ceil(g / 65535), 1]`.
pub fn grid_1d(n: usize, per: usize) -> [u32; 3] {
    let groups = n.div_ceil(per).max(1);
    let x = groups.min(65_535);
    [x as u32, groups.div_ceil(x) as u32, 1]
}
