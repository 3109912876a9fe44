//! Limits on calls in flight, and calls that are not sent for the servers' sake.

use std::ops::ControlFlow;
use std::time::Duration;

use equipoise::policy::RoundRobin;
use equipoise::retry::Throttling;
use equipoise::{Builder, Channel};
use tonic::Code;

use crate::balanced::{clean, in_flight, ready, report, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::ledger::{Call, Execution, audit};
use crate::rig::load::Load;
use crate::{Fleet, reference};

/// Long beyond each deadline.
const FOREVER: Duration = Duration::from_secs(3_600);

/// Three servers of 1 ms, the first `hanging` of which answer nothing.
fn fleet(hanging: usize) -> Fleet {
    let mut options = Options::three(Duration::from_millis(1));
    for options in &mut options[..hanging] {
        options.work = FOREVER;
    }
    Fleet::of(options.into())
}

/// By turns and without ejection: nothing but the limits keeps calls from a server.
fn by_turns(fleet: &Fleet) -> Builder<Channel> {
    reference(&fleet.addresses())
        .policy(RoundRobin::default())
        .outlier_detection(None)
}

/// The most calls that were under way at `server` at the same time.
fn most_at(server: &str, executions: &[Execution]) -> i32 {
    let there = executions.iter().filter(|e| e.server == server);
    let mut steps: Vec<(Duration, i32)> = there
        .flat_map(|e| {
            let end = e.end.map(|(at, _)| (at, -1));
            [Some((e.start, 1)), end].into_iter().flatten()
        })
        .collect();
    // Ends come before beginnings of the same moment.
    steps.sort_unstable();
    let mut most = 0;
    steps.into_iter().fold(0, |now, (_, step)| {
        most = most.max(now + step);
        now + step
    });
    most
}

/// How long those of the calls took that ended with `code`, the longest of them.
fn longest(calls: &[Call], code: Code) -> Duration {
    let ends = calls.iter().filter_map(|call| {
        let end = call.end.as_ref().filter(|end| end.code == code)?;
        Some(end.at - call.start)
    });
    ends.max().unwrap_or_default()
}

/// A server that hangs costs as many calls as it may have, and the others go elsewhere.
#[test]
fn a_server_that_hangs_costs_its_limit_and_no_more() {
    alone(async {
        let before = Footprint::take();
        let fleet = fleet(1);
        let channel = ready(by_turns(&fleet).max_in_flight_per_endpoint(10)).await;
        // Over before the first deadline has passed.
        let verdict = fleet.ledger.audit(&Load::of(1_000).run(&channel).await);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(verdict.server("b1"), 10, "{verdict}");
        assert_eq!(verdict.code(Code::DeadlineExceeded), 10, "{verdict}");
        assert_eq!(verdict.failed, 10, "{verdict}");
        clean(channel, fleet, &before).await;
    });
}

/// The control: without a limit it costs a third.
#[test]
fn control_without_a_limit_a_server_that_hangs_costs_a_third() {
    alone(async {
        let before = Footprint::take();
        let fleet = fleet(1);
        let channel = ready(by_turns(&fleet)).await;
        let verdict = fleet.ledger.audit(&Load::of(1_000).run(&channel).await);
        println!("{verdict}");
        verdict.assert_true();
        assert!(verdict.code(Code::DeadlineExceeded) >= 300, "{verdict}");
        clean(channel, fleet, &before).await;
    });
}

/// Where all hang: each has its limit, then the line fills, and the rest is turned away at once.
#[test]
fn beyond_all_limits_calls_wait_and_beyond_the_line_they_fail_at_once() {
    alone(async {
        let before = Footprint::take();
        let fleet = fleet(3);
        let builder = by_turns(&fleet).max_in_flight_per_endpoint(10);
        let channel = ready(builder.queue_limit(20)).await;
        // Nobody's time is over before that of all who wait.
        let first = Load {
            deadline: Duration::from_secs(2),
            ..Load::of(30)
        };
        let first = first.run(&channel);
        let rest = async {
            until("all are full", || in_flight(&channel) == 30).await;
            let load = Load {
                first: 31,
                deadline: Duration::from_millis(400),
                ..Load::of(170)
            };
            load.run(&channel).await
        };
        let (mut calls, rest) = tokio::join!(first, rest);
        let told = longest(&rest, Code::ResourceExhausted);
        calls.extend(rest);
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        for server in ["b1", "b2", "b3"] {
            assert_eq!(verdict.server(server), 10, "{verdict}");
        }
        assert_eq!(verdict.executed, [170, 30, 0], "{verdict}");
        assert_eq!(verdict.code(Code::DeadlineExceeded), 30 + 20, "{verdict}");
        assert_eq!(verdict.code(Code::ResourceExhausted), 150, "{verdict}");
        report("turned away", told, Duration::from_millis(20));
        clean(channel, fleet, &before).await;
    });
}

/// Calls beyond the limits wait, and each is served when another ends: more than one of them at a time.
#[test]
fn calls_beyond_the_limits_are_served_in_their_turn() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(Duration::from_millis(20));
        let builder = by_turns(&fleet).max_in_flight_per_endpoint(5);
        let channel = ready(builder).await;
        let load = Load {
            deadline: Duration::from_secs(10),
            ..Load::of(600)
        };
        // 15 of 20 ms: 750 a second where 2,000 are asked for.
        let calls = load.run(&channel).await;
        let executions = fleet.ledger.executions();
        let verdict = audit(&calls, &executions);
        println!("{verdict}");
        verdict.assert_unnoticed();
        for server in ["b1", "b2", "b3"] {
            assert_eq!(most_at(server, &executions), 5, "{server}");
        }
        // All slots were in use while there was a line: 0.8 s at the least, and not much more.
        let (first, last) = (
            executions.iter().map(|e| e.start).min(),
            executions.iter().filter_map(|e| Some(e.end?.0)).max(),
        );
        let took = last.unwrap_or_default() - first.unwrap_or_default();
        report("600 calls in 15 slots", took, Duration::from_millis(800));
        clean(channel, fleet, &before).await;
    });
}

