//! How long calls took: counts in buckets that widen with the latency.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per doubling: a bucket is at most an eighth of its lower bound wide.
const PER_DOUBLING: usize = 8;
/// The first bucket ends above 2^10 ns (1 µs), the last begins below 2^42 ns (73 min).
const LOWEST: u32 = 10;
const HIGHEST: u32 = 42;
pub(crate) const BUCKETS: usize = (HIGHEST - LOWEST) as usize * PER_DOUBLING;

/// Latencies of one endpoint; 2 KiB.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

impl Histogram {
    pub(super) const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    #[inline]
    pub(super) fn record(&self, nanos: u64) {
        // Relaxed: a count guards no other data.
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        self.buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
    }
}

/// Which bucket a latency of `nanos` is counted in.
#[inline]
pub(crate) fn bucket(nanos: u64) -> usize {
    let nanos = nanos.clamp(1 << LOWEST, (1 << HIGHEST) - 1);
    let doubling = nanos.ilog2();
    // The three bits below the highest.
    let within = (nanos >> (doubling - 3)) as usize & (PER_DOUBLING - 1);
    (doubling - LOWEST) as usize * PER_DOUBLING + within
}

/// The middle of a bucket, within 6.25 % of whatever is in it.
fn middle(bucket: usize) -> Duration {
    let (lower, width) = extent(bucket);
    Duration::from_nanos(lower + width / 2)
}

/// Where a bucket ends, in nanoseconds: all that is in it is less, if it is not the last, and by an eighth at most.
pub(crate) fn bucket_end(bucket: usize) -> u64 {
    let (lower, width) = extent(bucket);
    lower + width
}

/// Where a bucket begins and how wide it is, in nanoseconds.
fn extent(bucket: usize) -> (u64, u64) {
    let width = 1u64 << (LOWEST + (bucket / PER_DOUBLING) as u32 - 3);
    (width * (PER_DOUBLING + bucket % PER_DOUBLING) as u64, width)
}

/// How long an endpoint took to answer, since it was added: a copy made at one time.
///
/// Every answered call counts, whatever its status; cancelled and refused ones do not.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    pub(super) buckets: Box<[u64]>,
    pub(super) ewma: Option<Duration>,
}

impl Latency {
    /// These and those. The mean of both leans to where more answers came from.
    pub(super) fn plus(mut self, others: Self) -> Self {
        let weight = |latency: &Self| latency.count().min(u64::from(u32::MAX)) as u32;
        let (here, there) = (weight(&self), weight(&others));
        self.ewma = match (self.ewma, others.ewma) {
            (Some(a), Some(b)) => Some((a * here + b * there) / (here + there).max(1)),
            (a, b) => a.or(b),
        };
        if self.buckets.is_empty() {
            self.buckets = others.buckets;
            return self;
        }
        for (sum, count) in self.buckets.iter_mut().zip(&others.buckets) {
            *sum += count;
        }
        self
    }

    /// How many answers it is drawn from.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The recent mean of answers that were no server fault: each new one counts a 32nd. `None` before the first.
    pub fn ewma(&self) -> Option<Duration> {
        self.ewma
    }

    /// The latency that a share `q` of the answers did not exceed, within 6.25 %; `q` is taken to the
    /// nearest end of `0.0..=1.0`. `None` before the first answer. Below 1 µs and above 73 minutes it
    /// shows those.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        // A NaN becomes 0 in the cast.
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let at = self.buckets.iter().position(|&in_bucket| {
            seen += in_bucket;
            seen >= rank
        })?;
        Some(middle(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn latency(histogram: &Histogram) -> Latency {
        Latency {
            buckets: histogram.counts().collect(),
            ewma: None,
        }
    }

    #[test]
    fn middles_are_in_their_own_bucket_and_the_ends_saturate() {
        for i in 0..BUCKETS {
            assert_eq!(bucket(middle(i).as_nanos() as u64), i);
            assert_eq!(bucket(bucket_end(i) - 1), i);
            assert_eq!(bucket(bucket_end(i)), (i + 1).min(BUCKETS - 1));
        }
        assert_eq!((bucket(0), bucket(1_023), bucket(1_025)), (0, 0, 0));
        assert_eq!(
            (bucket(u64::MAX), bucket(1 << 42)),
            (BUCKETS - 1, BUCKETS - 1)
        );
        assert_ne!(bucket(3_600_000_000_000), BUCKETS - 1, "an hour is within");
    }

    #[test]
    fn quantiles_of_known_counts() {
        let histogram = Histogram::new();
        assert_eq!(latency(&histogram).quantile(0.5), None);
        for _ in 0..99 {
            histogram.record(1_000_000);
        }
        histogram.record(1_000_000_000);
        let latency = latency(&histogram);
        assert_eq!(latency.count(), 100);
        let near = |q, expected: f64| {
            let got = latency.quantile(q).unwrap().as_secs_f64();
            assert!((got / expected - 1.0).abs() <= 0.0625, "{q}: {got}");
        };
        near(0.0, 0.001);
        near(-3.0, 0.001);
        near(f64::NAN, 0.001);
        near(0.99, 0.001);
        near(0.991, 1.0);
        near(7.0, 1.0);
    }

    #[test]
    fn quantiles_against_sorted_samples() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let histogram = Histogram::new();
            let mut samples: Vec<u64> = (0..1_000)
                .map(|_| 2f64.powf(10.0 + rng.unit() * 30.0) as u64)
                .collect();
            for &sample in &samples {
                histogram.record(sample);
            }
            samples.sort_unstable();
            for q in [0.01, 0.25, 0.5, 0.9, 0.999, 1.0] {
                let exact = samples[((q * 1_000f64).ceil() as usize).max(1) - 1] as f64;
                let got = latency(&histogram).quantile(q).unwrap().as_nanos() as f64;
                assert!(
                    (got / exact - 1.0).abs() <= 0.0626,
                    "seed {seed} q {q}: {got} {exact}"
                );
            }
        }
    }
}
