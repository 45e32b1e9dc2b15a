//! Register tiles of the f32 product: `C[MR, NR] ← fma(A[MR, k], B[k, NR], C)`, k ascending, B in panels.
//!
//! Every version runs the same chain of fused multiply-adds per output, so all give the same bits.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Largest tile of any version, in floats.
pub(crate) const MAX_TILE: usize = 12 * 32;

/// The rows of A that a tile reads: element `(i, k)` at `i·row + k·step`. Handed on by reference: a copy would be read in wide
/// loads right after its fields were stored one by one, and wait for them.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub step: usize,
}

impl Left<'_> {
    /// Whether `rows` rows of `kc` elements lie within the data.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn holds(&self, rows: usize, kc: usize) -> bool {
        kc == 0 || self.data.len() > (rows - 1) * self.row + (kc - 1) * self.step
    }
}

/// The tile of C: `mr` rows, `ld` apart.
pub(crate) struct Out<'a> {
    pub c: &'a mut [f32],
    pub ld: usize,
    /// The chains start from 0, whatever C holds.
    pub fresh: bool,
}

impl Out<'_> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn holds(&self, mr: usize, nr: usize) -> bool {
        self.c.len() >= (mr - 1) * self.ld + nr
    }
}

/// A version of the tile: its size and the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Rows of a tile.
    pub mr: usize,
    /// Columns of a tile.
    pub nr: usize,
    /// Its features are there: only [`all`] makes tiles, of what it detected.
    kernel: unsafe fn(usize, &Left<'_>, &[f32], &mut Out<'_>),
}

impl Tile {
    /// Runs over `kc` products of `a` and `b [kc, nr]` into `c`.
    #[inline]
    pub(crate) fn run(&self, kc: usize, a: &Left<'_>, b: &[f32], mut c: Out<'_>) {
        // SAFETY: the instruction set of every kernel was detected (see the field).
        unsafe { (self.kernel)(kc, a, b, &mut c) }
    }
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
        if crate::simd::avx512() {
            tiles.push(Tile { mr: 12, nr: 32, kernel: avx512 });
        }
        if crate::simd::avx2() {
            tiles.push(Tile { mr: 6, nr: 16, kernel: avx2 });
        }
    }
    #[cfg(target_arch = "aarch64")]
    if crate::simd::neon() {
        tiles.push(Tile { mr: 6, nr: 16, kernel: neon });
    }
    tiles.push(PORTABLE);
    tiles
}

const PORTABLE: Tile = Tile { mr: 4, nr: 8, kernel: portable };

