//! Memory of this process, as the system counts it.

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Now.
    pub now: u64,
    /// At most so far.
    pub peak: u64,
}

/// What this process holds (Linux; elsewhere nobody tells).
pub fn resident() -> Option<Resident> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let kib = status.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?;
        kib.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Resident { now: field("VmRSS:")?, peak: field("VmHWM:")? })
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_held_is_counted() {
        let Some(before) = super::resident() else { return };
        let held = vec![1u8; 64 << 20];
        let after = super::resident().expect("as before");
        assert!(held.iter().all(|b| *b == 1) && after.peak >= after.now && after.peak >= before.now + (32 << 20), "{before:?} {after:?}");
    }
}
