//! B16: servers that do not speak gRPC, or not even HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use equipoise::transport::TonicConnector;
use equipoise::{BalanceLayer, Channel, Connectivity, Endpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tonic::{Code, Request, Status};
use tower_layer::Layer;

use crate::frames::{END_STREAM, FrameServer, Script, Step, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::tonic_endpoint;
use crate::rig::load::Client;
use crate::{all_ready, all_ready_after, clean, reference, report, status, until};

const HTML: (&str, &str) = ("content-type", "text/html; charset=utf-8");
const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

fn text(text: &'static str) -> Step {
    Step::Data(Bytes::from_static(text.as_bytes()))
}

fn end() -> Step {
    Step::Frame(kind::DATA, END_STREAM, Bytes::new())
}

/// What is answered, the code, and the message.
fn rows() -> Vec<(Vec<Step>, Code, &'static str)> {
    let page = |number, code, message| {
        let steps = vec![Step::Head(number, &[HTML]), text("<b>no</b>\r\n"), end()];
        (steps, code, message)
    };
    vec![
        page(
            400,
            Code::Internal,
            "server answered HTTP 400, not gRPC: <b>no</b>",
        ),
        page(
            401,
            Code::Unauthenticated,
            "server answered HTTP 401, not gRPC: <b>no</b>",
        ),
        page(
            403,
            Code::PermissionDenied,
            "server answered HTTP 403, not gRPC: <b>no</b>",
        ),
        page(
            404,
            Code::Unimplemented,
            "server answered HTTP 404, not gRPC: <b>no</b>",
        ),
        page(
            418,
            Code::Unknown,
            "server answered HTTP 418, not gRPC: <b>no</b>",
        ),
        page(
            429,
            Code::Unavailable,
            "server answered HTTP 429, not gRPC: <b>no</b>",
        ),
        page(
            500,
            Code::Unknown,
            "server answered HTTP 500, not gRPC: <b>no</b>",
        ),
        page(
            502,
            Code::Unavailable,
            "server answered HTTP 502, not gRPC: <b>no</b>",
        ),
        page(
            503,
            Code::Unavailable,
            "server answered HTTP 503, not gRPC: <b>no</b>",
        ),
        page(
            504,
            Code::Unavailable,
            "server answered HTTP 504, not gRPC: <b>no</b>",
        ),
        page(
            200,
            Code::Unknown,
            "server answered HTTP 200 with content-type \"text/html; charset=utf-8\", not gRPC: <b>no</b>",
        ),
        // Without a body.
        (
            vec![Step::LastHead(502, &[])],
            Code::Unavailable,
            "server answered HTTP 502, not gRPC",
        ),
        // Without `:status`.
        (
            vec![Step::LastFields(&[GRPC])],
            Code::Internal,
            "stream error detected",
        ),
        // A proxy that speaks gRPC: its word counts, in the head and in the trailers.
        (
            vec![Step::LastHead(
                502,
                &[HTML, ("grpc-status", "8"), ("grpc-message", "slow down")],
            )],
            Code::ResourceExhausted,
            "slow down",
        ),
        (
            vec![
                Step::Head(502, &[HTML]),
                text("page"),
                Step::LastFields(&[("grpc-status", "7"), ("grpc-message", "go away")]),
            ],
            Code::PermissionDenied,
            "go away",
        ),
        // A page that breaks off.
        (
            vec![Step::Head(503, &[HTML]), text("half a p"), Step::Reset(2)],
            Code::Unavailable,
            "server answered HTTP 503, not gRPC: half a p",
        ),
    ]
}

async fn web() -> FrameServer {
    let script = stream(|call| {
        let (answer, ..) = rows().swap_remove(call.nth);
        [vec![Step::UntilEnd], answer].concat()
    });
    FrameServer::start(Script {
        stream: script,
        ..Script::default()
    })
    .await
}

async fn one(client: impl Client) -> Status {
    let mut client = GreeterClient::new(client);
    let answer = client.say_hello(HelloRequest::default()).await;
    answer.expect_err("it is no answer")
}

/// B16, answers that are not gRPC's. tonic looks for messages in the page.
#[test]
fn b16_control_tonic_reads_a_page_as_messages() {
    alone(async {
        let server = web().await;
        let channel = tonic_endpoint(server.address()).connect().await;
        let channel = channel.expect("it listens");
        let mut told = Vec::new();
        for _ in rows() {
            told.push(one(channel.clone()).await);
        }
        // 502 with a page.
        println!("{}", told[7]);
        assert_eq!(told[7].code(), Code::Internal, "{}", told[7]);
        assert!(!told[7].message().contains("<b>no"), "{}", told[7]);
    });
}

/// The same on our channel: gRPC's fixed mapping, and the start of the page.
#[test]
fn b16_answers_that_are_not_grpc() {
    alone(async {
        let before = Footprint::take();
        let server = web().await;
        let channel = all_ready(&[server.address()]).await;
        let rows = rows();
        for (nth, (_, code, message)) in rows.iter().enumerate() {
            let told = one(channel.clone()).await;
            println!("{nth}: {told}");
            assert_eq!(told.code(), *code, "{nth}: {told}");
            match *code {
                Code::Internal => assert!(told.message().contains(message), "{nth}: {told}"),
                _ => assert_eq!(told.message(), *message, "{nth}"),
            }
        }
        let endpoint = status(&channel, server.address());
        // All that no gRPC server said is held against this one, whatever the caller was told: 401, 403 and 404 besides
        // 200, 418 and 500.
        assert_eq!(endpoint.outcome(Code::Unavailable), 6, "{endpoint:?}");
        assert_eq!(endpoint.outcome(Code::Unknown), 6, "{endpoint:?}");
        assert_eq!(endpoint.outcome(Code::Unauthenticated), 0, "{endpoint:?}");
        assert_eq!(endpoint.outcome(Code::Unimplemented), 0, "{endpoint:?}");
        // But this was a proxy's own word.
        assert_eq!(endpoint.outcome(Code::PermissionDenied), 1, "{endpoint:?}");
        assert_eq!(
            (endpoint.cancelled, endpoint.refused),
            (0, 0),
            "{endpoint:?}"
        );
        assert_eq!(
            (endpoint.picks, server.connections()),
            (rows.len() as u64, 1)
        );
        drop(server);
        clean(channel, &before).await;
    });
}

/// A web server's quick 404 draws no calls, as a quick gRPC server would: that is the control. It gets one now and
/// then, to see whether it has become better.
#[test]
fn b16_a_web_server_among_others_gets_only_trials() {
    alone(async {
        const CALLS: u64 = 400;
        let before = Footprint::take();
        for (status, trials_only) in [("404", true), ("401", true), ("403", true), ("200", false)] {
            let mut servers = Vec::new();
            for nth in 0..3 {
                let script = stream(move |_| match (nth, status) {
                    (0, "200") => Step::reply(b""),
                    (0, "401") => vec![Step::LastHead(401, &[HTML])],
                    (0, "403") => vec![Step::LastHead(403, &[HTML])],
                    (0, _) => vec![Step::LastHead(404, &[HTML])],
                    _ => {
                        // Slower by far than the first.
                        let mut slowly = vec![Step::Pause(Duration::from_millis(4))];
                        slowly.extend(Step::reply(b""));
                        slowly
                    }
                });
                servers.push(
                    FrameServer::start(Script {
                        stream: script,
                        ..Script::default()
                    })
                    .await,
                );
            }
            let addresses: Vec<SocketAddr> = servers.iter().map(FrameServer::address).collect();
            let channel = all_ready_after(&addresses[1..], addresses[0]).await;
            let mut client = GreeterClient::new(channel.clone());
            let mut failed = 0;
            for _ in 0..CALLS {
                failed += u64::from(client.say_hello(HelloRequest::default()).await.is_err());
            }
            let picks = crate::status(&channel, addresses[0]).picks;
            println!("{status}: {picks} of {CALLS} calls, {failed} failed");
            match trials_only {
                true => assert!((1..=CALLS / 20).contains(&picks), "{status}: {picks}"),
                false => assert!(picks > CALLS / 2, "{status}: {picks}"),
            }
            assert_eq!(failed, if trials_only { picks } else { 0 }, "{status}");
            drop((client, servers));
            clean(channel, &before).await;
        }
    });
}

/// And on tonic's own channels, balanced by us: the same codes and the same words.
#[test]
fn b16_answers_that_are_not_grpc_over_tonics_channels() {
    alone(async {
        let server = web().await;
        let connector = TonicConnector::new(|endpoint| endpoint);
        let layer = BalanceLayer::from_endpoints([Endpoint::from(server.address())]);
        let channel = layer.build().expect("in range").layer(connector);
        for (nth, (_, code, message)) in rows().iter().enumerate() {
            let told = one(channel.clone()).await;
            assert_eq!(told.code(), *code, "{nth}: {told}");
            if *code != Code::Internal {
                assert_eq!(told.message(), *message, "{nth}");
            }
        }
        until("nothing is in flight", || {
            channel.endpoints()[0].in_flight == 0
        })
        .await;
        assert_eq!(channel.endpoints()[0].outcome(Code::Unavailable), 6);
    });
}

/// A page is quoted to 4 KiB however long it is, and one that does not come is not waited for: neither for more than
/// a second nor past the deadline.
#[test]
fn b16_a_page_is_bounded_in_size_and_time() {
    alone(async {
        let before = Footprint::take();
        let script = stream(|call| {
            let page = Step::Data(Bytes::from(vec![b'x'; 10_000]));
            let head = Step::Head(502, &[HTML]);
            match call.nth {
                0 => vec![head, page.clone(), page, end()],
                _ => vec![head, text("the first half")],
            }
        });
        let server = FrameServer::start(Script {
            stream: script,
            ..Script::default()
        })
        .await;
        let channel = all_ready(&[server.address()]).await;
        let told = one(channel.clone()).await;
        let quoted = format!(
            "server answered HTTP 502, not gRPC: {}...",
            "x".repeat(4_096)
        );
        assert_eq!(told.message(), quoted);

        let half = "server answered HTTP 502, not gRPC: the first half";
        for deadline in [None, Some(Duration::from_millis(200))] {
            let mut request = Request::new(HelloRequest::default());
            if let Some(deadline) = deadline {
                request.set_timeout(deadline);
            }
            let begin = Instant::now();
            let answer = GreeterClient::new(channel.clone()).say_hello(request).await;
            let (told, took) = (answer.expect_err("it is no answer"), begin.elapsed());
            assert_eq!((told.code(), told.message()), (Code::Unavailable, half));
            let limit = deadline.unwrap_or(Duration::from_secs(1));
            assert!(took >= limit, "{took:?}");
            let beyond = "the page was waited for, beyond what it may be";
            report(beyond, took - limit, Duration::from_millis(20));
        }
        drop(server);
        clean(channel, &before).await;
    });
}

/// A server that answers each connection with `bytes`, as soon as the client has spoken, and leaves it open or
/// closes it.
struct Babbler {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    accepting: tokio::task::AbortHandle,
}

impl Babbler {
    async fn start(bytes: Bytes, closes: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has one");
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                // A counter on its own: nothing else is read in its order.
                counter.fetch_add(1, Ordering::Relaxed);
                let bytes = bytes.clone();
                tokio::spawn(async move {
                    let mut preface = [0; 24];
                    // A client that is gone already is no concern of this one.
                    let _ = socket.read_exact(&mut preface).await;
                    let _ = socket.write_all(&bytes).await;
                    while !closes && matches!(socket.read(&mut preface).await, Ok(1..)) {}
                });
            }
        });
        Self {
            address,
            accepted,
            accepting: accepting.abort_handle(),
        }
    }
}

