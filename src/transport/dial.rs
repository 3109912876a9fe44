//! Opens a socket to one address.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::endpoint::Address;
use crate::error::ConnectError;

/// Silence after which the kernel asks whether the peer is still there, and (on Linux) the time after
/// which unacknowledged data ends the connection. 20 s as in gRPC's A18; without the latter a
/// black-holed connection takes about 15 minutes of retransmissions to die.
const TCP_PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two of the kernel's questions.
const TCP_PROBE: Duration = Duration::from_secs(5);

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

/// Connects to `address`; errors name it and carry the system's text.
pub(super) async fn dial(address: &Address) -> Result<Socket, ConnectError> {
    let connected = match address {
        Address::Tcp(to) => TcpStream::connect(to).await.map(|stream| {
            tune(&stream);
            Socket::Tcp(stream)
        }),
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
    connected.map_err(|error| ConnectError::with_source(format!("{address}: connect"), error))
}

/// Failures are ignored: a socket that refuses an option still carries calls, and one whose peer is
/// gone already (some systems then refuse options) says so at its first read.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(TCP_PATIENCE);
    #[cfg(any(target_os = "linux", target_os = "macos", target_os = "windows"))]
    let keepalive = keepalive.with_interval(TCP_PROBE);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(TCP_PATIENCE));
}

/// Calls `$body` with the socket inside, whichever it is.
macro_rules! inner {
    ($socket:expr, $stream:ident => $body:expr) => {
        match $socket {
            Socket::Tcp($stream) => $body,
            #[cfg(unix)]
            Socket::Unix($stream) => $body,
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
    use super::*;

    #[tokio::test]
    async fn a_tcp_socket_is_tuned() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        let Socket::Tcp(stream) = dial(&address).await.unwrap() else {
            panic!("not tcp")
        };
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(TCP_PATIENCE));
        assert_eq!(socket.tcp_keepalive_time().unwrap(), TCP_PATIENCE);
    }

    #[tokio::test]
    async fn an_error_names_address_and_reason() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        drop(listener);
        let error = dial(&address).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{address}: connect: Connection refused")),
            "{error}"
        );
        let missing: Address = "unix:/nowhere/at/all".parse().unwrap();
        let error = dial(&missing).await.unwrap_err().to_string();
        assert!(
            error.starts_with("unix:/nowhere/at/all: connect: No such file"),
            "{error}"
        );
    }
}
