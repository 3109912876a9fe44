//! B9: many tiny messages that are read late.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use tonic::body::Body;

use crate::frames::{Frame, FrameServer, Script, Step, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::tonic_endpoint;
use crate::rig::load::Client;
use crate::rig::timer;
use crate::{all_ready, clean, status};

const MANY: usize = 100_000;
const BESIDE: usize = 300;

/// The first call gets its messages all at once, each in a frame of its own; the others a small answer.
async fn tiny() -> FrameServer {
    let script = stream(|call| match call.nth {
        0 => {
            let mut steps = vec![Step::UntilEnd, Step::Headers];
            let one = Step::Message(Bytes::from_static(b"t"));
            steps.extend(std::iter::repeat_n(one, MANY));
            steps.push(Step::Trailers(0));
            steps
        }
        _ => Step::reply(b""),
    });
    FrameServer::start(Script {
        stream: script,
        ..Script::default()
    })
    .await
}

/// What the reader of the stream got, and how many of the calls beside it failed.
async fn run<C: Client>(mut client: C) -> (Result<usize, String>, usize) {
    let mut request = http::Request::post("/equipoise.demo.v1.Greeter/Countdown");
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        request = request.header(name, value);
    }
    let empty = http_body_util::Full::new(Bytes::from_static(&[0; 5]));
    let request = request.body(Body::new(empty)).expect("a request");
    poll_fn(|cx| client.poll_ready(cx))
        .await
        .unwrap_or_else(|error| panic!("{}", error.into()));
    let slow = client.call(request).await;
    let slow = slow.unwrap_or_else(|error| panic!("{}", error.into()));

    // Asked, and not looked at for 100 ms.
    let mut calls = Vec::new();
    for id in 1..=BESIDE as u64 {
        let mut client = GreeterClient::new(client.clone());
        let request = HelloRequest {
            id,
            ..HelloRequest::default()
        };
        let mut call = Box::pin(async move { client.say_hello(request).await });
        let waits = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await;
        assert!(waits, "it was answered before it was sent");
        calls.push(call);
    }
    timer::pause(Duration::from_millis(100)).await;
    let failed = join_all(calls).await.iter().filter(|r| r.is_err()).count();
    (read_slowly(slow.into_body()).await, failed)
}

/// Reads 500 messages at a time, and counts them.
async fn read_slowly<B>(body: B) -> Result<usize, String>
where
    B: http_body::Body<Data = Bytes, Error: Into<tonic::codegen::StdError>>,
{
    let mut body = pin!(body);
    let (mut messages, mut bytes, mut ended) = (0, BytesMut::new(), false);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.into().to_string())?;
        match frame.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(_) => ended = true,
        }
        while bytes.len() >= 6 {
            assert_eq!(&bytes[..6], b"\0\0\0\0\x01t");
            bytes.advance(6);
            messages += 1;
            if messages % 500 == 0 {
                timer::pause(Duration::from_millis(1)).await;
            }
        }
    }
    match ended {
        true => Ok(messages),
        false => Err(format!("no trailers after {messages} messages")),
    }
}

fn goaways(frames: &[Frame]) -> usize {
    frames.iter().filter(|f| f.is(kind::GOAWAY)).count()
}

/// B9, 100,000 messages of one byte, and 300 small answers, all read late. h2 with its defaults takes them
/// for an attack: with tonic the connection goes, and every call on it.
#[test]
fn b9_control_tiny_messages_kill_a_tonic_connection() {
    alone(async {
        let server = tiny().await;
        let client = tonic_endpoint(server.address()).connect().await;
        let (messages, failed) = run(client.expect("it listens")).await;
        println!("messages {messages:?}, {failed} of {BESIDE} beside them failed");
        assert!(
            messages.is_err(),
            "h2's defaults have changed: look at transport-notes 4"
        );
        let peer = server.peer(0).await;
        peer.closed().await;
        assert_eq!(goaways(&peer.frames()), 1);
    });
}

/// The same on our channel: the stream comes whole, and nobody else notices.
#[test]
fn b9_tiny_messages_read_late() {
    alone(async {
        let before = Footprint::take();
        let server = tiny().await;
        let channel = all_ready(&[server.address()]).await;
        let begin = Instant::now();
        let (messages, failed) = run(channel.clone()).await;
        println!(
            "messages {messages:?} in {:?}, {failed} of {BESIDE} beside them failed",
            begin.elapsed()
        );
        assert_eq!((messages, failed), (Ok(MANY), 0));
        let peer = server.peer(0).await;
        assert_eq!((goaways(&peer.frames()), server.connections()), (0, 1));
        let endpoint = status(&channel, server.address());
        assert_eq!(
            endpoint.outcomes,
            [(tonic::Code::Ok, 1 + BESIDE as u64)],
            "{endpoint:?}"
        );
        drop((server, peer));
        clean(channel, &before).await;
    });
}
