//! What stands between a client and a server and may fail without a word: a NAT, a firewall, a cable.
//!
//! A proxy in user space, so that it needs no privilege. What it does not hand on stays in the kernel's buffers, as with
//! packets that are lost and sent again: once it works again, all that was sent arrives.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use super::greeter::runtime;

/// The near end; all its connections end with the value.
#[derive(Debug)]
pub struct Middlebox {
    pub address: SocketAddr,
    state: watch::Sender<State>,
    accepted: Arc<AtomicUsize>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Where new connections lead.
    server: SocketAddr,
    /// Nothing is handed on.
    stopped: bool,
    /// Connections before this one are forgotten: nothing is handed on for them, ever.
    known_from: usize,
}

impl Middlebox {
    /// Stands before `server`; runs on a thread of its own, so that its tasks are not counted as the client's.
    pub fn before(server: SocketAddr) -> Self {
        let state = watch::Sender::new(State {
            server,
            stopped: false,
            known_from: 0,
        });
        let (end, ended) = oneshot::channel();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (counted, states) = (accepted.clone(), state.subscribe());
        let (listening, address) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
                let listener = listener.expect("loopback has a free port");
                let address = listener.local_addr();
                let address = address.expect("a bound socket has an address");
                listening.send(address).expect("the maker waits for it");
                tokio::select! { () = accept(listener, states, &counted) => {}, _ = ended => {} }
            });
        });
        let address = address.recv().expect("the thread binds an address");
        Self {
            address,
            state,
            accepted,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// Hands nothing on any more, for old connections and new ones.
    pub fn stop(&self) {
        self.state.send_modify(|state| state.stopped = true);
    }

    /// Hands on again, also what came meanwhile.
    pub fn go(&self) {
        self.state.send_modify(|state| state.stopped = false);
    }

    /// Forgets the connections there are: they get no word any more, while new ones work.
    pub fn forget(&self) {
        let accepted = self.accepted();
        self.state.send_modify(|state| state.known_from = accepted);
    }

    /// From now on another server has this address: new connections lead to it, old ones to whom they know.
    pub fn moves_to(&self, server: SocketAddr) {
        self.state.send_modify(|state| state.server = server);
    }

    /// How many connections were made so far.
    pub fn accepted(&self) -> usize {
        // A counter on its own: nothing else is read in its order.
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed by the thread itself.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, states: watch::Receiver<State>, accepted: &AtomicUsize) {
    while let Ok((near, _)) = listener.accept().await {
        // As in `accepted`.
        let nth = accepted.fetch_add(1, Ordering::Relaxed);
        let mut states = states.clone();
        tokio::spawn(async move {
            open(&mut states, nth).await;
            let server = states.borrow().server;
            // Where the server refuses, the connection just ends.
            let Ok(far) = TcpStream::connect(server).await else {
                return;
            };
            for end in [&near, &far] {
                end.set_nodelay(true).expect("a TCP socket takes it");
            }
            let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
            tokio::join!(
                carry(from_near, to_far, states.clone(), nth),
                carry(from_far, to_near, states, nth)
            );
        });
    }
}

/// Waits until the `nth` connection is handed on.
async fn open(states: &mut watch::Receiver<State>, nth: usize) {
    let open = |state: &State| !state.stopped && nth >= state.known_from;
    if states.wait_for(open).await.is_err() {
        // The value is gone, and the thread goes, too.
        std::future::pending().await
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut states: watch::Receiver<State>,
    nth: usize,
) {
    let mut buffer = vec![0; 64 * 1_024];
    // An error of a connection is its end.
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        open(&mut states, nth).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    // The end is a word like any other, and no more told than they are.
    open(&mut states, nth).await;
}
