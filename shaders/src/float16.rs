//! float16 rows on the CPU: conversion, and products with float32 rows in the twins' order of sums.
#![allow(unsafe_code)]

/// Converts a row; every float16 is a float32, so the result is exact.
pub(crate) fn to_floats(half: &[u16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") {
        // SAFETY: the features were just detected.
        return unsafe { wide::to_floats(half, out) };
    }
    #[cfg(target_arch = "aarch64")]
    let (half, out) = neon::to_floats(half, out);
    out.iter_mut().zip(half).for_each(|(o, h)| *o = to_float(*h));
}

/// The value of a float16.
fn to_float(h: u16) -> f32 {
    let (sign, rest) = (u32::from(h >> 15) << 31, u32::from(h & 0x7fff));
    let magnitude = match rest >> 10 {
        // 2^-24 is the unit of subnormal numbers.
        0 => (rest as f32 * 5.960_464_5e-8).to_bits(),
        31 => 0x7f80_0000 | (rest & 0x3ff) << 13,
        _ => (rest << 13) + (112 << 23),
    };
    f32::from_bits(sign | magnitude)
}

/// The nearest float16, ties to even; what is too large becomes the largest, NaN becomes 0.
pub(crate) fn from_float(x: f32) -> u16 {
    let x = if x.is_nan() { 0.0 } else { x.clamp(-65_504.0, 65_504.0) };
    let (sign, magnitude) = ((x.to_bits() >> 16 & 0x8000) as u16, f32::from_bits(x.to_bits() & 0x7fff_ffff));
    if magnitude < 6.103_515_6e-5 {
        // Subnormal: a multiple of 2^-24. Adding 2^23 rounds to an integer, ties to even.
        return sign | ((magnitude * 16_777_216.0 + 8_388_608.0).to_bits() & 0x7ff) as u16;
    }
    let bits = magnitude.to_bits() - (112 << 23);
    sign | ((bits + 0xfff + (bits >> 13 & 1)) >> 13) as u16
}

/// The nearest float16; what float16 cannot hold, NaN included, becomes an infinity.
fn from_float_checked(x: f32) -> u16 {
    if x.abs() < 65_520.0 {
        from_float(x)
    } else if x <= -65_520.0 {
        0xfc00
    } else {
        0x7c00
    }
}

/// Converts a row, checked: see [`from_float_checked`].
pub(crate) fn from_floats_checked(x: &[f32], out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") {
        // SAFETY: the features were just detected.
        return unsafe { wide::put::<false>(x, out) };
    }
    out.iter_mut().zip(x).for_each(|(o, x)| *o = from_float_checked(*x));
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
    if old & 0x7c00 == 0x7c00 { old } else { from_float_checked(to_float(old) + x) }
}

/// `y[i] (+)= Σ a[i, k]·b[k]` over 16 lanes, then a tree (see `simd::math::dot`), for the rows of `a`.
pub(crate) fn dots(a: &[f32], b: &[u16], mut put: impl FnMut(usize, f32)) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") && b.len().is_multiple_of(crate::simd::math::LANES) {
        for (i, rows) in a.chunks(4 * b.len()).enumerate() {
            // SAFETY (both): the features were just detected; all rows have the length of `b`, a multiple of the lanes.
            if rows.len() == 4 * b.len() {
                let sums = unsafe { wide::dots::<4>(rows, b) };
                sums.into_iter().enumerate().for_each(|(j, y)| put(4 * i + j, y));
            } else {
                rows.chunks_exact(b.len()).enumerate().for_each(|(j, a)| put(4 * i + j, unsafe { wide::dots::<1>(a, b)[0] }));
            }
        }
        return;
    }
    crate::simd::scratch::with(b.len(), |floats| {
        to_floats(b, floats);
        a.chunks_exact(b.len()).enumerate().for_each(|(i, a)| put(i, crate::simd::math::dot(a, floats)));
    });
}

/// `w[j] = q · row_j` (in the order of `simd::math::dot`) for rows as long as `q`, `ld` apart.
pub(crate) fn products(q: &[f32], rows: &[u16], ld: usize, w: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") && q.len().is_multiple_of(crate::simd::math::LANES) {
        // SAFETY: the features were just detected.
        return unsafe { wide::products(q, rows, ld, w) };
    }
    crate::simd::scratch::with(q.len(), |floats| {
        for (j, w) in w.iter_mut().enumerate() {
            to_floats(&rows[j * ld..j * ld + q.len()], floats);
            *w = crate::simd::math::dot(q, floats);
        }
    });
}

