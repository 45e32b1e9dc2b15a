//! What every execution of a run shares.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use flow_cache::{ActionKey, Cache, CacheError, Lease};

use crate::events::RunSink;
use crate::run::options::RunOptions;
use crate::stop::Stop;

/// The world of a run; cheap to clone.
#[derive(Clone)]
pub(crate) struct Env {
    pub cache: Arc<Cache>,
    pub lease: Arc<Lease>,
    pub sink: Arc<dyn RunSink>,
    pub stop: Arc<Stop>,
    pub options: Arc<RunOptions>,
    /// Its id.
    pub run: String,
    /// Actions that the remote cache knows and could not give.
    pub distrusted: Arc<Mutex<HashSet<ActionKey>>>,
}

impl Env {
    /// Forgets a result that the remote cache promised, so that it is made here.
    pub fn distrust(&self, key: &ActionKey) -> Result<(), CacheError> {
        self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).insert(*key);
        self.cache.forget(key)
    }
    /// Whether the remote cache is worth asking for an action.
    pub fn trusts(&self, key: &ActionKey) -> bool {
        !self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}
