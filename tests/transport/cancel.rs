//! Calls given up, one by one and by the thousand.

use super::*;

async fn is_cancelled(peer: &Peer, id: u32, connection: &Http2Connection) {
    let reset = peer
        .wait(|f| f.is(kind::RST_STREAM) && f.stream == id)
        .await;
    assert_eq!(reset.code(), code::CANCEL);
    eventually("the slot is free", || connection.slots().open() == 0).await;
}

#[tokio::test]
async fn dropped_at_each_point_a_call_is_reset_and_its_slot_free() {
    let (_server, connection, peer) = pair(Script {
        limit: Some(1),
        stream: stream(|call| match call.nth {
            0 | 3 => vec![],
            1 => vec![Step::Headers],
            2 => vec![
                Step::Headers,
                Step::Message(Bytes::from_static(b"one of two")),
            ],
            _ => vec![Step::Headers],
        }),
        ..Script::default()
    })
    .await;
    // While waiting for the head.
    let call = tokio::spawn(connection.call(unary(b""), slot(&connection)));
    peer.wait(|f| f.stream == 1 && f.ends_stream()).await;
    call.abort();
    is_cancelled(&peer, 1, &connection).await;

    // With the head.
    let answer = within(connection.call(unary(b""), slot(&connection)))
        .await
        .unwrap();
    drop(answer);
    is_cancelled(&peer, 3, &connection).await;

    // Amid the messages.
    let answer = within(connection.call(unary(b""), slot(&connection)))
        .await
        .unwrap();
    let mut body = answer.into_body();
    within(body.frame()).await.unwrap().unwrap();
    assert_eq!(connection.slots().open(), 1);
    drop(body);
    is_cancelled(&peer, 5, &connection).await;

    // With the request unfinished, before the head and after it.
    let (upload, request) = streaming();
    let call = tokio::spawn(connection.call(request, slot(&connection)));
    upload.send(Ok(framed(b"first"))).await.unwrap();
    peer.wait(|f| f.stream == 7 && f.is(kind::DATA)).await;
    call.abort();
    is_cancelled(&peer, 7, &connection).await;
    within(upload.closed()).await;

    let (upload, request) = streaming();
    let answer = within(connection.call(request, slot(&connection)))
        .await
        .unwrap();
    drop(answer);
    is_cancelled(&peer, 9, &connection).await;
    within(upload.closed()).await;

    // Before it was polled: h2 may not even have written it.
    drop(connection.call(unary(b""), slot(&connection)));
    assert_eq!(connection.slots().open(), 0);
    assert!(matches!(*connection.condition().borrow(), Condition::Open));
}

#[tokio::test]
async fn an_error_of_the_callers_body_resets_the_stream_and_is_the_answer() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|call| match call.nth {
            0 | 1 => vec![],
            _ => vec![Step::Headers],
        }),
        ..Script::default()
    })
    .await;
    let wrong = || Err(Status::data_loss("the caller's own"));
    // At the first look.
    let (upload, request) = streaming();
    upload.send(wrong()).await.unwrap();
    let failed = error(within(connection.call(request, slot(&connection))).await);
    assert_eq!(failed.status.code(), Code::DataLoss);
    assert!(failed.request.is_none());
    is_cancelled(&peer, 1, &connection).await;
    // Later, before the head.
    let (upload, request) = streaming();
    let call = tokio::spawn(connection.call(request, slot(&connection)));
    upload.send(Ok(framed(b"good"))).await.unwrap();
    peer.wait(|f| f.stream == 3 && f.is(kind::DATA)).await;
    upload.send(wrong()).await.unwrap();
    assert_eq!(
        error(within(call).await.unwrap()).status.code(),
        Code::DataLoss
    );
    is_cancelled(&peer, 3, &connection).await;
    // And after it.
    let (upload, request) = streaming();
    let answer = within(connection.call(request, slot(&connection)))
        .await
        .unwrap();
    upload.send(wrong()).await.unwrap();
    let status = collect(answer).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::DataLoss, "the caller's own")
    );
    assert!(CallersOwn::of(&status).is_some(), "not the server's fault");
    is_cancelled(&peer, 5, &connection).await;
}

