//! File work that is atomic or not done at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::CacheError;

/// What tells that a file was not touched since it was last read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stat {
    /// Bytes.
    pub size: u64,
    /// Modification, nanoseconds since 1970.
    pub mtime: i64,
    /// Change of the inode, nanoseconds since 1970.
    pub ctime: i64,
    /// Inode number.
    pub inode: u64,
}

impl Stat {
    /// The stat of these metadata.
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

/// Files from this size on are hashed by all cores.
const LARGE: u64 = 32 << 20;
/// Bytes of one of the two buffers of a large file.
const CHUNK: usize = 8 << 20;

/// The digest of a file, in bounded memory.
pub fn hash_file(path: &Path) -> Result<Digest, CacheError> {
    let file = File::open(path).map_err(CacheError::io("open", path))?;
    let large = file.metadata().is_ok_and(|m| m.len() >= LARGE);
    let digest = if large { hash_large(file) } else { Digest::of_reader(file) };
    digest.map_err(CacheError::io("read", path))
}

/// One thread reads while the others hash what was read before.
fn hash_large(mut file: File) -> io::Result<Digest> {
    let (to_hash, full) = std::sync::mpsc::sync_channel::<Vec<u8>>(1);
    let (to_fill, empty) = std::sync::mpsc::channel::<Vec<u8>>();
    for _ in 0..2 {
        let _ = to_fill.send(vec![0; CHUNK]);
    }
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || -> io::Result<()> {
            while let Ok(mut buffer) = empty.recv() {
                buffer.resize(CHUNK, 0);
                let n = read_full(&mut file, &mut buffer)?;
                buffer.truncate(n);
                if n == 0 || to_hash.send(buffer).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let mut hasher = blake3::Hasher::new();
        while let Ok(buffer) = full.recv() {
            hasher.update_rayon(&buffer);
            // The reader may be at the end already.
            let _ = to_fill.send(buffer);
        }
        drop(to_fill);
        reader.join().unwrap_or_else(|_| Err(io::Error::other("the reading thread failed")))?;
        Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
    })
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
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
    let file = temporary(tmp, bytes)?;
    file.as_file().sync_all().map_err(CacheError::io("fsync", path))?;
    persist(file, path)?;
    sync_dir(parent(path))
}

/// Writes `bytes` to `path` through a temporary name: whole or not at all, but not yet durable.
pub fn write_renamed(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    persist(temporary(tmp, bytes)?, path)
}

fn temporary(tmp: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile, CacheError> {
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(tmp)
        .map_err(CacheError::io("create a file in", tmp))?;
    file.write_all(bytes).map_err(CacheError::io("write", file.path()))?;
    Ok(file)
}

fn persist(file: tempfile::NamedTempFile, path: &Path) -> Result<(), CacheError> {
    let failed = |e: tempfile::PersistError| (e.error, e.file);
    let (error, file) = match file.persist(path).map_err(failed) {
        Ok(_) => return Ok(()),
        Err(failed) => failed,
    };
    if error.kind() != io::ErrorKind::NotFound {
        return Err(CacheError::io("rename to", path)(error));
    }
    create_dir(parent(path))?;
    file.persist(path).map(|_| ()).map_err(|e| CacheError::io("rename to", path)(e.error))
}

/// Makes everything durable that was written to the file system of `dir`.
pub fn sync_file_system(dir: &Path) -> Result<(), CacheError> {
    let dir_file = File::open(dir).map_err(CacheError::io("open", dir))?;
    #[cfg(target_os = "linux")]
    return rustix::fs::syncfs(&dir_file).map_err(|e| CacheError::io("syncfs", dir)(e.into()));
    #[cfg(not(target_os = "linux"))]
    {
        drop(dir_file);
        rustix::fs::sync();
        Ok(())
    }
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

/// Copies the bytes of `from` to a new file `to`: by reflink, else byte by byte; holes stay holes.
pub fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), CacheError> {
    if reflink(from, to, mode) {
        return set_mode(to, mode);
    }
    let work = || -> io::Result<()> {
        let mut source = File::open(from)?;
        let mut dest = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        copy_data(&mut source, &mut dest)
    };
    work().map_err(CacheError::io("copy to", to))?;
    set_mode(to, mode)
}

#[cfg(target_os = "linux")]
fn copy_data(source: &mut File, dest: &mut File) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    let meta = source.metadata()?;
    // 512-byte blocks: a file that has all of its own is no sparse one.
    if meta.blocks() * 512 >= meta.len() {
        return io::copy(source, dest).map(|_| ());
    }
    let mut at = 0;
    while at < meta.len() {
        let from = match seek(&*source, SeekFrom::Data(at)) {
            Ok(from) => from,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let to = seek(&*source, SeekFrom::Hole(from))?;
        seek(&*source, SeekFrom::Start(from))?;
        seek(&*dest, SeekFrom::Start(from))?;
        io::copy(&mut source.take(to - from), dest)?;
        at = to;
    }
    dest.set_len(meta.len())
}

#[cfg(not(target_os = "linux"))]
fn copy_data(source: &mut File, dest: &mut File) -> io::Result<()> {
    io::copy(source, dest).map(|_| ())
}

/// All `*.json` files `depth` levels below `dir`.
pub fn json_files(dir: &Path, depth: usize) -> Result<Vec<PathBuf>, CacheError> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir).map_err(CacheError::io("list", dir))? {
        let path = item.map_err(CacheError::io("list", dir))?.path();
        if depth > 1 && path.is_dir() {
            found.extend(json_files(&path, depth - 1)?);
        } else if path.extension().is_some_and(|e| e == "json") {
            found.push(path);
        }
    }
    Ok(found)
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
