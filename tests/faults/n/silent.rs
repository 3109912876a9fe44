//! N3, N5 and N6: servers and networks that fall silent without a word.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use equipoise::policy::{Adaptive, LeastRequest, Policy, RoundRobin};
use equipoise::{Builder, Channel, Connectivity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::frames::{FrameServer, Script, Step, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::ledger::Call;
use crate::rig::load::Load;
use crate::rig::middlebox::Middlebox;
use crate::rig::rivals::tonic_balance;
use crate::rig::{now, timer};
use crate::size::{self, figure};
use crate::{Fleet, clean, failed_from, is_ready, reference, report, status, until};

const WORK: Duration = Duration::from_millis(1);

/// The second of the reference settings' keepalive, which a quick run has no time for.
pub(super) fn second() -> Duration {
    size::of(Duration::from_millis(200), Duration::from_secs(1))
}

fn watchful(addresses: &[SocketAddr]) -> Builder<Channel> {
    let builder = reference(addresses).connect_timeout(second());
    builder.keepalive(second(), second())
}

fn load() -> Load {
    Load {
        // So that silence is noticed while the load lasts.
        rate: size::of(800, 2_000),
        ..Load::of(size::calls(1_000))
    }
}

/// How a server falls silent, and comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Silence {
    /// SIGSTOP: its kernel still takes connections.
    Frozen,
    /// The network between hands nothing on.
    Wire,
}

#[test]
fn n3_frozen_under_round_robin() {
    // Each of its turns fails until it is noticed: 2.5 s × 667/s.
    alone(falls_silent(RoundRobin::default(), Silence::Frozen, 1_700));
}

#[test]
fn n3_frozen_under_least_request() {
    alone(falls_silent(LeastRequest::default(), Silence::Frozen, 50));
}

#[test]
fn n3_frozen_under_adaptive() {
    alone(falls_silent(Adaptive::default(), Silence::Frozen, 50));
}

#[test]
fn n5_wire_silent_under_round_robin() {
    alone(falls_silent(RoundRobin::default(), Silence::Wire, 1_700));
}

#[test]
fn n5_wire_silent_under_adaptive() {
    alone(falls_silent(Adaptive::default(), Silence::Wire, 50));
}

/// One of three servers is silent for a while. Only its own calls fail, and they soon become few; and when it speaks
/// again it is used again.
async fn falls_silent<P: Policy + Clone + Sync + 'static>(
    policy: P,
    silence: Silence,
    most: usize,
) {
    let before = Footprint::take();
    let fleet = Fleet::start(WORK);
    let wire = Middlebox::before(fleet.addresses()[1]);
    let mut addresses = fleet.addresses();
    if silence == Silence::Wire {
        addresses[1] = wire.address;
    }
    let channel = watchful(&addresses)
        .policy(policy)
        .build()
        .expect("in range");
    until("every endpoint is ready", || is_ready(&channel)).await;
    let (b2, load) = (addresses[1], load());
    // The picker of all three is out a little later than their states.
    warm_up(&channel).await;
    let mut probe = Probe::connect(b2).await;

    let at = size::fault_before(load.calls);
    let (mut fell, mut noticed) = (None, None);
    let (mut known, mut in_flight) = (0, 0);
    let calls = load.run_with(channel.clone(), |number| {
        let b2 = status(&channel, b2);
        if number == at {
            (known, in_flight) = (b2.picks, b2.in_flight);
            fall_silent(&fleet, &wire, silence);
            fell = Some(Instant::now());
        }
        if let Some(fell) = fell
            && noticed.is_none()
            && b2.state != Connectivity::Ready
        {
            noticed = Some(fell.elapsed());
        }
        ControlFlow::Continue(())
    });
    let calls = calls.await;
    let fell = fell.expect("the load was long enough");
    assert!(!probe.answers().await, "the fault is not there");
    let verdict = fleet.ledger.audit(&calls);
    let picked = (status(&channel, b2).picks - known) as usize + in_flight as usize;
    println!("{verdict}\n  {picked} calls on the silent server");
    assert!(verdict.lost.is_empty(), "{verdict}");
    assert!(verdict.repeated.is_empty(), "{verdict}");
    // Its own calls, and no others.
    assert!(verdict.failed <= picked, "{verdict}");
    let codes = [Code::Unavailable, Code::DeadlineExceeded];
    let named: usize = codes.iter().map(|&code| verdict.code(code)).sum();
    assert_eq!(named, verdict.failed, "{verdict}");
    let policy = std::any::type_name::<P>().rsplit("::").next();
    let policy = policy.unwrap_or_default();
    figure(format!("failed under {policy}"), verdict.failed as f64, "");
    assert!(verdict.failed <= most, "{verdict}");

    let noticed = match noticed {
        Some(noticed) => noticed,
        None => {
            until("it is noticed", || {
                status(&channel, b2).state != Connectivity::Ready
            })
            .await;
            fell.elapsed()
        }
    };
    report("READY left after", noticed, second() * 5 / 2);

    let silent = match silence {
        Silence::Frozen => size::of(Duration::ZERO, Duration::from_secs(8)),
        Silence::Wire => size::of(Duration::ZERO, Duration::from_secs(5)),
    };
    timer::until(fell + silent).await;
    match silence {
        Silence::Frozen => fleet.servers[1].as_ref().expect("it runs").thaw(),
        Silence::Wire => wire.go(),
    }
    let back = until("it is ready again", || {
        status(&channel, b2).state == Connectivity::Ready
    });
    report("READY again after", back.await, Duration::from_secs(3));
    // And used: by the policies that go by load as soon as they know it.
    let begin = Instant::now();
    let mut first = 1_000_000;
    let share = loop {
        let known = status(&channel, b2).picks;
        let calls = size::of(300, 3_000);
        let next = Load {
            first,
            ..Load::of(calls)
        };
        first += calls;
        let again = next.run(&channel).await;
        assert_eq!(failed_from(&again, 0), 0, "calls fail after it came back");
        let share = (status(&channel, b2).picks - known) as f64 / calls as f64;
        if share >= 0.25 || begin.elapsed() > crate::PATIENCE {
            break share;
        }
    };
    report(
        "a fair share again after",
        begin.elapsed(),
        Duration::from_secs(5),
    );
    figure("its share then", (share * 100.0).round(), "%");
    assert!(share >= 0.25, "{share}");
    drop((fleet, wire, probe));
    clean(channel, &before).await;
}

