//! The SQLite index: fast answers that can all be rebuilt from files.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use crate::digest::Digest;
use crate::error::CacheError;
use crate::files::Stat;

const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS actions (key TEXT PRIMARY KEY, entry TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verified (digest TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS latest (project TEXT, stage TEXT, key TEXT NOT NULL, PRIMARY KEY (project, stage)) WITHOUT ROWID;
";

/// How the index was found.
#[derive(PartialEq, Eq, Debug)]
pub enum Found {
    Whole,
    /// It was missing or corrupt, and is empty now.
    Empty,
}

pub struct Index {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Index {
    /// Opens the index; one that is missing or corrupt is made anew, empty.
    pub fn open(path: &Path) -> Result<(Self, Found), CacheError> {
        let existed = path.exists();
        if existed {
            match Self::connect(path) {
                Ok(connection) => return Ok((Self::wrap(path, connection), Found::Whole)),
                Err(e) if is_corrupt(&e) => {
                    tracing::warn!("the cache index is corrupt and is rebuilt from the cache's files");
                    for suffix in ["", "-wal", "-shm"] {
                        let mut name = path.as_os_str().to_owned();
                        name.push(suffix);
                        let _ = std::fs::remove_file(PathBuf::from(name));
                    }
                }
                Err(source) => return Err(CacheError::Index { path: path.to_owned(), source }),
            }
        }
        let connection = Self::connect(path).map_err(|source| CacheError::Index { path: path.to_owned(), source })?;
        Ok((Self::wrap(path, connection), Found::Empty))
    }

    fn wrap(path: &Path, connection: Connection) -> Self {
        Self { path: path.to_owned(), connection: Mutex::new(connection) }
    }

    fn connect(path: &Path) -> rusqlite::Result<Connection> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(30))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
        if version != SCHEMA_VERSION {
            connection.execute_batch(SCHEMA)?;
            connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        // A whole check costs milliseconds on a small index; a large one shows its damage on use.
        if std::fs::metadata(path).is_ok_and(|m| m.len() < 4 << 20) {
            let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
            if verdict != "ok" {
                return Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(verdict)));
            }
        }
        Ok(connection)
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> impl FnOnce(rusqlite::Error) -> CacheError + '_ {
        |source| CacheError::Index { path: self.path.clone(), source }
    }

    fn text(&self, sql: &str, args: impl rusqlite::Params) -> Result<Option<String>, CacheError> {
        let db = self.db();
        let mut statement = db.prepare_cached(sql).map_err(self.failed())?;
        statement.query_row(args, |r| r.get(0)).optional().map_err(self.failed())
    }

    fn write(&self, sql: &str, args: impl rusqlite::Params) -> Result<(), CacheError> {
        let db = self.db();
        let mut statement = db.prepare_cached(sql).map_err(self.failed())?;
        statement.execute(args).map(|_| ()).map_err(self.failed())
    }

    pub fn action(&self, key: &str) -> Result<Option<String>, CacheError> {
        self.text("SELECT entry FROM actions WHERE key = ?1", params![key])
    }
    pub fn set_action(&self, key: &str, entry: &str) -> Result<(), CacheError> {
        self.write("INSERT OR REPLACE INTO actions VALUES (?1, ?2)", params![key, entry])
    }
    pub fn drop_action(&self, key: &str) -> Result<(), CacheError> {
        self.write("DELETE FROM actions WHERE key = ?1", params![key])
    }

    pub fn source(&self, path: &[u8], stat: &Stat) -> Result<Option<Digest>, CacheError> {
        let found = self.text(
            "SELECT digest FROM sources WHERE path = ?1 AND size = ?2 AND mtime = ?3 AND ctime = ?4 AND inode = ?5",
            params![path, stat.size as i64, stat.mtime, stat.ctime, stat.inode as i64],
        )?;
        Ok(found.and_then(|hex| hex.parse().ok()))
    }
    pub fn set_source(&self, path: &[u8], stat: &Stat, digest: &Digest) -> Result<(), CacheError> {
        self.write(
            "INSERT OR REPLACE INTO sources VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![path, stat.size as i64, stat.mtime, stat.ctime, stat.inode as i64, digest.hex()],
        )
    }

    pub fn is_verified(&self, digest: &Digest, stat: &Stat) -> Result<bool, CacheError> {
        let found = self.text(
            "SELECT digest FROM verified WHERE digest = ?1 AND size = ?2 AND mtime = ?3 AND ctime = ?4 AND inode = ?5",
            params![digest.hex(), stat.size as i64, stat.mtime, stat.ctime, stat.inode as i64],
        )?;
        Ok(found.is_some())
    }
    pub fn set_verified(&self, digest: &Digest, stat: &Stat) -> Result<(), CacheError> {
        self.write(
            "INSERT OR REPLACE INTO verified VALUES (?1, ?2, ?3, ?4, ?5)",
            params![digest.hex(), stat.size as i64, stat.mtime, stat.ctime, stat.inode as i64],
        )
    }

    pub fn set_run(&self, id: &str, record: &str) -> Result<(), CacheError> {
        self.write("INSERT OR REPLACE INTO runs VALUES (?1, ?2)", params![id, record])
    }
    /// The last `limit` run records, newest first.
    pub fn runs(&self, limit: usize) -> Result<Vec<String>, CacheError> {
        let db = self.db();
        let mut statement = db.prepare_cached("SELECT record FROM runs ORDER BY id DESC LIMIT ?1").map_err(self.failed())?;
        let rows = statement.query_map(params![limit as i64], |r| r.get(0)).map_err(self.failed())?;
        rows.collect::<Result<_, _>>().map_err(self.failed())
    }

    pub fn latest(&self, project: &str, stage: &str) -> Result<Option<String>, CacheError> {
        self.text("SELECT key FROM latest WHERE project = ?1 AND stage = ?2", params![project, stage])
    }
    pub fn set_latest(&self, project: &str, stage: &str, key: &str) -> Result<(), CacheError> {
        self.write("INSERT OR REPLACE INTO latest VALUES (?1, ?2, ?3)", params![project, stage, key])
    }

    /// Runs `work` in one transaction.
    pub fn batch(&self, work: impl FnOnce() -> Result<(), CacheError>) -> Result<(), CacheError> {
        self.db().execute_batch("BEGIN IMMEDIATE").map_err(self.failed())?;
        let result = work();
        let end = if result.is_ok() { "COMMIT" } else { "ROLLBACK" };
        self.db().execute_batch(end).map_err(self.failed())?;
        result
    }
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}
