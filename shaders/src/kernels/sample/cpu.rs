//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn argmax(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn sample(_p: &Params, _b: Bufs<'_>) {}
