//! tonic's channels as connections, against a scripted server: what is seen of it, and what errors mean.

use std::sync::Mutex;
use std::time::Duration;

use equipoise::transport::{
    CallError, Condition, Connection, Connector, Payload, Reached, Slot, TonicBody,
    TonicConnection, TonicConnector,
};
use equipoise::{Address, ConnectError, Endpoint};
use http_body_util::BodyExt;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tonic::{Code, Status};

use crate::frames::{FrameServer, Peer, Script, Step, code, kind, stream};
use crate::{closed, draining, eventually, framed, start, streaming, unary, within};

/// Long enough for a server on the same machine to be heard, were there something to hear.
const A_WHILE: Duration = Duration::from_millis(200);

async fn dial(address: impl Into<Address>) -> Result<TonicConnection, ConnectError> {
    let address = address.into();
    let endpoint = Endpoint::new(address.clone());
    let connecting = TonicConnector::new(|endpoint| endpoint).connect(&endpoint, &address);
    within(connecting).await
}

async fn pair(script: Script) -> (FrameServer, TonicConnection, Peer) {
    let server = FrameServer::start(script).await;
    let connection = dial(server.address()).await.unwrap();
    let peer = server.peer(0).await;
    (server, connection, peer)
}

fn slot(connection: &TonicConnection) -> Slot {
    connection.slots().try_reserve().expect("a free slot")
}

async fn condition(connection: &TonicConnection, is: fn(&Condition) -> bool) -> String {
    let mut watch = connection.condition();
    let found = within(watch.wait_for(is)).await.unwrap();
    match &*found {
        Condition::Open => String::new(),
        Condition::Worn(what) => (*what).to_owned(),
        Condition::Draining(why) | Condition::Closed(why) => why.to_string(),
    }
}

/// A unary call from its start to its response's head.
async fn ask(connection: &TonicConnection) -> Result<http::Response<TonicBody>, CallError> {
    within(connection.call(unary(b"a"), slot(connection))).await
}

async fn refused(connection: &TonicConnection) -> CallError {
    ask(connection).await.map(|_| ()).unwrap_err()
}

async fn whole(response: http::Response<TonicBody>) -> Result<Code, Status> {
    let collected = within(response.into_body().collect()).await?;
    let status = collected.trailers().and_then(|t| t.get("grpc-status"));
    Ok(status.map_or(Code::Unknown, |s| Code::from_bytes(s.as_bytes())))
}

#[tokio::test]
async fn a_connection_is_made_when_the_settings_have_come() {
    let server = FrameServer::start(Script {
        settings: false,
        ..Script::default()
    })
    .await;
    let address = server.address();
    let mut connecting = tokio::spawn(dial(address));
    let peer = server.peer(0).await;
    peer.wait(|f| f.is(kind::SETTINGS)).await;
    // What an answer to a PING is not: a word of the server on how it serves.
    peer.ping();
    let early = tokio::time::timeout(A_WHILE, &mut connecting).await;
    assert!(early.is_err(), "ready before the settings");
    peer.settings(Some(3));
    let connection = within(connecting).await.unwrap().unwrap();
    assert_eq!(connection.slots().limit(), 3);

    // The limit is followed, and an end without a limit is none.
    peer.settings(Some(1));
    eventually("the limit is one", || connection.slots().limit() == 1).await;
    peer.settings(None);
    peer.settings(Some(9));
    eventually("the limit is nine", || connection.slots().limit() == 9).await;
}

#[tokio::test]
async fn without_settings_there_is_no_connection() {
    let server = FrameServer::start(Script {
        settings: false,
        ..Script::default()
    })
    .await;
    let address = server.address();
    let connecting = tokio::spawn(dial(address));
    server.peer(0).await.close();
    let error = within(connecting).await.unwrap().unwrap_err().to_string();
    let expected = format!("{address}: no HTTP/2 settings: the server closed the connection");
    assert_eq!(error, expected);

    // One that speaks something else.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connecting = tokio::spawn(dial(address));
    let (mut socket, _) = listener.accept().await.unwrap();
    let text = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut socket, text)
        .await
        .unwrap();
    let error = within(connecting).await.unwrap().unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{address}: no HTTP/2 settings: ")),
        "{error}"
    );
}

