//! CPU twin of the cache append.

use super::Shape;
use crate::kernel::{Bufs, Params};

pub(crate) fn kv_store(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, pos, cache] = bufs.take();
    let (pos, cache, cols) = (pos.u32(), cache.f32_mut(), s.cols as usize);
    for (r, x) in x.f32().chunks_exact(cols).enumerate().take(s.rows as usize) {
        let at = ((r / s.q_len as usize) * s.kv_len as usize + pos[r] as usize) * cols;
        cache[at..at + cols].copy_from_slice(x);
    }
}
