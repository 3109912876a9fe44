//! What goes wrong with tonic's own balancing, shown on tonic and then not on this channel.
//!
//! Each test names the trouble, runs stock tonic into it first (if that no longer fails, the comparison is
//! out of date and the test says so), and then does the same through equipoise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use equipoise::policy::{LeastRequest, RoundRobin};
use equipoise::{Channel, Connectivity, Endpoint};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::transport::channel::Change;
use tonic::{Code, Request, Status};

use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{Options, Server, tonic_endpoint};
use crate::rig::holes;
use crate::{PATIENCE, endpoints, in_flight, quiet, ready, server, until};

/// Long enough to tell "hangs" from "is slow".
const WHILE: Duration = Duration::from_millis(400);

fn hello(work_us: u64) -> HelloRequest {
    HelloRequest {
        work_us,
        ..HelloRequest::default()
    }
}

fn stock(addresses: &[SocketAddr]) -> GreeterClient<tonic::transport::Channel> {
    let list = addresses.iter().map(|&a| tonic_endpoint(a));
    GreeterClient::new(tonic::transport::Channel::balance_list(list))
}

async fn failures<T>(client: &GreeterClient<T>, calls: usize) -> Vec<Status>
where
    T: tonic::client::GrpcService<tonic::body::Body> + Clone,
    T::ResponseBody: http_body_util::BodyExt<Data = bytes::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::transport::Body>::Error:
        Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let mut client = client.clone();
    let mut failed = Vec::new();
    for _ in 0..calls {
        failed.extend(client.say_hello(hello(0)).await.err());
    }
    failed
}

/// Row 1: an endpoint that cannot be reached still gets its share of the calls.
#[tokio::test]
async fn a_dead_endpoint_gets_no_calls() {
    let (a, b) = (server("a"), server("b"));
    let dead = holes::refused();
    let list = [a.address, b.address, dead.address];

    let failed = failures(&stock(&list), 300).await;
    assert!(failed.len() > 50, "tonic failed {} of 300", failed.len());

    let channel = Channel::from_endpoints(list.map(Endpoint::from))
        .connect()
        .await
        .unwrap();
    let failed = failures(&GreeterClient::new(channel), 300).await;
    assert!(failed.is_empty(), "{failed:?}");
}

/// Row 2: connections are only worked on while calls come in.
#[tokio::test]
async fn connections_are_made_without_a_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();

    let _idle = stock(&[address]);
    let accepted = tokio::time::timeout(WHILE, listener.accept()).await;
    assert!(accepted.is_err(), "tonic connected without a call");

    let _channel = Channel::from_endpoints([Endpoint::from(address)])
        .build()
        .unwrap();
    let (mut socket, _) = tokio::time::timeout(PATIENCE, listener.accept())
        .await
        .unwrap()
        .unwrap();
    let mut preface = [0; 24];
    let read = socket.read_exact(&mut preface);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

/// Row 3: news of endpoints waits for calls, and blocks whoever brings it.
#[tokio::test]
async fn the_list_is_followed_without_a_call() {
    let (a, b) = (server("a"), server("b"));

    let (_channel, changes) = tonic::transport::Channel::balance_channel(1);
    let change = |n: u16| Change::Insert(n, tonic_endpoint(a.address));
    changes.try_send(change(0)).unwrap();
    tokio::time::sleep(WHILE).await;
    assert!(
        changes.try_send(change(1)).is_err(),
        "tonic took the news without a call"
    );

    let channel = Channel::from_endpoints([]).build().unwrap();
    for turn in 0..5_000 {
        let server = if turn % 2 == 0 { &a } else { &b };
        channel.set_endpoints(endpoints(&[server])).unwrap();
    }
    until("the last list is in force and connected", || {
        let seen = channel.endpoints();
        seen.len() == 1
            && seen[0].address.to_string() == b.address.to_string()
            && seen[0].state == Connectivity::Ready
    })
    .await;
}

