//! How many bytes pass between us and an endpoint.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Load;
use super::number::{Moment, Number};
use crate::timestamp::Timestamp;

/// How often the bytes of each endpoint are counted, where a policy goes by them: often beside the shortest window,
/// 1 s, and seldom enough to cost nothing.
pub(crate) const MEASURED_EVERY: Duration = Duration::from_millis(250);

/// The bytes of one endpoint and how fast they come. One task writes, all calls read, and they read the rate alone,
/// which is one cell: so all orderings are relaxed.
#[derive(Debug, Default)]
pub(super) struct Flow {
    total: AtomicU64,
    at: Moment,
    rate: Number,
    /// What the samples in the rate weigh together: 1 when they go back for ever, 0 while there are none. With it a
    /// rate is right from the first sample on, and does not creep up from nothing.
    share: Number,
    in_flight: AtomicU32,
}

impl Load {
    /// `total` bytes have passed between us and the endpoint so far, both directions and all connections together. To
    /// be told every 250 ms or so; a total that is less than the last one begins a new count. Ignored where the score
    /// cells are not made for [`Scoring::Bandwidth`](super::Scoring::Bandwidth).
    pub fn measure(&self, total: u64, now: Timestamp) {
        let Some(window) = self.cell.shared().bandwidth() else {
            return;
        };
        let flow = self.flow.get_or_init(Box::default);
        let last = flow
            .at
            .get()
            .map(|at| (flow.total.load(Ordering::Relaxed), now.since(at)));
        if let Some((_, Duration::ZERO)) = last {
            // No time, no rate: these bytes count with the next.
            return;
        }
        flow.at.set(now);
        flow.total.store(total, Ordering::Relaxed);
        flow.in_flight.store(self.in_flight(), Ordering::Relaxed);
        let Some((last, elapsed)) = last else {
            return;
        };
        match total.checked_sub(last) {
            Some(bytes) => flow.sample(bytes as f64 / elapsed.as_secs_f64(), elapsed, window),
            None => flow.forget(),
        }
    }

    /// Bytes per second that pass between us and the endpoint, both directions together: a moving average in which a
    /// sample fades to 37 % in the window of [`Scoring::Bandwidth`](super::Scoring::Bandwidth). `None` before the second
    /// measurement since the endpoint became ready, and where nothing is measured.
    ///
    /// Between two measurements it stands still: nothing is known of the bytes since. When measurements fail to come for
    /// half a second, it fades from then on as if nothing passed.
    pub fn bandwidth(&self, now: Timestamp) -> Option<f64> {
        let window = self.cell.shared().bandwidth()?;
        let flow = self.flow.get()?;
        if flow.share.get() == 0.0 {
            return None;
        }
        let rate = flow.rate.get();
        let overdue = now.since(flow.at.get()? + 2 * MEASURED_EVERY);
        match overdue {
            Duration::ZERO => Some(rate),
            overdue => Some(rate * fading(overdue, window)),
        }
    }

    /// How many more calls are under way than at the last measurement; before the first, all of them.
    pub(crate) fn calls_since_measured(&self) -> u32 {
        let then = self
            .flow
            .get()
            .map(|flow| flow.in_flight.load(Ordering::Relaxed));
        self.in_flight().saturating_sub(then.unwrap_or(0))
    }
}

impl Flow {
    fn sample(&self, rate: f64, elapsed: Duration, window: Duration) {
        let new = 1.0 - fading(elapsed, window);
        let old = self.share.get() * (1.0 - new);
        let share = old + new;
        self.rate.set((self.rate.get() * old + rate * new) / share);
        self.share.set(share);
    }

    /// The endpoint has become ready again, or its count begins anew: what was says nothing of what is.
    pub(super) fn forget(&self) {
        self.share.set(0.0);
    }
}

