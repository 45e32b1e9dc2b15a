//! Measured speed and memory of a model: prefill of whole windows, decoding of one sequence.

use std::time::Instant;

use flow_engine::plugin::StageError;
use flow_shaders::device::Device;

use crate::bench::figures::median;
use flow_lm::config::Bits;
use flow_lm::format::Checkpoint;
use flow_lm::infer::KvCache;
use flow_lm::infer::{Session, Uses};
use flow_lm::tokenizer::TokenId;

/// Medians over a few rounds.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Tokens per second, one sequence, greedy.
    pub decode: f64,
    /// Tokens per second, scoring one window.
    pub prefill: f64,
    /// Bytes allocated for weights, cache and activations of decoding.
    pub bytes: u64,
}

struct Bench {
    session: Session,
    /// Bytes of a session that only decodes.
    bytes: u64,
    seq: usize,
}

impl Bench {
    fn new(device: &Device, model: &Checkpoint, bits: Bits, cache: KvCache) -> Result<Self, StageError> {
        let seq = model.config.seq;
        let decoding = Uses { decode: Some((1, seq)), cache: cache.form(), ..Uses::default() }.for_tensors(&model.config, &model.tensors);
        let bytes = Session::planned_bytes(model.config.clone(), &decoding);
        let uses = Uses { score: Some((1, seq)), ..decoding };
        let mut session = Session::new(device, model.config.clone(), &model.tensors, uses)?;
        session.set_bits(bits)?;
        Ok(Self { session, bytes, seq })
    }
    fn decode(&mut self) -> Result<f64, StageError> {
        let n = self.seq.min(64);
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
    for round in 0..6 {
        for (bench, (decode, prefill)) in benches.iter_mut().zip(&mut times) {
            let (d, p) = (bench.decode()?, bench.prefill()?);
            if round > 0 {
                decode.push(d);
                prefill.push(p);
            }
        }
    }
    Ok(benches.iter().zip(times).map(|(b, (d, p))| Speed { decode: median(d), prefill: median(p), bytes: b.bytes }).collect())
}

/// Speed of one model.
pub fn measure(device: &Device, model: &Checkpoint, bits: Bits, cache: KvCache) -> Result<Speed, StageError> {
    compare(device, &[(model, bits)], cache)?.pop().ok_or_else(|| StageError::new("nothing was measured"))
}
