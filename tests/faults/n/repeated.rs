//! N2 and N7 for calls that may be carried out twice: nobody notices.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use equipoise::{Builder, Channel, MethodConfig};

use crate::balanced::ready;
use crate::frames::{FrameServer, Script, Step, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::rig::now;
use crate::size;
use crate::wire::{Processed, executions};
use crate::{Fleet, clean, reference, report, status};

/// The reference channel for calls that may be carried out twice, with the retries and the budget that are the default.
fn repeatable(addresses: &[SocketAddr]) -> Builder<Channel> {
    let config = MethodConfig::default().with_idempotent(true);
    reference(addresses).service_config("equipoise.demo.v1.Greeter", config)
}

/// N2, a backend killed under load: the calls that were on it are carried out once more, and no others are.
#[test]
fn n2_a_kill_goes_unnoticed_where_calls_may_run_twice() {
    alone(async {
        let before = Footprint::take();
        // Long enough that there is something in flight.
        let mut fleet = Fleet::start(Duration::from_millis(20));
        let addresses = fleet.addresses();
        let channel = ready(repeatable(&addresses)).await;
        let load = Load::of(size::calls(1_000));
        let killed = size::fault_before(load.calls);
        let (mut in_flight, mut known) = (0, 0);
        let calls = load.run_with(channel.clone(), |number| {
            if number == killed {
                let b2 = status(&channel, addresses[1]);
                (in_flight, known) = (b2.in_flight as usize, b2.picks);
                fleet.kill(1);
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let executed = fleet.ledger.executions();
        let verdict = audit(&calls, &executed);
        // Picked at the moment of the kill, before anybody could know.
        let unknowing = (status(&channel, addresses[1]).picks - known) as usize;
        println!("{verdict}\n  {in_flight} in flight at the kill, {unknowing} picked then");
        verdict.assert_true();
        assert_eq!(verdict.failed, 0, "{verdict}");
        // The fault was there, and seen: calls that it took and never answered. Others may have lost their answer.
        let cut = executed.iter().filter(|e| e.end.is_none());
        let cut: BTreeSet<u64> = cut.map(|e| e.id).collect();
        let repeated: BTreeSet<u64> = verdict.repeated.iter().copied().collect();
        assert!(!cut.is_empty(), "{verdict}");
        assert!(repeated.is_superset(&cut), "{repeated:?} {cut:?}");
        // What was on it, and nothing else, was sent again, and once.
        let most = in_flight + unknowing;
        assert!(verdict.retries <= most, "{verdict}");
        assert_eq!(executed.len(), calls.len() + repeated.len(), "{verdict}");
        for id in repeated {
            let mut there = executed.iter().filter(|e| e.id == id);
            assert!(there.any(|e| e.server == "b2"), "{id} ran twice elsewhere");
        }
        drop(fleet);
        clean(channel, &before).await;
    });
}

/// N7, a connection to the only server reset in mid-call: what was on it is sent again on a new one.
#[test]
fn n7_a_reset_goes_unnoticed_where_calls_may_run_twice() {
    alone(async {
        let before = Footprint::take();
        let load = Load::of(size::calls(1_000));
        let reset = size::fault_before(load.calls);
        // The first connection answers so many calls, and leaves those that follow without an answer.
        let answered = reset as usize - 20;
        let script = stream(move |call| match (call.connection, call.nth < answered) {
            (0, false) => Vec::new(),
            _ => Step::reply(b""),
        });
        let server = FrameServer::start(Script {
            stream: script,
            ..Script::default()
        })
        .await;
        let channel = ready(repeatable(&[server.address()])).await;
        let old = server.peer(0).await;
        let mut at = None;
        let calls = load.run_with(channel.clone(), |number| {
            let heads = || old.count(|frame| frame.is(kind::HEADERS));
            // So that some are known to be in flight.
            if at.is_none() && number >= reset && heads() >= answered + 10 {
                at = Some(now());
                old.kill();
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let at = at.expect("it was reset");
        let new = server.peer(1).await;
        let first = executions(&old, "old", |stream| {
            match (stream as usize) < 2 * answered {
                true => Processed::Answered,
                false => Processed::Broken,
            }
        });
        let broken = first.iter().filter(|e| e.end.is_none());
        let broken: BTreeSet<u64> = broken.map(|e| e.id).collect();
        let second = executions(&new, "new", |_| Processed::Answered);
        let verdict = audit(&calls, &[first, second].concat());
        println!("{verdict}\n  {} in flight at the reset", broken.len());
        verdict.assert_true();
        assert_eq!(verdict.failed, 0, "{verdict}");
        // The fault was there, and seen.
        assert!(broken.len() >= 9, "{verdict}");
        let repeated: BTreeSet<u64> = verdict.repeated.iter().copied().collect();
        assert!(repeated.is_superset(&broken), "{repeated:?} {broken:?}");
        // Answers may have been lost with the connection.
        assert!(repeated.len() <= broken.len() + 10, "{verdict}");
        let ends = calls.iter().filter(|call| broken.contains(&call.id));
        let ends = ends.filter_map(|call| call.end.as_ref().map(|end| end.at));
        let last = ends.max().expect("there are some");
        report(
            "the last of them was answered after the reset",
            last.saturating_sub(at),
            Duration::from_millis(300),
        );
        assert_eq!(server.connections(), 2);
        drop((server, old, new));
        clean(channel, &before).await;
    });
}
