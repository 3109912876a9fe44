//! A deadline holds in every phase a call can be in, and its end is DEADLINE_EXCEEDED.

use std::time::{Duration, Instant};

use equipoise::{Channel, Endpoint, Override, WaitForReady};
use tonic::{Code, Request, Status};

use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, Server};
use crate::rig::holes;
use crate::{client, in_flight, quiet, server, until};

const DEADLINE: Duration = Duration::from_millis(150);

/// A request that waits for readiness and has until `DEADLINE`.
fn patient(message: HelloRequest) -> Request<HelloRequest> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request.extensions_mut().insert(WaitForReady);
    request
}

/// Ran out of time, not before the deadline, and not long after. The bound on lateness is ten times the
/// criterion of 20 ms, for slow machines.
fn ran_out<T: std::fmt::Debug>(result: Result<T, Status>, since: Instant) {
    let took = since.elapsed();
    let status = result.expect_err("it cannot succeed");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(took >= DEADLINE, "{took:?}");
    assert!(
        took < DEADLINE + Duration::from_millis(200),
        "{took:?}: {status:?}"
    );
}

#[tokio::test]
async fn while_there_is_no_endpoint() {
    let channel = Channel::from_endpoints([]).build().unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let start = Instant::now();
    ran_out(
        client.say_hello(patient(HelloRequest::default())).await,
        start,
    );
    quiet(&channel).await;
}

#[tokio::test]
async fn while_resolving() {
    let builder = Channel::builder("shop:cart")
        .unwrap()
        .resolver(crate::Undecided);
    let channel = builder.build().unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut request = Request::new(HelloRequest::default());
    request.set_timeout(DEADLINE);
    let start = Instant::now();
    ran_out(client.say_hello(request).await, start);
    quiet(&channel).await;
}

#[tokio::test]
async fn while_connecting() {
    let hole = holes::black_hole();
    let channel = Channel::from_endpoints([Endpoint::from(hole.address)])
        .build()
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut request = Request::new(HelloRequest::default());
    request.set_timeout(DEADLINE);
    let start = Instant::now();
    ran_out(client.say_hello(request).await, start);
    quiet(&channel).await;
}

#[tokio::test]
async fn while_backing_off() {
    let refused = holes::refused();
    let channel = Channel::from_endpoints([Endpoint::from(refused.address)])
        .build()
        .unwrap();
    until("the first attempt has failed", || {
        channel.state() == equipoise::Connectivity::TransientFailure
    })
    .await;
    let mut client = GreeterClient::new(channel.clone());
    let start = Instant::now();
    let result = client.say_hello(patient(HelloRequest::default())).await;
    let message = result.as_ref().unwrap_err().message().to_owned();
    ran_out(result, start);
    assert!(
        message.contains(&refused.address.to_string()),
        "names the culprit: {message}"
    );
    quiet(&channel).await;
}

#[tokio::test]
async fn while_waiting_for_room() {
    let a = Server::start(Options {
        max_concurrent_streams: Some(1),
        ..Options::new("a")
    });
    let (channel, mut client) = client(&[&a]).await;
    let slow = HelloRequest {
        work_us: 2_000_000,
        ..HelloRequest::default()
    };
    let mut first = client.clone();
    let holder = tokio::spawn(async move { first.say_hello(slow).await });
    until("the only slot is taken", || in_flight(&channel) == 1).await;
    let mut request = Request::new(HelloRequest::default());
    request.set_timeout(DEADLINE);
    let start = Instant::now();
    ran_out(client.say_hello(request).await, start);
    assert_eq!(channel.waiting(), 0);
    assert_eq!(channel.endpoints()[0].picks, 1, "it was never sent");
    holder.abort();
    quiet(&channel).await;
}

