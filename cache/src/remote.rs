//! A remote cache: action entries and objects under the same names as locally, in any object store.
//!
//! It is a help, never a need: everything has a time limit, everything that comes from it is checked against its
//! name, and after the first trouble the remote is left alone for the rest of the process, with one warning.

use std::fs;
use std::io::Write;
use std::path::Path as FilePath;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;
use url::Url;

use crate::action::{ActionFile, FORMAT};
use crate::digest::{ActionKey, Digest};
use crate::error::{CacheError, FetchError};
use crate::files;

/// An answer, or the next piece of one, has to come within this time.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes a second that a transfer must make on the whole, beyond [`PATIENCE`]: a server that drips ends a run's waiting too.
const SLOWEST: u64 = 128 << 10;
/// No manifest of a directory is larger: of all objects these alone have a size that nobody wrote down.
const LARGEST_MANIFEST: u64 = 64 << 20;
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

    /// A temporary file in `tmp` with an object's bytes, checked against its name and its size, which a manifest alone has not.
    pub fn fetch(&self, digest: &Digest, size: Option<u64>, tmp: &FilePath) -> Result<NamedTempFile, FetchError> {
        if let Some(trouble) = self.trouble() {
            return Err(FetchError::LeftAlone(trouble));
        }
        let (store, path) = (self.store.clone(), self.object(digest));
        let mut file = NamedTempFile::new_in(tmp).map_err(|source| FetchError::Create { tmp: tmp.to_owned(), source })?;
        let mut out = file.reopen().map_err(FetchError::File)?;
        let patience = self.patience;
        let (sender, answer) = channel();
        self.runtime.spawn(async move {
            let _ = sender.send(download(store, path, (patience, size), &mut out).await);
        });
        let got = answer.recv().unwrap_or_else(|_| Err(FetchError::Refused("its thread failed".into())));
        match &got {
            Err(FetchError::Refused(why)) => self.give_up("fetch an object", why),
            Ok(found) if found == digest => {}
            Ok(_) | Err(FetchError::OtherBytes) => {
                self.give_up("fetch an object", "it holds other bytes than its name says");
                return Err(FetchError::OtherBytes);
            }
            Err(_) => {}
        }
        got?;
        file.flush().map_err(FetchError::File)?;
        Ok(file)
    }

    /// Sends an entry, whose objects it has by now; `None` on trouble.
    pub(crate) fn push_entry(&self, key: &ActionKey, text: Vec<u8>) -> Option<()> {
        let (store, path) = (self.store.clone(), self.entry(key));
        self.ask("write an entry", self.patience, async move { create(store.as_ref(), &path, text.into()).await })
    }

    /// Sends an object. The bytes that were sent; `Some(None)` where it has the object, `None` on trouble.
    pub(crate) fn push_object(&self, file: &FilePath, digest: &Digest) -> Option<Option<u64>> {
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

/// An object's bytes into `out`: within the time that its size gives it, and no byte more than it has.
async fn download(
    store: Arc<dyn ObjectStore>,
    path: Path,
    (patience, size): (Duration, Option<u64>),
    out: &mut fs::File,
) -> Result<Digest, FetchError> {
    let most = size.unwrap_or(LARGEST_MANIFEST);
    let limit = patience + Duration::from_secs(most / SLOWEST);
    let late = |_| FetchError::Refused(format!("{most} bytes at the most did not come within {} s", limit.as_secs_f32()));
    tokio::time::timeout(limit, stream(store, path, (patience, most), out)).await.map_err(late)?
}

async fn stream(
    store: Arc<dyn ObjectStore>,
    path: Path,
    (patience, most): (Duration, u64),
    out: &mut fs::File,
) -> Result<Digest, FetchError> {
    let late = |_| FetchError::Refused(format!("no answer within {} s", patience.as_secs_f32()));
    let found = match tokio::time::timeout(patience, store.get(&path)).await.map_err(late)? {
        Ok(found) => found,
        Err(object_store::Error::NotFound { .. }) => return Err(FetchError::Missing),
        Err(e) => return Err(FetchError::Refused(e.to_string())),
    };
    let mut hasher = blake3::Hasher::new();
    let mut pieces = found.into_stream();
    let mut left = most;
    while let Some(piece) = tokio::time::timeout(patience, pieces.next()).await.map_err(late)? {
        let piece = piece.map_err(|e| FetchError::Refused(e.to_string()))?;
        left = left.checked_sub(piece.len() as u64).ok_or(FetchError::OtherBytes)?;
        hasher.update(&piece);
        out.write_all(&piece).map_err(FetchError::Write)?;
    }
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A server of one object: what it answers to each request, piece by piece.
    fn serving(pieces: impl Fn(&mut std::net::TcpStream) + Send + 'static) -> Remote {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                pieces(&mut stream);
            }
        });
        let allowed = [("allow_http".to_owned(), "true".to_owned())];
        Remote::open(&format!("http://127.0.0.1:{port}/cache"), true, allowed).expect("opens").patience(Duration::from_secs(1))
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\netag: x\r\nlast-modified: Tue, 24 Nov 2026 00:00:00 GMT\r\n";

    /// One byte now and then is always in time for the next, and never done.
    #[test]
    fn an_object_that_drips_has_the_time_that_its_size_gives_it() {
        let remote = serving(|stream| {
            let _ = write!(stream, "{HEAD}content-length: 1000\r\n\r\n");
            for _ in 0..1000 {
                std::thread::sleep(Duration::from_millis(100));
                if stream.write_all(b"x").is_err() {
                    return;
                }
            }
        });
        let (tmp, began) = (tempfile::tempdir().expect("dir"), std::time::Instant::now());
        let error = remote.fetch(&Digest::of(b"x"), Some(1000), tmp.path()).expect_err("is too slow");
        assert!(matches!(error, FetchError::Refused(_)) && began.elapsed() < Duration::from_secs(10), "{error}");
        assert!(remote.trouble().is_some_and(|t| t.contains("1000 bytes")), "{:?}", remote.trouble());
    }

    /// Nothing beyond an object's size is taken in, however much there is.
    #[test]
    fn an_object_ends_where_its_size_says() {
        let remote = serving(|stream| {
            let _ = write!(stream, "{HEAD}content-length: 100000000000\r\n\r\n");
            while stream.write_all(&[0; 1 << 16]).is_ok() {}
        });
        let tmp = tempfile::tempdir().expect("dir");
        let error = remote.fetch(&Digest::of(b"x"), Some(10), tmp.path()).expect_err("is too long");
        assert!(matches!(error, FetchError::OtherBytes), "{error}");
    }

    /// This crate alone speaks TLS: a client hello is the first that a server of `https://` hears.
    #[test]
    fn https_begins_with_a_handshake() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let greeted = std::thread::spawn(move || {
            let mut first = [0u8; 6];
            listener.accept().expect("a connection").0.read_exact(&mut first).map(|()| first)
        });
        let url = format!("https://127.0.0.1:{port}/cache");
        let remote = Remote::open(&url, true, []).expect("opens").patience(Duration::from_secs(5));
        assert!(remote.action(&ActionKey(Digest::of(b"nothing"))).is_none());
        let hello = greeted.join().expect("joins").expect("bytes");
        assert!((hello[0], hello[5]) == (22, 1) && remote.trouble().is_some(), "{hello:?}");
    }
}
