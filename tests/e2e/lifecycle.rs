//! How a channel begins and ends: with and without a runtime, the last clone, `close`, and a runtime that goes.

use std::time::{Duration, Instant};

use equipoise::{Channel, Connectivity};
use tonic::Code;

use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::holes;
use crate::{PATIENCE, client, endpoints, in_flight, quiet, ready, server, target, until};

fn runtime(workers: usize) -> tokio::runtime::Runtime {
    let mut builder = match workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder
        .worker_threads(workers.max(1))
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn built_outside_a_runtime_it_starts_with_the_first_call() {
    let a = server("a");
    let channel = Channel::builder(target(&[a.address]))
        .unwrap()
        .build()
        .unwrap();
    assert_eq!(channel.state(), Connectivity::Connecting);
    assert!(format!("{channel:?}").contains("Connecting"));
    runtime(0).block_on(async {
        let mut client = GreeterClient::new(channel.clone());
        client.say_hello(HelloRequest::default()).await.unwrap();
        assert_eq!(channel.state(), Connectivity::Ready);
    });
}

#[test]
fn dropping_a_channel_that_never_ran_is_fine() {
    drop(Channel::from_endpoints([]).build().unwrap());
}

#[tokio::test]
async fn connect_waits_for_ready_or_says_why_not() {
    let a = server("a");
    let channel = Channel::builder(target(&[a.address]))
        .unwrap()
        .connect()
        .await
        .unwrap();
    assert_eq!(channel.state(), Connectivity::Ready);

    let refused = holes::refused();
    let builder = Channel::builder(target(&[refused.address])).unwrap();
    let error = builder.connect().await.unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&refused.address.to_string()), "{text}");
    assert!(text.to_lowercase().contains("refused"), "{text}");

    // One endpoint down is no reason to fail.
    let builder = Channel::builder(target(&[refused.address, a.address])).unwrap();
    builder.connect().await.unwrap();
}

