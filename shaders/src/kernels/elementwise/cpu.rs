//! CPU twins of copy and fill.

use super::Shape;
use crate::kernel::{Bufs, Params};

pub(crate) fn copy(p: &Params, bufs: Bufs<'_>) {
    let n = p.get::<Shape>().n as usize;
    let [x, y] = bufs.take();
    y.u32_mut()[..n].copy_from_slice(&x.u32()[..n]);
}

pub(crate) fn zero(p: &Params, bufs: Bufs<'_>) {
    let [y] = bufs.take();
    y.u32_mut()[..p.get::<Shape>().n as usize].fill(0);
}
