//! Everyone in turn, the heavy ones more often.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::chances::draw_among;
use super::stride::Stride;
use super::{Decision, Member, PickInfo, PickResult, Picker, Policy, among_ready};
use crate::endpoint::EndpointId;
use crate::error::Error;
use crate::load::Load;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Gives the ready endpoints their turns in proportion to their weights, whatever their load: gRPC's
/// `weighted_round_robin` (gRFC A58), with its static stride scheduler.
///
/// The weights are those of the endpoints, or with [`reported`](Self::reported) those that follow from what the servers
/// say of themselves. In turn rather than by chance: at any time each endpoint has had its share to within a call or
/// two. The position survives changes of the endpoints and of the weights, and begins at random, so that
/// clients that start together do not walk in step. With equal weights it is [`RoundRobin`](super::RoundRobin).
///
/// Weights are used at a precision of 16 bits and within bounds, as in gRPC's C-core: at most 10 times, and at
/// least a hundredth of, the mean weight, so that the lightest endpoint gets calls too and picks stay cheap. Where one
/// weight of hundreds dwarfs the others, it is lowered until it is 10 times the mean with itself so lowered.
///
/// ```
/// use equipoise::policy::WeightedRoundRobin;
/// use std::time::Duration;
///
/// let configured = WeightedRoundRobin::default();
/// let reported = WeightedRoundRobin::reported().with_blackout(Duration::from_secs(30));
/// ```
#[derive(Debug, Default)]
pub struct WeightedRoundRobin {
    weights: Weights,
    visits: Option<Arc<AtomicU32>>,
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, Default)]
enum Weights {
    #[default]
    Configured,
    Reported(Reported),
}

/// When and how what a server reported makes a weight.
#[derive(Clone, Copy, Debug)]
struct Reported {
    blackout: Duration,
    expiration: Duration,
    update_period: Duration,
    error_penalty: f64,
}

impl Default for Reported {
    /// gRFC A58's.
    fn default() -> Self {
        Self {
            blackout: Duration::from_secs(10),
            expiration: Duration::from_secs(180),
            update_period: Duration::from_secs(1),
            error_penalty: 1.0,
        }
    }
}

/// gRFC A58's; there a shorter period is raised to it, here it is an error.
const LEAST_UPDATE_PERIOD: Duration = Duration::from_millis(100);

impl WeightedRoundRobin {
    /// Weights by what the servers report: calls per second ÷ (utilization + error penalty × errors ÷ calls), gRFC
    /// A58's rule. A server that does more with less of itself gets more.
    ///
    /// Hand in what the servers say by [`Channel::report_load`](crate::Channel::report_load), with
    /// [`rps`](crate::LoadReport::rps) and a utilization. One whose weight is not known counts as the mean of the
    /// others; while fewer than two are known, turns are plain ones, and the configured weights play no part.
    pub fn reported() -> Self {
        Self {
            weights: Weights::Reported(Reported::default()),
            visits: None,
        }
    }

    /// For how long a server must have reported before its weight is used, since it became ready or since its
    /// reports were last stale: a server that has just started is no measure of itself. Default 10 s (gRFC A58); zero
    /// asks for nothing. Implies [`reported`](Self::reported) weights, as do the other settings.
    pub fn with_blackout(self, blackout: Duration) -> Self {
        self.with(|reported| reported.blackout = blackout)
    }

    /// How old the last report may become before the weight is no longer used. Default 180 s (gRFC A58); not zero,
    /// which nothing is younger than.
    pub fn with_expiration(self, expiration: Duration) -> Self {
        self.with(|reported| reported.expiration = expiration)
    }

    /// How often the weights are reckoned anew. Default 1 s, at least 100 ms (gRFC A58).
    pub fn with_update_period(self, period: Duration) -> Self {
        self.with(|reported| reported.update_period = period)
    }

    /// How much utilization a rate of errors of 1 counts as. Default 1.0 (gRFC A58), which is a server that is full; 0
    /// ignores errors.
    pub fn with_error_penalty(self, penalty: f64) -> Self {
        self.with(|reported| reported.error_penalty = penalty)
    }

    fn with(mut self, set: impl FnOnce(&mut Reported)) -> Self {
        let mut reported = match self.weights {
            Weights::Configured => Reported::default(),
            Weights::Reported(reported) => reported,
        };
        set(&mut reported);
        self.weights = Weights::Reported(reported);
        self
    }
}

/// A clone is a policy for another channel: it begins at a random endpoint of its own.
impl Clone for WeightedRoundRobin {
    fn clone(&self) -> Self {
        Self {
            weights: self.weights,
            visits: None,
        }
    }
}

