//! Linears: what they take, as floats or as codes, and their products.

use flow_shaders::kernels::act_quant::blocks::{ACT_QUANT_BLOCKS, ACT_ROUND_BLOCKS, BLOCK};
use flow_shaders::kernels::act_quant::values::ACT_VALUES;
use flow_shaders::kernels::ternary_blocks::{TERNARY_BLOCKS_GEMM, TERNARY_BLOCKS_GEMV};
use flow_shaders::kernels::{act_quant, gemm, norm_quant, ternary_blocks, ternary_gemm};
use flow_shaders::program::{BufferId, ListId};

use super::declare::{Graph, Packed};
use super::tape::Act;
use crate::config::Activation;

impl Graph {
    /// Where the codes of a ternary linear's input go: words of a packed row, and the buffers.
    fn codes_of(&mut self, rows: usize, cols: usize) -> (u32, BufferId, BufferId) {
        let words = 4 * cols.div_ceil(16);
        (words as u32, self.program.transient("act.q", rows * words), self.program.transient("act.scales", 2 * rows))
    }

    /// Quantises what the linears `takers` take; those with float activations take it as it is, or in blocks.
    pub(super) fn act(&mut self, list: ListId, values: BufferId, rows: usize, takers: &[&str]) -> Act {
        if self.block8 {
            return self.blocks(list, values, rows, takers);
        }
        if !self.config.quantises() {
            return Act::Values(values);
        }
        let cols = self.program.words(values) / rows;
        let (words, q, scales) = self.codes_of(rows, cols);
        let shape = act_quant::Shape { rows: rows as u32, cols: cols as u32, words };
        self.program.push(list, &act_quant::ACT_QUANT, &[values, self.inner, q, scales], &shape);
        Act::Codes { q, scales }
    }

    /// Values in blocks of 64, in the forms that `takers` need.
    pub(super) fn blocks(&mut self, list: ListId, values: BufferId, rows: usize, takers: &[&str]) -> Act {
        let packed = |name: &&str| self.tensors[self.tensor(name)].packed.is_some();
        let (some, all) = (takers.iter().any(packed), takers.iter().all(packed));
        let codes = some.then(|| {
            let cols = self.program.words(values) / rows;
            let words = 4 * cols.div_ceil(16);
            let (q, steps) =
                (self.program.transient("act.q", rows * words), self.program.transient("act.steps", rows * cols.div_ceil(BLOCK)));
            let shape = act_quant::Shape { rows: rows as u32, cols: cols as u32, words: words as u32 };
            self.program.push(list, &ACT_QUANT_BLOCKS, &[values, q, steps], &shape);
            (q, steps)
        });
        let values = (!all).then(|| self.rounded(list, values, rows));
        Act::Blocks { codes, values }
    }

    /// Values rounded to int8 in blocks of 64.
    pub(super) fn rounded(&mut self, list: ListId, values: BufferId, rows: usize) -> BufferId {
        let n = self.program.words(values);
        let y = self.program.transient("act.rounded", n);
        let shape = act_quant::Shape { rows: rows as u32, cols: (n / rows) as u32, words: 0 };
        self.program.push(list, &ACT_ROUND_BLOCKS, &[values, y], &shape);
        y
    }

    /// The normed input of linears, quantised by `scalars`, and rstd.
    pub(super) fn normed(
        &mut self,
        list: ListId,
        x: BufferId,
        weight: &str,
        rows: usize,
        scalars: BufferId,
        takers: &[&str],
    ) -> (Act, BufferId) {
        if !self.config.quantises() {
            let (y, rstd) = self.norm(list, x, weight, rows);
            let input = if self.block8 { self.blocks(list, y, rows, takers) } else { Act::Values(y) };
            return (input, rstd);
        }
        let cols = self.program.words(x) / rows;
        let (shape, q, scales, rstd) = self.fused(rows, cols, weight);
        self.program.push(list, &norm_quant::NORM_QUANT, &[x, self.values(weight), scalars, q, scales, rstd], &shape);
        (Act::Codes { q, scales }, rstd)
    }

