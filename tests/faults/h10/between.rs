//! H10 for calls of several attempts: the deadline is the call's, whatever its attempts do.

use std::time::Duration;

use equipoise::retry::{HedgingPolicy, RetryBudget, RetryPolicy};
use equipoise::{Channel, MethodConfig};
use futures_util::future::join_all;
use tokio::net::TcpStream;
use tonic::Code;

use super::{CALLS, load, patient, ran_out};
use crate::balanced::{PATIENCE, clean, over, ready, report};
use crate::frames::{Fields, Frame, FrameServer, Peer, Script, Step, code, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::ledger::{Execution, audit};
use crate::rig::load::{Load, call};
use crate::rig::now;
use crate::wire::{Processed, executions};

const MS: Duration = Duration::from_millis(1);
/// Later than any deadline here.
const NEVER: Duration = Duration::from_secs(30);
/// All calls of a test.
const ALL: usize = CALLS as usize;

async fn server(answer: impl Fn(usize) -> Vec<Step> + Send + Sync + 'static) -> FrameServer {
    FrameServer::start(Script {
        stream: stream(move |call| answer(call.nth)),
        ..Script::default()
    })
    .await
}

/// A channel to the server for calls that may be carried out twice, with a budget that refuses nothing.
async fn channel(server: &FrameServer, config: MethodConfig) -> Channel {
    let budget = RetryBudget::default()
        .with_share(1.0)
        .with_hedges(1.0)
        .with_reserve(1_000);
    let builder = over(&[server.address()])
        .service_config("equipoise.demo.v1.Greeter", config.with_idempotent(true))
        .outlier_detection(None)
        .retry_budget(budget);
    ready(builder).await
}

/// Each call that the server took, once.
fn taken(peer: &Peer) -> Vec<Execution> {
    let mut taken = executions(peer, "only", |_| Processed::Broken);
    taken.sort_by_key(|execution| execution.id);
    taken.dedup_by_key(|execution| execution.id);
    taken
}

/// So many streams were cancelled: those without an answer.
async fn cancelled(peer: &Peer, streams: usize) {
    let resets = |frames: &[Frame]| {
        let resets = frames.iter().filter(|f| f.is(kind::RST_STREAM));
        resets.map(Frame::code).collect::<Vec<_>>()
    };
    peer.until(|frames| resets(frames).len() >= streams).await;
    assert_eq!(resets(&peer.frames()), vec![code::CANCEL; streams]);
}

/// The first attempt hangs, and the time of the next is not there yet; or that one hangs as well.
#[test]
fn h10_while_the_next_copy_is_due_later() {
    alone(async {
        for (delay, copies) in [(NEVER, 0), (30 * MS, ALL)] {
            let before = Footprint::take();
            let server = server(|_| Vec::new()).await;
            let policy = HedgingPolicy::after(delay).with_max_attempts(2);
            let config = MethodConfig::default().with_hedging(policy);
            let channel = channel(&server, config).await;
            let peer = server.peer(0).await;
            let calls = load().run(&channel).await;
            ran_out(&calls, &taken(&peer), ALL);
            let streams = peer.streams().len();
            println!("{streams} attempts");
            // A machine that is busy elsewhere makes fewer copies.
            let expected = ALL + copies / 2..=ALL + copies;
            assert!(expected.contains(&streams), "{streams}");
            cancelled(&peer, streams).await;
            clean(channel, (server, peer), &before).await;
        }
    });
}

/// No other attempt would begin in time: the call ends at once with the failure there is, which says more than
/// DEADLINE_EXCEEDED would later.
#[test]
fn h10_between_attempts_that_come_too_late_it_ends_at_once() {
    const PUSHED: Fields = &[("grpc-retry-pushback-ms", "30000"), ("grpc-status", "14")];
    alone(async {
        let slow = RetryPolicy::default().with_backoff(NEVER, NEVER);
        let copies = HedgingPolicy::after(NEVER);
        let config = MethodConfig::default;
        let cases = [
            (config().with_retry(slow), Step::TrailersOnly(14)),
            (
                config().with_retry(RetryPolicy::default()),
                Step::LastHead(200, PUSHED),
            ),
            (config().with_hedging(copies), Step::LastHead(200, PUSHED)),
        ];
        for (case, (config, answer)) in cases.into_iter().enumerate() {
            let before = Footprint::take();
            let server = server(move |_| vec![Step::UntilEnd, answer.clone()]).await;
            let channel = channel(&server, config).await;
            let peer = server.peer(0).await;
            let load = Load {
                deadline: Duration::from_secs(3),
                ..load()
            };
            let calls = load.run(&channel).await;
            let verdict = audit(&calls, &taken(&peer));
            println!("{case}: {verdict}");
            verdict.assert_true();
            assert_eq!(verdict.code(Code::Unavailable), ALL, "{verdict}");
            report("from call to end", verdict.worst(), 20 * MS);
            assert_eq!(peer.streams().len(), ALL, "one attempt each");
            clean(channel, (server, peer), &before).await;
        }
    });
}

/// The server's own wait ends before the deadline: the attempt after it has what is left.
#[test]
fn h10_in_an_attempt_after_a_pause() {
    const PUSHED: Fields = &[("grpc-retry-pushback-ms", "500"), ("grpc-status", "14")];
    alone(async {
        let before = Footprint::take();
        // All first attempts come before any second one.
        let server = server(|nth| match nth < ALL {
            true => vec![Step::UntilEnd, Step::LastHead(200, PUSHED)],
            false => Vec::new(),
        })
        .await;
        let config = MethodConfig::default().with_retry(RetryPolicy::default());
        let channel = channel(&server, config).await;
        let peer = server.peer(0).await;
        let calls = (1..=CALLS).map(|id| {
            let request = HelloRequest {
                id,
                ..Default::default()
            };
            call(channel.clone(), request, 900 * MS, now())
        });
        let calls = join_all(calls).await;
        ran_out(&calls, &taken(&peer), ALL);
        assert_eq!(peer.streams().len(), 2 * ALL);
        cancelled(&peer, ALL).await;
        clean(channel, (server, peer), &before).await;
    });
}

/// The first attempt has failed with its connection, and the next waits for a server that does not come back.
#[test]
fn h10_while_the_next_attempt_waits_for_ready() {
    alone(async {
        let before = Footprint::take();
        let server = server(|nth| match nth {
            0 => vec![Step::Pause(20 * MS), Step::Kill],
            _ => Vec::new(),
        })
        .await;
        let policy = RetryPolicy::default().with_backoff(MS, MS);
        let config = MethodConfig::default().with_retry(policy);
        let channel = channel(&server, config).await;
        let (peer, address) = (server.peer(0).await, server.address());
        // It takes no other connection.
        drop(server);
        let refused = async { while TcpStream::connect(address).await.is_ok() {} };
        let refused = tokio::time::timeout(PATIENCE, refused).await;
        refused.expect("nobody listens any more");
        let calls = load().run(&patient(&channel)).await;
        let taken = taken(&peer);
        // The fault was there, and seen.
        assert!(!taken.is_empty() && peer.is_closed());
        ran_out(&calls, &taken, taken.len());
        clean(channel, peer, &before).await;
    });
}
