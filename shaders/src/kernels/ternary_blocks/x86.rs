//! Both products with AVX-512 and VNNI, and with AVX2: the integers are exact in any order, the floats in that of the module.
#![allow(unsafe_code)]

use super::blocks::{few, many};

/// So few rows that reading the codes is what takes the time: they lie one row after the other.
const FEW: usize = 2;
/// Words that are asked for ahead of their use: a kilobyte hides the memory's latency.
const AHEAD: usize = 256;

/// The ways to compute a few rows that this CPU has.
pub(super) fn few(paths: &mut Vec<few::Path>) {
    if vnni_here() {
        // SAFETY (all four): the features were just detected.
        paths.push(few::Path {
            name: "vnni",
            run: |by_block| match by_block {
                true => |b, out| unsafe { vnni::outputs::<true>(b, out) },
                false => |b, out| unsafe { vnni::outputs::<false>(b, out) },
            },
        });
    }
    if crate::simd::avx2() {
        paths.push(few::Path {
            name: "avx2",
            run: |by_block| match by_block {
                true => |b, out| unsafe { avx2::outputs::<true>(b, out) },
                false => |b, out| unsafe { avx2::outputs::<false>(b, out) },
            },
        });
    }
}

/// The ways to compute many rows that this CPU has.
pub(super) fn many(paths: &mut Vec<many::Path>) {
    if vnni_here() {
        // SAFETY: the features were just detected.
        paths.push(many::Path { name: "vnni", run: |b, out| unsafe { vnni::block(b, out) } });
    }
    if crate::simd::avx2() {
        // SAFETY: the features were just detected.
        paths.push(many::Path { name: "avx2", run: |b, out| unsafe { avx2::block(b, out) } });
    }
}

fn vnni_here() -> bool {
    crate::simd::avx512() && is_x86_feature_detected!("avx512vnni")
}

/// What the vectors of both instruction sets read: checked once for each call.
fn check_few(b: &few::Block<'_>, out: &[f32]) {
    let (n, outputs) = (b.vectors_of_row(), b.outputs());
    assert!(b.words > 0 && b.codes.len() == outputs * b.words && b.scales.len() >= outputs * n);
    assert!((1..=few::ROWS).contains(&b.rows) && b.vectors.len() >= n * b.rows);
    assert!(outputs == 0 || out.len() >= (outputs - 1) * b.ld + b.rows);
}

fn check_many(b: &many::Block<'_>, rows: usize) {
    let groups = b.words.div_ceil(4);
    assert!(rows > 0 && rows <= many::ROWS && b.codes.len() >= b.words * many::OUTS && b.scales.len() >= groups * many::OUTS);
    assert!(b.q.len() >= rows * 4 * b.words && b.sums.len() >= rows * groups && (b.steps.is_empty() || b.steps.len() >= rows * groups));
}

mod vnni {
    use std::arch::x86_64::*;

    use super::few::{self, LANES};
    use super::many::{Block, OUTS};

