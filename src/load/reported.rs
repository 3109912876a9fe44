//! What the server said of itself, and for how long that holds.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::Load;
use super::number::{Moment, Number};
use crate::report::LoadReport;
use crate::timestamp::Timestamp;

/// The last reports of one endpoint.
///
/// Every figure is a cell of its own, so a reader may see some figures of one report and some of the next. Each is
/// still a figure that the server gave, the two reports are neighbours in time, and whoever reads them looks again
/// soon; so all orderings here are relaxed, and no figure is trusted to fit another.
#[derive(Debug, Default)]
pub(super) struct Reported {
    last: Figures,
    // A report that leaves it out does not take it back.
    utilization: Number,
    utilization_at: Moment,
    // When it came.
    in_flight: AtomicU32,
    weight: Weight,
}

#[derive(Debug, Default)]
struct Figures {
    cpu_utilization: Number,
    application_utilization: Number,
    mem_utilization: Number,
    rps: Number,
    eps: Number,
    at: Moment,
}

/// What a weight is made from (gRFC A58), with its times.
#[derive(Debug, Default)]
struct Weight {
    utilization: Number,
    rps: Number,
    eps: Number,
    updated: Moment,
    /// Since when there was always one.
    non_empty_since: Moment,
}

impl Load {
    /// The server said how it is doing. Values that make no sense are ignored, whoever made them up.
    pub fn report(&self, report: &LoadReport, now: Timestamp) {
        let reported = self.reported.get_or_init(Box::default);
        let report = report.sane();
        reported.last.set(&report, now);
        let Some(utilization) = report.utilization() else {
            return;
        };
        reported.utilization.set(utilization);
        reported.utilization_at.set(now);
        reported
            .in_flight
            .store(self.in_flight(), Ordering::Relaxed);
        if report.rps > 0.0 {
            reported.weight.set(utilization, &report, now);
        }
    }

    /// What the server last said of itself, without the values that were ignored. `None` when it has said nothing since
    /// it became ready, or nothing for `expiration`.
    pub fn reported(&self, now: Timestamp, expiration: Duration) -> Option<LoadReport> {
        let last = &self.reported.get()?.last;
        last.at.within(now, expiration)?;
        Some(last.get())
    }

    /// How full the server last said it is (see [`LoadReport::utilization`]); 1 is full. `None` when it has not said so
    /// since it became ready, or not for `expiration`: a report exactly that old is stale.
    pub fn utilization(&self, now: Timestamp, expiration: Duration) -> Option<f64> {
        let reported = self.reported.get()?;
        reported.utilization_at.within(now, expiration)?;
        Some(reported.utilization.get())
    }

    /// How many more calls are under way than when the server last said how full it is; before that, all of them.
    pub(crate) fn calls_since_report(&self) -> u32 {
        let then = self
            .reported
            .get()
            .map(|reported| reported.in_flight.load(Ordering::Relaxed));
        self.in_flight().saturating_sub(then.unwrap_or(0))
    }

    /// The weight that follows from what the server said of itself, by the rule of gRFC A58:
    /// `rps / (utilization + error_penalty × eps / rps)`.
    ///
    /// `None` while there is none to go by: nothing was reported that had both a utilization and a rate; the last
    /// such report is `expiration` old or older; or there have not been such reports for all of `blackout` since the
    /// endpoint became ready or since they last were stale. At exactly `blackout` they count. A `blackout` of
    /// 0 asks for none, and then what was reported before the endpoint was lost counts on when it is back.
    ///
    /// Staleness is noticed here: ask at least once per `expiration`.
    pub fn reported_weight(
        &self,
        now: Timestamp,
        blackout: Duration,
        expiration: Duration,
        error_penalty: f64,
    ) -> Option<f64> {
        let weight = &self.reported.get()?.weight;
        if weight.updated.within(now, expiration).is_none() {
            // A report of this very moment may be overlooked: then the next one begins the blackout.
            weight.non_empty_since.clear();
            return None;
        }
        let since = weight.non_empty_since.get();
        if !blackout.is_zero() && since.is_none_or(|since| now.since(since) < blackout) {
            return None;
        }
        let weight = weight.get(error_penalty);
        // Figures that are finite may still give a quotient that is not.
        (weight.is_finite() && weight > 0.0).then_some(weight)
    }
}

