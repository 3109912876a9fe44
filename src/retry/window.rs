//! How many of late?

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::timestamp::Timestamp;

/// Counts what happened in the last `SLOTS` slices of time, the current one included, without a lock. What is older is
/// forgotten slice by slice; an event that is told of later than that is not counted.
#[derive(Debug)]
pub(super) struct Window<const SLOTS: usize> {
    // Each is `[number of the slice 32 | count 32]`, so that a slice that has passed cannot be counted as the present
    // one, whoever looks while it is taken over.
    slots: [AtomicU64; SLOTS],
    /// Of one slice, in nanoseconds.
    width: u64,
}

const COUNT_BITS: u32 = 32;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

impl<const SLOTS: usize> Window<SLOTS> {
    /// Nothing has happened yet. A slice is `width` long, which is a tenth of a second or more, so that their numbers
    /// last for a dozen years.
    pub(super) fn of(width: Duration) -> Self {
        let width = width.max(Duration::from_millis(100)).as_nanos();
        Self {
            slots: [const { AtomicU64::new(0) }; SLOTS],
            width: u64::try_from(width).unwrap_or(u64::MAX),
        }
    }

    /// The slice that `now` is in. The number 0 is left to slots that were never used.
    fn slice(&self, now: Timestamp) -> u64 {
        (now.as_nanos() / self.width + 1).min(COUNT)
    }

    /// One more.
    #[inline]
    pub(super) fn add(&self, now: Timestamp) {
        let slice = self.slice(now);
        let slot = &self.slots[slice as usize % SLOTS];
        // Relaxed: a count guards no other data.
        let mut seen = slot.load(Ordering::Relaxed);
        loop {
            let there = seen >> COUNT_BITS;
            if there == slice {
                // Were the slot taken over just here, one would be counted late: that is all.
                slot.fetch_add(1, Ordering::Relaxed);
                return;
            }
            if there > slice {
                return;
            }
            let first = slice << COUNT_BITS | 1;
            match slot.compare_exchange_weak(seen, first, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    /// One more, if there are no more than `most` with it: whether it was counted. Of any number who ask at the same
    /// time, no more are told yes than `most` allows.
    pub(super) fn try_add(&self, now: Timestamp, most: u64) -> bool {
        let slice = self.slice(now);
        let at = slice as usize % SLOTS;
        let slot = &self.slots[at];
        // SeqCst, as in `newer`: two who write different slots and then read each other's must not both miss the
        // other.
        let written = slot.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |seen| {
            match seen >> COUNT_BITS {
                there if there == slice && seen & COUNT != COUNT => Some(seen + 1),
                there if there < slice => Some(slice << COUNT_BITS | 1),
                _ => None,
            }
        });
        let Ok(before) = written else {
            return false;
        };
        // Our place among those of the slice, whoever comes after us.
        let place = match before >> COUNT_BITS == slice {
            true => (before & COUNT) + 1,
            false => 1,
        };
        let others: u64 = (0..SLOTS)
            .filter(|&other| other != at)
            .map(|other| self.newer(other, slice))
            .sum();
        let within = place + others <= most;
        if !within {
            self.take_back(now);
        }
        within
    }

    /// One less: it was counted at `now`, and did not happen.
    pub(super) fn take_back(&self, now: Timestamp) {
        let slice = self.slice(now);
        let slot = &self.slots[slice as usize % SLOTS];
        // Relaxed: whoever still sees it counted is only turned away. An error says that it is forgotten already.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seen| {
            (seen >> COUNT_BITS == slice && seen & COUNT != 0).then(|| seen - 1)
        });
    }

    /// How many there were.
    pub(super) fn count(&self, now: Timestamp) -> u64 {
        let slice = self.slice(now);
        (0..SLOTS).map(|at| self.newer(at, slice)).sum()
    }

    /// What a slot holds, if it is remembered in `slice`. A clock read a moment earlier than another's may find slices
    /// of its future; they count.
    fn newer(&self, at: usize, slice: u64) -> u64 {
        // SeqCst: see `try_add`.
        let seen = self.slots[at].load(Ordering::SeqCst);
        match (seen >> COUNT_BITS) + SLOTS as u64 > slice {
            true => seen & COUNT,
            false => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: f64) -> Timestamp {
        Timestamp::from_nanos((secs * 1e9) as u64)
    }

    #[test]
    fn what_is_old_is_forgotten_slice_by_slice() {
        let window = Window::<3>::of(Duration::from_secs(10));
        for secs in [0.0, 9.9, 10.0, 25.0] {
            window.add(at(secs));
        }
        for (secs, expected) in [
            (25.0, 4),
            (29.9, 4),
            (30.0, 2),
            (39.9, 2),
            (40.0, 1),
            (49.9, 1),
            (50.0, 0),
            (1e6, 0),
        ] {
            assert_eq!(window.count(at(secs)), expected, "at {secs} s");
        }
    }

    #[test]
    fn a_slot_that_is_taken_over_begins_anew() {
        let window = Window::<3>::of(Duration::from_secs(1));
        window.add(at(0.0));
        window.add(at(0.5));
        window.add(at(3.0));
        assert_eq!(window.count(at(3.0)), 1);
        window.add(at(0.9));
        assert_eq!(window.count(at(3.0)), 1, "told of too late");
        assert!(!window.try_add(at(0.9), 100), "no place to count it in");
        window.add(at(2.9));
        assert_eq!(window.count(at(3.0)), 2, "late, but not too late");
        assert_eq!(window.count(at(2.0)), 2, "a clock that is behind");
    }

    #[test]
    fn no_more_are_added_than_are_allowed_until_some_are_forgotten() {
        let window = Window::<3>::of(Duration::from_secs(1));
        assert!(!window.try_add(at(0.0), 0));
        assert!(window.try_add(at(0.0), 2));
        assert!(window.try_add(at(1.0), 2));
        assert!(!window.try_add(at(2.9), 2));
        assert!(window.try_add(at(3.0), 2), "the first is forgotten");
        assert!(!window.try_add(at(3.9), 2));
        window.take_back(at(3.0));
        assert!(window.try_add(at(3.9), 2));
        window.take_back(at(0.0));
        assert_eq!(window.count(at(3.9)), 2, "forgotten already");
        assert!(window.try_add(Timestamp::MAX, 1));
        assert_eq!(window.count(Timestamp::MAX), 1);
    }

    #[test]
    fn of_many_threads_no_more_are_told_yes_than_are_allowed() {
        for round in 0..50 {
            let window = Window::<3>::of(Duration::from_secs(1));
            let yes: usize = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|thread| {
                        let window = &window;
                        // Half of them are in the next slice already.
                        let now = at(f64::from(thread % 2));
                        scope.spawn(move || (0..100).filter(|_| window.try_add(now, 90)).count())
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .sum()
            });
            assert!(yes <= 90, "round {round}: {yes}");
            let left = window.count(at(1.0));
            assert_eq!(left, yes as u64, "round {round}: the rest was taken back");
            while window.try_add(at(1.0), 90) {}
            assert_eq!(window.count(at(1.0)), 90, "round {round}");
        }
    }
}
