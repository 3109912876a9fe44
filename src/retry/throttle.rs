//! Is it worth asking at all?

use std::time::Duration;

use super::window::Window;
use crate::error::Error;
use crate::report::StatusCode;
use crate::timestamp::Timestamp;

/// Turns calls away before they are sent, in the measure in which servers turn them away: the adaptive throttling of
/// Google's SRE book ("Handling Overload").
///
/// A server that refuses calls still pays for refusing them. So out of the calls of the last two minutes, those beyond
/// `multiplier` times the accepted ones are failed here, each with a chance of
/// `(requests − multiplier × accepts) ÷ (requests + 1)`. RESOURCE_EXHAUSTED and UNAVAILABLE are refusals; every other
/// end counts as accepted. With the default multiplier of 2 about one call is refused by the servers for each that they
/// accept.
///
/// What servers can take again, they are given again step by step: what is let through grows by a factor of e in every
/// `window ÷ multiplier`, a minute by default. That is quick where servers accept a part of the calls, and slow after
/// they accepted none at all: then one call passes in a window, and at 100 calls per second it takes ten to twenty
/// minutes until all pass (see [`with_window`](Self::with_window)).
///
/// ```
/// use equipoise::retry::{Throttle, Throttling};
/// use equipoise::{StatusCode, Timestamp};
///
/// let config = Throttling::default();
/// config.validate()?;
/// let (throttle, now) = (Throttle::new(&config), Timestamp::from_secs(1));
/// (0..99).for_each(|_| throttle.ended(StatusCode::UNAVAILABLE, now));
/// // 99 of 100 are turned away: of the words an even chance gives, those below that share.
/// assert!(!throttle.admit(now, u64::MAX / 100 * 98));
/// assert!(throttle.admit(now, u64::MAX));
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttling {
    multiplier: f64,
    window: Duration,
}

impl Default for Throttling {
    /// Twice as many calls as are accepted, over two minutes.
    fn default() -> Self {
        Self {
            multiplier: 2.0,
            window: Duration::from_secs(120),
        }
    }
}

impl Throttling {
    /// How many calls are sent for each that is accepted. Default 2, the book's; at least 1. With 1.1 servers refuse
    /// less, and recovery is noticed later: for where refusing costs as much as answering.
    pub fn with_multiplier(mut self, multiplier: f64) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// How far back calls count, in twelve slices. Default 2 min, the book's; in 10 s ..= 10 min. After an outage of all
    /// servers, 10 s let all calls pass again within one or two minutes, for one call per 10 s during it.
    pub fn with_window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Whether the settings make sense.
    ///
    /// # Errors
    ///
    /// Names the first value out of its range, and the range.
    pub fn validate(&self) -> Result<(), Error> {
        // Negated, so that NaN is refused with the rest.
        if !(self.multiplier >= 1.0 && self.multiplier.is_finite()) {
            return Err(Error::config(format!(
                "throttling multiplier {} must be finite and at least 1",
                self.multiplier
            )));
        }
        if !(WINDOWS.0..=WINDOWS.1).contains(&self.window) {
            return Err(Error::config(format!(
                "throttling window {:?} is not in {:?}..={:?}",
                self.window, WINDOWS.0, WINDOWS.1
            )));
        }
        Ok(())
    }
}

/// Of these the current one may have just begun: so the window is shorter than it says by up to a twelfth.
const SLICES: usize = 12;
const WINDOWS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// A [`Throttling`] as it stands: shared by all calls of a channel, changed without a lock.
///
/// Calls count when they end. One under way is neither accepted nor refused: a channel full of long streams is not
/// overloaded. Nor is a call that its caller gave up, or that another endpoint took: those are not told here.
#[derive(Debug)]
pub struct Throttle {
    multiplier: f64,
    /// All that have ended, here or at a server.
    requests: Window<SLICES>,
    accepts: Window<SLICES>,
}

impl Throttle {
    /// Nothing was refused yet. What [`validate`](Throttling::validate) refuses turns nobody away that it should not.
    pub fn new(config: &Throttling) -> Self {
        Self {
            // A NaN becomes 1 too.
            multiplier: config.multiplier.max(1.0),
            requests: Window::of(config.window / SLICES as u32),
            accepts: Window::of(config.window / SLICES as u32),
        }
    }

