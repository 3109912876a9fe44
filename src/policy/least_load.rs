//! Whoever has the least load, by a measure of the user's choice.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::roster::{Roster, UNBROKEN};
use super::{Decision, Member, PickInfo, PickResult, Picker, Policy, among_ready};
use crate::error::Error;
use crate::load::Load;
use crate::rng::{Rng, remix, scale};
use crate::timestamp::Timestamp;

/// Gives each call to the endpoint with the least load ÷ weight, of two drawn at random or of more, by a function
/// of yours that says how great the load of an endpoint is.
///
/// The function is asked with the live facts of an endpoint and the time of the pick, for each endpoint that is
/// compared: it should be quick, neither lock nor wait, and must not panic. Loads are from 0 up, in any unit, and less
/// is better. What is no number (NaN) counts as the greatest load.
///
/// Quick enough, and of use, are [`in_flight`](Load::in_flight), [`reported`](Load::reported),
/// [`utilization`](Load::utilization) and [`penalised`](Load::penalised). [`latency`](Load::latency) and
/// [`outcomes`](Load::outcomes) copy all their counters, which is too dear for a pick, and
/// [`bandwidth`](Load::bandwidth) is measured for [`LeastBandwidth`](super::LeastBandwidth) alone: it is `None` here.
///
/// Of equals the one with fewest calls in flight is taken, and of those any.
/// All are drawn alike, whatever their weight: one of 20 endpoints gets at most a tenth of the calls with two choices.
/// An endpoint that fails call after call loses against all others; it gets one trial call every 5 s until one
/// succeeds.
///
/// Beware of loads that lag behind: until a reading is renewed, every call goes to whoever looked idle in it. In
/// simulation, utilization read four times a second and compared as it is gave a p99 of 1.6 times that of round robin,
/// and with ten choices of 12 times. So multiply by the calls in flight, as below, or let
/// [`LeastUtilization`](super::LeastUtilization) or [`LeastBandwidth`](super::LeastBandwidth) take care of it.
///
/// ```
/// use std::time::Duration;
/// use equipoise::policy::LeastLoad;
///
/// // Whoever has most memory left, by what servers report of themselves.
/// let policy = LeastLoad::by(|load, now| {
///     let report = load.reported(now, Duration::from_secs(10));
///     // Half full where nothing is known: as empty, one that says nothing would draw the calls.
///     let memory = report.map(|report| report.mem_utilization);
///     let memory = memory.filter(|&said| said > 0.0).unwrap_or(0.5);
///     (memory + 0.1) * f64::from(load.in_flight() + 1)
/// });
/// let of_five = policy.with_choices(5)?;
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone)]
pub struct LeastLoad {
    load: Arc<LoadFn>,
    choices: Choices,
}

type LoadFn = dyn Fn(&Load, Timestamp) -> f64 + Send + Sync;

impl LeastLoad {
    /// Compares what `load` says of each of two endpoints, drawn at random for each call.
    pub fn by(load: impl Fn(&Load, Timestamp) -> f64 + Send + Sync + 'static) -> Self {
        Self {
            load: Arc::new(load),
            choices: Choices::default(),
        }
    }

    /// Compares `count` different endpoints; all, where there are no more than that. Default 2, as with
    /// [`LeastRequest`](super::LeastRequest): the more are compared, the more clients flock to the same one.
    ///
    /// # Errors
    ///
    /// When `count` is not in `2..=10`.
    pub fn with_choices(mut self, count: usize) -> Result<Self, Error> {
        self.choices = Choices::new("least load", count)?;
        Ok(self)
    }
}

impl fmt::Debug for LeastLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeastLoad")
            .field("choices", &self.choices.0)
            .finish_non_exhaustive()
    }
}

impl Policy for LeastLoad {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        let load = self.load.clone();
        least(members, self.choices, move |facts, weight, now| {
            load(facts, now) / weight
        })
    }
}

/// How many endpoints are compared for a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choices(usize);

/// The bounds of gRFC A48's `choiceCount`, as for the policy that compares calls in flight.
const CHOICES: RangeInclusive<usize> = 2..=10;

impl Default for Choices {
    fn default() -> Self {
        Self(*CHOICES.start())
    }
}

