//! H7 and H8: calls that take long, sent to a second endpoint as well.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use equipoise::MethodConfig;
use equipoise::policy::RoundRobin;
use equipoise::retry::{HedgingPolicy, RetryBudget};
use tonic::Code;

use super::retries::repeated;
use crate::Fleet;
use crate::balanced::{PATIENCE, clean, over, ready, report, until};
use crate::frames::{FrameServer, Script, Step, code, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::ledger::{Execution, Verdict};
use crate::rig::load::Load;
use crate::size;

const MS: Duration = Duration::from_millis(1);

fn hedged(policy: HedgingPolicy) -> MethodConfig {
    MethodConfig::default().with_hedging(policy)
}

/// One server of three takes half a second for what takes the others a millisecond.
async fn one_slow(config: Option<MethodConfig>, budget: RetryBudget) -> (Verdict, Vec<Execution>) {
    let before = Footprint::take();
    let mut options = Options::three(MS);
    options[0].work = 500 * MS;
    let fleet = Fleet::of(options.into());
    // In turns, so that the slow one is not simply left out.
    let builder = over(&fleet.addresses())
        .policy(RoundRobin::default())
        .outlier_detection(None)
        .retry_budget(budget);
    let builder = match config {
        Some(config) => repeated(builder, config),
        None => builder,
    };
    let channel = ready(builder).await;
    let load = Load {
        rate: 200,
        deadline: Duration::from_secs(5),
        ..Load::of(size::of(300, 2_000))
    };
    let calls = load.run(&channel).await;
    // Those that lost hear of it last.
    until("every attempt has ended", || {
        let executions = fleet.ledger.executions();
        executions.iter().all(|e| e.end.is_some())
    })
    .await;
    let executions = fleet.ledger.executions();
    let verdict = fleet.ledger.audit(&calls);
    println!("{verdict}");
    verdict.assert_true();
    assert_eq!(verdict.failed, 0, "{verdict}");
    clean(channel, fleet, &before).await;
    (verdict, executions)
}

/// Those that were sent again, by their call.
fn pairs(executions: &[Execution]) -> Vec<Vec<&Execution>> {
    let mut calls = BTreeMap::<u64, Vec<&Execution>>::new();
    for execution in executions {
        calls.entry(execution.id).or_default().push(execution);
    }
    calls.into_values().filter(|e| e.len() > 1).collect()
}

/// H7: every call gets one answer, from another endpoint where the first is slow, and the slow one is told to stop.
#[test]
fn h7_a_slow_endpoint_is_hedged_by_another() {
    alone(async {
        let budget = RetryBudget::default().with_share(1.0).with_hedges(1.0);
        let config = hedged(HedgingPolicy::after(50 * MS));
        let (verdict, executions) = one_slow(Some(config), budget).await;
        let pairs = pairs(&executions);
        assert!(
            pairs.len() >= verdict.calls / 5,
            "{}\n{verdict}",
            pairs.len()
        );
        for pair in &pairs {
            assert_eq!(pair.len(), 2, "{pair:?}");
            assert_ne!(pair[0].server, pair[1].server, "the same endpoint again");
            let answered = pair.iter().find(|e| matches!(e.end, Some((_, Code::Ok))));
            let (won, _) = answered.and_then(|e| e.end).expect("one answers");
            for lost in pair.iter().filter_map(|e| e.end) {
                let (at, code) = lost;
                if code == Code::Cancelled {
                    report("told to stop", at.saturating_sub(won), 50 * MS);
                }
            }
        }
        let cancelled = executions.iter();
        let cancelled = cancelled.filter(|e| matches!(e.end, Some((_, Code::Cancelled))));
        assert!(cancelled.count() * 10 >= pairs.len() * 9, "losers run on");
        assert!(verdict.latency(0.9) < 400 * MS, "{verdict}");
    });
}

/// H7: with the default budget no more than a twentieth of the calls is sent twice.
#[test]
fn h7_copies_keep_to_the_budget() {
    alone(async {
        let config = hedged(HedgingPolicy::after(20 * MS));
        let (verdict, executions) = one_slow(Some(config), RetryBudget::default()).await;
        let extra = executions.len() - verdict.calls;
        assert!(
            extra > 0 && extra * 20 <= verdict.calls,
            "{extra}\n{verdict}"
        );
    });
}

/// H7: the delay follows what the method takes.
#[test]
fn h7_the_delay_becomes_the_methods_own() {
    alone(async {
        let budget = RetryBudget::default().with_share(1.0).with_hedges(1.0);
        // Unknown at first: until then nothing that takes half a second is hedged.
        let config = hedged(HedgingPolicy::at_p95_or(Duration::from_secs(3)));
        let fleet = Fleet::start(10 * MS);
        let builder = repeated(over(&fleet.addresses()), config).retry_budget(budget);
        let channel = ready(builder.policy(RoundRobin::default())).await;
        let slow = |id: u64| HelloRequest {
            id,
            work_us: 700_000,
            ..HelloRequest::default()
        };
        let mut client = GreeterClient::new(channel.clone());
        client.say_hello(slow(1_001)).await.expect("it serves");
        let calls = Load {
            rate: 200,
            ..Load::of(150)
        };
        calls.run(&channel).await;
        client.say_hello(slow(1_002)).await.expect("it serves");
        let executions = fleet.ledger.executions();
        let of = |id: u64| executions.iter().filter(move |e| e.id == id);
        assert_eq!((of(1_001).count(), of(1_002).count()), (1, 2));
        let starts: Vec<Duration> = of(1_002).map(|e| e.start).collect();
        let delay = starts[1] - starts[0];
        println!("delay {delay:?}");
        // Told by arrivals: the first may have come some milliseconds late.
        assert!(delay >= 5 * MS && delay < 600 * MS, "{delay:?}");
    });
}

/// H7, the control: without hedging a third of the calls waits for the slow one.
#[test]
fn h7_control_unhedged_calls_wait_for_the_slow_endpoint() {
    alone(async {
        let (verdict, executions) = one_slow(None, RetryBudget::default()).await;
        assert_eq!(executions.len(), verdict.calls);
        assert!(verdict.latency(0.9) >= 400 * MS, "{verdict}");
    });
}

/// A call whose first attempt fails at once, and whose second would be answered, with the copies that this share lets
/// through: how it ended, and after how many attempts.
async fn first_fails(hedges: f64) -> (Code, usize) {
    let server = FrameServer::start(Script {
        stream: stream(|call| match call.nth {
            0 => vec![Step::UntilEnd, Step::TrailersOnly(14)],
            _ => Step::reply(b""),
        }),
        ..Script::default()
    })
    .await;
    let budget = RetryBudget::default()
        .with_share(hedges)
        .with_hedges(hedges)
        .with_reserve(0);
    let config = hedged(HedgingPolicy::after(Duration::from_secs(30)));
    let builder = repeated(over(&[server.address()]), config).retry_budget(budget);
    let channel = ready(builder).await;
    let begun = Instant::now();
    let mut client = GreeterClient::new(channel.clone());
    let answer = client.say_hello(HelloRequest::default()).await;
    report("from call to end", begun.elapsed(), 20 * MS);
    let code = answer.err().map_or(Code::Ok, |status| status.code());
    (code, server.peer(0).await.streams().len())
}

/// H8: the only attempt has failed, and the budget gives no other: the call ends there, and does not wait for a time to
/// come that will not come.
#[test]
fn h8_a_call_that_may_not_be_hedged_ends_with_its_first_failure() {
    alone(async {
        assert_eq!(first_fails(0.0).await, (Code::Unavailable, 1));
    });
}

/// H8, the control: where the budget has something left there is a second attempt at once, and it is answered.
#[test]
fn h8_control_with_budget_left_the_copy_is_the_answer() {
    alone(async {
        assert_eq!(first_fails(1.0).await, (Code::Ok, 2));
    });
}

/// H7, frame by frame: the one that loses is reset, and its window and slot come back.
#[test]
fn h7_the_attempt_that_loses_is_reset() {
    alone(async {
        let before = Footprint::take();
        let silent = FrameServer::start(Script {
            stream: stream(|_| vec![]),
            ..Script::default()
        })
        .await;
        let quick = FrameServer::start(Script::default()).await;
        let budget = RetryBudget::default().with_share(1.0).with_hedges(1.0);
        let config = hedged(HedgingPolicy::after(20 * MS));
        let addresses = [silent.address(), quick.address()];
        let builder = repeated(over(&addresses), config).retry_budget(budget);
        let channel = ready(builder.policy(RoundRobin::default())).await;
        let mut client = GreeterClient::new(channel.clone());
        let peer = silent.peer(0).await;
        // Calls are sent to an endpoint a moment after it is ready.
        let begun = Instant::now();
        while peer.streams().len() < 2 {
            assert!(begun.elapsed() < PATIENCE, "the silent one is never asked");
            let answer = client.say_hello(HelloRequest::default()).await;
            answer.expect("the quick one answers");
        }
        let sent = peer.streams().len();
        peer.until(|frames| frames.iter().filter(|f| f.is(kind::RST_STREAM)).count() == sent)
            .await;
        let reset = peer.wait(|f| f.is(kind::RST_STREAM)).await;
        assert_eq!(reset.code(), code::CANCEL);
        drop((peer, client));
        clean(channel, (silent, quick), &before).await;
    });
}