#[tokio::test]
async fn the_most_calls_are_the_servers_and_the_users() {
    let server = FrameServer::start(Script {
        limit: Some(50),
        ..Script::default()
    })
    .await;
    let address = Address::from(server.address());
    for (streams, limit) in [(7, 7), (70, 50)] {
        let connector = TonicConnector::new(|endpoint| endpoint);
        let connector = connector.with_max_streams(streams).unwrap();
        let connecting = connector.connect(&Endpoint::new(address.clone()), &address);
        assert_eq!(within(connecting).await.unwrap().slots().limit(), limit);
    }
    let error = TonicConnector::new(|endpoint| endpoint)
        .with_max_streams(0)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "max streams 0 is not in 1..=2147483647");
}

#[tokio::test]
async fn a_goaway_is_seen_at_once_and_open_calls_go_on() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|_| {
            let mut steps = vec![Step::UntilEnd, Step::Headers, Step::Gate];
            steps.extend([Step::Message("m".into()), Step::Trailers(0)]);
            steps
        }),
        ..Script::default()
    })
    .await;
    let response = ask(&connection).await.map_err(|e| e.status).unwrap();
    peer.goaway(1, code::NO_ERROR, b"");
    let why = condition(&connection, draining).await;
    assert!(why.contains("the server sent GOAWAY: "), "{why}");
    assert!(connection.slots().try_reserve().is_none());
    _server.open_gate();
    assert_eq!(whole(response).await.unwrap(), Code::Ok);
    eventually("the slot is back", || connection.slots().open() == 0).await;
    drop(connection);
    peer.closed().await;
}

#[tokio::test]
async fn a_refused_stream_is_handed_back_and_can_be_sent_again() {
    let (_server, connection, _peer) = pair(Script {
        stream: stream(|call| match call.nth {
            0 => vec![Step::UntilEnd, Step::Reset(code::REFUSED_STREAM)],
            _ => Step::reply(b"hello"),
        }),
        ..Script::default()
    })
    .await;
    let error = refused(&connection).await;
    assert_eq!(
        (error.reached, error.status.code()),
        (Reached::Refused, Code::Unavailable)
    );
    let request = error.request.expect("handed back");
    assert_eq!(request.head.headers()["x-kept"], "as it was");
    assert!(matches!(&request.payload, Payload::Whole(message) if *message == framed(b"a")));
    let again = within(connection.call(request, slot(&connection))).await;
    assert_eq!(
        whole(again.map_err(|e| e.status).unwrap()).await.unwrap(),
        Code::Ok
    );
    assert!(matches!(*connection.condition().borrow(), Condition::Open));
}

#[tokio::test]
async fn what_a_goaway_leaves_out_was_not_processed() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|_| vec![Step::UntilEnd, Step::GoAway(0, code::NO_ERROR, b"")]),
        ..Script::default()
    })
    .await;
    let error = refused(&connection).await;
    assert_eq!(
        (error.reached, error.status.code()),
        (Reached::LeftOut, Code::Unavailable)
    );
    assert!(error.request.is_some());
    peer.closed().await;
    condition(&connection, closed).await;
    // Not a byte of it leaves: the connection is no more. One slot, as a call would have that was picked before.
    let slots = equipoise::transport::Slots::new(1);
    let late = connection.call(unary(b"late"), slots.try_reserve().unwrap());
    let error = within(late).await.map(|_| ()).unwrap_err();
    assert_eq!(
        (error.reached, error.status.code()),
        (Reached::No, Code::Unavailable)
    );
    assert!(matches!(
        error.request.unwrap().payload,
        Payload::Whole(message) if message == framed(b"late")
    ));
    assert_eq!(_server.connections(), 1, "tonic dialled behind our back");
}

