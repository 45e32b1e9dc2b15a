//! CPU twins.

use super::product::{Product, Steps, groups};
use super::{Shape, few, many};
use crate::kernel::{Bufs, Params};
use crate::kernels::ternary::groups::Scales;

fn taken<'a>(s: &Shape, bufs: Bufs<'a>) -> (Product<'a>, &'a mut [f32]) {
    let [q, steps, codes, scale, y] = bufs.take();
    let (rows, outs, words) = (s.rows as usize, s.outs as usize, (s.cols as usize).div_ceil(16));
    let steps = match s.by_row {
        1 => Steps::Rows(&bytemuck::cast_slice(steps.u32())[..rows]),
        _ => Steps::Blocks(&steps.f32()[..rows * groups(words)]),
    };
    let (q, codes) = (&q.u32()[..rows * 4 * words], &codes.u32()[..outs * words]);
    let scales = Scales::of(scale.u32(), s.groups);
    (Product { rows, outs, words, add: s.add == 1, q, steps, codes, scales }, &mut y.f32_mut()[..rows * outs])
}

pub(super) fn many(p: &Params, bufs: Bufs<'_>) {
    let (product, y) = taken(&p.get(), bufs);
    many::product(many::best(), &product, y);
}

pub(super) fn few(p: &Params, bufs: Bufs<'_>) {
    let (product, y) = taken(&p.get(), bufs);
    few::product(few::best(), &product, y);
}

/// Bytes of what is arranged anew: activations with their sums and steps, and what comes out.
pub(super) fn scratch(p: &Params) -> u64 {
    let s: Shape = p.get();
    u64::from(s.rows) * (u64::from(s.cols).next_multiple_of(256) * 3 / 2 + 4 * u64::from(s.outs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::act_quant::RowScale;
    use crate::kernels::ternary::packed_words;

    /// A linear congruential generator.
    fn random(seed: u32) -> impl FnMut(u32) -> u32 {
        let mut x = seed;
        move |n| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) % n
        }
    }

    #[test]
    fn every_path_gives_the_same_bits_and_the_right_sums() {
        for (rows, outs, cols, grouped) in
            [(1, 1, 64, true), (3, 33, 192, true), (8, 40, 1024, true), (9, 70, 320, true), (5, 7, 100, false)]
        {
            for (by_block, largest) in [(false, false), (true, false), (true, true)] {
                let mut next = random(7 + rows + cols);
                let (rows, outs, cols) = (rows as usize, outs as usize, cols as usize);
                let words = packed_words(cols);
                let value = |e: usize, n: u32| if e >= cols { 0 } else { n as i8 };
                let q: Vec<i8> =
                    (0..rows * words * 16).map(|e| value(e % (words * 16), if largest { 128 } else { 129 + next(255) })).collect();
                let code = |e: usize, n: u32| if e >= cols { 1 } else { n };
                let w: Vec<u32> = (0..outs * words * 16).map(|e| code(e % (words * 16), if largest { 2 } else { next(3) })).collect();
                let codes: Vec<u32> = w.chunks(16).map(|w| (0..16).fold(0, |word, e| word | w[e] << ((e % 4) * 8 + (e / 4) * 2))).collect();
                let per_row = groups(words);
                let scale = |i: usize| half::f16::from_f32(0.01 + (i % 89) as f32 * 0.001);
                let stride = 2 * per_row.div_ceil(2);
                let halves: Vec<u16> = (0..outs * stride).map(|i| if i % stride < per_row { scale(i).to_bits() } else { 0 }).collect();
                let floats: Vec<f32> = (0..outs).map(|i| scale(i).to_f32()).collect();
                let scales = if grouped { Scales::Groups { halves: &halves, stride } } else { Scales::Rows(&floats) };
                let blocks: Vec<f32> = (0..rows * per_row).map(|i| 0.02 + (i % 31) as f32 * 0.003).collect();
                let of_rows: Vec<RowScale> = (0..rows).map(|i| RowScale { step: 0.5 + i as f32, sum: 0 }).collect();
                let steps = if by_block { Steps::Blocks(&blocks) } else { Steps::Rows(&of_rows) };
                let q: Vec<u32> = bytemuck::pod_collect_to_vec(&q);
                let p = Product { rows, outs, words, add: false, q: &q, steps, codes: &codes, scales };
                let q: &[i8] = bytemuck::cast_slice(&q);
                let want = |r: usize, o: usize| {
                    let term = |g: usize| {
                        let e = 64 * g..(64 * g + 64).min(words * 16);
                        let d: i32 = e.map(|e| i32::from(q[r * words * 16 + e]) * (w[o * words * 16 + e] as i32 - 1)).sum();
                        let step = if by_block { blocks[r * per_row + g] } else { of_rows[r].step };
                        f64::from(d) * f64::from(scales.at(o, 64 * g)) * f64::from(step)
                    };
                    (0..per_row).map(term).sum::<f64>()
                };
                let mut results: Vec<(&str, Vec<Vec<f32>>)> = vec![("few", Vec::new()), ("many", Vec::new())];
                for path in few::all() {
                    let mut y = vec![f32::NAN; rows * outs];
                    few::product(path, &p, &mut y);
                    results[0].1.push(y);
                }
                for path in many::all() {
                    let mut y = vec![f32::NAN; rows * outs];
                    many::product(path, &p, &mut y);
                    results[1].1.push(y);
                }
                for (name, all) in &results {
                    assert!(all.iter().all(|y| *y == all[0]), "{name}: {rows}x{outs}x{cols}: the paths differ");
                    for (i, y) in all[0].iter().enumerate() {
                        let want = want(i / outs, i % outs);
                        let size = f64::from(cols as u32).sqrt() * 127.0;
                        assert!(
                            (f64::from(*y) - want).abs() < 1e-6 * size.max(want.abs()),
                            "{name} {rows}x{outs}x{cols} at {i}: {y}, {want}"
                        );
                    }
                }
            }
        }
    }
}
