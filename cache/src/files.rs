//! File work that is atomic or not done at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use crate::digest::Digest;
use crate::error::CacheError;

/// What tells that a file was not touched since it was last read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    pub size: u64,
    pub mtime: i64,
    pub ctime: i64,
    pub inode: u64,
}

impl Stat {
    pub fn of(meta: &fs::Metadata) -> Self {
        Self {
            size: meta.len(),
            mtime: meta.mtime().wrapping_mul(1_000_000_000).wrapping_add(meta.mtime_nsec()),
            ctime: meta.ctime().wrapping_mul(1_000_000_000).wrapping_add(meta.ctime_nsec()),
            inode: meta.ino(),
        }
    }
    /// Whether the file changed so recently that a coming write might leave the same timestamps.
    pub fn is_fresh(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(i64::MAX, |d| d.as_nanos() as i64);
        now.saturating_sub(self.mtime.max(self.ctime)) < 2_000_000_000
    }
}

pub fn hash_file(path: &Path) -> Result<Digest, CacheError> {
    let file = File::open(path).map_err(CacheError::io("open", path))?;
    Digest::of_reader(file).map_err(CacheError::io("read", path))
}

pub fn create_dir(path: &Path) -> Result<(), CacheError> {
    fs::create_dir_all(path).map_err(CacheError::io("create directory", path))
}

pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Makes the names inside `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<(), CacheError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(CacheError::io("fsync", dir))
}

pub fn set_mode(path: &Path, mode: u32) -> Result<(), CacheError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(CacheError::io("chmod", path))
}

/// Writes `bytes` to `path` through a temporary name, durably.
pub fn write_atomic(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    create_dir(parent(path))?;
    let mut file = tempfile::NamedTempFile::new_in(tmp).map_err(CacheError::io("create a file in", tmp))?;
    file.write_all(bytes).map_err(CacheError::io("write", path))?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(CacheError::io("chmod", path))?;
    file.as_file().sync_all().map_err(CacheError::io("fsync", path))?;
    file.persist(path).map_err(|e| CacheError::io("rename to", path)(e.error))?;
    sync_dir(parent(path))
}

/// Shares the bytes of `from` with a new file `to` where the file system can; never links.
pub fn reflink(from: &Path, to: &Path, mode: u32) -> bool {
    #[cfg(target_os = "linux")]
    {
        let Ok(source) = File::open(from) else { return false };
        let Ok(dest) = OpenOptions::new().write(true).create_new(true).mode(mode).open(to) else { return false };
        if rustix::fs::ioctl_ficlone(&dest, &source).is_ok() {
            return true;
        }
        drop(dest);
        // A failed clone leaves the empty file that it was to fill.
        let _ = fs::remove_file(to);
    }
    let _ = (from, to, mode);
    false
}

/// Copies the bytes of `from` to a new file `to`: by reflink, else byte by byte.
pub fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), CacheError> {
    if reflink(from, to, mode) {
        return set_mode(to, mode);
    }
    let work = || -> io::Result<()> {
        let mut source = File::open(from)?;
        let mut dest = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut source, &mut dest)?;
        Ok(())
    };
    work().map_err(CacheError::io("copy to", to))?;
    set_mode(to, mode)
}

/// Removes a file or a directory with everything in it, read-only directories included; absent is fine.
pub fn remove_all(path: &Path) -> Result<(), CacheError> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(CacheError::io("stat", path)(e)),
    };
    if !meta.is_dir() {
        return fs::remove_file(path).map_err(CacheError::io("remove", path));
    }
    set_mode(path, 0o755)?;
    for entry in fs::read_dir(path).map_err(CacheError::io("list", path))? {
        remove_all(&entry.map_err(CacheError::io("list", path))?.path())?;
    }
    fs::remove_dir(path).map_err(CacheError::io("remove", path))
}
