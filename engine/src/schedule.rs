//! The scheduler: which stage runs when.
//!
//! A stage goes `Waiting → Ready → Running → Done | Failed`, or `Waiting → Done` when its result is in the
//! cache, or `→ Skipped` when something before it failed or the run was asked to stop.

use std::collections::{BTreeMap, VecDeque};

use flow_cache::{ActionEntry, CacheError, Lookup};
use tokio::task::JoinSet;

use crate::events::RunEvent;
use crate::execute::{Env, Failure, Job, Outcome, execute};
use crate::explain;
use crate::key::KeyParts;
use crate::plan::{Plan, StageId};
use crate::plugin::Provenance;

/// Where a stage is.
pub(crate) enum State {
    /// Not selected for this run.
    Outside,
    /// Needs so many stages that are not done.
    Waiting(usize),
    /// Keyed, not in the cache; waits for tokens.
    Ready,
    /// Executing.
    Running,
    /// Its outputs are in the store.
    Done { entry: Box<ActionEntry>, reused: bool, causes: Vec<String> },
    /// Its task failed.
    Failed { message: String },
    /// Not tried, or stopped.
    Skipped { because: String },
}

impl State {
    pub fn entry(&self) -> Option<&ActionEntry> {
        match self {
            Self::Done { entry, .. } => Some(entry),
            _ => None,
        }
    }
    pub fn word(&self) -> &'static str {
        match self {
            Self::Done { reused: true, .. } => "reused",
            Self::Done { .. } => "executed",
            Self::Failed { .. } => "failed",
            Self::Outside => "outside",
            _ => "skipped",
        }
    }
}

/// Heavy stages weigh more on the longest path.
const HEAVY_WEIGHT: u64 = 20;

pub(crate) struct Schedule<'a> {
    plan: &'a Plan,
    selected: &'a [StageId],
    env: Env,
    states: Vec<State>,
    /// Length of the longest path to the end, per stage.
    distance: Vec<u64>,
    /// Stages whose inputs are known, to be keyed.
    known: VecDeque<StageId>,
    /// Jobs that wait for tokens.
    ready: Vec<(StageId, Job)>,
    free: BTreeMap<String, u64>,
    capacity: BTreeMap<String, u64>,
    held: BTreeMap<StageId, BTreeMap<String, u64>>,
    causes: BTreeMap<StageId, Vec<String>>,
    /// No new task starts.
    halted: bool,
}

impl<'a> Schedule<'a> {
    pub fn new(plan: &'a Plan, selected: &'a [StageId], env: Env) -> Self {
        let mut states: Vec<State> = plan.stages.iter().map(|_| State::Outside).collect();
        let mut known = VecDeque::new();
        for &id in selected {
            let needs = plan.stage(id).needs().len();
            states[id.0] = State::Waiting(needs);
            if needs == 0 {
                known.push_back(id);
            }
        }
        let mut distance = vec![0; plan.stages.len()];
        for &id in plan.order().iter().rev() {
            let after = plan.dependants(id).map(|d| distance[d.0]).max().unwrap_or(0);
            distance[id.0] = after + if plan.stage(id).kind.heavy() { HEAVY_WEIGHT } else { 1 };
        }
        let mut capacity = env.options.pools.clone();
        capacity.insert("cpu".into(), env.options.threads.max(1) as u64);
        capacity.entry("gpu".into()).or_insert(1);
        Self {
            plan,
            selected,
            env,
            states,
            distance,
            known,
            ready: Vec::new(),
            free: capacity.clone(),
            capacity,
            held: BTreeMap::new(),
            causes: BTreeMap::new(),
            halted: false,
        }
    }

    pub async fn run(mut self) -> Result<Vec<State>, CacheError> {
        let mut running = JoinSet::new();
        let stop = self.env.stop.clone();
        loop {
            if stop.level() > 0 {
                self.halted = true;
            }
            while !self.halted {
                let Some(id) = self.known.pop_front() else { break };
                self.key(id)?;
            }
            if !self.halted {
                self.dispatch(&mut running);
            }
            if running.is_empty() {
                break;
            }
            tokio::select! {
                Some(joined) = running.join_next() => match joined {
                    Ok((id, outcome)) => self.settle(id, outcome),
                    Err(e) => tracing::error!("a task of the scheduler failed: {e}"),
                },
                () = stop.reached(1), if !self.halted => self.halted = true,
            }
        }
        for &id in self.selected {
            if matches!(self.states[id.0], State::Waiting(_) | State::Ready | State::Running) {
                self.skip(id, "the run stopped".into());
            }
        }
        Ok(self.states)
    }

    /// Keys a stage whose inputs are known, and looks it up.
    fn key(&mut self, id: StageId) -> Result<(), CacheError> {
        let stage = self.plan.stage(id);
        let mut inputs = Vec::new();
        for wire in &stage.inputs {
            let artifact = self.states[wire.from.0].entry().and_then(|e| e.outputs.get(&wire.output));
            let Some(artifact) = artifact else {
                let message = format!("`{}` has no artifact on `{}`", self.plan.stage(wire.from).name, wire.output);
                self.fail(id, Failure::new(message));
                return Ok(());
            };
            inputs.push((*artifact, format!("{}.{}", self.plan.stage(wire.from).name, wire.output)));
        }
        let artifacts: Vec<_> = inputs.iter().map(|(a, _)| *a).collect();
        let cache = &self.env.cache;
        let parts = match KeyParts::of(stage, &artifacts, self.env.options.machine.as_ref(), cache) {
            Ok(parts) => parts,
            Err(e @ CacheError::Index { .. }) => return Err(e),
            Err(e) => {
                // A source file that vanished or cannot be read.
                self.fail(id, Failure::new(e.to_string()));
                return Ok(());
            }
        };
        let key = parts.key();
        let found = cache.lookup(&key)?;
        if let Lookup::Hit(entry) = found {
            self.env.sink.emit(RunEvent::StageReused { stage: stage.name.clone(), key: key.to_string() });
            self.done(id, entry, true);
            return Ok(());
        }
        let ran = |other: StageId| matches!(self.states[other.0], State::Done { reused: false, .. });
        let causes = explain::causes(cache, self.plan, id, &parts, &found, &ran)?;
        if matches!(found, Lookup::Broken { .. }) {
            cache.forget(&key)?;
        }
        self.causes.insert(id, causes.clone());
        let job = Job { stage: stage.clone(), key, parts, inputs, provenance: self.provenance(id), causes };
        self.states[id.0] = State::Ready;
        self.ready.push((id, job));
        Ok(())
    }