#[tokio::test]
async fn while_the_server_works() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let slow = HelloRequest {
        work_us: 5_000_000,
        ..HelloRequest::default()
    };
    let start = Instant::now();
    let result = client.say_hello(patient(slow)).await;
    let status = result.as_ref().unwrap_err().clone();
    ran_out(result, start);
    let named = status
        .metadata()
        .get("equipoise-endpoint")
        .unwrap()
        .to_str()
        .unwrap();
    assert_eq!(named, a.address.to_string());
    quiet(&channel).await;
    assert_eq!(channel.endpoints()[0].outcome(Code::DeadlineExceeded), 1);
}

#[tokio::test]
async fn in_the_middle_of_a_stream() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let mut request = Request::new(CountdownRequest {
        count: 1_000,
        pause_us: 10_000,
        ..CountdownRequest::default()
    });
    request.set_timeout(DEADLINE);
    let start = Instant::now();
    let mut replies = client.countdown(request).await.unwrap().into_inner();
    assert!(replies.message().await.unwrap().is_some());
    let end = loop {
        match replies.message().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    ran_out(end, start);
    quiet(&channel).await;
}

/// A reader slower than the server never waits for it.
#[tokio::test]
async fn while_there_is_always_more_to_read() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let mut request = Request::new(CountdownRequest {
        count: u32::MAX,
        payload_bytes: 1_000,
        ..CountdownRequest::default()
    });
    request.set_timeout(DEADLINE);
    let start = Instant::now();
    let mut replies = client.countdown(request).await.unwrap().into_inner();
    let end = loop {
        match replies.message().await {
            // Slower than the server, without giving up the thread.
            Ok(Some(_)) => std::hint::black_box((0..20_000).sum::<u64>()),
            end => break end.map(|_| ()),
        };
    };
    ran_out(end, start);
    quiet(&channel).await;
}

#[tokio::test]
async fn while_an_upload_goes_on() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let mut request = Request::new(futures_util::stream::pending::<HelloRequest>());
    request.set_timeout(DEADLINE);
    let start = Instant::now();
    ran_out(client.gather(request).await, start);
    quiet(&channel).await;
}

#[tokio::test]
async fn the_channels_own_limit_bounds_every_call() {
    let a = server("a");
    let channel = Channel::from_endpoints([Endpoint::from(a.address)])
        .timeout(DEADLINE)
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    for longer in [None, Some(Duration::from_secs(30))] {
        let mut request = Request::new(HelloRequest {
            work_us: 5_000_000,
            ..HelloRequest::default()
        });
        if let Some(longer) = longer {
            request.set_timeout(longer);
        }
        let start = Instant::now();
        ran_out(client.say_hello(request).await, start);
    }
    quiet(&channel).await;
}

#[tokio::test]
async fn a_deadline_of_nothing_sends_nothing() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let mut request = Request::new(HelloRequest::default());
    request.set_timeout(Duration::ZERO);
    let status = client.say_hello(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(channel.endpoints()[0].picks, 0);
    // A huge one is no trouble either.
    let mut request = Request::new(HelloRequest::default());
    request
        .metadata_mut()
        .insert("grpc-timeout", "99999999H".parse().unwrap());
    client.say_hello(request).await.unwrap();
    // What is no timeout is no limit.
    let mut request = Request::new(HelloRequest::default());
    request
        .metadata_mut()
        .insert("grpc-timeout", "soon".parse().unwrap());
    client.say_hello(request).await.unwrap();
    quiet(&channel).await;
}

#[tokio::test]
async fn while_waiting_for_one_certain_endpoint() {
    let a = server("a");
    let hole = holes::black_hole();
    let both = [Endpoint::from(a.address), Endpoint::from(hole.address)];
    let channel = Channel::from_endpoints(both).connect().await.unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut request = Request::new(HelloRequest::default());
    request.set_timeout(DEADLINE);
    request
        .extensions_mut()
        .insert(Override::strict(hole.address));
    let start = Instant::now();
    ran_out(client.say_hello(request).await, start);
    // It blocks nobody else meanwhile.
    client.say_hello(HelloRequest::default()).await.unwrap();
    quiet(&channel).await;
}
