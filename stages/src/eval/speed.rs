//! Measured speed and memory of a model: prefill of whole windows, decoding of one sequence.

use std::time::Instant;

use flow_engine::plugin::StageError;
use flow_shaders::device::Device;

use crate::lm::KvCache;
use crate::model::checkpoint::Checkpoint;
use crate::model::inference::{Inference, Uses};
use crate::train::device_error;

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
    decoder: Inference,
    scorer: Inference,
    seq: usize,
}

impl Bench {
    fn new(device: &Device, model: &Checkpoint, bits: u32, cache: KvCache) -> Result<Self, StageError> {
        let seq = model.config.seq;
        let make = |uses| Inference::new(device, model.config.clone(), &model.tensors, uses).map_err(device_error);
        let mut decoder = make(Uses { decode: Some((1, seq)), cache: cache.form(), ..Uses::default() })?;
        let mut scorer = make(Uses { score: Some((1, seq)), ..Uses::default() })?;
        decoder.set_bits(bits).map_err(device_error)?;
        scorer.set_bits(bits).map_err(device_error)?;
        Ok(Self { decoder, scorer, seq })
    }
    fn decode(&mut self) -> Result<f64, StageError> {
        let n = self.seq.min(64);
        let start = Instant::now();
        let mut id = vec![0];
        for t in 0..n {
            id = self.decoder.step(&id, &[t as u32], None).map_err(device_error)?;
        }
        Ok(n as f64 / start.elapsed().as_secs_f64())
    }
    fn prefill(&mut self) -> Result<f64, StageError> {
        let n = self.seq;
        let start = Instant::now();
        self.scorer.nll(&vec![0; n], &vec![1; n], &vec![0; n]).map_err(device_error)?;
        Ok(n as f64 / start.elapsed().as_secs_f64())
    }
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Speeds of several models, measured in turn so that all meet the same machine; each is (model, activation bits).
pub fn compare(device: &Device, models: &[(&Checkpoint, u32)], cache: KvCache) -> Result<Vec<Speed>, StageError> {
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
    Ok(benches.iter().zip(times).map(|(b, (d, p))| Speed { decode: median(d), prefill: median(p), bytes: b.decoder.bytes() }).collect())
}

/// Speed of one model.
pub fn measure(device: &Device, model: &Checkpoint, bits: u32, cache: KvCache) -> Result<Speed, StageError> {
    compare(device, &[(model, bits)], cache)?.pop().ok_or_else(|| StageError::new("nothing was measured"))
}
