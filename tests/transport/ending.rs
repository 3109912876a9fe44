//! GOAWAY, refused streams, resets, lost connections, and our own ways to end one.

use super::*;

#[tokio::test]
async fn goaway_on_an_idle_connection_ends_it() {
    let (_server, connection, peer) = pair(Script::default()).await;
    ask(&connection, b"").await.unwrap();
    peer.goaway(1, code::NO_ERROR, b"");
    let why = condition(&connection, closed).await;
    assert!(why.contains("the server sent GOAWAY"), "{why}");
    assert!(connection.slots().try_reserve().is_none());
    peer.closed().await;
}

#[tokio::test]
async fn goaway_drains_what_is_open() {
    let (server, connection, peer) = pair(Script {
        stream: stream(|_| vec![Step::UntilEnd, Step::Gate, Step::Headers, Step::Trailers(0)]),
        ..Script::default()
    })
    .await;
    let call = tokio::spawn(connection.call(unary(b""), slot(&connection)));
    peer.wait(|f| f.ends_stream()).await;
    peer.goaway(i32::MAX as u32, code::ENHANCE_YOUR_CALM, b"too_many_pings");
    let why = condition(&connection, draining).await;
    assert!(
        why.contains("GOAWAY") && why.contains("too_many_pings"),
        "{why}"
    );
    assert!(
        connection.slots().try_reserve().is_none(),
        "before anybody hears of it"
    );
    server.open_gate();
    let answer = within(call).await.unwrap().unwrap();
    assert_eq!(collect(answer).await.unwrap().1, Code::Ok);
    let why = condition(&connection, closed).await;
    assert!(why.contains("too_many_pings"), "{why}");
    peer.closed().await;
}

#[tokio::test]
async fn goaway_hands_back_what_it_leaves_out_and_keeps_the_rest() {
    let (server, connection, peer) = pair(Script {
        stream: stream(|_| vec![Step::Gate, Step::Headers, Step::Trailers(0)]),
        ..Script::default()
    })
    .await;
    let first = tokio::spawn(connection.call(unary(b"1"), slot(&connection)));
    peer.wait(|f| f.stream == 1 && f.ends_stream()).await;
    let second = tokio::spawn(connection.call(unary(b"2"), slot(&connection)));
    peer.wait(|f| f.stream == 3 && f.ends_stream()).await;
    let (upload, request) = streaming();
    let third = tokio::spawn(connection.call(request, slot(&connection)));
    peer.wait(|f| f.stream == 5).await;
    // The late one: its slot was reserved before anything was known.
    let late = slot(&connection);
    peer.goaway(1, code::NO_ERROR, b"");

    let refused = error(within(second).await.unwrap());
    assert_eq!(
        (refused.status.code(), refused.reached),
        (Code::Unavailable, Reached::LeftOut)
    );
    let again = refused.request.expect("a whole message can be sent again");
    assert!(matches!(&again.payload, Payload::Whole(message) if *message == framed(b"2")));
    let mut headers = again.head.headers().clone();
    assert!(headers.remove(http::header::USER_AGENT).is_some());
    assert_eq!(&headers, head().headers(), "else as the client made it");
    assert_eq!(again.head.uri(), head().uri());

    let refused = error(within(third).await.unwrap());
    assert_eq!(refused.reached, Reached::LeftOut);
    let again = refused.request.expect("nothing was taken from it");
    assert!(matches!(&again.payload, Payload::Untouched(_)));

    let refused = error(within(connection.call(again, late)).await);
    assert_eq!(refused.reached, Reached::No);
    let again = refused.request.expect("never sent");
    // The body that came back is the one the caller writes to.
    let other = dial(FrameServer::start(Script::default()).await.address()).await;
    let reply = tokio::spawn(other.call(again, slot(&other)));
    upload.send(Ok(framed(b"3"))).await.unwrap();
    drop(upload);
    assert_eq!(
        collect(within(reply).await.unwrap().unwrap())
            .await
            .unwrap()
            .1,
        Code::Ok
    );

    server.open_gate();
    let answer = within(first).await.unwrap().unwrap();
    assert_eq!(collect(answer).await.unwrap().1, Code::Ok);
}

