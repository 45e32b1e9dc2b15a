//! One model against another on a text, without a pipeline: what `flow eval` tells.
//!
//! Where both have the same tokenizer, the windows and the figures are those of `llama-perplexity --kl-divergence`: windows that do
//! not overlap, of which the second half is scored, so that every token that counts has half a window before it. Otherwise each
//! has its own tokens, and distributions are compared where bytes align.

use flow_engine::plugin::StageError;
use flow_lm::Model;
use flow_lm::config::ModelConfig;
use flow_lm::format::Checkpoint;
use flow_lm::infer::{Session, Takes, Uses, Window, score_batch};
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_shaders::device::Device;
use rayon::prelude::*;
use serde::Serialize;

use super::quality::{Heldout, agreement, scorer_taking};

/// Candidates of a distribution where tokenizers differ.
const CANDIDATES: usize = 50;

/// How models are compared.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Tokens of a window, at most.
    pub context: usize,
    /// What the model's linears take; as it was trained where not said.
    pub takes: Option<Takes>,
    /// What the other's take.
    pub against: Option<Takes>,
}

/// A model on the text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OfModel {
    /// Tokens that were scored.
    pub tokens: usize,
    /// Bytes of these.
    pub bytes: usize,
    /// Bits for each of these bytes.
    pub bits_per_byte: f64,
    /// e to the mean negative log-likelihood of a token.
    pub perplexity: f64,
}

/// Two models on the same text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The model.
    pub model: OfModel,
    /// What it is compared with.
    pub against: OfModel,
    /// Perplexity of the model over that of the other; for a byte where tokenizers differ.
    pub perplexity_ratio: f64,
    /// KL(other ‖ model), nats a token: mean, median, 99th percentile. Of Top-K + Other, and the mean alone, where tokenizers
    /// differ.
    pub kl: f64,
    /// See [`Self::kl`].
    pub kl_median: Option<f64>,
    /// See [`Self::kl`].
    pub kl_99: Option<f64>,
    /// Share of tokens where both find the same one most likely.
    pub top1_agreement: f64,
    /// Tokens whose distributions were compared.
    pub compared: u64,
    /// Whether both have the same tokenizer.
    pub same_tokenizer: bool,
}

/// What is scored of a text: where the tokens of a window begin, and how many there are; the first of each is only read.
struct Windows<'a> {
    tokens: Vec<TokenId>,
    tokenizer: &'a Tokenizer,
    len: usize,
}

impl<'a> Windows<'a> {
    fn of(text: &str, tokenizer: &'a Tokenizer, context: usize) -> Result<Self, StageError> {
        let (tokens, found) = tokenizer.encode_faithfully(text);
        if !found.is_lossless() {
            return Err(StageError::new(format!("the tokenizer does not give the text back: {found}")).help("compare on another text"));
        }
        let len = context.min(tokens.len());
        if len < 4 {
            return Err(StageError::new(format!("{} tokens are too few to compare on", tokens.len())).help("give a longer text"));
        }
        Ok(Self { tokens, tokenizer, len })
    }

    /// Tokens of every window; its first one is BOS for models that read one.
    fn all(&self) -> impl Iterator<Item = Vec<TokenId>> + '_ {
        let begins = self.tokenizer.roles().add_bos;
        self.tokens.chunks_exact(self.len).map(move |window| {
            let mut window = window.to_vec();
            if begins {
                window[0] = self.tokenizer.bos();
            }
            window
        })
    }

    /// The first token of a window that counts.
    fn first(&self) -> usize {
        self.len / 2 + 1
    }
}

fn fitting(takes: Option<Takes>, model: &Model) -> Result<Takes, StageError> {
    Takes::fitting(takes, &model.checkpoint.config).map_err(|e| StageError::new(format!("--{} {}", e.field, e.why)))
}

/// A model that tells all of its distributions.
struct Teller<'a> {
    session: Session,
    model: &'a Model,
    len: usize,
}

