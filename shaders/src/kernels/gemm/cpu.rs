//! CPU twins of the f32 products: operands in panels (see `pack`), register tiles, rows of tiles in parallel.

use rayon::prelude::*;

use super::pack::{Operand, Panels, pack, pack_panel};
use super::tile::{self, Left, MAX_TILE, Out, Tile};
use super::{Shape, TernaryShape};
use crate::kernel::{Bufs, Params};
use crate::kernels::ternary::groups::{Scales, values};
use crate::simd::math::{LANES, fold};
use crate::simd::scratch;

/// Longest chain kept in the packed panels at once (floats along k).
const KC: usize = 384;
/// Floats of B packed at once: all rows of A meet them while they are in a core's cache.
const NC_FLOATS: usize = 192 << 10;
/// A multiple of every tile's width.
const WIDEST: usize = 32;

/// Columns of B that are packed together, `kc` deep.
fn columns_at_once(kc: usize) -> usize {
    (NC_FLOATS / kc.max(1) / WIDEST * WIDEST).max(WIDEST)
}

/// Bytes of a product's panels: the columns of B that are packed together, and `rows` of A.
fn panel_bytes(s: &Shape, tile: Tile, rows: usize) -> u64 {
    let kc = (s.k as usize).min(KC);
    4 * ((rows + (s.n as usize).next_multiple_of(tile.nr).min(columns_at_once(kc))) * kc) as u64
}

/// Scratch where the rows of A are contiguous along k: only the last ones are packed.
pub(crate) fn scratch_of_rows(p: &Params) -> u64 {
    let tile = tile::best();
    panel_bytes(&p.get(), tile, tile.mr)
}

/// Scratch where the columns of A are contiguous: all of it is packed, [`KC`] deep.
pub(crate) fn scratch_of_columns(p: &Params) -> u64 {
    let (s, tile): (Shape, _) = (p.get(), tile::best());
    panel_bytes(&s, tile, (s.m as usize).next_multiple_of(tile.mr))
}

/// Scratch of the products of a decoding step: what comes out, column by column.
pub(crate) fn scratch_of_few(p: &Params) -> u64 {
    let s: Shape = p.get();
    4 * (s.m as usize * s.n as usize) as u64
}

