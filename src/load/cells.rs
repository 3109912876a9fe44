//! Where do the score words of one policy live?
//!
//! Side by side, so that a scan of all of them is a walk through memory.

use std::sync::Arc;
use std::time::Duration;

use super::Scoring;
use super::score::{Ascent, Event, Word, units};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::timestamp::Timestamp;

/// How many words lie side by side.
pub(crate) const CHUNK: usize = 64;

/// Words that lie side by side; aligned, so that eight of them are one cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Chunk {
    words: [AtomicU64; CHUNK],
}

impl Chunk {
    pub(crate) fn words(&self) -> &[AtomicU64; CHUNK] {
        &self.words
    }
}

/// Hands out the score cells of one channel, by slot.
///
/// The cells of all endpoints that one policy compares must come from one `Cells`.
#[derive(Debug)]
pub struct Cells {
    shared: Arc<Shared>,
    chunks: Vec<Arc<Chunk>>,
}

impl Cells {
    /// No cells yet; those to come hold what `scoring` says.
    pub fn new(scoring: Scoring) -> Self {
        Self {
            shared: Arc::new(Shared::new(scoring)),
            chunks: Vec::new(),
        }
    }

    /// Whether bytes are to be measured for whoever compares these.
    pub(crate) fn measured(&self) -> bool {
        self.shared.bandwidth().is_some()
    }

    /// The cell of `slot`, as of an endpoint never heard of. The slot's former tenant must be gone:
    /// a [`Load`](super::Load) that still held the cell would share it with the new one.
    ///
    /// Slots should be small and dense: cells up to the highest one are allocated.
    pub fn cell(&mut self, slot: usize) -> Cell {
        let (chunk, offset) = (slot / CHUNK, slot % CHUNK);
        while self.chunks.len() <= chunk {
            self.chunks.push(Arc::new(Chunk {
                words: std::array::from_fn(|_| AtomicU64::new(0)),
            }));
        }
        // Pairs with the release by which the last holder of the former tenant's Load let go of it, which was looked
        // for with less than an acquire: what was done to the word then comes before this.
        fence(Ordering::Acquire);
        // Relaxed: the new tenant's Load is handed to other threads by a channel or a snapshot swap,
        // which orders this before whatever they do to it.
        self.chunks[chunk].words[offset].store(0, Ordering::Relaxed);
        Cell {
            shared: self.shared.clone(),
            chunk: self.chunks[chunk].clone(),
            offset,
        }
    }
}

impl Cells {
    /// From now on the cells hold what `scoring` says. Whether that is something else than before: then what is in
    /// them is to be [rescored](super::rescore).
    pub(crate) fn switch(&mut self, scoring: Scoring) -> bool {
        // Relaxed: the task that switches it is the one that measures.
        self.shared
            .bandwidth
            .store(sampled(scoring), Ordering::Relaxed);
        // Relaxed: the words that are rescored after this publish it; see `Load::settle`.
        let before = self.shared.ascent.swap(slope(scoring), Ordering::Relaxed);
        let other = before != slope(scoring);
        if other {
            self.shared.floor.forget();
        }
        other
    }
}

/// Where one endpoint's score is kept.
#[derive(Debug)]
pub struct Cell {
    shared: Arc<Shared>,
    chunk: Arc<Chunk>,
    offset: usize,
}

impl Cell {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    #[inline]
    fn atomic(&self) -> &AtomicU64 {
        &self.chunk.words[self.offset % CHUNK]
    }

    #[inline]
    pub(crate) fn word(&self) -> Word {
        // Relaxed: the word guards no other data.
        Word(self.atomic().load(Ordering::Relaxed))
    }