/// Row 4: after GOAWAY, with another stream still open, the next call is lost.
#[tokio::test]
async fn a_call_after_goaway_is_not_lost() {
    async fn first_call_after_goaway<T, E>(connect: impl AsyncFnOnce(SocketAddr) -> T, late: E)
    where
        T: tonic::client::GrpcService<tonic::body::Body> + Clone + Send + 'static,
        T::Future: Send,
        T::ResponseBody: http_body_util::BodyExt<Data = bytes::Bytes> + Send + 'static,
        <T::ResponseBody as tonic::transport::Body>::Error:
            Into<Box<dyn std::error::Error + Send + Sync>> + Send,
        E: FnOnce(Result<String, Status>),
    {
        let old = server("old");
        let address = old.address;
        let mut client = GreeterClient::new(connect(address).await);
        let mut open = client
            .countdown(crate::endless())
            .await
            .unwrap()
            .into_inner();
        open.message().await.unwrap().expect("endless");
        let stopping = tokio::spawn(old.shutdown());
        // The old one lets go of its port when it stops accepting; its open stream goes on.
        let _new = loop {
            if let Ok(probe) = std::net::TcpListener::bind(address) {
                drop(probe);
                break Server::start(Options {
                    listen: address,
                    ..Options::new("new")
                });
            }
            open.message().await.unwrap().expect("endless");
        };
        for _ in 0..20 {
            open.message()
                .await
                .unwrap()
                .expect("endless, after GOAWAY too");
        }
        // The new one may be a moment late; tonic knows no such wish.
        let mut request = Request::new(hello(0));
        request.extensions_mut().insert(equipoise::WaitForReady);
        let reply = client.say_hello(request).await;
        late(reply.map(|r| r.into_inner().server));
        drop(open);
        stopping.await.unwrap();
    }

    let stock = async |address| tonic_endpoint(address).connect().await.unwrap();
    first_call_after_goaway(stock, |reply| {
        let status = reply.expect_err("tonic did not lose the call");
        assert_eq!(status.code(), Code::Cancelled, "{status:?}");
    })
    .await;

    let ours = async |address: SocketAddr| {
        let builder = Channel::from_endpoints([Endpoint::from(address)]);
        builder.connect().await.unwrap()
    };
    first_call_after_goaway(ours, |reply| assert_eq!(reply.unwrap(), "new")).await;
}

/// Rows 5 and 6: no deadline holds while a call waits, and one that passes looks like a cancelled call.
#[tokio::test]
async fn a_deadline_holds_while_waiting_and_says_so() {
    let request = || {
        let mut request = Request::new(hello(5_000_000));
        request.set_timeout(Duration::from_millis(50));
        request
    };

    let (channel, _changes) = tonic::transport::Channel::balance_channel::<u16>(1);
    let mut client = GreeterClient::new(channel);
    let call = tokio::time::timeout(WHILE, client.say_hello(request()));
    assert!(call.await.is_err(), "tonic's call with no endpoint ended");

    let a = server("a");
    let status = stock(&[a.address]).say_hello(request()).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::Cancelled,
        "tonic's deadline: {status:?}"
    );

    let empty = Channel::builder("shop:cart")
        .unwrap()
        .resolver(crate::Undecided)
        .build()
        .unwrap();
    for channel in [empty, ready(&[&a]).await] {
        let mut client = GreeterClient::new(channel.clone());
        let status = client.say_hello(request()).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        quiet(&channel).await;
    }
}

/// Row 7: a connection at the server's limit of streams looks as good as any other.
#[tokio::test]
async fn a_full_connection_is_passed_over() {
    const WORK: Duration = Duration::from_millis(300);
    let narrow = Server::start(Options {
        max_concurrent_streams: Some(1),
        ..Options::new("narrow")
    });
    let wide = server("wide");
    let list = [narrow.address, wide.address];
    let calls = |client: GreeterClient<_>| async move {
        let start = Instant::now();
        let calls = (0..16).map(|_| {
            let mut client = client.clone();
            async move {
                client
                    .say_hello(hello(WORK.as_micros() as u64))
                    .await
                    .unwrap()
            }
        });
        join_all(calls).await;
        start.elapsed()
    };

    let client = stock(&list);
    // Both connections are up before it is measured.
    failures(&client, 20).await;
    let start = Instant::now();
    join_all((0..16).map(|_| {
        let mut client = client.clone();
        async move {
            client
                .say_hello(hello(WORK.as_micros() as u64))
                .await
                .unwrap()
        }
    }))
    .await;
    let took = start.elapsed();
    assert!(
        took >= 2 * WORK,
        "tonic: nobody waited behind another, {took:?}"
    );

    for round_robin in [false, true] {
        let builder = Channel::from_endpoints(list.map(Endpoint::from));
        let builder = match round_robin {
            true => builder.policy(RoundRobin::default()),
            false => builder,
        };
        let channel = builder.connect().await.unwrap();
        until("both are ready", || {
            channel.endpoints().iter().all(|e| e.connections == 1)
        })
        .await;
        let took = calls(GreeterClient::new(channel.clone())).await;
        assert!(took < 2 * WORK, "somebody waited behind another: {took:?}");
    }
}

