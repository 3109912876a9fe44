//! READY, and the server's stream limit.

use super::*;

#[tokio::test]
async fn ready_when_settings_come_and_not_before() {
    for limit in [None, Some(7)] {
        let server = FrameServer::start(Script {
            settings: false,
            ..Script::default()
        })
        .await;
        let address = Address::from(server.address());
        let endpoint = Endpoint::new(address.clone());
        let mut connecting = pin!(Http2Connector::default().connect(&endpoint, &address));
        let peer = {
            let peer = server.peer(0);
            tokio::select! {
                _ = &mut connecting => panic!("ready without settings"),
                peer = peer => peer,
            }
        };
        // Answering a ping proves nothing.
        let both = async {
            peer.ping();
            peer.wait(|f| f.is(kind::PING) && f.is_ack()).await;
        };
        tokio::select! {
            biased;
            _ = &mut connecting => panic!("ready by a ping"),
            () = both => {}
        }
        peer.settings(limit);
        let connection = within(connecting).await.unwrap();
        assert_eq!(connection.slots().limit(), limit.unwrap_or(u32::MAX));
        assert_eq!(peer.streams(), [0; 0], "no call before");
    }
}

#[tokio::test]
async fn giving_up_on_a_silent_server_closes_the_socket() {
    let server = FrameServer::start(Script {
        settings: false,
        ..Script::default()
    })
    .await;
    let address = Address::from(server.address());
    let connecting = Http2Connector::default().connect(&Endpoint::new(address.clone()), &address);
    let peer = tokio::select! {
        _ = connecting => panic!("ready without settings"),
        peer = server.peer(0) => peer,
    };
    peer.closed().await;
}

#[tokio::test]
async fn a_server_that_speaks_something_else_is_never_ready() {
    let bytes = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
    for (what, reason) in [
        ("answer", "the server speaks HTTP/1.x, not HTTP/2"),
        ("close", "closed the connection"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        let connecting =
            Http2Connector::default().connect(&Endpoint::new(address.clone()), &address);
        let act = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            // The preface is read, or its rest would make a reset of the end.
            let mut preface = [0; 1024];
            tokio::io::AsyncReadExt::read(&mut socket, &mut preface)
                .await
                .unwrap();
            if what == "answer" {
                tokio::io::AsyncWriteExt::write_all(&mut socket, bytes.as_bytes())
                    .await
                    .unwrap();
            }
        };
        let (result, ()) = within(async { tokio::join!(connecting, act) }).await;
        let text = result.unwrap_err().to_string();
        assert!(
            text.starts_with(&format!("{address}: no HTTP/2 settings: ")),
            "{text}"
        );
        assert!(
            text.contains(reason) && text.matches(&address.to_string()).count() == 1,
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_full_connection_has_no_slot_and_parks_no_call() {
    let (server, connection, peer) = pair(Script {
        limit: Some(2),
        stream: stream(|_| vec![Step::Gate, Step::Headers, Step::Trailers(0)]),
        ..Script::default()
    })
    .await;
    let first = tokio::spawn(connection.call(unary(b"1"), slot(&connection)));
    let second = tokio::spawn(connection.call(unary(b"2"), slot(&connection)));
    assert!(connection.slots().try_reserve().is_none(), "limit 2");
    peer.until(|frames| frames.iter().filter(|f| f.is(kind::HEADERS)).count() == 2)
        .await;
    server.open_gate();
    for call in [first, second] {
        let (_, code) = collect(within(call).await.unwrap().unwrap()).await.unwrap();
        assert_eq!(code, Code::Ok);
    }
    assert_eq!(
        (connection.slots().open(), connection.slots().limit()),
        (0, 2)
    );
    ask(&connection, b"3").await.unwrap();
}

#[tokio::test]
async fn the_limit_follows_the_server() {
    let (server, connection, peer) = pair(Script {
        limit: Some(0),
        stream: stream(|_| vec![Step::Gate, Step::Headers, Step::Trailers(0)]),
        ..Script::default()
    })
    .await;
    assert!(connection.slots().try_reserve().is_none(), "0 is a limit");
    assert!(matches!(*connection.condition().borrow(), Condition::Open));
    peer.settings(Some(1));
    eventually("limit 1", || connection.slots().limit() == 1).await;
    let call = tokio::spawn(connection.call(unary(b""), slot(&connection)));
    peer.wait(|f| f.is(kind::HEADERS)).await;
    // Lowered below what is open: the open call goes on.
    peer.settings(Some(0));
    eventually("limit 0", || connection.slots().limit() == 0).await;
    server.open_gate();
    let answer = within(call).await.unwrap().unwrap();
    assert_eq!(collect(answer).await.unwrap().1, Code::Ok);
    peer.settings(Some(5));
    eventually("limit 5", || connection.slots().limit() == 5).await;
    assert_eq!(ask(&connection, b"").await.unwrap().1, Code::Ok);
}
