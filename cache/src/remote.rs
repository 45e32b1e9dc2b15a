//! A remote cache: action entries and objects under the same names as locally, in any object store.
//!
//! It is a help, never a need: everything has a time limit, everything that comes from it is checked against its
//! name, and after the first trouble the remote is left alone for the rest of the process, with one warning.

use std::fs;
use std::io::Write;
use std::path::Path as FilePath;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::Serialize;
use tokio::runtime::Runtime;
use url::Url;

use crate::action::{ActionFile, FORMAT};
use crate::cache::Cache;
use crate::digest::{ActionKey, Digest};
use crate::error::CacheError;
use crate::files;
use crate::object::Entered;

/// An answer, or the next piece of one, has to come within this time.
const PATIENCE: Duration = Duration::from_secs(15);
/// Larger objects are sent in parts.
const PART: u64 = 16 << 20;
/// No action entry is larger.
const LARGEST_ENTRY: usize = 64 << 20;

/// A remote cache.
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    root: Path,
    runtime: Runtime,
    read_only: bool,
    shown: String,
    patience: Duration,
    trouble: Mutex<Option<String>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.shown)
    }
}

impl Remote {
    /// Opens `s3://bucket/prefix`, `gs://…`, `az://…`, `https://…` (read-only) or `file:///folder`. `environment` holds
    /// names and values as object stores know them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …).
    pub fn open(url: &str, read_only: bool, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, CacheError> {
        let bad = |why: String| CacheError::BadRemote { url: url.to_owned(), why };
        let parsed = Url::parse(url).map_err(|e| bad(e.to_string()))?;
        if parsed.scheme() == "file" {
            let folder = parsed.to_file_path().map_err(|()| bad("not a path of this machine".into()))?;
            files::create_dir(&folder)?;
        }
        let defaults = [("timeout", "60 seconds"), ("connect_timeout", "5 seconds"), ("aws_conditional_put", "etag")];
        let options = defaults.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter();
        let options = options.chain(environment.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)));
        // One who comes second finds it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (store, root) = object_store::parse_url_opts(&parsed, options).map_err(|e| bad(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| bad(format!("cannot start its threads: {e}")))?;
        let read_only =
            read_only || matches!(parsed.scheme(), "http" | "https") && !url.contains("blob.core") && !url.contains("amazonaws");
        let store: Arc<dyn ObjectStore> = store.into();
        let (shown, trouble) = (url.to_owned(), Mutex::new(None));
        Ok(Self { store, root, runtime, read_only, shown, patience: PATIENCE, trouble })
    }

    /// The same with another time limit.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Why it is not used any more, if something went wrong.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether nothing is ever sent to it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn give_up(&self, doing: &str, why: &str) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_none() {
            let why: String = why.lines().next().unwrap_or_default().chars().take(300).collect();
            *trouble = Some(format!("remote cache {}: {doing}: {why}; going on without it", self.shown));
        }
    }

    /// Runs a request; trouble is noted and gives `None`. Works on any thread, of a runtime or not.
    fn ask<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        request: impl Future<Output = Result<T, object_store::Error>> + Send + 'static,
    ) -> Option<T> {
        if self.trouble().is_some() {
            return None;
        }
        let (sender, answer) = channel();
        self.runtime.spawn(async move {
            // Who asked may have stopped waiting.
            let _ = sender.send(tokio::time::timeout(limit, request).await);
        });
        match answer.recv() {
            Ok(Ok(Ok(value))) => return Some(value),
            Ok(Ok(Err(e))) => self.give_up(doing, &e.to_string()),
            Ok(Err(_)) => self.give_up(doing, &format!("no answer within {} s", limit.as_secs_f32())),
            Err(_) => self.give_up(doing, "its thread failed"),
        }
        None
    }

    fn object(&self, digest: &Digest) -> Path {
        let hex = digest.hex();
        self.root.clone().join("objects").join(&hex[..2]).join(&hex[2..])
    }

    fn entry(&self, key: &ActionKey) -> Path {
        let hex = key.0.hex();
        self.root.clone().join("actions").join(&hex[..2]).join(format!("{}.json", &hex[2..]))
    }

    /// What it knows of an action.
    pub fn action(&self, key: &ActionKey) -> Option<ActionFile> {
        let (store, path) = (self.store.clone(), self.entry(key));
        let bytes = self.ask("read an entry", self.patience, async move {
            match store.get(&path).await {
                Ok(found) if found.meta.size as usize > LARGEST_ENTRY => Ok(None),
                Ok(found) => found.bytes().await.map(Some),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(e),
            }
        })??;
        read_entry(key, &bytes)
    }

    /// Brings an object into the local store, checked against its name.
    pub fn fetch(&self, cache: &Cache, digest: &Digest, entered: &mut Entered) -> Result<(), String> {
        if let Some(trouble) = self.trouble() {
            return Err(trouble);
        }
        let (store, path) = (self.store.clone(), self.object(digest));
        let tmp = cache.layout().tmp();
        let mut file = tempfile::NamedTempFile::new_in(&tmp).map_err(|e| format!("create a file in {}: {e}", tmp.display()))?;
        let mut out = file.reopen().map_err(|e| e.to_string())?;
        let patience = self.patience;
        let (sender, answer) = channel();
        self.runtime.spawn(async move {
            let _ = sender.send(download(store, path, patience, &mut out).await);
        });
        let got = match answer.recv().unwrap_or_else(|_| Err(Failed::Remote("its thread failed".into()))) {
            Ok(got) => got,
            Err(Failed::Missing) => return Err("the remote cache has its entry and not the object".into()),
            Err(Failed::Here(why)) => return Err(why),
            Err(Failed::Remote(why)) => {
                self.give_up("fetch an object", &why);
                return Err(why);
            }
        };
        if got != *digest {
            self.give_up("fetch an object", "it holds other bytes than its name says");
            return Err("the remote cache holds other bytes under its name".into());
        }
        file.flush().map_err(|e| e.to_string())?;
        cache.enter(file.path(), entered).map(|_| ()).map_err(|e| e.to_string())
    }

    /// Sends what an action produced: objects first, then the entry. Gives the objects and bytes that it did not have.
    pub fn push(&self, cache: &Cache, action: &ActionFile) -> Result<(u64, u64), String> {
        let failed = || self.trouble().unwrap_or_else(|| "the remote cache cannot be used".into());
        let (mut count, mut bytes) = (0, 0);
        for artifact in action.entry.outputs.values() {
            let mut digests = Vec::new();
            if artifact.tree {
                digests.extend(cache.manifest(artifact).map_err(|e| e.to_string())?.entries().iter().map(|e| e.digest));
            }
            digests.push(artifact.digest);
            for digest in digests {
                if let Some(sent) = self.push_object(&cache.layout().object(&digest), &digest).ok_or_else(failed)? {
                    count += 1;
                    bytes += sent;
                }
            }
        }
        let text = serde_json::to_vec(action).map_err(|e| e.to_string())?;
        let (store, path) = (self.store.clone(), self.entry(&action.entry.key));
        self.ask("write an entry", self.patience, async move { create(store.as_ref(), &path, text.into()).await }).ok_or_else(failed)?;
        Ok((count, bytes))
    }

    /// The bytes that were sent; `Some(None)` where it has the object, `None` on trouble.
    fn push_object(&self, file: &FilePath, digest: &Digest) -> Option<Option<u64>> {
        let (store, path) = (self.store.clone(), self.object(digest));
        let there = self.ask("look for an object", self.patience, {
            let (store, path) = (store.clone(), path.clone());
            async move {
                match store.head(&path).await {
                    Ok(meta) => Ok(Some(meta.size)),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(e) => Err(e),
                }
            }
        })?;
        let size = fs::metadata(file).ok()?.len();
        if there == Some(size) {
            return Some(None);
        }
        if size <= PART {
            let bytes = fs::read(file).ok()?;
            let wrong = there.is_some();
            self.ask("write an object", self.patience * 2, async move {
                match wrong {
                    // What it has under this name cannot be it.
                    true => store.put(&path, bytes.into()).await.map(|_| ()),
                    false => create(store.as_ref(), &path, bytes.into()).await,
                }
            })?;
            return Some(Some(size));
        }
        let mut source = tokio::fs::File::from_std(fs::File::open(file).ok()?);
        // A part a second is the least that is waited for.
        let limit = self.patience * 2 + Duration::from_secs(size / PART * 4);
        self.ask("write a large object", limit, async move {
            let mut target = object_store::buffered::BufWriter::with_capacity(store, path, PART as usize);
            let generic = |e: std::io::Error| object_store::Error::Generic { store: "remote", source: Box::new(e) };
            tokio::io::copy(&mut source, &mut target).await.map_err(generic)?;
            tokio::io::AsyncWriteExt::shutdown(&mut target).await.map_err(generic)
        })?;
        Some(Some(size))
    }
}

