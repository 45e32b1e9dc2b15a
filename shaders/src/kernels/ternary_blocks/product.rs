//! Operands of a product as its paths see them.

use crate::kernels::act_quant::RowScale;
use crate::kernels::halves::rows::to_floats;
use crate::kernels::ternary::groups::Scales;

/// Steps of the activations.
#[derive(Clone, Copy)]
pub(super) enum Steps<'a> {
    /// Of each row.
    Rows(&'a [RowScale]),
    /// Of every 64 columns of each row.
    Blocks(&'a [f32]),
}

/// Operands of one product.
pub(super) struct Product<'a> {
    pub rows: usize,
    pub outs: usize,
    /// Words of a row of codes.
    pub words: usize,
    pub add: bool,
    /// `[rows, 4·words]`.
    pub q: &'a [u32],
    pub steps: Steps<'a>,
    /// `[outs, words]`.
    pub codes: &'a [u32],
    pub scales: Scales<'a>,
}

/// Groups of 64 weights in so many words of 16.
pub(super) fn groups(words: usize) -> usize {
    words.div_ceil(4)
}

impl Product<'_> {
    /// Scales of the outputs from `first` on, `width` floats for each: one for every group, 0 past the last.
    pub fn scales_of(&self, first: usize, out: &mut [f32], width: usize) {
        match self.scales {
            Scales::Rows(all) => out.chunks_exact_mut(width).zip(&all[first..]).for_each(|(out, s)| out.fill(*s)),
            Scales::Groups { halves, stride } if stride == width => to_floats(&halves[first * stride..][..out.len()], out),
            Scales::Groups { halves, stride } => {
                for (out, halves) in out.chunks_exact_mut(width).zip(halves[first * stride..].chunks_exact(stride)) {
                    let n = stride.min(width);
                    to_floats(&halves[..n], &mut out[..n]);
                    out[n..].fill(0.0);
                }
            }
        }
    }
    /// Asks for the scales of outputs that come soon.
    pub fn fetch_scales(&self, outputs: std::ops::Range<usize>) {
        if let Scales::Groups { halves, stride } = self.scales {
            let part = &halves[(outputs.start * stride).min(halves.len())..(outputs.end * stride).min(halves.len())];
            // A cache line of float16.
            part.iter().step_by(32).for_each(|h| crate::simd::fetch(h));
        }
    }
    /// Codes of an output.
    pub fn row(&self, o: usize) -> &[u32] {
        &self.codes[o * self.words..(o + 1) * self.words]
    }
    /// What is stored for the float sum of a row.
    pub fn finish(&self, r: usize, sum: f32, old: f32) -> f32 {
        let value = match self.steps {
            Steps::Rows(all) => sum * all[r].step,
            Steps::Blocks(_) => sum,
        };
        if self.add { old + value } else { value }
    }
}
