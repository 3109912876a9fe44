//! Names: how they are found, what they are called, and what can be wrong with them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use equipoise::resolver::Dns;
use equipoise::transport::{Connector, Http2Connector, Http2Options, TonicConnector};
use equipoise::{BalanceLayer, Channel, Connectivity};
use tokio::sync::mpsc;
use tonic::{Code, Request};
use tower_layer::Layer;

use crate::rig::greeter::Options;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::holes;
use crate::rig::names::{Found, Name};
use crate::{PATIENCE, Server, quick, server, until};

fn dns(name: &Name) -> Dns {
    Dns::default()
        .with_lookup(name.look_up())
        .with_min_interval(Duration::from_millis(10))
        .with_refresh(Duration::from_millis(50))
}

/// So many calls one after the other, from the first moment on: all of them are answered.
async fn no_outage(channel: Channel, calls: usize) {
    let mut client = GreeterClient::new(channel);
    for call in 0..calls {
        let mut request = Request::new(HelloRequest::default());
        request.set_timeout(PATIENCE);
        if let Err(status) = client.say_hello(request).await {
            panic!("call {call}: {status:?}");
        }
    }
}

/// The system's own answer, whether it knows one address for it or two: where only one of them serves, nobody
/// notices.
#[tokio::test]
async fn localhost_is_found_by_the_system() {
    let a = server("a");
    let port = a.address.port();
    let found = tokio::net::lookup_host(("localhost", port)).await.unwrap();
    let found: Vec<SocketAddr> = found.collect();
    println!("localhost is {found:?}");
    for target in [
        format!("localhost:{port}"),
        format!("dns:///localhost:{port}"),
        format!("dns:LocalHost:{port}"),
        format!("http://localhost:{port}/"),
    ] {
        let channel = Channel::builder(&target).unwrap().build().unwrap();
        no_outage(channel.clone(), 50).await;
        let mut addresses: Vec<String> = found.iter().map(ToString::to_string).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut listed: Vec<String> = channel
            .endpoints()
            .iter()
            .map(|e| e.address.to_string())
            .collect();
        listed.sort_unstable();
        assert_eq!(listed, addresses, "{target}");
        channel.close().await;
    }
}

/// 127.0.0.1 and ::1, and one of them refuses.
#[tokio::test]
async fn localhost_with_one_family_refusing_is_no_outage() {
    let mut families = vec!["127.0.0.1:0"];
    match std::net::TcpListener::bind("[::1]:0") {
        Ok(_) => families.push("[::1]:0"),
        Err(error) => println!("SKIPPED for ::1, which this machine does not have: {error}"),
    }
    for listen in families {
        let serving = Server::start(Options {
            listen: listen.parse().unwrap(),
            ..Options::new("a")
        });
        let port = serving.address.port();
        let both = ["127.0.0.1", "::1"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        let refusing = both.iter().find(|&&address| address != serving.address);
        let refusing = *refusing.expect("there are two");
        // The control: it does refuse.
        assert!(tokio::net::TcpStream::connect(refusing).await.is_err());
        let name = Name::of(&both);
        let builder = Channel::builder(format!("localhost:{port}")).unwrap();
        let channel = builder
            .resolver(dns(&name))
            .backoff(quick())
            .build()
            .unwrap();
        no_outage(channel.clone(), 200).await;
        until("the other has been tried", || {
            let endpoints = channel.endpoints();
            let mut refusing = endpoints.iter().filter(|e| e.address == refusing.into());
            refusing.all(|e| e.state == Connectivity::TransientFailure && e.picks == 0)
                && endpoints.len() == 2
        })
        .await;
        no_outage(channel, 200).await;
    }
}

/// A server that tells the URI of each call, which holds what it goes under, and answers NOT_FOUND.
async fn telling() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    seen.send(request.uri().to_string()).unwrap();
                    let response = http::Response::builder().header("grpc-status", "5");
                    let response = response.body(()).unwrap();
                    respond.send_response(response, true).unwrap();
                }
            });
        }
    });
    (address, heads)
}

/// A call on this channel, with an authority of its own or without.
async fn call<C: Connector>(channel: Channel<C>, own: Option<&'static str>) {
    let mut client = match own {
        None => GreeterClient::new(channel),
        Some(own) => GreeterClient::with_origin(channel, http::Uri::from_static(own)),
    };
    let status = client.say_hello(HelloRequest::default()).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
}

const PATH: &str = "/equipoise.demo.v1.Greeter/SayHello";