impl<'a> Teller<'a> {
    fn new(device: &Device, model: &'a Model, len: usize, takes: Option<Takes>) -> Result<Self, StageError> {
        let config = &model.checkpoint.config;
        if len > config.seq {
            return Err(
                StageError::new(format!("windows of {len} tokens: a model is made for {}", config.seq)).help("give less with --context")
            );
        }
        let takes = fitting(takes, model)?;
        let uses = Uses { score: Some((1, len - 1)), logits: true, ..Uses::default() }.taking(takes);
        let mut session = Session::new(device, config.clone(), &model.checkpoint.tensors, uses)?;
        session.set_bits(takes.bits())?;
        Ok(Self { session, model, len })
    }

    /// Log-probabilities `[len − first][vocab]` of the tokens of a window from `first` on.
    fn logprobs(&mut self, window: &[TokenId], first: usize) -> Result<Vec<Vec<f32>>, StageError> {
        let batch = score_batch(&[Window { first: window[0], targets: &window[1..] }], 1, self.len - 1);
        let logits = self.session.logits(&batch.ids, &batch.mask)?;
        let vocab = self.model.checkpoint.config.vocab;
        // What pads the vocabulary is no token of anyone's.
        let known = self.model.tokenizer.vocab_size().min(vocab);
        let rows = logits.par_chunks_exact(vocab).skip(first - 1).map(|row| log_softmax(&row[..known]));
        Ok(rows.collect())
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|z| libm::exp(f64::from(z - top))).sum();
    let lse = f64::from(top) + libm::log(sum);
    logits.iter().map(|z| (f64::from(*z) - lse) as f32).collect()
}

/// What was scored so far.
#[derive(Default)]
struct Sum {
    tokens: usize,
    bytes: usize,
    nats: f64,
}

impl Sum {
    fn add(&mut self, tokenizer: &Tokenizer, tokens: &[TokenId], rows: &[Vec<f32>]) {
        for (token, row) in tokens.iter().zip(rows) {
            self.tokens += 1;
            self.bytes += tokenizer.token_bytes(*token).len();
            self.nats -= f64::from(row[token.index()]);
        }
    }

    fn done(&self) -> OfModel {
        OfModel {
            tokens: self.tokens,
            bytes: self.bytes,
            bits_per_byte: self.nats / std::f64::consts::LN_2 / self.bytes.max(1) as f64,
            perplexity: libm::exp(self.nats / self.tokens.max(1) as f64),
        }
    }
}

/// One model on a text; `tell` is told how many windows of how many are done.
pub fn alone(device: &Device, model: &Model, text: &str, how: How, tell: &mut dyn FnMut(usize, usize)) -> Result<OfModel, StageError> {
    let windows = Windows::of(text, &model.tokenizer, how.context.min(model.checkpoint.config.seq))?;
    let (mut teller, mut sum) = (Teller::new(device, model, windows.len, how.takes)?, Sum::default());
    let count = windows.tokens.len() / windows.len;
    for (n, window) in windows.all().enumerate() {
        let rows = teller.logprobs(&window, windows.first())?;
        sum.add(&model.tokenizer, &window[windows.first()..], &rows);
        tell(n + 1, count);
    }
    Ok(sum.done())
}

