//! Where every stage of a run is.
//!
//! A stage goes `Waiting → Ready → Running → Done | Failed`, or `Waiting → Done` when its result is in the cache, or `→ Skipped` when
//! something before it failed or the run was asked to stop. [`States`] alone moves a stage: one function for each transition, which
//! says from where it may come. What is `Done` can be read by what follows; it is in the cache for good when the committer says so.
//!
//! One way leads back: a result that the remote cache promised and could not give is made here after all ([`States::make_again`]).
//! Stages that had it went on meanwhile; where making it fails they are skipped like all others that need it, and those of them
//! whose task runs end as it ends. So [`State::Skipped`] is the one state that may be left without a reason of its own.

use std::ops::Index;

use flow_cache::ActionEntry;

use crate::plan::StageId;

/// Where a stage is.
pub(crate) enum State {
    /// Not selected for this run. Holds from the run's beginning to its end.
    Outside,
    /// Selected, and so many of the stages that it needs are not done. At 0 its inputs are known: it is to be keyed.
    Waiting(usize),
    /// Keyed: all that it needs is done, no gate withholds it, and its result is not in the cache. It waits for its tokens, or for
    /// another stage that is the same action.
    Ready,
    /// It has its tokens, and its task executes.
    Running,
    /// Its outputs are in the store, where all that needs them can read them.
    Done { entry: Box<ActionEntry>, reused: bool, causes: Vec<String> },
    /// It could not be keyed, its task failed, or its result could not be committed. Nothing that needs it starts.
    Failed { message: String },
    /// Something that it needs failed or refused, or the run stopped before it was done.
    Skipped { because: String, withheld: bool },
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
            Self::Skipped { withheld: true, .. } => "withheld",
            _ => "skipped",
        }
    }
    /// Whether the stage is to be made and not yet settled.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Waiting(_) | Self::Ready | Self::Running)
    }
}

/// The states of all stages of a plan.
pub(crate) struct States(Vec<State>);

impl Index<StageId> for States {
    type Output = State;
    fn index(&self, id: StageId) -> &State {
        &self.0[id.0]
    }
}

impl States {
    /// All of `stages` outside, but for the selected ones: each waits for so many.
    pub fn new(stages: usize, selected: impl IntoIterator<Item = (StageId, usize)>) -> Self {
        let mut states = Self((0..stages).map(|_| State::Outside).collect());
        for (id, needs) in selected {
            states.0[id.0] = State::Waiting(needs);
        }
        states
    }

    /// What a stage gave, if it is done.
    pub fn entry(&self, id: StageId) -> Option<&ActionEntry> {
        self[id].entry()
    }

    /// The one place that moves a stage; `from` is whether it may come from where it is.
    fn set(&mut self, id: StageId, to: State, from: impl FnOnce(&State) -> bool) {
        assert!(from(&self[id]), "a stage cannot go from {} to {}", name(&self[id]), name(&to));
        self.0[id.0] = to;
    }

    /// Something that a stage needs is done: `Waiting(n) → Waiting(n - 1)`; says whether its inputs are known now. A stage that does
    /// not wait (outside, skipped) stays where it is.
    pub fn need_done(&mut self, id: StageId) -> bool {
        let State::Waiting(left) = self[id] else { return false };
        self.set(id, State::Waiting(left.saturating_sub(1)), |_| left > 0);
        left == 1
    }

    /// A stage is keyed and has to run: `Waiting(0) → Ready`.
    pub fn ready(&mut self, id: StageId) {
        self.set(id, State::Ready, |from| matches!(from, State::Waiting(0)));
    }

    /// A stage has its tokens: `Ready → Running`.
    pub fn started(&mut self, id: StageId) {
        self.set(id, State::Running, |from| matches!(from, State::Ready | State::Skipped { .. }));
    }

    /// A result is there: `Waiting(0) → Done` (in the cache), `Ready → Done` (of the stage that is the same action), or
    /// `Running → Done`.
    pub fn done(&mut self, id: StageId, entry: Box<ActionEntry>, reused: bool, causes: Vec<String>) {
        let from = |from: &State| matches!(from, State::Waiting(0) | State::Ready | State::Running | State::Skipped { .. });
        self.set(id, State::Done { entry, reused, causes }, from);
    }

    /// A stage cannot be keyed, or its task failed: `Waiting(0) → Failed`, `Running → Failed`.
    pub fn failed(&mut self, id: StageId, message: String) {
        let from = |from: &State| matches!(from, State::Waiting(0) | State::Running | State::Skipped { .. });
        self.set(id, State::Failed { message }, from);
    }

    /// A result could not be committed: `Done → Failed`; so too where it failed or was skipped with a result on its way.
    pub fn lost(&mut self, id: StageId, message: String) {
        let from = |from: &State| matches!(from, State::Done { .. } | State::Failed { .. } | State::Skipped { .. });
        self.set(id, State::Failed { message }, from);
    }

