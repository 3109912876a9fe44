//! What scripted servers took, told in the words of the ledger, and sockets as the kernel sees them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prost::Message;
use tokio::net::TcpListener;
use tonic::Code;

use crate::frames::{Peer, kind};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::ledger::Execution;
use crate::rig::now;

/// The small calls that came whole on a connection: stream and request.
pub(crate) fn requests(peer: &Peer) -> Vec<(u32, HelloRequest)> {
    let (mut bodies, mut whole) = (HashMap::<u32, Vec<u8>>::new(), Vec::new());
    for frame in peer.frames().iter().filter(|f| f.is(kind::DATA)) {
        let body = bodies.entry(frame.stream).or_default();
        body.extend_from_slice(&frame.payload);
        if frame.ends_stream() {
            // A byte and a length come first.
            let request = HelloRequest::decode(&body[5..]).expect("our own client sent it");
            whole.push((frame.stream, request));
        }
    }
    whole
}

/// The ledger of a scripted server called `server` for one connection: `answer` says how it ended the call
/// on a stream, or that it never processed it.
pub(crate) fn executions(
    peer: &Peer,
    server: &str,
    answer: impl Fn(u32) -> Processed,
) -> Vec<Execution> {
    let processed = requests(peer).into_iter().filter_map(|(stream, request)| {
        let end = match answer(stream) {
            Processed::Never => return None,
            Processed::Broken => None,
            Processed::Answered => Some((now(), Code::Ok)),
        };
        Some(Execution {
            id: request.id,
            attempt: 1,
            server: server.into(),
            start: Duration::ZERO,
            end,
        })
    });
    processed.collect()
}

/// What a scripted server did with a call.
pub(crate) enum Processed {
    Never,
    /// It was taken, and the connection broke before the answer.
    Broken,
    Answered,
}

/// An address that takes each connection and ends it at once, and counts them.
pub(crate) struct Shut {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    accepting: tokio::task::AbortHandle,
}

impl Shut {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback has a free port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let accepting = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                // A counter on its own: nothing else is read in its order.
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            address,
            accepted,
            accepting: accepting.abort_handle(),
        }
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The client's sockets to `server` whose peer has closed and which their owner has not: CLOSE_WAIT.
pub(crate) fn close_wait(server: SocketAddr) -> usize {
    const CLOSE_WAIT: &str = "08";
    let table = std::fs::read_to_string("/proc/net/tcp").expect("linux lists sockets there");
    let port = format!(":{:04X}", server.port());
    let stuck = table.lines().skip(1).filter(|line| {
        let mut fields = line.split_whitespace().skip(2);
        let (remote, state) = (fields.next(), fields.next());
        remote.is_some_and(|remote| remote.ends_with(&port)) && state == Some(CLOSE_WAIT)
    });
    stuck.count()
}
