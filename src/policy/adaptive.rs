//! Whoever would answer soonest, by what was seen of late: the default.

use std::time::Duration;

use super::chances;
use super::roster::{Roster, UNBROKEN};
use super::{Decision, Member, PickInfo, PickResult, Picker, Policy, among_ready};
use crate::error::Error;
use crate::load::{Scoring, handicap};
use crate::rng::{Rng, remix, scale};
use crate::timestamp::Timestamp;

/// Gives each call to the endpoint with the least latency × (calls in flight + 1) ÷ weight.
///
/// The latency is a decayed maximum: the slowest answer counts in full at once, and fades to 37 % of itself in a
/// window of 5 s (Finagle's and tower's "peak EWMA" come down to the same when read often, for a lock and an
/// exponential function more). Up to 512 ready endpoints all are compared, and beyond that up to 64 of them,
/// drawn at random for each call as eight groups of eight.
///
/// An endpoint that fails is no fast endpoint: see [`load`](crate::load) for what errors do to a score, and how
/// newcomers are tried. Weights count as capacity: at equal latency an endpoint of weight 3 carries three times the
/// calls in flight. With fewer calls in flight than endpoints, light ones see little traffic. A weight that only says
/// how fast a server is counts twice, since its latency says so too: the fast ones then get more than their part.
///
/// ```
/// use equipoise::policy::Adaptive;
/// use std::time::Duration;
///
/// let policy = Adaptive::default();
/// let calmer = Adaptive::with_window(Duration::from_secs(10))?;
/// assert!(Adaptive::with_window(Duration::from_millis(10)).is_err());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Adaptive {
    window: Duration,
}

/// 3 s suits dense traffic, 10 s sparse: in simulation 5 s is within a few per cent of the best in both.
const WINDOW: Duration = Duration::from_secs(5);
/// Below, an answer per endpoint and window is too much to ask, and the estimate is the last answer; above, one
/// peak keeps an endpoint out for minutes.
const WINDOWS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60);

/// `window`, if a latency score can have it.
pub(super) fn checked(whose: &str, window: Duration) -> Result<Duration, Error> {
    match WINDOWS.contains(&window) {
        true => Ok(window),
        false => Err(Error::config(format!(
            "{whose}: window {window:?} is not in {WINDOWS:?}"
        ))),
    }
}

/// How many ready endpoints are compared with one another: a few hundred nanoseconds.
const COMPARED: usize = 512;
/// Beyond that, how many groups are drawn, each from its own part of the endpoints...
const GROUPS: usize = 8;
/// ...and how many endpoints are in one: a line of the processor's cache. Neighbours may be alike (same
/// rack, same zone), so one long run would do worse than several short ones.
const GROUP: usize = 8;

impl Default for Adaptive {
    /// A window of 5 s.
    fn default() -> Self {
        Self { window: WINDOW }
    }
}

impl Adaptive {
    /// Remembers a slow answer for `window`: the time in which it fades to 37 % of itself. Default 5 s.
    /// Longer windows suit sparse traffic; shorter ones forgive sooner.
    ///
    /// # Errors
    ///
    /// When `window` is not in 1 s ..= 60 s.
    pub fn with_window(window: Duration) -> Result<Self, Error> {
        let window = checked("adaptive", window)?;
        Ok(Self { window })
    }
}

impl Policy for Adaptive {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        let equal = chances::equal(members);
        among_ready(members, |mut ready| {
            let drawn = ready.len() > COMPARED;
            let roster = Roster::new(&mut ready, if drawn { GROUP } else { UNBROKEN });
            Soonest {
                roster,
                handicaps: (!equal).then(|| handicaps(&ready)),
                drawn,
            }
        })
    }

    fn scoring(&self) -> Scoring {
        Scoring::Latency {
            window: self.window,
        }
    }
}

/// What the weights add to the scores, in the same order.
pub(super) fn handicaps(ready: &[&Member]) -> Vec<u64> {
    let heaviest = ready.iter().map(|member| member.weight).max();
    let heaviest = heaviest.unwrap_or(1);
    ready.iter().map(|m| handicap(m.weight, heaviest)).collect()
}