fn portable(kc: usize, a: &Left<'_>, b: &[f32], out: &mut Out<'_>) {
    let mut acc = [[0f32; 8]; 4];
    if !out.fresh {
        for (i, row) in acc.iter_mut().enumerate() {
            row.copy_from_slice(&out.c[i * out.ld..i * out.ld + 8]);
        }
    }
    for (k, b) in b.chunks_exact(8).enumerate().take(kc) {
        for (i, row) in acc.iter_mut().enumerate() {
            let x = a.data[i * a.row + k * a.step];
            for (c, &y) in row.iter_mut().zip(b) {
                *c = x.mul_add(y, *c);
            }
        }
    }
    for (i, row) in acc.iter().enumerate() {
        out.c[i * out.ld..i * out.ld + 8].copy_from_slice(row);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(kc: usize, a: &Left<'_>, b: &[f32], out: &mut Out<'_>) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps};
    const MR: usize = 12;
    const NR: usize = 32;
    assert!(a.holds(MR, kc) && b.len() >= kc * NR && out.holds(MR, NR));
    let mut acc = [[_mm512_setzero_ps(); 2]; MR];
    let c = out.c.as_mut_ptr();
    if !out.fresh {
        for (i, row) in acc.iter_mut().enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                // SAFETY: i < MR and j < 2: within the tile, whose extent was asserted above.
                *v = unsafe { _mm512_loadu_ps(c.add(i * out.ld + j * 16)) };
            }
        }
    }
    let (mut pa, mut pb) = (a.data.as_ptr(), b.as_ptr());
    for _ in 0..kc {
        // SAFETY: both pointers advance at most kc times; the extents were asserted above.
        unsafe {
            let b0 = _mm512_loadu_ps(pb);
            let b1 = _mm512_loadu_ps(pb.add(16));
            for (i, row) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*pa.add(i * a.row));
                row[0] = _mm512_fmadd_ps(x, b0, row[0]);
                row[1] = _mm512_fmadd_ps(x, b1, row[1]);
            }
            pb = pb.add(NR);
        }
        pa = pa.wrapping_add(a.step);
    }
    for (i, row) in acc.iter().enumerate() {
        for (j, v) in row.iter().enumerate() {
            // SAFETY: as for the loads.
            unsafe { _mm512_storeu_ps(c.add(i * out.ld + j * 16), *v) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(kc: usize, a: &Left<'_>, b: &[f32], out: &mut Out<'_>) {
    use std::arch::x86_64::{_mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps};
    const MR: usize = 6;
    const NR: usize = 16;
    assert!(a.holds(MR, kc) && b.len() >= kc * NR && out.holds(MR, NR));
    let mut acc = [[_mm256_setzero_ps(); 2]; MR];
    let c = out.c.as_mut_ptr();
    if !out.fresh {
        for (i, row) in acc.iter_mut().enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                // SAFETY: i < MR and j < 2: within the tile, whose extent was asserted above.
                *v = unsafe { _mm256_loadu_ps(c.add(i * out.ld + j * 8)) };
            }
        }
    }
    // Two pointers, to rows 0 and 3: the others are at one and two rows from them, which an address says by itself.
    let (mut upper, mut pb) = (a.data.as_ptr(), b.as_ptr());
    let mut lower = upper.wrapping_add(3 * a.row);
    for _ in 0..kc {
        // SAFETY: all pointers advance at most kc times; the extents were asserted above.
        unsafe {
            let b0 = _mm256_loadu_ps(pb);
            let b1 = _mm256_loadu_ps(pb.add(8));
            for (half, p) in [upper, lower].into_iter().enumerate() {
                for i in 0..3 {
                    let x = _mm256_broadcast_ss(&*p.add(i * a.row));
                    let row = &mut acc[half * 3 + i];
                    row[0] = _mm256_fmadd_ps(x, b0, row[0]);
                    row[1] = _mm256_fmadd_ps(x, b1, row[1]);
                }
            }
            pb = pb.add(NR);
        }
        upper = upper.wrapping_add(a.step);
        lower = lower.wrapping_add(a.step);
    }
    for (i, row) in acc.iter().enumerate() {
        for (j, v) in row.iter().enumerate() {
            // SAFETY: as for the loads.
            unsafe { _mm256_storeu_ps(c.add(i * out.ld + j * 8), *v) };
        }
    }
}

/// Of 32 registers 24 hold sums and 4 a row of B, which leaves the rest to the rows of A: ten loads for 24 multiply-adds,
/// and more chains than the latency of one takes to hide.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon(kc: usize, a: &Left<'_>, b: &[f32], out: &mut Out<'_>) {
    use std::arch::aarch64::{vdupq_n_f32, vfmaq_n_f32, vld1q_f32, vst1q_f32};
    const MR: usize = 6;
    const NR: usize = 16;
    assert!(a.holds(MR, kc) && b.len() >= kc * NR && out.holds(MR, NR));
    let mut acc = [[vdupq_n_f32(0.0); 4]; MR];
    let c = out.c.as_mut_ptr();
    if !out.fresh {
        for (i, row) in acc.iter_mut().enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                // SAFETY: i < MR and j < 4: within the tile, whose extent was asserted above.
                *v = unsafe { vld1q_f32(c.add(i * out.ld + j * 4)) };
            }
        }
    }
    let rows: [*const f32; MR] = std::array::from_fn(|i| a.data.as_ptr().wrapping_add(i * a.row));
    let (mut at, mut pb) = (0, b.as_ptr());
    for _ in 0..kc {
        // SAFETY: the place in the rows and the pointer advance at most kc times; the extents were asserted above.
        unsafe {
            let b = [vld1q_f32(pb), vld1q_f32(pb.add(4)), vld1q_f32(pb.add(8)), vld1q_f32(pb.add(12))];
            for (row, p) in acc.iter_mut().zip(rows) {
                let x = scalar(p, at);
                for (v, b) in row.iter_mut().zip(b) {
                    *v = vfmaq_n_f32(*v, b, x);
                }
            }
            pb = pb.add(NR);
        }
        at += a.step;
    }
    for (i, row) in acc.iter().enumerate() {
        for (j, v) in row.iter().enumerate() {
            // SAFETY: as for the loads.
            unsafe { vst1q_f32(c.add(i * out.ld + j * 4), *v) };
        }
    }
}

/// Element `at` from `p` on, in the lowest lane of a register. The compiler would load it into all lanes, which takes a
/// slot of the pipes that multiply; a multiply-add takes its factor from one lane as well.
///
/// # Safety
/// The element can be read.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
#[inline]
unsafe fn scalar(p: *const f32, at: usize) -> f32 {
    let x: f32;
    // SAFETY: a load of the element that the caller vouches for.
    unsafe {
        std::arch::asm!(
            "ldr {x:s}, [{p}, {at}, lsl #2]",
            x = lateout(vreg) x, p = in(reg) p, at = in(reg) at,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    x
}
