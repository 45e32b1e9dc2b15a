//! Dispatches cut into parts, for buffers that are larger than what an adapter binds at once.
//!
//! A kernel is cut along units that its outputs do not share (rows, elements), or along the sums of a product, whose later
//! parts go on from what the earlier ones stored: the results are those of the whole dispatch, bit for bit.

use crate::kernel::{Kernel, Params};
use crate::kernels::attention::{self, Cached};
use crate::kernels::{adamw, clip, embed, gemm, kd_loss, kv_store, rope, sample, ternary, ternary_gemm, topk};

/// A part of a dispatch.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its parameters.
    pub params: Params,
    /// What it binds of each buffer: first word, words.
    pub ranges: Vec<(usize, usize)>,
}

/// One way to cut a kernel's dispatches.
struct Cut {
    /// Units, and the words of one in each binding: 0 where every part binds the whole buffer.
    units: usize,
    words: Vec<usize>,
    /// Parameters of some units: first, count.
    part: Box<dyn Fn(usize, usize) -> Params>,
}

/// Word of `gemm`'s shape.
const SYMMETRIC: usize = 4;

/// Words between which a binding may begin (256 bytes, WebGPU's default alignment).
const ALIGNMENT: usize = 64;

/// The parts of a dispatch over buffers of `sizes` words, none of which binds more than `limit` words; the index of a
/// buffer that cannot be cut where that is impossible.
pub fn parts(kernel: &Kernel, params: &Params, sizes: &[usize], limit: usize) -> Result<Vec<Part>, usize> {
    let mut done = Vec::new();
    let mut left = vec![Part { params: *params, ranges: sizes.iter().map(|n| (0, *n)).collect() }];
    while let Some(part) = left.pop() {
        let Some(large) = part.ranges.iter().position(|r| r.1 > limit) else {
            done.push(part);
            continue;
        };
        let smaller = cuts(kernel.name, &part.params).into_iter().find_map(|cut| cut.apply(&part, large, limit));
        // Taken from the end: the parts of a sum run in order.
        left.extend(smaller.ok_or(large)?.into_iter().rev());
    }
    Ok(done)
}

impl Cut {
    /// Parts that bind at most `limit` words of every buffer that this cuts, if it cuts buffer `large`.
    fn apply(&self, whole: &Part, large: usize, limit: usize) -> Option<Vec<Part>> {
        if self.words[large] == 0 {
            return None;
        }
        let widest = self.words.iter().max()?;
        // Units of which whole parts begin where a binding may.
        let aligned = self.words.iter().map(|w| ALIGNMENT >> w.trailing_zeros().min(ALIGNMENT.trailing_zeros())).max()?;
        let count = limit / widest / aligned * aligned;
        if count == 0 || count >= self.units {
            return None;
        }
        let part = |first: usize| {
            let n = count.min(self.units - first);
            let range = |(range, words): (&(usize, usize), &usize)| match words {
                0 => *range,
                _ => (range.0 + first * words, (n * words).min(range.1 - first * words)),
            };
            Part { params: (self.part)(first, n), ranges: whole.ranges.iter().zip(&self.words).map(range).collect() }
        };
        Some((0..self.units).step_by(count).map(part).collect())
    }
}

/// Words of `gemm`'s parameters after its shape: distance of A's rows and their first element, the same of C; a distance of
/// 0 stands for the shape's own.
mod strides {
    pub const LDA: usize = 5;
    pub const A0: usize = 6;
    pub const LDC: usize = 7;
    pub const C0: usize = 8;
}

/// Words of `embed`'s parameters after its shape: the token of the table's first row, the row that a gradient begins with.
const FIRST_TOKEN: usize = 3;
const FIRST_ROW: usize = 4;

/// Word of attention's and of `kv_store`'s parameters after their shapes: the first row of a part, where the rows are
/// bound whole.
const FIRST_OF_ATTENTION: usize = 7;
const FIRST_OF_STORE: usize = 5;

