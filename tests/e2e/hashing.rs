//! Calls with a key: the same server for the same key, and who takes over when it is away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use equipoise::policy::ring_hash::Ring;
use equipoise::policy::{HashOn, RingHash, RoundRobin};
use equipoise::{Channel, ClientIp, Connectivity, Endpoint, HashKey, Served};
use tonic::{Code, Request};
use xxhash_rust::xxh64::xxh64;

use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, Server};
use crate::{endpoints, quick, server, until};

const NAME: &str = "x-session-id";

fn servers(count: usize) -> Vec<Server> {
    (0..count).map(|n| server(&format!("s{n}"))).collect()
}

fn all(servers: &[Server]) -> Vec<Endpoint> {
    endpoints(&servers.iter().collect::<Vec<_>>())
}

async fn channel(servers: &[Server], policy: RingHash) -> Channel {
    let channel = Channel::from_endpoints(all(servers)).policy(policy);
    channel.backoff(quick()).connect().await.unwrap()
}

fn session(key: &str) -> Request<HelloRequest> {
    let mut request = Request::new(HelloRequest::default());
    request.metadata_mut().insert(NAME, key.parse().unwrap());
    request
}

/// Who served it.
async fn call(channel: &Channel, request: Request<HelloRequest>) -> SocketAddr {
    let response = GreeterClient::new(channel.clone()).say_hello(request).await;
    let response = response.unwrap();
    let served = response.extensions().get::<Served>().unwrap();
    served.endpoint().address().to_string().parse().unwrap()
}

/// Who should serve a key, and who stands in, by the ring alone.
fn order(servers: &[Server], key: &str) -> Vec<SocketAddr> {
    let input: Vec<_> = servers.iter().map(|s| (s.address.to_string(), 1)).collect();
    let ring = Ring::new(&input, 1_024, 4_096).unwrap();
    let walk = ring.walk(xxh64(key.as_bytes(), 0));
    walk.map(|index| servers[index].address).collect()
}

/// A key of this server's.
fn key_of(servers: &[Server], whose: SocketAddr) -> String {
    let mut keys = (0..).map(|n| format!("key-{n}"));
    keys.find(|key| order(servers, key)[0] == whose).unwrap()
}

fn state(channel: &Channel, address: SocketAddr) -> Connectivity {
    let endpoints = channel.endpoints();
    let one = endpoints.iter().find(|e| e.address == address.into());
    one.expect("it is listed").state
}

fn connected(channel: &Channel) -> usize {
    let endpoints = channel.endpoints();
    let idle = |e: &&equipoise::EndpointStatus| e.state != Connectivity::Idle;
    endpoints.iter().filter(idle).count()
}

#[tokio::test]
async fn a_session_stays_where_the_ring_says() {
    let servers = servers(5);
    let channel = channel(&servers, RingHash::on_metadata(NAME)).await;
    let mut used = BTreeSet::new();
    for round in 0..3 {
        for n in 0..40 {
            let key = format!("session-{n}");
            let served = call(&channel, session(&key)).await;
            assert_eq!(served, order(&servers, &key)[0], "{key}, round {round}");
            used.insert(served);
        }
    }
    assert_eq!(used.len(), 5, "forty sessions are spread over all");
}

#[tokio::test]
async fn a_key_of_the_calls_own_comes_first() {
    let servers = servers(4);
    let by_client = HashOn::metadata(NAME).terminal().and(HashOn::client_ip());
    let channel = channel(&servers, RingHash::on(by_client)).await;
    for n in 0..20 {
        let own = format!("own-{n}");
        let mut request = session("session");
        request.extensions_mut().insert(HashKey::bytes(&own));
        assert_eq!(call(&channel, request).await, order(&servers, &own)[0]);

        let client = ClientIp([192, 0, 2, n].into());
        let mut request = Request::new(HelloRequest::default());
        request.extensions_mut().insert(client);
        let expected = order(&servers, &client.0.to_string())[0];
        assert_eq!(call(&channel, request).await, expected);

        let mut request = session("session");
        request.extensions_mut().insert(client);
        let expected = order(&servers, "session")[0];
        assert_eq!(call(&channel, request).await, expected, "a terminal part");
    }
}

