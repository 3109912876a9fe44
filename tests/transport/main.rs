//! The HTTP/2 transport by itself, against a scripted server and a real one.

#[path = "../rig/frames.rs"]
mod frames;

mod bodies;
mod cancel;
mod ending;
mod knobs;
mod real;
mod settings;
mod tonic_channel;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use equipoise::transport::{
    CallError, CallersOwn, Condition, Connection, Connector, Http2Connection, Http2Connector,
    Http2Options, Outgoing, Payload, Reached, ResponseBody, Slot,
};
use equipoise::{Address, Endpoint};
use frames::{FrameServer, PATIENCE, Peer, Script, Step, code, kind, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::mpsc;
use tonic::{Code, Status};

type Answer = Result<http::Response<ResponseBody>, CallError>;

async fn dial(address: impl Into<Address>) -> Http2Connection {
    dial_with(Http2Options::default(), address).await
}

async fn dial_with(options: Http2Options, address: impl Into<Address>) -> Http2Connection {
    let address = address.into();
    let connecting =
        Http2Connector::new(options).connect(&Endpoint::new(address.clone()), &address);
    within(connecting).await.unwrap()
}

/// A server with this script, and a connection to it.
async fn pair(script: Script) -> (FrameServer, Http2Connection, Peer) {
    let server = FrameServer::start(script).await;
    let connection = dial(server.address()).await;
    let peer = server.peer(0).await;
    (server, connection, peer)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("not done in {PATIENCE:?}"))
}

/// Waits for a state that nothing announces.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "never so: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn slot(connection: &Http2Connection) -> Slot {
    connection.slots().try_reserve().expect("a free slot")
}

fn head() -> http::Request<()> {
    http::Request::post("/test.Service/Method")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("x-kept", "as it was")
        .body(())
        .unwrap()
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.extend_from_slice(&[0]);
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    framed.freeze()
}

fn unary(message: &[u8]) -> Outgoing {
    Outgoing {
        head: Box::new(head()),
        payload: Payload::Untouched(tonic::body::Body::new(Full::new(framed(message)))),
    }
}

/// A request whose messages are sent by hand; dropping the sender ends it.
fn streaming() -> (mpsc::Sender<Result<Bytes, Status>>, Outgoing) {
    let (sender, receiver) = mpsc::channel(1);
    let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let frames = tokio_stream::StreamExt::map(messages, |m: Result<Bytes, Status>| {
        m.map(http_body::Frame::data)
    });
    let payload = Payload::Untouched(tonic::body::Body::new(StreamBody::new(frames)));
    let head = head();
    (
        sender,
        Outgoing {
            head: Box::new(head),
            payload,
        },
    )
}

/// The whole of a response: its data and its trailers.
async fn collect(response: http::Response<ResponseBody>) -> Result<(Bytes, Code), Status> {
    let collected = within(response.into_body().collect()).await?;
    let status = collected.trailers().and_then(|t| t.get("grpc-status"));
    let code = status.map_or(Code::Unknown, |s| Code::from_bytes(s.as_bytes()));
    Ok((collected.to_bytes(), code))
}

/// A unary call from its start to its end.
async fn ask(connection: &Http2Connection, message: &[u8]) -> Result<(Bytes, Code), Status> {
    let answer = within(connection.call(unary(message), slot(connection))).await;
    collect(answer.map_err(|error| error.status)?).await
}

/// Polls a call once.
async fn start<F: Future + Unpin>(call: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *call).poll(cx))).await
}

fn error(answer: Answer) -> CallError {
    answer.map(|_| ()).unwrap_err()
}

/// Waits for a condition, and gives its text.
async fn condition(connection: &Http2Connection, is: fn(&Condition) -> bool) -> String {
    let mut watch = connection.condition();
    let found = within(watch.wait_for(is)).await.unwrap();
    match &*found {
        Condition::Open => String::new(),
        Condition::Worn(what) => (*what).to_owned(),
        Condition::Draining(why) | Condition::Closed(why) => why.to_string(),
    }
}

fn draining(condition: &Condition) -> bool {
    matches!(condition, Condition::Draining(_))
}

fn closed(condition: &Condition) -> bool {
    matches!(condition, Condition::Closed(_))
}
