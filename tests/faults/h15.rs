//! H15: more calls wait than may.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::{Code, Request};

use crate::frames::{FrameServer, Script};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::size::figure;
use crate::wire::requests;
use crate::{clean, reference, report, until};

const LIMIT: u64 = 1_000;

/// The 1,001st fails at once, and the thousand before it are served, once somebody can take them. Their order is told and
/// not bounded: a call that looks in the moment a slot comes free passes those that are still to be told of it.
#[test]
fn h15_one_more_than_may_wait() {
    alone(async {
        let before = Footprint::take();
        // Connected, but not ready before its settings; then one call at a time.
        let server = FrameServer::start(Script {
            settings: false,
            ..Script::default()
        })
        .await;
        let builder = reference(&[server.address()]);
        let channel = builder.connect_timeout(Duration::from_secs(60));
        let channel = channel.build().expect("in range");
        let peer = server.peer(0).await;
        let mut waiting = JoinSet::new();
        for id in 1..=LIMIT {
            let mut client = GreeterClient::new(channel.clone());
            waiting.spawn(async move {
                let request = HelloRequest {
                    id,
                    ..Default::default()
                };
                client.say_hello(request).await
            });
            until("it waits", || channel.waiting() as u64 == id).await;
        }
        let begin = Instant::now();
        let mut client = GreeterClient::new(channel.clone());
        let told = client
            .say_hello(Request::new(HelloRequest::default()))
            .await;
        let took = begin.elapsed();
        let told = told.expect_err("there is no room");
        assert_eq!(told.code(), Code::ResourceExhausted, "{told:?}");
        report(
            "the one too many ended after",
            took,
            Duration::from_millis(5),
        );
        assert_eq!(channel.waiting() as u64, LIMIT);

        peer.settings(Some(1));
        while let Some(answer) = waiting.join_next().await {
            answer.expect("no panic").expect("it has its turn");
        }
        let order = requests(&peer).into_iter().map(|(_, request)| request.id);
        let order: Vec<u64> = order.collect();
        let mut served = order.clone();
        served.sort_unstable();
        let each_once: Vec<u64> = (1..=LIMIT).collect();
        assert_eq!(served, each_once);
        let places = order.iter().zip(1..);
        let passed = places.filter(|(id, place): &(&u64, u64)| id.abs_diff(*place) > 10);
        let passed = passed.count();
        figure("of 1,000 out of their places", passed as f64, "");
        drop((server, peer, client));
        clean(channel, &before).await;
    });
}

/// The control: with tonic any number waits, and without an end.
#[test]
fn h15_control_tonic_keeps_any_number_waiting() {
    alone(async {
        let (channel, _changes) = tonic::transport::Channel::balance_channel::<SocketAddr>(1);
        let mut waiting = JoinSet::new();
        for _ in 0..2 * LIMIT {
            let mut client = GreeterClient::new(channel.clone());
            waiting.spawn(async move { client.say_hello(HelloRequest::default()).await });
        }
        let ended = tokio::time::timeout(Duration::from_millis(500), waiting.join_next());
        assert!(ended.await.is_err(), "one ended");
    });
}