#[tokio::test]
async fn a_refused_stream_is_handed_back_until_something_was_taken() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|call| match call.nth {
            0 => vec![Step::UntilEnd, Step::Reset(code::REFUSED_STREAM)],
            1 => vec![Step::Headers, Step::Reset(code::REFUSED_STREAM)],
            _ => vec![],
        }),
        ..Script::default()
    })
    .await;
    let refused = error(within(connection.call(unary(b"1"), slot(&connection))).await);
    assert_eq!(
        (refused.status.code(), refused.reached),
        (Code::Unavailable, Reached::Refused)
    );
    assert!(matches!(
        refused.request.unwrap().payload,
        Payload::Whole(_)
    ));

    // After a response head it is an error like any other.
    let answer = within(connection.call(unary(b"2"), slot(&connection)))
        .await
        .unwrap();
    assert_eq!(collect(answer).await.unwrap_err().code(), Code::Unavailable);

    let (upload, request) = streaming();
    let call = tokio::spawn(connection.call(request, slot(&connection)));
    upload.send(Ok(framed(b"3"))).await.unwrap();
    peer.wait(|f| f.stream == 5 && f.is(kind::DATA)).await;
    peer.reset(5, code::REFUSED_STREAM);
    let refused = error(within(call).await.unwrap());
    assert_eq!(refused.reached, Reached::Refused);
    assert!(refused.request.is_none(), "a message was taken");
    assert_eq!(connection.slots().open(), 0);
}

#[tokio::test]
async fn reset_codes_become_statuses_before_and_after_the_head() {
    let codes = [13, 13, 13, 13, 13, 13, 13, 14, 1, 13, 13, 8, 7, 13];
    let (_server, connection, _) = pair(Script {
        stream: stream(|call| match call.nth % 2 {
            0 => vec![Step::UntilEnd, Step::Reset(call.nth as u32 / 2)],
            _ => vec![
                Step::UntilEnd,
                Step::Headers,
                Step::Reset(call.nth as u32 / 2),
            ],
        }),
        ..Script::default()
    })
    .await;
    for (number, code) in codes.into_iter().enumerate() {
        let early = error(within(connection.call(unary(b""), slot(&connection))).await);
        assert_eq!(
            early.status.code(),
            Code::from_i32(code),
            "{number} {}",
            early.status
        );
        let refused = if number == 7 {
            Reached::Refused
        } else {
            Reached::Maybe
        };
        assert_eq!(early.reached, refused, "{number}");
        assert_eq!(early.request.is_some(), number == 7);
        let answer = within(connection.call(unary(b""), slot(&connection)))
            .await
            .unwrap();
        let late = collect(answer).await.unwrap_err();
        assert_eq!(late.code(), Code::from_i32(code), "{number} {late}");
    }
    assert_eq!(connection.slots().open(), 0);
}

#[tokio::test]
async fn a_reset_after_the_whole_answer_changes_nothing() {
    let (_server, connection, _) = pair(Script {
        stream: stream(|_| {
            let mut steps = Step::reply(b"all of it");
            steps.remove(0);
            steps.push(Step::Reset(code::NO_ERROR));
            steps
        }),
        ..Script::default()
    })
    .await;
    let (_upload, request) = streaming();
    let answer = within(connection.call(request, slot(&connection)))
        .await
        .unwrap();
    let (data, code) = collect(answer).await.unwrap();
    assert_eq!((data, code), (framed(b"all of it"), Code::Ok));
}

#[tokio::test]
async fn frames_that_h2_rejects_are_internal() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|_| vec![]),
        ..Script::default()
    })
    .await;
    let call = tokio::spawn(connection.call(unary(b""), slot(&connection)));
    let id = peer.wait(|f| f.is(kind::HEADERS)).await.stream;
    peer.fields(id, &[("connection", "close")], true, false);
    let rejected = error(within(call).await.unwrap());
    assert_eq!(
        (rejected.status.code(), rejected.reached),
        (Code::Internal, Reached::Maybe)
    );
    // And a frame that breaks the whole connection.
    let call = tokio::spawn(connection.call(unary(b""), slot(&connection)));
    peer.wait(|f| f.is(kind::HEADERS) && f.stream == 3).await;
    peer.window(0, 0);
    let broken = error(within(call).await.unwrap());
    assert_eq!(
        (broken.status.code(), broken.reached),
        (Code::Unavailable, Reached::Maybe)
    );
    assert!(
        broken.status.message().contains("PROTOCOL")
            || broken.status.message().contains("protocol"),
        "{}",
        broken.status
    );
    condition(&connection, closed).await;
}

