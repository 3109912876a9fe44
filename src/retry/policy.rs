//! What a user writes: how often, when and after which codes another attempt is made.

use std::time::Duration;

use crate::error::Error;
use crate::report::StatusCode;

/// gRPC's own limit: five copies of one request are enough for any server.
pub(super) const MOST_ATTEMPTS: u32 = 5;

/// Tries a call again that failed: one attempt after the other, each after a longer wait (gRFC A6).
///
/// **For idempotent methods only**: an attempt that failed may have been carried out all the same. Nothing is tried
/// again once response headers were received, or once the request is larger than what is kept of it.
///
/// Every attempt is of the same call, so all of them together have its deadline; a wait that would outlast it is not
/// begun. All further attempts of a channel share a [`RetryBudget`](super::RetryBudget). Where the caller, or a proxy
/// on the way, tries again as well, attempts multiply: let one of them do it.
///
/// ```
/// use equipoise::StatusCode;
/// use equipoise::retry::RetryPolicy;
/// use std::time::Duration;
///
/// let policy = RetryPolicy::default()
///     .with_max_attempts(4)
///     .with_backoff(Duration::from_millis(100), Duration::from_secs(1))
///     .with_codes([StatusCode::UNAVAILABLE, StatusCode::RESOURCE_EXHAUSTED]);
/// policy.validate()?;
/// assert!(policy.with_max_attempts(6).validate().is_err());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    pub(super) max_attempts: u32,
    initial_backoff: Duration,
    max_backoff: Duration,
    multiplier: f64,
    pub(super) codes: Codes,
}

impl Default for RetryPolicy {
    /// Three attempts at UNAVAILABLE, 50 ms and 100 ms apart, give or take a fifth.
    fn default() -> Self {
        Self {
            max_attempts: 3,
            // Another endpoint gets the next attempt, so the wait is not for the first to recover: it is long enough
            // for a hiccup that all of them share (a rolling restart, a new leader), and short beside a deadline.
            // Envoy has 25 ms, gRPC's examples 100 ms.
            initial_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            multiplier: 2.0,
            codes: Codes::of([StatusCode::UNAVAILABLE]),
        }
    }
}

impl RetryPolicy {
    /// How many attempts there are at most, the first one included. Default 3; in `2..=5`, gRPC's own limit.
    pub fn with_max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = max_attempts;
        self
    }

    /// How long to wait before the second attempt, and at most before any. Chance makes each wait up to a fifth
    /// shorter or longer, after that limit. Default 50 ms and 1 s; both above zero.
    ///
    /// A wait that the server asks for ([`Pushback`](super::Pushback)) is kept to exactly, and the next one begins at
    /// `initial` again.
    pub fn with_backoff(mut self, initial: Duration, max: Duration) -> Self {
        (self.initial_backoff, self.max_backoff) = (initial, max);
        self
    }

    /// How many times longer each further wait is. Default 2; above zero and finite.
    pub fn with_multiplier(mut self, multiplier: f64) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// Which failures are tried again, instead of UNAVAILABLE alone. At least one, and not OK.
    pub fn with_codes(mut self, codes: impl IntoIterator<Item = StatusCode>) -> Self {
        self.codes = Codes::of(codes);
        self
    }

    /// Whether the policy makes sense.
    ///
    /// # Errors
    ///
    /// Names the first value out of its range, and the range.
    pub fn validate(&self) -> Result<(), Error> {
        check_attempts("retry", self.max_attempts)?;
        for (name, backoff) in [
            ("initial", self.initial_backoff),
            ("longest", self.max_backoff),
        ] {
            if backoff.is_zero() {
                return Err(Error::config(format!(
                    "retry: {name} backoff {backoff:?} is not above zero"
                )));
            }
        }
        // Negated, so that NaN is refused with the rest.
        if !(self.multiplier > 0.0 && self.multiplier.is_finite()) {
            return Err(Error::config(format!(
                "retry: backoff multiplier {} must be finite and above zero",
                self.multiplier
            )));
        }
        if self.codes.is_empty() {
            return Err(Error::config("retry: no codes are given to try again at"));
        }
        check_codes("retry", self.codes)
    }

    /// The wait after `retries` earlier ones, before chance.
    pub fn nominal_backoff(&self, retries: u32) -> Duration {
        let exponent = i32::try_from(retries).unwrap_or(i32::MAX);
        let grown = self.initial_backoff.as_secs_f64() * self.multiplier.powi(exponent);
        // Infinity and anything else beyond a Duration lies beyond the limit too.
        Duration::try_from_secs_f64(grown)
            .map_or(self.max_backoff, |wait| wait.min(self.max_backoff))
    }

    /// The same with chance: times 0.8 to 1.2, by a random word.
    pub fn backoff(&self, retries: u32, random: u64) -> Duration {
        // The highest 53 bits: as many as an f64 has.
        let unit = (random >> 11) as f64 / (1u64 << 53) as f64;
        let nominal = self.nominal_backoff(retries);
        Duration::try_from_secs_f64(nominal.as_secs_f64() * (0.8 + 0.4 * unit)).unwrap_or(nominal)
    }
}

