//! One dispatch on both devices, and how their results are compared.

use std::sync::OnceLock;

use flow_shaders::device::{self, Device, Opening};
use flow_shaders::kernel::{Access, Kernel};
use flow_shaders::kernels::hyper;
use flow_shaders::program::Program;
use proptest::prelude::*;

/// The adapter of the tests: the one that `FLOW_DEVICE` names, else any. Without one the tests pass with a message,
/// unless the variable asked for it.
pub fn adapter() -> Option<&'static Device> {
    static ADAPTER: OnceLock<Option<Device>> = OnceLock::new();
    ADAPTER
        .get_or_init(|| {
            let asked = std::env::var("FLOW_DEVICE").ok().filter(|c| !matches!(c.as_str(), "" | "auto" | "cpu"));
            match device::open(asked.as_deref().unwrap_or("gpu"), 0) {
                Ok(device) => Some(device),
                Err(e) if asked.is_some() => panic!("FLOW_DEVICE: {e}"),
                Err(_) => None,
            }
        })
        .as_ref()
        .or_else(|| {
            crate::skip::skipped("no wgpu adapter");
            None
        })
}

/// The CPU twins.
pub fn cpu() -> &'static Device {
    static CPU: OnceLock<Device> = OnceLock::new();
    CPU.get_or_init(|| device::open("cpu", 0).unwrap())
}

/// Runs one dispatch over the given buffers; gives all of them back.
pub fn run<P: bytemuck::Pod>(device: &Device, kernel: &'static Kernel, buffers: &[Vec<u32>], params: &P) -> Buffers {
    let mut program = Program::default();
    let ids: Vec<_> = buffers.iter().zip(kernel.bindings).map(|(b, binding)| program.persistent(binding.name, b.len())).collect();
    let list = program.list("one dispatch");
    program.push(list, kernel, &ids, params);
    let mut session = device.load(program).unwrap();
    for (id, buffer) in ids.iter().zip(buffers) {
        session.write(*id, buffer).unwrap();
    }
    session.run(list).unwrap();
    ids.iter().map(|id| session.read(*id).unwrap()).collect()
}

/// All buffers of a dispatch.
pub type Buffers = Vec<Vec<u32>>;

/// Both results of a dispatch: (CPU, adapter). None without an adapter. Where the kernel has variants, the module for every
/// adapter, and the one for a GPU with its features, must give what the adapter's own gives: the same bits, or floats that differ by rounding.
pub fn both<P: bytemuck::Pod>(kernel: &'static Kernel, buffers: &[Vec<u32>], params: &P) -> Option<(Buffers, Buffers)> {
    let adapter = adapter()?;
    let got = run(adapter, kernel, buffers, params);
    if !kernel.variants.is_empty() || kernel.module().native_half().is_some() {
        let others = [Opening { plain: true, ..Opening::default() }, Opening { hardware: true, ..Opening::default() }];
        let others = others.map(|how| run(opened(how), kernel, buffers, params).concat()).concat();
        for (a, b) in got.concat().into_iter().cycle().zip(others) {
            let (x, y) = (f32::from_bits(a), f32::from_bits(b));
            // Sums of some hundred products of about 1 in another order.
            assert!(a == b || (x - y).abs() <= 1e-4 * x.abs().max(1.0), "{}: {x} and {y} from two modules", kernel.name);
        }
    }
    Some((run(cpu(), kernel, buffers, params), got))
}

/// The adapter of the tests without variants, or with those of a real GPU.
fn opened(how: Opening) -> &'static Device {
    static OPENED: [OnceLock<Device>; 2] = [const { OnceLock::new() }; 2];
    let open = || device::open_with(&adapter().expect("there is an adapter").name(), how).expect("it opened before");
    OPENED[usize::from(how.plain)].get_or_init(open)
}

/// Runs both and compares every written buffer as floats: `|a − b| ≤ atol + rtol·|a|`, NaN equals NaN.
pub fn check<P: bytemuck::Pod>(kernel: &'static Kernel, buffers: &[Vec<u32>], params: &P, rtol: f32, atol: f32) {
    let Some((cpu, gpu)) = both(kernel, buffers, params) else { return };
    for (i, binding) in kernel.bindings.iter().enumerate() {
        if binding.access != Access::Read {
            close(&format!("{} {}", kernel.name, binding.name), &cpu[i], &gpu[i], rtol, atol);
        }
    }
}

/// As [`check`], for words that must be equal.
pub fn check_exact<P: bytemuck::Pod>(kernel: &'static Kernel, buffers: &[Vec<u32>], params: &P) {
    let Some((cpu, gpu)) = both(kernel, buffers, params) else { return };
    for (i, binding) in kernel.bindings.iter().enumerate() {
        assert!(binding.access == Access::Read || cpu[i] == gpu[i], "{} {} differs", kernel.name, binding.name);
    }
}

