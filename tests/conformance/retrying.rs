//! When a failed call is tried again, and when no more.

use std::time::Duration;

use equipoise::Timestamp;
use equipoise::retry::{Budget, RetryBudget, RetryPolicy};

use crate::{misc, number, rows, text, whole};

/// gRFC A6's token bucket, event by event.
#[test]
fn tokens_after_each_success_and_failure() {
    for row in rows(&misc()["retry_throttling"]) {
        let max = u32::try_from(whole(&row["max_tokens"])).expect("a small number");
        let config = RetryBudget::tokens(max, number(&row["token_ratio"]));
        config.validate().expect("it is in range");
        let budget = Budget::new(&config);
        for (at, entry) in rows(&row["log"]).iter().enumerate() {
            match text(&entry["event"]) {
                "failure" => budget.failed(),
                "success" => budget.succeeded(),
                other => panic!("{other}"),
            }
            let whose = format!("{max} tokens, event {at}");
            let left = budget.tokens_left().expect("it is a token bucket");
            assert!((left - number(&entry["tokens"])).abs() < 1e-9, "{whose}");
            let allowed = entry["retry_allowed"].as_bool().expect("yes or no");
            assert_eq!(budget.try_retry(Timestamp::ZERO), allowed, "{whose}");
            assert_eq!(budget.try_hedge(Timestamp::ZERO), allowed, "{whose}");
        }
    }
}

/// The waits of A6's own example, and of xDS' default policy.
#[test]
fn waits_before_jitter() {
    let rows_of = &misc()["retry_backoff"];
    let (policy, xds) = (&rows_of["policy"], &rows_of["xds_default"]);
    for (initial, max, multiplier, nominal) in [
        (
            &policy["initialBackoff"],
            &policy["maxBackoff"],
            &policy["backoffMultiplier"],
            &rows_of["nominal_s"],
        ),
        (&xds["base"], &xds["max"], &xds["mult"], &xds["nominal_s"]),
    ] {
        let secs = |value| {
            let digits = text(value).trim_end_matches('s');
            Duration::from_secs_f64(digits.parse().expect("a number of seconds"))
        };
        let policy = RetryPolicy::default()
            .with_backoff(secs(initial), secs(max))
            .with_multiplier(number(multiplier));
        policy.validate().expect("it is in range");
        for (retries, expected) in (0..).zip(rows(nominal)) {
            let expected = number(expected);
            let near = |wait: Duration, share: f64| {
                let off = wait.as_secs_f64() - share * expected;
                assert!(
                    off.abs() < 1e-6,
                    "retry {retries}: {wait:?}, not {expected} s"
                );
            };
            near(policy.nominal_backoff(retries), 1.0);
            near(policy.backoff(retries, 0), 0.8);
            near(policy.backoff(retries, u64::MAX), 1.2);
        }
    }
}
