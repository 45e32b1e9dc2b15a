//! Many requests, until all are answered and kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flow_engine::plugin::{StageError, TaskContext};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::budget::Budget;
use super::client::{Client, Clock, Outcome, Trouble};
use super::pace::{Pace, backoff};
use super::shape::{self, Answer, Call};
use super::spec::{Limits, Spec};
use crate::teacher::journal::{AnswerKey, Journal};

/// How long answers in flight are waited for when a stage must end: they may be paid for.
const GRACE: Duration = Duration::from_secs(2);
/// Answers in a row that were paid for and came without logprobs: more would come without them too.
const BARE: u32 = 3;
const TICK: Duration = Duration::from_millis(100);
/// Progress and costs are told so often.
const TELL: Duration = Duration::from_secs(1);

/// Asks one teacher and keeps its answers.
pub struct Asker {
    client: Client,
    journal: Journal,
    pace: Pace,
    budget: Budget,
    limits: Limits,
    runtime: tokio::runtime::Runtime,
    repeats: Mutex<Repeats>,
    retries: AtomicU64,
}

/// Names of answers that came, to tell an answer that was delivered twice from the answer to another prompt.
#[derive(Default)]
struct Repeats {
    seen: HashMap<String, (AnswerKey, blake3::Hash)>,
    /// The server names all answers alike.
    constant: bool,
}

/// What a stage wants answered: questions by number.
pub struct Questions<'a> {
    /// How many.
    pub count: usize,
    /// The request of a question.
    pub call: &'a dyn Fn(usize) -> Call,
    /// How it is called in messages.
    pub label: &'a dyn Fn(usize) -> String,
    /// Share of them that may fail.
    pub max_failed: f64,
    /// What one is called in the progress.
    pub unit: &'a str,
}

/// How one question ended.
struct Ended {
    n: usize,
    /// What was set aside for it, and what it used.
    most: (u64, u64),
    used: Option<(u64, u64)>,
    /// Kept (`None`), failed with a reason, or the end of everything.
    result: Result<Option<String>, StageError>,
}

impl Asker {
    /// For a task that reads a hosted teacher on its port `teacher`.
    pub fn open(ctx: &TaskContext, spec: &Spec, limits: &Limits) -> Result<Self, StageError> {
        let secret = limits.key_variable().map(|name| ctx.secret(name)).transpose()?;
        let clock: Clock = {
            let ctx = ctx.clone();
            Arc::new(move || ctx.now())
        };
        let journal = Journal::open(ctx.answers_dir())?;
        if journal.damaged() > 0 {
            ctx.warn(format!("{} stored answers are damaged and will be asked for again", journal.damaged()));
        }
        Self::new(Client::new(spec, limits, secret, clock)?, journal, limits)
    }

