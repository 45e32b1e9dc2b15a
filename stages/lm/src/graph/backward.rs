//! The backward pass: gradients of every parameter added to their buffers, block by block from the loss.

use flow_shaders::kernels::{attention, bias, embed, gated, gemm, kd_loss, relation, rmsnorm};
use flow_shaders::program::{BufferId, ListId};

use super::by_rows::HeadGradients;
use super::declare::{Graph, Packed};
use super::tape::{Act, Batch, BlockTape, Gradients, HeadNorms, Keep, KeptBlock, Tape};
use crate::config::{Activation, Role};

/// How a backward pass is done.
#[derive(Clone, Copy)]
pub(crate) struct Pass {
    /// Adds to the gradients of matrices, instead of overwriting them. Those of vectors (and of an embedding that is not
    /// the head) are always added to.
    pub add: bool,
    /// What the forward pass kept.
    pub keep: Keep,
    /// Relations of a layer that are to be a teacher's.
    pub relations: Option<Relations>,
}

/// Attention relations of one layer (MiniLMv2, arXiv 2012.15828): of queries, keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Relations {
    /// The student's layer.
    pub layer: usize,
    /// The teacher's rotated queries and keys and its values.
    pub teacher: [BufferId; 3],
    /// Relation heads of each.
    pub heads: [usize; 3],
    /// Weights of rows in the second of four words, for each.
    pub meta: [BufferId; 3],
    /// Where the weighed sum goes, in the first of four words.
    pub sum: BufferId,
}

impl Graph {
    /// Whether a gradient is a product over all rows, which can overwrite what is there.
    pub(crate) fn is_matrix(&self, role: Role) -> bool {
        role == Role::Linear || role == if self.config.tied { Role::Embedding } else { Role::Head }
    }

    /// Appends the backward pass of `tape`, whose logits buffer holds the gradient of the logits.
    pub(crate) fn backward(&mut self, list: ListId, batch: &Batch, tape: &Tape, g: &Gradients, pass: Pass) {
        let rows = batch.rows();
        let d_normed = self.program.transient("d.normed", rows * self.config.dim);
        self.head_grad(list, tape.logits, tape.normed, rows, HeadGradients { normed: d_normed, all: g, add: pass.add });
        self.backward_below(list, batch, (&tape.blocks, tape.x_last, tape.rstd), d_normed, g, pass);
    }

    /// As [`Self::backward`], below the head: from the gradient of what it takes on, given what was kept of blocks, the
    /// residual stream at their end and its rstd.
    pub(crate) fn backward_below(
        &mut self,
        list: ListId,
        batch: &Batch,
        (blocks, x_last, rstd): (&[KeptBlock], BufferId, BufferId),
        d_normed: BufferId,
        g: &Gradients,
        pass: Pass,
    ) {
        let (rows, c) = (batch.rows(), self.config.clone());
        // The gradient of the residual stream: one buffer that every block adds to.
        let dx = self.program.transient("d.stream", rows * c.dim);
        self.norm_grad(list, x_last, "norm", rstd, d_normed, (dx, false), rows, g);
        for (l, kept) in blocks.iter().enumerate().rev() {
            let kept = self.take_back(list, kept, pass.keep);
            let block = if pass.keep.inputs_only { self.block_tape(list, l, kept.x_in, batch, None) } else { kept };
            self.mlp_grad(list, l, &block, dx, rows, g, pass);
            self.attention_grad(list, l, &block, dx, batch, g, pass);
        }
        let shape = embed::Shape { rows: rows as u32, cols: c.dim as u32, vocab: c.vocab as u32 };
        let d_embed = g.grads[self.tensor("embed")];
        self.program.push(list, &embed::EMBED_GRAD, &[g.starts, g.order, dx, d_embed], &shape);
    }

    /// `dx (+)= …`, and adds to the gradient of the norm's weight.
    #[allow(clippy::too_many_arguments)]
    fn norm_grad(
        &mut self,
        list: ListId,
        x: BufferId,
        weight: &str,
        rstd: BufferId,
        dy: BufferId,
        (dx, add): (BufferId, bool),
        rows: usize,
        g: &Gradients,
    ) {
        let cols = self.program.words(x) / rows;
        let shape = rmsnorm::Shape { rows: rows as u32, cols: cols as u32, eps: self.config.norm_eps, add: u32::from(add) };
        let (w, dw) = (self.values(weight), g.grads[self.tensor(weight)]);
        self.program.push(list, &rmsnorm::RMSNORM_GRAD_X, &[x, w, rstd, dy, dx], &shape);
        self.program.push(list, &rmsnorm::RMSNORM_GRAD_G, &[x, rstd, dy, dw], &shape);
    }

