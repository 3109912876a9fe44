//! Another policy while the channel runs: no call fails, and the old one serves until the new one can.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use equipoise::policy::{
    Adaptive, LeastBandwidth, LeastRequest, LeastUtilization, Maglev, PeakEwma, PickFirst, Random,
    Rendezvous, RingHash, RoundRobin, WeightedRoundRobin,
};
use equipoise::{Address, Channel, Connectivity, Error};
use tonic::{Code, Request};

use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::holes;
use crate::routing::Pinned;
use crate::{client, endpoints, quiet, server, until};

const SERVICE: &str = "equipoise.demo.v1.Greeter";
const HELLO: &str = "/equipoise.demo.v1.Greeter/SayHello";

/// Callers that go on until they are told to stop; how many calls went well.
struct Traffic {
    stop: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<u64>>,
}

impl Traffic {
    fn start(channel: &Channel, callers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let caller = |n: usize| {
            let (mut client, stop) = (GreeterClient::new(channel.clone()), stop.clone());
            tokio::spawn(async move {
                let mut calls = 0;
                // Relaxed: nothing else is told by it.
                while !stop.load(Ordering::Relaxed) {
                    let mut request = Request::new(HelloRequest::default());
                    let key = format!("{}", (n as u64 + calls) % 50).parse().unwrap();
                    request.metadata_mut().insert("x-key", key);
                    client.say_hello(request).await.expect("no call fails");
                    calls += 1;
                }
                calls
            })
        };
        let callers = (0..callers).map(caller).collect();
        Self { stop, callers }
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut calls = 0;
        for caller in self.callers {
            calls += caller.await.expect("no call failed");
        }
        calls
    }
}

fn picks(channel: &Channel) -> Vec<u64> {
    channel.endpoints().iter().map(|e| e.picks).collect()
}

type Switch = fn(&Channel) -> Result<(), Error>;

#[tokio::test]
async fn no_call_fails_while_policies_change() {
    let servers = ["a", "b", "c"].map(server);
    let (channel, _) = client(&servers.iter().collect::<Vec<_>>()).await;
    let traffic = Traffic::start(&channel, 8);
    let switches: [Switch; 13] = [
        |channel| channel.set_policy(RoundRobin::default()),
        |channel| channel.set_policy(PickFirst::default()),
        |channel| channel.set_policy(Adaptive::default()),
        |channel| channel.set_policy(RingHash::on_metadata("x-key")),
        |channel| channel.set_policy(PickFirst::shuffled()),
        |channel| channel.set_policy(LeastRequest::full_scan()),
        |channel| channel.set_policy(LeastBandwidth::default()),
        |channel| channel.set_policy(Maglev::on_metadata("x-key")),
        |channel| channel.set_policy(PeakEwma::default()),
        |channel| channel.set_policy(Rendezvous::on_metadata("x-key").with_top(2)),
        |channel| channel.set_policy(LeastUtilization::default()),
        |channel| channel.set_policy(WeightedRoundRobin::reported()),
        |channel| channel.set_policy(Random),
    ];
    for round in 0..6 {
        for switch in switches {
            switch(&channel).unwrap();
            let before: u64 = picks(&channel).iter().sum();
            until("calls went on", || {
                picks(&channel).iter().sum::<u64>() > before + 20 + round
            })
            .await;
        }
    }
    // The last one is in force, and everyone is connected again.
    let before = picks(&channel);
    until("all are picked", || {
        picks(&channel)
            .iter()
            .zip(&before)
            .all(|(now, before)| *now > before + 5)
    })
    .await;
    assert!(traffic.stop().await > 1_000);
    quiet(&channel).await;
}

#[tokio::test]
async fn the_old_policy_serves_until_the_new_one_has_somebody() {
    let servers = ["a", "b"].map(server);
    let hole = holes::silent();
    let mut list = endpoints(&[&servers[0], &servers[1]]);
    list.push(hole.address.into());
    let at = |address: std::net::SocketAddr| Pinned(Address::from(address));
    let channel = Channel::from_endpoints(list)
        .policy(at(servers[0].address))
        .timeout(crate::PATIENCE)
        .build()
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut served_by = async || {
        let reply = client.say_hello(HelloRequest::default()).await.unwrap();
        reply.into_inner().server
    };
    assert_eq!(served_by().await, "a");
    // It will never be ready.
    channel.set_policy(at(hole.address)).unwrap();
    until("it is dialled", || {
        channel.endpoints()[2].state == Connectivity::Connecting
    })
    .await;
    for _ in 0..200 {
        assert_eq!(served_by().await, "a");
    }
    // A third takes its place.
    channel.set_policy(at(servers[1].address)).unwrap();
    while served_by().await != "b" {}
    for _ in 0..50 {
        assert_eq!(served_by().await, "b");
    }
    let states: Vec<_> = channel.endpoints().iter().map(|e| e.state).collect();
    assert_eq!(states[..2], [Connectivity::Ready, Connectivity::Ready]);
}

