//! B14: slow readers of large responses share a connection with small calls.

use std::time::{Duration, Instant};

use equipoise::Channel;
use equipoise::transport::Http2Options;
use tokio::task::JoinSet;
use tonic::Status;

use crate::Fleet;
use crate::balanced::over;
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::greeter::proto::CountdownRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::ledger::Verdict;
use crate::rig::load::Load;
use crate::rig::timer;
use crate::size::{self, figure};
use crate::{clean, is_ready, report, until};

/// Reads a stream without an end, 64 KiB twice a second.
async fn reader(channel: Channel, id: u64, window: Duration) -> Result<usize, Status> {
    let request = CountdownRequest {
        id,
        count: u32::MAX,
        payload_bytes: 64 << 10,
        ..CountdownRequest::default()
    };
    let (begin, mut messages) = (Instant::now(), 0);
    let replies = GreeterClient::new(channel).countdown(request).await;
    let mut replies = replies?.into_inner();
    while begin.elapsed() < window {
        if replies.message().await?.is_some() {
            messages += 1;
        }
        timer::pause(Duration::from_millis(500)).await;
    }
    Ok(messages)
}

/// Small calls beside the slow readers, all on one connection.
async fn beside_slow_readers(readers_beside: u64, options: Http2Options) -> Verdict {
    const FIRST: u64 = 1_000;
    let before = Footprint::take();
    let fleet = Fleet::of(vec![Options::new("b1")]);
    let channel = over(&fleet.addresses()).http2(options);
    let channel = channel.build().expect("in range");
    until("it is ready", || is_ready(&channel)).await;
    let load = Load {
        first: FIRST,
        rate: size::of(500, 2_000),
        ..Load::of(size::calls(750))
    };
    let window =
        Duration::from_secs(1) * load.calls as u32 / load.rate + Duration::from_millis(600);
    let mut readers = JoinSet::new();
    for id in 1..=readers_beside {
        readers.spawn(reader(channel.clone(), id, window));
    }
    // Until they have as much as they may have unread.
    timer::pause(Duration::from_millis(500)).await;
    let calls = load.run(&channel).await;
    let mut read = Vec::new();
    for messages in readers.join_all().await {
        read.push(messages.expect("a slow reader is no reason to break a stream"));
    }
    let mut executions = fleet.ledger.executions();
    executions.retain(|e| e.id >= FIRST);
    let verdict = crate::rig::ledger::audit(&calls, &executions);
    println!("{verdict}\n  messages that the slow ones read: {read:?}");
    assert_eq!(channel.endpoints()[0].connections, 1);
    drop(fleet);
    clean(channel, &before).await;
    verdict
}

/// B14: with the windows there are by default, small calls do not wait for those who hardly read: each of these has as
/// much unread as it may, a megabyte, and together they leave the connection one of its sixteen.
#[test]
fn b14_small_calls_do_not_wait_for_slow_readers() {
    alone(async {
        let verdict = beside_slow_readers(15, Http2Options::default()).await;
        verdict.assert_unnoticed();
        report(
            "beside slow readers, p99",
            verdict.latency(0.99),
            Duration::from_millis(50),
        );
    });
}

/// The control: where they leave it none, small calls wait for them.
#[test]
fn b14_control_a_window_too_few_stalls_small_calls() {
    alone(async {
        let options = Http2Options::default().with_windows(1 << 20, 15 << 20);
        let verdict = beside_slow_readers(15, options.expect("in range")).await;
        verdict.assert_true();
        let p99 = verdict.latency(0.99);
        figure("beside slow readers, p99", 1e3 * p99.as_secs_f64(), "ms");
        assert!(p99 > Duration::from_millis(200), "{verdict}");
    });
}