    /// Straight-through gradients of a linear: `dx (+)= dy·W`, `dW += dyᵀ·x`.
    #[allow(clippy::too_many_arguments)]
    fn linear_grad(
        &mut self,
        list: ListId,
        input: Act,
        weight: &str,
        dy: BufferId,
        (dx, add): (BufferId, bool),
        rows: usize,
        g: &Gradients,
        pass: Pass,
    ) {
        let i = self.tensor(weight);
        let (outs, cols) = (self.tensors[i].spec.shape[0] as u32, self.tensors[i].spec.shape[1] as u32);
        // A float16 gradient is computed in float32 and then put away.
        let n = (outs * cols) as usize;
        let dw = if g.half[i] { self.program.transient("gradient", n) } else { g.grads[i] };
        let add_here = pass.add && !g.half[i];
        let to_input = gemm::Shape { m: rows as u32, n: cols, k: outs, add: u32::from(add), symmetric: 0 };
        let to_weight = gemm::Shape { m: outs, n: cols, k: rows as u32, add: u32::from(add_here), symmetric: 0 };
        self.input_grad(list, dy, weight, dx, to_input);
        match input {
            Act::Codes { q, scales } => self.program.push(list, &gemm::GEMM_TN_Q8, &[dy, q, scales, dw], &to_weight),
            Act::Values(x) => self.program.push(list, &gemm::GEMM_TN, &[dy, x, dw], &to_weight),
            Act::Blocks { .. } => unreachable!("blocks are for inference"),
        }
        if g.half[i] {
            self.pack_half(list, dw, g.grads[i], n, pass.add);
        }
    }

    /// `dx (+)= dy·W`, of the ternary weights where they are such.
    pub(super) fn input_grad(&mut self, list: ListId, dy: BufferId, weight: &str, dx: BufferId, shape: gemm::Shape) {
        match self.codes(weight) {
            None => {
                let w = self.values(weight);
                self.program.push(list, &gemm::GEMM_NN, &[dy, w, dx], &shape);
            }
            Some(Packed { codes, scale, groups: 1 }) => {
                self.program.push(list, &gemm::GEMM_NN_TERNARY, &[dy, codes, scale, dx], &shape);
            }
            Some(Packed { codes, scale, groups }) => {
                let shape = gemm::TernaryShape::new(shape, groups);
                self.program.push(list, &gemm::GEMM_NN_GROUPS, &[dy, codes, scale, dx], &shape);
            }
        }
    }

    /// Gradient before an optional SubLN, given the one after it.
    #[allow(clippy::too_many_arguments)]
    fn sub_norm_grad(
        &mut self,
        list: ListId,
        x: BufferId,
        weight: &str,
        rstd: Option<BufferId>,
        dy: BufferId,
        rows: usize,
        g: &Gradients,
    ) -> BufferId {
        let Some(rstd) = rstd else { return dy };
        let n = self.program.words(x);
        let dx = self.program.transient("d.sub_norm", n);
        self.norm_grad(list, x, weight, rstd, dy, (dx, false), rows, g);
        dx
    }

    #[allow(clippy::too_many_arguments)]
    fn mlp_grad(&mut self, list: ListId, l: usize, t: &BlockTape, dx: BufferId, rows: usize, g: &Gradients, pass: Pass) {
        let c = self.config.clone();
        let name = |part: &str| format!("layers.{l}.{part}");
        let d_down_in = self.program.transient("d.down_in", rows * c.mlp);
        self.linear_grad(list, t.down_in, &name("down"), dx, (d_down_in, false), rows, g, pass);
        let d_act = self.sub_norm_grad(list, t.act, &name("mlp_sub_norm"), t.sub_mlp, d_down_in, rows, g);
        let d_gate = self.program.transient("d.gate", rows * c.mlp);
        let d_up = self.program.transient("d.up", rows * c.mlp);
        let shape = gated::Shape { n: (rows * c.mlp) as u32, act: u32::from(c.activation == Activation::Relu2) };
        self.program.push(list, &gated::GATED_GRAD, &[t.gate, t.up, d_act, d_gate, d_up], &shape);
        let d_h = self.program.transient("d.h_mlp", rows * c.dim);
        self.linear_grad(list, t.h_mlp, &name("gate"), d_gate, (d_h, false), rows, g, pass);
        self.linear_grad(list, t.h_mlp, &name("up"), d_up, (d_h, true), rows, g, pass);
        self.norm_grad(list, t.x_mid, &name("mlp_norm"), t.rstd_mlp, d_h, (dx, true), rows, g);
    }

