//! The policies in the laboratory: the simulator against theory, the policies against their gates, in short.
//!
//! `examples/policy_lab --gates` runs the same in full.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use equipoise::policy::{
    Connect, Decision, Member, PickInfo, PickResult, Picker, Policy, RoundRobin,
};
use equipoise::rng::Rng;
use equipoise::{EndpointId, Timestamp};

#[path = "../../examples/policy_lab/arguments.rs"]
mod arguments;
#[path = "../../examples/policy_lab/client.rs"]
mod client;
#[path = "../../examples/policy_lab/contenders.rs"]
mod contenders;
#[path = "../../examples/policy_lab/fleet.rs"]
mod fleet;
#[path = "../../examples/policy_lab/gates.rs"]
mod gates;
#[path = "../../examples/policy_lab/moves.rs"]
mod moves;
#[path = "../../examples/policy_lab/outcome.rs"]
mod outcome;
#[path = "../../examples/policy_lab/plot.rs"]
mod plot;
#[path = "../../examples/policy_lab/readings.rs"]
mod readings;
#[path = "../../examples/policy_lab/real.rs"]
mod real;
#[path = "../../examples/policy_lab/report.rs"]
mod report;
#[path = "../../examples/policy_lab/runs.rs"]
mod runs;
#[path = "../../examples/policy_lab/scenario.rs"]
mod scenario;
#[path = "../../examples/policy_lab/scenario_file.rs"]
mod scenario_file;
#[path = "../../examples/policy_lab/server.rs"]
mod server;
#[path = "../../examples/policy_lab/workload.rs"]
mod workload;
#[path = "../../examples/policy_lab/world.rs"]
mod world;

mod machines;
mod program;

mod proto {
    include!(concat!(env!("OUT_DIR"), "/equipoise.demo.v1.rs"));
}

use contenders::{Contender, Weights, named};
use gates::{Gate, Limit, alone, p99, relation};
use outcome::{End, Figure, Figures, Run};
use runs::Results;
use scenario::{Arrivals, Change, Event, Scenario, Server, Service, Shape, built_in};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn scenario(name: &str) -> Scenario {
    let mut all = built_in().into_iter();
    all.find(|s| s.name == name).expect("it is built in")
}

/// One second of quiet calls to three servers, and events.
fn quiet(events: Vec<Event>) -> Scenario {
    Scenario {
        servers: vec![Server::default(); 3],
        arrivals: Arrivals::PerSecond(200.0),
        requests: 2_000,
        service: Service {
            mean: 5 * MS,
            shape: Shape::Constant,
        },
        events,
        ..scenario("s1")
    }
}

fn at(seconds: u64, change: Change) -> Event {
    Event {
        at: Duration::from_secs(seconds),
        change,
    }
}

fn run(scenario: &Scenario, policy: &str, seed: u64) -> Run {
    let contender = named(policy).expect("it is in the table");
    world::run(scenario, contender, seed, &|_| ())
}

fn picks(run: &Run, server: usize, from: u64, until: u64) -> usize {
    let within = Timestamp::from_secs(from)..Timestamp::from_secs(until);
    let samples = run.samples.iter().filter(|s| within.contains(&s.at));
    samples.filter(|s| s.server == Some(server)).count()
}

#[test]
fn queues_are_as_long_as_theory_says() {
    for (slots, rho, requests, mean_ms) in [(1, 0.8, 400_000, 50.0), (4, 0.8, 200_000, 17.46)] {
        let queue = Scenario {
            servers: vec![Server {
                slots,
                ..Server::default()
            }],
            clients: 1,
            requests,
            arrivals: Arrivals::Rho(rho),
            service: Service {
                mean: 10 * MS,
                shape: Shape::Exponential,
            },
            round_trip: Duration::ZERO,
            deadline: 3_600 * SECOND,
            ..scenario("s1")
        };
        let run = run(&queue, "round_robin", 1);
        let figures = Figures::of(&run, &queue);
        let mean = figures.get(Figure::Mean).expect("there were calls");
        // Three and a half standard deviations of so many calls.
        assert!(
            (mean / mean_ms - 1.0).abs() < 0.05,
            "M/M/{slots}: {mean} ms"
        );
        let busy = run.utilisations[0].expect("it was there");
        assert!((busy / rho - 1.0).abs() < 0.02, "{busy}");
    }
}

