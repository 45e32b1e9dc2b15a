//! The scheduler: which stage runs when; where each of them is stands in [`states`].

pub(crate) mod states;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use flow_cache::{ActionEntry, ActionKey, Artifact, CacheError, Lookup};
use tokio::task::JoinSet;

use crate::check::Difference;
use crate::commit::Committer;
use crate::events::RunEvent;
use crate::execute::env::Env;
use crate::execute::execute;
use crate::execute::execution::{Execution, Outcome, Why};
use crate::execute::failure::Failure;
use crate::explain;
use crate::key::KeyParts;
use crate::outputs::{are_read, read_json};
use crate::plan::{Plan, StageId};
use crate::plugin::{Provenance, Purity};
use crate::run::options::REASKED;
use states::{State, States};

/// What came of all stages.
pub(crate) struct Settled {
    pub states: States,
    /// Stages that were executed again, and what differs.
    pub checked: Vec<(StageId, Option<Difference>)>,
}

/// Heavy stages weigh more on the longest path.
const HEAVY_WEIGHT: u64 = 20;
/// Stages that are keyed before running ones are looked after again.
const KEY_AT_ONCE: usize = 64;

type Tokens = BTreeMap<String, u64>;
/// A stage, its action, and what came of it.
type Ran = (StageId, ActionKey, Outcome);

pub(crate) struct Schedule<'a> {
    plan: &'a Plan,
    selected: &'a [StageId],
    env: Env,
    /// Until the run ends.
    committer: Option<Committer>,
    states: States,
    /// Length of the longest path to the end, per stage.
    distance: Vec<u64>,
    /// Stages whose inputs are known, to be keyed.
    known: VecDeque<StageId>,
    /// Stages that wait for tokens, by what they need; the longest path first.
    ready: BTreeMap<Tokens, BinaryHeap<(u64, Reverse<StageId>)>>,
    jobs: HashMap<StageId, Execution>,
    free: Tokens,
    capacity: Tokens,
    held: HashMap<StageId, Tokens>,
    causes: HashMap<StageId, Vec<String>>,
    /// Actions that wait or run, and the other stages that are the same action.
    in_flight: HashMap<ActionKey, (StageId, Vec<StageId>)>,
    checked: Vec<(StageId, Option<Difference>)>,
    /// Stages that are made again, and the stages that wait for that.
    redo: HashMap<StageId, Vec<StageId>>,
    /// No new task starts.
    halted: bool,
}