/// A channel has no more calls in flight than it may, and by option none waits.
#[test]
fn a_channel_has_no_more_in_flight_than_it_may() {
    alone(async {
        let before = Footprint::take();
        let fleet = fleet(3);
        let builder = by_turns(&fleet).max_in_flight(20).queue_limit(0);
        let channel = ready(builder).await;
        let mut most = 0;
        let calls = Load::of(400)
            .run_with(channel.clone(), |_| {
                most = most.max(in_flight(&channel));
                ControlFlow::Continue(())
            })
            .await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(most, 20);
        assert_eq!(verdict.executed, [380, 20, 0], "{verdict}");
        assert_eq!(verdict.code(Code::ResourceExhausted), 380, "{verdict}");
        let told = longest(&calls, Code::ResourceExhausted);
        report("turned away", told, Duration::from_millis(20));
        clean(channel, fleet, &before).await;

        // The control.
        let fleet = self::fleet(3);
        let channel = ready(by_turns(&fleet).queue_limit(0)).await;
        let verdict = fleet.ledger.audit(&Load::of(400).run(&channel).await);
        assert_eq!(verdict.executed, [0, 400, 0], "{verdict}");
        clean(channel, fleet, &before).await;
    });
}

fn refusing() -> Fleet {
    let mut options = Options::three(Duration::from_millis(1));
    for options in &mut options {
        options.fail = Some((Code::Unavailable, 1_000));
    }
    Fleet::of(options.into())
}

fn throttled() -> Throttling {
    Throttling::default().with_window(Duration::from_secs(10))
}

/// Servers that refuse everything are asked ever more rarely.
#[test]
fn servers_that_refuse_everything_get_few_calls() {
    alone(async {
        let before = Footprint::take();
        let fleet = refusing();
        let channel = ready(by_turns(&fleet).throttling(throttled())).await;
        let verdict = fleet.ledger.audit(&Load::of(1_000).run(&channel).await);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(verdict.code(Code::Unavailable), 1_000, "{verdict}");
        // One of n for the n-th call, and those that came before the first had ended.
        let [_, sent, more] = verdict.executed;
        assert!((1..=60).contains(&sent) && more == 0, "{verdict}");
        clean(channel, fleet, &before).await;
    });
}

/// The control: unthrottled they get all.
#[test]
fn control_unthrottled_servers_that_refuse_get_all_calls() {
    alone(async {
        let before = Footprint::take();
        let fleet = refusing();
        let channel = ready(by_turns(&fleet)).await;
        let verdict = fleet.ledger.audit(&Load::of(1_000).run(&channel).await);
        println!("{verdict}");
        assert_eq!(verdict.executed, [0, 1_000, 0], "{verdict}");
        clean(channel, fleet, &before).await;
    });
}

/// Servers that recover get all calls again.
#[test]
fn throttling_ends_when_the_servers_recover() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = Fleet::start(Duration::from_millis(1));
        let channel = ready(by_turns(&fleet).throttling(throttled())).await;
        // 200 good ones, 600 refused; then the accepted ones grow with what is let through.
        let calls = Load::of(3_000)
            .run_with(channel.clone(), |number| {
                let fail = match number {
                    200 => Some((Code::Unavailable, 1_000)),
                    800 => None,
                    _ => return ControlFlow::Continue(()),
                };
                for server in 0..3 {
                    fleet.tell(server, |options| options.fail = fail);
                }
                ControlFlow::Continue(())
            })
            .await;
        let executions = fleet.ledger.executions();
        let verdict = audit(&calls, &executions);
        println!("{verdict}");
        verdict.assert_true();
        let sent = |ids: std::ops::Range<u64>| {
            let sent = executions.iter().filter(|e| ids.contains(&e.id));
            sent.count()
        };
        let (refused, last) = (sent(601..801), sent(2_501..3_001));
        println!("  sent of the last 200 refused {refused}, of the last 500 {last}");
        assert!((1..=180).contains(&refused), "{refused} of 200");
        assert_eq!(last, 500, "all again");
        assert_eq!(crate::failed_from(&calls, 2_501), 0);
        clean(channel, fleet, &before).await;
    });
}
