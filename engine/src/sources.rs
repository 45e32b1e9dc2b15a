//! Source files that a parameter names by path or glob.

use std::io;
use std::path::{Component, Path, PathBuf};

use flow_cache::CacheError;
use flow_cache::tree::{Open, files_below, look, name_of};
use glob::{MatchOptions, Pattern};

/// One source file: its path inside the pipeline's folder, `/` between parts, and where it is.
pub type Found = (String, PathBuf);

/// The files that `pattern` means in `dir`, sorted: one file, all files below a directory, or what a glob matches.
/// `*` and `?` never match a leading dot, so that `.git` and `.flow` stay out. What exists by that very name is meant by it,
/// whatever characters it has.
pub fn expand(dir: &Path, pattern: &str) -> io::Result<Vec<Found>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let mut parts = Vec::new();
    for part in Path::new(pattern).components() {
        match (part, part.as_os_str().to_str()) {
            (Component::CurDir, _) => {}
            (Component::Normal(_), Some(part)) => parts.push(part),
            _ => {
                let why = "leads out of the pipeline's folder, and is to be present at its relative path";
                return Err(invalid(format!("`{pattern}` {why}")));
            }
        }
    }
    let literal = dir.join(pattern);
    let exists = std::fs::symlink_metadata(&literal).is_ok();
    let mut found = Vec::new();
    if exists || !pattern.contains(['*', '?', '[']) {
        let name = parts.join("/");
        if look(&literal).map_err(unread)?.is_dir() {
            let inside = |below: &str| if name.is_empty() { below.to_owned() } else { format!("{name}/{below}") };
            found.extend(files_below(&literal).map_err(unread)?.into_iter().map(|f| (inside(&f.name), f.path)));
        } else {
            found.push((name, literal));
        }
    } else {
        let parts = parts.into_iter().map(Part::of).collect::<Result<Vec<_>, _>>();
        let parts = parts.map_err(|e| invalid(format!("`{pattern}`: {e}")))?;
        let mut globbing = Globbing::default();
        globbing.folder(dir, &parts, "").map_err(unread)?;
        found = globbing.found;
    }
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("`{pattern}` matches no file")));
    }
    Ok(found)
}

/// Digits of the numbers in the name of a part.
const PART_DIGITS: usize = 5;

/// All parts of a file that was cut into several, where `path` is named as the first of them is: `NAME-00001-of-00003.EXT`. Who is
/// given the first reads them all.
pub fn parts(path: &Path) -> Option<Vec<PathBuf>> {
    let file = path.file_name()?.to_str()?;
    let (name, rest) = file.rsplit_once("-00001-of-")?;
    let (count, after) = rest.split_at_checked(PART_DIGITS)?;
    let of = count.parse::<usize>().ok().filter(|n| *n > 1 && count.bytes().all(|b| b.is_ascii_digit()))?;
    Some((1..=of).map(|n| path.with_file_name(format!("{name}-{n:05}-of-{of:05}{after}"))).collect())
}

/// A path without links, so that two spellings are one; that of a first part keeps its name, by which the others are found.
pub fn real(path: &Path) -> PathBuf {
    let whole = || path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match (parts(path), path.parent(), path.file_name()) {
        (Some(_), Some(folder), Some(name)) => folder.canonicalize().map_or_else(|_| whole(), |folder| folder.join(name)),
        _ => whole(),
    }
}

fn unread(error: CacheError) -> io::Error {
    match error {
        CacheError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => source,
        other => io::Error::other(other.to_string()),
    }
}

/// One part of a glob between two `/`.
enum Part<'a> {
    Name(&'a str),
    Some(Pattern),
    /// `**`: any number of folders.
    Any,
}

impl<'a> Part<'a> {
    fn of(text: &'a str) -> Result<Self, glob::PatternError> {
        Ok(match text {
            "**" => Self::Any,
            text if text.contains(['*', '?', '[']) => Self::Some(Pattern::new(text)?),
            text => Self::Name(text),
        })
    }
}

const OPTIONS: MatchOptions = MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// What a glob found so far, and the folders that it is in.
#[derive(Default)]
struct Globbing {
    open: Open,
    found: Vec<Found>,
}

