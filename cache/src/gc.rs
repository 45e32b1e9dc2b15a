//! Garbage collection: what pins, recent runs, live leases and live locks reach stays; the rest goes.
//!
//! Other processes may run meanwhile. Who relies on something says so in a lease and looks at it while it holds the
//! entering lock shared; a collection holds it alone while it reads the leases and removes a batch of entries, then of
//! objects. So it has either read the record, or the other finds the object missing. Objects that no entry names may
//! be on their way into one: they stay while they are young.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::Value;

use crate::action::{ActionEntry, ActionFile};
use crate::cache::Cache;
use crate::digest::{ActionKey, Artifact, Digest};
use crate::error::CacheError;
use crate::files::{self, json_files};
use crate::lock::KeyLock;

/// An object that no entry names is left alone for so long.
const YOUNG: Duration = Duration::from_secs(600);
/// Entries or objects that are removed before others get their turn.
const BATCH: usize = 256;
/// A temporary file is left alone for so long.
const STALE: Duration = Duration::from_secs(86_400);

/// What to keep.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions {
    /// Evict results of kept runs, the least recently used first, until the objects fit.
    pub max_size: Option<u64>,
    /// Runs per pipeline whose results stay.
    pub keep_runs: usize,
    /// Only say what would go.
    pub dry_run: bool,
}

/// A number of files and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Files.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GcReport {
    /// Objects that went.
    pub objects: Amount,
    /// Objects that stay.
    pub kept_objects: Amount,
    /// Action entries that went.
    pub actions: u64,
    /// Action entries that stay.
    pub kept_actions: u64,
    /// Of these, the ones that a pin, a lease or a lock keeps.
    pub held_actions: u64,
    /// Run records that went.
    pub runs: u64,
    /// Directories of finished tasks, and temporary files, that went.
    pub scraps: u64,
    /// Whether the objects fit into the size that was asked for.
    pub fits: bool,
}

/// One action and when it was last of use.
struct Action {
    entry: ActionEntry,
    used: f64,
    held: bool,
    live: bool,
}

