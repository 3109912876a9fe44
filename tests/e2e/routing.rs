//! Policies and settings by service and by method, over one set of endpoints.

use std::sync::Arc;
use std::time::Duration;

use equipoise::policy::{
    Adaptive, Connect, Decision, Member, PickInfo, PickResult, Picker, Policy, RoundRobin,
};
use equipoise::rng::Rng;
use equipoise::{
    Address, Channel, Connectivity, Endpoint, EndpointId, MethodConfig, Served, Timestamp,
};
use tonic::{Code, Request};

use crate::rig::greeter::Options;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::holes;
use crate::{client, endpoints, quick, quiet, server, until};

const SERVICE: &str = "equipoise.demo.v1.Greeter";
const HELLO: &str = "/equipoise.demo.v1.Greeter/SayHello";

/// Gives every call to the endpoint at one address, and connects to no other.
#[derive(Clone, Debug)]
pub(crate) struct Pinned(pub(crate) Address);

#[derive(Debug)]
struct To(Option<EndpointId>);

impl Policy for Pinned {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        let there = members
            .iter()
            .find(|member| *member.endpoint.address() == self.0);
        let ready = there.filter(|member| member.state == Connectivity::Ready);
        Decision {
            picker: Arc::new(To(ready.map(|member| member.id))),
            connect: Connect::Only(there.map(|member| member.id).into_iter().collect()),
            wake: None,
        }
    }
}

impl Picker for To {
    fn pick(&self, _: &PickInfo<'_>) -> PickResult {
        match self.0 {
            Some(id) => PickResult::Pick(id),
            None => PickResult::Queue { connect: None },
        }
    }
}

