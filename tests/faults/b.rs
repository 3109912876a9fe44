//! B: HTTP/2.

mod early;
mod floods;
mod foreign;
mod full;
mod goaway;
mod limits;
mod loris;
mod pings;
mod readers;
mod refused;
mod resets;
mod storm;
mod tiny;
mod trailers;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use equipoise::{Channel, Connectivity};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::frames::{Frame, FrameServer, Script, Step, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::delay::Delay;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, Server, tonic_endpoint};
use crate::rig::ledger::{Call, End, Ledger, audit};
use crate::rig::load::{Client, Load, call};
use crate::rig::rivals::tonic_balance;
use crate::rig::{holes, now, timer};
use crate::size;
use crate::{Fleet, all_ready, clean, is_ready, reference, report, status, until};

/// B1, a rolling restart with GOAWAY. tonic fails calls while a server is away.
#[test]
fn b1_control_tonic_fails_calls_in_a_rolling_restart() {
    alone(async {
        let mut fleet = Fleet::start(Duration::from_millis(1));
        let client = tonic_balance(&fleet.addresses());
        let running = Load::default().run_until_stopped(&client);
        for index in 0..3 {
            timer::pause(pause()).await;
            fleet.terminate(index).await;
            // As long as a server takes to come up.
            timer::pause(Duration::from_millis(200)).await;
            fleet.restart(index);
        }
        timer::pause(Duration::from_millis(200)).await;
        let calls = running.stop().await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        assert!(verdict.failed > 0, "{verdict}");
        for server in ["b1", "b2", "b3"] {
            assert!(verdict.server(server) > 0, "{verdict}");
        }
    });
}

/// The same on our channel, and nobody notices.
#[test]
fn b1_rolling_restart() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = Fleet::start(Duration::from_millis(1));
        let channel = all_ready(&fleet.addresses()).await;
        let load = Load {
            rate: size::of(1_000, 2_000),
            ..Load::default()
        };
        let running = load.run_until_stopped(&channel);
        let (began, mut restarts) = (Instant::now(), Vec::new());
        for index in 0..3 {
            timer::pause(pause() / 2).await;
            fleet.terminate(index).await;
            timer::pause(pause() / 2).await;
            fleet.restart(index);
            restarts.push(now());
            // As an orchestrator does, before it goes on.
            until("it is back", || is_ready(&channel)).await;
        }
        // Each takes calls again after its restart. At so light a load the default policy may prefer the
        // others for a moment, since any of them would do.
        let again = |index: usize, restart| {
            let name = &fleet.options[index].name;
            let executions = fleet.ledger.executions();
            let mut since = executions.iter().filter(|e| e.start > restart);
            since.any(|e| e.server == *name)
        };
        for (index, restart) in restarts.into_iter().enumerate() {
            until("it takes calls again", || again(index, restart)).await;
        }
        if size::is_full() {
            timer::until(began + Duration::from_secs(5)).await;
        }
        let calls = running.stop().await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_unnoticed();
        drop(fleet);
        clean(channel, &before).await;
    });
}

/// The pauses of the restarts: the row's 10,000 calls take five seconds.
fn pause() -> Duration {
    size::of(Duration::from_millis(200), Duration::from_millis(600))
}

/// The same under server streams that live longer than a restart takes.
#[test]
fn b1_rolling_restart_under_streams() {
    const STREAMS: u64 = 300;
    alone(async {
        let before = Footprint::take();
        let mut fleet = Fleet::start(Duration::from_millis(1));
        let channel = all_ready(&fleet.addresses()).await;
        let client = channel.clone();
        let streaming = tokio::spawn(async move {
            let (begin, mut streams) = (Instant::now(), JoinSet::new());
            for id in 1..=STREAMS {
                timer::until(begin + Duration::from_millis(10) * id as u32).await;
                streams.spawn(countdown(client.clone(), id));
            }
            streams.join_all().await
        });
        for index in 0..3 {
            timer::pause(Duration::from_millis(100)).await;
            // Returns when the last stream has ended.
            fleet.terminate(index).await;
            fleet.restart(index);
            until("it is back", || is_ready(&channel)).await;
        }
        let calls = streaming.await.expect("no panic");
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_unnoticed();
        drop(fleet);
        clean(channel, &before).await;
    });
}