    fn provenance(&self, id: StageId) -> Vec<Provenance> {
        let mut all = Vec::new();
        for ancestor in self.plan.ancestors(id) {
            let State::Done { entry, reused, .. } = &self.states[ancestor.0] else { continue };
            let stage = self.plan.stage(ancestor);
            let how = &entry.provenance;
            all.push(Provenance {
                stage: stage.name.clone(),
                kind: stage.kind.name().into(),
                after: stage.needs().into_iter().map(|n| self.plan.stage(n).name.clone()).collect(),
                seconds: how.seconds,
                reused: *reused,
                device: how.device.clone(),
                finished: how.finished,
                metrics: how.metrics.clone(),
            });
        }
        all
    }

    /// Starts every ready stage that gets its tokens, longest path first.
    fn dispatch(&mut self, running: &mut JoinSet<(StageId, Outcome)>) {
        self.ready.sort_by_key(|(id, _)| (std::cmp::Reverse(self.distance[id.0]), *id));
        let mut waiting = Vec::new();
        for (id, job) in std::mem::take(&mut self.ready) {
            let tokens = self.tokens(&job);
            if !tokens.iter().all(|(pool, n)| self.free.get(pool).is_some_and(|free| free >= n)) {
                waiting.push((id, job));
                continue;
            }
            for (pool, n) in &tokens {
                if let Some(free) = self.free.get_mut(pool) {
                    *free -= n;
                }
            }
            self.held.insert(id, tokens);
            self.states[id.0] = State::Running;
            let env = self.env.clone();
            running.spawn(async move { (id, execute(job, env).await) });
        }
        self.ready = waiting;
    }

    /// What a stage holds while it runs, never more than there is.
    fn tokens(&mut self, job: &Job) -> BTreeMap<String, u64> {
        let mut tokens = job.stage.resources.clone();
        let cpu = self.capacity.get("cpu").copied().unwrap_or(1);
        tokens.entry("cpu".into()).or_insert(if job.stage.kind.heavy() { cpu } else { 1 });
        for (pool, n) in &mut tokens {
            // A pool that nobody sized admits whatever one stage asks for, one such stage at a time.
            let capacity = *self.capacity.entry(pool.clone()).or_insert(*n);
            self.free.entry(pool.clone()).or_insert(capacity);
            *n = (*n).min(capacity);
        }
        tokens
    }

    fn settle(&mut self, id: StageId, outcome: Outcome) {
        for (pool, n) in self.held.remove(&id).unwrap_or_default() {
            if let Some(free) = self.free.get_mut(&pool) {
                *free += n;
            }
        }
        match outcome {
            Outcome::Executed(entry) => self.done(id, entry, false),
            Outcome::Reused(entry) => {
                let stage = self.plan.stage(id).name.clone();
                self.env.sink.emit(RunEvent::StageReused { stage, key: entry.key.to_string() });
                self.done(id, entry, true);
            }
            Outcome::Failed(failure) if failure.interrupted => self.skip(id, "the run stopped; its state is kept".into()),
            Outcome::Failed(failure) => self.fail(id, failure),
        }
    }

    fn done(&mut self, id: StageId, entry: Box<ActionEntry>, reused: bool) {
        let causes = self.causes.remove(&id).filter(|_| !reused).unwrap_or_default();
        self.states[id.0] = State::Done { entry, reused, causes };
        for next in self.plan.dependants(id).collect::<Vec<_>>() {
            if let State::Waiting(left) = &mut self.states[next.0] {
                *left -= 1;
                if *left == 0 {
                    self.known.push_back(next);
                }
            }
        }
    }

    fn fail(&mut self, id: StageId, failure: Failure) {
        let stage = self.plan.stage(id).name.clone();
        let Failure { message, help, log, .. } = failure;
        self.states[id.0] = State::Failed { message: message.clone() };
        self.env.sink.emit(RunEvent::StageFailed { stage: stage.clone(), message, help, log });
        for next in self.plan.dependants(id).collect::<Vec<_>>() {
            self.skip(next, format!("stage `{stage}` failed"));
        }
        if !self.env.options.keep_going {
            self.halted = true;
            self.env.stop.raise(1);
        }
    }

    fn skip(&mut self, id: StageId, because: String) {
        if matches!(self.states[id.0], State::Outside | State::Skipped { .. }) {
            return;
        }
        let stage = self.plan.stage(id).name.clone();
        self.env.sink.emit(RunEvent::StageSkipped { stage, because: because.clone() });
        self.states[id.0] = State::Skipped { because: because.clone() };
        for next in self.plan.dependants(id).collect::<Vec<_>>() {
            self.skip(next, because.clone());
        }
    }
}