fn fall_silent(fleet: &Fleet, wire: &Middlebox, silence: Silence) {
    match silence {
        Silence::Frozen => fleet.servers[1].as_ref().expect("it runs").freeze(),
        Silence::Wire => wire.stop(),
    }
}

async fn warm_up(channel: &Channel) {
    let first = Load {
        first: 500_000,
        ..Load::of(60)
    };
    assert_eq!(failed_from(&first.run(channel).await, 0), 0);
}

/// A naive client: one connection, on which a server that lives answers a PING.
struct Probe(TcpStream);

impl Probe {
    async fn connect(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("it listens");
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        socket.write_all(preface).await.expect("it is open");
        let mut probe = Self(socket);
        assert!(probe.answers().await, "a server that lives answers");
        probe
    }

    async fn answers(&mut self) -> bool {
        let drained = async {
            let mut buffer = [0; 1_024];
            // What was under way from before.
            let _ = self.0.try_read(&mut buffer);
            self.0.write_all(b"\0\0\x08\x06\0\0\0\0\0probping").await?;
            self.0.read(&mut buffer).await
        };
        let read = tokio::time::timeout(Duration::from_millis(300), drained).await;
        matches!(read, Ok(Ok(1..)))
    }
}

/// N3, the control: tonic goes on with a frozen server for as long as it is frozen.
#[test]
fn n3_control_tonic_goes_on_with_a_frozen_server() {
    alone(tonic_goes_on(Silence::Frozen));
}

/// N5, the control: and into a wire that carries nothing, on which a naive probe has no answer either.
#[test]
fn n5_control_tonic_goes_on_into_a_silent_wire() {
    alone(tonic_goes_on(Silence::Wire));
}

async fn tonic_goes_on(silence: Silence) {
    let fleet = Fleet::start(WORK);
    let wire = Middlebox::before(fleet.addresses()[1]);
    let mut addresses = fleet.addresses();
    if silence == Silence::Wire {
        addresses[1] = wire.address;
    }
    let client = tonic_balance(&addresses);
    let mut probe = Probe::connect(addresses[1]).await;
    let load = Load {
        deadline: second(),
        ..load()
    };
    let at = size::fault_before(load.calls);
    let calls = load.run_with(client, |number| {
        if number == at {
            fall_silent(&fleet, &wire, silence);
        }
        ControlFlow::Continue(())
    });
    let calls = calls.await;
    assert!(!probe.answers().await, "the fault is not there");
    let verdict = fleet.ledger.audit(&calls);
    println!("{verdict}");
    // A third of those that follow.
    let least = (load.calls - at) / 5;
    assert!(verdict.failed as u64 > least, "{verdict}");
}