fn cuts(kernel: &str, p: &Params) -> Vec<Cut> {
    // A cut that changes the word `at` of the parameters to the number of units.
    let along = |at: usize, words: &[usize]| {
        let p = *p;
        let part = Box::new(move |_, count| with(p, &[(at, count)]));
        vec![Cut { units: p.0[at] as usize, words: words.to_vec(), part }]
    };
    match kernel {
        "adamw" => along(0, &[0, 0, 1, 1, 1, 1]),
        "adamw_int8" => blocks(*p),
        "pack_half" => pairs(*p, vec![2, 1]),
        "unpack_half" => pairs(*p, vec![1, 2]),
        "copy" => along(0, &[1, 1]),
        "zero" => along(0, &[1]),
        "argmax" => along(0, &[p.get::<sample::Shape>().vocab as usize, 1]),
        "sample" => along(0, &[p.get::<sample::Shape>().vocab as usize, 1, 1]),
        "topk" => {
            let s: topk::Shape = p.get();
            along(0, &[s.vocab as usize, s.k as usize, s.k as usize, 1 + s.n_tau as usize])
        }
        "kd_loss" => {
            let s: kd_loss::Shape = p.get();
            along(0, &[s.vocab as usize, s.k as usize, s.k as usize, 4, 1, 0, 4, s.k as usize])
        }
        "attention" => over_cache(*p, Cached::Float),
        "attention_half" => over_cache(*p, Cached::Half),
        "attention_int8" => over_cache(*p, Cached::Int8),
        "attention_delta" => {
            let s: attention::Shape = p.get();
            let row = (s.heads * s.head_dim) as usize;
            along(0, &[row, row, 2 * s.heads as usize])
        }
        "attention_grad_q" => {
            let [q, kv, mask, stats] = sequence(&p.get(), Cached::Float);
            vec![sequences(*p, None, vec![q, kv, kv, mask, q, stats, q])]
        }
        "attention_grad_kv" => {
            let [q, kv, mask, stats] = sequence(&p.get(), Cached::Float);
            vec![sequences(*p, None, vec![q, kv, kv, mask, q, stats, kv, kv])]
        }
        "kv_store" => into_cache(*p, Cached::Float),
        "kv_store_half" => into_cache(*p, Cached::Half),
        "kv_store_int8" => into_cache(*p, Cached::Int8),
        // The parts of this sum and of those over a product's depth go on from what is there.
        "rmsnorm_grad_g" => along(0, &[p.0[1] as usize, 1, p.0[1] as usize, 0]),
        "rmsnorm" | "rmsnorm_grad_x" | "act_quant" | "norm_quant" | "gated_norm_quant" | "rope" | "ternary_gemm" | "ternary_gemv" => {
            along(0, &words_of_a_row(kernel, p))
        }
        "gated" => along(0, &[1, 1, 1]),
        "gated_grad" => along(0, &[1, 1, 1, 1, 1]),
        "row_abs_sum" => along(0, &[p.get::<ternary::Shape>().cols as usize, 1]),
        "ternarise" => {
            let cols = p.get::<ternary::Shape>().cols as usize;
            along(0, &[cols, 0, ternary::packed_words(cols), 1])
        }
        "dequant_ternary" => {
            let cols = p.get::<ternary::Shape>().cols as usize;
            along(0, &[ternary::packed_words(cols), 1, cols])
        }
        "threshold_grad" => {
            let cols = p.get::<ternary::Shape>().cols as usize;
            along(0, &[ternary::packed_words(cols), 1, cols, 1])
        }
        "muon_momentum" => along(0, &[0, 0, 1, 1, 1, 1]),
        "muon_normalise" => along(0, &[1, 0, 1]),
        "muon_scale" => along(0, &[0, 0, 0, 1, 1]),
        "sum_sq" => squares(*p),
        "embed" => gather(*p, 1),
        "embed_half" => gather(*p, 2),
        "embed_grad" => {
            let s: embed::Shape = p.get();
            let part = {
                let p = *p;
                move |first, count| with(p, &[(0, count), (FIRST_ROW, p.0[FIRST_ROW] as usize + first)])
            };
            let rows = Cut { units: s.rows as usize, words: vec![0, 0, s.cols as usize, 0], part: Box::new(part) };
            vec![rows, tokens(*p, vec![0, 0, 0, s.cols as usize])]
        }
        "gemm_nn" => vec![rows(*p), depth(*p, false)],
        "gemm_nt" | "gemv_nt" => {
            // The triangle is that of a matrix by its own transpose: a part makes both sides of it, with the same bits.
            let p = with(*p, &[(SYMMETRIC, 0)]);
            vec![rows(p), columns_nt(p, 1)]
        }
        "gemm_nt_half" | "gemv_nt_half" => vec![rows(*p), columns_nt(*p, 2)],
        "gemm_tn" => vec![rows_tn(*p), depth(*p, true)],
        "gemm_nn_ternary" => {
            let cols = p.get::<gemm::Shape>().n as usize;
            vec![with_scales(rows(*p), 0), with_codes(depth(*p, false), ternary::packed_words(cols), 1)]
        }
        "gemm_tn_q8" => {
            let cols = p.get::<gemm::Shape>().n as usize;
            vec![with_scales(rows_tn(*p), 0), with_codes(depth(*p, true), 4 * ternary::packed_words(cols), 2)]
        }
        // Sums of a few words for each row or block, and square matrices of Muon: its products make one triangle of them.
        _ => Vec::new(),
    }
}