impl Policy for WeightedRoundRobin {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        let start = || Arc::new(AtomicU32::new(rng.word() as u32));
        let visits = self.visits.get_or_insert_with(start).clone();
        let mut several = false;
        let mut decision = among_ready(members, |ready| {
            several = ready.len() > 1;
            let weights: Vec<Option<f64>> = ready
                .iter()
                .map(|member| self.weights.of(member, now))
                .collect();
            Turns {
                ids: ready.iter().map(|member| member.id).collect(),
                stride: Stride::new(&weights),
                visits,
            }
        });
        // One alone gets every call, whatever it reports.
        decision.wake = match &self.weights {
            Weights::Reported(reported) if several => Some(now + reported.update_period),
            _ => None,
        };
        decision
    }

    fn check(&self) -> Result<(), Error> {
        match &self.weights {
            Weights::Configured => Ok(()),
            Weights::Reported(reported) => reported.check(),
        }
    }
}

impl Weights {
    fn of(&self, member: &Member, now: Timestamp) -> Option<f64> {
        match self {
            Self::Configured => Some(member.weight.into()),
            Self::Reported(reported) => reported.weight(&member.load, now),
        }
    }
}

impl Reported {
    fn weight(&self, load: &Load, now: Timestamp) -> Option<f64> {
        load.reported_weight(now, self.blackout, self.expiration, self.error_penalty)
    }

    fn check(&self) -> Result<(), Error> {
        let Self {
            blackout: _,
            expiration,
            update_period,
            error_penalty,
        } = *self;
        let wrong = if update_period < LEAST_UPDATE_PERIOD {
            format!("update period {update_period:?} is less than {LEAST_UPDATE_PERIOD:?}")
        } else if expiration.is_zero() {
            "expiration 0ns is not above 0: no weight would ever be used".to_owned()
        } else if !(0.0..f64::INFINITY).contains(&error_penalty) {
            format!("error penalty {error_penalty} is not a number from 0 up")
        } else {
            return Ok(());
        };
        Err(Error::config(format!("weighted round robin: {wrong}")))
    }
}

#[derive(Debug)]
struct Turns {
    ids: Vec<EndpointId>,
    stride: Stride,
    // Shared with the pickers before and after this one.
    visits: Arc<AtomicU32>,
}

impl Picker for Turns {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let next = self.ids[self.stride.next(&self.visits)];
        if !info.avoid.contains(&next) {
            return PickResult::Pick(next);
        }
        PickResult::Pick(self.another(info).unwrap_or(next))
    }
}

impl Turns {
    /// One that need not be avoided, by weight: how far on the next turn of each is, only the visits tell.
    #[cold]
    fn another(&self, info: &PickInfo<'_>) -> Option<EndpointId> {
        let weights = self.stride.weights().iter().copied().map(u64::from);
        let others = weights
            .enumerate()
            .filter(|&(at, _)| !info.avoid.contains(&self.ids[at]));
        Some(self.ids[draw_among(info.random, others)?])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::super::world::World;
    use super::*;
    use crate::load::{Cells, Scoring};
    use crate::report::LoadReport;

    const SECOND: Duration = Duration::from_secs(1);

    fn counts(world: &mut World, picker: &dyn Picker, picks: usize) -> BTreeMap<usize, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..picks {
            *counts.entry(world.pick(picker, &[])).or_default() += 1;
        }
        counts
    }

    #[test]
    fn turns_are_in_proportion_from_a_random_start_and_across_pickers() {
        let mut firsts = [0; 3];
        for seed in 0..300 {
            let mut policy = WeightedRoundRobin::default();
            let mut world = World::new(&policy, 3, seed);
            for (i, weight) in [2, 3, 6].into_iter().enumerate() {
                world.weigh(i, weight);
            }
            let picker = world.picker(&mut policy);
            firsts[world.pick(&*picker, &[])] += 1;
            // 2, 3 and 6 of every 11, to within one call at each end, also where a new picker takes over.
            let mut sum = [0_usize; 3];
            for _ in 0..10 {
                let picker = world.picker(&mut policy);
                for (i, picks) in counts(&mut world, &*picker, 11) {
                    sum[i] += picks;
                }
            }
            for (picks, weight) in sum.into_iter().zip([2, 3, 6]) {
                assert!(picks.abs_diff(10 * weight) <= 2, "seed {seed}: {sum:?}");
            }
        }
        assert!(firsts.iter().all(|&n| n > 20), "{firsts:?}");
    }

