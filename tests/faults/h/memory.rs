//! H6, its other half: what is kept of requests, so that they can be sent again, is bounded.
//!
//! The client is a process of its own, so that its memory is nobody else's, too. Each request is a stream that makes its
//! messages one by one, and ends when all calls have sent theirs: what the client has then is what it keeps.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use equipoise::MethodConfig;
use futures_util::{Stream, StreamExt, future, stream};
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use super::retries::repeated;
use crate::Fleet;
use crate::balanced::{PATIENCE, over, ready};
use crate::child::{Client, task, tell};
use crate::cost::{forget_peak, memory};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::load;
use crate::rig::rivals::tonic_balance;
use crate::size::{self, figure};

const KIB: usize = 1 << 10;
/// The payload of a message.
const PIECE: usize = 60 * KIB;
/// 10 MiB, in messages of that size.
const LARGE: usize = 10 * 1_024 * KIB / PIECE;

/// Calls that send their messages at the same time.
const AT_ONCE: usize = 4;

/// What is kept of one call at the most, and of all calls of a channel, in KiB.
const PER_CALL: usize = 256;
const PER_CHANNEL: usize = 16 * 1_024;
/// What comes beside it, in KiB, and beyond what as many calls take that keep nothing: an allocator's waste.
const SLACK: usize = 12 * 1_024;

/// The first id of those that are not counted.
const WARM_UP: u64 = 1_000_000;

/// So many calls, with so many messages each.
#[derive(Clone, Copy)]
struct Plan {
    calls: usize,
    pieces: usize,
    by: By,
}

/// Who makes them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// Our channel, for calls that may be sent again.
    Repeating,
    /// Our channel, for calls that may not.
    Once,
    /// tonic's, by a caller that keeps each request whole.
    Naive,
}

/// By how many KiB a client grows that carries it out; each call was executed once and answered as it should be.
async fn grown(plan: Plan) -> usize {
    let before = Footprint::take();
    let fleet = Fleet::start(Duration::ZERO);
    let addresses = fleet.addresses().into_iter().map(|a| a.to_string());
    let addresses: Vec<String> = addresses.collect();
    let Plan { calls, pieces, by } = plan;
    let task = format!("{calls} {pieces} {by:?} {}", addresses.join(","));
    let mut client = Client::start("h::memory::client_with_requests", &task, &[]);
    let grown = client.told("GROWN").parse().expect("a number");
    client.ended();
    let executed = fleet.ledger.executions();
    let executed = executed.iter().filter(|e| e.id < WARM_UP).count();
    assert_eq!(executed, calls);
    drop(fleet);
    let restored = before.restored(PATIENCE).await;
    restored.expect("nothing is left");
    grown
}

/// By how much a client that may send its calls again grows beyond one that may not: what it keeps, in KiB.
async fn kept(calls: usize, pieces: usize) -> usize {
    let by = |by| Plan { calls, pieces, by };
    let (with, without) = (grown(by(By::Repeating)).await, grown(by(By::Once)).await);
    println!("{with} KiB, and {without} KiB where nothing is kept");
    figure("the client grew by", with as f64 / 1_024.0, "MiB");
    with.saturating_sub(without)
}

/// 10 MiB a call: each is kept until it is more than a call may keep, and then no more of it; it is sent all the same.
#[test]
fn h6_of_a_large_request_little_is_kept() {
    alone(async {
        let kept = kept(size::of(8, 64), LARGE).await;
        let most = AT_ONCE * PER_CALL + SLACK;
        assert!(kept <= most, "{kept} KiB, bound {most} KiB");
    });
}

/// Each call keeps less than it may: it is the channel's limit that holds.
#[test]
fn h6_of_many_requests_the_channel_keeps_no_more_than_it_may() {
    alone(async {
        let kept = kept(size::of(300, 1_000), 4).await;
        let most = PER_CHANNEL + SLACK;
        assert!(kept <= most, "{kept} KiB, bound {most} KiB");
        // The measure sees what is kept; of what the others take it is no closer than some MiB.
        assert!(kept >= PER_CHANNEL / 4, "{kept} KiB");
    });
}

