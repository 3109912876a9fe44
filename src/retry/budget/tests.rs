//! What may be spent, at literal times and against a slow oracle.

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;

fn secs(secs: f64) -> Timestamp {
    Timestamp::from_nanos((secs * 1e9) as u64)
}

fn budget(config: RetryBudget) -> Budget {
    config.validate().unwrap();
    Budget::new(&config)
}

/// How often `ask` is answered with yes before the first no, up to a million.
fn granted(ask: impl Fn() -> bool) -> usize {
    (0..1_000_000).take_while(|_| ask()).count()
}

#[test]
fn a_fifth_of_the_calls_and_the_reserve_of_ten_seconds() {
    let budget = budget(RetryBudget::default());
    let now = secs(100.0);
    (0..1_000).for_each(|_| budget.call(now));
    assert_eq!(granted(|| budget.try_retry(now)), 200 + 100);
    // It is spent for everybody.
    assert!(!budget.try_hedge(now));
    // One more call is no more retry, five are.
    for (calls, expected) in [(1, 0), (4, 1), (10, 2)] {
        (0..calls).for_each(|_| budget.call(now));
        assert_eq!(granted(|| budget.try_retry(now)), expected);
    }
}

#[test]
fn calls_and_attempts_are_forgotten_but_calls_no_later() {
    let budget = budget(RetryBudget::default().with_reserve(0));
    (0..100).for_each(|_| budget.call(secs(0.5)));
    assert_eq!(granted(|| budget.try_retry(secs(0.5))), 20);
    (0..50).for_each(|_| budget.call(secs(9.5)));
    assert_eq!(granted(|| budget.try_retry(secs(9.9))), 10);
    // Now the first hundred no longer pay, while the twenty that they paid for still count.
    (0..75).for_each(|_| budget.call(secs(10.5)));
    assert_eq!(granted(|| budget.try_retry(secs(10.9))), 0);
    assert_eq!(granted(|| budget.try_retry(secs(11.0))), 25 - 10);
    assert_eq!(granted(|| budget.try_retry(secs(60.0))), 0);
}

#[test]
fn quiet_channels_have_the_reserve_and_no_more() {
    let budget = budget(RetryBudget::default().with_reserve(1));
    assert_eq!(granted(|| budget.try_retry(secs(0.0))), 10);
    assert_eq!(granted(|| budget.try_retry(secs(10.9))), 0);
    assert_eq!(granted(|| budget.try_retry(secs(11.0))), 10);
}

#[test]
fn hedges_are_a_twentieth_of_the_calls_and_out_of_the_same_purse() {
    let now = secs(7.0);
    let hedging = budget(RetryBudget::default());
    (0..199).for_each(|_| hedging.call(now));
    assert_eq!(granted(|| hedging.try_hedge(now)), 9);
    hedging.call(now);
    assert_eq!(granted(|| hedging.try_hedge(now)), 1);
    assert_eq!(granted(|| hedging.try_retry(now)), 140 - 10);

    // A hedge that the whole budget refuses leaves the hedges' share untouched.
    let narrow = budget(
        RetryBudget::default()
            .with_share(0.1)
            .with_hedges(1.0)
            .with_reserve(0),
    );
    (0..10).for_each(|_| narrow.call(now));
    assert_eq!(granted(|| narrow.try_hedge(now)), 1);
    (0..90).for_each(|_| narrow.call(now));
    assert_eq!(granted(|| narrow.try_hedge(now)), 9);
}

#[test]
fn nothing_is_lost_in_fractions() {
    // The second is a little less than 0.2 as a binary fraction.
    for (share, expected) in [(0.29, 29), (0.3 - 0.1, 20), (0.000_001, 0)] {
        let budget = budget(RetryBudget::default().with_share(share).with_reserve(0));
        (0..100).for_each(|_| budget.call(secs(1.0)));
        assert_eq!(granted(|| budget.try_retry(secs(1.0))), expected);
    }
}