    /// Over a whole period the counts are exact, wherever it begins.
    #[test]
    fn a_period_is_exact() {
        for (weights, expected) in [
            (&[2, 3, 6][..], &[21_845, 32_768, 65_535][..]),
            (&[10, 100], &[6_554, 65_535]),
            (&[1, u32::MAX], &[328, 65_535]),
        ] {
            let mut policy = WeightedRoundRobin::default();
            let mut world = World::new(&policy, weights.len(), 3);
            for (i, &weight) in weights.iter().enumerate() {
                world.weigh(i, weight);
            }
            let picker = world.picker(&mut policy);
            let counts = counts(&mut world, &*picker, expected.iter().sum());
            assert!(
                counts.into_values().eq(expected.iter().copied()),
                "{weights:?}"
            );
        }
    }

    #[test]
    fn with_equal_weights_everyone_is_in_turn() {
        let mut policy = WeightedRoundRobin::default();
        let mut world = World::new(&policy, 5, 4);
        (0..5).for_each(|i| world.weigh(i, 7));
        let picker = world.picker(&mut policy);
        let first = world.pick(&*picker, &[]);
        for i in 1..50 {
            assert_eq!(world.pick(&*picker, &[]), (first + i) % 5);
        }
        let mut alone = World::new(&policy, 1, 4);
        let picker = alone.picker(&mut policy);
        assert!((0..9).all(|_| alone.pick(&*picker, &[]) == 0));
    }

    #[test]
    fn the_avoided_leave_their_turns_to_the_others_by_weight() {
        let mut policy = WeightedRoundRobin::default();
        let mut world = World::new(&policy, 4, 5);
        for (i, weight) in [1, 1_000, 3, 5].into_iter().enumerate() {
            world.weigh(i, weight);
        }
        let picker = world.picker(&mut policy);
        let (heavy, all) = ([world.id(1)], [0, 1, 2, 3].map(|i| world.id(i)));
        // 1, 3 and 5, each raised to a hundredth of the mean.
        let mut picks = [0; 4];
        (0..30_000).for_each(|_| picks[world.pick(&*picker, &heavy)] += 1);
        assert_eq!(picks[1], 0);
        for (i, share) in [(0, 2.5), (2, 3.0), (3, 5.0)] {
            let expected = 30_000.0 * share / 10.5;
            assert!(
                (f64::from(picks[i]) / expected - 1.0).abs() < 0.05,
                "{picks:?}"
            );
        }
        let same: Vec<_> = (0..20).map(|_| world.pick(&*picker, &all)).collect();
        assert!(same.iter().filter(|&&i| i == 1).count() >= 19, "{same:?}");
    }

    #[test]
    fn settings_name_value_and_rule() {
        let reported = WeightedRoundRobin::reported;
        for (policy, rule) in [
            (
                reported().with_update_period(Duration::from_millis(99)),
                "update period 99ms is less than 100ms",
            ),
            (
                reported().with_expiration(Duration::ZERO),
                "expiration 0ns is not above 0",
            ),
            (
                reported().with_error_penalty(-0.1),
                "error penalty -0.1 is not a number from 0 up",
            ),
            (
                WeightedRoundRobin::default().with_error_penalty(f64::NAN),
                "error penalty NaN is not a number",
            ),
        ] {
            let error = policy.check().unwrap_err();
            assert!(
                error.is_config() && error.to_string().contains(rule),
                "{error}"
            );
        }
        for policy in [
            WeightedRoundRobin::default(),
            reported(),
            reported()
                .with_blackout(Duration::ZERO)
                .with_update_period(Duration::from_millis(100))
                .with_error_penalty(0.0),
        ] {
            assert!(policy.clone().check().is_ok(), "{policy:?}");
        }
    }

    /// A report that makes a weight of `weight`.
    fn weighing(weight: f64) -> LoadReport {
        LoadReport {
            cpu_utilization: 0.5,
            rps: weight / 2.0,
            ..LoadReport::default()
        }
    }