    /// A stage is not tried, or was stopped: any state but `Outside → Skipped`; says whether it was not skipped before.
    pub fn skipped(&mut self, id: StageId, because: &str, withheld: bool) -> bool {
        if matches!(self[id], State::Outside | State::Skipped { .. }) {
            return false;
        }
        self.set(id, State::Skipped { because: because.into(), withheld }, |_| true);
        true
    }

    /// The stage that is the same action came to nothing, and this one is tried on its own: `Ready → Waiting(0)`.
    pub fn on_its_own(&mut self, id: StageId) {
        self.set(id, State::Waiting(0), |from| matches!(from, State::Ready | State::Skipped { .. }));
    }

    /// A task found that a result is not to be had, and waits: `Running → Waiting(1)`. Its maker runs here: `Done → Waiting(0)`, where
    /// another task did not ask for that before; says so.
    pub fn make_again(&mut self, maker: StageId, reader: StageId) -> bool {
        self.set(reader, State::Waiting(1), |from| matches!(from, State::Running | State::Skipped { .. }));
        if !matches!(self[maker], State::Done { .. }) {
            return false;
        }
        self.set(maker, State::Waiting(0), |from| matches!(from, State::Done { .. }));
        true
    }
}

/// A state's name, for who breaks a transition's precondition.
fn name(state: &State) -> &'static str {
    match state {
        State::Outside => "Outside",
        State::Waiting(_) => "Waiting",
        State::Ready => "Ready",
        State::Running => "Running",
        State::Done { .. } => "Done",
        State::Failed { .. } => "Failed",
        State::Skipped { .. } => "Skipped",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flow_cache::{ActionKey, ActionProvenance, Digest};

    use super::*;

    const A: StageId = StageId(0);
    const B: StageId = StageId(1);
    const C: StageId = StageId(2);

    fn entry() -> Box<ActionEntry> {
        let (key, provenance) = (ActionKey(Digest::of(b"key")), ActionProvenance::default());
        Box::new(ActionEntry { format: flow_cache::action::FORMAT, key, kind: "k".into(), outputs: BTreeMap::new(), provenance })
    }

    /// `b` needs `a`; `c` is outside.
    fn two() -> States {
        States::new(3, [(A, 0), (B, 1)])
    }

    #[test]
    fn a_stage_runs_and_what_needs_it_follows() {
        let mut states = two();
        assert!(states[A].is_open() && states[B].is_open() && !states[C].is_open());
        states.ready(A);
        states.started(A);
        states.done(A, entry(), false, vec!["never executed".into()]);
        assert!(states.entry(A).is_some() && states[A].word() == "executed" && !states[A].is_open());
        assert!(states.need_done(B) && !states.need_done(C), "the last need; outside stays outside");
        states.done(B, entry(), true, Vec::new());
        assert_eq!((states[B].word(), states[C].word()), ("reused", "outside"));
    }

    #[test]
    fn failing_skips_once_and_never_what_is_outside() {
        let mut states = two();
        states.ready(A);
        states.started(A);
        states.failed(A, "no".into());
        assert!(states.skipped(B, "stage `a` failed", false) && !states.skipped(B, "again", true) && !states.skipped(C, "x", false));
        assert!(matches!(&states[B], State::Skipped { because, withheld: false } if because == "stage `a` failed"));
        assert!(!states.need_done(B), "skipped stays skipped");
        assert_eq!((states[A].word(), states[B].word()), ("failed", "skipped"));
    }

    #[test]
    fn a_promise_that_is_not_kept_is_made_again_once() {
        let mut states = States::new(3, [(A, 0), (B, 1), (C, 1)]);
        states.done(A, entry(), true, Vec::new());
        for reader in [B, C] {
            assert!(states.need_done(reader));
            states.ready(reader);
            states.started(reader);
        }
        assert!(states.make_again(A, B) && !states.make_again(A, C), "one asks for it, both wait");
        states.ready(A);
        states.started(A);
        states.done(A, entry(), false, Vec::new());
        assert!(states.need_done(B) && states.need_done(C));
    }

    #[test]
    fn the_same_action_waits_and_is_tried_on_its_own() {
        let mut states = States::new(2, [(A, 0), (B, 0)]);
        states.ready(A);
        states.ready(B);
        states.started(A);
        states.failed(A, "no".into());
        states.on_its_own(B);
        states.ready(B);
        states.started(B);
        states.done(B, entry(), false, Vec::new());
        states.lost(B, "the disk is full".into());
        assert_eq!(states[B].word(), "failed");
    }

    #[test]
    #[should_panic(expected = "from Waiting to Running")]
    fn what_is_not_keyed_does_not_run() {
        two().started(A);
    }
}
