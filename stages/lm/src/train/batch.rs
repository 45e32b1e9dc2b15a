//! What a training step is fed with.

use crate::tokenizer::TokenId;

/// One micro-batch on the host; all rows are `batch · seq`, row-major.
#[derive(Clone, Debug, Default)]
pub struct MicroBatch {
    /// Input token ids `[rows]`.
    pub ids: Vec<TokenId>,
    /// 1 for real tokens `[rows]`.
    pub mask: Vec<u32>,
    /// Next token, negative where there is no target `[rows]`.
    pub labels: Vec<i32>,
    /// Student ids of the buckets `[rows, top_k]`, −1 when absent.
    pub topk_ids: Vec<i32>,
    /// What the teacher says of them, tempered `[rows, top_k]`.
    pub targets: Vec<f32>,
    /// Other's log-mass at τ, weights of KL, CE and format `[rows, 4]`.
    pub meta: Vec<[f32; 4]>,
}

impl MicroBatch {
    /// Rows without a target: their loss and their gradients are 0.
    pub fn of_nothing(rows: usize, top_k: usize) -> Self {
        Self {
            ids: vec![TokenId(0); rows],
            mask: vec![1; rows],
            labels: vec![-1; rows],
            topk_ids: vec![-1; rows * top_k],
            targets: vec![0.0; rows * top_k],
            meta: vec![[0.0; 4]; rows],
        }
    }
}

/// Weights of the loss's parts.
#[derive(Clone, Copy, Debug)]
pub struct LossWeights {
    /// Weight of the KL, with what its temperature adds.
    pub kd: f32,
    /// Weight of the cross-entropy.
    pub ce: f32,
    /// Weight of the format loss.
    pub format: f32,
}

/// Label of padding, which is not even a key of attention.
pub(super) const PADDING: i32 = -2;

impl LossWeights {
    /// Turns the marks of a step's micro-batches (`meta` as [`super::Windows::append`] leaves it) into weights: that of each part
    /// is divided evenly among the rows that have it in all of them, so that a step is the same however it is cut; a row that
    /// traces weigh by other than 1 (`kd_weight`) has so much of its share of the KL. Sets the masks too, and gives the number
    /// of targets.
    pub fn weigh(&self, step: &mut [MicroBatch]) -> u64 {
        let valid = |l: &i32| *l >= 0;
        let of = |m: &MicroBatch, f: &dyn Fn(&[f32; 4]) -> bool| m.labels.iter().zip(&m.meta).filter(|(l, x)| valid(l) && f(x)).count();
        let count = |f: &dyn Fn(&[f32; 4]) -> bool| step.iter().map(|m| of(m, f)).sum::<usize>();
        let (n, n_kd, n_format) = (count(&|_| true), count(&|x| x[1] > 0.0), count(&|x| x[2] > 0.0));
        for m in step {
            for (l, x) in m.labels.iter().zip(&mut m.meta) {
                let [other, kd, structural, _] = *x;
                *x = if valid(l) {
                    [
                        other,
                        if kd > 0.0 { self.kd * kd / n_kd as f32 } else { 0.0 },
                        self.ce / n as f32,
                        if structural > 0.0 { self.format / n_format as f32 } else { 0.0 },
                    ]
                } else {
                    [0.0; 4]
                };
            }
            m.mask = m.labels.iter().map(|l| u32::from(*l != PADDING)).collect();
            m.labels.iter_mut().for_each(|l| *l = (*l).max(-1));
        }
        n as u64
    }
}