/// N6, the network has forgotten a flow, and new ones work: the connection is replaced, and nobody notices any more.
#[test]
fn n6_a_forgotten_flow_is_replaced() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(WORK);
        let wire = Middlebox::before(fleet.addresses()[1]);
        let mut addresses = fleet.addresses();
        addresses[1] = wire.address;
        // The policy that goes on the longest.
        let builder = watchful(&addresses).policy(RoundRobin::default());
        let channel = builder.build().expect("in range");
        until("every endpoint is ready", || is_ready(&channel)).await;
        warm_up(&channel).await;
        let mut probe = Probe::connect(wire.address).await;
        let load = load();
        let at = size::fault_before(load.calls);
        let (mut forgotten, mut replaced) = (None, None);
        let known = wire.accepted();
        let calls = load.run_with(channel.clone(), |number| {
            if number == at {
                wire.forget();
                forgotten = Some(now());
            }
            // The state may change twice between two looks: it is the new connection that tells.
            let ready = status(&channel, wire.address).state == Connectivity::Ready;
            if replaced.is_none() && wire.accepted() > known && ready {
                replaced = Some(now());
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        assert!(!probe.answers().await, "the fault is not there");
        until("it is replaced", || is_ready(&channel)).await;
        let replaced = replaced.unwrap_or_else(now);
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        assert!(
            verdict.lost.is_empty() && verdict.repeated.is_empty(),
            "{verdict}"
        );
        let failed = |call: &&Call| call.end.as_ref().is_none_or(|end| end.code != Code::Ok);
        let late = calls.iter().filter(failed).filter(|c| c.start > replaced);
        assert_eq!(
            late.count(),
            0,
            "calls failed after the replacement\n{verdict}"
        );
        // Two seconds, the reconnect, and as long for the machine.
        let took = replaced - forgotten.expect("the load was long enough");
        report("replaced after", took, second() * 23 / 10);
        // One, the probe's, and its replacement.
        assert_eq!(wire.accepted(), 3);
        let mut client = load.clone();
        (client.first, client.calls) = (1_000_000, size::of(300, 3_000));
        let after = client.run(&channel).await;
        assert_eq!(failed_from(&after, 0), 0);
        drop((fleet, wire, probe));
        clean(channel, &before).await;
    });
}

/// The same seen from the wire: nothing is sent on a connection whose ping was not answered in time.
#[test]
fn n6_no_call_on_a_connection_that_owes_an_answer() {
    alone(async {
        let before = Footprint::take();
        // The first connection answers ten calls, and then nothing any more.
        let script = stream(|call| match (call.connection, call.nth) {
            (0, 10..) => Vec::new(),
            _ => Step::reply(b""),
        });
        let server = FrameServer::start(Script {
            pongs: false,
            room: false,
            stream: script,
            ..Script::default()
        })
        .await;
        let channel = watchful(&[server.address()]).build().expect("in range");
        until("it is ready", || is_ready(&channel)).await;
        let load = Load {
            rate: 200,
            deadline: 10 * second(),
            ..Load::of(size::of(200, 1_000))
        };
        let calls = load.run(&channel).await;
        let old = server.peer(0).await;
        let new = server.peer(1).await;
        let ping = old.wait(|f| f.is(kind::PING) && !f.is_ack()).await.at;
        let heads = |frames: Vec<crate::frames::Frame>| -> Vec<Instant> {
            let heads = frames.into_iter().filter(|f| f.is(kind::HEADERS));
            heads.map(|f| f.at).collect()
        };
        let last = heads(old.frames()).last().copied().expect("it had calls");
        report(
            "the last call sent there, after the ping",
            last.saturating_duration_since(ping),
            // Seen by the server, a moment after it was sent.
            second() + Duration::from_millis(10),
        );
        let first = heads(new.frames()).first().copied().expect("it has calls");
        report(
            "the first call on the replacement, after the ping",
            first.saturating_duration_since(ping),
            second() * 13 / 10,
        );
        assert!(last < first, "calls on both");
        let verdict = crate::rig::ledger::audit(&calls, &[]);
        println!("{verdict}");
        assert!(verdict.lost.is_empty(), "{verdict}");
        // All that failed was on the old one.
        let sent = heads(old.frames()).len();
        assert!(verdict.failed <= sent - 10, "{verdict}");
        assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
        drop((server, old, new));
        clean(channel, &before).await;
    });
}

/// N6, the control: tonic uses the connection for ever.
#[test]
fn n6_control_tonic_keeps_a_forgotten_flow() {
    alone(async {
        let fleet = Fleet::start(WORK);
        let wire = Middlebox::before(fleet.addresses()[1]);
        let mut addresses = fleet.addresses();
        addresses[1] = wire.address;
        let client = tonic_balance(&addresses);
        let load = Load {
            deadline: second(),
            ..load()
        };
        let at = size::fault_before(load.calls);
        let calls = load.run_with(client, |number| {
            if number == at {
                wire.forget();
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        assert!(verdict.failed as u64 > (load.calls - at) / 5, "{verdict}");
        assert_eq!(wire.accepted(), 1, "it connected again");
    });
}