/// An entry as a remote gives it: of this format, and under its own key, or nothing.
pub fn read_entry(key: &ActionKey, bytes: &[u8]) -> Option<ActionFile> {
    serde_json::from_slice::<ActionFile>(bytes).ok().filter(|file| file.entry.format == FORMAT && file.entry.key == *key)
}

/// Writes a name that nobody has written; where somebody has, the first stays.
async fn create(store: &dyn ObjectStore, path: &Path, payload: PutPayload) -> Result<(), object_store::Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.put_opts(path, payload.clone(), options).await {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(()),
        // Names are digests: whoever writes one writes the same bytes.
        Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
            store.put(path, payload).await.map(|_| ())
        }
        Err(e) => Err(e),
    }
}

enum Failed {
    Missing,
    /// The remote's doing.
    Remote(String),
    /// This machine's.
    Here(String),
}

async fn download(store: Arc<dyn ObjectStore>, path: Path, patience: Duration, out: &mut fs::File) -> Result<Digest, Failed> {
    let late = |_| Failed::Remote(format!("no answer within {} s", patience.as_secs_f32()));
    let found = match tokio::time::timeout(patience, store.get(&path)).await.map_err(late)? {
        Ok(found) => found,
        Err(object_store::Error::NotFound { .. }) => return Err(Failed::Missing),
        Err(e) => return Err(Failed::Remote(e.to_string())),
    };
    let mut hasher = blake3::Hasher::new();
    let mut pieces = found.into_stream();
    while let Some(piece) = tokio::time::timeout(patience, pieces.next()).await.map_err(late)? {
        let piece = piece.map_err(|e| Failed::Remote(e.to_string()))?;
        hasher.update(&piece);
        out.write_all(&piece).map_err(|e| Failed::Here(format!("write a fetched object: {e}")))?;
    }
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

/// What was sent in the background.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UploadSummary {
    /// Actions.
    pub actions: u64,
    /// Objects that the remote did not have.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Actions that could not be sent.
    pub failed: u64,
}

