//! Policies that go by figures: bytes on the connections, and what servers say of themselves.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use equipoise::load::{Load, Scoring};
use equipoise::policy::{Decision, LeastBandwidth, LeastUtilization, Member, Policy, RoundRobin};
use equipoise::rng::Rng;
use equipoise::transport::{Connector, TonicConnector};
use equipoise::{Address, BalanceLayer, Channel, Endpoint, LoadReport, Override, Timestamp};
use futures_util::{StreamExt, stream};
use tokio::task::JoinHandle;
use tonic::Request;
use tower_layer::Layer;

use crate::rig::greeter::Server;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::{PATIENCE, endpoints, quiet, server, until};

/// A channel all of whose endpoints have been picked: one that shows READY may not be for another moment.
async fn balanced(servers: &[&Server], policy: impl Policy + Clone + Sync + 'static) -> Channel {
    let channel = Channel::from_endpoints(endpoints(servers))
        .policy(policy)
        .connect()
        .await
        .expect("the servers run");
    let end = Instant::now() + PATIENCE;
    while channel.endpoints().iter().any(|e| e.picks == 0) {
        assert!(
            Instant::now() < end,
            "never picked: {:?}",
            channel.endpoints()
        );
        share(&channel, 10, "").await;
    }
    channel
}

/// How many of `count` calls, one after the other, the server of that name answered.
async fn share(channel: &Channel, count: u32, name: &str) -> u32 {
    let mut client = GreeterClient::new(channel.clone());
    let mut there = 0;
    for _ in 0..count {
        let reply = client.say_hello(HelloRequest::default()).await.unwrap();
        there += u32::from(reply.into_inner().server == name);
    }
    there
}

/// Calls in batches of 60 until one has so many on the server of that name.
async fn until_share(channel: &Channel, name: &str, (least, most): (u32, u32)) {
    let end = Instant::now() + PATIENCE;
    loop {
        let there = share(channel, 60, name).await;
        if (least..=most).contains(&there) {
            return;
        }
        assert!(Instant::now() < end, "{there} of 60 calls went to {name}");
    }
}

/// A stream from that server: 256 KiB every 5 ms, or nothing for as long as the test runs.
async fn stream_of(channel: &Channel, from: SocketAddr, idle: bool) -> JoinHandle<()> {
    let mut client = GreeterClient::new(channel.clone());
    let mut request = Request::new(CountdownRequest {
        count: u32::MAX,
        pause_us: if idle { 3_600_000_000 } else { 5_000 },
        payload_bytes: 256 << 10,
        ..CountdownRequest::default()
    });
    request.extensions_mut().insert(Override::strict(from));
    let mut messages = client.countdown(request).await.unwrap().into_inner();
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            message.unwrap();
        }
    })
}

#[tokio::test]
async fn calls_keep_away_from_a_big_stream_by_bandwidth_and_come_back() {
    let (a, b, c) = (server("a"), server("b"), server("c"));
    let policy = LeastBandwidth::default()
        .with_window(Duration::from_secs(1))
        .unwrap();
    let channel = balanced(&[&a, &b, &c], policy).await;
    // By calls in flight, all would go to b.
    let mut idle = Vec::new();
    for server in [&a, &c, &a, &c] {
        idle.push(stream_of(&channel, server.address, true).await);
    }
    let big = stream_of(&channel, b.address, false).await;
    until_share(&channel, "b", (0, 1)).await;
    assert!(share(&channel, 60, "b").await <= 1, "and stay away");
    big.abort();
    until_share(&channel, "b", (10, 60)).await;
    idle.iter().for_each(JoinHandle::abort);
    quiet(&channel).await;

    let control = balanced(&[&a, &b, &c], RoundRobin::default()).await;
    let big = stream_of(&control, b.address, false).await;
    until("the stream is well under way", || {
        let seen = control.endpoints();
        seen.iter().any(|e| e.traffic.received > 4 << 20)
    })
    .await;
    assert_eq!(share(&control, 60, "b").await, 20, "control: in turn");
    big.abort();
    quiet(&control).await;
}