/// Those of which something is known that they could miss.
const SHORT: [&str; 12] = [
    "round_robin",
    "random",
    "least_request",
    "least_request_full_scan",
    "adaptive",
    "weighted_round_robin",
    "weighted_least_request",
    "peak_ewma",
    "least_bandwidth",
    "least_utilization",
    "weighted_round_robin_reported",
    "rendezvous_top_2",
];

/// Of each scenario the runs that these gates and their controls ask for.
fn short_run(gates: &[(Gate, &str)]) -> Vec<Results> {
    let runs = |scenario: Scenario| {
        let asked = |name: &str| {
            let mut here = gates.iter().filter(|(g, _)| g.scenario == scenario.name);
            here.any(|(gate, worse)| {
                [gate.policy, worse].contains(&name) || gate.over == Some(name)
            })
        };
        let all = contenders::ALL.iter();
        let contenders: Vec<_> = all.filter(|c| asked(c.name)).collect();
        let short = Scenario {
            requests: 20_000,
            ..scenario
        };
        runs::run(&short, &contenders, &[1, 2, 3], &|_| ())
    };
    built_in().into_iter().map(runs).collect()
}

#[test]
fn policies_hold_their_gates_and_worse_ones_would_not() {
    use Figure::{Early, Late, P99, Timeouts};
    use Limit::AtMost;
    let [_, random, two, all, adaptive, rest @ ..] = SHORT;
    let [turns, heavy, peak, bytes, full, reported, top] = rest;
    // Each with a policy that must miss it, or the gate guards nothing.
    let gates = [
        (p99("s1", two, AtMost(0.93)), random),
        (p99("s1", all, AtMost(0.91)), random),
        (p99("s1", adaptive, AtMost(0.91)), random),
        (p99("s2", two, AtMost(0.12)), random),
        (p99("s2", all, AtMost(0.12)), random),
        (p99("s2", adaptive, AtMost(0.10)), random),
        (alone("s2", adaptive, Timeouts, AtMost(0.0005)), random),
        (p99("s3", two, AtMost(0.35)), random),
        (relation("s3", all, P99, two, AtMost(0.85)), two),
        (relation("s3", adaptive, P99, two, AtMost(0.85)), two),
        (p99("s4", two, AtMost(0.25)), random),
        (p99("s4", all, AtMost(0.15)), two),
        (p99("s4", adaptive, AtMost(0.13)), two),
        (alone("s4", adaptive, Timeouts, AtMost(0.0005)), random),
        (relation("s5", adaptive, P99, two, AtMost(0.7)), all),
        (relation("s5", adaptive, P99, all, AtMost(0.75)), two),
        (alone("s6", two, Late, AtMost(0.01)), random),
        (alone("s6", all, Late, AtMost(0.01)), random),
        (alone("s6", adaptive, Late, AtMost(0.01)), random),
        (alone("s6", adaptive, Early, AtMost(0.05)), random),
        (p99("s1", peak, AtMost(0.9)), random),
        (p99("s2", peak, AtMost(0.12)), random),
        (p99("s3", peak, AtMost(0.32)), random),
        (p99("s4", peak, AtMost(0.11)), two),
        (p99("s2", heavy, AtMost(0.11)), random),
        (p99("s4", heavy, AtMost(0.1)), two),
        (p99("s2", turns, AtMost(0.12)), random),
        (p99("s4", turns, AtMost(0.13)), two),
        (relation("s2", adaptive, P99, turns, AtMost(1.0)), two),
        // Not in s2 and s4: the queues of its blackout are still there when so short a warm-up ends.
        (p99("s1", reported, AtMost(1.15)), random),
        (p99("s3", reported, AtMost(0.85)), turns),
        (p99("s5", reported, AtMost(0.85)), turns),
        (p99("s2", full, AtMost(0.12)), bytes),
        (p99("s3", full, AtMost(0.35)), bytes),
        (alone("s6", heavy, Late, AtMost(0.01)), random),
        (alone("s6", peak, Late, AtMost(0.01)), random),
        (alone("s6", bytes, Late, AtMost(0.01)), reported),
        (alone("s6", full, Late, AtMost(0.01)), reported),
        (alone("s6", top, Late, AtMost(0.01)), random),
    ];
    let results = short_run(&gates);
    let bounds: Vec<Gate> = gates.iter().map(|(gate, _)| *gate).collect();
    let table = gates::table(&bounds, &results);
    for (gate, worse) in gates {
        assert!(gate.holds(&results), "{gate:?}\n{table}");
        let control = Gate {
            policy: worse,
            ..gate
        };
        assert!(!control.holds(&results), "control: {control:?}");
    }
}

