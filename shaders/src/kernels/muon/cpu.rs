//! CPU twins.
use crate::kernel::{Bufs, Params};
pub(crate) fn momentum(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn normalise(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn poly(_p: &Params, _b: Bufs<'_>) {}
pub(crate) fn update(_p: &Params, _b: Bufs<'_>) {}
