//! The ternary product straight over the packed words (NEON): a load of 64 codes becomes four vectors of 16, which meet
//! the activations of up to eight tokens. The dot-product extension sums in 32 bits at once; without it 64 codes are
//! summed in 16 bits, which cannot overflow, then in 32: exact integers in any order.
#![allow(unsafe_code)]

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vaddvq_s32, vandq_u8, vdupq_n_s8, vdupq_n_s16, vdupq_n_s32, vdupq_n_u8, vget_low_s8, vld1q_s8, vld1q_u8,
    vmlal_high_s8, vmlal_s8, vpadalq_s16, vreinterpretq_s8_u8, vshrq_n_u8,
};

use super::Shape;
use super::packed::{self, Block, FEW, OUTS, Sums};
use super::product::{Product, Target};

/// Words of codes in a vector.
const LANES: usize = 4;
/// Vectors of codes whose activations stay in the nearest cache: 16 KiB for eight tokens.
const STRETCH: usize = 32;

/// 64 codes or activations: those of each field of four words.
type Fields = [int8x16_t; 4];

/// A way to add 64 products to four sums.
trait Add: Fn(int32x4_t, Fields, Fields) -> int32x4_t + Copy {}
impl<F: Fn(int32x4_t, Fields, Fields) -> int32x4_t + Copy> Add for F {}

/// The product, where there is the dot-product extension.
pub(crate) fn dotprod(s: &Shape, ops: &Product<'_>, y: &Target<'_>) {
    #[target_feature(enable = "neon,dotprod")]
    fn sum(block: &Block<'_>, sums: &mut Sums) {
        tokens(block, sums, |total, codes, q| dots(total, codes, q));
    }
    assert!(std::arch::is_aarch64_feature_detected!("dotprod"));
    // SAFETY: as asserted.
    packed::product::<LANES>(s, ops, y, |block, sums| unsafe { sum(block, sums) });
}

/// The product with what every aarch64 has.
pub(crate) fn plain(s: &Shape, ops: &Product<'_>, y: &Target<'_>) {
    #[target_feature(enable = "neon")]
    fn sum(block: &Block<'_>, sums: &mut Sums) {
        tokens(block, sums, |total, codes, q| products(total, codes, q));
    }
    // SAFETY: NEON is always there.
    packed::product::<LANES>(s, ops, y, |block, sums| unsafe { sum(block, sums) });
}

