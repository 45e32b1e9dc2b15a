//! How the next token of a sequence is chosen: a value that belongs to the sequence.
//!
//! Mask, bias and penalties change the logits, top-k and min-p leave out candidates; then temperature and top-p draw among
//! the rest (`flow_shaders::kernels::sample`). The order is that of common servers.

use std::sync::Arc;

use crate::error::{Error, RequestError, Result};
use crate::rng::Rng;
use crate::tokenizer::TokenId;

/// Tokens that may be chosen, one bit each (bit `id % 32` of word `id / 32`).
pub type Mask = Arc<[u32]>;

/// How the next token is chosen; the default is the most likely one.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the so many most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens whose mass together is this share; 1: all.
    pub top_p: f32,
    /// Only tokens at least this share as likely as the most likely one (arXiv 2407.01082); 0: all.
    pub min_p: f32,
    /// Logits of tokens that the prompt or the continuation holds: positive ones are divided by it, others multiplied (CTRL,
    /// arXiv 1909.05858, section 4.1); 1: none.
    pub repetition_penalty: f32,
    /// Taken from a token's logit once where the continuation holds it (OpenAI's API).
    pub presence_penalty: f32,
    /// Taken from a token's logit as often as the continuation holds it (OpenAI's API).
    pub frequency_penalty: f32,
    /// Added to the logits of some tokens: (id, amount).
    pub bias: Vec<(TokenId, f32)>,
    /// Tokens that may be chosen; none: all.
    pub mask: Option<Mask>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
            mask: None,
            seed: 0,
        }
    }
}

/// A token so much less likely than the best one (times the temperature) has the probability 0 in float32.
const OUT: f32 = 200.0;

/// Temperatures below, but 0, would be lost in the division of logits.
const LEAST: f32 = 1e-6;

impl Sampling {
    /// The most likely token.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// Draws at a temperature from a nucleus.
    pub fn nucleus(temperature: f32, top_p: f32, seed: u64) -> Self {
        Self { temperature, top_p, seed, ..Self::default() }
    }

    /// The random numbers of draw `number` with this seed; other draws have others.
    pub fn rng(&self, number: u64) -> Rng {
        Rng::new(self.seed, &format!("sample {number}"))
    }

    /// What cannot be, for a model of `vocab` tokens.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let wrong = |field: &'static str, why: String| Err(Error::from(RequestError::Sampling { field, why }));
        let share = |x: f32| x > 0.0 && x <= 1.0;
        if !(self.temperature.is_finite() && (self.temperature == 0.0 || self.temperature >= LEAST)) {
            return wrong("temperature", format!("{} is not 0 or above (next to 0: {LEAST} at the least)", self.temperature));
        }
        if !share(self.top_p) {
            return wrong("top_p", format!("{} is not a share above 0 and up to 1", self.top_p));
        }
        if !(self.min_p == 0.0 || share(self.min_p)) {
            return wrong("min_p", format!("{} is not a share between 0 and 1", self.min_p));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return wrong("repetition_penalty", format!("{} is not above 0", self.repetition_penalty));
        }
        for (field, x) in [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)] {
            if !x.is_finite() {
                return wrong(field, format!("{x} is not a number"));
            }
        }
        if let Some((id, x)) = self.bias.iter().find(|(id, x)| id.index() >= vocab || !x.is_finite()) {
            return wrong("bias", format!("token {id} by {x}: the model has {vocab} tokens"));
        }
        if let Some(mask) = &self.mask
            && !(0..vocab).any(|id| allows(mask, id))
        {
            return wrong("mask", "it leaves no token to choose".into());
        }
        Ok(())
    }

    /// Whether it takes the most likely token, whatever the sequence holds.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.takes_logits_as_they_are()
    }

    /// Whether logits are taken as they are: only temperature and top-p choose.
    pub fn takes_logits_as_they_are(&self) -> bool {
        let neutral = self.top_k == 0 && self.min_p == 0.0 && self.repetition_penalty == 1.0;
        neutral && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0 && self.bias.is_empty() && self.mask.is_none()
    }

    /// Changes the logits `[vocab]` of the token that comes after `tokens`, of which the first `prompt` are the prompt.
    pub fn adjust(&self, logits: &mut [f32], tokens: &[TokenId], prompt: usize) {
        self.penalise(logits, tokens, prompt);
        for (id, amount) in &self.bias {
            logits[id.index()] += amount;
        }
        let scale = if self.temperature > 0.0 { self.temperature } else { 1.0 };
        let allowed = |id: usize| self.mask.as_ref().is_none_or(|m| allows(m, id));
        let top = logits.iter().enumerate().filter(|(id, _)| allowed(*id)).fold(f32::MIN, |m, (_, z)| m.max(*z));
        // A small temperature would leave them beside the best one in float32.
        let out = top - OUT * scale.max(1.0);
        if self.mask.is_some() {
            logits.iter_mut().enumerate().filter(|(id, _)| !allowed(*id)).for_each(|(_, z)| *z = out);
        }
        let mut least = f32::MIN;
        if self.top_k > 0 && self.top_k < logits.len() {
            let mut sorted = logits.to_vec();
            least = *sorted.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a)).1;
        }
        if self.min_p > 0.0 {
            least = least.max(top + scale * libm::logf(self.min_p));
        }
        logits.iter_mut().filter(|z| **z < least).for_each(|z| *z = out);
    }

    fn penalise(&self, logits: &mut [f32], tokens: &[TokenId], prompt: usize) {
        if self.repetition_penalty != 1.0 {
            let mut seen = tokens.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                let z = &mut logits[id.index()];
                *z = if *z > 0.0 { *z / self.repetition_penalty } else { *z * self.repetition_penalty };
            }
        }
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            let mut drawn = tokens[prompt.min(tokens.len())..].to_vec();
            drawn.sort_unstable();
            for same in drawn.chunk_by(|a, b| a == b) {
                logits[same[0].index()] -= self.presence_penalty + self.frequency_penalty * same.len() as f32;
            }
        }
    }
}