    /// Counts a call in, if fewer than `limit` are in flight.
    #[inline]
    pub(crate) fn begin_below(&self, limit: u32) -> bool {
        let cell = self.atomic();
        let mut seen = cell.load(Ordering::Relaxed);
        while Word(seen).in_flight() < u64::from(limit) {
            let next = Word(seen).after(Event::Begun);
            // As in `apply`.
            match cell.compare_exchange_weak(seen, next.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Applies one event, and says what came of it.
    // Always: with the event known, little is left of the `match` in it.
    #[inline(always)]
    pub(crate) fn apply(&self, event: Event) -> Word {
        let cell = self.atomic();
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            let next = Word(seen).after(event);
            // Acquire and release, for `Load::settle`: whoever comes after a word was rescored sees the new scoring.
            match cell.compare_exchange_weak(seen, next.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return next,
                Err(now) => seen = now,
            }
        }
    }
}

/// What all endpoints of a channel share.
#[derive(Debug)]
pub(crate) struct Shared {
    // How the key climbs with time; 0 where cells hold no latency.
    ascent: AtomicU64,
    // How long a sample of the bandwidth counts, in nanoseconds; 0 where none is taken.
    bandwidth: AtomicU64,
    pub(crate) floor: Floor,
    pub(crate) trials: Trials,
}

impl Shared {
    fn new(scoring: Scoring) -> Self {
        Self {
            ascent: AtomicU64::new(slope(scoring)),
            bandwidth: AtomicU64::new(sampled(scoring)),
            floor: Floor::default(),
            trials: Trials::default(),
        }
    }

    /// For how long a sample of the bandwidth counts; `None` where none is taken.
    pub(crate) fn bandwidth(&self) -> Option<Duration> {
        // Relaxed: the task that switches it is the one that measures.
        let nanos = self.bandwidth.load(Ordering::Relaxed);
        (nanos != 0).then_some(Duration::from_nanos(nanos))
    }

    /// How the key climbs with time; `None` where cells hold no latency.
    #[inline]
    pub(crate) fn ascent(&self) -> Option<Ascent> {
        Ascent::of(self.slope())
    }

    /// The same as a number, 0 for none.
    #[inline]
    pub(crate) fn slope(&self) -> u64 {
        // Relaxed: see `Load::settle` for those who must have the newest.
        self.ascent.load(Ordering::Relaxed)
    }
}

/// How the key climbs, as it is kept.
fn slope(scoring: Scoring) -> u64 {
    match scoring {
        Scoring::InFlight | Scoring::Bandwidth { .. } => 0,
        Scoring::Latency { window } => Ascent::new(window).slope(),
    }
}

/// For how long a sample of the bandwidth counts, as it is kept.
fn sampled(scoring: Scoring) -> u64 {
    match scoring {
        Scoring::InFlight | Scoring::Latency { .. } => 0,
        // At least 1: a window of nothing is not none.
        Scoring::Bandwidth { window } => {
            u64::try_from(window.as_nanos()).unwrap_or(u64::MAX).max(1)
        }
    }
}

/// When the next penalised endpoint of the channel is due a trial call: never later than the earliest
/// one of those that are ready.
#[derive(Debug)]
pub(crate) struct Trials {
    next: AtomicU64,
}

impl Default for Trials {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(u64::MAX),
        }
    }
}

impl Trials {
    #[inline]
    pub(crate) fn due(&self, now: Timestamp) -> bool {
        // Relaxed: a pick that misses the news leaves the trial to the next pick.
        now.as_nanos() >= self.next.load(Ordering::Relaxed)
    }

    /// Forgets the time: the caller looks at all penalised endpoints now, and names theirs anew.
    pub(crate) fn restart(&self) {
        // Acquire, with the release below: whoever announced a time before this is seen with all it
        // wrote before; whoever comes after announces after this too. Either way no trial is lost.
        self.next.swap(u64::MAX, Ordering::AcqRel);
    }

    pub(crate) fn announce(&self, due: Timestamp) {
        // Release: pairs with `restart`.
        self.next.fetch_min(due.as_nanos(), Ordering::AcqRel);
    }
}

/// The least mean latency of any endpoint in the current or the last stretch of time, as a log2.
///
/// Of means, not of samples: where nine answers of ten come out of a cache, a multiple of the fastest
/// answer would cut off all there is to know about the tenth. And of means at the time of an answer, not of
/// decayed keys: those of a fleet at rest sink towards nothing.
#[derive(Debug)]
pub(crate) struct Floor {
    // [number of the stretch: 24][least of the last one: 20][least of this one: 20]
    word: AtomicU64,
}

