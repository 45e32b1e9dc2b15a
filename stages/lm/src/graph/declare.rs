//! A model's parameters, constants, batches and caches as buffers of a program.

use std::collections::BTreeMap;

use flow_shaders::device::{DeviceError, Session};
use flow_shaders::kernels::attention::Cached;
use flow_shaders::kernels::ternary::groups::scale_words;
use flow_shaders::kernels::{hyper, ternary};
use flow_shaders::program::{BufferId, Program};

use super::tape::{Batch, Cache};
use crate::config::{A4, Bits, ModelConfig, Role, TensorSpec, Weights};

/// Where a tensor lives in a program.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// What it is.
    pub spec: TensorSpec,
    /// f32 values; absent for ternary matrices of a packed inference program, and for tables that are float16.
    pub master: Option<BufferId>,
    /// float16 values, two in a word: embedding and head of an inference program, all matrices of a teacher in a training.
    pub half: Option<BufferId>,
    /// Packed ternary codes and scales, of ternary matrices.
    pub packed: Option<Packed>,
    /// Of ternary matrices that are softened in a training.
    pub soft: Option<Soft>,
}

/// A ternary matrix while it is on its way to codes (see `flow_shaders::kernels::ternary::soften`).
#[derive(Clone, Copy, Debug)]
pub struct Soft {
    /// What products take in the place of codes `[rows, cols]`.
    pub values: BufferId,
    /// What the temperature is multiplied by `[1]`.
    pub factor: BufferId,
}

/// A ternary matrix in a program.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// `[rows, ceil(cols/16)]` words.
    pub codes: BufferId,
    /// In the form of `groups` (see `flow_shaders::kernels::ternary::groups`).
    pub scale: BufferId,
    /// Scales of a row.
    pub groups: usize,
}

/// Scales of a row of tensors that are held packed, whatever the shape says of them, by name.
pub type HeldPacked = BTreeMap<String, usize>;

/// What of the parameters a program holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// f32 values of everything, beside the codes of ternary matrices: training.
    Masters,
    /// Codes of ternary matrices only, f32 of the rest.
    Packed,
    /// As `Packed`, embedding and head as float16.
    PackedHalf,
    /// As `Packed`, all other matrices as float16.
    Half,
}

/// A model inside a program.
pub struct Graph {
    /// Buffers and lists.
    pub program: Program,
    /// Shape.
    pub config: ModelConfig,
    /// Parameters in checkpoint order.
    pub tensors: Vec<Tensor>,
    /// Scalars that change from step to step.
    pub hyper: BufferId,
    /// Those that quantise what `o` and `down` take: `hyper`, or scalars that stay at 8 bits.
    pub(super) inner: BufferId,
    /// RoPE angles `[positions, head_dim]`.
    pub rope: BufferId,
    /// Positions in the RoPE table.
    pub positions: usize,
    /// Rows are sequences that are decoded: products must not depend on how many there are.
    pub(super) decoding: bool,
    /// Float activations are rounded to int8 in blocks of 64 before linears and head.
    pub(crate) block8: bool,
    /// What is appended now takes the softened values of ternary matrices, not their codes.
    pub(crate) soft: bool,
    /// Codes that were made values for weights that are no codes, and these: what takes the same next finds them.
    pub(super) unpacked: Option<(BufferId, BufferId)>,
    index: BTreeMap<String, usize>,
}

impl Graph {
    /// Declares the parameters.
    pub fn new(config: ModelConfig, positions: usize, hold: Hold) -> Self {
        Self::holding(config, positions, hold, &HeldPacked::new())
    }

    /// As [`Self::new`], with some tensors packed that the shape does not call ternary.
    pub fn holding(config: ModelConfig, positions: usize, hold: Hold, held: &HeldPacked) -> Self {
        Self::within((Program::default(), ""), config, positions, hold, held)
    }

    /// As [`Self::holding`], in a program that holds something else already, and with something before the names of buffers.
    pub(crate) fn within(
        (mut program, prefix): (Program, &str),
        config: ModelConfig,
        positions: usize,
        hold: Hold,
        held: &HeldPacked,
    ) -> Self {
        let named = |name: &str| format!("{prefix}{name}");
        let mut tensors = Vec::new();
        for spec in config.tensors() {
            let groups = held.get(&spec.name).copied().or(config.ternary_groups(&spec));
            let halved = match hold {
                Hold::Masters | Hold::Packed => false,
                Hold::PackedHalf => matches!(spec.role, Role::Embedding | Role::Head),
                Hold::Half => matches!(spec.role, Role::Embedding | Role::Head | Role::Linear),
            };
            let halved = halved && groups.is_none() && spec.shape[1].is_multiple_of(2);
            let half = halved.then(|| program.persistent(named(&spec.name), spec.len() / 2));
            let master =
                (hold == Hold::Masters || !(groups.is_some() || half.is_some())).then(|| program.persistent(named(&spec.name), spec.len()));
            let packed = groups.map(|groups| {
                let words = spec.shape[0] * ternary::packed_words(spec.shape[1]);
                let codes = program.persistent(format!("{prefix}{}.codes", spec.name), words);
                let scale = program.persistent(format!("{prefix}{}.scale", spec.name), scale_words(spec.shape[0], groups));
                Packed { codes, scale, groups }
            });
            tensors.push(Tensor { spec, master, half, packed, soft: None });
        }
        let index = tensors.iter().enumerate().map(|(i, t)| (t.spec.name.clone(), i)).collect();
        let hyper = program.persistent(named("hyper"), hyper::LEN);
        let inner = if config.a4 == A4::Hybrid { program.persistent(named("hyper.inner"), hyper::LEN) } else { hyper };
        let rope = program.persistent(named("rope"), positions * config.head_dim);
        Self { program, config, tensors, hyper, inner, rope, positions, decoding: false, block8: false, soft: false, unpacked: None, index }
    }

