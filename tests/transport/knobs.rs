//! The options of a connection, seen from the other side.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use equipoise::transport::{Connection, Connector, Http2Connector, Http2Options};
use equipoise::{Address, Endpoint};
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

use crate::{ask, closed, condition, dial_with, slot, unary, within};

const AGENT: &str = concat!("grpc-rust-equipoise/", env!("CARGO_PKG_VERSION"));

/// An address that nobody listens at: what is dialled is somewhere else.
fn nowhere() -> Address {
    "192.0.2.1:9".parse().unwrap()
}

/// Answers every call with one empty message, a head and trailers each with an entry of this many bytes, and notes the
/// heads of the requests.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    long: (usize, usize),
    heads: Arc<Mutex<Vec<http::Request<()>>>>,
) {
    let mut h2 = h2::server::handshake(socket).await.unwrap();
    // Its errors are the end of the client, which is up to the test.
    while let Some(Ok((request, mut answer))) = h2.accept().await {
        heads.lock().unwrap().push(request.map(|_| ()));
        let [head, tail] = [long.0, long.1].map(|long| "x".repeat(long));
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("x-long", head);
        let mut stream = answer
            .send_response(response.body(()).unwrap(), false)
            .unwrap();
        stream
            .send_data(Bytes::from_static(&[0; 5]), false)
            .unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        trailers.insert("x-long", HeaderValue::try_from(tail).unwrap());
        stream.send_trailers(trailers).unwrap();
    }
}

#[tokio::test]
async fn a_prefix_comes_before_our_own_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::default();
    let seen = Arc::clone(&heads);
    let serving = tokio::spawn(async move {
        serve(listener.accept().await.unwrap().0, (1, 1), seen).await;
    });
    let options = Http2Options::default().with_user_agent("shop/2.1").unwrap();
    let connection = dial_with(options, address).await;
    ask(&connection, b"a").await.unwrap();

    let mut own = unary(b"b");
    let name = HeaderValue::from_static("my own");
    own.head.headers_mut().insert("user-agent", name);
    within(connection.call(own, slot(&connection)))
        .await
        .unwrap();

    let agents: Vec<_> = heads
        .lock()
        .unwrap()
        .iter()
        .map(|head| head.headers()["user-agent"].clone())
        .collect();
    assert_eq!(agents, [&*format!("shop/2.1 {AGENT}"), "my own"]);
    serving.abort();
}

#[tokio::test]
async fn headers_are_taken_up_to_the_list_asked_for_and_not_beyond() {
    const K: usize = 1 << 10;
    // The list, what the head and the trailers have, and how the call ends.
    for (list, long, code) in [
        (None, (15 * K, 15 * K), Code::Ok),
        (None, (17 * K, 1), Code::Internal),
        (Some(64 << 10), (60 * K, 60 * K), Code::Ok),
        (Some(1 << 10), (2 * K, 1), Code::Internal),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            serve(socket, long, Arc::default()).await;
        });
        let mut options = Http2Options::default();
        if let Some(list) = list {
            options = options.with_max_header_list(list).unwrap();
        }
        let connection = dial_with(options, address).await;
        let seen = match ask(&connection, b"a").await {
            Ok((_, code)) => code,
            Err(status) => status.code(),
        };
        assert_eq!(seen, code, "{list:?} {long:?}");
        serving.abort();
    }
}

#[tokio::test]
async fn a_connection_leaves_from_the_address_asked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (socket, from) = listener.accept().await.unwrap();
        serve(socket, (1, 1), Arc::default()).await;
        from
    });
    let local = "127.0.0.9".parse().unwrap();
    let options = Http2Options::default().with_local_address(local).unwrap();
    let connection = dial_with(options, address).await;
    ask(&connection, b"a").await.unwrap();
    drop(connection);
    assert_eq!(within(serving).await.unwrap().ip(), local);
}

/// A pipe in memory to a server.
fn pipe() -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(serve(theirs, (1, 1), Arc::default()));
    ours
}

#[tokio::test]
async fn a_dialler_of_ones_own_makes_the_connections() {
    let dialled = Arc::new(Mutex::new(Vec::new()));
    let seen = dialled.clone();
    let options =
        Http2Options::default().with_dialler(move |endpoint: &Endpoint, address: &Address| {
            let tried = (endpoint.id().map(str::to_owned), address.to_string());
            seen.lock().unwrap().push(tried);
            async { Ok(pipe()) }
        });
    let endpoint = Endpoint::new(nowhere()).with_id("a");
    let connecting = Http2Connector::new(options).connect(&endpoint, &nowhere());
    let connection = within(connecting).await.unwrap();
    let (_, code) = ask(&connection, b"a").await.unwrap();
    assert_eq!(code, Code::Ok);
    assert!(connection.control().traffic().received > 0);
    assert_eq!(
        *dialled.lock().unwrap(),
        [(Some("a".to_owned()), "192.0.2.1:9".to_owned())]
    );
    let mut watch = connection.condition();
    drop(connection);
    within(watch.wait_for(closed)).await.unwrap();
}

#[tokio::test]
async fn a_dialler_may_fail_and_may_break() {
    let refusing = |_: &Endpoint, _: &Address| async {
        Err::<TcpStream, _>(io::Error::other("the proxy said 407"))
    };
    let options = Http2Options::default().with_dialler(refusing);
    let connecting = Http2Connector::new(options).connect(&Endpoint::new(nowhere()), &nowhere());
    let error = within(connecting).await.unwrap_err().to_string();
    assert_eq!(error, "192.0.2.1:9: connect: the proxy said 407");

    let (cut, is_cut) = tokio::sync::oneshot::channel::<()>();
    let is_cut = Arc::new(Mutex::new(Some(is_cut)));
    let options = Http2Options::default().with_dialler(move |_: &Endpoint, _: &Address| {
        let is_cut = is_cut.lock().unwrap().take();
        async move {
            let (ours, theirs) = tokio::io::duplex(1_024);
            tokio::spawn(async move {
                tokio::select! {
                    () = serve(theirs, (1, 1), Arc::default()) => {}
                    _ = async { is_cut.unwrap().await } => {}
                }
            });
            Ok(ours)
        }
    });
    let connection = dial_with(options, nowhere()).await;
    ask(&connection, b"a").await.unwrap();
    drop(cut);
    let why = condition(&connection, closed).await;
    assert_eq!(why, "192.0.2.1:9: the server closed the connection");
}
