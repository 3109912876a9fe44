//! Whoever of two would answer sooner, by what was seen of late.

use std::time::Duration;

use super::adaptive::{checked, handicaps};
use super::chances::{self, Chances};
use super::choices::{Choices, least_by_weight};
use super::roster::{Roster, UNBROKEN};
use super::{Decision, Member, PickInfo, PickResult, Picker, Policy, among_ready};
use crate::error::Error;
use crate::load::Scoring;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Gives each call to that one of two endpoints, drawn at random, with the lesser latency × (calls in flight + 1) ÷
/// weight: what Finagle, Linkerd and tower call peak EWMA.
///
/// The latency is a decayed maximum, as in [`Adaptive`](super::Adaptive): the slowest answer counts in full at once,
/// and fades to 37 % of itself in a window of 3 s. `Adaptive` compares all endpoints and does better for it in every
/// scenario of the policy lab; two choices cost the same however many endpoints there are, and are what those know who
/// come from one of these.
///
/// Of two that are idle and as quick, the heavier gets the call: under little load, light endpoints see little
/// traffic, as with `Adaptive`.
///
/// An endpoint that fails is no fast endpoint: see [`load`](crate::load) for what errors do to a score, and how
/// newcomers are tried. Weights count as capacity: endpoints are drawn with a chance in proportion to their weight.
///
/// ```
/// use equipoise::policy::PeakEwma;
/// use std::time::Duration;
///
/// let policy = PeakEwma::default();
/// let calmer = PeakEwma::with_window(Duration::from_secs(10))?;
/// assert!(PeakEwma::with_window(Duration::from_millis(10)).is_err());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PeakEwma {
    window: Duration,
}

/// Finagle's, Linkerd's and tower's is 10 s, which two choices are too slow with: against servers that are slow for
/// half a second now and then, 3 s is 7 to 14 % better at the 99th percentile in simulation.
const WINDOW: Duration = Duration::from_secs(3);

/// How many are drawn: more than one choice is what counts.
const CHOICES: usize = 2;

impl Default for PeakEwma {
    /// A window of 3 s.
    fn default() -> Self {
        Self { window: WINDOW }
    }
}

impl PeakEwma {
    /// Remembers a slow answer for `window`: the time in which it fades to 37 % of itself. Default 3 s.
    /// Longer windows suit sparse traffic; shorter ones forgive sooner.
    ///
    /// # Errors
    ///
    /// When `window` is not in 1 s ..= 60 s.
    pub fn with_window(window: Duration) -> Result<Self, Error> {
        let window = checked("peak EWMA", window)?;
        Ok(Self { window })
    }
}

impl Policy for PeakEwma {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        if chances::equal(members) {
            return among_ready(members, |mut ready| {
                Choices::new(Roster::new(&mut ready, UNBROKEN), Some(CHOICES))
            });
        }
        among_ready(members, |mut ready| {
            let roster = Roster::new(&mut ready, UNBROKEN);
            // In the order of the roster, which has sorted them.
            ByWeight {
                handicaps: handicaps(&ready),
                chances: Chances::new(&ready),
                roster,
            }
        })
    }

    fn scoring(&self) -> Scoring {
        Scoring::Latency {
            window: self.window,
        }
    }
}

/// Where weights differ. Drawn by weight: with even chances a heavy endpoint among many light ones is drawn too rarely
/// to carry its part, and the light ones drown.
#[derive(Debug)]
struct ByWeight {
    roster: Roster,
    chances: Chances,
    // By position.
    handicaps: Vec<u64>,
}

impl Picker for ByWeight {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        if let Some(id) = self.roster.trial(info) {
            return PickResult::Pick(id);
        }
        let cost = |at: usize| self.roster.score(at) + self.handicaps[at];
        let less = |a: &u64, b: &u64, _| a < b;
        let at = least_by_weight(&self.roster, &self.chances, CHOICES, info, cost, less)
            // Where all that were drawn are penalised, all others are asked.
            .filter(|&at| !self.roster.word(at).penalised())
            .unwrap_or_else(|| self.roster.least(info, |at| self.handicaps[at]));
        PickResult::Pick(self.roster.id(at))
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::{OK, UNAVAILABLE, World};
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn world(weights: &[u32], seed: u64) -> (World, PeakEwma) {
        let policy = PeakEwma::default();
        let mut world = World::new(&policy, weights.len(), seed);
        for (i, &weight) in weights.iter().enumerate() {
            world.weigh(i, weight);
        }
        (world, policy)
    }

    /// Ten alike, and ten of which the first has more weight than the others.
    const FLEETS: [[u32; 10]; 2] = [[1; 10], [4, 1, 1, 1, 1, 1, 1, 1, 1, 2]];

    #[test]
    fn bad_windows_name_value_and_range() {
        for window in [Duration::ZERO, 999 * MS, 60_001 * MS, Duration::MAX] {
            let error = PeakEwma::with_window(window).unwrap_err();
            assert!(error.is_config());
            let text = error.to_string();
            assert!(
                text.contains(&format!("window {window:?} is not in 1s..=60s")),
                "{text}"
            );
        }
        assert!(
            PeakEwma::with_window(SECOND).is_ok() && PeakEwma::with_window(60 * SECOND).is_ok()
        );
    }

