//! CPU twins of the cache append.

use super::Shape;
use crate::float16;
use crate::kernel::{Bufs, Params};
use crate::kernels::act_quant::cpu as act_quant;
use crate::kernels::attention::Cached;

pub(crate) fn kv_store(p: &Params, bufs: Bufs<'_>) {
    let cols = p.get::<Shape>().cols as usize;
    append(p, bufs, cols, |x, line| line.copy_from_slice(bytemuck::cast_slice(x)));
}

pub(crate) fn kv_store_half(p: &Params, bufs: Bufs<'_>) {
    let cols = p.get::<Shape>().cols as usize;
    append(p, bufs, cols / 2, |x, line| {
        let halves: &mut [u16] = bytemuck::cast_slice_mut(line);
        halves.iter_mut().zip(x).for_each(|(h, x)| *h = float16::from_float(*x));
    });
}

pub(crate) fn kv_store_int8(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let (d, size) = (s.head_dim as usize, Cached::Int8.words(s.head_dim as usize));
    append(p, bufs, (s.cols / s.head_dim) as usize * size, |x, line| {
        for (x, line) in x.chunks_exact(d).zip(line.chunks_exact_mut(size)) {
            let scale = act_quant::row(x, 0, 127.0, 0.0, bytemuck::cast_slice_mut(&mut line[..size - 1]));
            line[size - 1] = scale.step.to_bits();
        }
    });
}

/// Stores every row at its place, `words` of the cache each.
fn append(p: &Params, bufs: Bufs<'_>, words: usize, store: impl Fn(&[f32], &mut [u32])) {
    let s: Shape = p.get();
    let [x, pos, cache] = bufs.take();
    let (pos, cache) = (pos.u32(), cache.u32_mut());
    for (r, x) in x.f32().chunks_exact(s.cols as usize).enumerate().take(s.rows as usize) {
        let at = ((r / s.q_len as usize) * s.kv_len as usize + pos[r] as usize) * words;
        store(x, &mut cache[at..at + words]);
    }
}
