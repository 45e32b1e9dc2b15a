//! Rows of float16 on the CPU, to and from float32: eight values at a time, several times as fast as the `half` crate. That
//! converts single values, what is left of a row, and rows on other CPUs; it takes F16C where it is there, whatever
//! `FLOW_SIMD` says, for the same bits.
#![allow(unsafe_code)]

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// Converts a row `[n]`; every float16 is a float32, so the result is exact.
pub(crate) fn to_floats(half: &[u16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") {
        // SAFETY: the features were just detected.
        return unsafe { wide::to_floats(half, out) };
    }
    #[cfg(target_arch = "aarch64")]
    let (half, out) = if crate::simd::neon() { neon::to_floats(half, out) } else { (half, out) };
    half.reinterpret_cast::<f16>().convert_to_f32_slice(out);
}

/// The nearest float16; what float16 cannot hold, NaN included, becomes an infinity.
fn from_float_checked(x: f32) -> u16 {
    if x.is_nan() { f16::INFINITY.to_bits() } else { f16::from_f32(x).to_bits() }
}

/// Converts a row `[n]`, checked: see [`from_float_checked`].
pub(crate) fn from_floats_checked(x: &[f32], out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") {
        // SAFETY: the features were just detected.
        return unsafe { wide::put::<false>(x, out) };
    }
    let out = &mut out[..x.len()];
    out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(x);
    for (o, x) in out.iter_mut().zip(x) {
        *o = if x.is_nan() { f16::INFINITY.to_bits() } else { *o };
    }
}

/// `out += x`, checked; an infinity stays.
pub(crate) fn add_checked(x: &[f32], out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") {
        // SAFETY: the features were just detected.
        return unsafe { wide::put::<true>(x, out) };
    }
    out.iter_mut().zip(x).for_each(|(o, x)| *o = sum_checked(*o, *x));
}

fn sum_checked(old: u16, x: f32) -> u16 {
    if old & 0x7c00 == 0x7c00 { old } else { from_float_checked(f16::from_bits(old).to_f32() + x) }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use half::f16;
    use std::arch::x86_64::{
        __m128i, __m256, _MM_FROUND_TO_NEAREST_INT, _mm_and_si128, _mm_blendv_epi8, _mm_cmpeq_epi16, _mm_loadu_si128, _mm_set1_epi16,
        _mm_storeu_si128, _mm256_add_ps, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps, _mm256_sub_ps,
    };

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn to_floats(half: &[u16], out: &mut [f32]) {
        let n = half.len().min(out.len());
        for i in (0..n / 8 * 8).step_by(8) {
            // SAFETY: eight elements from i on lie within both slices.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(i), eight(half, i)) };
        }
        for i in n / 8 * 8..n {
            out[i] = f16::from_bits(half[i]).to_f32();
        }
    }

    /// Stores rows as float16, or adds to them (see `from_floats_checked`, `add_checked`).
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn put<const ADD: bool>(x: &[f32], out: &mut [u16]) {
        let n = x.len().min(out.len());
        let limit = _mm256_set1_ps(65_536.0);
        for i in (0..n / 8 * 8).step_by(8) {
            // SAFETY: eight elements from i on lie within both slices.
            unsafe {
                let value = _mm256_loadu_ps(x.as_ptr().add(i));
                let at = out.as_mut_ptr().add(i).cast::<__m128i>();
                let old = _mm_loadu_si128(at);
                let value = if ADD { _mm256_add_ps(_mm256_cvtph_ps(old), value) } else { value };
                // The second operand where the first is NaN: beyond what float16 holds, so an infinity.
                let value = _mm256_max_ps(_mm256_min_ps(value, limit), _mm256_sub_ps(_mm256_setzero_ps(), limit));
                let new = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
                let new = if ADD { _mm_blendv_epi8(new, old, infinite(old)) } else { new };
                _mm_storeu_si128(at, new);
            }
        }
        for i in n / 8 * 8..n {
            out[i] = if ADD { super::sum_checked(out[i], x[i]) } else { super::from_float_checked(x[i]) };
        }
    }

    /// All bits of the lanes that hold an infinity.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn infinite(half: __m128i) -> __m128i {
        let exponent = _mm_set1_epi16(0x7c00);
        _mm_cmpeq_epi16(_mm_and_si128(half, exponent), exponent)
    }

    /// # Safety
    /// Eight elements from `i` on lie within `half`.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(half: &[u16], i: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(half.as_ptr().add(i).cast())) }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::{float32x4_t, uint16x8_t, vld1q_u16, vst1q_f32};

    /// Converts eight at a time, and returns what is left.
    pub(super) fn to_floats<'a, 'b>(half: &'a [u16], out: &'b mut [f32]) -> (&'a [u16], &'b mut [f32]) {
        let n = half.len().min(out.len()) / 8 * 8;
        for i in (0..n).step_by(8) {
            // SAFETY: NEON is always there; eight elements from i on lie within both slices.
            unsafe {
                let [low, high] = eight(vld1q_u16(half.as_ptr().add(i)));
                vst1q_f32(out.as_mut_ptr().add(i), low);
                vst1q_f32(out.as_mut_ptr().add(i + 4), high);
            }
        }
        (&half[n..], &mut out[n..])
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn eight(half: uint16x8_t) -> [float32x4_t; 2] {
        let (low, high);
        // SAFETY: arithmetic on registers; the instructions are always there (their intrinsics are newer than our Rust).
        unsafe {
            std::arch::asm!(
                "fcvtl {low:v}.4s, {half:v}.4h",
                "fcvtl2 {high:v}.4s, {half:v}.8h",
                low = out(vreg) low, high = lateout(vreg) high, half = in(vreg) half,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        [low, high]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float16_is_exact() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let mut floats = vec![0f32; all.len()];
        to_floats(&all, &mut floats);
        for (h, f) in all.iter().zip(&floats) {
            // NaN included: both make it a quiet one.
            assert_eq!(f.to_bits(), f16::from_bits(*h).to_f32().to_bits(), "{h:#x}");
        }
    }

    #[test]
    fn what_float16_cannot_hold_becomes_an_infinity() {
        let mut bits = 77u32;
        let random = (0..100_000).map(|_| {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(bits)
        });
        let edges = [65_504.0, 65_519.99, 65_520.0, -65_519.99, -65_520.0, 1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN];
        let all: Vec<f32> = random.chain(edges).collect();
        let mut stored = vec![0; all.len()];
        from_floats_checked(&all, &mut stored);
        let old: Vec<u16> = all.iter().map(|x| from_float_checked(x * 0.3)).collect();
        let mut sums = old.clone();
        add_checked(&all, &mut sums);
        for (((x, stored), old), sum) in all.iter().zip(&stored).zip(&old).zip(&sums) {
            let want = if x.is_nan() { 0x7c00 } else { f16::from_f32(*x).to_bits() };
            assert!(*stored == want && *sum == sum_checked(*old, *x), "{x}: {stored:#x}, {old:#x} + = {sum:#x}");
        }
    }
}
