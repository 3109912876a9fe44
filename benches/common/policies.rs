//! What is measured without sockets: every policy, and fleets for it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use equipoise::load::{Cells, Load, median};
use equipoise::policy::{
    Adaptive, BoundedLoad, LeastBandwidth, LeastLoad, LeastRequest, LeastUtilization, Maglev,
    Member, PeakEwma, PickFirst, Policy, Random, Rendezvous, RingHash, RoundRobin, WeightedRandom,
    WeightedRoundRobin,
};
use equipoise::{
    Completion, Connectivity, Endpoint, EndpointId, LoadReport, Outcome, StatusCode, Timestamp,
};

/// A policy, what it is called on the line for programs and in tables, how it is made, and among whom.
#[derive(Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) policy: fn() -> Box<dyn Policy>,
    /// Of the first endpoint, the second and so on, and then from the start.
    weights: &'static [u32],
}

const fn subject(
    key: &'static str,
    name: &'static str,
    policy: fn() -> Box<dyn Policy>,
) -> Subject {
    Subject {
        key,
        name,
        policy,
        weights: &[1],
    }
}

impl Subject {
    /// The same among endpoints whose weights differ.
    const fn weighted(self) -> Self {
        Self {
            weights: &[1, 2, 5, 10],
            ..self
        }
    }
}

/// One line per policy.
#[rustfmt::skip]
pub(crate) const SUBJECTS: &[Subject] = &[
    subject("round_robin", "round robin", || Box::new(RoundRobin::default())),
    subject("random", "random", || Box::new(Random)),
    subject("p2c", "least request, 2 choices", || Box::new(LeastRequest::default())),
    subject("p2c_weighted", "least request, weighted", || Box::new(LeastRequest::default())).weighted(),
    subject("least_request_all", "least request, all", || Box::new(LeastRequest::full_scan())),
    subject("adaptive", "adaptive", || Box::new(Adaptive::default())),
    subject("ring_hash", "ring hash, 4,096 entries", || Box::new(RingHash::default().with_sizes(4_096, 4_096))),
    subject("weighted_random", "weighted random", || Box::new(WeightedRandom)).weighted(),
    subject("weighted_round_robin", "weighted round robin", || Box::new(WeightedRoundRobin::default())).weighted(),
    subject("peak_ewma", "peak EWMA", || Box::new(PeakEwma::default())),
    subject("least_load", "least load", || Box::new(LeastLoad::by(|load, _| load.in_flight().into()))),
    subject("least_bandwidth", "least bandwidth", || Box::new(LeastBandwidth::default())),
    subject("least_utilization", "least utilization", || Box::new(LeastUtilization::default())),
    subject("maglev", "Maglev", || Box::new(Maglev::default())),
    subject("rendezvous", "rendezvous", || Box::new(Rendezvous::default())),
    subject("ring_hash_bounded", "ring hash, bounded", || Box::new(RingHash::default().with_bounded_load(BoundedLoad::default()))),
    subject("pick_first", "pick first", || Box::new(PickFirst::default())),
];

/// An address of its own for each of four thousand million.
pub(crate) fn endpoint(number: usize) -> Endpoint {
    let ip = Ipv4Addr::from(0x0a00_0000 + number as u32);
    Endpoint::from(SocketAddr::from((ip, 80)))
}

/// A good answer after about a millisecond.
pub(crate) fn answer(random: u64) -> Completion {
    Completion {
        outcome: Outcome::Answered(StatusCode::OK),
        latency: Duration::from_nanos(1_000_000 + (random & 0x3_ffff)),
    }
}

/// Later than any pick: in a channel readings come in time, and only those that are overdue fade, which takes longer.
const READ: Timestamp = Timestamp::from_secs(60);

/// `n` ready endpoints for a policy, all of which have answered before. Each has said how full it is, and has had its
/// bytes counted.
pub(crate) fn fleet(subject: &Subject, policy: &dyn Policy, n: usize) -> Vec<Member> {
    let mut cells = Cells::new(policy.scoring());
    let (start, now) = (Timestamp::from_millis(1), Timestamp::from_millis(2));
    let member = |slot: usize| {
        let load = Load::new(cells.cell(slot));
        load.join(median([]), start);
        load.begin();
        load.end(&answer(0), start, now);
        let unlike = (slot % 7 + 1) as u32;
        let report = LoadReport {
            cpu_utilization: 0.1 * f64::from(unlike),
            rps: 100.0,
            ..LoadReport::default()
        };
        load.report(&report, READ);
        load.measure(0, now);
        load.measure(100_000 * u64::from(unlike), READ);
        let weight = subject.weights[slot % subject.weights.len()];
        let endpoint = endpoint(slot).with_weight(weight);
        Member {
            id: EndpointId::new(slot as u32, 1),
            state: Connectivity::Ready,
            weight,
            place: Some(slot),
            endpoint: Arc::new(endpoint.expect("no weight here is 0")),
            load: Arc::new(load),
        }
    };
    (0..n).map(member).collect()
}