/// Adds 64 products to four sums.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dots(mut total: int32x4_t, codes: Fields, q: Fields) -> int32x4_t {
    for (c, q) in codes.into_iter().zip(q) {
        // SAFETY: arithmetic on registers; the instruction is there (its intrinsic is not stable yet).
        unsafe {
            std::arch::asm!(
                "sdot {total:v}.4s, {c:v}.16b, {q:v}.16b",
                total = inout(vreg) total, c = in(vreg) c, q = in(vreg) q,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
    }
    total
}

/// As [`dots`]: each of eight 16-bit sums has eight products of at most 2·128.
#[target_feature(enable = "neon")]
#[inline]
fn products(total: int32x4_t, codes: Fields, q: Fields) -> int32x4_t {
    let mut short = vdupq_n_s16(0);
    for (c, q) in codes.into_iter().zip(q) {
        short = vmlal_s8(short, vget_low_s8(c), vget_low_s8(q));
        short = vmlal_high_s8(short, c, q);
    }
    vpadalq_s16(total, short)
}

/// The sums of a block: outputs at a time such that there are chains enough to hide the latency of an addition, and
/// registers enough for the fields.
///
/// This and what it calls is always inlined, so that it is compiled with the features of its caller.
#[inline(always)]
fn tokens(block: &Block<'_>, sums: &mut Sums, add: impl Add) {
    match block.rows {
        1 => stretches::<1, 4>(block, sums, add),
        2 => stretches::<2, 4>(block, sums, add),
        3 => stretches::<3, 2>(block, sums, add),
        4 => stretches::<4, 2>(block, sums, add),
        5 => stretches::<5, 2>(block, sums, add),
        6 => stretches::<6, 2>(block, sums, add),
        7 => stretches::<7, 2>(block, sums, add),
        _ => stretches::<8, 2>(block, sums, add),
    }
}

/// The sums of `R` tokens, `O` outputs at a time.
#[inline(always)]
fn stretches<const R: usize, const O: usize>(block: &Block<'_>, sums: &mut Sums, add: impl Add) {
    let Block { codes, words, arranged, .. } = *block;
    let (outs, vectors) = (codes.len() / words, words.div_ceil(LANES));
    // Few tokens: codes come from memory, whole rows side by side. Many: the activations of a stretch stay in the nearest cache.
    let at_once = if R <= FEW { vectors } else { STRETCH };
    // SAFETY: NEON is always there.
    let mut totals = [[unsafe { vdupq_n_s32(0) }; R]; OUTS];
    for from in (0..vectors).step_by(at_once) {
        for (i, totals) in totals.as_chunks_mut::<O>().0.iter_mut().enumerate().take(outs.div_ceil(O)) {
            // Missing outputs are padded with the last one: their sums are never read.
            let rows = std::array::from_fn(|o| &codes[(i * O + o).min(outs - 1) * words..][..words]);
            stretch(rows, from..vectors.min(from + at_once), arranged, totals, add);
        }
    }
    for (o, totals) in totals.iter().enumerate() {
        for (r, total) in totals.iter().enumerate() {
            // SAFETY: as above.
            sums[r * OUTS + o] = unsafe { vaddvq_s32(*total) };
        }
    }
}

/// Adds the products of some vectors of `O` outputs' codes with the activations of `R` tokens.
#[inline(always)]
fn stretch<const R: usize, const O: usize>(
    rows: [&[u32]; O],
    vectors: std::ops::Range<usize>,
    arranged: &[u32],
    totals: &mut [[int32x4_t; R]; O],
    add: impl Add,
) {
    let words = rows[0].len();
    let whole = words / LANES;
    assert!(vectors.end <= words.div_ceil(LANES) && rows.iter().all(|row| row.len() == words));
    assert!(arranged.len() >= R * vectors.end * 4 * LANES);
    let mut sums = *totals;
    for v in vectors.start..vectors.end.min(whole) {
        // SAFETY: four words of each row are left, and `arranged` has the vectors of all below `vectors.end`.
        unsafe { multiply(rows.map(|row| row.as_ptr().add(v * LANES)), arranged.as_ptr().add(v * R * 4 * LANES), &mut sums, add) };
    }
    if vectors.end > whole {
        // Past the end of the row activations are 0: any code will do.
        let tails = rows.map(|row| {
            let mut tail = [0u32; LANES];
            tail[..words - whole * LANES].copy_from_slice(&row[whole * LANES..]);
            tail
        });
        // SAFETY: each buffer has four words; `arranged` as above.
        unsafe { multiply(tails.each_ref().map(|t| t.as_ptr()), arranged.as_ptr().add(whole * R * 4 * LANES), &mut sums, add) };
    }
    *totals = sums;
}

/// Adds the products of 64 codes of `O` outputs with the activations of `R` tokens.
///
/// # Safety
/// Each of `rows` points at 4 words, `arranged` at 16·R.
#[inline(always)]
unsafe fn multiply<const R: usize, const O: usize>(
    rows: [*const u32; O],
    arranged: *const u32,
    totals: &mut [[int32x4_t; R]; O],
    add: impl Add,
) {
    // SAFETY (all): NEON is always there; the caller's promise, and vector 4·r + p is below 4·R.
    let mut codes = [[unsafe { vdupq_n_s8(0) }; 4]; O];
    for (codes, row) in codes.iter_mut().zip(rows) {
        *codes = unsafe { fields(row) };
    }
    // Written out: the compiler does not unroll so long a loop, and sums that a variable picks lie in memory.
    macro_rules! each {
        ($($r:literal)*) => {$(
            if $r < R {
                unsafe { token($r, &codes, arranged, totals, add) };
            }
        )*};
    }
    each!(0 1 2 3 4 5 6 7);
}

/// Adds the products of 64 codes of `O` outputs with the activations of token `r`.
///
/// # Safety
/// `arranged` points at 16·R words.
#[inline(always)]
unsafe fn token<const R: usize, const O: usize>(
    r: usize,
    codes: &[Fields; O],
    arranged: *const u32,
    totals: &mut [[int32x4_t; R]; O],
    add: impl Add,
) {
    // SAFETY: NEON is always there; vector 4·r + p is below 4·R.
    let q = |p: usize| unsafe { vld1q_s8(arranged.add((r * 4 + p) * LANES).cast()) };
    let q = [q(0), q(1), q(2), q(3)];
    for (totals, codes) in totals.iter_mut().zip(codes) {
        totals[r] = add(totals[r], *codes, q);
    }
}

/// The fields of four words.
///
/// # Safety
/// `words` points at four words.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn fields(words: *const u32) -> Fields {
    // SAFETY: the caller's promise.
    let words = unsafe { vld1q_u8(words.cast()) };
    let field = |shifted| vreinterpretq_s8_u8(vandq_u8(shifted, vdupq_n_u8(3)));
    [field(words), field(vshrq_n_u8::<2>(words)), field(vshrq_n_u8::<4>(words)), field(vshrq_n_u8::<6>(words))]
}
