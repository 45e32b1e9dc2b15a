//! Windows of given text, scored by a server that can.

use std::collections::BTreeMap;
use std::sync::Arc;

use flow_engine::plugin::{StageError, TaskContext};

use super::refusals::Refusals;
use super::rows::row;
use crate::teacher::collection::CollectParams;
use crate::teacher::http::ask::{Asker, Questions};
use crate::teacher::http::preset::Scoring;
use crate::teacher::http::shape::{Call, Pieces, Refusal, Reply, Step, score_call};
use crate::traces::{Origin, RawRow, SequenceRow, TraceWriter};

fn label(window: usize) -> String {
    format!("window {window} of the text")
}

/// What is scored, and how.
pub struct Scores<'a> {
    pub p: &'a CollectParams,
    pub ctx: &'a TaskContext,
    pub asker: &'a Asker,
    pub scoring: Scoring,
    pub windows: &'a [Arc<str>],
    /// The number of the first window among the traces' prompts.
    pub first: i64,
}

/// Why a window has no rows.
#[derive(Clone)]
enum Without {
    Failed(String),
    Refused(Refusal),
}

type Came<T> = Result<T, Without>;

impl Scores<'_> {
    /// Asks, and writes the windows' rows; the first reasons why some have none.
    pub fn write(&self, writer: &mut TraceWriter<RawRow>) -> Result<Vec<String>, StageError> {
        let tokens: Vec<Came<Pieces>> = match self.scoring {
            Scoring::Steps => self.tokenized()?,
            _ => self.windows.iter().map(|_| Ok(Pieces::default())).collect(),
        };
        let count = |tokens: &Came<Pieces>| match (self.scoring, tokens) {
            (Scoring::Steps, Ok(pieces)) => pieces.after_first(),
            (Scoring::Steps, Err(_)) => 0,
            _ => 1,
        };
        let flat: Vec<(usize, usize)> = tokens.iter().enumerate().flat_map(|(w, t)| (0..count(t)).map(move |i| (w, i))).collect();
        let call = |(w, i): (usize, usize)| self.call(w, i, &tokens[w]);
        let questions = Questions {
            count: flat.len(),
            call: &|n| call(flat[n]),
            label: &|n| label(flat[n].0),
            max_failed: self.p.max_failed,
            max_refused: self.p.max_refused,
            unit: if self.scoring == Scoring::Steps { "tokens of the text" } else { "windows" },
        };
        let failed: BTreeMap<usize, String> = self.asker.ask(self.ctx, &questions)?.into_iter().map(|(n, why)| (flat[n].0, why)).collect();
        let first = |w| call((w, 0));
        let windows = self.questions(&first, &label);
        let mut refusals = Refusals::of(&windows);
        let mut reasons = Vec::new();
        for (w, of) in tokens.iter().enumerate() {
            let steps = match of {
                Ok(_) => self.steps((0..count(of)).map(|i| call((w, i))), failed.get(&w))?,
                Err(without) => Err(without.clone()),
            };
            let (rows, finish_reason) = match steps {
                Ok(steps) => (steps.iter().map(|s| row(s, self.p.top_k)).collect(), "text".into()),
                Err(Without::Refused(refusal)) => (Vec::new(), refusals.add(w, refusal)),
                Err(Without::Failed(why)) => {
                    reasons.push(format!("{}: {why}", label(w)));
                    (Vec::new(), format!("error: {why}"))
                }
            };
            writer.push(self.sequence(w, &rows, finish_reason), rows)?;
        }
        refusals.tell(self.ctx)?;
        reasons.truncate(3);
        reasons.extend(refusals.reasons());
        Ok(reasons)
    }

    fn sequence(&self, w: usize, rows: &[RawRow], finish_reason: String) -> SequenceRow {
        let window = &self.windows[w];
        let scored: usize = rows.iter().map(|r| r.sample_bytes.len()).sum();
        SequenceRow {
            prompt_idx: self.first + w as i64,
            sample_idx: 0,
            source: Origin::Text,
            // What no distribution came for stands before the first row.
            context: window.as_bytes()[..window.len().saturating_sub(scored)].to_vec(),
            context_ids: None,
            finish_reason,
        }
    }

    fn questions<'b>(&'b self, call: &'b dyn Fn(usize) -> Call, label: &'b dyn Fn(usize) -> String) -> Questions<'b> {
        let (max_failed, max_refused) = (self.p.max_failed, self.p.max_refused);
        Questions { count: self.windows.len(), call, label, max_failed, max_refused, unit: "windows" }
    }

    /// One of the requests that score a window: there is one, or one a token.
    fn call(&self, w: usize, i: usize, tokens: &Came<Pieces>) -> Call {
        match (score_call(self.asker.spec(), self.scoring, &self.windows[w]), tokens) {
            (Some(call), _) => call,
            (None, Ok(pieces)) if i < pieces.after_first() => pieces.next(self.asker.spec(), i),
            (None, _) => Pieces::call(&self.windows[w]),
        }
    }

    /// The steps of a window, from its first token on that has a distribution.
    fn steps(&self, calls: impl Iterator<Item = Call>, failed: Option<&String>) -> Result<Came<Vec<Step>>, StageError> {
        let mut all = Vec::new();
        for call in calls {
            match self.asker.answer(&call)? {
                Some((Reply { answer: Ok(answer), .. }, _)) => all.extend(answer.steps),
                Some((Reply { answer: Err(refusal), .. }, _)) => return Ok(Err(Without::Refused(refusal))),
                None => return Ok(Err(Without::Failed(failed.map_or("no answer was kept", String::as_str).into()))),
            }
        }
        let known = all.iter().position(|s| s.logprob.is_some() || !s.top.is_empty()).unwrap_or(all.len());
        Ok(Ok(all.split_off(known)))
    }

    /// The server's own tokens of each window.
    fn tokenized(&self) -> Result<Vec<Came<Pieces>>, StageError> {
        let call = |n: usize| Pieces::call(&self.windows[n]);
        let failed = self.asker.ask(self.ctx, &self.questions(&call, &label))?;
        let came = |w: usize| {
            Ok(match self.asker.answer(&call(w))? {
                Some((Reply { answer: Ok(answer), .. }, _)) => Ok(Pieces(answer.steps)),
                Some((Reply { answer: Err(refusal), .. }, _)) => Err(Without::Refused(refusal)),
                None => Err(Without::Failed(failed.get(&w).map_or("no answer was kept", String::as_str).into())),
            })
        };
        (0..self.windows.len()).map(came).collect()
    }
}
