//! Whoever has fewest calls in flight.

use std::cmp::Ordering;

use super::chances::{self, Chances, below};
use super::choices::{self, Choices, least_by_weight};
use super::roster::{Roster, UNBROKEN};
use super::{Decision, Member, PickInfo, PickResult, Picker, Policy, among_ready};
use crate::error::Error;
use crate::load::Word;
use crate::rng::{Rng, remix};
use crate::timestamp::Timestamp;

/// Gives each call to the endpoint with the fewest calls in flight: of two drawn at random (the default),
/// of more, or of all.
///
/// Two choices are what gRPC's `least_request_experimental` does by default (gRFC A48), and the
/// safest among many clients, each of which knows only its own calls. More choices balance better where one
/// client makes much of the traffic. An endpoint that fails call after call does not count as idle: it
/// gets one trial call every 5 s until one succeeds.
///
/// Weights count as capacity. Where they differ, an endpoint is drawn with a chance in proportion to its weight, and
/// calls in flight ÷ weight are compared; among idle endpoints each is picked by its weight. So the weights hold at low
/// load, and what is in flight decides as it grows. (gRPC's policy does not heed weights; Envoy's does, by another
/// rule.)
///
/// ```
/// use equipoise::policy::LeastRequest;
///
/// let two = LeastRequest::default();
/// let five = LeastRequest::choices(5)?;
/// let all = LeastRequest::full_scan();
/// assert!(LeastRequest::choices(1).is_err());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LeastRequest {
    compared: Compared,
}

#[derive(Clone, Copy, Debug)]
enum Compared {
    Choices(usize),
    All,
}

/// gRFC A48's bounds of `choiceCount`, which clamps above; here that is an error.
const CHOICES: std::ops::RangeInclusive<usize> = 2..=choices::MOST;

impl Default for LeastRequest {
    /// Two choices: gRFC A48's default.
    fn default() -> Self {
        Self {
            compared: Compared::Choices(*CHOICES.start()),
        }
    }
}

impl LeastRequest {
    /// Compares `count` different endpoints, drawn at random for each call; all, where there are no
    /// more than that.
    ///
    /// # Errors
    ///
    /// When `count` is not in `2..=10`.
    pub fn choices(count: usize) -> Result<Self, Error> {
        if !CHOICES.contains(&count) {
            return Err(Error::config(format!(
                "least request: {count} choices is not in {CHOICES:?}; full_scan() compares all"
            )));
        }
        Ok(Self {
            compared: Compared::Choices(count),
        })
    }

    /// Compares all ready endpoints for each call: one or two nanoseconds each.
    ///
    /// Where weights differ, an idle endpoint always goes before one that has calls in flight, whatever their weights:
    /// light ones get more than their share while few calls are under way.
    pub fn full_scan() -> Self {
        Self {
            compared: Compared::All,
        }
    }
}

impl Policy for LeastRequest {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        let count = match self.compared {
            Compared::Choices(count) => Some(count),
            Compared::All => None,
        };
        if chances::equal(members) {
            return among_ready(members, |mut ready| {
                Choices::new(Roster::new(&mut ready, UNBROKEN), count)
            });
        }
        among_ready(members, |mut ready| {
            let roster = Roster::new(&mut ready, UNBROKEN);
            ByShare {
                count,
                // In the order of the roster, which has sorted them.
                chances: Chances::new(&ready),
                roster,
            }
        })
    }
}

/// Picks whoever has the fewest calls in flight for its weight.
///
/// Compared is what is in flight ÷ weight, without the call to come: among idle ones that would make the heavier win
/// every time, and the lightest starve. As it is, those that are idle are equal, and each is picked by its weight. They
/// are drawn by weight too: with even chances a heavy endpoint among many light ones is drawn too rarely to carry its
/// part.
#[derive(Debug)]
struct ByShare {
    roster: Roster,
    // `None` compares all.
    count: Option<usize>,
    chances: Chances,
}

impl Picker for ByShare {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        if let Some(id) = self.roster.trial(info) {
            return PickResult::Pick(id);
        }
        let share = |at| self.share(self.roster.word(at), at);
        let at = self
            .count
            .and_then(|count| {
                least_by_weight(
                    &self.roster,
                    &self.chances,
                    count,
                    info,
                    share,
                    Share::beats,
                )
            })
            // Where all that were drawn are penalised, all others are asked.
            .filter(|&at| !self.roster.word(at).penalised())
            .or_else(|| self.least(info, |at| !self.roster.avoided(at, info)))
            .or_else(|| self.least(info, |_| true));
        PickResult::Pick(self.roster.id(at.unwrap_or(0)))
    }
}