    /// Whether a call may be sent, by a random word of its own. One that may not has ended: RESOURCE_EXHAUSTED is the
    /// word for it. Do not tell [`ended`](Self::ended) of it.
    pub fn admit(&self, now: Timestamp, random: u64) -> bool {
        // The highest 53 bits: as many as an f64 has.
        let unit = (random >> 11) as f64 / (1u64 << 53) as f64;
        let admitted = unit >= self.rejection(now);
        if !admitted {
            // It counts: the more are asked for, the fewer pass.
            self.requests.add(now);
        }
        admitted
    }

    /// A call that was admitted ended with `code`, by a server's word or, where none could be reached, by ours.
    pub fn ended(&self, code: StatusCode, now: Timestamp) {
        // Accepts first: for whoever looks in between there are too many accepts, not too few.
        if !matches!(
            code,
            StatusCode::RESOURCE_EXHAUSTED | StatusCode::UNAVAILABLE
        ) {
            self.accepts.add(now);
        }
        self.requests.add(now);
    }

    /// The chance that the next call is turned away, in `0.0..1.0`.
    pub fn rejection(&self, now: Timestamp) -> f64 {
        let requests = self.requests.count(now) as f64;
        let accepts = self.accepts.count(now) as f64;
        ((requests - self.multiplier * accepts) / (requests + 1.0)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any};
    use proptest::{prop_assert, proptest};

    use super::*;
    use crate::rng::Rng;

    const OK: StatusCode = StatusCode::OK;
    const UNAVAILABLE: StatusCode = StatusCode::UNAVAILABLE;

    fn at(secs: f64) -> Timestamp {
        Timestamp::from_nanos((secs * 1e9) as u64)
    }

    fn throttle(multiplier: f64) -> Throttle {
        let config = Throttling::default().with_multiplier(multiplier);
        config.validate().unwrap();
        Throttle::new(&config)
    }

    #[test]
    fn the_chance_is_the_books() {
        let throttle = throttle(2.0);
        let now = at(3.0);
        assert_eq!(throttle.rejection(now), 0.0);
        (0..30).for_each(|_| throttle.ended(OK, now));
        assert_eq!(throttle.rejection(now), 0.0);
        (0..30).for_each(|_| throttle.ended(UNAVAILABLE, now));
        assert_eq!(throttle.rejection(now), 0.0, "half is refused");
        (0..39).for_each(|_| throttle.ended(StatusCode::RESOURCE_EXHAUSTED, now));
        assert_eq!(throttle.rejection(now), (99.0 - 60.0) / 100.0);
        // The lowest 39 % of the words are turned away, and count as requests.
        assert!(!throttle.admit(now, (u64::MAX as f64 * 0.3899) as u64));
        assert_eq!(throttle.rejection(now), (100.0 - 60.0) / 101.0);
        assert!(throttle.admit(now, (u64::MAX as f64 * 0.3961) as u64));
        assert_eq!(throttle.rejection(now), (100.0 - 60.0) / 101.0);
    }

    #[test]
    fn only_overload_is_a_refusal() {
        for code in (0..17).map(StatusCode::new) {
            let throttle = throttle(1.0);
            (0..9).for_each(|_| throttle.ended(code, at(1.0)));
            let refused = throttle.rejection(at(1.0)) > 0.0;
            assert_eq!(refused, [8, 14].contains(&code.number()), "{code:?}");
        }
    }

    #[test]
    fn two_minutes_later_all_is_forgotten() {
        let throttle = throttle(2.0);
        (0..99).for_each(|_| throttle.ended(UNAVAILABLE, at(9.0)));
        assert_eq!(throttle.rejection(at(119.9)), 0.99);
        assert_eq!(throttle.rejection(at(120.0)), 0.0);
    }

    /// A server that is dead for five minutes at 100 calls/s, and then well again.
    #[test]
    fn few_calls_reach_a_dead_server_and_all_reach_it_again_when_it_is_back() {
        let cases = [(120, 1_200), (10, 120)];
        for (seed, (window, all_within)) in (0..5).flat_map(|seed| cases.map(|case| (seed, case))) {
            let config = Throttling::default().with_window(Duration::from_secs(window));
            let throttle = Throttle::new(&config);
            let mut rng = Rng::new(seed);
            let mut second = |now: f64, code: StatusCode| {
                let sent = (0..100).filter(|call| {
                    let now = at(now + f64::from(*call) / 100.0);
                    let admitted = throttle.admit(now, rng.word());
                    if admitted {
                        throttle.ended(code, now);
                    }
                    admitted
                });
                sent.count()
            };
            let healthy: usize = (0..120).map(|s| second(f64::from(s), OK)).sum();
            assert_eq!(healthy, 12_000, "seed {seed}");
            let dead: Vec<usize> = (120..420)
                .map(|s| second(f64::from(s), UNAVAILABLE))
                .collect();
            let late: usize = dead[120..].iter().sum();
            // One for each window's worth of calls, and a few more whenever a slice is forgotten.
            let most = 10 + 4 * 180 / window as usize;
            assert!(late <= most, "seed {seed}, {window} s: {late} of 18000");
            let mut well = (420..).map(|s| second(f64::from(s), OK));
            let back = well.position(|sent| sent == 100).unwrap();
            assert!(back <= all_within, "seed {seed}, {window} s: {back} s");
        }
    }

    /// Servers that take 20 of 100 calls a second: about as many are refused by them as accepted.
    #[test]
    fn an_overloaded_server_is_asked_twice_as_often_as_it_accepts() {
        let throttle = throttle(2.0);
        let mut rng = Rng::new(1);
        let mut sent_late = 0;
        for second in 0..600 {
            let mut room = 20;
            for call in 0..100 {
                let now = at(f64::from(second) + f64::from(call) / 100.0);
                if throttle.admit(now, rng.word()) {
                    let code = if room > 0 { OK } else { UNAVAILABLE };
                    room -= i32::from(room > 0);
                    throttle.ended(code, now);
                    sent_late += u32::from(second >= 300);
                }
            }
        }
        let per_second = f64::from(sent_late) / 300.0;
        assert!((36.0..=44.0).contains(&per_second), "{per_second}");
    }

    #[test]
    fn bad_settings_name_value_and_rule() {
        for bad in [0.99, f64::NAN, f64::INFINITY, -2.0] {
            let config = Throttling::default().with_multiplier(bad);
            let error = config.validate().unwrap_err();
            let text = format!("throttling multiplier {bad} must be finite and at least 1");
            assert!(error.is_config() && error.to_string() == text, "{error}");
            // What nobody validated does no harm either.
            let throttle = Throttle::new(&config);
            throttle.ended(OK, at(1.0));
            assert_eq!(throttle.rejection(at(1.0)), 0.0);
        }
        assert!(
            Throttling::default()
                .with_multiplier(1.0)
                .validate()
                .is_ok()
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against every call remembered one by one, in slices of ten seconds.
        #[test]
        fn as_if_every_call_were_remembered(
            ops in vec((0u64..4_000, 0u8..3, any::<u64>()), 0..300), multiplier in 1.0f64..3.0,
        ) {
            let throttle = throttle(multiplier);
            let (mut requests, mut accepts) = (Vec::new(), Vec::new());
            let mut now = 0;
            for (pause, op, random) in ops {
                now += pause;
                let of_late = |slices: &[u64]| {
                    slices.iter().filter(|&&slice| slice + 12 > now / 10_000).count() as f64
                };
                let chance = (of_late(&requests) - multiplier * of_late(&accepts))
                    / (of_late(&requests) + 1.0);
                let unit = (random >> 11) as f64 * 2f64.powi(-53);
                let at = Timestamp::from_millis(now);
                match op {
                    0 => {
                        let admitted = throttle.admit(at, random);
                        prop_assert!(admitted == (unit >= chance.max(0.0)));
                        if !admitted { requests.push(now / 10_000) }
                    }
                    1 => {
                        throttle.ended(UNAVAILABLE, at);
                        requests.push(now / 10_000);
                    }
                    _ => {
                        throttle.ended(OK, at);
                        requests.push(now / 10_000);
                        accepts.push(now / 10_000);
                    }
                }
            }
        }
    }
}
