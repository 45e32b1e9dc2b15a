//! Compiled pipelines on the disk, for backends that give them out: the next process compiles nothing again.
//!
//! A cache of a cache: whatever goes wrong with its file costs time, never a result. The file begins with the hash of what
//! follows, so that a damaged one is not shown to the driver.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Keeps compiled pipelines in a directory from now on (the first call of a process counts).
pub fn keep_in(directory: &Path) {
    DIRECTORY.get_or_init(|| directory.to_owned());
}

const HASH: usize = blake3::OUT_LEN;

/// The pipelines of one device.
pub(crate) struct PipelineStore {
    cache: wgpu::PipelineCache,
    file: PathBuf,
    /// Hash of what the file holds.
    stored: Mutex<Option<blake3::Hash>>,
}

impl PipelineStore {
    /// Those that an earlier process left for this adapter and driver; `None` where nothing is to be kept.
    pub fn open(device: &wgpu::Device, adapter: &wgpu::AdapterInfo) -> Option<Self> {
        let directory = DIRECTORY.get()?;
        device.features().contains(wgpu::Features::PIPELINE_CACHE).then_some(())?;
        let key = wgpu::util::pipeline_cache_key(adapter)?;
        let driver = blake3::hash(format!("{} {} {}", adapter.name, adapter.driver, adapter.driver_info).as_bytes());
        let file = directory.join(format!("{key}_{}.bin", &driver.to_hex()[..16]));
        let bytes = std::fs::read(&file).ok().filter(|b| b.len() >= HASH && blake3::hash(&b[HASH..]).as_bytes() == &b[..HASH]);
        let data = bytes.as_ref().map(|b| &b[HASH..]);
        let desc = wgpu::PipelineCacheDescriptor { label: Some("flow"), data, fallback: true };
        // SAFETY: the data is what `get_data` gave for this adapter and driver: it has the hash that was written with it.
        let cache = unsafe { device.create_pipeline_cache(&desc) };
        Some(Self { cache, file, stored: Mutex::new(data.map(blake3::hash)) })
    }

    pub fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes what the driver holds now, if it is something else than the file.
    pub fn save(&self) {
        let Some(data) = self.cache.get_data() else { return };
        let hash = blake3::hash(&data);
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if *stored == Some(hash) {
            return;
        }
        match self.write(&hash, &data) {
            Ok(()) => *stored = Some(hash),
            Err(e) => tracing::debug!("pipelines are not kept in {}: {e}", self.file.display()),
        }
    }

    fn write(&self, hash: &blake3::Hash, data: &[u8]) -> std::io::Result<()> {
        let directory = self.file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        // Another process may write the same file: each renames a whole one of its own.
        let new = self.file.with_extension(format!("{}.new", std::process::id()));
        std::fs::write(&new, [hash.as_bytes(), data].concat())?;
        std::fs::rename(&new, &self.file).inspect_err(|_| drop(std::fs::remove_file(&new)))
    }
}
