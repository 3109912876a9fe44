//! The task of a connection: it moves h2 along, and says what has become of the connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use super::Condition;
use super::calm::{Calm, is_complaint};
use super::keepalive::{Keepalive, Signs, Step};
use super::link::{Link, Order};
use super::meter::Watched;
use super::stream::Stream;
use super::wear::Wear;
use crate::error::ConnectError;

/// The stream limit before any SETTINGS came. The first SETTINGS always overwrites it, with the number
/// announced or with `usize::MAX`: any other value proves that the server spoke HTTP/2.
pub(super) const NO_SETTINGS: usize = usize::MAX - 1;

type H2 = h2::client::Connection<Watched<Stream>, Bytes>;

/// Polls one h2 connection from its first byte to its last.
pub(super) struct Driver {
    h2: H2,
    // h2 wakes nobody on GOAWAY; a handle of our own, asked after each poll, sees it in the same poll.
    // It also keeps h2 from closing, so it goes when the connection's owner has gone.
    probe: Option<SendRequest<Bytes>>,
    link: Arc<Link>,
    pings: Option<PingPong>,
    keepalive: Keepalive,
    calm: Arc<Calm>,
    timer: Option<Pin<Box<Sleep>>>,
    // Runs once nothing is left to be done but to close.
    closing: Option<Pin<Box<Sleep>>>,
    draining: Option<ConnectError>,
    wear: Wear,
    received: u64,
    read: Instant,
}

impl Driver {
    pub(super) fn new(
        mut h2: H2,
        probe: SendRequest<Bytes>,
        link: Arc<Link>,
        keepalive: Keepalive,
        calm: Arc<Calm>,
        age: Option<Duration>,
    ) -> Self {
        let now = Instant::now();
        Self {
            pings: h2.ping_pong(),
            h2,
            probe: Some(probe),
            link,
            keepalive,
            calm,
            timer: None,
            closing: None,
            draining: None,
            wear: Wear::new(now, age),
            received: 0,
            read: now,
        }
    }

    /// Resolves when the server's SETTINGS were seen and calls can be sent.
    pub(super) fn poll_settings(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        let early = |link: &Link, cause: String| {
            Err(link.error(format_args!("no HTTP/2 settings: {cause}")))
        };
        if let Poll::Ready(result) = Pin::new(&mut self.h2).poll(cx) {
            let reason = self.ending(result).to_string();
            let prefix = format!("{}: ", self.link.address);
            let cause = reason.strip_prefix(&prefix).unwrap_or(&reason);
            return Poll::Ready(early(&self.link, cause.to_owned()));
        }
        if self.h2.max_concurrent_send_streams() == NO_SETTINGS {
            return Poll::Pending;
        }
        if let Some(refused) = self.probe(cx) {
            return Poll::Ready(Err(self.refusal(&refused)));
        }
        self.publish_limit();
        Poll::Ready(Ok(()))
    }

    fn publish_limit(&self) {
        let limit = self.h2.max_concurrent_send_streams();
        self.link
            .slots
            .set_limit(u32::try_from(limit).unwrap_or(u32::MAX));
    }

    /// Why new streams are refused here, if they are.
    fn probe(&mut self, cx: &mut Context<'_>) -> Option<h2::Error> {
        match self.probe.as_mut()?.poll_ready(cx) {
            Poll::Ready(Err(error)) => Some(error),
            _ => None,
        }
    }

    /// The same in words. New connections ping less often where that is the reason.
    fn refusal(&self, error: &h2::Error) -> ConnectError {
        if is_complaint(error) {
            let address = &self.link.address;
            let used = self.keepalive.interval();
            let interval = self.calm.complained(address, used);
            tracing::warn!(
                target: "equipoise", %address, ?used, ?interval,
                "the server says too_many_pings; new connections to it use the longer keepalive interval"
            );
        }
        match error.is_go_away() && error.is_remote() {
            true => self
                .link
                .error(format_args!("the server sent GOAWAY: {error}")),
            false => self.link.error(error),
        }
    }