/// Compares words as floats.
pub fn close(what: &str, a: &[u32], b: &[u32], rtol: f32, atol: f32) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
        let same = a == b || (a.is_nan() && b.is_nan());
        assert!(same || (a - b).abs() <= atol + rtol * a.abs(), "{what}[{i}]: {a} on the CPU, {b} on the adapter");
    }
}

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
    /// Uniform below n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// `n` values around 0 with standard deviation `scale` (sum of four uniforms).
    pub fn floats(&mut self, n: usize, scale: f32) -> Vec<u32> {
        (0..n).map(|_| ((self.unit() + self.unit() + self.unit() + self.unit() - 2.0) * scale * 1.732).to_bits()).collect()
    }
    /// Pairs of float16 in (−1, 1).
    pub fn halves(&mut self, n: usize) -> Vec<u32> {
        let mut one = || u32::from(half::f16::from_f32(2.0 * self.unit() - 1.0).to_bits());
        (0..n / 2).map(|_| one() | one() << 16).collect()
    }
    /// `n` values in [low, high).
    pub fn range(&mut self, n: usize, low: f32, high: f32) -> Vec<u32> {
        (0..n).map(|_| (low + self.unit() * (high - low)).to_bits()).collect()
    }
    /// `n` arbitrary words.
    pub fn words(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.next() as u32).collect()
    }
    /// Packed ternary rows with code 1 in the padding.
    pub fn codes(&mut self, rows: usize, cols: usize) -> Vec<u32> {
        let mut out = Vec::new();
        for _ in 0..rows {
            for word in 0..cols.div_ceil(16) {
                out.push((0..16).fold(0, |w, e| {
                    let code = if word * 16 + e < cols { self.below(3) as u32 } else { 1 };
                    w | code << (8 * (e % 4) + 2 * (e / 4))
                }));
            }
        }
        out
    }
    /// Scales of packed rows, so many each: floats where there is one, else pairs of float16 with a zero for what is missing.
    pub fn scales(&mut self, rows: usize, groups: usize) -> Vec<u32> {
        if groups == 1 {
            return self.range(rows, 0.3, 2.0);
        }
        let mut half = || u32::from(half::f16::from_f32(0.3 + 1.7 * self.unit()).to_bits());
        let mut pair = |i: usize| half() | if 2 * (i % groups.div_ceil(2)) + 1 < groups { half() << 16 } else { 0 };
        (0..rows * groups.div_ceil(2)).map(&mut pair).collect()
    }
    /// Packed signed bytes in [−127, 127], zero padded to `words` words a row, and the row sums.
    pub fn bytes(&mut self, rows: usize, cols: usize, words: usize) -> (Vec<u32>, Vec<u32>) {
        let mut out = Vec::new();
        let mut sums = Vec::new();
        for _ in 0..rows {
            let mut sum = 0i32;
            for word in 0..words {
                out.push((0..4).fold(0, |w, j| {
                    let v = if word * 4 + j < cols { self.below(255) as i32 - 127 } else { 0 };
                    sum += v;
                    w | (v as u32 & 0xff) << (8 * j)
                }));
            }
            sums.push(sum as u32);
        }
        (out, sums)
    }
}

/// Floats as words.
pub fn words(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Zeros.
pub fn zeros(n: usize) -> Vec<u32> {
    vec![0; n]
}

/// Arbitrary content for buffers that the kernel overwrites.
pub fn junk(n: usize) -> Vec<u32> {
    vec![0x7f7f_7f7f; n]
}

/// The scalars of a training step.
pub fn hyper() -> Vec<u32> {
    let mut h = [0f32; hyper::LEN];
    h[hyper::LR] = 3e-3;
    h[hyper::BETA1] = 0.9;
    h[hyper::BETA2] = 0.95;
    h[hyper::EPS] = 1e-8;
    h[hyper::WEIGHT_DECAY] = 0.1;
    h[hyper::BIAS1] = 0.271;
    h[hyper::BIAS2] = 0.142_625;
    h[hyper::CLIP] = 1.0;
    h[hyper::INV_TAU] = 0.6;
    h[hyper::QMAX] = 127.0;
    h[hyper::MUON_LR] = 0.02;
    h[hyper::MUON_MOMENTUM] = 0.95;
    h[hyper::MUON_DECAY] = 0.1;
    h[hyper::INV_LOSS_SCALE] = 1.0 / 1024.0;
    words(&h)
}

/// Few cases, the same ones in every run.
pub fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: proptest::test_runner::RngSeed::Fixed(3), failure_persistence: None, ..ProptestConfig::default() }
}

/// A size: 1, primes, powers of two and their neighbours, anything.
pub fn size(max: usize) -> BoxedStrategy<usize> {
    let edges: Vec<usize> = [1, 2, 3, 7, 13, 16, 31, 61, 63, 64, 65, 127, 251, 256].into_iter().filter(|n| *n <= max).collect();
    prop_oneof![proptest::sample::select(edges), 1..=max].boxed()
}