/// What HTTP/2 forbids in a head is the caller's doing: no other connection is tried, and this one lives on.
#[tokio::test]
async fn a_head_that_cannot_be_sent_is_the_callers_own() {
    let (_server, connection, peer) = pair(Script::default()).await;
    let mut request = unary(b"");
    let headers = request.head.headers_mut();
    headers.insert("connection", http::HeaderValue::from_static("close"));
    let wrong = error(within(connection.call(request, slot(&connection))).await);
    assert_eq!(
        (wrong.status.code(), wrong.reached),
        (Code::Internal, Reached::Local)
    );
    assert!(wrong.request.is_none(), "wrong anywhere");
    assert!(wrong.status.message().contains("malformed headers"));
    assert!(std::error::Error::source(&wrong.status).is_none());
    assert_eq!(ask(&connection, b"").await.unwrap().1, Code::Ok);
    assert_eq!(peer.streams().len(), 1);
}

/// A flood ends the connection, and is told apart from frames that are merely wrong.
#[tokio::test]
async fn a_flood_that_h2_ends_is_resource_exhausted() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|_| vec![]),
        ..Script::default()
    })
    .await;
    let call = tokio::spawn(connection.call(unary(b""), slot(&connection)));
    let id = peer.wait(|f| f.is(kind::HEADERS)).await.stream;
    peer.frame(kind::HEADERS, 0, id, &frames::block(&[], true));
    for _ in 0..10 {
        peer.frame(kind::CONTINUATION, 0, id, b"");
    }
    let broken = error(within(call).await.unwrap());
    assert_eq!(
        (broken.status.code(), broken.reached),
        (Code::ResourceExhausted, Reached::Maybe)
    );
    let why = condition(&connection, closed).await;
    assert!(why.contains("excessive load"), "{why}");
}

#[tokio::test]
async fn a_connection_lost_after_the_request_left_is_unavailable_and_says_why() {
    for (step, why) in [
        (Step::Kill, "reset by peer"),
        (Step::Close, "closed the connection"),
    ] {
        let last = step.clone();
        let (server, connection, _) = pair(Script {
            stream: stream(move |_| vec![Step::UntilEnd, last.clone()]),
            ..Script::default()
        })
        .await;
        let lost = error(within(connection.call(unary(b""), slot(&connection))).await);
        assert_eq!(
            (lost.status.code(), lost.reached),
            (Code::Unavailable, Reached::Maybe)
        );
        assert!(lost.request.is_none());
        let text = lost.status.message();
        assert!(
            text.contains(why) && text.starts_with(&server.address().to_string()),
            "{text}"
        );
        let text = condition(&connection, closed).await;
        assert!(text.contains(why), "{text}");
        assert_eq!(
            (connection.slots().limit(), connection.slots().open()),
            (0, 0)
        );
    }
}

/// The server is gone, and the connection's task has not been told: h2 still takes the call.
#[test]
fn a_call_taken_by_a_dead_connection_never_left() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let (tell_address, address) = std::sync::mpsc::channel();
    let (kill, killing) = tokio::sync::oneshot::channel();
    let (tell_dead, dead) = std::sync::mpsc::channel();
    let serving = std::thread::spawn(move || {
        runtime().block_on(async {
            let server = FrameServer::start(Script::default()).await;
            tell_address.send(server.address()).unwrap();
            killing.await.unwrap();
            let peer = server.peer(0).await;
            peer.kill();
            peer.closed().await;
            tell_dead.send(peer.streams()).unwrap();
        });
    });
    let address = address.recv().unwrap();
    runtime().block_on(async {
        let connection = dial(address).await;
        let call = connection.call(unary(b"?"), slot(&connection));
        kill.send(()).unwrap();
        // Blocks this thread on purpose: nothing of the client runs until the server is gone.
        let seen = dead.recv_timeout(PATIENCE).unwrap();
        let lost = error(within(call).await);
        assert_eq!(
            (lost.status.code(), lost.reached),
            (Code::Unavailable, Reached::No)
        );
        assert!(
            lost.status.message().contains("reset by peer"),
            "{}",
            lost.status
        );
        let again = lost.request.expect("handed back");
        assert!(matches!(again.payload, Payload::Whole(message) if message == framed(b"?")));
        assert_eq!(seen, [0; 0], "the server saw no head");
        assert_eq!(connection.slots().open(), 0);
    });
    serving.join().unwrap();
}

