//! G: policy, health, outliers.

use std::time::Duration;

use tonic::Code;

use crate::Fleet;
use crate::rig::clean::alone;
use crate::rig::greeter::Options;
use crate::rig::load::Load;
use crate::rig::rivals::{tower_peak_ewma, tower_pending};

/// Two servers that answer in 20 ms and one that fails in 0.2 ms.
fn sinkhole() -> Fleet {
    let mut options = Options::three(Duration::from_millis(20));
    options[0].work = Duration::from_micros(200);
    options[0].fail = Some((Code::Unavailable, 1_000));
    Fleet::of(options.into())
}

/// G1, a sinkhole: to a balancer that counts calls under way, failing fast looks like capacity.
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