#[tokio::test]
async fn the_drain_deadline_ends_what_does_not_end_by_itself() {
    let a = server("a");
    let deadline = Duration::from_millis(200);
    let channel = Channel::from_endpoints(endpoints(&[&a]))
        .drain_deadline(deadline)
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut replies = client
        .countdown(crate::endless())
        .await
        .unwrap()
        .into_inner();
    let start = Instant::now();
    let closing = tokio::spawn(async move { channel.close().await });
    let status = loop {
        match replies.message().await {
            Ok(reply) => assert!(reply.is_some(), "it is endless"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("drain deadline"), "{status:?}");
    assert!(start.elapsed() >= deadline);
    closing.await.unwrap();
}

#[test]
fn calls_end_when_the_runtime_does() {
    let a = server("a");
    let first = runtime(1);
    let channel = first.block_on(ready(&[&a]));
    let second = runtime(1);
    let mut caller = GreeterClient::new(channel.clone());
    let under_way = second.spawn(async move {
        let request = HelloRequest {
            work_us: 20_000_000,
            ..HelloRequest::default()
        };
        caller.say_hello(request).await
    });
    second.block_on(until("it is under way", || in_flight(&channel) == 1));
    first.shutdown_timeout(PATIENCE);
    second.block_on(async {
        let status = under_way.await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let mut client = GreeterClient::new(channel.clone());
        let status = client.say_hello(HelloRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("runtime"), "{status:?}");
        assert_eq!(channel.state(), Connectivity::Shutdown);
        channel.close().await;
    });
}

#[test]
fn one_thread_is_enough() {
    let (a, b) = (server("a"), server("b"));
    runtime(0).block_on(async {
        let (channel, client) = client(&[&a, &b]).await;
        let calls = (0..200).map(|_| {
            let mut client = client.clone();
            async move { client.say_hello(HelloRequest::default()).await }
        });
        for result in futures_util::future::join_all(calls).await {
            result.unwrap();
        }
        quiet(&channel).await;
        channel.close().await;
    });
}

/// tower's contract lets a caller ask for readiness and then not call. That must cost nobody anything.
#[tokio::test]
async fn a_ready_but_unused_clone_blocks_nobody() {
    use tower_service::Service;
    let a = server("a");
    let channel = ready(&[&a]).await;
    let mut idle: Vec<Channel> = (0..2_000).map(|_| channel.clone()).collect();
    for clone in &mut idle {
        std::future::poll_fn(|cx| clone.poll_ready(cx))
            .await
            .unwrap();
    }
    let mut client = GreeterClient::new(channel.clone());
    for _ in 0..100 {
        client.say_hello(HelloRequest::default()).await.unwrap();
    }
    quiet(&channel).await;
}

#[tokio::test]
async fn the_state_can_be_awaited() {
    let a = server("a");
    let channel = Channel::from_endpoints([]).build().unwrap();
    let mut state = channel.state();
    while state != Connectivity::TransientFailure {
        state = channel.state_changed(state).await;
    }
    channel.set_endpoints(endpoints(&[&a])).unwrap();
    while state != Connectivity::Ready {
        state = channel.state_changed(state).await;
    }
    channel.set_endpoints([]).unwrap();
    assert_eq!(
        channel.state_changed(Connectivity::Ready).await,
        Connectivity::TransientFailure
    );
    let mut client = GreeterClient::new(channel);
    let status = client.say_hello(HelloRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

/// GOAWAY first, and then the endpoint leaves the list: the usual order of a rolling restart.
#[tokio::test]
async fn the_drain_deadline_holds_for_what_was_draining_already() {
    let (a, b) = (server("a"), server("b"));
    let channel = Channel::from_endpoints(endpoints(&[&a]))
        .drain_deadline(Duration::from_millis(200))
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut replies = client
        .countdown(crate::endless())
        .await
        .unwrap()
        .into_inner();
    replies.message().await.unwrap().expect("endless");
    let stopping = tokio::spawn(a.shutdown());
    until("GOAWAY is seen", || channel.endpoints()[0].connections == 0).await;
    replies.message().await.unwrap().expect("it goes on");
    channel.set_endpoints(endpoints(&[&b])).unwrap();
    let status = loop {
        match replies.message().await {
            Ok(reply) => assert!(reply.is_some(), "it is endless"),
            Err(status) => break status,
        }
    };
    assert!(status.message().contains("drain deadline"), "{status:?}");
    drop(replies);
    stopping.await.unwrap();
}

#[test]
fn closing_what_never_ran_needs_no_runtime() {
    let channel = Channel::from_endpoints([]).build().unwrap();
    futures_util::FutureExt::now_or_never(channel.close()).expect("there is nothing to wait for");
    assert_eq!(channel.state(), Connectivity::Shutdown);
}

#[derive(Debug)]
struct Mute;

impl equipoise::resolver::Resolver for Mute {
    fn watch(
        &self,
        _: &equipoise::Target,
        _: equipoise::resolver::Hints,
    ) -> futures_util::stream::BoxStream<
        'static,
        Result<equipoise::resolver::Update, equipoise::ResolveError>,
    > {
        Box::pin(futures_util::stream::empty())
    }
}

#[tokio::test]
async fn a_resolver_that_ends_without_a_list_is_an_error() {
    let builder = Channel::builder("shop:cart").unwrap().resolver(Mute);
    let error = builder.connect().await.unwrap_err();
    assert!(
        error.is_unavailable() && error.to_string().contains("without a list"),
        "{error}"
    );
}

/// On one thread a caller that tries again at once would keep the driver from ever running.
#[test]
fn a_caller_that_tries_again_at_once_leaves_the_channel_time_to_get_ready() {
    let a = server("a");
    let hole = holes::refused();
    // Nobody on the list; everybody on it refuses; the line is full; a deadline of nothing.
    for first in [Vec::new(), vec![hole.address.into()]] {
        for (line, timeout) in [(1_000, None), (0, None), (1_000, Some(Duration::ZERO))] {
            runtime(0).block_on(async {
                let channel = Channel::from_endpoints(first.clone())
                    .queue_limit(line)
                    .build()
                    .unwrap();
                let other = channel.clone();
                let list = endpoints(&[&a]);
                tokio::spawn(async move { other.set_endpoints(list).unwrap() });
                let mut client = GreeterClient::new(channel.clone());
                let mut tries = 0;
                while channel.state() != Connectivity::Ready {
                    let mut request = tonic::Request::new(HelloRequest::default());
                    if let Some(timeout) = timeout {
                        request.set_timeout(timeout);
                    }
                    if client.say_hello(request).await.is_ok() {
                        break;
                    }
                    tries += 1;
                    assert!(tries < 200_000, "{first:?} {line} {timeout:?}");
                }
            });
        }
    }
}
