//! Every policy under arbitrary sequences of what can happen to it: updates, picks, calls, time.
//!
//! A failure prints the promise that was broken, the shortest sequence that breaks it, and the seed.
//! `EQUIPOISE_OPS_CASES=5000 EQUIPOISE_OPS_SEED=7 cargo test --test policies -- ops` looks further.

// By path: the fuzzer includes this file, and only the tests need the controls.
#[path = "ops/bytes.rs"]
mod bytes;
#[cfg(test)]
#[path = "ops/controls.rs"]
mod controls;
#[path = "ops/fleet.rs"]
mod fleet;
// Nothing here reads texts.
#[allow(dead_code)]
#[path = "../fuzz/bodies/input.rs"]
mod input;
#[path = "ops/view.rs"]
mod view;

use std::collections::BTreeSet;
use std::time::Duration;

use equipoise::policy::ring_hash::Ring;
use equipoise::policy::{
    Adaptive, BoundedLoad, LeastBandwidth, LeastLoad, LeastRequest, LeastUtilization, Maglev,
    Member, PeakEwma, PickFirst, Policy, Random, Rendezvous, RingHash, RoundRobin, WeightedRandom,
    WeightedRoundRobin,
};
use equipoise::rng::Rng;
use equipoise::{Connectivity, EndpointId, LoadReport, Outcome, StatusCode};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use crate::leader::policy::LeaderFirst;
use Manner::{Holds, Pins, Spreads};
use fleet::{Avoid, Change, Fleet, KEYS, Op, Reach, Reading, Start, WEIGHTS};
use input::Input;
use view::Manner;

/// A policy, what it may do, and whom it gives calls to.
#[derive(Clone, Copy)]
struct Subject {
    policy: fn() -> Box<dyn Policy>,
    manner: Manner,
    reach: Reach,
}

/// One line per policy: its name, what it may do, whom it gives calls to, how it is made. Each becomes two tests.
macro_rules! subjects {
    ($($name:ident: $manner:expr, $reach:expr, $policy:expr;)*) => {
        $(mod $name {
            use super::*;

            pub(super) const SUBJECT: Subject = Subject {
                policy: || Box::new($policy),
                manner: $manner,
                reach: $reach,
            };

            #[test]
            fn keeps_its_promises() {
                super::keeps_its_promises(SUBJECT);
            }

            #[test]
            fn keeps_them_among_ten_thousand() {
                super::among_ten_thousand(SUBJECT);
            }
        })*

        const SUBJECTS: &[(&str, Subject)] = &[$((stringify!($name), $name::SUBJECT)),*];
    };
}

subjects! {
    adaptive: Spreads, everyone, Adaptive::default();
    leader_first: Spreads, everyone, LeaderFirst::with_hold_down(Duration::from_millis(500));
    least_bandwidth: Spreads, everyone, LeastBandwidth::default();
    least_load: Spreads, everyone, LeastLoad::by(|load, _| f64::from(load.in_flight()));
    least_load_of_no_number: Spreads, everyone, LeastLoad::by(|_, _| f64::NAN);
    least_request: Spreads, everyone, LeastRequest::default();
    least_request_of_five: Spreads, everyone, LeastRequest::choices(5).expect("it is in 2..=10");
    least_request_of_all: Spreads, everyone, LeastRequest::full_scan();
    least_utilization: Spreads, everyone, LeastUtilization::default();
    least_utilization_of_ten: Spreads, everyone, LeastUtilization::default().with_choices(10).expect("it is in 2..=10");
    maglev: Pins, homes, Maglev::default().with_table_size(2_039);
    maglev_bounded: Pins, homes, Maglev::default().with_table_size(2_039).with_bounded_load(tight());
    peak_ewma: Spreads, everyone, PeakEwma::default();
    pick_first: Holds, everyone, PickFirst::default();
    pick_first_shuffled: Holds, everyone, PickFirst::shuffled();
    random: Spreads, everyone, Random;
    rendezvous: Pins, homes, Rendezvous::default();
    rendezvous_bounded: Pins, homes, Rendezvous::default().with_bounded_load(tight());
    rendezvous_of_three: Pins, homes, Rendezvous::default().with_top(3);
    ring_hash: Pins, on_the_ring, RingHash::default();
    ring_hash_bounded: Pins, on_the_ring, RingHash::default().with_bounded_load(tight());
    round_robin: Spreads, everyone, RoundRobin::default();
    weighted_random: Spreads, everyone, WeightedRandom;
    weighted_round_robin: Spreads, everyone, WeightedRoundRobin::default();
    weighted_round_robin_reported: Spreads, everyone, WeightedRoundRobin::reported();
    weighted_round_robin_reported_at_once: Spreads, everyone, WeightedRoundRobin::reported().with_blackout(Duration::ZERO);
}