const LEAST: u64 = (1 << 20) - 1;

impl Default for Floor {
    fn default() -> Self {
        Self {
            word: AtomicU64::new(LEAST << 20 | LEAST),
        }
    }
}

impl Floor {
    /// Takes note of a mean at a height of the key, and gives the floor.
    #[inline]
    pub(crate) fn note(&self, mean: u64, height: u64) -> u64 {
        // Relaxed, and one try: the floor is a rough bound; a lost update is made up by the next.
        let seen = self.word.load(Ordering::Relaxed);
        let next = Self::after(seen, mean, height);
        if next != seen {
            let _ = self
                .word
                .compare_exchange(seen, next, Ordering::Relaxed, Ordering::Relaxed);
        }
        Self::least(next)
    }

    /// Begins anew: heights are counted differently from now on.
    fn forget(&self) {
        // Relaxed: as in `note`.
        self.word.store(LEAST << 20 | LEAST, Ordering::Relaxed);
    }

    /// The floor, if any endpoint has answered of late.
    pub(crate) fn get(&self) -> Option<u64> {
        let least = Self::least(self.word.load(Ordering::Relaxed));
        (least != LEAST).then_some(least)
    }

    const fn least(word: u64) -> u64 {
        let (last, this) = (word >> 20 & LEAST, word & LEAST);
        if last < this { last } else { this }
    }

    #[inline]
    fn after(word: u64, mean: u64, height: u64) -> u64 {
        // Four halvings: 14 s at the default window. Long enough that a peak of the fastest endpoint does not
        // lift the bound for all, short enough to forget one that has left.
        let stretch = (height / units(4)) & 0xff_ffff;
        let (was, last, this) = (word >> 40, word >> 20 & LEAST, word & LEAST);
        let (last, this) = match stretch.wrapping_sub(was) & 0xff_ffff {
            0 => (last, this.min(mean)),
            1 => (this, mean.min(LEAST)),
            _ => (LEAST, mean.min(LEAST)),
        };
        stretch << 40 | last << 20 | this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_apart_and_reset() {
        let mut cells = Cells::new(Scoring::InFlight);
        let (a, b) = (cells.cell(0), cells.cell(200));
        a.apply(Event::Begun);
        assert_eq!((a.word().in_flight(), b.word().in_flight()), (1, 0));
        assert!(!Arc::ptr_eq(a.chunk(), b.chunk()));
        assert!(Arc::ptr_eq(b.chunk(), cells.cell(199).chunk()));
        drop(a);
        assert_eq!(cells.cell(0).word(), Word(0));
    }

    #[test]
    fn the_floor_is_the_least_of_this_stretch_and_the_last() {
        let floor = Floor::default();
        assert_eq!(floor.get(), None);
        assert_eq!(floor.note(units(20), 0), units(20));
        assert_eq!(floor.note(units(21), 1), units(20));
        assert_eq!(floor.note(units(19), 2), units(19));
        assert_eq!(
            floor.note(units(25), units(4)),
            units(19),
            "last stretch still counts"
        );
        assert_eq!(
            floor.note(units(25), units(8)),
            units(25),
            "the one before does not"
        );
        assert_eq!(
            floor.note(units(30), units(80)),
            units(30),
            "after a pause nothing does"
        );
        assert_eq!(floor.get(), Some(units(30)));
    }

    #[test]
    fn the_earliest_trial_counts() {
        let trials = Trials::default();
        assert!(!trials.due(Timestamp::from_secs(1_000_000)));
        trials.announce(Timestamp::from_secs(9));
        trials.announce(Timestamp::from_secs(5));
        trials.announce(Timestamp::from_secs(7));
        assert!(!trials.due(Timestamp::from_millis(4_999)));
        assert!(trials.due(Timestamp::from_secs(5)));
        trials.restart();
        assert!(!trials.due(Timestamp::from_secs(9)));
    }
}
