//! When is an endpoint too bad to be used, and for how long?

use std::time::Duration;

use crate::error::Error;

/// Which endpoints are taken out of use for failing while the others do not, and for how long: gRPC's outlier
/// detection (A50), and runs of failures.
///
/// An endpoint is *ejected* by any of three rules: so many failures in a row, a share of failures that is too high,
/// a share of successes far below that of the others. It gets no calls for a while, longer each time; then it is on
/// *probation*, with one call at a time, until one of them is answered; a call without a word for a whole interval is not
/// waited for. From then on it is given calls as usual, fewer
/// at first.
///
/// The defaults are A50's where it has any, but for what is said below: there, no rule is on by itself.
///
/// ```
/// use equipoise::balancer::{MaxEjection, OutlierDetection, SuccessRate};
/// use std::time::Duration;
///
/// let detection = OutlierDetection::default()
///     .with_base_ejection_time(Duration::from_secs(10))
///     .with_max_ejection(MaxEjection::Share(30))
///     .with_success_rate(SuccessRate::default().with_request_volume(200))
///     .with_consecutive_failures(None);
/// detection.validate()?;
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    pub(super) interval: Duration,
    base_ejection_time: Duration,
    max_ejection_time: Duration,
    pub(super) max_ejection: MaxEjection,
    pub(super) success_rate: Option<SuccessRate>,
    pub(super) failure_percentage: Option<FailurePercentage>,
    consecutive_failures: Option<u32>,
    slow_start: Duration,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection: MaxEjection::default(),
            success_rate: None,
            failure_percentage: Some(FailurePercentage::default()),
            consecutive_failures: Some(5),
            slow_start: Duration::from_secs(5),
        }
    }
}

impl OutlierDetection {
    /// How often the shares of successes and failures are looked at; each time, those of the calls since the last.
    /// Default 10 s; at least 1 ms.
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How long an endpoint is out the first time. Each further time adds as much, and each interval in which it is not
    /// out takes one time back. Default 30 s; any.
    pub fn with_base_ejection_time(mut self, time: Duration) -> Self {
        self.base_ejection_time = time;
        self
    }

    /// The longest an endpoint is out at a time. Default 300 s; any, but less than the base time counts as that.
    pub fn with_max_ejection_time(mut self, time: Duration) -> Self {
        self.max_ejection_time = time;
        self
    }

    /// How many endpoints may be out at the same time, those on probation included. Default `MaxEjection::Share(50)`.
    pub fn with_max_ejection(mut self, most: MaxEjection) -> Self {
        self.max_ejection = most;
        self
    }

    /// Ejects by the share of successes, compared with that of the others. Default `None`: of endpoints that are all
    /// alike one is always the last, so by this rule chance alone ejects now and then.
    pub fn with_success_rate(mut self, rule: impl Into<Option<SuccessRate>>) -> Self {
        self.success_rate = rule.into();
        self
    }

    /// Ejects by the share of failures. Default `FailurePercentage::default()`.
    pub fn with_failure_percentage(mut self, rule: impl Into<Option<FailurePercentage>>) -> Self {
        self.failure_percentage = rule.into();
        self
    }

    /// Ejects at once after so many failures without a success between. Default 5, as in Envoy and Finagle; at least 1;
    /// `None` for never. Of endpoints that fail with a chance of p, one call in about 1/p⁵ ejects its endpoint: at 3 %
    /// and 1,000 calls a second, two a day; at 1 %, one in a hundred days.
    pub fn with_consecutive_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.consecutive_failures = failures.into();
        self
    }

    /// How long an endpoint that is back gets fewer calls than its share, from a tenth of it on. Default 5 s; any, 0
    /// gives it its share at once.
    pub fn with_slow_start(mut self, window: Duration) -> Self {
        self.slow_start = window;
        self
    }

    /// Whether these can be used.
    ///
    /// # Errors
    ///
    /// Names the first value out of its range, and the range.
    pub fn validate(&self) -> Result<(), Error> {
        const LEAST: Duration = Duration::from_millis(1);
        if self.interval < LEAST {
            return Err(Error::config(format!(
                "outlier detection interval {:?} must be at least {LEAST:?}",
                self.interval
            )));
        }
        if self.consecutive_failures == Some(0) {
            return Err(Error::config("consecutive failures 0 must be at least 1"));
        }
        let (MaxEjection::Share(most) | MaxEjection::A50(most)) = self.max_ejection;
        percentage("max ejection", most)?;
        if let Some(rule) = self.success_rate {
            percentage("success rate enforcement", rule.enforcement)?;
        }
        if let Some(rule) = self.failure_percentage {
            percentage("failure percentage threshold", rule.threshold)?;
            percentage("failure percentage enforcement", rule.enforcement)?;
        }
        Ok(())
    }

    /// How many failures in a row eject, if any do.
    pub(crate) fn consecutive_failures(&self) -> Option<u32> {
        self.consecutive_failures
    }

    /// How long an endpoint that is back gets fewer calls.
    pub(crate) fn slow_start(&self) -> Duration {
        self.slow_start
    }

    /// How long an endpoint is out that is ejected for the `times`-th time.
    pub(super) fn ejection_time(&self, times: u32) -> Duration {
        let longest = self.max_ejection_time.max(self.base_ejection_time);
        self.base_ejection_time.saturating_mul(times).min(longest)
    }
}

