//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn sum_sq(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn finish(_p: &Params, _b: Bufs<'_>) {}
