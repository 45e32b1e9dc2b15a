//! Whether a place may be written: only what `flow` put there and nobody changed since is replaced.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use flow_cache::{Artifact, Cache, CacheError, Digest};

use super::place::State;
use super::record::{self, Record, RecordError};
use crate::plan::{Origin, Plan};
use crate::sources;

/// What keeps `flow` from knowing what lies at a place.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The cache or the disk failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Why a place may not be written.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The place, as it was asked for.
    pub place: String,
    /// What is there.
    pub why: String,
    /// Whether asking for it (`--overwrite`) helps.
    pub overridable: bool,
}

impl Refusal {
    /// In one sentence.
    pub fn message(&self) -> String {
        format!("`{}` is not written: {}", self.place, self.why)
    }
    /// The ways out.
    pub fn help(&self, command: &str) -> String {
        if self.overridable {
            format!("give another path, or let it be replaced: {command} --overwrite {}", self.place)
        } else {
            "give another path".into()
        }
    }
}

/// What stands between a command and the places that it wants to write.
pub struct Guard<'a> {
    plan: &'a Plan,
    cache: &'a Cache,
    overwrite: &'a [PathBuf],
    /// The pipeline and its sources: written only when it is asked for.
    own: OnceCell<Vec<(PathBuf, String)>>,
    /// Digests of everything that a recorded run of this pipeline gave.
    given: OnceCell<BTreeSet<Digest>>,
}

impl<'a> Guard<'a> {
    /// The guard of a plan's project; `overwrite` are the places that a person lets be replaced.
    pub fn of(plan: &'a Plan, cache: &'a Cache, overwrite: &'a [PathBuf]) -> Self {
        Self { plan, cache, overwrite, own: OnceCell::new(), given: OnceCell::new() }
    }

    fn root(&self) -> &Path {
        &self.plan.pipeline.root
    }

    /// Never written, whoever asks: version control, caches, the record, the project itself.
    fn sacred(&self, real: &Path) -> Option<String> {
        let inner = [".git", ".flow", record::NAME, record::LOCK].map(|name| (self.root().join(name), format!("`{name}`")));
        let cache = (self.cache.layout().root().to_owned(), "the cache".to_owned());
        let found = inner.into_iter().chain([cache]).find(|(path, _)| meets(real, path) || real.starts_with(resolved(path)));
        let found = found.or_else(|| meets(real, self.root()).then(|| (PathBuf::new(), "the project itself".to_owned())));
        found.map(|(_, what)| what)
    }

    fn own(&self) -> &[(PathBuf, String)] {
        self.own.get_or_init(|| {
            let mut own: Vec<_> = self.plan.pipeline.files.iter().map(|(file, _)| (file.clone(), "the pipeline file".to_owned())).collect();
            for stage in &self.plan.stages {
                let what = || format!("a source of stage `{}`", stage.name);
                for source in &stage.sources {
                    match &source.of {
                        Origin::Path(path) => {
                            own.extend(sources::parts(path).into_iter().flatten().map(|part| (part, what())));
                            own.push((path.clone(), what()));
                        }
                        Origin::Glob(dir, pattern) => {
                            own.extend(sources::expand(dir, pattern).into_iter().flatten().map(|(_, path)| (path, what())));
                        }
                        Origin::Env(_) => {}
                    }
                }
            }
            own
        })
    }

    /// Whether `publish:` names the place.
    fn is_published(&self, place: &Path) -> bool {
        self.plan.publish.iter().any(|(to, ..)| resolved(&self.root().join(to)) == resolved(place))
    }

    /// Whether a recorded run of this pipeline gave an artifact of that name.
    fn was_given(&self, digest: &Digest) -> Result<bool, CacheError> {
        if self.given.get().is_none() {
            let pipeline = self.plan.pipeline.file.to_string_lossy().into_owned();
            let mut given = BTreeSet::new();
            for run in &self.cache.runs_of(&pipeline, usize::MAX)? {
                let stages = run["stages"].as_array().into_iter().flatten();
                let outputs = stages.filter_map(|stage| stage["outputs"].as_object()).flat_map(|outputs| outputs.values());
                given.extend(outputs.filter_map(|digest| digest.as_str()?.parse::<Digest>().ok()));
            }
            let _ = self.given.set(given);
        }
        Ok(self.given.get().is_some_and(|given| given.contains(digest)))
    }

