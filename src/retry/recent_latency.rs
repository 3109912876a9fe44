//! How long does this method take, these days?

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::load::{BUCKETS, bucket, bucket_end};
use crate::timestamp::Timestamp;

/// Each of the two windows, in nanoseconds. With the one under way, which may have just begun, they are 30 to 60 s:
/// long enough for methods that are called a few times a second, short enough to follow a deploy.
const WINDOW: u64 = 30_000_000_000;

/// Fewer samples than this say nothing of what one call in twenty takes: five of them lie beyond.
const LEAST_SAMPLES: u64 = 100;

/// A percentile that was reckoned is good for as long. Reckoning it reads every bucket.
const KEPT: Duration = Duration::from_millis(100);

/// What the calls of one method took of late, and what 95 of 100 of them did not exceed; without a lock, 2 KiB.
///
/// ```
/// use equipoise::Timestamp;
/// use equipoise::retry::RecentLatency;
/// use std::time::Duration;
///
/// let latency = RecentLatency::new();
/// for call in 0..100 {
///     latency.record(Duration::from_millis(if call < 96 { 5 } else { 500 }), Timestamp::from_millis(call));
/// }
/// let p95 = latency.p95(Timestamp::from_secs(1)).unwrap();
/// assert!(p95 >= Duration::from_millis(5) && p95 < Duration::from_millis(6));
/// assert_eq!(latency.p95(Timestamp::from_secs(61)), None);
/// ```
#[derive(Debug)]
pub struct RecentLatency {
    // A window's place is its number's last bit.
    windows: [Counts; 2],
    /// What was last reckoned, and when; zero before the first.
    p95: AtomicU64,
    reckoned: AtomicU64,
}

#[derive(Debug)]
struct Counts {
    /// The number of the window that is counted here; the number 0 is none.
    window: AtomicU64,
    buckets: [AtomicU32; BUCKETS],
}

// All orderings are relaxed: counts guard no other data. A sample that comes in while its window is emptied may be lost,
// and of two who reckon at the same time one may leave the percentile and the other the time: both are of that moment.

impl Counts {
    const fn new() -> Self {
        Self {
            window: AtomicU64::new(0),
            buckets: [const { AtomicU32::new(0) }; BUCKETS],
        }
    }

    /// Whether it counts for `window`, from now on if it did not before.
    #[inline]
    fn is_or_becomes(&self, window: u64) -> bool {
        let there = self.window.load(Ordering::Relaxed);
        if there < window {
            self.begin(there, window);
        }
        there <= window
    }

