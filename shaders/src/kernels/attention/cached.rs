//! Keys and values as a cache holds them, on the CPU: a head of them as floats.

use super::Cached;
use super::dims::Dims;
use super::half_rows;
use crate::kernels::halves::rows::to_floats;
use crate::simd::math::{axpy, dot};

/// Keys or values: rows of a cache from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Held<'a> {
    pub form: Cached,
    pub words: &'a [u32],
    pub first: usize,
}

/// Rows of one head as floats, `ld` apart.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub data: &'a [f32],
    pub ld: usize,
}

impl<'a> Held<'a> {
    /// Floats that [`Self::head`] needs for `count` rows.
    pub fn room(&self, n: &Dims, count: usize) -> usize {
        if self.form == Cached::Float { 0 } else { count * n.d }
    }

    /// The first `count` rows of KV head `g`, converted into `room` where they are not floats.
    pub fn head<'b>(&self, n: &Dims, g: usize, count: usize, room: &'b mut [f32]) -> Head<'b>
    where
        'a: 'b,
    {
        let heads = n.kv / n.d;
        let row = |j: usize| (self.first + j) * heads + g;
        let words = self.words;
        match self.form {
            Cached::Float => return Head { data: &bytemuck::cast_slice::<u32, f32>(words)[row(0) * n.d..], ld: n.kv },
            Cached::Half => {
                let halves: &[u16] = bytemuck::cast_slice(words);
                for (j, out) in room.chunks_exact_mut(n.d).enumerate().take(count) {
                    to_floats(&halves[row(j) * n.d..][..n.d], out);
                }
            }
            Cached::Int8 => {
                let size = Cached::Int8.words(n.d);
                for (j, out) in room.chunks_exact_mut(n.d).enumerate().take(count) {
                    let line = &words[row(j) * size..][..size];
                    values(bytemuck::cast_slice(&line[..size - 1]), f32::from_bits(line[size - 1]), out);
                }
            }
        }
        Head { data: room, ld: n.d }
    }
}

impl Held<'_> {
    /// `w[h, j] = q_h · k_j` for the query heads `q [group, d]` of KV head `g` and the first `seen` rows.
    pub fn scores(&self, n: &Dims, g: usize, q: &[f32], seen: usize, w: &mut [f32], room: &mut [f32]) {
        if self.form == Cached::Half {
            return half_rows::products(q, n.d, self.halves(n, g), n.kv, w);
        }
        let k = self.head(n, g, seen, room);
        for (q, w) in q.chunks_exact(n.d).zip(w.chunks_exact_mut(seen)) {
            products(q, k.data, k.ld, w);
        }
    }

    /// `o_h = Σ_j w[h, j]·v_j` for `o [group, d]`.
    pub fn weighted(&self, n: &Dims, g: usize, w: &[f32], seen: usize, o: &mut [f32], room: &mut [f32]) {
        if self.form == Cached::Half {
            return half_rows::sums(w, n.d, self.halves(n, g), n.kv, o);
        }
        o.fill(0.0);
        let v = self.head(n, g, seen, room);
        for (o, w) in o.chunks_exact_mut(n.d).zip(w.chunks_exact(seen)) {
            sums(w, v.data, v.ld, o);
        }
    }

    /// The rows of KV head `g` as float16, all heads' size apart.
    fn halves(&self, n: &Dims, g: usize) -> &[u16] {
        &bytemuck::cast_slice(self.words)[self.first * n.kv + g * n.d..]
    }
}

crate::simd! {
    fn products(q: &[f32], k: &[f32], ld: usize, w: &mut [f32]) {
        for (j, w) in w.iter_mut().enumerate() {
            *w = dot(q, &k[j * ld..j * ld + q.len()]);
        }
    }

    fn sums(w: &[f32], v: &[f32], ld: usize, o: &mut [f32]) {
        for (j, w) in w.iter().enumerate() {
            axpy(*w, &v[j * ld..j * ld + o.len()], o);
        }
    }

    fn values(bytes: &[i8], step: f32, out: &mut [f32]) {
        for (v, b) in out.iter_mut().zip(bytes) {
            *v = f32::from(*b) * step;
        }
    }
}
