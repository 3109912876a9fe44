//! What is measured without sockets: every policy, and fleets for it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use equipoise::load::{Cells, Load, median};
use equipoise::policy::{
    Adaptive, BoundedLoad, LeastBandwidth, LeastRequest, LeastUtilization, Maglev, Member,
    PeakEwma, PickFirst, Policy, Random, Rendezvous, RingHash, RoundRobin, WeightedRandom,
    WeightedRoundRobin,
};
use equipoise::{Completion, Connectivity, Endpoint, EndpointId, Outcome, StatusCode, Timestamp};

/// A policy, what it is called on the line for programs and in tables, and how it is made.
#[derive(Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) policy: fn() -> Box<dyn Policy>,
}

const fn subject(
    key: &'static str,
    name: &'static str,
    policy: fn() -> Box<dyn Policy>,
) -> Subject {
    Subject { key, name, policy }
}

/// One line per policy.
#[rustfmt::skip]
pub(crate) const SUBJECTS: &[Subject] = &[
    subject("round_robin", "round robin", || Box::new(RoundRobin::default())),
    subject("random", "random", || Box::new(Random)),
    subject("p2c", "least request, 2 choices", || Box::new(LeastRequest::default())),
    subject("least_request_all", "least request, all", || Box::new(LeastRequest::full_scan())),
    subject("adaptive", "adaptive", || Box::new(Adaptive::default())),
    subject("ring_hash", "ring hash, 4,096 entries", || Box::new(RingHash::default().with_sizes(4_096, 4_096))),
    subject("weighted_random", "weighted random", || Box::new(WeightedRandom)),
    subject("weighted_round_robin", "weighted round robin", || Box::new(WeightedRoundRobin::default())),
    subject("peak_ewma", "peak EWMA", || Box::new(PeakEwma::default())),
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

/// `n` ready endpoints of weight 1 that have all answered before.
pub(crate) fn fleet(policy: &dyn Policy, n: usize) -> Vec<Member> {
    let mut cells = Cells::new(policy.scoring());
    let (start, now) = (Timestamp::from_millis(1), Timestamp::from_millis(2));
    let member = |slot: usize| {
        let load = Load::new(cells.cell(slot));
        load.join(median([]), start);
        load.begin();
        load.end(&answer(0), start, now);
        Member {
            id: EndpointId::new(slot as u32, 1),
            state: Connectivity::Ready,
            weight: 1,
            place: Some(slot),
            endpoint: Arc::new(endpoint(slot)),
            load: Arc::new(load),
        }
    };
    (0..n).map(member).collect()
}
