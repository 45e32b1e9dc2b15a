//! Which heads and neurons are kept: those through which most flows.

/// The `n` parts with the largest scores, in ascending order; of equal ones the earlier.
pub(super) fn largest(scores: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Stable: equal scores stay in the order of their places.
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(n);
    order.sort_unstable();
    order
}

/// The sum of each `width` columns.
pub(super) fn by_parts(columns: &[f32], width: usize) -> Vec<f64> {
    columns.chunks(width).map(|part| part.iter().map(|x| f64::from(*x)).sum()).collect()
}

/// Indices of the elements of some parts of `width` elements each.
pub(super) fn elements(parts: &[usize], width: usize) -> Vec<usize> {
    parts.iter().flat_map(|p| p * width..(p + 1) * width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_earlier_and_order_stays() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 3.0, 2.0], 3), [1, 2, 3]);
        assert_eq!(largest(&[5.0; 4], 2), [0, 1]);
        assert_eq!(largest(&[0.0, -0.0, 1.0], 2), [0, 2]);
        assert_eq!(by_parts(&[1.0, 2.0, 3.0, 4.0], 2), [3.0, 7.0]);
        assert_eq!(elements(&[0, 2], 3), [0, 1, 2, 6, 7, 8]);
    }
}