/// A stream of one second, or the row's two.
async fn countdown(channel: Channel, id: u64) -> Call {
    let start = now();
    let request = CountdownRequest {
        id,
        count: 10,
        pause_us: size::of(100_000, 200_000),
        ..CountdownRequest::default()
    };
    let ended = async {
        let mut client = GreeterClient::new(channel);
        let mut replies = client.countdown(request).await?.into_inner();
        let (mut count, mut server) = (0, String::new());
        while let Some(reply) = replies.message().await? {
            count += 1;
            server = reply.server;
        }
        match count {
            10 => Ok(server),
            _ => Err(Status::data_loss(format!("{count} of 10 messages"))),
        }
    };
    let ended: Result<String, Status> = ended.await;
    let (code, server, message) = match ended {
        Ok(server) => (Code::Ok, server, String::new()),
        Err(status) => (status.code(), String::new(), status.message().into()),
    };
    Call {
        id,
        due: start,
        start,
        deadline: None,
        end: Some(End {
            at: now(),
            code,
            server,
            not_sent: false,
            message,
        }),
    }
}

/// B8, the client's own cancellations, on a wire so long that each answer comes after its call was given
/// up. h2 with its defaults remembers 50 reset streams; answers to forgotten ones end the connection, and
/// the innocent calls on it.
#[test]
fn b8_control_a_cancel_storm_kills_a_tonic_connection() {
    alone(async {
        let ledger = Ledger::create();
        let options = Options {
            ledger: Some(ledger.path().into()),
            ..Options::new("b1")
        };
        let server = Server::start(options);
        let wire = Delay::start(server.address, Duration::from_millis(25));
        let client = tonic_endpoint(wire.address)
            .connect()
            .await
            .expect("it listens");
        let beside = Load {
            rate: 400,
            ..Load::of(1_000)
        };
        let (calls, ()) = tokio::join!(beside.run(&client), cancel_storm(client.clone(), 5_000));
        let mut executions = ledger.executions();
        let stormed = executions
            .iter()
            .filter(|execution| execution.id > STORM)
            .count();
        executions.retain(|execution| execution.id <= STORM);
        let verdict = audit(&calls, &executions);
        println!("{verdict}\n  {stormed} cancelled calls reached the server");
        assert!(
            stormed > 1_000,
            "only {stormed} cancelled calls reached the server"
        );
        verdict.assert_true();
        assert!(verdict.failed > 0, "{verdict}");
    });
}

/// The same on our channel, one connection: nobody else notices. It may be replaced, in order, when its
/// budget of resets nears its end.
#[test]
fn b8_cancel_storm() {
    alone(async {
        let before = Footprint::take();
        let ledger = Ledger::create();
        let server = Server::start(Options {
            ledger: Some(ledger.path().into()),
            ..Options::new("b1")
        });
        let wire = Delay::start(server.address, Duration::from_millis(25));
        let channel = all_ready(&[wire.address]).await;
        let beside = Load {
            rate: 400,
            ..Load::of(1_000)
        };
        let (calls, ()) = tokio::join!(beside.run(&channel), cancel_storm(channel.clone(), 5_000));
        until("what was cancelled is over", || {
            status(&channel, wire.address).in_flight == 0
        })
        .await;
        let mut executions = ledger.executions();
        executions.retain(|execution| execution.id <= STORM);
        let verdict = audit(&calls, &executions);
        let endpoint = status(&channel, wire.address);
        println!("{verdict}\n  {} calls cancelled", endpoint.cancelled);
        verdict.assert_unnoticed();
        // On a busy machine some are given up before they were sent.
        assert!(endpoint.cancelled > 4_000, "{endpoint:?}");
        // The only outcome beside them: no connection was lost under a call, and none ended in error.
        assert_eq!(endpoint.outcomes, [(Code::Ok, 1_000)], "{endpoint:?}");
        assert!(endpoint.last_error.is_none(), "{endpoint:?}");
        drop((server, wire));
        // The wire is cut: that ends the connection.
        clean(channel, &before).await;
    });
}

/// The same seen from the wire: the client says no GOAWAY, and what it no longer wants it resets.
#[test]
fn b8_no_goaway_is_said() {
    alone(async {
        let before = Footprint::take();
        let late = stream(|_| {
            let mut steps = vec![Step::UntilEnd, Step::Pause(Duration::from_millis(50))];
            steps.extend(Step::reply(b""));
            steps
        });
        let server = FrameServer::start(Script {
            stream: late,
            ..Script::default()
        })
        .await;
        let channel = all_ready(&[server.address()]).await;
        cancel_storm(channel.clone(), 4_000).await;
        until("what was cancelled is over", || {
            status(&channel, server.address()).in_flight == 0
        })
        .await;
        let peer = server.peer(0).await;
        let count = |frames: &[Frame], kind| frames.iter().filter(|f| f.is(kind)).count();
        peer.until(|frames| count(frames, kind::RST_STREAM) == count(frames, kind::HEADERS))
            .await;
        // On a busy machine some are given up before they were sent.
        let sent = peer.streams().len();
        assert!(sent > 3_000, "{sent} of 4,000 were sent");
        let verdict = audit(&Load::of(10).run(&channel).await, &[]);
        assert_eq!(verdict.ok, 10, "{verdict}");
        assert_eq!(peer.count(|f| f.is(kind::GOAWAY)), 0);
        assert_eq!(server.connections(), 1);
        drop((server, peer));
        clean(channel, &before).await;
    });
}

