//! What the paths are given: some outputs and some rows.

/// Of products with a few rows.
pub(super) mod few {
    /// Words of codes that meet the lanes at a time.
    pub(in super::super) const LANES: usize = 16;
    /// Rows that a path takes together.
    pub(in super::super) const ROWS: usize = 8;

    /// What belongs to 16 words of a row's activations.
    #[repr(C, align(64))]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    pub(in super::super) struct Vector {
        /// Four activations in a word for each field of the 16 words of codes.
        pub fields: [[u32; LANES]; 4],
        /// Minus the sum of each word's 16 activations: what codes that are one too large take back.
        pub sums: [i32; LANES],
        /// The step of each lane; 1 where a row has one step.
        pub steps: [f32; LANES],
    }

    /// Some outputs and at most [`ROWS`] rows.
    pub(in super::super) struct Block<'a> {
        /// Code words `[outputs, words]`.
        pub codes: &'a [u32],
        /// Of a row.
        pub words: usize,
        /// Scales of four groups for each vector `[outputs, words/16]`.
        pub scales: &'a [[f32; 4]],
        /// Arranged activations `[words/16, rows]`.
        pub vectors: &'a [Vector],
        /// Rows.
        pub rows: usize,
        /// Distance of outputs in what comes out.
        pub ld: usize,
    }

    impl Block<'_> {
        /// Vectors of a row of codes.
        pub fn vectors_of_row(&self) -> usize {
            self.words.div_ceil(LANES)
        }
        /// Outputs.
        pub fn outputs(&self) -> usize {
            self.codes.len() / self.words
        }
    }

    /// Puts the sums of a block where they belong: output `o` of row `r` at `o·ld + r`.
    pub(in super::super) type Sums = fn(&Block<'_>, &mut [f32]);

    /// A way to compute outputs.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Path {
        /// For messages of tests.
        #[allow(dead_code)]
        pub name: &'static str,
        /// Whether activations are multiplied by their blocks' steps.
        pub run: fn(by_block: bool) -> Sums,
    }
}

/// Of products with many rows.
pub(super) mod many {
    /// Outputs of a block.
    pub(in super::super) const OUTS: usize = 32;
    /// Rows that a path takes together, at most.
    pub(in super::super) const ROWS: usize = 8;

    /// A block of outputs and some rows.
    pub(in super::super) struct Block<'a> {
        /// Words of a row.
        pub words: usize,
        /// Code words `[words, OUTS]`.
        pub codes: &'a [u32],
        /// Scales `[groups, OUTS]`.
        pub scales: &'a [f32],
        /// Activations `[rows, 4·words]`.
        pub q: &'a [u32],
        /// Minus the sums of each group's activations `[rows, groups]`.
        pub sums: &'a [i32],
        /// Steps `[rows, groups]`; empty where a row has one.
        pub steps: &'a [f32],
    }

    /// A way to add the products of at most [`ROWS`] rows to `[rows, OUTS]`.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Path {
        /// For messages of tests.
        #[allow(dead_code)]
        pub name: &'static str,
        pub run: fn(&Block<'_>, &mut [f32]),
    }
}
