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
    let (half, out) = if crate::simd::neon() { neon::to_floats(half, out) } else { (half, out) };
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

/// `out[j, i] = Σ_k a[i, k]·b[j, k]` over 16 lanes, then a tree (see `simd::math::dot`), for rows of length `k`.
pub(crate) fn dots(a: &[f32], b: &[u16], k: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") && k.is_multiple_of(crate::simd::math::LANES) {
        if crate::simd::avx512() {
            // SAFETY: the features were just detected.
            return unsafe { wide512::dots(a, b, k, out) };
        }
        // SAFETY: the features were just detected.
        return unsafe { wide::dots(a, b, k, out) };
    }
    let m = a.len() / k;
    crate::simd::scratch::with(k, |floats| {
        for (b, out) in b.chunks_exact(k).zip(out.chunks_exact_mut(m)) {
            to_floats(b, floats);
            out.iter_mut().zip(a.chunks_exact(k)).for_each(|(y, a)| *y = crate::simd::math::dot(a, floats));
        }
    });
}

/// `w[h, j] = q_h · row_j` (in the order of `simd::math::dot`) for `q [heads, d]`, `w [heads, seen]` and rows `ld` apart.
pub(crate) fn products(q: &[f32], d: usize, rows: &[u16], ld: usize, w: &mut [f32]) {
    let seen = w.len() * d / q.len();
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") && d.is_multiple_of(crate::simd::math::LANES) {
        // SAFETY: the features were just detected.
        return unsafe { wide::products(q, d, rows, ld, w, seen) };
    }
    crate::simd::scratch::with(d, |floats| {
        for j in 0..seen {
            to_floats(&rows[j * ld..j * ld + d], floats);
            q.chunks_exact(d).enumerate().for_each(|(h, q)| w[h * seen + j] = crate::simd::math::dot(q, floats));
        }
    });
}