#[test]
fn the_full_gates_name_scenarios_and_policies_that_there_are() {
    let scenarios: Vec<String> = built_in().into_iter().map(|s| s.name).collect();
    for gate in gates::full() {
        assert!(
            scenarios.iter().any(|name| name == gate.scenario),
            "{gate:?}"
        );
        named(gate.policy).expect("it is in the table");
        gate.over.map(|other| named(other).expect("and so is this"));
        assert!(!gate.holds(&[]), "what was not measured does not hold");
    }
}

#[test]
fn one_seed_one_output_whatever_the_cores_do() {
    let all: Vec<&Contender> = contenders::ALL.iter().collect();
    let text = |seed| {
        let short = |s: Scenario| Scenario {
            requests: 3_000,
            ..s
        };
        let results = built_in().into_iter().map(short);
        let results = results.map(|s| runs::run(&s, &all, &[seed, seed + 1], &|_| ()));
        let results: Vec<Results> = results.collect();
        let tables: String = results
            .iter()
            .map(|r| report::table(r) + &report::advice(r))
            .collect();
        tables + &report::result(&results, &[seed, seed + 1])
    };
    let first = text(7);
    assert_eq!(first, text(7));
    assert_ne!(first, text(8));
    for contender in all {
        assert!(first.contains(&format!(" s3_{}=", contender.name)));
    }
}

#[test]
fn all_policies_of_a_seed_see_the_same_calls_and_each_ends_once() {
    let scenario = Scenario {
        requests: 3_000,
        ..scenario("s5")
    };
    let calls = |policy: &Contender| -> Vec<_> {
        let run = world::run(&scenario, policy, 5, &|_| ());
        run.samples.iter().map(|s| (s.number, s.at)).collect()
    };
    let first = calls(&contenders::ALL[0]);
    assert!(first.iter().map(|(number, _)| *number).eq(0..3_000));
    for contender in contenders::ALL {
        assert_eq!(calls(contender), first, "{}", contender.name);
    }
}

#[test]
fn what_is_too_old_when_its_turn_comes_is_dropped_and_counts_as_the_deadline() {
    let overload = Scenario {
        servers: vec![Server {
            slots: 1,
            ..Server::default()
        }],
        arrivals: Arrivals::Rho(2.0),
        deadline: 200 * MS,
        requests: 5_000,
        ..quiet(Vec::new())
    };
    let run = run(&overload, "round_robin", 1);
    let timeouts = run
        .samples
        .iter()
        .filter(|s| s.end == End::DeadlineExceeded);
    assert!(timeouts.clone().all(|s| s.took == 200 * MS));
    let part = timeouts.count() as f64 / 5_000.0;
    // Half of the calls can be served, and most of those come to their turn with no time left for the answer. If
    // none were dropped, all but the first hundred would come too late.
    assert!((0.85..0.95).contains(&part), "{part}");
    let busy = run.utilisations[0].expect("it was there");
    assert!((0.97..1.03).contains(&busy), "{busy}");
    assert!(run.samples.iter().all(|s| s.took <= 200 * MS));
}

