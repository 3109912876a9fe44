//! N: TCP and routing.

mod connecting;
mod families;
mod far;
mod files;
mod namespaces;
mod narrow;
mod repeated;
mod shared;
mod silent;
mod wave;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use equipoise::Connectivity;
use equipoise::balancer::Backoff;
use tonic::Code;

use crate::frames::{FrameServer, Script, Step, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::rig::rivals::tonic_balance;
use crate::rig::{holes, now, timer};
use crate::size::{self, figure};
use crate::wire::{Processed, Shut, executions};
use crate::{Fleet, all_ready, clean, failed_from, reference, report, status};

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
        let made = size::calls(4_000);
        let calls = Load::of(made).run(&client).await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
        let share = verdict.failed as f64 / made as f64;
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

/// The same on our channel: the dead address gets no call, and nobody notices it.
#[test]
fn n1_refused_from_the_start() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = Fleet::start(WORK);
        fleet.kill(2);
        let refused = holes::refused();
        let addresses = [&fleet.addresses()[..2], &[refused.address]].concat();
        // Calls begin before anything is connected.
        let channel = reference(&addresses).build().expect("in range");
        let calls = Load::of(size::calls(1_000)).run(&channel).await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_unnoticed();
        assert!(
            verdict.server("b1") > 0 && verdict.server("b2") > 0,
            "{verdict}"
        );
        let dead = status(&channel, refused.address);
        assert_eq!(
            (dead.state, dead.picks),
            (Connectivity::TransientFailure, 0),
            "{dead:?}"
        );
        let why = dead.why.expect("a failed endpoint says why").to_lowercase();
        assert!(why.contains("refused"), "{why}");
        drop((fleet, refused));
        clean(channel, &before).await;
    });
}

/// And it is dialled politely: at 0 s, then after pauses of 0.2 s × 1.6 ± 20 %, whatever the load. tonic
/// dials it for each call it sends there.
#[test]
fn n1_connects_are_paced() {
    alone(async {
        let window = size::of(Duration::from_secs(3), Duration::from_secs(60));
        let before = Footprint::take();
        let fleet = Fleet::start(WORK);
        let shut = Shut::start().await;
        let addresses = [&fleet.addresses()[..2], &[shut.address]].concat();
        let begin = Instant::now();
        let channel = match size::is_full() {
            // The criterion is about gRPC's own backoff: 1 s × 1.6 ± 20 %.
            true => reference(&addresses).backoff(Backoff::default()),
            false => reference(&addresses),
        };
        let channel = channel.build().expect("in range");
        let load = Load {
            rate: 400,
            ..Load::of(size::calls(1_200))
        };
        let verdict = fleet.ledger.audit(&load.run(&channel).await);
        timer::until(begin + window).await;
        let (ours, took) = (shut.accepted(), begin.elapsed());
        println!("{verdict}\n  {ours} connects in {took:?}");
        verdict.assert_unnoticed();
        figure("connects in the window", ours as f64, "");
        // With the shortest pauses: 0, 0.16, 0.42, 0.83, 1.48, 2.53, 4.21 s, and then 1.6 s or more. With
        // the longest: 0, 0.24, 0.62, 1.24, 2.22, 3.79 s.
        let late = took.saturating_sub(window).as_millis() as usize / 1_200;
        let most = size::of(6 + late, 10);
        assert!((5..=most).contains(&ours), "{ours} connects in {took:?}");

        let client = tonic_balance(&addresses);
        let load = Load {
            first: 10_001,
            ..load
        };
        load.run(&client).await;
        let tonics = shut.accepted() - ours;
        println!("  tonic: {tonics} connects");
        figure("tonic's, for as many calls", tonics as f64, "");
        assert!(tonics > 10 * ours, "tonic connected {tonics} times");
        drop((client, fleet, shut));
        clean(channel, &before).await;
    });
}