    /// Some outputs with some rows; with three or four two outputs meet the same activations in registers.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn outputs<const BLOCKS: bool>(b: &few::Block<'_>, out: &mut [f32]) {
        super::check_few(b, out);
        match b.rows {
            // Where codes come from the memory the shorter vectors are a tenth faster, within the caches slower.
            1 | 2 => super::avx2::outputs::<BLOCKS>(b, out),
            3 => by::<BLOCKS, 3, 2>(b, out),
            4 => by::<BLOCKS, 4, 2>(b, out),
            5 => by::<BLOCKS, 5, 1>(b, out),
            6 => by::<BLOCKS, 6, 1>(b, out),
            7 => by::<BLOCKS, 7, 1>(b, out),
            _ => by::<BLOCKS, 8, 1>(b, out),
        }
    }

    /// `O` outputs at a time, then what is left.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn by<const BLOCKS: bool, const R: usize, const O: usize>(b: &few::Block<'_>, out: &mut [f32]) {
        let outputs = b.outputs();
        let whole = outputs / O * O;
        for o in (0..whole).step_by(O) {
            rows::<BLOCKS, R, O>(b, o, out);
        }
        for o in whole..outputs {
            rows::<BLOCKS, R, 1>(b, o, out);
        }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn rows<const BLOCKS: bool, const R: usize, const O: usize>(b: &few::Block<'_>, first: usize, out: &mut [f32]) {
        let (n, words) = (b.vectors_of_row(), b.words);
        let mut lanes = [[_mm512_setzero_ps(); R]; O];
        for i in 0..n {
            // Past the end of the row activations are 0: any code will do.
            let left = words - i * LANES;
            let there = if left >= LANES { u16::MAX } else { (1u16 << left) - 1 };
            for (o, lanes) in lanes.iter_mut().enumerate() {
                let codes = b.codes.as_ptr().wrapping_add((first + o) * words + i * LANES);
                // SAFETY: the words of a row that are left, and four floats of its scales, which `check_few` found.
                let (codes, scale) = unsafe {
                    (_mm512_maskz_loadu_epi32(there, codes.cast()), _mm_loadu_ps(b.scales.as_ptr().add((first + o) * n + i).cast()))
                };
                let scale =
                    _mm512_permutexvar_ps(_mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0), _mm512_castps128_ps512(scale));
                let mask = _mm512_set1_epi8(3);
                let fields = [
                    _mm512_and_si512(codes, mask),
                    _mm512_and_si512(_mm512_srli_epi16::<2>(codes), mask),
                    _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask),
                    _mm512_and_si512(_mm512_srli_epi16::<6>(codes), mask),
                ];
                for (r, lanes) in lanes.iter_mut().enumerate() {
                    // SAFETY: a vector that `check_few` found, and sixteen words of its arrays of sixteen.
                    unsafe {
                        let v = b.vectors.as_ptr().add(i * R + r);
                        let load = |a: *const [u32; LANES]| _mm512_loadu_si512(a.cast());
                        let mut sums = _mm512_loadu_si512((&raw const (*v).sums).cast());
                        for (p, field) in fields.iter().enumerate() {
                            sums = _mm512_dpbusd_epi32(sums, *field, load(&raw const (*v).fields[p]));
                        }
                        let mut d = _mm512_cvtepi32_ps(sums);
                        if BLOCKS {
                            d = _mm512_mul_ps(d, _mm512_loadu_ps((&raw const (*v).steps).cast()));
                        }
                        *lanes = _mm512_fmadd_ps(d, scale, *lanes);
                    }
                }
            }
        }
        for (o, lanes) in lanes.iter().enumerate() {
            for (r, lanes) in lanes.iter().enumerate() {
                out[(first + o) * b.ld + r] = tree(*lanes);
            }
        }
    }

    /// The sum of sixteen lanes as `fold` adds them: halves onto halves.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn tree(v: __m512) -> f32 {
        let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    /// A block of outputs with some rows.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn block(b: &Block<'_>, out: &mut [f32]) {
        let rows = out.len() / OUTS;
        super::check_many(b, rows);
        match rows {
            1 => tile::<1>(b, out),
            2 => tile::<2>(b, out),
            3 => tile::<3>(b, out),
            4 => tile::<4>(b, out),
            5 => tile::<5>(b, out),
            6 => tile::<6>(b, out),
            7 => tile::<7>(b, out),
            _ => tile::<8>(b, out),
        }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn tile<const R: usize>(b: &Block<'_>, out: &mut [f32]) {
        let mask = _mm512_set1_epi8(3);
        let (words, groups) = (b.words, b.words.div_ceil(4));
        assert!(out.len() >= R * OUTS);
        for g in 0..groups {
            let mut sums: [[__m512i; 2]; R] = std::array::from_fn(|r| [_mm512_set1_epi32(b.sums[r * groups + g]); 2]);
            for w in 4 * g..words.min(4 * g + 4) {
                // SAFETY: `check_many` found all words of codes.
                let codes: [__m512i; 2] =
                    std::array::from_fn(|i| unsafe { _mm512_loadu_si512(b.codes.as_ptr().add(w * OUTS + 16 * i).cast()) });
                let fields = [
                    codes.map(|c| _mm512_and_si512(c, mask)),
                    codes.map(|c| _mm512_and_si512(_mm512_srli_epi16::<2>(c), mask)),
                    codes.map(|c| _mm512_and_si512(_mm512_srli_epi16::<4>(c), mask)),
                    codes.map(|c| _mm512_and_si512(_mm512_srli_epi16::<6>(c), mask)),
                ];
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (p, field) in fields.iter().enumerate() {
                        // SAFETY: `check_many` found all activations.
                        let a = _mm512_set1_epi32(unsafe { *b.q.as_ptr().add((r * words + w) * 4 + p) } as i32);
                        sums[0] = _mm512_dpbusd_epi32(sums[0], field[0], a);
                        sums[1] = _mm512_dpbusd_epi32(sums[1], field[1], a);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let step = b.steps.get(r * groups + g).map(|s| _mm512_set1_ps(*s));
                for (i, sum) in sums.iter().enumerate() {
                    // SAFETY: within the scales that `check_many` found, and the rows of `out`.
                    unsafe {
                        let at = out.as_mut_ptr().add(r * OUTS + 16 * i);
                        let scale = _mm512_loadu_ps(b.scales.as_ptr().add(g * OUTS + 16 * i));
                        let d = _mm512_cvtepi32_ps(*sum);
                        let d = step.map_or(d, |s| _mm512_mul_ps(d, s));
                        _mm512_storeu_ps(at, _mm512_fmadd_ps(d, scale, _mm512_loadu_ps(at)));
                    }
                }
            }
        }
    }
}

