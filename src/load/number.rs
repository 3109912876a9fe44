//! Numbers and moments that are read while they are written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::timestamp::Timestamp;

// All orderings are relaxed: each cell is whole by itself and guards no other. Whoever keeps several that belong
// together says why it does not matter to see some of them earlier than others.

/// A number; zero at first.
#[derive(Debug, Default)]
pub(super) struct Number(AtomicU64);

impl Number {
    pub(super) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

/// When something was, if it was.
#[derive(Debug)]
pub(super) struct Moment(AtomicU64);

impl Default for Moment {
    fn default() -> Self {
        Self(AtomicU64::new(Timestamp::MAX.as_nanos()))
    }
}

impl Moment {
    pub(super) fn get(&self) -> Option<Timestamp> {
        let at = Timestamp::from_nanos(self.0.load(Ordering::Relaxed));
        (at != Timestamp::MAX).then_some(at)
    }

    /// The moment, if it is less than `expiration` ago.
    pub(super) fn within(&self, now: Timestamp, expiration: Duration) -> Option<Timestamp> {
        self.get().filter(|&at| now.since(at) < expiration)
    }

    pub(super) fn set(&self, at: Timestamp) {
        self.0.store(at.as_nanos(), Ordering::Relaxed);
    }

    pub(super) fn clear(&self) {
        self.set(Timestamp::MAX);
    }
}