/// N2, a backend killed under load. tonic goes on to fail calls long after those in flight.
#[test]
fn n2_control_tonic_keeps_failing_after_a_kill() {
    alone(async {
        let mut fleet = Fleet::start(WORK);
        let client = tonic_balance(&fleet.addresses());
        let load = Load::of(size::calls(6_000));
        let killed = load.calls / 3;
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
        let after = load.calls - killed - 200;
        // 100 ms later all that was in flight has ended, at 1 ms of work.
        let later = failed_from(&calls, killed + 200);
        assert!(
            later as u64 > after / 10,
            "{later} of {after} failed after the kill\n{verdict}"
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

/// The same on our channel: only the calls that were on it fail.
#[test]
fn n2_killed_under_load() {
    alone(async {
        let before = Footprint::take();
        // Long enough that there is something in flight.
        let mut fleet = Fleet::start(Duration::from_millis(20));
        let addresses = fleet.addresses();
        let channel = all_ready(&addresses).await;
        let load = Load::of(size::calls(2_000));
        let killed = size::fault_before(load.calls);
        let (mut in_flight, mut picks) = (0, Vec::new());
        let calls = load.run_with(channel.clone(), |number| {
            let b2 = status(&channel, addresses[1]);
            if number == killed {
                in_flight = b2.in_flight as usize;
                fleet.kill(1);
            }
            if number >= killed {
                picks.push(b2.picks);
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let verdict = fleet.ledger.audit(&calls);
        // Picked at the moment of the kill, before anybody could know: 0, nearly always.
        let unknowing = (picks[picks.len() - 1] - picks[0]) as usize;
        println!("{verdict}\n  {in_flight} in flight at the kill, {unknowing} picked then");
        verdict.assert_true();
        assert!(
            verdict.failed > 0 && verdict.failed <= in_flight + unknowing,
            "{verdict}"
        );
        assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
        assert!(verdict.repeated.is_empty(), "{verdict}");
        let last = picks
            .iter()
            .position(|&count| count == picks[picks.len() - 1]);
        let last = Duration::from_micros(500) * last.expect("it is there") as u32;
        report("last pick after the kill", last, Duration::from_millis(50));
        let dead = status(&channel, addresses[1]);
        assert_eq!(
            dead.outcome(Code::Unavailable) as usize,
            verdict.failed,
            "{dead:?}"
        );
        assert_eq!(dead.state, Connectivity::TransientFailure, "{dead:?}");
        drop(fleet);
        clean(channel, &before).await;
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

/// The same by a TCP reset on our channel: UNAVAILABLE, nothing is sent again, and the next calls find a
/// new connection.
#[test]
fn n7_reset_in_mid_call() {
    alone(async {
        let before = Footprint::take();
        // The first connection never answers.
        let script = stream(|call| match call.connection {
            0 => Vec::new(),
            _ => Step::reply(b""),
        });
        let server = FrameServer::start(Script {
            stream: script,
            ..Script::default()
        })
        .await;
        let channel = all_ready(&[server.address()]).await;
        let old = server.peer(0).await;
        let load = Load::of(size::calls(1_000));
        // All before it are in flight.
        let reset = size::of(200, 500);
        let mut at = None;
        let calls = load.run_with(channel.clone(), |number| {
            if number == reset {
                at = Some(now());
                old.kill();
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let at = at.expect("it was reset");
        let new = server.peer(1).await;
        let broken = executions(&old, "old", |_| Processed::Broken);
        let answered = executions(&new, "new", |_| Processed::Answered);
        let verdict = audit(&calls, &[broken, answered].concat());
        println!("{verdict}");
        verdict.assert_true();
        assert!(verdict.repeated.is_empty(), "{verdict}");
        assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
        // What was in flight failed (but for calls of that very moment that were not written yet), and
        // nothing that began when that was known.
        let (before_it, after_it) = calls.split_at(reset as usize);
        assert!(
            failed_from(before_it, 1) + 10 > before_it.len(),
            "{verdict}"
        );
        let ends = before_it.iter().filter_map(|call| call.end.as_ref());
        let known = ends.map(|end| end.at).max().expect("they ended");
        for call in after_it {
            let end = call.end.as_ref().expect("it ended");
            assert!(end.code == Code::Ok || call.start <= known, "{call:?}");
        }
        report(
            "calls ended after the reset",
            known.saturating_sub(at),
            Duration::from_millis(20),
        );
        let answers = after_it.iter().filter_map(|call| call.end.as_ref());
        let first = answers
            .filter(|end| end.code == Code::Ok)
            .map(|end| end.at)
            .min();
        let first = first.expect("some were answered");
        report(
            "first answer after the reset",
            first.saturating_sub(at),
            Duration::from_millis(300),
        );
        assert_eq!(server.connections(), 2);
        drop((server, old, new));
        clean(channel, &before).await;
    });
}