    /// Why the connection ended, from what the server, the socket and h2 said.
    fn ending(&mut self, result: Result<(), h2::Error>) -> ConnectError {
        if let Some(draining) = self.draining.take() {
            return draining;
        }
        // Without open streams a GOAWAY ends h2 in the poll that reads it.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let goaway = self
            .probe(&mut cx)
            .filter(|error| error.is_go_away() && error.is_remote());
        match (goaway, self.link.lost(), result) {
            (Some(goaway), _, _) => self.refusal(&goaway),
            (None, Some(lost), _) => lost.clone(),
            (None, None, Err(error)) => self.link.error(error),
            (None, None, Ok(())) => self.link.error("closed"),
        }
    }

    /// After each poll of h2: what the server newly allows or refuses.
    fn look(&mut self, cx: &mut Context<'_>) {
        if self.draining.is_some() || self.link.lost().is_some() {
            return;
        }
        if let Some(refused) = self.probe(cx) {
            let draining = self.refusal(&refused);
            self.link.advance(Condition::Draining(draining.clone()));
            self.draining = Some(draining);
            return;
        }
        self.publish_limit();
        let (opened, cancelled) = self.link.counts();
        if let Some(what) = self.wear.look(opened, cancelled, Instant::now) {
            self.link.advance(Condition::Worn(what));
        }
        if let Poll::Ready(what) = self.wear.poll_age(cx) {
            self.link.advance(Condition::Worn(what));
        }
    }

    /// A peer that takes nothing more could hold a connection open that nobody uses any longer.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.probe.is_some() || self.link.slots.open() > 0 {
            return Poll::Pending;
        }
        let patience = self.keepalive.timeout();
        self.closing
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)))
            .as_mut()
            .poll(cx)
    }

    /// The connection is over: whoever asks later is told why.
    fn finish(&mut self, reason: ConnectError) {
        self.link.lose(|| reason.clone());
        self.link.advance(Condition::Closed(reason));
    }

    /// Sends, awaits and judges pings; `Ready` is the end.
    fn poll_keepalive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.keepalive.is_asked()
            && let Some(pings) = &mut self.pings
            && pings.poll_pong(cx).is_ready()
        {
            self.keepalive.answered(Instant::now());
            self.timer = None;
        }
        loop {
            let open = self.link.slots.open() > 0;
            match &mut self.timer {
                Some(timer) => match timer.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => self.timer = None,
                },
                None if self.keepalive.is_off() && !open && !self.keepalive.is_idle() => {
                    return Poll::Pending;
                }
                None => {}
            }
            let now = Instant::now();
            let step = self.keepalive.step(Signs {
                now,
                open,
                read: self.read,
                pings: self.link.pings(),
            });
            match step {
                Step::Rest => return Poll::Pending,
                Step::At(at) => self.timer = Some(Box::pin(tokio::time::sleep_until(at))),
                Step::Ping => {
                    let sent = self.pings.as_mut().map(|p| p.send_ping(Ping::opaque()));
                    if !matches!(sent, Some(Ok(()))) {
                        // Only a connection that is ending refuses; it says so itself.
                        return Poll::Pending;
                    }
                    self.link.count_ping();
                    self.keepalive.asked(now);
                    // The answer's waker, before it can come.
                    if let Some(pings) = &mut self.pings {
                        let _ = pings.poll_pong(cx);
                    }
                }
                Step::Dead => return Poll::Ready(()),
            }
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        match this.link.order(cx) {
            Order::Serve => {}
            Order::Finish => this.probe = None,
            Order::Abort => {
                let reason = this.link.lost().cloned();
                this.finish(reason.unwrap_or_else(|| this.link.error("aborted")));
                return Poll::Ready(());
            }
        }
        if let Poll::Ready(result) = Pin::new(&mut this.h2).poll(cx) {
            let reason = this.ending(result);
            this.finish(reason);
            return Poll::Ready(());
        }
        let received = this.link.meter.received();
        if received != this.received {
            this.received = received;
            this.read = Instant::now();
        }
        this.look(cx);
        if this.poll_keepalive(cx).is_ready() {
            let silence = this.keepalive.timeout();
            let reason = this
                .link
                .error(format_args!("keepalive: no answer in {silence:?}"));
            this.finish(reason);
            return Poll::Ready(());
        }
        if this.poll_closing(cx).is_ready() {
            this.finish(this.link.error("not closed in time"));
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // After an end of its own this changes nothing; otherwise the runtime is going.
        let reason = self
            .link
            .error("the runtime of the connection was shut down");
        self.finish(self.link.lost().cloned().unwrap_or(reason));
    }
}