#[test]
fn the_killed_the_removed_and_the_new() {
    let there = quiet(vec![
        at(3, Change::Kill(0)),
        at(5, Change::Remove(1)),
        at(7, Change::Add(Server::default())),
    ]);
    for contender in contenders::ALL {
        let run = world::run(&there, contender, 3, &|_| ());
        let name = contender.name;
        assert!(picks(&run, 0, 0, 3) > 50, "{name}");
        assert_eq!(picks(&run, 0, 3, 99), 0, "{name}");
        assert!(picks(&run, 1, 3, 5) > 50, "{name}");
        assert_eq!(picks(&run, 1, 5, 99), 0, "{name}");
        assert_eq!(picks(&run, 3, 0, 7), 0, "{name}");
        match name {
            // Whoever has a server keeps it.
            "pick_first" => assert_eq!(picks(&run, 3, 7, 10), 0),
            _ => assert!(picks(&run, 3, 7, 10) > 50, "{name}"),
        }
        // Those that were on their way when it was killed, and nobody else.
        let lost = run.samples.iter().filter(|s| s.end == End::Unavailable);
        for sample in lost {
            assert_eq!(sample.server, Some(0), "{name}: {sample:?}");
            assert!(sample.at + 10 * MS > Timestamp::from_secs(3), "{name}");
        }
    }
    let nobody = quiet((0..3).map(|server| at(5, Change::Kill(server))).collect());
    let after = run(&nobody, "adaptive", 3).samples.into_iter();
    let mut after = after.filter(|s| s.at > Timestamp::from_secs(5));
    assert!(after.all(|s| s.end == End::Unavailable && s.server.is_none()));
}

#[test]
fn a_newcomer_is_tried_with_one_call_where_the_policy_judges_by_latency() {
    let slow = Server {
        speed: 0.05,
        ..Server::default()
    };
    let alone = Scenario {
        clients: 1,
        ..quiet(vec![at(3, Change::Add(slow))])
    };
    // It answers after 100 ms; until then there are some twenty calls.
    let first = |policy| {
        let run = run(&alone, policy, 1);
        let there = run.samples.into_iter().filter(|s| s.server == Some(3));
        let within = there.take_while(|s| s.at < Timestamp::from_millis(3_100));
        within.count()
    };
    assert_eq!(first("adaptive"), 1);
    assert!(first("round_robin") > 2, "control");
}

#[test]
fn a_slowed_server_serves_slowly_until_it_is_slowed_no_more() {
    let slow = |factor| Change::Slow { server: 2, factor };
    let events = vec![at(3, slow(0.1)), at(6, slow(1.0))];
    let run = run(&quiet(events), "round_robin", 1);
    let took = |from, until| {
        let within = Timestamp::from_secs(from)..Timestamp::from_secs(until);
        let there = run.samples.iter().filter(|s| s.server == Some(2));
        let there = there.filter(|s| within.contains(&s.at));
        there.map(|s| s.took).max().expect("it is picked")
    };
    assert!(took(0, 3) < 10 * MS && took(7, 10) < 10 * MS);
    assert!(took(3, 6) >= 50 * MS);
}

#[test]
fn keys_move_only_where_they_must() {
    let with_keys = |change| Scenario {
        servers: vec![Server::default(); 10],
        ..quiet(vec![at(1, change)])
    };
    let moves = |change| run(&with_keys(change), "ring_hash", 1).moves;
    let [killed] = moves(Change::Kill(4))[..] else {
        panic!("one change, one entry");
    };
    // Its neighbours stand in; the ring is as it was.
    assert_eq!(killed.needless, 0.0);
    assert!((0.05..0.15).contains(&killed.moved), "{killed:?}");
    let [added] = moves(Change::Add(Server::default()))[..] else {
        panic!("one change, one entry");
    };
    // gRPC's ring has a size in all, so that some keys of others move too.
    assert!((0.04..0.25).contains(&added.moved), "{added:?}");
    assert!(added.needless < added.moved / 2.0, "{added:?}");
    let plain = run(&with_keys(Change::Kill(4)), "adaptive", 1);
    assert!(plain.moves.is_empty(), "it has no keys");
}

