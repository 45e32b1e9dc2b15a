//! `kd.collect` from a model that `flow serve` serves: what a model that runs here would give, asked over the network. Every
//! answer is kept, so that nothing is asked twice.

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::infer::{Continuation, Decoding, Window};
use flow_lm::tokenizer::TokenId;
use serde_json::Value;

use super::collection::CollectParams;
use super::gather::{Teaches, Wanted, meta};
use super::hosted::short;
use super::http::ask::{Asker, Questions};
use super::http::probe::probe;
use super::http::shape::served::{self, Drawing};
use super::http::shape::{Call, Reply};
use super::method::Method;
use super::scoring::{Keep, Rows};
use super::template::Template;
use crate::traces::RawRow;

/// Windows that are asked for together; the teacher's `concurrency` says how many at a time.
const TOGETHER: usize = 64;

/// Collects from the served model.
pub fn collect(p: &CollectParams, ctx: &TaskContext, asker: &Asker) -> Result<(), StageError> {
    if p.method != Method::TopK {
        return Err(StageError::new("a served model tells its most likely tokens and their tails: no other `method`")
            .help("leave `method` out, or take the model's file as the teacher (`teacher.file`)"));
    }
    probe(asker, ctx)?;
    let named = asker.spec().named();
    let answers = Answers { asker, ctx };
    let value = answers.values(&[served::model_call(asker.spec())], "models")?.remove(0);
    let model = served::model(&value).map_err(|e| StageError::new(format!("{named}: {e}")))?;
    let tokenizer = model.tokenizer().map_err(|e| StageError::new(format!("{named}: its tokenizer: {e}")))?;
    let Some(window) = model.window else {
        return Err(StageError::new(format!("{named} does not score given text")).help("start it with `flow serve --score`"));
    };
    if p.top_k > model.candidates {
        return Err(StageError::new(format!("`top_k: {}`, and the server tells {} candidates at most", p.top_k, model.candidates)));
    }
    let keep = Keep::of(p, (model.vocab, window), &tokenizer, TOGETHER);
    let template = Template::served(&p.template, model.chat_template, &tokenizer)?;
    let wanted = Wanted::read((p, ctx), (&tokenizer, &template), keep)?;
    let meta = meta(p, &tokenizer, &template, keep, (named, asker.spec().digest()));
    let rows = Rows::new(&tokenizer, model.vocab, keep, &p.taus);
    wanted.collect(Served { p, answers, digest: tokenizer.digest(), rows, keep }, &meta)
}

/// Answers of the server, kept or asked for.
struct Answers<'a> {
    asker: &'a Asker,
    ctx: &'a TaskContext,
}

impl Answers<'_> {
    /// The answers to all of these calls.
    fn values(&self, calls: &[Call], unit: &str) -> Result<Vec<Value>, StageError> {
        let label = |n: usize| format!("{unit} {n}");
        // A row that is missing would be one that another teacher gives.
        let questions =
            Questions { count: calls.len(), call: &|n| calls[n].clone(), label: &label, max_failed: 0.0, max_refused: 0.0, unit };
        self.asker.ask(self.ctx, &questions)?;
        let value = |call: &Call| match self.asker.answer(call)? {
            Some((Reply { answer: Ok(answer), .. }, _)) => Ok(answer.served),
            Some((Reply { answer: Err(refusal), .. }, _)) => Err(StageError::new(refusal.why)),
            None => Err(StageError::new("an answer was not kept").help("run again")),
        };
        calls.iter().map(value).collect()
    }
}

struct Served<'a> {
    p: &'a CollectParams,
    answers: Answers<'a>,
    /// Of the tokenizer whose ids are sent.
    digest: String,
    rows: Rows,
    keep: Keep,
}

impl Teaches for Served<'_> {
    fn draw(&mut self, prompts: Vec<Vec<TokenId>>, how: &Decoding) -> Result<Vec<Continuation>, StageError> {
        let room = how.room(self.keep.seq);
        let drawing =
            Drawing { tokenizer: &self.digest, temperature: short(self.p.temperature), top_p: short(self.p.top_p), seed: self.p.seed };
        let one = |(draw, prompt): (usize, &Vec<TokenId>)| {
            served::draw_call(self.answers.asker.spec(), prompt, draw, &drawing, how.max_tokens.min(room + 1 - prompt.len()))
        };
        let calls: Vec<Call> = prompts.iter().enumerate().map(one).collect();
        Ok(self.answers.values(&calls, "prompts")?.iter().map(served::continuation).collect())
    }

    fn score(&mut self, windows: &[Window<'_>], _: &[(i64, i32)]) -> Result<Vec<Vec<RawRow>>, StageError> {
        let (k, taus) = (self.keep.top_k, &self.p.taus[..self.keep.taus]);
        let tokens = |w: &Window<'_>| [&[w.first], w.targets].concat();
        let call = |w: &Window<'_>| served::rows_call(self.answers.asker.spec(), &tokens(w), (k, taus), &self.digest);
        // A window of one token has no row.
        let asked: Vec<&Window<'_>> = windows.iter().filter(|w| !w.targets.is_empty()).collect();
        let calls: Vec<Call> = asked.iter().map(|w| call(w)).collect();
        let mut values = self.answers.values(&calls, "windows")?.into_iter();
        let rows = |w: &Window<'_>| {
            if w.targets.is_empty() {
                return Some(Vec::new());
            }
            let top = served::rows(&values.next()?, (w.targets.len(), k, 1 + taus.len()))?;
            Some(self.rows.of(&top, 0, w.targets))
        };
        let all: Option<Vec<Vec<RawRow>>> = windows.iter().map(rows).collect();
        all.ok_or_else(|| StageError::new("an answer holds other rows than were asked for"))
    }
}