#[derive(Debug)]
struct Soonest {
    roster: Roster,
    // By position; `None` where weights are equal.
    handicaps: Option<Vec<u64>>,
    // Whether there are too many to compare all.
    drawn: bool,
}

impl Picker for Soonest {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        if let Some(id) = self.roster.trial(info) {
            return PickResult::Pick(id);
        }
        let at = match &self.handicaps {
            None => self.soonest(info, |_| 0),
            Some(handicaps) => self.soonest(info, |at| handicaps[at]),
        };
        PickResult::Pick(self.roster.id(at))
    }
}

impl Soonest {
    #[inline]
    fn soonest(&self, info: &PickInfo<'_>, handicap: impl Fn(usize) -> u64) -> usize {
        if self.drawn {
            let runs = self.roster.runs();
            let group = |i: usize| {
                let (from, to) = (i * runs.len() / GROUPS, (i + 1) * runs.len() / GROUPS);
                &runs[from + scale(remix(info.random.wrapping_add(i as u64)), to - from)]
            };
            let groups = std::array::from_fn::<_, GROUPS, _>(group);
            let least = self.roster.least_of(groups.into_iter(), info, &handicap);
            // Where all that were drawn are penalised, all others are asked.
            if let Some(at) = least.filter(|&at| !self.roster.word(at).penalised()) {
                return at;
            }
        }
        self.roster.least(info, handicap)
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::{OK, UNAVAILABLE, World};
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn world(n: usize, seed: u64) -> (World, Adaptive) {
        let policy = Adaptive::default();
        (World::new(&policy, n, seed), policy)
    }

    #[test]
    fn bad_windows_name_value_and_range() {
        for window in [Duration::ZERO, 999 * MS, 60_001 * MS, Duration::MAX] {
            let error = Adaptive::with_window(window).unwrap_err();
            assert!(error.is_config());
            let text = error.to_string();
            assert!(
                text.contains(&format!("window {window:?} is not in 1s..=60s")),
                "{text}"
            );
        }
        assert!(
            Adaptive::with_window(SECOND).is_ok() && Adaptive::with_window(60 * SECOND).is_ok()
        );
    }

    #[test]
    fn a_slow_server_gets_little() {
        let (mut world, mut policy) = world(10, 1);
        let picker = world.picker(&mut policy);
        let serve = |i| (if i == 0 { 20 * MS } else { 1_500 * MS / 1_000 }, OK);
        let picks = world.run(&*picker, 2_000, 20 * SECOND, serve);
        assert!(
            picks[0] * 250 <= picks.iter().sum(),
            "at most 0.4 %: {picks:?}"
        );
        let least = picks[1..].iter().min().unwrap();
        assert!(*least > 3_500, "the others share the rest: {picks:?}");
    }

    #[test]
    fn a_sinkhole_gets_trials_alone_and_comes_back() {
        let good = (10 * MS, OK);
        let at_once = Duration::from_micros(100);
        let (mut world, mut policy) = world(10, 2);
        let picker = world.picker(&mut policy);
        let broken = |i| if i == 0 { (at_once, UNAVAILABLE) } else { good };
        let picks = world.run(&*picker, 1_000, 20 * SECOND, broken);
        assert!(
            picks[0] <= 12,
            "a few faults, then one trial per 5 s: {picks:?}"
        );
        let picks = world.run(&*picker, 1_000, 20 * SECOND, |_| good);
        assert!(picks[0] > 1_200, "after a trial that succeeds: {picks:?}");
        // The same, told as a success, draws the traffic in: it is the error that counts.
        let fast = |i| if i == 0 { (at_once, OK) } else { good };
        let picks = world.run(&*picker, 1_000, 60 * SECOND, fast);
        assert!(picks[0] * 2 > picks.iter().sum(), "control: {picks:?}");
    }

    #[test]
    fn a_fleet_that_errs_evenly_stays_even() {
        let (mut world, mut policy) = world(10, 3);
        let picker = world.picker(&mut policy);
        let mut dice = Rng::new(33);
        let serve = move |_| match dice.below(100) {
            0..3 => (MS, UNAVAILABLE),
            _ => (10 * MS, OK),
        };
        let picks = world.run(&*picker, 4_000, 30 * SECOND, serve);
        let (least, most) = (picks.iter().min().unwrap(), picks.iter().max().unwrap());
        assert!(
            most * 10 < least * 13,
            "within 30 % of one another: {picks:?}"
        );
    }

    #[test]
    fn a_newcomer_gets_one_call_at_a_time_until_it_answers() {
        let (mut world, mut policy) = world(9, 4);
        let picker = world.picker(&mut policy);
        world.run(&*picker, 1_000, 5 * SECOND, |_| (10 * MS, OK));
        let new = world.add();
        let picker = world.picker(&mut policy);
        let silent = |i| (if i == new { 8 * SECOND } else { 10 * MS }, OK);
        let picks = world.run(&*picker, 1_000, 4 * SECOND, silent);
        assert_eq!(picks[new], 1, "{picks:?}");
        // It answers at last, and takes part; its first answer was slow, and counts as 640 ms for now.
        let picks = world.run(&*picker, 1_000, 60 * SECOND, |_| (10 * MS, OK));
        assert!(picks[new] > 3_500, "{picks:?}");
        let newer = world.add();
        let picker = world.picker(&mut policy);
        let broken = |i| (10 * MS, if i == newer { UNAVAILABLE } else { OK });
        let picks = world.run(&*picker, 4_000, 10 * SECOND, broken);
        assert!(picks[newer] <= 8, "faults are no answer: {picks:?}");
        assert_eq!(world.most_in_flight(newer), 1);
    }

    #[test]
    fn weights_are_capacity() {
        let (mut world, mut policy) = world(4, 5);
        world.weigh(0, 3);
        let picker = world.picker(&mut policy);
        let picks = world.run(&*picker, 8_000, 5 * SECOND, |_| (10 * MS, OK));
        let share = picks[0] as f64 / picks.iter().sum::<u64>() as f64;
        assert!((0.45..0.55).contains(&share), "3 of 6: {picks:?}");
    }

    #[test]
    fn beyond_the_scan_groups_are_drawn_and_nobody_is_forgotten() {
        let (mut world, mut policy) = world(1_000, 6);
        let picker = world.picker(&mut policy);
        // A whole rack of slow ones side by side.
        let serve = |i| {
            (
                if (100..164).contains(&i) {
                    200 * MS
                } else {
                    10 * MS
                },
                OK,
            )
        };
        let picks = world.run(&*picker, 20_000, 10 * SECOND, serve);
        assert!(picks.iter().all(|&n| n > 0), "{picks:?}");
        let slow: u64 = picks[100..164].iter().sum();
        assert!(slow * 100 < picks.iter().sum(), "{slow}");
        let (least, most) = (picks[164..].iter().min(), picks[164..].iter().max());
        assert!(most < least.map(|n| n * 2).as_ref(), "{least:?} {most:?}");
    }

    #[test]
    fn all_alike_all_have_the_same_chance() {
        for n in [7, 1_000] {
            let (mut world, mut policy) = world(n, 7);
            let picker = world.picker(&mut policy);
            let mut picks = vec![0u32; n];
            for _ in 0..n * 1_000 {
                picks[world.pick(&*picker, &[])] += 1;
            }
            let even = picks.iter().all(|n| (840..1_160).contains(n));
            assert!(
                even,
                "{n}: {:?} {:?}",
                picks.iter().min(),
                picks.iter().max()
            );
        }
    }

    /// So many that some are drawn, often none of the twenty that work.
    #[test]
    fn hundreds_of_sinkholes_get_trials_alone() {
        let mut policy = Adaptive::default();
        let mut world = World::new(&policy, 1_000, 8);
        let picker = world.picker(&mut policy);
        let serve = |i| match i < 980 {
            true => (Duration::from_micros(50), UNAVAILABLE),
            false => (Duration::from_millis(10), OK),
        };
        world.run(&*picker, 4_000, Duration::from_secs(10), serve);
        let picks = world.run(&*picker, 4_000, Duration::from_secs(5), serve);
        let most = picks[..980].iter().max();
        assert!(most <= Some(&2), "a trial per 5 s: {picks:?}");
    }
}
