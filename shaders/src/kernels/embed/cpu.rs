//! CPU twins of the embedding kernels.

use rayon::prelude::*;

use super::{Shape, TernaryShape};
use crate::kernel::{Bufs, Params};
use crate::kernels::halves::rows::to_floats;
use crate::kernels::ternary::groups::{Scales, values};

pub(crate) fn gather(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [ids, table, out] = bufs.take();
    let (ids, table, cols) = (ids.u32(), table.f32(), s.cols as usize);
    out.f32_mut().par_chunks_mut(cols).zip(ids).take(s.rows as usize).for_each(|(out, id)| {
        let at = *id as usize * cols;
        out.copy_from_slice(&table[at..at + cols]);
    });
}

pub(crate) fn gather_half(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [ids, table, out] = bufs.take();
    let (ids, cols) = (ids.u32(), s.cols as usize);
    let table: &[u16] = bytemuck::cast_slice(table.u32());
    out.f32_mut().par_chunks_mut(cols).zip(ids).take(s.rows as usize).for_each(|(out, id)| {
        let at = *id as usize * cols;
        to_floats(&table[at..at + cols], out);
    });
}

pub(crate) fn gather_ternary(p: &Params, bufs: Bufs<'_>) {
    let TernaryShape { shape: s, groups, .. } = p.get();
    let [ids, codes, scale, out] = bufs.take();
    let (ids, codes, scales, cols) = (ids.u32(), codes.u32(), Scales::of(scale.u32(), groups), s.cols as usize);
    let rows = out.f32_mut().par_chunks_mut(cols).zip(ids).take(s.rows as usize);
    rows.for_each(|(out, id)| values(codes, scales, cols, *id as usize, 0, out));
}

pub(crate) fn scatter(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [starts, order, dx, dtable] = bufs.take();
    let (starts, order, dx, cols) = (starts.u32(), order.u32(), dx.f32(), s.cols as usize);
    dtable.f32_mut().par_chunks_mut(cols).enumerate().take(s.vocab as usize).for_each(|(v, out)| {
        for r in &order[starts[v] as usize..starts[v + 1] as usize] {
            let at = *r as usize * cols;
            for (o, x) in out.iter_mut().zip(&dx[at..at + cols]) {
                *o += x;
            }
        }
    });
}
