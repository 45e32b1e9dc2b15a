//! Register tiles of the ternary product: `acc[row, out] = Σ_k Σ_j code[k, out]_j · q[row, k]_j` over words of four.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Tokens of a tile.
pub(crate) const ROWS: usize = 8;
/// Outputs of a tile.
pub(crate) const OUTS: usize = 32;

/// A version of the tile.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// For test messages.
    #[allow(dead_code)]
    pub name: &'static str,
    /// Whether it uses the CPU's own dot product of bytes: faster than the packed words for many tokens.
    pub byte_dots: bool,
    /// `(words, rows, q [rows, words], panel [words, OUTS], acc [ROWS, OUTS])`.
    pub run: fn(usize, usize, &[u32], &[u32], &mut [i32; ROWS * OUTS]),
}

/// The widest tile that this CPU has.
pub(crate) fn best() -> Tile {
    static BEST: OnceLock<Tile> = OnceLock::new();
    *BEST.get_or_init(|| *all().first().unwrap_or(&PORTABLE))
}

/// Every version that this CPU can run, widest first.
#[allow(clippy::vec_init_then_push)] // what is pushed depends on the architecture
pub(crate) fn all() -> Vec<Tile> {
    let mut tiles = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if crate::simd::avx512() && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the features were just detected.
            tiles.push(Tile { name: "vnni", byte_dots: true, run: |k, m, q, p, acc| unsafe { vnni(k, m, q, p, acc) } });
        }
    }
    tiles.push(PORTABLE);
    tiles
}

const PORTABLE: Tile = Tile { name: "portable", byte_dots: false, run: portable };

fn portable(words: usize, rows: usize, q: &[u32], panel: &[u32], acc: &mut [i32; ROWS * OUTS]) {
    acc.fill(0);
    for r in 0..rows {
        for (k, codes) in panel.chunks_exact(OUTS).enumerate().take(words) {
            let a = q[r * words + k].to_le_bytes().map(|b| i32::from(b as i8));
            for (acc, c) in acc[r * OUTS..(r + 1) * OUTS].iter_mut().zip(codes) {
                let c = c.to_le_bytes();
                *acc += a[0] * i32::from(c[0]) + a[1] * i32::from(c[1]) + a[2] * i32::from(c[2]) + a[3] * i32::from(c[3]);
            }
        }
    }
}

/// Fewer rows than the tile has are padded with the last one: their sums are never read.
#[cfg(target_arch = "x86_64")]
fn row_starts(words: usize, rows: usize) -> [usize; ROWS] {
    std::array::from_fn(|r| r.min(rows - 1) * words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn vnni(words: usize, rows: usize, q: &[u32], panel: &[u32], acc: &mut [i32; ROWS * OUTS]) {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512};
    assert!(rows > 0 && q.len() >= rows * words && panel.len() >= words * OUTS);
    let at = row_starts(words, rows);
    let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
    for k in 0..words {
        // SAFETY: k < words, and the lengths of panel and q were asserted above.
        unsafe {
            let p = panel.as_ptr().add(k * OUTS);
            let (w0, w1) = (_mm512_loadu_si512(p.cast()), _mm512_loadu_si512(p.add(16).cast()));
            for (r, s) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_epi32(*q.as_ptr().add(at[r] + k) as i32);
                s[0] = _mm512_dpbusd_epi32(s[0], w0, a);
                s[1] = _mm512_dpbusd_epi32(s[1], w1, a);
            }
        }
    }
    for (r, s) in sums.iter().enumerate() {
        // SAFETY: r < ROWS; two vectors of 16 words fill a row of the accumulator.
        unsafe {
            _mm512_storeu_si512(acc.as_mut_ptr().add(r * OUTS).cast(), s[0]);
            _mm512_storeu_si512(acc.as_mut_ptr().add(r * OUTS + 16).cast(), s[1]);
        }
    }
}