#[tokio::test]
async fn an_upload_that_went_nowhere_is_taken_back() {
    let (server, connection, peer) = pair(Script::default()).await;
    peer.close();
    condition(&connection, closed).await;
    let slots = equipoise::transport::Slots::new(1);
    let (sender, request) = streaming();
    let call = connection.call(request, slots.try_reserve().unwrap());
    let error = within(call).await.map(|_| ()).unwrap_err();
    assert_eq!(error.reached, Reached::No);
    assert_eq!(slots.open(), 0, "nobody holds the stream");
    let Payload::Untouched(mut body) = error.request.unwrap().payload else {
        panic!("a stream is no whole message")
    };
    sender.send(Ok(framed(b"first"))).await.unwrap();
    let frame = within(body.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), framed(b"first"));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn resets_and_losses_have_their_codes() {
    for (steps, expected) in [
        (vec![Step::Reset(code::INTERNAL_ERROR)], Code::Internal),
        (vec![Step::Reset(code::CANCEL)], Code::Cancelled),
        (
            vec![Step::Reset(code::ENHANCE_YOUR_CALM)],
            Code::ResourceExhausted,
        ),
        (vec![Step::Close], Code::Unavailable),
        (vec![Step::Kill], Code::Unavailable),
    ] {
        let script = steps.clone();
        let (_server, connection, _peer) = pair(Script {
            stream: stream(move |_| [vec![Step::UntilEnd], script.clone()].concat()),
            ..Script::default()
        })
        .await;
        let error = refused(&connection).await;
        assert_eq!(
            (error.reached, error.status.code()),
            (Reached::Maybe, expected),
            "{steps:?}: {:?}",
            error.status
        );
        assert!(error.request.is_none(), "it may have been processed");

        // And after the response began. CANCEL is the one that hyper hides.
        if expected == Code::Cancelled {
            continue;
        }
        let script = steps.clone();
        let (_server, connection, _peer) = pair(Script {
            stream: stream(move |_| {
                let begin = vec![Step::UntilEnd, Step::Headers, Step::Message("m".into())];
                [begin, script.clone()].concat()
            }),
            ..Script::default()
        })
        .await;
        let response = ask(&connection).await.map_err(|e| e.status).unwrap();
        let status = whole(response).await.unwrap_err();
        assert_eq!(status.code(), expected, "{steps:?}: {status:?}");
    }
}

#[tokio::test]
async fn an_aborted_connection_ends_its_calls_with_the_reason() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|_| vec![Step::Headers, Step::Gate]),
        ..Script::default()
    })
    .await;
    let response = ask(&connection).await.map_err(|e| e.status).unwrap();
    connection.control().abort("enough");
    let status = whole(response).await.unwrap_err();
    let address = _server.address();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, &*format!("{address}: enough"))
    );
    peer.closed().await;
    assert_eq!(
        condition(&connection, closed).await,
        format!("{address}: enough")
    );
}

#[tokio::test]
async fn dropping_resets_the_stream_wherever_it_is() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|call| match call.nth {
            0 => vec![Step::Gate],
            _ => vec![Step::Headers, Step::Gate],
        }),
        ..Script::default()
    })
    .await;
    let reset = |stream| {
        let peer = peer.clone();
        async move {
            let frame = peer
                .wait(move |f| f.is(kind::RST_STREAM) && f.stream == stream)
                .await;
            assert_eq!(frame.code(), code::CANCEL, "stream {stream}");
        }
    };
    // Before the head, with the request complete.
    let mut waiting = Box::pin(connection.call(unary(b"a"), slot(&connection)));
    assert!(start(&mut waiting).await.is_pending());
    peer.wait(|f| f.ends_stream() && f.stream == 1).await;
    drop(waiting);
    reset(1).await;
    // After the head, with the request still open: hyper alone would go on with it.
    let (sender, request) = streaming();
    let call = connection.call(request, slot(&connection));
    let response = within(call).await.map_err(|e| e.status).unwrap();
    drop(response);
    reset(3).await;
    within(sender.closed()).await;
    // Before the head, with the request still open.
    let (sender, request) = streaming();
    sender.send(Ok(framed(b"a"))).await.unwrap();
    let mut waiting = Box::pin(connection.call(request, slot(&connection)));
    assert!(start(&mut waiting).await.is_pending());
    peer.wait(|f| f.is(kind::DATA) && f.stream == 5).await;
    drop(waiting);
    within(sender.closed()).await;
    eventually("all slots are back", || connection.slots().open() == 0).await;
}