fn allows(mask: &[u32], id: usize) -> bool {
    mask.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [2.0, 1.0, 0.5, -1.0, -2.0, 3.0];

    fn after(s: &Sampling, tokens: &[TokenId], prompt: usize) -> Vec<f32> {
        let mut z = LOGITS.to_vec();
        s.adjust(&mut z, tokens, prompt);
        z
    }

    /// Ids whose probability is not 0.
    fn left(z: &[f32], temperature: f32) -> Vec<usize> {
        let top = z.iter().fold(f32::MIN, |m, z| m.max(*z));
        (0..z.len()).filter(|i| ((z[*i] - top) / temperature).exp() > 0.0).collect()
    }

    #[test]
    fn candidates_are_left_out_by_rank_share_and_mask() {
        let s = Sampling { temperature: 0.7, ..Sampling::default() };
        assert!(s.takes_logits_as_they_are() && after(&s, &[], 0) == LOGITS);
        assert_eq!(left(&after(&Sampling { top_k: 2, ..s.clone() }, &[], 0), 0.7), [0, 5]);
        // e^(−1/0.7) = 0.24, e^(−2/0.7) = 0.057.
        assert_eq!(left(&after(&Sampling { min_p: 0.1, ..s.clone() }, &[], 0), 0.7), [0, 5]);
        assert_eq!(left(&after(&Sampling { min_p: 0.05, ..s.clone() }, &[], 0), 0.7), [0, 1, 5]);
        let masked = Sampling { mask: Some([0b011010].into()), ..s.clone() };
        assert_eq!(left(&after(&masked, &[], 0), 0.7), [1, 3, 4]);
        assert_eq!(left(&after(&Sampling { top_k: 2, ..masked.clone() }, &[], 0), 0.7), [1, 3]);
        assert!(masked.check(6).is_ok() && Sampling { mask: Some([1 << 6].into()), ..s }.check(6).is_err());
    }

    #[test]
    fn penalties_count_what_was_seen() {
        let s = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(after(&s, &[5, 3, 5].map(TokenId), 2), [2.0, 1.0, 0.5, -2.0, -2.0, 1.5]);
        let s = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() };
        assert_eq!(after(&s, &[0, 0, 5, 1, 1].map(TokenId), 2), [2.0, 0.0, 0.5, -1.0, -2.0, 2.25]);
        let s = Sampling { bias: vec![(TokenId(4), 9.0)], ..Sampling::default() };
        assert_eq!(after(&s, &[], 0)[4], 7.0);
        for bad in [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { min_p: 1.5, ..Sampling::default() },
            Sampling { bias: vec![(TokenId(6), 1.0)], ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
        ] {
            assert!(bad.check(6).is_err(), "{bad:?}");
        }
    }
}
