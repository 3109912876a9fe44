//! The channel over tonic's own channels: a set-up of `tonic::transport::Endpoint` goes on working, and what stock
//! tonic loses is not lost.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use equipoise::policy::RoundRobin;
use equipoise::transport::{TonicConnection, TonicConnector};
use equipoise::{
    BalanceLayer, Builder, Channel, Connectivity, Endpoint, Override, Served, WaitForReady,
};
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, rustls};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::{Certificate, ClientTlsConfig};
use tonic::{Code, Request, Status};
use tower_layer::Layer;

use crate::rig::delay::Delay;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, Server, UnixServer, tonic_endpoint, unix_server};
use crate::{PATIENCE, endpoints, quick, server, until};

type Tonic = Channel<TonicConnector>;

fn plain() -> TonicConnector {
    TonicConnector::new(|endpoint| endpoint.tcp_nodelay(true))
}

fn over(addresses: &[SocketAddr]) -> Builder<BalanceLayer> {
    BalanceLayer::from_endpoints(addresses.iter().map(|&a| Endpoint::from(a)))
        .policy(RoundRobin::default())
        .backoff(quick())
}

/// A channel that is ready on every endpoint.
async fn ready(builder: Builder<BalanceLayer>, connector: TonicConnector) -> Tonic {
    let channel = builder.build().unwrap().layer(connector);
    all_ready(&channel).await;
    channel
}

async fn all_ready(channel: &Tonic) {
    until("every endpoint is ready", || {
        let seen = channel.endpoints();
        !seen.is_empty() && seen.iter().all(|e| e.state == Connectivity::Ready)
    })
    .await;
}

async fn quiet(channel: &Tonic) {
    until("in flight is back to zero", || {
        channel.waiting() == 0 && channel.endpoints().iter().all(|e| e.in_flight == 0)
    })
    .await;
}

fn state(channel: &Tonic, address: SocketAddr) -> Option<Connectivity> {
    let mut all = channel.endpoints().into_iter();
    all.find(|e| e.address.to_string() == address.to_string())
        .map(|e| e.state)
}

fn hello() -> HelloRequest {
    HelloRequest {
        name: "you".into(),
        ..HelloRequest::default()
    }
}

fn slow() -> HelloRequest {
    HelloRequest {
        work_us: 20_000_000,
        ..HelloRequest::default()
    }
}

#[tokio::test]
async fn all_four_kinds_and_interceptors() {
    let (a, b) = (server("a"), server("b"));
    let channel = ready(over(&[a.address, b.address]), plain()).await;
    let mut client = GreeterClient::with_interceptor(channel.clone(), |mut r: Request<()>| {
        r.metadata_mut().insert("x-tenant", "blue".parse().unwrap());
        Ok(r)
    });
    let end = std::time::Instant::now() + PATIENCE;
    // Not from the first call on: the second endpoint joins the picker a moment after the first.
    while channel.endpoints().iter().any(|e| e.picks < 5) {
        assert!(std::time::Instant::now() < end, "{:?}", channel.endpoints());
        let response = client.say_hello(hello()).await.unwrap();
        let served = response.extensions().get::<Served>().unwrap().clone();
        let name = match served.endpoint().address().to_string() == a.address.to_string() {
            true => "a",
            false => "b",
        };
        assert_eq!(response.into_inner().server, name);
    }
    let request = CountdownRequest {
        count: 50,
        payload_bytes: 100,
        ..CountdownRequest::default()
    };
    let replies = client.countdown(request).await.unwrap().into_inner();
    assert_eq!(replies.count().await, 50);

    let big = HelloRequest {
        payload: vec![7; 1_000],
        ..hello()
    };
    let requests = stream::iter((0..200).map(move |_| big.clone()));
    let sum = client.gather(requests).await.unwrap().into_inner();
    assert_eq!((sum.messages, sum.bytes), (200, 200_000));

    let requests = stream::iter((0..100).map(|id| HelloRequest { id, ..hello() }));
    let replies = client.chat(requests).await.unwrap().into_inner();
    let ids: Vec<u64> = replies.map(|r| r.unwrap().id).collect().await;
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
    quiet(&channel).await;

    let failing = HelloRequest {
        code: Code::NotFound as u32,
        ..hello()
    };
    let status = client.say_hello(failing).await.unwrap_err();
    assert_eq!(
        (
            status.code(),
            status.message().ends_with("was told to fail")
        ),
        (Code::NotFound, true)
    );
    let mut refused = GreeterClient::with_interceptor(channel.clone(), |_: Request<()>| {
        Err(Status::unauthenticated("no badge"))
    });
    let status = refused.say_hello(hello()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);

    // Bytes are counted, both ways: at least what the payloads come to.
    let traffic = channel.endpoints().into_iter().map(|e| e.traffic);
    let all = traffic.reduce(|a, b| a + b).unwrap();
    assert!(all.sent > 200_000 && all.received > 5_000, "{all:?}");
    let traffic = channel.endpoints().into_iter().map(|e| e.traffic);
    assert!(traffic.into_iter().all(|t| t.sent > 0 && t.received > 0));
}