/// The rows of A as the tiles read them: where they are, or packed into panels `[m / mr][kc][mr]`.
#[derive(Clone, Copy)]
enum Rows<'a> {
    Plain { data: &'a [f32], ld: usize },
    Packed(&'a [f32]),
}

impl<'a> Rows<'a> {
    /// Row block `i`; one that is not whole lies in `spare`, where [`Self::pack_rest`] put it.
    fn block(&self, tile: Tile, i: usize, rows: usize, kc: usize, spare: &'a [f32]) -> Left<'a> {
        match *self {
            Rows::Packed(panels) => Left { data: &panels[i * kc * tile.mr..(i + 1) * kc * tile.mr], row: 1, step: tile.mr },
            Rows::Plain { data, ld } if rows == tile.mr => Left { data: &data[i * tile.mr * ld..], row: ld, step: 1 },
            Rows::Plain { .. } => Left { data: spare, row: 1, step: tile.mr },
        }
    }

    /// Packs what is left of `m` rows after the whole blocks, with zeros for the missing ones.
    fn pack_rest(&self, tile: Tile, m: usize, kc: usize, spare: &mut [f32]) {
        let whole = m / tile.mr * tile.mr;
        if let (Rows::Plain { data, ld }, true) = (*self, whole < m) {
            pack_panel(&Operand::KContiguous(data, ld), m, 0, whole, tile.mr, &mut spare[..kc * tile.mr]);
        }
    }
}

pub(crate) fn nn(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    product(&s, Operand::KContiguous(a.f32(), s.k as usize), Operand::OuterContiguous(b.f32(), s.n as usize), c.f32_mut());
}

pub(crate) fn nt(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    product(&s, Operand::KContiguous(a.f32(), s.k as usize), Operand::KContiguous(b.f32(), s.k as usize), c.f32_mut());
}

pub(crate) fn nt_half(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    let k = s.k as usize;
    product(&s, Operand::KContiguous(a.f32(), k), Operand::Half(bytemuck::cast_slice(b.u32()), k), c.f32_mut());
}

pub(crate) fn few_nt(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    let (m, k) = (s.m as usize, s.k as usize);
    let (a, b) = (&a.f32()[..m * k], b.f32());
    by_columns(&s, c.f32_mut(), |first, out| {
        b[first * k..].chunks_exact(k).zip(out.chunks_exact_mut(m)).for_each(|(b, out)| dots_with(a, b, out));
    });
}

pub(crate) fn few_nt_half(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    let (m, k) = (s.m as usize, s.k as usize);
    let (a, b): (&[f32], &[u16]) = (&a.f32()[..m * k], bytemuck::cast_slice(b.u32()));
    by_columns(&s, c.f32_mut(), |first, out| super::half_rows::dots(a, &b[first * k..][..out.len() / m * k], k, out));
}

pub(crate) fn few_nt_ternary(p: &Params, bufs: Bufs<'_>) {
    let TernaryShape { shape: s, groups, .. } = p.get();
    let [a, codes, scale, c] = bufs.take();
    let (m, k) = (s.m as usize, s.k as usize);
    let (a, codes, scales) = (&a.f32()[..m * k], codes.u32(), Scales::of(scale.u32(), groups));
    by_columns(&s, c.f32_mut(), |first, out| {
        scratch::with(k, |b| {
            for (j, out) in out.chunks_exact_mut(m).enumerate() {
                values(codes, scales, k, first + j, 0, b);
                dots_with(a, b, out);
            }
        });
    });
}

/// Products of all rows of `a` with one.
fn dots_with(a: &[f32], b: &[f32], out: &mut [f32]) {
    let k = b.len();
    for (a, out) in a.chunks(4 * k).zip(out.chunks_mut(4)) {
        match out {
            [_, _, _, _] => dot_rows::<4>(a, b, out),
            _ => a.chunks_exact(k).zip(out.chunks_exact_mut(1)).for_each(|(a, out)| dot_rows::<1>(a, b, out)),
        }
    }
}

/// Products whose tasks have some columns of every row: `columns(first, out [count, m])`, turned into `c` afterwards.
fn by_columns(s: &Shape, c: &mut [f32], columns: impl Fn(usize, &mut [f32]) + Sync) {
    const TOGETHER: usize = 64;
    let (m, n) = (s.m as usize, s.n as usize);
    scratch::with(m * n, |turned| {
        turned.par_chunks_mut(m * TOGETHER).enumerate().for_each(|(i, out)| columns(i * TOGETHER, out));
        for (i, c) in c[..m * n].chunks_exact_mut(n).enumerate() {
            for (c, y) in c.iter_mut().zip(turned.chunks_exact(m)) {
                *c = if s.add == 1 { *c + y[i] } else { y[i] };
            }
        }
    });
}

crate::simd! {
    /// Products of `R` rows with one, each as `simd::math::dot` sums it.
    fn dot_rows<R>(a: &[f32], b: &[f32], out: &mut [f32]) {
        let k = b.len();
        let mut sums = [[0f32; LANES]; R];
        let (whole, rest) = b.as_chunks::<LANES>();
        let at = whole.len() * LANES;
        for (r, sum) in sums.iter_mut().enumerate() {
            for (i, y) in rest.iter().enumerate() {
                sum[i] = a[r * k + at + i].mul_add(*y, sum[i]);
            }
        }
        for (j, y) in whole.iter().enumerate() {
            for (r, sum) in sums.iter_mut().enumerate() {
                if let Some(x) = a[r * k + j * LANES..].first_chunk::<LANES>() {
                    for i in 0..LANES {
                        sum[i] = x[i].mul_add(y[i], sum[i]);
                    }
                }
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = fold(sum));
    }
}

pub(crate) fn tn(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    product(&s, Operand::OuterContiguous(a.f32(), s.m as usize), Operand::OuterContiguous(b.f32(), s.n as usize), c.f32_mut());
}

pub(crate) fn nn_ternary(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, codes, scale, c] = bufs.take();
    let b = Operand::Ternary { codes: codes.u32(), scale: scale.f32(), words: (s.n as usize).div_ceil(16) };
    product(&s, Operand::KContiguous(a.f32(), s.k as usize), b, c.f32_mut());
}

pub(crate) fn nt_ternary(p: &Params, bufs: Bufs<'_>) {
    let TernaryShape { shape: s, groups, .. } = p.get();
    let [a, codes, scale, c] = bufs.take();
    let b = Operand::TernaryRows { codes: codes.u32(), scales: Scales::of(scale.u32(), groups), cols: s.k as usize };
    product(&s, Operand::KContiguous(a.f32(), s.k as usize), b, c.f32_mut());
}

pub(crate) fn nn_groups(p: &Params, bufs: Bufs<'_>) {
    let TernaryShape { shape: s, groups, .. } = p.get();
    let [a, codes, scale, c] = bufs.take();
    let b = Operand::TernaryGroups { codes: codes.u32(), scales: Scales::of(scale.u32(), groups), cols: s.n as usize };
    product(&s, Operand::KContiguous(a.f32(), s.k as usize), b, c.f32_mut());
}

pub(crate) fn tn_q8(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, q, scales, c] = bufs.take();
    let b = Operand::Bytes { q: q.u32(), scales: bytemuck::cast_slice(scales.u32()), words: 4 * (s.n as usize).div_ceil(16) };
    product(&s, Operand::OuterContiguous(a.f32(), s.m as usize), b, c.f32_mut());
}

/// `C (+)= A·B` with the best tile of this CPU.
fn product(s: &Shape, a: Operand<'_>, b: Operand<'_>, c: &mut [f32]) {
    product_with(tile::best(), s, a, b, c);
}

/// As [`product`], with a given tile; all tiles give the same bits.
pub(crate) fn product_with(tile: Tile, s: &Shape, a: Operand<'_>, b: Operand<'_>, c: &mut [f32]) {
    let (m, n, k) = (s.m as usize, s.n as usize, s.k as usize);
    let c = &mut c[..m * n];
    if k == 0 && s.add == 0 {
        c.fill(0.0);
    }
    for k0 in (0..k).step_by(KC) {
        let kc = KC.min(k - k0);
        let packed = if let Operand::KContiguous(..) = a { 0 } else { m.div_ceil(tile.mr) * tile.mr * kc };
        scratch::with(packed, |pa| {
            let rows = match a {
                Operand::KContiguous(data, ld) => Rows::Plain { data: &data[k0..], ld },
                _ => {
                    pack(&a, m, k0, 0, kc, tile.mr, pa);
                    Rows::Packed(pa)
                }
            };
            let nc = columns_at_once(kc);
            for n0 in (0..n).step_by(nc) {
                let width = nc.min(n - n0);
                scratch::with(width.div_ceil(tile.nr) * tile.nr * kc, |pb| {
                    pack(&b, n, k0, n0, kc, tile.nr, pb);
                    tiles(tile, s, s.add == 0 && k0 == 0, kc, rows, pb, (n0, width), c);
                });
            }
        });
    }
    if s.symmetric == 1 {
        mirror(c, n);
    }
}

/// Copies the upper triangle of `[n, n]` onto the lower one, block by block through a buffer that stays in the cache.
fn mirror(c: &mut [f32], n: usize) {
    const SIDE: usize = 16;
    let mut block = [[0f32; SIDE]; SIDE];
    for i0 in (0..n).step_by(SIDE) {
        let rows = SIDE.min(n - i0);
        for j0 in (0..=i0).step_by(SIDE) {
            let cols = SIDE.min(n - j0);
            for (j, row) in block.iter_mut().enumerate().take(cols) {
                row[..rows].copy_from_slice(&c[(j0 + j) * n + i0..][..rows]);
            }
            for i in 0..rows {
                let below = if j0 == i0 { i } else { cols };
                let out = &mut c[(i0 + i) * n + j0..][..below];
                for (out, row) in out.iter_mut().zip(&block) {
                    *out = row[i];
                }
            }
        }
    }
}

/// The tiles of columns `n0 .. n0 + width` of C: rows of tiles in parallel, or columns when there are few rows.
/// `fresh`: the chains start from 0, whatever C holds.
#[allow(clippy::too_many_arguments)]
fn tiles(tile: Tile, s: &Shape, fresh: bool, kc: usize, a: Rows<'_>, pb: &[f32], (n0, width): (usize, usize), c: &mut [f32]) {
    let (m, n) = (s.m as usize, s.n as usize);
    let row_blocks = m.div_ceil(tile.mr);
    let panels = width.div_ceil(tile.nr);
    let work = Work { tile, kc, fresh, pb: Panels::of(pb, kc) };
    if row_blocks >= 4 || width <= tile.nr * 2 {
        // Enough row blocks a task that handing them out costs nothing, few enough that all threads have some.
        let few = (1 << 15) / (tile.mr * width * kc / 64).max(1);
        let together = few.max(TOGETHER).min(row_blocks.div_ceil(rayon::current_num_threads() * 4)).clamp(1, MOST);
        c.par_chunks_mut(together * tile.mr * n).enumerate().for_each(|(part, c)| {
            scratch::with(kc * tile.mr, |spare| {
                if (part + 1) * together >= row_blocks {
                    a.pack_rest(tile, m, kc, spare);
                }
                work.blocks(a, s, part * together, (n0, width), c, spare);
            });
        });
        return;
    }
    // Few rows (decoding): split the columns, each part into its own buffer, then copy.
    let per = panels.div_ceil(rayon::current_num_threads() * 4).max(1);
    let parts: Vec<(usize, Vec<f32>)> = (0..panels.div_ceil(per))
        .into_par_iter()
        .map(|part| {
            let (first, last) = (part * per, panels.min((part + 1) * per));
            let (j0, part_width) = (first * tile.nr, width.min(last * tile.nr) - first * tile.nr);
            let old = |i: usize| c[i * n + n0 + j0..i * n + n0 + j0 + part_width].iter().copied();
            let mut out: Vec<f32> = (0..m).flat_map(old).collect();
            scratch::with(kc * tile.mr, |spare| {
                a.pack_rest(tile, m, kc, spare);
                for i in 0..row_blocks {
                    let rows = tile.mr.min(m - i * tile.mr);
                    let c = &mut out[i * tile.mr * part_width..][..rows * part_width];
                    work.row(&a.block(tile, i, rows, kc, spare), rows, first..last, j0, part_width, c, part_width);
                }
            });
            (j0, out)
        })
        .collect();
    for (j0, out) in parts {
        let part_width = out.len() / m;
        for (i, row) in out.chunks_exact(part_width).enumerate() {
            c[i * n + n0 + j0..i * n + n0 + j0 + part_width].copy_from_slice(row);
        }
    }
}

/// Row blocks that meet a panel of B while it is in the nearest cache.
const TOGETHER: usize = 4;
/// Most row blocks of a task.
const MOST: usize = 64;

/// What the tiles of a product share.
struct Work<'a> {
    tile: Tile,
    kc: usize,
    fresh: bool,
    pb: Panels<'a>,
}