fn percentage(what: &str, value: u32) -> Result<(), Error> {
    match value {
        0..=100 => Ok(()),
        _ => Err(Error::config(format!("{what} {value} is not in 0..=100"))),
    }
}

/// How many endpoints may be out at the same time, as a percentage of all, 0..=100; rounded up, so that any but 0
/// is enough for one.
///
/// It holds at every moment: where the fleet shrinks, endpoints come back before their time. And where as many are out
/// as may be, and another is to be ejected, one on probation is let back for it, untried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MaxEjection {
    /// Never the last one: of one endpoint none, of two one; by half, of three two.
    Share(u32),
    /// As gRPC counts (A50), which may take the last one out as well: of one endpoint that one.
    A50(u32),
}

impl Default for MaxEjection {
    /// Half of them, but never the last. (A50 has 10 %; Envoy goes on with ejected ones when half are.)
    fn default() -> Self {
        Self::Share(50)
    }
}

impl MaxEjection {
    /// How many of `all` may be out.
    pub(super) fn of(self, all: usize) -> usize {
        // A50 ejects one more while 100 × ejected ÷ all is below the percentage, which comes to the same.
        let rounded_up = |percent: u32| {
            let hundredths = all as u128 * u128::from(percent.min(100));
            usize::try_from(hundredths.div_ceil(100)).unwrap_or(all)
        };
        match self {
            Self::Share(percent) => rounded_up(percent).min(all.saturating_sub(1)),
            Self::A50(percent) => rounded_up(percent),
        }
    }
}

/// Ejects whose share of successes is more than so many standard deviations below the mean.
///
/// One endpoint among n is at most √(n − 1) deviations away, so with the default factor nobody can be found among
/// fewer than five.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    pub(super) stdev_factor: u32,
    pub(super) enforcement: u32,
    pub(super) minimum_hosts: u32,
    pub(super) request_volume: u32,
}

impl Default for SuccessRate {
    /// A50's.
    fn default() -> Self {
        Self {
            stdev_factor: 1_900,
            enforcement: 100,
            minimum_hosts: 5,
            request_volume: 100,
        }
    }
}

impl SuccessRate {
    /// How many thousandths of a standard deviation below the mean are too many. Default 1,900; any.
    pub fn with_stdev_factor(mut self, thousandths: u32) -> Self {
        self.stdev_factor = thousandths;
        self
    }

    /// How many of a hundred that this rule finds are in fact ejected, by chance. Default 100; 0..=100.
    pub fn with_enforcement(mut self, percent: u32) -> Self {
        self.enforcement = percent;
        self
    }

    /// How many endpoints must have had enough calls for the rule to say anything. Default 5; any.
    pub fn with_minimum_hosts(mut self, hosts: u32) -> Self {
        self.minimum_hosts = hosts;
        self
    }

    /// How many calls in an interval are enough for an endpoint to be looked at. Default 100; any, without calls nobody
    /// is.
    pub fn with_request_volume(mut self, calls: u32) -> Self {
        self.request_volume = calls;
        self
    }
}

/// Ejects whose share of failures is above a fixed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    pub(super) threshold: u32,
    pub(super) enforcement: u32,
    pub(super) minimum_hosts: u32,
    pub(super) request_volume: u32,
}

impl Default for FailurePercentage {
    /// A50's, but for the number of hosts.
    fn default() -> Self {
        Self {
            threshold: 85,
            enforcement: 100,
            minimum_hosts: 2,
            request_volume: 50,
        }
    }
}

impl FailurePercentage {
    /// What percentage of failures is still borne: who has more is ejected. Default 85; 0..=100, where 100 ejects
    /// nobody.
    pub fn with_threshold(mut self, percent: u32) -> Self {
        self.threshold = percent;
        self
    }

    /// How many of a hundred that this rule finds are in fact ejected, by chance. Default 100; 0..=100.
    pub fn with_enforcement(mut self, percent: u32) -> Self {
        self.enforcement = percent;
        self
    }

