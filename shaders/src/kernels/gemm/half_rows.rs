//! Products of float32 rows with float16 ones on the CPU, in the twins' order of sums: what is converted stays in registers.
#![allow(unsafe_code)]

use crate::kernels::halves::rows::to_floats;

/// `out[j, i] = Σ_k a[i, k]·b[j, k]` over 16 lanes, then a tree (see `simd::math::dot`), for rows of length `k`.
pub(crate) fn dots(a: &[f32], b: &[u16], k: usize, out: &mut [f32]) {
    assert!(k > 0 && a.len().is_multiple_of(k) && b.len().is_multiple_of(k), "whole rows of {k}: {} and {}", a.len(), b.len());
    #[cfg(target_arch = "x86_64")]
    if crate::simd::avx2() && is_x86_feature_detected!("f16c") && k.is_multiple_of(crate::simd::math::LANES) {
        if crate::simd::avx512() {
            // SAFETY: the features were just detected; whole rows of whole lanes, as asserted and asked above.
            return unsafe { wide512::dots(a, b, k, out) };
        }
        // SAFETY: the features were just detected; whole rows of whole lanes, as asserted and asked above.
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

#[cfg(target_arch = "x86_64")]
pub(crate) mod wide {
    use crate::simd::math::LANES;
    use std::arch::x86_64::{
        __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps, _mm_shuffle_ps, _mm256_add_ps,
        _mm256_castps256_ps128, _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
    };

    /// # Safety
    /// Eight elements from `i` on lie within `half`.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub(crate) unsafe fn eight(half: &[u16], i: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(half.as_ptr().add(i).cast())) }
    }

    /// The sum of sixteen lanes as `fold` adds them: halves onto halves.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub(super) fn tree(v: [__m256; 2]) -> f32 {
        let eight = _mm256_add_ps(v[0], v[1]);
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    /// As [`super::dots`].
    ///
    /// # Safety
    /// `a` and `b` are whole rows of `k` values, a multiple of the lanes.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn dots(a: &[f32], b: &[u16], k: usize, out: &mut [f32]) {
        // SAFETY: `blocks` gives the rows that it says, of those that the caller promised.
        super::blocks::<3>(a, b, k, out, |shape, a, b, out, ld| unsafe { any(shape, a, b, (k, k), out, (1, ld)) });
    }

    /// [`block`] for a number of rows of `a`, at most three, and of `b`, at most two.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub(crate) unsafe fn any(shape: (usize, usize), a: &[f32], b: &[u16], size: (usize, usize), out: &mut [f32], steps: (usize, usize)) {
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
    #[inline]
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
    ///
    /// # Safety
    /// `a` and `b` are whole rows of `k` values, a multiple of the lanes.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq")]
    pub(super) unsafe fn dots(a: &[f32], b: &[u16], k: usize, out: &mut [f32]) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_floats() {
        // One to seventeen rows with one to five.
        let many: Vec<u16> = (0..5 * 96u16).map(|i| half::f16::from_f32(f32::from(i % 101) * 0.01 - 0.4).to_bits()).collect();
        let a: Vec<f32> = (0..17 * 96).map(|i| (i as f32 * 0.73).sin()).collect();
        for (m, n) in (1..=17).flat_map(|m| (1..=5).map(move |n| (m, n))) {
            let mut out = vec![f32::NAN; m * n];
            dots(&a[..m * 96], &many[..n * 96], 96, &mut out);
            for (j, b) in many.chunks_exact(96).enumerate().take(n) {
                let mut floats = [0f32; 96];
                to_floats(b, &mut floats);
                for (i, a) in a.chunks_exact(96).enumerate().take(m) {
                    assert_eq!(out[j * m + i], crate::simd::math::dot(a, &floats), "{m} rows with {n}");
                }
            }
        }
    }
}