/// The ids of cancelled calls lie above.
const STORM: u64 = 1_000_000;

/// 2,000 calls a second, each given up after 10 ms.
async fn cancel_storm(client: impl Client, calls: u64) {
    let begin = Instant::now();
    for number in 1..=calls {
        timer::until(begin + Duration::from_micros(500) * number as u32).await;
        let request = HelloRequest {
            id: STORM + number,
            ..Default::default()
        };
        let call = call(client.clone(), request, Duration::from_secs(1), now());
        tokio::spawn(async move {
            let cancel = timer::pause(Duration::from_millis(10));
            tokio::select! { _ = call => {}, () = cancel => {} }
        });
    }
}

/// B11, TCP accepts and SETTINGS never come. tonic calls that connected.
#[test]
fn b11_control_tonic_connects_to_a_silent_address() {
    alone(async {
        let silent = holes::silent();
        let endpoint = tonic_endpoint(silent.address).connect_timeout(Duration::from_millis(500));
        endpoint
            .connect()
            .await
            .expect("tonic waits for no SETTINGS");
        let client = tonic_balance(&[silent.address]);
        let load = Load {
            deadline: Duration::from_millis(200),
            rate: 200,
            ..Load::of(20)
        };
        let verdict = audit(&load.run(&client).await, &[]);
        println!("{verdict}");
        assert_eq!((verdict.ok, verdict.failed), (0, 20), "{verdict}");
        // Sent into the silence, so each waits for its whole deadline.
        assert!(
            verdict.latencies[0] >= Duration::from_millis(199),
            "{verdict}"
        );
    });
}

/// The same on our channel, beside two servers that speak: it never counts as ready, and gets no call.
#[test]
fn b11_settings_never_come() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::of(Options::three(Duration::from_millis(1))[..2].to_vec());
        let silent = FrameServer::start(Script {
            settings: false,
            ..Script::default()
        })
        .await;
        let addresses = [&fleet.addresses()[..], &[silent.address()]].concat();
        let begin = Instant::now();
        let channel = reference(&addresses).build().expect("in range");
        let (mut seen, mut given_up) = (Vec::new(), None);
        let load = Load {
            rate: size::of(400, 2_000),
            ..Load::of(size::calls(1_200))
        };
        let calls = load.run_with(channel.clone(), |_| {
            let endpoint = channel.endpoints().into_iter();
            let states = endpoint.filter(|e| e.address.to_string() == silent.address().to_string());
            seen.extend(states.map(|e| e.state));
            if given_up.is_none() && seen.last() == Some(&Connectivity::TransientFailure) {
                given_up = Some(begin.elapsed());
            }
            ControlFlow::Continue(())
        });
        let verdict = fleet.ledger.audit(&calls.await);
        let (attempts, took) = (silent.connections(), begin.elapsed());
        println!("{verdict}\n  {attempts} connects in {took:?}");
        verdict.assert_unnoticed();
        assert!(!seen.contains(&Connectivity::Ready));
        let endpoint = status(&channel, silent.address());
        assert_eq!(endpoint.picks, 0, "{endpoint:?}");
        let why = endpoint.why.expect("a failed endpoint says why");
        assert!(why.contains("not connected within 1s"), "{why}");
        let given_up = given_up.expect("it was given up");
        assert!(given_up >= Duration::from_secs(1), "{given_up:?}");
        report(
            "late after 1 s",
            given_up - Duration::from_secs(1),
            Duration::from_millis(100),
        );
        // Each attempt lasts 1 s, and the next follows at its end or after a short pause.
        let most = took.as_secs() as usize + 1;
        assert!(
            (2..=most).contains(&attempts),
            "{attempts} connects in {took:?}"
        );
        for nth in 0..attempts {
            let peer = silent.peer(nth).await;
            assert_eq!(peer.count(|f| f.is(kind::HEADERS)), 0, "a call was sent");
        }
        drop((fleet, silent));
        clean(channel, &before).await;
    });
}