#[tokio::test]
async fn a_call_goes_by_its_method_else_its_service_else_the_channel() {
    let servers = ["a", "b", "c", "d"].map(server);
    let [a, b, c, _] = servers.each_ref().map(|s| Address::from(s.address));
    let all: Vec<_> = servers.iter().collect();
    let channel = Channel::from_endpoints(endpoints(&all))
        .policy(Pinned(a.clone()))
        .service_policy(SERVICE, Pinned(b.clone()))
        .method_policy(HELLO, Pinned(c.clone()))
        .build()
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    for _ in 0..20 {
        let reply = client.say_hello(HelloRequest::default()).await.unwrap();
        assert_eq!(reply.into_inner().server, "c");
        let request = CountdownRequest {
            count: 1,
            ..CountdownRequest::default()
        };
        let mut replies = client.countdown(request).await.unwrap().into_inner();
        assert_eq!(replies.message().await.unwrap().unwrap().server, "b");
        assert!(replies.message().await.unwrap().is_none());
    }
    // Another service than the one that is named: the channel's policy, and a server that has no such service.
    let mut other = tonic::client::Grpc::new(channel.clone());
    let request = Request::new(HelloRequest::default());
    let path = http::uri::PathAndQuery::from_static("/another.Service/SayHello");
    let codec = tonic_prost::ProstCodec::<HelloRequest, HelloRequest>::default();
    let status = other.unary(request, path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    quiet(&channel).await;
    // All are seen, those that were wished for are connected, and the counts are those of all policies.
    let seen = channel.endpoints();
    let picks: Vec<_> = seen.iter().map(|e| (e.picks, e.state)).collect();
    assert_eq!(picks[0], (1, Connectivity::Ready));
    assert_eq!(picks[1], (20, Connectivity::Ready));
    assert_eq!(picks[2], (20, Connectivity::Ready));
    assert_eq!(picks[3], (0, Connectivity::Idle), "nobody wishes for it");
}

#[tokio::test]
async fn policies_share_connections_and_calls_in_flight() {
    let servers = ["a", "b"].map(server);
    let all: Vec<_> = servers.iter().collect();
    let channel = Channel::from_endpoints(endpoints(&all))
        .policy(Adaptive::default())
        .service_policy(SERVICE, RoundRobin::default())
        .method_policy(HELLO, Adaptive::default())
        .connect()
        .await
        .unwrap();
    until("both are ready", || {
        channel
            .endpoints()
            .iter()
            .all(|e| e.state == Connectivity::Ready)
    })
    .await;
    let mut client = GreeterClient::new(channel.clone());
    let mut streams = Vec::new();
    // The picker follows the states by up to 5 ms.
    while !channel.endpoints().iter().all(|e| e.in_flight > 1) {
        let response = client.countdown(crate::endless()).await.unwrap();
        assert!(response.extensions().get::<Served>().is_some());
        streams.push(response.into_inner());
    }
    for _ in 0..10 {
        client.say_hello(HelloRequest::default()).await.unwrap();
    }
    let opened = streams.len() as u64;
    let seen = channel.endpoints();
    assert!(seen.iter().all(|e| e.connections == 1));
    let streaming: u32 = seen.iter().map(|e| e.in_flight).sum();
    assert_eq!(u64::from(streaming), opened);
    drop(streams);
    quiet(&channel).await;
    let picks: u64 = channel.endpoints().iter().map(|e| e.picks).sum();
    assert_eq!(picks, opened + 10);
}

#[tokio::test]
async fn a_methods_timeout_may_exceed_the_channels_and_the_calls_own_wins() {
    let server = server("a");
    let ms = Duration::from_millis;
    let timeout = |wait| MethodConfig::default().with_timeout(wait);
    let slow = HelloRequest {
        work_us: 300_000,
        ..HelloRequest::default()
    };
    let channel = |config: Option<MethodConfig>, service: Option<MethodConfig>| {
        let mut builder = Channel::from_endpoints(endpoints(&[&server])).timeout(ms(100));
        if let Some(config) = config {
            builder = builder.method_config(HELLO, config);
        }
        if let Some(config) = service {
            builder = builder.service_config(SERVICE, config);
        }
        GreeterClient::new(builder.build().unwrap())
    };
    let late = |status: tonic::Status| {
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        status.message().to_owned()
    };
    let text = late(
        channel(None, None)
            .say_hello(slow.clone())
            .await
            .unwrap_err(),
    );
    assert!(text.contains("100ms"), "{text}");
    let long = timeout(Duration::from_secs(60));
    channel(Some(long), None)
        .say_hello(slow.clone())
        .await
        .unwrap();
    channel(None, Some(long))
        .say_hello(slow.clone())
        .await
        .unwrap();
    let mut both = channel(Some(timeout(ms(50))), Some(long));
    let text = late(both.say_hello(slow.clone()).await.unwrap_err());
    assert!(text.contains("50ms"), "{text}");
    let mut own = Request::new(slow);
    own.set_timeout(ms(20));
    let text = late(both.say_hello(own).await.unwrap_err());
    assert!(text.contains("20ms"), "{text}");
}

#[tokio::test]
async fn a_service_or_method_may_wait_for_readiness() {
    let refused = holes::refused();
    let waits = MethodConfig::default().with_wait_for_ready(true);
    let fails = MethodConfig::default().with_wait_for_ready(false);
    let channel = Channel::from_endpoints([Endpoint::from(refused.address)])
        .backoff(quick())
        .service_config(SERVICE, waits)
        .method_config(HELLO, fails)
        .build()
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let status = client.say_hello(HelloRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let mut patient = client.clone();
    let request = CountdownRequest {
        count: 1,
        ..CountdownRequest::default()
    };
    let call = tokio::spawn(async move { patient.countdown(request).await });
    until("it waits", || channel.waiting() == 1).await;
    let address = refused.address;
    drop(refused);
    let _server = crate::rig::greeter::Server::start(Options {
        listen: address,
        ..Options::new("late")
    });
    let mut replies = call.await.unwrap().unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().server, "late");
}

#[tokio::test]
async fn what_cannot_be_met_is_found_when_the_channel_is_built() {
    let builder = || Channel::builder("static:127.0.0.1:1").unwrap();
    let plain = MethodConfig::default();
    for (builder, text) in [
        (
            builder().service_policy("/shop.Cart", RoundRobin::default()),
            "service \"/shop.Cart\": expected a name such as package.Service",
        ),
        (
            builder().method_config("shop.Cart/Add", plain),
            "method \"shop.Cart/Add\": expected a path such as /package.Service/Method",
        ),
        (
            builder().service_config("shop.Cart", plain.with_timeout(Duration::ZERO)),
            "service \"shop.Cart\": timeout 0ns is not above zero",
        ),
    ] {
        let error = builder.build().unwrap_err();
        assert!(
            error.is_config() && error.to_string().contains(text),
            "{error}"
        );
    }
    // A control: what is met is no error.
    let server = server("a");
    let (_, mut client) = client(&[&server]).await;
    client.say_hello(HelloRequest::default()).await.unwrap();
}
