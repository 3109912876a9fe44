//! H17: a response that its caller leaves lying, unread or half read.

use std::time::{Duration, Instant};

use tonic::{Code, Response, Status, Streaming};

use crate::Fleet;
use crate::balanced::{PATIENCE, clean, in_flight, over, ready, report, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloReply};
use crate::rig::greeter::{Options, tonic_endpoint};
use crate::rig::ledger::Execution;
use crate::rig::load::Client;

const MEGABYTE: u32 = 1 << 20;

fn one() -> Fleet {
    Fleet::of(vec![Options::new("b1")])
}

async fn countdown(
    client: impl Client,
    id: u64,
    count: u32,
    payload_bytes: u32,
) -> Result<Response<Streaming<HelloReply>>, Status> {
    let request = CountdownRequest {
        id,
        count,
        payload_bytes,
        ..Default::default()
    };
    let client = GreeterClient::new(client);
    let mut client = client.max_decoding_message_size(16 << 20);
    client.countdown(request).await
}

/// Downloads ten megabytes in one message.
async fn download(client: impl Client, id: u64) {
    let replies = countdown(client, id, 1, 10 * MEGABYTE).await;
    let mut replies = replies.expect("the server runs").into_inner();
    let reply = replies.message().await.expect("it serves");
    assert_eq!(reply.expect("one message").payload.len(), 10 << 20);
    assert!(replies.message().await.expect("it serves").is_none());
}

fn cancelled(executions: &[Execution]) -> usize {
    let codes = executions.iter().filter_map(|e| e.end);
    codes.filter(|&(_, code)| code == Code::Cancelled).count()
}

/// Unread, half read, and kept without being read: each counts until it is dropped, and then no more.
#[test]
fn h17_streams_dropped_unread_and_half_read() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(Duration::ZERO);
        let channel = ready(over(&fleet.addresses())).await;
        let mut streams = Vec::new();
        // Unread, each takes its megabyte of the connection's sixteen.
        for id in 1..=12 {
            let replies = countdown(channel.clone(), id, u32::MAX, 1_000).await;
            let mut replies = replies.expect("the server runs").into_inner();
            for _ in 0..(id % 2) * 50 {
                let reply = replies.message().await.expect("it serves");
                reply.expect("it has no end");
            }
            streams.push(replies);
        }
        let idle = streams.split_off(8);
        assert_eq!(in_flight(&channel), 12, "a stream counts until its end");
        let start = Instant::now();
        drop(streams);
        until("only those kept are in flight", || in_flight(&channel) == 4).await;
        report(
            "in flight after the drop",
            start.elapsed(),
            Duration::from_secs(1),
        );
        // The servers were told.
        until("the servers have given up what was dropped", || {
            cancelled(&fleet.ledger.executions()) == 8
        })
        .await;
        drop(idle);
        until("the servers have given up all", || {
            cancelled(&fleet.ledger.executions()) == 12
        })
        .await;
        let endpoints = channel.endpoints();
        assert_eq!(endpoints.iter().map(|e| e.cancelled).sum::<u64>(), 12);
        clean(channel, fleet, &before).await;
    });
}

/// A thousand megabyte bodies dropped, and the connection's window is not lost with them.
#[test]
fn h17_dropped_bodies_give_their_window_back() {
    alone(async {
        let before = Footprint::take();
        let fleet = one();
        let channel = ready(over(&fleet.addresses())).await;
        for id in 1..=1_000 {
            let replies = countdown(channel.clone(), id, 1, MEGABYTE).await;
            drop(replies.expect("the server runs"));
        }
        let downloaded = tokio::time::timeout(PATIENCE, download(channel.clone(), 1_001));
        downloaded.await.expect("there is room for it");
        let status = &channel.endpoints()[0];
        assert_eq!(status.connections, 1);
        assert_eq!(status.picks, 1_001);
        assert_eq!(status.outcome(Code::Unavailable), 0, "{status:?}");
        println!(
            "  {} of 1,000 were cancelled at the server",
            cancelled(&fleet.ledger.executions())
        );
        clean(channel, fleet, &before).await;
    });
}

/// H17, the control: a client that keeps bodies where it should have dropped them has no window left for
/// anybody on that connection.
#[test]
fn h17_control_bodies_that_are_kept_take_all_the_window() {
    alone(async {
        let fleet = one();
        let endpoint = tonic_endpoint(fleet.addresses()[0]);
        let client = endpoint.connect().await.expect("it listens");
        let mut kept = Vec::new();
        // The connection's window is 16 MiB, a stream's is 1 MiB.
        for id in 1..=17 {
            let replies = countdown(client.clone(), id, 2, MEGABYTE).await;
            kept.push(replies.expect("the server runs"));
        }
        let stuck = tokio::time::timeout(Duration::from_secs(1), download(client.clone(), 18));
        stuck.await.expect_err("there is no room for it");
        drop(kept);
        let downloaded = tokio::time::timeout(PATIENCE, download(client, 19));
        downloaded.await.expect("now there is");
    });
}