    /// From its parts.
    pub fn new(client: Client, journal: Journal, limits: &Limits) -> Result<Self, StageError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| StageError::new(format!("cannot start the client: {e}")))?;
        Ok(Self {
            client,
            journal,
            pace: Pace::new(limits),
            budget: Budget::new(limits),
            limits: limits.clone(),
            runtime,
            repeats: Mutex::default(),
            retries: AtomicU64::new(0),
        })
    }

    /// Who is asked.
    pub fn spec(&self) -> &Spec {
        self.client.spec()
    }
    /// The client alone, for what is no question.
    pub fn client(&self) -> &Client {
        &self.client
    }
    /// Runs something of the client to its end.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The kept answer to a request, its body and milliseconds.
    pub fn kept(&self, call: &Call) -> Result<Option<(Vec<u8>, u32)>, StageError> {
        Ok(self.journal.get(&call.key(self.spec()))?.map(|k| (k.body, k.millis)))
    }
    /// The kept answer to a request, understood.
    pub fn answer(&self, call: &Call) -> Result<Option<(Answer, u32)>, StageError> {
        let Some((body, millis)) = self.kept(call)? else { return Ok(None) };
        let answer = shape::read(self.spec(), call.expect, &body).map_err(|e| StageError::new(format!("a stored answer: {e}")))?;
        Ok(Some((answer, millis)))
    }

    /// Asks whatever is not kept yet; gives the questions that failed, with the reason.
    pub fn ask(&self, ctx: &TaskContext, questions: &Questions<'_>) -> Result<BTreeMap<usize, String>, StageError> {
        self.journal.refresh()?;
        let mut missing = Vec::new();
        let mut known = HashSet::new();
        for n in 0..questions.count {
            let call = (questions.call)(n);
            let key = call.key(self.spec());
            // The same request twice is one answer.
            if !known.insert(key) {
                continue;
            }
            if self.journal.holds(&key) {
                if self.counts() {
                    let usage = self.answer(&call)?.and_then(|a| a.0.usage);
                    self.budget.kept(usage.unwrap_or((0, 0)));
                }
            } else {
                missing.push(n);
            }
        }
        if missing.is_empty() {
            ctx.progress(questions.count as u64, questions.count as u64, questions.unit);
            return Ok(BTreeMap::new());
        }
        self.estimate(ctx, questions, &missing);
        self.runtime.block_on(self.work(ctx, questions, &missing))
    }

    /// Whether what was used before matters.
    fn counts(&self) -> bool {
        let l = &self.limits;
        l.budget_tokens.is_some() || l.budget_cost.is_some() || l.price_prompt.is_some()
    }

    fn estimate(&self, ctx: &TaskContext, questions: &Questions<'_>, missing: &[usize]) {
        let most = missing.iter().map(|n| (questions.call)(*n).most).fold((0, 0), |a, m| (a.0 + m.0, a.1 + m.1));
        let mut text = format!(
            "asking for {} of {} {}: at most {} prompt and {} answer tokens",
            missing.len(),
            questions.count,
            questions.unit,
            most.0,
            most.1
        );
        if let Some(cost) = self.limits.cost(most.0, most.1) {
            text += &format!(", cost at most {cost:.4}");
        }
        if let Some(per_minute) = self.limits.requests_per_minute {
            text += &format!(", at least {:.1} minutes by requests_per_minute", missing.len() as f64 / per_minute);
        }
        ctx.log(text);
    }

    async fn work(&self, ctx: &TaskContext, questions: &Questions<'_>, missing: &[usize]) -> Result<BTreeMap<usize, String>, StageError> {
        let allowed = (questions.max_failed * questions.count as f64).floor() as usize;
        let mut failed = BTreeMap::new();
        let mut next = missing.iter().copied().peekable();
        let mut flight = FuturesUnordered::new();
        let mut stop: Option<StageError> = None;
        let (mut done, mut told) = (questions.count - missing.len(), Instant::now());
        loop {
            while stop.is_none() && flight.len() < self.limits.concurrency {
                let Some(n) = next.peek().copied() else { break };
                let call = (questions.call)(n);
                match self.budget.reserve(call.most) {
                    Ok(()) => flight.push(self.one(n, call)),
                    // What is in flight may use less than was set aside for it.
                    Err(_) if !flight.is_empty() => break,
                    Err(why) => {
                        stop = Some(over_budget(&why, done, questions));
                        break;
                    }
                }
                next.next();
            }
            if flight.is_empty() {
                break;
            }
            tokio::select! {
                Some(ended) = flight.next() => {
                    self.budget.settle(ended.most, ended.used);
                    done += 1;
                    match ended.result {
                        Ok(None) => {}
                        Ok(Some(why)) => {
                            ctx.log(format!("{} failed: {why}", (questions.label)(ended.n)));
                            failed.insert(ended.n, why);
                            if failed.len() > allowed {
                                stop = stop.or_else(|| Some(too_many(&failed, questions)));
                            }
                        }
                        Err(e) => stop = stop.or(Some(e)),
                    }
                }
                () = tokio::time::sleep(TICK) => {}
            }
            if ctx.should_stop() {
                stop = stop.or_else(|| Some(StageError::interrupted()));
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                self.tell(ctx, questions, done, failed.len());
            }
            if stop.is_some() {
                let rest = async {
                    while let Some(ended) = flight.next().await {
                        self.budget.settle(ended.most, ended.used);
                    }
                };
                let _ = tokio::time::timeout(GRACE, rest).await;
                break;
            }
        }
        self.tell(ctx, questions, done, failed.len());
        stop.map_or(Ok(failed), Err)
    }

    async fn one(&self, n: usize, call: Call) -> Ended {
        let mut used = None;
        let result = self.until_kept(&call, &mut used).await;
        Ended { n, most: call.most, used, result }
    }

    /// Tries until an answer is kept, or there is no sense in trying.
    async fn until_kept(&self, call: &Call, used: &mut Option<(u64, u64)>) -> Result<Option<String>, StageError> {
        let key = call.key(self.spec());
        let admitted = call.most.0 + call.most.1;
        let (mut tries, mut all, mut bare, mut doubted) = (0, 0, 0, None);
        loop {
            let turn = self.pace.admit(admitted).await;
            let (why, wait, trouble) = match self.client.send(call).await {
                Outcome::Answer { body, answer, millis } => {
                    self.pace.heard();
                    let usage = answer.usage.unwrap_or((call.most.0, answer.steps.len() as u64));
                    self.pace.settle(admitted, usage.0 + usage.1);
                    if !self.is_repeat(&answer, &key, &body, &mut doubted) {
                        self.journal.append(key, &body, millis).await?;
                        *used = Some(usage);
                        return Ok(None);
                    }
                    ("the answer to another prompt came once more".to_owned(), None, Trouble::Said)
                }
                Outcome::Again { why, wait, trouble } => (why, wait, trouble),
                Outcome::Refused(why) => {
                    self.pace.heard();
                    self.pace.settle(admitted, 0);
                    return Ok(Some(why));
                }
                Outcome::Stop(e) => return Err(e),
            };
            self.retries.fetch_add(1, Ordering::Relaxed);
            self.pace.settle(admitted, 0);
            let away = match trouble {
                Trouble::Said => {
                    self.pace.heard();
                    false
                }
                Trouble::Failed | Trouble::Unreachable => {
                    let (away, silence) = self.pace.silent();
                    if away && silence.as_secs_f64() > self.limits.outage {
                        return Err(self.outage(&why, silence));
                    }
                    away
                }
            };
            all += 1;
            // While nobody is there, waiting is no fault of the prompt.
            tries += u32::from(!(away && trouble == Trouble::Unreachable));
            bare = if why == shape::NO_LOGPROBS { bare + 1 } else { 0 };
            if tries >= self.limits.attempts || bare >= BARE {
                return Ok(Some(format!("{why} ({all} tries)")));
            }
            match wait {
                Some(wait) => self.pace.pause(wait),
                None => tokio::time::sleep(backoff(&self.limits, all, chance(&key, all))).await,
            }
            drop(turn);
        }
    }

    /// Whether an answer is the one to another prompt, delivered twice. A server that names all answers alike is
    /// found out by asking once more.
    fn is_repeat(&self, answer: &Answer, key: &AnswerKey, body: &[u8], doubted: &mut Option<String>) -> bool {
        let Some(id) = &answer.id else { return false };
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        if repeats.constant {
            return false;
        }
        let hash = blake3::hash(body);
        match repeats.seen.get(id) {
            Some((other, seen)) if other != key && *seen == hash => {
                repeats.constant = doubted.as_ref() == Some(id);
                *doubted = Some(id.clone());
                !repeats.constant
            }
            Some(_) => false,
            None => {
                repeats.seen.insert(id.clone(), (*key, hash));
                false
            }
        }
    }

    fn outage(&self, why: &str, silence: Duration) -> StageError {
        StageError::new(format!("{} has not answered for {} s: {why}", self.spec().base_url, silence.as_secs()))
            .help("see that the server runs and `base_url` is right, then run again: what was answered is kept")
    }

    fn tell(&self, ctx: &TaskContext, questions: &Questions<'_>, done: usize, failed: usize) {
        let used = self.budget.used();
        ctx.progress(done as u64, questions.count as u64, questions.unit);
        ctx.metric("prompt_tokens", used.prompt as f64);
        ctx.metric("completion_tokens", used.completion as f64);
        ctx.metric("failed", failed as f64);
        ctx.metric("retries", self.retries.load(Ordering::Relaxed) as f64);
        if let Some(cost) = self.limits.cost(used.prompt, used.completion) {
            ctx.metric("cost", cost);
        }
    }
}

/// A number between 0 and 1 that is the request's own: retries of many requests do not come together.
fn chance(key: &AnswerKey, n: u32) -> f64 {
    let hash = blake3::hash(&[&key.0[..], &n.to_le_bytes()].concat());
    f64::from(u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]])) / f64::from(u16::MAX)
}

fn over_budget(why: &str, done: usize, questions: &Questions<'_>) -> StageError {
    StageError::new(format!(
        "stopped before a budget is passed: {why}; {done} of {} {} are answered and kept",
        questions.count, questions.unit
    ))
    .help("raise the budget on the teacher's stage and run again (only what is missing is asked), or ask for less")
}

fn too_many(failed: &BTreeMap<usize, String>, questions: &Questions<'_>) -> StageError {
    let first: Vec<String> = failed.iter().take(3).map(|(n, why)| format!("{}: {why}", (questions.label)(*n))).collect();
    StageError::new(format!(
        "{} of {} {} failed, more than max_failed {} allows; {}",
        failed.len(),
        questions.count,
        questions.unit,
        questions.max_failed,
        first.join("; ")
    ))
    .help("correct what the messages say, or raise `max_failed`; what was answered is kept")
}