/// A model against another on a text; `tell` is told how many windows of how many are done.
pub fn compare(
    device: &Device,
    (model, other): (&Model, &Model),
    text: &str,
    how: How,
    tell: &mut dyn FnMut(usize, usize),
) -> Result<Comparison, StageError> {
    let same = model.tokenizer.digest() == other.tokenizer.digest();
    if !same {
        return across(device, (model, other), text, how, tell);
    }
    let context = how.context.min(model.checkpoint.config.seq).min(other.checkpoint.config.seq);
    let windows = Windows::of(text, &model.tokenizer, context)?;
    let (mut ours, mut theirs) = (Sum::default(), Sum::default());
    let (mut a, mut b) = (Teller::new(device, model, windows.len, how.takes)?, Teller::new(device, other, windows.len, how.against)?);
    let (mut kls, mut alike) = (Vec::new(), 0usize);
    let count = windows.tokens.len() / windows.len;
    for (n, window) in windows.all().enumerate() {
        let (p, q) = (b.logprobs(&window, windows.first())?, a.logprobs(&window, windows.first())?);
        let tokens = &window[windows.first()..];
        ours.add(&model.tokenizer, tokens, &q);
        theirs.add(&other.tokenizer, tokens, &p);
        let of_rows: Vec<(f64, bool)> = p.par_iter().zip(&q).map(|(p, q)| (kl(p, q), best(p) == best(q))).collect();
        alike += of_rows.iter().filter(|r| r.1).count();
        kls.extend(of_rows.into_iter().map(|r| r.0));
        tell(n + 1, count);
    }
    let (model, against) = (ours.done(), theirs.done());
    let compared = kls.len();
    let mean = kls.iter().sum::<f64>() / compared.max(1) as f64;
    kls.sort_by(f64::total_cmp);
    let at = |share: f64| Some(kls[((compared - 1) as f64 * share).round() as usize]);
    Ok(Comparison {
        perplexity_ratio: model.perplexity / against.perplexity,
        model,
        against,
        kl: mean,
        kl_median: at(0.5),
        kl_99: at(0.99),
        top1_agreement: alike as f64 / compared.max(1) as f64,
        compared: compared as u64,
        same_tokenizer: true,
    })
}

/// Two models with tokenizers of their own.
fn across(
    device: &Device,
    (model, other): (&Model, &Model),
    text: &str,
    how: How,
    tell: &mut dyn FnMut(usize, usize),
) -> Result<Comparison, StageError> {
    // Distributions of both are met in windows of the model's own length, or of what was asked for.
    let short = |m: &Model| Checkpoint {
        config: ModelConfig { seq: m.checkpoint.config.seq.min(how.context), ..m.checkpoint.config.clone() },
        ..m.checkpoint.clone()
    };
    if how.against.is_some_and(|t| t != Takes::usual(&other.checkpoint.config)) {
        return Err(StageError::new("--against-activations: models with different tokenizers are compared as the other was trained")
            .help("leave it out"));
    }
    let (ours_short, theirs_short) = (short(model), short(other));
    let ours = alone(device, model, text, how, tell)?;
    let theirs = alone(device, other, text, How { takes: how.against, ..how }, tell)?;
    let top_k = CANDIDATES.min(model.tokenizer.vocab_size());
    let takes = fitting(how.takes, model)?;
    let mut session = scorer_taking(device, &ours_short, top_k, takes)?;
    session.set_bits(takes.bits())?;
    let read = Heldout::unjudged(&other.tokenizer, text);
    let agrees = agreement(device, (&theirs_short, &other.tokenizer), (&mut session, &model.tokenizer), (&read, read.bytes), top_k)?;
    Ok(Comparison {
        perplexity_ratio: libm::exp2(ours.bits_per_byte - theirs.bits_per_byte),
        model: ours,
        against: theirs,
        kl: agrees.kl,
        kl_median: None,
        kl_99: None,
        top1_agreement: agrees.top1,
        compared: agrees.tokens,
        same_tokenizer: false,
    })
}

/// KL(p ‖ q) of log-probabilities, nats.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    p.iter().zip(q).map(|(p, q)| libm::exp(f64::from(*p)) * (f64::from(*p) - f64::from(*q))).sum()
}

fn best(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_by_hand() {
        let (p, q) = (log_softmax(&[0.0, 0.0]), log_softmax(&[0.0, libm::logf(3.0)]));
        // ½ ln(½ / ¼) + ½ ln(½ / ¾)
        assert!((kl(&p, &q) - 0.5 * (2.0f64.ln() + (2.0f64 / 3.0).ln())).abs() < 1e-7);
        assert!(kl(&p, &p).abs() < 1e-12 && best(&p) == 0 && best(&q) == 1);
    }
}
