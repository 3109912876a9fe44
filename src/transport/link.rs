//! What the handle of a connection, its task and its calls know in common.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use futures_util::task::AtomicWaker;
use http::HeaderValue;
use http::uri::{Authority, Scheme};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::meter::Meter;
use super::wear::ids_run_out;
use super::{Condition, Control, Slots, Traffic};
use crate::endpoint::Address;
use crate::error::ConnectError;

/// One per connection, shared by everything that belongs to it.
pub(super) struct Link {
    pub(super) address: Address,
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    pub(super) agent: HeaderValue,
    pub(super) runtime: Handle,
    pub(super) slots: Arc<Slots>,
    pub(super) meter: Meter,
    condition: watch::Sender<Condition>,
    // Why the connection ended. The first to know writes it, always before h2 fails the streams, since
    // h2 itself only says "broken pipe".
    lost: OnceLock<ConnectError>,
    order: AtomicU8,
    waker: AtomicWaker,
    opened: AtomicU32,
    cancelled: AtomicU32,
    pings: AtomicU8,
}

/// What the task of a connection is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Carry on.
    Serve,
    /// No more calls will come: close after the last stream.
    Finish,
    /// Close now.
    Abort,
}

impl Link {
    pub(super) fn new(
        address: Address,
        scheme: Scheme,
        authority: Authority,
        agent: HeaderValue,
        runtime: Handle,
    ) -> Self {
        Self {
            address,
            scheme,
            authority,
            agent,
            runtime,
            slots: Slots::new(0),
            meter: Meter::default(),
            condition: watch::Sender::new(Condition::Open),
            lost: OnceLock::new(),
            order: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            opened: AtomicU32::new(0),
            cancelled: AtomicU32::new(0),
            pings: AtomicU8::new(0),
        }
    }

    /// Tells the task what to do. An order only ever gets stricter.
    pub(super) fn tell(&self, order: Order) {
        // Release, with the Acquire in `order`: the reason of an abort is seen with the order.
        self.order.fetch_max(order as u8, Ordering::Release);
        self.waker.wake();
    }

    /// The order in force; `cx` is woken by a new one.
    pub(super) fn order(&self, cx: &std::task::Context<'_>) -> Order {
        self.waker.register(cx.waker());
        // Acquire: see `tell`.
        match self.order.load(Ordering::Acquire) {
            0 => Order::Serve,
            1 => Order::Finish,
            _ => Order::Abort,
        }
    }

    /// Notes why the connection ended; the first reason stays.
    pub(super) fn lose(&self, reason: impl FnOnce() -> ConnectError) {
        self.lost.get_or_init(reason);
    }

    /// Why it ended, if it did.
    pub(super) fn lost(&self) -> Option<&ConnectError> {
        self.lost.get()
    }

    /// An error that names the address first.
    pub(super) fn error(&self, what: impl std::fmt::Display) -> ConnectError {
        ConnectError::new(format!("{}: {what}", self.address))
    }

    /// Moves down the list of conditions, never up. One that takes no calls leaves no slots, before
    /// anybody hears of it.
    pub(super) fn advance(&self, next: Condition) {
        let rank = |condition: &Condition| match condition {
            Condition::Open => 0,
            Condition::Worn(_) => 1,
            Condition::Draining(_) => 2,
            Condition::Closed(_) => 3,
        };
        self.condition.send_if_modified(|now| {
            if rank(&next) <= rank(now) {
                return false;
            }
            if rank(&next) >= 2 {
                self.slots.close();
            }
            *now = next;
            true
        });
    }

    pub(super) fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// A stream was opened.
    pub(super) fn count_opened(&self) {
        // Relaxed, here and below: counts that guard no data; the task reads them when h2 wakes it,
        // and a late one is seen next time.
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.heard();
    }

    /// A stream was given up by us.
    pub(super) fn count_cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    /// Streams opened and streams given up so far.
    pub(super) fn counts(&self) -> (u32, u32) {
        let opened = self.opened.load(Ordering::Relaxed);
        (opened, self.cancelled.load(Ordering::Relaxed))
    }

    /// Whether h2 may refuse a stream for want of ids.
    pub(super) fn is_out_of_ids(&self) -> bool {
        ids_run_out(self.counts().0)
    }

    /// Something happened on a stream that lets pings be sent again.
    pub(super) fn heard(&self) {
        // Read first: with no ping sent, which is nearly always, the line stays shared between cores.
        if self.pings.load(Ordering::Relaxed) != 0 {
            self.pings.store(0, Ordering::Relaxed);
        }
    }

    /// Pings sent since something was [`heard`](Self::heard).
    pub(super) fn pings(&self) -> u8 {
        self.pings.load(Ordering::Relaxed)
    }

    /// A ping was sent.
    pub(super) fn count_ping(&self) {
        self.pings.fetch_add(1, Ordering::Relaxed);
    }
}

impl Control for Link {
    fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    fn abort(&self, reason: &str) {
        self.lose(|| self.error(reason));
        self.slots.close();
        self.tell(Order::Abort);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::transport) fn link() -> Link {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let handle = runtime.unwrap().handle().clone();
        let address = "127.0.0.1:1".parse().unwrap();
        let agent = HeaderValue::from_static("a");
        Link::new(address, Scheme::HTTP, "a".parse().unwrap(), agent, handle)
    }

    #[test]
    fn a_condition_moves_down_only_and_takes_the_slots_along() {
        let link = link();
        link.slots.set_limit(7);
        link.advance(Condition::Worn("ids"));
        assert_eq!(link.slots.limit(), 7, "a worn one still serves");
        link.advance(Condition::Draining(link.error("goaway")));
        assert_eq!(link.slots.limit(), 0);
        link.advance(Condition::Worn("late"));
        assert!(matches!(*link.condition().borrow(), Condition::Draining(_)));
        link.advance(Condition::Closed(link.error("gone")));
        let text = format!("{:?}", *link.condition().borrow());
        assert!(text.contains("127.0.0.1:1: gone"), "{text}");
    }

    #[test]
    fn the_first_reason_and_the_strictest_order_stay() {
        let link = link();
        link.lose(|| link.error("first"));
        link.lose(|| link.error("second"));
        assert_eq!(link.lost().unwrap().to_string(), "127.0.0.1:1: first");
        let cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert_eq!(link.order(&cx), Order::Serve);
        link.tell(Order::Abort);
        link.tell(Order::Finish);
        assert_eq!(link.order(&cx), Order::Abort);
    }
}
