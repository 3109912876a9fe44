//! The score word: how busy an endpoint looks, packed so that the least busy of many is a plain minimum.
//!
//! ```text
//! 63                    24  23       22        21          0
//! [ score, log2, 13 bits of fraction ][on trial][penalised][ in flight ]
//! score = key + log2(in flight + 1) + TRIAL_BUMP while on trial with a call in flight
//! ```
//!
//! The key is a decayed maximum of latencies: `log2(nanoseconds) + t / (window × ln 2)`. Because every
//! endpoint's estimate decays by the same factor, who is less than whom does not depend on the time of
//! the comparison, so nothing is decayed at all: a newer sample simply enters higher up. Everything else
//! in the score follows from the word itself, so the key can be taken out of it again, and every change
//! is one compare-and-swap.

use std::time::Duration;

use crate::timestamp::Timestamp;

const FRACTION: u32 = 13;
const IN_FLIGHT: u64 = (1 << 22) - 1;
const PENALISED: u64 = 1 << 22;
const ON_TRIAL: u64 = 1 << 23;
const SCORE_SHIFT: u32 = 24;

/// `n` doublings.
pub(crate) const fn units(n: u64) -> u64 {
    n << FRACTION
}

/// Beyond what latencies (64 units) differ by, and gone after 64 × window × ln 2 beside endpoints that
/// are in use (222 s at 5 s): a trial call that never ends must not shut its endpoint out for good.
const TRIAL_BUMP: u64 = units(64);

/// Leaves the score room above for the in-flight term, the trial bump and the handicap of a weight.
/// Reached after 14 years at the default window; from then on estimates no longer move.
const KEY_MAX: u64 = (1 << 40) - 1 - units(23) - TRIAL_BUMP - units(32);

/// The key of a penalised endpoint where keys hold no latency: behind everyone who is not.
pub(crate) const SHUNNED: u64 = units(1 << 20);

/// How many server faults in a row (no success between) make a penalty: the number at which Finagle
/// and Envoy give up on an endpoint as well. With 2, a fleet that errs evenly at 3 % and 1,000 calls/s
/// each would see a penalty per endpoint and second, and herd onto whoever was cleared last.
pub(crate) const FAULTS_IN_A_ROW: u32 = 5;

/// One packed word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Word(pub(crate) u64);

/// What can happen to an endpoint's word.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// A call was given to it.
    Begun,
    /// A call ended with an answer; `clears` when it began after the last penalty was recorded.
    Answered { key: u64, clears: bool },
    /// A call ended with a server fault, the `in_a_row`-th.
    Failed { soft: u64, hard: u64, in_a_row: u32 },
    /// The caller went away.
    Cancelled { key: u64 },
    /// The call never reached the server.
    Refused,
    /// A first message came, of a call that goes on.
    Spoke,
    /// A call that another policy gave to the endpoint has ended.
    EndedElsewhere { answered: bool },
    /// It has become ready.
    Joined { key: u64, on_trial: bool },
    /// Scores hold something else from now on: its `key` by that, and what its penalty comes to.
    Rescored { key: u64, hard: u64, on_trial: bool },
}

impl Word {
    #[inline]
    fn pack(key: u64, flags: u64, in_flight: u64) -> Self {
        let score = key.min(KEY_MAX) + Self::extra(flags, in_flight);
        Self(score << SCORE_SHIFT | flags | in_flight)
    }

    #[inline]
    fn extra(flags: u64, in_flight: u64) -> u64 {
        match flags & ON_TRIAL != 0 && in_flight > 0 {
            true => log2(in_flight + 1) + TRIAL_BUMP,
            false => log2(in_flight + 1),
        }
    }

    /// The estimate alone.
    #[inline]
    pub(crate) fn key(self) -> u64 {
        (self.0 >> SCORE_SHIFT) - Self::extra(self.0, self.in_flight())
    }

    /// Calls under way.
    pub(crate) const fn in_flight(self) -> u64 {
        self.0 & IN_FLIGHT
    }

