//! CPU twins of the f32 products: both operands packed into panels, register tiles, rows of tiles in parallel.

use rayon::prelude::*;

use super::Shape;
use super::tile::{self, Left, MAX_TILE, Out, Tile};
use crate::kernel::{Bufs, Params};
use crate::kernels::act_quant::RowScale;
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

/// Bytes that the product of a kernel holds beside its operands.
pub(crate) fn scratch_bytes(kernel: &str, s: &Shape) -> u64 {
    let tile = tile::best();
    let (m, n, kc) = (s.m as usize, s.n as usize, (s.k as usize).min(KC));
    let floats = if kernel.starts_with("gemv_nt") {
        m * n
    } else {
        // A is packed where its rows are not contiguous along k; else only the last rows of a product are.
        let rows = if kernel.starts_with("gemm_tn") { m.next_multiple_of(tile.mr) } else { tile.mr };
        (rows + n.next_multiple_of(tile.nr).min(columns_at_once(kc))) * kc
    };
    4 * floats as u64
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
            pack_panel(&Source::KContiguous(data, ld), m, 0, whole, tile.mr, &mut spare[..kc * tile.mr]);
        }
    }
}

/// Where an operand comes from; `at` is its logical element.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// `[outer, k]`: k contiguous.
    KContiguous(&'a [f32], usize),
    /// `[k, outer]`: outer contiguous.
    OuterContiguous(&'a [f32], usize),
    /// `[outer, k]` of float16: k contiguous.
    Half(&'a [u16], usize),
    /// Packed ternary rows `[k, words]` with a scale per k.
    Ternary { codes: &'a [u32], scale: &'a [f32], words: usize },
    /// Packed bytes `[k, words]` with a step per k.
    Bytes { q: &'a [u32], scales: &'a [RowScale], words: usize },
}

pub(crate) fn nn(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    product(&s, Source::KContiguous(a.f32(), s.k as usize), Source::OuterContiguous(b.f32(), s.n as usize), c.f32_mut());
}

pub(crate) fn nt(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    product(&s, Source::KContiguous(a.f32(), s.k as usize), Source::KContiguous(b.f32(), s.k as usize), c.f32_mut());
}

pub(crate) fn nt_half(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    let k = s.k as usize;
    product(&s, Source::KContiguous(a.f32(), k), Source::Half(bytemuck::cast_slice(b.u32()), k), c.f32_mut());
}

pub(crate) fn few_nt(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    let (m, k) = (s.m as usize, s.k as usize);
    let (a, b) = (&a.f32()[..m * k], b.f32());
    by_columns(&s, c.f32_mut(), |first, out| {
        for (b, out) in b[first * k..].chunks_exact(k).zip(out.chunks_exact_mut(m)) {
            for (a, out) in a.chunks(4 * k).zip(out.chunks_mut(4)) {
                match out {
                    [_, _, _, _] => dot_rows::<4>(a, b, out),
                    _ => a.chunks_exact(k).zip(out.chunks_exact_mut(1)).for_each(|(a, out)| dot_rows::<1>(a, b, out)),
                }
            }
        }
    });
}

pub(crate) fn few_nt_half(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, b, c] = bufs.take();
    let (m, k) = (s.m as usize, s.k as usize);
    let (a, b): (&[f32], &[u16]) = (&a.f32()[..m * k], bytemuck::cast_slice(b.u32()));
    by_columns(&s, c.f32_mut(), |first, out| crate::float16::dots(a, &b[first * k..][..out.len() / m * k], k, out));
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
    product(&s, Source::OuterContiguous(a.f32(), s.m as usize), Source::OuterContiguous(b.f32(), s.n as usize), c.f32_mut());
}

pub(crate) fn nn_ternary(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, codes, scale, c] = bufs.take();
    let b = Source::Ternary { codes: codes.u32(), scale: scale.f32(), words: (s.n as usize).div_ceil(16) };
    product(&s, Source::KContiguous(a.f32(), s.k as usize), b, c.f32_mut());
}

