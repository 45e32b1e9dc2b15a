//! Held-out quality: bits per byte, and KL and agreement with the teacher on its own distributions.

use flow_engine::plugin::{StageError, TaskContext};
use flow_shaders::device::Device;

use super::windows::{self, Read};
use crate::data::spread::spread_of;
use crate::data::{Lossy, faithful};
use crate::distil::{FirstToken, Projector, Rule};
use crate::teacher::method::Method;
use crate::teacher::scoring::{Keep, Scorer};
use crate::traces::{Origin, ProjectedRow, SequenceRow};
use flow_lm::format::Checkpoint;
use flow_lm::infer::{Session, Takes, Uses};
use flow_lm::infer::{Window, score_batch, windows_together};
use flow_lm::tokenizer::{Fidelity, TokenId, Tokenizer};

/// A text in the tokens of a model, to be scored.
pub struct Heldout {
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    /// Bytes of the text.
    pub bytes: usize,
    /// How it comes back from the tokens.
    pub fidelity: Fidelity,
    bos: TokenId,
}

impl Heldout {
    /// Encodes a text by a tokenizer that belongs to `whose`.
    pub fn of((tokenizer, whose): (&Tokenizer, &str), text: &str, lossy: Lossy, ctx: &TaskContext) -> Result<Self, StageError> {
        let all = Self::unjudged(tokenizer, text);
        faithful::judge(&all.fidelity, whose, lossy, ctx)?;
        Ok(all)
    }

    /// Encodes a text whose fidelity the caller judges.
    pub fn unjudged(tokenizer: &Tokenizer, text: &str) -> Self {
        let (tokens, fidelity) = tokenizer.encode_faithfully(text);
        Self { tokens, bytes: text.len(), fidelity, bos: tokenizer.bos() }
    }
}

/// Bits per byte of a text: every byte scored once, in windows of the model's length, the first token of each from BOS.
/// With `sliding`, windows overlap by half and only what has at least half a window before it is taken (but for the first).
pub fn bits_per_byte(lm: &mut Session, text: &Heldout, sliding: bool, ctx: &TaskContext) -> Result<f64, StageError> {
    let seq = lm.config().seq;
    let stride = if sliding { (seq / 2).max(1) } else { seq };
    bits_of(lm, text, &windows::strided(text.tokens.len(), seq, stride), ctx)
}

/// The same of given windows.
pub fn bits_of(lm: &mut Session, text: &Heldout, windows: &[Read], ctx: &TaskContext) -> Result<f64, StageError> {
    let seq = lm.config().seq;
    let batch = windows_together(lm.config());
    let mut nats = 0f64;
    for group in windows.chunks(batch) {
        if ctx.should_stop() {
            return Err(StageError::interrupted());
        }
        let views: Vec<Window<'_>> = group.iter().map(|w| Window { first: text.bos, targets: &text.tokens[w.tokens.clone()] }).collect();
        let mut b = score_batch(&views, batch, seq);
        for (i, w) in group.iter().enumerate() {
            b.labels[i * seq..i * seq + w.skip].fill(-1);
        }
        let nll = lm.nll(&b.ids, &b.mask, &b.labels)?;
        nats += nll.iter().map(|n| f64::from(*n)).sum::<f64>();
    }
    Ok(nats / std::f64::consts::LN_2 / text.bytes.max(1) as f64)
}

/// A session that scores windows of the model's own length.
pub fn scorer(device: &Device, model: &Checkpoint, targets: usize) -> Result<Session, StageError> {
    scorer_taking(device, model, targets, Takes::usual(&model.config))
}

/// As [`scorer`], whose linears take something else than the model was trained with.
pub fn scorer_taking(device: &Device, model: &Checkpoint, targets: usize, takes: Takes) -> Result<Session, StageError> {
    let uses = Uses { score: Some((windows_together(&model.config), model.config.seq)), targets, ..Uses::default() };
    Ok(Session::new(device, model.config.clone(), &model.tensors, uses.taking(takes))?)
}

/// Against the teacher, over the student tokens whose bytes align.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreement {
    /// KL(teacher ‖ student) over Top-K + Other, nats a student token.
    pub kl: f64,
    /// Share of tokens where both find the same token most likely.
    pub top1: f64,
    /// Tokens compared.
    pub tokens: u64,
}

