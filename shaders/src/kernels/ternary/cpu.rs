//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn row_abs_sum(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn abs_mean(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn ternarise(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn threshold_grad(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn dequant(_p: &Params, _b: Bufs<'_>) {}