impl ByShare {
    fn share(&self, word: Word, at: usize) -> Share {
        Share {
            penalised: word.penalised(),
            in_flight: word.in_flight(),
            weight: self.chances.weight(at),
        }
    }

    /// The one with the least share of all that are allowed; of several, one by weight.
    fn least(&self, info: &PickInfo<'_>, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let shares = || {
            let words = self.roster.words().filter(|&(_, at)| allowed(at));
            words.map(|(word, at)| (self.share(word, at), at))
        };
        let (mut least, mut at) = shares().next()?;
        let mut ties = 0;
        for (share, position) in shares() {
            if share < least {
                (least, at, ties) = (share, position, 0);
            }
            if share <= least {
                ties += share.weight;
            }
        }
        // The complement: the word itself and its remix may have been drawn from before.
        let mut left = below(remix(!info.random), ties);
        // Calls begin and end meanwhile; whoever is still among the least will do.
        for (share, position) in shares().filter(|(share, _)| *share <= least) {
            at = position;
            match left.checked_sub(share.weight) {
                Some(less) => left = less,
                None => break,
            }
        }
        Some(at)
    }
}

/// How much of what it can carry a member carries.
#[derive(Clone, Copy, Debug)]
struct Share {
    penalised: bool,
    // At most 22 bits, and 32: their product is exact.
    in_flight: u64,
    weight: u64,
}

impl Share {
    /// Whether it takes the call from `other`, which was drawn before it: if its share with a part of this call, how
    /// much of it chance decides, is less than the other's without. So of two alike the one with fewer calls in
    /// flight has it; and of an idle one of weight 1 and one of weight 100 with one call in flight, which was drawn
    /// first, the light one not each time but once in a hundred.
    fn beats(&self, other: &Self, random: u64) -> bool {
        // Turned round, so as not to be a word that is drawn from. 32 bits are fine enough for any two weights.
        let part = (remix(random.rotate_left(32)) >> 32) as f64 / 2f64.powi(32);
        let own = (self.in_flight as f64 + part) * other.weight as f64;
        let theirs = other.in_flight as f64 * self.weight as f64;
        match self.penalised.cmp(&other.penalised) {
            Ordering::Less => true,
            Ordering::Equal => own < theirs,
            Ordering::Greater => false,
        }
    }
}

impl PartialOrd for Share {
    /// As `in_flight ÷ weight`; the penalised come after all others.
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let shares = (self.in_flight * other.weight).cmp(&(other.in_flight * self.weight));
        Some(self.penalised.cmp(&other.penalised).then(shares))
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::world::{OK, UNAVAILABLE, World};
    use super::*;
    use crate::report::Completion;

    #[test]
    fn bad_counts_name_value_and_range() {
        for count in [0, 1, 11, usize::MAX] {
            let error = LeastRequest::choices(count).unwrap_err();
            assert!(error.is_config());
            let text = error.to_string();
            assert!(
                text.contains(&format!("{count} choices is not in 2..=10")),
                "{text}"
            );
        }
        assert!(LeastRequest::choices(2).is_ok() && LeastRequest::choices(10).is_ok());
    }

    /// With two choices of n, the k-th busiest (from 0) wins only against those busier than itself.
    #[test]
    fn two_choices_have_the_shares_that_theory_says() {
        let mut policy = LeastRequest::default();
        let mut world = World::new(&policy, 4, 5);
        for i in 0..4 {
            for _ in 0..i {
                world.load(i).begin();
            }
        }
        let picker = world.picker(&mut policy);
        let mut picks = [0u32; 4];
        for _ in 0..60_000 {
            picks[world.pick(&*picker, &[])] += 1;
        }
        for (i, expected) in [30_000u32, 20_000, 10_000, 0].into_iter().enumerate() {
            assert!(picks[i].abs_diff(expected) < 600, "{picks:?}");
        }
    }

    #[test]
    fn one_and_two_members() {
        for mut policy in [LeastRequest::default(), LeastRequest::full_scan()] {
            let mut world = World::new(&policy, 1, 5);
            let picker = world.picker(&mut policy);
            assert_eq!(world.pick(&*picker, &[]), 0);
            let mut world = World::new(&policy, 2, 5);
            let picker = world.picker(&mut policy);
            let firsts = (0..10_000)
                .filter(|_| world.pick(&*picker, &[]) == 0)
                .count();
            assert!((4_700..5_300).contains(&firsts), "{firsts}");
            world.load(0).begin();
            assert!((0..100).all(|_| world.pick(&*picker, &[]) == 1));
            let other = [world.id(1)];
            assert_eq!(world.pick(&*picker, &other), 0);
        }
    }