/// Calls go under the name as it was written, whichever address takes them; on an address, under the address.
#[tokio::test]
async fn calls_on_a_name_go_under_the_name() {
    let (address, mut heads) = telling().await;
    let name = Name::of(&[address]);
    let resolved = |target: &str| {
        let builder = Channel::builder(target).unwrap();
        builder.resolver(dns(&name).allow_loopback())
    };
    let by_address = Channel::builder(format!("dns:///{address}")).unwrap();
    for (builder, authority) in [
        (
            resolved("dns:///Greeter.Prod.:50051"),
            "Greeter.Prod.:50051",
        ),
        (resolved("my_service:80"), "my_service:80"),
        (
            resolved("greeter:80").authority("other.test:7"),
            "other.test:7",
        ),
        (by_address, &*address.to_string()),
    ] {
        call(builder.build().unwrap(), None).await;
        let head = heads.recv().await.unwrap();
        assert_eq!(head, format!("http://{authority}{PATH}"));
    }
}

/// The same under a layer: the connector's own authority says more than the name, and the call's own says most.
#[tokio::test]
async fn calls_on_a_name_go_under_the_name_whatever_connects() {
    let (address, mut heads) = telling().await;
    let name = Name::of(&[address]);
    let layer = BalanceLayer::builder("dns:///greeter:50051").unwrap();
    let layer = layer.resolver(dns(&name).allow_loopback()).build().unwrap();
    let mut under = async |authority: &str| {
        let head = heads.recv().await.unwrap();
        assert_eq!(head, format!("http://{authority}{PATH}"));
    };

    call(layer.layer(Http2Connector::default()), None).await;
    under("greeter:50051").await;
    let options = Http2Options::default().with_authority("other.test:7");
    let other = Http2Connector::new(options.unwrap());
    call(layer.layer(other.clone()), None).await;
    under("other.test:7").await;
    call(layer.layer(other), Some("http://own.test:9")).await;
    under("own.test:9").await;

    let made = TonicConnector::new(|endpoint| endpoint);
    call(layer.layer(made), None).await;
    under("greeter:50051").await;
    let existing = tonic::transport::Endpoint::from_static("http://existing.test:8");
    call(layer.layer(TonicConnector::from(existing)), None).await;
    under("existing.test:8").await;

    let listed = BalanceLayer::from_endpoints([address.into()]);
    let listed = listed.build().unwrap();
    call(listed.layer(Http2Connector::default()), None).await;
    under(&address.to_string()).await;
}

#[tokio::test]
async fn connecting_to_a_name_that_is_not_found_says_why() {
    for (found, words) in [
        (Found::Failure, "greeter:80: SERVFAIL"),
        (Found::Gone, "the resolver found no endpoints"),
    ] {
        let name = Name::new(found);
        let builder = Channel::builder("greeter:80").unwrap();
        let connecting = builder.resolver(dns(&name)).connect();
        let error = tokio::time::timeout(PATIENCE, connecting).await.unwrap();
        let error = error.unwrap_err();
        assert!(error.is_unavailable(), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn only_what_a_resolver_found_ages() {
    let a = server("a");
    let fixed = Channel::from_endpoints([a.address.into()]);
    assert_eq!(fixed.connect().await.unwrap().resolution(), None);
    let fixed = Channel::builder(a.address.to_string()).unwrap();
    assert_eq!(fixed.connect().await.unwrap().resolution(), None);

    let name = Name::of(&[a.address]);
    let builder = Channel::builder("greeter:80").unwrap();
    let builder = builder.resolver(dns(&name).allow_loopback());
    let channel = builder.connect().await.unwrap();
    let begin = Instant::now();
    // Each answer, though it is the same, makes it young again.
    let asked = name.asked();
    until("it was looked up again", || name.asked() > asked + 3).await;
    let resolution = channel.resolution().unwrap();
    assert!(resolution.age < Some(begin.elapsed()), "{resolution:?}");
    assert_eq!((resolution.failures, resolution.last_error), (0, None));
    assert!(channel.set_endpoints([]).unwrap_err().is_config());
}

/// A channel built outside a runtime looks up when it is first used, and one that is dropped looks no more.
#[test]
fn a_name_is_looked_up_by_a_running_channel_only() {
    let hole = holes::refused();
    let name = Name::of(&[hole.address]);
    let builder = Channel::builder("greeter:80").unwrap();
    let channel = builder.resolver(dns(&name).allow_loopback()).build();
    let channel = channel.unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert_eq!(name.asked(), 0);
    runtime.block_on(async {
        channel.state_changed(Connectivity::Connecting).await;
        assert!(name.asked() > 0);
        channel.close().await;
        let asked = name.asked();
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(name.asked(), asked, "three refresh intervals later");
    });
}
