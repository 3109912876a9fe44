//! Our own channel in a fault row: over a fleet, ready before the fault, and clean after it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use equipoise::balancer::Backoff;
use equipoise::resolver::{Dns, Resolver};
use equipoise::{Builder, Channel, Connectivity, Endpoint};

use crate::rig::clean::Footprint;
use crate::rig::names::Name;

/// A limit on waiting that only a hang reaches.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What CLEAN allows from the end of the last call to nothing in flight.
const SETTLED: Duration = Duration::from_secs(1);

pub(crate) fn endpoints(addresses: &[SocketAddr]) -> Vec<Endpoint> {
    addresses.iter().copied().map(Endpoint::from).collect()
}

/// Begins a channel over a list kept by hand.
pub(crate) fn over(addresses: &[SocketAddr]) -> Builder<Channel> {
    Channel::from_endpoints(endpoints(addresses))
}

/// A channel that is ready on every one of its endpoints.
pub(crate) async fn ready(builder: Builder<Channel>) -> Channel {
    let channel = builder.connect().await.expect("the servers run");
    until("every endpoint is ready", || all_ready(&channel)).await;
    channel
}

pub(crate) fn all_ready(channel: &Channel) -> bool {
    let endpoints = channel.endpoints();
    endpoints.iter().all(|e| e.state == Connectivity::Ready)
}

/// The addresses in the channel's list, sorted.
pub(crate) fn listed(channel: &Channel) -> Vec<SocketAddr> {
    let listed = channel.endpoints().into_iter();
    let listed = listed.map(|e| e.address.to_string().parse().expect("an IP address"));
    let mut listed: Vec<SocketAddr> = listed.collect();
    listed.sort_unstable();
    listed
}

pub(crate) fn in_flight(channel: &Channel) -> u32 {
    channel.endpoints().iter().map(|e| e.in_flight).sum()
}

/// Waits for something that must come about soon; fails with its name when it does not.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never came about: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until no call waits and none is in flight.
pub(crate) async fn quiet(channel: &Channel) {
    let start = Instant::now();
    until("nothing is in flight and nobody waits", || {
        channel.waiting() == 0 && in_flight(channel) == 0
    })
    .await;
    let took = start.elapsed();
    assert!(
        took < 10 * SETTLED,
        "{took:?} until nothing was in flight, allowed {SETTLED:?}"
    );
}

/// CLEAN: nothing in flight, nobody waiting; and once the channel and then `rest` are gone, no more open
/// files and tasks than before.
pub(crate) async fn clean<T>(channel: Channel, rest: T, before: &Footprint) {
    quiet(&channel).await;
    drop(channel);
    drop(rest);
    let restored = before.restored(Duration::from_secs(5)).await;
    restored.expect("nothing is left");
}

/// Reports a time that the fault matrix bounds: a busy machine may take up to ten times as long.
#[track_caller]
pub(crate) fn report(what: &str, took: Duration, bound: Duration) {
    println!("  {what}: {took:?}, bound {bound:?}");
    crate::size::time(what, took, bound);
    assert!(took <= 10 * bound, "{what}: {took:?}, bound {bound:?}");
}

/// Begins a channel to a name, looked up every `refresh` and as often as every quarter of that when a connection
/// is lost. Its backoff is that of the fault matrix' reference settings.
pub(crate) fn named(name: &Name, refresh: Duration) -> Builder<Channel> {
    let dns = Dns::default()
        .with_lookup(name.look_up())
        .with_min_interval(refresh / 4)
        .with_refresh(refresh)
        .allow_loopback();
    by(dns)
}

/// The same by any resolver.
pub(crate) fn by(resolver: impl Resolver + 'static) -> Builder<Channel> {
    let second = Duration::from_secs(1);
    let builder = Channel::builder("dns:///greeter.test:80").expect("a name");
    let backoff = Backoff {
        base: second / 5,
        cap: 2 * second,
        ..Backoff::default()
    };
    builder
        .resolver(resolver)
        .connect_timeout(second)
        .backoff(backoff)
}
