//! The forward pass as operations.

use flow_shaders::kernels::attention::Cached;
use flow_shaders::kernels::{
    act_quant, attention, elementwise, embed, gated, gemm, kv_store, norm_quant, rmsnorm, rope, ternary, ternary_gemm,
};
use flow_shaders::program::{BufferId, ListId};

use super::declare::Graph;
use super::tape::{Act, Batch, BlockTape, Cache, Keep, KeptBlock, Tape};
use crate::config::{Activation, Weights};

impl Graph {
    /// Ternarises the masters into their codes.
    pub fn ternarise(&mut self, list: ListId) {
        let rule = u32::from(self.config.weights == Weights::Threshold);
        let linears: Vec<_> = self.tensors.iter().filter_map(|t| Some((t.spec.clone(), t.master?, t.packed?))).collect();
        let all: Vec<_> = linears
            .into_iter()
            .map(|(spec, w, packed)| {
                let (rows, cols) = (spec.shape[0], spec.shape[1]);
                let shape = ternary::Shape { rows: rows as u32, cols: cols as u32, rule };
                (shape, w, packed, self.program.transient("partial", rows), self.program.transient("mean", 1))
            })
            .collect();
        // Step by step for all of them, so that those of a step run at the same time.
        for (shape, w, _, partial, _) in &all {
            self.program.push(list, &ternary::ROW_ABS_SUM, &[*w, *partial], shape);
        }
        for (shape, _, _, partial, mean) in &all {
            self.program.push(list, &ternary::ABS_MEAN, &[*partial, *mean], shape);
        }
        for (shape, w, (codes, scale), _, mean) in &all {
            self.program.push(list, &ternary::TERNARISE, &[*w, *mean, *codes, *scale], shape);
        }
    }

    pub(crate) fn norm(&mut self, list: ListId, x: BufferId, weight: &str, rows: usize) -> (BufferId, BufferId) {
        let cols = self.program.words(x) / rows;
        let y = self.program.transient(format!("{weight}.out"), rows * cols);
        let rstd = self.program.transient(format!("{weight}.rstd"), rows);
        let shape = rmsnorm::Shape { rows: rows as u32, cols: cols as u32, eps: self.config.norm_eps, add: 0 };
        let g = self.values(weight);
        self.program.push(list, &rmsnorm::RMSNORM, &[x, g, y, rstd], &shape);
        (y, rstd)
    }

    /// Where the codes of a ternary linear's input go: words of a packed row, and the buffers.
    fn codes_of(&mut self, rows: usize, cols: usize) -> (u32, BufferId, BufferId) {
        let words = 4 * cols.div_ceil(16);
        (words as u32, self.program.transient("act.q", rows * words), self.program.transient("act.scales", 2 * rows))
    }

    /// Quantises what `o` or `down` takes; full-precision ones take it as it is.
    fn act(&mut self, list: ListId, values: BufferId, rows: usize) -> Act {
        if self.config.weights == Weights::Float {
            return Act::Values(values);
        }
        let cols = self.program.words(values) / rows;
        let (words, q, scales) = self.codes_of(rows, cols);
        let shape = act_quant::Shape { rows: rows as u32, cols: cols as u32, words };
        self.program.push(list, &act_quant::ACT_QUANT, &[values, self.inner, q, scales], &shape);
        Act::Codes { q, scales }
    }

    /// The normed input of linears, quantised by `scalars`, and rstd.
    fn normed(&mut self, list: ListId, x: BufferId, weight: &str, rows: usize, scalars: BufferId) -> (Act, BufferId) {
        if self.config.weights == Weights::Float {
            let (y, rstd) = self.norm(list, x, weight, rows);
            return (Act::Values(y), rstd);
        }
        let cols = self.program.words(x) / rows;
        let (shape, q, scales, rstd) = self.fused(rows, cols, weight);
        self.program.push(list, &norm_quant::NORM_QUANT, &[x, self.values(weight), scalars, q, scales, rstd], &shape);
        (Act::Codes { q, scales }, rstd)
    }

    /// Shape and outputs of norm and quantisation in one.
    fn fused(&mut self, rows: usize, cols: usize, weight: &str) -> (norm_quant::Shape, BufferId, BufferId, BufferId) {
        let (words, q, scales) = self.codes_of(rows, cols);
        let rstd = self.program.transient(format!("{weight}.rstd"), rows);
        let act = u32::from(self.config.activation == Activation::Relu2);
        (norm_quant::Shape { rows: rows as u32, cols: cols as u32, words, eps: self.config.norm_eps, act }, q, scales, rstd)
    }

