//! Keys and values as a cache holds them, on the CPU: a head of them as floats.

use super::Cached;
use super::cpu::Dims;
use crate::float16;

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
                    float16::to_floats(&halves[row(j) * n.d..][..n.d], out);
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

crate::simd! {
    fn values(bytes: &[i8], step: f32, out: &mut [f32]) {
        for (v, b) in out.iter_mut().zip(bytes) {
            *v = f32::from(*b) * step;
        }
    }
}
