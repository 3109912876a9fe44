//! G: policy, health, outliers.

mod breaking;
mod ejection;
mod exchanged;
mod health;
mod naive;
mod reports;
mod ring;
mod rogue;
mod seen;
mod sinkhole;
mod slow;
mod streams;
mod swapped;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use equipoise::balancer::{MaxEjection, OutlierDetection};
use equipoise::policy::{Adaptive, LeastRequest, Policy};
use equipoise::{Builder, Channel};
use tonic::Code;

use crate::balanced::{clean, ready};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::rig::rivals::{tower_peak_ewma, tower_pending};
use crate::{Fleet, reference, size};

const SAY_HELLO: &str = "/equipoise.demo.v1.Greeter/SayHello";

/// The reference settings' ejection of those who fail.
fn detection() -> OutlierDetection {
    let second = Duration::from_secs(1);
    OutlierDetection::default()
        .with_interval(second)
        .with_base_ejection_time(2 * second)
        .with_slow_start(second)
        .with_max_ejection(MaxEjection::Share(50))
}

/// The reference channel, where those who fail are ejected.
fn judged(addresses: &[SocketAddr]) -> Builder<Channel> {
    reference(addresses).outlier_detection(detection())
}

/// The load of a row that may be run at any size: so many calls, 2,000 a second.
fn load(calls: u64) -> Load {
    Load::of(calls)
}

impl Fleet {
    /// From now on the server at `index` behaves as `change` makes its options: work, failures and health.
    fn tell(&mut self, index: usize, change: impl FnOnce(&mut Options)) {
        change(&mut self.options[index]);
        let server = self.servers[index].as_ref().expect("it runs");
        server.tell(&self.options[index]);
    }
}

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
    let channel = ready(judged(&fleet.addresses()).policy(policy)).await;
    let made = size::calls(3_000);
    let calls = load(made).run(&channel).await;
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_true();
    assert_eq!(verdict.executed, [0, made as usize, 0], "{verdict}");
    assert_eq!(verdict.server("b1"), verdict.failed, "{verdict}");
    assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
    // 2,000 calls a second: 500 ms and 1 s from the start.
    let on_b1 = |ids: RangeInclusive<u64>| {
        let executions = executions.iter().filter(|e| ids.contains(&e.id));
        executions.filter(|e| e.server == "b1").count()
    };
    let (at_first, soon, later) = (on_b1(1..=1_000), on_b1(1_001..=2_000), on_b1(2_001..=made));
    println!(
        "  calls on the sinkhole: {at_first}, {soon} of the first thousands, {later} of the rest"
    );
    let rest = made as usize - 2_000;
    size::figure(
        "its share after 1 s",
        100.0 * later as f64 / rest as f64,
        "%",
    );
    // The fault was there, and seen.
    assert!(at_first > 0);
    assert!(soon <= 200, "{soon} of 1,000");
    assert!(100 * later <= rest, "{later} of {rest}");
    clean(channel, fleet, &before).await;
}

/// G1, the control: to a balancer that counts calls under way, failing fast looks like capacity.
#[test]
fn g1_control_p2c_by_pending_calls_falls_for_a_sinkhole() {
    alone(async {
        let fleet = sinkhole();
        let client = tower_pending(&fleet.addresses());
        let verdict = fleet.ledger.audit(&load(4_000).run(&client).await);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(verdict.server("b1"), verdict.failed, "{verdict}");
        assert!(verdict.failed >= 2_000, "{verdict}");
    });
}

/// The same, and to one that looks at latency no less: of 4,000 calls it gave 2,600 to 2,720 to the sinkhole in ten runs,
/// two thirds, as often as it is one of the two that are drawn; on a machine with twice as much to do as it has cores
/// 2,350 to 2,590. The bound leaves room for that: half is demanded of the control above, which the row names.
#[test]
fn g1_control_peak_ewma_falls_for_a_sinkhole() {
    alone(async {
        let fleet = sinkhole();
        let client = tower_peak_ewma(&fleet.addresses());
        let verdict = fleet.ledger.audit(&load(4_000).run(&client).await);
        println!("{verdict}");
        verdict.assert_true();
        // A fair share would be a third.
        assert!(verdict.failed >= verdict.calls * 2 / 5, "{verdict}");
    });
}
