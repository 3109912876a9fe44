//! What an operator sees: figures per endpoint, states, reasons, and logs without secrets.

use equipoise::policy::RoundRobin;
use equipoise::{Channel, Connectivity, Endpoint};
use tonic::Code;

use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::holes;
use crate::{quiet, server, until};

#[tokio::test]
async fn every_figure_of_every_endpoint() {
    let (a, b) = (server("a"), server("b"));
    let refused = holes::refused();
    let list = [a.address, b.address, refused.address].map(Endpoint::from);
    let channel = Channel::from_endpoints(list)
        .policy(RoundRobin::default())
        .connect()
        .await
        .unwrap();
    until("all have settled", || {
        let states = channel.endpoints();
        states
            .iter()
            .filter(|e| e.state == Connectivity::Ready)
            .count()
            == 2
            && states
                .iter()
                .any(|e| e.state == Connectivity::TransientFailure)
    })
    .await;

    let mut client = GreeterClient::new(channel.clone());
    for n in 0..100u32 {
        let request = HelloRequest {
            code: if n % 10 < 2 { Code::NotFound as u32 } else { 0 },
            payload: vec![1; 1_000],
            echo: true,
            work_us: 2_000,
            ..HelloRequest::default()
        };
        let _ = client.say_hello(request).await;
    }
    quiet(&channel).await;

    let seen = channel.endpoints();
    let of = |address: std::net::SocketAddr| {
        seen.iter()
            .find(|e| e.address.to_string() == address.to_string())
            .expect("listed")
    };
    let ends: Vec<(u64, u64)> = seen
        .iter()
        .map(|e| (e.outcome(Code::Ok), e.outcome(Code::NotFound)))
        .collect();
    let sum = ends
        .iter()
        .fold((0, 0), |sum, end| (sum.0 + end.0, sum.1 + end.1));
    assert_eq!(sum, (80, 20));
    for address in [a.address, b.address] {
        let endpoint = of(address);
        // In turn, but for the moment between one endpoint's joining and the other's.
        assert!(endpoint.picks.abs_diff(50) <= 10, "{endpoint:?}");
        assert_eq!(
            endpoint.outcome(Code::Ok) + endpoint.outcome(Code::NotFound),
            endpoint.picks
        );
        assert_eq!(
            (endpoint.cancelled, endpoint.refused, endpoint.in_flight),
            (0, 0, 0)
        );
        assert_eq!(endpoint.connections, 1);
        assert!(
            endpoint.traffic.sent > 50_000 && endpoint.traffic.received > 40_000,
            "{endpoint:?}"
        );
        let two_ms = std::time::Duration::from_millis(2);
        let p50 = endpoint.latency_p50.expect("there were answers");
        let p99 = endpoint.latency_p99.expect("there were answers");
        // A bucket is an eighth wide at most.
        assert!(p50 >= two_ms - two_ms / 8 && p50 <= p99, "{endpoint:?}");
        assert!(
            endpoint.latency.expect("there were answers") >= two_ms / 2,
            "{endpoint:?}"
        );
        assert!(endpoint.why.is_none() && endpoint.last_error.is_none());
    }
    let endpoint = of(refused.address);
    assert_eq!((endpoint.picks, endpoint.connections), (0, 0));
    assert!(endpoint.latency.is_none() && endpoint.outcomes.is_empty());
    let why = endpoint.why.as_deref().expect("it failed").to_lowercase();
    assert!(
        why.contains("refused") && why.contains(&refused.address.to_string()),
        "{why}"
    );
}

#[tokio::test]
async fn a_lost_server_is_explained_and_then_comes_back() {
    use crate::rig::greeter::{Options, Server};
    let a = server("a");
    let address = a.address;
    let channel = Channel::from_endpoints([Endpoint::from(address)])
        .backoff(crate::quick())
        .connect()
        .await
        .unwrap();
    a.abort();
    until("the loss is seen", || {
        channel.state() == Connectivity::TransientFailure
    })
    .await;
    let endpoint = &channel.endpoints()[0];
    assert!(
        endpoint.why.is_some() && endpoint.connections == 0,
        "{endpoint:?}"
    );
    let _back = Server::start(Options {
        listen: address,
        ..Options::new("back")
    });
    until("it is back", || channel.state() == Connectivity::Ready).await;
    let endpoint = &channel.endpoints()[0];
    assert!(endpoint.why.is_none(), "{endpoint:?}");
    assert!(endpoint.last_error.is_some(), "history stays: {endpoint:?}");
}
