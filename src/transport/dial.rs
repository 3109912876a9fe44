//! Opens a socket to one address.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use crate::endpoint::{Address, Endpoint};
use crate::error::{ConnectError, Error};

/// Silence after which the kernel asks whether the peer is still there, and (on Linux) the time after
/// which unacknowledged data ends the connection. 20 s as in gRPC's A18; without the latter a
/// black-holed connection takes about 15 minutes of retransmissions to die.
const TCP_PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two of the kernel's questions, and how many go unanswered: 40 s in all where there is
/// no user timeout.
const TCP_PROBE: Duration = Duration::from_secs(5);
const TCP_PROBES: u32 = 4;

/// What Linux takes for the times and the count of its probes.
const PROBE_SECONDS: RangeInclusive<u64> = 1..=32_767;
const PROBE_COUNT: RangeInclusive<u32> = 1..=127;
/// The longest user timeout, a day; the kernel counts milliseconds in 32 bits.
const USER_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3_600);

/// What is asked of a TCP socket.
#[derive(Clone, Debug)]
pub(super) struct TcpOptions {
    pub(super) nodelay: bool,
    pub(super) keepalive: Option<Probes>,
    pub(super) user_timeout: Option<Duration>,
    local: Local,
}

/// How the kernel asks a silent peer; what is `None` is left to the system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probes {
    pub(super) time: Duration,
    pub(super) interval: Option<Duration>,
    pub(super) retries: Option<u32>,
}

/// The addresses that connections leave from.
#[derive(Clone, Copy, Debug, Default)]
struct Local {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Probes {
                time: TCP_PATIENCE,
                interval: Some(TCP_PROBE),
                retries: Some(TCP_PROBES),
            }),
            user_timeout: Some(TCP_PATIENCE),
            local: Local::default(),
        }
    }
}

impl TcpOptions {
    pub(super) fn set_keepalive(
        &mut self,
        time: Duration,
        interval: Duration,
        retries: u32,
    ) -> Result<(), Error> {
        for (name, value) in [("time", time), ("interval", interval)] {
            let (least, most) = (*PROBE_SECONDS.start(), *PROBE_SECONDS.end());
            if !(Duration::from_secs(least)..=Duration::from_secs(most)).contains(&value) {
                return Err(Error::config(format!(
                    "tcp keepalive {name} {value:?} is not in {least}s..={most}s"
                )));
            }
        }
        if !PROBE_COUNT.contains(&retries) {
            return Err(Error::config(format!(
                "tcp keepalive retries {retries} is not in {PROBE_COUNT:?}"
            )));
        }
        self.keepalive = Some(Probes {
            time,
            interval: Some(interval),
            retries: Some(retries),
        });
        Ok(())
    }

    pub(super) fn set_user_timeout(&mut self, timeout: Duration) -> Result<(), Error> {
        if !(Duration::from_millis(1)..=USER_TIMEOUT_MAX).contains(&timeout) {
            return Err(Error::config(format!(
                "tcp user timeout {timeout:?} is not in 1ms..=24h"
            )));
        }
        self.user_timeout = Some(timeout);
        Ok(())
    }

    pub(super) fn set_local(&mut self, address: IpAddr) -> Result<(), Error> {
        let one_host = match address {
            IpAddr::V4(v4) => {
                self.local.v4 = Some(v4);
                !v4.is_broadcast()
            }
            IpAddr::V6(v6) => {
                self.local.v6 = Some(v6);
                true
            }
        };
        if !one_host || address.is_unspecified() || address.is_multicast() {
            return Err(Error::config(format!(
                "local address {address} is not the address of one host"
            )));
        }
        Ok(())
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        if let Some(local) = self.local.towards(to)? {
            socket.bind(SocketAddr::new(local, 0))?;
        }
        let stream = socket.connect(to).await?;
        self.tune(&stream);
        Ok(stream)
    }

    /// Failures are ignored: a socket that refuses an option still carries calls, and one whose peer is
    /// gone already (some systems then refuse options) says so at its first read.
    fn tune(&self, stream: &TcpStream) {
        let _ = stream.set_nodelay(self.nodelay);
        let socket = SockRef::from(stream);
        if let Some(probes) = self.keepalive {
            let keepalive = TcpKeepalive::new().with_time(probes.time);
            #[cfg(any(target_os = "linux", target_os = "macos", target_os = "windows"))]
            let keepalive = match probes.interval {
                Some(interval) => keepalive.with_interval(interval),
                None => keepalive,
            };
            #[cfg(any(target_os = "linux", target_os = "macos", target_os = "windows"))]
            let keepalive = match probes.retries {
                Some(retries) => keepalive.with_retries(retries),
                None => keepalive,
            };
            let _ = socket.set_tcp_keepalive(&keepalive);
        }
        #[cfg(target_os = "linux")]
        if self.user_timeout.is_some() {
            let _ = socket.set_tcp_user_timeout(self.user_timeout);
        }
    }
}

impl Local {
    /// The one to leave from on the way to `to`. Where only the other family has one it is an error: the
    /// connection would leave from an address that nobody chose.
    fn towards(self, to: SocketAddr) -> io::Result<Option<IpAddr>> {
        let (own, other) = (self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6));
        let (own, other) = match to {
            SocketAddr::V4(_) => (own, other),
            SocketAddr::V6(_) => (other, own),
        };
        match (own, other) {
            (None, Some(other)) => Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("the local address {other} is of the other family"),
            )),
            (own, _) => Ok(own),
        }
    }
}

/// Makes the byte stream to an address in place of [`dial`].
#[derive(Clone)]
pub(super) struct Dialler(Arc<Dial>);

