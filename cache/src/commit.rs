//! Group commit: objects become durable, then entries appear, then the index learns of them.
//!
//! A power cut at any point leaves objects that nobody refers to, or entries that the index does not know yet,
//! never an entry whose objects are missing. It may lose the last group. A process that is killed loses less:
//! what was written stays in the system's page cache.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;

use serde_json::Value;

use crate::action::{ActionEntry, ActionFile, summary};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::CacheError;
use crate::files::{self, Stat};
use crate::object::Entered;

/// Up to so many objects are made durable one by one; more by one flush of the file system.
const ONE_BY_ONE: usize = 12;

/// One action to commit.
#[derive(Clone, Debug)]
pub struct Commit {
    /// What it produced.
    pub entry: ActionEntry,
    /// What its key was made of.
    pub parts: Value,
    /// Objects that it brought into the store.
    pub entered: Entered,
}

impl Cache {
    /// Makes objects durable and notes that they were seen whole.
    pub fn settle(&self, entered: &[&Entered]) -> Result<(), CacheError> {
        let objects = self.durable(entered)?;
        objects.iter().try_for_each(|(digest, stat)| self.index.set_verified(digest, stat))
    }

    /// Records what actions produced.
    pub fn commit(&self, group: &[Commit]) -> Result<(), CacheError> {
        let objects = self.durable(&group.iter().map(|c| &c.entered).collect::<Vec<_>>())?;
        let mut written = Vec::with_capacity(group.len());
        for commit in group {
            let file = ActionFile { entry: commit.entry.clone(), parts: commit.parts.clone() };
            let text = serde_json::to_string(&file).map_err(|e| CacheError::Format {
                what: "action entry",
                name: commit.entry.key.0.short(),
                why: e.to_string(),
            })?;
            let path = self.layout().action(&commit.entry.key);
            files::write_renamed(&self.layout().tmp(), &path, text.as_bytes())?;
            written.push(path);
        }
        // Few entries were long in the making and are worth their own flush; the entries of a large group
        // become durable with the next one, or with the end of the run.
        if written.len() <= ONE_BY_ONE {
            self.make_durable(&written)?;
        }
        self.index.batch(|| {
            for (digest, stat) in &objects {
                self.index.set_verified(digest, stat)?;
            }
            group.iter().try_for_each(|c| {
                self.index.drop_remote(&c.entry.key.0)?;
                self.index.set_action(&c.entry.key.0, &summary(&c.entry)?)
            })
        })
    }

    fn durable(&self, entered: &[&Entered]) -> Result<Vec<(Digest, Stat)>, CacheError> {
        let objects: BTreeSet<_> = entered.iter().flat_map(|e| &e.objects).copied().collect();
        let paths: Vec<_> = objects.iter().map(|d| self.layout().object(d)).collect();
        self.make_durable(&paths)?;
        objects
            .into_iter()
            .zip(&paths)
            .map(|(digest, path)| Ok((digest, Stat::of(&fs::metadata(path).map_err(CacheError::io("stat", path))?))))
            .collect()
    }

    /// Makes everything durable that was written so far.
    pub fn flush(&self) -> Result<(), CacheError> {
        files::sync_file_system(self.layout().root())
    }

    fn make_durable(&self, paths: &[PathBuf]) -> Result<(), CacheError> {
        if paths.is_empty() {
            return Ok(());
        }
        if paths.len() > ONE_BY_ONE {
            return self.flush();
        }
        let folders: BTreeSet<_> = paths.iter().map(|p| files::parent(p)).collect();
        for path in paths {
            File::open(path).and_then(|f| f.sync_all()).map_err(CacheError::io("fsync", path))?;
        }
        folders.into_iter().try_for_each(files::sync_dir)
    }
}