    /// It wins only against itself: where it is drawn first and second, which cannot be.
    #[test]
    fn a_slow_server_gets_little() {
        for fleet in FLEETS {
            let (mut world, mut policy) = world(&fleet, 1);
            let picker = world.picker(&mut policy);
            let serve = |i| (if i == 0 { 200 * MS } else { 2 * MS }, OK);
            world.run(&*picker, 1_000, SECOND, serve);
            let picks = world.run(&*picker, 1_000, 20 * SECOND, serve);
            assert!(
                picks[0] * 100 <= picks.iter().sum(),
                "at most 1 %: {picks:?}"
            );
            assert!(picks[0] > 0, "it is looked at again: {picks:?}");
        }
    }

    #[test]
    fn all_alike_share_evenly() {
        let (mut world, mut policy) = world(&[1; 10], 2);
        let picker = world.picker(&mut policy);
        let picks = world.run(&*picker, 4_000, 10 * SECOND, |_| (10 * MS, OK));
        let (least, most) = (picks.iter().min().unwrap(), picks.iter().max().unwrap());
        assert!(most * 10 < least * 12, "{picks:?}");
    }

    #[test]
    fn a_sinkhole_gets_trials_alone_and_comes_back() {
        for fleet in FLEETS {
            let (mut world, mut policy) = world(&fleet, 3);
            let picker = world.picker(&mut policy);
            let good = (10 * MS, OK);
            let at_once = Duration::from_micros(100);
            world.run(&*picker, 1_000, 5 * SECOND, |_| good);
            let broken = |i| if i == 0 { (at_once, UNAVAILABLE) } else { good };
            let first = world.run(&*picker, 1_000, SECOND, broken);
            assert!(first[0] <= 100, "at most 10 %: {first:?}");
            world.run(&*picker, 1_000, 4 * SECOND, broken);
            let later = world.run(&*picker, 1_000, 10 * SECOND, broken);
            assert!((1..=3).contains(&later[0]), "a trial per 5 s: {later:?}");
            let back = world.run(&*picker, 1_000, 30 * SECOND, |_| good);
            assert!(back[0] > 1_500, "after a trial that succeeds: {back:?}");
            // The same, told as a success, draws the traffic in: it is the error that counts.
            let fast = |i| if i == 0 { (at_once, OK) } else { good };
            let control = world.run(&*picker, 1_000, 60 * SECOND, fast);
            assert!(control[0] > 60_000 * 18 / 100, "control: {control:?}");
        }
    }

    #[test]
    fn a_newcomer_gets_one_call_at_a_time_until_it_answers() {
        for fleet in FLEETS {
            let (mut world, mut policy) = world(&fleet, 4);
            let picker = world.picker(&mut policy);
            world.run(&*picker, 1_000, 5 * SECOND, |_| (10 * MS, OK));
            let new = world.add();
            let picker = world.picker(&mut policy);
            let silent = |i| (if i == new { 8 * SECOND } else { 10 * MS }, OK);
            let picks = world.run(&*picker, 1_000, 4 * SECOND, silent);
            assert_eq!(picks[new], 1, "{picks:?}");
            let picks = world.run(&*picker, 1_000, 60 * SECOND, |_| (10 * MS, OK));
            assert!(picks[new] > 1_000, "{picks:?}");
        }
    }

    #[test]
    fn weights_are_capacity() {
        let (mut world, mut policy) = world(&[3, 1, 1, 1], 5);
        let picker = world.picker(&mut policy);
        let picks = world.run(&*picker, 8_000, 5 * SECOND, |_| (10 * MS, OK));
        let share = picks[0] as f64 / picks.iter().sum::<u64>() as f64;
        assert!((0.45..0.55).contains(&share), "3 of 6: {picks:?}");
    }

    #[test]
    fn weights_far_apart_are_borne() {
        for n in [1, 2, 3, 10_000] {
            let mut weights = vec![1; n];
            weights[n / 2] = u32::MAX;
            let (mut world, mut policy) = world(&weights, 6);
            let picker = world.picker(&mut policy);
            let heavy = [world.id(n / 2)];
            for _ in 0..50 {
                assert_eq!(world.pick(&*picker, &[]), n / 2);
                assert!(n == 1 || world.pick(&*picker, &heavy) != n / 2);
            }
            let all: Vec<_> = (0..n).map(|i| world.id(i)).collect();
            assert!(world.pick(&*picker, &all) < n);
        }
    }

    /// Two of ten, and three of four, alike and of unlike weights.
    #[test]
    fn several_sinkholes_get_trials_alone() {
        let fleets: [(usize, &[u32]); 4] = [
            (2, &FLEETS[0]),
            (2, &FLEETS[1]),
            (3, &[1; 4]),
            (3, &[3, 1, 2, 1]),
        ];
        for (bad, fleet) in fleets {
            let (mut world, mut policy) = world(fleet, 7);
            let picker = world.picker(&mut policy);
            world.run(&*picker, 1_000, 5 * SECOND, |_| (10 * MS, OK));
            let serve = |i| match i < bad {
                true => (Duration::from_micros(100), UNAVAILABLE),
                false => (10 * MS, OK),
            };
            // Until all of them have had faults enough to be penalised.
            world.run(&*picker, 1_000, 5 * SECOND, serve);
            let later = world.run(&*picker, 1_000, 10 * SECOND, serve);
            let most = later[..bad].iter().max();
            assert!(most <= Some(&3), "a trial per 5 s: {fleet:?}: {later:?}");
        }
    }
}
