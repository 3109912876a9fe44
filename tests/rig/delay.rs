//! A long wire: a proxy that hands on each byte after a fixed time, both ways.
//!
//! The kernel of a test machine need not have netem, so the delay is made in user space. It keeps the
//! order of the bytes and no limit on how many are under way.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::greeter::runtime;
use super::timer;

/// The near end of the wire; it is cut when the value goes.
#[derive(Debug)]
pub struct Delay {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    cut: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Delay {
    /// A wire to `server` on which each way takes `each_way`; runs on a thread of its own, so that its
    /// tasks are not counted as the client's.
    pub fn start(server: SocketAddr, each_way: Duration) -> Self {
        let (cut, is_cut) = oneshot::channel();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = accepted.clone();
        let (listening, address) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
                let listener = listener.expect("loopback has a free port");
                let address = listener.local_addr().expect("a bound socket has an address");
                listening.send(address).expect("start waits for it");
                tokio::select! { () = accept(listener, server, each_way, &counted) => {}, _ = is_cut => {} }
            });
        });
        let address = address.recv().expect("the thread binds an address");
        Self {
            address,
            accepted,
            cut: Some(cut),
            thread: Some(thread),
        }
    }

    /// How many connections were made so far.
    pub fn accepted(&self) -> usize {
        // A counter on its own: nothing else is read in its order.
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        drop(self.cut.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed by the thread itself.
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    each_way: Duration,
    accepted: &AtomicUsize,
) {
    while let Ok((near, _)) = listener.accept().await {
        // As in `accepted`.
        accepted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            // Where the server refuses, the connection just ends.
            let Ok(far) = TcpStream::connect(server).await else {
                return;
            };
            for end in [&near, &far] {
                end.set_nodelay(true).expect("a TCP socket takes it");
            }
            let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
            tokio::join!(
                carry(from_near, to_far, each_way),
                carry(from_far, to_near, each_way)
            );
        });
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (read, mut under_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        let mut buffer = vec![0; 64 * 1_024];
        // An error of a connection is its end.
        while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
            if read
                .send((Instant::now() + delay, buffer[..bytes].to_vec()))
                .is_err()
            {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = under_way.recv().await {
            timer::until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // The half that is dropped says that no more comes.
    };
    tokio::join!(reading, writing);
}
