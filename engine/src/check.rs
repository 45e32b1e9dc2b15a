//! `run --check`: a result made again beside the one in the cache, down to the first byte that differs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flow_cache::{Artifact, Cache, CacheError};
use serde::{Deserialize, Serialize};

/// The first difference between two results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Output port.
    pub port: String,
    /// File inside a directory artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Offset of the first byte that differs, where both files are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte: Option<u64>,
    /// Tensor that holds that byte, in a safetensors file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// In a sentence.
    pub message: String,
}

/// The first difference between artifacts and what was made again at these paths.
pub(crate) fn compare<'a>(
    cache: &Cache,
    artifacts: impl Iterator<Item = (&'a String, &'a Artifact)>,
    made: &BTreeMap<String, PathBuf>,
) -> Result<Option<Difference>, CacheError> {
    for (port, artifact) in artifacts {
        let Some(path) = made.get(port) else { continue };
        if cache.digest_source(path)?.digest == artifact.digest {
            continue;
        }
        if !artifact.tree {
            return of_files(port, None, &cache.layout().object(&artifact.digest), path).map(Some);
        }
        let manifest = cache.manifest(artifact)?;
        for entry in manifest.entries() {
            let new = path.join(&entry.path);
            if !new.is_file() {
                return Ok(Some(there(port, &entry.path, "is missing in the new result")));
            }
            if cache.digest_source(&new)?.digest != entry.digest {
                return of_files(port, Some(&entry.path), &cache.layout().object(&entry.digest), &new).map(Some);
            }
        }
        return Ok(Some(there(port, "", "holds a file more, or a file that is executable only in one result")));
    }
    Ok(None)
}

fn there(port: &str, file: &str, what: &str) -> Difference {
    let file = Some(file.to_owned()).filter(|f| !f.is_empty());
    let name = file.clone().map_or_else(|| format!("output `{port}`"), |f| format!("`{f}` of output `{port}`"));
    Difference { port: port.into(), file, byte: None, tensor: None, message: format!("{name} {what}") }
}

fn of_files(port: &str, file: Option<&str>, old: &Path, new: &Path) -> Result<Difference, CacheError> {
    let byte = first_difference(old, new)?;
    let tensor = tensor_at(old, byte);
    let name = file.map_or_else(|| format!("output `{port}`"), |f| format!("`{f}` of output `{port}`"));
    let inside = tensor.as_ref().map(|t| format!(", in tensor `{t}`")).unwrap_or_default();
    let message = format!("{name} differs from byte {byte} on{inside}");
    Ok(Difference { port: port.into(), file: file.map(str::to_owned), byte: Some(byte), tensor, message })
}

fn first_difference(a: &Path, b: &Path) -> Result<u64, CacheError> {
    let open = |path: &Path| File::open(path).map(|f| BufReader::with_capacity(1 << 20, f)).map_err(CacheError::io("open", path));
    let (mut x, mut y) = (open(a)?.bytes(), open(b)?.bytes());
    let mut at = 0;
    loop {
        match (x.next().transpose().map_err(CacheError::io("read", a))?, y.next().transpose().map_err(CacheError::io("read", b))?) {
            (Some(p), Some(q)) if p == q => at += 1,
            _ => return Ok(at),
        }
    }
}

/// The tensor of a safetensors file that holds a byte: eight bytes of length, then a JSON header with the offsets
/// of each tensor after it.
fn tensor_at(path: &Path, byte: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > 100 << 20 {
        return None;
    }
    let mut header = vec![0; usize::try_from(length).ok()?];
    file.read_exact(&mut header).ok()?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&header).ok()?;
    let at = byte.checked_sub(8 + length)?;
    header.into_iter().find_map(|(name, tensor)| {
        let from = tensor["data_offsets"][0].as_u64()?;
        let to = tensor["data_offsets"][1].as_u64()?;
        (from..to).contains(&at).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tensor_that_holds_a_byte_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        let write = |name: &str, data: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header, data].concat()).unwrap();
            path
        };
        let (old, new) = (write("old", &[0; 8]), write("new", &[0, 0, 0, 0, 0, 1, 0, 0]));
        let found = of_files("model", Some("m.safetensors"), &old, &new).unwrap();
        assert_eq!((found.byte, found.tensor.as_deref()), (Some(8 + header.len() as u64 + 5), Some("b")));
        assert!(found.message.contains("in tensor `b`"), "{}", found.message);
    }
}