/// `o_h = Σ_j w[h, j]·row_j`, j ascending, for `o [heads, d]`, `w [heads, seen]` and rows `ld` apart.
pub(crate) fn sums(w: &[f32], d: usize, rows: &[u16], ld: usize, o: &mut [f32]) {
    let seen = w.len() * d / o.len();
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") && d.is_multiple_of(crate::simd::math::LANES) {
        // SAFETY: the features were just detected.
        return unsafe { wide::sums(w, seen, d, rows, ld, o) };
    }
    o.fill(0.0);
    crate::simd::scratch::with(d, |floats| {
        for j in 0..seen {
            to_floats(&rows[j * ld..j * ld + d], floats);
            o.chunks_exact_mut(d).enumerate().for_each(|(h, o)| crate::simd::math::axpy(w[h * seen + j], floats, o));
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

    /// As [`super::products`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn products(q: &[f32], d: usize, rows: &[u16], ld: usize, w: &mut [f32], seen: usize) {
        assert!(seen == 0 || rows.len() >= (seen - 1) * ld + d);
        for (i, q) in q.chunks(3 * d).enumerate() {
            for j in (0..seen).step_by(2) {
                let (b, out) = (&rows[j * ld..], &mut w[i * 3 * seen + j..]);
                // SAFETY: as many rows as the chunk of q has, and those from j on.
                unsafe { any((q.len() / d, (seen - j).min(2)), q, b, (d, ld), out, (seen, 1)) };
            }
        }
    }

    /// As [`super::sums`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn sums(w: &[f32], seen: usize, d: usize, rows: &[u16], ld: usize, o: &mut [f32]) {
        assert!(seen == 0 || rows.len() >= (seen - 1) * ld + d);
        let whole = d / (2 * LANES) * (2 * LANES);
        for (o, w) in o.chunks_mut(3 * d).zip(w.chunks(3 * seen)) {
            for at in (0..whole).step_by(2 * LANES) {
                // SAFETY (all): the part lies within every row, as asserted; there are as many heads as `o` has.
                match o.len() / d {
                    3 => unsafe { part::<3, 4>(w, seen, &rows[at..], ld, &mut o[at..], d) },
                    2 => unsafe { part::<2, 4>(w, seen, &rows[at..], ld, &mut o[at..], d) },
                    _ => unsafe { part::<1, 4>(w, seen, &rows[at..], ld, &mut o[at..], d) },
                }
            }
            if whole < d {
                for (o, w) in o.chunks_exact_mut(d).zip(w.chunks_exact(seen)) {
                    // SAFETY: as above.
                    unsafe { part::<1, 2>(w, seen, &rows[whole..], ld, &mut o[whole..], d) };
                }
            }
        }
    }

    /// `V` vectors of the sums of `R` heads, whose rows are converted once for all of them.
    ///
    /// # Safety
    /// `8·V` elements of every row lie within `rows`, and within each of the `R` heads of `o`, `d` apart.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn part<const R: usize, const V: usize>(w: &[f32], seen: usize, rows: &[u16], ld: usize, o: &mut [f32], d: usize) {
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        let w: [&[f32]; R] = std::array::from_fn(|r| &w[r * seen..][..seen]);
        for j in 0..seen {
            // SAFETY: the caller's promise.
            let row: [_; V] = std::array::from_fn(|v| unsafe { eight(rows, j * ld + 8 * v) });
            for (sums, w) in sums.iter_mut().zip(w) {
                let w = _mm256_set1_ps(w[j]);
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum = _mm256_fmadd_ps(w, x, *sum));
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { _mm256_storeu_ps(o.as_mut_ptr().add(r * d + 8 * v), sum) };
            }
        }
    }

    /// The sum of sixteen lanes as `fold` adds them: halves onto halves.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn tree(v: [__m256; 2]) -> f32 {
        let eight = _mm256_add_ps(v[0], v[1]);
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    /// As [`super::dots`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn dots(a: &[f32], b: &[u16], k: usize, out: &mut [f32]) {
        // SAFETY: `blocks` gives the rows that it says.
        super::blocks::<3>(a, b, k, out, |shape, a, b, out, ld| unsafe { any(shape, a, b, (k, k), out, (1, ld)) });
    }

    /// [`block`] for a number of rows of `a`, at most three, and of `b`, at most two.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn any(shape: (usize, usize), a: &[f32], b: &[u16], size: (usize, usize), out: &mut [f32], steps: (usize, usize)) {
        // SAFETY (all): the caller's promise.
        match shape {
            (3, 2) => unsafe { block::<3, 2>(a, b, size, out, steps) },
            (2, 2) => unsafe { block::<2, 2>(a, b, size, out, steps) },
            (1, 2) => unsafe { block::<1, 2>(a, b, size, out, steps) },
            (3, _) => unsafe { block::<3, 1>(a, b, size, out, steps) },
            (2, _) => unsafe { block::<2, 1>(a, b, size, out, steps) },
            _ => unsafe { block::<1, 1>(a, b, size, out, steps) },
        }
    }

    /// Products of `R` rows with `B`, `ld` apart, whose values are converted once for all of them; `row` and `col` are the
    /// distances of the products in `out`.
    ///
    /// # Safety
    /// `a` holds `R` rows and `b` has `B` rows of `k` values, a multiple of the lanes.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn block<const R: usize, const B: usize>(
        a: &[f32],
        b: &[u16],
        (k, ld): (usize, usize),
        out: &mut [f32],
        (row, col): (usize, usize),
    ) {
        let mut sums = [[[_mm256_setzero_ps(); 2]; B]; R];
        for i in (0..k).step_by(LANES) {
            super::fetch::<B>(b, ld, i);
            for half in 0..2 {
                let i = i + 8 * half;
                // SAFETY: eight elements from i on lie within every row.
                unsafe {
                    let b: [_; B] = std::array::from_fn(|j| eight(b, j * ld + i));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let a = _mm256_loadu_ps(a.as_ptr().add(r * k + i));
                        for (sum, b) in sums.iter_mut().zip(b) {
                            sum[half] = _mm256_fmadd_ps(a, b, sum[half]);
                        }
                    }
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                out[r * row + j * col] = tree(sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod wide512 {
    use crate::simd::math::LANES;
    use std::arch::x86_64::{
        __m512, _mm256_loadu_si256, _mm512_castps512_ps256, _mm512_cvtph_ps, _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_setzero_ps,
    };

    /// As [`super::dots`].
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq")]
    pub(super) fn dots(a: &[f32], b: &[u16], k: usize, out: &mut [f32]) {
        super::blocks::<4>(a, b, k, out, |shape, a, b, out, ld| {
            // SAFETY (all): the features are there as in this function, and `blocks` gives the rows that it says.
            match shape {
                (4, 2) => unsafe { block::<4, 2>(a, b, (k, k), out, (1, ld)) },
                (3, 2) => unsafe { block::<3, 2>(a, b, (k, k), out, (1, ld)) },
                (2, 2) => unsafe { block::<2, 2>(a, b, (k, k), out, (1, ld)) },
                (1, 2) => unsafe { block::<1, 2>(a, b, (k, k), out, (1, ld)) },
                (4, _) => unsafe { block::<4, 1>(a, b, (k, k), out, (1, ld)) },
                (3, _) => unsafe { block::<3, 1>(a, b, (k, k), out, (1, ld)) },
                (2, _) => unsafe { block::<2, 1>(a, b, (k, k), out, (1, ld)) },
                _ => unsafe { block::<1, 1>(a, b, (k, k), out, (1, ld)) },
            }
        });
    }

    /// Products of `R` rows with `B`, `ld` apart, whose values are converted once for all of them; `row` and `col` are the
    /// distances of the products in `out`.
    ///
    /// # Safety
    /// `a` holds `R` rows and `b` has `B` rows of `k` values, a multiple of the lanes.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq")]
    unsafe fn block<const R: usize, const B: usize>(
        a: &[f32],
        b: &[u16],
        (k, ld): (usize, usize),
        out: &mut [f32],
        (row, col): (usize, usize),
    ) {
        let mut sums = [[_mm512_setzero_ps(); B]; R];
        for i in (0..k).step_by(LANES) {
            super::fetch::<B>(b, ld, i);
            // SAFETY: sixteen elements from i on lie within every row.
            unsafe {
                let b: [_; B] = std::array::from_fn(|j| sixteen(b, j * ld + i));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_loadu_ps(a.as_ptr().add(r * k + i));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm512_fmadd_ps(a, b, *sum);
                    }
                }
            }
        }
        let tree = |v: __m512| super::wide::tree([_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)]);
        for (r, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                out[r * row + j * col] = tree(sum);
            }
        }
    }

    /// # Safety
    /// Sixteen elements from `i` on lie within `half`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq")]
    unsafe fn sixteen(half: &[u16], i: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(half.as_ptr().add(i).cast())) }
    }
}