/// What is left of something after a while; a window of nothing keeps nothing.
fn fading(elapsed: Duration, window: Duration) -> f64 {
    match window {
        Duration::ZERO => 0.0,
        window => (-elapsed.as_secs_f64() / window.as_secs_f64()).exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cells, Loads, Scoring};
    use super::*;
    use crate::rng::Rng;

    const WINDOW: Duration = Duration::from_secs(5);

    fn load() -> Load {
        Load::new(Cells::new(Scoring::Bandwidth { window: WINDOW }).cell(0))
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn near(got: Option<f64>, expected: f64) {
        let got = got.unwrap();
        assert!(
            (got - expected).abs() <= expected * 1e-9,
            "{got} {expected}"
        );
    }

    #[test]
    fn a_steady_rate_is_known_from_the_second_measurement_on() {
        let load = load();
        assert_eq!(load.bandwidth(at(0)), None);
        load.measure(7_000, at(1_000));
        assert_eq!(load.bandwidth(at(1_000)), None, "bytes of who knows when");
        for i in 1..100 {
            load.measure(7_000 + i * 250, at(1_000 + i * 250));
            near(load.bandwidth(at(1_000 + i * 250)), 1_000.0);
        }
    }

    /// The formula written out: every sample with its weight.
    #[test]
    fn the_average_is_that_of_all_samples_by_age() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let load = load();
            let (mut now, mut total) = (0, 0);
            load.measure(total, at(now));
            let mut samples = Vec::new();
            for _ in 0..1 + rng.below(60) {
                let (elapsed, bytes) = (1 + rng.below(700) as u64, rng.below(1 << 20) as u64);
                (now, total) = (now + elapsed, total + bytes);
                load.measure(total, at(now));
                samples.push((now, elapsed, bytes as f64 / elapsed as f64 * 1_000.0));
            }
            let fade = |millis: u64| (-(millis as f64) / 5_000.0).exp();
            let weigh =
                |&(then, elapsed, _): &(u64, u64, f64)| fade(now - then) * (1.0 - fade(elapsed));
            let weights: f64 = samples.iter().map(weigh).sum();
            let sum: f64 = samples.iter().map(|sample| weigh(sample) * sample.2).sum();
            let got = load.bandwidth(at(now)).unwrap();
            let expected = sum / weights;
            assert!(
                (got - expected).abs() <= 1e-6 * (1.0 + expected),
                "seed {seed}: {got} {expected}"
            );
        }
    }

    #[test]
    fn it_stands_still_until_a_measurement_is_overdue_and_then_fades() {
        let load = load();
        load.measure(0, at(0));
        load.measure(1_000, at(1_000));
        near(load.bandwidth(at(0)), 1_000.0);
        near(load.bandwidth(at(1_500)), 1_000.0);
        near(load.bandwidth(at(6_500)), 1_000.0 * (-1f64).exp());
        // Told that nothing passed: one second of a thousand, and then five of nothing.
        load.measure(1_000, at(6_000));
        let (fifth, whole) = (1.0 - (-0.2f64).exp(), 1.0 - (-1f64).exp());
        let faded = fifth * (-1f64).exp();
        near(load.bandwidth(at(6_000)), 1_000.0 * faded / (faded + whole));
    }

    #[test]
    fn a_count_that_begins_anew_and_one_that_comes_back_are_unknown() {
        let load = load();
        load.measure(0, at(0));
        load.measure(1_000, at(1_000));
        load.measure(400, at(2_000));
        assert_eq!(load.bandwidth(at(2_000)), None);
        load.measure(900, at(3_000));
        near(load.bandwidth(at(3_000)), 500.0);
        load.join(None, at(3_100));
        assert_eq!(load.bandwidth(at(3_100)), None);
        load.measure(1_900, at(4_000));
        near(load.bandwidth(at(4_000)), 1_000.0);
    }

    #[test]
    fn two_measurements_at_once_lose_no_bytes() {
        let load = load();
        load.measure(0, at(0));
        load.measure(500, at(0));
        load.measure(1_000, at(1_000));
        near(load.bandwidth(at(1_000)), 1_000.0);
        // A clock that went back is one that stands.
        load.measure(9_000, at(500));
        near(load.bandwidth(at(1_000)), 1_000.0);
    }

    #[test]
    fn only_policies_that_go_by_it_keep_it() {
        let mut cells = Cells::new(Scoring::InFlight);
        let loads = Loads::new(Load::new(cells.cell(0)), [load()]);
        let _ = loads.begin();
        loads.measure(0, at(0));
        let _ = loads.begin();
        loads.measure(500, at(500));
        let _ = loads.begin();
        assert_eq!(loads.of(0).bandwidth(at(500)), None);
        near(loads.of(1).bandwidth(at(500)), 1_000.0);
        assert_eq!(loads.of(1).calls_since_measured(), 1);
        assert_eq!(loads.of(0).calls_since_measured(), 3);
    }

    #[test]
    fn it_scores_by_calls_in_flight() {
        let load = load();
        load.join(None, at(0));
        let idle = load.score();
        load.begin();
        assert!(load.score() > idle);
        assert_eq!(load.estimate(), None);
    }
}
