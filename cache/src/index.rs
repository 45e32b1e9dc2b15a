//! The SQLite index: fast answers that can all be rebuilt from files.
//!
//! It is never the truth, so a page of it that is damaged while it is in use fails nothing: from then on the
//! index answers "unknown" and takes nothing in, and the next process that opens it makes it anew.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use crate::digest::Digest;
use crate::error::CacheError;
use crate::files::Stat;

const SCHEMA_VERSION: i64 = 3;

const SCHEMA: &str = "
DROP TABLE IF EXISTS actions;
DROP TABLE IF EXISTS sources;
DROP TABLE IF EXISTS verified;
DROP TABLE IF EXISTS runs;
DROP TABLE IF EXISTS latest;
DROP TABLE IF EXISTS memos;
CREATE TABLE actions (key BLOB PRIMARY KEY, entry TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE verified (digest BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER) WITHOUT ROWID;
CREATE TABLE runs (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE latest (project TEXT, stage TEXT, key BLOB NOT NULL, PRIMARY KEY (project, stage)) WITHOUT ROWID;
CREATE TABLE remote (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE memos (name BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
";

/// How the index was found.
#[derive(PartialEq, Eq, Debug)]
pub enum Found {
    Whole,
    /// It is missing, of another version, or corrupt.
    Unusable,
}

pub struct Index {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// Held during a transaction, so that a second one waits.
    transaction: Mutex<()>,
    /// A damaged page was met.
    broken: AtomicBool,
}

/// How long another process may hold the index.
const PATIENCE: Duration = Duration::from_secs(30);

fn is_busy(e: &rusqlite::Error) -> bool {
    matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

impl Index {
    /// Opens the index if it can be used as it is.
    pub fn open(path: &Path) -> Result<Option<Self>, CacheError> {
        if !path.exists() || damaged_mark(path).exists() {
            return Ok(None);
        }
        match Self::connect(path) {
            Ok((connection, Found::Whole)) => Ok(Some(Self::wrap(path, connection))),
            Ok((_, Found::Unusable)) => Ok(None),
            Err(e) if is_corrupt(&e) => Ok(None),
            Err(source) => Err(CacheError::Index { path: path.to_owned(), source }),
        }
    }

    /// Makes an empty index in the place of whatever is there.
    pub fn create(path: &Path) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Index { path: path.to_owned(), source };
        for suffix in ["", "-wal", "-shm"] {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            let _ = std::fs::remove_file(PathBuf::from(name));
        }
        let (connection, _) = Self::connect(path).map_err(failed)?;
        connection.execute_batch(SCHEMA).map_err(failed)?;
        connection.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(failed)?;
        let _ = std::fs::remove_file(damaged_mark(path));
        Ok(Self::wrap(path, connection))
    }

    fn wrap(path: &Path, connection: Connection) -> Self {
        connection.set_prepared_statement_cache_capacity(32);
        Self { path: path.to_owned(), connection: Mutex::new(connection), transaction: Mutex::new(()), broken: AtomicBool::new(false) }
    }

    fn connect(path: &Path) -> rusqlite::Result<(Connection, Found)> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(PATIENCE)?;
        // SQLite does not wait by itself where two processes turn a new file to WAL at the same moment.
        let began = Instant::now();
        while let Err(e) = connection.pragma_update(None, "journal_mode", "WAL") {
            if !is_busy(&e) || began.elapsed() > PATIENCE {
                return Err(e);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "mmap_size", 256 << 20)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
        if version != SCHEMA_VERSION {
            return Ok((connection, Found::Unusable));
        }
        // A whole check costs milliseconds on a small index; a large one shows its damage on use.
        if std::fs::metadata(path).is_ok_and(|m| m.len() < 1 << 20) {
            let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
            if verdict != "ok" {
                return Ok((connection, Found::Unusable));
            }
        }
        Ok((connection, Found::Whole))
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work`; damage in the index is no failure of it: the answer is then the default one.
    fn with<T: Default>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, CacheError> {
        if self.broken.load(Ordering::Relaxed) {
            return Ok(T::default());
        }
        match work(&self.db()) {
            Ok(value) => Ok(value),
            Err(e) if is_corrupt(&e) => {
                if !self.broken.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the cache index is damaged; this run goes on without it, the next one rebuilds it");
                    let _ = std::fs::write(damaged_mark(&self.path), b"");
                }
                Ok(T::default())
            }
            // What matters is in files, and those say so themselves when there is no room for them.
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DiskFull) => Ok(T::default()),
            Err(source) => Err(CacheError::Index { path: self.path.clone(), source }),
        }
    }

    fn write(&self, sql: &str, args: impl rusqlite::Params) -> Result<(), CacheError> {
        self.with(|db| db.prepare_cached(sql)?.execute(args).map(|_| ()))
    }

    pub fn action(&self, key: &Digest) -> Result<Option<String>, CacheError> {
        self.with(|db| {
            db.prepare_cached("SELECT entry FROM actions WHERE key = ?1")?.query_row(params![key.bytes()], |r| r.get(0)).optional()
        })
    }
    /// All entries.
    pub fn actions(&self) -> Result<Vec<String>, CacheError> {
        self.with(|db| db.prepare_cached("SELECT entry FROM actions")?.query_map([], |r| r.get(0))?.collect())
    }
    pub fn set_action(&self, key: &Digest, entry: &str) -> Result<(), CacheError> {
        self.write("INSERT OR REPLACE INTO actions VALUES (?1, ?2)", params![key.bytes(), entry])
    }
    pub fn drop_action(&self, key: &Digest) -> Result<(), CacheError> {
        self.write("DELETE FROM actions WHERE key = ?1", params![key.bytes()])
    }

    pub fn source(&self, path: &[u8], stat: &Stat) -> Result<Option<Digest>, CacheError> {
        self.with(|db| {
            db.prepare_cached("SELECT digest FROM sources WHERE path = ?1 AND size = ?2 AND mtime = ?3 AND ctime = ?4 AND inode = ?5")?
                .query_row(params![path, stat.size as i64, stat.mtime, stat.ctime, stat.inode as i64], |r| r.get(0))
                .optional()
        })
        .map(|found| found.map(Digest::from_bytes))
    }
    pub fn set_source(&self, path: &[u8], stat: &Stat, digest: &Digest) -> Result<(), CacheError> {
        self.write(
            "INSERT OR REPLACE INTO sources VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![path, stat.size as i64, stat.mtime, stat.ctime, stat.inode as i64, digest.bytes()],
        )
    }

    pub fn is_verified(&self, digest: &Digest, stat: &Stat) -> Result<bool, CacheError> {
        self.with(|db| {
            db.prepare_cached("SELECT 1 FROM verified WHERE digest = ?1 AND size = ?2 AND mtime = ?3 AND ctime = ?4 AND inode = ?5")?
                .exists(params![digest.bytes(), stat.size as i64, stat.mtime, stat.ctime, stat.inode as i64])
        })
    }
    pub fn set_verified(&self, digest: &Digest, stat: &Stat) -> Result<(), CacheError> {
        self.write(
            "INSERT OR REPLACE INTO verified VALUES (?1, ?2, ?3, ?4, ?5)",
            params![digest.bytes(), stat.size as i64, stat.mtime, stat.ctime, stat.inode as i64],
        )
    }
    pub fn drop_verified(&self, digest: &Digest) -> Result<(), CacheError> {
        self.write("DELETE FROM verified WHERE digest = ?1", params![digest.bytes()])
    }

    pub fn set_run(&self, id: &str, record: &str) -> Result<(), CacheError> {
        self.write("INSERT OR REPLACE INTO runs VALUES (?1, ?2)", params![id, record])
    }
    pub fn drop_run(&self, id: &str) -> Result<(), CacheError> {
        self.write("DELETE FROM runs WHERE id = ?1", params![id])
    }
    pub fn run(&self, id: &str) -> Result<Option<String>, CacheError> {
        self.with(|db| db.prepare_cached("SELECT record FROM runs WHERE id = ?1")?.query_row(params![id], |r| r.get(0)).optional())
    }
    /// The last `limit` run records, newest first.
    pub fn runs(&self, limit: usize) -> Result<Vec<String>, CacheError> {
        self.with(|db| {
            let mut statement = db.prepare_cached("SELECT record FROM runs ORDER BY id DESC LIMIT ?1")?;
            statement.query_map(params![i64::try_from(limit).unwrap_or(i64::MAX)], |r| r.get(0))?.collect()
        })
    }

    /// The last `limit` run records of one pipeline, newest first.
    pub fn runs_of(&self, pipeline: &str, limit: usize) -> Result<Vec<String>, CacheError> {
        self.with(|db| {
            let text = "SELECT record FROM runs WHERE json_extract(record, '$.pipeline') = ?1 ORDER BY id DESC LIMIT ?2";
            let mut statement = db.prepare_cached(text)?;
            statement.query_map(params![pipeline, i64::try_from(limit).unwrap_or(i64::MAX)], |r| r.get(0))?.collect()
        })
    }

    pub fn latest(&self, project: &str, stage: &str) -> Result<Option<Digest>, CacheError> {
        self.with(|db| {
            db.prepare_cached("SELECT key FROM latest WHERE project = ?1 AND stage = ?2")?
                .query_row(params![project, stage], |r| r.get(0))
                .optional()
        })
        .map(|found| found.map(Digest::from_bytes))
    }
    pub fn set_latest(&self, project: &str, stage: &str, key: &Digest) -> Result<(), CacheError> {
        self.write("INSERT OR REPLACE INTO latest VALUES (?1, ?2, ?3)", params![project, stage, key.bytes()])
    }

    /// Whether the objects of an action may lie in the remote cache only.
    pub fn is_remote(&self, key: &Digest) -> Result<bool, CacheError> {
        self.with(|db| db.prepare_cached("SELECT 1 FROM remote WHERE key = ?1")?.exists(params![key.bytes()]))
    }
    pub fn set_remote(&self, key: &Digest) -> Result<(), CacheError> {
        self.write("INSERT OR REPLACE INTO remote VALUES (?1)", params![key.bytes()])
    }
    pub fn drop_remote(&self, key: &Digest) -> Result<(), CacheError> {
        self.write("DELETE FROM remote WHERE key = ?1", params![key.bytes()])
    }

    pub fn memo(&self, name: &Digest) -> Result<Option<Vec<u8>>, CacheError> {
        self.with(|db| {
            db.prepare_cached("SELECT body FROM memos WHERE name = ?1")?.query_row(params![name.bytes()], |r| r.get(0)).optional()
        })
    }
    pub fn set_memo(&self, name: &Digest, body: &[u8]) -> Result<(), CacheError> {
        self.write("INSERT OR REPLACE INTO memos VALUES (?1, ?2)", params![name.bytes(), body])
    }

    /// Runs `work` in one transaction; what other threads write meanwhile joins it.
    pub fn batch(&self, work: impl FnOnce() -> Result<(), CacheError>) -> Result<(), CacheError> {
        let _alone = self.transaction.lock().unwrap_or_else(PoisonError::into_inner);
        self.with(|db| db.execute_batch("BEGIN IMMEDIATE"))?;
        let result = work();
        let end = if result.is_ok() { "COMMIT" } else { "ROLLBACK" };
        self.with(|db| db.execute_batch(end))?;
        result
    }
}

/// Says to the next process that the index has to be made anew.
fn damaged_mark(path: &Path) -> PathBuf {
    path.with_extension("damaged")
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
        || matches!(error, rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::FromSqlConversionFailure(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two runs begin in a project at the same moment: each finds an index or makes one, none is told that it is locked.
    #[test]
    fn many_open_a_new_index_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        for round in 0..40 {
            let path = dir.path().join(format!("{round}.db"));
            let together = std::sync::Barrier::new(6);
            std::thread::scope(|scope| {
                for _ in 0..6 {
                    scope.spawn(|| {
                        together.wait();
                        Index::connect(&path).map(|_| ()).expect("connects");
                    });
                }
            });
        }
    }
}
