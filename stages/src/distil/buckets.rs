//! A student distribution under construction: ids with their mass, and the rest.

use std::collections::HashMap;

use flow_lm::tokenizer::TokenId;

use crate::traces::{CANDIDATES_OF_A_ROW, OTHER_FLOOR, OTHER_LEAST};

/// Mass by student id.
#[derive(Clone, Debug, Default)]
pub struct Buckets {
    items: Vec<(TokenId, f64)>,
    /// Place of each id once there are too many to look through.
    places: HashMap<TokenId, usize>,
}

/// Student candidates by falling logprob then id, and the mass outside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cut {
    /// Student ids.
    pub ids: Vec<i32>,
    /// Their logprobs.
    pub logprobs: Vec<f64>,
    /// Mass outside them.
    pub other: f64,
    /// Mass of the candidates beyond the Top-K.
    pub beyond: f64,
    /// Probabilities that were cut off as beyond the Top-K.
    pub beyond_probs: Vec<f64>,
}

impl Buckets {
    /// Room for `n`.
    pub fn with_capacity(n: usize) -> Self {
        Self { items: Vec::with_capacity(n), places: HashMap::new() }
    }
    /// Adds mass to an id; equal ids merge.
    pub fn add(&mut self, id: TokenId, mass: f64) {
        if self.items.len() >= CANDIDATES_OF_A_ROW {
            if self.places.is_empty() {
                self.places = self.items.iter().enumerate().map(|(at, i)| (i.0, at)).collect();
            }
            match self.places.get(&id) {
                Some(at) => self.items[*at].1 += mass,
                None => {
                    self.places.insert(id, self.items.len());
                    self.items.push((id, mass));
                }
            }
            return;
        }
        match self.items.iter_mut().find(|i| i.0 == id) {
            Some(item) => item.1 += mass,
            None => self.items.push((id, mass)),
        }
    }
    /// The `top_k` largest; what remains of 1 is Other.
    pub fn cut(mut self, top_k: usize) -> Cut {
        self.items.retain(|i| i.1 > 0.0);
        self.items.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let beyond_probs: Vec<f64> = self.items.iter().skip(top_k).map(|i| i.1).collect();
        self.items.truncate(top_k);
        let sum: f64 = self.items.iter().map(|i| i.1).sum();
        let tail = 1.0 - sum;
        let (scale, other) = if tail < OTHER_LEAST { ((1.0 - OTHER_FLOOR) / sum, OTHER_FLOOR) } else { (1.0, tail) };
        Cut {
            ids: self.items.iter().map(|i| i.0.signed()).collect(),
            logprobs: self.items.iter().map(|i| (i.1 * scale).ln()).collect(),
            other,
            beyond: beyond_probs.iter().sum(),
            beyond_probs,
        }
    }
}
