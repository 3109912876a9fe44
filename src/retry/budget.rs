//! May there be one more attempt?

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::window::Window;
use crate::error::Error;
use crate::timestamp::Timestamp;

/// How much more a channel may send than it was asked to: one budget for the retries and hedges of all its calls.
///
/// A limit per call does not protect servers: where everything fails, three attempts each are three times the load,
/// which keeps an overloaded service down long after its cause has gone. A budget lets single failures be retried as
/// ever, and stops the storm.
///
/// The default lets further attempts be 20 % of the calls, and 10 per second beyond that so that quiet channels can
/// retry too, both over 10 s (Finagle's and tower's); of those, hedges may be 5 % of the calls. What was not used in
/// 10 s is gone. The alternative is [gRPC's token bucket](Self::tokens).
///
/// ```
/// use equipoise::Timestamp;
/// use equipoise::retry::{Budget, RetryBudget};
///
/// let config = RetryBudget::default().with_share(0.1).with_reserve(0);
/// config.validate()?;
/// let (budget, now) = (Budget::new(&config), Timestamp::from_secs(3));
/// (0..10).for_each(|_| budget.call(now));
/// assert!(budget.try_retry(now));
/// assert!(!budget.try_retry(now));
///
/// assert!(RetryBudget::tokens(1_001, 0.1).validate().is_err());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Shares(Shares),
    Tokens { max: u32, ratio: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Shares {
    all: f64,
    hedges: f64,
    /// Per second.
    reserve: u32,
}

/// Finagle's and tower's defaults for the share and the reserve. Hedges that wait for the 95th percentile are 5 % of the
/// calls of their own accord, as long as nothing is wrong.
const SHARES: Shares = Shares {
    all: 0.2,
    hedges: 0.05,
    reserve: 10,
};

const SLICE: Duration = Duration::from_secs(1);
/// Slices that calls count in. With the current one, which may have just begun, they are 9 to 10 s.
const CALLS: usize = 10;
/// Slices that attempts count in: 10 to 11 s, so that the calls of the 10 s before an attempt pay for it and for all
/// others of that time, wherever the slices begin.
const ATTEMPTS: usize = CALLS + 1;
/// The reserve of that many seconds may be used at once.
const RESERVE_SECS: u64 = CALLS as u64;

/// Shares are counted in millionths of a call, tokens in thousandths: sums of whole numbers do not drift.
const MILLION: u64 = 1_000_000;
const TOKEN: u32 = 1_000;

impl Default for RetryBudget {
    /// 20 % of the calls and 10 per second; hedges at most 5 % of the calls.
    fn default() -> Self {
        Self {
            kind: Kind::Shares(SHARES),
        }
    }
}

impl RetryBudget {
    /// gRPC's own rule (`retryThrottling` of a service config, gRFC A6): a bucket of `max` tokens, full at first. An
    /// attempt that fails with a code that would be retried takes one token, a call that succeeds puts `ratio` of one
    /// back, and there are no further attempts while it is no more than half full.
    ///
    /// gRPC's documents use 10 tokens and 0.1. `max` is in `1..=1000`; `ratio` is 0.001 or more, and counts to three
    /// decimal places. Other settings of this type mean nothing with it.
    pub fn tokens(max: u32, ratio: f64) -> Self {
        Self {
            kind: Kind::Tokens { max, ratio },
        }
    }

    /// Further attempts may be this share of the calls. Default 0.2; in `0.0..=1.0`, to six decimal places.
    pub fn with_share(self, share: f64) -> Self {
        self.with(|shares| shares.all = share)
    }

    /// And this many per second beyond their share, gathered over 10 s. Default 10; at most 1,000,000.
    pub fn with_reserve(self, per_second: u32) -> Self {
        self.with(|shares| shares.reserve = per_second)
    }

    /// Of the further attempts, copies of attempts that are still under way may be this share of the calls. Default
    /// 0.05, so that a channel with less than two calls per second never sends any; in `0.0..=1.0`, to six decimal
    /// places. The reserve is not for them.
    pub fn with_hedges(self, share: f64) -> Self {
        self.with(|shares| shares.hedges = share)
    }

    fn with(mut self, set: impl FnOnce(&mut Shares)) -> Self {
        if let Kind::Shares(shares) = &mut self.kind {
            set(shares);
        }
        self
    }

    /// Whether the budget makes sense.
    ///
    /// # Errors
    ///
    /// Names the first value out of its range, and the range.
    pub fn validate(&self) -> Result<(), Error> {
        match self.kind {
            Kind::Shares(Shares {
                all,
                hedges,
                reserve,
            }) => {
                for (name, share) in [("share", all), ("share of hedges", hedges)] {
                    if !(0.0..=1.0).contains(&share) {
                        return Err(Error::config(format!(
                            "retry budget {name} {share} is not in 0.0..=1.0"
                        )));
                    }
                }
                if reserve > 1_000_000 {
                    return Err(Error::config(format!(
                        "retry budget reserve {reserve} per second is more than 1000000"
                    )));
                }
            }
            Kind::Tokens { max, ratio } => {
                if !(1..=1_000).contains(&max) {
                    return Err(Error::config(format!(
                        "retry budget of {max} tokens is not in 1..=1000"
                    )));
                }
                // Negated, so that NaN is refused with the rest.
                if !(ratio >= 0.001 && ratio.is_finite()) {
                    return Err(Error::config(format!(
                        "retry budget token ratio {ratio} must be finite and at least 0.001"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// A [`RetryBudget`] as it stands: shared by all calls of a channel, changed without a lock.
///
/// The channel tells it of every [`call`](Self::call), and of each that [`succeeded`](Self::succeeded);
/// [`Attempts`](super::Attempts) does the rest. A call costs one relaxed addition or, with tokens, one load while the
/// bucket is full.
#[derive(Debug)]
pub struct Budget {
    state: State,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and there is one per channel"
)]
enum State {
    Shares {
        calls: Window<CALLS>,
        /// Retries and hedges.
        attempts: Window<ATTEMPTS>,
        hedges: Window<ATTEMPTS>,
        /// Millionths of an attempt: per call, for hedges per call, and in any case.
        per_call: u64,
        hedges_per_call: u64,
        reserve: u64,
    },
    /// All in thousandths.
    Tokens {
        tokens: AtomicU32,
        max: u32,
        ratio: u32,
    },
}

impl Budget {
    /// Nothing was spent yet. What [`validate`](RetryBudget::validate) refuses counts as the nearest that makes sense.
    pub fn new(config: &RetryBudget) -> Self {
        // A NaN becomes 0 in the cast.
        let millionths = |share: f64| (share.clamp(0.0, 1.0) * MILLION as f64).round() as u64;
        let state = match config.kind {
            Kind::Shares(shares) => State::Shares {
                calls: Window::of(SLICE),
                attempts: Window::of(SLICE),
                hedges: Window::of(SLICE),
                per_call: millionths(shares.all),
                hedges_per_call: millionths(shares.hedges),
                reserve: u64::from(shares.reserve) * RESERVE_SECS * MILLION,
            },
            Kind::Tokens { max, ratio } => {
                let max = max.clamp(1, 1_000) * TOKEN;
                State::Tokens {
                    tokens: AtomicU32::new(max),
                    max,
                    // Further decimal places are cut off. 1.001 is a little less than that as a binary fraction.
                    ratio: ((ratio * f64::from(TOKEN) + 1e-6) as u32).clamp(1, max),
                }
            }
        };
        Self { state }
    }

    /// The channel was asked to make a call.
    #[inline]
    pub fn call(&self, now: Timestamp) {
        if let State::Shares { calls, .. } = &self.state {
            calls.add(now);
        }
    }

    /// Whether there may be one more attempt after one that failed. What it takes is spent.
    pub fn try_retry(&self, now: Timestamp) -> bool {
        match &self.state {
            State::Shares {
                calls,
                attempts,
                per_call,
                reserve,
                ..
            } => attempts.try_add(now, (calls.count(now) * per_call + reserve) / MILLION),
            State::Tokens { tokens, max, .. } => above_half(tokens, *max),
        }
    }

    /// Whether there may be one more attempt beside those under way. What it takes is spent.
    pub fn try_hedge(&self, now: Timestamp) -> bool {
        let State::Shares {
            calls,
            hedges,
            hedges_per_call,
            ..
        } = &self.state
        else {
            return self.try_retry(now);
        };
        if !hedges.try_add(now, calls.count(now) * hedges_per_call / MILLION) {
            return false;
        }
        let within = self.try_retry(now);
        if !within {
            hedges.take_back(now);
        }
        within
    }

    /// A call ended with OK.
    #[inline]
    pub fn succeeded(&self) {
        if let State::Tokens { tokens, max, ratio } = &self.state {
            // A full bucket is the usual case, and is not written to.
            change(tokens, |now| {
                (now < *max).then(|| now.saturating_add(*ratio).min(*max))
            });
        }
    }

    /// An attempt failed with a code that would be retried, or its server asked not to try again.
    pub fn failed(&self) {
        if let State::Tokens { tokens, .. } = &self.state {
            change(tokens, |now| (now > 0).then(|| now.saturating_sub(TOKEN)));
        }
    }

    /// How many tokens are left, in `0.0..=max`; `None` where it is no token bucket.
    pub fn tokens_left(&self) -> Option<f64> {
        match &self.state {
            State::Shares { .. } => None,
            State::Tokens { tokens, .. } => {
                Some(f64::from(tokens.load(Ordering::Relaxed)) / f64::from(TOKEN))
            }
        }
    }
}

fn above_half(tokens: &AtomicU32, max: u32) -> bool {
    // Relaxed: see `change`.
    tokens.load(Ordering::Relaxed) > max / 2
}

fn change(tokens: &AtomicU32, to: impl FnMut(u32) -> Option<u32>) {
    // Relaxed: the number is whole by itself and guards no other data. An error says that nothing had to change.
    let _ = tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, to);
}

#[cfg(test)]
mod tests;
