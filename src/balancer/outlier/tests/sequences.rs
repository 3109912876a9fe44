//! Any news in any order.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use super::*;

const SLOTS: u32 = 6;

#[derive(Clone, Debug)]
enum Op {
    Insert(u32),
    Remove(u32),
    Counts(Vec<(u32, u64, u64)>),
    Run(u32),
    Trial(u32, bool),
    Pass(Duration),
    Timeout,
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let count = || prop_oneof![Just(0), Just(1), 2..200u64, Just(u64::MAX)];
    let time = prop_oneof![
        (0..40_000u64).prop_map(Duration::from_millis),
        (0..2_000u64).prop_map(Duration::from_secs),
    ];
    prop_oneof![
        3 => slot().prop_map(Op::Insert),
        1 => slot().prop_map(Op::Remove),
        3 => vec((slot(), count(), count()), 0..9).prop_map(Op::Counts),
        4 => slot().prop_map(Op::Run),
        4 => (slot(), any::<bool>()).prop_map(|(slot, answered)| Op::Trial(slot, answered)),
        3 => time.prop_map(Op::Pass),
        3 => Just(Op::Timeout),
    ]
}

fn config() -> impl Strategy<Value = OutlierDetection> {
    let time = || {
        prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::from_secs(30)),
            (0..500_000u64).prop_map(Duration::from_millis),
        ]
    };
    let cap = prop_oneof![
        3 => Just(MaxEjection::default()),
        2 => (0..=100u32).prop_map(MaxEjection::Share),
        1 => (0..=100u32).prop_map(MaxEjection::A50),
    ];
    let rule = || (0..=100u32, 0..4u32, 0..100u32, 0..3_000u32, any::<bool>());
    let run = prop_oneof![Just(Some(5)), Just(None)];
    (time(), time(), cap, rule(), rule(), run).prop_map(|(base, longest, cap, one, other, run)| {
        let (enforcement, hosts, volume, factor, on) = one;
        let by_rate = SuccessRate::default()
            .with_enforcement(enforcement)
            .with_minimum_hosts(hosts)
            .with_request_volume(volume)
            .with_stdev_factor(factor);
        let by_rate = on.then_some(by_rate);
        let (threshold, hosts, volume, _, on) = other;
        let by_share = FailurePercentage::default()
            .with_threshold(threshold)
            .with_minimum_hosts(hosts)
            .with_request_volume(volume);
        let by_share = on.then_some(by_share);
        OutlierDetection::default()
            .with_base_ejection_time(base)
            .with_max_ejection_time(longest)
            .with_max_ejection(cap)
            .with_success_rate(by_rate)
            .with_failure_percentage(by_share)
            .with_consecutive_failures(run)
    })
}

/// What is known from outside: who there is, and how each stands by the changes that were told.
struct Outside {
    outliers: Outliers,
    known: BTreeMap<EndpointId, Standing>,
    now: Timestamp,
    rng: Rng,
}

macro_rules! ensure {
    ($holds:expr, $($why:tt)*) => {
        if !$holds {
            return Err(format!($($why)*));
        }
    };
}

impl Outside {
    fn step(&mut self, op: &Op) -> Result<(), String> {
        let now = self.now;
        match op {
            &Op::Insert(slot) => {
                self.outliers.insert(id(slot));
                self.known.entry(id(slot)).or_insert(Admitted);
            }
            &Op::Remove(slot) => {
                self.outliers.remove(id(slot));
                self.known.remove(&id(slot));
            }
            Op::Counts(each) => {
                let counts = each.iter().map(|&(slot, successes, failures)| {
                    let counts = Counts {
                        successes,
                        failures,
                    };
                    (id(slot), counts)
                });
                self.outliers.handle_counts(counts, now, &mut self.rng);
            }
            &Op::Run(slot) => self.outliers.handle_run(id(slot), now),
            &Op::Trial(slot, answered) => self.outliers.handle_trial(id(slot), answered, now),
            &Op::Pass(time) => self.now = now + time,
            Op::Timeout => {
                self.outliers.handle_timeout(now);
                let due = self.outliers.poll_timeout();
                ensure!(due.is_none_or(|due| due > now), "due at {due:?}");
            }
        }
        self.take_changes(op)?;
        self.look()
    }