/// Compares the student with the teacher's distributions on some `bytes` of a text, in windows spread over the whole of it,
/// projected onto the student's tokens. The text is in the teacher's.
pub fn agreement(
    device: &Device,
    teacher: (&Checkpoint, &Tokenizer),
    student: (&mut Session, &Tokenizer),
    (text, bytes): (&Heldout, usize),
    top_k: usize,
) -> Result<Agreement, StageError> {
    let (model, tokenizer) = teacher;
    let (lm, student_tokenizer) = student;
    let t_seq = model.config.seq;
    let batch = windows_together(&model.config);
    let keep = Keep { method: Method::TopK, top_k: top_k.min(model.config.vocab), draws: 0, taus: 0, batch, seq: t_seq };
    let session = Session::new(device, model.config.clone(), &model.tensors, keep.uses(&[]))?;
    let mut scorer = Scorer::new(session, tokenizer, keep, &[], 0);
    let first = FirstToken::new(student_tokenizer);
    let rule = if tokenizer.digest() == student_tokenizer.digest() { Rule::Same } else { Rule::ByteAligned };
    let projector = Projector::new(&first, rule, top_k, Some(tokenizer.eos().signed()));
    let all: Vec<Window<'_>> = text.tokens.chunks(t_seq).map(|targets| Window { first: text.bos, targets }).collect();
    let wanted = (all.len() as f64 * bytes as f64 / text.bytes.max(1) as f64).ceil() as usize;
    let windows = spread_of(all, Some(wanted), 0);
    let seq = lm.config().seq;
    let mut total = Agreement::default();
    for group in windows.chunks(batch.min(windows_together(lm.config()))) {
        let mut all: Vec<Vec<ProjectedRow>> = Vec::new();
        for rows in scorer.score(group, &[])? {
            let sequence = SequenceRow {
                prompt_idx: 0,
                sample_idx: 0,
                source: Origin::Text,
                context: Vec::new(),
                context_ids: None,
                finish_reason: String::new(),
            };
            let mut rows = projector.project(sequence, &rows).1;
            rows.truncate(seq);
            all.push(rows);
        }
        compare(lm, student_tokenizer, &all, top_k, &mut total)?;
    }
    let n = total.tokens.max(1) as f64;
    Ok(Agreement { kl: total.kl / n, top1: total.top1 / n, tokens: total.tokens })
}

fn compare(
    lm: &mut Session,
    tokenizer: &Tokenizer,
    rows: &[Vec<ProjectedRow>],
    top_k: usize,
    total: &mut Agreement,
) -> Result<(), StageError> {
    let (batch, seq) = (windows_together(lm.config()), lm.config().seq);
    let tokens: Vec<Vec<TokenId>> = rows.iter().map(|r| r.iter().map(|x| TokenId(x.sample_id as u32)).collect()).collect();
    let views: Vec<Window<'_>> = tokens.iter().map(|targets| Window { first: tokenizer.bos(), targets }).collect();
    let b = score_batch(&views, batch, seq);
    let mut ids = vec![-1; batch * seq * top_k];
    let mut logprobs = vec![0f32; batch * seq * top_k];
    let mut meta = vec![[0f32; 4]; batch * seq];
    for (i, rows) in rows.iter().enumerate() {
        for (t, row) in rows.iter().enumerate().filter(|(_, r)| r.kd_weight > 0.0) {
            let r = i * seq + t;
            ids[r * top_k..r * top_k + row.topk_ids.len()].copy_from_slice(&row.topk_ids);
            logprobs[r * top_k..r * top_k + row.topk_ids.len()].copy_from_slice(&row.topk_logprobs);
            meta[r] = [row.other_logprob, 1.0, 0.0, 0.0];
        }
    }
    let losses = lm.losses(&b.ids, &b.mask, &b.labels, &ids, &logprobs, &meta)?;
    let best = lm.best()?;
    for (r, _) in meta.iter().enumerate().filter(|(_, m)| m[1] > 0.0) {
        total.kl += f64::from(losses[r].0);
        total.top1 += f64::from(u8::from(ids[r * top_k] == best[r].signed()));
        total.tokens += 1;
    }
    Ok(())
}
