//! Register tiles of the ternary product: `acc[row, out] += Σ_j code[k, out]_j · q[row, k]_j` over words of four.
#![allow(unsafe_code)]

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
    /// `(words, rows, q [rows, words], panel [words, OUTS], acc [ROWS, OUTS])`.
    pub run: fn(usize, usize, &[u32], &[u32], &mut [i32; ROWS * OUTS]),
}

/// The widest tile that this CPU has.
pub(crate) fn best() -> Tile {
    *all().first().unwrap_or(&PORTABLE)
}

/// Every version that this CPU can run, widest first.
pub(crate) fn all() -> Vec<Tile> {
    let mut tiles = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if crate::simd::avx512() && is_x86_feature_detected!("avx512vnni") {
            // SAFETY (both closures): the features were just detected.
            tiles.push(Tile { name: "vnni", run: |k, m, q, p, acc| unsafe { vnni(k, m, q, p, acc) } });
        }
        if crate::simd::avx2() {
            tiles.push(Tile { name: "avx2", run: |k, m, q, p, acc| unsafe { avx2(k, m, q, p, acc) } });
        }
    }
    tiles.push(PORTABLE);
    tiles
}

const PORTABLE: Tile = Tile { name: "portable", run: portable };

fn portable(words: usize, rows: usize, q: &[u32], panel: &[u32], acc: &mut [i32; ROWS * OUTS]) {
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(words: usize, rows: usize, q: &[u32], panel: &[u32], acc: &mut [i32; ROWS * OUTS]) {
    use std::arch::x86_64::{
        _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_epi32,
        _mm256_setzero_si256, _mm256_storeu_si256,
    };
    assert!(rows > 0 && q.len() >= rows * words && panel.len() >= words * OUTS);
    let at = row_starts(words, rows);
    let ones = _mm256_set1_epi16(1);
    // Two rows by 32 outputs at a time: eight sums stay in registers. A pair of products is at most 2·2·127 = 508.
    for r0 in (0..rows).step_by(2) {
        let mut sums = [[_mm256_setzero_si256(); 4]; 2];
        for k in 0..words {
            // SAFETY: k < words, and the lengths of panel and q were asserted above.
            unsafe {
                let p = panel.as_ptr().add(k * OUTS);
                for (i, s) in sums.iter_mut().enumerate() {
                    let a = _mm256_set1_epi32(*q.as_ptr().add(at[(r0 + i).min(ROWS - 1)] + k) as i32);
                    for (j, s) in s.iter_mut().enumerate() {
                        let w = _mm256_loadu_si256(p.add(j * 8).cast());
                        *s = _mm256_add_epi32(*s, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), ones));
                    }
                }
            }
        }
        for (i, s) in sums.iter().enumerate() {
            if r0 + i < ROWS {
                for (j, v) in s.iter().enumerate() {
                    // SAFETY: r0 + i < ROWS and j < 4, within the accumulator.
                    unsafe { _mm256_storeu_si256(acc.as_mut_ptr().add((r0 + i) * OUTS + j * 8).cast(), *v) };
                }
            }
        }
    }
}
