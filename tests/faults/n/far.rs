//! N13 and N14: a server that is far away, and a link that comes and goes.

use std::ops::ControlFlow;
use std::time::Duration;

use equipoise::policy::{Adaptive, PeakEwma, Policy};

use crate::rig::clean::{Footprint, alone};
use crate::rig::delay::Delay;
use crate::rig::load::Load;
use crate::rig::middlebox::Middlebox;
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

/// One of three servers is 200 ms away: no errors, and its share falls.
async fn far_away(policy: impl Policy + Clone + Sync + 'static) {
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
    figure("its share", (share * 1e4).round() / 100.0, "%");
    assert!(share < 0.1, "{share}");
    drop((fleet, far));
    clean(channel, &before).await;
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
