//! Dispatches cut into parts, for buffers that are larger than what an adapter binds at once.
//!
//! A kernel is cut along units that its outputs do not share (rows, elements), or along the sums of a product, whose later
//! parts go on from what the earlier ones stored: the results are those of the whole dispatch, bit for bit. Each kernel says
//! in its own folder how ([`crate::kernel::Kernel::cut`]); here is what they share.

use crate::params::Params;

/// A part of a dispatch.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its parameters.
    pub params: Params,
    /// What it binds of each buffer: first word, words.
    pub ranges: Vec<(usize, usize)>,
}

/// One way to cut a kernel's dispatches.
pub struct Cut {
    /// Units; 0 where this way is not open to some parameters.
    pub units: usize,
    /// Words of a unit in each binding: 0 where every part binds the whole buffer.
    pub words: Vec<usize>,
    /// Parameters of some units: first, count.
    pub part: Box<dyn Fn(usize, usize) -> Params>,
}

/// The ways to cut a dispatch with some parameters, the best one first.
pub type Cuts = fn(&Params) -> Vec<Cut>;

/// Of a kernel that cannot be cut: its declaration says why.
pub const NEVER: Cuts = |_| Vec::new();

/// Words between which a binding may begin (256 bytes, WebGPU's default alignment).
const ALIGNMENT: usize = 64;

/// The parts of a dispatch over buffers of `sizes` words, none of which binds more than `limit` words; the index of a
/// buffer that cannot be cut where that is impossible.
pub(crate) fn parts(cuts: Cuts, params: &Params, sizes: &[usize], limit: usize) -> Result<Vec<Part>, usize> {
    let mut done = Vec::new();
    let mut left = vec![Part { params: *params, ranges: sizes.iter().map(|n| (0, *n)).collect() }];
    while let Some(part) = left.pop() {
        let Some(large) = part.ranges.iter().position(|r| r.1 > limit) else {
            done.push(part);
            continue;
        };
        let smaller = cuts(&part.params).into_iter().find_map(|cut| cut.apply(&part, large, limit));
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

/// Along what the first word of the parameters counts, rows or elements, with some words of one in each binding.
pub fn along_first(p: &Params, words: &[usize]) -> Vec<Cut> {
    let p = *p;
    let part = move |_, count: usize| {
        let mut part = p;
        part.0[0] = count as u32;
        part
    };
    vec![Cut { units: p.0[0] as usize, words: words.to_vec(), part: Box::new(part) }]
}

/// Along groups of `per` elements (the last one may have fewer), with some words of one in each binding: `part(first element,
/// elements)`.
pub fn along_groups(n: u32, per: usize, words: &[usize], part: impl Fn(u32, u32) -> Params + 'static) -> Vec<Cut> {
    let elements = move |first: usize, count: usize| part((first * per) as u32, (n as usize - first * per).min(count * per) as u32);
    vec![Cut { units: (n as usize).div_ceil(per), words: words.to_vec(), part: Box::new(elements) }]
}

/// Along sequences of `len` rows each, with some words of one in each binding: `part(first row, rows)`.
pub fn along_sequences(rows: u32, len: u32, words: &[usize], part: impl Fn(u32, u32) -> Params + 'static) -> Cut {
    let rows_of = move |first: usize, count: usize| part(first as u32 * len, count as u32 * len);
    Cut { units: (rows / len) as usize, words: words.to_vec(), part: Box::new(rows_of) }
}
