//! N13 and N14: a server that is far away, and a link that comes and goes.

use std::ops::ControlFlow;
use std::time::Duration;

use equipoise::policy::{Adaptive, PeakEwma, Policy, RoundRobin};

use crate::rig::clean::{Footprint, alone};
use crate::rig::delay::Delay;
use crate::rig::ledger::Verdict;
use crate::rig::load::Load;
use crate::rig::middlebox::Middlebox;
use crate::rig::rivals::tonic_balance;
use crate::rig::timer;
use crate::size::{self, figure};
use crate::{Fleet, clean, failed_from, is_ready, reference, report, status, until};

const WORK: Duration = Duration::from_millis(1);

#[test]
fn n13_a_far_server_under_peak_ewma() {
    alone(far_away(PeakEwma::default()));
}

#[test]
fn n13_a_far_server_under_adaptive() {
    alone(far_away(Adaptive::default()));
}

/// N13, the control: in turns it keeps its third, and those calls are late.
#[test]
fn n13_control_in_turns_a_far_server_keeps_its_third() {
    alone(async {
        let (share, verdict) = share_of_far(RoundRobin::default()).await;
        assert!((share - 1.0 / 3.0).abs() < 0.02, "{share}");
        assert!(
            verdict.latency(0.8) >= Duration::from_millis(200),
            "{verdict}"
        );
    });
}

async fn far_away(policy: impl Policy + Clone + Sync + 'static) {
    let (share, _) = share_of_far(policy).await;
    figure("its share", (share * 1e4).round() / 100.0, "%");
    assert!(share < 0.1, "{share}");
}

/// One of three servers is 200 ms away: no errors. Its share once that may be known.
async fn share_of_far(policy: impl Policy + Clone + Sync + 'static) -> (f64, Verdict) {
    let before = Footprint::take();
    let fleet = Fleet::start(WORK);
    let far = Delay::start(fleet.addresses()[1], Duration::from_millis(100));
    let mut addresses = fleet.addresses();
    addresses[1] = far.address;
    let channel = reference(&addresses)
        .policy(policy)
        .build()
        .expect("in range");
    until("every endpoint is ready", || is_ready(&channel)).await;
    let load = Load {
        rate: 1_000,
        ..Load::of(size::of(2_000, 10_000))
    };
    // Two seconds to learn, in the full run.
    let half = load.calls / 2;
    let mut known = 0;
    let calls = load.run_with(channel.clone(), |number| {
        if number == half {
            known = status(&channel, far.address).picks;
        }
        ControlFlow::Continue(())
    });
    let calls = calls.await;
    let verdict = fleet.ledger.audit(&calls);
    println!("{verdict}");
    verdict.assert_unnoticed();
    let share = (status(&channel, far.address).picks - known) as f64 / half as f64;
    drop((fleet, far));
    clean(channel, &before).await;
    (share, verdict)
}

/// N14: the link to one server goes and comes, again and again.
#[test]
fn n14_a_link_that_flaps() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(WORK);
        let link = Middlebox::before(fleet.addresses()[1]);
        let mut addresses = fleet.addresses();
        addresses[1] = link.address;
        let channel = crate::all_ready(&addresses).await;
        let load = Load {
            rate: 500,
            ..Load::default()
        };
        let running = load.run_until_stopped(&channel);
        let flaps = size::of(6, 20);
        let (down, up) = size::of((60, 140), (200, 800));
        for _ in 0..flaps {
            link.stop();
            timer::pause(Duration::from_millis(down)).await;
            link.go();
            timer::pause(Duration::from_millis(up)).await;
        }
        let back = until("all are ready", || is_ready(&channel)).await;
        let calls = running.stop().await;
        report("READY after the last one", back, Duration::from_secs(3));
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        // Calls wait for the link, shorter than their deadline.
        verdict.assert_true();
        assert_eq!(failed_from(&calls, 0), 0, "{verdict}");
        figure("connects", link.accepted() as f64, "");
        assert!(link.accepted() <= 40, "{} connects", link.accepted());
        drop((fleet, link));
        clean(channel, &before).await;
    });
}

/// N14, the control: who has that link alone waits whenever it is down.
#[test]
fn n14_control_calls_on_that_link_alone_wait_for_it() {
    alone(async {
        let fleet = Fleet::start(WORK);
        let link = Middlebox::before(fleet.addresses()[1]);
        let client = tonic_balance(&[link.address]);
        let load = Load {
            rate: 500,
            ..Load::default()
        };
        let running = load.run_until_stopped(&client);
        let down = Duration::from_millis(100);
        for _ in 0..3 {
            timer::pause(down).await;
            link.stop();
            timer::pause(down).await;
            link.go();
        }
        let verdict = fleet.ledger.audit(&running.stop().await);
        println!("{verdict}");
        // Half of the time, and on average for half of that.
        assert!(verdict.latency(0.8) >= down / 4, "{verdict}");
        assert!(verdict.worst() >= down * 8 / 10, "{verdict}");
    });
}
