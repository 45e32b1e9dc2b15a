//! How much flows into the last linears of attention and MLP over a text: what decides which heads and neurons of a model
//! are kept, and how large the weights of a norm before these linears must be.

use flow_shaders::device::Device;
use flow_shaders::kernels::{hyper, rmsnorm};
use flow_shaders::program::{BufferId, ListId};

use super::program::Uses;
use super::session::within_window;
use crate::config::{Bits, ModelConfig};
use crate::error::{Error, Result, TrainingError};
use crate::format::tensors::TensorSource;
use crate::graph::{Batch, Graph, Hold};
use crate::tokenizer::TokenId;

/// Rows of a pass, about: how many changes no sum.
const ROWS: usize = 1024;

/// Sums of squares over the tokens of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Squares {
    /// Of each column as it comes.
    pub raw: Vec<f32>,
    /// Of each column after RMSNorm with the weights of the model's SubLN; with weights of 1 where it has none.
    pub normed: Vec<f32>,
}

/// Those of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSquares {
    /// What attention gives `[heads · head_dim]`: goes into `o`, normed where the model has SubLN.
    pub attention: Squares,
    /// The gated activation `[mlp]`: goes into `down`, normed where the model has SubLN.
    pub mlp: Squares,
}

/// Buffers of [`Squares`].
struct Sums {
    raw: BufferId,
    normed: BufferId,
}

struct Pass {
    graph: Graph,
    batch: Batch,
    list: ListId,
    /// 1 for each row that counts, 0 for padding `[rows]`.
    counts: BufferId,
    /// Weights of 1 `[heads · head_dim]` and `[mlp]`, where the model has no SubLN.
    ones: Option<(BufferId, BufferId)>,
    /// Of attention and MLP of each layer.
    sums: Vec<(Sums, Sums)>,
}

/// Sums of squares of what flows into `o` and `down` of each layer while a model reads `windows` (each at least one token, at
/// most `seq`). Ternary linears take 8 bits; their rounding is not in the sums. Rows are added in their order: the same bits
/// on every CPU.
pub fn squares(
    device: &Device,
    config: &ModelConfig,
    tensors: &impl TensorSource,
    seq: usize,
    windows: &[Vec<TokenId>],
) -> Result<Vec<LayerSquares>> {
    within_window(config, seq)?;
    let sequences = (ROWS / seq).clamp(1, windows.len().max(1));
    let mut pass = build(config, tensors, sequences, seq);
    let program = std::mem::take(&mut pass.graph.program);
    let mut session = device.load(program)?;
    pass.graph.load(&mut session, tensors)?;
    pass.graph.write_constants(&mut session)?;
    let mut scalars = vec![0f32; hyper::LEN];
    scalars[hyper::QMAX] = Bits::Eight.qmax();
    session.write_f32(pass.graph.hyper, &scalars)?;
    if let Some((attention, mlp)) = pass.ones {
        session.write_f32(attention, &vec![1.0; config.heads * config.head_dim])?;
        session.write_f32(mlp, &vec![1.0; config.mlp])?;
    }
    for sums in pass.sums.iter().flat_map(|(a, m)| [a, m]) {
        for buffer in [sums.raw, sums.normed] {
            let zeros = vec![0.0; session.program().words(buffer)];
            session.write_f32(buffer, &zeros)?;
        }
    }
    let rows = sequences * seq;
    session.write(pass.batch.pos, &(0..rows).map(|r| (r % seq) as u32).collect::<Vec<_>>())?;
    // Padding stands behind what is read, which does not see it.
    session.write(pass.batch.mask, &vec![1; rows])?;
    for windows in windows.chunks(sequences) {
        let (mut ids, mut counts) = (vec![TokenId::default(); rows], vec![0.0; rows]);
        for (i, window) in windows.iter().enumerate() {
            ids[i * seq..][..window.len()].copy_from_slice(window);
            counts[i * seq..][..window.len()].fill(1.0);
        }
        session.write(pass.batch.ids, TokenId::words(&ids))?;
        session.write_f32(pass.counts, &counts)?;
        session.run(pass.list)?;
    }
    let mut all = Vec::new();
    for (layer, (attention, mlp)) in pass.sums.iter().enumerate() {
        let mut read = |sums: &Sums, what: &'static str| -> Result<Squares> {
            let (raw, normed) = (session.read_f32(sums.raw)?, session.read_f32(sums.normed)?);
            if raw.iter().chain(&normed).all(|x| x.is_finite()) {
                return Ok(Squares { raw, normed });
            }
            Err(Error::from(TrainingError::Calibration { layer, what }).help("start from another model: this one overflows on the text"))
        };
        all.push(LayerSquares { attention: read(attention, "o")?, mlp: read(mlp, "down")? });
    }
    Ok(all)
}

fn build(config: &ModelConfig, tensors: &impl TensorSource, sequences: usize, seq: usize) -> Pass {
    let uses = Uses::default().for_tensors(config, tensors);
    let hold = if uses.half_tables { Hold::PackedHalf } else { Hold::Packed };
    let mut graph = Graph::holding(config.clone(), seq, hold, &uses.packed);
    let (rows, widths) = (sequences * seq, (config.heads * config.head_dim, config.mlp));
    let batch = graph.batch("text", sequences, seq, seq);
    let p = &mut graph.program;
    let counts = p.persistent("counts", rows);
    let ones = (!config.sub_norm).then(|| (p.persistent("ones of attention", widths.0), p.persistent("ones of mlp", widths.1)));
    let list = p.list("squares");
    let mut pass = Pass { graph, batch, list, counts, ones, sums: Vec::new() };
    let mut x = pass.graph.embedded(list, &batch);
    for l in 0..config.layers {
        let (tape, out) = pass.graph.block(list, l, x, &batch, None);
        let name = |part: &str| format!("layers.{l}.{part}");
        let attention = pass.add(tape.o, pass.ones.map(|o| o.0), &name("attn_sub_norm"));
        let mlp = pass.add(tape.act, pass.ones.map(|o| o.1), &name("mlp_sub_norm"));
        pass.sums.push((attention, mlp));
        x = out;
    }
    pass
}

impl Pass {
    /// Adds the squares of `x`, as it is and normed with the weights `ones` or those of the model.
    fn add(&mut self, x: BufferId, ones: Option<BufferId>, sub_norm: &str) -> Sums {
        let rows = self.batch.rows();
        let g = ones.unwrap_or_else(|| self.graph.values(sub_norm));
        let eps = self.graph.config.norm_eps;
        let p = &mut self.graph.program;
        let n = p.words(x);
        let shape = rmsnorm::Shape { rows: rows as u32, cols: (n / rows) as u32, eps, add: 0 };
        let (y, rstd) = (p.transient("normed", n), p.transient("rstd", rows));
        let sums = Sums { raw: p.persistent("squares", n / rows), normed: p.persistent("squares of normed", n / rows) };
        p.push(self.list, &rmsnorm::RMSNORM, &[x, g, y, rstd], &shape);
        // The gradient of a norm's weights is Σ dy · x · rstd: with x twice, Σ x² over the rows whose rstd is 1.
        p.push(self.list, &rmsnorm::RMSNORM_GRAD_G, &[x, self.counts, x, sums.raw], &shape);
        p.push(self.list, &rmsnorm::RMSNORM_GRAD_G, &[y, self.counts, y, sums.normed], &shape);
        sums
    }
}
