//! The scheduler: which stage runs when.
//!
//! Where each stage is stands in [`states`]. A stage whose needs are done goes three steps: its `inputs`, its `key`, and what to
//! `decide` about it (`lock` compares with `flow.lock`). What has to run is put together (`assemble`), waits in a `queue` for the
//! tokens of its `pools`, and is executed.

mod assemble;
mod decide;
mod inputs;
mod key;
mod lock;
mod pools;
mod queue;
pub(crate) mod states;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use flow_cache::{ActionEntry, ActionKey, CacheError};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use crate::check::Difference;
use crate::commit::Committer;
use crate::events::RunEvent;
use crate::execute::env::Env;
use crate::execute::execution::Outcome;
use crate::execute::failure::Failure;
use crate::execute::{bring, execute};
use crate::plan::{Plan, StageId};
use crate::stop::Stop;
use assemble::assemble;
use decide::{Next, decide, wanted};
use inputs::{Bar, inputs};
use key::key;
use pools::Pools;
use queue::Queue;
use states::{State, States};

/// What came of all stages.
pub(crate) struct Settled {
    pub states: States,
    /// Stages that were executed again, and what differs.
    pub checked: Vec<(StageId, Option<Difference>)>,
}

/// Stages that are keyed before running ones are looked after again.
const KEY_AT_ONCE: usize = 64;

/// Results that are brought from the remote cache at once.
const BRING_AT_ONCE: usize = 16;

/// A stage, its action, and what came of it.
type Ran = (StageId, ActionKey, Outcome);

pub(crate) struct Schedule<'a> {
    plan: &'a Plan,
    selected: &'a [StageId],
    env: Env,
    /// Until the run ends.
    committer: Option<Committer>,
    states: States,
    /// Stages whose inputs are known, to be keyed.
    known: VecDeque<StageId>,
    /// Executions that wait for tokens.
    queue: Queue,
    /// Results that the remote cache has, to be brought.
    elsewhere: Vec<(StageId, Box<ActionEntry>)>,
    /// One for each that is brought at once.
    lines: Arc<Semaphore>,
    pools: Pools,
    /// Why stages run that wait or run.
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
        Self {
            plan,
            selected,
            committer: Some(Committer::start(env.clone())),
            queue: Queue::of(plan),
            elsewhere: Vec::new(),
            lines: Arc::new(Semaphore::new(BRING_AT_ONCE)),
            pools: Pools::new(&env.options),
            env,
            states,
            known,
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
        for (id, error) in lost {
            self.states.lost(id, error.to_string());
        }
        for &id in self.selected {
            if self.states[id].is_open() {
                self.skip(id, "the run stopped".into(), false);
            }
        }
        Ok(Settled { states: self.states, checked: self.checked })
    }

    async fn drive(&mut self, running: &mut JoinSet<Ran>, stop: &Stop) -> Result<(), CacheError> {
        loop {
            self.halted |= stop.level() > 0;
            for _ in 0..KEY_AT_ONCE {
                let Some(id) = self.known.pop_front().filter(|_| !self.halted) else { break };
                self.advance(id)?;
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

    fn joined(&mut self, joined: Result<Ran, JoinError>) {
        match joined {
            Ok((id, key, outcome)) => self.settle(id, key, outcome),
            Err(e) => tracing::error!("a task of the scheduler failed: {e}"),
        }
    }

    /// Takes a stage whose inputs are known as far as it goes without a task: keyed and reused, or ready to run.
    fn advance(&mut self, id: StageId) -> Result<(), CacheError> {
        if !matches!(self.states[id], State::Waiting(_)) {
            return Ok(());
        }
        match self.keyed(id) {
            Ok(()) => {}
            Err(Bar::Withheld(gate)) => self.skip(id, format!("gate `{gate}` refused"), true),
            Err(Bar::Failed(failure)) => self.fail(id, failure),
            Err(Bar::Broken(error)) => return Err(error),
        }
        Ok(())
    }

    /// The three steps: inputs, key, and what follows from it.
    fn keyed(&mut self, id: StageId) -> Result<(), Bar> {
        let plan = self.plan;
        let inputs = inputs(plan, &self.states, &self.env.cache, id)?;
        let (key, parts) = key(plan.stage(id), &inputs, &self.env)?;
        let in_flight = self.in_flight.contains_key(&key);
        match decide(plan, &self.states, &self.env, id, (key, &parts), in_flight)? {
            Next::Reuse(entry) => {
                self.reused(id, key);
                self.done(id, entry, true);
            }
            Next::Bring(entry) => {
                self.in_flight.insert(key, (id, Vec::new()));
                self.states.ready(id);
                self.elsewhere.push((id, entry));
            }
            Next::Wait => {
                self.in_flight.entry(key).or_insert((id, Vec::new())).1.push(id);
                self.states.ready(id);
            }
            Next::Run(why, causes) => {
                self.in_flight.insert(key, (id, Vec::new()));
                self.causes.insert(id, causes.clone());
                let reask = self.env.options.reask.contains(&id);
                let execution = assemble(plan, &self.states, id, reask, inputs, (key, parts), (why, causes));
                self.states.ready(id);
                let tokens = self.pools.needed(plan.stage(id));
                self.queue.push(id, tokens, execution);
            }
        }
        Ok(())
    }

    fn reused(&self, id: StageId, key: ActionKey) {
        self.env.sink.emit(RunEvent::StageReused { stage: self.plan.stage(id).name.clone(), key: key.to_string() });
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

    /// Starts every ready stage that gets its tokens, longest path first.
    fn dispatch(&mut self, running: &mut JoinSet<Ran>) {
        for (id, entry) in self.elsewhere.drain(..) {
            let (env, wanted, lines, key) = (self.env.clone(), wanted(self.plan, id), self.lines.clone(), entry.key);
            running.spawn(async move {
                // Never closed.
                let _line = lines.acquire().await;
                (id, key, bring(entry, wanted, env).await)
            });
        }
        while let Some((id, tokens, execution)) = self.queue.pop(&self.pools) {
            self.pools.take(id, tokens);
            self.states.started(id);
            let env = self.env.clone();
            let key = execution.key;
            running.spawn(async move { (id, key, execute(execution, env).await) });
        }
    }

    fn settle(&mut self, id: StageId, key: ActionKey, outcome: Outcome) {
        self.pools.give_back(id);
        match outcome {
            Outcome::Made(made) => {
                let entry = Box::new(made.commit.entry.clone());
                let differs = lock::outputs_differ(&self.env.options, self.plan.stage(id), &entry);
                if let Some(committer) = &self.committer {
                    committer.add(id, made);
                }
                match differs {
                    Some(error) => self.fail(id, error.into()),
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
                self.reused(id, entry.key);
                self.done(id, entry, true);
            }
            Outcome::NotBrought => {
                self.states.on_its_own(id);
                self.known.push_back(id);
            }
            Outcome::Failed(failure) => self.settle_failure(id, failure),
        }
        let (_, same) = self.in_flight.remove(&key).unwrap_or((id, Vec::new()));
        for other in same {
            match self.states.entry(id).cloned() {
                Some(entry) => {
                    self.reused(other, key);
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

    fn settle_failure(&mut self, id: StageId, failure: Failure) {
        if let Some(input) = failure.lost_input() {
            if let Err(e) = self.make_again(id, input) {
                self.fail(id, e.into());
            }
        } else if failure.is_interruption() {
            self.skip(id, "the run stopped; its state is kept".into(), false);
        } else {
            self.fail(id, failure);
        }
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
        let (message, help, log) = (failure.message(), failure.help(), failure.log);
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
