//! A product of packed ternary weights as its paths see it: operands, and where the outputs go.
#![allow(unsafe_code)]

use super::Shape;
use super::tile::OUTS;
use crate::kernels::act_quant::RowScale;

/// Operands of one product.
pub(crate) struct Product<'a> {
    pub q: &'a [u32],
    pub scales: &'a [RowScale],
    pub codes: &'a [u32],
    pub scale: &'a [f32],
}

/// `y [rows, outs]`, into whose columns several tasks write.
pub(crate) struct Target<'a> {
    y: *mut f32,
    len: usize,
    outs: usize,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: each task writes the columns of its own outputs, and nobody reads another's.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    pub(crate) fn new(y: &'a mut [f32], outs: usize) -> Self {
        Self { y: y.as_mut_ptr(), len: y.len(), outs, life: std::marker::PhantomData }
    }
    /// Turns integer sums `[rows, OUTS]` of some tokens into `n` outputs of each from `first` on.
    ///
    /// # Safety
    /// No other task touches these outputs of these tokens meanwhile.
    pub(crate) unsafe fn put(&self, s: &Shape, ops: &Product<'_>, rows: std::ops::Range<usize>, (first, n): (usize, usize), sums: &[i32]) {
        put_rows(self, &ops.scales[rows.clone()], &ops.scale[first..first + n], sums, s.add == 1, rows.start, first);
    }
}

crate::simd! {
    fn put_rows(to: &Target<'_>, rows: &[RowScale], scale: &[f32], sums: &[i32], add: bool, row: usize, first: usize) {
        for (i, (RowScale { step, sum: offset }, sums)) in rows.iter().zip(sums.chunks_exact(OUTS)).enumerate() {
            let at = (row + i) * to.outs + first;
            assert!(first + scale.len() <= to.outs && at + scale.len() <= to.len);
            // SAFETY: within the slice, as asserted; outputs are written by one task each (promised to `put`, the one caller).
            let y = unsafe { std::slice::from_raw_parts_mut(to.y.add(at), scale.len()) };
            for ((y, sum), scale) in y.iter_mut().zip(sums).zip(scale) {
                let value = ((sum - offset) as f32 * step) * scale;
                *y = if add { *y + value } else { value };
            }
        }
    }
}
