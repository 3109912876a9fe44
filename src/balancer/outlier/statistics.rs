//! Which of these counts are out of line?

use super::config::{FailurePercentage, SuccessRate};
use crate::endpoint::EndpointId;

/// Shares that differ by less are the same. Sums of equal shares can come out a hair above each of them, and with a
/// small factor everybody would be below the bound; a real difference as small takes a thousand million calls to see.
const SAME: f64 = 1e-9;

/// How the calls of one endpoint ended since the last sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) successes: u64,
    pub(crate) failures: u64,
}

impl Counts {
    pub(super) fn calls(self) -> u128 {
        u128::from(self.successes) + u128::from(self.failures)
    }

    /// The share of successes; that of no calls is as good as can be.
    pub(super) fn success_rate(self) -> f64 {
        match self.calls() {
            0 => 1.0,
            calls => self.successes as f64 / calls as f64,
        }
    }
}

/// Those with enough calls, where they are enough endpoints to say anything.
fn judged(
    candidates: &[(EndpointId, Counts)],
    request_volume: u32,
    minimum_hosts: u32,
) -> Vec<(EndpointId, Counts)> {
    let busy = candidates.iter().filter(|(_, counts)| {
        // Without any calls there is nothing to go by, whatever the volume asked for.
        counts.calls() >= u128::from(request_volume.max(1))
    });
    let busy: Vec<_> = busy.copied().collect();
    match u32::try_from(busy.len()) {
        Ok(hosts) if hosts < minimum_hosts => Vec::new(),
        _ => busy,
    }
}

impl SuccessRate {
    /// Whom the rule is against, in the order given.
    pub(super) fn suspects(&self, candidates: &[(EndpointId, Counts)]) -> Vec<EndpointId> {
        let judged = judged(candidates, self.request_volume, self.minimum_hosts);
        let rates: Vec<f64> = judged.iter().map(|(_, c)| c.success_rate()).collect();
        let bound = self.bound(&rates);
        let below = judged.iter().zip(rates);
        below
            .filter(|&(_, rate)| rate < bound - SAME)
            .map(|(&(id, _), _)| id)
            .collect()
    }

    /// What is too low among these shares of successes.
    pub(super) fn bound(&self, rates: &[f64]) -> f64 {
        let (mean, deviation) = spread(rates);
        mean - deviation * (f64::from(self.stdev_factor) / 1_000.0)
    }
}

impl FailurePercentage {
    /// Whom the rule is against, in the order given.
    pub(super) fn suspects(&self, candidates: &[(EndpointId, Counts)]) -> Vec<EndpointId> {
        let judged = judged(candidates, self.request_volume, self.minimum_hosts);
        let beyond = judged.into_iter().filter(|(_, counts)| {
            // In whole numbers, so that exactly the threshold is not above it.
            u128::from(counts.failures) * 100 > counts.calls() * u128::from(self.threshold)
        });
        beyond.map(|(id, _)| id).collect()
    }
}

/// The mean, and the standard deviation of all there are (not of a sample). Zeros where there are none.
pub(super) fn spread(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(counts: &[(u64, u64)]) -> Vec<(EndpointId, Counts)> {
        let slots = (0..).map(|slot| EndpointId::new(slot, 0));
        let counts = counts.iter().map(|&(successes, failures)| Counts {
            successes,
            failures,
        });
        slots.zip(counts).collect()
    }

    fn slots(ids: Vec<EndpointId>) -> Vec<usize> {
        ids.into_iter().map(EndpointId::slot).collect()
    }

    #[test]
    fn the_greatest_counts_there_are_overflow_nothing() {
        const MAX: u64 = u64::MAX;
        let counts = fleet(&[(MAX, MAX), (MAX, 0), (MAX, 0), (MAX, 0), (MAX, 0), (0, MAX)]);
        assert_eq!(counts[0].1.success_rate(), 0.5);
        let all = SuccessRate::default().with_stdev_factor(1_000);
        assert_eq!(slots(all.suspects(&counts)), [5]);
        let half = FailurePercentage::default().with_threshold(50);
        assert_eq!(slots(half.suspects(&counts)), [5], "half is not above half");
        let less = half.with_threshold(49);
        assert_eq!(slots(less.suspects(&counts)), [0, 5]);
        let endless = SuccessRate::default().with_stdev_factor(u32::MAX);
        assert!(endless.suspects(&counts).is_empty());
        let nobody = all.with_request_volume(u32::MAX).with_minimum_hosts(7);
        assert!(nobody.suspects(&counts).is_empty());
    }

    #[test]
    fn who_has_no_calls_is_not_looked_at() {
        let counts = fleet(&[(0, 0), (10, 0), (10, 0), (10, 0), (10, 0), (0, 10)]);
        let by_rate = SuccessRate::default()
            .with_request_volume(0)
            .with_minimum_hosts(0);
        assert_eq!(slots(by_rate.suspects(&counts)), [5]);
        assert!(by_rate.suspects(&[]).is_empty());
        assert!(by_rate.suspects(&fleet(&[(0, 0); 5])).is_empty());
        let by_share = FailurePercentage::default()
            .with_request_volume(0)
            .with_minimum_hosts(6);
        assert!(by_share.suspects(&counts).is_empty(), "five, not six");
        let by_share = by_share.with_minimum_hosts(5).with_threshold(0);
        assert_eq!(slots(by_share.suspects(&counts)), [5]);
    }

    #[test]
    fn equal_shares_of_any_size_are_equal() {
        for factor in [0, 1, 50, 500, 1_900] {
            let rule = SuccessRate::default().with_stdev_factor(factor);
            for percent in 0..=100 {
                // The same share of a hundred, of three hundred, of nearly all that can be counted.
                let sizes = [1, 3, 7, 10, u64::MAX / 100];
                let counts = sizes.map(|size| (percent * size, (100 - percent) * size));
                assert!(
                    rule.suspects(&fleet(&counts)).is_empty(),
                    "{percent} % at factor {factor}"
                );
            }
        }
    }
}