    pub(crate) const fn on_trial(self) -> bool {
        self.0 & ON_TRIAL != 0
    }

    pub(crate) const fn penalised(self) -> bool {
        self.0 & PENALISED != 0
    }

    /// The word after `event`: every transition there is.
    #[inline(always)]
    pub(crate) fn after(self, event: Event) -> Self {
        let (key, in_flight) = (self.key(), self.in_flight());
        let flags = self.0 & (ON_TRIAL | PENALISED);
        let fewer = in_flight.saturating_sub(1);
        match event {
            // 4 million calls in flight are more than ports, streams or memory allow.
            Event::Begun => Self::pack(key, flags, (in_flight + 1).min(IN_FLIGHT)),
            Event::Answered { key: new, clears } if clears || !self.penalised() => {
                let key = if self.penalised() { new } else { key.max(new) };
                Self::pack(key, 0, fewer)
            }
            Event::Answered { key: new, .. } => Self::pack(key.max(new), PENALISED, fewer),
            Event::Failed { hard, in_a_row, .. }
                if self.penalised() || in_a_row >= FAULTS_IN_A_ROW =>
            {
                Self::pack(key.max(hard), flags | PENALISED, fewer)
            }
            Event::Failed { soft, .. } => Self::pack(key.max(soft), flags, fewer),
            Event::Cancelled { key: new } => Self::pack(key.max(new), flags, fewer),
            Event::Refused => Self::pack(key, flags, fewer),
            Event::Spoke => Self::pack(key, flags & !ON_TRIAL, in_flight),
            Event::EndedElsewhere { answered: true } => Self::pack(key, flags & !ON_TRIAL, fewer),
            Event::EndedElsewhere { answered: false } => Self::pack(key, flags, fewer),
            Event::Joined { key, on_trial } => {
                Self::pack(key, if on_trial { ON_TRIAL } else { 0 }, in_flight)
            }
            Event::Rescored { hard, .. } if self.penalised() => Self::pack(hard, flags, in_flight),
            // A trial is for the first call: what is under way may have spoken before, and does so only once.
            Event::Rescored { key, on_trial, .. } => {
                let on_trial = on_trial && in_flight == 0;
                Self::pack(key, if on_trial { ON_TRIAL } else { 0 }, in_flight)
            }
        }
    }
}

/// What a weight of `weight` beside one of `heaviest` adds to a word, for the comparison only.
pub(crate) fn handicap(weight: u32, heaviest: u32) -> u64 {
    (log2(heaviest.into()).saturating_sub(log2(weight.into()))) << SCORE_SHIFT
}

/// Turns times into heights of the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ascent {
    // Units per nanosecond, with 64 more bits of fraction.
    per_nano: u64,
}

impl Ascent {
    pub(crate) fn new(window: Duration) -> Self {
        let doubling = window.as_nanos() as f64 * std::f64::consts::LN_2;
        Self {
            // A float-to-integer cast saturates: a window of nothing climbs as fast as can be said.
            per_nano: (2f64.powi(64 + FRACTION as i32) / doubling) as u64,
        }
    }

    /// All there is to it, as a number that is not 0.
    pub(crate) fn slope(self) -> u64 {
        self.per_nano.max(1)
    }

    /// The one with this [`slope`](Self::slope); `None` for 0.
    #[inline]
    pub(crate) fn of(slope: u64) -> Option<Self> {
        (slope != 0).then_some(Self { per_nano: slope })
    }

    /// How high an estimate made at `now` enters.
    #[inline]
    pub(crate) fn at(self, now: Timestamp) -> u64 {
        let height = (u128::from(now.as_nanos()) * u128::from(self.per_nano)) >> 64;
        (height as u64).min(KEY_MAX)
    }
}

