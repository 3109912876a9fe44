//! The measure of all lanes: a tower service straight on the `h2` crate, round robin over one connection
//! for each address. It does what a unary or server-streaming call needs and nothing else: no deadline, no
//! admission, no retry, no counters.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response, Uri};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::net::TcpStream;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

/// A channel for generated clients.
#[derive(Clone, Debug)]
pub(crate) struct BareH2 {
    connections: Arc<[(SendRequest<Bytes>, Uri)]>,
    next: Arc<AtomicUsize>,
}

impl BareH2 {
    /// Connects to all addresses.
    pub(crate) async fn connect(addresses: &[SocketAddr]) -> Self {
        let mut connections = Vec::new();
        for address in addresses {
            let stream = TcpStream::connect(address)
                .await
                .expect("the server listens");
            stream.set_nodelay(true).expect("a TCP socket takes it");
            let mut builder = h2::client::Builder::new();
            builder
                .initial_window_size(1 << 20)
                .initial_connection_window_size(16 << 20);
            let (handle, connection) = builder.handshake(stream).await.expect("it speaks HTTP/2");
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

impl Service<Request<Body>> for BareH2 {
    type Response = Response<Answer>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Answer>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // A turn to take: nothing else is read in its order.
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let (handle, origin) = &self.connections[turn];
        Box::pin(send(handle.clone(), absolute(request, origin)))
    }
}

/// HTTP/2 wants scheme and authority; tonic gives the path.
pub(crate) fn absolute(mut request: Request<Body>, origin: &Uri) -> Request<Body> {
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    uri.scheme = origin.scheme().cloned();
    uri.authority = origin.authority().cloned();
    *request.uri_mut() = Uri::from_parts(uri).expect("all three parts are there");
    request
}

async fn send(
    mut handle: SendRequest<Bytes>,
    request: Request<Body>,
) -> Result<Response<Answer>, Status> {
    let (head, mut body) = request.into_parts();
    let ends = body.is_end_stream();
    let sent = handle.send_request(Request::from_parts(head, ()), ends);
    let (response, mut stream) = sent.map_err(status)?;
    drop(handle);
    // One frame is held back, so that the last leaves with END_STREAM.
    let mut held: Option<Bytes> = None;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && let Some(data) = held.replace(data)
        {
            stream.send_data(data, false).map_err(status)?;
        }
    }
    if !ends {
        let last = held.unwrap_or_default();
        stream.send_data(last, true).map_err(status)?;
    }
    drop(stream);
    let (head, body) = response.await.map_err(status)?.into_parts();
    let data_ended = false;
    Ok(Response::from_parts(head, Answer { body, data_ended }))
}

fn status(error: h2::Error) -> Status {
    Status::unavailable(error.to_string())
}

/// The body of a response.
#[derive(Debug)]
pub(crate) struct Answer {
    body: RecvStream,
    data_ended: bool,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.data_ended {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    let released = self.body.flow_control().release_capacity(data.len());
                    released.map_err(status)?;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(status(error)))),
                None => self.data_ended = true,
            }
        }
        let trailers: Option<HeaderMap> = ready!(self.body.poll_trailers(cx)).map_err(status)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
