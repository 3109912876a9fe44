//! G: policy, health, outliers.

use std::ops::RangeInclusive;
use std::time::Duration;

use equipoise::policy::{Adaptive, LeastRequest, Policy};
use tonic::Code;

use crate::Fleet;
use crate::balanced::{clean, over, ready};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::rig::rivals::{tower_peak_ewma, tower_pending};

/// Two servers that answer in 20 ms and one that fails in 0.2 ms.
fn sinkhole() -> Fleet {
    let mut options = Options::three(Duration::from_millis(20));
    options[0].work = Duration::from_micros(200);
    options[0].fail = Some((Code::Unavailable, 1_000));
    Fleet::of(options.into())
}

/// G1, a sinkhole, for each policy that looks at load: errors never look like speed.
#[test]
fn g1_adaptive_avoids_a_sinkhole() {
    alone(avoids_a_sinkhole(Adaptive::default()));
}

#[test]
fn g1_least_request_avoids_a_sinkhole() {
    alone(avoids_a_sinkhole(LeastRequest::default()));
}

#[test]
fn g1_least_request_of_all_avoids_a_sinkhole() {
    alone(avoids_a_sinkhole(LeastRequest::full_scan()));
}

async fn avoids_a_sinkhole(policy: impl Policy + Clone + Sync + 'static) {
    let before = Footprint::take();
    let fleet = sinkhole();
    let channel = ready(over(&fleet.addresses()).policy(policy)).await;
    let calls = Load::of(3_000).run(&channel).await;
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_true();
    assert_eq!(verdict.executed, [0, 3_000, 0], "{verdict}");
    assert_eq!(verdict.server("b1"), verdict.failed, "{verdict}");
    assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
    // 2,000 calls a second: 500 ms and 1 s from the start.
    let on_b1 = |ids: RangeInclusive<u64>| {
        let executions = executions.iter().filter(|e| ids.contains(&e.id));
        executions.filter(|e| e.server == "b1").count()
    };
    let (at_first, soon, later) = (on_b1(1..=1_000), on_b1(1_001..=2_000), on_b1(2_001..=3_000));
    println!("  calls on the sinkhole: {at_first}, {soon}, {later} of each thousand");
    // The fault was there, and seen.
    assert!(at_first > 0);
    assert!(soon <= 200, "{soon} of 1,000");
    assert!(later <= 10, "{later} of 1,000");
    clean(channel, fleet, &before).await;
}

/// G1, the control: to a balancer that counts calls under way, failing fast looks like capacity.
#[test]
fn g1_control_p2c_by_pending_calls_falls_for_a_sinkhole() {
    alone(async {
        let fleet = sinkhole();
        let client = tower_pending(&fleet.addresses());
        let verdict = fleet.ledger.audit(&Load::of(4_000).run(&client).await);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(verdict.server("b1"), verdict.failed, "{verdict}");
        assert!(verdict.failed >= 2_000, "{verdict}");
    });
}

/// The same, and to one that looks at latency even more so.
#[test]
fn g1_control_peak_ewma_falls_for_a_sinkhole() {
    alone(async {
        let fleet = sinkhole();
        let client = tower_peak_ewma(&fleet.addresses());
        let verdict = fleet.ledger.audit(&Load::of(4_000).run(&client).await);
        println!("{verdict}");
        verdict.assert_true();
        assert!(verdict.failed >= 2_000, "{verdict}");
    });
}
