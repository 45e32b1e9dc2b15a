//! What a run with nothing to do would find, remembered.
//!
//! A run ends with a list of everything that its plan was a function of (files of the pipeline, sources, environment,
//! machine) and of every object that it found or made. If all of that is unchanged, the next run would reuse all of
//! it: no file is parsed and no key is computed. Objects are compared by the same stat by which a look-up trusts
//! them. The memo is only a short cut: without it, or when anything differs, the run takes the long way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use flow_cache::{Artifact, Cache, CacheError, Digest, Stat};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock;
use crate::events::{RunEvent, RunSink};
use crate::key::MachineId;
use crate::pipeline::PluginDecl;
use crate::plan::{Origin, ParamSource, Plan, StageId};
use crate::publish::place::State as Place;
use crate::record;
use crate::run::options::RunOptions;
use crate::run::outcome::{RunOutcome, StageReport};
use crate::schedule::states::States;

/// The memo of one command line in one state of the world.
#[derive(Serialize, Deserialize)]
pub struct Memo {
    name: String,
    root: PathBuf,
    files: Vec<(PathBuf, Digest)>,
    sources: Vec<(SourceKey, Digest)>,
    machine: Option<MachineId>,
    objects: Vec<(Digest, Stat)>,
    published: Vec<(String, String, Artifact)>,
    /// Stage, action key, seconds.
    stages: Vec<(String, Digest, f64)>,
    headline: Vec<(String, String)>,
    warnings: Vec<(String, String)>,
    refused: Vec<(String, Vec<String>)>,
    withheld: Vec<String>,
    /// The record without its stages.
    record: Value,
}

/// A source outside the plan.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum SourceKey {
    Path(PathBuf),
    Glob(PathBuf, String),
    Env(String),
}

impl SourceKey {
    fn of(source: &Origin) -> Self {
        match source {
            Origin::Path(path) => Self::Path(path.clone()),
            Origin::Glob(dir, pattern) => Self::Glob(dir.to_path_buf(), pattern.clone()),
            Origin::Env(name) => Self::Env(name.clone()),
        }
    }
    /// A digest of its content; never of a secret, which is no source.
    fn digest(&self, cache: &Cache) -> Result<Digest, CacheError> {
        let of = match self {
            Self::Path(path) => Origin::Path(path.clone()),
            Self::Glob(dir, pattern) => Origin::Glob(Arc::from(dir.as_path()), pattern.clone()),
            Self::Env(name) => Origin::Env(name.clone()),
        };
        let content = ParamSource { at: Vec::new(), of }.content(cache)?.unwrap_or_default();
        Ok(Digest::of(content.to_string().as_bytes()))
    }
}

/// The name of the memo of a command: everything on the command line that matters, and the program itself.
pub fn name(parts: &Value) -> Digest {
    Digest::of(format!("flow-memo 1\n{parts}").as_bytes())
}

impl Memo {
    /// The outcome of a run, if it is certain that it has nothing to do.
    pub fn replay(
        cache: &Cache,
        name: &Digest,
        machine: &dyn Fn() -> MachineId,
        sink: &dyn RunSink,
    ) -> Result<Option<(RunOutcome, PathBuf)>, CacheError> {
        let (began, started) = (Instant::now(), SystemTime::now());
        let Some(memo) = cache.memo(name)?.and_then(|body| serde_json::from_slice::<Self>(&body).ok()) else { return Ok(None) };
        if !memo.holds(cache, machine) {
            return Ok(None);
        }
        let id = clock::run_id(started);
        let outcome = memo.tell(id, began, sink);
        record::write_like(cache, &memo.record, &outcome.run, started, outcome.seconds)?;
        Ok(Some((outcome, memo.root)))
    }

    fn holds(&self, cache: &Cache, machine: &dyn Fn() -> MachineId) -> bool {
        let file = |(path, digest): &(PathBuf, Digest)| std::fs::read(path).is_ok_and(|bytes| Digest::of(&bytes) == *digest);
        self.files.iter().all(file)
            && self.sources.iter().all(|(source, digest)| source.digest(cache).is_ok_and(|now| now == *digest))
            && self.machine.as_ref().is_none_or(|m| *m == machine())
            && self.objects.iter().all(|(digest, stat)| cache.is_unchanged(digest, stat))
            && self.published.iter().all(|(to, _, artifact)| published(cache, &self.root.join(to), artifact))
    }

