//! CPU twins of float16 storage.

use rayon::prelude::*;

use super::{Shape, rows};
use crate::kernel::{Bufs, Params};

const CHUNK: usize = 16_384;

pub(crate) fn pack(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, y] = bufs.take();
    let y: &mut [u16] = bytemuck::cast_slice_mut(y.u32_mut());
    let parts = x.f32()[..s.n as usize].par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK));
    parts.for_each(|(x, y)| if s.add == 1 { rows::add_checked(x, y) } else { rows::from_floats_checked(x, y) });
    // The half of a word that holds no value.
    if s.n % 2 == 1 {
        y[s.n as usize] = 0;
    }
}

pub(crate) fn unpack(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, y] = bufs.take();
    let x: &[u16] = bytemuck::cast_slice(x.u32());
    y.f32_mut()[..s.n as usize].par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| rows::to_floats(&x[..y.len()], y));
}
