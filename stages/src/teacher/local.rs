//! `kd.collect` from a model that runs here.

use flow_engine::plugin::{StageError, TaskContext};
use flow_lm::format::load_with_tokenizer;
use flow_lm::infer::{Continuation, Decoding, Session, Window, windows_together};
use flow_lm::tokenizer::{TokenId, Tokenizer};

use super::collection::CollectParams;
use super::continuations::draw;
use super::gather::{Teaches, Wanted, meta, named};
use super::scoring::{Keep, Scorer};
use super::template::Template;
use crate::task;
use crate::traces::RawRow;

/// Collects from the model in the input `teacher`.
pub fn collect(p: &CollectParams, ctx: &TaskContext) -> Result<(), StageError> {
    let dir = ctx.input("teacher")?;
    let (teacher, tokenizer) = load_with_tokenizer(dir)?;
    let config = &teacher.config;
    let keep = Keep::of(p, (config.vocab, config.seq), &tokenizer, windows_together(config));
    let template = Template::of(&p.template, dir, &tokenizer)?;
    let wanted = Wanted::read((p, ctx), (&tokenizer, &template), keep)?;
    // One session scores and, where the teacher continues prompts itself, decodes: its weights are there once.
    let mut uses = keep.uses(&p.taus);
    if let Some((decoding, prompts)) = wanted.continues() {
        uses = decoding.uses(config, prompts, uses);
    }
    let session = Session::new(&task::device(ctx)?, config.clone(), &teacher.tensors, uses)?;
    let scorer = Scorer::new(session, &tokenizer, keep, &p.taus, p.seed);
    let meta = meta(p, &tokenizer, &template, keep, (named(config), task::digest(dir)?));
    wanted.collect(Local { p, ctx, tokenizer: &tokenizer, scorer }, &meta)
}

struct Local<'a> {
    p: &'a CollectParams,
    ctx: &'a TaskContext,
    tokenizer: &'a Tokenizer,
    scorer: Scorer,
}

impl Teaches for Local<'_> {
    fn draw(&mut self, prompts: Vec<Vec<TokenId>>, how: &Decoding) -> Result<Vec<Continuation>, StageError> {
        draw((self.p, self.ctx), self.scorer.session(), self.tokenizer, prompts, how)
    }

    fn score(&mut self, windows: &[Window<'_>], keys: &[(i64, i32)]) -> Result<Vec<Vec<RawRow>>, StageError> {
        self.scorer.score(windows, keys)
    }
}