#[tokio::test]
async fn the_callers_own_error_is_what_the_call_ends_with() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|_| vec![Step::Headers, Step::Gate]),
        ..Script::default()
    })
    .await;
    let (sender, request) = streaming();
    let call = connection.call(request, slot(&connection));
    let response = within(call).await.map_err(|e| e.status).unwrap();
    sender
        .send(Err(Status::data_loss("my disk")))
        .await
        .unwrap();
    let status = whole(response).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::DataLoss, "my disk")
    );
    let frame = peer.wait(|f| f.is(kind::RST_STREAM)).await;
    assert_eq!(frame.code(), code::CANCEL);

    // At once: not a byte is sent.
    let before = peer.streams().len();
    let payload =
        tonic::body::Body::new(http_body_util::StreamBody::new(tokio_stream::once(Err::<
            http_body::Frame<bytes::Bytes>,
            _,
        >(
            Status::data_loss("my disk"),
        ))));
    let mut request = unary(b"");
    request.payload = Payload::Untouched(payload);
    let call = connection.call(request, slot(&connection));
    let error = within(call).await.map(|_| ()).unwrap_err();
    assert_eq!(
        (error.reached, error.status.message()),
        (Reached::Local, "my disk")
    );
    assert_eq!(peer.streams().len(), before);
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_set_up_says_so() {
    let address: Address = "127.0.0.1:9".parse().unwrap();
    let endpoint = Endpoint::new(address.clone());
    let failing = TonicConnector::try_new(|_| Err("no certificate today"));
    let error = within(failing.connect(&endpoint, &address))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "127.0.0.1:9: endpoint: no certificate today"
    );
    let relative = tonic::transport::Endpoint::from_shared("/path").unwrap();
    let connecting = TonicConnector::from(relative).connect(&endpoint, &address);
    let error = within(connecting).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "127.0.0.1:9: endpoint: its uri /path has no scheme or no authority"
    );
}

/// A connection to a peer that allows everything, reads nothing and has room for a kilobyte.
async fn deaf() -> (DuplexStream, TonicConnection) {
    let (ours, mut theirs) = tokio::io::duplex(1 << 10);
    let ours = Mutex::new(Some(ours));
    let once = move |_: &Endpoint, _: &Address| {
        let ours = ours.lock().unwrap().take();
        async { ours.ok_or_else(|| std::io::ErrorKind::NotConnected.into()) }
    };
    let settings = [0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0];
    theirs.write_all(&settings).await.unwrap();
    let connector = TonicConnector::new(|endpoint| endpoint).with_dialler(once);
    let address: Address = "192.0.2.1:9".parse().unwrap();
    let connecting = connector.connect(&Endpoint::new(address.clone()), &address);
    (theirs, connecting.await.unwrap())
}

/// hyper writes what it has before it closes. The clock is tokio's, and moves when nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_cannot_hold_a_connection_open() {
    const CLOSING: Duration = Duration::from_secs(20);
    let (_deaf, connection) = deaf().await;
    let mut watch = connection.condition();
    let mut call = Box::pin(connection.call(unary(&[7; 32 << 10]), slot(&connection)));
    assert!(start(&mut call).await.is_pending());
    drop(connection);
    let early = tokio::time::timeout(CLOSING * 5, &mut call).await;
    assert!(early.is_err(), "a call that is open is waited for");
    assert!(matches!(*watch.borrow(), Condition::Open));

    let begin = tokio::time::Instant::now();
    drop(call);
    let ended = tokio::time::timeout(CLOSING * 5, watch.wait_for(closed)).await;
    let why = format!("{:?}", *ended.expect("it is given up").unwrap());
    assert!(why.contains("192.0.2.1:9: not closed in time"), "{why}");
    assert!(
        begin.elapsed() <= CLOSING + A_WHILE,
        "{:?}",
        begin.elapsed()
    );
}
