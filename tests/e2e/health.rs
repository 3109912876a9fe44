//! Servers that say how they are, and what the channel makes of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use equipoise::balancer::Panic;
use equipoise::policy::RoundRobin;
use equipoise::{Channel, Connectivity, Endpoint, Health, HealthCheck, Override, TcpCheck, Unfit};
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::Request;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{self, Options};
use crate::{quiet, server, until};

/// A server with a health service, on the test's own runtime.
struct Outspoken {
    address: SocketAddr,
    reporter: HealthReporter,
    serving: JoinHandle<()>,
}

impl Outspoken {
    async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reporter, health) = tonic_health::server::health_reporter();
        let router = tonic::transport::Server::builder()
            .add_service(health)
            .add_service(greeter::service(Options::new(name)));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = async { router.serve_with_incoming(incoming).await.unwrap() };
        Self {
            address,
            reporter,
            serving: tokio::spawn(serving),
        }
    }

    async fn says(&self, status: ServingStatus) {
        self.reporter.set_service_status("", status).await;
    }
}

impl Drop for Outspoken {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn channel(addresses: &[SocketAddr], check: HealthCheck) -> Channel {
    Channel::from_endpoints(addresses.iter().map(|&address| Endpoint::from(address)))
        .policy(RoundRobin::default())
        .panic(Panic::use_all_below(0))
        .health_check(check)
        .build()
        .unwrap()
}

fn health(channel: &Channel, address: SocketAddr) -> Health {
    let all = channel.endpoints();
    let found = all.iter().find(|e| e.address == address.into());
    found.map_or(Health::Unknown, |e| e.health.clone())
}

async fn all_ready(channel: &Channel, count: usize) {
    until("all are ready", || {
        let all = channel.endpoints();
        all.len() == count && all.iter().all(|e| e.state == Connectivity::Ready)
    })
    .await;
}

#[tokio::test]
async fn who_says_not_serving_gets_no_calls_and_gets_them_again() {
    let (a, b) = (Outspoken::start("a").await, Outspoken::start("b").await);
    let channel = channel(&[a.address, b.address], HealthCheck::default());
    all_ready(&channel, 2).await;
    assert_eq!(health(&channel, a.address), Health::Serving);
    let mut client = GreeterClient::new(channel.clone());
    a.says(ServingStatus::NotServing).await;
    let bad = Health::NotServing(Unfit::SaysSo);
    until("it is seen", || health(&channel, a.address) == bad).await;
    let shown = channel.endpoints();
    let shown = shown
        .iter()
        .find(|e| e.address == a.address.into())
        .unwrap();
    assert!(
        shown
            .why
            .as_deref()
            .is_some_and(|why| why.contains("not serving")),
        "{shown:?}"
    );
    // None from that moment on, also where one prefers it; one that asks for nobody else is let through.
    for _ in 0..100 {
        let mut request = Request::new(HelloRequest::default());
        request.extensions_mut().insert(Override::prefer(a.address));
        let reply = client.say_hello(request).await.unwrap();
        assert_eq!(reply.get_ref().server, "b");
        let reply = client.say_hello(HelloRequest::default()).await.unwrap();
        assert_eq!(reply.get_ref().server, "b");
    }
    let mut request = Request::new(HelloRequest::default());
    request.extensions_mut().insert(Override::strict(a.address));
    let reply = client.say_hello(request).await.unwrap();
    assert_eq!(reply.get_ref().server, "a");
    a.says(ServingStatus::Serving).await;
    until("it is well", || {
        health(&channel, a.address) == Health::Serving
    })
    .await;
    all_ready(&channel, 2).await;
    let end = Instant::now() + crate::PATIENCE;
    while client
        .say_hello(HelloRequest::default())
        .await
        .unwrap()
        .get_ref()
        .server
        != "a"
    {
        assert!(Instant::now() < end, "it is never picked again");
    }
    quiet(&channel).await;
    // The questions go on, and do not keep the connections open.
    tokio::time::timeout(crate::PATIENCE, channel.close())
        .await
        .unwrap();
}

#[tokio::test]
async fn dropped_the_channel_ends_its_questions() {
    let a = Outspoken::start("a").await;
    let before = sockets(a.address);
    let channel = channel(&[a.address], HealthCheck::default());
    all_ready(&channel, 1).await;
    assert!(sockets(a.address) > before);
    drop(channel);
    until("its sockets are closed", || sockets(a.address) == before).await;
}

/// Established connections to this port, as the system counts them.
fn sockets(address: SocketAddr) -> usize {
    let port = format!(":{:04X} 01 ", address.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    table.lines().filter(|line| line.contains(&port)).count()
}

#[tokio::test]
async fn one_without_a_health_service_counts_as_well() {
    let a = server("a");
    let channel = channel(&[a.address], HealthCheck::default());
    all_ready(&channel, 1).await;
    assert_eq!(health(&channel, a.address), Health::Unchecked);
    let mut client = GreeterClient::new(channel);
    client.say_hello(HelloRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_service_nobody_knows_is_not_served() {
    let a = Outspoken::start("a").await;
    let check = HealthCheck::of_service("shop.Cart").unwrap();
    let channel = channel(&[a.address], check);
    // tonic's server ends the answers, NOT_FOUND, where gRPC's would say SERVICE_UNKNOWN.
    until("it is told", || {
        matches!(health(&channel, a.address), Health::NotServing(_))
    })
    .await;
    until("it fails", || {
        channel.state() == Connectivity::TransientFailure
    })
    .await;
    let mut client = GreeterClient::new(channel);
    let status = client.say_hello(HelloRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
}

/// The connection lives on, and the port is closed.
#[tokio::test]
async fn a_closed_port_is_found_by_knocking() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // With the first connection the listener goes.
    let incoming = TcpIncoming::from(listener).take(1);
    let router =
        tonic::transport::Server::builder().add_service(greeter::service(Options::new("a")));
    let serving = tokio::spawn(router.serve_with_incoming(incoming));
    let check = TcpCheck::default()
        .with_times(Duration::from_millis(100), Duration::from_millis(100))
        .and_then(|check| check.with_thresholds(2, 1))
        .unwrap();
    let channel = channel(&[address], check.into());
    until("it is found", || {
        matches!(
            health(&channel, address),
            Health::NotServing(Unfit::Unreachable(_))
        )
    })
    .await;
    until("it is not used", || {
        channel.state() == Connectivity::TransientFailure
    })
    .await;
    let shown = &channel.endpoints()[0];
    assert_eq!(shown.connections, 1, "{shown:?}");
    let mut client = GreeterClient::new(channel.clone());
    client.say_hello(HelloRequest::default()).await.unwrap_err();
    // One that names it gets there: the server is well.
    let mut request = Request::new(HelloRequest::default());
    request.extensions_mut().insert(Override::strict(address));
    client.say_hello(request).await.unwrap();
    serving.await.unwrap().unwrap();
}
