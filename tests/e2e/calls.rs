//! All four kinds of call, small and large, with and without interceptors.

use equipoise::{BalanceLayer, Channel, Served};
use futures_util::{StreamExt, stream};
use tonic::{Code, Request, Status};
use tower_layer::Layer;

use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::{client, endpoints, quiet, server};

fn hello(payload: usize) -> HelloRequest {
    HelloRequest {
        name: "you".into(),
        payload: vec![7; payload],
        echo: true,
        ..HelloRequest::default()
    }
}

#[tokio::test]
async fn all_four_kinds() {
    let (a, b) = (server("a"), server("b"));
    let (channel, mut client) = client(&[&a, &b]).await;

    let reply = client.say_hello(hello(10)).await.unwrap().into_inner();
    assert_eq!(
        (reply.message.as_str(), reply.payload.len()),
        ("hello you", 10)
    );

    let request = CountdownRequest {
        count: 50,
        payload_bytes: 100,
        ..CountdownRequest::default()
    };
    let mut replies = client.countdown(request).await.unwrap().into_inner();
    let mut seen = 0;
    while let Some(reply) = replies.message().await.unwrap() {
        assert_eq!(reply.payload.len(), 100);
        seen += 1;
    }
    assert_eq!(seen, 50);

    let requests = stream::iter((0..200).map(|_| hello(1_000)));
    let sum = client.gather(requests).await.unwrap().into_inner();
    assert_eq!((sum.messages, sum.bytes), (200, 200_000));

    let requests = stream::iter((0..100).map(|id| HelloRequest { id, ..hello(10) }));
    let replies = client.chat(requests).await.unwrap().into_inner();
    let ids: Vec<u64> = replies.map(|r| r.unwrap().id).collect().await;
    assert_eq!(ids, (0..100).collect::<Vec<_>>());

    quiet(&channel).await;
}

#[tokio::test]
async fn a_conversation_waits_for_each_answer() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let (say, said) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(said);
    say.send(hello(1)).await.unwrap();
    let mut replies = client.chat(requests).await.unwrap().into_inner();
    for _ in 0..20 {
        assert!(replies.message().await.unwrap().is_some());
        say.send(hello(1)).await.unwrap();
    }
    assert!(replies.message().await.unwrap().is_some());
    drop(say);
    assert!(replies.message().await.unwrap().is_none());
    quiet(&channel).await;
}

/// A caller that writes into a bounded channel while it does not read yet must not stand still.
#[tokio::test]
async fn writing_goes_on_while_nobody_reads() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let (say, said) = tokio::sync::mpsc::channel(1);
    say.send(hello(1)).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(said);
    let replies = client.chat(requests).await.unwrap().into_inner();
    for _ in 0..500 {
        say.send(hello(100)).await.unwrap();
    }
    drop(say);
    assert_eq!(replies.count().await, 501);
    quiet(&channel).await;
}

#[tokio::test]
async fn large_messages_both_ways() {
    let a = server("a");
    let (channel, client) = client(&[&a]).await;
    let limit = 40 << 20;
    let mut client = client
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    // tonic's servers take 4 MiB unless told otherwise; a stream of such messages is as long as one likes.
    let reply = client
        .say_hello(hello(4 << 20 >> 1))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.payload.len(), 4 << 20 >> 1);

    let replies = client
        .chat(stream::iter((0..20).map(|_| hello(1 << 20))))
        .await
        .unwrap()
        .into_inner();
    let bytes: usize = replies
        .map(|r| r.unwrap().payload.len())
        .fold(0, |a, b| async move { a + b })
        .await;
    assert_eq!(bytes, 20 << 20);

    let request = CountdownRequest {
        count: 4,
        payload_bytes: 8 << 20,
        ..CountdownRequest::default()
    };
    let mut replies = client.countdown(request).await.unwrap().into_inner();
    while let Some(reply) = replies.message().await.unwrap() {
        assert_eq!(reply.payload.len(), 8 << 20);
    }
    quiet(&channel).await;
}

#[tokio::test]
async fn interceptors_see_and_refuse_calls() {
    let a = server("a");
    let channel = crate::ready(&[&a]).await;
    let mut allowed =
        GreeterClient::with_interceptor(channel.clone(), |mut request: Request<()>| {
            request
                .metadata_mut()
                .insert("x-tenant", "blue".parse().unwrap());
            Ok(request)
        });
    allowed.say_hello(hello(0)).await.unwrap();

    let mut refused = GreeterClient::with_interceptor(channel.clone(), |_: Request<()>| {
        Err(Status::unauthenticated("no badge"))
    });
    let status = refused.say_hello(hello(0)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "no badge")
    );
    assert_eq!(
        channel.endpoints()[0].picks,
        1,
        "a refused call goes nowhere"
    );
}

#[tokio::test]
async fn a_servers_own_error_comes_through_unedited() {
    let a = server("a");
    let (channel, mut client) = client(&[&a]).await;
    let request = HelloRequest {
        code: Code::NotFound as u32,
        ..hello(0)
    };
    let status = client.say_hello(request).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "a was told to fail")
    );
    assert!(status.metadata().get("equipoise-endpoint").is_none());
    assert_eq!(channel.endpoints()[0].outcome(Code::NotFound), 1);
    quiet(&channel).await;
}

#[tokio::test]
async fn the_response_says_who_served_it() {
    let (a, b) = (server("a"), server("b"));
    let (_channel, mut client) = client(&[&a, &b]).await;
    for _ in 0..10 {
        let response = client.say_hello(hello(0)).await.unwrap();
        let served = response
            .extensions()
            .get::<Served>()
            .expect("always there")
            .clone();
        let server = [&a, &b]
            .into_iter()
            .find(|s| served.endpoint().address().to_string() == s.address.to_string())
            .expect("one of ours");
        let name = if server.address == a.address {
            "a"
        } else {
            "b"
        };
        assert_eq!(response.into_inner().server, name);
        assert_eq!(served.attempts(), 1);
    }
}

#[tokio::test]
async fn a_layer_over_a_connector_is_the_same_channel() {
    let (a, b) = (server("a"), server("b"));
    let layer = BalanceLayer::from_endpoints(endpoints(&[&a, &b]))
        .policy(equipoise::policy::RoundRobin::default())
        .build()
        .unwrap();
    let channel: Channel = layer.layer(equipoise::transport::Http2Connector::default());
    let mut client = GreeterClient::new(channel.clone());
    let mut request = Request::new(hello(0));
    request.extensions_mut().insert(equipoise::WaitForReady);
    client.say_hello(request).await.unwrap();
    // Not all at once: the second endpoint joins the picker a moment after the first.
    let end = std::time::Instant::now() + crate::PATIENCE;
    while channel.endpoints().iter().any(|e| e.picks < 5) {
        client.say_hello(hello(0)).await.unwrap();
        assert!(std::time::Instant::now() < end, "{:?}", channel.endpoints());
    }
}

#[tokio::test]
async fn a_unix_socket_is_an_endpoint_like_any_other() {
    use crate::rig::greeter::{UnixServer, unix_server};
    let UnixServer { path, .. } = &unix_server("u");
    let channel = Channel::builder(format!("unix:{}", path.display()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    assert_eq!(
        client
            .say_hello(hello(0))
            .await
            .unwrap()
            .into_inner()
            .server,
        "u"
    );
    assert_eq!(
        channel.endpoints()[0].address.to_string(),
        format!("unix:{}", path.display())
    );
}