    /// How many endpoints must have had enough calls for the rule to say anything. Default 2, where A50 has 5: the
    /// threshold is fixed, so there is no statistic that few endpoints would spoil, and a fleet of three is to be
    /// looked after too. Any.
    pub fn with_minimum_hosts(mut self, hosts: u32) -> Self {
        self.minimum_hosts = hosts;
        self
    }

    /// How many calls in an interval are enough for an endpoint to be looked at. Default 50; any, without calls nobody
    /// is.
    pub fn with_request_volume(mut self, calls: u32) -> Self {
        self.request_volume = calls;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let detection = OutlierDetection::default();
        assert!(detection.validate().is_ok());
        let named = detection
            .with_interval(Duration::from_secs(10))
            .with_base_ejection_time(Duration::from_secs(30))
            .with_max_ejection_time(Duration::from_secs(300))
            .with_max_ejection(MaxEjection::Share(50))
            .with_success_rate(None)
            .with_failure_percentage(
                FailurePercentage::default()
                    .with_threshold(85)
                    .with_enforcement(100)
                    .with_minimum_hosts(2)
                    .with_request_volume(50),
            )
            .with_consecutive_failures(5)
            .with_slow_start(Duration::from_secs(5));
        assert_eq!(detection, named);
        assert_eq!(detection.consecutive_failures(), Some(5));
        assert_eq!(detection.slow_start(), Duration::from_secs(5));
        let rule = SuccessRate::default();
        let named = rule.with_stdev_factor(1_900).with_enforcement(100);
        assert_eq!(rule, named.with_minimum_hosts(5).with_request_volume(100));
    }

    #[test]
    fn bad_settings_name_value_and_rule() {
        let good = OutlierDetection::default();
        let by_rate = SuccessRate::default();
        let by_share = FailurePercentage::default();
        for (bad, text) in [
            (
                good.with_interval(Duration::ZERO),
                "interval 0ns must be at least 1ms",
            ),
            (
                good.with_interval(Duration::from_micros(999)),
                "interval 999µs must be at least 1ms",
            ),
            (
                good.with_consecutive_failures(0),
                "consecutive failures 0 must be at least 1",
            ),
            (
                good.with_max_ejection(MaxEjection::Share(101)),
                "max ejection 101 is not in 0..=100",
            ),
            (
                good.with_max_ejection(MaxEjection::A50(u32::MAX)),
                "max ejection 4294967295 is not in 0..=100",
            ),
            (
                good.with_success_rate(by_rate.with_enforcement(101)),
                "success rate enforcement 101 is not in 0..=100",
            ),
            (
                good.with_failure_percentage(by_share.with_threshold(101)),
                "failure percentage threshold 101 is not in 0..=100",
            ),
            (
                good.with_failure_percentage(by_share.with_enforcement(200)),
                "failure percentage enforcement 200 is not in 0..=100",
            ),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(
                error.is_config() && error.to_string().contains(text),
                "{error}"
            );
        }
    }

    #[test]
    fn times_grow_up_to_the_longest_and_never_overflow() {
        let detection = OutlierDetection::default();
        assert_eq!(detection.ejection_time(1), Duration::from_secs(30));
        assert_eq!(detection.ejection_time(u32::MAX), Duration::from_secs(300));
        let shorter = detection.with_max_ejection_time(Duration::ZERO);
        assert_eq!(shorter.ejection_time(9), Duration::from_secs(30));
        let endless = detection
            .with_base_ejection_time(Duration::MAX)
            .with_max_ejection_time(Duration::MAX);
        assert_eq!(endless.ejection_time(u32::MAX), Duration::MAX);
    }

    #[test]
    fn how_many_may_be_out_is_exact_for_few() {
        // Of one, two, three, four, five.
        for (most, expected) in [
            (MaxEjection::Share(50), [0, 1, 2, 2, 3]),
            (MaxEjection::Share(10), [0, 1, 1, 1, 1]),
            (MaxEjection::Share(0), [0, 0, 0, 0, 0]),
            (MaxEjection::Share(100), [0, 1, 2, 3, 4]),
            (MaxEjection::A50(10), [1, 1, 1, 1, 1]),
            (MaxEjection::A50(100), [1, 2, 3, 4, 5]),
        ] {
            let all: [usize; 5] = [1, 2, 3, 4, 5];
            assert_eq!(all.map(|all| most.of(all)), expected, "{most:?}");
        }
        assert_eq!(MaxEjection::Share(50).of(0), 0);
        assert_eq!(MaxEjection::A50(100).of(usize::MAX), usize::MAX);
    }
}
