//! What to do with a stage whose key is known: reuse what is there, run it, or wait for the stage that is the same action. The third
//! step.

use flow_cache::{ActionEntry, ActionKey, CacheError, Lookup};

use crate::execute::env::Env;
use crate::execute::execution::Why;
use crate::explain;
use crate::key::KeyParts;
use crate::outputs::are_read;
use crate::plan::{Plan, StageId};
use crate::run::options::REASKED;
use crate::schedule::states::{State, States};

/// What becomes of a keyed stage.
pub(super) enum Next {
    /// Its result is in the cache.
    Reuse(Box<ActionEntry>),
    /// The remote cache has of its result what is wanted here.
    Bring(Box<ActionEntry>),
    /// It has to be executed, for these causes.
    Run(Why, Vec<String>),
    /// Another stage of this run is the same action.
    Wait,
}

/// Decides by what runs already, by what the cache has, and by what the run is asked for.
pub(super) fn decide(
    plan: &Plan,
    states: &States,
    env: &Env,
    id: StageId,
    (key, parts): (ActionKey, &KeyParts),
    in_flight: bool,
) -> Result<Next, CacheError> {
    if in_flight {
        return Ok(Next::Wait);
    }
    let reask = env.options.reask.contains(&id);
    let forced = env.options.force.contains(&id) || reask;
    Ok(match env.cache.lookup_leased(&key, &env.lease)? {
        Lookup::Hit(entry) if env.options.check && !forced => Next::Run(Why::Check(entry), vec!["checked (--check)".to_owned()]),
        Lookup::Hit(entry) if !forced && has_what_is_wanted(plan, env, id, &entry)? => Next::Reuse(entry),
        Lookup::Hit(entry) if !forced => Next::Bring(entry),
        _ if reask => Next::Run(Why::Force, vec![REASKED.to_owned()]),
        _ if forced => Next::Run(Why::Force, vec!["forced (--force)".to_owned()]),
        _ if !env.trusts(&key) => Next::Run(Why::Make, vec!["the remote cache could not give its result".to_owned()]),
        found => {
            let ran = |other: StageId| matches!(states[other], State::Done { reused: false, .. });
            let causes = explain::causes(&env.cache, plan, id, parts, &found, &ran)?;
            if matches!(found, Lookup::Broken { .. }) {
                env.cache.forget(&key)?;
            }
            Next::Run(Why::Make, causes)
        }
    })
}

/// Output ports of a stage that the run itself or a person reads: verdicts, summaries and what is published.
pub(super) fn wanted(plan: &Plan, id: StageId) -> Vec<String> {
    let outputs = plan.stage(id).kind.outputs().iter().filter(|o| are_read(&o.ty)).map(|o| o.name.to_string());
    outputs.chain(plan.publish.iter().filter(|(_, stage, _)| *stage == id).map(|(_, _, port)| port.clone())).collect()
}

/// Whether what is wanted of a result is here.
fn has_what_is_wanted(plan: &Plan, env: &Env, id: StageId, entry: &ActionEntry) -> Result<bool, CacheError> {
    if env.cache.remote().is_none() {
        return Ok(true);
    }
    for artifact in wanted(plan, id).iter().filter_map(|port| entry.outputs.get(port)) {
        if !env.cache.is_here(artifact)? {
            return Ok(false);
        }
    }
    Ok(true)
}
