//! Many endpoints at once.

use equipoise::{Channel, Connectivity, Endpoint};

use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::until;

/// Two thousand endpoints: every address of 127.0.0.0/8 is this machine, so one server is all of them.
#[tokio::test]
async fn two_thousand_endpoints() {
    let a = crate::rig::greeter::Server::start(crate::rig::greeter::Options {
        listen: "0.0.0.0:0".parse().unwrap(),
        ..crate::rig::greeter::Options::new("a")
    });
    let port = a.address.port();
    let list: Vec<Endpoint> = (0..2_000u32)
        .map(|n| {
            let ip = std::net::Ipv4Addr::from(0x7f00_0100 + n);
            Endpoint::from(std::net::SocketAddr::from((ip, port)))
        })
        .collect();
    let channel = Channel::from_endpoints(list.clone())
        .connect_rate(4_000)
        .policy(equipoise::policy::RoundRobin::default())
        .connect()
        .await
        .unwrap();
    // Calls work while the rest is still connecting.
    let mut client = GreeterClient::new(channel.clone());
    client.say_hello(HelloRequest::default()).await.unwrap();
    until("all are ready", || {
        channel
            .endpoints()
            .iter()
            .filter(|e| e.state == Connectivity::Ready)
            .count()
            == 2_000
    })
    .await;
    let picks = || {
        channel
            .endpoints()
            .iter()
            .map(|e| e.picks)
            .collect::<Vec<_>>()
    };
    // Two rounds, since the last to become ready join the picker a moment later.
    for _ in 0..4_000 {
        client.say_hello(HelloRequest::default()).await.unwrap();
    }
    let picks = picks();
    assert_eq!(picks.iter().sum::<u64>(), 4_001);
    let (least, most) = (picks.iter().min(), picks.iter().max());
    assert!(least >= Some(&1) && most <= Some(&4), "{least:?} {most:?}");

    // Half of them leave: the others keep their connections.
    channel.set_endpoints(list.into_iter().take(1_000)).unwrap();
    until("half of them have left", || {
        channel.endpoints().len() == 1_000
    })
    .await;
    assert!(
        channel
            .endpoints()
            .iter()
            .all(|e| e.connections == 1 && e.picks >= 1)
    );
    client.say_hello(HelloRequest::default()).await.unwrap();

    // And all of them go dark at once.
    drop(a);
    until("all are lost", || {
        let endpoints = channel.endpoints();
        endpoints.iter().all(|e| e.connections == 0)
    })
    .await;
    let status = client.say_hello(HelloRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
}
