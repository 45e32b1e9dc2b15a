//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn nn(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn nt(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn tn(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn nn_ternary(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn tn_q8(_p: &Params, _b: Bufs<'_>) {}
