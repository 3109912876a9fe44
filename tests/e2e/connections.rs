//! How many connections an endpoint has, and for how long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use equipoise::transport::Http2Options;
use equipoise::{Address, Channel, Endpoint};
use tokio::net::TcpStream;
use tonic::Streaming;

use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{HelloReply, HelloRequest};
use crate::rig::greeter::{Options, Server};
use crate::rig::ledger::{Execution, Ledger};
use crate::rig::load::Load;
use crate::{in_flight, quiet, until};

/// A server that takes five streams on each connection.
fn narrow(ledger: Option<&Ledger>) -> Server {
    Server::start(Options {
        max_concurrent_streams: Some(5),
        ledger: ledger.map(|ledger| ledger.path().to_owned()),
        ..Options::new("a")
    })
}

async fn channel(address: SocketAddr, connections: usize) -> Channel {
    let hour = Duration::from_secs(3_600);
    Channel::from_endpoints([Endpoint::from(address)])
        .max_connections_per_endpoint(connections)
        // On a paused clock every pause is a long silence.
        .keepalive(hour, hour)
        .connect()
        .await
        .expect("the server runs")
}

fn connections(channel: &Channel) -> usize {
    channel.endpoints()[0].connections
}

/// An open stream that has given its first message.
async fn stream(channel: &Channel) -> Streaming<HelloReply> {
    let mut client = GreeterClient::new(channel.clone());
    let replies = client.countdown(crate::endless()).await;
    let mut replies = replies.expect("it is served").into_inner();
    replies.message().await.expect("it goes on");
    replies
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

/// Twenty calls of 50 ms at the same time.
async fn twenty(channel: &Channel) {
    let calls = (1..=20).map(|id| {
        let mut client = GreeterClient::new(channel.clone());
        let request = HelloRequest {
            id,
            work_us: 50_000,
            ..HelloRequest::default()
        };
        async move { client.say_hello(request).await }
    });
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
}

#[tokio::test]
async fn a_full_connection_gets_company_and_calls_need_not_wait() {
    let ledger = Ledger::create();
    let a = narrow(Some(&ledger));
    let channel = channel(a.address, 4).await;
    let opening = (0..20).map(|_| stream(&channel));
    let streams = futures_util::future::join_all(opening).await;
    assert_eq!((connections(&channel), in_flight(&channel)), (4, 20));
    // Four is the most: the next one waits.
    let mut late = std::pin::pin!(stream(&channel));
    tokio::select! {
        _ = &mut late => panic!("there was no room"),
        () = until("it waits for room", || channel.waiting() == 1) => {}
    }
    drop(streams);
    drop(late.await);
    quiet(&channel).await;

    let streams = ledger.executions().len();
    twenty(&channel).await;
    let executions = ledger.executions();
    assert_eq!(peak(&executions[streams..]), 20);
    assert_eq!(connections(&channel), 4);
}

/// The control: with one connection, which is the default, what is above its limit waits.
#[tokio::test]
async fn with_one_connection_calls_wait_for_room() {
    let ledger = Ledger::create();
    let a = narrow(Some(&ledger));
    let channel = channel(a.address, 1).await;
    let opening = (0..20).map(|_| stream(&channel));
    let mut opening = Box::pin(futures_util::future::join_all(opening));
    tokio::select! {
        _ = &mut opening => panic!("five have room"),
        () = until("fifteen wait", || channel.waiting() == 15) => {}
    }
    assert_eq!((connections(&channel), in_flight(&channel)), (1, 5));
    drop(opening);
    quiet(&channel).await;

    let streams = ledger.executions().len();
    twenty(&channel).await;
    let executions = ledger.executions();
    assert_eq!(peak(&executions[streams..]), 5);
    assert_eq!(connections(&channel), 1);
}

#[tokio::test]
async fn connections_that_are_not_needed_any_more_are_closed() {
    let a = narrow(None);
    let channel = channel(a.address, 4).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(stream(&channel).await);
    }
    assert_eq!(connections(&channel), 4);
    // The last stream is on the newest connection: that one stays, and so does the oldest.
    streams.drain(..19);
    until("the others are over", || in_flight(&channel) == 1).await;
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let mut history = Vec::new();
    let mut look = async |until| {
        while start.elapsed() < Duration::from_secs(until) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if history
                .last()
                .is_none_or(|&(_, last)| last != connections(&channel))
            {
                history.push((start.elapsed().as_secs(), connections(&channel)));
            }
        }
        history.clone()
    };
    let seen = look(120).await;
    let [(1, 4), (at, 2)] = seen[..] else {
        panic!("from 4 to 2 at once: {seen:?}")
    };
    assert!((30..=41).contains(&at), "after {at} s");
    drop(streams);
    let seen = look(200).await;
    let [.., (at, 1)] = seen[..] else {
        panic!("one at last: {seen:?}")
    };
    assert!((144..=161).contains(&at), "after {at} s");
    tokio::time::resume();
    twenty(&channel).await;
}

/// Counts the connections that a channel makes while calls go on for `secs`, and says how many calls failed.
async fn dials_under_load(options: Http2Options, secs: u32) -> (u32, usize) {
    let a = crate::server("a");
    let dials = Arc::new(AtomicU32::new(0));
    let dialled = dials.clone();
    let options = options.with_dialler(move |_: &Endpoint, address: &Address| {
        // A counter on its own: nothing else is read in its order.
        dialled.fetch_add(1, Ordering::Relaxed);
        TcpStream::connect(address.to_string())
    });
    let channel = Channel::from_endpoints([Endpoint::from(a.address)])
        .http2(options)
        .connect()
        .await
        .expect("the server runs");
    let load = Load {
        rate: 500,
        request: HelloRequest {
            work_us: 5_000,
            ..HelloRequest::default()
        },
        ..Load::of(u64::from(500 * secs))
    };
    let calls = load.run(&channel).await;
    assert_eq!(connections(&channel), 1, "the old ones are out of use");
    quiet(&channel).await;
    let failed = calls.iter().filter(|call| {
        let end = call.end.as_ref();
        end.is_none_or(|end| end.code != tonic::Code::Ok)
    });
    (dials.load(Ordering::Relaxed), failed.count())
}

/// N17: behind a ClusterIP only a new connection finds a new server.
#[tokio::test]
async fn an_aged_connection_is_replaced_and_no_call_fails() {
    let options = Http2Options::default();
    let options = options.with_max_connection_age(Duration::from_secs(1));
    let (dials, failed) = dials_under_load(options.unwrap(), 4).await;
    // At 0.8 to 1.2 s each, and the last one may be under way.
    assert!((4..=6).contains(&dials), "{dials} dials");
    assert_eq!(failed, 0);
}

/// The control.
#[tokio::test]
async fn without_an_age_a_connection_stays() {
    let (dials, failed) = dials_under_load(Http2Options::default(), 2).await;
    assert_eq!((dials, failed), (1, 0));
}
