//! B12, B13, B19 and B20: servers that take no more streams, no more bytes, or no connection for long.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use equipoise::{Avoid, Override};
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};

use crate::Fleet;
use crate::frames::{FrameServer, Script, Step, code, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::rig::rivals::tonic_balance;
use crate::size::{self, figure};
use crate::wire::{Processed, executions};
use crate::{PATIENCE, all_ready, clean, failed_from, report, status};

const WORK: Duration = Duration::from_millis(1);

/// B12: from the middle of the load on, one of three takes no streams. What is under way there finishes, the rest goes
/// elsewhere.
#[test]
fn b12_the_limit_falls_to_none() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::of(Options::three(WORK)[..2].to_vec());
        let script = stream(|_| {
            let mut steps = vec![Step::UntilEnd, Step::Pause(Duration::from_millis(20))];
            steps.extend(Step::reply(b""));
            steps
        });
        let limited = FrameServer::start(Script {
            stream: script,
            ..Script::default()
        })
        .await;
        let addresses = [&fleet.addresses()[..], &[limited.address()]].concat();
        let channel = all_ready(&addresses).await;
        let peer = limited.peer(0).await;
        let load = Load::of(size::calls(1_000));
        let at = size::fault_before(load.calls);
        let calls = load.run_with(channel.clone(), |number| {
            if number == at {
                peer.settings(Some(0));
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let mut all = executions(&peer, "limited", |_| Processed::Answered);
        all.extend(fleet.ledger.executions());
        let verdict = audit(&calls, &all);
        println!("{verdict}");
        verdict.assert_unnoticed();
        assert!(verdict.server("limited") > 0, "{verdict}");
        // Our acknowledgement comes before any stream that heeds it.
        let frames = peer.frames();
        let acks = frames
            .iter()
            .enumerate()
            .filter(|(_, f)| f.is(kind::SETTINGS) && f.is_ack());
        let (last, _) = acks.last().expect("it was acknowledged");
        let after = frames[last..]
            .iter()
            .filter(|f| f.is(kind::HEADERS))
            .count();
        assert_eq!(after, 0, "streams after the limit fell");

        // With nobody else, calls wait, and run out of time.
        let deadline = Duration::from_millis(150);
        let mut request = Request::new(HelloRequest::default());
        request.set_timeout(deadline);
        request
            .extensions_mut()
            .insert(Override::strict(limited.address()));
        let begin = Instant::now();
        let told = GreeterClient::new(channel.clone()).say_hello(request).await;
        let (told, took) = (told.expect_err("nobody takes it"), begin.elapsed());
        assert_eq!(told.code(), Code::DeadlineExceeded, "{told:?}");
        assert!(took >= deadline);
        report(
            "past the deadline",
            took - deadline,
            Duration::from_millis(20),
        );
        drop((fleet, limited, peer));
        clean(channel, &before).await;
    });
}

/// B12, the control: tonic goes on handing calls to a connection that takes none.
#[test]
fn b12_control_tonic_queues_behind_a_limit_of_none() {
    alone(async {
        let fleet = Fleet::of(Options::three(WORK)[..2].to_vec());
        let limited = FrameServer::start(Script::default()).await;
        let addresses = [&fleet.addresses()[..], &[limited.address()]].concat();
        let client = tonic_balance(&addresses);
        // It connects with its first call.
        let first = Load {
            first: 1_000_000,
            ..Load::of(100)
        };
        assert_eq!(failed_from(&first.run(&client).await, 0), 0);
        let peer = limited.peer(0).await;
        peer.settings(Some(0));
        // The SETTINGS were read: an answer to a ping comes after that to them.
        peer.play(1, Vec::new()).await;
        let load = Load {
            deadline: Duration::from_millis(300),
            ..Load::of(size::calls(600))
        };
        let calls = load.run(&client).await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        // About a third.
        assert!(verdict.failed as u64 > load.calls / 5, "{verdict}");
    });
}

/// B13: a server never gives back the room for uploads. The call that fills it runs out of time, and no other is hit.
#[test]
fn b13_no_room_for_an_upload() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::of(Options::three(WORK)[..2].to_vec());
        let closed = FrameServer::start(Script {
            room: false,
            ..Script::default()
        })
        .await;
        let addresses = [&fleet.addresses()[..], &[closed.address()]].concat();
        let channel = all_ready(&addresses).await;
        let deadline = Duration::from_millis(400);
        let mut request = Request::new(HelloRequest {
            payload: vec![0; 8 << 20],
            ..Default::default()
        });
        request.set_timeout(deadline);
        request
            .extensions_mut()
            .insert(Override::strict(closed.address()));
        let mut client = GreeterClient::new(channel.clone());
        let begin = Instant::now();
        let upload = async { (client.say_hello(request).await, begin.elapsed()) };
        // The connection's own window is used up, too: that is that server's affair, and nobody else's.
        let avoid = Avoid(vec![closed.address().into()]);
        let elsewhere = InterceptedService::new(channel.clone(), move |mut r: Request<()>| {
            r.extensions_mut().insert(avoid.clone());
            Ok::<_, Status>(r)
        });
        let load = Load::of(size::calls(600));
        let ((told, took), calls) = tokio::join!(upload, load.run(&elsewhere));
        let told = told.expect_err("it cannot be sent");
        assert_eq!(told.code(), Code::DeadlineExceeded, "{told:?}");
        assert!(took >= deadline);
        report(
            "past the deadline",
            took - deadline,
            Duration::from_millis(20),
        );
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_unnoticed();
        // No more than the window of HTTP/2 was taken by the network.
        let peer = closed.peer(0).await;
        let data = peer.frames().into_iter().filter(|f| f.is(kind::DATA));
        let sent: usize = data.map(|f| f.payload.len()).sum();
        assert!(sent <= 65_535, "{sent} bytes");
        assert_eq!(status(&channel, closed.address()).in_flight, 0);
        drop((fleet, closed, peer, client, elsewhere));
        clean(channel, &before).await;
    });
}

