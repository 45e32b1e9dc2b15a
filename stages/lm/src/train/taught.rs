//! A teacher in the loop: it reads every batch on the student's device, so that no row of it is ever stored.

use flow_shaders::device::Session;
use flow_shaders::kernels::hyper;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{Bits, ModelConfig};
use crate::error::Result;
use crate::format::Checkpoint;
use crate::format::tensors::TensorSource as _;
use crate::graph::{Graph, HeldPacked, by_rows};

/// What weighs the KL of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenWeight {
    /// Every token the same.
    #[default]
    Even,
    /// The teacher's own cross-entropy on it, in nats (TSLD, arXiv 2308.06744).
    TeacherCe,
}

/// A teacher that runs beside its student.
#[derive(Clone, Debug)]
pub struct InLoop {
    /// The teacher, over the student's vocabulary.
    pub model: Checkpoint,
    /// What weighs its tokens.
    pub token_weight: TokenWeight,
    /// The student's layer whose relations of queries, keys and values are to be those of the teacher's at the same depth.
    pub relation: Option<Relation>,
}

/// Relations of a layer in the loss (MiniLMv2, arXiv 2012.15828).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relation {
    /// The student's layer.
    pub layer: usize,
    /// Weight of the mean KL of its rows, relation heads, and of queries, keys and values.
    pub weight: f32,
}

/// What a program must know of it.
#[derive(Clone, Debug)]
pub struct TeacherShape {
    /// Its shape.
    pub config: ModelConfig,
    /// Matrices that its files hold packed.
    pub packed: HeldPacked,
    /// Its own cross-entropy weighs the KL.
    pub by_ce: bool,
    /// The student's layer whose relations are learned.
    pub relation_layer: Option<usize>,
}

impl TeacherShape {
    /// How many of a batch's rows have logits at a time, of it and of its student.
    pub fn rows_at_once(&self, student: &ModelConfig, rows: usize) -> usize {
        by_rows::rows_at_once(rows, student.vocab, &[student.dim, self.config.dim])
    }
}

impl InLoop {
    /// What a program must know of it.
    pub fn shape(&self) -> TeacherShape {
        let tensors = &self.model.tensors;
        let packed = self.model.config.tensors().into_iter().filter_map(|t| tensors.packed_groups(&t.name).map(|groups| (t.name, groups)));
        TeacherShape {
            config: self.model.config.clone(),
            packed: packed.collect(),
            by_ce: self.token_weight == TokenWeight::TeacherCe,
            relation_layer: self.relation.map(|r| r.layer),
        }
    }

    /// Writes its parameters and constants.
    pub(super) fn load(&self, graph: &Graph, session: &mut Session) -> Result<()> {
        graph.load(session, &self.model.tensors)?;
        graph.write_constants(session)?;
        let mut h = vec![0f32; hyper::LEN];
        (h[hyper::QMAX], h[hyper::INV_TAU]) = (Bits::Eight.qmax(), 1.0);
        Ok(session.write_f32(graph.hyper, &h)?)
    }
}
