//! Draws positions with chances in proportion to their weights.

use super::Member;
use crate::endpoint::Connectivity;

/// The chances of the positions of a list that is not empty.
///
/// One draw takes a multiplication and one read of memory, however many positions there are (Vose's alias table): the
/// weights are poured into columns of the same height, each of which holds its own position and at most one other. All
/// of it is reckoned in whole numbers, so the chances are exact.
#[derive(Debug)]
pub(super) struct Chances {
    columns: Vec<Column>,
    // The sum of the weights before each position, and of all at the end.
    starts: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    // Of 2^64 parts of the column, how many are its own position's.
    own: u64,
    // Whose the rest is.
    other: u32,
}

impl Chances {
    /// By what the members weigh. A weight of 0, which no endpoint has, counts as 1.
    pub(super) fn new(members: &[&Member]) -> Self {
        Self::by(members.iter().map(|member| &member.weight))
    }

    /// By weights.
    pub(super) fn by<'a>(weights: impl IntoIterator<Item = &'a u32>) -> Self {
        let mut starts = vec![0];
        let mut total = 0;
        for &weight in weights {
            total += u64::from(weight.max(1));
            starts.push(total);
        }
        Self {
            columns: columns(&starts, total),
            starts,
        }
    }

    /// A position.
    #[inline]
    pub(super) fn draw(&self, random: u64) -> usize {
        // The whole part names the column; the fraction, as evenly spread as the word itself, a part of it.
        let product = u128::from(random) * self.columns.len() as u128;
        let at = (product >> 64) as usize;
        let column = self.columns[at];
        match (product as u64) < column.own {
            true => at,
            false => column.other as usize,
        }
    }

    /// A position that is not in `drawn`, which is in ascending order and lacks one at least; the chances of the others
    /// stay in proportion. The logarithm of their number in steps.
    #[cold]
    pub(super) fn draw_another(&self, drawn: &[usize], random: u64) -> usize {
        let taken: u64 = drawn.iter().map(|&at| self.weight(at)).sum();
        let mut point = below(random, self.total() - taken);
        // Past each drawn one that does not lie above.
        for &at in drawn {
            if point >= self.starts[at] {
                point += self.weight(at);
            }
        }
        self.starts.partition_point(|&start| start <= point) - 1
    }

    #[inline]
    pub(super) fn weight(&self, at: usize) -> u64 {
        self.starts[at + 1] - self.starts[at]
    }

    fn total(&self) -> u64 {
        self.starts[self.columns.len()]
    }
}

/// Each column is as high as the sum of all weights, and each weight is poured out once for each column: nothing is
/// rounded, and nothing is left over.
fn columns(starts: &[u64], total: u64) -> Vec<Column> {
    let n = starts.len() - 1;
    let height = u128::from(total);
    let mut left: Vec<u128> = starts
        .windows(2)
        .map(|pair| u128::from(pair[1] - pair[0]) * n as u128)
        .collect();
    // Until it is filled up, a column is its own position's alone.
    let mut columns: Vec<Column> = (0..n as u32)
        .map(|other| Column { own: 0, other })
        .collect();
    let (mut short, mut long): (Vec<usize>, Vec<usize>) = (0..n).partition(|&at| left[at] < height);
    while let (Some(low), Some(&high)) = (short.pop(), long.last()) {
        columns[low] = Column {
            // Rounded up: the parts below it are as many as the fractions that scale to less than `left`.
            own: (left[low] << 64).div_ceil(height) as u64,
            other: high as u32,
        };
        left[high] -= height - left[low];
        if left[high] < height {
            long.pop();
            short.push(high);
        }
    }
    columns
}

/// Maps a uniform word onto `0..bound`; 0 when `bound` is 0.
pub(super) fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

/// One of `weights`, which are positions with their weights, by these: a walk over all. `None` where there is none.
#[cold]
pub(super) fn draw_among(
    random: u64,
    mut weights: impl Iterator<Item = (usize, u64)> + Clone,
) -> Option<usize> {
    let sum = weights.clone().map(|(_, weight)| weight).sum();
    let mut left = below(random, sum);
    let found = weights.find(|&(_, weight)| match left.checked_sub(weight) {
        Some(less) => {
            left = less;
            false
        }
        None => true,
    });
    found.map(|(at, _)| at)
}

