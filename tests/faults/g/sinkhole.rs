//! G1 and G2: one server of three fails what it is given, fast or late.

use std::time::Duration;

use equipoise::balancer::{FailurePercentage, OutlierDetection};
use equipoise::policy::{Adaptive, LeastRequest, RoundRobin};
use equipoise::{Channel, Connectivity, MethodConfig};
use tonic::Code;

use super::naive::Naive;
use super::seen::{Sight, ejected, share_of_calls, while_doing};
use super::{SAY_HELLO, detection, judged, load, sinkhole};
use crate::Fleet;
use crate::balanced::{clean, quiet, ready, report};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::ledger::{Execution, Verdict, audit};
use crate::rig::now;
use crate::size;

async fn run(channel: &Channel, fleet: &Fleet, calls: u64) -> (Verdict, Vec<Execution>) {
    let calls = load(calls).run(channel).await;
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_true();
    (verdict, executions)
}

/// G1 for a policy that falls for it: ejection alone puts an end to it.
#[test]
fn g1_ejection_keeps_a_naive_policy_from_a_sinkhole() {
    alone(async {
        let before = Footprint::take();
        let fleet = sinkhole();
        let channel = ready(judged(&fleet.addresses()).policy(Naive)).await;
        let (verdict, executions) = run(&channel, &fleet, size::calls(3_000)).await;
        assert_eq!(verdict.server("b1"), verdict.failed, "{verdict}");
        // 2,000 calls a second.
        let soon = share_of_calls("b1", &executions, 1_001..u64::MAX);
        println!("  the sinkhole's share after 500 ms: {soon}");
        assert!(soon <= 0.01, "{soon}");
        assert!(verdict.failed > 0, "{verdict}");
        clean(channel, fleet, &before).await;
    });
}

/// The control: the same policy where nobody is ejected.
#[test]
fn g1_control_without_ejection_a_naive_policy_falls_for_it() {
    alone(async {
        let before = Footprint::take();
        let fleet = sinkhole();
        let builder = judged(&fleet.addresses()).outlier_detection(None);
        let channel = ready(builder.policy(Naive)).await;
        let (verdict, executions) = run(&channel, &fleet, size::calls(3_000)).await;
        let soon = share_of_calls("b1", &executions, 1_001..u64::MAX);
        assert!(soon >= 0.5, "{soon}: {verdict}");
        clean(channel, fleet, &before).await;
    });
}

/// G1 for calls that may be tried again: none fails.
#[test]
fn g1_retries_hide_a_sinkhole() {
    alone(async {
        let before = Footprint::take();
        let fleet = sinkhole();
        for idempotent in [true, false] {
            let config = MethodConfig::default().with_idempotent(idempotent);
            let builder = judged(&fleet.addresses()).policy(Adaptive::default());
            let channel = ready(builder.method_config(SAY_HELLO, config)).await;
            let mut load = load(size::calls(1_000));
            load.first = 1 + 10_000 * u64::from(idempotent);
            let calls = load.run(&channel).await;
            let mut executions = fleet.ledger.executions();
            executions.retain(|e| e.id >= load.first && e.id < load.first + load.calls);
            let verdict = audit(&calls, &executions);
            println!("idempotent {idempotent}: {verdict}");
            verdict.assert_true();
            let failed_there = verdict.server("b1");
            // The fault was there, and seen; without retries each of those calls fails.
            assert!(failed_there > 0, "{verdict}");
            match idempotent {
                true => assert_eq!(verdict.failed, 0, "{verdict}"),
                false => assert_eq!(verdict.failed, failed_there, "{verdict}"),
            }
            quiet(&channel).await;
        }
        drop(fleet);
        before.restored(crate::PATIENCE).await.expect("all is gone");
    });
}

/// The same for the policy that is nearest to what others have.
#[test]
fn g1_retries_hide_a_sinkhole_from_least_request() {
    alone(async {
        let before = Footprint::take();
        let fleet = sinkhole();
        let config = MethodConfig::default().with_idempotent(true);
        let builder = judged(&fleet.addresses()).policy(LeastRequest::default());
        let channel = ready(builder.method_config(SAY_HELLO, config)).await;
        let (verdict, _) = run(&channel, &fleet, size::calls(1_000)).await;
        assert_eq!(verdict.failed, 0, "{verdict}");
        assert!(verdict.server("b1") > 0, "{verdict}");
        clean(channel, fleet, &before).await;
    });
}

/// Three servers of 1 ms; the first fails each call, in its trailers if it is `late`.
fn failing(late: bool) -> Fleet {
    let mut options = Options::three(Duration::from_millis(1));
    options[0].fail = Some((Code::Unavailable, 1_000));
    options[0].late_status = late;
    Fleet::of(options.into())
}

/// How long calls were sent before the first server was ejected, if it was.
async fn until_ejected(
    late: bool,
    detection: impl Into<Option<OutlierDetection>>,
) -> Option<Duration> {
    let before = Footprint::take();
    let fleet = failing(late);
    let addresses = fleet.addresses();
    let builder = judged(&addresses).outlier_detection(detection);
    let channel = ready(builder.policy(RoundRobin::default())).await;
    let begin = now();
    let load = crate::rig::load::Load {
        rate: 500,
        ..load(1_000)
    };
    let (calls, sights) = while_doing(&channel, &addresses, load.run(&channel)).await;
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("late {late}: {verdict}");
    verdict.assert_true();
    assert_eq!(verdict.server("b1"), verdict.failed, "{verdict}");
    assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
    let ejected = ejected(&sights, 0);
    // Nobody else was.
    let others = |sight: &Sight| sight.out() > 1;
    assert!(!sights.iter().any(others), "{sights:?}");
    if let Some(ejected) = ejected {
        // It looked like one that cannot be reached.
        let out = sights.iter().find(|sight| sight.at == ejected);
        let state = out.map(|sight| sight.endpoints[0].state);
        assert_eq!(state, Some(Connectivity::TransientFailure));
    } else {
        assert!(verdict.failed >= 320, "a third of them: {verdict}");
    }
    clean(channel, fleet, &before).await;
    ejected.map(|ejected| ejected - begin)
}

/// G2: failures that come in trailers alone count like those that come in the head.
#[test]
fn g2_failures_in_trailers_eject_after_five_in_a_row() {
    alone(async {
        for late in [false, true] {
            let by_run = detection().with_failure_percentage(None);
            let took = until_ejected(late, by_run).await;
            let took = took.expect("it was ejected");
            report("ejected by a run", took, Duration::from_secs(2));
        }
    });
}

#[test]
fn g2_failures_in_trailers_eject_by_their_share() {
    alone(async {
        for late in [false, true] {
            let by_share = detection()
                .with_consecutive_failures(None)
                .with_failure_percentage(FailurePercentage::default().with_request_volume(50));
            let took = until_ejected(late, by_share).await;
            let took = took.expect("it was ejected");
            report("ejected by share", took, Duration::from_secs(2));
        }
    });
}

/// The control: without ejection a third of the calls fail for good.
#[test]
fn g2_control_without_ejection_a_third_fails() {
    alone(async {
        for late in [false, true] {
            assert_eq!(until_ejected(late, None).await, None);
        }
    });
}
