//! B2 and B3: GOAWAY that leaves streams unprocessed, by one server or by all, and GOAWAY while nobody calls.

use std::time::{Duration, Instant};

use equipoise::{Channel, Connectivity};
use tokio::net::TcpStream;
use tonic::Code;

use crate::Fleet;
use crate::frames::{FrameServer, Script, Step, code, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::ledger::{Execution, Verdict, audit};
use crate::rig::load::{Client, Load};
use crate::rig::rivals::tonic_balance;
use crate::rig::timer;
use crate::size;
use crate::wire::{Processed, close_wait, executions};
use crate::{all_ready, clean, report, status, until};

const WORK: Duration = Duration::from_millis(20);

/// The last stream that the first connection processes, out of those opened when its GOAWAY comes.
const LAST: usize = 50;

/// A server that answers as the others do, until stream [`LAST`] of its first connection. 20 ms later it
/// says so.
async fn leaving() -> FrameServer {
    let script = stream(|call| match (call.connection, call.nth) {
        (0, 51) => {
            let last = 2 * LAST as u32 + 1;
            vec![Step::Pause(WORK), Step::GoAway(last, code::NO_ERROR, b"")]
        }
        (0, 51..) => Vec::new(),
        _ => {
            let mut steps = vec![Step::UntilEnd, Step::Pause(WORK)];
            steps.extend(Step::reply(b""));
            steps
        }
    });
    FrameServer::start(Script {
        stream: script,
        ..Script::default()
    })
    .await
}

/// What it processed on all its connections, and how many streams it did not.
async fn processed(server: &FrameServer) -> (Vec<Execution>, usize) {
    let (mut all, mut unprocessed) = (Vec::new(), 0);
    for connection in 0..server.connections() {
        let peer = server.peer(connection).await;
        let last = match connection {
            0 => 2 * LAST as u32 + 1,
            _ => u32::MAX,
        };
        all.extend(executions(&peer, "leaving", |stream| {
            match stream <= last {
                true => Processed::Answered,
                false => Processed::Never,
            }
        }));
        unprocessed += peer.streams().into_iter().filter(|&id| id > last).count();
    }
    (all, unprocessed)
}

async fn run(client: &impl Client, fleet: &Fleet, leaving: &FrameServer) -> (Verdict, usize) {
    let calls = Load::of(size::calls(1_000)).run(client).await;
    let (mut all, unprocessed) = processed(leaving).await;
    all.extend(fleet.ledger.executions());
    let verdict = audit(&calls, &all);
    println!("{verdict}\n  {unprocessed} streams unprocessed");
    assert!(unprocessed > 0, "no stream was above the last one");
    (verdict, unprocessed)
}

/// B2, GOAWAY with the last stream below open ones. tonic fails those that the server says it never
/// processed.
#[test]
fn b2_control_tonic_fails_unprocessed_calls() {
    alone(async {
        let fleet = Fleet::of(Options::three(WORK)[..2].to_vec());
        let leaving = leaving().await;
        let client = tonic_balance(&[&fleet.addresses()[..], &[leaving.address()]].concat());
        let (verdict, unprocessed) = run(&client, &fleet, &leaving).await;
        verdict.assert_true();
        assert!(verdict.failed >= unprocessed, "{verdict}");
        assert_eq!(
            verdict.executed,
            [verdict.failed, verdict.ok, 0],
            "{verdict}"
        );
    });
}

/// The same on our channel: they go elsewhere, and each call is executed once.
#[test]
fn b2_unprocessed_streams_go_elsewhere() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::of(Options::three(WORK)[..2].to_vec());
        let leaving = leaving().await;
        let addresses = [&fleet.addresses()[..], &[leaving.address()]].concat();
        let channel = all_ready(&addresses).await;
        let (verdict, unprocessed) = run(&channel, &fleet, &leaving).await;
        verdict.assert_unnoticed();
        let endpoint = status(&channel, leaving.address());
        // Those the server saw, and those whose first byte GOAWAY forestalled.
        assert!(endpoint.refused as usize >= unprocessed, "{endpoint:?}");
        assert_eq!(
            endpoint.outcomes,
            [(Code::Ok, verdict.server("leaving") as u64)],
            "{endpoint:?}"
        );
        assert_eq!(
            endpoint.picks,
            endpoint.refused + endpoint.outcome(Code::Ok),
            "{endpoint:?}"
        );
        // Back in the round, on a new connection.
        assert_eq!(
            (leaving.connections(), endpoint.state),
            (2, Connectivity::Ready)
        );
        drop((fleet, leaving));
        clean(channel, &before).await;
    });
}

/// Servers that process nothing on their first connections, `leaving` of each, and answer on those that follow.
async fn all_leaving(leaving: usize) -> Vec<FrameServer> {
    let mut servers = Vec::new();
    for _ in 0..3 {
        let script = stream(move |call| match call.connection < leaving {
            true => vec![Step::UntilEnd, Step::GoAway(0, code::NO_ERROR, b"")],
            false => [vec![Step::UntilEnd], Step::reply(b"")].concat(),
        });
        let script = Script {
            stream: script,
            ..Script::default()
        };
        servers.push(FrameServer::start(script).await);
    }
    servers
}

