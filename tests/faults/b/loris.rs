//! B21: a server that takes a second for each byte.

use std::time::{Duration, Instant};

use bytes::Bytes;
use equipoise::{Avoid, Endpoint, Override};
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};

use crate::Fleet;
use crate::frames::{END_HEADERS, FrameServer, Peer, Script, Step, block, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{Options, tonic_endpoint};
use crate::rig::load::Load;
use crate::rig::timer;
use crate::size;
use crate::{all_ready_in_turn, clean, is_ready, reference, report, status, until};

/// Between two bytes; the row's second.
fn pace() -> Duration {
    size::of(Duration::from_millis(50), Duration::from_secs(1))
}

/// Ten bytes long.
fn deadline() -> Duration {
    10 * pace() + pace() / 2
}

/// A head that comes whole, and then the beginning of a message of which each byte is a frame of its own.
fn slow_body() -> Vec<Step> {
    let message = [0, 0, 0, 0, 100, 1, 2, 3, 4, 5, 6];
    let bytes = message.into_iter().flat_map(|byte| {
        let byte = Bytes::copy_from_slice(&[byte]);
        [Step::Data(byte), Step::Pause(pace())]
    });
    let mut steps = vec![Step::UntilEnd, Step::Headers];
    steps.extend(bytes);
    steps
}

/// Nothing by itself to the first call of a connection, and a slow body to the others.
async fn loris() -> FrameServer {
    FrameServer::start(Script {
        stream: stream(|call| match call.nth {
            0 => Vec::new(),
            _ => slow_body(),
        }),
        ..Script::default()
    })
    .await
}

/// Sends the head of a response to the first call a byte at a time, and never more than half of it.
async fn slow_head(peer: Peer) {
    let request = peer.wait(|f| f.ends_stream()).await;
    let fields = block(&[("content-type", "application/grpc")], true);
    let mut head = (fields.len() as u32).to_be_bytes()[1..].to_vec();
    head.extend([kind::HEADERS, END_HEADERS]);
    head.extend(request.stream.to_be_bytes());
    head.extend(&fields[..fields.len() / 2]);
    for byte in head {
        peer.raw(vec![byte]);
        timer::pause(pace()).await;
    }
}

/// B21: calls there end with their deadline, whichever half of the answer is slow, and nobody else notices.
#[test]
fn b21_a_byte_at_a_time() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::of(Options::three(Duration::from_millis(1))[..2].to_vec());
        let slow = [loris().await, loris().await];
        let there = slow.each_ref().map(FrameServer::address);
        let addresses = [&fleet.addresses()[..], &there].concat();
        // The sound ones are in use before the others are there.
        let first = fleet.addresses();
        // No ping: its answer would come in the middle of what the server sends by hand.
        let minute = Duration::from_secs(60);
        let builder = reference(&first).keepalive(minute, minute);
        let channel = all_ready_in_turn(builder, &first, there[0]).await;
        let all = addresses.iter().copied().map(Endpoint::from);
        channel
            .set_endpoints(all)
            .expect("the list is in our hands");
        until("all are ready", || {
            channel.endpoints().len() == addresses.len() && is_ready(&channel)
        })
        .await;
        let ask = async |server: usize, deadline: Duration| {
            let mut request = Request::new(HelloRequest::default());
            request.set_timeout(deadline);
            let only = Override::strict(there[server]);
            request.extensions_mut().insert(only);
            let begin = Instant::now();
            let told = GreeterClient::new(channel.clone()).say_hello(request).await;
            (told.expect_err("it never comes whole"), begin.elapsed())
        };
        // The second call of a connection has a slow body: the first is given up before it.
        let in_head = async {
            tokio::select! {
                told = ask(0, deadline()) => told,
                () = async { slow_head(slow[0].peer(0).await).await; std::future::pending::<()>().await } => unreachable!(),
            }
        };
        let in_body = async {
            ask(1, Duration::from_millis(20)).await;
            ask(1, deadline()).await
        };
        let avoid = Avoid(there.map(Into::into).to_vec());
        let elsewhere = InterceptedService::new(channel.clone(), move |mut r: Request<()>| {
            r.extensions_mut().insert(avoid.clone());
            Ok::<_, Status>(r)
        });
        let load = Load::of(size::calls(1_000));
        let (head, body, calls) = tokio::join!(in_head, in_body, load.run(&elsewhere));
        for (what, (told, took)) in [("in the head", head), ("in the body", body)] {
            println!("{what}: {told}");
            assert_eq!(told.code(), Code::DeadlineExceeded, "{what}: {told:?}");
            assert!(took >= deadline(), "{what}: {took:?}");
            report(
                "past the deadline",
                took - deadline(),
                Duration::from_millis(20),
            );
        }
        let mut verdict = fleet.ledger.audit(&calls);
        // The calls before have no number.
        verdict.unasked.clear();
        println!("{verdict}");
        verdict.assert_unnoticed();
        report(
            "elsewhere, p99",
            verdict.latency(0.99),
            Duration::from_millis(50),
        );
        for address in there {
            assert_eq!(status(&channel, address).in_flight, 0);
            let read = status(&channel, address).traffic;
            println!("  from {address}: {read:?}");
        }
        drop((fleet, slow, elsewhere));
        clean(channel, &before).await;
    });
}

/// The control: tonic's deadline does not reach into the body.
#[test]
fn b21_control_tonic_has_no_deadline_in_a_body() {
    alone(async {
        let server = FrameServer::start(Script {
            stream: stream(|_| slow_body()),
            ..Script::default()
        })
        .await;
        let client = tonic_endpoint(server.address()).connect().await;
        let mut client = GreeterClient::new(client.expect("it listens"));
        let mut request = Request::new(HelloRequest::default());
        request.set_timeout(Duration::from_millis(100));
        let asked = tokio::time::timeout(Duration::from_secs(1), client.say_hello(request));
        asked.await.expect_err("tonic goes on after the deadline");
    });
}