    /// Shape and outputs of norm and quantisation in one.
    pub(super) fn fused(&mut self, rows: usize, cols: usize, weight: &str) -> (norm_quant::Shape, BufferId, BufferId, BufferId) {
        let (words, q, scales) = self.codes_of(rows, cols);
        let rstd = self.program.transient(format!("{weight}.rstd"), rows);
        let act = u32::from(self.config.activation == Activation::Relu2);
        (norm_quant::Shape { rows: rows as u32, cols: cols as u32, words, eps: self.config.norm_eps, act }, q, scales, rstd)
    }

    /// `y (+)= act · Wᵀ`.
    pub(crate) fn linear(&mut self, list: ListId, act: Act, weight: &str, rows: usize, y: BufferId, add: bool) {
        let spec = &self.tensors[self.tensor(weight)].spec;
        let (outs, cols, add) = (spec.shape[0] as u32, spec.shape[1] as u32, u32::from(add));
        let (m, packed) = (rows as u32, self.codes(weight));
        let blocks = |groups: usize, by_row| ternary_blocks::Shape { rows: m, outs, cols, add, groups: groups as u32, by_row };
        let in_blocks = if self.decoding { &TERNARY_BLOCKS_GEMV } else { &TERNARY_BLOCKS_GEMM };
        match (act, packed) {
            (Act::Codes { q, scales }, Some(Packed { codes, scale, groups: 1 })) => {
                let shape = ternary_gemm::Shape { rows: m, outs, cols, add };
                self.program.push(list, ternary_gemm::kernel(rows), &[q, scales, codes, scale, y], &shape);
            }
            (Act::Codes { q, scales }, Some(Packed { codes, scale, groups })) => {
                self.program.push(list, in_blocks, &[q, scales, codes, scale, y], &blocks(groups, 1));
            }
            (Act::Blocks { codes: Some((q, steps)), .. }, Some(Packed { codes, scale, groups })) => {
                self.program.push(list, in_blocks, &[q, steps, codes, scale, y], &blocks(groups, 0));
            }
            (Act::Values(x), Some(Packed { codes, scale, groups })) => {
                let shape = gemm::TernaryShape::new(gemm::Shape { m, n: outs, k: cols, add, symmetric: 0 }, groups);
                let kernel = if self.decoding { &gemm::GEMV_NT_TERNARY } else { &gemm::GEMM_NT_TERNARY };
                self.program.push(list, kernel, &[x, codes, scale, y], &shape);
            }
            (Act::Values(x) | Act::Blocks { values: Some(x), .. }, None) => self.float_product(list, x, weight, (m, add), y),
            (Act::Codes { q, scales }, None) => {
                let x = self.values_of(list, (q, scales), rows, cols as usize);
                self.float_product(list, x, weight, (m, add), y);
            }
            (Act::Blocks { .. }, _) => unreachable!("`{weight}` is no taker of these activations"),
        }
    }

    /// `y (+)= x · Wᵀ` with weights that are no codes.
    fn float_product(&mut self, list: ListId, x: BufferId, weight: &str, (m, add): (u32, u32), y: BufferId) {
        let tensor = &self.tensors[self.tensor(weight)];
        let (n, k) = (tensor.spec.shape[0] as u32, tensor.spec.shape[1] as u32);
        let shape = gemm::Shape { m, n, k, add, symmetric: 0 };
        let (w, kernel) = match (tensor.half, self.decoding) {
            (Some(half), true) => (half, &gemm::GEMV_NT_HALF),
            (Some(half), false) => (half, &gemm::GEMM_NT_HALF),
            (None, true) => (self.values(weight), &gemm::GEMV_NT),
            (None, false) => (self.values(weight), &gemm::GEMM_NT),
        };
        self.program.push(list, kernel, &[x, w, y], &shape);
    }

    /// What quantised rows stand for, for weights that are no codes.
    fn values_of(&mut self, list: ListId, (q, scales): (BufferId, BufferId), rows: usize, cols: usize) -> BufferId {
        if let Some((_, x)) = self.unpacked.filter(|(of, _)| *of == q) {
            return x;
        }
        let x = self.program.transient("act.values", rows * cols);
        let words = 4 * cols.div_ceil(16) as u32;
        self.program.push(list, &ACT_VALUES, &[q, scales, x], &act_quant::Shape { rows: rows as u32, cols: cols as u32, words });
        self.unpacked = Some((q, x));
        x
    }
}
