//! B17: ends of responses that are not as gRPC wants them.

use bytes::Bytes;
use tonic::{Code, Status};

use crate::frames::{END_STREAM, Fields, FrameServer, Script, Step, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::tonic_endpoint;
use crate::rig::load::Client;
use crate::{all_ready, clean, status};

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const DETAILS: &str = "grpc-status-details-bin";

/// How a response ends after its head and its message.
#[derive(Clone, Copy)]
enum End {
    /// These trailers.
    Trailers(Fields),
    /// No trailers: the last DATA frame is the end.
    Data,
    /// There is no message, and these are head and end.
    Head(Fields),
}

use End::{Data, Head, Trailers};

/// An end, its code, a part of its message, and how the endpoint counts it where that is something else.
type Row = (End, Code, &'static str, Option<Code>);

const ROWS: &[Row] = &[
    (Data, Code::Unknown, "missing grpc-status", None),
    (Trailers(&[]), Code::Unknown, "missing grpc-status", None),
    (
        Trailers(&[("x-other", "1")]),
        Code::Unknown,
        "missing grpc-status",
        None,
    ),
    (Head(&[GRPC]), Code::Unknown, "missing grpc-status", None),
    (
        Head(&[GRPC, ("grpc-status", "14"), ("grpc-message", "down")]),
        Code::Unavailable,
        "down",
        None,
    ),
    // The server says OK; that a unary call has no message only tonic can tell.
    (
        Head(&[GRPC, ("grpc-status", "0")]),
        Code::Internal,
        "Missing response",
        Some(Code::Ok),
    ),
    (
        Head(&[GRPC, ("grpc-status", "abc")]),
        Code::Unknown,
        "grpc-status cannot be read: \"abc\"",
        None,
    ),
    (
        Trailers(&[("grpc-status", "abc")]),
        Code::Unknown,
        "grpc-status cannot be read: \"abc\"",
        None,
    ),
    (
        Trailers(&[("grpc-status", "999")]),
        Code::Unknown,
        "grpc-status cannot be read: \"999\"",
        None,
    ),
    (
        Trailers(&[("grpc-status", "-1")]),
        Code::Unknown,
        "grpc-status cannot be read: \"-1\"",
        None,
    ),
    (
        Trailers(&[("grpc-status", "")]),
        Code::Unknown,
        "grpc-status cannot be read: \"\"",
        None,
    ),
    (
        Trailers(&[("grpc-status", "0"), ("grpc-status", "13")]),
        Code::Unknown,
        "\"0\", \"13\"",
        None,
    ),
    (
        Trailers(&[("grpc-status", "13"), ("grpc-status", "0")]),
        Code::Unknown,
        "\"13\", \"0\"",
        None,
    ),
    (
        Trailers(&[("grpc-status", "13"), ("grpc-message", "%zz 100%")]),
        Code::Internal,
        "%zz 100%",
        None,
    ),
    (
        Trailers(&[("grpc-status", "13"), ("grpc-message", "%ff%41")]),
        Code::Internal,
        "\u{fffd}A",
        None,
    ),
    // A message that cannot be read does not cost the code.
    (
        Trailers(&[("grpc-status", "5"), ("grpc-message", "%ff")]),
        Code::NotFound,
        "\u{fffd}",
        None,
    ),
    (
        Trailers(&[("grpc-status", "3"), (DETAILS, "not base64!")]),
        Code::InvalidArgument,
        "",
        None,
    ),
];

/// Ends each call by the next row.
async fn odd() -> FrameServer {
    let script = stream(|call| {
        let (end, ..) = ROWS[call.nth];
        let mut steps = vec![Step::UntilEnd];
        if !matches!(end, Head(_)) {
            steps.extend([Step::Headers, Step::Message(Bytes::new())]);
        }
        steps.push(match end {
            Trailers(fields) => Step::LastFields(fields),
            Data => Step::Frame(kind::DATA, END_STREAM, Bytes::new()),
            Head(fields) => Step::LastHead(200, fields),
        });
        steps
    });
    FrameServer::start(Script {
        stream: script,
        ..Script::default()
    })
    .await
}

/// One call for each row; `None` where it panicked.
async fn run(client: impl Client) -> Vec<Option<Result<(), Status>>> {
    let mut ends = Vec::new();
    for _ in ROWS {
        let mut client = GreeterClient::new(client.clone());
        let call = async move { client.say_hello(HelloRequest::default()).await };
        let end = tokio::spawn(call).await.ok();
        ends.push(end.map(|answer| answer.map(|_| ())));
    }
    ends
}

/// B17. tonic believes the first of two statuses, drops the code with a bad message, and panics on bad details.
#[test]
fn b17_control_tonic_believes_and_panics() {
    alone(async {
        let server = odd().await;
        let channel = tonic_endpoint(server.address()).connect().await;
        let ends = run(channel.expect("it listens")).await;
        let codes: Vec<_> = ends
            .iter()
            .map(|end| end.as_ref().map(|end| end.as_ref().err().map(Status::code)))
            .collect();
        println!("{codes:?}");
        assert_eq!(
            codes[11],
            Some(None),
            "two statuses, of which the first is OK"
        );
        assert_eq!(
            codes[15],
            Some(Some(Code::Unknown)),
            "the code was NOT_FOUND"
        );
        assert_eq!(codes[16], None, "details that are not base64");
    });
}

/// The same on our channel: exact codes, no panic, and nothing stays in flight.
#[test]
fn b17_odd_ends() {
    alone(async {
        let before = Footprint::take();
        let server = odd().await;
        let channel = all_ready(&[server.address()]).await;
        let ends = run(channel.clone()).await;
        let mut expected = Vec::<(Code, u64)>::new();
        for (nth, (end, (_, code, text, counted))) in ends.into_iter().zip(ROWS).enumerate() {
            let end = end.expect("no panic").expect_err("none of them is well");
            println!("{nth}: {end}");
            assert_eq!(end.code(), *code, "{nth}: {end}");
            assert!(end.message().contains(text), "{nth}: {end}");
            let counted = counted.unwrap_or(*code);
            match expected.iter_mut().find(|(known, _)| *known == counted) {
                Some((_, count)) => *count += 1,
                None => expected.push((counted, 1)),
            }
        }
        expected.sort_by_key(|(code, _)| *code as i32);
        let endpoint = status(&channel, server.address());
        let mut outcomes = endpoint.outcomes.clone();
        outcomes.sort_by_key(|(code, _)| *code as i32);
        assert_eq!(outcomes, expected, "{endpoint:?}");
        assert_eq!((endpoint.in_flight, server.connections()), (0, 1));
        drop(server);
        clean(channel, &before).await;
    });
}
