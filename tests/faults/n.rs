//! N: TCP and routing.

use std::ops::ControlFlow;
use std::time::Duration;

use tonic::Code;

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::holes;
use crate::rig::load::Load;
use crate::rig::rivals::tonic_balance;
use crate::{Fleet, failed_from};

const WORK: Duration = Duration::from_millis(1);

/// N1, one of three addresses refuses from the start. tonic counts it as ready: about a third of the
/// calls fail there.
#[test]
fn n1_control_tonic_feeds_a_refused_address() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = Fleet::start(WORK);
        fleet.kill(2);
        let refused = holes::refused();
        let addresses = [&fleet.addresses()[..2], &[refused.address]].concat();
        let client = tonic_balance(&addresses);
        let calls = Load::of(4_000).run(&client).await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
        let share = verdict.failed as f64 / 4_000.0;
        assert!((0.1..0.45).contains(&share), "{share}\n{verdict}");
        // Failed calls were never sent, and the others ran once.
        assert_eq!(
            verdict.executed,
            [verdict.failed, verdict.ok, 0],
            "{verdict}"
        );
        drop((client, fleet, refused));
        before
            .restored(Duration::from_secs(5))
            .await
            .expect("nothing is left");
    });
}

/// N2, a backend killed under load. tonic goes on to fail calls long after those in flight.
#[test]
fn n2_control_tonic_keeps_failing_after_a_kill() {
    alone(async {
        let mut fleet = Fleet::start(WORK);
        let client = tonic_balance(&fleet.addresses());
        let load = Load::of(6_000);
        let killed = 2_000;
        let calls = load.run_with(client, |number| {
            if number == killed {
                fleet.kill(1);
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        assert_eq!(
            failed_from(&calls, 1),
            failed_from(&calls, killed / 2),
            "{verdict}"
        );
        // 100 ms later all that was in flight has ended, at 1 ms of work.
        let later = failed_from(&calls, killed + 200);
        assert!(
            later > 3_800 / 10,
            "{later} of 3,800 failed after the kill\n{verdict}"
        );
        let b2 = fleet
            .ledger
            .executions()
            .into_iter()
            .filter(|execution| execution.server == "b2");
        let last = b2
            .map(|execution| execution.id)
            .max()
            .expect("it had calls before");
        assert!(last <= killed + 1, "a killed process took call {last}");
    });
}

/// N7, a connection that breaks in mid-call. tonic ends the call with a code no retry policy looks for;
/// the ledger still knows that it was executed.
#[test]
fn n7_control_tonic_does_not_say_unavailable() {
    alone(async {
        let mut fleet = Fleet::start(WORK);
        let client = tonic_balance(&fleet.addresses()[..1]);
        let request = HelloRequest {
            work_us: 600_000,
            ..Default::default()
        };
        let load = Load {
            request,
            ..Load::of(401)
        };
        let calls = load.run_with(client, |number| {
            if number == 400 {
                fleet.kill(0);
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let verdict = fleet.ledger.audit(&calls[..400]);
        println!("{verdict}");
        assert_eq!((verdict.ok, verdict.lost.len()), (0, 0), "{verdict}");
        assert!(
            verdict.code(Code::Unavailable) < verdict.failed,
            "{verdict}"
        );
        assert!(verdict.executed[1] > 0, "{verdict}");
        // They ended when the connection broke, not at their deadline.
        assert!(
            verdict.latencies[0] < Duration::from_millis(500),
            "{verdict}"
        );
    });
}