    #[test]
    fn reported_weights_are_reckoned_anew_once_per_period() {
        let mut policy = WeightedRoundRobin::reported()
            .with_blackout(10 * SECOND)
            .with_expiration(30 * SECOND)
            .with_update_period(2 * SECOND);
        let mut world = World::new(&policy, 3, 6);
        world.weigh(0, 1_000);
        let mut shares = |world: &mut World, picks| {
            let decision = world.decide(&mut policy);
            assert_eq!(decision.wake, Some(world.now() + 2 * SECOND));
            let counts = counts(world, &*decision.picker, picks);
            (0..3)
                .map(|i| counts.get(&i).copied().unwrap_or(0))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            shares(&mut world, 30),
            [10; 3],
            "nothing is known: plain turns"
        );
        let now = world.now();
        world.load(0).report(&weighing(40.0), now);
        world.load(1).report(&weighing(20.0), now + 5 * SECOND);
        world.pass(9 * SECOND);
        assert_eq!(shares(&mut world, 30), [10; 3], "blackout");
        world.pass(SECOND);
        assert_eq!(shares(&mut world, 30), [10; 3], "one alone says nothing");
        world.pass(5 * SECOND);
        let known = shares(&mut world, 90);
        for (picks, expected) in known.iter().zip([40_usize, 20, 30]) {
            assert!(
                picks.abs_diff(expected) <= 1,
                "the third counts as the mean: {known:?}"
            );
        }
        world.pass(15 * SECOND);
        assert_eq!(shares(&mut world, 30), [10; 3], "the first is stale");
    }

    #[test]
    fn one_alone_is_not_asked_about_again_and_configured_weights_never() {
        let mut policy = WeightedRoundRobin::reported();
        let mut world = World::new(&policy, 0, 7);
        assert_eq!(world.decide(&mut policy).wake, None);
        world.add();
        assert_eq!(world.decide(&mut policy).wake, None);
        world.add();
        let wake = world.decide(&mut policy).wake;
        assert_eq!(wake, Some(world.now() + SECOND));
        assert_eq!(world.decide(&mut WeightedRoundRobin::default()).wake, None);
    }

    fn vectors(table: &str) -> Vec<Value> {
        let text = include_str!("../../tests/conformance/vectors/weighted_round_robin.json");
        let vectors: Value = serde_json::from_str(text).unwrap();
        vectors[table].as_array().unwrap().clone()
    }

    #[test]
    fn weights_wait_expire_and_return_as_in_grpc() {
        let mut queries = 0;
        for row in vectors("timeline") {
            let load = Load::new(Cells::new(Scoring::InFlight).cell(0));
            let seconds = |value: &Value| Duration::from_secs_f64(value.as_f64().unwrap());
            let Weights::Reported(settings) = WeightedRoundRobin::reported()
                .with_blackout(seconds(&row["blackout_period"]))
                .with_expiration(seconds(&row["weight_expiration_period"]))
                .weights
            else {
                panic!("they are reported");
            };
            for entry in row["log"].as_array().unwrap() {
                let now = Timestamp::ZERO + seconds(&entry["t"]);
                match (entry["event"].as_str().unwrap(), entry["weight"].as_f64()) {
                    ("becomes READY", _) => load.join(None, now),
                    ("report", Some(weight)) => load.report(&weighing(weight), now),
                    ("report", None) => load.report(&LoadReport::default(), now),
                    ("query", Some(weight)) => {
                        let ours = settings.weight(&load, now).unwrap_or(0.0);
                        assert_eq!(ours, weight, "{}: {entry}", row["name"]);
                        queries += 1;
                    }
                    other => panic!("not understood: {other:?}"),
                }
            }
        }
        assert!(queries >= 10);
    }

    #[test]
    fn weights_follow_from_reports_as_in_grpc() {
        let mut rows = 0;
        for row in vectors("weight_formula") {
            // gRFC A114, utilization by metrics of one's own choice, is not built.
            if row.get("metric_names").is_some() {
                continue;
            }
            let number = |name: &str| row[name].as_f64().unwrap();
            let report = LoadReport {
                application_utilization: number("application_utilization"),
                cpu_utilization: number("cpu_utilization"),
                rps: number("qps"),
                eps: number("eps"),
                ..LoadReport::default()
            };
            let Weights::Reported(settings) = WeightedRoundRobin::reported()
                .with_blackout(Duration::ZERO)
                .with_error_penalty(number("error_utilization_penalty"))
                .weights
            else {
                panic!("they are reported");
            };
            let load = Load::new(Cells::new(Scoring::InFlight).cell(0));
            load.report(&report, Timestamp::ZERO);
            match (
                settings.weight(&load, Timestamp::ZERO),
                row["weight"].as_f64(),
            ) {
                (Some(ours), Some(weight)) => {
                    assert!((ours / weight - 1.0).abs() < 1e-12, "{row}: {ours}");
                }
                (ours, weight) => assert_eq!(ours, weight, "{row}"),
            }
            rows += 1;
        }
        assert_eq!(rows, 9);
    }
}
