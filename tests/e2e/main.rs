//! The channel over real sockets: generated tonic clients, real tonic servers, and what a user expects.

#[path = "../rig/mod.rs"]
mod rig;

mod breaking;
mod building;
mod calls;
mod cancelling;
mod connections;
mod deadlines;
mod hashing;
mod health;
mod idling;
mod judging;
mod lifecycle;
mod observing;
mod readings;
mod repeating;
mod resolving;
mod routing;
mod steering;
mod switching;
mod tls;
mod tonic_bugs;
mod tonic_connector;
mod wide;

use std::net::SocketAddr;
use std::time::Duration;

use equipoise::{Channel, Connectivity, Endpoint};
use rig::greeter::proto::CountdownRequest;
use rig::greeter::proto::greeter_client::GreeterClient;
use rig::greeter::{Options, Server};

/// A limit on waiting that only a hang reaches.
const PATIENCE: Duration = Duration::from_secs(20);

fn server(name: &str) -> Server {
    Server::start(Options::new(name))
}

fn endpoints(servers: &[&Server]) -> Vec<Endpoint> {
    servers.iter().map(|s| Endpoint::from(s.address)).collect()
}

/// A channel that is ready on every one of `servers`.
async fn ready(servers: &[&Server]) -> Channel {
    let channel = Channel::from_endpoints(endpoints(servers))
        .connect()
        .await
        .expect("the servers run");
    until("every endpoint is ready", || {
        channel
            .endpoints()
            .iter()
            .all(|e| e.state == Connectivity::Ready)
    })
    .await;
    channel
}

async fn client(servers: &[&Server]) -> (Channel, GreeterClient<Channel>) {
    let channel = ready(servers).await;
    (channel.clone(), GreeterClient::new(channel))
}

/// Waits for something that must come about soon; fails with its name when it does not.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < end, "never came about: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until nothing is in flight on any endpoint: with it every slot and guard is back.
async fn quiet(channel: &Channel) {
    until("in flight is back to zero", || {
        channel.waiting() == 0 && channel.endpoints().iter().all(|e| e.in_flight == 0)
    })
    .await;
}

fn in_flight(channel: &Channel) -> u32 {
    channel.endpoints().iter().map(|e| e.in_flight).sum()
}

fn target(addresses: &[SocketAddr]) -> String {
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    format!("static:{}", list.join(","))
}

/// Pauses short enough for a test to wait them out.
fn quick() -> equipoise::balancer::Backoff {
    equipoise::balancer::Backoff {
        base: Duration::from_millis(20),
        cap: Duration::from_millis(100),
        ..equipoise::balancer::Backoff::default()
    }
}

/// A resolver that never comes to an answer.
#[derive(Debug)]
struct Undecided;

impl equipoise::resolver::Resolver for Undecided {
    fn watch(
        &self,
        _: &equipoise::Target,
        _: equipoise::resolver::Hints,
    ) -> futures_util::stream::BoxStream<
        'static,
        Result<equipoise::resolver::Update, equipoise::ResolveError>,
    > {
        Box::pin(futures_util::stream::pending())
    }
}

/// A stream that goes on until somebody ends it, a message each millisecond.
fn endless() -> CountdownRequest {
    CountdownRequest {
        count: u32::MAX,
        pause_us: 1_000,
        ..CountdownRequest::default()
    }
}
