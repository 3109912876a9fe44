//! Should an endpoint that has just come back be spared this call?

use std::time::Duration;

/// A tenth of what a random word may be: the least share of calls that are not spared, as in Envoy.
const TENTH: u64 = u64::MAX / 10 + 1;

/// Whether an endpoint that came back `elapsed` ago is spared a call that it was picked for. `random` is a word of the
/// call's own.
///
/// Of all calls a share of elapsed ÷ window is not spared, at least a tenth, and all from the end of the window on:
/// Envoy's slow start with an aggression of 1. For one word it goes one way only: what was not spared once would
/// not be later either.
pub fn spared(elapsed: Duration, window: Duration, random: u64) -> bool {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let (elapsed, window) = (nanos(elapsed), nanos(window));
    // random ÷ 2^64 against elapsed ÷ window, without the division.
    let spent = u128::from(elapsed) << 64;
    elapsed < window && random >= TENTH && u128::from(random) * u128::from(window) >= spent
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop_oneof};
    use proptest::test_runner::{Config, RngSeed, TestRunner};

    use super::*;
    use crate::rng::Rng;

    const WINDOW: Duration = Duration::from_secs(5);

    /// The share of calls that are not spared, in thousandths.
    fn taken(elapsed: Duration, window: Duration, seed: u64) -> u32 {
        let mut rng = Rng::new(seed);
        let taken = (0..100_000).filter(|_| !spared(elapsed, window, rng.word()));
        taken.count() as u32 / 100
    }

    #[test]
    fn the_share_grows_from_a_tenth_with_the_time() {
        for (millis, thousandths) in [
            (0, 100),
            (1, 100),
            (500, 100),
            (1_000, 200),
            (2_500, 500),
            (4_000, 800),
            (4_999, 999),
            (5_000, 1_000),
            (u64::MAX, 1_000),
        ] {
            let got = taken(Duration::from_millis(millis), WINDOW, 7);
            assert!(
                got.abs_diff(thousandths) <= 5,
                "seed 7, {millis} ms: {got} of {thousandths}"
            );
        }
    }

    #[test]
    fn without_a_window_nothing_is_spared() {
        for random in [0, TENTH, u64::MAX] {
            assert!(!spared(Duration::ZERO, Duration::ZERO, random));
            assert!(!spared(Duration::MAX, Duration::MAX, random));
            assert!(!spared(Duration::MAX, WINDOW, random));
        }
    }

    #[test]
    fn the_bounds_are_exact() {
        assert!(!spared(Duration::ZERO, WINDOW, TENTH - 1));
        assert!(spared(Duration::ZERO, WINDOW, TENTH));
        // Half of the window, half of the words.
        assert!(!spared(WINDOW / 2, WINDOW, u64::MAX / 2));
        assert!(spared(WINDOW / 2, WINDOW, u64::MAX / 2 + 1));
        assert!(spared(WINDOW - Duration::from_nanos(1), WINDOW, u64::MAX));
        assert!(spared(Duration::ZERO, Duration::MAX, u64::MAX));
    }

    #[test]
    fn more_time_never_spares_more_and_a_tenth_never_is() {
        let time = || {
            prop_oneof![
                any::<u64>().prop_map(Duration::from_nanos),
                (0..20_000u64).prop_map(Duration::from_millis),
                Just(Duration::MAX),
            ]
        };
        let mut runner = TestRunner::new(Config {
            cases: 4_000,
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(1),
            ..Config::default()
        });
        let cases = (time(), time(), time(), any::<u64>());
        let found = runner.run(&cases, |(one, other, window, random)| {
            let (sooner, later) = (one.min(other), one.max(other));
            assert!(!spared(later, window, random) || spared(sooner, window, random));
            assert!(!spared(sooner, window, random % TENTH));
            assert!(!spared(window, window, random));
            Ok(())
        });
        found.unwrap_or_else(|why| panic!("seed 1: {why}"));
    }
}
