//! A secured stream as HTTP/2 sees it: where a write has failed, all that comes out of it is the reason.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;

use super::explain;
use crate::transport::dial::Socket;
use crate::transport::meter::{self, Counted};

/// How long and how far to read for the reason. The server has closed when a write fails, and the end of what
/// it sent is on this machine already: this only bounds streams of another make.
const PATIENCE: Duration = Duration::from_secs(1);
const FAR: usize = 64 << 10;

type Session = TlsStream<Counted<Socket>>;

/// The bytes of one connection, secured.
#[derive(Debug)]
pub(in crate::transport) struct Secured {
    session: Session,
    /// There since a write failed.
    end: Option<End>,
}

#[derive(Debug)]
enum End {
    /// A server that refuses our certificate says why after the handshake, and closes: our next write fails,
    /// while what the server said is still to be read.
    Asked {
        error: io::Error,
        left: usize,
        patience: Pin<Box<Sleep>>,
    },
    /// Nothing is read any more. What the server sent before may be cut short anywhere.
    Known(io::Error),
}

impl Secured {
    pub(in crate::transport) fn new(session: Session) -> Self {
        Self { session, end: None }
    }

    fn poll_writing<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Session>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Self { session, end } = self;
        let end = match end {
            Some(end) => end,
            None => match write(Pin::new(session), cx) {
                Poll::Ready(Err(error)) => end.insert(End::of(error)),
                written => return written,
            },
        };
        end.poll(session, cx).map(Err)
    }
}

impl End {
    /// After a write that failed like this.
    fn of(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Asked {
                error,
                left: FAR,
                patience: Box::pin(tokio::time::sleep(PATIENCE)),
            },
            _ => Self::Known(error),
        }
    }

    /// The server's own reason, else the error of the write. Reading and writing ask alike, since either may be
    /// all that h2 does.
    fn poll(&mut self, session: &mut Session, cx: &mut Context<'_>) -> Poll<io::Error> {
        let said = match self {
            Self::Known(_) => None,
            Self::Asked { left, patience, .. } => ready!(poll_said(session, left, patience, cx)),
        };
        let (Self::Known(error) | Self::Asked { error, .. }) = self;
        let error = said.unwrap_or_else(|| meter::copy(error));
        let told = meter::copy(&error);
        *self = Self::Known(error);
        Poll::Ready(told)
    }
}

/// Reads on to a reason in TLS; `None` where there is no such.
fn poll_said(
    session: &mut Session,
    left: &mut usize,
    patience: &mut Pin<Box<Sleep>>,
    cx: &mut Context<'_>,
) -> Poll<Option<io::Error>> {
    let mut unread = [0; 4_096];
    while *left > 0 {
        let mut buf = ReadBuf::new(&mut unread);
        match Pin::new(&mut *session).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                *left = left.saturating_sub(buf.filled().len());
            }
            Poll::Ready(Err(said)) if said.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => {
                return Poll::Ready(Some(explain(said)));
            }
            Poll::Ready(_) => break,
            // The runtime may not have seen the end of the socket yet.
            Poll::Pending => return patience.as_mut().poll(cx).map(|()| None),
        }
    }
    Poll::Ready(None)
}

impl AsyncRead for Secured {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { session, end } = self.get_mut();
        match end {
            // Alerts may come long after the handshake.
            None => Pin::new(session).poll_read(cx, buf).map_err(explain),
            Some(end) => end.poll(session, cx).map(Err),
        }
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_writing(cx, |session, cx| session.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_writing(cx, |session, cx| session.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.session.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut()
            .poll_writing(cx, |session, cx| session.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().session).poll_shutdown(cx)
    }
}
