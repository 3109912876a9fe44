//! What one call can ask for: waiting, one certain endpoint, staying away from some.

use equipoise::policy::RoundRobin;
use equipoise::{Avoid, Channel, Connectivity, Endpoint, EndpointStatus, Override, WaitForReady};
use tonic::{Code, Request};

use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{Options, Server};
use crate::rig::holes;
use crate::routing::Pinned;
use crate::{client, endpoints, in_flight, quick, quiet, server, until};

fn with<T: Clone + Send + Sync + 'static>(extension: T) -> Request<HelloRequest> {
    let mut request = Request::new(HelloRequest::default());
    request.extensions_mut().insert(extension);
    request
}

#[tokio::test]
async fn strict_goes_there_or_nowhere() {
    let (a, b) = (server("a"), server("b"));
    let refused = holes::refused();
    let list = [a.address, b.address, refused.address].map(Endpoint::from);
    let channel = Channel::from_endpoints(list).connect().await.unwrap();
    let mut client = GreeterClient::new(channel.clone());
    for _ in 0..20 {
        let request = with(Override::strict(b.address));
        assert_eq!(
            client.say_hello(request).await.unwrap().into_inner().server,
            "b"
        );
    }
    until("the refused one has failed", || {
        channel.endpoints().iter().any(|e| e.why.is_some())
    })
    .await;
    let status = client
        .say_hello(with(Override::strict(refused.address)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains(&refused.address.to_string()),
        "{status:?}"
    );

    let stranger: std::net::SocketAddr = "127.0.0.9:9".parse().unwrap();
    let status = client
        .say_hello(with(Override::strict(stranger)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("127.0.0.9:9, is not in the list"),
        "{status:?}"
    );
}

#[tokio::test]
async fn prefer_goes_there_or_elsewhere() {
    let (a, b) = (server("a"), server("b"));
    let (_channel, mut client) = client(&[&a, &b]).await;
    for _ in 0..20 {
        let request = with(Override::prefer(a.address));
        assert_eq!(
            client.say_hello(request).await.unwrap().into_inner().server,
            "a"
        );
    }
    let stranger: std::net::SocketAddr = "127.0.0.9:9".parse().unwrap();
    client
        .say_hello(with(Override::prefer(stranger)))
        .await
        .unwrap();
}

#[tokio::test]
async fn avoid_stays_away_while_there_is_somebody_else() {
    let (a, b) = (server("a"), server("b"));
    for policy in 0..5 {
        let builder = Channel::from_endpoints(endpoints(&[&a, &b]));
        let builder = match policy {
            0 => builder,
            1 => builder.policy(RoundRobin::default()),
            2 => builder.policy(equipoise::policy::Random),
            3 => builder.policy(equipoise::policy::RingHash::default()),
            _ => builder.policy(equipoise::policy::LeastRequest::default()),
        };
        let channel = builder.connect().await.unwrap();
        let mut client = GreeterClient::new(channel.clone());
        let mut served = String::new();
        let end = std::time::Instant::now() + crate::PATIENCE;
        // The second endpoint joins the picker a moment after the first.
        while served != "b" {
            let request = with(Avoid(vec![a.address.into()]));
            served = client.say_hello(request).await.unwrap().into_inner().server;
            assert!(std::time::Instant::now() < end, "policy {policy}");
        }
        for _ in 0..20 {
            let request = with(Avoid(vec![a.address.into()]));
            let reply = client.say_hello(request).await.unwrap().into_inner();
            assert_eq!(reply.server, "b", "policy {policy}");
        }
        let request = with(Avoid(vec![a.address.into(), b.address.into()]));
        client.say_hello(request).await.unwrap();
    }
}

#[tokio::test]
async fn waiting_for_ready_outlasts_a_server_that_is_away() {
    let away = holes::refused();
    let channel = Channel::from_endpoints([Endpoint::from(away.address)])
        .backoff(crate::quick())
        .build()
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let impatient = client.say_hello(HelloRequest::default()).await.unwrap_err();
    assert_eq!(impatient.code(), Code::Unavailable);
    assert!(
        impatient.message().contains(&away.address.to_string()),
        "{impatient:?}"
    );

    let waiting = tokio::spawn(async move { client.say_hello(with(WaitForReady)).await });
    until("it waits", || channel.waiting() == 1).await;
    let address = away.address;
    drop(away);
    let _back = Server::start(Options {
        listen: address,
        ..Options::new("back")
    });
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().server, "back");
}

/// A call that insists on a full endpoint waits for that one; everybody else goes on.
#[tokio::test]
async fn waiting_for_one_full_endpoint_holds_up_nobody() {
    let full = Server::start(Options {
        max_concurrent_streams: Some(1),
        ..Options::new("full")
    });
    let free = server("free");
    let (channel, client) = client(&[&full, &free]).await;
    let strict = |work_us| {
        let mut client = client.clone();
        let mut request = with(Override::strict(full.address));
        request.get_mut().work_us = work_us;
        tokio::spawn(async move { client.say_hello(request).await })
    };
    let holder = strict(20_000_000);
    until("its only slot is taken", || in_flight(&channel) == 1).await;
    let waiting = strict(0);
    until("the other one waits", || channel.waiting() == 1).await;
    for _ in 0..100 {
        let mut client = client.clone();
        let call = client.say_hello(HelloRequest::default());
        let reply = tokio::time::timeout(crate::PATIENCE, call).await;
        let reply = reply.expect("it need not wait").unwrap().into_inner();
        assert_eq!(reply.server, "free");
    }
    assert_eq!(channel.waiting(), 1);
    holder.abort();
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().server, "full");
}