    #[test]
    fn a_sinkhole_gets_trials_alone_and_comes_back() {
        for mut policy in [
            LeastRequest::default(),
            LeastRequest::choices(10).unwrap(),
            LeastRequest::full_scan(),
        ] {
            let mut world = World::new(&policy, 10, 21);
            let picker = world.picker(&mut policy);
            let good = (Duration::from_millis(10), OK);
            let at_once = Duration::from_micros(100);
            let broken = |i| if i == 0 { (at_once, UNAVAILABLE) } else { good };
            let picks = world.run(&*picker, 1_000, Duration::from_secs(20), broken);
            assert!(
                picks[0] <= 12,
                "5 faults, then one trial per 5 s: {picks:?}"
            );
            assert!(picks[0] >= 7, "and no fewer: {picks:?}");
            let picks = world.run(&*picker, 1_000, Duration::from_secs(20), |_| good);
            assert!(picks[0] > 1_200, "after a trial that succeeds: {picks:?}");
            // The same, told as a success: half of the calls and more where all are compared.
            let fast = |i| if i == 0 { (at_once, OK) } else { good };
            let picks = world.run(&*picker, 1_000, Duration::from_secs(5), fast);
            assert!(picks[0] > 600, "{policy:?} control: {picks:?}");
        }
    }

    const ANSWER: Completion = Completion {
        outcome: OK,
        latency: Duration::from_millis(1),
    };

    fn weighted(policy: &LeastRequest, weights: &[u32], seed: u64) -> World {
        let mut world = World::new(policy, weights.len(), seed);
        for (i, &weight) in weights.iter().enumerate() {
            world.weigh(i, weight);
        }
        world
    }

    /// All kinds: some drawn, more drawn, all compared.
    fn kinds() -> [LeastRequest; 3] {
        [
            LeastRequest::default(),
            LeastRequest::choices(5).unwrap(),
            LeastRequest::full_scan(),
        ]
    }

    #[test]
    fn the_idle_are_picked_by_weight() {
        for mut policy in kinds() {
            let weights = [1, 2, 3, 4, 5, 6, 7];
            let mut world = weighted(&policy, &weights, 31);
            let picker = world.picker(&mut policy);
            let mut picks = [0.0; 7];
            for _ in 0..56_000 {
                picks[world.pick(&*picker, &[])] += 1.0;
            }
            for (picks, weight) in picks.into_iter().zip(weights) {
                let expected: f64 = 2_000.0 * f64::from(weight);
                let off: f64 = picks - expected;
                assert!(
                    off.abs() < 5.0 * expected.sqrt(),
                    "{policy:?} {weight}: {picks}"
                );
            }
        }
    }

    /// A light endpoint beside a heavy one that is never idle: its share is not more than twice its weight's.
    #[test]
    fn the_light_are_spared_while_the_heavy_are_busy_a_little() {
        for mut policy in [LeastRequest::default(), LeastRequest::choices(5).unwrap()] {
            let mut world = weighted(&policy, &[1, 100], 35);
            let picker = world.picker(&mut policy);
            let mut light = 0;
            for _ in 0..10_000 {
                world.load(1).begin();
                light += u32::from(world.pick(&*picker, &[]) == 0);
                let now = world.now();
                world.load(1).end(&ANSWER, now, now);
            }
            // 1 in 101 by being drawn first, and 1 of 100 of the rest.
            assert!((130..270).contains(&light), "{policy:?}: {light}");
        }
    }

