//! Source files that a parameter names by path or glob.

use std::io;
use std::path::{Component, Path, PathBuf};

/// One source file: its path inside the pipeline's folder, `/` between parts, and where it is.
pub type Found = (String, PathBuf);

/// The files that `pattern` means in `dir`, sorted: one file, all files below a directory, or what a glob matches.
/// `*` and `?` never match a leading dot, so that `.git` and `.flow` stay out.
pub fn expand(dir: &Path, pattern: &str) -> io::Result<Vec<Found>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    if !Path::new(pattern).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(invalid(format!("`{pattern}` leads out of the pipeline's folder, and is to be present at its relative path")));
    }
    let mut found = Vec::new();
    if pattern.contains(['*', '?', '[']) {
        let whole = format!("{}/{pattern}", glob::Pattern::escape(&dir.to_string_lossy()));
        let options = glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
        for path in glob::glob_with(&whole, options).map_err(|e| invalid(format!("`{pattern}`: {e}")))? {
            let path = path.map_err(std::io::Error::from)?;
            if path.is_file() {
                found.push(named(dir, path)?);
            }
        }
    } else {
        let path = dir.join(pattern);
        if std::fs::metadata(&path)?.is_dir() {
            below(dir, &path, &mut found)?;
        } else {
            found.push(named(dir, path)?);
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("`{pattern}` matches no file")));
    }
    Ok(found)
}

fn below(dir: &Path, folder: &Path, found: &mut Vec<Found>) -> io::Result<()> {
    for item in std::fs::read_dir(folder)? {
        let path = item?.path();
        if path.is_dir() {
            below(dir, &path, found)?;
        } else {
            found.push(named(dir, path)?);
        }
    }
    Ok(())
}

fn named(dir: &Path, path: PathBuf) -> io::Result<Found> {
    let parts: Option<Vec<_>> = path
        .strip_prefix(dir)
        .ok()
        .and_then(|p| p.components().filter(|c| !matches!(c, Component::CurDir)).map(|c| c.as_os_str().to_str()).collect());
    match parts {
        Some(parts) => Ok((parts.join("/"), path)),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the name {} is not UTF-8", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_directories_and_hidden_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.c", "src/b.c", "src/deep/c.c", "src/.hidden/d.c", ".flow/objects/e.c", "src/f.h"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let names = |p: &str| expand(dir.path(), p).map(|f| f.into_iter().map(|(n, _)| n).collect::<Vec<_>>());
        assert_eq!(names("./a.c").unwrap(), ["a.c"]);
        assert_eq!(names("**/*.c").unwrap(), ["a.c", "src/b.c", "src/deep/c.c"]);
        assert_eq!(names("src/*.c").unwrap(), ["src/b.c"]);
        assert_eq!(names("src").unwrap(), ["src/.hidden/d.c", "src/b.c", "src/deep/c.c", "src/f.h"]);
        assert!(names("*.rs").unwrap_err().to_string().contains("matches no file"));
        assert!(names("../x").unwrap_err().to_string().contains("leads out"));
        assert!(names("missing.c").is_err());
    }
}
