//! The policies that are compared, by name.

use std::time::Duration;

use equipoise::policy::{
    Adaptive, BoundedLoad, LeastBandwidth, LeastRequest, LeastUtilization, Maglev, PeakEwma,
    PickFirst, Policy, Random, Rendezvous, RingHash, RoundRobin, WeightedRandom,
    WeightedRoundRobin,
};

use super::scenario::Server;

/// A policy under the name that it has here.
#[derive(Clone, Copy)]
pub struct Contender {
    pub name: &'static str,
    /// One for each client.
    pub make: fn() -> Box<dyn Policy>,
    pub weights: Weights,
    /// Whether it places calls by their keys: then it is told them, and who owns which is followed.
    pub keyed: bool,
    /// Whether it goes by what servers say of themselves: then they say it.
    pub reports: bool,
}

/// What a policy is told of the servers' weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Those of the scenario.
    Given,
    /// Speed × 100: what an operator would give who knows all about the servers.
    True,
}

impl Weights {
    /// What it is told of this server's.
    pub fn of(self, server: &Server) -> u32 {
        match self {
            Self::Given => server.weight,
            Self::True => ((server.speed * 100.0).round() as u32).max(1),
        }
    }
}

/// The yardstick: it runs beside whichever are chosen.
pub const BASELINE: &str = "round_robin";

/// gRPC's 10 s are meant for servers that run for days. Here they would be a quarter of the run, and longer than the
/// part that is not counted: plain turns would be measured.
const BLACKOUT: Duration = Duration::from_secs(2);

/// All there are, the simpler ones first: of two that are as good, the first is recommended.
pub const ALL: &[Contender] = &[
    plain(BASELINE, || Box::new(RoundRobin::default())),
    plain("random", || Box::new(Random)),
    plain("pick_first", || Box::new(PickFirst::shuffled())),
    weighted("weighted_random", || Box::new(WeightedRandom)),
    weighted("weighted_round_robin", || {
        Box::new(WeightedRoundRobin::default())
    }),
    plain("least_request", || Box::new(LeastRequest::default())),
    plain("least_request_full_scan", || {
        Box::new(LeastRequest::full_scan())
    }),
    weighted("weighted_least_request", || {
        Box::new(LeastRequest::default())
    }),
    plain("peak_ewma", || Box::new(PeakEwma::default())),
    plain("adaptive", || Box::new(Adaptive::default())),
    weighted("weighted_adaptive", || Box::new(Adaptive::default())),
    plain("least_bandwidth", || Box::new(LeastBandwidth::default())),
    reported(
        "least_utilization",
        || Box::new(LeastUtilization::default()),
    ),
    reported("weighted_round_robin_reported", || {
        Box::new(WeightedRoundRobin::reported().with_blackout(BLACKOUT))
    }),
    keyed("ring_hash", || Box::new(RingHash::default())),
    keyed("maglev", || Box::new(Maglev::default())),
    keyed("rendezvous", || Box::new(Rendezvous::default())),
    keyed("rendezvous_top_2", || {
        Box::new(Rendezvous::default().with_top(2))
    }),
    keyed("ring_hash_bounded", || {
        Box::new(RingHash::default().with_bounded_load(BoundedLoad::default()))
    }),
    keyed("maglev_bounded", || {
        Box::new(Maglev::default().with_bounded_load(BoundedLoad::default()))
    }),
    keyed("rendezvous_bounded", || {
        Box::new(Rendezvous::default().with_bounded_load(BoundedLoad::default()))
    }),
];

const fn plain(name: &'static str, make: fn() -> Box<dyn Policy>) -> Contender {
    Contender {
        name,
        make,
        weights: Weights::Given,
        keyed: false,
        reports: false,
    }
}

/// With true weights.
const fn weighted(name: &'static str, make: fn() -> Box<dyn Policy>) -> Contender {
    Contender {
        weights: Weights::True,
        ..plain(name, make)
    }
}

/// With servers that report.
const fn reported(name: &'static str, make: fn() -> Box<dyn Policy>) -> Contender {
    Contender {
        reports: true,
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
        format!("{name:?} is unknown; known are {}", known.join(", "))
    })
}