impl Reported {
    /// The endpoint has become ready, maybe as another process.
    pub(super) fn forget(&self) {
        self.last.at.clear();
        self.utilization_at.clear();
        self.in_flight.store(0, Ordering::Relaxed);
        // A58 keeps the weight itself.
        self.weight.non_empty_since.clear();
    }
}

impl Figures {
    fn set(&self, report: &LoadReport, now: Timestamp) {
        self.cpu_utilization.set(report.cpu_utilization);
        self.application_utilization
            .set(report.application_utilization);
        self.mem_utilization.set(report.mem_utilization);
        self.rps.set(report.rps);
        self.eps.set(report.eps);
        self.at.set(now);
    }

    fn get(&self) -> LoadReport {
        LoadReport {
            cpu_utilization: self.cpu_utilization.get(),
            application_utilization: self.application_utilization.get(),
            mem_utilization: self.mem_utilization.get(),
            rps: self.rps.get(),
            eps: self.eps.get(),
        }
    }
}

impl Weight {
    fn set(&self, utilization: f64, report: &LoadReport, now: Timestamp) {
        self.utilization.set(utilization);
        self.rps.set(report.rps);
        self.eps.set(report.eps);
        if self.non_empty_since.get().is_none() {
            self.non_empty_since.set(now);
        }
        self.updated.set(now);
    }

    fn get(&self, error_penalty: f64) -> f64 {
        let rps = self.rps.get();
        rps / (self.utilization.get() + error_penalty * self.eps.get() / rps)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cells, Loads, Scoring};
    use super::*;

    const BLACKOUT: Duration = Duration::from_secs(10);
    const EXPIRATION: Duration = Duration::from_secs(180);

    fn load() -> Load {
        Load::new(Cells::new(Scoring::InFlight).cell(0))
    }