type Dial = dyn Fn(&Endpoint, &Address) -> Dialling + Send + Sync;
type Dialling = BoxFuture<'static, io::Result<Box<dyn Duplex>>>;

/// A byte stream of any make.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Dialler {
    pub(super) fn new<F, D, S>(dial: F) -> Self
    where
        F: Fn(&Endpoint, &Address) -> D + Send + Sync + 'static,
        D: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self(Arc::new(move |endpoint, address| {
            let dialling = dial(endpoint, address);
            Box::pin(async move { Ok(Box::new(dialling.await?) as Box<dyn Duplex>) })
        }))
    }

    pub(super) fn dial(
        &self,
        endpoint: &Endpoint,
        address: &Address,
    ) -> impl Future<Output = Result<Socket, ConnectError>> + Send + 'static {
        let dialling = (self.0)(endpoint, address);
        let address = address.clone();
        async move {
            match dialling.await {
                Ok(stream) => Ok(Socket::Other(stream)),
                Err(error) => Err(failed(&address, error)),
            }
        }
    }
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialler")
    }
}

/// A connected socket.
pub(super) enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
    /// Of a dialler of the user's own.
    Other(Box<dyn Duplex>),
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(stream) => stream.fmt(f),
            #[cfg(unix)]
            Self::Unix(stream) => stream.fmt(f),
            Self::Other(_) => f.write_str("Socket"),
        }
    }
}

/// Connects to `address`; errors name it and carry the system's text.
pub(super) async fn dial(address: &Address, tcp: &TcpOptions) -> Result<Socket, ConnectError> {
    let connected = match address {
        Address::Tcp(to) => tcp.connect(*to).await.map(Socket::Tcp),
        #[cfg(unix)]
        Address::Unix(path) => tokio::net::UnixStream::connect(path)
            .await
            .map(Socket::Unix),
        #[cfg(not(unix))]
        Address::Unix(_) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this system has no unix sockets",
        )),
    };
    connected.map_err(|error| failed(address, error))
}

fn failed(address: &Address, error: io::Error) -> ConnectError {
    ConnectError::with_source(format!("{address}: connect"), error)
}

/// Calls `$body` with the socket inside, whichever it is.
macro_rules! inner {
    ($socket:expr, $stream:ident => $body:expr) => {
        match $socket {
            Socket::Tcp($stream) => $body,
            #[cfg(unix)]
            Socket::Unix($stream) => $body,
            Socket::Other($stream) => $body,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        inner!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        inner!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        inner!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        inner!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// A socket dialled with these options to a listener on `host`, and the listener's end of it.
    async fn pair(tcp: &TcpOptions, host: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        let Socket::Tcp(ours) = dial(&address, tcp).await.unwrap() else {
            panic!("not tcp")
        };
        (ours, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_tcp_socket_is_tuned() {
        let (stream, _peer) = pair(&TcpOptions::default(), "127.0.0.1").await;
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(TCP_PATIENCE));
        assert_eq!(socket.tcp_keepalive_time().unwrap(), TCP_PATIENCE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), TCP_PROBE);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), TCP_PROBES);
    }

    #[tokio::test]
    async fn a_tcp_socket_is_tuned_as_asked() {
        let mut tcp = TcpOptions {
            nodelay: false,
            ..TcpOptions::default()
        };
        tcp.set_keepalive(7 * S, 3 * S, 9).unwrap();
        tcp.set_user_timeout(5 * S).unwrap();
        let (stream, _peer) = pair(&tcp, "127.0.0.1").await;
        let socket = SockRef::from(&stream);
        assert!(!stream.nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(5 * S));
        assert_eq!(socket.tcp_keepalive_time().unwrap(), 7 * S);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), 3 * S);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);

        (tcp.keepalive, tcp.user_timeout) = (None, None);
        let (stream, _peer) = pair(&tcp, "127.0.0.1").await;
        let socket = SockRef::from(&stream);
        assert!(!socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }

    #[tokio::test]
    async fn a_connection_leaves_from_the_local_address_or_not_at_all() {
        let mut tcp = TcpOptions::default();
        tcp.set_local("127.0.0.9".parse().unwrap()).unwrap();
        let (_ours, peer) = pair(&tcp, "127.0.0.1").await;
        assert_eq!(peer.peer_addr().unwrap().ip().to_string(), "127.0.0.9");

        let other: Address = "[::1]:9".parse().unwrap();
        let error = dial(&other, &tcp).await.err().unwrap().to_string();
        assert_eq!(
            error,
            "[::1]:9: connect: the local address 127.0.0.9 is of the other family"
        );
        // One for each family, where the machine has both.
        tcp.set_local("::1".parse().unwrap()).unwrap();
        let error = dial(&other, &tcp).await.err().unwrap().to_string();
        assert!(!error.contains("other family"), "{error}");

        // An address that this machine does not have (TEST-NET-1).
        tcp.set_local("192.0.2.1".parse().unwrap()).unwrap();
        let address: Address = "127.0.0.1:9".parse().unwrap();
        let error = dial(&address, &tcp).await.err().unwrap().to_string();
        assert!(error.contains("Cannot assign requested address"), "{error}");
    }

    #[tokio::test]
    async fn an_error_names_address_and_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        drop(listener);
        let tcp = TcpOptions::default();
        let error = dial(&address, &tcp).await.err().unwrap().to_string();
        assert!(
            error.starts_with(&format!("{address}: connect: Connection refused")),
            "{error}"
        );
        let missing: Address = "unix:/nowhere/at/all".parse().unwrap();
        let error = dial(&missing, &tcp).await.err().unwrap().to_string();
        assert!(
            error.starts_with("unix:/nowhere/at/all: connect: No such file"),
            "{error}"
        );
    }
}
