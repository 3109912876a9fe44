//! Whoever has fewest calls in flight.

use super::roster::{Roster, UNBROKEN};
use super::{Decision, Member, PickInfo, PickResult, Picker, Policy, among_ready};
use crate::error::Error;
use crate::rng::{Rng, remix, scale};
use crate::timestamp::Timestamp;

/// Gives each call to the endpoint with the fewest calls in flight: of two drawn at random (the default),
/// of more, or of all. Weights are not heeded.
///
/// Two choices are what gRPC's `least_request_experimental` does by default (gRFC A48), and the
/// safest among many clients, each of which knows only its own calls. More choices balance better where one
/// client makes much of the traffic. An endpoint that fails call after call does not count as idle: it
/// gets one trial call every 5 s until one succeeds.
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
const CHOICES: std::ops::RangeInclusive<usize> = 2..=10;

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
    pub fn full_scan() -> Self {
        Self {
            compared: Compared::All,
        }
    }
}

impl Policy for LeastRequest {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        among_ready(members, |mut ready| Fewest {
            choices: match self.compared {
                Compared::Choices(count) if count < ready.len() => Some(count),
                _ => None,
            },
            roster: Roster::new(&mut ready, UNBROKEN),
        })
    }
}

#[derive(Debug)]
struct Fewest {
    roster: Roster,
    // `None` compares all; fewer than there are members.
    choices: Option<usize>,
}

impl Picker for Fewest {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        if let Some(id) = self.roster.trial(info) {
            return PickResult::Pick(id);
        }
        let at = match self.choices {
            Some(2) if info.avoid.is_empty() => Some(self.of_two(info.random)),
            Some(count) => self.drawn(count, info),
            None => None,
        };
        let at = at.unwrap_or_else(|| self.roster.least(info, |_| 0));
        PickResult::Pick(self.roster.id(at))
    }
}

impl Fewest {
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

    /// The least of `count` different ones, the first drawn where several are: each is as likely to be
    /// drawn first. `None` when all that were drawn should be avoided.
    #[inline]
    fn drawn(&self, count: usize, info: &PickInfo<'_>) -> Option<usize> {
        let mut best = None;
        let mut drawn = [0; *CHOICES.end()];
        let mut random = info.random;
        for i in 0..count {
            let at = another(&mut drawn, i, random, self.roster.len());
            random = remix(random);
            if !info.avoid.is_empty() && self.roster.avoided(at, info) {
                continue;
            }
            let score = self.roster.score(at);
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, at));
            }
        }
        best.map(|(_, at)| at)
    }
}

/// A position below `n` that is not among the first `i` of `drawn`, all others being equally likely;
/// `drawn` holds them in ascending order, and the new one with them afterwards.
#[inline]
fn another(drawn: &mut [usize; 10], i: usize, random: u64, n: usize) -> usize {
    // The `rank`-th of those not drawn: past each drawn one that is not above it.
    let mut at = scale(random, n - i);
    let mut place = 0;
    while place < i && drawn[place] <= at {
        at += 1;
        place += 1;
    }
    drawn.copy_within(place..i, place + 1);
    drawn[place] = at;
    at
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::world::{OK, UNAVAILABLE, World};
    use super::*;

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

    #[test]
    fn draws_are_different_and_even() {
        let mut rng = Rng::new(11);
        let mut hits = [[0u32; 11]; 10];
        for _ in 0..22_000 {
            let mut drawn = [0; 10];
            let mut order = Vec::new();
            for (i, hits) in hits.iter_mut().enumerate() {
                let at = another(&mut drawn, i, rng.word(), 11);
                hits[at] += 1;
                order.push(at);
            }
            order.sort_unstable();
            assert_eq!(order, drawn, "kept in order");
            order.dedup();
            assert_eq!(order.len(), 10, "all different");
        }
        for hits in hits {
            assert!(hits.iter().all(|h| (1_800..2_200).contains(h)), "{hits:?}");
        }
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
}
