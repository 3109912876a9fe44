//! What is known of each policy, and whether the runs bear it out.

use super::contenders::BASELINE;
use super::outcome::Figure;
use super::report::aligned;
use super::runs::Results;

/// A bound on one figure of one policy, alone or by that of another policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    pub scenario: &'static str,
    pub policy: &'static str,
    pub figure: Figure,
    pub over: Option<&'static str>,
    pub limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Gate {
    /// The figure, by the other policy's if there is one; `None` where somebody was not run.
    pub fn measured(&self, all: &[Results]) -> Option<f64> {
        let results = all.iter().find(|r| r.scenario.name == self.scenario)?;
        let figure = |policy| results.of(policy)?.get(self.figure);
        match self.over {
            None => figure(self.policy),
            Some(other) => Some(figure(self.policy)? / figure(other)?),
        }
    }

    /// Whether what was measured is within the bound; what was not measured is not.
    pub fn holds(&self, all: &[Results]) -> bool {
        self.measured(all).is_some_and(|measured| match self.limit {
            Limit::AtMost(limit) => measured <= limit,
            Limit::AtLeast(limit) => measured >= limit,
        })
    }
}

/// A policy's p99 by round robin's.
pub const fn p99(scenario: &'static str, policy: &'static str, limit: Limit) -> Gate {
    relation(scenario, policy, Figure::P99, BASELINE, limit)
}

pub const fn relation(
    scenario: &'static str,
    policy: &'static str,
    figure: Figure,
    other: &'static str,
    limit: Limit,
) -> Gate {
    Gate {
        over: Some(other),
        ..alone(scenario, policy, figure, limit)
    }
}

pub const fn alone(
    scenario: &'static str,
    policy: &'static str,
    figure: Figure,
    limit: Limit,
) -> Gate {
    Gate {
        scenario,
        policy,
        figure,
        over: None,
        limit,
    }
}

/// Those that heed load: for each the greatest p99 by round robin's in s1 to s5.
const LOAD_AWARE: [(&str, [f64; 5]); 5] = [
    ("least_request", [0.88, 0.12, 0.30, 0.25, 0.60]),
    ("least_request_full_scan", [0.88, 0.12, 0.24, 0.15, 0.55]),
    ("adaptive", [0.86, 0.10, 0.24, 0.11, 0.38]),
    ("peak_ewma", [0.90, 0.12, 0.32, 0.11, 0.80]),
    ("weighted_least_request", [0.88, 0.11, 0.30, 0.10, 0.60]),
];

/// Those that heed it too late, or not at all in what s1 to s5 are about, and still notice a server that only fails.
const GUARDED: [&str; 3] = ["least_bandwidth", "least_utilization", "rendezvous_top_2"];

/// Turns by weight: what is known of those that the operator gives, and of those that the servers' reports give.
const TURNS: [(&str, [Option<f64>; 5]); 2] = [
    (
        "weighted_round_robin",
        [Some(1.0), Some(0.12), None, Some(0.13), None],
    ),
    (
        "weighted_round_robin_reported",
        [Some(1.15), Some(0.12), Some(0.85), Some(0.15), Some(0.85)],
    ),
];

const SCENARIOS: [&str; 5] = ["s1", "s2", "s3", "s4", "s5"];

/// The gates of the full run: 60,000 calls, 5 seeds. Round robin is past what it can do in s2 to s5, so its p99
/// grows with the run, and the relations between the others are the steadier bounds.
pub fn full() -> Vec<Gate> {
    use Figure::{Early, Late, P99, P999, Timeouts};
    use Limit::{AtLeast, AtMost};
    let mut gates = vec![p99("s1", "random", AtLeast(1.05))];
    for (policy, limits) in LOAD_AWARE {
        let limits = SCENARIOS.iter().zip(limits);
        gates.extend(limits.map(|(scenario, limit)| p99(scenario, policy, AtMost(limit))));
        // In simulation one call in ten thousand.
        let calm = SCENARIOS[..4].iter();
        gates.extend(calm.map(|scenario| alone(scenario, policy, Timeouts, AtMost(0.0001))));
    }
    for (policy, limits) in TURNS {
        let limits = SCENARIOS.iter().zip(limits);
        let limits = limits.filter_map(|(scenario, limit)| Some((scenario, limit?)));
        gates.extend(limits.map(|(scenario, limit)| p99(scenario, policy, AtMost(limit))));
    }
    for policy in LOAD_AWARE.map(|(policy, _)| policy).iter().chain(&GUARDED) {
        gates.push(alone("s6", policy, Early, AtMost(0.1)));
        gates.push(alone("s6", policy, Late, AtMost(0.01)));
    }
    let [two, all, soonest, ..] = LOAD_AWARE.map(|(policy, _)| policy);
    let [(turns, _), _] = TURNS;
    gates.extend([
        relation("s2", soonest, P99, turns, AtMost(1.0)),
        relation("s2", all, P99, turns, AtMost(1.1)),
        relation("s3", all, P99, two, AtMost(0.85)),
        relation("s3", soonest, P99, two, AtMost(0.85)),
        relation("s4", soonest, P999, all, AtMost(0.6)),
        relation("s5", soonest, P99, two, AtMost(0.7)),
    ]);
    gates
}

/// Each gate beside what was measured.
pub fn table(gates: &[Gate], all: &[Results]) -> String {
    let heading = ["gate", "measured", "bound", ""].map(str::to_owned);
    let mut rows = vec![heading.to_vec()];
    for gate in gates {
        let over = gate
            .over
            .map_or(String::new(), |other| format!(" / {other}"));
        let measured = gate.measured(all);
        rows.push(vec![
            format!("{} {:?} {}{over}", gate.scenario, gate.figure, gate.policy),
            measured.map_or("-".to_owned(), |value| format!("{value:.4}")),
            match gate.limit {
                Limit::AtMost(limit) => format!("<= {limit}"),
                Limit::AtLeast(limit) => format!(">= {limit}"),
            },
            if gate.holds(all) { "holds" } else { "MISSED" }.to_owned(),
        ]);
    }
    aligned(&rows)
}