    fn tell(&self, id: String, began: Instant, sink: &dyn RunSink) -> RunOutcome {
        let names: Vec<_> = self.stages.iter().map(|(stage, ..)| stage.clone()).collect();
        sink.emit(RunEvent::RunStarted { run: id.clone(), pipeline: self.name.clone(), stages: names.clone() });
        for (stage, key, _) in &self.stages {
            sink.emit(RunEvent::StageReused { stage: stage.clone(), key: key.to_string() });
        }
        for (stage, reasons) in &self.refused {
            sink.emit(RunEvent::GateRefused { stage: stage.clone(), reasons: reasons.clone() });
        }
        for (path, from, _) in &self.published {
            sink.emit(RunEvent::Published { path: path.clone(), from: from.clone(), written: false });
        }
        let report =
            |(stage, _, seconds): &(String, Digest, f64)| StageReport { stage: stage.clone(), state: "reused", seconds: Some(*seconds) };
        let outcome = RunOutcome {
            run: id,
            stages: self.stages.iter().map(report).collect(),
            reused: names,
            refused: self.refused.iter().map(|(stage, _)| stage.clone()).collect(),
            reasons: self.refused.iter().cloned().collect(),
            withheld: self.withheld.clone(),
            headline: self.headline.clone(),
            published: self.published.iter().map(|(to, ..)| self.root.join(to)).collect(),
            warnings: self.warnings.clone(),
            seconds: began.elapsed().as_secs_f64(),
            ..RunOutcome::default()
        };
        sink.emit(outcome.finished());
        outcome
    }
}

fn published(cache: &Cache, path: &Path, artifact: &Artifact) -> bool {
    matches!(Place::at(cache, path), Ok(Some(there)) if there.is(artifact))
}

/// The sources of a plan with what is in them now.
#[derive(PartialEq)]
pub(crate) struct Sources(Vec<(SourceKey, Digest)>);

impl Sources {
    /// All sources of the file, selected or not: a plan fails when one of them is gone. `None` where one cannot be read.
    pub(crate) fn of(plan: &Plan, cache: &Cache) -> Option<Self> {
        let of_plugin = |p: &PluginDecl| p.files.iter().map(|f| SourceKey::Glob(p.dir.to_path_buf(), f.clone())).collect::<Vec<_>>();
        let sources: BTreeSet<_> = plan
            .stages
            .iter()
            .flat_map(|s| &s.sources)
            .map(|s| SourceKey::of(&s.of))
            .chain(plan.pipeline.plugins.iter().flat_map(of_plugin))
            .collect();
        sources.into_iter().map(|source| source.digest(cache).ok().map(|digest| (source, digest))).collect::<Option<_>>().map(Self)
    }
}

/// Remembers a run that found or made everything, under the name that its options give. `before` are the sources as they
/// were before the first key: one that changed since belongs to the next run, and this one is not remembered.
pub(crate) fn remember(
    plan: &Plan,
    cache: &Cache,
    selected: &[StageId],
    states: &States,
    options: &RunOptions,
    (outcome, before): (&RunOutcome, Option<Sources>),
) -> Result<(), CacheError> {
    let (Some(name), Some(before)) = (&options.memo, before) else { return Ok(()) };
    // A place that this run did not publish may come to be of another run, which every run has to say.
    if outcome.published.len() != plan.publish.len() {
        return Ok(());
    }
    let whole = outcome.failed.is_empty() && outcome.skipped.is_empty() && outcome.publish_errors.is_empty() && outcome.checked.is_empty();
    if !whole || outcome.interrupted {
        return Ok(());
    }
    let mut memo = Memo {
        name: plan.pipeline.name.clone(),
        root: plan.pipeline.root.clone(),
        files: plan.pipeline.files.iter().map(|(path, text)| (path.clone(), Digest::of(text.as_bytes()))).collect(),
        sources: Vec::new(),
        machine: plan.measures(selected).then(|| (options.machine)()),
        objects: Vec::new(),
        published: Vec::new(),
        stages: Vec::with_capacity(selected.len()),
        headline: outcome.headline.clone(),
        warnings: outcome.warnings.clone(),
        refused: outcome.refused.iter().map(|s| (s.clone(), outcome.reasons.get(s).cloned().unwrap_or_default())).collect(),
        withheld: outcome.withheld.clone(),
        record: json!({
            "format": 1, "pipeline": plan.pipeline.file.to_string_lossy(), "name": plan.pipeline.name, "like": outcome.run, "vars": plan.pipeline.overrides.vars, "sets": plan.pipeline.overrides.sets,
            "reused": outcome.executed.len() + outcome.reused.len(), "ok": outcome.ok(), "interrupted": false,
            "refused": outcome.refused, "stages": [],
        }),
    };
    let mut objects = BTreeSet::new();
    for &id in selected {
        let Some(entry) = states.entry(id) else { continue };
        memo.stages.push((plan.stage(id).name.clone(), entry.key.0, entry.provenance.seconds));
        for artifact in entry.outputs.values() {
            if objects.contains(&artifact.digest) {
                continue;
            }
            let Some(seen) = cache.sightings(artifact)? else { return Ok(()) };
            memo.objects.extend(seen.into_iter().filter(|(digest, _)| objects.insert(*digest)));
        }
    }
    if Sources::of(plan, cache).as_ref() != Some(&before) {
        return Ok(());
    }
    memo.sources = before.0;
    for (to, id, port) in &plan.publish {
        if let Some(artifact) = states.entry(*id).and_then(|e| e.outputs.get(port)) {
            memo.published.push((to.clone(), format!("{}.{port}", plan.stage(*id).name), *artifact));
        }
    }
    match serde_json::to_vec(&memo) {
        Ok(body) => cache.set_memo(name, &body),
        Err(_) => Ok(()),
    }
}
