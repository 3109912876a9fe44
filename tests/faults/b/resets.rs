//! B6: streams that the server resets after the response's head.

use std::error::Error;

use tonic::{Code, Status};

use crate::frames::{FrameServer, Script, Step, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::tonic_endpoint;
use crate::rig::load::Client;
use crate::wire::requests;
use crate::{all_ready, clean, status};

/// What each error code of HTTP/2 becomes, by number; the last has no name.
const CODES: [Code; 15] = [
    Code::Internal,          // NO_ERROR
    Code::Internal,          // PROTOCOL_ERROR
    Code::Internal,          // INTERNAL_ERROR
    Code::Internal,          // FLOW_CONTROL_ERROR
    Code::Internal,          // SETTINGS_TIMEOUT
    Code::Internal,          // STREAM_CLOSED
    Code::Internal,          // FRAME_SIZE_ERROR
    Code::Unavailable,       // REFUSED_STREAM
    Code::Cancelled,         // CANCEL
    Code::Internal,          // COMPRESSION_ERROR
    Code::Internal,          // CONNECT_ERROR
    Code::ResourceExhausted, // ENHANCE_YOUR_CALM
    Code::PermissionDenied,  // INADEQUATE_SECURITY
    Code::Internal,          // HTTP_1_1_REQUIRED
    Code::Unknown,
];

/// Resets its first call with code 0, its second with 1, and so on.
async fn resetting() -> FrameServer {
    let script = stream(|call| {
        let reset = Step::Reset(call.nth as u32);
        vec![Step::UntilEnd, Step::Headers, reset]
    });
    FrameServer::start(Script {
        stream: script,
        ..Script::default()
    })
    .await
}

/// A call for each code, one after the other.
async fn run(client: impl Client) -> Vec<Status> {
    let mut client = GreeterClient::new(client);
    let mut ends = Vec::new();
    for id in 1..=CODES.len() as u64 {
        let request = HelloRequest {
            id,
            ..HelloRequest::default()
        };
        ends.push(client.say_hello(request).await.expect_err("it is reset"));
    }
    ends
}

/// The ids of the calls that the server got, attempt by attempt.
async fn attempts(server: &FrameServer) -> Vec<u64> {
    let requests = requests(&server.peer(0).await);
    requests
        .into_iter()
        .map(|(_, request)| request.id)
        .collect()
}

/// B6, RST_STREAM after headers. tonic takes NO_ERROR for the end of the stream.
#[test]
fn b6_control_tonic_takes_resets_for_ends() {
    alone(async {
        let server = resetting().await;
        let channel = tonic_endpoint(server.address()).connect().await;
        let ends = run(channel.expect("it listens")).await;
        let codes: Vec<Code> = ends.iter().map(Status::code).collect();
        println!("{codes:?}");
        // NO_ERROR, STREAM_CLOSED and HTTP_1_1_REQUIRED.
        assert_eq!([codes[0], codes[5], codes[13]], [Code::Unknown; 3]);
        assert_eq!(attempts(&server).await.len(), CODES.len());
    });
}

/// The same on our channel: each code by the specification, and none is tried again. The statuses are made by
/// us: with an error of h2 in them, their code would depend on tonic's features.
#[test]
fn b6_resets_after_the_head() {
    alone(async {
        let before = Footprint::take();
        let server = resetting().await;
        let channel = all_ready(&[server.address()]).await;
        let ends = run(channel.clone()).await;
        for (number, end) in ends.iter().enumerate() {
            println!("{number}: {end}");
            assert_eq!(end.code(), CODES[number], "{number}: {end}");
            assert!(end.source().is_none(), "{number}: {:?}", end.source());
        }
        let expected: Vec<u64> = (1..=CODES.len() as u64).collect();
        assert_eq!(attempts(&server).await, expected, "one attempt each");
        let endpoint = status(&channel, server.address());
        assert_eq!((endpoint.picks, endpoint.refused), (15, 0), "{endpoint:?}");
        let mut counts = endpoint.outcomes.clone();
        counts.sort_by_key(|(code, _)| *code as i32);
        let counted = [
            (Code::Cancelled, 1),
            (Code::Unknown, 1),
            (Code::PermissionDenied, 1),
            (Code::ResourceExhausted, 1),
            (Code::Internal, 10),
            (Code::Unavailable, 1),
        ];
        assert_eq!(counts, counted, "{endpoint:?}");
        drop(server);
        clean(channel, &before).await;
    });
}