impl Choices {
    pub(super) fn new(policy: &str, count: usize) -> Result<Self, Error> {
        if !CHOICES.contains(&count) {
            return Err(Error::config(format!(
                "{policy}: {count} choices is not in {CHOICES:?}"
            )));
        }
        Ok(Self(count))
    }
}

/// The decision to take the least of some ready members by `load`, which is told the facts and the weight of each.
pub(super) fn least<F>(members: &[Member], choices: Choices, load: F) -> Decision
where
    F: Fn(&Load, f64, Timestamp) -> f64 + Send + Sync + 'static,
{
    among_ready(members, |mut ready| {
        // First: it is what sorts them.
        let roster = Roster::new(&mut ready, UNBROKEN);
        Least {
            loads: ready.iter().map(|member| member.load.clone()).collect(),
            weights: ready.iter().map(|member| member.weight.into()).collect(),
            choices: choices.0,
            roster,
            load,
        }
    })
}

struct Least<F> {
    roster: Roster,
    // By position.
    loads: Vec<Arc<Load>>,
    weights: Vec<f64>,
    choices: usize,
    load: F,
}

impl<F: Fn(&Load, f64, Timestamp) -> f64 + Send + Sync> Picker for Least<F> {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        if let Some(id) = self.roster.trial(info) {
            return PickResult::Pick(id);
        }
        let n = self.roster.len();
        let drawn = match self.choices < n {
            true => self.of_some(info),
            false => None,
        };
        let at = drawn.unwrap_or_else(|| self.of(0..n, info).map_or(0, |(at, _)| at));
        PickResult::Pick(self.roster.id(at))
    }
}

impl<F: Fn(&Load, f64, Timestamp) -> f64> Least<F> {
    /// The least of as many as are to be compared, any set of them being as likely as any other. `None` where all of
    /// those should be avoided or are penalised: then others should be asked too.
    fn of_some(&self, info: &PickInfo<'_>) -> Option<usize> {
        let (n, count) = (self.roster.len(), self.choices);
        let mut drawn = [0; *CHOICES.end()];
        let mut random = info.random;
        // Floyd's way: each step draws from one more than the last, and takes the new one where it draws what it has.
        for (i, from) in (n - count..n).enumerate() {
            let at = scale(random, from + 1);
            random = remix(random);
            drawn[i] = match drawn[..i].contains(&at) {
                true => from,
                false => at,
            };
        }
        let (at, rank) = self.of(drawn[..count].iter().copied(), info)?;
        (!rank.last_resort()).then_some(at)
    }

    /// The least of these, any of those that are equal.
    fn of(
        &self,
        positions: impl Iterator<Item = usize>,
        info: &PickInfo<'_>,
    ) -> Option<(usize, Rank)> {
        let mut best: Option<(usize, Rank)> = None;
        let mut ties = 1;
        // The complement: `info.random` and what follows from it have drawn the positions.
        let mut random = !info.random;
        for at in positions {
            let rank = self.rank(at, info);
            let order = best.as_ref().and_then(|(_, best)| rank.partial_cmp(best));
            match order {
                Some(std::cmp::Ordering::Greater) => continue,
                Some(std::cmp::Ordering::Equal) => {
                    ties += 1;
                    random = remix(random);
                    if scale(random, ties) != 0 {
                        continue;
                    }
                }
                Some(std::cmp::Ordering::Less) | None => ties = 1,
            }
            best = Some((at, rank));
        }
        best
    }

    fn rank(&self, at: usize, info: &PickInfo<'_>) -> Rank {
        let facts = &self.loads[at];
        let load = (self.load)(facts, self.weights[at], info.now);
        Rank {
            avoided: self.roster.avoided(at, info),
            penalised: facts.penalised(),
            load: match load.is_nan() {
                true => f64::INFINITY,
                false => load,
            },
            in_flight: facts.in_flight(),
        }
    }
}

/// What members are compared by, in this order. Never holds a NaN.
#[derive(Debug, PartialEq, PartialOrd)]
struct Rank {
    avoided: bool,
    penalised: bool,
    load: f64,
    in_flight: u32,
}

impl Rank {
    fn last_resort(&self) -> bool {
        self.avoided || self.penalised
    }
}

