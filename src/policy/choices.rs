//! The least costly of a few members, drawn at random.

use super::chances::Chances;
use super::roster::Roster;
use super::{PickInfo, PickResult, Picker};
use crate::rng::{remix, scale};

/// The most members that are drawn for one pick.
pub(super) const MOST: usize = 10;

/// Picks the member of least score: of some that are drawn with equal chances, or of all.
#[derive(Debug)]
pub(super) struct Choices {
    roster: Roster,
    // `None` compares all; fewer than there are members, and no more than `MOST`.
    count: Option<usize>,
}

impl Choices {
    /// All are compared where they are no more than `count`.
    pub(super) fn new(roster: Roster, count: Option<usize>) -> Self {
        let count = count.filter(|&count| count < roster.len());
        Self { roster, count }
    }
}

impl Picker for Choices {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        if let Some(id) = self.roster.trial(info) {
            return PickResult::Pick(id);
        }
        let at = match self.count {
            Some(2) if info.avoid.is_empty() => Some(self.of_two(info.random)),
            Some(count) => self.drawn(count, info),
            None => None,
        };
        let at = at
            // Where all that were drawn are penalised, all others are asked.
            .filter(|&at| !self.roster.word(at).penalised())
            .unwrap_or_else(|| self.roster.least(info, |_| 0));
        PickResult::Pick(self.roster.id(at))
    }
}

impl Choices {
    /// The same as `drawn` with two, and nobody to avoid, in a third of the time.
    #[inline]
    fn of_two(&self, random: u64) -> usize {
        let n = self.roster.len();
        // Half a word each: drawing from the whole and its remix takes longer and is no fairer below
        // millions of endpoints.
        let first = scale(random, n);
        let second = scale(random << 32, n - 1);
        let second = second + usize::from(second >= first);
        match self.roster.score(second) < self.roster.score(first) {
            true => second,
            false => first,
        }
    }

    #[inline]
    fn drawn(&self, count: usize, info: &PickInfo<'_>) -> Option<usize> {
        let mut drawn = Drawn::default();
        let draw = |random| drawn.another(random, self.roster.len());
        let score = |at| self.roster.score(at);
        least(&self.roster, count, info, draw, score, |a, b, _| a < b)
    }
}

/// Whoever is left of `count` different members, drawn by weight one after the other: each takes the place of the one
/// before it if it costs `less`, of which the third argument is a random word. `None` when all that were drawn should
/// be avoided.
#[inline]
pub(super) fn least_by_weight<C>(
    roster: &Roster,
    chances: &Chances,
    count: usize,
    info: &PickInfo<'_>,
    cost: impl Fn(usize) -> C,
    less: impl Fn(&C, &C, u64) -> bool,
) -> Option<usize> {
    let mut drawn = Drawn::default();
    let draw = |random| drawn.another_by_weight(random, chances);
    least(roster, count.min(roster.len()), info, draw, cost, less)
}

#[inline]
fn least<C>(
    roster: &Roster,
    count: usize,
    info: &PickInfo<'_>,
    mut draw: impl FnMut(u64) -> usize,
    cost: impl Fn(usize) -> C,
    less: impl Fn(&C, &C, u64) -> bool,
) -> Option<usize> {
    let mut best = None;
    let mut random = info.random;
    for _ in 0..count {
        let at = draw(random);
        random = remix(random);
        if !info.avoid.is_empty() && roster.avoided(at, info) {
            continue;
        }
        let cost = cost(at);
        if best
            .as_ref()
            .is_none_or(|(best, _)| less(&cost, best, random))
        {
            best = Some((cost, at));
        }
    }
    best.map(|(_, at)| at)
}

/// The positions that were drawn for one pick, in ascending order.
#[derive(Default)]
struct Drawn {
    positions: [usize; MOST],
    len: usize,
}

impl Drawn {
    /// A position below `n` that was not drawn yet, each with the same chance.
    #[inline]
    fn another(&mut self, random: u64, n: usize) -> usize {
        // The `rank`-th of those not drawn: past each drawn one that is not above it.
        let mut at = scale(random, n - self.len);
        let mut place = 0;
        while place < self.len && self.positions[place] <= at {
            at += 1;
            place += 1;
        }
        self.insert(place, at)
    }

    /// The same by weight.
    #[inline]
    fn another_by_weight(&mut self, random: u64, chances: &Chances) -> usize {
        let mut at = chances.draw(random);
        let drawn = &self.positions[..self.len];
        if drawn.contains(&at) {
            // The complement: the next draw's word is the remix of this one's.
            at = chances.draw_another(drawn, remix(!random));
        }
        let place = self.positions[..self.len].partition_point(|&drawn| drawn < at);
        self.insert(place, at)
    }

    #[inline]
    fn insert(&mut self, place: usize, at: usize) -> usize {
        self.positions.copy_within(place..self.len, place + 1);
        self.positions[place] = at;
        self.len += 1;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn draws_are_different_and_even() {
        let mut rng = Rng::new(11);
        let mut hits = [[0u32; 11]; 10];
        for _ in 0..22_000 {
            let mut drawn = Drawn::default();
            let mut order = Vec::new();
            for hits in &mut hits {
                let at = drawn.another(rng.word(), 11);
                hits[at] += 1;
                order.push(at);
            }
            order.sort_unstable();
            assert_eq!(order, drawn.positions, "kept in order");
            order.dedup();
            assert_eq!(order.len(), 10, "all different");
        }
        for hits in hits {
            assert!(hits.iter().all(|h| (1_800..2_200).contains(h)), "{hits:?}");
        }
    }

    /// The first draw by weight, the second by weight among the others, and so on: of three with weights 1, 2 and 5,
    /// how often each pair is drawn in each order.
    #[test]
    fn draws_by_weight_are_different_and_in_proportion() {
        let mut rng = Rng::new(12);
        let weights = [1, 2, 5];
        let chances = Chances::by(&weights);
        let mut hits = [[0.0; 3]; 3];
        for _ in 0..80_000 {
            let mut drawn = Drawn::default();
            let mut word = rng.word();
            let mut order = Vec::new();
            for _ in 0..3 {
                order.push(drawn.another_by_weight(word, &chances));
                word = remix(word);
            }
            assert_eq!(
                drawn.positions[..3],
                [0, 1, 2],
                "kept in order, all different"
            );
            hits[order[0]][order[1]] += 1.0;
        }
        for first in 0..3 {
            for second in (0..3).filter(|&second| second != first) {
                let [a, b] = [first, second].map(|at| f64::from(weights[at]));
                let expected = 80_000.0 * a / 8.0 * b / (8.0 - a);
                let got: f64 = hits[first][second];
                assert!((got - expected).abs() < 6.0 * expected.sqrt(), "{hits:?}");
            }
        }
    }
}
