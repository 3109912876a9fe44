//! N15: a name with IPv6 and IPv4 addresses, where IPv6 leads nowhere.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use equipoise::policy::{PickFirst, RoundRobin};
use equipoise::resolver::Dns;
use equipoise::{Address, Builder, Channel, Connectivity, Endpoint};
use tokio::net::TcpStream;

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::holes::{self, BlackHole};
use crate::rig::load::Load;
use crate::rig::names::Name;
use crate::size;
use crate::{Fleet, balanced, clean, reference, reference_over, report, status, until};

const WORK: Duration = Duration::from_millis(1);

/// What IPv6 may add to a first call.
const BOUND: Duration = Duration::from_millis(300);

/// After so long without a call a channel lets its connections go, and the next call makes them anew.
const IDLE: Duration = Duration::from_millis(200);

/// What two holes take that are dialled before IPv4, a quarter of a second each.
const TWO_HOLES: Duration = Duration::from_millis(500);

/// Three servers on IPv4, and as many addresses of IPv6 that swallow connections.
fn both_families() -> (Fleet, [BlackHole; 3]) {
    let holes = [
        holes::black_hole_v6(),
        holes::black_hole_v6(),
        holes::black_hole_v6(),
    ];
    (Fleet::start(WORK), holes)
}

/// Of the holes first, as the system's resolver sorts them where it knows a route for IPv6.
fn ipv6_first(fleet: &Fleet, holes: &[BlackHole]) -> Vec<SocketAddr> {
    let holes = holes.iter().map(|hole| hole.address);
    holes.chain(fleet.addresses()).collect()
}

async fn one_call(channel: &Channel) -> Duration {
    let begin = Instant::now();
    let mut client = GreeterClient::new(channel.clone());
    let answer = client.say_hello(HelloRequest::default()).await;
    answer.expect("IPv4 can be reached");
    begin.elapsed()
}

/// The first call on a channel, and the first after each time that all connections were let go: what the holes add to
/// what `plain`, without them, takes. Then the load, unnoticed.
async fn ipv4_wins(with: Builder<Channel>, plain: Builder<Channel>, fleet: &Fleet) -> Channel {
    let plain = plain.build().expect("in range");
    let usual = one_call(&plain).await;
    plain.close().await;
    let channel = with.idle_timeout(IDLE).build().expect("in range");
    let added = |took: Duration, what| {
        let added = took.saturating_sub(usual);
        report(what, added, BOUND);
        assert!(added < TWO_HOLES, "{what}: {added:?}");
    };
    added(one_call(&channel).await, "added to the first call");
    let mut slowest = Duration::ZERO;
    for _ in 0..size::of(2, 10) {
        until("no connection is left", || {
            channel.state() == Connectivity::Idle
        })
        .await;
        slowest = slowest.max(one_call(&channel).await);
    }
    added(slowest, "added by a later connect");
    let calls = Load::of(size::calls(1_000)).run(&channel).await;
    let mut verdict = fleet.ledger.audit(&calls);
    // The calls above have no number.
    verdict.unasked.clear();
    println!("{verdict}");
    verdict.assert_unnoticed();
    channel
}

/// N15, each address an endpoint of its own, and one connection wanted: families take turns, a quarter of a second apart.
#[test]
fn n15_one_connection_and_ipv6_first() {
    alone(async {
        let before = Footprint::take();
        let (fleet, holes) = both_families();
        let pick_first = |list: &[SocketAddr]| reference(list).policy(PickFirst::default());
        let with = pick_first(&ipv6_first(&fleet, &holes));
        let channel = ipv4_wins(with, pick_first(&fleet.addresses()), &fleet).await;
        // The first of the other family is second, whatever the list says.
        let serves = status(&channel, fleet.addresses()[0]);
        assert_eq!(serves.state, Connectivity::Ready, "{serves:?}");
        drop((fleet, holes));
        clean(channel, &before).await;
    });
}

/// N15, servers with an address of each family, and a connection to each server.
#[test]
fn n15_servers_with_an_address_of_each_family() {
    alone(async {
        let before = Footprint::take();
        let (fleet, holes) = both_families();
        let servers = holes.iter().zip(fleet.addresses()).map(|(hole, server)| {
            let both = [hole.address, server].map(Address::from);
            Endpoint::with_addresses(both).expect("two addresses")
        });
        let with = reference_over(servers).policy(RoundRobin::default());
        let plain = reference(&fleet.addresses()).policy(RoundRobin::default());
        let channel = ipv4_wins(with, plain, &fleet).await;
        until("all three are ready", || crate::is_ready(&channel)).await;
        let picks = channel.endpoints().into_iter().map(|e| e.picks);
        assert!(picks.min() > Some(0), "{:?}", channel.endpoints());
        drop((fleet, holes));
        clean(channel, &before).await;
    });
}

/// N15, a name with addresses of both families, and whatever can be reached of them is used.
#[test]
fn n15_a_name_with_addresses_of_both_families() {
    alone(async {
        let before = Footprint::take();
        let (fleet, holes) = both_families();
        let named = |addresses: &[SocketAddr]| {
            let dns = Dns::default().with_lookup(Name::of(addresses).look_up());
            balanced::by(dns.allow_loopback())
        };
        let with = named(&ipv6_first(&fleet, &holes));
        let channel = ipv4_wins(with, named(&fleet.addresses()), &fleet).await;
        for hole in &holes {
            let swallowed = status(&channel, hole.address);
            assert_eq!(swallowed.picks, 0, "{swallowed:?}");
        }
        drop((fleet, holes));
        clean(channel, &before).await;
    });
}

/// N15, the control: who takes the addresses as they come is still at IPv6 when we have long been served.
#[test]
fn n15_control_one_address_after_the_other_ends_in_ipv6() {
    alone(async {
        let (fleet, holes) = both_families();
        let addresses = ipv6_first(&fleet, &holes);
        // tokio's own way with a list.
        let connect = TcpStream::connect(&addresses[..]);
        let ended = tokio::time::timeout(5 * BOUND, connect).await;
        assert!(ended.is_err(), "IPv6 leads somewhere: {ended:?}");
        // The others would have answered.
        let others = TcpStream::connect(&addresses[3..]).await;
        others.expect("they listen");
    });
}