/// Sends a call that takes long to a second endpoint as well, and takes whichever answers first (gRFC A6).
///
/// **For idempotent methods only**: the call may be carried out more than once. The first response headers decide; the
/// other attempts are cancelled then. A code that is not among the non-fatal ones decides too.
///
/// The next attempt is sent when the last one has been under way for the delay: by default the 95th percentile of what
/// the method took of late, so that one call in twenty is sent twice as long as nothing is wrong. An attempt that fails
/// with a non-fatal code is replaced at once. Copies of attempts under way are bounded by the hedges' share of the
/// channel's [`RetryBudget`](super::RetryBudget), replacements by the whole of it. A call that is still waiting for an
/// endpoint is not hedged: its copy would stand in the same line.
///
/// ```
/// use equipoise::retry::HedgingPolicy;
/// use std::time::Duration;
///
/// let policy = HedgingPolicy::default();
/// let fixed = HedgingPolicy::after(Duration::from_millis(20)).with_max_attempts(3);
/// fixed.validate()?;
/// assert!(fixed.with_max_attempts(1).validate().is_err());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgingPolicy {
    pub(super) max_attempts: u32,
    delay: Delay,
    pub(super) codes: Codes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delay {
    Fixed(Duration),
    /// The 95th percentile, or this while it is not known.
    Live(Duration),
}

/// No delay that is measured is shorter: copies sent sooner would mostly cross the answer on its way.
const SHORTEST_LIVE_DELAY: Duration = Duration::from_millis(1);

impl Default for HedgingPolicy {
    /// Two attempts, the second after the method's 95th percentile, or 1 s while that is not known: longer than most
    /// methods take, since nothing tells whether this one does. UNAVAILABLE is not fatal.
    fn default() -> Self {
        Self {
            max_attempts: 2,
            delay: Delay::Live(Duration::from_secs(1)),
            codes: Codes::of([StatusCode::UNAVAILABLE]),
        }
    }
}

impl HedgingPolicy {
    /// Sends the next attempt a fixed time after the last; zero sends all of them at once, as far as the budget goes.
    pub fn after(delay: Duration) -> Self {
        Self {
            delay: Delay::Fixed(delay),
            ..Self::default()
        }
    }

    /// Waits for the method's 95th percentile, at least 1 ms, or for `unknown` while too few calls have ended to tell.
    /// Default 1 s; above zero.
    pub fn at_p95_or(unknown: Duration) -> Self {
        Self {
            delay: Delay::Live(unknown),
            ..Self::default()
        }
    }

    /// How many attempts there are at most, the first one included. Default 2; in `2..=5`, gRPC's own limit.
    pub fn with_max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = max_attempts;
        self
    }

    /// Which failures do not decide the call while another attempt may do better, instead of UNAVAILABLE alone. May be
    /// none; not OK.
    pub fn with_non_fatal_codes(mut self, codes: impl IntoIterator<Item = StatusCode>) -> Self {
        self.codes = Codes::of(codes);
        self
    }

    /// Whether the policy makes sense.
    ///
    /// # Errors
    ///
    /// Names the first value out of its range, and the range.
    pub fn validate(&self) -> Result<(), Error> {
        check_attempts("hedging", self.max_attempts)?;
        if self.delay == Delay::Live(Duration::ZERO) {
            return Err(Error::config(
                "hedging: delay 0ns while the 95th percentile is unknown is not above zero",
            ));
        }
        check_codes("hedging", self.codes)
    }

    /// Whether the delay is the method's 95th percentile, so that it has to be known.
    pub fn is_live(&self) -> bool {
        matches!(self.delay, Delay::Live(_))
    }

    /// How long the last attempt is under way before the next is sent.
    pub fn delay(&self, p95: Option<Duration>) -> Duration {
        match (self.delay, p95) {
            (Delay::Fixed(delay), _) | (Delay::Live(delay), None) => delay,
            (Delay::Live(_), Some(p95)) => p95.max(SHORTEST_LIVE_DELAY),
        }
    }
}

fn check_attempts(whose: &str, max_attempts: u32) -> Result<(), Error> {
    match (2..=MOST_ATTEMPTS).contains(&max_attempts) {
        true => Ok(()),
        false => Err(Error::config(format!(
            "{whose}: {max_attempts} attempts are not in 2..={MOST_ATTEMPTS}"
        ))),
    }
}

fn check_codes(whose: &str, codes: Codes) -> Result<(), Error> {
    match codes.contains(StatusCode::OK) {
        true => Err(Error::config(format!("{whose}: OK is not a failure"))),
        false => Ok(()),
    }
}

