//! CPU twins of the peak loops: as many chains in registers as hide the latency of the unit.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};

/// Chains of a block: twelve vectors of eight.
const BLOCK: usize = 96;
const CODES: u32 = 0x0201_0201;
const Q: u32 = 0x7f40_c103;
const FLIP: u32 = 0x0101_0101;

pub(crate) fn fma(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [out] = bufs.take();
    let n = s.n as usize;
    out.f32_mut()[..n].par_chunks_mut(BLOCK).enumerate().for_each(|(b, out)| {
        let mut x: [f32; BLOCK] = std::array::from_fn(|i| (b * BLOCK + i) as f32 / n as f32);
        chains(s.rounds, &mut x);
        out.copy_from_slice(&x[..out.len()]);
    });
}

crate::simd! {
    fn chains(rounds: u32, x: &mut [f32; BLOCK]) {
        let mut y = *x;
        for _ in 0..rounds {
            for v in &mut y {
                *v = v.mul_add(0.999, 0.001);
            }
        }
        *x = y;
    }
}

pub(crate) fn dot(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [out] = bufs.take();
    out.i32_mut()[..s.n as usize].par_chunks_mut(BLOCK).for_each(|out| {
        let mut sums = [0i32; BLOCK];
        #[cfg(target_arch = "x86_64")]
        if crate::simd::avx2() {
            // SAFETY: AVX2 was just detected.
            unsafe { dots_avx2(s.rounds, &mut sums) };
            out.copy_from_slice(&sums[..out.len()]);
            return;
        }
        dots(s.rounds, &mut sums);
        out.copy_from_slice(&sums[..out.len()]);
    });
}

fn dots(rounds: u32, sums: &mut [i32; BLOCK]) {
    let product = |q: u32| -> i32 { (0..4).map(|b| i32::from((CODES >> (8 * b)) as i8) * i32::from((q >> (8 * b)) as i8)).sum() };
    for r in 0..rounds {
        let q = std::hint::black_box(Q) ^ if r % 2 == 1 { FLIP } else { 0 };
        sums.iter_mut().for_each(|s| *s = s.wrapping_add(product(q)));
    }
}

/// The multiply-adds of the ternary product: pairs in 16 bits for 32 rounds, then in 32.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dots_avx2(rounds: u32, sums: &mut [i32; BLOCK]) {
    use std::arch::x86_64::{
        _mm256_add_epi16, _mm256_add_epi32, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_epi32,
        _mm256_setzero_si256, _mm256_storeu_si256,
    };
    let codes = _mm256_set1_epi32(std::hint::black_box(CODES) as i32);
    let q = [Q, Q ^ FLIP].map(|q| _mm256_set1_epi32(std::hint::black_box(q) as i32));
    let mut totals = [_mm256_setzero_si256(); BLOCK / 8];
    for start in (0..rounds).step_by(32) {
        let mut short = [_mm256_setzero_si256(); BLOCK / 8];
        for r in start..rounds.min(start + 32) {
            let q = std::hint::black_box(q[(r % 2) as usize]);
            for s in &mut short {
                *s = _mm256_add_epi16(*s, _mm256_maddubs_epi16(codes, q));
            }
        }
        for (t, s) in totals.iter_mut().zip(short) {
            *t = _mm256_add_epi32(*t, _mm256_madd_epi16(s, _mm256_set1_epi16(1)));
        }
    }
    for (t, sums) in totals.iter().zip(sums.chunks_exact_mut(8)) {
        // SAFETY: eight sums are the vector's size.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), *t) };
    }
}