/// Fault matrix H1: everything fails, and each failure would be retried twice.
#[test]
fn a_storm_is_stopped() {
    let attempts_per_call = |config: RetryBudget, gap: f64, calls: u32| {
        let budget = budget(config);
        let mut attempts = 0;
        for call in 0..calls {
            let now = secs(f64::from(call) * gap);
            budget.call(now);
            attempts += 1;
            for _ in 0..2 {
                budget.failed();
                attempts += u32::from(budget.try_retry(now));
            }
        }
        f64::from(attempts) / f64::from(calls)
    };
    let shares = attempts_per_call(RetryBudget::default(), 0.001, 10_000);
    assert!((1.2..=1.21).contains(&shares), "{shares}");
    let tokens = attempts_per_call(RetryBudget::tokens(10, 0.1), 0.001, 10_000);
    assert!((1.0001..=1.01).contains(&tokens), "{tokens}");
}

#[test]
fn tokens_are_taken_by_failures_and_given_by_successes() {
    let bucket = budget(RetryBudget::tokens(4, 0.5));
    let now = Timestamp::ZERO;
    assert_eq!(bucket.tokens_left(), Some(4.0));
    // Neither calls nor attempts themselves cost anything.
    bucket.call(now);
    assert!(bucket.try_retry(now) && bucket.try_hedge(now) && bucket.try_retry(now));
    bucket.failed();
    assert!(bucket.try_retry(now));
    bucket.failed();
    assert!(
        !bucket.try_retry(now) && !bucket.try_hedge(now),
        "half full"
    );
    bucket.succeeded();
    assert!(bucket.try_retry(now) && bucket.try_hedge(now));
    (0..9).for_each(|_| bucket.failed());
    assert_eq!(bucket.tokens_left(), Some(0.0));
    (0..9).for_each(|_| bucket.succeeded());
    assert_eq!(bucket.tokens_left(), Some(4.0));
    assert_eq!(budget(RetryBudget::default()).tokens_left(), None);
}

#[test]
fn three_decimal_places_of_the_ratio_count() {
    for (ratio, expected) in [
        (0.5466, 0.546),
        (0.0019, 0.001),
        (0.057, 0.057),
        (1.001, 1.001),
        (500.0, 10.0),
        (f64::MAX, 10.0),
    ] {
        let bucket = budget(RetryBudget::tokens(10, ratio));
        (0..20).for_each(|_| bucket.failed());
        bucket.succeeded();
        assert_eq!(bucket.tokens_left(), Some(expected), "{ratio}");
    }
}

#[test]
fn a_bad_budget_names_value_and_rule() {
    let shares = RetryBudget::default();
    for (bad, text) in [
        (shares.with_share(1.01), "share 1.01 is not in 0.0..=1.0"),
        (shares.with_share(f64::NAN), "share NaN is not in"),
        (shares.with_hedges(-0.1), "share of hedges -0.1 is not in"),
        (
            shares.with_reserve(1_000_001),
            "reserve 1000001 per second is more than 1000000",
        ),
        (RetryBudget::tokens(0, 0.1), "0 tokens is not in 1..=1000"),
        (RetryBudget::tokens(1_001, 0.1), "1001 tokens is not in"),
        (RetryBudget::tokens(10, 0.0), "token ratio 0 must be finite"),
        (RetryBudget::tokens(10, f64::NAN), "token ratio NaN must"),
        (
            RetryBudget::tokens(10, f64::INFINITY),
            "token ratio inf must",
        ),
    ] {
        let error = bad.validate().unwrap_err();
        assert!(
            error.is_config() && error.to_string().contains(text),
            "{error}"
        );
        // What nobody validated does no harm either.
        let now = secs(1.0);
        let budget = Budget::new(&bad);
        budget.call(now);
        budget.failed();
        let _ = (budget.try_retry(now), budget.try_hedge(now));
        budget.succeeded();
    }
    for good in [
        shares,
        shares.with_share(0.0).with_hedges(0.0).with_reserve(0),
        shares.with_share(1.0).with_hedges(1.0),
        RetryBudget::tokens(1, 0.001),
        RetryBudget::tokens(1_000, 1_000.0),
    ] {
        assert!(good.validate().is_ok(), "{good:?}");
    }
}

