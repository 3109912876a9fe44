//! What the end of a call can set in motion: calls that wait for room, and the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::mpsc;

use super::shared::Command;
use super::waiters::Waiters;
use crate::endpoint::EndpointId;
use crate::load::Notice;
use crate::retry::Throttle;

/// Whom the seats of a channel tell of what happens on them.
pub(super) struct Bell {
    pub(super) waiters: Arc<Waiters>,
    pub(super) throttle: Option<Arc<Throttle>>,
    // Weak: a call under way must not keep the driver of a channel that was dropped from ending.
    commands: mpsc::WeakUnboundedSender<Command>,
}

impl Bell {
    pub(super) fn new(
        waiters: Arc<Waiters>,
        throttle: Option<Arc<Throttle>>,
        commands: mpsc::WeakUnboundedSender<Command>,
    ) -> Arc<Self> {
        Arc::new(Self {
            waiters,
            throttle,
            commands,
        })
    }

    /// The driver should hear what was learnt of this endpoint.
    pub(super) fn notice(&self, id: EndpointId, notice: Notice) {
        self.tell(Command::Notice(id, notice));
    }

    /// The driver should hear that all connections of this endpoint are full.
    pub(super) fn crowded(&self, id: EndpointId) {
        self.tell(Command::Crowded(id));
    }

    #[cold]
    fn tell(&self, command: Command) {
        if let Some(commands) = self.commands.upgrade() {
            // No driver: nobody is to be ejected or dialled any more.
            let _ = commands.send(command);
        }
    }
}

/// The most calls that a channel may have in flight.
#[derive(Debug)]
pub(super) struct Breaker {
    limit: u32,
    in_flight: AtomicU32,
}

impl Breaker {
    pub(super) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            limit,
            in_flight: AtomicU32::new(0),
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// For how many more calls there is room.
    pub(super) fn room(&self) -> usize {
        self.limit
            .saturating_sub(self.in_flight.load(Ordering::Relaxed)) as usize
    }

    /// Room for one call; comes back when dropped.
    pub(super) fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        // Relaxed: the count guards no data; that calls which wait hear of the end of another is the line's affair.
        let taken = self
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < self.limit).then_some(n + 1)
            });
        taken.ok().map(|_| Permit(self.clone()))
    }
}

#[derive(Debug)]
pub(super) struct Permit(Arc<Breaker>);

impl Drop for Permit {
    fn drop(&mut self) {
        // Relaxed: as in `try_acquire`.
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_limit() {
        let breaker = Breaker::new(2);
        let (one, two) = (breaker.try_acquire(), breaker.try_acquire());
        assert!(one.is_some() && two.is_some() && breaker.is_full());
        assert!(breaker.try_acquire().is_none());
        drop(one);
        assert!(!breaker.is_full() && breaker.try_acquire().is_some());
    }
}
