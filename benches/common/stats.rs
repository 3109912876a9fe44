//! Percentiles of a round, and the spread of a figure over rounds.

use std::fmt;
use std::time::Duration;

/// The value that a share of `quantile` of `sorted` stays within; zero where there is none.
pub(crate) fn quantile(sorted: &[Duration], quantile: f64) -> Duration {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    let index = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).copied().unwrap_or_default()
}

/// A figure over all rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one round.
    pub(crate) fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = sorted
            .first()
            .zip(sorted.last())
            .expect("there was a round");
        let half = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[half],
            _ => f64::midpoint(sorted[half - 1], sorted[half]),
        };
        Self { min, median, max }
    }

    /// Of the ratios of two lanes, round by round.
    pub(crate) fn of_ratios<T>(over: &[T], under: &[T], figure: impl Fn(&T) -> f64) -> Self {
        Self::of(
            over.iter()
                .zip(under)
                .map(|(over, under)| figure(over) / figure(under)),
        )
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = if self.median < 100.0 { 2 } else { 0 };
        let Self { min, median, max } = self;
        f.pad(&format!(
            "{min:.decimals$} {median:.decimals$} {max:.decimals$}"
        ))
    }
}
