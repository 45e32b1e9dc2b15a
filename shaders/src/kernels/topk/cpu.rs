//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn topk(_p: &Params, _b: Bufs<'_>) {}