    /// Index of a tensor of the config.
    pub(crate) fn tensor(&self, name: &str) -> usize {
        self.index[name]
    }

    /// The float32 buffer of a tensor: of its softened values where these are taken.
    pub(crate) fn values(&self, name: &str) -> BufferId {
        let t = &self.tensors[self.index[name]];
        t.soft.filter(|_| self.soft).map(|s| s.values).or(t.master).expect("held as f32")
    }

    /// Codes and effective scales of a matrix, if it is ternary: under the threshold rule the scales are the learned ones.
    pub(crate) fn codes(&self, name: &str) -> Option<Packed> {
        if self.soft {
            return None;
        }
        let packed = self.tensors[self.index[name]].packed?;
        Some(match self.config.weights {
            Weights::Threshold => Packed { scale: self.values(&format!("{name}_scale")), ..packed },
            _ => packed,
        })
    }

    /// RoPE angles in f64, rounded once: `head_dim/2` cosines then as many sines per position.
    pub fn rope_table(&self) -> Vec<f32> {
        let half = self.config.head_dim / 2;
        let mut table = Vec::with_capacity(self.positions * half * 2);
        let frequency = |i: usize| {
            let f = libm::pow(self.config.rope_theta, -(i as f64) / half as f64);
            self.config.rope_scaling.as_ref().map_or(f, |s| f / s.divisor(i, f))
        };
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        for p in 0..self.positions {
            let angle = |i: usize| p as f64 * frequencies[i];
            table.extend((0..half).map(|i| libm::cos(angle(i)) as f32));
            table.extend((0..half).map(|i| libm::sin(angle(i)) as f32));
        }
        table
    }

    /// Writes what never changes: angles, and the scalars of 8 bits that stay.
    pub(crate) fn write_constants(&self, session: &mut Session) -> Result<(), DeviceError> {
        if self.inner != self.hyper {
            let mut h = vec![0f32; hyper::LEN];
            h[hyper::QMAX] = Bits::Eight.qmax();
            session.write_f32(self.inner, &h)?;
        }
        session.write_f32(self.rope, &self.rope_table())
    }

    /// Declares the inputs of a batch.
    pub fn batch(&mut self, name: &str, sequences: usize, q_len: usize, kv_len: usize) -> Batch {
        let rows = sequences * q_len;
        Batch {
            sequences,
            q_len,
            ids: self.program.persistent(format!("{name}.ids"), rows),
            pos: self.program.persistent(format!("{name}.pos"), rows),
            mask: self.program.persistent(format!("{name}.mask"), sequences * kv_len),
        }
    }

    /// Declares a KV cache.
    pub fn cache(&mut self, name: &str, sequences: usize, kv_len: usize, form: Cached) -> Cache {
        let form = form.fitting(self.config.head_dim);
        let words = sequences * kv_len * self.config.kv_heads * form.words(self.config.head_dim);
        let layers = (0..self.config.layers)
            .map(|l| (self.program.persistent(format!("{name}.{l}.k"), words), self.program.persistent(format!("{name}.{l}.v"), words)))
            .collect();
        Cache { form, kv_len, layers }
    }

    /// Embedding or head `[vocab, dim]`.
    pub(super) fn table(&self, name: &str) -> Table {
        let tensor = &self.tensors[self.index[name]];
        match (tensor.packed.filter(|_| !self.soft), tensor.half) {
            (Some(packed), _) => Table::Packed(packed),
            (None, Some(half)) => Table::Half(half),
            (None, None) => Table::Floats(self.values(name)),
        }
    }

    /// Name of the head: that of the embedding when tied.
    pub(crate) fn head(&self) -> &'static str {
        if self.config.tied { "embed" } else { "head" }
    }
}

/// How an embedding or a head is held.
#[derive(Clone, Copy, Debug)]
pub(super) enum Table {
    /// Ternary.
    Packed(Packed),
    /// float16.
    Half(BufferId),
    /// float32.
    Floats(BufferId),
}
