//! A few rows: 16 lanes for each output, lane `l` for the words `l, l + 16, …`; the activations are arranged once as a vector
//! of 16 words of codes meets them.

use rayon::prelude::*;

use super::blocks::few::{Block, LANES, Path, ROWS, Sums, Vector};
use super::product::{Product, Steps, groups};
use crate::simd::math::fold;
use crate::simd::scratch;

/// The fastest path of this CPU.
pub(super) fn best() -> Path {
    all()[0]
}

/// Every path that this CPU can run, the fastest first.
#[allow(clippy::vec_init_then_push)] // what is pushed depends on the architecture
pub(super) fn all() -> Vec<Path> {
    let mut paths = Vec::new();
    #[cfg(target_arch = "x86_64")]
    super::x86::few(&mut paths);
    paths.push(Path { name: "portable", run: |by_block| if by_block { portable::<1> } else { portable::<0> } });
    paths
}

/// Arranges a row: vectors `[words/16]`, `stride` apart.
fn arrange(p: &Product<'_>, r: usize, out: &mut [Vector], stride: usize) {
    let q = &p.q[r * 4 * p.words..(r + 1) * 4 * p.words];
    let blocks = groups(p.words);
    for (b, words) in q.chunks(4 * LANES).enumerate() {
        let v = &mut out[b * stride];
        *v = bytemuck::Zeroable::zeroed();
        for (lane, four) in words.chunks_exact(4).enumerate() {
            for (field, word) in v.fields.iter_mut().zip(four) {
                field[lane] = *word;
            }
            v.sums[lane] = -four.iter().flat_map(|w| w.to_le_bytes()).map(|b| i32::from(b as i8)).sum::<i32>();
            v.steps[lane] = match p.steps {
                Steps::Rows(_) => 1.0,
                Steps::Blocks(all) => all[r * blocks + (b * LANES + lane) / 4],
            };
        }
    }
}

/// Outputs whose scales are made floats together.
const TOGETHER: usize = 32;

pub(super) fn product(path: Path, p: &Product<'_>, y: &mut [f32]) {
    let run = (path.run)(matches!(p.steps, Steps::Blocks(_)));
    let vectors = p.words.div_ceil(LANES);
    let per_vector = size_of::<Vector>() / 4;
    scratch::with_words(p.rows * vectors * per_vector + per_vector, |space| {
        scratch::with(p.rows * p.outs, |turned| {
            let arranged = aligned(space, p.rows * vectors);
            for (r0, part) in (0..p.rows).step_by(ROWS).zip(arranged.chunks_mut(ROWS * vectors)) {
                let n = ROWS.min(p.rows - r0);
                (0..n).for_each(|r| arrange(p, r0 + r, &mut part[r..], n));
            }
            let arranged: &[Vector] = arranged;
            // A few tasks for each thread: handing out more costs what a small matrix takes.
            let per = p.outs.div_ceil(TOGETHER).div_ceil(rayon::current_num_threads() * 4).max(1) * TOGETHER;
            turned.par_chunks_mut(p.rows * per).enumerate().for_each(|(part, out)| {
                for (i, out) in out.chunks_mut(p.rows * TOGETHER).enumerate() {
                    outputs(p, run, arranged, part * per + i * TOGETHER, out);
                }
            });
            for (r, y) in y.chunks_exact_mut(p.outs).enumerate() {
                y.iter_mut().zip(turned.chunks_exact(p.rows)).for_each(|(y, v)| *y = p.finish(r, v[r], *y));
            }
        });
    });
}

/// Outputs from `first` on for all rows: `out [outputs, rows]`.
fn outputs(p: &Product<'_>, run: Sums, arranged: &[Vector], first: usize, out: &mut [f32]) {
    let (vectors, n) = (p.words.div_ceil(LANES), out.len() / p.rows);
    p.fetch_scales(first + TOGETHER..first + 2 * TOGETHER);
    scratch::with(TOGETHER * 4 * vectors, |scales| {
        p.scales_of(first, &mut scales[..n * 4 * vectors], 4 * vectors);
        let codes = &p.codes[first * p.words..(first + n) * p.words];
        for (r0, part) in (0..p.rows).step_by(ROWS).zip(arranged.chunks(ROWS * vectors)) {
            let rows = ROWS.min(p.rows - r0);
            let scales = scales[..n * 4 * vectors].as_chunks().0;
            run(&Block { codes, words: p.words, scales, vectors: part, rows, ld: p.rows }, &mut out[r0..]);
        }
    });
}

/// The words as vectors, from the first that is aligned on.
fn aligned(words: &mut [u32], n: usize) -> &mut [Vector] {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
    let skip = bytes.as_ptr().align_offset(align_of::<Vector>());
    bytemuck::cast_slice_mut(&mut bytes[skip..skip + n * size_of::<Vector>()])
}

crate::simd! {
    /// The portable path; `BLOCKS`: with steps by block.
    fn portable<BLOCKS>(b: &Block<'_>, out: &mut [f32]) {
        for (o, (codes, scales)) in b.codes.chunks_exact(b.words).zip(b.scales.chunks_exact(b.vectors_of_row())).enumerate() {
            for r in 0..b.rows {
                let mut lanes = [0f32; LANES];
                for (i, (words, scales)) in codes.chunks(LANES).zip(scales).enumerate() {
                    let v = &b.vectors[i * b.rows + r];
                    for (lane, word) in words.iter().enumerate() {
                        let mut d = v.sums[lane];
                        for (field, a) in v.fields.iter().enumerate() {
                            let (c, a) = ((word >> (2 * field) & 0x0303_0303).to_le_bytes(), a[lane].to_le_bytes());
                            for (c, a) in c.into_iter().zip(a) {
                                d += i32::from(c) * i32::from(a as i8);
                            }
                        }
                        let d = if BLOCKS == 1 { d as f32 * v.steps[lane] } else { d as f32 };
                        lanes[lane] = d.mul_add(scales[lane / 4], lanes[lane]);
                    }
                }
                out[o * b.ld + r] = fold(lanes);
            }
        }
    }
}