/// Words of a token's row in each binding of the kernels that treat rows alone.
fn words_of_a_row(kernel: &str, p: &Params) -> Vec<usize> {
    match kernel {
        "rope" => {
            let s: rope::Shape = p.get();
            vec![1, 0, (s.heads * s.head_dim) as usize]
        }
        "ternary_gemm" | "ternary_gemv" => {
            let s: ternary_gemm::Shape = p.get();
            vec![4 * ternary::packed_words(s.cols as usize), 2, 0, 0, s.outs as usize]
        }
        _ => {
            // The shapes begin with rows, columns and, where codes come out, the words of a row of them.
            let (cols, codes) = (p.0[1] as usize, p.0[2] as usize);
            match kernel {
                "rmsnorm" => vec![cols, 0, cols, 1],
                "rmsnorm_grad_x" => vec![cols, 0, 1, cols, cols],
                "act_quant" => vec![cols, 0, codes, 2],
                "norm_quant" => vec![cols, 0, 0, codes, 2, 1],
                _ => vec![cols, cols, 0, 0, cols, codes, 2, 1],
            }
        }
    }
}

/// Words of a sequence: of its rows over all heads, its keys (or values) in a form, its mask, its statistics.
fn sequence(s: &attention::Shape, form: Cached) -> [usize; 4] {
    let (rows, keys, heads) = (s.q_len as usize, s.kv_len as usize, s.heads as usize);
    let row = heads * s.head_dim as usize;
    [rows * row, keys * s.kv_heads as usize * form.words(s.head_dim as usize), keys, 2 * rows * heads]
}

/// Sequences: the kernels' shapes begin with the rows and those of one sequence. Where every part binds all rows, `first` is
/// the word of the parameters that says with which one it begins.
fn sequences(p: Params, first: Option<usize>, words: Vec<usize>) -> Cut {
    let (rows, q_len) = (p.0[0] as usize, p.0[1] as usize);
    let part = move |from: usize, count: usize| {
        let begin = first.map(|word| (word, p.0[word] as usize + from * q_len));
        with(with(p, &[(0, count * q_len)]), begin.as_slice())
    };
    Cut { units: rows / q_len, words, part: Box::new(part) }
}

/// Attention over a cache: whole sequences; or only their keys and values, where a few rows do not begin where a binding
/// may; or rows of a single sequence.
fn over_cache(p: Params, form: Cached) -> Vec<Cut> {
    let s: attention::Shape = p.get();
    let [q, kv, mask, stats] = sequence(&s, form);
    let whole = sequences(p, None, vec![q, kv, kv, mask, s.q_len as usize, q, stats]);
    let keys = sequences(p, Some(FIRST_OF_ATTENTION), vec![0, kv, kv, 0, 0, 0, 0]);
    let row = (s.heads * s.head_dim) as usize;
    let rows = Cut {
        units: if s.rows == s.q_len { s.rows as usize } else { 0 },
        words: vec![row, 0, 0, 0, 1, row, 2 * s.heads as usize],
        part: Box::new(move |_, count| with(p, &[(0, count), (1, count)])),
    };
    // What already begins at a later row than its bindings stays so.
    if p.0[FIRST_OF_ATTENTION] > 0 { vec![keys] } else { vec![whole, keys, rows] }
}

/// Rows that go into a cache, as [`over_cache`].
fn into_cache(p: Params, form: Cached) -> Vec<Cut> {
    let s: kv_store::Shape = p.get();
    let heads = s.cols / s.head_dim;
    let kv = (s.kv_len * heads) as usize * form.words(s.head_dim as usize);
    let whole = sequences(p, None, vec![(s.q_len * s.cols) as usize, s.q_len as usize, kv]);
    let keys = sequences(p, Some(FIRST_OF_STORE), vec![0, 0, kv]);
    if p.0[FIRST_OF_STORE] > 0 { vec![keys] } else { vec![whole, keys] }
}

fn with(mut p: Params, words: &[(usize, usize)]) -> Params {
    words.iter().for_each(|(at, word)| p.0[*at] = *word as u32);
    p
}

fn squares(p: Params) -> Vec<Cut> {
    let s: clip::SumSq = p.get();
    let part = move |first: usize, count: usize| {
        let n = (s.n as usize - first * clip::BLOCK).min(count * clip::BLOCK);
        Params::new(&clip::SumSq { n: n as u32, offset: s.offset + first as u32 })
    };
    vec![Cut { units: clip::partials(s.n as usize), words: vec![clip::BLOCK, 0], part: Box::new(part) }]
}

