//! Scores and weighted sums over float16 rows of a cache, in the order of sums of the float32 ones.
#![allow(unsafe_code)]

use crate::kernels::halves::rows::to_floats;

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
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps};

    use crate::kernels::gemm::half_rows::wide::{any, eight};
    use crate::simd::math::LANES;

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_floats() {
        // Seven rows of 64 and of 48, 96 apart, for one to seven heads.
        let rows: Vec<u16> = (0..7 * 96).map(|i| half::f16::from_f32((i as f32 * 0.37).sin()).to_bits()).collect();
        let heads_of: Vec<f32> = (0..17 * 96).map(|i| (i as f32 * 0.73).sin()).collect();
        for (d, heads) in [64, 48].into_iter().flat_map(|d| (1..=7).map(move |h| (d, h))) {
            let (q, mut w) = (&heads_of[..heads * d], vec![f32::NAN; heads * 7]);
            let (mut y, mut want) = (vec![f32::NAN; heads * d], vec![0.0; heads * d]);
            products(q, d, &rows, 96, &mut w);
            sums(&w, d, &rows, 96, &mut y);
            for (h, (q, want)) in q.chunks_exact(d).zip(want.chunks_exact_mut(d)).enumerate() {
                for (j, w) in w[h * 7..][..7].iter().enumerate() {
                    let mut row = vec![0f32; d];
                    to_floats(&rows[j * 96..][..d], &mut row);
                    assert_eq!(*w, crate::simd::math::dot(q, &row), "head {h}, row {j}");
                    crate::simd::math::axpy(*w, &row, want);
                }
            }
            assert_eq!(y, want, "{heads} heads of {d}");
        }
    }
}
