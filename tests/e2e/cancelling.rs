//! A call dropped at any point is cancelled at the server, and leaves nothing behind.

use std::pin::pin;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use equipoise::{Channel, Endpoint, Override};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};

use crate::rig::delay::Delay;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, Server};
use crate::{client, in_flight, quiet, server, until};

fn slow() -> HelloRequest {
    HelloRequest {
        work_us: 20_000_000,
        ..HelloRequest::default()
    }
}

#[tokio::test]
async fn before_the_first_poll_nothing_happens() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    drop(client.say_hello(slow()));
    assert_eq!(channel.endpoints()[0].picks, 0);
}

#[tokio::test]
async fn while_it_waits_for_an_endpoint() {
    let channel = Channel::from_endpoints([]).build().unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut request = tonic::Request::new(slow());
    request.extensions_mut().insert(equipoise::WaitForReady);
    let call = tokio::spawn(async move { client.say_hello(request).await });
    until("it waits", || channel.waiting() == 1).await;
    call.abort();
    until("it has left the line", || channel.waiting() == 0).await;
}

#[tokio::test]
async fn while_the_server_works() {
    // One permit and no patience: the server drops what was cancelled, or the next call would wait for it.
    let a = Server::start(Options {
        concurrency: Some(1),
        ..Options::new("a")
    });
    let (channel, mut client) = client(&[&a]).await;
    let mut busy = client.clone();
    let call = tokio::spawn(async move { busy.say_hello(slow()).await });
    until("it is in flight", || in_flight(&channel) == 1).await;
    // A call behind it tells that the server has it: it gets its turn only when the first is gone.
    let mut behind = pin!(client.say_hello(HelloRequest::default()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(behind.as_mut().poll(&mut cx).is_pending());
    call.abort();
    behind.await.unwrap();
    quiet(&channel).await;
    assert_eq!(channel.endpoints()[0].cancelled, 1);
}

#[tokio::test]
async fn a_stream_unread_half_read_and_idle() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let endless = CountdownRequest {
        count: u32::MAX,
        payload_bytes: 1_000,
        ..CountdownRequest::default()
    };
    let unread = client.countdown(endless).await.unwrap();
    let mut half = client.countdown(endless).await.unwrap().into_inner();
    for _ in 0..100 {
        half.message().await.unwrap().expect("endless");
    }
    assert_eq!(in_flight(&channel), 2, "a stream counts until its end");
    drop(unread);
    until("one is left", || in_flight(&channel) == 1).await;
    drop(half);
    quiet(&channel).await;
    assert_eq!(channel.endpoints()[0].cancelled, 2);
}

#[tokio::test]
async fn an_upload_that_never_ends() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let (say, said) = tokio::sync::mpsc::channel::<HelloRequest>(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(said);
    let mut uploader = client.clone();
    let call = tokio::spawn(async move { uploader.gather(requests).await });
    for _ in 0..10 {
        say.send(HelloRequest::default()).await.unwrap();
    }
    assert_eq!(in_flight(&channel), 1);
    call.abort();
    quiet(&channel).await;
    // The caller's end of its own stream learns of it too.
    until("nobody takes the messages any more", || say.is_closed()).await;

    let requests = stream::repeat(HelloRequest::default());
    let replies = client.chat(requests).await.unwrap().into_inner();
    assert_eq!(replies.take(10).count().await, 10);
    quiet(&channel).await;
}

/// What the caller cannot send is the caller's doing, also after the response began: nothing is held against the
/// server.
#[tokio::test]
async fn an_upload_that_fails_after_the_response_began_is_the_callers_own() {
    let a = server("a");
    let (channel, client) = client(&[&a]).await;
    let mut client = client.max_encoding_message_size(1_000);
    let (say, said) = tokio::sync::mpsc::channel::<HelloRequest>(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(said);
    say.send(HelloRequest::default()).await.unwrap();
    let mut replies = client.chat(requests).await.unwrap().into_inner();
    replies.message().await.unwrap().expect("it is answered");
    let too_large = HelloRequest {
        payload: vec![0; 2_000],
        ..HelloRequest::default()
    };
    say.send(too_large).await.unwrap();
    let status = replies.message().await.unwrap_err();
    // As tonic's encoder words it, and none of ours on it.
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("too large"), "{status:?}");
    assert!(status.metadata().is_empty(), "{status:?}");
    quiet(&channel).await;
    let endpoint = &channel.endpoints()[0];
    assert_eq!(endpoint.outcomes, [], "{endpoint:?}");
    assert_eq!(endpoint.cancelled, 1, "{endpoint:?}");
}

#[tokio::test]
async fn dropped_at_every_single_poll() {
    // A pause before each reply, so that a call takes several polls.
    let a = Server::start(Options {
        pace: Duration::from_millis(1),
        ..Options::new("a")
    });
    let (channel, client) = client(&[&a]).await;
    // Poll k times, then drop; a call that finished earlier ends the series.
    for k in 0..100 {
        let mut client = client.clone();
        let call = async move {
            let requests = stream::iter((0..3).map(|_| HelloRequest::default()));
            let mut replies = client.chat(requests).await?.into_inner();
            while replies.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        };
        let mut call = Box::pin(call);
        let mut polls = 0;
        let done = std::future::poll_fn(|cx| {
            if polls == k {
                return std::task::Poll::Ready(false);
            }
            polls += 1;
            call.as_mut().poll(cx).map(|result| {
                result.expect("nothing is wrong with the server");
                true
            })
        })
        .await;
        drop(call);
        quiet(&channel).await;
        if done {
            assert!(k > 2, "it cannot be done in {k} polls");
            break;
        }
        assert!(k < 99, "never done");
    }
    // The connection is as good as new.
    let mut client = client;
    client.say_hello(HelloRequest::default()).await.unwrap();
    assert_eq!(channel.endpoints()[0].connections, 1);
}

/// A connection near the end of its budget of resets is replaced, and what it carries goes on.
#[tokio::test]
async fn a_worn_connection_is_replaced_and_its_streams_go_on() {
    let a = server("a");
    let wire = Delay::start(a.address, Duration::ZERO);
    let channel = Channel::from_endpoints([Endpoint::from(wire.address)])
        .drain_deadline(Duration::from_millis(100))
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut replies = client
        .countdown(crate::endless())
        .await
        .unwrap()
        .into_inner();
    let mut cancelled = 0;
    // Half of the resets that h2 remembers are the budget; this wears it out, however late its replacement is.
    while wire.accepted() < 2 && cancelled < 10_000 {
        let mut call = pin!(client.say_hello(slow()));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(call.as_mut().poll(&mut cx).is_pending());
        cancelled += 1;
        if cancelled % 50 == 0 {
            // The connection's task gets its turn, and the stream is read.
            replies.message().await.unwrap().expect("endless");
        }
    }
    assert!(cancelled >= 5_000, "replaced after {cancelled} already");
    // On one thread, and with replies to read at once, the dial may not have had its turn.
    until("it is replaced", || wire.accepted() == 2).await;
    until("calls go to the new one", || in_flight(&channel) == 1).await;
    client.say_hello(HelloRequest::default()).await.unwrap();
    // Well past the drain deadline, which is for endpoints that left: this one has not.
    for _ in 0..200 {
        replies.message().await.unwrap().expect("endless");
    }
    assert_eq!(channel.endpoints()[0].outcome(tonic::Code::Unavailable), 0);
    drop(replies);
    quiet(&channel).await;
}

/// A watch is dropped when its caller has seen enough. That says nothing of how fast its server is, however long it went
/// on.
#[tokio::test]
async fn a_stream_that_was_answered_and_dropped_is_no_slow_call() {
    let servers = ["a", "b"].map(server);
    let (channel, mut client) = client(&servers.iter().collect::<Vec<_>>()).await;
    // Calls take their time, so that it is much the same for both servers however busy the machine is.
    let request = HelloRequest {
        work_us: 20_000,
        ..HelloRequest::default()
    };
    let many = async || {
        let calls = (0..20).map(|_| {
            let mut client = GreeterClient::new(channel.clone());
            let request = request.clone();
            async move { client.say_hello(request).await }
        });
        for answer in join_all(calls).await {
            answer.unwrap();
        }
    };
    let picks = || channel.endpoints()[0].picks;
    until_picked(&many, &picks).await;
    let mut request = tonic::Request::new(crate::endless());
    let there = Override::strict(servers[0].address);
    request.extensions_mut().insert(there);
    let mut stream = client.countdown(request).await.unwrap().into_inner();
    // Fifty times as long as a call takes.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        stream.next().await.unwrap().unwrap();
    }
    drop(stream);
    quiet(&channel).await;
    let before = picks();
    for _ in 0..10 {
        many().await;
    }
    let there = picks() - before;
    println!("{there} of 200");
    assert!(there >= 40, "{there} of 200");
}

/// Makes calls until some of them came to the endpoint: it has answered then.
async fn until_picked(calls: &impl AsyncFn(), picks: &impl Fn() -> u64) {
    let begin = Instant::now();
    while picks() < 20 {
        assert!(begin.elapsed() < crate::PATIENCE, "it is never picked");
        calls().await;
    }
}