/// log2 of a duration's nanoseconds.
#[inline]
pub(crate) fn log2_of(duration: Duration) -> u64 {
    log2(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

/// log2 of `x`, of 1 where it is 0: exact to the last bit below 256, from there on truncated to 8
/// significant bits of `x` (less than 0.012 too low).
#[inline]
pub(crate) const fn log2(x: u64) -> u64 {
    if x < 256 {
        return LOG2[x as usize] as u64;
    }
    let shift = x.ilog2() - 7;
    LOG2[(x >> shift) as usize] as u64 + units(shift as u64)
}

static LOG2: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 1;
    while i < 256 {
        table[i] = log2_by_squaring(i as u64) as u32;
        i += 1;
    }
    table
};

const fn log2_by_squaring(x: u64) -> u64 {
    let whole = x.ilog2();
    // The mantissa in [1, 2), 31 bits of fraction: each squaring yields one more bit of the logarithm.
    let mut mantissa = x << (31 - whole);
    let mut result = whole as u64;
    let mut bit = 0;
    while bit < FRACTION {
        mantissa = (mantissa * mantissa) >> 31;
        result <<= 1;
        if mantissa >= 1 << 32 {
            mantissa >>= 1;
            result |= 1;
        }
        bit += 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = units(20);

    fn word(key: u64, flags: u64, in_flight: u64) -> Word {
        Word::pack(key, flags, in_flight)
    }

    fn parts(word: Word) -> (u64, bool, bool, u64) {
        (
            word.key(),
            word.on_trial(),
            word.penalised(),
            word.in_flight(),
        )
    }

    #[test]
    fn logarithms_are_right_and_monotone() {
        assert_eq!(
            (log2(0), log2(1), log2(2), log2(1024)),
            (0, 0, units(1), units(10))
        );
        let mut last = 0;
        for x in (1..5_000).chain((13..64).map(|e| (1u64 << e) + 12_345)) {
            let exact = (x as f64).log2() * 8192.0;
            let ours = log2(x) as f64;
            assert!(
                ours <= exact + 1e-6 && ours > exact - 0.012 * 8192.0,
                "{x}: {ours} {exact}"
            );
            assert!(log2(x) >= last, "{x}");
            last = log2(x);
        }
        assert_eq!(log2(u64::MAX) >> FRACTION, 63);
    }

    #[test]
    fn the_key_comes_out_as_it_went_in() {
        for key in [0, 1, K, KEY_MAX, SHUNNED] {
            for flags in [0, ON_TRIAL, PENALISED, ON_TRIAL | PENALISED] {
                for in_flight in [0, 1, 2, 255, 256, 100_000, IN_FLIGHT] {
                    let word = word(key, flags, in_flight);
                    assert_eq!((word.key(), word.in_flight()), (key, in_flight));
                    assert!(word.0.checked_add(handicap(1, u32::MAX)).is_some());
                }
            }
        }
    }

    #[test]
    fn a_call_doubles_the_first_and_adds_less_and_less() {
        let idle = word(K, 0, 0);
        let one = idle.after(Event::Begun);
        assert_eq!(parts(one), (K, false, false, 1));
        assert_eq!((one.0 - idle.0) >> SCORE_SHIFT, units(1));
        let three = one.after(Event::Begun).after(Event::Begun);
        assert_eq!((three.0 - idle.0) >> SCORE_SHIFT, units(2));
        assert_eq!(
            word(K, 0, IN_FLIGHT).after(Event::Begun).in_flight(),
            IN_FLIGHT
        );
    }

    #[test]
    fn every_end_of_a_call() {
        let busy = word(K, 0, 2);
        let answered = |key, clears| Event::Answered { key, clears };
        let failed = |in_a_row| Event::Failed {
            soft: K + 7,
            hard: K + 70,
            in_a_row,
        };
        let cases = [
            (busy, answered(K + 5, true), (K + 5, false, false, 1)),
            (busy, answered(K - 5, true), (K, false, false, 1)),
            (busy, answered(K - 5, false), (K, false, false, 1)),
            (
                word(K, ON_TRIAL, 2),
                answered(K + 5, false),
                (K + 5, false, false, 1),
            ),
            (
                word(K, PENALISED, 2),
                answered(K - 5, true),
                (K - 5, false, false, 1),
            ),
            (
                word(K, PENALISED, 2),
                answered(K - 5, false),
                (K, false, true, 1),
            ),
            (
                word(K, PENALISED, 2),
                answered(K + 5, false),
                (K + 5, false, true, 1),
            ),
            (busy, failed(1), (K + 7, false, false, 1)),
            (word(K + 9, 0, 2), failed(4), (K + 9, false, false, 1)),
            (busy, failed(5), (K + 70, false, true, 1)),
            (word(K, PENALISED, 2), failed(1), (K + 70, false, true, 1)),
            (word(K, ON_TRIAL, 2), failed(1), (K + 7, true, false, 1)),
            (word(K, ON_TRIAL, 2), failed(5), (K + 70, true, true, 1)),
            (
                busy,
                Event::Cancelled { key: K + 3 },
                (K + 3, false, false, 1),
            ),
            (busy, Event::Cancelled { key: K - 3 }, (K, false, false, 1)),
            (
                word(K, ON_TRIAL, 2),
                Event::Cancelled { key: 0 },
                (K, true, false, 1),
            ),
            (
                word(K, ON_TRIAL | PENALISED, 2),
                Event::Refused,
                (K, true, true, 1),
            ),
            (busy, Event::Refused, (K, false, false, 1)),
            (word(K, 0, 0), Event::Refused, (K, false, false, 0)),
        ];
        for (before, event, after) in cases {
            assert_eq!(
                parts(before.after(event)),
                after,
                "{event:?} on {:?}",
                parts(before)
            );
        }
    }

    #[test]
    fn joining_and_the_first_message() {
        let joined = Event::Joined {
            key: K + 1,
            on_trial: true,
        };
        assert_eq!(
            parts(word(K, PENALISED, 2).after(joined)),
            (K + 1, true, false, 2)
        );
        let joined = Event::Joined {
            key: 0,
            on_trial: false,
        };
        assert_eq!(
            parts(word(SHUNNED, PENALISED, 0).after(joined)),
            (0, false, false, 0)
        );
        assert_eq!(
            parts(word(K, ON_TRIAL, 2).after(Event::Spoke)),
            (K, false, false, 2)
        );
        assert_eq!(
            parts(word(K, PENALISED, 2).after(Event::Spoke)),
            (K, false, true, 2)
        );
    }

    #[test]
    fn on_trial_one_call_is_more_than_a_thousand_elsewhere() {
        let busy = word(K, 0, 1_000);
        assert!(word(K, ON_TRIAL, 0) < busy);
        assert!(word(K, ON_TRIAL, 1) > busy);
    }

    #[test]
    fn the_key_climbs_one_unit_per_halving() {
        // window × ln 2 = 3.465735903 s.
        let ascent = Ascent::new(Duration::from_secs(5));
        assert_eq!(ascent.at(Timestamp::ZERO), 0);
        let halving = Timestamp::from_nanos(3_465_735_903);
        assert!(ascent.at(halving).abs_diff(units(1)) <= 1);
        assert_eq!(
            ascent.at(Timestamp::MAX),
            KEY_MAX,
            "the end of time is no overflow"
        );
        // Three years at the steepest allowed window still fit.
        let steep = Ascent::new(Duration::from_secs(1));
        assert!(steep.at(Timestamp::from_secs(86_400 * 365 * 2)) < KEY_MAX);
        assert_eq!(Ascent::new(Duration::ZERO).at(Timestamp::MAX), KEY_MAX);
    }

    #[test]
    fn half_the_weight_is_one_more_doubling() {
        assert_eq!(handicap(4, 4), 0);
        assert_eq!(handicap(2, 4), units(1) << SCORE_SHIFT);
        assert_eq!(handicap(1, u32::MAX) >> SCORE_SHIFT, log2(u32::MAX.into()));
    }
}
