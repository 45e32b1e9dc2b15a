//! Moments as records, entries and names of runs hold them.

use std::time::SystemTime;

use jiff::Timestamp;

/// Whole seconds since 1970, now.
pub fn unix_now() -> u64 {
    unix_seconds(SystemTime::now()) as u64
}

/// Seconds since 1970; a clock before that says 0.
pub fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// An id that sorts by time and differs between processes: `20260131T235959.123Z-4711`.
pub fn run_id(at: SystemTime) -> String {
    let at = Timestamp::try_from(at.max(SystemTime::UNIX_EPOCH)).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{}-{}", at.strftime("%Y%m%dT%H%M%S%.3fZ"), std::process::id())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ids_sort_by_time() {
        let id = |ms| run_id(SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        assert!(id(0).starts_with("19700101T000000.000Z-"));
        assert!(id(1_709_251_199_999).starts_with("20240229T235959.999Z-"), "a leap day, and nothing is rounded");
        assert!(id(1_709_251_199_999) < id(1_709_251_200_000));
        assert!(run_id(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).starts_with("19700101T000000.000Z-"));
    }
}