/// A set of codes: one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Codes(u32);

impl Codes {
    fn of(codes: impl IntoIterator<Item = StatusCode>) -> Self {
        Self(
            codes
                .into_iter()
                .fold(0, |set, code| set | 1 << code.number()),
        )
    }

    pub(super) fn contains(self, code: StatusCode) -> bool {
        self.0 & 1 << code.number() != 0
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn chance_spreads_a_wait_over_its_whole_range() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.backoff(0, 0), Duration::from_millis(40));
        assert_eq!(policy.backoff(0, 1 << 63), Duration::from_millis(50));
        assert_eq!(policy.backoff(0, u64::MAX), Duration::from_millis(60));
        let mut rng = Rng::new(5);
        for retries in 0..6 {
            let nominal = policy.nominal_backoff(retries).as_secs_f64();
            let shares: Vec<f64> = (0..2_000)
                .map(|_| policy.backoff(retries, rng.word()).as_secs_f64() / nominal)
                .collect();
            let least = shares.iter().copied().fold(f64::MAX, f64::min);
            let most = shares.iter().copied().fold(f64::MIN, f64::max);
            assert!((0.8 - 1e-6..0.805).contains(&least), "{least}");
            assert!((1.195..1.2 + 1e-6).contains(&most), "{most}");
        }
    }

    #[test]
    fn extreme_waits_stay_finite() {
        let endless = RetryPolicy::default()
            .with_backoff(Duration::MAX, Duration::MAX)
            .with_multiplier(f64::MAX);
        assert!(endless.validate().is_ok());
        assert_eq!(endless.nominal_backoff(u32::MAX), Duration::MAX);
        assert!(endless.backoff(4, u64::MAX) >= Duration::MAX / 2);
        let shrinking = RetryPolicy::default().with_multiplier(1e-300);
        assert_eq!(shrinking.nominal_backoff(3), Duration::ZERO);
    }

    #[test]
    fn a_bad_retry_policy_names_value_and_rule() {
        let good = RetryPolicy::default();
        let (zero, second) = (Duration::ZERO, Duration::from_secs(1));
        for (bad, text) in [
            (
                good.with_max_attempts(1),
                "retry: 1 attempts are not in 2..=5",
            ),
            (good.with_max_attempts(6), "6 attempts are not in 2..=5"),
            (
                good.with_backoff(zero, second),
                "initial backoff 0ns is not above zero",
            ),
            (
                good.with_backoff(second, zero),
                "longest backoff 0ns is not above zero",
            ),
            (good.with_multiplier(0.0), "multiplier 0 must be finite"),
            (good.with_multiplier(f64::NAN), "multiplier NaN must"),
            (good.with_multiplier(f64::INFINITY), "multiplier inf must"),
            (good.with_codes([]), "no codes are given"),
            (good.with_codes([StatusCode::OK]), "OK is not a failure"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(
                error.is_config() && error.to_string().contains(text),
                "{error}"
            );
        }
        for good in [
            good,
            good.with_max_attempts(2).with_multiplier(0.5),
            good.with_max_attempts(5).with_backoff(second, second / 2),
        ] {
            assert!(good.validate().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_bad_hedging_policy_names_value_and_rule() {
        let good = HedgingPolicy::default();
        for (bad, text) in [
            (
                good.with_max_attempts(1),
                "hedging: 1 attempts are not in 2..=5",
            ),
            (good.with_max_attempts(6), "6 attempts are not in"),
            (
                HedgingPolicy::at_p95_or(Duration::ZERO),
                "delay 0ns while the 95th percentile is unknown",
            ),
            (
                good.with_non_fatal_codes([StatusCode::OK]),
                "hedging: OK is not a failure",
            ),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(
                error.is_config() && error.to_string().contains(text),
                "{error}"
            );
        }
        for good in [
            good,
            good.with_non_fatal_codes([]),
            HedgingPolicy::after(Duration::ZERO).with_max_attempts(5),
        ] {
            assert!(good.validate().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_live_delay_is_the_percentile_where_it_is_known() {
        let millis = Duration::from_millis;
        let live = HedgingPolicy::at_p95_or(millis(30));
        assert_eq!(live.delay(None), millis(30));
        assert_eq!(live.delay(Some(millis(7))), millis(7));
        assert_eq!(live.delay(Some(Duration::from_micros(9))), millis(1));
        let fixed = HedgingPolicy::after(Duration::from_micros(9));
        assert_eq!(fixed.delay(Some(millis(7))), Duration::from_micros(9));
        assert!(live.is_live() && !fixed.is_live());
    }

    #[test]
    fn every_code_has_its_own_bit() {
        for one in (0..17).map(StatusCode::new) {
            let codes = Codes::of([one]);
            for other in (0..17).map(StatusCode::new) {
                assert_eq!(codes.contains(other), one == other);
            }
        }
    }
}