impl Drop for Babbler {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

const HTTP1: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
/// Fatal, unexpected_message.
const ALERT: &[u8] = b"\x15\x03\x01\0\x02\x02\x0a";
const RANDOM: &[u8] = b"\xd1\x8f\x02\x77\x9c\x11\xfe\x42\x00\x5b\xa3\x9e\x6d\x13\x37\xc0\xff\xee";

/// B16, connections to something else. tonic calls them connected.
#[test]
fn b16_control_tonic_connects_to_anything() {
    alone(async {
        for bytes in [HTTP1, ALERT, RANDOM] {
            let server = Babbler::start(Bytes::from_static(bytes), false).await;
            let channel = tonic_endpoint(server.address).connect().await;
            let told = one(channel.expect("whatever it says")).await;
            println!("{told}");
            assert!(!told.message().contains("HTTP/1.1"), "{told}");
        }
    });
}

/// The same on our channel: such an endpoint is never ready, and says what it was that answered.
#[test]
fn b16_connections_to_something_else() {
    alone(async {
        let before = Footprint::take();
        for (bytes, why) in [
            (HTTP1, "the server speaks HTTP/1.x, not HTTP/2"),
            (ALERT, "the server speaks TLS"),
            (
                RANDOM,
                "does not speak HTTP/2; its first bytes are \"\\xd1\\x8f\\x02w",
            ),
        ] {
            for closes in [false, true] {
                let server = Babbler::start(Bytes::from_static(bytes), closes).await;
                let channel: Channel = reference(&[server.address]).build().expect("in range");
                let mut seen = Vec::new();
                until("it was tried three times", || {
                    seen.extend(channel.endpoints().into_iter().map(|e| e.state));
                    server.accepted.load(Ordering::Relaxed) >= 3
                })
                .await;
                assert!(!seen.contains(&Connectivity::Ready));
                until("the third has failed, too", || {
                    status(&channel, server.address).state == Connectivity::TransientFailure
                })
                .await;
                let reason = status(&channel, server.address).why.expect("it failed");
                assert!(reason.contains(why), "{reason}");
                // And a call is told the same.
                let told = one(channel.clone()).await;
                println!("{told}");
                assert_eq!(told.code(), Code::Unavailable, "{told}");
                assert!(told.message().contains(why), "{told}");
                assert_eq!(status(&channel, server.address).picks, 0);
                drop(server);
                clean(channel, &before).await;
            }
        }
    });
}
