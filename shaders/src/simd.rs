//! Runtime dispatch for the twins: the same Rust body compiled for wider instruction sets, with the same bits out.
//!
//! Bodies use `mul_add` for every multiply-add and accumulate in a fixed order, so that all versions agree exactly.
#![allow(unsafe_code)]

/// The widest instruction set that may be used. All give the same bits: tests compare them, and benchmarks measure what a
/// smaller CPU would reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Widest {
    Portable,
    /// AVX2 without AVX-512, NEON without dot products.
    Middle,
    All,
}

/// Names that `FLOW_SIMD` takes.
pub const NAMES: [&str; 3] = ["portable", if cfg!(target_arch = "aarch64") { "neon" } else { "avx2" }, "all"];

/// What `FLOW_SIMD` allows; all where it is not set. [`crate::device::open`] refuses a name that is none.
fn allowed() -> Widest {
    static ALLOWED: std::sync::OnceLock<Widest> = std::sync::OnceLock::new();
    *ALLOWED.get_or_init(|| match std::env::var("FLOW_SIMD").as_deref() {
        Ok(name) if name == NAMES[0] => Widest::Portable,
        Ok(name) if name == NAMES[1] => Widest::Middle,
        _ => Widest::All,
    })
}

/// Which instruction sets the twins use here.
pub fn level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if avx512() {
            return "avx512";
        }
        if avx2() {
            return "avx2";
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        if dotprod() {
            return "neon+dotprod";
        }
        if neon() {
            return "neon";
        }
    }
    NAMES[0]
}

/// Whether NEON may be used: it is always there.
#[cfg(target_arch = "aarch64")]
pub fn neon() -> bool {
    allowed() >= Widest::Middle
}

/// Whether ARM's dot product of bytes is there.
#[cfg(target_arch = "aarch64")]
pub fn dotprod() -> bool {
    allowed() == Widest::All && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Whether AVX2 and FMA are there.
#[cfg(target_arch = "x86_64")]
pub fn avx2() -> bool {
    allowed() >= Widest::Middle && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Whether AVX-512 (F, BW, DQ, VL) is there.
#[cfg(target_arch = "x86_64")]
pub fn avx512() -> bool {
    allowed() == Widest::All
        && avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Asks the memory for what lies at an address, which may be any: nothing is read.
#[inline(always)]
pub(crate) fn fetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that reads nothing, whatever the address; the instruction is part of the baseline.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Defines functions whose body is compiled for AVX-512, AVX2 and the baseline, and picked at run time; `fn f<W>` has a
/// width that is known when it is compiled.
#[macro_export]
macro_rules! simd {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident $(<$width:ident>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $vis fn $name $(<const $width: usize>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<const $width: usize>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn wide512 $(<const $width: usize>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$width>)? ($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn wide256 $(<const $width: usize>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$width>)? ($($arg),*) }
                if $crate::simd::avx512() {
                    // SAFETY: the features were detected on this CPU.
                    return unsafe { wide512 $(::<$width>)? ($($arg),*) };
                }
                if $crate::simd::avx2() {
                    // SAFETY: the features were detected on this CPU.
                    return unsafe { wide256 $(::<$width>)? ($($arg),*) };
                }
            }
            body $(::<$width>)? ($($arg),*)
        }
    )*};
}

/// Buffers of the calling thread that are kept between calls, so that a training step allocates nothing large.
pub(crate) mod scratch {
    use std::cell::RefCell;

    thread_local! {
        static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
    }

    /// Lends a buffer of `len` words with arbitrary content, as [`with`].
    pub(crate) fn with_words<R>(len: usize, body: impl FnOnce(&mut [u32]) -> R) -> R {
        with(len, |buffer| body(bytemuck::cast_slice_mut(buffer)))
    }

    /// Lends a buffer of `len` floats with arbitrary content, from the start of a cache line on: no vector crosses one.
    pub(crate) fn with<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
        let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        if buffer.len() < len + LINE {
            buffer.resize(len + LINE, 0.0);
        }
        let skip = buffer.as_ptr().align_offset(4 * LINE).min(LINE);
        let result = body(&mut buffer[skip..skip + len]);
        FREE.with_borrow_mut(|free| free.push(buffer));
        result
    }

    /// Floats of a cache line.
    const LINE: usize = 16;
}

