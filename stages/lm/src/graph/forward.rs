//! The forward pass as operations.

use flow_shaders::kernels::attention::Cached;
use flow_shaders::kernels::{attention, bias, elementwise, embed, gated, gemm, kv_store, norm_quant, rmsnorm, rope};
use flow_shaders::program::{BufferId, ListId};

use super::declare::{Graph, Packed, Table};
use super::tape::{Act, Batch, BlockTape, Cache, HeadNorms, Keep, KeptBlock, Tape};
use crate::config::Activation;

impl Graph {
    pub(crate) fn norm(&mut self, list: ListId, x: BufferId, weight: &str, rows: usize) -> (BufferId, BufferId) {
        let cols = self.program.words(x) / rows;
        let y = self.program.transient(format!("{weight}.out"), rows * cols);
        let rstd = self.program.transient(format!("{weight}.rstd"), rows);
        let shape = rmsnorm::Shape { rows: rows as u32, cols: cols as u32, eps: self.config.norm_eps, add: 0 };
        let g = self.values(weight);
        self.program.push(list, &rmsnorm::RMSNORM, &[x, g, y, rstd], &shape);
        (y, rstd)
    }

    /// The input of `down`: (gated activation, rstd of its SubLN, what the linear takes).
    fn gated(&mut self, list: ListId, l: usize, gate: BufferId, up: BufferId, rows: usize) -> (BufferId, Option<BufferId>, Act) {
        let weight = format!("layers.{l}.mlp_sub_norm");
        let n = self.program.words(gate);
        let act = self.program.transient(format!("layers.{l}.act"), n);
        if self.config.sub_norm && self.config.quantises() {
            let (shape, q, scales, rstd) = self.fused(rows, n / rows, &weight);
            let g = self.values(&weight);
            self.program.push(list, &norm_quant::GATED_NORM_QUANT, &[gate, up, g, self.inner, act, q, scales, rstd], &shape);
            return (act, Some(rstd), Act::Codes { q, scales });
        }
        let shape = gated::Shape { n: n as u32, act: u32::from(self.config.activation == Activation::Relu2) };
        self.program.push(list, &gated::GATED, &[gate, up, act], &shape);
        let (input, rstd) = self.sub_norm(list, act, &weight, rows, &[&format!("layers.{l}.down")]);
        (act, rstd, input)
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

    /// A block: its tape, and the residual stream after it.
    pub(crate) fn block(&mut self, list: ListId, l: usize, x_in: BufferId, batch: &Batch, cache: Option<&Cache>) -> (BlockTape, BufferId) {
        let tape = self.block_tape(list, l, x_in, batch, cache);
        let x_out = self.residual(list, tape.x_mid, tape.down_in, &format!("layers.{l}.down"), batch.rows());
        (tape, x_out)
    }

    /// A block up to the input of its last linear.
    pub(crate) fn block_tape(&mut self, list: ListId, l: usize, x_in: BufferId, batch: &Batch, cache: Option<&Cache>) -> BlockTape {
        let (rows, c) = (batch.rows(), self.config.clone());
        let name = |part: &str| format!("layers.{l}.{part}");
        let takers = [name("q"), name("k"), name("v")];
        let (h_attn, rstd_attn) = self.normed(list, x_in, &name("attn_norm"), rows, self.hyper, &takers.each_ref().map(String::as_str));
        let (qw, kw) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let [q, k, v] = [("q", qw), ("k", kw), ("v", kw)].map(|(n, w)| {
            let y = self.program.transient(name(n) + ".out", rows * w);
            if c.qkv_bias {
                let shape = bias::Shape { rows: rows as u32, cols: w as u32 };
                let b = self.values(&name(&format!("{n}_bias")));
                self.program.push(list, &bias::BIAS, &[b, y], &shape);
            }
            self.linear(list, h_attn, &name(n), rows, y, c.qkv_bias);
            y
        });
        let (q, k, heads) = self.head_norms(list, l, (q, k), rows);
        if !c.no_rope.contains(&l) {
            self.rotate(list, q, batch.pos, rows, c.heads, false);
            self.rotate(list, k, batch.pos, rows, c.kv_heads, false);
        }
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
        let (o_in, sub_attn) = self.sub_norm(list, o, &name("attn_sub_norm"), rows, &[&name("o")]);
        let x_mid = self.residual(list, x_in, o_in, &name("o"), rows);

        let takers = [name("gate"), name("up")];
        let (h_mlp, rstd_mlp) = self.normed(list, x_mid, &name("mlp_norm"), rows, self.hyper, &takers.each_ref().map(String::as_str));
        let [gate, up] = ["gate", "up"].map(|n| {
            let y = self.program.transient(name(n) + ".out", rows * c.mlp);
            self.linear(list, h_mlp, &name(n), rows, y, false);
            y
        });
        let (act, sub_mlp, down_in) = self.gated(list, l, gate, up, rows);
        BlockTape {
            x_in,
            rstd_attn,
            h_attn,
            heads,
            q,
            k,
            v,
            o,
            stats,
            sub_attn,
            o_in,
            x_mid,
            rstd_mlp,
            h_mlp,
            gate,
            up,
            act,
            sub_mlp,
            down_in,
        }
    }

    /// What a linear takes after SubLN where the model has it, and its rstd.
    fn sub_norm(&mut self, list: ListId, x: BufferId, weight: &str, rows: usize, takers: &[&str]) -> (Act, Option<BufferId>) {
        if !self.config.sub_norm {
            return (self.act(list, x, rows, takers), None);
        }
        let (input, rstd) = self.normed(list, x, weight, rows, self.inner, takers);
        (input, Some(rstd))
    }

    /// Queries and keys with each head normed, where the model has such norms, and what these took.
    fn head_norms(&mut self, list: ListId, l: usize, (q, k): (BufferId, BufferId), rows: usize) -> (BufferId, BufferId, Option<HeadNorms>) {
        if !self.config.head_norm {
            return (q, k, None);
        }
        let (heads, kv_heads) = (self.config.heads, self.config.kv_heads);
        let (normed_q, rstd_q) = self.norm(list, q, &format!("layers.{l}.q_norm"), rows * heads);
        let (normed_k, rstd_k) = self.norm(list, k, &format!("layers.{l}.k_norm"), rows * kv_heads);
        (normed_q, normed_k, Some(HeadNorms { q: (q, rstd_q), k: (k, rstd_k) }))
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

    /// The embeddings of a batch `[rows, dim]`.
    pub(crate) fn embedded(&mut self, list: ListId, batch: &Batch) -> BufferId {
        let (rows, dim, vocab) = (batch.rows(), self.config.dim, self.config.vocab);
        let x = self.program.transient("embedded", rows * dim);
        let shape = embed::Shape { rows: rows as u32, cols: dim as u32, vocab: vocab as u32 };
        match self.table("embed") {
            Table::Floats(table) => self.program.push(list, &embed::EMBED, &[batch.ids, table, x], &shape),
            Table::Half(table) => self.program.push(list, &embed::EMBED_HALF, &[batch.ids, table, x], &shape),
            Table::Packed(Packed { codes, scale, groups }) => {
                let shape = embed::TernaryShape::new(shape, groups);
                self.program.push(list, &embed::EMBED_TERNARY, &[batch.ids, codes, scale, x], &shape);
            }
        }
        x
    }

    /// Embedding and blocks: what the backward pass needs of them, and the residual stream at the end.
    pub(crate) fn hidden(&mut self, list: ListId, batch: &Batch, cache: Option<&Cache>, keep: Keep) -> (Vec<KeptBlock>, BufferId) {
        let mut blocks = Vec::new();
        let mut x_last = self.embedded(list, batch);
        for l in 0..self.config.layers {
            let (tape, out) = self.block(list, l, x_last, batch, cache);
            blocks.push(self.put_away(list, tape, keep));
            x_last = out;
        }
        (blocks, x_last)
    }

    /// The last norm and the head: (normed, its rstd, logits).
    fn project(&mut self, list: ListId, x: BufferId, rows: usize, logits: Option<BufferId>) -> (BufferId, BufferId, BufferId) {
        let (normed, rstd) = self.norm(list, x, "norm", rows);
        let logits = logits.unwrap_or_else(|| self.program.transient("logits", rows * self.config.vocab));
        self.head_product(list, normed, rows, logits);
        (normed, rstd, logits)
    }

    /// Logits of normed rows.
    pub(super) fn head_product(&mut self, list: ListId, normed: BufferId, rows: usize, logits: BufferId) {
        let (vocab, dim, head) = (self.config.vocab, self.config.dim, self.head());
        let Table::Half(half) = self.table(head) else {
            let input = if self.block8 { self.blocks(list, normed, rows, &[head]) } else { Act::Values(normed) };
            return self.linear(list, input, head, rows, logits, false);
        };
        let input = if self.block8 { self.rounded(list, normed, rows) } else { normed };
        let kernel = if self.decoding { &gemm::GEMV_NT_HALF } else { &gemm::GEMM_NT_HALF };
        let shape = gemm::Shape { m: rows as u32, n: vocab as u32, k: dim as u32, add: 0, symmetric: 0 };
        self.program.push(list, kernel, &[input, half, logits], &shape);
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
