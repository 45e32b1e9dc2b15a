//! What a kernel is: one WGSL module and its CPU twin over the same bindings and parameters.

pub use crate::params::Params;

use crate::cut::{self, Cuts, Part};

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
    /// Along what a dispatch is cut whose buffers pass what an adapter binds; [`cut::NEVER`] with the reason where nothing is.
    pub cut: Cuts,
    /// Other modules for the same bindings, parameters and results; the first one that suits an adapter takes the place of
    /// `wgsl` and `grid` there.
    pub variants: &'static [Variant],
    /// Bytes that the twin holds beside its buffers; [`NO_SCRATCH`] where they are not worth counting.
    pub scratch: fn(&Params) -> u64,
    /// The CPU twin.
    pub cpu: fn(&Params, Bufs<'_>),
}

/// Of a twin that holds nothing beside its buffers, or what does not grow with the batch: some rows, or one sequence, for
/// each thread.
pub const NO_SCRATCH: fn(&Params) -> u64 = |_| 0;

/// A module that is the faster one on some adapters.
#[derive(Clone, Copy)]
pub struct Variant {
    /// Where it is used.
    pub suits: Suits,
    /// As [`Kernel::wgsl`].
    pub wgsl: &'static [&'static str],
    /// As [`Kernel::grid`].
    pub grid: fn(&Params) -> [u32; 3],
}

/// Adapters that a variant is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suits {
    /// Software adapters: few lanes, loads cost more than arithmetic, workgroup memory more than the caches.
    Software,
    /// Adapters with operations across the lanes of a subgroup.
    Subgroups,
    /// Adapters whose workgroups may have so many invocations.
    Invocations(u32),
    /// Adapters whose workgroups may have so many bytes of memory.
    WorkgroupMemory(u32),
}

/// A module as a device runs it.
#[derive(Clone, Copy)]
pub struct Module {
    /// As [`Kernel::wgsl`].
    pub wgsl: &'static [&'static str],
    /// As [`Kernel::grid`].
    pub grid: fn(&Params) -> [u32; 3],
}

/// The piece that reads float16 by integer arithmetic, on every adapter.
const HALF: &str = include_str!("kernels/half.wgsl");
/// The same function on adapters that have float16 themselves.
const HALF_NATIVE: &str = include_str!("kernels/half_native.wgsl");

impl Module {
    /// The whole WGSL text.
    pub fn source(&self) -> String {
        self.wgsl.concat()
    }
    /// The text for adapters that have float16 themselves, where the module reads any: the same results.
    pub fn native_half(&self) -> Option<String> {
        let pieces: Vec<&str> = self.wgsl.iter().map(|piece| if *piece == HALF { HALF_NATIVE } else { piece }).collect();
        self.wgsl.contains(&HALF).then(|| format!("enable f16;\n{}", pieces.concat()))
    }
    /// All texts of the module.
    pub fn sources(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.source()).chain(self.native_half())
    }
}

impl Kernel {
    /// The module for every adapter.
    pub fn module(&self) -> Module {
        Module { wgsl: self.wgsl, grid: self.grid }
    }
    /// The module for an adapter that has some properties.
    pub fn module_for(&self, has: impl Fn(Suits) -> bool) -> Module {
        let variant = self.variants.iter().find(|v| has(v.suits));
        variant.map_or(self.module(), |v| Module { wgsl: v.wgsl, grid: v.grid })
    }
    /// The parts of a dispatch over buffers of `sizes` words, none of which binds more than `limit` words; the index of a
    /// buffer that cannot be cut where that is impossible.
    pub fn parts(&self, params: &Params, sizes: &[usize], limit: usize) -> Result<Vec<Part>, usize> {
        cut::parts(self.cut, params, sizes, limit)
    }
    /// All modules, the one for every adapter first.
    pub fn modules(&self) -> impl Iterator<Item = Module> + '_ {
        std::iter::once(self.module()).chain(self.variants.iter().map(|v| Module { wgsl: v.wgsl, grid: v.grid }))
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
