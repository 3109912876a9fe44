//! A narrow link: a proxy that hands on so many bytes a second, each way.
//!
//! The kernel of a test machine need not have netem, so the link is made in user space. What it cannot hand on yet it
//! does not read: it waits where it would on a real link, in the buffers of whoever sent it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::greeter::runtime;
use super::timer;

/// What the link takes at once.
const PIECE: usize = 128;

/// What is asked of the kernel as the link's own buffers, so that little is under way.
const BUFFER: usize = 4 * 1_024;

/// The largest segment. Loopback's own are larger than these buffers, and would wait for room that never comes.
const SEGMENT: u32 = 536;

/// The near end of the link; it is cut when the value goes.
#[derive(Debug)]
pub struct Narrow {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    cut: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Narrow {
    /// A link to `server` that carries so many bytes a second each way, for all its connections together; runs on a
    /// thread of its own, so that its tasks are not counted as the client's.
    pub fn start(server: SocketAddr, bytes_per_second: u32) -> Self {
        let (cut, is_cut) = oneshot::channel();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = accepted.clone();
        let listener = listen();
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let address = address.as_socket().expect("and it is an IP one");
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let listener = TcpListener::from_std(listener.into());
                let listener = listener.expect("the runtime takes a socket");
                tokio::select! {
                    () = accept(listener, server, bytes_per_second, &counted) => {},
                    _ = is_cut => {}
                }
            });
        });
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

impl Drop for Narrow {
    fn drop(&mut self) {
        drop(self.cut.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed by the thread itself.
            let _ = thread.join();
        }
    }
}

/// A socket for one side of the link.
fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_tcp_mss(SEGMENT)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Its connections inherit what the socket was set to.
fn listen() -> Socket {
    let socket = socket().expect("a TCP socket can be had so");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).expect("loopback has a free port");
    socket.listen(1_024).expect("a bound socket listens");
    socket
}

async fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(socket()?.into())
        .connect(server)
        .await
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    bytes_per_second: u32,
    accepted: &AtomicUsize,
) {
    let way = || Arc::new(Way::new(bytes_per_second));
    let (there, back) = (way(), way());
    while let Ok((near, _)) = listener.accept().await {
        // As in `accepted`.
        accepted.fetch_add(1, Ordering::Relaxed);
        let (there, back) = (there.clone(), back.clone());
        tokio::spawn(async move {
            // Where the server refuses, the connection just ends.
            let Ok(far) = connect(server).await else {
                return;
            };
            for end in [&near, &far] {
                end.set_nodelay(true).expect("a TCP socket takes it");
            }
            let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
            tokio::join!(
                carry(from_near, to_far, &there),
                carry(from_far, to_near, &back)
            );
        });
    }
}

/// One direction of the link.
struct Way {
    bytes_per_second: u32,
    /// When it has carried all that was put on it.
    free: Mutex<Instant>,
}

impl Way {
    fn new(bytes_per_second: u32) -> Self {
        Self {
            bytes_per_second,
            free: Mutex::new(Instant::now()),
        }
    }

    /// When so many bytes more are carried.
    fn carries(&self, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = Duration::from_secs(1) * bytes as u32 / self.bytes_per_second;
        *free = (*free).max(Instant::now()) + takes;
        *free
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: &Way) {
    let mut buffer = [0; PIECE];
    // An error of a connection is its end.
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        timer::until(way.carries(read)).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    // The half that is dropped says that no more comes.
}
