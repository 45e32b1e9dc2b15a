//! CPU twins of the cache append.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::Shape;
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
        store_halves(x, halves);
    });
}

/// The nearest float16 of each value, ties to even; what is too large becomes the largest, NaN becomes 0.
fn store_halves(x: &[f32], out: &mut [u16]) {
    const PART: usize = 64;
    let mut limited = [0f32; PART];
    for (x, out) in x.chunks(PART).zip(out.chunks_mut(PART)) {
        let limited = &mut limited[..x.len()];
        for (limited, x) in limited.iter_mut().zip(x) {
            *limited = if x.is_nan() { 0.0 } else { x.clamp(LOWEST, LARGEST) };
        }
        out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(limited);
    }
}

/// What float16 holds at most, and at least.
const LARGEST: f32 = f16::MAX.to_f32_const();
const LOWEST: f32 = f16::MIN.to_f32_const();

pub(crate) fn kv_store_int8(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let (d, size) = (s.head_dim as usize, Cached::Int8.words(s.head_dim as usize));
    append(p, bufs, (s.cols / s.head_dim) as usize * size, |x, line| {
        for (x, line) in x.chunks_exact(d).zip(line.chunks_exact_mut(size)) {
            let scale = act_quant::row(x, 127.0, bytemuck::cast_slice_mut(&mut line[..size - 1]));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cache_cannot_hold_is_limited() {
        let edges = [0.0, -0.0, 1.0, 65_519.0, 65_520.0, -1e9, 1e9, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 2e-8, 2.980_232_2e-8, 3e-8];
        let want = [0, 0x8000, 0x3c00, 0x7bff, 0x7bff, 0xfbff, 0x7bff, 0x7bff, 0xfbff, 0, 0, 0, 1];
        let mut stored = [9; 13];
        store_halves(&edges, &mut stored);
        assert_eq!(stored, want);
        // Ties between neighbours go to the even one.
        for h in 0..0x7bffu16 {
            let tie = (f16::from_bits(h).to_f32() + f16::from_bits(h + 1).to_f32()) / 2.0;
            let mut stored = [9; 2];
            store_halves(&[tie, -tie], &mut stored);
            assert_eq!(stored, [h + h % 2, (h + h % 2) | 0x8000], "{tie}");
        }
    }
}