/// Sends results in the background.
pub struct Uploader {
    queue: Sender<ActionFile>,
    thread: JoinHandle<UploadSummary>,
    done: Mutex<Receiver<()>>,
}

impl Uploader {
    /// Starts the thread that sends.
    pub fn start(remote: Arc<Remote>, cache: Arc<Cache>) -> Self {
        let (queue, jobs) = channel::<ActionFile>();
        let (finished, done) = channel();
        let thread = std::thread::spawn(move || {
            let mut summary = UploadSummary::default();
            for action in jobs {
                match remote.push(&cache, &action) {
                    Ok((objects, bytes)) => {
                        summary.actions += 1;
                        summary.objects += objects;
                        summary.bytes += bytes;
                    }
                    Err(_) => summary.failed += 1,
                }
            }
            let _ = finished.send(());
            summary
        });
        Self { queue, thread, done: Mutex::new(done) }
    }

    /// Adds an action.
    pub fn submit(&self, action: ActionFile) {
        // The thread ends when this queue does.
        let _ = self.queue.send(action);
    }

    /// Waits until everything is sent or the time is over; `None` then.
    pub fn finish(self, limit: Duration) -> Option<UploadSummary> {
        drop(self.queue);
        let done = self.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        match done.recv_timeout(limit) {
            Ok(()) => self.thread.join().ok(),
            Err(_) => None,
        }
    }
}
