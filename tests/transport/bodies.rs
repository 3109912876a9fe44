//! Messages under flow control, both ways.

use super::*;

#[tokio::test]
async fn a_unary_request_is_one_data_frame_with_the_end_on_it() {
    let (_server, connection, peer) = pair(Script::default()).await;
    ask(&connection, b"small").await.unwrap();
    let frames: Vec<_> = peer
        .frames()
        .into_iter()
        .filter(|f| f.stream == 1)
        .collect();
    assert_eq!(frames.len(), 2, "{frames:#?}");
    assert!(frames[0].is(kind::HEADERS) && !frames[0].ends_stream());
    assert!(frames[1].is(kind::DATA) && frames[1].ends_stream());
    assert_eq!(frames[1].payload, framed(b"small"));
    // A body without messages, and a message sent again, look the same.
    let payloads = [
        (Payload::Untouched(tonic::body::Body::empty()), Bytes::new()),
        (Payload::Whole(framed(b"again")), framed(b"again")),
    ];
    for (nth, (payload, sent)) in payloads.into_iter().enumerate() {
        let request = Outgoing {
            head: Box::new(head()),
            payload,
        };
        let answer = within(connection.call(request, slot(&connection)))
            .await
            .unwrap();
        collect(answer).await.unwrap();
        let id = 3 + 2 * nth as u32;
        let data = peer.wait(|f| f.stream == id && f.is(kind::DATA)).await;
        assert!(data.ends_stream() && data.payload == sent);
    }
    let traffic = connection.control().traffic();
    assert!(traffic.sent > 100 && traffic.received > 100, "{traffic:?}");
}

#[tokio::test]
async fn a_response_that_ends_stops_the_upload() {
    let (_server, connection, peer) = pair(Script {
        limit: Some(1),
        stream: stream(|call| match call.nth {
            0 => vec![Step::Headers, Step::Trailers(0)],
            _ => Step::reply(b""),
        }),
        ..Script::default()
    })
    .await;
    let (upload, request) = streaming();
    let answer = within(connection.call(request, slot(&connection)))
        .await
        .unwrap();
    assert_eq!(connection.slots().open(), 1, "the request half is open");
    assert_eq!(collect(answer).await.unwrap().1, Code::Ok);
    peer.wait(|f| f.stream == 1 && f.is(kind::RST_STREAM)).await;
    within(upload.closed()).await;
    eventually("the slot is free", || connection.slots().open() == 0).await;
    // With a limit of one the next call goes through only if h2 let go of the first, too.
    ask(&connection, b"next").await.unwrap();
}

#[tokio::test]
async fn an_early_answer_to_a_large_message_frees_its_slot() {
    let (_server, connection, peer) = pair(Script {
        limit: Some(1),
        room: false,
        stream: stream(|call| match call.nth {
            0 => vec![Step::Headers, Step::Trailers(8)],
            _ => Step::reply(b""),
        }),
        ..Script::default()
    })
    .await;
    // More than the window that the server never opens.
    let message = vec![7; 1 << 20];
    let (_, code) = ask(&connection, &message).await.unwrap();
    assert_eq!(code, Code::ResourceExhausted);
    let reset = peer.wait(|f| f.stream == 1 && f.is(kind::RST_STREAM)).await;
    assert_eq!(reset.code(), code::CANCEL);
    // The connection's window is used up as well; the next message has to wait for room, not for a slot.
    let next = tokio::spawn(connection.call(unary(b"next"), slot(&connection)));
    peer.wait(|f| f.stream == 3 && f.is(kind::HEADERS)).await;
    peer.window(0, 1_000);
    collect(within(next).await.unwrap().unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_upload_waits_for_room() {
    let (_server, connection, peer) = pair(Script {
        room: false,
        ..Script::default()
    })
    .await;
    let (upload, request) = streaming();
    let call = tokio::spawn(connection.call(request, slot(&connection)));
    // 65,535 bytes fit; what does not fit stays with the caller, but for the message in hand.
    let piece = Bytes::from(vec![1; 10_000]);
    let mut taken = 0;
    while let Ok(sent) =
        tokio::time::timeout(Duration::from_millis(300), upload.send(Ok(piece.clone()))).await
    {
        sent.unwrap();
        taken += 1;
    }
    // Six are on the wire, one is stuck in the middle, one waits in the channel of the test.
    assert!((7..=9).contains(&taken), "{taken} messages taken");
    let received = |frames: &[frames::Frame]| -> usize {
        frames
            .iter()
            .filter(|f| f.is(kind::DATA))
            .map(|f| f.payload.len())
            .sum()
    };
    assert_eq!(received(&peer.frames()), 65_535);
    peer.window(0, 1 << 20);
    peer.window(1, 1 << 20);
    drop(upload);
    collect(within(call).await.unwrap().unwrap()).await.unwrap();
    assert_eq!(received(&peer.frames()), taken * 10_000);
}

#[tokio::test]
async fn sixteen_mebibytes_go_through_a_small_window() {
    // The way back is in `real`: this server knows nothing of our windows.
    let (_server, connection, peer) = pair(Script::default()).await;
    let message = vec![3; 16 << 20];
    assert_eq!(ask(&connection, &message).await.unwrap().1, Code::Ok);
    let data = peer.frames().into_iter().filter(|f| f.is(kind::DATA));
    let sent: usize = data.map(|f| f.payload.len()).sum();
    assert_eq!(sent, message.len() + 5);
}

/// A server whose one stream sends many tiny messages, and whose other calls are answered at once.
#[tokio::test]
async fn a_slow_reader_of_tiny_messages_does_not_hurt_its_neighbours() {
    const MANY: usize = 100_000;
    let (_server, connection, _) = pair(Script {
        stream: stream(|call| match call.nth {
            0 => {
                let mut steps = vec![Step::UntilEnd, Step::Headers];
                let tiny = Step::Message(Bytes::from_static(b"t"));
                steps.extend(std::iter::repeat_n(tiny, MANY));
                steps.push(Step::Trailers(0));
                steps
            }
            _ => Step::reply(b"beside"),
        }),
        ..Script::default()
    })
    .await;
    let slow = within(connection.call(unary(b""), slot(&connection)))
        .await
        .unwrap();
    // Unread to the last byte, while others call.
    let bytes = MANY as u64 * (9 + 6);
    let mut calls = 0;
    while connection.control().traffic().received < bytes || calls < 100 {
        assert_eq!(ask(&connection, b"").await.unwrap().1, Code::Ok);
        calls += 1;
    }
    let mut body = slow.into_body();
    let mut messages = 0;
    while let Some(frame) = within(body.frame()).await {
        messages += usize::from(frame.unwrap().is_data());
    }
    assert_eq!(messages, MANY);
    assert!(matches!(*connection.condition().borrow(), Condition::Open));
}

#[tokio::test]
async fn a_caller_may_write_while_it_holds_the_response_unread() {
    let (_server, connection, peer) = pair(Script {
        stream: stream(|_| vec![Step::Headers]),
        ..Script::default()
    })
    .await;
    let (upload, request) = streaming();
    let answer = within(connection.call(request, slot(&connection)))
        .await
        .unwrap();
    // The channel holds one message: these only go if somebody else reads the body.
    for _ in 0..50 {
        within(upload.send(Ok(framed(b"written")))).await.unwrap();
    }
    drop(upload);
    peer.wait(|f| f.stream == 1 && f.ends_stream()).await;
    peer.trailers(1, 0);
    assert_eq!(collect(answer).await.unwrap().1, Code::Ok);
    assert_eq!(connection.slots().open(), 0);
}
