//! The ternary product straight over the packed words for some tokens (AVX-512 with VNNI): a load of 256 codes becomes four
//! vectors of 64, each of which meets the activations of up to eight tokens in one instruction that sums in 32 bits.
#![allow(unsafe_code)]

use super::Shape;
use super::direct::reduce;
use super::packed::{self, Block, OUTS, Sums};
use super::product::{Product, Target};

/// Words of codes in a vector.
const LANES: usize = 16;

/// Whether the instructions are there.
pub(crate) fn here() -> bool {
    crate::simd::avx512() && is_x86_feature_detected!("avx512vnni")
}

/// The product, where [`here`] says that it can be computed.
pub(crate) fn product(s: &Shape, ops: &Product<'_>, y: &Target<'_>) {
    assert!(here());
    // SAFETY: as asserted.
    packed::product::<LANES>(s, ops, y, |block, sums| unsafe { tokens(block, sums) });
}

/// The sums of a block.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn tokens(block: &Block<'_>, sums: &mut Sums) {
    match block.rows {
        1 => rows::<1>(block, sums),
        2 => rows::<2>(block, sums),
        3 => rows::<3>(block, sums),
        4 => rows::<4>(block, sums),
        5 => rows::<5>(block, sums),
        6 => rows::<6>(block, sums),
        7 => rows::<7>(block, sums),
        _ => rows::<8>(block, sums),
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn rows<const R: usize>(block: &Block<'_>, sums: &mut Sums) {
    use std::arch::x86_64::{
        __m512i, _mm256_add_epi32, _mm256_setzero_si256, _mm256_storeu_si256, _mm512_castsi512_si256, _mm512_extracti64x4_epi64,
    };
    let Block { codes, words, arranged, .. } = *block;
    assert!(arranged.len() >= R * words.div_ceil(LANES) * 4 * LANES && codes.len() <= OUTS * words);
    let halves = |sum: __m512i| _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum));
    // Made once: a row overwrites what the last group left.
    let mut totals = [[_mm256_setzero_si256(); R]; 8];
    for (group, codes) in codes.chunks(8 * words).enumerate() {
        for (row, totals) in codes.chunks_exact(words).zip(totals.iter_mut()) {
            // Straight from the registers: an array between would go through memory.
            for (total, sum) in totals.iter_mut().zip(&output::<R>(row, arranged)) {
                *total = halves(*sum);
            }
        }
        for (r, line) in sums.chunks_exact_mut(OUTS).enumerate().take(R) {
            let sum = reduce(std::array::from_fn(|i| totals[i][r]));
            // SAFETY: there are at most OUTS / 8 groups of eight, as many as codes were asserted to be.
            unsafe { _mm256_storeu_si256(line.as_mut_ptr().add(group * 8).cast(), sum) };
        }
    }
}

/// The sums of one output with `R` tokens, whose arranged activations the caller has measured.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn output<const R: usize>(row: &[u32], arranged: &[u32]) -> [std::arch::x86_64::__m512i; R] {
    use std::arch::x86_64::{
        _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_maskz_loadu_epi32, _mm512_set1_epi8, _mm512_setzero_si512,
        _mm512_srli_epi16,
    };
    let mask = _mm512_set1_epi8(3);
    let mut sums = [_mm512_setzero_si512(); R];
    for (b, words) in row.chunks(LANES).enumerate() {
        // Past the end of the row activations are 0: any code will do.
        let there = ((1u32 << words.len()) - 1) as u16;
        // SAFETY: only the words of the chunk are read.
        let codes = unsafe { _mm512_maskz_loadu_epi32(there, words.as_ptr().cast()) };
        let fields = [
            _mm512_and_si512(codes, mask),
            _mm512_and_si512(_mm512_srli_epi16::<2>(codes), mask),
            _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask),
            _mm512_and_si512(_mm512_srli_epi16::<6>(codes), mask),
        ];
        let q = arranged.as_ptr().wrapping_add(b * R * 4 * LANES);
        for (p, field) in fields.into_iter().enumerate() {
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: vector 4·r + p of the block is within `arranged`, whose length `rows` asserted.
                let q = unsafe { _mm512_loadu_si512(q.add((r * 4 + p) * LANES).cast()) };
                *sum = _mm512_dpbusd_epi32(*sum, field, q);
            }
        }
    }
    sums
}
