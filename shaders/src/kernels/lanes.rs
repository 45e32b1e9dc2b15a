//! Lanes of the kernels with a workgroup for each row of logits.

use crate::kernel::Suits;

/// On every adapter.
pub(super) const LANES: &str = "const LANES: u32 = 128u;\n";
/// Where workgroups may be that large.
pub(super) const MANY_LANES: (Suits, &str) = (Suits::Invocations(512), "const LANES: u32 = 512u;\n");