impl Work<'_> {
    /// The row blocks from `first` on that `c` holds (whole rows of C), [`TOGETHER`] of them at a time.
    fn blocks(&self, a: Rows<'_>, s: &Shape, first: usize, (n0, width): (usize, usize), c: &mut [f32], spare: &[f32]) {
        let (tile, n) = (self.tile, s.n as usize);
        let panels = width.div_ceil(tile.nr);
        for (group, c) in c.chunks_mut(TOGETHER * tile.mr * n).enumerate() {
            for panel in 0..panels {
                for (i, c) in c.chunks_mut(tile.mr * n).enumerate() {
                    let block = first + group * TOGETHER + i;
                    let below = s.symmetric == 1 && panel + n0 / tile.nr < block * tile.mr / tile.nr;
                    if !below {
                        let rows = c.len() / n;
                        self.row(&a.block(tile, block, rows, self.kc, spare), rows, panel..panel + 1, 0, width, &mut c[n0..], n);
                    }
                }
            }
        }
    }
    /// One row of tiles over the column panels `panels`; `c` holds `rows` rows of columns `j0 .. j0 + width`, `ld` apart.
    #[allow(clippy::too_many_arguments)]
    fn row(&self, a: &Left<'_>, rows: usize, panels: std::ops::Range<usize>, j0: usize, width: usize, c: &mut [f32], ld: usize) {
        let Work { tile, kc, fresh, pb } = *self;
        for panel in panels {
            let j = panel * tile.nr - j0;
            let cols = tile.nr.min(width - j);
            let b = pb.panel(panel, kc, tile.nr);
            if rows == tile.mr && cols == tile.nr {
                tile.run(kc, a, b, Out { c: &mut c[j..], ld, fresh });
                continue;
            }
            // At an edge the tile has a buffer of its own.
            let mut edge = [0f32; MAX_TILE];
            if !fresh {
                for i in 0..rows {
                    edge[i * tile.nr..i * tile.nr + cols].copy_from_slice(&c[i * ld + j..i * ld + j + cols]);
                }
            }
            tile.run(kc, a, b, Out { c: &mut edge, ld: tile.nr, fresh });
            for i in 0..rows {
                c[i * ld + j..i * ld + j + cols].copy_from_slice(&edge[i * tile.nr..i * tile.nr + cols]);
            }
        }
    }
}