/// What the caller itself did wrong is not held against an endpoint.
#[tokio::test]
async fn a_callers_own_failure_is_no_fault_of_the_server() {
    let a = server("a");
    let (channel, client) = client(&[&a]).await;
    let mut client = client.max_encoding_message_size(10);
    for _ in 0..20 {
        let request = HelloRequest {
            payload: vec![0; 100],
            ..HelloRequest::default()
        };
        let status = client.say_hello(request).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    }
    quiet(&channel).await;
    let endpoint = &channel.endpoints()[0];
    assert!(endpoint.outcomes.is_empty(), "{endpoint:?}");
    assert_eq!(endpoint.cancelled, 20);
}

/// Two calls at a time, a hundred callers: nobody is refused, and the line is served in order.
#[tokio::test]
async fn those_who_wait_for_room_are_served_in_order() {
    let a = Server::start(Options {
        max_concurrent_streams: Some(1),
        work: std::time::Duration::from_millis(2),
        ..Options::new("a")
    });
    let (channel, client) = client(&[&a]).await;
    let served = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut calls = Vec::new();
    for id in 0..100usize {
        let mut client = client.clone();
        let served = served.clone();
        calls.push(tokio::spawn(async move {
            client.say_hello(HelloRequest::default()).await.unwrap();
            served.lock().unwrap().push(id);
        }));
        until("it is in the line", || {
            channel.waiting() as u32 + in_flight(&channel) + served_so_far(&channel) > id as u32
        })
        .await;
    }
    for call in calls {
        call.await.unwrap();
    }
    quiet(&channel).await;
    let served = served.lock().unwrap();
    assert!(served.is_sorted(), "{served:?}");
}

fn served_so_far(channel: &Channel) -> u32 {
    channel.endpoints()[0].outcome(Code::Ok) as u32
}

#[tokio::test]
async fn the_line_has_an_end() {
    let a = Server::start(Options {
        max_concurrent_streams: Some(1),
        ..Options::new("a")
    });
    let channel = Channel::from_endpoints(endpoints(&[&a]))
        .queue_limit(2)
        .connect()
        .await
        .unwrap();
    let client = GreeterClient::new(channel.clone());
    let hold = |work_us| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let request = HelloRequest {
                work_us,
                ..HelloRequest::default()
            };
            client.say_hello(request).await
        })
    };
    let first = hold(300_000);
    until("the slot is taken", || in_flight(&channel) == 1).await;
    let second = hold(0);
    let third = hold(0);
    until("two wait", || channel.waiting() == 2).await;
    let status = hold(0).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(
        status.message().starts_with("2 calls are waiting"),
        "{status:?}"
    );
    assert!(
        status.metadata().get("equipoise-attempts").is_some(),
        "marked as ours"
    );
    for call in [first, second, third] {
        call.await.unwrap().unwrap();
    }
    let endpoint = &channel.endpoints()[0];
    assert_eq!(
        endpoint.outcome(Code::ResourceExhausted),
        0,
        "not held against the endpoint"
    );
}

/// The policy does not wish for it, so that nobody but the call asks for it again when it has failed.
#[tokio::test]
async fn a_strict_call_that_waits_has_a_failed_endpoint_dialled_again() {
    let a = server("a");
    let hole = holes::refused();
    let at = hole.address;
    let channel = Channel::from_endpoints([a.address.into(), at.into()])
        .policy(Pinned(a.address.into()))
        .backoff(quick())
        .build()
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let call = tokio::spawn(async move {
        let mut request = Request::new(HelloRequest::default());
        request.extensions_mut().insert(Override::strict(at));
        request.extensions_mut().insert(WaitForReady);
        request.set_timeout(crate::PATIENCE);
        client.say_hello(request).await
    });
    until("it has failed", || {
        let endpoints = channel.endpoints();
        let failed = |e: &EndpointStatus| e.state == Connectivity::TransientFailure;
        endpoints.get(1).is_some_and(failed)
    })
    .await;
    drop(hole);
    let options = Options {
        listen: at,
        ..Options::new("b")
    };
    let _b = Server::start(options);
    let reply = call.await.unwrap().unwrap();
    assert_eq!(reply.into_inner().server, "b");
}