/// Whether all members that are ready have the same weight.
pub(super) fn equal(members: &[Member]) -> bool {
    let mut ready = members
        .iter()
        .filter(|member| member.state == Connectivity::Ready)
        .map(|member| member.weight.max(1));
    let first = ready.next();
    ready.all(|weight| Some(weight) == first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, scale};

    /// Lists of every shape, small and large, up to the greatest weight there is.
    fn lists() -> Vec<Vec<u32>> {
        let mut rng = Rng::new(5);
        let mut lists = vec![
            vec![1],
            vec![7, 7],
            vec![1, 2],
            vec![1, u32::MAX],
            vec![u32::MAX, 1, u32::MAX],
            vec![u32::MAX; 3],
            (1..=10).collect(),
        ];
        for n in [3, 10, 1_000, 10_000] {
            let mut one_heavy = vec![1; n];
            one_heavy[n / 3] = u32::MAX;
            lists.push(one_heavy);
            lists.push(vec![u32::MAX - 1; n].into_iter().chain([1]).collect());
            lists.push((0..n).map(|_| 1 + (rng.word() >> 32) as u32 / 2).collect());
            lists.push((0..n).map(|_| 1 + rng.below(3) as u32).collect());
            lists.push((0..n).map(|_| 1 << rng.below(32)).collect());
        }
        lists
    }

    /// What the table gives to each position, to the last unit: of columns as high as the sum of the weights.
    fn poured(chances: &Chances) -> Vec<u128> {
        let total = u128::from(chances.total());
        let mut poured = vec![0; chances.columns.len()];
        for (at, column) in chances.columns.iter().enumerate() {
            // What `own` was rounded up from.
            let own = (u128::from(column.own) * total) >> 64;
            poured[at] += own;
            poured[column.other as usize] += total - own;
        }
        poured
    }

    #[test]
    fn the_table_holds_each_weight_to_the_last_unit() {
        for weights in lists() {
            let n = weights.len() as u128;
            let expected: Vec<u128> = weights.iter().map(|&w| u128::from(w) * n).collect();
            assert_eq!(poured(&Chances::by(&weights)), expected, "{n} weights");
        }
    }

    /// Words that are spread evenly find each position as often as its weight says, but for the ends of its parts.
    #[test]
    fn words_spread_evenly_are_shared_by_weight() {
        let weights = [1, 2, 3, 4, 90, 1_000];
        let chances = Chances::by(&weights);
        let words = 1_u64 << 16;
        let mut hits = [0.0; 6];
        for i in 0..words {
            hits[chances.draw(i << 48)] += 1.0;
        }
        for (hits, weight) in hits.into_iter().zip(weights) {
            let expected = f64::from(weight) * words as f64 / 1_100.0;
            assert!(
                f64::abs(hits - expected) <= 12.0,
                "{weight}: {hits}, not {expected}"
            );
        }
    }

    #[test]
    fn equal_weights_are_a_plain_draw() {
        let mut rng = Rng::new(6);
        for n in [1, 2, 7, 1_000] {
            let chances = Chances::by(&vec![9; n]);
            for _ in 0..1_000 {
                let word = rng.word();
                assert_eq!(chances.draw(word), scale(word, n));
            }
        }
    }

    /// The naive way: the sums of the weights of those that are left, walked through.
    fn naive(weights: &[u32], random: u64, left: impl Fn(usize) -> bool) -> Option<usize> {
        let left: Vec<usize> = (0..weights.len()).filter(|&at| left(at)).collect();
        let sum: u128 = left.iter().map(|&at| u128::from(weights[at])).sum();
        let mut point = (u128::from(random) * sum) >> 64;
        for at in left {
            match point.checked_sub(u128::from(weights[at])) {
                Some(less) => point = less,
                None => return Some(at),
            }
        }
        None
    }

    #[test]
    fn the_others_keep_their_proportions() {
        for (seed, weights) in (0..).zip(lists()) {
            let mut rng = Rng::new(seed);
            let chances = Chances::by(&weights);
            let n = weights.len();
            for round in 0..200 {
                let mut drawn: Vec<usize> =
                    (0..rng.below(n.min(10))).map(|_| rng.below(n)).collect();
                if round % 2 == 0 {
                    // The heaviest is the one that is drawn as a rule.
                    drawn.extend((n > 1).then(|| (0..n).max_by_key(|&at| weights[at]).unwrap()));
                }
                drawn.sort_unstable();
                drawn.dedup();
                drawn.truncate(n - 1);
                for word in [0, u64::MAX, rng.word()] {
                    let expected = naive(&weights, word, |at| !drawn.contains(&at));
                    let another = chances.draw_another(&drawn, word);
                    assert_eq!(Some(another), expected, "list {seed}: {drawn:?} {word:#x}");
                    let others = (0..n).filter(|at| !drawn.contains(at));
                    let others = others.map(|at| (at, chances.weight(at)));
                    let among = draw_among(word, others);
                    assert_eq!(among, expected, "list {seed}: {drawn:?} {word:#x}");
                }
            }
            assert_eq!(draw_among(rng.word(), std::iter::empty()), None);
        }
    }
}