/// `C [m, n] (+)= A·B` on the calling thread over the first `k` of a packed B; `left` is scratch for a panel of A.
#[allow(clippy::too_many_arguments)]
pub(crate) fn small(tile: Tile, a: Operand<'_>, m: usize, b: Panels<'_>, n: usize, k: usize, left: &mut [f32], out: Out<'_>) {
    let Out { c, ld, fresh } = out;
    let work = Work { tile, kc: k, fresh, pb: b };
    for i in (0..m).step_by(tile.mr) {
        let rows = tile.mr.min(m - i);
        let c = &mut c[i * ld..(i + rows - 1) * ld + n];
        let left = match a {
            Operand::KContiguous(data, ld) if rows == tile.mr => Left { data: &data[i * ld..], row: ld, step: 1 },
            _ => {
                pack_panel(&a, m, 0, i, tile.mr, &mut left[..k * tile.mr]);
                Left { data: &left[..k * tile.mr], row: 1, step: tile.mr }
            }
        };
        work.row(&left, rows, 0..n.div_ceil(tile.nr), 0, n, c, ld);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed;
        (0..n)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (x >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn every_tile_and_thread_count_gives_the_plain_chain() {
        for (m, n, k) in
            [(1, 1, 1), (5, 17, 3), (13, 33, 70), (64, 40, 1100), (3, 300, 20), (50, 50, 50), (2, 4100, 7), (60, 2100, 9), (7, 700, 320)]
        {
            let (a, b, c) = (random(m * k, 1), random(k * n, 2), random(m * n, 3));
            let turned: Vec<f32> = (0..k * m).map(|e| a[e % m * k + e / m]).collect();
            for add in [0, 1] {
                let mut want = if add == 1 { c.clone() } else { vec![0.0; m * n] };
                for i in 0..m {
                    for j in 0..n {
                        for l in 0..k {
                            want[i * n + j] = a[i * k + l].mul_add(b[l * n + j], want[i * n + j]);
                        }
                    }
                }
                let s = Shape { m: m as u32, n: n as u32, k: k as u32, add, symmetric: 0 };
                for (tile, threads) in tile::all().into_iter().flat_map(|tile| [(tile, 1), (tile, 3)]) {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    for left in [Operand::KContiguous(&a, k), Operand::OuterContiguous(&turned, m)] {
                        let mut got = c.clone();
                        pool.install(|| product_with(tile, &s, left, Operand::OuterContiguous(&b, n), &mut got));
                        assert_eq!(got, want, "{m}x{n}x{k}, add {add}, tile {}x{}, {threads} threads", tile.mr, tile.nr);
                    }
                }
            }
        }
    }
}