/// Blocks of one-byte moments.
fn blocks(p: Params) -> Vec<Cut> {
    let n = p.0[0] as usize;
    let part = move |first: usize, count: usize| with(p, &[(0, (n - first * adamw::BLOCK).min(count * adamw::BLOCK))]);
    let (bytes, scales) = adamw::int8_words(adamw::BLOCK);
    vec![Cut { units: n.div_ceil(adamw::BLOCK), words: vec![0, 0, adamw::BLOCK, adamw::BLOCK, bytes, bytes, scales], part: Box::new(part) }]
}

/// Words of two float16.
fn pairs(p: Params, words: Vec<usize>) -> Vec<Cut> {
    let n = p.0[0] as usize;
    let part = move |first: usize, count: usize| with(p, &[(0, (n - 2 * first).min(2 * count))]);
    vec![Cut { units: n.div_ceil(2), words, part: Box::new(part) }]
}

/// Rows of a table, of which a part knows the first one's token.
fn tokens(p: Params, words: Vec<usize>) -> Cut {
    let s: embed::Shape = p.get();
    let from = p.0[FIRST_TOKEN] as usize;
    let part = move |first, count| with(p, &[(2, count), (FIRST_TOKEN, from + first)]);
    Cut { units: s.vocab as usize, words, part: Box::new(part) }
}

/// Rows of a batch, or of the table: a part writes what its tokens give.
fn gather(p: Params, values_a_word: usize) -> Vec<Cut> {
    let s: embed::Shape = p.get();
    let cols = s.cols as usize;
    let rows = Cut { units: s.rows as usize, words: vec![1, 0, cols], part: Box::new(move |_, count| with(p, &[(0, count)])) };
    vec![rows, tokens(p, vec![0, cols / values_a_word, 0])]
}

/// The word at `at`, or `default` where it is 0.
fn stride(p: &Params, at: usize, default: u32) -> usize {
    if p.0[at] == 0 { default as usize } else { p.0[at] as usize }
}

/// Rows of A and C, A contiguous along k.
fn rows(p: Params) -> Cut {
    let s: gemm::Shape = p.get();
    let words = vec![stride(&p, strides::LDA, s.k), 0, stride(&p, strides::LDC, s.n)];
    Cut { units: if s.symmetric == 1 { 0 } else { s.m as usize }, words, part: Box::new(move |_, count| with(p, &[(0, count)])) }
}

/// The cut of a product whose right operand has a buffer of scales beside it, with some words of them in a unit.
fn with_scales(mut cut: Cut, words: usize) -> Cut {
    cut.words.insert(2, words);
    cut
}

/// The cut along the depth of a product whose right operand is packed.
fn with_codes(cut: Cut, codes: usize, scales: usize) -> Cut {
    let mut cut = with_scales(cut, scales);
    cut.words[1] = codes;
    cut
}

/// Columns of C, rows of Bᵀ.
fn columns_nt(p: Params, values_a_word: usize) -> Cut {
    let s: gemm::Shape = p.get();
    let (ldc, c0) = (stride(&p, strides::LDC, s.n), p.0[strides::C0] as usize);
    let part = move |first, count| with(p, &[(1, count), (strides::LDC, ldc), (strides::C0, c0 + first)]);
    let units = if s.symmetric == 1 { 0 } else { s.n as usize };
    Cut { units, words: vec![0, s.k as usize / values_a_word, 0], part: Box::new(part) }
}

/// Rows of C, columns of A, which is contiguous along m.
fn rows_tn(p: Params) -> Cut {
    let s: gemm::Shape = p.get();
    let (lda, a0) = (stride(&p, strides::LDA, s.m), p.0[strides::A0] as usize);
    let part = move |first, count| with(p, &[(0, count), (strides::LDA, lda), (strides::A0, a0 + first)]);
    let units = if s.symmetric == 1 { 0 } else { s.m as usize };
    Cut { units, words: vec![0, 0, stride(&p, strides::LDC, s.n)], part: Box::new(part) }
}

/// The sums: rows of B, and columns of A, or rows where it is contiguous along m. Later parts add.
fn depth(p: Params, transposed: bool) -> Cut {
    let s: gemm::Shape = p.get();
    let (lda, a0) = (stride(&p, strides::LDA, if transposed { s.m } else { s.k }), p.0[strides::A0] as usize);
    let part = move |first, count| {
        let add = if first > 0 { 1 } else { s.add as usize };
        let a0 = if transposed { a0 } else { a0 + first };
        with(p, &[(2, count), (3, add), (strides::LDA, lda), (strides::A0, a0)])
    };
    Cut { units: s.k as usize, words: vec![if transposed { lda } else { 0 }, s.n as usize, 0], part: Box::new(part) }
}
