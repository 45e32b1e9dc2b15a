//! CPU twin of the Hadamard transform.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};

pub(crate) fn hadamard(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x] = bufs.take();
    let blocks = x.f32_mut().par_chunks_exact_mut(s.block as usize).take(s.blocks as usize);
    blocks.for_each(|block| transform(block, s.scale));
}

crate::simd! {
    fn transform(x: &mut [f32], scale: f32) {
        let mut half = 1;
        while half < x.len() {
            for pair in x.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        for v in x {
            *v *= scale;
        }
    }
}