/// The control: a client that keeps its requests to send them again grows by all of them.
#[test]
fn h6_control_whoever_keeps_whole_requests_grows_by_them() {
    alone(async {
        let plan = Plan {
            calls: 8,
            pieces: LARGE,
            by: By::Naive,
        };
        let grown = grown(plan).await;
        figure("the client grew by", grown as f64 / 1_024.0, "MiB");
        let all = plan.calls * plan.pieces * PIECE / KIB;
        assert!(grown >= all * 9 / 10, "{grown} KiB of {all} KiB");
    });
}

/// The client of these tests.
#[test]
fn client_with_requests() {
    let Some(task) = task() else { return };
    alone(async move {
        let words: Vec<&str> = task.split(' ').collect();
        let number = |at: usize| words[at].parse().expect("a number");
        let plan = Plan {
            calls: number(0),
            pieces: number(1),
            by: match words[2] {
                "Repeating" => By::Repeating,
                "Once" => By::Once,
                _ => By::Naive,
            },
        };
        let addresses = words[3].split(',');
        let addresses = addresses.map(|a| a.parse().expect("an address"));
        let addresses: Vec<SocketAddr> = addresses.collect();
        let ours = over(&addresses);
        let grown = match plan.by {
            By::Naive => grow(tonic_balance(&addresses), plan).await,
            By::Once => grow(ready(ours).await, plan).await,
            By::Repeating => {
                let ours = repeated(ours, MethodConfig::default());
                grow(ready(ours).await, plan).await
            }
        };
        tell("GROWN", &grown.to_string());
    });
}

/// Makes the calls, and says how much was held at once.
async fn grow(client: impl load::Client, plan: Plan) -> usize {
    // What the first calls need once.
    let first = Plan {
        calls: 4,
        pieces: 4,
        ..plan
    };
    carry_out(&client, first, WARM_UP).await;
    forget_peak();
    let start = memory("VmRSS:");
    carry_out(&client, plan, 1).await;
    memory("VmHWM:").saturating_sub(start)
}

async fn carry_out(client: &impl load::Client, plan: Plan, first: u64) {
    // So that little is on its way at a time, and in the end all is there.
    let sending = Arc::new(Semaphore::new(AT_ONCE));
    let all_sent = Arc::new(Barrier::new(plan.calls));
    let mut calls = JoinSet::new();
    for id in (first..).take(plan.calls) {
        let mut client = GreeterClient::new(client.clone());
        let (sending, all_sent) = (sending.clone(), all_sent.clone());
        calls.spawn(async move {
            let turn = sending.acquire_owned().await.expect("it stays open");
            let kept = (plan.by == By::Naive).then(|| Arc::new(messages(id, plan.pieces)));
            let sent = async move {
                drop(turn);
                all_sent.wait().await;
            };
            let answer = match &kept {
                None => {
                    let messages = (0..plan.pieces).map(move |_| message(id));
                    client.gather(then(messages, sent)).await
                }
                Some(kept) => {
                    let kept = kept.clone();
                    let messages = (0..plan.pieces).map(move |at| kept[at].clone());
                    client.gather(then(messages, sent)).await
                }
            };
            let reply = answer.expect("nobody fails").into_inner();
            drop(kept);
            let sum = (reply.messages as usize, reply.bytes as usize);
            assert_eq!(sum, (plan.pieces, plan.pieces * PIECE));
        });
    }
    let all = tokio::time::timeout(3 * PATIENCE, calls.join_all()).await;
    all.expect("they end");
}

fn message(id: u64) -> HelloRequest {
    HelloRequest {
        id,
        payload: vec![5; PIECE],
        ..HelloRequest::default()
    }
}

fn messages(id: u64, pieces: usize) -> Vec<HelloRequest> {
    (0..pieces).map(|_| message(id)).collect()
}

/// All messages, and an end once `sent` is over.
fn then(
    messages: impl Iterator<Item = HelloRequest> + Send + 'static,
    sent: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = HelloRequest> + Send + 'static {
    let end = stream::once(sent).filter_map(|()| future::ready(None));
    stream::iter(messages).chain(end)
}
