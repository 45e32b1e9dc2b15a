//! Many requests, until all are answered and kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use flow_engine::plugin::{StageError, TaskContext};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::budget::Budget;
use super::client::{Client, Clock, Outcome, Trouble};
use super::pace::{Pace, backoff};
use super::shape::{self, Answer, Call, Failure, Manner, Refusal, Refused, Reply};
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
    /// What the teacher's answers showed of it.
    manner: RwLock<Manner>,
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
    /// Share of them that may be refused.
    pub max_refused: f64,
    /// What one is called in the progress.
    pub unit: &'a str,
}

/// A question that no kept answer answers.
#[derive(Clone, Copy)]
struct Missing {
    n: usize,
    /// Under which its answer will lie.
    key: AnswerKey,
}

/// How one question ended.
struct Ended {
    n: usize,
    /// What was set aside for it, and what it used.
    most: (u64, u64),
    used: Option<(u64, u64)>,
    /// How, or the end of everything.
    result: Result<Came, StageError>,
}

/// What came of a question.
enum Came {
    Kept,
    Refused(String),
    Failed(String),
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
            manner: RwLock::default(),
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

    /// Reads later answers by what one showed of the teacher.
    pub fn learn(&self, answer: &Answer) {
        self.manner.write().unwrap_or_else(PoisonError::into_inner).learn(&answer.shows);
    }
    /// What the teacher's answers showed of it.
    pub fn manner(&self) -> Manner {
        self.manner.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The kept answer to a request and its milliseconds. One that is refused is marked as such.
    pub fn answer(&self, call: &Call) -> Result<Option<(Reply, u32)>, StageError> {
        let key = self.journal.latest(call.key(self.spec()));
        let Some(reply) = self.read(call, &key)? else { return Ok(None) };
        if let Err(refusal) = &reply.0.answer
            && !self.journal.holds(&key.refusal())
        {
            self.runtime.block_on(self.journal.append(key.refusal(), refusal.why.as_bytes(), 0))?;
        }
        Ok(Some(reply))
    }

    /// What is kept under a key, by the rules of the day. An answer that was kept and is none by them is refused.
    fn read(&self, call: &Call, key: &AnswerKey) -> Result<Option<(Reply, u32)>, StageError> {
        let Some(kept) = self.journal.get(key)? else { return Ok(None) };
        let reply = shape::read(self.spec(), &self.manner(), call, &kept.body).unwrap_or_else(|Failure { why, .. }| Reply {
            answer: Err(Refusal { kind: Refused::Strange, why }),
            usage: None,
            id: None,
        });
        Ok(Some((reply, kept.millis)))
    }

    /// Asks whatever is not kept yet; gives the questions that failed, with the reason.
    pub fn ask(&self, ctx: &TaskContext, questions: &Questions<'_>) -> Result<BTreeMap<usize, String>, StageError> {
        self.journal.refresh()?;
        let mut missing = Vec::new();
        let mut refused = BTreeMap::new();
        let mut known = HashSet::new();
        for n in 0..questions.count {
            let call = (questions.call)(n);
            let first = call.key(self.spec());
            // The same request twice is one answer.
            if !known.insert(first) {
                continue;
            }
            let key = self.journal.latest(first);
            if !self.journal.holds(&key) {
                missing.push(Missing { n, key });
                continue;
            }
            let wanted = self.counts() || self.limits.reask || self.journal.holds(&key.refusal());
            let Some((reply, _)) = (if wanted { self.read(&call, &key)? } else { None }) else { continue };
            if self.counts() {
                self.budget.kept(reply.usage.unwrap_or((0, 0)));
            }
            match reply.answer {
                Err(_) if self.limits.reask => missing.push(Missing { n, key: key.again() }),
                Err(refusal) => drop(refused.insert(n, refusal.why)),
                Ok(_) => {}
            }
        }
        // Too many of them already: no more is paid for.
        if let Some(error) = questions.too_many_refused(&refused) {
            return Err(error);
        }
        if missing.is_empty() {
            ctx.progress(questions.count as u64, questions.count as u64, questions.unit);
            return Ok(BTreeMap::new());
        }
        self.estimate(ctx, questions, &missing);
        self.runtime.block_on(self.work(ctx, questions, &missing, refused))
    }

    /// Whether what was used before matters.
    fn counts(&self) -> bool {
        let l = &self.limits;
        l.budget_tokens.is_some() || l.budget_cost.is_some() || l.price_prompt.is_some()
    }

    fn estimate(&self, ctx: &TaskContext, questions: &Questions<'_>, missing: &[Missing]) {
        let most = missing.iter().map(|m| (questions.call)(m.n).most).fold((0, 0), |a, m| (a.0 + m.0, a.1 + m.1));
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

    async fn work(
        &self,
        ctx: &TaskContext,
        questions: &Questions<'_>,
        missing: &[Missing],
        mut refused: BTreeMap<usize, String>,
    ) -> Result<BTreeMap<usize, String>, StageError> {
        let mut failed = BTreeMap::new();
        let mut next = missing.iter().copied().peekable();
        let mut flight = FuturesUnordered::new();
        let mut stop: Option<StageError> = None;
        let (mut done, mut told) = (questions.count - missing.len(), Instant::now());
        loop {
            while stop.is_none() && flight.len() < self.limits.concurrency {
                let Some(at) = next.peek().copied() else { break };
                let call = (questions.call)(at.n);
                match self.budget.reserve(call.most) {
                    Ok(()) => flight.push(self.one(ctx, at, call)),
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
                        Ok(Came::Kept) => {}
                        Ok(Came::Refused(why)) => {
                            ctx.log(format!("{} is refused: {why}", (questions.label)(ended.n)));
                            refused.insert(ended.n, why);
                            stop = stop.or_else(|| questions.too_many_refused(&refused));
                        }
                        Ok(Came::Failed(why)) => {
                            ctx.log(format!("{} failed: {why}", (questions.label)(ended.n)));
                            failed.insert(ended.n, why);
                            stop = stop.or_else(|| questions.too_many_failed(&failed));
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

    async fn one(&self, ctx: &TaskContext, at: Missing, call: Call) -> Ended {
        let mut used = None;
        let result = self.until_kept(ctx, &at.key, &call, &mut used).await;
        Ended { n: at.n, most: call.most, used, result }
    }

    /// Tries until an answer is kept, or there is no sense in trying.
    async fn until_kept(&self, ctx: &TaskContext, key: &AnswerKey, call: &Call, used: &mut Option<(u64, u64)>) -> Result<Came, StageError> {
        let admitted = call.most.0 + call.most.1;
        let manner = self.manner();
        let (mut tries, mut all, mut bares, mut doubted) = (0, 0, 0, None);
        loop {
            let turn = self.pace.admit(admitted).await;
            let (why, wait, trouble, bare) = match self.client.send(call, &manner).await {
                Outcome::Answer { body, reply, millis } => {
                    self.heard(ctx);
                    let steps = reply.answer.as_ref().map_or(call.most.1, |a| a.steps.len() as u64);
                    let usage = reply.usage.unwrap_or((call.most.0, steps));
                    self.pace.settle(admitted, usage.0 + usage.1);
                    if !self.is_repeat(reply.id.as_ref(), key, &body, &mut doubted) {
                        self.journal.append(*key, &body, millis).await?;
                        *used = Some(usage);
                        let Err(refusal) = reply.answer else { return Ok(Came::Kept) };
                        self.journal.append(key.refusal(), refusal.why.as_bytes(), 0).await?;
                        return Ok(Came::Refused(refusal.why));
                    }
                    ("the answer to another prompt came once more".to_owned(), None, Trouble::Said, false)
                }
                Outcome::Again { why, wait, trouble, bare } => (why, wait, trouble, bare),
                Outcome::Never(why) => {
                    self.heard(ctx);
                    self.pace.settle(admitted, 0);
                    return Ok(Came::Failed(why));
                }
                Outcome::Stop(e) => return Err(e.into()),
            };
            self.retries.fetch_add(1, Ordering::Relaxed);
            self.pace.settle(admitted, 0);
            all += 1;
            let pause = wait.unwrap_or_else(|| backoff(&self.limits, all, chance(key, all)));
            let away = match trouble {
                Trouble::Said => {
                    self.heard(ctx);
                    false
                }
                Trouble::Failed | Trouble::Unreachable => self.silent(ctx, &why, trouble, pause)?,
            };
            // While nobody is there, waiting is no fault of the prompt.
            tries += u32::from(!(away && trouble == Trouble::Unreachable));
            bares = if bare { bares + 1 } else { 0 };
            if tries >= self.limits.attempts || bares >= BARE {
                return Ok(Came::Failed(format!("{why} ({all} tries)")));
            }
            match wait {
                Some(wait) => self.pace.pause(wait),
                None => tokio::time::sleep(pause).await,
            }
            drop(turn);
        }
    }

    /// The server answered, whatever it said.
    fn heard(&self, ctx: &TaskContext) {
        if let Some(waited) = self.pace.heard() {
            ctx.log(format!("{} answers again after {:.0} s", self.spec().base_url, waited.as_secs_f64()));
        }
    }

    /// The server did not answer: says so the first time, gives up after `outage`, and tells whether it counts as away.
    fn silent(&self, ctx: &TaskContext, why: &str, trouble: Trouble, pause: Duration) -> Result<bool, StageError> {
        let silence = self.pace.silent(trouble == Trouble::Unreachable);
        if silence.away && silence.since.as_secs_f64() > self.limits.outage {
            return Err(self.outage(why, silence.since));
        }
        if silence.news {
            ctx.log(format!(
                "{} does not answer: {why}; trying again in {:.1} s, and for {:.0} s (`outage`) in all",
                self.spec().base_url,
                pause.as_secs_f64(),
                self.limits.outage
            ));
        }
        Ok(silence.away)
    }

    /// Whether an answer is the one to another prompt, delivered twice. A server that names all answers alike is
    /// found out by asking once more.
    fn is_repeat(&self, id: Option<&String>, key: &AnswerKey, body: &[u8], doubted: &mut Option<String>) -> bool {
        let Some(id) = id else { return false };
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

impl Questions<'_> {
    /// The end of it all, where more of them failed than may.
    fn too_many_failed(&self, which: &BTreeMap<usize, String>) -> Option<StageError> {
        self.too_many("failed", "max_failed", self.max_failed, which)
            .map(|e| e.help("correct what the messages say, or raise `max_failed`; what was answered is kept"))
    }
    /// The end of it all, where more of them are refused than may be.
    pub fn too_many_refused(&self, which: &BTreeMap<usize, String>) -> Option<StageError> {
        self.too_many("are refused", "max_refused", self.max_refused, which).map(|e| {
            e.help("they are kept and not asked for again: correct what the messages say and run with `--reask`, or raise `max_refused`")
        })
    }
    fn too_many(&self, how: &str, parameter: &str, share: f64, which: &BTreeMap<usize, String>) -> Option<StageError> {
        let allowed = (share * self.count as f64 + 1e-9).floor() as usize;
        let first: Vec<String> = which.iter().take(3).map(|(n, why)| format!("{}: {why}", (self.label)(*n))).collect();
        let error =
            || format!("{} of {} {} {how}, more than {parameter} {share} allows; {}", which.len(), self.count, self.unit, first.join("; "));
        (which.len() > allowed).then(|| StageError::new(error()))
    }
}