#[tokio::test]
async fn each_scope_has_its_own_and_what_it_places_calls_by_changes_with_it() {
    let servers = ["a", "b", "c"].map(server);
    let all: Vec<_> = servers.iter().collect();
    let channel = Channel::from_endpoints(endpoints(&all))
        .service_policy(SERVICE, RoundRobin::default())
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut owners = async |header: &'static str| {
        let mut owners = std::collections::BTreeSet::new();
        for _ in 0..30 {
            let mut request = Request::new(HelloRequest::default());
            request.metadata_mut().insert(header, "42".parse().unwrap());
            let reply = client.say_hello(request).await.unwrap();
            owners.insert(reply.into_inner().server);
        }
        owners.len()
    };
    while owners("x-user").await < 3 {}
    channel
        .set_service_policy(SERVICE, RingHash::on_metadata("x-user"))
        .unwrap();
    while owners("x-user").await > 1 {}
    assert!(owners("x-session").await > 1, "another header is no key");
    channel
        .set_service_policy(SERVICE, RingHash::on_metadata("x-session"))
        .unwrap();
    while owners("x-session").await > 1 {}
    assert!(owners("x-user").await > 1);
}

#[tokio::test]
async fn what_cannot_be_set_says_why() {
    let a = server("a");
    let channel = Channel::from_endpoints(endpoints(&[&a]))
        .method_policy(HELLO, Random)
        .build()
        .unwrap();
    channel
        .set_method_policy(HELLO, Adaptive::default())
        .unwrap();
    for (error, text) in [
        (
            channel.set_policy(RingHash::on_metadata("x key")),
            "hash on metadata \"x key\": not a legal name",
        ),
        (
            channel.set_service_policy(SERVICE, Random),
            "service \"equipoise.demo.v1.Greeter\" has no policy of its own: give it one by service_policy when the channel is built",
        ),
        (
            channel.set_method_policy("/a.B/C", Random),
            "method \"/a.B/C\" has no policy of its own: give it one by method_policy when the channel is built",
        ),
    ] {
        let error = error.unwrap_err();
        assert!(error.is_config());
        assert_eq!(error.to_string(), text);
    }
    channel.close().await;
    assert!(channel.set_policy(Random).is_err(), "closed");
    let mut client = GreeterClient::new(channel);
    let status = client.say_hello(HelloRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn pick_first_uses_one_and_goes_on_to_the_next_when_it_is_lost() {
    let mut servers: Vec<_> = ["a", "b", "c"].map(server).into();
    let all: Vec<_> = servers.iter().collect();
    let channel = Channel::from_endpoints(endpoints(&all))
        .policy(PickFirst::default())
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut served_by = async || {
        let reply = client.say_hello(HelloRequest::default()).await?;
        Ok::<_, tonic::Status>(reply.into_inner().server)
    };
    for _ in 0..50 {
        assert_eq!(served_by().await.unwrap(), "a");
    }
    let states: Vec<_> = channel.endpoints().iter().map(|e| e.state).collect();
    use Connectivity::{Idle, Ready};
    assert_eq!(states, [Ready, Idle, Idle], "one connection");
    drop(servers.remove(0));
    until("the next is found", || {
        channel.endpoints()[1].state == Ready
    })
    .await;
    while served_by().await.is_err() {}
    for _ in 0..50 {
        assert_eq!(served_by().await.unwrap(), "b");
    }
    assert_eq!(channel.endpoints()[2].picks, 0);
    quiet(&channel).await;
}

/// Of three endpoints the first two swallow connections: two staggers, and the third serves.
#[tokio::test]
async fn pick_first_passes_black_holes_a_stagger_each() {
    let holes = [holes::black_hole(), holes::black_hole()];
    let a = server("a");
    let mut list: Vec<_> = holes.iter().map(|hole| hole.address.into()).collect();
    list.extend(endpoints(&[&a]));
    let started = std::time::Instant::now();
    let channel = Channel::from_endpoints(list)
        .policy(PickFirst::default())
        .timeout(crate::PATIENCE)
        .build()
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let reply = client.say_hello(HelloRequest::default()).await.unwrap();
    let took = started.elapsed();
    assert_eq!(reply.into_inner().server, "a");
    // 700 ms on a quiet machine; the deadline of the call bounds it here.
    println!("first answer after {took:?}");
    assert!(took >= std::time::Duration::from_millis(500), "{took:?}");
    until("the others are let go of", || {
        let states: Vec<_> = channel.endpoints().iter().map(|e| e.state).collect();
        states == [Connectivity::Idle, Connectivity::Idle, Connectivity::Ready]
    })
    .await;
}
