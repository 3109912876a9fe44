//! The one socket of a tonic channel: handed out once, watched, and cut when asked.

use std::future::{Future, Ready, ready};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;
use http::uri::{Scheme, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::super::Condition;
use super::super::dial::Socket;
use super::super::link::{Link, Order};
use super::super::meter::{Counted, Watched};
use super::errors::Spent;
use super::peek::{News, Peek};

/// Calls at a time where the server's limit cannot be seen. RFC 9113 §6.5.2 advises servers to allow no fewer.
const UNSEEN_LIMIT: u32 = 100;

/// How long hyper may take to close once there are no more calls: it first writes what it still has. As long as
/// `Http2Options::with_keepalive` gives a silent server.
const CLOSING: Duration = Duration::from_secs(20);

/// A socket that tells what becomes of it: counts bytes, notes why it ended, sees what the server says of the
/// connection, and fails when its owner has told the connection to end, or has let go of it and it does not.
pub(super) struct Guarded {
    io: Watched<Counted<Socket>>,
    link: Arc<Link>,
    peek: Peek,
    /// The most calls at a time that the user wants.
    cap: Option<u32>,
    /// Told when the server was first heard.
    heard: Option<oneshot::Sender<()>>,
    /// Runs once the owner has gone.
    closing: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    /// Also gives what resolves when the server's SETTINGS were received, or are known to be out of sight.
    pub(super) fn new(
        socket: Socket,
        link: Arc<Link>,
        cap: Option<u32>,
    ) -> (Self, oneshot::Receiver<()>) {
        let (heard, hearing) = oneshot::channel();
        let socket = Counted::new(socket, link.clone());
        let guarded = Self {
            io: match link.scheme == Scheme::HTTPS {
                true => Watched::opaque(socket, link.clone()),
                false => Watched::new(socket, link.clone()),
            },
            link,
            peek: Peek::default(),
            cap,
            heard: Some(heard),
            closing: None,
        };
        (guarded, hearing)
    }

    /// Fails once the connection is to end. Asked before the socket is, so that the waker is in place.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.link.order(cx) {
            Order::Serve => Ok(()),
            Order::Finish => self.check_closing(cx),
            Order::Abort => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the connection was told to end",
            )),
        }
    }

    /// A peer that takes nothing more could hold a connection open that nobody uses any longer.
    fn check_closing(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let new = || Box::pin(tokio::time::sleep(CLOSING));
        let timer = self.closing.get_or_insert_with(new);
        if self.link.slots.open() > 0 {
            // It goes on running: the last slot may come back without a poll of ours.
            timer.as_mut().reset(Instant::now() + CLOSING);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        self.link.lose(|| self.link.error("not closed in time"));
        Err(io::ErrorKind::TimedOut.into())
    }

    /// What was read, by its first and its last byte.
    fn look(&mut self, bytes: &[u8]) {
        let Self {
            link,
            peek,
            cap,
            heard,
            ..
        } = self;
        peek.read(bytes, |news| match news {
            News::Encrypted => {
                link.slots.set_limit(cap.unwrap_or(UNSEEN_LIMIT));
                hear(heard);
            }
            News::Settings { streams } => {
                // The first SETTINGS without a limit mean that there is none; later ones, that it stays.
                if streams.is_some() || heard.is_some() {
                    let limit = streams.unwrap_or(u32::MAX);
                    link.slots.set_limit(cap.unwrap_or(u32::MAX).min(limit));
                }
                hear(heard);
            }
            News::GoAway { code } => {
                let reason = Reason::from(code);
                link.advance(Condition::Draining(
                    link.error(format_args!("the server sent GOAWAY: {reason}")),
                ));
                hear(heard);
            }
        });
    }

    /// Nothing more will come.
    fn ended(&self) {
        if let Some(lost) = self.link.lost() {
            self.link.advance(Condition::Draining(lost.clone()));
        }
    }
}

fn hear(heard: &mut Option<oneshot::Sender<()>>) {
    if let Some(heard) = heard.take() {
        // Nobody may be waiting any longer.
        let _ = heard.send(());
    }
}

/// hyper has let go of the connection: there are no more calls on it.
impl Drop for Guarded {
    fn drop(&mut self) {
        self.link.lose(|| self.link.error("closed"));
        if let Some(lost) = self.link.lost() {
            self.link.advance(Condition::Closed(lost.clone()));
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        match buf.filled().get(before..) {
            Some(bytes) if result.is_ok() && !bytes.is_empty() => this.look(bytes),
            _ => this.ended(),
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// Gives tonic the one socket, and never another: connecting anew is the balancer's affair.
pub(super) struct Once(Option<TokioIo<Guarded>>);

impl Once {
    pub(super) fn new(io: Guarded) -> Self {
        Self(Some(TokioIo::new(io)))
    }
}

impl Service<Uri> for Once {
    type Response = TokioIo<Guarded>;
    type Error = Spent;
    type Future = Ready<Result<TokioIo<Guarded>, Spent>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Spent>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or(Spent))
    }
}