    /// Whether a person lets this place be replaced.
    fn is_asked_for(&self, place: &Path) -> bool {
        self.overwrite.iter().any(|path| names(path, self.root(), place))
    }

    /// Whether the place (absolute) may become an artifact. `wanted` is the artifact where it is known already.
    pub fn check(&self, shown: &str, place: &Path, wanted: Option<&Artifact>) -> Result<Result<(), Refusal>, PublishError> {
        let refuse = |why: String, overridable: bool| Ok(Err(Refusal { place: shown.to_owned(), why, overridable }));
        let real = resolved(place);
        if let Some(what) = self.sacred(&real) {
            return refuse(format!("{what} would be overwritten"), false);
        }
        if let Some(file) = place.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok()).filter(|above| !above.is_dir()) {
            return refuse(format!("{} is not a folder", file.display()), false);
        }
        if self.is_asked_for(place) {
            return Ok(Ok(()));
        }
        if place.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Ok(Ok(()));
        }
        if let Some((path, what)) = self.own().iter().find(|(path, _)| meets(&real, path)) {
            let which = if real == *path { String::new() } else { format!(" ({})", path.display()) };
            return refuse(format!("{what}{which} would be overwritten"), true);
        }
        let record = Record::read(self.root())?;
        let known = record.places.contains_key(&record::name_of(self.root(), place));
        if !known && wanted.is_some_and(|artifact| !artifact.tree) && place.is_dir() && !place.is_symlink() {
            // A folder that is nobody's business, perhaps a large one: its files are not read to say so.
            return refuse("a folder is there that flow did not put there".into(), true);
        }
        let Some(now) = State::at(self.cache, place)? else { return Ok(Ok(())) };
        if wanted.is_some_and(|artifact| now.is(artifact)) {
            return Ok(Ok(()));
        }
        let Some(put) = record.places.get(&record::name_of(self.root(), place)) else {
            // Put there by a version that kept no record. Only `publish:` can have: what a person copied elsewhere is theirs.
            return match now.digest().filter(|_| self.is_published(place)) {
                Some(digest) if self.was_given(&digest)? => Ok(Ok(())),
                _ => refuse(format!("{} is there that flow did not put there", now.what()), true),
            };
        };
        match put.states.iter().map(|state| now.difference(state)).collect::<Option<Vec<_>>>() {
            None => Ok(Ok(())),
            Some(differences) => {
                let how = differences.first().map_or("it was changed", String::as_str);
                refuse(format!("it was changed since flow put it there: {how}"), true)
            }
        }
    }
}

/// Whether a path of the command line means a place: as it is published, or from the current directory.
pub fn names(path: &Path, root: &Path, place: &Path) -> bool {
    let place = resolved(place);
    resolved(&root.join(path)) == place || std::path::absolute(path).is_ok_and(|path| resolved(&path) == place)
}

/// Whether writing `place` would replace `path`: it is that, or a folder above it.
fn meets(place: &Path, path: &Path) -> bool {
    let path = resolved(path);
    path.starts_with(place) || is_same_file(place, &path)
}

/// The same file by another name, such as in other letters on a file system that does not tell them apart.
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::symlink_metadata(a), fs::symlink_metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// The path without `..`, as it reads.
fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        if part != Component::ParentDir || !out.pop() {
            out.push(part);
        }
    }
    out
}

/// The path with the links of the folders above it followed, as far as they exist; its last part stays as it is.
pub fn resolved(path: &Path) -> PathBuf {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return path.canonicalize().unwrap_or_else(|_| path.to_owned()) };
    let mut rest = vec![name];
    for above in parent.ancestors() {
        match above.canonicalize() {
            Ok(real) => return rest.iter().rev().fold(real, |path, part| path.join(part)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match above.file_name() {
                Some(part) => rest.push(part),
                // `missing/..` is the folder that `missing` would be in.
                None => return resolved(&lexical(path)),
            },
            Err(_) => break,
        }
    }
    path.to_owned()
}
