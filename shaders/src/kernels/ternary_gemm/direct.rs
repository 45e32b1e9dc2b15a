//! The ternary product straight over the packed words (AVX2): a load of 128 codes becomes four vectors of 32, which meet
//! the activations of up to eight tokens. Products are summed in 16 bits for a stretch of 2,048 columns, which cannot
//! overflow, then in 32: exact integers in any order.
#![allow(unsafe_code)]

use super::Shape;
use super::packed::{self, Block, FEW, OUTS, Sums};
use super::product::{Product, Target};

/// Words of codes in a vector.
const LANES: usize = 8;
/// Vectors of codes summed in 16 bits: 16 · 4 · 508 = 32,512.
const STRETCH: usize = 16;
/// Words that are fetched ahead of their use.
const AHEAD: usize = 256;

/// The product, where there is AVX2.
pub(crate) fn product(s: &Shape, ops: &Product<'_>, y: &Target<'_>) {
    assert!(is_x86_feature_detected!("avx2"));
    // SAFETY: as asserted.
    packed::product::<LANES>(s, ops, y, |block, sums| unsafe { tokens(block, sums) });
}

/// The sums of a block.
#[target_feature(enable = "avx2")]
fn tokens(block: &Block<'_>, sums: &mut Sums) {
    let Block { codes, words, arranged, rows } = *block;
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

#[target_feature(enable = "avx2")]
fn stretches<const R: usize>(codes: &[u32], words: usize, arranged: &[u32], sums: &mut Sums) {
    use std::arch::x86_64::{_mm256_add_epi32, _mm256_madd_epi16, _mm256_set1_epi16, _mm256_setzero_si256, _mm256_storeu_si256};
    let blocks = words.div_ceil(LANES);
    assert!(arranged.len() >= R * blocks * 4 * LANES && codes.len() <= OUTS * words);
    // Few tokens: codes come from memory, row by row. Many: the activations of a stretch stay in the nearest cache.
    let at_once = if R <= FEW { blocks } else { STRETCH };
    // Made once: the first stretch of a row overwrites what the last group left.
    let mut totals = [[_mm256_setzero_si256(); R]; 8];
    for (group, codes) in codes.chunks(8 * words).enumerate() {
        for from in (0..blocks).step_by(at_once.max(1)) {
            for (row, totals) in codes.chunks_exact(words).zip(totals.iter_mut()) {
                for b0 in (from..blocks.min(from + at_once)).step_by(STRETCH) {
                    let short = stretch::<R>(row, b0..blocks.min(b0 + STRETCH), arranged);
                    // Straight from the registers: an array between would go through memory.
                    for (total, short) in totals.iter_mut().zip(&short) {
                        let sum = _mm256_madd_epi16(*short, _mm256_set1_epi16(1));
                        *total = if b0 == 0 { sum } else { _mm256_add_epi32(*total, sum) };
                    }
                }
            }
        }
        for (r, line) in sums.chunks_exact_mut(OUTS).enumerate().take(R) {
            let sum = reduce(std::array::from_fn(|i| totals[i][r]));
            // SAFETY: there are at most OUTS / 8 groups of eight, as many as codes were asserted to be.
            unsafe { _mm256_storeu_si256(line.as_mut_ptr().add(group * 8).cast(), sum) };
        }
    }
}

/// The sums of eight vectors' lanes, as one vector.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn reduce(v: [std::arch::x86_64::__m256i; 8]) -> std::arch::x86_64::__m256i {
    use std::arch::x86_64::{_mm256_add_epi32, _mm256_hadd_epi32, _mm256_permute2x128_si256};
    let four = |i: usize| _mm256_hadd_epi32(_mm256_hadd_epi32(v[i], v[i + 1]), _mm256_hadd_epi32(v[i + 2], v[i + 3]));
    // Each holds its four sums once for the low and once for the high half of the lanes.
    let (a, b) = (four(0), four(4));
    _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
}

/// 16-bit sums of some vectors of one output's codes with the activations of `R` tokens.
#[target_feature(enable = "avx2")]
#[inline]
fn stretch<const R: usize>(row: &[u32], blocks: std::ops::Range<usize>, arranged: &[u32]) -> [std::arch::x86_64::__m256i; R] {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm256_setzero_si256};
    let mut short = [_mm256_setzero_si256(); R];
    let whole = row.len() / LANES;
    assert!(blocks.end <= whole + 1);
    for b in blocks.start..blocks.end.min(whole) {
        let codes = row.as_ptr().wrapping_add(b * LANES);
        // SAFETY: eight words of the row are left; the prefetch is a hint that reads nothing, whatever the address;
        // b is below the blocks of a row, so `arranged` has its vectors (`stretches` asserted the length).
        unsafe {
            if R <= FEW {
                // The codes lie one row after the other; a kilobyte ahead hides the memory's latency.
                _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD).cast());
            }
            multiply(_mm256_loadu_si256(codes.cast()), arranged.as_ptr().add(b * R * 4 * LANES), &mut short);
        }
    }
    if blocks.end > whole {
        // Past the end of the row activations are 0: any code will do.
        let mut tail = [0u32; LANES];
        let rest = &row[whole * LANES..];
        tail[..rest.len()].copy_from_slice(rest);
        // SAFETY: the buffer has eight words; `arranged` as above.
        unsafe { multiply(_mm256_loadu_si256(tail.as_ptr().cast()), arranged.as_ptr().add(whole * R * 4 * LANES), &mut short) };
    }
    short
}

/// Adds the products of 128 codes with the activations of `R` tokens.
///
/// # Safety
/// `arranged` points at 32·R words.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn multiply<const R: usize>(codes: std::arch::x86_64::__m256i, arranged: *const u32, short: &mut [std::arch::x86_64::__m256i; R]) {
    use std::arch::x86_64::{
        _mm256_add_epi16, _mm256_and_si256, _mm256_loadu_si256, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_srli_epi16,
    };
    let mask = _mm256_set1_epi8(3);
    let fields = [
        _mm256_and_si256(codes, mask),
        _mm256_and_si256(_mm256_srli_epi16::<2>(codes), mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask),
        _mm256_and_si256(_mm256_srli_epi16::<6>(codes), mask),
    ];
    for (r, s) in short.iter_mut().enumerate() {
        // SAFETY: vector 4·r + p is below 4·R.
        let product = |p: usize| unsafe { _mm256_maddubs_epi16(fields[p], _mm256_loadu_si256(arranged.add((r * 4 + p) * LANES).cast())) };
        *s = _mm256_add_epi16(*s, _mm256_add_epi16(_mm256_add_epi16(product(0), product(1)), _mm256_add_epi16(product(2), product(3))));
    }
}
