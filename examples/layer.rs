//! For those who have tonic channels set up already: `BalanceLayer` over `TonicConnector`, with an interceptor.
//!
//! Two real servers on loopback, which refuse calls without a token; a balanced channel of tonic channels, and an
//! interceptor that adds the token.
//!
//! `cargo run --example layer [-- --calls N]`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;

use equipoise::policy::RoundRobin;
use equipoise::transport::TonicConnector;
use equipoise::{BalanceLayer, Channel, Endpoint, Served, WaitForReady};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tower::ServiceBuilder;

use proto::greeter_client::GreeterClient;
use proto::greeter_server::{Greeter, GreeterServer};
use proto::{CountdownRequest, GatherReply, HelloReply, HelloRequest};

mod proto {
    include!(concat!(env!("OUT_DIR"), "/equipoise.demo.v1.rs"));
}

const TOKEN: &str = "Bearer let-me-in";

#[tokio::main]
async fn main() -> ExitCode {
    let calls = match arguments() {
        Ok(calls) => calls,
        Err(Usage::Help) => {
            println!("usage: layer [--calls N]   N from 1 to 100000, default 1000");
            return ExitCode::SUCCESS;
        }
        Err(Usage::Wrong(why)) => {
            eprintln!("layer: {why}; usage: layer [--calls N]");
            return ExitCode::from(2);
        }
    };
    match show(calls).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("layer: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn show(calls: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let servers = [start("red").await?, start("blue").await?];

    // The balanced channel. Each of its connections is a `tonic::transport::Channel`, set up here as one always has;
    // `TonicConnector::from(endpoint)` takes an endpoint that is set up already, TLS and all.
    let layer = BalanceLayer::from_endpoints(servers.map(Endpoint::from))
        .policy(RoundRobin::default())
        .build()?;
    let channel: Channel<TonicConnector> = ServiceBuilder::new()
        .layer(layer)
        .service(TonicConnector::new(|endpoint| endpoint.tcp_nodelay(true)));

    // On top of it the generated client and its interceptor, as over any channel.
    let mut client = GreeterClient::with_interceptor(channel, |mut request: Request<()>| {
        let token = TOKEN.parse().map_err(|_| Status::internal("bad token"))?;
        request.metadata_mut().insert("authorization", token);
        // The first call comes before the connections are made.
        request.extensions_mut().insert(WaitForReady);
        Ok(request)
    });

    let mut served = BTreeMap::<String, u32>::new();
    for n in 1..=calls {
        let name = format!("caller {n}");
        let request = HelloRequest {
            name,
            ..HelloRequest::default()
        };
        let response = client.say_hello(request).await?;
        let who = response.extensions().get::<Served>().cloned();
        let who = who.ok_or("the response does not say who served it")?;
        let address = who.endpoint().address().to_string();
        let reply = response.into_inner();
        let calls = served.entry(address.clone()).or_insert(0);
        *calls += 1;
        if *calls == 1 {
            println!("{address} ({}): {}", reply.server, reply.message);
        }
    }
    for (address, calls) in served {
        println!("{address} served {calls} calls");
    }
    Ok(())
}

enum Usage {
    Help,
    Wrong(String),
}

fn arguments() -> Result<u32, Usage> {
    let mut calls = 1_000;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Err(Usage::Help),
            "--calls" => {
                let text = arguments.next().unwrap_or_default();
                calls = text
                    .parse()
                    .ok()
                    .filter(|n| (1..=100_000).contains(n))
                    .ok_or_else(|| {
                        Usage::Wrong(format!("--calls {text:?} is not in 1..=100000"))
                    })?;
            }
            other => return Err(Usage::Wrong(format!("unknown argument {other:?}"))),
        }
    }
    Ok(calls)
}

/// A real tonic server on a free port of the loopback interface.
async fn start(name: &'static str) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tonic::transport::Server::builder()
        .add_service(GreeterServer::new(Demo { name }))
        .serve_with_incoming(TcpListenerStream::new(listener));
    // It ends with the program.
    tokio::spawn(serving);
    Ok(address)
}

struct Demo {
    name: &'static str,
}

type Replies =
    std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<HelloReply, Status>> + Send>>;

#[tonic::async_trait]
impl Greeter for Demo {
    async fn say_hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloReply>, Status> {
        let token = request.metadata().get("authorization");
        if token.is_none_or(|token| token != TOKEN) {
            return Err(Status::unauthenticated("no token, no greeting"));
        }
        Ok(Response::new(HelloReply {
            message: format!("hello, {}", request.into_inner().name),
            server: self.name.to_owned(),
            ..HelloReply::default()
        }))
    }

    type CountdownStream = Replies;

    async fn countdown(&self, _: Request<CountdownRequest>) -> Result<Response<Replies>, Status> {
        Err(Status::unimplemented("this example says hello only"))
    }

    async fn gather(
        &self,
        _: Request<tonic::Streaming<HelloRequest>>,
    ) -> Result<Response<GatherReply>, Status> {
        Err(Status::unimplemented("this example says hello only"))
    }

    type ChatStream = Replies;

    async fn chat(
        &self,
        _: Request<tonic::Streaming<HelloRequest>>,
    ) -> Result<Response<Replies>, Status> {
        Err(Status::unimplemented("this example says hello only"))
    }
}
