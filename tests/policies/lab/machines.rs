//! What the policies are told of servers, and runs over real ones.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use equipoise::Timestamp;
use equipoise::load::Scoring;
use equipoise::policy::{Decision, Member, Policy, RoundRobin};
use equipoise::rng::Rng;

use super::contenders::{self, Contender, named};
use super::outcome::{End, Figure, Run};
use super::scenario::{Arrivals, Change, Event, Scenario, Server};
use super::{MS, SECOND, quiet, real, world};

fn after(millis: u32, change: Change) -> Event {
    Event {
        at: millis * MS,
        change,
    }
}

#[test]
fn real_servers_die_slow_down_leave_and_join_as_the_scenario_says() {
    let slow = Change::Slow {
        server: 1,
        factor: 0.1,
    };
    let eventful = Scenario {
        requests: 200,
        ..quiet(vec![
            after(200, Change::Kill(0)),
            after(300, slow),
            after(400, Change::Add(Server::default())),
            after(600, Change::Remove(2)),
        ])
    };
    thread::scope(|scope| {
        for policy in ["round_robin", "adaptive", "ring_hash", "least_utilization"] {
            let contender = named(policy).expect("it is in the table");
            let eventful = &eventful;
            scope.spawn(move || {
                let run = real::run(eventful, contender, 1, &|_| ());
                happened(policy, &run.expect("it can be run"));
            });
        }
    });
}

fn happened(policy: &str, run: &Run) {
    let samples = &run.samples;
    assert!(samples.iter().map(|s| s.number).eq(0..200), "{policy}");
    let at = |server, from: u64, until: u64| {
        let within = Timestamp::from_millis(from)..Timestamp::from_millis(until);
        let there = samples.iter().filter(move |s| s.server == Some(server));
        there.filter(move |s| within.contains(&s.at))
    };
    let end = u64::MAX / 1_000_000;
    let picks = |server, from, until| at(server, from, until).count();
    let all: usize = (0..4).map(|server| picks(server, 0, end)).sum();
    let nobodys = samples.iter().filter(|s| s.server.is_none()).count();
    assert_eq!(all + nobodys, 200, "{policy}");
    assert!(picks(0, 0, 200) > 0 && picks(2, 0, 600) > 0, "{policy}");
    // What is on its way when the news comes may still arrive.
    assert_eq!(picks(0, 400, end), 0, "{policy}");
    assert_eq!(picks(2, 800, end), 0, "{policy}");
    assert_eq!(picks(3, 0, 400), 0, "{policy}");
    assert!(picks(3, 400, end) > 0, "{policy}");
    // A timer may be late, and is never early.
    assert!(at(1, 300, end).all(|s| s.took >= 50 * MS), "{policy}");
    assert!(samples.iter().all(|s| s.took >= 5 * MS || s.end != End::Ok));
    let good = samples.iter().filter(|s| s.end == End::Ok).count();
    assert!(good >= 180, "{policy}: {good}");
    let used = run.utilisations.iter().flatten();
    assert!(used.copied().all(|used| (0.0..=1.5).contains(&used)));
    assert_eq!(run.utilisations.len(), 4, "{policy}");
}

#[test]
fn the_runs_over_real_servers_are_made_in_turn_and_summed_up() {
    let short = Scenario {
        requests: 100,
        arrivals: Arrivals::PerSecond(500.0),
        ..quiet(Vec::new())
    };
    let contenders = ["round_robin", "weighted_random"].map(|name| named(name).expect("it is"));
    let results = real::runs(&short, &contenders, &[1, 2], &|_| ()).expect("they can be run");
    for contender in contenders {
        let figures = results.of(contender.name).expect("it was run");
        assert_eq!(figures.get(Figure::Unavailable), Some(0.0));
        assert!(figures.get(Figure::P50) >= Some(5.0));
        assert!(figures.get(Figure::Spread).is_some());
    }
}

/// Turns, and notes the most that it is told: of all servers together, as one client hears it.
#[derive(Debug)]
struct Gauges(RoundRobin);

static RPS: AtomicU64 = AtomicU64::new(0);
static BUSY: AtomicU64 = AtomicU64::new(0);
static ERRORS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

impl Policy for Gauges {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        let loads = || members.iter().map(|member| &member.load);
        let reports: Vec<_> = loads().filter_map(|l| l.reported(now, SECOND)).collect();
        // Of numbers from 0 up the greater has the greater bits.
        let set = |gauge: &AtomicU64, value: f64| {
            gauge.fetch_max(value.max(0.0).to_bits(), Ordering::Relaxed);
        };
        set(&RPS, reports.iter().map(|report| report.rps).sum());
        set(&ERRORS, reports.iter().map(|report| report.eps).sum());
        let busy = reports.iter().map(|report| report.cpu_utilization);
        set(&BUSY, busy.sum());
        set(&BYTES, loads().filter_map(|load| load.bandwidth(now)).sum());
        Decision {
            wake: Some(now + 100 * MS),
            ..self.0.update(members, now, rng)
        }
    }

    fn scoring(&self) -> Scoring {
        Scoring::Bandwidth { window: SECOND }
    }
}

/// Calls, errors and bytes per second, and utilization.
fn told() -> [f64; 4] {
    [&RPS, &ERRORS, &BYTES, &BUSY].map(|gauge| f64::from_bits(gauge.swap(0, Ordering::Relaxed)))
}

#[test]
fn policies_are_told_what_servers_say_and_how_many_bytes_pass() {
    let mut fleet = Scenario {
        clients: 1,
        requests: 400,
        ..quiet(Vec::new())
    };
    fleet.servers[2].broken = true;
    let gauges = Contender {
        make: || Box::new(Gauges(RoundRobin::default())),
        reports: true,
        ..contenders::ALL[0]
    };
    // 200 calls/s, a third of them turned away, 5 ms and 500 bytes each for the others; four slots.
    let near = |told: f64, expected: f64| (0.5..2.0).contains(&(told / expected));
    let check = |[rps, errors, bytes, busy]: [f64; 4]| {
        assert!(near(rps, 200.0), "{rps}");
        assert!(near(errors, 66.7), "{errors}");
        assert!(near(bytes, 133.3 * 500.0), "{bytes}");
        assert!(near(busy, 133.3 * 0.005 / 4.0), "{busy}");
    };
    world::run(&fleet, &gauges, 1, &|_| ());
    check(told());
    real::run(&fleet, &gauges, 1, &|_| ()).expect("it can be run");
    let [rps, errors, bytes, busy] = told();
    // Heads pass too, there and back, and timers are late.
    assert!(near(rps, 200.0) && near(errors, 66.7), "{rps} {errors}");
    assert!(bytes >= 133.3 * 500.0 / 2.0, "{bytes}");
    assert!(busy >= 133.3 * 0.005 / 4.0 / 2.0, "{busy}");

    let silent = Contender {
        reports: false,
        ..gauges
    };
    world::run(&fleet, &silent, 1, &|_| ());
    let [rps, errors, _, busy] = told();
    assert_eq!([rps, errors, busy], [0.0; 3], "control");
}
