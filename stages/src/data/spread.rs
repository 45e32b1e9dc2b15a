//! What a budget takes of something ordered: a sample that is spread over the whole, never its beginning.
//!
//! Texts are in order of time or of subject, prompts in order of kind: a prefix is another distribution. What a larger budget
//! takes holds what a smaller one took, so that raising it asks a paid teacher only for what is new.

use flow_lm::rng::Rng;

/// `count` of `n` places, in ascending order: all of them where there are no more. The order in which places are taken is the
/// bit-reversed count (van der Corput) from a seeded start, so that every beginning of it is spread evenly.
pub fn spread(n: usize, count: usize, seed: u64) -> Vec<usize> {
    if count >= n {
        return (0..n).collect();
    }
    let bits = usize::BITS - (n - 1).leading_zeros();
    let start = Rng::new(seed, "spread").below(n);
    let reversed = |i: usize| if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) };
    let mut taken: Vec<usize> = (0..1usize << bits).map(reversed).filter(|i| *i < n).take(count).map(|i| (i + start) % n).collect();
    taken.sort_unstable();
    taken
}

/// The items at [`spread`] places, with their places.
pub fn spread_numbered<T>(items: Vec<T>, count: Option<usize>, seed: u64) -> Vec<(usize, T)> {
    let mut places = spread(items.len(), count.unwrap_or(usize::MAX), seed).into_iter().peekable();
    items.into_iter().enumerate().filter(|(i, _)| places.next_if_eq(i).is_some()).collect()
}

/// The items at [`spread`] places.
pub fn spread_of<T>(items: Vec<T>, count: Option<usize>, seed: u64) -> Vec<T> {
    spread_numbered(items, count, seed).into_iter().map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_and_a_larger_one_holds_it() {
        for (n, seed) in [(1, 0), (7, 1), (100, 2), (1116, 1234), (4070, 9)] {
            let mut before: Vec<usize> = Vec::new();
            for count in [1, 2, 3, n / 8, n / 3, n / 2, n - n / 9, n, n + 5] {
                let now = spread(n, count, seed);
                assert_eq!(now.len(), count.min(n));
                assert!(now.windows(2).all(|w| w[0] < w[1]) && now.iter().all(|i| *i < n));
                assert!(before.iter().all(|i| now.binary_search(i).is_ok()) || count < before.len(), "{n} {count}");
                // No gap is wider than four mean ones, around the end of the list too.
                if count > 1 && n > 8 {
                    let around = now[0] + n - now[now.len() - 1];
                    let widest = now.windows(2).map(|w| w[1] - w[0]).chain([around]).max().unwrap_or(0);
                    assert!(widest <= 4 * n.div_ceil(now.len()), "{n} {count}: a gap of {widest}");
                }
                before = now;
            }
        }
        assert_ne!(spread(100, 10, 1), spread(100, 10, 2));
        assert_eq!(spread(0, 3, 1), Vec::<usize>::new());
        assert_eq!(spread_of(vec!['a', 'b', 'c'], None, 5), ['a', 'b', 'c']);
    }
}
