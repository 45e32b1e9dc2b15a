//! One execution of one stage: lock, inputs, task, outputs, entry.
//!
//! An [`execution`] says what is executed and why, [`env`] what all executions of a run share. The task is made ready (`prepare`),
//! runs here (`local`) or in a process of its own (`child`), what it tells goes on and is kept (`told`), and what it made is taken in
//! (`ending`), or a [`failure`] says why there is none.

mod child;
mod ending;
pub(crate) mod env;
pub(crate) mod execution;
pub(crate) mod failure;
mod local;
mod prepare;
mod told;

use std::time::{Duration, Instant};

use flow_cache::{ActionEntry, CacheError, KeyLock, Lookup};

use crate::events::RunEvent;
use crate::run::options::Worker;
use ending::{Ending, Finished};
use env::Env;
use execution::{Execution, Made, Outcome, Why};
use failure::{ExecuteError, Failure};
use prepare::{draft, prepare};
use told::Told;

/// Executes a stage with its retries.
pub(crate) async fn execute(job: Execution, env: Env) -> Outcome {
    match locked(&job, &env).await {
        Ok(outcome) => outcome,
        Err(failure) => Outcome::Failed(failure),
    }
}

async fn locked(job: &Execution, env: &Env) -> Result<Outcome, Failure> {
    let name = &job.stage.name;
    let mut told = false;
    let lock: KeyLock = loop {
        if let Some(lock) = env.cache.try_lock(&job.key)? {
            break lock;
        }
        if !told {
            told = true;
            env.sink.emit(RunEvent::StageWaiting { stage: name.clone(), reason: "another process makes the same artifact".into() });
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            () = env.stop.reached(1) => return Err(ExecuteError::Interrupted.into()),
        }
    };
    // Whoever held the lock before may have made it.
    if matches!(job.why, Why::Make)
        && let Lookup::Hit(entry) = env.cache.lookup_leased(&job.key, &env.lease)?
    {
        return Ok(Outcome::Reused(entry));
    }
    if matches!(job.why, Why::Make)
        && let Some(entry) = from_remote(job, env).await?
    {
        return Ok(Outcome::Reused(entry));
    }
    let mut attempt = 1;
    loop {
        env.sink.emit(RunEvent::StageStarted {
            stage: name.clone(),
            kind: job.stage.kind.name().into(),
            key: job.key.to_string(),
            causes: job.causes.clone(),
            attempt,
        });
        match self::attempt(job, env).await {
            Ok(Finished::Same(entry, difference)) => return Ok(Outcome::Checked(entry, difference)),
            Ok(Finished::New { commit, seconds, dir }) => return Ok(Outcome::Made(Box::new(Made { commit: *commit, seconds, dir, lock }))),
            Err(failure) if failure.is_interruption() || failure.lost_input().is_some() || attempt > job.stage.retries => {
                return Err(failure);
            }
            Err(failure) => {
                let wait = Duration::from_secs(1 << (attempt - 1).min(6));
                env.sink.emit(RunEvent::StageRetried { stage: name.clone(), message: failure.message(), wait: wait.as_secs_f64() });
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = env.stop.reached(1) => return Err(ExecuteError::Interrupted.into()),
                }
                attempt += 1;
            }
        }
    }
}

/// What the remote cache has of an action, with what is wanted of it brought here.
async fn from_remote(job: &Execution, env: &Env) -> Result<Option<Box<ActionEntry>>, Failure> {
    if env.cache.remote().is_none() || !env.trusts(&job.key) {
        return Ok(None);
    }
    let (of, key, wanted) = (env.clone(), job.key, job.wanted.clone());
    unless_stopped(env, move || {
        let Lookup::Hit(entry) = of.cache.lookup_remote(&key, &of.lease)? else { return Ok(None) };
        fetched(&of, entry, &wanted)
    })
    .await
}

/// Brings what is wanted of a result of the remote cache.
pub(crate) async fn bring(entry: Box<ActionEntry>, wanted: Vec<String>, env: Env) -> Outcome {
    let of = env.clone();
    match unless_stopped(&env, move || fetched(&of, entry, &wanted)).await {
        Ok(Some(entry)) => Outcome::Reused(entry),
        Ok(None) => Outcome::NotBrought,
        Err(failure) => Outcome::Failed(failure),
    }
}

fn fetched(env: &Env, entry: Box<ActionEntry>, wanted: &[String]) -> Result<Option<Box<ActionEntry>>, Failure> {
    for artifact in wanted.iter().filter_map(|port| entry.outputs.get(port)) {
        match env.cache.fetch(artifact) {
            Ok(()) => {}
            Err(CacheError::NotFetched { .. }) => {
                env.distrust(&entry.key)?;
                return Ok(None);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Some(entry))
}

/// Work that waits for the network. A run that stops does not wait for it: what comes later is for nobody.
async fn unless_stopped<T: Send + 'static>(env: &Env, work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::select! {
        done = blocking(work) => done,
        () = env.stop.reached(1) => Err(ExecuteError::Interrupted.into()),
    }
}

async fn attempt(job: &Execution, env: &Env) -> Result<Finished, Failure> {
    let started = Instant::now();
    let mut dir = env.cache.layout().task(&job.key);
    if matches!(job.why, Why::Check(_)) {
        dir.set_extension("check");
    }
    let draft = draft(job, env, &dir);
    let (task, inputs) = {
        let (cache, dir, heavy) = (env.cache.clone(), dir.clone(), job.stage.kind.heavy());
        let placed: Vec<_> = job.inputs.iter().zip(&draft.inputs).map(|((artifact, _), input)| (*artifact, input.path.clone())).collect();
        if env.cache.remote().is_some() {
            // Into the store, which is whole whenever it is left alone; what is not to be had is named below.
            let (cache, wanted): (_, Vec<_>) = (cache.clone(), placed.iter().map(|(artifact, _)| *artifact).collect());
            let bring = move || {
                for artifact in &wanted {
                    if cache.fetch(artifact).is_err() {
                        break;
                    }
                }
                Ok(())
            };
            unless_stopped(env, bring).await?;
        }
        blocking(move || Ok(prepare(&cache, &dir, draft, &placed, heavy)?)).await?
    };
    let mut heard = Told::new(&job.stage.name, env.sink.clone());
    let ran = match (&env.options.worker, job.stage.kind.heavy()) {
        (Worker::Child(command), true) => child::run(command, &task, &dir, job.stage.timeout, &env.stop, &mut heard).await,
        _ => local::run(&job.stage.kind, &task, job.stage.timeout, &env.stop, &mut heard).await.map_err(Failure::from),
    };
    let tail = heard.tail();
    let ending = Ending {
        cache: env.cache.clone(),
        lease: env.lease.clone(),
        stage: job.stage.clone(),
        key: job.key,
        parts: job.parts.clone(),
        why: job.why.clone(),
        outputs: task.outputs.clone(),
        provenance: heard.provenance(0.0),
        started,
        dir,
    };
    blocking(move || {
        let changed = ending.cache.release(inputs)?;
        if ran.is_err() {
            // Half a result is for nobody; what the task keeps for its next attempt is in its state.
            for left in ["out", "work"] {
                ending.cache.remove(&ending.dir.join(left))?;
            }
        }
        ran.map_err(|failure| failure.of_task(&task.inputs, tail))?;
        if let Some(digest) = changed.first() {
            return Err(ExecuteError::ChangedInput(*digest).into());
        }
        Ok(ending.finish()?)
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(ExecuteError::Engine(e).into()))
}