impl Cache {
    /// Removes what nothing reaches.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport, CacheError> {
        let Some(_alone) = KeyLock::try_take(&self.layout().lock("gc"))? else {
            return Err(CacheError::Busy { what: "another collection runs in this cache" });
        };
        let mut report = GcReport::default();
        let (mut actions, runs) = self.marked(options)?;
        let mut keep = Objects::default();
        report.fits = self.select(&mut actions, options, &mut keep)?;
        report.runs = runs.len() as u64;
        report.held_actions = actions.values().filter(|a| a.held).count() as u64;
        // With the files of every directory: their entries go, so that they are not on their way into one because they are young.
        let mut named = Objects::default();
        actions.values().flat_map(|a| a.entry.outputs.values()).for_each(|artifact| self.reach(artifact, &mut named));
        let (live, dead): (Vec<_>, Vec<_>) = actions.into_iter().partition(|(_, a)| a.live);
        report.kept_actions = live.len() as u64;
        for batch in dead.chunks(BATCH) {
            let _alone = self.no_entering()?;
            let leased: BTreeSet<ActionKey> = self.leased()?.into_iter().map(|k| k.key).collect();
            for (key, _) in batch {
                if leased.contains(key) {
                    report.kept_actions += 1;
                    continue;
                }
                report.actions += 1;
                if !options.dry_run {
                    self.forget(key)?;
                }
            }
        }
        self.sweep(&keep, &named, options.dry_run, &mut report)?;
        if !options.dry_run {
            for id in &runs {
                files::remove_all(&self.layout().runs().join(format!("{id}.json")))?;
                self.index.drop_run(id)?;
            }
        }
        report.scraps = self.scraps(options.dry_run)?;
        Ok(report)
    }

    /// Every action with what is known of its use, and the runs that are beyond what is kept.
    fn marked(&self, options: &GcOptions) -> Result<(BTreeMap<ActionKey, Action>, Vec<String>), CacheError> {
        let mut actions = BTreeMap::new();
        for path in json_files(&self.layout().actions(), 2)? {
            if let Some(ActionFile { entry, .. }) = ActionFile::read(&path)? {
                let used = entry.provenance.finished as f64;
                actions.insert(entry.key, Action { entry, used, held: false, live: false });
            }
        }
        let mut by_pipeline: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
        let mut all = HashMap::new();
        let mut paths = json_files(&self.layout().runs(), 1)?;
        paths.sort_by(|a, b| b.cmp(a));
        for path in paths {
            let id = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            let Some(record) = fs::read(&path).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok()) else { continue };
            let pipeline = record["pipeline"].as_str().unwrap_or_default().to_owned();
            all.insert(id.clone(), record.clone());
            by_pipeline.entry(pipeline).or_default().push((id, record));
        }
        let mut beyond = Vec::new();
        let mut needed = BTreeSet::new();
        for runs in by_pipeline.into_values() {
            for (i, (id, record)) in runs.into_iter().enumerate() {
                if i >= options.keep_runs {
                    beyond.push(id);
                    continue;
                }
                // A run that found everything as another left it.
                let of = record["like"].as_str().and_then(|like| all.get(like)).unwrap_or(&record);
                if let Some(like) = record["like"].as_str() {
                    needed.insert(like.to_owned());
                }
                let at = record["started"].as_f64().unwrap_or(0.0);
                for stage in of["stages"].as_array().into_iter().flatten() {
                    if let Some(action) = stage["key"].as_str().and_then(|k| k.parse().ok()).and_then(|k: ActionKey| actions.get_mut(&k)) {
                        action.live = true;
                        action.used = action.used.max(at);
                    }
                }
            }
        }
        beyond.retain(|id| !needed.contains(id));
        for key in self.held_keys()? {
            if let Some(action) = actions.get_mut(&key) {
                (action.live, action.held) = (true, true);
            }
        }
        Ok((actions, beyond))
    }

    /// Keys that a pin, a live lease or a live lock holds.
    fn held_keys(&self) -> Result<BTreeSet<ActionKey>, CacheError> {
        let mut held: BTreeSet<ActionKey> = self.leased()?.into_iter().map(|k| k.key).collect();
        held.extend(self.pins()?.into_iter().map(|pin| pin.key));
        let locks = self.layout().root().join("locks");
        for item in fs::read_dir(&locks).map_err(CacheError::io("list", &locks))? {
            let path = item.map_err(CacheError::io("list", &locks))?.path();
            if let Some(key) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<ActionKey>().ok())
                && KeyLock::is_held(&path)
            {
                held.insert(key);
            }
        }
        Ok(held)
    }

    /// Decides which live actions stay, and collects their objects; says whether they fit.
    fn select(&self, actions: &mut BTreeMap<ActionKey, Action>, options: &GcOptions, keep: &mut Objects) -> Result<bool, CacheError> {
        let mut order: Vec<ActionKey> = actions.iter().filter(|(_, a)| a.live).map(|(k, _)| *k).collect();
        order.sort_by(|a, b| {
            let (a, b) = (&actions[a], &actions[b]);
            b.held.cmp(&a.held).then(b.used.total_cmp(&a.used))
        });
        // What a lease names counts whether or not its entry is there yet.
        for kept in self.leased()? {
            self.reach(&Artifact { digest: kept.digest, tree: kept.tree, size: 0 }, keep);
        }
        let mut fits = true;
        for key in order {
            let Some(action) = actions.get_mut(&key) else { continue };
            let before = keep.bytes;
            let mut more = Objects::default();
            for artifact in action.entry.outputs.values() {
                self.reach(artifact, &mut more);
            }
            let added: u64 = more.sizes.iter().filter(|(d, _)| !keep.sizes.contains_key(*d)).map(|(_, s)| s).sum();
            let over = options.max_size.is_some_and(|max| before + added > max);
            if over && !action.held {
                action.live = false;
                continue;
            }
            fits &= !over;
            keep.merge(more);
        }
        Ok(fits)
    }

    /// Adds the objects of an artifact; a manifest that cannot be read names nothing.
    fn reach(&self, artifact: &Artifact, into: &mut Objects) {
        let size = |digest: &Digest| fs::metadata(self.layout().object(digest)).map_or(0, |m| m.len());
        into.insert(artifact.digest, size(&artifact.digest));
        if artifact.tree
            && let Ok(manifest) = self.manifest(artifact)
        {
            for entry in manifest.entries() {
                into.insert(entry.digest, size(&entry.digest));
            }
        }
    }

    fn sweep(&self, keep: &Objects, named: &Objects, dry_run: bool, report: &mut GcReport) -> Result<(), CacheError> {
        let mut candidates = Vec::new();
        for (digest, path) in self.objects()? {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if keep.sizes.contains_key(&digest) || (!named.sizes.contains_key(&digest) && is_young(&meta)) {
                report.kept_objects.add(meta.len());
            } else {
                candidates.push((digest, path, meta.len()));
            }
        }
        for batch in candidates.chunks(BATCH) {
            let _alone = self.no_entering()?;
            let wanted = self.leased_objects()?;
            for (digest, path, bytes) in batch {
                if wanted.contains(digest) {
                    report.kept_objects.add(*bytes);
                    continue;
                }
                report.objects.add(*bytes);
                if !dry_run {
                    files::remove_all(path)?;
                    self.index.drop_verified(digest)?;
                }
            }
        }
        Ok(())
    }

    /// Every object that a live lease names, directly or through a manifest.
    fn leased_objects(&self) -> Result<BTreeSet<Digest>, CacheError> {
        let mut wanted = Objects::default();
        for kept in self.leased()? {
            self.reach(&Artifact { digest: kept.digest, tree: kept.tree, size: 0 }, &mut wanted);
        }
        Ok(wanted.sizes.into_keys().collect())
    }

    /// Every object by name.
    pub(crate) fn objects(&self) -> Result<Vec<(Digest, PathBuf)>, CacheError> {
        let root = self.layout().root().join("objects");
        let mut found = Vec::new();
        for folder in fs::read_dir(&root).map_err(CacheError::io("list", &root))? {
            let folder = folder.map_err(CacheError::io("list", &root))?.path();
            for item in fs::read_dir(&folder).into_iter().flatten() {
                let path = item.map_err(CacheError::io("list", &folder))?.path();
                let part = |p: &Path| p.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
                if let Ok(digest) = format!("{}{}", part(&folder), part(&path)).parse() {
                    found.push((digest, path));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes the directories of finished tasks: what a process leaves that is killed between keeping a result and
    /// clearing up.
    pub fn clear_finished_tasks(&self) -> Result<(), CacheError> {
        self.finished_tasks(false).map(|_| ())
    }

    fn finished_tasks(&self, dry_run: bool) -> Result<u64, CacheError> {
        let mut count = 0;
        let tasks = self.layout().root().join("tasks");
        for item in fs::read_dir(&tasks).map_err(CacheError::io("list", &tasks))? {
            let path = item.map_err(CacheError::io("list", &tasks))?.path();
            let Some(key) = path.file_stem().and_then(|n| n.to_str()).and_then(|n| n.parse::<ActionKey>().ok()) else { continue };
            let done = self.layout().action(&key).exists() || path.extension().is_some();
            if !done {
                continue;
            }
            let Some(_lock) = self.try_lock(&key)? else { continue };
            count += 1;
            if !dry_run {
                files::remove_all(&path)?;
            }
        }
        Ok(count)
    }

    /// Directories of tasks that are finished, and temporary files that nobody wants any more.
    fn scraps(&self, dry_run: bool) -> Result<u64, CacheError> {
        let mut count = self.finished_tasks(dry_run)?;
        let tmp = self.layout().tmp();
        for item in fs::read_dir(&tmp).map_err(CacheError::io("list", &tmp))? {
            let path = item.map_err(CacheError::io("list", &tmp))?.path();
            let stale = fs::symlink_metadata(&path).and_then(|m| m.modified()).is_ok_and(|m| age(m) > STALE);
            if stale {
                count += 1;
                if !dry_run {
                    files::remove_all(&path)?;
                }
            }
        }
        Ok(count)
    }
}

/// A set of objects with their sizes.
#[derive(Default)]
struct Objects {
    sizes: HashMap<Digest, u64>,
    bytes: u64,
}

impl Objects {
    fn insert(&mut self, digest: Digest, size: u64) {
        if self.sizes.insert(digest, size).is_none() {
            self.bytes += size;
        }
    }
    fn merge(&mut self, other: Self) {
        other.sizes.into_iter().for_each(|(digest, size)| self.insert(digest, size));
    }
}

fn age(at: SystemTime) -> Duration {
    SystemTime::now().duration_since(at).unwrap_or_default()
}

fn is_young(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(meta.ctime()).unwrap_or(0));
    age(changed) < YOUNG
}
