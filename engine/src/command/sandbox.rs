//! Writes outside a task's directory are refused by the kernel, where it has Landlock (Linux 5.13 and later).

use std::path::Path;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;

/// Whether the kernel enforces that commands write into their directory only.
pub fn is_enforced() -> bool {
    #[cfg(target_os = "linux")]
    {
        static ENFORCED: OnceLock<bool> = OnceLock::new();
        *ENFORCED.get_or_init(|| {
            let probe = std::thread::spawn(|| restrict(Path::new("/tmp")));
            probe.join().is_ok_and(|r| r.unwrap_or(false))
        })
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Why a thread could not be confined.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfineError {
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Rules(#[from] landlock::RulesetError),
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Folder(#[from] landlock::PathFdError),
}

/// Confines the calling thread, and every process that it starts, for good: reading and executing anywhere,
/// writing only below `dir` and into the harmless devices. Says whether the kernel enforces all of it.
#[cfg(target_os = "linux")]
pub(super) fn restrict(dir: &Path) -> Result<bool, ConfineError> {
    use landlock::{
        ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    };
    let abi = ABI::V3;
    let (read, all) = (AccessFs::from_read(abi), AccessFs::from_all(abi));
    let mut rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?.create()?;
    rules = rules.add_rule(PathBeneath::new(PathFd::new("/")?, read))?;
    rules = rules.add_rule(PathBeneath::new(PathFd::new(dir)?, all))?;
    for device in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"] {
        if let Ok(device) = PathFd::new(device) {
            rules = rules.add_rule(PathBeneath::new(device, AccessFs::from_file(abi)))?;
        }
    }
    if Path::new("/dev/shm").exists() {
        rules = rules.add_rule(PathBeneath::new(PathFd::new("/dev/shm")?, all))?;
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn restrict(_dir: &Path) -> Result<bool, ConfineError> {
    Ok(false)
}