#[test]
fn calls_wait_while_the_first_connections_are_made() {
    let far = Scenario {
        round_trip: 400 * MS,
        ..quiet(Vec::new())
    };
    for contender in contenders::ALL {
        let run = world::run(&far, contender, 1, &|_| ());
        let first = run.samples[0];
        assert!(run.samples.iter().all(|s| s.end == End::Ok));
        assert!(first.took > 750 * MS, "{}: {first:?}", contender.name);
        let later = &run.samples[1_000..];
        let usual = later.iter().map(|s| s.took).min().expect("there are some");
        assert!(usual < 410 * MS, "{}", contender.name);
    }
}

/// Gives all to the first, and after three seconds, when it asks to be asked, to the last.
#[derive(Debug)]
struct Turncoat;

#[derive(Debug)]
struct One(EndpointId);

const TURN: Timestamp = Timestamp::from_secs(3);

impl Policy for Turncoat {
    fn update(&mut self, members: &[Member], now: Timestamp, _: &mut Rng) -> Decision {
        let (one, wake) = match now < TURN {
            true => (members.first(), Some(TURN)),
            false => (members.last(), None),
        };
        let id = one.expect("the list is not empty").id;
        Decision {
            picker: Arc::new(One(id)),
            connect: Connect::All,
            wake,
        }
    }
}

impl Picker for One {
    fn pick(&self, _: &PickInfo<'_>) -> PickResult {
        PickResult::Pick(self.0)
    }
}

#[test]
fn a_policy_is_asked_again_when_it_said() {
    let contender = Contender {
        make: || Box::new(Turncoat),
        ..contenders::ALL[0]
    };
    let run = world::run(&quiet(Vec::new()), &contender, 1, &|_| ());
    assert_eq!(picks(&run, 2, 0, 3), 0);
    assert_eq!(picks(&run, 0, 3, 99), 0);
    assert!(picks(&run, 0, 0, 3) > 500 && picks(&run, 2, 3, 99) > 500);
}

/// Notes the greatest weight that it is told.
#[derive(Debug)]
struct Scales(RoundRobin);

static HEAVIEST: AtomicU64 = AtomicU64::new(0);

impl Policy for Scales {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        let heaviest = members.iter().map(|m| u64::from(m.weight)).max();
        HEAVIEST.store(heaviest.unwrap_or(0), Ordering::Relaxed);
        self.0.update(members, now, rng)
    }
}

#[test]
fn true_weights_are_a_hundred_times_the_speed() {
    let mut fleet = quiet(Vec::new());
    fleet.servers[1].speed = 1.25;
    fleet.servers[2].weight = 7;
    for (weights, heaviest) in [(Weights::Given, 7), (Weights::True, 125)] {
        let contender = Contender {
            make: || Box::new(Scales(RoundRobin::default())),
            weights,
            ..contenders::ALL[0]
        };
        world::run(&fleet, &contender, 1, &|_| ());
        assert_eq!(HEAVIEST.load(Ordering::Relaxed), heaviest);
    }
}

#[test]
fn what_one_machine_cannot_do_is_not_run_on_real_servers() {
    let read = |line: &str| {
        let arguments = line.split_whitespace().map(Into::into);
        arguments::read(arguments).map(|request| match request {
            arguments::Request::Run(options) => options.real,
            arguments::Request::Help => panic!("nobody asked for help"),
        })
    };
    assert_eq!(read("--real"), Ok(true));
    assert_eq!(read("--real --virtual"), Ok(false), "the last one counts");
    for (line, rule) in [
        (
            "--real --servers 101 --scenario s1",
            "--real runs at most 100 servers, and 101 are asked for",
        ),
        (
            "--real --clients 201",
            "--real runs at most 200 clients, and 201 are asked for",
        ),
        (
            "--real --servers 60",
            "--real makes at most 4000 calls/s, and 9600 are asked for",
        ),
        (
            "--real --gates",
            "--gates is for --virtual: real machines differ",
        ),
    ] {
        let error = read(line).expect_err(line);
        assert!(error.contains(rule), "{line}: {error}");
    }
}
