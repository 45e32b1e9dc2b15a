//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn act_quant(_p: &Params, _b: Bufs<'_>) {}