/// Connections die while calls are made: whatever is said never to have left was not received.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_left_is_told_apart_from_what_did() {
    let (mut refused, mut kept, mut gone) = (0, 0, 0);
    for round in 0..300u32 {
        let (_server, connection, peer) = pair(Script {
            stream: stream(|_| vec![]),
            ..Script::default()
        })
        .await;
        let calls = [slot(&connection), slot(&connection)];
        peer.kill();
        // A different number of turns for the other tasks each time.
        for _ in 0..round % 20 {
            tokio::task::yield_now().await;
        }
        for slot in calls {
            let lost = error(within(connection.call(unary(b"?"), slot)).await);
            assert_eq!(lost.status.code(), Code::Unavailable, "{}", lost.status);
            match (lost.reached, lost.request.map(|request| request.payload)) {
                (Reached::No, Some(Payload::Untouched(_))) => refused += 1,
                (Reached::No, Some(Payload::Whole(message))) => {
                    kept += 1;
                    assert_eq!(message, framed(b"?"));
                    peer.closed().await;
                    assert_eq!(peer.streams(), [0; 0], "a head arrived");
                }
                (Reached::Maybe, None) => gone += 1,
                other => panic!("round {round}: {other:?}"),
            }
        }
    }
    println!("{refused} not taken, {kept} taken and never written, {gone} written");
    assert_eq!(refused + kept + gone, 600);
    assert!(
        refused > 0,
        "the second call of a round finds the connection dead"
    );
}

/// Accepts, allows everything, reads nothing.
#[tokio::test]
async fn a_server_that_reads_nothing_cannot_hold_a_connection_open() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let patience = Duration::from_millis(200);
    let options = Http2Options::default()
        .with_keepalive(PATIENCE * 10, patience)
        .unwrap();
    let accept = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let window = [0x7f, 0xff, 0, 0];
        let mut bytes = vec![0, 0, 6, kind::SETTINGS, 0, 0, 0, 0, 0, 0, 4];
        bytes.extend(window);
        bytes.extend([0, 0, 4, kind::WINDOW_UPDATE, 0, 0, 0, 0, 0]);
        bytes.extend(window);
        tokio::io::AsyncWriteExt::write_all(&mut socket, &bytes)
            .await
            .unwrap();
        socket
    };
    let (_socket, connection) = tokio::join!(accept, dial_with(options, address));
    // More than the kernels of both sides hold.
    let message = vec![0; 64 << 20];
    let call = tokio::spawn(connection.call(unary(&message), slot(&connection)));
    // Until both kernels are full and nothing moves.
    let stuck = async {
        let mut sent = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            match connection.control().traffic().sent {
                now if now == sent && now > 1_000 => break,
                now => sent = now,
            }
        }
    };
    within(stuck).await;
    call.abort();
    eventually("the slot is free", || connection.slots().open() == 0).await;
    let mut watch = connection.condition();
    drop(connection);
    let found = within(watch.wait_for(closed)).await.unwrap();
    let text = format!("{:?}", *found);
    assert!(text.contains("not closed in time"), "{text}");
}

#[tokio::test]
async fn abort_ends_every_call_with_its_reason() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|call| match call.nth {
            0 => vec![],
            _ => vec![Step::Headers],
        }),
        ..Script::default()
    })
    .await;
    let waiting = tokio::spawn(connection.call(unary(b""), slot(&connection)));
    peer.wait(|f| f.stream == 1).await;
    let answering = within(connection.call(unary(b""), slot(&connection)))
        .await
        .unwrap();
    connection.control().abort("drained for too long");
    assert!(connection.slots().try_reserve().is_none(), "at once");
    let early = error(within(waiting).await.unwrap());
    let late = collect(answering).await.unwrap_err();
    for status in [early.status, late] {
        assert_eq!(status.code(), Code::Unavailable);
        assert!(
            status.message().contains("drained for too long"),
            "{status}"
        );
    }
    let why = condition(&connection, closed).await;
    assert!(why.contains("drained for too long"), "{why}");
    peer.closed().await;
}

