//! The other lanes that need code: hyper's handle, and tonic's channels taken in turn.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::bare_h2::absolute;

/// Round robin over hyper's HTTP/2 handles, one connection for each address.
#[derive(Clone, Debug)]
pub(crate) struct Hyper {
    connections: Arc<[(SendRequest<Body>, Uri)]>,
    next: Arc<AtomicUsize>,
}

impl Hyper {
    /// Connects to all addresses.
    pub(crate) async fn connect(addresses: &[SocketAddr]) -> Self {
        let mut connections = Vec::new();
        for address in addresses {
            let stream = TcpStream::connect(address)
                .await
                .expect("the server listens");
            stream.set_nodelay(true).expect("a TCP socket takes it");
            let mut builder = Builder::new(TokioExecutor::new());
            builder
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(16 << 20);
            let handshake = builder.handshake(TokioIo::new(stream)).await;
            let (handle, connection) = handshake.expect("it speaks HTTP/2");
            tokio::spawn(connection);
            let uri = format!("http://{address}")
                .parse()
                .expect("an address is an authority");
            connections.push((handle, uri));
        }
        Self {
            connections: connections.into(),
            next: Arc::default(),
        }
    }
}

impl Service<Request<Body>> for Hyper {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Response<Incoming>, hyper::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // A turn to take: nothing else is read in its order.
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let (handle, origin) = &self.connections[turn];
        Box::pin(handle.clone().send_request(absolute(request, origin)))
    }
}

/// Round robin over one tonic channel for each address: what users write by hand.
#[derive(Clone, Debug)]
pub(crate) struct TonicInTurn {
    channels: Vec<Channel>,
    next: Arc<AtomicUsize>,
    turn: Option<usize>,
}

impl TonicInTurn {
    /// Connects to all endpoints.
    pub(crate) async fn connect(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let mut channels = Vec::new();
        for endpoint in endpoints {
            channels.push(endpoint.connect().await.expect("the server listens"));
        }
        Self {
            channels,
            next: Arc::default(),
            turn: None,
        }
    }
}

impl Service<Request<Body>> for TonicInTurn {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let turn = *self.turn.get_or_insert_with(|| {
            // A turn to take: nothing else is read in its order.
            self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len()
        });
        self.channels[turn].poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let turn = self.turn.take().expect("poll_ready was asked before");
        self.channels[turn].call(request)
    }
}
