//! Artifacts as input files of a task: by reflink, else hard link, else copy; and their check afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::digest::{Artifact, Digest};
use crate::error::CacheError;
use crate::files::{self, Stat};

/// The inputs of one task, to be given back with [`Cache::release`].
#[derive(Debug)]
pub struct Materialised {
    dir: PathBuf,
    /// Objects that the task sees through hard links, as they were when it began.
    linked: BTreeMap<Digest, Stat>,
}

impl Cache {
    /// Puts each artifact at its path below `dir`, read-only. The artifacts must have been looked up.
    pub fn materialise(&self, dir: &Path, inputs: &[(Artifact, PathBuf)]) -> Result<Materialised, CacheError> {
        files::create_dir(dir)?;
        let mut linked = Vec::new();
        for (artifact, path) in inputs {
            if !artifact.tree {
                self.place(&artifact.digest, path, false, &mut linked)?;
                continue;
            }
            files::create_dir(path)?;
            let mut folders = vec![path.clone()];
            for entry in self.manifest(artifact)?.entries() {
                let file = path.join(&entry.path);
                let folder = files::parent(&file).to_owned();
                if !folders.contains(&folder) {
                    files::create_dir(&folder)?;
                    folders.push(folder);
                }
                self.place(&entry.digest, &file, entry.executable, &mut linked)?;
            }
            for folder in folders {
                files::set_mode(&folder, 0o555)?;
            }
        }
        // Linking itself moves ctime, so the state to compare with is taken when all links are made.
        let linked = linked.into_iter().map(|d| Ok((d, self.object_stat(&d)?))).collect::<Result<_, CacheError>>()?;
        Ok(Materialised { dir: dir.to_owned(), linked })
    }

    fn place(&self, digest: &Digest, to: &Path, executable: bool, linked: &mut Vec<Digest>) -> Result<(), CacheError> {
        let object = self.layout().object(digest);
        if executable {
            // The exec bit belongs to the name in the directory, not to the shared object.
            return files::copy(&object, to, 0o555);
        }
        if files::reflink(&object, to, 0o444) {
            return Ok(());
        }
        if fs::hard_link(&object, to).is_ok() {
            linked.push(*digest);
            return Ok(());
        }
        files::copy(&object, to, 0o444)
    }

    fn object_stat(&self, digest: &Digest) -> Result<Stat, CacheError> {
        let path = self.layout().object(digest);
        fs::metadata(&path).map(|m| Stat::of(&m)).map_err(CacheError::io("stat", &path))
    }

    /// Takes the inputs of a task away and names the objects that it changed; those are removed from the store.
    pub fn release(&self, inputs: Materialised) -> Result<Vec<Digest>, CacheError> {
        let mut changed = Vec::new();
        let mut good = Vec::new();
        for (digest, before) in &inputs.linked {
            let path = self.layout().object(digest);
            match fs::metadata(&path).map(|m| Stat::of(&m)) {
                Ok(now) if now == *before => good.push(*digest),
                // Another task that links the same object moves its ctime too: only the bytes tell.
                Ok(_) if files::hash_file(&path)? == *digest => {
                    files::set_mode(&path, 0o444)?;
                    good.push(*digest);
                }
                Ok(_) => {
                    files::remove_all(&path)?;
                    changed.push(*digest);
                }
                Err(_) => changed.push(*digest),
            }
        }
        files::remove_all(&inputs.dir)?;
        for digest in good {
            if let Ok(stat) = self.object_stat(&digest) {
                self.index.set_verified(&digest, &stat)?;
            }
        }
        Ok(changed)
    }
}
