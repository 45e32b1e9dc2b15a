//! How many steps may be skipped for a gradient that was not finite: one rule for the loop, the gate and the report.

/// Share of the attempted steps that may be skipped where nobody says another one.
pub const MAX_SKIPPED_SHARE: f64 = 0.02;

/// Attempted steps from which on the share is judged: of fewer a single one would already be too large a share.
pub const JUDGED_FROM: u64 = 20;

/// Overflows of the loss scale in a row after which no scale will do: each halves it.
pub const MAX_OVERFLOWS_IN_A_ROW: u64 = 100;

/// How many of the attempted steps may have been skipped: a share of them, or one in a run of fewer than [`JUDGED_FROM`].
pub fn allowed(attempted: u64, share: f64) -> f64 {
    if attempted < JUDGED_FROM { 1.0 } else { share * attempted as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_may_skip_one_step_and_a_long_one_its_share() {
        let too_many = |skipped: u64, attempted| skipped as f64 > allowed(attempted, MAX_SKIPPED_SHARE);
        for (skipped, attempted, wanted) in [
            (0, 1, false),
            (1, 1, false),
            (1, 19, false),
            (2, 19, true),
            (0, 20, false),
            (1, 20, true),
            (1, 49, true),
            (1, 50, false),
            (2, 50, true),
            (20, 1000, false),
            (21, 1000, true),
        ] {
            assert_eq!(too_many(skipped, attempted), wanted, "{skipped} of {attempted}");
        }
    }
}