    #[cold]
    fn begin(&self, there: u64, window: u64) {
        let won = self
            .window
            .compare_exchange(there, window, Ordering::Relaxed, Ordering::Relaxed);
        if won.is_ok() {
            for bucket in &self.buckets {
                bucket.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl Default for RecentLatency {
    fn default() -> Self {
        Self::new()
    }
}

impl RecentLatency {
    /// Nothing is known yet.
    pub const fn new() -> Self {
        Self {
            windows: [const { Counts::new() }; 2],
            p95: AtomicU64::new(0),
            reckoned: AtomicU64::new(0),
        }
    }

    /// A call of the method took `latency`, from its sending to the first message. One that was cancelled because
    /// another attempt won took at least that long, and counts too; one that never reached a server does not.
    #[inline]
    pub fn record(&self, latency: Duration, now: Timestamp) {
        let window = window(now);
        let counts = &self.windows[window as usize % 2];
        if counts.is_or_becomes(window) {
            let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            counts.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What 95 of 100 calls of the last 30 to 60 s did not exceed; at most an eighth above it, never below, so that no
    /// more than five of 100 take longer. Up to 100 ms old. `None` of fewer than 100 calls.
    pub fn p95(&self, now: Timestamp) -> Option<Duration> {
        let reckoned = Timestamp::from_nanos(self.reckoned.load(Ordering::Relaxed));
        let kept = self.p95.load(Ordering::Relaxed);
        if kept != 0 && now.since(reckoned) < KEPT {
            return Some(Duration::from_nanos(kept));
        }
        let p95 = self.reckon(now);
        // Not kept where it is not known: it may be with the next call.
        self.p95.store(p95.unwrap_or(0), Ordering::Relaxed);
        self.reckoned.store(now.as_nanos(), Ordering::Relaxed);
        p95.map(Duration::from_nanos)
    }

    fn reckon(&self, now: Timestamp) -> Option<u64> {
        let window = window(now);
        // The window before, this one, and that of whoever read the clock a moment later.
        let recent = |counts: &&Counts| counts.window.load(Ordering::Relaxed) + 1 >= window;
        let mut sums = [0u64; BUCKETS];
        for counts in self.windows.iter().filter(recent) {
            for (sum, bucket) in sums.iter_mut().zip(&counts.buckets) {
                *sum += u64::from(bucket.load(Ordering::Relaxed));
            }
        }
        let samples: u64 = sums.iter().sum();
        if samples < LEAST_SAMPLES {
            return None;
        }
        // From above: all but a twentieth do not exceed the end of the bucket where that many are passed.
        let mut above = 0;
        let at = (0..BUCKETS).rev().find(|&at| {
            above += sums[at];
            above > samples / 20
        })?;
        Some(bucket_end(at))
    }
}

/// The number of the window that `now` is in.
fn window(now: Timestamp) -> u64 {
    now.as_nanos() / WINDOW + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn at(secs: f64) -> Timestamp {
        Timestamp::from_nanos((secs * 1e9) as u64)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn filled(calls: u32, latency: Duration, now: Timestamp) -> RecentLatency {
        let recent = RecentLatency::new();
        (0..calls).for_each(|_| recent.record(latency, now));
        recent
    }

    /// At `expected` or up to an eighth above.
    fn near(p95: Option<Duration>, expected: Duration) {
        let p95 = p95.unwrap();
        assert!(
            p95 >= expected && p95 <= expected + expected / 8,
            "{p95:?} for {expected:?}"
        );
    }

    #[test]
    fn a_hundred_calls_are_needed() {
        let recent = filled(99, millis(10), at(1.0));
        assert_eq!(recent.p95(at(1.0)), None);
        recent.record(millis(10), at(1.0));
        near(recent.p95(at(1.0)), millis(10));
        assert_eq!(RecentLatency::default().p95(Timestamp::MAX), None);
    }

    #[test]
    fn five_of_a_hundred_may_take_longer_and_not_six() {
        for (slow, expected) in [(5, 10), (6, 900)] {
            let recent = filled(100 - slow, millis(10), at(1.0));
            (0..slow).for_each(|_| recent.record(millis(900), at(2.0)));
            near(recent.p95(at(2.0)), millis(expected));
        }
    }

    #[test]
    fn it_is_never_below_the_exact_percentile_and_at_most_an_eighth_above() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let recent = RecentLatency::new();
            let mut samples: Vec<Duration> = (0..1_000)
                .map(|_| Duration::from_nanos(2f64.powf(10.0 + rng.unit() * 30.0) as u64))
                .collect();
            for &sample in &samples {
                recent.record(sample, at(5.0));
            }
            samples.sort_unstable();
            near(recent.p95(at(5.0)), samples[949]);
        }
    }

    #[test]
    fn what_was_is_forgotten_within_a_minute_and_not_within_half_of_one() {
        let recent = filled(1_000, millis(500), at(0.0));
        near(recent.p95(at(59.9)), millis(500));
        assert_eq!(recent.p95(at(60.0)), None);
        assert_eq!(recent.p95(at(60.05)), None, "nor remembered from then on");

        let recent = filled(1_000, millis(500), at(29.0));
        for call in 0..1_000 {
            recent.record(millis(5), at(30.0 + f64::from(call) / 1_000.0));
        }
        near(recent.p95(at(31.0)), millis(500));
        near(recent.p95(at(59.9)), millis(500));
        near(recent.p95(at(60.0)), millis(5));
    }

    #[test]
    fn windows_alternate_for_as_long_as_there_are_calls() {
        let recent = RecentLatency::new();
        for second in 0..600u32 {
            let now = at(f64::from(second));
            let latency = millis(10 + u64::from(second / 30));
            (0..10).for_each(|_| recent.record(latency, now));
            if second >= 30 {
                let p95 = recent.p95(now).unwrap();
                assert!(
                    p95 >= latency - millis(1) && p95 <= latency + latency / 8,
                    "{second}: {p95:?}"
                );
            }
        }
        // Told of so late that its window is another's by now.
        (0..1_000_000).for_each(|_| recent.record(Duration::from_secs(9), at(1.0)));
        assert!(recent.p95(at(599.5)).unwrap() < millis(40));
    }

    #[test]
    fn what_was_reckoned_is_kept_for_a_moment() {
        let recent = filled(100, millis(10), at(1.0));
        near(recent.p95(at(1.0)), millis(10));
        (0..100).for_each(|_| recent.record(millis(900), at(1.0)));
        near(recent.p95(at(1.099)), millis(10));
        near(recent.p95(at(1.1)), millis(900));
    }

    #[test]
    fn extremes_are_in_the_outermost_buckets() {
        near(
            filled(100, Duration::ZERO, at(1.0)).p95(at(1.0)),
            Duration::from_nanos(1_024),
        );
        assert!(filled(100, Duration::MAX, at(1.0)).p95(at(1.0)) > Some(millis(3_600_000)));
    }

    #[test]
    fn threads_lose_no_more_than_what_comes_while_a_window_is_emptied() {
        let recent = filled(5_000, millis(500), at(1.0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5_000).for_each(|_| recent.record(millis(5), at(61.0))));
            }
        });
        near(recent.p95(at(61.0)), millis(5));
    }
}
