//! Register tiles of the f32 product: `C[MR, NR] ← fma(A[k, MR], B[k, NR], C)` over packed panels, k ascending.
//!
//! Every version runs the same chain of fused multiply-adds per output, so all give the same bits.
#![allow(unsafe_code)]

/// Largest tile of any version, in floats.
pub(crate) const MAX_TILE: usize = 12 * 32;

/// A version of the tile: panel heights and the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Rows of a tile.
    pub mr: usize,
    /// Columns of a tile.
    pub nr: usize,
    /// `(kc, a [kc, mr], b [kc, nr], tile [mr, nr])`.
    pub run: fn(usize, &[f32], &[f32], &mut [f32; MAX_TILE]),
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
        if crate::simd::avx512() {
            // SAFETY (both closures): the features were just detected.
            tiles.push(Tile { mr: 12, nr: 32, run: |k, a, b, t| unsafe { avx512(k, a, b, t) } });
        }
        if crate::simd::avx2() {
            tiles.push(Tile { mr: 6, nr: 16, run: |k, a, b, t| unsafe { avx2(k, a, b, t) } });
        }
    }
    tiles.push(PORTABLE);
    tiles
}

const PORTABLE: Tile = Tile { mr: 4, nr: 8, run: portable };

fn portable(kc: usize, a: &[f32], b: &[f32], tile: &mut [f32; MAX_TILE]) {
    let mut acc = [[0f32; 8]; 4];
    for (i, row) in acc.iter_mut().enumerate() {
        row.copy_from_slice(&tile[i * 8..i * 8 + 8]);
    }
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(8)).take(kc) {
        for (row, &x) in acc.iter_mut().zip(a) {
            for (c, &y) in row.iter_mut().zip(b) {
                *c = x.mul_add(y, *c);
            }
        }
    }
    for (i, row) in acc.iter().enumerate() {
        tile[i * 8..i * 8 + 8].copy_from_slice(row);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(kc: usize, a: &[f32], b: &[f32], tile: &mut [f32; MAX_TILE]) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps};
    const MR: usize = 12;
    const NR: usize = 32;
    assert!(a.len() >= kc * MR && b.len() >= kc * NR);
    let mut acc = [[_mm512_setzero_ps(); 2]; MR];
    let t = tile.as_mut_ptr();
    for (i, row) in acc.iter_mut().enumerate() {
        for (j, v) in row.iter_mut().enumerate() {
            // SAFETY: i < 12 and j < 2, within the 384 floats of the tile.
            *v = unsafe { _mm512_loadu_ps(t.add(i * NR + j * 16)) };
        }
    }
    let (mut pa, mut pb) = (a.as_ptr(), b.as_ptr());
    for _ in 0..kc {
        // SAFETY: both pointers advance kc times by their panel height; the lengths were asserted above.
        unsafe {
            let b0 = _mm512_loadu_ps(pb);
            let b1 = _mm512_loadu_ps(pb.add(16));
            for (i, row) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*pa.add(i));
                row[0] = _mm512_fmadd_ps(x, b0, row[0]);
                row[1] = _mm512_fmadd_ps(x, b1, row[1]);
            }
            pa = pa.add(MR);
            pb = pb.add(NR);
        }
    }
    for (i, row) in acc.iter().enumerate() {
        for (j, v) in row.iter().enumerate() {
            // SAFETY: as for the loads.
            unsafe { _mm512_storeu_ps(t.add(i * NR + j * 16), *v) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(kc: usize, a: &[f32], b: &[f32], tile: &mut [f32; MAX_TILE]) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps};
    const MR: usize = 6;
    const NR: usize = 16;
    assert!(a.len() >= kc * MR && b.len() >= kc * NR);
    let mut acc = [[_mm256_setzero_ps(); 2]; MR];
    let t = tile.as_mut_ptr();
    for (i, row) in acc.iter_mut().enumerate() {
        for (j, v) in row.iter_mut().enumerate() {
            // SAFETY: i < 6 and j < 2, within the tile.
            *v = unsafe { _mm256_loadu_ps(t.add(i * NR + j * 8)) };
        }
    }
    let (mut pa, mut pb) = (a.as_ptr(), b.as_ptr());
    for _ in 0..kc {
        // SAFETY: both pointers advance kc times by their panel height; the lengths were asserted above.
        unsafe {
            let b0 = _mm256_loadu_ps(pb);
            let b1 = _mm256_loadu_ps(pb.add(8));
            for (i, row) in acc.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*pa.add(i));
                row[0] = _mm256_fmadd_ps(x, b0, row[0]);
                row[1] = _mm256_fmadd_ps(x, b1, row[1]);
            }
            pa = pa.add(MR);
            pb = pb.add(NR);
        }
    }
    for (i, row) in acc.iter().enumerate() {
        for (j, v) in row.iter().enumerate() {
            // SAFETY: as for the loads.
            unsafe { _mm256_storeu_ps(t.add(i * NR + j * 8), *v) };
        }
    }
}