#[tokio::test]
async fn a_unix_socket_is_an_endpoint_like_any_other() {
    let UnixServer { path, .. } = &unix_server("u");
    let layer = BalanceLayer::builder(format!("unix:{}", path.display())).unwrap();
    let channel = ready(layer, plain()).await;
    let reply = GreeterClient::new(channel).say_hello(hello()).await;
    assert_eq!(reply.unwrap().into_inner().server, "u");
}

/// What a tonic server saw of a call.
async fn echo(request: http::Request<tonic::body::Body>) -> http::Response<tonic::body::Body> {
    let says = |name: &str| request.headers().get(name).cloned();
    let mut response = Status::ok("").into_http::<tonic::body::Body>();
    let authority = request.uri().authority().map_or("", |a| a.as_str());
    let seen = [
        ("x-agent", says("user-agent")),
        ("x-authority", authority.parse().ok()),
    ];
    for (name, value) in seen {
        if let Some(value) = value {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// What a server of `greeter.test` speaks TLS with. Its cryptography is named: this test has two to choose from.
type Identity = Arc<rustls::ServerConfig>;

/// A tonic server that says what it saw, over TLS where there is an identity. Returns its address and what ends it
/// in order.
async fn echoing(identity: Option<Identity>) -> (SocketAddr, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        // Dropped or told: either way it ends.
        let _ = stopped.await;
    };
    let server = tonic::transport::Server::builder().add_routes(Routes::new(Echo));
    let sockets = TcpListenerStream::new(listener);
    match identity {
        None => {
            tokio::spawn(server.serve_with_incoming_shutdown(sockets, stopped));
        }
        Some(identity) => {
            let acceptor = TlsAcceptor::from(identity);
            let sessions = sockets.filter_map(move |socket| {
                let acceptor = acceptor.clone();
                // A client that does not trust us ends its own handshake only.
                async move {
                    acceptor
                        .accept(socket.ok()?)
                        .await
                        .ok()
                        .map(Ok::<_, io::Error>)
                }
            });
            tokio::spawn(server.serve_with_incoming_shutdown(sessions, stopped));
        }
    }
    (address, stop)
}

#[derive(Clone)]
struct Echo;

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl tower::Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async {
            if request.uri().path().ends_with("/Hold") {
                // Until the client goes.
                std::future::pending::<()>().await;
            }
            Ok(echo(request).await)
        })
    }
}

/// A call to [`Echo`]: the head of its response.
async fn ask(channel: &Tonic, path: &str) -> Result<http::HeaderMap, Status> {
    send(channel, path, None).await
}

/// The same on one endpoint and no other.
async fn ask_at(
    channel: &Tonic,
    path: &str,
    address: SocketAddr,
) -> Result<http::HeaderMap, Status> {
    send(channel, path, Some(Override::strict(address))).await
}

