//! H18: a channel that goes while calls are under way.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tonic::{Code, Status};

use crate::Fleet;
use crate::balanced::{clean, endpoints, in_flight, over, ready, report, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;

const CALLS: u64 = 100;
const WORK: Duration = Duration::from_millis(400);

/// A hundred calls, all of them at their servers.
async fn under_way(
    channel: &equipoise::Channel,
    fleet: &Fleet,
) -> Vec<tokio::task::JoinHandle<Result<(), Status>>> {
    let calls = (1..=CALLS).map(|id| {
        let mut client = GreeterClient::new(channel.clone());
        tokio::spawn(async move {
            let request = HelloRequest {
                id,
                ..Default::default()
            };
            client.say_hello(request).await.map(|_| ())
        })
    });
    let calls = calls.collect();
    until("all are at their servers", || {
        fleet.ledger.executions().len() as u64 == CALLS
    })
    .await;
    calls
}

/// The last clone is dropped: every call comes to its end.
#[test]
fn h18_dropped_with_calls_under_way() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(WORK);
        let channel = ready(over(&fleet.addresses())).await;
        let calls = under_way(&channel, &fleet).await;
        drop(channel);
        for call in join_all(calls).await {
            call.expect("no panic").expect("it was accepted before");
        }
        drop(fleet);
        before
            .restored(crate::PATIENCE)
            .await
            .expect("nothing is left");
    });
}

/// Closed: those that take longer than the drain deadline end UNAVAILABLE when it is over.
#[test]
fn h18_closed_with_calls_under_way() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(Duration::from_secs(20));
        let drain = Duration::from_millis(300);
        let channel = ready(over(&fleet.addresses()).drain_deadline(drain)).await;
        let calls = under_way(&channel, &fleet).await;
        assert_eq!(u64::from(in_flight(&channel)), CALLS);
        let begin = Instant::now();
        channel.close().await;
        for call in join_all(calls).await {
            let status = call.expect("no panic").expect_err("it takes too long");
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        }
        let took = begin.elapsed();
        assert!(took >= drain, "{took:?}");
        report(
            "past the drain deadline",
            took - drain,
            Duration::from_millis(50),
        );
        clean(channel, fleet, &before).await;
    });
}

/// The runtime that the channel runs on is shut down under callers of another: they are told, and at once.
#[test]
fn h18_its_runtime_shut_down_with_calls_under_way() {
    alone(async {
        let fleet = Fleet::start(Duration::from_secs(20));
        let list = endpoints(&fleet.addresses());
        let (give, take) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_all().build();
            let runtime = runtime.expect("a runtime can be had");
            runtime.block_on(async {
                let channel = equipoise::Channel::from_endpoints(list).connect().await;
                give.send(channel.expect("they run"))
                    .expect("the test waits");
            });
            let _ = ended.recv();
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        let channel = take.recv().expect("it is made");
        let calls = under_way(&channel, &fleet).await;
        let begin = Instant::now();
        drop(end);
        for call in join_all(calls).await {
            let status = call.expect("no panic").expect_err("nobody carries it");
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        }
        report("told after", begin.elapsed(), Duration::from_secs(1));
        thread.join().expect("no panic");
        drop(channel);
    });
}

/// The control: calls of a client that is cut off are not answered.
#[test]
fn h18_control_cut_off_calls_are_not_answered() {
    alone(async {
        let fleet = Fleet::start(Duration::from_secs(20));
        let channel = ready(over(&fleet.addresses())).await;
        let calls = under_way(&channel, &fleet).await;
        for call in &calls {
            call.abort();
        }
        let ends = join_all(calls).await;
        assert!(ends.iter().all(|end| end.is_err()));
    });
}