    /// A report with a weight of `weight`.
    fn weighing(weight: f64) -> LoadReport {
        LoadReport {
            cpu_utilization: 0.5,
            rps: weight / 2.0,
            ..LoadReport::default()
        }
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn weight(load: &Load, millis: u64) -> Option<f64> {
        load.reported_weight(at(millis), BLACKOUT, EXPIRATION, 1.0)
    }

    #[test]
    fn a_weight_counts_from_the_end_of_the_blackout() {
        let load = load();
        assert_eq!(weight(&load, 0), None, "nothing was said");
        let silent = LoadReport {
            rps: 9.0,
            ..LoadReport::default()
        };
        load.report(&silent, at(0));
        let idle = LoadReport {
            cpu_utilization: 0.5,
            ..LoadReport::default()
        };
        load.report(&idle, at(500));
        load.report(&weighing(50.0), at(1_000));
        assert_eq!(weight(&load, 10_999), None);
        assert_eq!(weight(&load, 11_000), Some(50.0));
        load.report(&weighing(60.0), at(12_000));
        assert_eq!(weight(&load, 12_000), Some(60.0));
        load.report(&silent, at(13_000));
        load.report(&idle, at(13_000));
        assert_eq!(weight(&load, 13_000), Some(60.0), "neither has a weight");
    }

    #[test]
    fn a_weight_counts_to_its_expiration_and_then_waits_again() {
        let load = load();
        load.report(&weighing(50.0), at(0));
        assert_eq!(weight(&load, 179_999), Some(50.0));
        assert_eq!(weight(&load, 180_000), None);
        load.report(&weighing(60.0), at(181_000));
        assert_eq!(weight(&load, 190_999), None);
        assert_eq!(weight(&load, 191_000), Some(60.0));
    }

    #[test]
    fn one_that_comes_back_waits_again() {
        let load = load();
        load.report(&weighing(50.0), at(0));
        assert_eq!(weight(&load, 20_000), Some(50.0));
        assert_eq!(
            load.utilization(at(20_000), EXPIRATION),
            Some(0.5),
            "no blackout"
        );
        load.join(None, at(21_000));
        assert_eq!(weight(&load, 22_000), None);
        assert_eq!(load.utilization(at(22_000), EXPIRATION), None);
        assert_eq!(load.reported(at(22_000), EXPIRATION), None);
        let without = load.reported_weight(at(22_000), Duration::ZERO, EXPIRATION, 1.0);
        assert_eq!(without, Some(50.0));
        load.report(&weighing(70.0), at(23_000));
        assert_eq!(weight(&load, 32_999), None);
        assert_eq!(weight(&load, 33_000), Some(70.0));
    }

    #[test]
    fn errors_count_as_utilization() {
        let load = load();
        let failing = LoadReport {
            application_utilization: 0.5,
            rps: 100.0,
            eps: 10.0,
            ..LoadReport::default()
        };
        load.report(&failing, at(0));
        let weight = |penalty| load.reported_weight(at(0), Duration::ZERO, EXPIRATION, penalty);
        assert_eq!(weight(0.0), Some(200.0));
        assert_eq!(weight(5.0), Some(100.0));
        for bad in [f64::NAN, f64::INFINITY, -5.0, -6.0] {
            assert_eq!(weight(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_utilization_counts_to_its_expiration() {
        let load = load();
        let utilization = |millis| load.utilization(at(millis), Duration::from_secs(3));
        assert_eq!(utilization(0), None);
        load.report(&weighing(1.0), at(1_000));
        assert_eq!(utilization(3_999), Some(0.5));
        assert_eq!(utilization(4_000), None);
        let only_memory = LoadReport {
            mem_utilization: 0.7,
            ..LoadReport::default()
        };
        load.report(&only_memory, at(3_000));
        assert_eq!(utilization(3_999), Some(0.5), "not taken back");
        assert_eq!(utilization(4_000), None, "and not renewed");
        let last = |millis| load.reported(at(millis), Duration::from_secs(3));
        assert_eq!(last(5_999), Some(only_memory));
        assert_eq!(last(6_000), None);
        assert_eq!(utilization(0), Some(0.5), "a clock that went back");
    }

    /// Whatever is reported, no figure that comes out is negative or not finite.
    #[test]
    fn no_report_poisons() {
        let values = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            -1.0,
            -0.0,
            0.0,
            f64::MIN_POSITIVE * f64::EPSILON,
            0.5,
            f64::MAX,
        ];
        let load = load();
        let mut weights = 0;
        for cpu_utilization in values {
            for application_utilization in values {
                for rps in values {
                    for eps in values {
                        let report = LoadReport {
                            cpu_utilization,
                            application_utilization,
                            mem_utilization: rps,
                            rps,
                            eps,
                        };
                        load.report(&report, at(5));
                        let weight = load.reported_weight(at(5), Duration::ZERO, EXPIRATION, 1.0);
                        assert!(weight.is_none_or(|w| w.is_finite() && w > 0.0));
                        weights += u32::from(weight.is_some());
                        let utilization = load.utilization(at(5), EXPIRATION);
                        assert!(utilization.is_none_or(|u| u.is_finite() && u > 0.0));
                        let last = load.reported(at(5), EXPIRATION).unwrap();
                        assert_eq!(last, last.sane());
                    }
                }
            }
        }
        assert!(weights > 0);
    }

    #[test]
    fn what_was_said_is_said_to_every_policy() {
        let [first, second] = [load(), load()];
        let loads = Loads::new(first, [second]);
        loads.report(&weighing(50.0), at(1));
        for load in loads.iter() {
            assert_eq!(load.utilization(at(1), EXPIRATION), Some(0.5));
        }
    }
}