/// `o = Σ_j w[j]·row_j`, j ascending, for rows as long as `o`, `ld` apart.
pub(crate) fn sums(w: &[f32], rows: &[u16], ld: usize, o: &mut [f32]) {
    o.fill(0.0);
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") && o.len().is_multiple_of(crate::simd::math::LANES) {
        // SAFETY: the features were just detected.
        return unsafe { wide::sums(w, rows, ld, o) };
    }
    crate::simd::scratch::with(o.len(), |floats| {
        for (j, w) in w.iter().enumerate() {
            to_floats(&rows[j * ld..j * ld + o.len()], floats);
            crate::simd::math::axpy(*w, floats, o);
        }
    });
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use crate::simd::math::LANES;
    use std::arch::x86_64::{
        __m128i, __m256, _MM_FROUND_TO_NEAREST_INT, _mm_add_ps, _mm_add_ss, _mm_and_si128, _mm_blendv_epi8, _mm_cmpeq_epi16, _mm_cvtss_f32,
        _mm_loadu_si128, _mm_movehl_ps, _mm_set1_epi16, _mm_shuffle_ps, _mm_storeu_si128, _mm256_add_ps, _mm256_castps256_ps128,
        _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps,
        _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm256_sub_ps,
    };

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn to_floats(half: &[u16], out: &mut [f32]) {
        let n = half.len().min(out.len());
        for i in (0..n / 8 * 8).step_by(8) {
            // SAFETY: eight elements from i on lie within both slices.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(i), eight(half, i)) };
        }
        for i in n / 8 * 8..n {
            out[i] = super::to_float(half[i]);
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

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn products(q: &[f32], rows: &[u16], ld: usize, w: &mut [f32]) {
        let d = q.len();
        for (j, w) in w.iter_mut().enumerate() {
            let row = &rows[j * ld..j * ld + d];
            let mut sum = [_mm256_setzero_ps(); 2];
            for i in (0..d).step_by(LANES) {
                // SAFETY: sixteen elements from i on lie within both slices.
                unsafe {
                    let q = q.as_ptr().add(i);
                    sum[0] = _mm256_fmadd_ps(_mm256_loadu_ps(q), eight(row, i), sum[0]);
                    sum[1] = _mm256_fmadd_ps(_mm256_loadu_ps(q.add(8)), eight(row, i + 8), sum[1]);
                }
            }
            *w = tree(sum);
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn sums(w: &[f32], rows: &[u16], ld: usize, o: &mut [f32]) {
        assert!(w.is_empty() || rows.len() >= (w.len() - 1) * ld + o.len());
        for (part, o) in o.chunks_exact_mut(LANES).enumerate() {
            let mut sum = [_mm256_setzero_ps(); 2];
            for (j, w) in w.iter().enumerate() {
                let w = _mm256_set1_ps(*w);
                // SAFETY: sixteen elements of row j from the part on lie within `rows`, as asserted.
                unsafe {
                    let at = j * ld + part * LANES;
                    sum[0] = _mm256_fmadd_ps(w, eight(rows, at), sum[0]);
                    sum[1] = _mm256_fmadd_ps(w, eight(rows, at + 8), sum[1]);
                }
            }
            // SAFETY: the part has sixteen elements.
            unsafe {
                _mm256_storeu_ps(o.as_mut_ptr(), sum[0]);
                _mm256_storeu_ps(o.as_mut_ptr().add(8), sum[1]);
            }
        }
    }

    /// The sum of sixteen lanes as `fold` adds them: halves onto halves.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn tree(v: [__m256; 2]) -> f32 {
        let eight = _mm256_add_ps(v[0], v[1]);
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    /// Products of `R` rows with one, which is converted once.
    ///
    /// # Safety
    /// `a` holds `R` rows of the length of `b`, a multiple of the lanes.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn dots<const R: usize>(a: &[f32], b: &[u16]) -> [f32; R] {
        let n = b.len();
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for i in (0..n).step_by(LANES) {
            // SAFETY: sixteen elements from i on lie within every row.
            unsafe {
                let (low, high) = (eight(b, i), eight(b, i + 8));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let a = a.as_ptr().add(r * n + i);
                    sum[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a), low, sum[0]);
                    sum[1] = _mm256_fmadd_ps(_mm256_loadu_ps(a.add(8)), high, sum[1]);
                }
            }
        }
        sums.map(|sum| tree(sum))
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
            let want = half::f16::from_bits(*h).to_f32();
            for got in [*f, to_float(*h)] {
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{h:#x}: {got} {want}");
            }
        }
    }

    #[test]
    fn floats_go_to_the_nearest_float16() {
        let mut bits = 12_345u32;
        let random = (0..200_000).map(|_| {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(bits)
        });
        let halves = (0..=u16::MAX).map(to_float);
        // Values, and the ties between neighbours.
        let ties = (0..0x7bffu16).map(|h| (to_float(h) + to_float(h + 1)) / 2.0);
        for x in random.chain(halves).chain(ties).chain([65_519.0, 1e9, -1e9]) {
            let want = if x.is_nan() { half::f16::ZERO } else { half::f16::from_f32(x.clamp(-65_504.0, 65_504.0)) };
            assert_eq!(from_float(x), want.to_bits(), "{x}");
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
            let want = if x.is_nan() { 0x7c00 } else { half::f16::from_f32(*x).to_bits() };
            assert!(*stored == want && *sum == sum_checked(*old, *x), "{x}: {stored:#x}, {old:#x} + = {sum:#x}");
        }
    }

    #[test]
    fn products_are_those_of_floats() {
        let b: Vec<u16> = (0..96u16).map(|i| half::f16::from_f32(f32::from(i) * 0.01 - 0.4).to_bits()).collect();
        let floats: Vec<f32> = b.iter().map(|h| to_float(*h)).collect();
        let a: Vec<f32> = (0..7 * 96).map(|i| (i as f32 * 0.37).sin()).collect();
        dots(&a, &b, |i, y| assert_eq!(y, crate::simd::math::dot(&a[i * 96..(i + 1) * 96], &floats)));
        // Seven rows of 64, 96 apart.
        let rows: Vec<u16> = a.iter().map(|x| from_float(*x)).collect();
        let (q, mut w, mut y, mut want) = (&a[..64], vec![0.0; 7], vec![1.0; 64], vec![0.0; 64]);
        products(q, &rows, 96, &mut w);
        sums(&w, &rows, 96, &mut y);
        for (j, w) in w.iter().enumerate() {
            let row: Vec<f32> = rows[j * 96..j * 96 + 64].iter().map(|h| to_float(*h)).collect();
            assert_eq!(*w, crate::simd::math::dot(q, &row), "row {j}");
            crate::simd::math::axpy(*w, &row, &mut want);
        }
        assert_eq!(y, want);
    }
}
