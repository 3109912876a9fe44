//! Limits on calls in flight: of the channel, of each endpoint, and of the line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use equipoise::{Builder, Channel};
use tonic::Code;

use crate::rig::greeter::Options;
use crate::rig::greeter::Server;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::ledger::{Execution, Ledger};
use crate::{endpoints, in_flight, quiet, server, until};

async fn channel(
    servers: &[&Server],
    limit: impl FnOnce(Builder<Channel>) -> Builder<Channel>,
) -> (Channel, GreeterClient<Channel>) {
    let builder = Channel::from_endpoints(endpoints(servers)).queue_limit(2_000);
    let channel = limit(builder).connect().await.expect("the servers run");
    until("every endpoint is ready", || {
        channel.endpoints().iter().all(|e| e.connections == 1)
    })
    .await;
    (channel.clone(), GreeterClient::new(channel))
}

fn work(micros: u64) -> HelloRequest {
    HelloRequest {
        work_us: micros,
        ..HelloRequest::default()
    }
}

/// How many ran at the same time at the most.
fn peak(executions: &[Execution]) -> usize {
    let running = |at: Duration| {
        let runs = |e: &&Execution| e.start <= at && e.end.is_none_or(|(end, _)| at < end);
        executions.iter().filter(runs).count()
    };
    let at_once = executions.iter().map(|e| running(e.start));
    at_once.max().unwrap_or_default()
}

/// A thousand calls where three may run: each end lets the next one go at once.
async fn a_thousand_by_threes(limit: impl FnOnce(Builder<Channel>) -> Builder<Channel>) {
    let ledger = Ledger::create();
    let a = Server::start(Options {
        ledger: Some(ledger.path().to_owned()),
        ..Options::new("a")
    });
    let (channel, client) = channel(&[&a], limit).await;
    let begun = Instant::now();
    let calls = (1..=1_000).map(|id| {
        let mut client = client.clone();
        tokio::spawn(async move { client.say_hello(HelloRequest { id, ..work(100) }).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    // A call that nobody tells looks after 50 ms: were one news in three lost, it would take 5 s and more.
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    quiet(&channel).await;
    channel.close().await;
    drop(a);
    let executions = ledger.executions();
    assert_eq!(executions.len(), 1_000);
    assert!(peak(&executions) <= 3, "{}", peak(&executions));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_at_the_limit_of_the_channel() {
    a_thousand_by_threes(|builder| builder.max_in_flight(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_at_the_limit_of_an_endpoint() {
    a_thousand_by_threes(|builder| builder.max_in_flight_per_endpoint(3)).await;
}

#[tokio::test]
async fn each_endpoint_has_its_limit_and_the_rest_waits() {
    let (a, b) = (server("a"), server("b"));
    let (channel, client) = channel(&[&a, &b], |b| b.max_in_flight_per_endpoint(2)).await;
    let calls: Vec<_> = (0..7)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.say_hello(work(10_000_000)).await })
        })
        .collect();
    until("three wait", || channel.waiting() == 3).await;
    assert!(channel.endpoints().iter().all(|e| e.in_flight == 2));
    // Whoever goes away makes room, wherever it was.
    for left in [6, 5, 4] {
        let at = calls.iter().position(|call| !call.is_finished()).unwrap();
        calls[at].abort();
        until("the next one goes", || {
            in_flight(&channel) as usize + channel.waiting() == left && in_flight(&channel) == 4
        })
        .await;
    }
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    quiet(&channel).await;
}

#[tokio::test]
async fn without_a_line_the_excess_is_turned_away() {
    let a = server("a");
    let limit = |builder: Builder<Channel>| builder.max_in_flight(2).queue_limit(0);
    let (channel, client) = channel(&[&a], limit).await;
    let long = || {
        let mut client = client.clone();
        tokio::spawn(async move { client.say_hello(work(10_000_000)).await })
    };
    let (one, two) = (long(), long());
    until("both are under way", || in_flight(&channel) == 2).await;
    let mut client = client.clone();
    let status = client.say_hello(work(0)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    one.abort();
    until("one has left", || in_flight(&channel) == 1).await;
    client.say_hello(work(0)).await.unwrap();
    two.abort();
    quiet(&channel).await;
}

/// Calls that are given up at any moment, in the line or under way, leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_gives_its_room_back() {
    let (a, b) = (server("a"), server("b"));
    let limit = |builder: Builder<Channel>| builder.max_in_flight(5).max_in_flight_per_endpoint(3);
    let (channel, client) = channel(&[&a, &b], limit).await;
    let done = Arc::new(AtomicU32::new(0));
    let calls = (0..600u64).map(|n| {
        let (mut client, done) = (client.clone(), done.clone());
        tokio::spawn(async move {
            let patience = Duration::from_micros(n * 37 % 5_000);
            let call = client.say_hello(work(n % 7 * 300));
            if tokio::time::timeout(patience, call).await.is_ok() {
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    quiet(&channel).await;
    // All of the room is there again.
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.say_hello(work(10_000_000)).await })
        })
        .collect();
    until("five are under way", || in_flight(&channel) == 5).await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    quiet(&channel).await;
}
