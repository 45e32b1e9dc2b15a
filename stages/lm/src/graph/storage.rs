//! What a training step keeps, as float16: activations from the forward to the backward pass, gradients of linears until
//! the update. Arithmetic stays in float32. Gradients are small, so that the loss is multiplied by a scale that follows what
//! float16 can hold.

use flow_shaders::kernels::halves;
use flow_shaders::program::{BufferId, ListId};

use super::declare::Graph;
use super::tape::{BlockTape, Keep, KeptBlock, Storage};
use crate::config::{Role, Weights};

impl Graph {
    /// Whether the gradient of a tensor is stored as float16. The threshold rule derives the gradient of its scales from
    /// that of its linears in place, in float32.
    pub(crate) fn is_half_gradient(&self, role: Role, storage: Storage) -> bool {
        storage == Storage::Float16 && role == Role::Linear && self.config.weights != Weights::Threshold
    }

    /// Puts a block's activations away after its forward pass.
    pub(crate) fn put_away(&mut self, list: ListId, mut tape: BlockTape, keep: Keep) -> KeptBlock {
        let mut floats = Vec::new();
        if keep.storage == Storage::Float16 {
            // Without SubLN the input of a linear is the activation itself.
            let mut done: Vec<(BufferId, BufferId)> = Vec::new();
            for buffer in tape.activations(keep.inputs_only) {
                let n = self.program.words(*buffer);
                floats.push(n);
                let known = done.iter().find(|(from, _)| from == buffer).map(|(_, to)| *to);
                let half = known.unwrap_or_else(|| {
                    let half = self.program.transient("kept", n.div_ceil(2));
                    self.pack_half(list, *buffer, half, n, false);
                    half
                });
                done.push((*buffer, half));
                *buffer = half;
            }
        }
        KeptBlock { tape, floats }
    }

    /// A block's activations as floats again, for its backward pass.
    pub(crate) fn take_back(&mut self, list: ListId, kept: &KeptBlock, keep: Keep) -> BlockTape {
        let mut tape = kept.tape.clone();
        let mut done: Vec<(BufferId, BufferId)> = Vec::new();
        for (buffer, n) in tape.activations(keep.inputs_only).into_iter().zip(&kept.floats) {
            let known = done.iter().find(|(from, _)| from == buffer).map(|(_, to)| *to);
            let float = known.unwrap_or_else(|| self.unpack_half(list, *buffer, *n));
            done.push((*buffer, float));
            *buffer = float;
        }
        tape
    }

    /// `y (+)= x` as float16.
    pub(crate) fn pack_half(&mut self, list: ListId, x: BufferId, y: BufferId, n: usize, add: bool) {
        self.program.push(list, &halves::PACK_HALF, &[x, y], &halves::Shape { n: n as u32, add: u32::from(add) });
    }

    /// float16 as floats, in a buffer of their own.
    pub(crate) fn unpack_half(&mut self, list: ListId, x: BufferId, n: usize) -> BufferId {
        let y = self.program.transient("unpacked", n);
        self.program.push(list, &halves::UNPACK_HALF, &[x, y], &halves::Shape { n: n as u32, add: 0 });
        y
    }
}

/// A loss scale that follows the gradients (mixed precision training, arXiv 1710.03740): an overflow skips the step and
/// halves it, a run of steps without one doubles it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// The factor, a power of two.
    pub factor: f32,
    /// Steps since the last change.
    pub good: u32,
    /// Steps after which the scale is doubled.
    pub interval: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: 65_536.0, good: 0, interval: 2000 }
    }
}

impl LossScale {
    /// After a step.
    pub fn update(&mut self, overflowed: bool) {
        if overflowed {
            (self.factor, self.good) = (self.factor * 0.5, 0);
            return;
        }
        self.good += 1;
        if self.good == self.interval {
            let doubled = self.factor * 2.0;
            self.factor = if doubled.is_finite() { doubled } else { self.factor };
            self.good = 0;
        }
    }
}
