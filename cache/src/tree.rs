//! Folders of the user's: which files lie below one, links followed, and what cannot be read as a file named at once.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::CacheError;

/// A file below a folder.
pub struct Found {
    /// Its path below the folder, `/` between parts.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is, links followed.
    pub meta: Metadata,
}

/// The folders that a walk is in, to find a link that leads back into one of them.
#[derive(Default)]
pub struct Open(Vec<(u64, u64, PathBuf)>);

impl Open {
    /// Enters a folder; refuses one that the walk is in already.
    pub fn enter(&mut self, path: &Path, meta: &Metadata) -> Result<(), CacheError> {
        let (device, inode) = (meta.dev(), meta.ino());
        if let Some((.., above)) = self.0.iter().find(|(d, i, _)| (*d, *i) == (device, inode)) {
            return Err(unfit(path, format!("the link leads back to {}, a folder above it", above.display())));
        }
        self.0.push((device, inode, path.to_owned()));
        Ok(())
    }
    /// Leaves the folder that was entered last.
    pub fn leave(&mut self) {
        self.0.pop();
    }
}

fn unfit(path: &Path, why: String) -> CacheError {
    CacheError::NotStorable { path: path.to_owned(), why }
}

/// What lies at a path, links followed: a file or a folder, nothing else.
pub fn look(path: &Path) -> Result<Metadata, CacheError> {
    let meta = fs::metadata(path).map_err(|e| match fs::read_link(path) {
        Ok(to) if e.kind() == io::ErrorKind::NotFound => {
            unfit(path, format!("the link leads nowhere ({} does not exist): remove or mend it", to.display()))
        }
        Ok(_) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => unfit(path, "the link leads to itself".into()),
        _ => CacheError::io("read", path)(e),
    })?;
    if meta.is_file() || meta.is_dir() {
        return Ok(meta);
    }
    Err(unfit(path, "neither a file nor a folder (a pipe, a socket or a device)".into()))
}

/// The name of a path's last part.
pub fn name_of(path: &Path) -> Result<&str, CacheError> {
    path.file_name().and_then(|n| n.to_str()).ok_or_else(|| unfit(path, "its name is not UTF-8".into()))
}

/// All files below a folder, in no order.
pub fn files_below(dir: &Path) -> Result<Vec<Found>, CacheError> {
    let mut found = Vec::new();
    below(dir, &look(dir)?, "", &mut Open::default(), &mut found)?;
    Ok(found)
}

fn below(dir: &Path, meta: &Metadata, prefix: &str, open: &mut Open, found: &mut Vec<Found>) -> Result<(), CacheError> {
    open.enter(dir, meta)?;
    for item in fs::read_dir(dir).map_err(CacheError::io("list", dir))? {
        let path = item.map_err(CacheError::io("list", dir))?.path();
        let name = name_of(&path)?;
        let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let meta = look(&path)?;
        if meta.is_dir() {
            below(&path, &meta, &name, open, found)?;
        } else {
            found.push(Found { name, path, meta });
        }
    }
    open.leave();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_that_lead_nowhere_or_back_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).expect("made");
        fs::write(at("a/b/f"), "x").expect("written");
        symlink(at("a/b/f"), at("a/again")).expect("linked");
        let names = || files_below(dir.path()).map(|f| f.into_iter().map(|f| f.name).collect::<std::collections::BTreeSet<_>>());
        assert_eq!(names().expect("read").into_iter().collect::<Vec<_>>(), ["a/again", "a/b/f"]);
        for (to, wanted) in [("nowhere", "leads nowhere"), ("..", "leads back to"), ("odd", "leads to itself")] {
            symlink(to, at("a/odd")).expect("linked");
            let error = names().expect_err("refused").to_string();
            assert!(error.contains(wanted) && error.contains("a/odd"), "{error}");
            fs::remove_file(at("a/odd")).expect("removed");
        }
        rustix::fs::mknodat(rustix::fs::CWD, at("a/pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).expect("made");
        assert!(names().expect_err("refused").to_string().contains("neither a file nor a folder"));
    }
}
