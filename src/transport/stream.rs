//! What h2 reads and writes: the socket, or TLS on it.

#[cfg(feature = "tls")]
use std::io::ErrorKind;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::dial::Socket;
use super::meter::Counted;
#[cfg(feature = "tls")]
use super::rustls;

/// The bytes of one connection, in plain text or secured.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Counted<Socket>),
    // Boxed: the state of a TLS session is many times a socket's, and moves with it.
    #[cfg(feature = "tls")]
    Tls(Box<Session>),
}

#[cfg(feature = "tls")]
type Session = tokio_rustls::client::TlsStream<Counted<Socket>>;

/// Polls what is inside for writing, whichever it is.
macro_rules! written {
    ($self:expr, $cx:ident, $stream:ident => $poll:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => $poll,
            #[cfg(feature = "tls")]
            Stream::Tls($stream) => {
                let polled = $poll;
                match polled {
                    Poll::Ready(Err(error)) => last_words($stream, $cx, error).map(Err),
                    other => other,
                }
            }
        }
    };
}

/// A server that refuses our certificate says why after the handshake, and closes: our next write fails,
/// while what the server said is still to be read.
#[cfg(feature = "tls")]
fn last_words(session: &mut Session, cx: &mut Context<'_>, error: io::Error) -> Poll<io::Error> {
    if !matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    ) {
        return Poll::Ready(error);
    }
    let mut unread = [0; 4_096];
    // What else it sent is of no use on a connection that cannot be written; bounded all the same.
    for _ in 0..16 {
        let mut buf = ReadBuf::new(&mut unread);
        match Pin::new(&mut *session).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
            Poll::Ready(Err(said)) if said.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => {
                return Poll::Ready(super::tls::explain(said));
            }
            Poll::Ready(_) => break,
            // The runtime has not seen the end of the socket yet. It is about to, which wakes the reader,
            // who finds the rest.
            Poll::Pending => return Poll::Pending,
        }
    }
    Poll::Ready(error)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            // Alerts may come long after the handshake.
            #[cfg(feature = "tls")]
            Self::Tls(session) => Pin::new(session)
                .poll_read(cx, buf)
                .map_err(super::tls::explain),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        written!(self, cx, stream => Pin::new(&mut *stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        written!(self, cx, stream => Pin::new(&mut *stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        written!(self, cx, stream => Pin::new(&mut *stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            #[cfg(feature = "tls")]
            Self::Tls(session) => Pin::new(session).poll_shutdown(cx),
        }
    }
}