async fn send(
    channel: &Tonic,
    path: &str,
    wanted: Option<Override>,
) -> Result<http::HeaderMap, Status> {
    let mut request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::empty())
        .unwrap();
    request.extensions_mut().insert(WaitForReady);
    if let Some(wanted) = wanted {
        request.extensions_mut().insert(wanted);
    }
    let mut channel = channel.clone();
    let response = tower::Service::call(&mut channel, request).await?;
    Ok(response.headers().clone())
}

const ECHO: &str = "/test.Echo/Say";
const HOLD: &str = "/test.Echo/Hold";

/// A certificate for `greeter.test`, as a server has it and as a client trusts it.
fn certified() -> (Identity, Certificate) {
    let made = rcgen::generate_simple_self_signed(["greeter.test".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols.push(b"h2".to_vec());
    (Arc::new(config), Certificate::from_pem(made.cert.pem()))
}

fn over_tls(trusted: Certificate) -> TonicConnector {
    let endpoint = tonic::transport::Endpoint::from_static("https://greeter.test")
        .user_agent("shop/2.1")
        .unwrap()
        .tls_config(ClientTlsConfig::new().ca_certificate(trusted))
        .unwrap();
    TonicConnector::from(endpoint)
}

#[tokio::test]
async fn an_existing_endpoint_with_tonics_own_tls_goes_on_working() {
    let (identity, trusted) = certified();
    let (a, _a) = echoing(Some(identity.clone())).await;
    let (b, _b) = echoing(Some(identity)).await;
    let channel = ready(over(&[a, b]), over_tls(trusted)).await;
    for address in [a, b] {
        let seen = ask_at(&channel, ECHO, address).await.unwrap();
        assert_eq!(seen["x-authority"], "greeter.test");
        let agent = seen["x-agent"].to_str().unwrap();
        assert!(agent.starts_with("shop/2.1 tonic/"), "{agent}");
    }

    // A certificate that the set-up does not trust: no call is sent, and it is said why.
    let (_, other) = certified();
    let channel = over(&[a]).build().unwrap().layer(over_tls(other));
    until("the handshake has failed", || {
        channel.endpoints().iter().any(|e| e.last_error.is_some())
    })
    .await;
    let why = channel.endpoints()[0].last_error.clone().unwrap();
    assert!(why.contains("invalid peer certificate"), "{why}");

    // Plain text to a server of TLS is not taken for a connection either.
    let channel = over(&[a]).build().unwrap().layer(plain());
    until("there were no settings", || {
        channel.endpoints().iter().any(|e| e.last_error.is_some())
    })
    .await;
    assert_ne!(state(&channel, a), Some(Connectivity::Ready));
}

#[tokio::test]
async fn tls_hides_the_goaway_and_still_no_call_is_lost() {
    let (identity, trusted) = certified();
    let (a, stop) = echoing(Some(identity.clone())).await;
    let (b, _b) = echoing(Some(identity)).await;
    let channel = ready(over(&[a, b]), over_tls(trusted)).await;
    // Calls that keep the connections open after GOAWAY.
    let held = [a, b].map(|address| {
        let channel = channel.clone();
        tokio::spawn(async move { ask_at(&channel, HOLD, address).await })
    });
    until("one is on each", || {
        channel.endpoints().iter().all(|e| e.in_flight == 1)
    })
    .await;
    // They have arrived: later calls on the same connections have been answered.
    for address in [a, b] {
        ask_at(&channel, ECHO, address).await.unwrap();
    }
    stop.send(()).unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    while state(&channel, a) == Some(Connectivity::Ready) {
        ask(&channel, ECHO).await.unwrap();
        assert!(std::time::Instant::now() < end, "the GOAWAY was never seen");
    }
    for _ in 0..20 {
        ask(&channel, ECHO).await.unwrap();
    }
    for call in held {
        call.abort();
    }
    quiet(&channel).await;
}

#[tokio::test]
async fn a_configured_endpoint_says_what_it_was_told_to() {
    let (address, _server) = echoing(None).await;
    let connector = TonicConnector::try_new(|endpoint| {
        let endpoint = endpoint.origin("http://shop.prod.svc:81".parse().unwrap());
        endpoint.user_agent("shop/3")
    });
    let channel = ready(over(&[address]), connector).await;
    let seen = ask(&channel, ECHO).await.unwrap();
    assert_eq!(seen["x-authority"], "shop.prod.svc:81");
    assert!(seen["x-agent"].to_str().unwrap().starts_with("shop/3 "));

    let channel = ready(over(&[address]), plain()).await;
    let seen = ask(&channel, ECHO).await.unwrap();
    assert_eq!(seen["x-authority"], address.to_string().as_str());
}

#[tokio::test]
async fn a_connection_leaves_as_its_connector_says() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let local = "127.0.0.9".parse().unwrap();
    let connector = plain().with_local_address(local).unwrap();
    let _channel = over(&[address]).build().unwrap().layer(connector);
    let (_socket, from) = listener.accept().await.unwrap();
    assert_eq!(from.ip(), local);

    // A dialler of one's own, to another place than the address says.
    let (there, _server) = echoing(None).await;
    let nowhere: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let connector = plain().with_dialler(move |_: &Endpoint, _: &equipoise::Address| {
        tokio::net::TcpStream::connect(there)
    });
    let channel = ready(over(&[nowhere]), connector).await;
    let seen = ask(&channel, ECHO).await.unwrap();
    assert_eq!(seen["x-authority"], "192.0.2.1:9");
}

/// The server dies: the endpoint leaves READY without a call, no call goes there, and it comes back by itself.
#[tokio::test]
async fn closing_is_seen_without_a_call_and_the_balancer_connects_again() {
    let (a, b) = (server("a"), server("b"));
    let (died, alive) = (a.address, b.address);

    let list = [died, alive].map(tonic_endpoint);
    let stock = tonic::transport::Channel::balance_list(list.into_iter());
    let mut stock = GreeterClient::new(stock);
    for _ in 0..20 {
        stock.say_hello(hello()).await.unwrap();
    }
    let channel = ready(over(&[died, alive]), plain()).await;
    let mut client = GreeterClient::new(channel.clone());
    a.abort();
    until("it has left READY", || {
        state(&channel, died) != Some(Connectivity::Ready)
    })
    .await;
    for _ in 0..50 {
        let reply = client.say_hello(hello()).await.unwrap().into_inner();
        assert_eq!(reply.server, "b");
    }
    let mut failed = 0;
    for _ in 0..50 {
        failed += usize::from(stock.say_hello(hello()).await.is_err());
    }
    assert!(failed > 5, "stock tonic failed {failed} of 50");

    let _again = Server::start(Options {
        listen: died,
        ..Options::new("again")
    });
    all_ready(&channel).await;
    let end = std::time::Instant::now() + PATIENCE;
    while client.say_hello(hello()).await.unwrap().into_inner().server != "again" {
        assert!(std::time::Instant::now() < end, "it is never picked again");
    }
}

/// A listener that takes connections, speaks HTTP/2 and ends each connection after its first call.
async fn one_call_each() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            // A counter on its own: nothing else is read in its order.
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut h2 = h2::server::handshake(socket).await.unwrap();
                let _first = h2.accept().await;
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn tonic_does_not_connect_behind_the_balancers_back() {
    // Stock tonic connects anew for each call.
    let (address, connections) = one_call_each().await;
    let stock = tonic_endpoint(address).connect().await.unwrap();
    let mut client = GreeterClient::new(stock);
    for _ in 0..20 {
        client.say_hello(hello()).await.unwrap_err();
    }
    let stock = connections.load(Ordering::Relaxed);
    assert!(stock >= 10, "stock tonic connected {stock} times");

    // Under the balancer there are its own two attempts: the first short-lived connection is made again at once, the
    // next waits for the backoff.
    let (address, connections) = one_call_each().await;
    let hour = Duration::from_secs(3_600);
    let backoff = equipoise::balancer::Backoff {
        base: hour,
        cap: hour,
        ..quick()
    };
    let channel = ready(over(&[address]).backoff(backoff), plain()).await;
    let mut client = GreeterClient::new(channel.clone());
    for _ in 0..20 {
        let status = client.say_hello(hello()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    assert_eq!(
        state(&channel, address),
        Some(Connectivity::TransientFailure)
    );
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn cancelling_reaches_the_server() {
    let a = Server::start(Options {
        concurrency: Some(1),
        ..Options::new("a")
    });
    let channel = ready(over(&[a.address]), plain()).await;
    let client = GreeterClient::new(channel.clone());
    // A call behind it gets its turn only when the server has dropped the first.
    let behind = async |cancelled: u64| {
        let mut client = client.clone();
        let reply = tokio::time::timeout(PATIENCE, client.say_hello(hello())).await;
        reply.expect("the first is cancelled").unwrap();
        quiet(&channel).await;
        assert_eq!(channel.endpoints()[0].cancelled, cancelled);
    };
    let on_its_way = async || {
        until("it is in flight", || channel.endpoints()[0].in_flight == 1).await;
    };

    let mut busy = client.clone();
    let call = tokio::spawn(async move { busy.say_hello(slow()).await });
    on_its_way().await;
    call.abort();
    behind(1).await;

    let mut replies = client
        .clone()
        .countdown(crate::endless())
        .await
        .unwrap()
        .into_inner();
    replies.message().await.unwrap().expect("endless");
    drop(replies);
    behind(2).await;

    // With the caller's own stream still open.
    let (say, said) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(said);
    say.send(hello()).await.unwrap();
    let replies = client.clone().chat(requests).await.unwrap().into_inner();
    drop(replies);
    say.closed().await;
    behind(3).await;
}

#[tokio::test]
async fn deadlines_hold_before_the_response_and_in_it() {
    let a = server("a");
    let channel = ready(over(&[a.address]), plain()).await;
    let mut client = GreeterClient::new(channel.clone());
    let mut request = Request::new(slow());
    request.set_timeout(Duration::from_millis(50));
    let status = client.say_hello(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.metadata().get("equipoise-endpoint").is_some());

    let mut request = Request::new(crate::endless());
    request.set_timeout(Duration::from_millis(200));
    let mut replies = client.countdown(request).await.unwrap().into_inner();
    let status = loop {
        match replies.message().await {
            Ok(message) => assert!(message.is_some(), "it has no end"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    quiet(&channel).await;

    // The endpoint's own limit, where it is the shorter one.
    let connector = TonicConnector::new(|e| e.timeout(Duration::from_millis(50)));
    let channel = ready(over(&[a.address]), connector).await;
    let status = GreeterClient::new(channel)
        .say_hello(slow())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn an_endpoint_that_leaves_is_drained_and_then_closed() {
    let (a, b) = (server("a"), server("b"));
    let wire = Delay::start(a.address, Duration::ZERO);
    let channel = ready(over(&[wire.address]), plain()).await;
    let mut client = GreeterClient::new(channel.clone());
    let request = CountdownRequest {
        count: 300,
        pause_us: 1_000,
        ..CountdownRequest::default()
    };
    let mut replies = client.countdown(request).await.unwrap().into_inner();
    replies.message().await.unwrap().unwrap();
    channel.set_endpoints(endpoints(&[&b])).unwrap();
    until("the new one serves", || {
        state(&channel, b.address) == Some(Connectivity::Ready) && channel.endpoints().len() == 1
    })
    .await;
    while client.say_hello(hello()).await.unwrap().into_inner().server != "b" {}
    let mut left = 0;
    while replies.message().await.unwrap().is_some() {
        left += 1;
    }
    assert_eq!(left, 299, "the stream went on to its end");
    // In order, and so only when the connection is closed.
    let stopped = tokio::time::timeout(PATIENCE, a.shutdown()).await;
    stopped.expect("nobody holds the connection");
    assert_eq!(wire.accepted(), 1);
}

#[tokio::test]
async fn the_drain_deadline_ends_what_does_not_end_by_itself() {
    let (a, b) = (server("a"), server("b"));
    let builder = over(&[a.address]).drain_deadline(Duration::from_millis(100));
    let channel = ready(builder, plain()).await;
    let mut client = GreeterClient::new(channel.clone());
    let streaming = client.countdown(crate::endless()).await;
    let mut replies = streaming.unwrap().into_inner();
    channel.set_endpoints(endpoints(&[&b])).unwrap();
    let status = loop {
        match replies.message().await {
            Ok(message) => assert!(message.is_some(), "it has no end"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("drain deadline of 100ms passed"),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_channel_that_is_closed_closes_its_connections() {
    let a = server("a");
    let channel = ready(over(&[a.address]), plain()).await;
    GreeterClient::new(channel.clone())
        .say_hello(hello())
        .await
        .unwrap();
    let closed = tokio::time::timeout(PATIENCE, channel.close()).await;
    closed.expect("nothing is under way");
    let stopped = tokio::time::timeout(PATIENCE, a.shutdown()).await;
    stopped.expect("nobody holds the connection");
}

/// hyper would take any number of calls and hold back silently what the server does not allow.
#[tokio::test]
async fn the_servers_stream_limit_is_kept() {
    let a = Server::start(Options {
        max_concurrent_streams: Some(2),
        work: Duration::from_millis(20),
        ..Options::new("a")
    });
    let channel = ready(over(&[a.address]), plain()).await;
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let mut client = GreeterClient::new(channel.clone());
            tokio::spawn(async move { client.say_hello(hello()).await })
        })
        .collect();
    until("calls wait for room", || channel.waiting() > 0).await;
    assert!(channel.endpoints()[0].in_flight <= 2);
    for call in calls {
        call.await.unwrap().unwrap();
    }
    quiet(&channel).await;
}

#[tokio::test]
async fn a_goaway_moves_the_calls_elsewhere_and_leaves_streams_alone() {
    let (a, b) = (server("a"), server("b"));
    let went = a.address;
    let channel = ready(over(&[went, b.address]), plain()).await;
    let mut client = GreeterClient::new(channel.clone());
    let mut open = Vec::new();
    for address in [went, b.address] {
        let mut request = Request::new(crate::endless());
        request.extensions_mut().insert(Override::strict(address));
        let replies = client.countdown(request).await.unwrap();
        open.push(replies.into_inner());
    }
    let stopping = tokio::spawn(a.shutdown());
    until("the GOAWAY is seen", || {
        state(&channel, went) != Some(Connectivity::Ready)
    })
    .await;
    for _ in 0..20 {
        let reply = client.say_hello(hello()).await.unwrap().into_inner();
        assert_eq!(reply.server, "b");
    }
    for replies in &mut open {
        for _ in 0..20 {
            replies.message().await.unwrap().expect("endless");
        }
    }
    drop(open);
    stopping.await.unwrap();
    quiet(&channel).await;
}

#[test]
fn a_tonic_connection_can_be_named() {
    fn named<C: equipoise::transport::Connector<Connection = TonicConnection>>(_: C) {}
    named(plain());
    let text = format!("{:?}", plain());
    assert!(text.starts_with("TonicConnector"), "{text}");
}

/// What the caller cannot send is the caller's doing here, too.
#[tokio::test]
async fn an_upload_that_fails_after_the_response_began_is_the_callers_own() {
    let a = server("a");
    let channel = ready(over(&[a.address]), plain()).await;
    let mut client = GreeterClient::new(channel.clone()).max_encoding_message_size(1_000);
    let (say, said) = tokio::sync::mpsc::channel::<HelloRequest>(1);
    say.send(hello()).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(said);
    let mut replies = client.chat(requests).await.unwrap().into_inner();
    replies.message().await.unwrap().expect("it is answered");
    let too_large = HelloRequest {
        payload: vec![0; 2_000],
        ..HelloRequest::default()
    };
    say.send(too_large).await.unwrap();
    let status = replies.message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
    assert!(status.metadata().is_empty(), "{status:?}");
    quiet(&channel).await;
    let endpoint = &channel.endpoints()[0];
    assert_eq!(endpoint.outcomes, [], "{endpoint:?}");
    assert_eq!(endpoint.cancelled, 1, "{endpoint:?}");
}
