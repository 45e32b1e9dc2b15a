//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn forward(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn delta(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn grad_q(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn grad_kv(_p: &Params, _b: Bufs<'_>) {}
