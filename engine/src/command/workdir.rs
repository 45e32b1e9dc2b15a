//! The private working directory of a command: declared files at their relative paths.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use flow_cache::files_copy;

use crate::plugin::StageError;
use crate::sources;

/// Makes `work` with copies of the files that `patterns` mean in `dir`.
pub(super) fn fill(work: &Path, dir: &Path, patterns: &[String]) -> Result<(), StageError> {
    std::fs::create_dir_all(work).map_err(|e| StageError::io("create directory", work, &e))?;
    let mut placed = BTreeSet::new();
    let mut folders: BTreeSet<PathBuf> = BTreeSet::from([work.to_owned()]);
    for pattern in patterns {
        let found = sources::expand(dir, pattern).map_err(|e| StageError::new(e.to_string()))?;
        for (name, source) in found {
            if !placed.insert(name.clone()) {
                continue;
            }
            let target = work.join(&name);
            if let Some(folder) = target.parent()
                && folders.insert(folder.to_owned())
            {
                std::fs::create_dir_all(folder).map_err(|e| StageError::io("create directory", folder, &e))?;
            }
            files_copy(&source, &target).map_err(|e| StageError::new(e.to_string()))?;
        }
    }
    Ok(())
}
