//! The ternary product straight over the packed words (AVX2): a load of 128 codes becomes four vectors of 32, which meet
//! the activations of up to eight tokens. Products are summed in 16 bits for a stretch of 2,048 columns, which cannot
//! overflow, then in 32: exact integers in any order.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::Shape;
use super::cpu::{Product, Target};
use crate::simd::scratch;

/// Words of codes in a vector.
const LANES: usize = 8;
/// Vectors of codes summed in 16 bits: 16 · 4 · 508 = 32,512.
const STRETCH: usize = 16;
/// Tokens of a group.
const ROWS: usize = 8;
/// Outputs that one task computes at a time: their codes stay in the cache for all tokens.
const OUTS: usize = 32;

/// Activations of a row as the codes meet them: vector `4·b + p` holds what belongs to field `p` of words `8b ..`.
fn arrange(q: &[u32], blocks: usize, out: &mut [u32]) {
    out[..blocks * 4 * LANES].fill(0);
    for (w, four) in q.chunks_exact(4).enumerate() {
        for (p, x) in four.iter().enumerate() {
            out[((w / LANES) * 4 + p) * LANES + w % LANES] = *x;
        }
    }
}

/// The product; the caller has checked that AVX2 is there.
#[cfg(target_arch = "x86_64")]
pub(crate) fn product(s: &Shape, ops: &Product<'_>, y: &Target<'_>) {
    let (rows, outs, words) = (s.rows as usize, s.outs as usize, (s.cols as usize).div_ceil(16));
    let blocks = words.div_ceil(LANES);
    let width = blocks * 4 * LANES;
    scratch::with_words(rows * width, |arranged| {
        arranged.par_chunks_mut(width).zip(ops.q.par_chunks(words * 4)).with_min_len(4).for_each(|(a, q)| arrange(q, blocks, a));
        let arranged: &[u32] = arranged;
        let per = outs.div_ceil(OUTS).div_ceil(rayon::current_num_threads() * 4).max(1) * OUTS;
        (0..outs.div_ceil(per)).into_par_iter().for_each(|part| {
            for first in (part * per..outs.min((part + 1) * per)).step_by(OUTS) {
                let n = OUTS.min(outs - first);
                let codes = &ops.codes[first * words..(first + n) * words];
                for r0 in (0..rows).step_by(ROWS) {
                    let m = ROWS.min(rows - r0);
                    let mut sums = [0i32; OUTS * ROWS];
                    // SAFETY: the caller detected AVX2.
                    unsafe { block(codes, words, &arranged[r0 * width..(r0 + m) * width], m, &mut sums) };
                    for r in 0..m {
                        let (sum, step) = (ops.qsum[r0 + r], ops.step[r0 + r]);
                        for o in 0..n {
                            let value = ((sums[o * ROWS + r] - sum) as f32 * step) * ops.scale[first + o];
                            y.put(r0 + r, first + o, value, s.add == 1);
                        }
                    }
                }
            }
        });
    });
}

/// Sums `[outputs, ROWS]` of some outputs and at most [`ROWS`] tokens.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn block(codes: &[u32], words: usize, arranged: &[u32], rows: usize, sums: &mut [i32; OUTS * ROWS]) {
    match rows {
        1 => stretches::<1>(codes, words, arranged, sums),
        2 => stretches::<2>(codes, words, arranged, sums),
        3 => stretches::<3>(codes, words, arranged, sums),
        4 => stretches::<4>(codes, words, arranged, sums),
        5 => stretches::<5>(codes, words, arranged, sums),
        6 => stretches::<6>(codes, words, arranged, sums),
        7 => stretches::<7>(codes, words, arranged, sums),
        _ => stretches::<8>(codes, words, arranged, sums),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn stretches<const R: usize>(codes: &[u32], words: usize, arranged: &[u32], sums: &mut [i32; OUTS * ROWS]) {
    use std::arch::x86_64::{_mm256_add_epi32, _mm256_madd_epi16, _mm256_set1_epi16, _mm256_setzero_si256, _mm256_storeu_si256};
    let blocks = words.div_ceil(LANES);
    let width = blocks * 4 * LANES;
    assert!(arranged.len() >= R * width);
    let mut totals = [[_mm256_setzero_si256(); R]; OUTS];
    for b0 in (0..blocks).step_by(STRETCH) {
        let b1 = blocks.min(b0 + STRETCH);
        for (row, totals) in codes.chunks_exact(words).zip(totals.iter_mut()) {
            let short = stretch::<R>(row, b0..b1, width, arranged);
            for (t, s) in totals.iter_mut().zip(short) {
                *t = _mm256_add_epi32(*t, _mm256_madd_epi16(s, _mm256_set1_epi16(1)));
            }
        }
    }
    for (totals, sums) in totals.iter().zip(sums.chunks_exact_mut(ROWS)) {
        for (t, sum) in totals.iter().zip(sums) {
            let mut lanes = [0i32; LANES];
            // SAFETY: eight words are the vector's size.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), *t) };
            *sum = lanes.iter().sum();
        }
    }
}

/// 16-bit sums of some vectors of one output's codes with the activations of `R` tokens.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn stretch<const R: usize>(row: &[u32], blocks: std::ops::Range<usize>, width: usize, arranged: &[u32]) -> [std::arch::x86_64::__m256i; R] {
    use std::arch::x86_64::{
        _mm256_add_epi16, _mm256_and_si256, _mm256_loadu_si256, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_setzero_si256,
        _mm256_srli_epi16,
    };
    let mask = _mm256_set1_epi8(3);
    let mut short = [_mm256_setzero_si256(); R];
    for b in blocks {
        let whole = (b + 1) * LANES <= row.len();
        let mut tail = [0u32; LANES];
        if !whole {
            // Past the end of the row activations are 0: any code will do.
            let rest = &row[b * LANES..];
            tail[..rest.len()].copy_from_slice(rest);
        }
        // SAFETY: either eight words of the row are left, or the buffer of eight is read.
        let v = unsafe { _mm256_loadu_si256(if whole { row.as_ptr().add(b * LANES) } else { tail.as_ptr() }.cast()) };
        let fields = [
            _mm256_and_si256(v, mask),
            _mm256_and_si256(_mm256_srli_epi16::<2>(v), mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(v), mask),
            _mm256_and_si256(_mm256_srli_epi16::<6>(v), mask),
        ];
        for (r, s) in short.iter_mut().enumerate() {
            let mut products = [_mm256_setzero_si256(); 4];
            for (p, (x, field)) in products.iter_mut().zip(fields).enumerate() {
                // SAFETY: b is below the blocks of a row, r below R; `stretches` asserted the length.
                let a = unsafe { _mm256_loadu_si256(arranged.as_ptr().add(r * width + (b * 4 + p) * LANES).cast()) };
                *x = _mm256_maddubs_epi16(field, a);
            }
            let [a, b, c, d] = products;
            *s = _mm256_add_epi16(*s, _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d)));
        }
    }
    short
}