#[tokio::test]
async fn calls_go_where_a_report_says_there_is_room() {
    let (a, b, c) = (server("a"), server("b"), server("c"));
    let policy = LeastUtilization::default().with_choices(3).unwrap();
    let channel = balanced(&[&a, &b, &c], policy).await;
    let report = |server: &Server, cpu_utilization: f64| {
        let report = LoadReport {
            cpu_utilization,
            ..LoadReport::default()
        };
        channel.report_load(&Address::from(server.address), &report)
    };
    assert!(report(&a, 0.8) && report(&b, 0.7) && report(&c, 0.1));
    until_share(&channel, "c", (60, 60)).await;
    quiet(&channel).await;
    assert!(report(&c, 0.95) && report(&a, 0.05));
    assert_eq!(share(&channel, 60, "a").await, 60, "from the next call on");
    let nonsense = [f64::NAN, f64::INFINITY, -1.0, 0.0];
    assert!(nonsense.into_iter().all(|value| report(&a, value)));
    assert_eq!(
        share(&channel, 60, "a").await,
        60,
        "nonsense changes nothing"
    );

    let stranger: SocketAddr = "127.0.0.9:9".parse().unwrap();
    assert!(!channel.report_load(&Address::from(stranger), &LoadReport::default()));
    channel.close().await;
    assert!(!report(&a, 0.5), "nobody is there to tell");
}

/// Everyone in turn, and bytes are counted; what is seen of the first member is kept.
#[derive(Clone, Debug, Default)]
struct Counting {
    turns: RoundRobin,
    seen: Arc<Mutex<Option<Arc<Load>>>>,
}

impl Policy for Counting {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        *self.seen.lock().unwrap() = members.first().map(|member| member.load.clone());
        self.turns.update(members, now, rng)
    }

    fn scoring(&self) -> Scoring {
        // So long that for some seconds all samples count alike.
        Scoring::Bandwidth {
            window: Duration::from_secs(60),
        }
    }
}

const MIB: u64 = 1 << 20;

/// Moves 16 MiB each way, one way after the other; counted are these and little more.
async fn what_is_moved_is_counted<C: Connector>(channel: Channel<C>, counting: Counting) {
    let start = Instant::now();
    let mut client = GreeterClient::new(channel.clone());
    let load = || counting.seen.lock().unwrap().clone();
    let rate = || load().and_then(|load| load.bandwidth(Timestamp::ZERO));
    client.say_hello(HelloRequest::default()).await.unwrap();
    until("it is counted", || rate().is_some()).await;
    let counted = |moved: u64, what: &'static str| {
        let rate = &rate;
        async move {
            // The rate is that of the time since the first count, a moment after `start`.
            until(what, || {
                let bytes = rate().unwrap() * start.elapsed().as_secs_f64();
                (0.7..1.4).contains(&(bytes / moved as f64))
            })
            .await;
        }
    };
    let traffic = || channel.endpoints()[0].traffic;
    let near = |bytes: u64, moved: u64| bytes >= moved && bytes < moved + moved / 50;

    let message = HelloRequest {
        payload: vec![7; 64 << 10],
        ..HelloRequest::default()
    };
    let before = traffic();
    let upload = stream::iter(vec![message; 256]);
    let sum = client.gather(upload).await.unwrap().into_inner();
    assert_eq!(sum.bytes, 16 * MIB);
    let after = traffic();
    assert!(
        near(after.sent - before.sent, 16 * MIB),
        "{before:?} {after:?}"
    );
    counted(16 * MIB, "an upload counts").await;

    let download = CountdownRequest {
        count: 256,
        payload_bytes: 64 << 10,
        ..CountdownRequest::default()
    };
    let mut replies = client.countdown(download).await.unwrap().into_inner();
    let mut bytes = 0;
    while let Some(reply) = replies.next().await {
        bytes += reply.unwrap().payload.len() as u64;
    }
    assert_eq!(bytes, 16 * MIB);
    let before = after;
    let after = traffic();
    assert!(
        near(after.received - before.received, 16 * MIB),
        "{before:?} {after:?}"
    );
    counted(32 * MIB, "and a download with it").await;
}

#[tokio::test]
async fn bytes_counted_are_bytes_moved() {
    let a = server("a");
    let counting = Counting::default();
    let channel = balanced(&[&a], counting.clone()).await;
    what_is_moved_is_counted(channel, counting).await;
}

#[tokio::test]
async fn bytes_counted_are_bytes_moved_over_tonic() {
    let a = server("a");
    let counting = Counting::default();
    let layer = BalanceLayer::from_endpoints([Endpoint::from(a.address)])
        .policy(counting.clone())
        .build()
        .unwrap();
    let channel = layer.layer(TonicConnector::new(|endpoint| endpoint));
    what_is_moved_is_counted(channel, counting).await;
}
