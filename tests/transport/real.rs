//! The same against servers that are not ours: tonic's, and the `h2` crate's.

use std::task::Context;

use futures_util::future::BoxFuture;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Streaming};

use super::*;

mod demo {
    #![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]
    tonic::include_proto!("equipoise.demo.v1");
}

use demo::greeter_client::GreeterClient;
use demo::greeter_server::{Greeter, GreeterServer};
use demo::{CountdownRequest, GatherReply, HelloReply, HelloRequest};

/// A connection as a service: what the channel makes of many, for one.
#[derive(Clone)]
struct Direct(Arc<Http2Connection>);

impl tower::Service<http::Request<tonic::body::Body>> for Direct {
    type Response = http::Response<ResponseBody>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let head = http::Request::from_parts(parts, ());
        let payload = Payload::Untouched(body);
        let call = self.0.call(
            Outgoing {
                head: Box::new(head),
                payload,
            },
            slot(&self.0),
        );
        Box::pin(async { call.await.map_err(|error| error.status) })
    }
}

struct Server;

#[tonic::async_trait]
impl Greeter for Server {
    async fn say_hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloReply>, Status> {
        let agent = request.metadata().get("user-agent").cloned();
        let request = request.into_inner();
        if request.code != 0 {
            return Err(Status::new(Code::from_i32(request.code as i32), "as asked"));
        }
        Ok(Response::new(HelloReply {
            message: request.name,
            server: agent.map_or_else(String::new, |a| a.to_str().unwrap().to_owned()),
            payload: if request.echo {
                request.payload
            } else {
                Vec::new()
            },
            ..HelloReply::default()
        }))
    }

    type CountdownStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<HelloReply, Status>> + Send>>;

    async fn countdown(
        &self,
        request: Request<CountdownRequest>,
    ) -> Result<Response<Self::CountdownStream>, Status> {
        let request = request.into_inner();
        let replies = tokio_stream::iter(0..request.count).map(move |_| {
            Ok(HelloReply {
                payload: vec![1; request.payload_bytes as usize],
                ..HelloReply::default()
            })
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn gather(
        &self,
        request: Request<Streaming<HelloRequest>>,
    ) -> Result<Response<GatherReply>, Status> {
        let mut requests = request.into_inner();
        let mut reply = GatherReply::default();
        while let Some(request) = requests.message().await? {
            reply.messages += 1;
            reply.bytes += request.payload.len() as u64;
        }
        Ok(Response::new(reply))
    }

    type ChatStream = Self::CountdownStream;

    async fn chat(
        &self,
        request: Request<Streaming<HelloRequest>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let replies = request.into_inner().map(|request| {
            Ok(HelloReply {
                message: request?.name,
                ..HelloReply::default()
            })
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

fn service() -> GreeterServer<Server> {
    GreeterServer::new(Server)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

async fn every_kind_of_call(connection: Http2Connection) {
    let connection = Arc::new(connection);
    let mut client = GreeterClient::new(Direct(connection.clone()))
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    let hello = |name: &str| HelloRequest {
        name: name.to_owned(),
        ..HelloRequest::default()
    };
    let reply = within(client.say_hello(hello("a")))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.message, "a");
    assert_eq!(
        reply.server,
        concat!("grpc-rust-equipoise/", env!("CARGO_PKG_VERSION"))
    );

    let mut request = Request::new(hello("b"));
    request
        .metadata_mut()
        .insert("user-agent", "mine".parse().unwrap());
    let reply = within(client.say_hello(request))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.server, "mine");

    let request = HelloRequest {
        code: 5,
        ..HelloRequest::default()
    };
    let status = within(client.say_hello(request)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "as asked")
    );

    let request = HelloRequest {
        payload: vec![9; 16 << 20],
        echo: true,
        ..HelloRequest::default()
    };
    let reply = within(client.say_hello(request))
        .await
        .unwrap()
        .into_inner();
    assert!(reply.payload.len() == 16 << 20 && reply.payload.iter().all(|b| *b == 9));

    let request = CountdownRequest {
        count: 1_000,
        payload_bytes: 4_096,
        ..CountdownRequest::default()
    };
    let mut replies = within(client.countdown(request))
        .await
        .unwrap()
        .into_inner();
    let mut count = 0;
    while let Some(reply) = within(replies.message()).await.unwrap() {
        assert_eq!(reply.payload.len(), 4_096);
        count += 1;
    }
    assert_eq!(count, 1_000);

    let requests = tokio_stream::iter(0..1_000).map(|_| HelloRequest {
        payload: vec![2; 16 << 10],
        ..HelloRequest::default()
    });
    let reply = within(client.gather(requests)).await.unwrap().into_inner();
    assert_eq!((reply.messages, reply.bytes), (1_000, 1_000 * (16 << 10)));

    let (sender, receiver) = mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut replies = within(client.chat(requests)).await.unwrap().into_inner();
    for name in ["ping", "pong"] {
        sender.send(hello(name)).await.unwrap();
        let reply = within(replies.message()).await.unwrap().unwrap();
        assert_eq!(reply.message, name);
    }
    drop(sender);
    assert!(within(replies.message()).await.unwrap().is_none());
    drop(replies);
    eventually("all slots free", || connection.slots().open() == 0).await;
}

#[tokio::test]
async fn every_kind_of_call_over_tcp() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service());
    let serving = tokio::spawn(server.serve_with_incoming(incoming));
    every_kind_of_call(dial(address).await).await;
    serving.abort();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_call_over_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("equipoise-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service());
    let serving = tokio::spawn(server.serve_with_incoming(incoming));
    every_kind_of_call(dial(path.as_path()).await).await;
    serving.abort();
    let _ = std::fs::remove_file(&path);
}

/// What a request looks like at a server that shows its pseudo headers.
#[tokio::test]
async fn scheme_authority_and_agent_are_filled_in() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, mut heads) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    seen.send(request.map(|_| ())).unwrap();
                    respond
                        .send_response(http::Response::new(()), true)
                        .unwrap();
                }
            });
        }
    });
    let named = Http2Options::default()
        .with_authority("greeter.test:7")
        .unwrap();
    let origin = |uri: &str| {
        let mut request = unary(b"");
        *request.head.uri_mut() = uri.parse().unwrap();
        request
    };
    let address_text = address.to_string();
    for (options, uri, authority) in [
        (Http2Options::default(), "/s/m", &*address_text),
        (named.clone(), "/s/m", "greeter.test:7"),
        (named, "https://mine.test:1/s/m", "mine.test:1"),
    ] {
        let connection = dial_with(options, address).await;
        let mut request = origin(uri);
        request
            .head
            .headers_mut()
            .insert("grpc-timeout", "5S".parse().unwrap());
        within(connection.call(request, slot(&connection)))
            .await
            .unwrap();
        let head = within(heads.recv()).await.unwrap();
        assert_eq!(head.uri(), &*format!("http://{authority}/s/m"));
        assert_eq!(head.headers()["grpc-timeout"], "5S", "the channel's affair");
        let agent = head.headers()["user-agent"].to_str().unwrap();
        assert!(agent.starts_with("grpc-rust-equipoise/"), "{agent}");
        assert_eq!(head.headers()["x-kept"], "as it was");
    }
    serving.abort();
}