    /// The input of `down`: (gated activation, rstd of its SubLN, what the linear takes).
    fn gated(&mut self, list: ListId, l: usize, gate: BufferId, up: BufferId, rows: usize) -> (BufferId, Option<BufferId>, Act) {
        let weight = format!("layers.{l}.mlp_sub_norm");
        let n = self.program.words(gate);
        let act = self.program.transient(format!("layers.{l}.act"), n);
        if self.config.sub_norm && self.config.weights != Weights::Float {
            let (shape, q, scales, rstd) = self.fused(rows, n / rows, &weight);
            let g = self.values(&weight);
            self.program.push(list, &norm_quant::GATED_NORM_QUANT, &[gate, up, g, self.inner, act, q, scales, rstd], &shape);
            return (act, Some(rstd), Act::Codes { q, scales });
        }
        let shape = gated::Shape { n: n as u32, act: u32::from(self.config.activation == Activation::Relu2) };
        self.program.push(list, &gated::GATED, &[gate, up, act], &shape);
        let (input, rstd) = self.sub_norm(list, act, &weight, rows);
        (act, rstd, input)
    }

    /// `y (+)= act · Wᵀ`.
    pub(crate) fn linear(&mut self, list: ListId, act: Act, weight: &str, rows: usize, y: BufferId, add: bool) {
        let spec = &self.tensors[self.tensor(weight)].spec;
        let (outs, cols, add) = (spec.shape[0] as u32, spec.shape[1] as u32, u32::from(add));
        match act {
            Act::Codes { q, scales } => {
                let (codes, scale) = self.codes(weight);
                let shape = ternary_gemm::Shape { rows: rows as u32, outs, cols, add };
                self.program.push(list, ternary_gemm::kernel(rows), &[q, scales, codes, scale, y], &shape);
            }
            Act::Values(x) => {
                let shape = gemm::Shape { m: rows as u32, n: outs, k: cols, add, symmetric: 0 };
                let w = self.values(weight);
                let kernel = if self.decoding { &gemm::GEMV_NT } else { &gemm::GEMM_NT };
                self.program.push(list, kernel, &[x, w, y], &shape);
            }
        }
    }

    /// The residual stream after a linear: `x + act·Wᵀ` in a buffer of its own (the backward pass reads `x`).
    fn residual(&mut self, list: ListId, x: BufferId, act: Act, weight: &str, rows: usize) -> BufferId {
        let n = self.program.words(x);
        let y = self.program.transient(format!("{weight}.residual"), n);
        self.program.push(list, &elementwise::COPY, &[x, y], &elementwise::Shape { n: n as u32 });
        self.linear(list, act, weight, rows, y, true);
        y
    }

    pub(crate) fn rotate(&mut self, list: ListId, x: BufferId, pos: BufferId, rows: usize, heads: usize, inverse: bool) {
        let head_dim = self.config.head_dim as u32;
        let shape = rope::Shape { rows: rows as u32, heads: heads as u32, head_dim, inverse: u32::from(inverse) };
        self.program.push(list, &rope::ROPE, &[pos, self.rope, x], &shape);
    }

    pub(crate) fn attention_shape(&self, rows: usize, q_len: usize, kv_len: usize) -> attention::Shape {
        let c = &self.config;
        attention::Shape {
            rows: rows as u32,
            q_len: q_len as u32,
            kv_len: kv_len as u32,
            heads: c.heads as u32,
            kv_heads: c.kv_heads as u32,
            head_dim: c.head_dim as u32,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
        }
    }

    fn block(&mut self, list: ListId, l: usize, x_in: BufferId, batch: &Batch, cache: Option<&Cache>) -> (BlockTape, BufferId) {
        let tape = self.block_tape(list, l, x_in, batch, cache);
        let x_out = self.residual(list, tape.x_mid, tape.down_in, &format!("layers.{l}.down"), batch.rows());
        (tape, x_out)
    }

    /// A block up to the input of its last linear.
    pub(crate) fn block_tape(&mut self, list: ListId, l: usize, x_in: BufferId, batch: &Batch, cache: Option<&Cache>) -> BlockTape {
        let (rows, c) = (batch.rows(), self.config.clone());
        let name = |part: &str| format!("layers.{l}.{part}");
        let (h_attn, rstd_attn) = self.normed(list, x_in, &name("attn_norm"), rows, self.hyper);
        let (qw, kw) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let [q, k, v] = [("q", qw), ("k", kw), ("v", kw)].map(|(n, w)| {
            let y = self.program.transient(name(n) + ".out", rows * w);
            self.linear(list, h_attn, &name(n), rows, y, false);
            y
        });
        self.rotate(list, q, batch.pos, rows, c.heads, false);
        self.rotate(list, k, batch.pos, rows, c.kv_heads, false);
        let (keys, values, kv_len, form) = match cache {
            Some(cache) => {
                let (ck, cv) = cache.layers[l];
                let (q_len, head_dim) = (batch.q_len as u32, c.head_dim as u32);
                let shape = kv_store::Shape { rows: rows as u32, q_len, kv_len: cache.kv_len as u32, cols: kw as u32, head_dim };
                self.program.push(list, kv_store::store(cache.form), &[k, batch.pos, ck], &shape);
                self.program.push(list, kv_store::store(cache.form), &[v, batch.pos, cv], &shape);
                (ck, cv, cache.kv_len, cache.form)
            }
            None => (k, v, batch.q_len, Cached::Float),
        };
        let o = self.program.transient(name("attention"), rows * qw);
        let stats = self.program.transient(name("stats"), rows * c.heads * 2);
        let shape = self.attention_shape(rows, batch.q_len, kv_len);
        self.program.push(list, form.attention(), &[q, keys, values, batch.mask, batch.pos, o, stats], &shape);
        let (o_in, sub_attn) = self.sub_norm(list, o, &name("attn_sub_norm"), rows);
        let x_mid = self.residual(list, x_in, o_in, &name("o"), rows);

        let (h_mlp, rstd_mlp) = self.normed(list, x_mid, &name("mlp_norm"), rows, self.hyper);
        let [gate, up] = ["gate", "up"].map(|n| {
            let y = self.program.transient(name(n) + ".out", rows * c.mlp);
            self.linear(list, h_mlp, &name(n), rows, y, false);
            y
        });
        let (act, sub_mlp, down_in) = self.gated(list, l, gate, up, rows);
        BlockTape { x_in, rstd_attn, h_attn, q, k, v, o, stats, sub_attn, o_in, x_mid, rstd_mlp, h_mlp, gate, up, act, sub_mlp, down_in }
    }

