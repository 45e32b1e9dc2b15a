//! Many rows: the code words of 32 outputs are turned once, so that a vector holds a word of each output; the sums of a group
//! then meet their scales as vectors, in one chain over the groups.

use rayon::prelude::*;

use super::blocks::many::{Block, OUTS, Path, ROWS};
use super::product::{Product, Steps, groups};
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
    super::x86::many(&mut paths);
    paths.push(Path { name: "portable", run: portable });
    paths
}

pub(super) fn product(path: Path, p: &Product<'_>, y: &mut [f32]) {
    let sums: Vec<i32> = p.q.par_chunks(4 * p.words).flat_map_iter(|q| q.chunks(16).map(minus_sum)).collect();
    // Block after block: whose rows are put where they belong afterwards.
    scratch::with(p.outs.div_ceil(OUTS) * OUTS * p.rows, |blocks| {
        blocks.par_chunks_exact_mut(OUTS * p.rows).enumerate().for_each(|(part, out)| block(path, p, &sums, part * OUTS, out));
        let blocks: &[f32] = blocks;
        y.par_chunks_exact_mut(p.outs).enumerate().for_each(|(r, y)| {
            for (y, block) in y.chunks_mut(OUTS).zip(blocks.chunks_exact(OUTS * p.rows)) {
                y.iter_mut().zip(&block[r * OUTS..]).for_each(|(y, v)| *y = p.finish(r, *v, *y));
            }
        });
    });
}

/// The outputs from `first` on for all rows: `out [rows, OUTS]`.
fn block(path: Path, p: &Product<'_>, sums: &[i32], first: usize, out: &mut [f32]) {
    let of_row = groups(p.words);
    scratch::with_words(p.words * OUTS, |codes| {
        scratch::with(of_row * OUTS, |scales| {
            turn(p, first, OUTS.min(p.outs - first), codes, scales);
            out.fill(0.0);
            for (r0, out) in (0..p.rows).step_by(ROWS).zip(out.chunks_mut(ROWS * OUTS)) {
                let m = out.len() / OUTS;
                let steps = match p.steps {
                    Steps::Rows(_) => &[],
                    Steps::Blocks(all) => &all[r0 * of_row..(r0 + m) * of_row],
                };
                let (q, sums) = (&p.q[r0 * 4 * p.words..(r0 + m) * 4 * p.words], &sums[r0 * of_row..(r0 + m) * of_row]);
                (path.run)(&Block { words: p.words, codes, scales, q, sums, steps }, out);
            }
        });
    });
}

crate::simd! {
    fn minus_sum(words: &[u32]) -> i32 {
        let mut sum = 0;
        for w in words {
            for b in w.to_le_bytes() {
                sum -= i32::from(b as i8);
            }
        }
        sum
    }
}

/// Code words and scales of `n` outputs side by side; missing outputs have the codes of 0.
fn turn(p: &Product<'_>, first: usize, n: usize, codes: &mut [u32], scales: &mut [f32]) {
    if n < OUTS {
        codes.fill(0x5555_5555);
        scales.fill(0.0);
    }
    let of_row = groups(p.words);
    scratch::with(n * of_row, |rows| {
        p.scales_of(first, rows, of_row);
        for (o, row) in rows.chunks_exact(of_row).enumerate() {
            codes.chunks_exact_mut(OUTS).zip(p.row(first + o)).for_each(|(out, word)| out[o] = *word);
            scales.chunks_exact_mut(OUTS).zip(row).for_each(|(out, scale)| out[o] = *scale);
        }
    });
}

crate::simd! {
    fn portable(b: &Block<'_>, out: &mut [f32]) {
        let of_row = groups(b.words);
        for (r, out) in out.chunks_exact_mut(OUTS).enumerate() {
            let q = &b.q[r * 4 * b.words..(r + 1) * 4 * b.words];
            for (g, (codes, q)) in b.codes.chunks(4 * OUTS).zip(q.chunks(16)).enumerate() {
                let mut sums = [b.sums[r * of_row + g]; OUTS];
                for (codes, q) in codes.as_chunks::<OUTS>().0.iter().zip(q.as_chunks::<4>().0) {
                    for (field, a) in q.iter().enumerate() {
                        let a = a.to_le_bytes().map(|b| i32::from(b as i8));
                        for (sum, word) in sums.iter_mut().zip(codes) {
                            let c = (word >> (2 * field) & 0x0303_0303).to_le_bytes();
                            *sum += a[0] * i32::from(c[0]) + a[1] * i32::from(c[1]) + a[2] * i32::from(c[2]) + a[3] * i32::from(c[3]);
                        }
                    }
                }
                let step = b.steps.get(r * of_row + g);
                for ((out, sum), scale) in out.iter_mut().zip(sums).zip(&b.scales[g * OUTS..]) {
                    let d = step.map_or(sum as f32, |s| sum as f32 * s);
                    *out = d.mul_add(*scale, *out);
                }
            }
        }
    }
}
