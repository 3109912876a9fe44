//! How many calls a connection has room for: the peer's stream limit, counted by us.
//!
//! h2 never says "full": at the limit it parks streams without a word. So every call reserves a slot
//! here first, and the slot comes back only when h2 has let go of the stream.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::sync::{AtomicU64, Ordering};

/// The slots of one connection.
pub struct Slots {
    // Open calls, whether it is closed, and the limit: one word, so that a change of the limit, a
    // reservation and the end cannot cross.
    word: AtomicU64,
    freed: OnceLock<Box<dyn Fn(usize) + Send + Sync>>,
}

const OPEN: u64 = 0x7fff_ffff;
const CLOSED: u64 = 1 << 31;
const LIMIT: u32 = 32;

impl Slots {
    /// Room for `limit` calls.
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            word: AtomicU64::new(u64::from(limit) << LIMIT),
            freed: OnceLock::new(),
        })
    }

    /// Calls `freed` after each slot that comes back and each rise of the limit, with the number of calls there is room
    /// for since. Only the first listener is kept.
    pub fn on_freed(&self, freed: impl Fn(usize) + Send + Sync + 'static) {
        let _ = self.freed.set(Box::new(freed));
    }

    fn tell(&self, slots: usize) {
        if let Some(freed) = self.freed.get() {
            freed(slots);
        }
    }

    /// Reserves room for one call, or says that there is none.
    pub fn try_reserve(self: &Arc<Self>) -> Option<Slot> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & OPEN >= word >> LIMIT {
                return None;
            }
            // Relaxed: the count guards no data; h2's own lock orders what happens on the stream.
            match self.word.compare_exchange_weak(
                word,
                word + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    return Some(Slot {
                        slots: self.clone(),
                    });
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// The peer's newest limit; 0 takes no new calls and leaves those under way alone. Without effect once
    /// closed.
    pub fn set_limit(&self, limit: u32) {
        let before = self.limit();
        if before == limit {
            return;
        }
        // Relaxed: as in `try_reserve`.
        let set = self
            .word
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                (word & CLOSED == 0).then_some(word & OPEN | u64::from(limit) << LIMIT)
            });
        if set.is_ok() && limit > before {
            self.tell((limit - before) as usize);
        }
    }

    /// Takes no more calls, for good: the connection drains or is gone.
    pub fn close(&self) {
        // Relaxed: as in `try_reserve`.
        let _ = self
            .word
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                Some(word & OPEN | CLOSED)
            });
    }

    /// Whether it takes calls at all, be it full just now.
    pub fn is_open(&self) -> bool {
        self.word.load(Ordering::Relaxed) & CLOSED == 0
    }

    /// For how many more calls there is room.
    pub fn room(&self) -> usize {
        let word = self.word.load(Ordering::Relaxed);
        (word >> LIMIT).saturating_sub(word & OPEN) as usize
    }

    /// Calls under way.
    pub fn open(&self) -> u32 {
        (self.word.load(Ordering::Relaxed) & OPEN) as u32
    }

    /// The limit last set.
    pub fn limit(&self) -> u32 {
        (self.word.load(Ordering::Relaxed) >> LIMIT) as u32
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slots({} of {})", self.open(), self.limit())
    }
}

/// Room for one call; comes back when dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Relaxed: as in `try_reserve`.
        self.slots.word.fetch_sub(1, Ordering::Relaxed);
        self.slots.tell(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn never_more_than_the_limit() {
        let freed = Arc::new(AtomicU32::new(0));
        let seen = freed.clone();
        let slots = Slots::new(2);
        slots.on_freed(move |slots| {
            seen.fetch_add(slots as u32, Ordering::Relaxed);
        });
        let (a, b) = (slots.try_reserve(), slots.try_reserve());
        assert!(a.is_some() && b.is_some() && slots.try_reserve().is_none());
        slots.set_limit(1);
        drop(a);
        assert!(slots.try_reserve().is_none(), "one open, limit one");
        drop(b);
        assert_eq!((slots.open(), freed.load(Ordering::Relaxed)), (0, 2));
        slots.set_limit(0);
        assert!(slots.try_reserve().is_none());
        slots.set_limit(5);
        assert_eq!(freed.load(Ordering::Relaxed), 7, "more room is news too");
        let last = slots.try_reserve();
        slots.close();
        slots.set_limit(5);
        assert!(
            !slots.is_open() && slots.try_reserve().is_none(),
            "for good"
        );
        drop(last);
        assert_eq!(slots.open(), 0);
    }
}
