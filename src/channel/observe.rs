//! What an operator can see of one endpoint.

use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use crate::balancer::Standing;
use crate::endpoint::{Address, Connectivity, Endpoint};
use crate::report::{Health, StatusCode};
use crate::transport::Traffic;

use super::snapshot::Seat;
use crate::transport::Connection;

/// One endpoint as it stands, copied out at one moment; see [`Channel::endpoints`](crate::Channel::endpoints).
///
/// The figures are read one after another while calls go on, so they may disagree by the calls of that
/// microsecond.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointStatus {
    /// The endpoint as the resolver gave it.
    pub endpoint: Arc<Endpoint>,
    /// Its first address: what it is called in logs.
    pub address: Address,
    /// Its effective state.
    pub state: Connectivity,
    /// How long it has been in that state.
    pub since: Duration,
    /// Why it is not ready, as long as it is not: it is ejected, its server does not serve, its last attempt to connect
    /// failed, or its last connection ended.
    pub why: Option<String>,
    /// Whether it is ejected for failing, or on probation after it was.
    pub standing: Standing,
    /// What its health check last found; [`Unknown`](Health::Unknown) where there is none.
    pub health: Health,
    /// The last connection error there was, whatever the state is now.
    pub last_error: Option<String>,
    /// Calls under way, to the end of their streams.
    pub in_flight: u32,
    /// Calls it was picked for, those under way included.
    pub picks: u64,
    /// How the calls on it ended, by gRPC code; only codes that occurred.
    pub outcomes: Vec<(Code, u64)>,
    /// Calls whose caller went away first.
    pub cancelled: u64,
    /// Calls that never reached it and went elsewhere.
    pub refused: u64,
    /// Latency to the first message, moving average; none before the first answer.
    pub latency: Option<Duration>,
    /// Median of that latency since the endpoint joined, to within an eighth.
    pub latency_p50: Option<Duration>,
    /// Its 90th percentile.
    pub latency_p90: Option<Duration>,
    /// Its 99th percentile.
    pub latency_p99: Option<Duration>,
    /// Bytes written to it and read from it since it joined, on all its connections.
    pub traffic: Traffic,
    /// Connections that take calls.
    pub connections: usize,
}

impl EndpointStatus {
    pub(super) fn of<N: Connection>(seat: &Seat<N>, now: crate::Timestamp) -> Self {
        let notes = seat.notes();
        let outcomes = seat.loads.outcomes();
        let latency = seat.loads.latency();
        let endpoint = seat.endpoint();
        Self {
            address: endpoint.address().clone(),
            endpoint,
            state: notes.state,
            since: now.since(notes.since),
            why: match (notes.state, notes.standing, &notes.health) {
                (Connectivity::Ready, ..) => None,
                (_, Standing::Ejected { until }, _) => Some(format!(
                    "ejected for {:?}, since its calls fail",
                    until.since(now)
                )),
                (_, _, Health::NotServing(why)) if !seat.connections().is_empty() => {
                    Some(why.to_string())
                }
                _ => notes.last_error.as_ref().map(ToString::to_string),
            },
            standing: notes.standing,
            health: notes.health.clone(),
            last_error: notes.last_error.as_ref().map(ToString::to_string),
            in_flight: seat.loads.in_flight(),
            picks: seat.loads.picks(),
            outcomes: (0..StatusCode::COUNT as i32)
                .map(|n| {
                    (
                        Code::from_i32(n),
                        outcomes.answered(StatusCode::new(n as u8)),
                    )
                })
                .filter(|&(_, count)| count > 0)
                .collect(),
            cancelled: outcomes.cancelled(),
            refused: outcomes.refused(),
            latency: latency.ewma(),
            latency_p50: latency.quantile(0.5),
            latency_p90: latency.quantile(0.9),
            latency_p99: latency.quantile(0.99),
            traffic: notes.traffic(),
            connections: seat.connections().len(),
        }
    }

    /// How many calls ended with this code.
    pub fn outcome(&self, code: Code) -> u64 {
        self.outcomes
            .iter()
            .find(|(c, _)| *c == code)
            .map_or(0, |&(_, count)| count)
    }
}