    /// By fractions, and the slow way: who has the least of those that need not be avoided.
    #[test]
    fn a_scan_finds_the_least_share_there_is() {
        let mut policy = LeastRequest::full_scan();
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let n = 2 + rng.below(150);
            let greatest = [3, 10, u32::MAX as usize][rng.below(3)];
            let mut weights: Vec<u32> = (0..n).map(|_| 1 + rng.below(greatest) as u32).collect();
            (weights[0], weights[1]) = (1, 2);
            let mut world = weighted(&policy, &weights, seed);
            let picker = world.picker(&mut policy);
            for i in 0..n {
                (0..1 + rng.below(6)).for_each(|_| world.load(i).begin());
            }
            let avoid: Vec<_> = (0..rng.below(3)).map(|_| world.id(rng.below(n))).collect();
            let share = |i: usize| f64::from(world.load(i).in_flight()) / f64::from(weights[i]);
            let allowed = (0..n).filter(|&i| !avoid.contains(&world.id(i)));
            // A quotient of two whole numbers is rounded the same way however it is written.
            let Some(least) = allowed.map(share).min_by(f64::total_cmp) else {
                continue;
            };
            let shares: Vec<_> = (0..n).map(share).collect();
            for _ in 0..20 {
                let at = world.pick(&*picker, &avoid);
                assert!(!avoid.contains(&world.id(at)), "seed {seed}");
                assert_eq!(shares[at], least, "seed {seed}: {at}");
            }
        }
    }

    #[test]
    fn under_load_calls_in_flight_are_in_proportion_to_weight() {
        for mut policy in kinds() {
            let weights = [1, 1, 2, 2, 4, 10];
            let mut world = weighted(&policy, &weights, 32);
            let picker = world.picker(&mut policy);
            for _ in 0..2_000 {
                let at = world.pick(&*picker, &[]);
                world.load(at).begin();
            }
            for (i, weight) in weights.into_iter().enumerate() {
                let expected = f64::from(weight) * 100.0;
                let off = (f64::from(world.load(i).in_flight()) / expected - 1.0).abs();
                assert!(off < 0.08, "{policy:?}: {i}: {:?}", world.load(i));
            }
        }
    }

    #[test]
    fn weights_far_apart_are_borne() {
        for mut policy in kinds() {
            for n in [2, 3, 10_000] {
                let mut weights = vec![1; n];
                weights[1] = u32::MAX;
                let mut world = weighted(&policy, &weights, 33);
                let picker = world.picker(&mut policy);
                let heavy = [world.id(1)];
                for _ in 0..50 {
                    assert_eq!(world.pick(&*picker, &[]), 1, "{policy:?} of {n}");
                    let at = world.pick(&*picker, &heavy);
                    assert!(at != 1 && at < n, "{policy:?} of {n}");
                    // Any that is idle goes before it where all are compared.
                    if matches!(policy.compared, Compared::Choices(_)) {
                        world.load(1).begin();
                    }
                }
                let all: Vec<_> = (0..n).map(|i| world.id(i)).collect();
                assert!(world.pick(&*picker, &all) < n);
            }
        }
    }

    /// The heaviest of ten fails at once.
    #[test]
    fn a_sinkhole_of_great_weight_gets_trials_alone() {
        let second = Duration::from_secs(1);
        for mut policy in kinds() {
            let mut weights = [1; 10];
            weights[0] = 5;
            weights[9] = 2;
            let mut world = weighted(&policy, &weights, 34);
            let picker = world.picker(&mut policy);
            let serve = |i| match i {
                0 => (Duration::from_micros(100), UNAVAILABLE),
                _ => (Duration::from_millis(10), OK),
            };
            let first = world.run(&*picker, 1_000, second, serve);
            assert!(first[0] <= 100, "at most 10 %: {first:?}");
            world.run(&*picker, 1_000, 4 * second, serve);
            let later = world.run(&*picker, 1_000, 10 * second, serve);
            assert!(later[0] <= 3, "{policy:?}: a trial per 5 s: {later:?}");
            assert!(later[0] >= 1, "{policy:?}: {later:?}");
        }
    }

    /// Two of ten, and three of four: where all that are drawn are penalised, others are asked.
    #[test]
    fn several_sinkholes_get_trials_alone() {
        for (bad, n) in [(2, 10), (3, 4)] {
            for heaviest in [1, 3] {
                for mut policy in kinds() {
                    let weights: Vec<u32> = (0..n).map(|i| 1 + i as u32 % heaviest).collect();
                    let mut world = weighted(&policy, &weights, 36);
                    let picker = world.picker(&mut policy);
                    let serve = |i| match i < bad {
                        true => (Duration::from_micros(100), UNAVAILABLE),
                        false => (Duration::from_millis(10), OK),
                    };
                    let picks = world.run(&*picker, 1_000, Duration::from_secs(10), serve);
                    let most = picks[..bad].iter().max();
                    // 5 faults, then a trial per 5 s.
                    assert!(most <= Some(&7), "{policy:?} {weights:?}: {picks:?}");
                }
            }
        }
    }
}
