//! What users have without this crate: the negative controls of the tests and the lanes of the benches.

use std::net::SocketAddr;
use std::time::Duration;

use tonic::body::Body;
use tonic::transport::Channel;
use tower::balance::p2c::Balance;
use tower::buffer::Buffer;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma, PendingRequests};

use super::greeter::tonic_endpoint;
use super::load::Client;

/// tonic's own balancer.
pub fn tonic_balance(addresses: &[SocketAddr]) -> Channel {
    Channel::balance_list(addresses.iter().copied().map(tonic_endpoint))
}

/// tower's P2C over tonic channels, by calls without a response head.
pub fn tower_pending(addresses: &[SocketAddr]) -> impl Client + Sync + use<> {
    let services = addresses.iter().map(|&address| {
        PendingRequests::new(
            tonic_endpoint(address).connect_lazy(),
            CompleteOnResponse::default(),
        )
    });
    let services = ServiceList::new::<http::Request<Body>>(services.collect::<Vec<_>>());
    Buffer::new(Balance::new(services), 1_024)
}

/// tower's P2C over tonic channels, by peak EWMA with the values that linkerd uses: a first guess of 1 s
/// and a decay of 10 s.
pub fn tower_peak_ewma(addresses: &[SocketAddr]) -> impl Client + Sync + use<> {
    let (guess, decay) = (Duration::from_secs(1), Duration::from_secs(10));
    let services = addresses.iter().map(|&address| {
        let channel = tonic_endpoint(address).connect_lazy();
        PeakEwma::new(
            channel,
            guess,
            decay.as_nanos() as f64,
            CompleteOnResponse::default(),
        )
    });
    let services = ServiceList::new::<http::Request<Body>>(services.collect::<Vec<_>>());
    Buffer::new(Balance::new(services), 1_024)
}
