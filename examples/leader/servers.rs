//! Real tonic servers on loopback that can be stopped and started again where they were.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use crate::proto::greeter_server::{Greeter, GreeterServer};
use crate::proto::{CountdownRequest, GatherReply, HelloReply, HelloRequest};

/// How long a call takes.
const WORK: Duration = Duration::from_millis(2);

pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    running: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Starts one on a free port.
    pub async fn start(name: &'static str) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Self {
            name,
            address: listener.local_addr()?,
            running: Some(serve(name, listener)),
        })
    }

    /// As a deployment does it: finishes what it has, takes no more, and is gone.
    pub async fn stop(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if let Some(Running { stop, ended }) = self.running.take() {
            // It may have ended by itself.
            let _ = stop.send(());
            ended.await??;
        }
        Ok(())
    }

    /// Starts it again, at the address it had.
    pub async fn restart(&mut self) -> std::io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.running = Some(serve(self.name, listener));
        Ok(())
    }
}

fn serve(name: &'static str, listener: TcpListener) -> Running {
    let (stop, stopped) = oneshot::channel();
    let serving = tonic::transport::Server::builder()
        .add_service(GreeterServer::new(Named(name)))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            // Either way: it was told to stop, or nobody is left who could tell it.
            let _ = stopped.await;
        });
    let ended = tokio::spawn(serving);
    Running { stop, ended }
}

struct Named(&'static str);

type Replies = Pin<Box<dyn Stream<Item = Result<HelloReply, Status>> + Send>>;

#[tonic::async_trait]
impl Greeter for Named {
    async fn say_hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloReply>, Status> {
        tokio::time::sleep(WORK).await;
        Ok(Response::new(HelloReply {
            message: format!("hello, {}", request.into_inner().name),
            server: self.0.to_owned(),
            ..HelloReply::default()
        }))
    }

    type CountdownStream = Replies;

    async fn countdown(&self, _: Request<CountdownRequest>) -> Result<Response<Replies>, Status> {
        Err(Status::unimplemented("this example says hello only"))
    }

    async fn gather(
        &self,
        _: Request<Streaming<HelloRequest>>,
    ) -> Result<Response<GatherReply>, Status> {
        Err(Status::unimplemented("this example says hello only"))
    }

    type ChatStream = Replies;

    async fn chat(&self, _: Request<Streaming<HelloRequest>>) -> Result<Response<Replies>, Status> {
        Err(Status::unimplemented("this example says hello only"))
    }
}