impl<F> fmt::Debug for Least<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Least")
            .field("members", &self.roster)
            .field("choices", &self.choices)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::world::{OK, UNAVAILABLE, World};
    use super::super::{LeastBandwidth, LeastUtilization};
    use super::*;
    use crate::report::{Completion, LoadReport};

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bad_counts_name_value_and_range() {
        for count in [0, 1, 11, usize::MAX] {
            let policy = LeastLoad::by(|_, _| 0.0);
            let error = policy.with_choices(count).unwrap_err();
            assert!(error.is_config());
            let text = error.to_string();
            let expected = format!("least load: {count} choices is not in 2..=10");
            assert!(text.contains(&expected), "{text}");
        }
        for count in [2, 10] {
            assert!(LeastLoad::by(|_, _| 0.0).with_choices(count).is_ok());
        }
    }

    /// A load that a test sets: the memory that was reported.
    fn told(load: &Load, now: Timestamp) -> f64 {
        let report = load.reported(now, Duration::MAX).unwrap_or_default();
        match report.mem_utilization {
            0.5 => f64::NAN,
            said => said,
        }
    }

    fn tell(load: &Load, mem_utilization: f64) {
        let report = LoadReport {
            mem_utilization,
            ..LoadReport::default()
        };
        load.report(&report, Timestamp::ZERO);
    }

    fn penalise(load: &Load) {
        let completion = Completion {
            outcome: UNAVAILABLE,
            latency: MS,
        };
        for _ in 0..5 {
            load.begin();
            load.end(&completion, Timestamp::ZERO, Timestamp::from_secs(1));
        }
    }

    /// Everything a pick goes by at random; the pick is the least of all by a sort written out.
    #[test]
    fn the_least_of_all_is_what_a_sort_puts_first() {
        for seed in 0..400 {
            let mut dice = Rng::new(seed);
            let n = 1 + dice.below(10);
            let mut policy = LeastLoad::by(told).with_choices(10).unwrap();
            let mut world = World::new(&policy, n, seed);
            let mut keys = Vec::new();
            let avoid: Vec<_> = (0..dice.below(3))
                .map(|_| world.id(dice.below(n)))
                .collect();
            for i in 0..n {
                let told = [0.0, 0.25, 0.5, 0.75, 1.0][dice.below(5)];
                let (calls, bad) = (dice.below(3), dice.below(4) == 0);
                let weight = 1 + dice.below(3) as u32;
                tell(world.load(i), told);
                (0..calls).for_each(|_| world.load(i).begin());
                if bad {
                    penalise(world.load(i));
                }
                world.weigh(i, weight);
                // In twelfths, so that quotients compare exactly; what is no number comes last.
                let load = match told {
                    0.5 => u64::MAX,
                    told => (told * 4.0) as u64 * 12 / u64::from(weight),
                };
                keys.push((avoid.contains(&world.id(i)), bad, load, calls));
            }
            let least = keys.iter().min().unwrap();
            let picker = world.picker(&mut policy);
            let mut picked = vec![0; n];
            for _ in 0..40 * n {
                picked[world.pick(&*picker, &avoid)] += 1;
            }
            for (i, key) in keys.iter().enumerate() {
                assert_eq!(
                    picked[i] > 0,
                    key == least,
                    "seed {seed}: {keys:?} {picked:?}"
                );
            }
        }
    }

    /// Of n, the k-th loaded is the least of d drawn in (n-1-k choose d-1) of the (n choose d) ways.
    #[test]
    fn choices_have_the_shares_that_theory_says() {
        for (choices, shares) in [
            (2, [40, 30, 20, 10, 0]),
            (3, [60, 30, 10, 0, 0]),
            (4, [80, 20, 0, 0, 0]),
        ] {
            let mut policy = LeastLoad::by(told).with_choices(choices).unwrap();
            let mut world = World::new(&policy, 5, 9);
            // The least loaded in the middle: place is no advantage.
            for (i, load) in [(2, 0.1), (0, 0.2), (4, 0.3), (1, 0.4), (3, 0.6)] {
                tell(world.load(i), load);
            }
            let picker = world.picker(&mut policy);
            let mut picks = [0i32; 5];
            for _ in 0..60_000 {
                picks[world.pick(&*picker, &[])] += 1;
            }
            for (i, share) in [2, 0, 4, 1, 3].into_iter().zip(shares) {
                assert!((picks[i] - 600 * share).abs() < 600, "{choices}: {picks:?}");
            }
        }
    }

    #[test]
    fn equals_have_the_same_chance() {
        for choices in [2, 5, 10] {
            let mut policy = LeastLoad::by(|_, _| f64::NAN)
                .with_choices(choices)
                .unwrap();
            let mut world = World::new(&policy, 7, 4);
            let picker = world.picker(&mut policy);
            let mut picks = [0; 7];
            for _ in 0..70_000 {
                picks[world.pick(&*picker, &[])] += 1;
            }
            let even = picks.iter().all(|n| (9_600..10_400).contains(n));
            assert!(even, "{choices}: {picks:?}");
        }
    }

    /// 20 s of 1,000 calls a second with reports and counts as they would come. Those of `bad` answer `with` at once.
    /// The picks of all the bad together: in the first second, and from the sixth on, and of how many.
    fn sinkhole(policy: &mut dyn Policy, bad: &[usize], with: crate::Outcome) -> [f64; 2] {
        let mut world = World::new(policy, 10, 17);
        let mut bytes = [0; 10];
        let mut shares = [(0, 0); 2];
        for quarter in 0..80 {
            for (i, &bytes) in bytes.iter().enumerate() {
                let load = world.load(i);
                load.measure(bytes, world.now());
                let report = LoadReport {
                    cpu_utilization: if bad.contains(&i) { 0.01 } else { 0.5 },
                    ..LoadReport::default()
                };
                load.report(&report, world.now());
            }
            let picker = world.picker(policy);
            let picks = world.run(&*picker, 1_000, 250 * MS, |i| match bad.contains(&i) {
                true => {
                    bytes[i] += 100;
                    (MS / 10, with)
                }
                false => {
                    bytes[i] += 2_000;
                    (10 * MS, OK)
                }
            });
            let share = match quarter {
                0..4 => &mut shares[0],
                4..20 => continue,
                _ => &mut shares[1],
            };
            share.0 += bad.iter().map(|&i| picks[i]).sum::<u64>();
            share.1 += picks.iter().sum::<u64>();
        }
        shares.map(|(bad, all)| bad as f64 / all as f64)
    }

    #[test]
    fn a_sinkhole_gets_trials_alone() {
        let least_load = || LeastLoad::by(|load, _| load.in_flight().into());
        let policies: Vec<Box<dyn Policy>> = vec![
            Box::new(least_load()),
            Box::new(least_load().with_choices(10).unwrap()),
            Box::new(LeastBandwidth::default()),
            Box::new(LeastBandwidth::default().with_choices(10).unwrap()),
            Box::new(LeastUtilization::default()),
            Box::new(LeastUtilization::default().with_choices(10).unwrap()),
        ];
        for mut policy in policies {
            let [first, later] = sinkhole(&mut *policy, &[0], UNAVAILABLE);
            assert!(first <= 0.1 && later <= 0.01, "{policy:?}: {first} {later}");
            assert!(later > 0.0, "{policy:?}: there are trials");
            // Two: each pair of which is drawn once in 45 calls.
            let [first, later] = sinkhole(&mut *policy, &[0, 7], UNAVAILABLE);
            assert!(
                first <= 0.1 && later <= 0.005,
                "{policy:?}: {first} {later}"
            );
            let [_, later] = sinkhole(&mut *policy, &[0], OK);
            assert!(later > 0.12, "{policy:?}, control: {later}");
        }
    }

    #[test]
    fn where_all_fail_calls_are_shared_out() {
        let mut policy = LeastLoad::by(|load, _| load.in_flight().into());
        let mut world = World::new(&policy, 10, 6);
        let picker = world.picker(&mut policy);
        world.run(&*picker, 1_000, SECOND, |_| (MS, UNAVAILABLE));
        let picks = world.run(&*picker, 1_000, 4 * SECOND, |_| (MS, UNAVAILABLE));
        assert!(picks.iter().all(|n| (300..500).contains(n)), "{picks:?}");
    }
}
