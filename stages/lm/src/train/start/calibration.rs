//! The text over which it is measured what flows through a model.

use flow_shaders::device::Device;

use crate::config::ModelConfig;
use crate::error::{Error, Result, ShapeError};
use crate::format::tensors::TensorSource;
use crate::infer::{LayerSquares, squares};
use crate::rng::Rng;
use crate::tokenizer::TokenId;

/// Windows of a text, as a model reads them.
pub struct Calibration<'a> {
    device: &'a Device,
    /// Inputs of each window; those of all but the last have the same length.
    windows: Vec<Vec<TokenId>>,
    seq: usize,
}

impl<'a> Calibration<'a> {
    /// At most `count` tokens of a text, in windows of `seq` tokens that `seed` chooses; each begins with BOS, as in training.
    pub fn of(device: &'a Device, text: &[TokenId], bos: TokenId, seq: usize, count: usize, seed: u64) -> Result<Self> {
        if text.is_empty() {
            let why = "the calibration text is empty".to_owned();
            return Err(Error::from(ShapeError::Start { why }).help("wire a text with something in it"));
        }
        let all: Vec<&[TokenId]> = text.chunks(seq).collect();
        let mut left = count;
        let mut windows = Vec::new();
        for i in Rng::new(seed, "calibration").permutation(all.len()) {
            let window = all[i as usize];
            let read = std::iter::once(bos).chain(window.iter().copied()).take(window.len().min(left));
            windows.push(read.collect::<Vec<_>>());
            left = left.saturating_sub(window.len());
            if left == 0 {
                break;
            }
        }
        Ok(Self { device, windows, seq })
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    /// Windows as they are read.
    pub fn windows(&self) -> &[Vec<TokenId>] {
        &self.windows
    }

    /// What flows into `o` and `down` of each layer of a model.
    pub(super) fn squares(&self, config: &ModelConfig, tensors: &impl TensorSource) -> Result<Vec<LayerSquares>> {
        squares(self.device, config, tensors, self.seq, &self.windows)
    }
}