mod avx2 {
    use std::arch::x86_64::*;

    use super::few::{self, LANES, Vector};
    use super::many::{Block, OUTS};
    use crate::simd::math::fold;

    /// Some outputs with some rows, two at a time: the registers hold no more.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn outputs<const BLOCKS: bool>(b: &few::Block<'_>, out: &mut [f32]) {
        super::check_few(b, out);
        let n = b.vectors_of_row();
        for (o, (codes, scales)) in b.codes.chunks_exact(b.words).zip(b.scales.chunks_exact(n)).enumerate() {
            for r in (0..b.rows).step_by(2) {
                let out = &mut out[o * b.ld + r..];
                match b.rows - r {
                    1 => some::<BLOCKS, 1>(codes, scales, b.vectors, (b.rows, r), &mut out[..1]),
                    _ => some::<BLOCKS, 2>(codes, scales, b.vectors, (b.rows, r), &mut out[..2]),
                }
            }
        }
    }

    /// `R` rows from row `first` of `all` on.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn some<const BLOCKS: bool, const R: usize>(
        codes: &[u32],
        scales: &[[f32; 4]],
        vectors: &[Vector],
        (all, first): (usize, usize),
        out: &mut [f32],
    ) {
        let (mask, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
        let mut lanes = [[_mm256_setzero_ps(); 2]; R];
        for (b, (words, scale)) in codes.chunks(LANES).zip(scales).enumerate() {
            let mut sixteen = [0u32; LANES];
            // Past the end of the row activations are 0: any code will do.
            let words = if let Some(whole) = words.first_chunk::<LANES>() {
                whole
            } else {
                sixteen[..words.len()].copy_from_slice(words);
                &sixteen
            };
            if R <= super::FEW {
                crate::simd::fetch(words.as_ptr().wrapping_add(super::AHEAD));
            }
            for half in 0..2 {
                // SAFETY: eight words of sixteen.
                let codes = unsafe { _mm256_loadu_si256(words.as_ptr().add(8 * half).cast()) };
                let fields = [
                    _mm256_and_si256(codes, mask),
                    _mm256_and_si256(_mm256_srli_epi16::<2>(codes), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<6>(codes), mask),
                ];
                let (low, high) = (_mm_set1_ps(scale[2 * half]), _mm_set1_ps(scale[2 * half + 1]));
                let scale = _mm256_set_m128(high, low);
                for (r, lanes) in lanes.iter_mut().enumerate() {
                    let v = &vectors[b * all + first + r];
                    // SAFETY (all loads): eight elements of arrays of sixteen.
                    let product = |p: usize| unsafe {
                        _mm256_maddubs_epi16(fields[p], _mm256_loadu_si256(v.fields[p].as_ptr().add(8 * half).cast()))
                    };
                    // Four products of at most 508 stay within 16 bits.
                    let short = _mm256_add_epi16(_mm256_add_epi16(product(0), product(1)), _mm256_add_epi16(product(2), product(3)));
                    let minus = unsafe { _mm256_loadu_si256(v.sums.as_ptr().add(8 * half).cast()) };
                    let mut d = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(short, ones), minus));
                    if BLOCKS {
                        d = _mm256_mul_ps(d, unsafe { _mm256_loadu_ps(v.steps.as_ptr().add(8 * half)) });
                    }
                    lanes[half] = _mm256_fmadd_ps(d, scale, lanes[half]);
                }
            }
        }
        for (out, lanes) in out.iter_mut().zip(lanes) {
            let mut sixteen = [0f32; LANES];
            // SAFETY: two times eight floats into an array of sixteen.
            unsafe {
                _mm256_storeu_ps(sixteen.as_mut_ptr(), lanes[0]);
                _mm256_storeu_ps(sixteen.as_mut_ptr().add(8), lanes[1]);
            }
            *out = fold(sixteen);
        }
    }

    /// Outputs of a part of a block: two vectors.
    const PART: usize = 16;

    /// A block of outputs with some rows, four rows and half of the outputs at a time.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn block(b: &Block<'_>, out: &mut [f32]) {
        let rows = out.len() / OUTS;
        super::check_many(b, rows);
        for first in (0..rows).step_by(4) {
            for part in (0..OUTS).step_by(PART) {
                match rows - first {
                    1 => tile::<1>(b, first, part, out),
                    2 => tile::<2>(b, first, part, out),
                    3 => tile::<3>(b, first, part, out),
                    _ => tile::<4>(b, first, part, out),
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn tile<const R: usize>(b: &Block<'_>, first: usize, part: usize, out: &mut [f32]) {
        let (mask, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
        let (words, groups) = (b.words, b.words.div_ceil(4));
        assert!(out.len() >= (first + R) * OUTS && part + PART <= OUTS);
        for g in 0..groups {
            // 16 words of at most 508: sums of a group stay within 16 bits.
            let mut short = [[_mm256_setzero_si256(); 2]; R];
            for w in 4 * g..words.min(4 * g + 4) {
                // SAFETY: `check_many` found all words of codes.
                let mut codes: [__m256i; 2] =
                    std::array::from_fn(|i| unsafe { _mm256_loadu_si256(b.codes.as_ptr().add(w * OUTS + part + 8 * i).cast()) });
                for p in 0..4 {
                    let field = codes.map(|c| _mm256_and_si256(c, mask));
                    for (r, short) in short.iter_mut().enumerate() {
                        // SAFETY: `check_many` found all activations.
                        let a = _mm256_set1_epi32(unsafe { *b.q.as_ptr().add(((first + r) * words + w) * 4 + p) } as i32);
                        for (s, f) in short.iter_mut().zip(field) {
                            *s = _mm256_add_epi16(*s, _mm256_maddubs_epi16(f, a));
                        }
                    }
                    codes = codes.map(|c| _mm256_srli_epi16::<2>(c));
                }
            }
            for (r, short) in short.iter().enumerate() {
                let at = (first + r) * groups + g;
                let step = b.steps.get(at).map(|s| _mm256_set1_ps(*s));
                for (i, short) in short.iter().enumerate() {
                    let sum = _mm256_add_epi32(_mm256_madd_epi16(*short, ones), _mm256_set1_epi32(b.sums[at]));
                    // SAFETY: within the scales that `check_many` found, and the rows of `out`.
                    unsafe {
                        let at = out.as_mut_ptr().add((first + r) * OUTS + part + 8 * i);
                        let scale = _mm256_loadu_ps(b.scales.as_ptr().add(g * OUTS + part + 8 * i));
                        let d = _mm256_cvtepi32_ps(sum);
                        let d = step.map_or(d, |s| _mm256_mul_ps(d, s));
                        _mm256_storeu_ps(at, _mm256_fmadd_ps(d, scale, _mm256_loadu_ps(at)));
                    }
                }
            }
        }
    }
}
