//! When a connection has served enough to be replaced, while it still works.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

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
    // Wakes an idle connection too, which nothing else would.
    age: Option<Pin<Box<Sleep>>>,
}

impl Wear {
    /// `age`: after how long the connection should be replaced in any case.
    pub(super) fn new(now: Instant, age: Option<Duration>) -> Self {
        Self {
            window: now,
            cancelled_before: 0,
            age: age.map(|age| Box::pin(tokio::time::sleep(age))),
        }
    }

    /// Why to replace it once it is old enough; said once.
    pub(super) fn poll_age(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        let Some(age) = &mut self.age else {
            return Poll::Pending;
        };
        age.as_mut().poll(cx).map(|()| {
            self.age = None;
            "age"
        })
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
        let mut wear = Wear::new(start, None);
        let margin = (1 << 30) - (1 << 24);
        assert_eq!(wear.look(margin - 1, 0, || start), None);
        assert_eq!(wear.look(margin, 0, || start), Some("stream ids"));
    }

    #[test]
    fn resets_count_only_while_h2_remembers_them() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut wear = Wear::new(start, None);
        assert_eq!(wear.look(9, 4_999, || panic!("no need for a clock")), None);
        assert_eq!(wear.look(9, 5_000, || at(29)), Some("local resets"));
        assert_eq!(wear.look(9, 5_000, || at(30)), None, "slow enough");
        assert_eq!(wear.look(9, 9_999, || at(31)), None);
        assert_eq!(wear.look(9, 10_000, || at(31)), Some("local resets"));
    }

    #[tokio::test(start_paused = true)]
    async fn old_age_comes_once_and_without_traffic() {
        let mut wear = Wear::new(Instant::now(), Some(Duration::from_secs(60)));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(wear.poll_age(&mut cx), Poll::Pending);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(wear.poll_age(&mut cx), Poll::Ready("age"));
        assert_eq!(wear.poll_age(&mut cx), Poll::Pending, "said once");
        let mut never = Wear::new(Instant::now(), None);
        tokio::time::advance(Duration::from_secs(86_400)).await;
        assert_eq!(never.poll_age(&mut cx), Poll::Pending);
    }
}
