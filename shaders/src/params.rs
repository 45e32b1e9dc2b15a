//! The parameters of a dispatch.

use bytemuck::{Pod, Zeroable};

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