/// One call to three such servers, and how many streams it took.
async fn among_leaving(leaving: usize) -> (Verdict, usize) {
    let before = Footprint::take();
    let servers = all_leaving(leaving).await;
    let addresses: Vec<_> = servers.iter().map(FrameServer::address).collect();
    let channel = all_ready(&addresses).await;
    let verdict = audit(&Load::of(1).run(&channel).await, &[]);
    println!("{verdict}");
    let mut streams = 0;
    for server in &servers {
        for connection in 0..server.connections() {
            streams += server.peer(connection).await.streams().len();
        }
    }
    drop(servers);
    clean(channel, &before).await;
    (verdict, streams)
}

/// Servers that were connected at once also reach their greatest age at once: a call may be left out by each of them.
#[test]
fn b2_all_servers_leave_at_once() {
    alone(async {
        let (verdict, streams) = among_leaving(1).await;
        assert_eq!(verdict.ok, 1, "{verdict}");
        // The third joins some milliseconds after it is ready, and may be asked only once it is back.
        assert!((3..=4).contains(&streams), "{streams} streams");
    });
}

/// A call is not sent round for ever among servers that never come to anything.
#[test]
fn b2_control_servers_that_always_leave() {
    alone(async {
        let (verdict, streams) = among_leaving(usize::MAX).await;
        assert_eq!(verdict.code(Code::Unavailable), 1, "{verdict}");
        assert_eq!(streams, 4, "{verdict}");
    });
}

/// B3, GOAWAY while nobody calls. A client that looks at its connection only when it calls holds a dead
/// socket, and loses the next call to it.
#[test]
fn b3_control_a_connection_nobody_looks_at() {
    alone(async {
        let server = FrameServer::start(Script::default()).await;
        let socket = TcpStream::connect(server.address())
            .await
            .expect("it listens");
        let (mut sender, mut connection) = h2::client::handshake(socket)
            .await
            .expect("the preface is written");
        let request = || {
            http::Request::post("http://a/b")
                .body(())
                .expect("a request")
        };
        let (response, _) = sender.send_request(request(), true).expect("it is open");
        tokio::select! {
            ended = &mut connection => panic!("{ended:?}"),
            response = response => { response.expect("it answers"); }
        }
        let peer = server.peer(0).await;
        peer.goaway(1, code::NO_ERROR, b"");
        peer.close();
        until("the socket is in CLOSE_WAIT", || {
            close_wait(server.address()) == 1
        })
        .await;
        let (response, _) = sender.send_request(request(), true).expect("nobody looked");
        let (ended, response) = tokio::join!(connection, response);
        let error = response.expect_err("nobody is there any more");
        assert!(error.is_go_away() || error.is_io(), "{error} {ended:?}");
        assert_eq!(server.connections(), 1);
    });
}

/// The same on our channel, whether the server ends the connection too or leaves that to us.
#[test]
fn b3_goaway_while_idle() {
    alone(async {
        let before = Footprint::take();
        for closes in [false, true] {
            let server = FrameServer::start(Script::default()).await;
            let channel = all_ready(&[server.address()]).await;
            one_call(&channel).await;
            leave(&server, closes).await;
            until("it is noticed", || server.connections() == 2).await;
            let begin = Instant::now();
            one_call(&channel).await;
            report("the next call", begin.elapsed(), Duration::from_millis(300));
            let gone = until("no socket is in CLOSE_WAIT", || {
                close_wait(server.address()) == 0
            })
            .await;
            report("in CLOSE_WAIT", gone, Duration::from_secs(1));
            finish(server, channel, &before).await;
        }
    });
}

/// And when the call comes at that very moment, again and again.
#[test]
fn b3_goaway_races_a_call() {
    alone(async {
        let before = Footprint::take();
        let mut worst = Duration::ZERO;
        for round in 0..300 {
            let server = FrameServer::start(Script::default()).await;
            let channel = all_ready(&[server.address()]).await;
            one_call(&channel).await;
            leave(&server, round % 2 == 0).await;
            timer::pause(Duration::from_micros(2) * (round / 2 % 60)).await;
            let begin = Instant::now();
            one_call(&channel).await;
            worst = worst.max(begin.elapsed());
            finish(server, channel, &before).await;
        }
        report("the next call at worst", worst, Duration::from_millis(300));
    });
}

/// The old connection is closed, though the server may not have done so; the new one serves.
async fn finish(server: FrameServer, channel: Channel, before: &Footprint) {
    let (old, new) = (server.peer(0).await, server.peer(1).await);
    old.closed().await;
    assert_eq!((server.connections(), new.is_closed()), (2, false));
    assert_eq!(new.streams().len(), 1);
    drop((server, old, new));
    clean(channel, before).await;
}

async fn one_call(channel: &Channel) {
    let verdict = audit(&Load::of(1).run(channel).await, &[]);
    assert_eq!(verdict.ok, 1, "{verdict}");
}

async fn leave(server: &FrameServer, closes: bool) {
    let peer = server.peer(0).await;
    peer.goaway(1, code::NO_ERROR, b"");
    if closes {
        peer.close();
    }
}
