//! What a file says of a tensor.

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// `[rows, cols]` or `[n]`.
    pub shape: Vec<usize>,
    /// Type id.
    pub ty: u32,
    /// Offset after the header.
    pub offset: usize,
}

impl TensorInfo {
    /// Values of a row.
    pub(super) fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Values, or the largest number where there are more.
    pub(super) fn values(&self) -> u64 {
        self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64)).unwrap_or(u64::MAX)
    }
}
