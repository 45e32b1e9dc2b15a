//! Outputs that a run itself reads, by their artifact types.

use flow_cache::{Artifact, Cache, CacheError};
use serde_json::Value;

/// What a gate says: JSON with `accepted` and `reasons`.
pub(crate) const VERDICT: &str = "Verdict";
/// Figures for the end of a run: JSON with `headline`.
pub(crate) const SUMMARY: &str = "Summary";

/// Whether the run reads outputs of that type, so that their bytes have to be here.
pub(crate) fn are_read(ty: &str) -> bool {
    matches!(ty, VERDICT | SUMMARY)
}

/// The JSON of an artifact; null where it is none.
pub(crate) fn read_json(cache: &Cache, artifact: &Artifact) -> Result<Value, CacheError> {
    let path = cache.object_path(artifact)?;
    let bytes = std::fs::read(&path).map_err(CacheError::io("read", &path))?;
    Ok(serde_json::from_slice(&bytes).unwrap_or_default())
}
