//! The loss in chunks of rows: head, loss and the head's gradients of some rows at a time, so that logits of all rows of a
//! batch never exist together, neither the student's nor its teacher's.

use flow_shaders::kernels::gemm;
use flow_shaders::kernels::kd_loss::full;
use flow_shaders::program::{BufferId, ListId};

use super::declare::Graph;
use super::tape::Gradients;

/// Logits of a chunk, in words, at most: 64 MiB for each side.
const CHUNK: usize = 1 << 24;

/// Words between which a part of a buffer may begin.
const ALIGNMENT: usize = 64;

/// Buffers of the loss; rows are those of the batch.
#[derive(Clone, Copy)]
pub(crate) struct LossBuffers {
    /// Weights `[rows, 4]`.
    pub meta: BufferId,
    /// `[rows]`.
    pub labels: BufferId,
    /// `[rows, 4]`.
    pub losses: BufferId,
}

/// A teacher that has read the batch.
pub(crate) struct Read<'t> {
    /// Its graph; its program is the student's while it appends.
    pub graph: &'t mut Graph,
    /// What its head takes `[rows, dim]`.
    pub normed: BufferId,
    /// Whether its own cross-entropy weighs each row's KL.
    pub by_ce: bool,
}

/// Where gradients go.
#[derive(Clone, Copy)]
pub(crate) struct HeadGradients<'g> {
    /// Of what the head takes `[rows, dim]`.
    pub normed: BufferId,
    /// Of all tensors.
    pub all: &'g Gradients,
    /// Adds to the head's, instead of overwriting it.
    pub add: bool,
}

/// Rows of a chunk: as many as [`CHUNK`] holds, less than all, and such that its parts of rows of these widths begin where a
/// binding may.
pub(crate) fn rows_at_once(rows: usize, vocab: usize, widths: &[usize]) -> usize {
    let of = |width: usize| ALIGNMENT >> width.trailing_zeros().min(ALIGNMENT.trailing_zeros());
    let unit = widths.iter().map(|w| of(*w)).max().unwrap_or(1);
    // Half of a batch at most: the whole would be what is to be avoided. Tiles of 16 rows are whole where there are so many.
    let most = (CHUNK / vocab.max(1)).min(rows.div_ceil(2));
    let wanted = if most >= 16 { most / 16 * 16 } else { most };
    (wanted / unit * unit).max(unit)
}

impl Graph {
    /// Runs `body` on another graph whose operations go into this one's program.
    pub(crate) fn lend_program<R>(&mut self, to: &mut Graph, body: impl FnOnce(&mut Graph) -> R) -> R {
        std::mem::swap(&mut self.program, &mut to.program);
        let result = body(to);
        std::mem::swap(&mut self.program, &mut to.program);
        result
    }

    /// Appends the losses of a batch whose last norm is `normed`, and its gradients.
    pub(crate) fn loss_by_rows(
        &mut self,
        list: ListId,
        normed: BufferId,
        (rows, io): (usize, LossBuffers),
        mut teacher: Option<Read<'_>>,
        gradients: Option<HeadGradients<'_>>,
    ) {
        let (dim, vocab) = (self.config.dim, self.config.vocab);
        let theirs = teacher.as_ref().map_or(dim, |t| t.graph.config.dim);
        let count = rows_at_once(rows, vocab, &[dim, theirs]);
        for first in (0..rows).step_by(count) {
            let n = count.min(rows - first);
            // No chunk begins before the logits of the last one are gone.
            self.program.apart();
            let chunk = full::Shape {
                rows: n as u32,
                first: first as u32,
                vocab: vocab as u32,
                taught: u32::from(teacher.is_some()),
                by_teacher: u32::from(teacher.as_ref().is_some_and(|t| t.by_ce)),
            };
            // Without a teacher the kernel reads nothing of what stands in its place.
            let of_teacher = teacher.as_mut().map_or(io.meta, |t| {
                self.lend_program(t.graph, |graph| {
                    let part = graph.program.part(t.normed, first * theirs, n * theirs);
                    graph.head_of(list, part, n)
                })
            });
            let part = self.program.part(normed, first * dim, n * dim);
            let logits = self.head_of(list, part, n);
            self.program.push(list, &full::KD_FULL, &[logits, of_teacher, io.meta, io.labels, self.hyper, io.losses], &chunk);
            if let Some(g) = gradients {
                let to = HeadGradients { normed: self.program.part(g.normed, first * dim, n * dim), add: g.add || first > 0, ..g };
                self.head_grad(list, logits, part, n, to);
            }
        }
    }

    /// Logits of some rows in a buffer of their own.
    fn head_of(&mut self, list: ListId, normed: BufferId, rows: usize) -> BufferId {
        let logits = self.program.transient("logits of some rows", rows * self.config.vocab);
        self.head_product(list, normed, rows, logits);
        logits
    }

    /// Gradients of the head and of what it takes, given that of the logits.
    pub(crate) fn head_grad(&mut self, list: ListId, logits: BufferId, normed: BufferId, rows: usize, to: HeadGradients<'_>) {
        let (r, v, d) = (rows as u32, self.config.vocab as u32, self.config.dim as u32);
        let head = self.head();
        self.input_grad(list, logits, head, to.normed, gemm::Shape { m: r, n: d, k: v, add: 0, symmetric: 0 });
        let shape = gemm::Shape { m: v, n: d, k: r, add: u32::from(to.add), symmetric: 0 };
        self.program.push(list, &gemm::GEMM_TN, &[logits, normed, to.all.grads[self.tensor(head)]], &shape);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_less_than_the_batch_and_begins_where_a_binding_may() {
        for (rows, vocab, widths) in
            [(1024, 49_152, [576, 576]), (512, 4096, [256, 320]), (2048, 151_936, [2048, 4096]), (24, 50, [16, 24])]
        {
            let n = rows_at_once(rows, vocab, &widths);
            assert!(n < rows && n * vocab <= CHUNK.max(64 * vocab), "{n} of {rows}");
            assert!(widths.iter().all(|w| (n * w).is_multiple_of(ALIGNMENT)), "{n} rows of {widths:?}");
        }
        assert_eq!(rows_at_once(1024, 49_152, &[576]), 336);
    }
}