/// Row 11: a stream counts as load until it ends, not until its headers come.
#[tokio::test]
async fn open_streams_are_load() {
    let (a, b) = (server("a"), server("b"));
    let channel = Channel::from_endpoints(endpoints(&[&a, &b]))
        .policy(LeastRequest::full_scan())
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut open = Vec::new();
    // Until the second has joined; from then on they are kept level.
    while channel.endpoints().iter().any(|e| e.in_flight < 10) {
        open.push(
            client
                .countdown(crate::endless())
                .await
                .unwrap()
                .into_inner(),
        );
        assert!(open.len() < 1_000);
    }
    let counts: Vec<u32> = channel.endpoints().iter().map(|e| e.in_flight).collect();
    assert_eq!(counts.iter().sum::<u32>(), open.len() as u32);
    drop(open);
    quiet(&channel).await;
    assert_eq!(in_flight(&channel), 0);
}

/// Row 13: a peer that is silently gone is waited for until the kernel gives up.
#[tokio::test]
async fn a_silent_peer_is_noticed() {
    let a = server("a");
    let line = Line::to(a.address).await;

    let mut stock = stock(&[line.address]);
    stock.say_hello(hello(0)).await.unwrap();
    line.cut();
    let call = tokio::time::timeout(Duration::from_secs(2), stock.say_hello(hello(0)));
    assert!(call.await.is_err(), "tonic noticed");

    line.mend();
    let channel = Channel::from_endpoints([Endpoint::from(line.address)])
        .keepalive(Duration::from_millis(100), Duration::from_millis(100))
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    client.say_hello(hello(0)).await.unwrap();
    line.cut();
    let call = tokio::time::timeout(PATIENCE, client.say_hello(hello(0)));
    let status = call.await.expect("it is noticed").unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("keepalive"), "{status:?}");
    quiet(&channel).await;
}

/// Row 14: what comes after TCP is not covered by the time allowed for connecting.
#[tokio::test]
async fn the_whole_of_connecting_is_bounded() {
    let silent = holes::silent();
    let budget = Duration::from_millis(200);

    let endpoint = tonic_endpoint(silent.address).connect_timeout(budget);
    endpoint
        .connect()
        .await
        .expect("tonic takes a silent listener for a server");

    let start = Instant::now();
    let error = Channel::from_endpoints([Endpoint::from(silent.address)])
        .connect_timeout(budget)
        .connect()
        .await
        .unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    assert!(
        error.to_string().contains("not connected within 200ms"),
        "{error}"
    );
    assert!(start.elapsed() >= budget);
}

/// A line to a server that can go dead without a word: bytes are no longer carried, nobody is told.
struct Line {
    address: SocketAddr,
    alive: Arc<watch::Sender<bool>>,
}

impl Line {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let alive = Arc::new(watch::Sender::new(true));
        let state = alive.clone();
        tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                let Ok(outer) = TcpStream::connect(server).await else {
                    return;
                };
                let (inner_read, inner_write) = inner.into_split();
                let (outer_read, outer_write) = outer.into_split();
                tokio::spawn(carry(inner_read, outer_write, state.subscribe()));
                tokio::spawn(carry(outer_read, inner_write, state.subscribe()));
            }
        });
        Self { address, alive }
    }

    fn cut(&self) {
        self.alive.send_replace(false);
    }

    fn mend(&self) {
        self.alive.send_replace(true);
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut alive: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if alive.wait_for(|alive| *alive).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}
