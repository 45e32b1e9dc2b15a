//! CPU twin of RoPE.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};

pub(crate) fn rope(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [pos, table, x] = bufs.take();
    let (table, d) = (table.f32(), s.head_dim as usize);
    let sign = if s.inverse == 1 { -1.0 } else { 1.0 };
    let rows = x.f32_mut().par_chunks_mut(s.heads as usize * d).zip(pos.u32());
    rows.take(s.rows as usize).for_each(|(row, pos)| {
        let angles = &table[*pos as usize * d..(*pos as usize + 1) * d];
        row.chunks_exact_mut(d).for_each(|head| rotate(head, angles, sign));
    });
}

crate::simd! {
    fn rotate(head: &mut [f32], angles: &[f32], sign: f32) {
        let h = head.len() / 2;
        let (a, b) = head.split_at_mut(h);
        for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(&angles[..h]).zip(&angles[h..]) {
            let sin = sin * sign;
            let (x, y) = (*a, *b);
            *a = x.mul_add(*cos, -(y * sin));
            *b = y.mul_add(*cos, x * sin);
        }
    }
}