    #[allow(clippy::too_many_arguments)]
    fn attention_grad(&mut self, list: ListId, l: usize, t: &BlockTape, dx: BufferId, batch: &Batch, g: &Gradients, pass: Pass) {
        let (rows, c) = (batch.rows(), self.config.clone());
        let name = |part: &str| format!("layers.{l}.{part}");
        let (qw, kw) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let d_o_in = self.program.transient("d.o_in", rows * qw);
        self.linear_grad(list, t.o_in, &name("o"), dx, (d_o_in, false), rows, g, pass);
        let d_o = self.sub_norm_grad(list, t.o, &name("attn_sub_norm"), t.sub_attn, d_o_in, rows, g);
        let shape = self.attention_shape(rows, batch.q_len, batch.q_len);
        let dq = self.program.transient("d.q", rows * qw);
        let dk = self.program.transient("d.k", rows * kw);
        let dv = self.program.transient("d.v", rows * kw);
        self.program.push(list, &attention::ATTENTION_DELTA, &[d_o, t.o, t.stats], &shape);
        self.program.push(list, &attention::ATTENTION_GRAD_Q, &[t.q, t.k, t.v, batch.mask, d_o, t.stats, dq], &shape);
        self.program.push(list, &attention::ATTENTION_GRAD_KV, &[t.q, t.k, t.v, batch.mask, d_o, t.stats, dk, dv], &shape);
        if let Some(relations) = pass.relations.filter(|r| r.layer == l) {
            self.relations_grad(list, [(t.q, dq), (t.k, dk), (t.v, dv)], batch, relations);
        }
        if !c.no_rope.contains(&l) {
            self.rotate(list, dq, batch.pos, rows, c.heads, true);
            self.rotate(list, dk, batch.pos, rows, c.kv_heads, true);
        }
        let (dq, dk) = self.head_norms_grad(list, l, t, (dq, dk), rows, g);
        if c.qkv_bias {
            for (part, dy) in [("q_bias", dq), ("k_bias", dk), ("v_bias", dv)] {
                let shape = bias::Shape { rows: rows as u32, cols: (self.program.words(dy) / rows) as u32 };
                self.program.push(list, &bias::BIAS_GRAD, &[dy, g.grads[self.tensor(&name(part))]], &shape);
            }
        }
        let d_h = self.program.transient("d.h_attn", rows * c.dim);
        for (i, (part, dy)) in [("q", dq), ("k", dk), ("v", dv)].into_iter().enumerate() {
            self.linear_grad(list, t.h_attn, &name(part), dy, (d_h, i > 0), rows, g, pass);
        }
        self.norm_grad(list, t.x_in, &name("attn_norm"), t.rstd_attn, d_h, (dx, true), rows, g);
    }

    /// Losses of relations, and their gradients added to those of queries, keys and values.
    fn relations_grad(&mut self, list: ListId, of: [(BufferId, BufferId); 3], batch: &Batch, r: Relations) {
        let rows = batch.rows();
        for (i, (x, dx)) in of.into_iter().enumerate() {
            let widths = [x, r.teacher[i]].map(|b| (self.program.words(b) / rows) as u32);
            let shape = relation::Shape::new(rows as u32, batch.q_len as u32, widths, r.heads[i] as u32);
            let stats = self.program.transient("relation.stats", rows * r.heads[i] * 2);
            let losses = self.program.transient("relation.losses", rows * 4);
            self.program.push(list, &relation::RELATION, &[x, r.teacher[i], batch.mask, stats, losses], &shape);
            let sum = kd_loss::Shape { rows: rows as u32, vocab: 0, k: 0 };
            self.program.push(list, &kd_loss::LOSS_SUM, &[losses, r.meta[i], r.sum], &sum);
            self.program.push(list, &relation::RELATION_GRAD, &[x, r.teacher[i], batch.mask, stats, r.meta[i], dx], &shape);
        }
    }

    /// Gradients of queries and keys before the norms of their heads.
    fn head_norms_grad(
        &mut self,
        list: ListId,
        l: usize,
        t: &BlockTape,
        (dq, dk): (BufferId, BufferId),
        rows: usize,
        g: &Gradients,
    ) -> (BufferId, BufferId) {
        let Some(HeadNorms { q, k }) = t.heads else { return (dq, dk) };
        let (heads, kv_heads) = (self.config.heads, self.config.kv_heads);
        let [dq, dk] = [("q_norm", q, dq, heads), ("k_norm", k, dk, kv_heads)].map(|(norm, (x, rstd), dy, heads)| {
            let n = self.program.words(dy);
            let dx = self.program.transient("d.head_norm", n);
            self.norm_grad(list, x, &format!("layers.{l}.{norm}"), rstd, dy, (dx, false), rows * heads, g);
            dx
        });
        (dq, dk)
    }
}
