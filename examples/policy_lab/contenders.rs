//! The policies that are compared, by name.

use equipoise::policy::{Adaptive, LeastRequest, Policy, Random, RingHash, RoundRobin};

/// A policy under the name that it has here.
#[derive(Clone, Copy)]
pub struct Contender {
    pub name: &'static str,
    /// One for each client.
    pub make: fn() -> Box<dyn Policy>,
    pub weights: Weights,
    /// Whether it places calls by their keys: then it is told them, and who owns which is followed.
    pub keyed: bool,
}

/// What a policy is told of the servers' weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Those of the scenario.
    Given,
    /// Speed × 100: what an operator would give who knows all about the servers.
    True,
}

/// The yardstick: it runs beside whichever are chosen.
pub const BASELINE: &str = "round_robin";

/// All there are, the simpler ones first: of two that are as good, the first is recommended.
pub const ALL: &[Contender] = &[
    plain(BASELINE, || Box::new(RoundRobin::default())),
    plain("random", || Box::new(Random)),
    plain("least_request", || Box::new(LeastRequest::default())),
    plain("least_request_full_scan", || {
        Box::new(LeastRequest::full_scan())
    }),
    plain("adaptive", || Box::new(Adaptive::default())),
    weighted("weighted_adaptive", || Box::new(Adaptive::default())),
    keyed("ring_hash", || Box::new(RingHash::default())),
];

const fn plain(name: &'static str, make: fn() -> Box<dyn Policy>) -> Contender {
    Contender {
        name,
        make,
        weights: Weights::Given,
        keyed: false,
    }
}

/// With true weights.
const fn weighted(name: &'static str, make: fn() -> Box<dyn Policy>) -> Contender {
    Contender {
        weights: Weights::True,
        ..plain(name, make)
    }
}

const fn keyed(name: &'static str, make: fn() -> Box<dyn Policy>) -> Contender {
    Contender {
        keyed: true,
        ..plain(name, make)
    }
}

/// The one of this name.
///
/// # Errors
///
/// The names there are.
pub fn named(name: &str) -> Result<&'static Contender, String> {
    let found = ALL.iter().find(|contender| contender.name == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = ALL.iter().map(|contender| contender.name).collect();
        format!("policy {name:?} is unknown; known are {}", known.join(", "))
    })
}
