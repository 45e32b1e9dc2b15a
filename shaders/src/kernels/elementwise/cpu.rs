//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn copy(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn zero(_p: &Params, _b: Bufs<'_>) {}
