//! B18: answers that are over before the request is, and frames nobody asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use equipoise::Channel;
use futures_util::{StreamExt, stream as streams};
use tonic::{Code, Status};

use crate::frames::{END_HEADERS, FrameServer, Script, Step, block, code, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::{all_ready, clean, report, status, until};

const PUSH_PROMISE: u8 = 5;

async fn answering(steps: Vec<Step>) -> FrameServer {
    FrameServer::start(Script {
        stream: stream(move |_| steps.clone()),
        ..Script::default()
    })
    .await
}

/// Says when the request was dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        // A flag on its own: nothing else is read in its order.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An upload without an end: a message each millisecond. Gives its answer, and whether it was stopped.
async fn upload(channel: &Channel) -> (Result<(), Status>, Arc<AtomicBool>) {
    let stopped = Arc::new(AtomicBool::new(false));
    let held = Dropped(stopped.clone());
    let messages = streams::unfold(held, |held| async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((HelloRequest::default(), held))
    });
    let told = GreeterClient::new(channel.clone()).gather(messages).await;
    (told.map(|_| ()), stopped)
}

/// B18, the whole response comes while the request goes on: it is what the caller is told, and the request stops.
#[test]
fn b18_an_answer_before_the_end_of_the_request() {
    const DENIED: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-status", "7")];
    let reply = || {
        vec![
            Step::Headers,
            Step::Message(Bytes::new()),
            Step::Trailers(0),
        ]
    };
    // HTTP/2 lets a server end the request this way.
    let and_reset = |mut steps: Vec<Step>| {
        steps.push(Step::Reset(code::NO_ERROR));
        steps
    };
    alone(async move {
        let before = Footprint::take();
        for (what, steps, told) in [
            ("a whole answer", reply(), Code::Ok),
            ("and a reset", and_reset(reply()), Code::Ok),
            (
                "trailers alone",
                vec![Step::TrailersOnly(7)],
                Code::PermissionDenied,
            ),
            (
                "trailers alone, and a reset",
                and_reset(vec![Step::TrailersOnly(7)]),
                Code::PermissionDenied,
            ),
            (
                "the end on the head",
                vec![Step::LastHead(200, DENIED)],
                Code::PermissionDenied,
            ),
        ] {
            let server = answering(steps).await;
            let channel = all_ready(&[server.address()]).await;
            let (answer, stopped) = upload(&channel).await;
            let code = answer.as_ref().map_or_else(Status::code, |()| Code::Ok);
            assert_eq!(code, told, "{what}: {answer:?}");
            let took = until("the upload stops", || stopped.load(Ordering::Relaxed)).await;
            report("the upload stopped after", took, Duration::from_millis(50));
            let peer = server.peer(0).await;
            // A reset or an end: the server is told that no more comes.
            let ends = |f: &crate::frames::Frame| f.is(kind::RST_STREAM) || f.ends_stream();
            if !what.ends_with("reset") {
                peer.wait(ends).await;
            }
            let endpoint = status(&channel, server.address());
            assert_eq!(endpoint.outcomes, [(told, 1)], "{what}: {endpoint:?}");
            assert_eq!(peer.count(|f| f.is(kind::GOAWAY)), 0, "{what}");
            // The connection is as good as before.
            assert_eq!(
                (server.connections(), endpoint.connections),
                (1, 1),
                "{what}"
            );
            drop((server, peer));
            clean(channel, &before).await;
        }
    });
}

/// The control: where the server says nothing, the upload goes on.
#[test]
fn b18_control_an_upload_goes_on_while_nothing_is_said() {
    alone(async {
        let server = answering(Vec::new()).await;
        let channel = all_ready(&[server.address()]).await;
        let stopped = Arc::new(AtomicBool::new(false));
        let held = Dropped(stopped.clone());
        let messages = streams::iter(std::iter::repeat_with(HelloRequest::default));
        let messages = messages.then(move |message| {
            let _held = &held;
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                message
            }
        });
        let mut client = GreeterClient::new(channel);
        let asked = tokio::time::timeout(Duration::from_millis(300), client.gather(messages));
        let stop_was_seen = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stopped.load(Ordering::Relaxed)
        };
        let (asked, stopped) = tokio::join!(asked, stop_was_seen);
        asked.expect_err("nobody answers");
        assert!(!stopped, "it was stopped");
    });
}

/// B18, heads that say "wait", and a stream that is over with its head.
#[test]
fn b18_heads_before_the_head() {
    const HINTS: &[(&str, &str)] = &[("link", "</style.css>")];
    const EMPTY: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-status", "0")];
    alone(async {
        let before = Footprint::take();
        let mut steps = vec![
            Step::UntilEnd,
            Step::Head(100, &[]),
            Step::Head(103, HINTS),
            Step::Head(103, HINTS),
        ];
        steps.extend(Step::reply(b""));
        let server = answering(steps).await;
        let channel = all_ready(&[server.address()]).await;
        let verdict = audit(&Load::of(100).run(&channel).await, &[]);
        assert_eq!((verdict.ok, verdict.failed), (100, 0), "{verdict}");
        assert_eq!(server.connections(), 1);
        drop(server);
        clean(channel, &before).await;

        let server = answering(vec![Step::UntilEnd, Step::LastHead(200, EMPTY)]).await;
        let channel = all_ready(&[server.address()]).await;
        let mut client = GreeterClient::new(channel.clone());
        let replies = client.countdown(CountdownRequest::default()).await;
        let mut replies = replies.expect("it is a good end").into_inner();
        let end = replies.message().await;
        assert!(matches!(end, Ok(None)), "{end:?}");
        drop((server, client, replies));
        clean(channel, &before).await;
    });
}

/// B18, a promise of something nobody wants, which we have said: that server breaks the protocol. Its connection ends
/// with GOAWAY, the call on it says so, and the next one is well on another connection.
#[test]
fn b18_a_push_is_refused() {
    alone(async {
        let before = Footprint::take();
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "pushed"),
            (":path", "/"),
        ];
        let promise = [&2_u32.to_be_bytes()[..], &block(&fields, false)].concat();
        let promise = Step::Frame(PUSH_PROMISE, END_HEADERS, Bytes::from(promise));
        let server = FrameServer::start(Script {
            stream: stream(move |call| match call.connection {
                0 => [vec![Step::UntilEnd, promise.clone()], Step::reply(b"")].concat(),
                _ => Step::reply(b""),
            }),
            ..Script::default()
        })
        .await;
        let channel = all_ready(&[server.address()]).await;
        let mut client = GreeterClient::new(channel.clone());
        let told = client.say_hello(HelloRequest::default()).await;
        let peer = server.peer(0).await;
        println!("told {told:?}");
        let goaway = peer.wait(|f| f.is(kind::GOAWAY)).await;
        assert_eq!(goaway.code(), code::PROTOCOL_ERROR);
        let told = told.expect_err("the connection is gone");
        assert!(
            matches!(told.code(), Code::Internal | Code::Unavailable),
            "{told:?}"
        );
        peer.closed().await;
        until("it is connected again", || crate::is_ready(&channel)).await;
        let verdict = audit(&Load::of(100).run(&channel).await, &[]);
        assert_eq!((verdict.ok, verdict.failed), (100, 0), "{verdict}");
        drop((server, peer, client));
        clean(channel, &before).await;
    });
}
