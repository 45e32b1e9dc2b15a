//! Masters to codes, before a step's forward pass.

use flow_shaders::kernels::ternary;
use flow_shaders::kernels::ternary::groups::{GroupShape, TERNARISE_GROUPS};
use flow_shaders::kernels::ternary::soften;
use flow_shaders::program::{BufferId, ListId};

use super::declare::{Graph, Packed, Soft};
use crate::config::{Group, Weights};

/// A matrix and its codes.
struct Matrix {
    rows: usize,
    cols: usize,
    master: BufferId,
    packed: Packed,
    /// Sums of |w|: of rows, or of groups.
    sums: BufferId,
    mean: BufferId,
}

impl Graph {
    /// Declares softened values of every ternary matrix.
    pub(crate) fn declare_soft(&mut self) {
        for t in self.tensors.iter_mut().filter(|t| t.packed.is_some()) {
            let values = self.program.persistent(format!("{}.soft", t.spec.name), t.spec.len());
            t.soft = Some(Soft { values, factor: self.program.persistent(format!("{}.temperature", t.spec.name), 1) });
        }
    }

    /// Softens the masters, whose codes are made.
    pub(crate) fn soften(&mut self, list: ListId) {
        let held: Vec<_> = self.tensors.iter().filter_map(|t| Some((t.spec.clone(), t.master?, t.packed?, t.soft?))).collect();
        for (spec, master, packed, soft) in held {
            let buffers = [master, packed.codes, packed.scale, self.hyper, soft.factor, soft.values];
            self.program.push(list, &soften::SOFTEN, &buffers, &soften_shape(&spec, packed.groups));
        }
    }

    /// Turns gradients of softened values into those of their masters.
    pub(crate) fn soften_gradients(&mut self, list: ListId, of: impl Fn(usize) -> Option<BufferId>) {
        for i in 0..self.tensors.len() {
            let t = &self.tensors[i];
            let (Some(master), Some(packed), Some(soft), Some(gradient)) = (t.master, t.packed, t.soft, of(i)) else { continue };
            let shape = soften_shape(&t.spec, packed.groups);
            self.program.push(list, &soften::SOFTEN_GRAD, &[master, packed.scale, self.hyper, soft.factor, gradient], &shape);
        }
    }

    /// Ternarises the masters into their codes.
    pub fn ternarise(&mut self, list: ListId) {
        let held: Vec<_> = self.tensors.iter().filter_map(|t| Some((t.spec.clone(), t.master?, t.packed?))).collect();
        let all: Vec<Matrix> = held
            .into_iter()
            .map(|(spec, master, packed)| {
                let (rows, cols) = (spec.shape[0], spec.shape[1]);
                let per_row = if let Group::Of(n) = self.config.group { cols / n } else { 1 };
                let sums = self.program.transient("partial", rows * per_row);
                Matrix { rows, cols, master, packed, sums, mean: self.program.transient("mean", 1) }
            })
            .collect();
        // Step by step for all of them, so that those of a step run at the same time.
        for m in &all {
            // A row of groups is so many rows.
            let per_row = if let Group::Of(n) = self.config.group { m.cols / n } else { 1 };
            let shape = ternary::Shape { rows: (m.rows * per_row) as u32, cols: (m.cols / per_row) as u32, rule: 0 };
            self.program.push(list, &ternary::ROW_ABS_SUM, &[m.master, m.sums], &shape);
        }
        let rule = u32::from(self.config.weights == Weights::Threshold);
        for m in all.iter().filter(|_| self.config.group == Group::Tensor) {
            let shape = ternary::Shape { rows: m.rows as u32, cols: m.cols as u32, rule };
            self.program.push(list, &ternary::ABS_MEAN, &[m.sums, m.mean], &shape);
        }
        for m in &all {
            let (rows, cols) = (m.rows as u32, m.cols as u32);
            if !self.config.half_scales() {
                let shape = ternary::Shape { rows, cols, rule };
                self.program.push(list, &ternary::TERNARISE, &[m.master, m.mean, m.packed.codes, m.packed.scale], &shape);
                continue;
            }
            let (sums, per) = match self.config.group {
                Group::Tensor => (m.mean, 0),
                Group::Row => (m.sums, cols),
                Group::Of(n) => (m.sums, n as u32),
            };
            let shape = GroupShape { rows, cols, per, groups: m.packed.groups as u32, count: per.max(1) as f32 };
            self.program.push(list, &TERNARISE_GROUPS, &[m.master, sums, m.packed.codes, m.packed.scale], &shape);
        }
    }
}

fn soften_shape(spec: &crate::config::TensorSpec, groups: usize) -> soften::Shape {
    soften::Shape { rows: spec.shape[0] as u32, cols: spec.shape[1] as u32, groups: groups as u32 }
}