/// Float functions of the twins: the same bits on every CPU, unlike those of the platform's libm.
pub(crate) mod math {
    const MAGIC: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to an integer in the low bits

    /// e^x within 2 ULP for x in [−87, 88]; clamped outside, NaN stays NaN.
    #[inline(always)]
    pub fn exp(x: f32) -> f32 {
        let x = if x < -87.0 { -87.0 } else { x };
        let x = if x > 88.0 { 88.0 } else { x };
        let t = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
        let n = t - MAGIC;
        let r = n.mul_add(-0.693_359_4, x);
        let r = n.mul_add(2.121_944_4e-4, r);
        let mut p = 1.987_569_1e-4f32;
        p = p.mul_add(r, 1.398_199_9e-3);
        p = p.mul_add(r, 8.333_452e-3);
        p = p.mul_add(r, 4.166_579_6e-2);
        p = p.mul_add(r, 1.666_666_5e-1);
        p = p.mul_add(r, 0.5);
        let y = (p * r).mul_add(r, r) + 1.0;
        y * f32::from_bits((t.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127)) << 23)
    }

    /// Natural logarithm of a positive, normal x, computed in f64 and rounded once.
    pub fn ln(x: f32) -> f32 {
        let bits = f64::from(x).to_bits();
        let mut e = ((bits >> 52) & 0x7ff) as i64 - 1023;
        let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
        if !x.is_finite() || x <= 0.0 {
            return if x == 0.0 {
                f32::NEG_INFINITY
            } else if x > 0.0 {
                x
            } else {
                f32::NAN
            };
        }
        if m > std::f64::consts::SQRT_2 {
            m *= 0.5;
            e += 1;
        }
        let s = (m - 1.0) / (m + 1.0);
        let z = s * s;
        let mut p = 1.0 / 17.0;
        for d in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
            p = p * z + 1.0 / d;
        }
        (2.0 * s * p + e as f64 * std::f64::consts::LN_2) as f32
    }

    /// Lanes of every reduction.
    pub const LANES: usize = 16;

    /// Adds the lanes as a tree.
    #[inline(always)]
    pub fn fold(v: [f32; LANES]) -> f32 {
        let (mut eight, mut four) = ([0f32; LANES / 2], [0f32; LANES / 4]);
        for i in 0..8 {
            eight[i] = v[i] + v[i + 8];
        }
        for i in 0..4 {
            four[i] = eight[i] + eight[i + 4];
        }
        (four[0] + four[2]) + (four[1] + four[3])
    }

    /// Σ a·b over 16 lanes, then a tree.
    #[inline(always)]
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut acc = [0f32; LANES];
        let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        // Lanes that are known when this is compiled stay in registers.
        for (i, acc) in acc.iter_mut().enumerate() {
            if let (Some(x), Some(y)) = (rest_a.get(i), rest_b.get(i)) {
                *acc = x.mul_add(*y, 0.0);
            }
        }
        for (x, y) in a.iter().zip(b) {
            for i in 0..LANES {
                acc[i] = x[i].mul_add(y[i], acc[i]);
            }
        }
        fold(acc)
    }

    /// Σ x², as [`dot`]. The compiler must not see that both operands are one: it would compute in single floats.
    #[inline(always)]
    pub fn squares(x: &[f32]) -> f32 {
        dot(x, std::hint::black_box(x))
    }

    /// Σ f(x) over 16 lanes, then a tree.
    #[inline(always)]
    pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
        let mut acc = [0f32; LANES];
        let chunks = x.chunks_exact(LANES);
        for (i, v) in chunks.remainder().iter().enumerate() {
            acc[i] += f(*v);
        }
        for c in chunks {
            for i in 0..LANES {
                acc[i] += f(c[i]);
            }
        }
        fold(acc)
    }

    /// Largest value (lanes); NaN is ignored.
    #[inline(always)]
    pub fn max(x: &[f32]) -> f32 {
        let mut acc = [f32::NEG_INFINITY; LANES];
        let chunks = x.chunks_exact(LANES);
        for (i, v) in chunks.remainder().iter().enumerate() {
            acc[i] = if *v > acc[i] { *v } else { acc[i] };
        }
        for c in chunks {
            for i in 0..LANES {
                acc[i] = if c[i] > acc[i] { c[i] } else { acc[i] };
            }
        }
        acc.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
    }

    /// y += a·x.
    #[inline(always)]
    pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = a.mul_add(*x, *y);
        }
    }
}
