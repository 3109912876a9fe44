//! When a connection has served enough to be replaced, while it still works.

use std::time::Duration;

use tokio::time::Instant;

/// Streams a connection can open: its odd 31-bit ids.
const IDS: u32 = 1 << 30;

/// Ids kept back for the calls made while the replacement is dialled: at 20,000 calls a second,
/// fourteen minutes' worth.
const IDS_KEPT: u32 = 1 << 24;

/// How many streams that were reset by us h2 remembers, and for how long. Frames that still arrive for
/// one it has forgotten are answered with another reset, which busy servers take for abuse.
pub(super) const RESETS_REMEMBERED: usize = 10_000;
pub(super) const RESETS_KEPT: Duration = Duration::from_secs(30);

/// Half of the memory: counted in windows that follow one another, any 30 s touch at most two.
const RESETS_WORN: u32 = RESETS_REMEMBERED as u32 / 2;

/// Whether `opened` streams are so many that no more ids can be counted on.
pub(super) fn ids_run_out(opened: u32) -> bool {
    opened >= IDS - IDS_KEPT
}

/// Counts what a connection has used up.
#[derive(Debug)]
pub(super) struct Wear {
    window: Instant,
    cancelled_before: u32,
}

impl Wear {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            window: now,
            cancelled_before: 0,
        }
    }

    /// Why to replace it, given the streams it opened and those we gave up. The clock is read only
    /// when the budget of resets may be used up.
    pub(super) fn look(
        &mut self,
        opened: u32,
        cancelled: u32,
        now: impl FnOnce() -> Instant,
    ) -> Option<&'static str> {
        if ids_run_out(opened) {
            return Some("stream ids");
        }
        if cancelled.wrapping_sub(self.cancelled_before) < RESETS_WORN {
            return None;
        }
        let now = now();
        if now.saturating_duration_since(self.window) < RESETS_KEPT {
            return Some("local resets");
        }
        self.window = now;
        self.cancelled_before = cancelled;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_run_out_in_good_time() {
        let start = Instant::now();
        let mut wear = Wear::new(start);
        let margin = (1 << 30) - (1 << 24);
        assert_eq!(wear.look(margin - 1, 0, || start), None);
        assert_eq!(wear.look(margin, 0, || start), Some("stream ids"));
    }

    #[test]
    fn resets_count_only_while_h2_remembers_them() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut wear = Wear::new(start);
        assert_eq!(wear.look(9, 4_999, || panic!("no need for a clock")), None);
        assert_eq!(wear.look(9, 5_000, || at(29)), Some("local resets"));
        assert_eq!(wear.look(9, 5_000, || at(30)), None, "slow enough");
        assert_eq!(wear.look(9, 9_999, || at(31)), None);
        assert_eq!(wear.look(9, 10_000, || at(31)), Some("local resets"));
    }
}
