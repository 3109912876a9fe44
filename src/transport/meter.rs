//! Counts the bytes of a socket, and notes how it ended before h2 can turn that into "broken pipe".

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Traffic;
use super::greeting::foreign;
use super::link::Link;
use crate::error::ConnectError;

/// Bytes of one connection so far.
#[derive(Debug, Default)]
pub(super) struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter {
    // Relaxed throughout: only the connection's task writes them. A call that compares two readings of
    // `sent` learns of its failure through h2's mutex, which orders the write before that.

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.sent(),
            received: self.received(),
        }
    }
}

/// A socket with its bytes counted: below TLS, where there is any. What TLS took is not written yet, and of what
/// it failed to write a part may have gone out.
pub(super) struct Counted<T> {
    io: T,
    link: Arc<Link>,
}

impl<T> Counted<T> {
    pub(super) fn new(io: T, link: Arc<Link>) -> Self {
        Self { io, link }
    }

    fn wrote(&self, bytes: usize) {
        let sent = &self.link.meter.sent;
        sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl<T: fmt::Debug> fmt::Debug for Counted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.io.fmt(f)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        let bytes = buf.filled().len() - before;
        let received = &this.link.meter.received;
        received.fetch_add(bytes as u64, Ordering::Relaxed);
        Poll::Ready(result)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.io).poll_write(cx, buf));
        Poll::Ready(result.inspect(|bytes| this.wrote(*bytes)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs));
        Poll::Ready(result.inspect(|bytes| this.wrote(*bytes)))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// The same error once more: its number, or its kind and text, are all there is to keep.
pub(super) fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// What HTTP/2 is spoken on, watched for its end.
pub(super) struct Watched<T> {
    io: T,
    link: Arc<Link>,
    /// Nothing was read yet, and the first of it is to be HTTP/2.
    greeting: bool,
}

impl<T> Watched<T> {
    /// A stream of HTTP/2: whatever else the server speaks ends it.
    pub(super) fn new(io: T, link: Arc<Link>) -> Self {
        Self {
            io,
            link,
            greeting: true,
        }
    }

    /// A stream on which somebody else speaks TLS.
    #[cfg(feature = "tonic-transport")]
    pub(super) fn opaque(io: T, link: Arc<Link>) -> Self {
        Self {
            io,
            link,
            greeting: false,
        }
    }

    /// Nothing more is written once the end was seen: what h2 still holds belongs to calls that were told by then that
    /// not a byte of theirs has left, and may have gone elsewhere.
    fn open(&self) -> io::Result<()> {
        match self.link.lost() {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn failed(&self, doing: &str, error: &io::Error) {
        self.link.lose(|| {
            let message = format!("{}: {doing}", self.link.address);
            // The error itself goes to h2.
            ConnectError::with_source(message, copy(error))
        });
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        let result = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        match &result {
            Ok(()) => {
                let bytes = &buf.filled()[before..];
                if bytes.is_empty() && room {
                    this.link
                        .lose(|| this.link.error("the server closed the connection"));
                }
                if std::mem::take(&mut this.greeting)
                    && let Some(what) = foreign(bytes)
                {
                    // h2 would wait for the rest of a frame, and at best call it too large.
                    this.link.lose(|| this.link.error(&what));
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
                }
            }
            Err(error) => this.failed("read", error),
        }
        Poll::Ready(result)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.open()?;
        let result = ready!(Pin::new(&mut this.io).poll_write(cx, buf));
        Poll::Ready(result.inspect_err(|error| this.failed("write", error)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.open()?;
        let result = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs));
        Poll::Ready(result.inspect_err(|error| this.failed("write", error)))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.open()?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