    fn take_changes(&mut self, op: &Op) -> Result<(), String> {
        // Whom room was made for: somebody else has to be ejected right after.
        let mut made_room = false;
        while let Some((id, to)) = self.outliers.poll_change() {
            let now = self.now;
            let from = self.known.get(&id).copied();
            let legal = match (from, to, op) {
                (Some(Admitted), Ejected { until }, Op::Counts(_) | Op::Run(_)) => {
                    made_room = false;
                    until >= now
                }
                (Some(Probation), Ejected { until }, &Op::Trial(slot, false)) => {
                    id.slot() == slot as usize && until >= now
                }
                (Some(Ejected { until }), Probation, Op::Timeout) => until <= now,
                (Some(Probation), Admitted, &Op::Trial(slot, true)) => id.slot() == slot as usize,
                (Some(Probation), Admitted, Op::Counts(_) | Op::Run(_)) => {
                    !std::mem::replace(&mut made_room, true)
                }
                (Some(Probation | Ejected { .. }), Admitted, Op::Remove(_)) => true,
                _ => false,
            };
            ensure!(legal, "{id:?}: {from:?} to {to:?}");
            self.known.insert(id, to);
            if !matches!(op, Op::Remove(_)) {
                self.look_at_cap()?;
            }
        }
        ensure!(!made_room, "room was made for nobody");
        Ok(())
    }

    fn look_at_cap(&self) -> Result<(), String> {
        let out = self.known.values().filter(|s| **s != Admitted).count();
        let allowed = self.outliers.config.max_ejection.of(self.known.len());
        ensure!(out <= allowed, "{out} out, {allowed} allowed");
        Ok(())
    }

    fn look(&self) -> Result<(), String> {
        self.look_at_cap()?;
        for slot in 0..SLOTS {
            let (got, told) = (
                self.outliers.standing(id(slot)),
                self.known.get(&id(slot)).copied(),
            );
            ensure!(got == told, "{slot}: {got:?}, told {told:?}");
        }
        let ends = self.known.values().filter_map(|standing| match standing {
            Ejected { until } => Some(*until),
            _ => None,
        });
        let (due, end) = (self.outliers.poll_timeout(), ends.clone().min());
        ensure!(due == end, "due at {due:?}, not {end:?}");
        let on_probation = self.known.values().filter(|s| **s == Probation).count();
        let sizes = (self.outliers.ejected.len(), self.outliers.probation.len());
        ensure!(sizes == (ends.count(), on_probation), "{sizes:?}");
        Ok(())
    }

    /// All faults have stopped: after the longest time, and an answer from each, all are admitted.
    fn recover(mut self) -> Result<(), String> {
        self.step(&Op::Timeout)?;
        let longest = self.outliers.config.ejection_time(u32::MAX);
        let end = self.now + longest;
        loop {
            for slot in 0..SLOTS {
                self.step(&Op::Trial(slot, true))?;
            }
            let Some(due) = self.outliers.poll_timeout() else {
                break;
            };
            ensure!(due <= end, "out until {due:?}, beyond {end:?}");
            self.now = due;
            self.step(&Op::Timeout)?;
        }
        let all = self.known.values().all(|standing| *standing == Admitted);
        ensure!(all, "not all are back: {:?}", self.known);
        Ok(())
    }
}

#[test]
fn the_promises_hold() {
    const SEED: u64 = 1;
    let mut runner = TestRunner::new(Config {
        cases: 2_000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(SEED),
        ..Config::default()
    });
    let cases = (config(), 0..=SLOTS, vec(op(), 1..80), any::<u64>());
    let found = runner.run(&cases, |(config, size, ops, seed)| {
        let mut outside = Outside {
            outliers: fleet(config, size),
            known: (0..size).map(|slot| (id(slot), Admitted)).collect(),
            now: Timestamp::ZERO,
            rng: Rng::new(seed),
        };
        let run = ops.iter().try_for_each(|op| outside.step(op));
        run.and_then(|()| outside.recover())
            .map_err(TestCaseError::fail)
    });
    match found {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("seed {SEED}: {why}\n{case:#?}"),
        Err(TestError::Abort(why)) => panic!("seed {SEED}: no case: {why}"),
    }
}