/// How a server that answers late treats those who do not wait.
fn late() -> Script {
    let late = Duration::from_millis(60);
    Script {
        stream: stream(move |call| match call.nth % 5 {
            // Every fifth is waited for.
            4 => Step::reply(b"kept"),
            _ => vec![
                Step::Pause(late),
                Step::Headers,
                Step::Message(Bytes::from_static(b"too late")),
                Step::Trailers(0),
            ],
        }),
        ..Script::default()
    }
}

#[tokio::test]
async fn four_thousand_cancelled_calls_do_not_hurt_those_beside_them() {
    let (_server, connection, peer) = pair(late()).await;
    let mut good = 0;
    for _ in 0..10 {
        for _ in 0..100 {
            let mut dropped = Vec::new();
            for _ in 0..4 {
                let call = connection.call(unary(b"never mind"), slot(&connection));
                let mut call = Box::pin(call);
                assert!(start(&mut call).await.is_pending());
                dropped.push(call);
            }
            // Beside them, on its own stream, and the four leave while it runs.
            let kept = connection.call(unary(b"!"), slot(&connection));
            let (answer, ()) = tokio::join!(kept, async {
                tokio::task::yield_now().await;
                drop(dropped);
            });
            let (data, code) = collect(answer.unwrap()).await.unwrap();
            assert_eq!((data, code), (framed(b"kept"), Code::Ok));
            good += 1;
        }
    }
    assert_eq!(good, 1_000);
    peer.until(|frames| frames.iter().filter(|f| f.is(kind::RST_STREAM)).count() >= 4_000)
        .await;
    assert_eq!(connection.slots().open(), 0);
    assert!(matches!(*connection.condition().borrow(), Condition::Open));
    assert_eq!(peer.count(|f| f.is(kind::GOAWAY)), 0);
}

/// The control: with h2's own defaults the same storm ends the connection, so the test above tests
/// something.
#[tokio::test]
async fn with_the_defaults_of_h2_the_same_storm_kills_the_connection() {
    let server = FrameServer::start(late()).await;
    let socket = tokio::net::TcpStream::connect(server.address())
        .await
        .unwrap();
    let (sender, connection) = h2::client::handshake(socket).await.unwrap();
    let ended = tokio::spawn(connection);
    while !ended.is_finished() {
        let mut dropped = Vec::new();
        for _ in 0..100 {
            let request = http::Request::post("http://a/b").body(()).unwrap();
            let Ok(sent) = sender.clone().send_request(request, true) else {
                break;
            };
            dropped.push(sent);
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
        drop(dropped);
        let opened = server.peer(0).await.streams().len();
        assert!(
            opened < 20_000,
            "h2's defaults have changed: look at transport-notes 4"
        );
    }
    let error = ended.await.unwrap().unwrap_err();
    assert_eq!(
        error.reason(),
        Some(h2::Reason::ENHANCE_YOUR_CALM),
        "{error}"
    );
}

#[tokio::test]
async fn five_thousand_resets_in_half_a_minute_wear_a_connection_out() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|_| vec![]),
        ..Script::default()
    })
    .await;
    for batch in 1..=50 {
        for _ in 0..100 {
            let mut call = Box::pin(connection.call(unary(b""), slot(&connection)));
            assert!(start(&mut call).await.is_pending());
        }
        let resets = move |frames: &[frames::Frame]| {
            frames.iter().filter(|f| f.is(kind::RST_STREAM)).count() == batch * 100
        };
        peer.until(resets).await;
    }
    let why = condition(&connection, |c| matches!(c, Condition::Worn(_))).await;
    assert_eq!(why, "local resets");
    assert!(
        connection.slots().try_reserve().is_some(),
        "it still serves"
    );
}
