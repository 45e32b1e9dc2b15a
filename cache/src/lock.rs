//! One process per action key: `flock` on a file, so that the lock of a dead process vanishes with it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::CacheError;
use crate::files;

/// A held lock; dropping it releases.
#[derive(Debug)]
pub struct KeyLock {
    path: PathBuf,
    _file: File,
}

impl KeyLock {
    /// Takes the lock at `path`, or says `None` when another holder has it.
    pub fn try_take(path: &Path) -> Result<Option<Self>, CacheError> {
        Self::take(path, File::try_lock)
    }
    /// Waits for the lock at `path`.
    pub fn wait(path: &Path) -> Result<Self, CacheError> {
        loop {
            if let Some(lock) = Self::take(path, |file| file.lock().map_err(TryLockError::Error))? {
                return Ok(lock);
            }
        }
    }
    /// Whether a live process holds the lock at `path`.
    pub(crate) fn is_held(path: &Path) -> bool {
        File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
    fn take(path: &Path, lock: impl Fn(&File) -> Result<(), TryLockError>) -> Result<Option<Self>, CacheError> {
        files::create_dir(files::parent(path))?;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(CacheError::io("open lock", path))?;
            match lock(&file) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(TryLockError::Error(e)) => return Err(CacheError::io("lock", path)(e)),
            }
            // The previous holder removes the file as it leaves: a lock on a removed file guards nothing.
            let held = file.metadata().map_err(CacheError::io("stat", path))?;
            match fs::metadata(path) {
                Ok(named) if named.ino() == held.ino() && named.dev() == held.dev() => {
                    return Ok(Some(Self { path: path.to_owned(), _file: file }));
                }
                _ => {}
            }
        }
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // Removed while still held; see `take`. If it fails, an empty file stays behind, which is harmless.
        let _ = fs::remove_file(&self.path);
    }
}