/// Row G15: the next on the ring stands in, no call fails, and the owner has its keys again as soon as it is back,
/// without a call that asks for it.
#[tokio::test]
async fn the_next_on_the_ring_stands_in_until_the_owner_is_back() {
    let mut servers = servers(4);
    let channel = channel(&servers, RingHash::on_metadata(NAME)).await;
    let order = order(&servers, "cart");
    assert_eq!(call(&channel, session("cart")).await, order[0]);

    let at = servers.iter().position(|s| s.address == order[0]).unwrap();
    servers.remove(at).abort();
    until("the loss is known", || {
        state(&channel, order[0]) != Connectivity::Ready
    })
    .await;
    for _ in 0..20 {
        assert_eq!(call(&channel, session("cart")).await, order[1]);
    }
    assert_eq!(state(&channel, order[0]), Connectivity::TransientFailure);

    let _back = Server::start(Options {
        listen: order[0],
        ..Options::new("back")
    });
    until("it is back", || {
        state(&channel, order[0]) == Connectivity::Ready
    })
    .await;
    until_served(&channel, "cart", order[0]).await;
    for _ in 0..20 {
        assert_eq!(call(&channel, session("cart")).await, order[0]);
    }
}

/// Affinity is worth no wait of unknown length.
#[tokio::test]
async fn the_next_on_the_ring_takes_what_a_full_owner_cannot() {
    let servers = [(); 3].map(|()| {
        Server::start(Options {
            max_concurrent_streams: Some(1),
            ..Options::new("narrow")
        })
    });
    let channel = channel(&servers, RingHash::on_metadata(NAME)).await;
    let order = order(&servers, "cart");
    assert_eq!(call(&channel, session("cart")).await, order[0]);
    let mut holders = Vec::new();
    for (n, &expected) in order.iter().enumerate() {
        let mut client = GreeterClient::new(channel.clone());
        let mut long = session("cart");
        long.get_mut().work_us = 20_000_000;
        holders.push(tokio::spawn(async move { client.say_hello(long).await }));
        until("it is taken by the first with room", || {
            let endpoints = channel.endpoints();
            let one = endpoints.iter().find(|e| e.address == expected.into());
            crate::in_flight(&channel) as usize == n + 1 && one.is_some_and(|e| e.in_flight == 1)
        })
        .await;
    }
    holders.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Nobody can be dialled beside it: then the calls of a full owner wait for it, and the end of each is the beginning
/// of the next.
#[tokio::test]
async fn calls_wait_for_a_full_owner_where_nobody_else_can_be_reached() {
    let owner = Server::start(Options {
        max_concurrent_streams: Some(1),
        ..Options::new("narrow")
    });
    let hole = crate::rig::holes::black_hole();
    let channel = Channel::from_endpoints([owner.address, hole.address].map(Endpoint::from))
        .policy(RingHash::on_metadata(NAME))
        .build()
        .unwrap();
    let list = [owner.address, hole.address].map(|a| (a.to_string(), 1));
    let ring = Ring::new(&list, 1_024, 4_096).unwrap();
    let mine = |n: &u64| ring.owner(xxh64(n.to_string().as_bytes(), 0)) == 0;
    let key = (0..).find(mine).unwrap().to_string();
    assert_eq!(call(&channel, session(&key)).await, owner.address);
    let start = std::time::Instant::now();
    let calls: Vec<_> = (0..60)
        .map(|_| {
            let (channel, request) = (channel.clone(), session(&key));
            tokio::spawn(async move { call(&channel, request).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), owner.address);
    }
    // One that is not told of the room looks 50 ms later: three seconds for all.
    let took = start.elapsed();
    assert!(took < crate::Duration::from_millis(1_500), "{took:?}");
}

/// A state is told a moment before the picker that goes by it.
async fn until_served(channel: &Channel, key: &str, by: SocketAddr) {
    let end = std::time::Instant::now() + crate::PATIENCE;
    while call(channel, session(key)).await != by {
        assert!(std::time::Instant::now() < end, "{key} never came to {by}");
    }
}

#[tokio::test]
async fn only_those_are_dialled_that_a_call_needs() {
    let servers = servers(10);
    let channel = channel(&servers, RingHash::on_metadata(NAME)).await;
    let first = servers.iter().map(|s| s.address.to_string()).min().unwrap();
    assert_eq!(connected(&channel), 1, "one, so that the channel is READY");
    assert_eq!(
        state(&channel, first.parse().unwrap()),
        Connectivity::Ready,
        "the first by hash key"
    );
    let other = servers.iter().map(|s| s.address.to_string()).max().unwrap();
    let other: SocketAddr = other.parse().unwrap();
    let key = key_of(&servers, other);
    for _ in 0..20 {
        assert_eq!(call(&channel, session(&key)).await, other);
    }
    assert_eq!(connected(&channel), 2);
}

/// A server that closes its connections now and then is not redialled for nobody.
#[tokio::test]
async fn a_lost_connection_is_made_anew_by_the_next_call() {
    let mut servers = servers(3);
    servers.sort_by_key(|s| s.address.to_string());
    let address = servers.pop().unwrap().address;
    servers.push(Server::start(Options {
        listen: address,
        max_connection_age: Some(std::time::Duration::from_millis(400)),
        ..Options::new("restless")
    }));
    let channel = channel(&servers, RingHash::on_metadata(NAME)).await;
    let key = key_of(&servers, address);
    for _ in 0..2 {
        assert_eq!(call(&channel, session(&key)).await, address);
        until("it is let go", || {
            state(&channel, address) == Connectivity::Idle
        })
        .await;
    }
    // Others go on, and the calls of others are no reason.
    let other = key_of(&servers, servers[0].address);
    for _ in 0..20 {
        assert_eq!(call(&channel, session(&other)).await, servers[0].address);
    }
    assert_eq!(state(&channel, address), Connectivity::Idle);
}

#[tokio::test]
async fn a_service_may_be_hashed_beside_a_policy_for_the_rest() {
    let servers = servers(3);
    let channel = Channel::from_endpoints(all(&servers))
        .service_policy(
            "equipoise.demo.v1.Greeter",
            RingHash::on(HashOn::cookie("cart")),
        )
        .method_policy(
            "/equipoise.demo.v1.Greeter/Countdown",
            RoundRobin::default(),
        )
        .connect()
        .await
        .unwrap();
    until("everyone is connected, as the others wish", || {
        connected(&channel) == 3 && servers.iter().all(|s| ready(&channel, s))
    })
    .await;
    let mut counts: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    let mut counted = 0;
    while counts.len() < 3 {
        let mut client = GreeterClient::new(channel.clone());
        let response = client.countdown(CountdownRequest::default()).await.unwrap();
        let served = response.extensions().get::<Served>().unwrap();
        let address = served.endpoint().address().to_string().parse().unwrap();
        *counts.entry(address).or_default() += 1;
        counted += 1;
        assert!(counted < 10_000, "everyone in turn: {counts:?}");
    }
    for n in 0..30 {
        let key = format!("cart-{}", n % 10);
        let mut request = Request::new(HelloRequest::default());
        let cookie = format!("theme=dark; cart={key}").parse().unwrap();
        request.metadata_mut().insert("cookie", cookie);
        assert_eq!(call(&channel, request).await, order(&servers, &key)[0]);
    }
}

fn ready(channel: &Channel, server: &Server) -> bool {
    state(channel, server.address) == Connectivity::Ready
}

/// Which keys may move when a server leaves is the ring's to say: those of the server that left, and a few whose
/// owners' shares of the ring changed. Nobody else's.
#[tokio::test]
async fn sessions_of_those_who_stay_stay() {
    let mut servers = servers(6);
    let channel = channel(&servers, RingHash::on_metadata(NAME)).await;
    let keys: Vec<String> = (0..100).map(|n| format!("session-{n}")).collect();
    let mut before = Vec::new();
    for key in &keys {
        before.push(call(&channel, session(key)).await);
    }
    let left = servers.pop().unwrap().address;
    channel.set_endpoints(all(&servers)).unwrap();
    until("it has left", || channel.endpoints().len() == 5).await;
    let mut moved = 0;
    for (key, was) in keys.iter().zip(before) {
        let is = call(&channel, session(key)).await;
        assert_eq!(is, order(&servers, key)[0], "{key}");
        moved += u32::from(is != was && was != left);
    }
    assert!(moved < 30, "{moved} of 100 moved between two that stayed");
}

#[tokio::test]
async fn without_a_key_calls_are_spread_by_chance() {
    let servers = servers(3);
    let channel = channel(&servers, RingHash::on_metadata(NAME)).await;
    let mut served: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    let mut calls = 0;
    // Nobody has to wait: whoever is not connected yet is, on the way.
    while connected(&channel) < 3 || !servers.iter().all(|s| ready(&channel, s)) {
        call(&channel, Request::new(HelloRequest::default())).await;
        calls += 1;
        assert!(calls < 100_000, "everyone is connected in the end");
    }
    for _ in 0..600 {
        let address = call(&channel, Request::new(HelloRequest::default())).await;
        *served.entry(address).or_default() += 1;
    }
    assert!(
        served.len() == 3 && served.values().all(|&calls| calls > 100),
        "{served:?}"
    );
}

#[tokio::test]
async fn with_everyone_away_calls_fail_and_the_channel_recovers_by_itself() {
    let servers = servers(2);
    let channel = channel(&servers, RingHash::on_metadata(NAME)).await;
    let addresses: Vec<SocketAddr> = servers.iter().map(|s| s.address).collect();
    drop(servers);
    until("all have failed", || {
        channel.state() == Connectivity::TransientFailure
    })
    .await;
    let mut client = GreeterClient::new(channel.clone());
    let status = client.say_hello(session("a")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let _back = Server::start(Options {
        listen: addresses[1],
        ..Options::new("back")
    });
    until("one is back", || channel.state() == Connectivity::Ready).await;
    for n in 0..10 {
        let key = format!("session-{n}");
        assert_eq!(call(&channel, session(&key)).await, addresses[1]);
    }
}
