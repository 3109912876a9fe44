//! A channel on which nobody calls: it lets go of everything, and the next call finds it awake.

use std::time::Duration;

use equipoise::resolver::Dns;
use equipoise::{Channel, Connectivity, EndpointStatus};

use crate::rig::greeter::Server;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::middlebox::Middlebox;
use crate::rig::names::Name;
use crate::{endpoints, quiet, server, until};

const TIMEOUT: Duration = Duration::from_millis(200);

async fn idle(channel: &Channel) {
    until("it is idle", || channel.state() == Connectivity::Idle).await;
    until("nothing is connected", || {
        let unconnected = |e: &EndpointStatus| e.connections == 0 && e.state == Connectivity::Idle;
        channel.endpoints().iter().all(unconnected)
    })
    .await;
}

async fn hello(channel: &Channel) -> String {
    let mut client = GreeterClient::new(channel.clone());
    let reply = client.say_hello(HelloRequest::default()).await;
    reply.expect("it is served").into_inner().server
}

/// Client sockets that are established to the server.
fn sockets(server: &Server) -> usize {
    let port = format!(":{:04X} 01 ", server.address.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    table.lines().filter(|line| line.contains(&port)).count()
}

#[tokio::test]
async fn it_closes_its_connections_and_the_first_call_wakes_it() {
    let (a, b) = (server("a"), server("b"));
    let channel = Channel::from_endpoints(endpoints(&[&a, &b]))
        .idle_timeout(TIMEOUT)
        .connect()
        .await
        .unwrap();
    for _ in 0..2 {
        let told = channel.state_changed(Connectivity::Ready);
        let told = tokio::time::timeout(crate::PATIENCE, told).await;
        assert_ne!(told.expect("it goes to sleep"), Connectivity::Ready);
        idle(&channel).await;
        assert_eq!(channel.endpoints().len(), 2, "the list stays");
        until("the sockets are closed", || sockets(&a) + sockets(&b) == 0).await;
        // All that come at once are served.
        let calls = (0..50).map(|_| hello(&channel));
        futures_util::future::join_all(calls).await;
        assert_eq!(channel.state(), Connectivity::Ready);
    }
    quiet(&channel).await;
}

#[tokio::test]
async fn an_open_stream_is_a_call() {
    let a = server("a");
    let channel = Channel::from_endpoints(endpoints(&[&a]))
        .idle_timeout(TIMEOUT / 4)
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut replies = client
        .countdown(crate::endless())
        .await
        .unwrap()
        .into_inner();
    let end = std::time::Instant::now() + 3 * TIMEOUT;
    while std::time::Instant::now() < end {
        replies.message().await.unwrap().expect("it is endless");
        assert_eq!(channel.state(), Connectivity::Ready);
    }
    drop(replies);
    idle(&channel).await;
}

#[tokio::test]
async fn the_resolver_is_left_alone_and_asked_again() {
    let (a, b) = (server("a"), server("b"));
    let name = Name::of(&[a.address]);
    let dns = Dns::default()
        .with_lookup(name.look_up())
        .with_min_interval(Duration::from_millis(1))
        .with_refresh(Duration::from_millis(5))
        .allow_loopback();
    let channel = Channel::builder("greeter:80")
        .unwrap()
        .resolver(dns)
        .idle_timeout(TIMEOUT)
        .connect()
        .await
        .unwrap();
    assert_eq!(hello(&channel).await, "a");
    idle(&channel).await;
    let asked = name.asked();
    name.moves_to(&[b.address]);
    tokio::time::sleep(10 * Duration::from_millis(5)).await;
    assert_eq!(name.asked(), asked, "nobody asks");
    drop(a);
    // The last list is used first, and the new one as soon as it is there.
    let mut client = GreeterClient::new(channel.clone());
    until("the new list is used", || {
        // A call wakes the channel, as long as it is asleep.
        let call = client.say_hello(HelloRequest::default());
        let waiting = futures_util::FutureExt::now_or_never(call);
        drop(waiting);
        name.asked() > asked
    })
    .await;
    until("it is ready", || channel.state() == Connectivity::Ready).await;
    assert_eq!(hello(&channel).await, "b");
}

#[tokio::test]
async fn a_list_that_is_set_meanwhile_is_used_when_it_wakes() {
    let (a, b) = (server("a"), server("b"));
    let before_b = Middlebox::before(b.address);
    let channel = Channel::from_endpoints(endpoints(&[&a]))
        .idle_timeout(TIMEOUT)
        .connect()
        .await
        .unwrap();
    idle(&channel).await;
    let list = [equipoise::Endpoint::from(before_b.address)];
    channel.set_endpoints(list).unwrap();
    until("it is in the list", || {
        let all = channel.endpoints();
        all.len() == 1 && all[0].address == before_b.address.into()
    })
    .await;
    assert_eq!(channel.state(), Connectivity::Idle);
    assert_eq!(before_b.accepted(), 0, "nobody is dialled");
    assert_eq!(hello(&channel).await, "b");
}

#[tokio::test]
async fn asleep_it_can_be_closed() {
    let a = server("a");
    let channel = Channel::from_endpoints(endpoints(&[&a]))
        .idle_timeout(TIMEOUT)
        .connect()
        .await
        .unwrap();
    idle(&channel).await;
    tokio::time::timeout(crate::PATIENCE, channel.close())
        .await
        .unwrap();
    assert_eq!(channel.state(), Connectivity::Shutdown);
}