#[test]
fn threads_together_spend_no_more_than_there_is() {
    let budget = budget(RetryBudget::default().with_reserve(0));
    let now = secs(5.0);
    let (retries, hedges) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..500).fold((0, 0), |(retries, hedges), _| {
                        budget.call(now);
                        (
                            retries + u64::from(budget.try_retry(now)),
                            hedges + u64::from(budget.try_hedge(now)),
                        )
                    })
                })
            })
            .collect();
        let spent = threads.into_iter().map(|thread| thread.join().unwrap());
        spent.fold((0, 0), |sum, spent| (sum.0 + spent.0, sum.1 + spent.1))
    });
    assert!(
        retries + hedges <= 400 && hedges <= 100,
        "{retries} {hedges}"
    );
    assert_eq!(
        granted(|| budget.try_retry(now)) as u64,
        400 - retries - hedges
    );
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Call,
    Retry,
    Hedge,
}

fn ops() -> impl Strategy<Value = Vec<(u64, Op)>> {
    // Mostly bursts, now and then a pause.
    let pause = prop_oneof![
        8 => 0u64..50,
        2 => 0u64..3_000,
        1 => 0u64..25_000,
    ];
    let op = prop_oneof![
        3 => any::<bool>().prop_map(|_| Op::Call),
        2 => any::<bool>().prop_map(|_| Op::Retry),
        1 => any::<bool>().prop_map(|_| Op::Hedge),
    ];
    vec((pause, op), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Against every call and attempt remembered one by one: an attempt is paid for by the calls of the 10 s before it
    /// together with all attempts of those 10 s, and refused only where those of a second less do not pay for it.
    #[test]
    fn every_ten_seconds_keep_the_budget(
        ops in ops(), share in 0u64..=10, hedges in 0u64..=10, reserve in 0u32..3,
    ) {
        let config = RetryBudget::default()
            .with_share(share as f64 / 10.0)
            .with_hedges(hedges as f64 / 10.0)
            .with_reserve(reserve);
        let budget = budget(config);
        let (mut calls, mut attempts, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        let mut now = 0u64;
        for (pause, op) in ops {
            now += pause;
            let at = Timestamp::from_millis(now);
            let of_late = |times: &[u64], millis: u64| {
                times.iter().filter(|&&time| time + millis > now).count() as u64
            };
            let reserve = u64::from(reserve) * 10;
            let room = |calls: u64, spent: u64| spent < calls * share / 10 + reserve;
            let room_for_copies = |calls: u64, spent: u64| spent < calls * hedges / 10;
            let granted = match op {
                Op::Call => { budget.call(at); calls.push(now); continue }
                Op::Retry => budget.try_retry(at),
                Op::Hedge => budget.try_hedge(at),
            };
            let is_copy = matches!(op, Op::Hedge);
            if granted {
                prop_assert!(room(of_late(&calls, 10_000), of_late(&attempts, 10_000)));
                prop_assert!(!is_copy
                    || room_for_copies(of_late(&calls, 10_000), of_late(&copies, 10_000)));
                attempts.push(now);
                if is_copy { copies.push(now) }
            } else {
                let rightly = !room(of_late(&calls, 9_000), of_late(&attempts, 11_000))
                    || is_copy && !room_for_copies(of_late(&calls, 9_000), of_late(&copies, 11_000));
                prop_assert!(rightly, "refused at {now}");
            }
        }
    }

    /// Against exact fractions.
    #[test]
    fn tokens_stay_in_their_bucket(
        ops in vec(any::<bool>(), 0..300), max in 1u32..=1_000, ratio in 1u32..=3_000,
    ) {
        let bucket = budget(RetryBudget::tokens(max, f64::from(ratio) / 1e3));
        let most = i64::from(max) * 1_000;
        let mut tokens = most;
        for succeeded in ops {
            match succeeded {
                true => { bucket.succeeded(); tokens = (tokens + i64::from(ratio)).min(most) }
                false => { bucket.failed(); tokens = (tokens - 1_000).max(0) }
            }
            prop_assert_eq!(bucket.tokens_left(), Some(tokens as f64 / 1e3));
            prop_assert_eq!(bucket.try_retry(Timestamp::ZERO), 2 * tokens > most);
        }
    }
}
