//! Answers that came and cannot be used: counted, named, and too many of them are the stage's end.

use std::collections::BTreeMap;

use flow_engine::plugin::{StageError, TaskContext};

use crate::teacher::http::ask::Questions;
use crate::teacher::http::shape::{Refusal, Refused};

/// The refused answers to a stage's questions.
pub struct Refusals<'a> {
    questions: &'a Questions<'a>,
    which: BTreeMap<usize, Refusal>,
}

impl<'a> Refusals<'a> {
    /// None yet.
    pub fn of(questions: &'a Questions<'a>) -> Self {
        Self { questions, which: BTreeMap::new() }
    }

    /// Counts one, and gives what stands in the place of its reason to finish.
    pub fn add(&mut self, n: usize, refusal: Refusal) -> String {
        let word = match refusal.kind {
            Refused::Filtered => "content_filter".into(),
            _ => format!("refused: {}", refusal.why),
        };
        self.which.insert(n, refusal);
        word
    }

    /// The first reasons, with whose they are.
    pub fn reasons(&self) -> Vec<String> {
        self.which.iter().take(3).map(|(n, r)| format!("{}: {}", (self.questions.label)(*n), r.why)).collect()
    }

    /// Says what was refused, and ends the stage where that is too much.
    pub fn tell(&self, ctx: &TaskContext) -> Result<(), StageError> {
        let count = |kind: Refused| self.which.values().filter(|r| r.kind == kind).count();
        ctx.metric("refused", self.which.len() as f64);
        ctx.metric("refused_for_reasoning", count(Refused::Reasoning) as f64);
        if self.which.is_empty() {
            return Ok(());
        }
        let why: BTreeMap<usize, String> = self.which.iter().map(|(n, r)| (*n, r.why.clone())).collect();
        if let Some(error) = self.questions.too_many_refused(&why) {
            return Err(error);
        }
        let kinds = [
            (Refused::Filtered, "filtered"),
            (Refused::Reasoning, "spent on reasoning"),
            (Refused::Unreadable, "not readable"),
            (Refused::Strange, "no answers"),
        ];
        let kinds: Vec<String> =
            kinds.into_iter().map(|(kind, word)| (count(kind), word)).filter(|c| c.0 > 0).map(|(n, word)| format!("{n} {word}")).collect();
        ctx.warn(format!(
            "{} of {} {} are refused ({}), kept, and not asked for again without `--reask`; {}",
            self.which.len(),
            self.questions.count,
            self.questions.unit,
            kinds.join(", "),
            self.reasons().join("; ")
        ));
        Ok(())
    }
}
