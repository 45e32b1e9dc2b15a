//! Seeded randomness: SplitMix64 streams, the same on every machine.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of a seed and a purpose; different purposes never share numbers.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let hash = blake3::hash(&[&seed.to_le_bytes(), purpose.as_bytes()].concat());
        let mut first = [0u8; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        Self(u64::from_le_bytes(first))
    }
    /// 64 random bits (SplitMix64).
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in [0, 1), 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 16_777_216.0
    }
    /// Uniform below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }
    /// Standard normal (Box–Muller in f64).
    pub fn normal(&mut self) -> f32 {
        let u = ((self.bits() >> 11) as f64 + 1.0) / 9_007_199_254_740_993.0;
        let v = (self.bits() >> 11) as f64 / 9_007_199_254_740_992.0;
        (libm::sqrt(-2.0 * libm::log(u)) * libm::cos(2.0 * std::f64::consts::PI * v)) as f32
    }
    /// A random permutation of `0..n`.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_purpose() {
        let mut a = Rng::new(7, "init");
        assert_eq!(a.bits(), Rng::new(7, "init").bits());
        assert_ne!(a.bits(), Rng::new(7, "shuffle").bits());
        let n = 20_000;
        let (sum, squares) = (0..n).map(|_| f64::from(a.normal())).fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
        assert!((sum / f64::from(n)).abs() < 0.03 && (squares / f64::from(n) - 1.0).abs() < 0.03);
        let mut p = a.permutation(100);
        p.sort_unstable();
        assert_eq!(p, (0..100).collect::<Vec<_>>());
    }
}
