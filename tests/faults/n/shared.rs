//! N17: one address for many servers, as a Kubernetes ClusterIP or a load balancer in TCP mode has.

use std::time::Duration;

use equipoise::{Builder, Channel};

use crate::Fleet;
use crate::balanced::{clean, over, ready};
use crate::rig::clean::{Footprint, alone};
use crate::rig::ledger::{Verdict, audit};
use crate::rig::load::Load;
use crate::rig::middlebox::Middlebox;
use crate::size;

/// How long a connection may be used.
fn age() -> Duration {
    Duration::from_secs(size::of(1, 5))
}

/// A new server comes to an address that has one already, after a fifth of the load: from then on new connections lead to
/// it. What it was given of the last three fifths, as a share, and how many connections there were.
async fn scaled_up(
    with: impl FnOnce(Builder<Channel>) -> Builder<Channel>,
) -> (Verdict, f64, usize) {
    let before = Footprint::take();
    let fleet = Fleet::start(Duration::from_millis(1));
    let servers = fleet.addresses();
    let shared = Middlebox::before(servers[0]);
    let channel = ready(with(over(&[shared.address]))).await;
    let rate = 400;
    let load = Load {
        rate,
        // The last three fifths are three times the age.
        ..Load::of(u64::from(rate) * age().as_secs() * 5)
    };
    let joins_at = load.calls / 5;
    let calls = load.run_with(channel.clone(), |number| {
        if number == joins_at {
            shared.moves_to(servers[1]);
        }
        std::ops::ControlFlow::Continue(())
    });
    let calls = calls.await;
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_unnoticed();
    let late = executions.iter().filter(|e| e.id > 2 * joins_at);
    let (all, there) = late.fold((0, 0), |(all, there), execution| {
        (all + 1, there + usize::from(execution.server == "b2"))
    });
    let connections = shared.accepted();
    clean(channel, (fleet, shared), &before).await;
    (
        verdict,
        f64::from(there as u32) / f64::from(all),
        connections,
    )
}

/// Connections that may not grow old find the new server, and no call notices.
#[test]
fn n17_connections_of_a_certain_age_find_new_servers() {
    alone(async {
        let (_, share, connections) = scaled_up(|b| b.max_connection_age(age())).await;
        size::figure("share of the new server", share * 100.0, "%");
        assert!(share >= 0.2, "{share}");
        // In five ages and no sooner than a fifth before each.
        assert!((3..=8).contains(&connections), "{connections} connections");
    });
}

/// The control: by default a connection is used as long as it works, and nobody finds the new server.
#[test]
fn n17_control_a_connection_that_works_is_kept() {
    alone(async {
        let (_, share, connections) = scaled_up(|builder| builder).await;
        assert_eq!((share, connections), (0.0, 1));
    });
}
