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
        (Code::Unavailable, Reached::Refused)
    );
    let again = refused.request.expect("a whole message can be sent again");
    assert!(matches!(&again.payload, Payload::Whole(message) if *message == framed(b"2")));
    assert_eq!(
        again.head.headers(),
        head().headers(),
        "as the client made it"
    );
    assert_eq!(again.head.uri(), head().uri());

    let refused = error(within(third).await.unwrap());
    assert_eq!(refused.reached, Reached::Refused);
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

/// 300 connections die while calls are being made: what says that it never left was never received,
/// and comes back; and both outcomes are seen, or the race was none.
#[tokio::test]
async fn what_never_left_is_told_apart_from_what_did() {
    let (mut kept, mut gone) = (0, 0);
    for round in 0..300u32 {
        let (_server, connection, peer) = pair(Script {
            stream: stream(|_| vec![]),
            ..Script::default()
        })
        .await;
        let slots = [slot(&connection), slot(&connection)];
        peer.kill();
        // A different number of turns for the other tasks each time.
        for _ in 0..round % 20 {
            tokio::task::yield_now().await;
        }
        for slot in slots {
            let lost = error(within(connection.call(unary(b"?"), slot)).await);
            assert_eq!(lost.status.code(), Code::Unavailable, "{}", lost.status);
            match lost.reached {
                Reached::No => {
                    kept += 1;
                    let again = lost.request.expect("handed back");
                    let Payload::Whole(message) = again.payload else {
                        assert!(matches!(again.payload, Payload::Untouched(_)));
                        continue;
                    };
                    assert_eq!(message, framed(b"?"));
                    assert_eq!(peer.streams().len(), 0, "a head arrived");
                }
                Reached::Maybe => {
                    gone += 1;
                    assert!(lost.request.is_none());
                }
                Reached::Refused => panic!("nobody refused"),
            }
        }
    }
    println!("{kept} handed back, {gone} not");
    assert!(kept > 0, "the race never hit");
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
    connection.abort("drained for too long");
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