#[tokio::test]
async fn without_a_handle_the_last_stream_closes_the_connection() {
    let (server, connection, peer) = pair(Script {
        stream: stream(|_| vec![Step::Gate, Step::Headers, Step::Trailers(0)]),
        ..Script::default()
    })
    .await;
    let call = tokio::spawn(connection.call(unary(b""), slot(&connection)));
    peer.wait(|f| f.is(kind::HEADERS)).await;
    let mut watch = connection.condition();
    drop(connection);
    // It still answers: a round trip shows that it is open.
    peer.ping();
    peer.wait(|f| f.is(kind::PING) && f.is_ack()).await;
    assert!(!peer.is_closed());
    server.open_gate();
    let answer = within(call).await.unwrap().unwrap();
    assert_eq!(collect(answer).await.unwrap().1, Code::Ok);
    peer.wait(|f| f.is(kind::GOAWAY) && f.code() == code::NO_ERROR)
        .await;
    peer.closed().await;
    within(watch.wait_for(closed)).await.unwrap();
}

#[tokio::test]
async fn an_unused_connection_closes_with_its_handle() {
    let (_server, connection, peer) = pair(Script::default()).await;
    drop(connection);
    peer.wait(|f| f.is(kind::GOAWAY)).await;
    peer.closed().await;
}

#[tokio::test]
async fn a_dead_server_is_found_by_keepalive() {
    let second = Duration::from_millis(200);
    let options = Http2Options::default()
        .with_keepalive(second, second)
        .unwrap();
    let server = FrameServer::start(Script {
        pongs: false,
        stream: stream(|_| vec![]),
        ..Script::default()
    })
    .await;
    let connection = dial_with(options, server.address()).await;
    let peer = server.peer(0).await;
    let lost = error(within(connection.call(unary(b""), slot(&connection))).await);
    assert_eq!(lost.status.code(), Code::Unavailable);
    let text = lost.status.message();
    assert!(text.ends_with("keepalive: no answer in 200ms"), "{text}");
    assert_eq!(peer.count(|f| f.is(kind::PING)), 1);
    let text = condition(&connection, closed).await;
    assert!(text.contains("keepalive"), "{text}");
    peer.closed().await;
}

#[tokio::test]
async fn a_living_server_gets_two_pings_and_then_peace() {
    let interval = Duration::from_millis(20);
    let options = Http2Options::default()
        .with_keepalive(interval, PATIENCE)
        .unwrap();
    let server = FrameServer::start(Script {
        stream: stream(|_| vec![Step::Gate, Step::Headers, Step::Trailers(0)]),
        ..Script::default()
    })
    .await;
    let connection = dial_with(options, server.address()).await;
    let peer = server.peer(0).await;
    // An idle connection is left alone: far more than the interval passes before the call.
    tokio::time::sleep(interval * 10).await;
    assert_eq!(peer.count(|f| f.is(kind::PING)), 0);
    let call = tokio::spawn(connection.call(unary(b""), slot(&connection)));
    peer.until(|frames| frames.iter().filter(|f| f.is(kind::PING)).count() == 2)
        .await;
    tokio::time::sleep(interval * 10).await;
    assert_eq!(peer.count(|f| f.is(kind::PING)), 2, "no third");
    server.open_gate();
    within(call).await.unwrap().unwrap();
}

#[test]
fn the_end_of_the_runtime_is_an_end_like_any_other() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let (servers, clients, callers) = (runtime(), runtime(), runtime());
    let server = servers.block_on(FrameServer::start(Script {
        stream: stream(|_| vec![]),
        ..Script::default()
    }));
    let address = server.address();
    let serving = std::thread::spawn(move || {
        servers.block_on(async {
            server.peer(0).await.closed().await;
        });
    });
    let connection = clients.block_on(dial(address));
    let reserved = slot(&connection);
    drop(clients);
    assert!(connection.slots().try_reserve().is_none());
    let lost = error(callers.block_on(connection.call(unary(b""), reserved)));
    assert_eq!(
        (lost.status.code(), lost.reached),
        (Code::Unavailable, Reached::No)
    );
    let why = callers.block_on(condition(&connection, closed));
    assert!(why.contains("runtime"), "{why}");
    drop(connection);
    serving.join().unwrap();
}