/// Of two rows at a time, asks for those after the next ones: they are too short for the CPU to see where they lead.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fetch<const B: usize>(b: &[u16], ld: usize, i: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for row in if B > 1 { B..2 * B } else { 0..0 } {
        // SAFETY: a hint that reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(b.as_ptr().wrapping_add(row * ld + i).cast()) };
    }
}

/// So few rows of `a` that reading `b` is what takes the time: in the order of the memory.
#[cfg(target_arch = "x86_64")]
const FEW: usize = 2;

/// Cuts products into blocks: `f((rows of a, rows of b), a, b, out, ld)` for at most `R` rows of `a` and two of `b`; `out`
/// begins at the block's first product, those with the second row of `b` are `ld` further.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn blocks<const R: usize>(a: &[f32], b: &[u16], k: usize, out: &mut [f32], f: impl Fn((usize, usize), &[f32], &[u16], &mut [f32], usize)) {
    let m = a.len() / k;
    let together = if m > FEW { 2 } else { 1 };
    for (b, out) in b.chunks(together * k).zip(out.chunks_mut(together * m)) {
        for (i, a) in a.chunks(R * k).enumerate() {
            f((a.len() / k, b.len() / k), a, b, &mut out[i * R..], m);
        }
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
        let a: Vec<f32> = (0..7 * 96).map(|i| (i as f32 * 0.37).sin()).collect();
        // One to seventeen rows with one to five.
        let many: Vec<u16> = (0..5 * 96u16).map(|i| half::f16::from_f32(f32::from(i % 101) * 0.01 - 0.4).to_bits()).collect();
        let a_many: Vec<f32> = (0..17 * 96).map(|i| (i as f32 * 0.73).sin()).collect();
        for (m, n) in (1..=17).flat_map(|m| (1..=5).map(move |n| (m, n))) {
            let mut out = vec![f32::NAN; m * n];
            dots(&a_many[..m * 96], &many[..n * 96], 96, &mut out);
            for (j, b) in many.chunks_exact(96).enumerate().take(n) {
                let floats: Vec<f32> = b.iter().map(|h| to_float(*h)).collect();
                for (i, a) in a_many.chunks_exact(96).enumerate().take(m) {
                    assert_eq!(out[j * m + i], crate::simd::math::dot(a, &floats), "{m} rows with {n}");
                }
            }
        }
        // Seven rows of 64 and of 48, 96 apart, for one to seven heads.
        let rows: Vec<u16> = a.iter().map(|x| from_float(*x)).collect();
        for (d, heads) in [64, 48].into_iter().flat_map(|d| (1..=7).map(move |h| (d, h))) {
            let (q, mut w) = (&a_many[..heads * d], vec![f32::NAN; heads * 7]);
            let (mut y, mut want) = (vec![f32::NAN; heads * d], vec![0.0; heads * d]);
            products(q, d, &rows, 96, &mut w);
            sums(&w, d, &rows, 96, &mut y);
            for (h, (q, want)) in q.chunks_exact(d).zip(want.chunks_exact_mut(d)).enumerate() {
                for (j, w) in w[h * 7..][..7].iter().enumerate() {
                    let row: Vec<f32> = rows[j * 96..j * 96 + d].iter().map(|h| to_float(*h)).collect();
                    assert_eq!(*w, crate::simd::math::dot(q, &row), "head {h}, row {j}");
                    crate::simd::math::axpy(*w, &row, want);
                }
            }
            assert_eq!(y, want, "{heads} heads of {d}");
        }
    }
}