/// B13, the control: where there is room the same upload gets through.
#[test]
fn b13_control_with_room_the_upload_gets_through() {
    alone(async {
        let open = FrameServer::start(Script::default()).await;
        let channel = all_ready(&[open.address()]).await;
        let mut request = Request::new(HelloRequest {
            payload: vec![0; 8 << 20],
            ..Default::default()
        });
        request.set_timeout(PATIENCE);
        let answer = GreeterClient::new(channel).say_hello(request).await;
        answer.expect("it is sent, and answered");
    });
}

/// A server that ends each connection after so many calls, with GOAWAY.
async fn brief(each: usize) -> FrameServer {
    let script = stream(move |call| {
        let mut steps = Step::reply(b"");
        if call.nth + 1 == each {
            steps.push(Step::GoAway(call.id, code::NO_ERROR, b""));
        }
        match call.nth < each {
            true => steps,
            false => Vec::new(),
        }
    });
    FrameServer::start(Script {
        stream: script,
        ..Script::default()
    })
    .await
}

/// B19, the control: with tonic some calls fail at each of those ends.
#[test]
fn b19_control_tonic_fails_calls_at_each_goaway() {
    alone(async {
        let server = brief(200).await;
        let client = tonic_balance(&[server.address()]);
        // Some are under way at any time.
        let load = Load::of(size::calls(2_100));
        let calls = load.run_closed(&client, 16).await;
        let verdict = audit(&calls, &[]);
        println!("{verdict}");
        assert!(server.connections() >= 5, "{}", server.connections());
        assert!(verdict.failed >= 5, "{verdict}");
    });
}

/// B19: a server ends each connection after so many calls, with GOAWAY.
#[test]
fn b19_so_many_calls_per_connection() {
    alone(async {
        // More than the hundred calls that make a connection no short-lived one.
        let each = size::of(200, 1_000);
        let before = Footprint::take();
        let server = brief(each).await;
        let channel = all_ready(&[server.address()]).await;
        let load = Load::of(size::calls(2_100));
        let calls = load.run(&channel).await;
        let mut all = Vec::new();
        for nth in 0..server.connections() {
            let peer = server.peer(nth).await;
            let last = 2 * each as u32 - 1;
            all.extend(executions(&peer, "brief", |id| match id <= last {
                true => Processed::Answered,
                false => Processed::Never,
            }));
        }
        let verdict = audit(&calls, &all);
        println!("{verdict}");
        verdict.assert_unnoticed();
        let connections = server.connections();
        figure("connections", connections as f64, "");
        assert!(connections >= 10, "{connections} connections");
        drop(server);
        clean(channel, &before).await;
    });
}

/// B20: every server lets a connection live for a second only.
#[test]
fn b20_connections_that_may_not_grow_old() {
    alone(async {
        let age = size::of(Duration::from_millis(300), Duration::from_secs(1));
        let load = Load {
            rate: size::of(700, 2_000),
            ..Load::of(size::of(1_400, 120_000))
        };
        let ended = ended_by_age(Some(age), load).await;
        assert!(ended > 0, "no connection was ended");
    });
}

/// B20, the control: without an age none is ended.
#[test]
fn b20_control_without_an_age_no_connection_ends() {
    alone(async {
        assert_eq!(ended_by_age(None, Load::of(800)).await, 0);
    });
}

/// On how many of three servers a connection was ended while nobody noticed.
async fn ended_by_age(age: Option<Duration>, load: Load) -> usize {
    let before = Footprint::take();
    let options = Options::three(WORK).map(|options| Options {
        max_connection_age: age,
        ..options
    });
    let fleet = Fleet::of(options.into());
    let channel = all_ready(&fleet.addresses()).await;
    let verdict = fleet.ledger.audit(&load.run(&channel).await);
    println!("{verdict}");
    verdict.assert_unnoticed();
    let endpoints = channel.endpoints().into_iter();
    let ended = endpoints.filter(|e| e.last_error.is_some()).count();
    drop(fleet);
    clean(channel, &before).await;
    ended
}
