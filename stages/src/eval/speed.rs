//! Measured speed of a model: prefill of whole windows, decoding of one sequence; and what its session takes.

use std::time::Instant;

use flow_engine::plugin::StageError;
use flow_shaders::device::Device;

use super::dryrun;
use super::sides::decoding;
use crate::bench::figures::median;
use flow_lm::config::Bits;
use flow_lm::format::Checkpoint;
use flow_lm::infer::KvCache;
use flow_lm::infer::{Session, Uses};
use flow_lm::tokenizer::TokenId;

/// Medians over a few rounds.
#[derive(Clone, Debug, Default)]
pub struct Speed {
    /// Tokens per second, one sequence, greedy.
    pub decode: f64,
    /// Tokens per second, scoring one window.
    pub prefill: f64,
    /// How both were measured.
    pub how: String,
    /// Bytes that were planned for the session.
    pub planned_bytes: u64,
    /// Bytes that this process took for it, where they are counted.
    pub measured_bytes: Option<u64>,
}

/// Rounds that count, after one that does not.
const ROUNDS: usize = 5;
/// Tokens that are decoded in a round, at most.
const DECODED: usize = 64;

struct Bench {
    session: Session,
    measured_bytes: Option<u64>,
    seq: usize,
}

impl Bench {
    fn new(device: &Device, model: &Checkpoint, bits: Bits, cache: KvCache) -> Result<Self, StageError> {
        let seq = model.config.seq;
        let before = dryrun::memory(device);
        let uses = Uses { score: Some((1, seq)), ..decoding(model, cache) };
        let mut session = Session::new(device, model.config.clone(), &model.tensors, uses)?;
        session.set_bits(bits)?;
        let mut bench = Self { session, measured_bytes: None, seq };
        // What was never touched is not there yet.
        bench.prefill()?;
        bench.decode()?;
        bench.measured_bytes = before.zip(dryrun::memory(device)).map(|(before, after)| after.0.saturating_sub(before.0));
        Ok(bench)
    }
    fn decode(&mut self) -> Result<f64, StageError> {
        let n = self.seq.min(DECODED);
        let start = Instant::now();
        let mut id = vec![TokenId(0)];
        for t in 0..n {
            id = self.session.step(&id, &[t as u32])?;
        }
        Ok(n as f64 / start.elapsed().as_secs_f64())
    }
    fn prefill(&mut self) -> Result<f64, StageError> {
        let n = self.seq;
        let start = Instant::now();
        self.session.nll(&vec![TokenId(0); n], &vec![1; n], &vec![0; n])?;
        Ok(n as f64 / start.elapsed().as_secs_f64())
    }
}

/// Speeds of several models, measured in turn so that all meet the same machine; each is (model, activation bits).
pub fn compare(device: &Device, models: &[(&Checkpoint, Bits)], cache: KvCache) -> Result<Vec<Speed>, StageError> {
    let mut benches = models.iter().map(|(m, bits)| Bench::new(device, m, *bits, cache)).collect::<Result<Vec<_>, _>>()?;
    let mut times = vec![(Vec::new(), Vec::new()); benches.len()];
    for round in 0..=ROUNDS {
        for (bench, (decode, prefill)) in benches.iter_mut().zip(&mut times) {
            let (d, p) = (bench.decode()?, bench.prefill()?);
            if round > 0 {
                decode.push(d);
                prefill.push(p);
            }
        }
    }
    let turns = if benches.len() > 1 { "in turn with the other side, " } else { "" };
    let speed = |(b, (d, p)): (&Bench, (Vec<f64>, Vec<f64>))| Speed {
        decode: median(d),
        prefill: median(p),
        how: format!(
            "{turns}median of {ROUNDS} rounds: {} tokens of one sequence decoded greedily, one window of {} read; {} on {}",
            b.seq.min(DECODED),
            b.seq,
            cache.words(),
            device.name()
        ),
        planned_bytes: b.session.bytes(),
        measured_bytes: b.measured_bytes,
    };
    Ok(benches.iter().zip(times).map(speed).collect())
}

/// Speed of one model.
pub fn measure(device: &Device, model: &Checkpoint, bits: Bits, cache: KvCache) -> Result<Speed, StageError> {
    compare(device, &[(model, bits)], cache)?.pop().ok_or_else(|| StageError::new("nothing was measured"))
}