    /// What a linear takes after SubLN where the model has it, and its rstd.
    fn sub_norm(&mut self, list: ListId, x: BufferId, weight: &str, rows: usize) -> (Act, Option<BufferId>) {
        if !self.config.sub_norm {
            return (self.act(list, x, rows), None);
        }
        let (input, rstd) = self.normed(list, x, weight, rows, self.inner);
        (input, Some(rstd))
    }

    /// Appends the forward pass; logits `[rows, vocab]` are transient unless `logits` names a buffer.
    pub(crate) fn forward(&mut self, list: ListId, batch: &Batch, cache: Option<&Cache>, logits: Option<BufferId>) -> Tape {
        self.forward_keeping(list, batch, cache, logits, Keep::FLOATS)
    }

    /// As [`Self::forward`], for a backward pass that finds what `keep` says.
    pub(crate) fn forward_keeping(
        &mut self,
        list: ListId,
        batch: &Batch,
        cache: Option<&Cache>,
        logits: Option<BufferId>,
        keep: Keep,
    ) -> Tape {
        let rows = batch.rows();
        self.decoding = cache.is_some() && batch.q_len == 1;
        let (blocks, x_last) = self.hidden(list, batch, cache, keep);
        let (normed, rstd, logits) = self.project(list, x_last, rows, logits);
        self.decoding = false;
        Tape { blocks, x_last, rstd, normed, logits }
    }

    /// Embedding and blocks: what the backward pass needs of them, and the residual stream at the end.
    fn hidden(&mut self, list: ListId, batch: &Batch, cache: Option<&Cache>, keep: Keep) -> (Vec<KeptBlock>, BufferId) {
        let (rows, c) = (batch.rows(), self.config.clone());
        let x = self.program.transient("embedded", rows * c.dim);
        let shape = embed::Shape { rows: rows as u32, cols: c.dim as u32, vocab: c.vocab as u32 };
        let (table, half) = self.table("embed");
        let kernel = if half { &embed::EMBED_HALF } else { &embed::EMBED };
        self.program.push(list, kernel, &[batch.ids, table, x], &shape);
        let mut blocks = Vec::new();
        let mut x_last = x;
        for l in 0..c.layers {
            let (tape, out) = self.block(list, l, x_last, batch, cache);
            blocks.push(self.put_away(list, tape, keep));
            x_last = out;
        }
        (blocks, x_last)
    }

    /// The last norm and the head: (normed, its rstd, logits).
    fn project(&mut self, list: ListId, x: BufferId, rows: usize, logits: Option<BufferId>) -> (BufferId, BufferId, BufferId) {
        let (vocab, dim) = (self.config.vocab, self.config.dim);
        let (normed, rstd) = self.norm(list, x, "norm", rows);
        let logits = logits.unwrap_or_else(|| self.program.transient("logits", rows * vocab));
        let (head, half) = self.table(if self.config.tied { "embed" } else { "head" });
        let kernel = match (self.decoding, half) {
            (false, false) => &gemm::GEMM_NT,
            (false, true) => &gemm::GEMM_NT_HALF,
            (true, false) => &gemm::GEMV_NT,
            (true, true) => &gemm::GEMV_NT_HALF,
        };
        let shape = gemm::Shape { m: rows as u32, n: vocab as u32, k: dim as u32, add: 0, symmetric: 0 };
        self.program.push(list, kernel, &[normed, head, logits], &shape);
        (normed, rstd, logits)
    }

    /// Appends a forward pass into a cache whose logits are those of one row of each sequence, `rows [sequences]`.
    pub(crate) fn prefill(&mut self, list: ListId, batch: &Batch, cache: &Cache, rows: BufferId) -> BufferId {
        let (n, dim) = (batch.sequences, self.config.dim);
        let (_, x_last) = self.hidden(list, batch, Some(cache), Keep::FLOATS);
        let x = self.program.transient("last rows", n * dim);
        let shape = embed::Shape { rows: n as u32, cols: dim as u32, vocab: batch.rows() as u32 };
        self.program.push(list, &embed::EMBED, &[rows, x_last, x], &shape);
        self.decoding = true;
        let logits = self.project(list, x, n, None).2;
        self.decoding = false;
        logits
    }
}
