//! What became of the calls of a run, and the figures that are made of it.

use std::time::Duration;

use equipoise::Timestamp;

use super::moves::Moves;
use super::scenario::Scenario;

/// One call that is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Its place in the workload.
    pub number: u64,
    /// When it was made, from the beginning of the run.
    pub at: Timestamp,
    /// Who was picked for it, if anyone was.
    pub server: Option<usize>,
    /// A call that ends by its deadline took that.
    pub took: Duration,
    pub end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Ok,
    DeadlineExceeded,
    Unavailable,
}

/// A run that is over, of a virtual fleet or a real one.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// By number.
    pub samples: Vec<Sample>,
    /// By server: the part of the time that its slots were busy, where it is known.
    pub utilisations: Vec<Option<f64>>,
    /// By change of the list, where keys were followed.
    pub moves: Vec<Moves>,
}

/// The first fifth of the calls is not counted.
pub const fn warm_up(requests: u64) -> u64 {
    requests / 5
}

/// The parts of a run over which shares are followed.
pub const PERIODS: usize = 40;

/// Quantiles for the curve: from the median to one call in a thousand.
pub const CURVE: [f64; 13] = [
    0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999,
];

/// One number that a run comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Latency in milliseconds of the calls that were answered or ran out of time: those that were turned away
    /// at once must not look quick.
    P50,
    P90,
    P99,
    P999,
    Mean,
    /// The part of the calls that ran out of time, and that failed otherwise.
    Timeouts,
    Unavailable,
    /// Of the servers' parts of the picks.
    LeastShare,
    MostShare,
    /// The greatest utilisation over the mean.
    Spread,
    /// The part of the keys that move when the list changes, on average, and that need not.
    Moved,
    Needless,
    /// The broken server's part of the picks in the first second, and from the fifth on.
    Early,
    Late,
}

const FIGURES: usize = Figure::Late as usize + 1;

/// What is kept of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    values: [Option<f64>; FIGURES],
    /// Milliseconds, at each quantile of [`CURVE`].
    pub curve: Vec<f64>,
    /// By period and server: its part of the period's picks.
    pub shares: Vec<Vec<f64>>,
    /// Seconds from the first call to the last.
    pub lasted: f64,
}

impl Figures {
    pub fn of(run: &Run, scenario: &Scenario) -> Self {
        let begin = warm_up(scenario.requests);
        let measured = || run.samples.iter().filter(move |s| s.number >= begin);
        let counted = measured().filter(|sample| sample.end != End::Unavailable);
        let mut millis: Vec<f64> = counted.map(|s| s.took.as_secs_f64() * 1e3).collect();
        millis.sort_unstable_by(f64::total_cmp);
        let part = |end| {
            let ended = measured().filter(|sample| sample.end == end).count();
            Some(ended as f64 / measured().count().max(1) as f64)
        };
        let servers = run.utilisations.len();
        let shares = shares(measured(), servers);
        let used: Vec<f64> = run.utilisations.iter().copied().flatten().collect();
        let mean_use = mean(used.iter().copied());
        let moves = || run.moves.iter();
        let broken = scenario.broken();
        let of_broken = |from: u64, until: u64| {
            let within = Timestamp::from_secs(from)..Timestamp::from_secs(until);
            let samples = run.samples.iter().filter(|s| within.contains(&s.at));
            let picks = || samples.clone().filter(|s| s.server.is_some());
            let there = picks().filter(|sample| sample.server == broken).count();
            broken.map(|_| there as f64 / picks().count().max(1) as f64)
        };
        let least = shares.iter().copied().min_by(f64::total_cmp);
        let most = shares.iter().copied().max_by(f64::total_cmp);
        let most_used = used.iter().copied().max_by(f64::total_cmp);
        let last = run.samples.last().map_or(Timestamp::ZERO, |last| last.at);
        let values = [
            quantile(&millis, 0.5),
            quantile(&millis, 0.9),
            quantile(&millis, 0.99),
            quantile(&millis, 0.999),
            mean(millis.iter().copied()),
            part(End::DeadlineExceeded),
            part(End::Unavailable),
            least,
            most,
            most_used.zip(mean_use).map(|(most, mean)| most / mean),
            mean(moves().map(|moves| moves.moved)),
            mean(moves().map(|moves| moves.needless)),
            of_broken(0, 1),
            of_broken(5, u64::MAX / 1_000_000_000),
        ];
        let curve = CURVE.iter().map(|&q| quantile(&millis, q).unwrap_or(0.0));
        Self {
            values,
            curve: curve.collect(),
            shares: periods(&run.samples, last, servers),
            lasted: last.since(Timestamp::ZERO).as_secs_f64(),
        }
    }

    /// `None` where the run has no such figure.
    pub fn get(&self, figure: Figure) -> Option<f64> {
        self.values[figure as usize]
    }

    /// The median of each figure; curve and shares are those of the first run.
    pub fn median(runs: &[Self]) -> Option<Self> {
        let mut middle = runs.first()?.clone();
        for (at, value) in middle.values.iter_mut().enumerate() {
            let mut values: Vec<f64> = runs.iter().filter_map(|run| run.values[at]).collect();
            values.sort_unstable_by(f64::total_cmp);
            *value = values.get(values.len().saturating_sub(1) / 2).copied();
        }
        Some(middle)
    }
}

/// The value that this part of the sorted values does not exceed.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// Each server's part of the picks.
fn shares<'a>(samples: impl Iterator<Item = &'a Sample>, servers: usize) -> Vec<f64> {
    let mut picks = vec![0u64; servers];
    samples
        .filter_map(|sample| sample.server)
        .for_each(|server| picks[server] += 1);
    let all = picks.iter().sum::<u64>().max(1) as f64;
    picks.iter().map(|&n| n as f64 / all).collect()
}

/// The shares in each of [`PERIODS`] parts of the time up to the last call.
fn periods(samples: &[Sample], last: Timestamp, servers: usize) -> Vec<Vec<f64>> {
    let length = last.as_nanos() / PERIODS as u64 + 1;
    let period = |sample: &Sample| (sample.at.as_nanos() / length) as usize;
    samples
        .chunk_by(|a, b| period(a) == period(b))
        .map(|chunk| shares(chunk.iter(), servers))
        .collect()
}
