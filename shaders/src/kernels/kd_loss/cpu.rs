//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn kd_loss(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn loss_sum(_p: &Params, _b: Bufs<'_>) {}