impl Globbing {
    /// Adds the files in `dir` that the parts mean.
    fn folder(&mut self, dir: &Path, parts: &[Part<'_>], prefix: &str) -> Result<(), CacheError> {
        let Some((part, rest)) = parts.split_first() else { return Ok(()) };
        if let Part::Name(name) = part {
            let path = dir.join(name);
            let there = std::fs::symlink_metadata(&path).is_ok();
            return if there { self.item(&path, name, rest, prefix) } else { Ok(()) };
        }
        if matches!(part, Part::Any) && !rest.is_empty() {
            self.folder(dir, rest, prefix)?;
        }
        self.open.enter(dir, &look(dir)?)?;
        for item in std::fs::read_dir(dir).map_err(CacheError::io("list", dir))? {
            let path = item.map_err(CacheError::io("list", dir))?.path();
            let shown = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match part {
                Part::Some(pattern) if pattern.matches_with(&shown, OPTIONS) => self.item(&path, name_of(&path)?, rest, prefix)?,
                Part::Any if !shown.starts_with('.') => {
                    if path.is_dir() {
                        self.item(&path, name_of(&path)?, parts, prefix)?;
                    } else if rest.is_empty() {
                        // A last `**` means the files of all folders.
                        self.item(&path, name_of(&path)?, &[], prefix)?;
                    }
                }
                _ => {}
            }
        }
        self.open.leave();
        Ok(())
    }

    /// What a part matched: a file where no part is left, a folder to go on in where one is.
    fn item(&mut self, path: &Path, name: &str, rest: &[Part<'_>], prefix: &str) -> Result<(), CacheError> {
        let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        // Where a folder is wanted, whatever else has a fitting name is not meant.
        if !rest.is_empty() && !path.is_dir() {
            return Ok(());
        }
        match (look(path)?.is_dir(), rest.is_empty()) {
            (false, true) => self.found.push((name, path.to_owned())),
            (true, false) => self.folder(path, rest, &name)?,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn made(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    fn names(dir: &tempfile::TempDir, pattern: &str) -> io::Result<Vec<String>> {
        expand(dir.path(), pattern).map(|f| f.into_iter().map(|(n, _)| n).collect())
    }

    #[test]
    fn globs_directories_and_hidden_files() {
        let dir = made(&["a.c", "src/b.c", "src/deep/c.c", "src/.hidden/d.c", ".flow/objects/e.c", "src/f.h", "one/src/g.c"]);
        let names = |p: &str| names(&dir, p);
        assert_eq!(names("./a.c").unwrap(), ["a.c"]);
        assert_eq!(names("**/*.c").unwrap(), ["a.c", "one/src/g.c", "src/b.c", "src/deep/c.c"]);
        assert_eq!(names("src/**").unwrap(), ["src/b.c", "src/deep/c.c", "src/f.h"]);
        assert_eq!(names("**/src/**/*.c").unwrap(), ["one/src/g.c", "src/b.c", "src/deep/c.c"]);
        assert_eq!(names("*/*.c").unwrap(), ["src/b.c"]);
        assert_eq!(names("src/*.c").unwrap(), ["src/b.c"]);
        assert_eq!(names("src/.hidden/?.c").unwrap(), ["src/.hidden/d.c"]);
        assert_eq!(names("src").unwrap(), ["src/.hidden/d.c", "src/b.c", "src/deep/c.c", "src/f.h"]);
        assert!(names("*.rs").unwrap_err().to_string().contains("matches no file"));
        assert!(names("../x").unwrap_err().to_string().contains("leads out"));
        assert!(names("a[.c").unwrap_err().to_string().contains("a[.c"));
        assert_eq!(names("missing.c").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_exists_by_that_name_is_meant() {
        let dir = made(&["data[1].txt", "data1.txt", "set[a-c]/x", "seta/y"]);
        assert_eq!(names(&dir, "data[1].txt").unwrap(), ["data[1].txt"]);
        assert_eq!(names(&dir, "data[12].txt").unwrap(), ["data1.txt"]);
        assert_eq!(names(&dir, "set[a-c]").unwrap(), ["set[a-c]/x"]);
    }

    #[test]
    fn a_first_part_stands_for_all_and_keeps_its_name() {
        let dir = made(&["blobs/a", "blobs/b", "m/x.gguf"]);
        for (link, to) in [("m/m-00001-of-00002.gguf", "../blobs/a"), ("m/m-00002-of-00002.gguf", "../blobs/b"), ("m/y.gguf", "x.gguf")] {
            symlink(to, dir.path().join(link)).unwrap();
        }
        let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
        let first = at("m/m-00001-of-00002.gguf");
        assert_eq!(real(&first), first);
        assert_eq!(parts(&first), Some(vec![first.clone(), at("m/m-00002-of-00002.gguf")]));
        assert_eq!((real(&at("m/y.gguf")), parts(&at("m/y.gguf"))), (at("m/x.gguf"), None));
        for other in ["m-00002-of-00002.gguf", "m-00001-of-00001.gguf", "m-00001-of-2.gguf", "m-00001-of-0000x"] {
            assert_eq!(parts(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn globs_and_directories_agree_about_links() {
        let dir = made(&["src/a.c"]);
        symlink("nowhere.c", dir.path().join("src/b.c")).unwrap();
        for pattern in ["src", "src/*.c", "**/*.c", "src/b.c", "src/**"] {
            let error = names(&dir, pattern).unwrap_err().to_string();
            assert!(error.contains("leads nowhere") && error.contains("src/b.c"), "{pattern}: {error}");
        }
        std::fs::remove_file(dir.path().join("src/b.c")).unwrap();
        symlink("..", dir.path().join("src/up")).unwrap();
        for pattern in ["src", "**/*.c", "src/**"] {
            let error = names(&dir, pattern).unwrap_err().to_string();
            assert!(error.contains("leads back to") && error.contains("src/up"), "{pattern}: {error}");
        }
        assert_eq!(names(&dir, "src/*.c").unwrap(), ["src/a.c"]);
        symlink("nowhere", dir.path().join("latest")).unwrap();
        std::fs::remove_file(dir.path().join("src/up")).unwrap();
        assert_eq!(names(&dir, "*/*.c").unwrap(), ["src/a.c"], "a broken link beside the folders");
    }

    #[test]
    fn a_name_that_is_not_utf8_is_refused_where_it_is_meant() {
        let dir = made(&["src/a.c"]);
        std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"src/\xff.h")), "").unwrap();
        assert_eq!(names(&dir, "src/*.c").unwrap(), ["src/a.c"]);
        for pattern in ["src", "src/*.h", "src/*"] {
            assert!(names(&dir, pattern).unwrap_err().to_string().contains("not UTF-8"), "{pattern}");
        }
    }
}
