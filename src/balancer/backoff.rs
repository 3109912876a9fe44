//! When may a place that failed be dialled again?

use std::time::Duration;

use crate::error::Error;
use crate::rng::Rng;

/// How long to wait after a failed attempt: longer each time, up to a cap, spread by chance so that a
/// fleet of clients does not come back in step.
///
/// The defaults are those of gRPC's connection backoff document: 1 s, 1.6, ± 20 %, 120 s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The wait after the first failure. Default 1 s; more than zero.
    pub base: Duration,
    /// How many times longer each further wait is. Default 1.6; at least 1.
    pub multiplier: f64,
    /// The share of a wait by which chance lengthens or shortens it. Default 0.2; in `0.0..1.0`. It is
    /// applied after the cap, so a wait can reach `cap * (1 + jitter)`.
    pub jitter: f64,
    /// The longest wait before jitter. Default 120 s; at least `base`.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(1),
            multiplier: 1.6,
            jitter: 0.2,
            cap: Duration::from_secs(120),
        }
    }
}

impl Backoff {
    /// Whether the schedule makes sense.
    ///
    /// # Errors
    ///
    /// Names the first value out of its range, and the range.
    pub fn validate(&self) -> Result<(), Error> {
        let Self {
            base,
            multiplier,
            jitter,
            cap,
        } = *self;
        if base.is_zero() {
            return Err(Error::config("backoff base 0s must be more than zero"));
        }
        // Negated, so that NaN is refused with the rest.
        if !(multiplier >= 1.0 && multiplier.is_finite()) {
            return Err(Error::config(format!(
                "backoff multiplier {multiplier} must be finite and at least 1"
            )));
        }
        if !(0.0..1.0).contains(&jitter) {
            return Err(Error::config(format!(
                "backoff jitter {jitter} is not in 0.0..1.0"
            )));
        }
        if cap < base {
            return Err(Error::config(format!(
                "backoff cap {cap:?} must be at least the base, {base:?}"
            )));
        }
        Ok(())
    }

    /// The wait after the `failures`-th failure in a row, before jitter.
    pub fn nominal(&self, failures: u32) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.base.as_secs_f64() * self.multiplier.powi(exponent);
        // Infinity and anything else beyond a Duration lies beyond the cap too.
        Duration::try_from_secs_f64(grown).map_or(self.cap, |wait| wait.min(self.cap))
    }

    /// The wait after the `failures`-th failure in a row.
    pub(crate) fn delay(&self, failures: u32, rng: &mut Rng) -> Duration {
        let spread = 1.0 + self.jitter * (2.0 * rng.unit() - 1.0);
        let nominal = self.nominal(failures);
        Duration::try_from_secs_f64(nominal.as_secs_f64() * spread).unwrap_or(nominal)
    }

    /// How long a connection must have lived before the failures before it are forgiven. Without a
    /// floor a server that closes each new connection would be dialled in a tight loop.
    pub(super) fn forgiveness(&self) -> Duration {
        self.base.min(Duration::from_millis(250))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // misc.json: connection_backoff.
    const NOMINAL: [f64; 13] = [
        1.0, 1.6, 2.56, 4.096, 6.5536, 10.48576, 16.777216, 26.843546, 42.949673, 68.719477,
        109.951163, 120.0, 120.0,
    ];
    const BOUNDS: [(f64, f64); 13] = [
        (0.8, 1.2),
        (1.28, 1.92),
        (2.048, 3.072),
        (3.2768, 4.9152),
        (5.2429, 7.8643),
        (8.3886, 12.5829),
        (13.4218, 20.1327),
        (21.4748, 32.2123),
        (34.3597, 51.5396),
        (54.9756, 82.4634),
        (87.9609, 131.9414),
        (96.0, 144.0),
        (96.0, 144.0),
    ];

    #[test]
    fn waits_follow_the_published_schedule() {
        let backoff = Backoff::default();
        for (failures, nominal) in (1..).zip(NOMINAL) {
            let got = backoff.nominal(failures).as_secs_f64();
            assert!((got - nominal).abs() < 1e-5, "failure {failures}: {got}");
        }
        assert_eq!(backoff.nominal(u32::MAX), Duration::from_secs(120));
        assert_eq!(backoff.nominal(0), Duration::from_secs(1));
    }

    #[test]
    fn jitter_spreads_each_wait_over_its_whole_range() {
        let backoff = Backoff::default();
        let mut rng = Rng::new(3);
        for (failures, (low, high)) in (1..).zip(BOUNDS) {
            let waits: Vec<f64> = (0..2_000)
                .map(|_| backoff.delay(failures, &mut rng).as_secs_f64())
                .collect();
            let least = waits.iter().copied().fold(f64::MAX, f64::min);
            let most = waits.iter().copied().fold(f64::MIN, f64::max);
            assert!(
                least >= low - 1e-3 && most <= high + 1e-3,
                "{least}..{most}"
            );
            // The ends of the range are reached, so the bounds above are not met by standing still.
            assert!(least < low * 1.02 && most > high * 0.98, "{least}..{most}");
        }
    }

    #[test]
    fn a_bad_schedule_names_value_and_rule() {
        let good = Backoff::default();
        assert!(good.validate().is_ok());
        for (bad, text) in [
            (
                Backoff {
                    base: Duration::ZERO,
                    ..good
                },
                "base 0s must be more than zero",
            ),
            (
                Backoff {
                    multiplier: 0.9,
                    ..good
                },
                "multiplier 0.9 must be finite and at least 1",
            ),
            (
                Backoff {
                    multiplier: f64::NAN,
                    ..good
                },
                "multiplier NaN must",
            ),
            (
                Backoff {
                    multiplier: f64::INFINITY,
                    ..good
                },
                "multiplier inf must",
            ),
            (
                Backoff {
                    jitter: 1.0,
                    ..good
                },
                "jitter 1 is not in 0.0..1.0",
            ),
            (
                Backoff {
                    jitter: -0.1,
                    ..good
                },
                "jitter -0.1 is not in",
            ),
            (
                Backoff {
                    cap: Duration::from_millis(999),
                    ..good
                },
                "cap 999ms must be at least the base, 1s",
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
    fn extreme_schedules_stay_finite() {
        let endless = Backoff {
            base: Duration::MAX,
            multiplier: f64::MAX,
            jitter: 0.99,
            cap: Duration::MAX,
        };
        assert!(endless.validate().is_ok());
        assert_eq!(endless.nominal(9), Duration::MAX);
        assert!(endless.delay(9, &mut Rng::new(1)) > Duration::from_secs(1));
    }
}