/// A bound that is reached at once.
fn tight() -> BoundedLoad {
    BoundedLoad::default().with_factor(1.0).with_floor(0)
}

fn everyone(members: &[Member]) -> BTreeSet<EndpointId> {
    members.iter().map(|member| member.id).collect()
}

/// Policies with keys leave a new list alone as long as the endpoints of the last one stand in for it.
fn at_home(members: &[Member]) -> Vec<&Member> {
    let stays = |member: &&Member| member.place.is_none();
    match members.iter().any(|member| stays(&member)) {
        true => members.iter().filter(stays).collect(),
        false => members.iter().collect(),
    }
}

fn homes(members: &[Member]) -> BTreeSet<EndpointId> {
    at_home(members).iter().map(|member| member.id).collect()
}

/// Those with an entry in a ring of the default sizes: beside a weight of four thousand million, one of 1 has none.
fn on_the_ring(members: &[Member]) -> BTreeSet<EndpointId> {
    let mut members = at_home(members);
    members.sort_by_key(|member| {
        let endpoint = &member.endpoint;
        (endpoint.hash_key().into_owned(), endpoint.address().clone())
    });
    let keys: Vec<(String, u32)> = members
        .iter()
        .map(|member| (member.endpoint.hash_key().into_owned(), member.weight))
        .collect();
    let Ok(ring) = Ring::new(&keys, 1_024, 4_096) else {
        return BTreeSet::new();
    };
    ring.walk(0).map(|index| members[index].id).collect()
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The shortest sequence that breaks a promise, if any does.
fn search(subject: Subject, cases: u64, seed: u64) -> Result<(), String> {
    let mut runner = TestRunner::new(Config {
        cases: cases.try_into().unwrap_or(u32::MAX),
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    });
    let found = runner.run(&(start(), vec(op(), 1..60)), |(start, ops)| {
        run(subject, &start, &ops).map_err(TestCaseError::fail)
    });
    found.map_err(|error| match error {
        TestError::Fail(why, (start, ops)) => {
            let ops: Vec<String> = ops.iter().map(|op| format!("\n  {op:?}")).collect();
            format!("seed {seed}: {why}\n{start:?}{}", ops.concat())
        }
        TestError::Abort(why) => format!("seed {seed}: no case: {why}"),
    })
}

fn run(subject: Subject, start: &Start, ops: &[Op]) -> Result<(), String> {
    let policy = (subject.policy)();
    let mut fleet = Fleet::new(policy, subject.manner, subject.reach, start)?;
    ops.iter().try_for_each(|op| fleet.step(op))?;
    fleet.finish()
}

/// One input of the fuzzer: the first byte names the policy, the others the sequence.
pub fn run_bytes(data: &[u8]) {
    let mut input = Input(data);
    let (name, subject) = input.choice(SUBJECTS);
    let (start, ops) = bytes::sequence(&mut input);
    if let Err(why) = run(subject, &start, &ops) {
        panic!("{name}: {why}\n{start:?}\n{ops:#?}");
    }
}

/// What the fuzzer came upon once.
#[test]
fn the_fuzzers_corpus_keeps_the_promises() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/policy_ops");
    let mut inputs: Vec<_> = std::fs::read_dir(corpus)
        .expect("the target has a corpus")
        .map(|entry| entry.expect("the entry is readable").path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{corpus} is empty");
    for input in inputs {
        // It names the file if the input breaks a promise.
        println!("{}", input.display());
        run_bytes(&std::fs::read(&input).expect("the input is readable"));
    }
}

fn keeps_its_promises(subject: Subject) {
    let cases = setting("EQUIPOISE_OPS_CASES").unwrap_or(60);
    let seed = setting("EQUIPOISE_OPS_SEED").unwrap_or(1);
    if let Err(why) = search(subject, cases, seed) {
        panic!("{why}");
    }
}

/// As many as a channel takes by default, of any state and weight.
fn among_ten_thousand(subject: Subject) {
    let seed = setting("EQUIPOISE_OPS_SEED").unwrap_or(1);
    let mut rng = Rng::new(seed);
    let start = Start {
        members: 10_000,
        holes: true,
        seed,
    };
    let mut ops = Vec::new();
    for change in [
        Change::Weigh(5_000, u32::MAX),
        Change::TurnAll(Connectivity::Ready),
        Change::Remove(1),
    ] {
        ops.push(Op::Update(vec![change]));
        // Reports count from the second on, after a pause.
        let report = |cpu_utilization| LoadReport {
            cpu_utilization,
            rps: 10.0,
            ..LoadReport::default()
        };
        ops.push(Op::Read(None, Reading::Report(report(0.5))));
        ops.push(Op::Read(None, Reading::Bytes(1_000)));
        ops.push(Op::Pass(Duration::from_secs(11)));
        ops.push(Op::Read(None, Reading::Bytes(1_000)));
        for hostile in [f64::NAN, f64::MAX, f64::MIN_POSITIVE] {
            let reading = Reading::Report(report(hostile));
            ops.push(Op::Read(Some(rng.below(10_000)), reading));
        }
        ops.push(Op::Update(Vec::new()));
        for pick in 0..60 {
            let avoid = match pick {
                0 => Avoid::AllBut(rng.below(10_000)),
                _ => Avoid::Those((0..pick % 33).map(|_| rng.below(10_000)).collect()),
            };
            ops.push(Op::Pick {
                late: false,
                hash: (pick % 2 == 0).then(|| rng.word()),
                random: rng.word(),
                avoid,
            });
        }
    }
    run(subject, &start, &ops).unwrap_or_else(|why| {
        // The view holds ten thousand lines.
        let head: String = why.chars().take(2_000).collect();
        panic!("seed {seed}: {head}");
    });
}

fn start() -> impl Strategy<Value = Start> {
    // Around one chunk of score cells, and around the number that `Adaptive` compares one and all.
    let members = prop_oneof![30 => 0..12usize, 4 => 60..70usize, 1 => 505..520usize];
    (members, any::<bool>(), any::<u64>()).prop_map(|(members, holes, seed)| Start {
        members,
        holes,
        seed,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let hash = prop_oneof![1 => Just(None), 1 => any::<u64>().prop_map(Some)];
    let random = prop_oneof![8 => any::<u64>(), 1 => Just(0), 1 => Just(u64::MAX)];
    let pick = (any::<bool>(), hash, random, avoid());
    let pick = pick.prop_map(|(late, hash, random, avoid)| Op::Pick {
        late,
        hash,
        random,
        avoid,
    });
    let end = (any::<usize>(), outcome(), time());
    let end = end.prop_map(|(call, outcome, latency)| Op::End(call, outcome, latency));
    let which = prop_oneof![1 => any::<usize>().prop_map(Some), 1 => Just(None)];
    prop_oneof![
        6 => vec(change(), 1..4).prop_map(Op::Update),
        12 => pick,
        8 => end,
        1 => any::<usize>().prop_map(Op::Speak),
        3 => (which, reading()).prop_map(|(which, reading)| Op::Read(which, reading)),
        4 => time().prop_map(Op::Pass),
    ]
}

/// What servers say of themselves, some of it hostile; and bytes that grow, stand still and go down.
fn reading() -> impl Strategy<Value = Reading> {
    let report = (figure(), figure(), figure(), figure(), figure());
    let report = report.prop_map(|(cpu, application, memory, rps, eps)| LoadReport {
        cpu_utilization: cpu,
        application_utilization: application,
        mem_utilization: memory,
        rps,
        eps,
    });
    let bytes = || prop_oneof![8 => 0..1_000_000u64, 1 => Just(0), 1 => any::<u64>()];
    prop_oneof![
        4 => report.prop_map(Reading::Report),
        4 => bytes().prop_map(Reading::Bytes),
        1 => bytes().prop_map(Reading::BytesAnew),
    ]
}

fn figure() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 0.0..1.5f64, 2 => 0.0..1e6f64, 1 => Just(0.0), 1 => any::<u64>().prop_map(f64::from_bits), 1 => hostile()]
}

fn hostile() -> impl Strategy<Value = f64> {
    const HOSTILE: [f64; 8] = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN,
        -1.0,
        -0.0,
        f64::MIN_POSITIVE * f64::EPSILON,
    ];
    (0..HOSTILE.len()).prop_map(|at| HOSTILE[at])
}

