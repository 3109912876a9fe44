//! When an endpoint is dialled, and at which of its addresses.

use std::time::Duration;

use equipoise::balancer::{Action, AttemptId, Backoff, Balancer, Config};
use equipoise::policy::RoundRobin;
use equipoise::{Address, ConnectError, Endpoint, Timestamp};

use crate::{misc, number, rows, text, whole};

/// A balancer in virtual time that never hears of a connection.
struct Bench {
    balancer: Balancer,
    now: Timestamp,
}

impl Bench {
    fn new(endpoint: Endpoint, seed: u64) -> Self {
        let policy = Box::new(RoundRobin::default());
        let mut balancer = Balancer::new(Config::default(), policy, Vec::new(), seed);
        balancer.handle_resolution(Ok(vec![endpoint]), Timestamp::ZERO);
        Self {
            balancer,
            now: Timestamp::ZERO,
        }
    }

    /// The next dial, and when.
    fn dial(&mut self) -> (AttemptId, Address, Timestamp) {
        loop {
            while let Some(action) = self.balancer.poll_action(self.now) {
                if let Action::Connect {
                    attempt, address, ..
                } = action
                {
                    return (attempt, address, self.now);
                }
            }
            self.now = self.balancer.poll_timeout().expect("it means to dial");
            self.balancer.handle_timeout(self.now);
        }
    }
}

fn endpoint() -> Endpoint {
    Endpoint::new("10.0.0.1:80".parse::<Address>().expect("an address"))
}

#[test]
fn waits_between_failures_follow_the_published_schedule() {
    let vectors = misc();
    let schedule = &vectors["connection_backoff"];
    let backoff = Backoff::default();
    assert_eq!(backoff.base.as_secs_f64(), number(&schedule["base_s"]));
    assert_eq!(backoff.multiplier, number(&schedule["multiplier"]));
    assert_eq!(backoff.jitter, number(&schedule["jitter"]));
    assert_eq!(backoff.cap.as_secs_f64(), number(&schedule["max_s"]));
    for (failures, nominal) in (1..).zip(rows(&schedule["nominal_s"])) {
        let got = backoff.nominal(failures).as_secs_f64();
        assert!(
            (got - number(nominal)).abs() < 1e-5,
            "failure {failures}: {got}"
        );
    }
    let bounds = rows(&schedule["bounds_s"]);
    let mut reached = vec![(f64::MAX, f64::MIN); bounds.len()];
    for seed in 0..400 {
        let mut bench = Bench::new(endpoint(), seed);
        let (mut attempt, _, mut failed) = bench.dial();
        for (bound, reached) in bounds.iter().zip(&mut reached) {
            let why = ConnectError::new("connection refused");
            bench.balancer.handle_connect_failed(attempt, why, failed);
            let (next, _, again) = bench.dial();
            let wait = again.since(failed).as_secs_f64();
            (attempt, failed) = (next, again);
            let (low, high) = (number(&bound[0]), number(&bound[1]));
            assert!(
                (low - 1e-3..=high + 1e-3).contains(&wait),
                "seed {seed}: {wait} is not in {low}..={high}"
            );
            *reached = (reached.0.min(wait), reached.1.max(wait));
        }
    }
    for (bound, (least, most)) in bounds.iter().zip(reached) {
        // Neither end is avoided, so the bounds are not met by standing still.
        assert!(least < number(&bound[0]) * 1.05 && most > number(&bound[1]) * 0.95);
    }
}

#[test]
fn families_take_turns_a_quarter_of_a_second_apart() {
    const STAGGER: Duration = Duration::from_millis(250);
    let vectors = misc();
    for row in rows(&vectors["happy_eyeballs_interleave"]) {
        let families: Vec<&str> = rows(&row["families_in"]).iter().map(text).collect();
        let expected = rows(&row["order_of_input_indexes"]).iter();
        let expected: Vec<usize> = expected.map(|index| whole(index) as usize).collect();
        // An IPv4 address may come as one of IPv6.
        for v4 in ["10.0.0.1", "[::ffff:10.0.0.1]"] {
            let addresses: Vec<Address> = (1..)
                .zip(&families)
                .map(|(port, &family)| match family {
                    "4" => format!("{v4}:{port}"),
                    "6" => format!("[fd00::1]:{port}"),
                    _ => format!("unix:/run/{port}"),
                })
                .map(|address| address.parse().expect("an address"))
                .collect();
            let endpoint = Endpoint::with_addresses(addresses.clone()).expect("an endpoint");
            let mut bench = Bench::new(endpoint, 1);
            for (turn, &index) in (0..).zip(&expected) {
                let (_, address, at) = bench.dial();
                assert_eq!(address, addresses[index], "{families:?} by {v4}");
                assert_eq!(at, Timestamp::ZERO + STAGGER * turn, "{families:?}");
            }
        }
    }
}
