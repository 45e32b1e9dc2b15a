//! A model's parameters, constants, batches and caches as buffers of a program.

use std::collections::BTreeMap;

use flow_shaders::device::{DeviceError, Session};
use flow_shaders::kernels::attention::Cached;
use flow_shaders::kernels::{hyper, ternary};
use flow_shaders::program::{BufferId, Program};

use super::tape::{Batch, Cache};
use crate::config::{A4, Bits, ModelConfig, Role, TensorSpec, Weights};

/// Where a tensor lives in a program.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// What it is.
    pub spec: TensorSpec,
    /// f32 values; absent for linears of a packed inference program, and for tables that are float16.
    pub master: Option<BufferId>,
    /// float16 values, two in a word: embedding and head of an inference program.
    pub half: Option<BufferId>,
    /// Packed ternary codes and scale per output, for ternary linears.
    pub packed: Option<(BufferId, BufferId)>,
}

/// What of the parameters a program holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// f32 values of everything, beside the codes of ternary linears: training.
    Masters,
    /// Codes of ternary linears only, f32 of the rest.
    Packed,
    /// As `Packed`, embedding and head as float16.
    PackedHalf,
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
    index: BTreeMap<String, usize>,
}

impl Graph {
    /// Declares the parameters.
    pub fn new(config: ModelConfig, positions: usize, hold: Hold) -> Self {
        let mut program = Program::default();
        let mut tensors = Vec::new();
        let ternary = config.weights != Weights::Float;
        for spec in config.tensors() {
            let packs = ternary && spec.role == Role::Linear;
            let table = matches!(spec.role, Role::Embedding | Role::Head) && spec.shape[1].is_multiple_of(2);
            let half = (hold == Hold::PackedHalf && table).then(|| program.persistent(&spec.name, spec.len() / 2));
            let master = (hold == Hold::Masters || !(packs || half.is_some())).then(|| program.persistent(&spec.name, spec.len()));
            let packed = packs.then(|| {
                let words = spec.shape[0] * ternary::packed_words(spec.shape[1]);
                (
                    program.persistent(format!("{}.codes", spec.name), words),
                    program.persistent(format!("{}.scale", spec.name), spec.shape[0]),
                )
            });
            tensors.push(Tensor { spec, master, half, packed });
        }
        let index = tensors.iter().enumerate().map(|(i, t)| (t.spec.name.clone(), i)).collect();
        let hyper = program.persistent("hyper", hyper::LEN);
        let inner = if config.a4 == A4::Hybrid { program.persistent("hyper.inner", hyper::LEN) } else { hyper };
        let rope = program.persistent("rope", positions * config.head_dim);
        Self { program, config, tensors, hyper, inner, rope, positions, decoding: false, index }
    }

    /// Index of a tensor of the config.
    pub(crate) fn tensor(&self, name: &str) -> usize {
        self.index[name]
    }

    /// The float32 buffer of a tensor.
    pub(crate) fn values(&self, name: &str) -> BufferId {
        self.tensors[self.index[name]].master.expect("held as f32")
    }

    /// Codes and effective scale of a ternary linear: under the threshold rule the scale is the learned one.
    pub(crate) fn codes(&self, name: &str) -> (BufferId, BufferId) {
        let (codes, scale) = self.tensors[self.index[name]].packed.expect("ternary");
        match self.config.weights {
            Weights::Threshold => (codes, self.values(&format!("{name}_scale"))),
            _ => (codes, scale),
        }
    }

    /// RoPE angles in f64, rounded once: `head_dim/2` cosines then as many sines per position.
    pub fn rope_table(&self) -> Vec<f32> {
        let half = self.config.head_dim / 2;
        let mut table = Vec::with_capacity(self.positions * half * 2);
        for p in 0..self.positions {
            let angle = |i: usize| p as f64 * libm::pow(self.config.rope_theta, -(i as f64) / half as f64);
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

    /// Embedding or head `[vocab, dim]`, and whether it is float16.
    pub(super) fn table(&self, name: &str) -> (BufferId, bool) {
        match self.tensors[self.index[name]].half {
            Some(half) => (half, true),
            None => (self.values(name), false),
        }
    }

    /// Head `[vocab, dim]`: the embedding when tied.
    pub(crate) fn head(&self) -> BufferId {
        self.values(if self.config.tied { "embed" } else { "head" })
    }
}