fn change() -> impl Strategy<Value = Change> {
    let weight = || (0..WEIGHTS.len()).prop_map(|at| WEIGHTS[at]);
    let key = (0..KEYS.len()).prop_map(|at| KEYS[at]);
    let turn = (any::<usize>(), state()).prop_map(|(which, state)| Change::Turn(which, state));
    let weigh = (any::<usize>(), weight()).prop_map(|(which, weight)| Change::Weigh(which, weight));
    let rename = (any::<usize>(), key).prop_map(|(which, key)| Change::Rename(which, key));
    prop_oneof![
        12 => turn,
        4 => weight().prop_map(Change::Add),
        4 => any::<usize>().prop_map(Change::Remove),
        1 => (0..4usize).prop_map(Change::Replace),
        2 => any::<u64>().prop_map(Change::Reorder),
        2 => weigh,
        2 => rename,
        2 => state().prop_map(Change::TurnAll),
    ]
}

fn state() -> impl Strategy<Value = Connectivity> {
    use Connectivity::{Connecting, Idle, Ready, TransientFailure};
    prop_oneof![3 => Just(Ready), 1 => Just(Idle), 1 => Just(Connecting), 1 => Just(TransientFailure)]
}

fn avoid() -> impl Strategy<Value = Avoid> {
    prop_oneof![
        5 => Just(Avoid::Those(Vec::new())),
        5 => vec(any::<usize>(), 1..6).prop_map(Avoid::Those),
        1 => (1..9u32).prop_map(Avoid::Strangers),
        2 => any::<usize>().prop_map(Avoid::AllBut),
        1 => Just(Avoid::All),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let answered = (0..20u8).prop_map(|code| Outcome::Answered(StatusCode::new(code)));
    prop_oneof![
        4 => Just(Outcome::Answered(StatusCode::OK)),
        4 => Just(Outcome::Answered(StatusCode::UNAVAILABLE)),
        1 => answered,
        1 => Just(Outcome::Cancelled),
        1 => Just(Outcome::Refused),
    ]
}

/// From nothing to the end of time.
fn time() -> impl Strategy<Value = Duration> {
    let nanos = |most: u64| (0..=most).prop_map(Duration::from_nanos);
    prop_oneof![
        20 => nanos(10_000_000),
        10 => nanos(10_000_000_000),
        3 => nanos(100_000_000_000_000),
        1 => Just(Duration::ZERO),
        1 => prop_oneof![1 => nanos(u64::MAX), 1 => Just(Duration::MAX)],
    ]
}