impl<'a> Schedule<'a> {
    pub fn new(plan: &'a Plan, selected: &'a [StageId], env: Env) -> Self {
        let needs = |id: &StageId| plan.stage(*id).needs().len();
        let states = States::new(plan.stages.len(), selected.iter().map(|id| (*id, needs(id))));
        let known = selected.iter().copied().filter(|id| needs(id) == 0).collect();
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
            committer: Some(Committer::start(env.clone())),
            env,
            states,
            distance,
            known,
            ready: BTreeMap::new(),
            jobs: HashMap::new(),
            free: capacity.clone(),
            capacity,
            held: HashMap::new(),
            causes: HashMap::new(),
            in_flight: HashMap::new(),
            checked: Vec::new(),
            redo: HashMap::new(),
            halted: false,
        }
    }

    pub async fn run(mut self) -> Result<Settled, CacheError> {
        let mut running = JoinSet::new();
        let stop = self.env.stop.clone();
        let result = self.drive(&mut running, &stop).await;
        let lost = match self.committer.take() {
            Some(committer) => committer.finish().await,
            None => Vec::new(),
        };
        result?;
        for (id, message) in lost {
            self.states.lost(id, message);
        }
        for &id in self.selected {
            if self.states[id].is_open() {
                self.skip(id, "the run stopped".into(), false);
            }
        }
        Ok(Settled { states: self.states, checked: self.checked })
    }

    async fn drive(&mut self, running: &mut JoinSet<Ran>, stop: &crate::stop::Stop) -> Result<(), CacheError> {
        loop {
            self.halted |= stop.level() > 0;
            for _ in 0..KEY_AT_ONCE {
                let Some(id) = self.known.pop_front().filter(|_| !self.halted) else { break };
                self.key(id)?;
            }
            if !self.halted {
                self.dispatch(running);
            }
            if running.is_empty() {
                if let Some(committer) = &self.committer {
                    committer.idle();
                }
                if self.halted || self.known.is_empty() {
                    return Ok(());
                }
                continue;
            }
            if !self.known.is_empty() && !self.halted {
                // Keying goes on; tasks get their turn in between.
                tokio::task::yield_now().await;
                while let Some(joined) = running.try_join_next() {
                    self.joined(joined);
                }
                continue;
            }
            tokio::select! {
                Some(joined) = running.join_next() => self.joined(joined),
                () = stop.reached(1), if !self.halted => self.halted = true,
            }
        }
    }

    fn joined(&mut self, joined: Result<Ran, tokio::task::JoinError>) {
        match joined {
            Ok((id, key, outcome)) => self.settle(id, key, outcome),
            Err(e) => tracing::error!("a task of the scheduler failed: {e}"),
        }
    }

    /// Keys a stage whose inputs are known, and looks it up.
    fn key(&mut self, id: StageId) -> Result<(), CacheError> {
        if !matches!(self.states[id], State::Waiting(_)) {
            return Ok(());
        }
        let plan = self.plan;
        let stage = plan.stage(id);
        if let Some(gate) = self.refusing_gate(id)? {
            self.skip(id, format!("gate `{gate}` refused"), true);
            return Ok(());
        }
        let mut inputs = Vec::with_capacity(stage.inputs.len());
        for wire in &stage.inputs {
            let artifact = self.states.entry(wire.from).and_then(|e| e.outputs.get(&wire.output));
            let Some(artifact) = artifact else {
                let message = format!("`{}` has no artifact on `{}`", plan.stage(wire.from).name, wire.output);
                self.fail(id, Failure::new(message));
                return Ok(());
            };
            inputs.push(*artifact);
        }
        let cache = self.env.cache.clone();
        let parts = match KeyParts::of(stage, &inputs, self.env.options.machine.as_ref(), &cache) {
            Ok(parts) => parts,
            Err(e @ CacheError::Index { .. }) => return Err(e),
            Err(e) => {
                // A source file that vanished or cannot be read.
                self.fail(id, Failure::new(e.to_string()));
                return Ok(());
            }
        };
        let key = parts.key();
        if let Some(failure) = self.against_lock(id, key) {
            self.fail(id, failure);
            return Ok(());
        }
        if let Some((_, same)) = self.in_flight.get_mut(&key) {
            same.push(id);
            self.states.ready(id);
            return Ok(());
        }
        let options = &self.env.options;
        let reask = options.reask.contains(&id);
        let forced = options.force.contains(&id) || reask;
        let found = cache.lookup_leased(&key, &self.env.lease)?;
        let (why, causes) = match found {
            Lookup::Hit(entry) if options.check && !forced => (Why::Check(entry), vec!["checked (--check)".to_owned()]),
            Lookup::Hit(entry) if !forced && self.gives_what_is_wanted(id, &entry)? => {
                self.env.sink.emit(RunEvent::StageReused { stage: stage.name.clone(), key: key.to_string() });
                self.done(id, entry, true);
                return Ok(());
            }
            _ if reask => (Why::Force, vec![REASKED.to_owned()]),
            _ if forced => (Why::Force, vec!["forced (--force)".to_owned()]),
            Lookup::Hit(_) => {
                self.env.distrust(&key)?;
                (Why::Make, vec!["the remote cache could not give its result".to_owned()])
            }
            found => {
                let ran = |other: StageId| matches!(self.states[other], State::Done { reused: false, .. });
                let causes = explain::causes(&cache, plan, id, &parts, &found, &ran)?;
                if matches!(found, Lookup::Broken { .. }) {
                    cache.forget(&key)?;
                }
                (Why::Make, causes)
            }
        };
        self.in_flight.insert(key, (id, Vec::new()));
        self.causes.insert(id, causes.clone());
        let inputs = self.named(id, inputs);
        let operational = stage.inputs.iter().map(|wire| self.operational(wire.from, reask)).collect();
        let job = Execution {
            stage: stage.clone(),
            key,
            parts,
            inputs,
            operational,
            withheld: self.plan.withheld(id),
            provenance: self.provenance(id),
            causes,
            why,
            wanted: self.wanted(id),
        };
        self.states.ready(id);
        let tokens = self.tokens(&job);
        self.ready.entry(tokens).or_default().push((self.distance[id.0], Reverse(id)));
        self.jobs.insert(id, job);
        Ok(())
    }

    /// What a stage's readers are told beside its artifacts: its unkeyed parameters, and what this run is to do again.
    fn operational(&self, maker: StageId, reask: bool) -> serde_json::Value {
        let mut value = self.plan.stage(maker).operational();
        if let (serde_json::Value::Object(fields), true) = (&mut value, reask) {
            fields.insert("reask".into(), true.into());
        }
        value
    }

    /// Output ports of a stage that the run itself or a person reads: verdicts, summaries and what is published.
    fn wanted(&self, id: StageId) -> Vec<String> {
        let outputs = self.plan.stage(id).kind.outputs().iter().filter(|o| are_read(o.ty)).map(|o| o.name.to_owned());
        outputs.chain(self.plan.publish.iter().filter(|(_, stage, _)| *stage == id).map(|(_, _, port)| port.clone())).collect()
    }

    /// Whether what is wanted of a result is here, or could be brought from the remote cache.
    fn gives_what_is_wanted(&self, id: StageId, entry: &ActionEntry) -> Result<bool, CacheError> {
        if self.env.cache.remote().is_none() {
            return Ok(true);
        }
        for artifact in self.wanted(id).iter().filter_map(|port| entry.outputs.get(port)) {
            match self.env.cache.fetch(artifact) {
                Ok(()) => {}
                Err(CacheError::NotFetched { .. }) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// An input that the remote cache promised is not to be had: its stage runs here, then this one again.
    fn make_again(&mut self, id: StageId, input: usize) -> Result<(), CacheError> {
        let from = self.plan.stage(id).inputs[input].from;
        if let Some(entry) = self.states.entry(from) {
            self.env.distrust(&entry.key)?;
        }
        if self.states.make_again(from, id) {
            self.known.push_back(from);
        }
        self.redo.entry(from).or_default().push(id);
        Ok(())
    }

    /// Artifacts of a stage's wires with the names of what made them.
    fn named(&self, id: StageId, artifacts: Vec<Artifact>) -> Vec<(Artifact, String)> {
        let wires = &self.plan.stage(id).inputs;
        artifacts.into_iter().zip(wires).map(|(a, w)| (a, format!("{}.{}", self.plan.stage(w.from).name, w.output))).collect()
    }

    /// The first required gate whose verdict is a refusal.
    fn refusing_gate(&self, id: StageId) -> Result<Option<String>, CacheError> {
        for (gate, port) in &self.plan.stage(id).requires {
            if let Some(artifact) = self.states.entry(*gate).and_then(|e| e.outputs.get(port))
                && read_json(&self.env.cache, artifact)?["accepted"] == false
            {
                return Ok(Some(self.plan.stage(*gate).name.clone()));
            }
        }
        Ok(None)
    }

    /// How a stage differs from the lock file, if it does.
    fn against_lock(&self, id: StageId, key: ActionKey) -> Option<Failure> {
        let name = &self.plan.stage(id).name;
        let locked = self.env.options.locked.as_ref()?;
        let mut failure = match locked.get(name) {
            Some(stage) if stage.key == key => return None,
            Some(stage) => Failure::new(format!(
                "it differs from flow.lock: action key {} is locked, {} is wanted",
                stage.key.0.short(),
                key.0.short()
            )),
            None => Failure::new("it is not in flow.lock"),
        };
        failure.help = Some(format!("`flow explain PIPELINE {name}` says what changed; `flow lock PIPELINE` accepts it"));
        Some(failure)
    }

    /// How the ancestors' artifacts came to be, for stages that may show it.
    fn provenance(&self, id: StageId) -> Vec<Provenance> {
        let mut all = Vec::new();
        if !self.plan.stage(id).is_measured() {
            return all;
        }
        for ancestor in self.plan.ancestors(id) {
            let State::Done { entry, reused, .. } = &self.states[ancestor] else { continue };
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
    fn dispatch(&mut self, running: &mut JoinSet<Ran>) {
        loop {
            let free = &self.free;
            let fits = |tokens: &Tokens| tokens.iter().all(|(pool, n)| free.get(pool).is_some_and(|free| free >= n));
            let next = self.ready.iter().filter(|(tokens, _)| fits(tokens)).max_by_key(|(_, heap)| heap.peek()).map(|(t, _)| t.clone());
            let Some(tokens) = next else { return };
            let Some(heap) = self.ready.get_mut(&tokens) else { return };
            let popped = heap.pop();
            if heap.is_empty() {
                self.ready.remove(&tokens);
            }
            let Some((id, job)) = popped.and_then(|(_, Reverse(id))| Some((id, self.jobs.remove(&id)?))) else { continue };
            for (pool, n) in &tokens {
                if let Some(free) = self.free.get_mut(pool) {
                    *free -= n;
                }
            }
            self.held.insert(id, tokens);
            self.states.started(id);
            let env = self.env.clone();
            let key = job.key;
            running.spawn(async move { (id, key, execute(job, env).await) });
        }
    }

    /// What a stage holds while it runs, never more than there is.
    fn tokens(&mut self, job: &Execution) -> Tokens {
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

    fn settle(&mut self, id: StageId, key: ActionKey, outcome: Outcome) {
        for (pool, n) in self.held.remove(&id).unwrap_or_default() {
            if let Some(free) = self.free.get_mut(&pool) {
                *free += n;
            }
        }
        match outcome {
            Outcome::Made(made) => {
                let entry = Box::new(made.commit.entry.clone());
                let differs = self.outputs_against_lock(id, &entry);
                if let Some(committer) = &self.committer {
                    committer.add(id, made);
                }
                match differs {
                    Some(failure) => self.fail(id, failure),
                    None => self.done(id, entry, false),
                }
            }
            Outcome::Checked(entry, difference) => {
                let stage = self.plan.stage(id).name.clone();
                self.env.sink.emit(RunEvent::StageChecked { stage, difference: difference.clone() });
                self.checked.push((id, difference));
                self.done(id, entry, true);
            }
            Outcome::Reused(entry) => {
                let stage = self.plan.stage(id).name.clone();
                self.env.sink.emit(RunEvent::StageReused { stage, key: entry.key.to_string() });
                self.done(id, entry, true);
            }
            Outcome::Failed(Failure { lost: Some(input), .. }) => {
                if let Err(e) = self.make_again(id, input) {
                    self.fail(id, e.into());
                }
            }
            Outcome::Failed(failure) if failure.interrupted => self.skip(id, "the run stopped; its state is kept".into(), false),
            Outcome::Failed(failure) => self.fail(id, failure),
        }
        let (_, same) = self.in_flight.remove(&key).unwrap_or((id, Vec::new()));
        for other in same {
            match self.states.entry(id).cloned() {
                Some(entry) => {
                    let stage = self.plan.stage(other).name.clone();
                    self.env.sink.emit(RunEvent::StageReused { stage, key: key.to_string() });
                    self.done(other, Box::new(entry), true);
                }
                // It failed or stopped there; here it is tried on its own.
                None => {
                    self.states.on_its_own(other);
                    self.known.push_back(other);
                }
            }
        }
    }

    /// A locked stage that was made again must have given the locked bytes on its pure ports.
    fn outputs_against_lock(&self, id: StageId, entry: &ActionEntry) -> Option<Failure> {
        let stage = self.plan.stage(id);
        let locked = self.env.options.locked.as_ref()?.get(&stage.name)?;
        let pure = stage.kind.outputs().iter().filter(|o| o.purity == Purity::Pure);
        let port = pure.map(|o| o.name).find(|name| locked.outputs.get(*name) != entry.outputs.get(*name).map(|a| &a.digest))?;
        Some(Failure::new(format!("its output `{port}` differs from flow.lock under the same action key")))
    }

    fn done(&mut self, id: StageId, entry: Box<ActionEntry>, reused: bool) {
        let causes = self.causes.remove(&id).filter(|_| !reused).unwrap_or_default();
        self.states.done(id, entry, reused, causes);
        // Where it was made again, what reads it waits for nothing else, and all others had it before.
        let waiting = self.redo.remove(&id).unwrap_or_else(|| self.plan.dependants(id).collect());
        for next in waiting {
            if self.states.need_done(next) {
                self.known.push_back(next);
            }
        }
    }

    fn fail(&mut self, id: StageId, failure: Failure) {
        let plan = self.plan;
        let stage = plan.stage(id).name.clone();
        let Failure { message, help, log, .. } = failure;
        self.states.failed(id, message.clone());
        self.env.sink.emit(RunEvent::StageFailed { stage: stage.clone(), message, help, log });
        for next in plan.dependants(id) {
            self.skip(next, format!("stage `{stage}` failed"), false);
        }
        if !self.env.options.keep_going {
            self.halted = true;
            self.env.stop.raise(1);
        }
    }

    fn skip(&mut self, id: StageId, because: String, withheld: bool) {
        let because: Arc<str> = because.into();
        let plan = self.plan;
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if !self.states.skipped(id, &because, withheld) {
                continue;
            }
            let stage = plan.stage(id).name.clone();
            self.env.sink.emit(RunEvent::StageSkipped { stage, because: because.to_string() });
            open.extend(plan.dependants(id));
        }
    }
}