pub(crate) fn tn_q8(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [a, q, scales, c] = bufs.take();
    let b = Source::Bytes { q: q.u32(), scales: bytemuck::cast_slice(scales.u32()), words: 4 * (s.n as usize).div_ceil(16) };
    product(&s, Source::OuterContiguous(a.f32(), s.m as usize), b, c.f32_mut());
}

/// `C (+)= A·B` with the best tile of this CPU.
fn product(s: &Shape, a: Source<'_>, b: Source<'_>, c: &mut [f32]) {
    product_with(tile::best(), s, a, b, c);
}

/// As [`product`], with a given tile; all tiles give the same bits.
pub(crate) fn product_with(tile: Tile, s: &Shape, a: Source<'_>, b: Source<'_>, c: &mut [f32]) {
    let (m, n, k) = (s.m as usize, s.n as usize, s.k as usize);
    let c = &mut c[..m * n];
    if k == 0 && s.add == 0 {
        c.fill(0.0);
    }
    for k0 in (0..k).step_by(KC) {
        let kc = KC.min(k - k0);
        let packed = if let Source::KContiguous(..) = a { 0 } else { m.div_ceil(tile.mr) * tile.mr * kc };
        scratch::with(packed, |pa| {
            let rows = match a {
                Source::KContiguous(data, ld) => Rows::Plain { data: &data[k0..], ld },
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

/// Packs an operand from its `first` row or column on into panels `[outer / w][kc][w]`, zero padded.
fn pack(src: &Source<'_>, outer: usize, k0: usize, first: usize, kc: usize, w: usize, out: &mut [f32]) {
    let together = abreast(w) * w;
    out.par_chunks_mut(kc * together).enumerate().for_each(|(i, out)| pack_panels(src, outer, k0, first + i * together, kc, w, out));
}

/// Panels of a width that are packed at a time: about 64 floats of each row.
const fn abreast(w: usize) -> usize {
    64 / w
}

/// At most [`abreast`] panels.
fn pack_panels(src: &Source<'_>, outer: usize, k0: usize, first: usize, kc: usize, w: usize, out: &mut [f32]) {
    match (*src, w) {
        (Source::OuterContiguous(x, ld), 6) if first + abreast(w) * w <= outer => copy_panels::<6>(x, ld, k0, first, out),
        (Source::OuterContiguous(x, ld), 12) if first + abreast(w) * w <= outer => copy_panels::<12>(x, ld, k0, first, out),
        (Source::OuterContiguous(x, ld), 16) if first + abreast(w) * w <= outer => copy_panels::<16>(x, ld, k0, first, out),
        (Source::OuterContiguous(x, ld), 32) if first + abreast(w) * w <= outer => copy_panels::<32>(x, ld, k0, first, out),
        _ => {
            let panels = out.chunks_exact_mut((kc * w).max(1)).enumerate();
            panels.for_each(|(panel, out)| pack_panel(src, outer, k0, first + panel * w, w, out));
        }
    }
}

/// One panel `[kc][w]`: rows or columns from `first` on, zero padded.
fn pack_panel(src: &Source<'_>, outer: usize, k0: usize, first: usize, w: usize, out: &mut [f32]) {
    let width = w.min(outer - first);
    if width < w {
        out.fill(0.0);
    }
    // Whole panels know their width when they are compiled: no call for a handful of floats.
    match (width == w, w) {
        (true, 6) => panel_of::<6>(src, k0, first, out),
        (true, 12) => panel_of::<12>(src, k0, first, out),
        (true, 16) => panel_of::<16>(src, k0, first, out),
        (true, 32) => panel_of::<32>(src, k0, first, out),
        _ => panel(src, k0, first, w, width, out),
    }
}

fn panel_of<const W: usize>(src: &Source<'_>, k0: usize, first: usize, out: &mut [f32]) {
    match *src {
        Source::OuterContiguous(x, ld) => copy_rows::<W>(x, ld, k0, first, out),
        Source::KContiguous(x, ld) => turn_rows::<W>(x, ld, k0, first, out),
        // Whole words: panels begin where a word does.
        Source::Ternary { codes, scale, words } if W.is_multiple_of(16) && first.is_multiple_of(16) => {
            ternary_rows::<W>(codes, scale, words, k0, first, out)
        }
        Source::Bytes { q, scales, words } => scale_rows::<W>(bytemuck::cast_slice(q), scales, words, k0, first, out),
        _ => panel(src, k0, first, W, W, out),
    }
}

crate::simd! {
    fn copy_rows<W>(x: &[f32], ld: usize, k0: usize, first: usize, out: &mut [f32]) {
        for (k, row) in out.as_chunks_mut::<W>().0.iter_mut().enumerate() {
            let at = (k0 + k) * ld + first;
            if let Some(from) = x[at..].first_chunk::<W>() {
                *row = *from;
            }
        }
    }

    /// [`abreast`] panels row by row: what neighbours need lies together, and each row is read once.
    fn copy_panels<W>(x: &[f32], ld: usize, k0: usize, first: usize, out: &mut [f32]) {
        let kc = out.len() / (abreast(W) * W);
        let out = out.as_chunks_mut::<W>().0;
        for k in 0..kc {
            let row = &x[(k0 + k) * ld + first..][..abreast(W) * W];
            for (panel, from) in row.as_chunks::<W>().0.iter().enumerate() {
                out[panel * kc + k] = *from;
            }
        }
    }

    /// Rows along k become columns, eight of k at a time.
    fn turn_rows<W>(x: &[f32], ld: usize, k0: usize, first: usize, out: &mut [f32]) {
        let kc = out.len() / W;
        let line = |j: usize| x[(first + j) * ld + k0..][..kc].as_chunks::<8>();
        let (blocks, rest) = out.as_chunks_mut::<W>().0.split_at_mut(kc / 8 * 8);
        for (b, out) in blocks.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            for j in 0..W {
                for (out, v) in out.iter_mut().zip(&line(j).0[b]) {
                    out[j] = *v;
                }
            }
        }
        for (k, out) in rest.iter_mut().enumerate() {
            for (j, v) in out.iter_mut().enumerate() {
                *v = line(j).1[k];
            }
        }
    }

    fn ternary_rows<W>(codes: &[u32], scale: &[f32], words: usize, k0: usize, first: usize, out: &mut [f32]) {
        for (k, row) in out.as_chunks_mut::<W>().0.iter_mut().enumerate() {
            let line = &codes[(k0 + k) * words + first / 16..];
            let s = scale[k0 + k];
            for (out, word) in row.as_chunks_mut::<16>().0.iter_mut().zip(line) {
                for (e, v) in out.iter_mut().enumerate() {
                    let shift = (e % 4) * 8 + (e / 4) * 2;
                    // A learned scale may be negative: 0 stays 0.
                    let code = (word >> shift & 3) as i32 - 1;
                    *v = if code == 0 { 0.0 } else { code as f32 * s };
                }
            }
        }
    }

    fn scale_rows<W>(bytes: &[i8], scales: &[RowScale], words: usize, k0: usize, first: usize, out: &mut [f32]) {
        for (k, row) in out.as_chunks_mut::<W>().0.iter_mut().enumerate() {
            let at = (k0 + k) * words * 4 + first;
            let s = scales[k0 + k].step;
            if let Some(from) = bytes[at..].first_chunk::<W>() {
                for (v, b) in row.iter_mut().zip(from) {
                    *v = f32::from(*b) * s;
                }
            }
        }
    }

    fn panel(src: &Source<'_>, k0: usize, first: usize, w: usize, width: usize, out: &mut [f32]) {
        match *src {
            Source::OuterContiguous(x, ld) => {
                for (k, row) in out.chunks_exact_mut(w).enumerate() {
                    let at = (k0 + k) * ld + first;
                    row[..width].copy_from_slice(&x[at..at + width]);
                }
            }
            Source::KContiguous(x, ld) => {
                let kc = out.len() / w;
                for j in 0..width {
                    let at = (first + j) * ld + k0;
                    for (k, v) in x[at..at + kc].iter().enumerate() {
                        out[k * w + j] = *v;
                    }
                }
            }
            Source::Half(x, ld) => {
                let kc = out.len() / w;
                scratch::with(kc, |floats| {
                    for j in 0..width {
                        let at = (first + j) * ld + k0;
                        crate::float16::to_floats(&x[at..at + kc], floats);
                        for (k, v) in floats.iter().enumerate() {
                            out[k * w + j] = *v;
                        }
                    }
                });
            }
            Source::Ternary { codes, scale, words } => {
                for (k, row) in out.chunks_exact_mut(w).enumerate() {
                    let line = &codes[(k0 + k) * words..(k0 + k + 1) * words];
                    let s = scale[k0 + k];
                    let table = [-s, 0.0, s, 0.0];
                    for (j, v) in row[..width].iter_mut().enumerate() {
                        let e = first + j;
                        let shift = (e % 4) * 8 + (e / 4 % 4) * 2;
                        *v = table[(line[e / 16] >> shift & 3) as usize];
                    }
                }
            }
            Source::Bytes { q, scales, words } => {
                let bytes: &[i8] = bytemuck::cast_slice(q);
                for (k, row) in out.chunks_exact_mut(w).enumerate() {
                    let at = (k0 + k) * words * 4 + first;
                    let s = scales[k0 + k].step;
                    for (v, b) in row[..width].iter_mut().zip(&bytes[at..at + width]) {
                        *v = f32::from(*b) * s;
                    }
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
    let work = Work { tile, kc, fresh, pb: Panels { data: pb, depth: kc } };
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

/// A packed right operand `[n / nr][depth][nr]`, of which a product may take the first of its depth.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    data: &'a [f32],
    depth: usize,
}

impl<'a> Panels<'a> {
    /// The first `kc` of a panel.
    fn panel(&self, i: usize, kc: usize, nr: usize) -> &'a [f32] {
        &self.data[i * self.depth * nr..][..kc * nr]
    }
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

/// A right operand packed once for several products on the calling thread.
pub(crate) fn pack_right<'a>(tile: Tile, b: Source<'_>, n: usize, k: usize, out: &'a mut [f32]) -> Panels<'a> {
    for (i, out) in out[..panel_floats(tile, n, k)].chunks_mut(k * abreast(tile.nr) * tile.nr).enumerate() {
        pack_panels(&b, n, 0, i * abreast(tile.nr) * tile.nr, k, tile.nr, out);
    }
    Panels { data: out, depth: k }
}

/// Floats of a packed right operand `[k, n]`.
pub(crate) fn panel_floats(tile: Tile, n: usize, k: usize) -> usize {
    n.div_ceil(tile.nr) * tile.nr * k
}

/// `C [m, n] (+)= A·B` on the calling thread over the first `k` of a packed B; `left` is scratch for a panel of A.
#[allow(clippy::too_many_arguments)]
pub(crate) fn small(tile: Tile, a: Source<'_>, m: usize, b: Panels<'_>, n: usize, k: usize, left: &mut [f32], out: Out<'_>) {
    let Out { c, ld, fresh } = out;
    let work = Work { tile, kc: k, fresh, pb: b };
    for i in (0..m).step_by(tile.mr) {
        let rows = tile.mr.min(m - i);
        let c = &mut c[i * ld..(i + rows - 1) * ld + n];
        let left = match a {
            Source::KContiguous(data, ld) if rows == tile.mr => Left { data: &data[i * ld..], row: ld, step: 1 },
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
        for (m, n, k) in [(1, 1, 1), (5, 17, 3), (13, 33, 70), (64, 40, 1100), (3, 300, 20), (50, 50, 50), (2, 4100, 7), (60, 2100, 9)] {
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
                    for left in [Source::KContiguous(&a, k), Source::OuterContiguous(&turned, m)] {
                        let mut got = c.clone();
                        pool.install(|| product_with(tile, &s, left, Source::OuterContiguous(&b, n), &mut got));
                        assert_eq!(got, want, "{m}x{n}x{k}, add {add}, tile {}x{}, {threads} threads", tile.mr, tile.nr);
                    }
                }
            }
        }
    }
}
