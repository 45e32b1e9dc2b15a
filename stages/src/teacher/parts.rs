//! Work of a local teacher that a kill does not undo: finished parts in the task's state directory, taken up by the next
//! attempt at the same key.

use crate::task;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use flow_engine::plugin::StageError;

use crate::traces::{RawRow, TraceMeta, TraceReader, TraceWriter};
use flow_lm::infer::Continuation;

/// Scored parts, each a small traces directory, in the order in which they were made.
pub struct Parts<'a> {
    state: &'a Path,
    meta: &'a TraceMeta,
    count: usize,
}

impl<'a> Parts<'a> {
    /// The parts in `state`; none is counted before it was asked for.
    pub fn new(state: &'a Path, meta: &'a TraceMeta) -> Self {
        Self { state, meta, count: 0 }
    }

    fn dir(&self, n: usize) -> PathBuf {
        self.state.join(format!("rows-{n:06}"))
    }

    /// Does the next part, unless an earlier attempt finished it.
    pub fn next(&mut self, work: impl FnOnce(&mut TraceWriter<RawRow>) -> Result<(), StageError>) -> Result<(), StageError> {
        let dir = self.dir(self.count);
        self.count += 1;
        if dir.is_dir() {
            return Ok(());
        }
        let unfinished = self.state.join("unfinished");
        remove(&unfinished)?;
        let mut writer = TraceWriter::create(&unfinished, self.meta)?;
        work(&mut writer)?;
        writer.finish()?;
        finish(&unfinished, &dir)
    }

    /// Writes all parts, in order, as one traces directory; how many rows that are.
    pub fn join(&self, to: &Path) -> Result<u64, StageError> {
        let mut writer = TraceWriter::create(to, self.meta)?;
        for n in 0..self.count {
            for item in TraceReader::<RawRow>::open(&self.dir(n))?.sequences()? {
                let (sequence, rows) = item?;
                writer.push(sequence, rows)?;
            }
        }
        Ok(writer.finish()?.rows)
    }
}

/// Continuations that were drawn, a file for every group.
pub struct Drawn<'a> {
    state: &'a Path,
    groups: usize,
}

impl<'a> Drawn<'a> {
    /// What earlier attempts drew.
    pub fn resume(state: &'a Path) -> Result<(Self, Vec<Continuation>), StageError> {
        let (mut drawn, mut all) = (Self { state, groups: 0 }, Vec::new());
        while let Some(text) = read(&drawn.path())? {
            let path = drawn.path();
            let group: Vec<Continuation> = serde_json::from_slice(&text)
                .map_err(|e| StageError::new(format!("{}: not what was drawn: {e}", path.display())).help("delete it and run again"))?;
            all.extend(group);
            drawn.groups += 1;
        }
        Ok((drawn, all))
    }

    /// Keeps a group.
    pub fn keep(&mut self, group: &[Continuation]) -> Result<(), StageError> {
        let unfinished = self.state.join("unfinished.json");
        task::write_json(&unfinished, &group)?;
        finish(&unfinished, &self.path())?;
        self.groups += 1;
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.state.join(format!("drawn-{:06}.json", self.groups))
    }
}

/// Gives what is complete its name; it is on the disk before.
fn finish(from: &Path, to: &Path) -> Result<(), StageError> {
    let sync = |path: &Path| File::open(path).and_then(|f| f.sync_all()).map_err(|e| StageError::io("cannot write", path, &e));
    if from.is_dir() {
        let entries = fs::read_dir(from).map_err(|e| StageError::io("cannot read", from, &e))?;
        entries.flatten().try_for_each(|e| sync(&e.path()))?;
    }
    sync(from)?;
    fs::rename(from, to).map_err(|e| StageError::io("cannot rename", from, &e))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StageError::io("cannot read", path, &e)),
    }
}

fn remove(dir: &Path) -> Result<(), StageError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StageError::io("cannot remove", dir, &e)),
        _ => Ok(()),
    }
}
