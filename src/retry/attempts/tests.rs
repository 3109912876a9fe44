//! One call at literal times: retries here, hedges and arbitrary events in files of their own.

use super::Step::{Commit, Expire, Finish, Start, Wait};
use super::*;
use crate::retry::RetryBudget;

mod hedging;
mod random;

const UNAVAILABLE: StatusCode = StatusCode::UNAVAILABLE;
const INTERNAL: StatusCode = StatusCode::INTERNAL;
const UNSAID: Pushback = Pushback::Unsaid;
/// The middle of every range: no jitter in the first wait. Later ones are remixed.
const MIDDLE: u64 = 1 << 63;

fn ms(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn wait(until: u64) -> Step {
    Wait { until: ms(until) }
}

const WAIT_FOR_NEWS: Step = Wait {
    until: Timestamp::MAX,
};

/// One call and its channel's budget.
struct Bench {
    attempts: Attempts,
    budget: Budget,
}

impl Bench {
    fn new(attempts: Attempts, budget: RetryBudget) -> Self {
        let budget = Budget::new(&budget);
        (0..1_000).for_each(|_| budget.call(Timestamp::ZERO));
        Self { attempts, budget }
    }

    fn retrying(policy: RetryPolicy, deadline: Option<u64>) -> Self {
        policy.validate().unwrap();
        let attempts = Attempts::retrying(&policy, deadline.map(ms), MIDDLE);
        Self::new(attempts, RetryBudget::default())
    }

    fn hedging(policy: HedgingPolicy, deadline: Option<u64>) -> Self {
        policy.validate().unwrap();
        let attempts = Attempts::hedging(&policy, None, deadline.map(ms));
        Self::new(attempts, RetryBudget::default())
    }

    fn with_budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Budget::new(&budget);
        self
    }

    fn poll(&mut self, now: u64) -> Step {
        self.attempts.poll(&self.budget, ms(now))
    }

    /// Expects the next attempt now, and sends it at once.
    fn starts(&mut self, attempt: u32, now: u64) {
        assert_eq!(self.poll(now), Start { attempt }, "at {now} ms");
        self.attempts.handle_started(attempt, ms(now));
    }

    fn fails(&mut self, attempt: u32, code: StatusCode, pushback: Pushback, now: u64) -> Step {
        self.attempts
            .handle_ended(attempt, code, pushback, &self.budget, ms(now));
        self.poll(now)
    }
}

/// Waits of exactly 100 ms are not to be had for want of chance; the fifth around them is checked.
fn waits_around(step: Step, now: u64, nominal: u64) -> u64 {
    let Wait { until } = step else {
        panic!("{step:?}")
    };
    let wait = until.since(ms(now));
    assert!(
        wait >= millis(nominal) * 4 / 5 && wait < millis(nominal) * 6 / 5,
        "{wait:?} is not around {nominal} ms"
    );
    until.as_nanos().div_ceil(1_000_000)
}

fn patient() -> RetryPolicy {
    RetryPolicy::default()
        .with_max_attempts(5)
        .with_backoff(millis(100), millis(300))
}

#[test]
fn a_success_ends_the_call_with_one_attempt() {
    let mut call = Bench::retrying(RetryPolicy::default(), None);
    call.starts(0, 5);
    assert_eq!(call.poll(5), WAIT_FOR_NEWS);
    assert_eq!(
        call.fails(0, StatusCode::OK, UNSAID, 9),
        Finish { attempt: 0 }
    );
    assert_eq!(call.attempts.begun(), 1);
}

#[test]
fn retries_wait_longer_each_time_until_none_are_left() {
    let mut call = Bench::retrying(patient(), None);
    let mut now = 0;
    for (attempt, nominal) in (0..).zip([100, 200, 300, 300]) {
        call.starts(attempt, now);
        assert_eq!(call.poll(now), WAIT_FOR_NEWS);
        let step = call.fails(attempt, UNAVAILABLE, UNSAID, now + 7);
        let due = waits_around(step, now + 7, nominal);
        assert!(matches!(call.poll(due - 1), Wait { .. }));
        now = due;
    }
    call.starts(4, now);
    assert_eq!(
        call.fails(4, UNAVAILABLE, UNSAID, now),
        Finish { attempt: 4 }
    );
}

#[test]
fn waits_of_one_call_have_different_jitter() {
    let mut call = Bench::retrying(patient().with_multiplier(1.0), None);
    let mut waits = Vec::new();
    let mut now = Timestamp::ZERO;
    for attempt in 0..4 {
        assert_eq!(call.attempts.poll(&call.budget, now), Start { attempt });
        call.attempts
            .handle_ended(attempt, UNAVAILABLE, UNSAID, &call.budget, now);
        let Wait { until } = call.attempts.poll(&call.budget, now) else {
            panic!("it retries")
        };
        waits.push(until.since(now));
        now = until;
    }
    waits.sort_unstable();
    waits.dedup();
    assert_eq!(waits.len(), 4);
}

#[test]
fn a_code_that_is_not_retried_ends_the_call() {
    let mut call = Bench::retrying(RetryPolicy::default(), None);
    call.starts(0, 0);
    assert_eq!(call.fails(0, INTERNAL, UNSAID, 1), Finish { attempt: 0 });

    // Not even where the server names a time.
    let mut call = Bench::retrying(RetryPolicy::default(), None);
    call.starts(0, 0);
    let after = Pushback::After(millis(5));
    assert_eq!(call.fails(0, INTERNAL, after, 1), Finish { attempt: 0 });
}

/// Fault matrix H4.
#[test]
fn response_headers_commit() {
    let mut call = Bench::retrying(RetryPolicy::default(), None);
    call.starts(0, 0);
    call.attempts.handle_head(0);
    assert_eq!(call.poll(1), Commit { attempt: 0 });
    assert_eq!(
        call.fails(0, UNAVAILABLE, UNSAID, 2),
        Commit { attempt: 0 },
        "what comes later is the caller's to see"
    );
    assert_eq!(call.attempts.begun(), 1);
}

/// Fault matrix H5.
#[test]
fn pushback_is_kept_to_exactly_and_resets_the_backoff() {
    let mut call = Bench::retrying(patient(), None);
    call.starts(0, 0);
    let due = waits_around(call.fails(0, UNAVAILABLE, UNSAID, 10), 10, 100);
    call.starts(1, due);
    let pushed = Pushback::After(millis(500));
    assert_eq!(
        call.fails(1, UNAVAILABLE, pushed, due + 3),
        wait(due + 503),
        "no jitter, and no limit"
    );
    call.starts(2, due + 503);
    let step = call.fails(2, UNAVAILABLE, UNSAID, due + 510);
    let due = waits_around(step, due + 510, 100);
    call.starts(3, due);
    let at_once = Pushback::After(Duration::ZERO);
    assert_eq!(
        call.fails(3, UNAVAILABLE, at_once, due + 1),
        Start { attempt: 4 }
    );
    assert_eq!(
        call.fails(4, UNAVAILABLE, at_once, due + 2),
        Finish { attempt: 4 },
        "a server cannot ask for more attempts than there are"
    );
}

#[test]
fn a_server_that_says_stop_is_obeyed() {
    let mut call = Bench::retrying(patient(), None);
    call.starts(0, 0);
    assert_eq!(
        call.fails(0, UNAVAILABLE, Pushback::Stop, 1),
        Finish { attempt: 0 }
    );
}

#[test]
fn tokens_are_spent_by_what_would_be_retried_also_on_the_last_attempt() {
    let tokens = RetryBudget::tokens(10, 0.1);
    let mut call = Bench::retrying(RetryPolicy::default().with_max_attempts(2), None);
    call = call.with_budget(tokens);
    call.starts(0, 0);
    let due = waits_around(call.fails(0, UNAVAILABLE, UNSAID, 0), 0, 50);
    assert_eq!(call.budget.tokens_left(), Some(9.0));
    call.starts(1, due);
    call.fails(1, UNAVAILABLE, UNSAID, due);
    assert_eq!(call.budget.tokens_left(), Some(8.0));

    for (code, pushback, left) in [
        (INTERNAL, UNSAID, 10.0),
        (INTERNAL, Pushback::After(Duration::ZERO), 10.0),
        (INTERNAL, Pushback::Stop, 9.0),
        (UNAVAILABLE, Pushback::Stop, 9.0),
        (StatusCode::OK, Pushback::Stop, 10.0),
    ] {
        for hedging in [false, true] {
            let mut call = match hedging {
                true => Bench::hedging(HedgingPolicy::default(), None),
                false => Bench::retrying(RetryPolicy::default(), None),
            };
            call = call.with_budget(tokens);
            call.starts(0, 0);
            assert_eq!(call.fails(0, code, pushback, 0), Finish { attempt: 0 });
            let spent = call.budget.tokens_left();
            assert_eq!(spent, Some(left), "{code:?} {pushback:?}");
        }
    }
}

#[test]
fn what_the_budget_refuses_ends_the_call() {
    let mut call = Bench::retrying(RetryPolicy::default(), None);
    call = call.with_budget(RetryBudget::default().with_reserve(0));
    call.starts(0, 0);
    assert_eq!(call.fails(0, UNAVAILABLE, UNSAID, 1), Finish { attempt: 0 });
}

#[test]
fn the_budget_is_not_spent_on_retries_that_never_come() {
    let one = RetryBudget::default().with_share(0.001).with_reserve(0);
    for (policy, deadline) in [
        (RetryPolicy::default().with_max_attempts(2), None),
        (patient(), Some(50)),
    ] {
        let attempts = Attempts::retrying(&policy, deadline.map(ms), MIDDLE);
        let mut call = Bench::new(attempts, one);
        call.starts(0, 0);
        let mut last = 0;
        if deadline.is_none() {
            let due = waits_around(call.fails(0, UNAVAILABLE, UNSAID, 0), 0, 50);
            call.starts(1, due);
            last = 1;
            // What the first retry took; the last failure takes no more.
            call.budget = Budget::new(&one);
            (0..1_000).for_each(|_| call.budget.call(ms(0)));
        }
        let end = call.fails(last, UNAVAILABLE, UNSAID, 1);
        assert_eq!(end, Finish { attempt: last });
        assert!(call.budget.try_retry(ms(1)), "it was left");
    }
}

#[test]
fn no_wait_outlasts_the_deadline() {
    let pushed = |wait| Pushback::After(millis(wait));
    for (wait_for, expected) in [(89, wait(99)), (90, Finish { attempt: 0 })] {
        let mut call = Bench::retrying(patient(), Some(100));
        call.starts(0, 0);
        assert_eq!(call.fails(0, UNAVAILABLE, pushed(wait_for), 10), expected);
    }
    let mut call = Bench::retrying(patient(), Some(70));
    call.starts(0, 0);
    assert_eq!(call.fails(0, UNAVAILABLE, UNSAID, 0), Finish { attempt: 0 });
}

#[test]
fn the_deadline_ends_what_is_under_way_and_what_waits() {
    let mut call = Bench::retrying(patient(), Some(1_000));
    call.starts(0, 0);
    assert_eq!(call.poll(999), wait(1_000));
    assert_eq!(call.poll(1_000), Expire);
    assert_eq!(call.fails(0, StatusCode::OK, UNSAID, 1_001), Expire);

    // Nobody came by while the wait was over and the deadline was not.
    let mut call = Bench::retrying(patient(), Some(1_000));
    call.starts(0, 0);
    waits_around(call.fails(0, UNAVAILABLE, UNSAID, 0), 0, 100);
    assert_eq!(call.poll(1_000), Expire);

    // What ended before is what counts, also if it is asked for later.
    let mut call = Bench::retrying(patient(), Some(1_000));
    call.starts(0, 0);
    call.attempts
        .handle_ended(0, INTERNAL, UNSAID, &call.budget, ms(999));
    assert_eq!(call.poll(1_000), Finish { attempt: 0 });
}

/// Fault matrix H11.
#[test]
fn a_call_without_time_makes_no_attempt() {
    for deadline in [0, 5, 10] {
        let mut call = Bench::hedging(HedgingPolicy::default(), Some(deadline));
        assert_eq!(call.poll(10), Expire);
        assert_eq!(call.attempts.begun(), 0);
    }
}

#[test]
fn a_request_that_outgrew_its_copy_is_not_sent_again() {
    let mut call = Bench::retrying(patient(), None);
    call.starts(0, 0);
    call.attempts.handle_overflow(0);
    assert_eq!(call.poll(1), Commit { attempt: 0 });

    let mut call = Bench::retrying(patient(), None);
    call.starts(0, 0);
    waits_around(call.fails(0, UNAVAILABLE, UNSAID, 0), 0, 100);
    call.attempts.handle_overflow(0);
    assert_eq!(call.poll(1), Finish { attempt: 0 });

    let mut call = Bench::retrying(patient(), None);
    call.starts(0, 0);
    assert_eq!(
        call.fails(0, UNAVAILABLE, Pushback::After(Duration::ZERO), 0),
        Start { attempt: 1 }
    );
    waits_around(call.fails(1, UNAVAILABLE, UNSAID, 0), 0, 100);
    call.attempts.handle_overflow(0);
    assert_eq!(call.poll(1), Finish { attempt: 1 });

    // Known before anything is sent: one attempt it has.
    let mut call = Bench::retrying(patient(), None);
    call.attempts.handle_overflow(0);
    call.starts(0, 0);
    assert_eq!(call.fails(0, UNAVAILABLE, UNSAID, 0), Finish { attempt: 0 });
}

/// What carried the first attempt's request may still have read on while the second was made and failed.
#[test]
fn a_request_that_outgrows_its_copy_between_attempts_ends_as_the_last_did() {
    let mut call = Bench::retrying(patient(), None);
    call.starts(0, 0);
    let pushed = Pushback::After(Duration::ZERO);
    assert_eq!(call.fails(0, UNAVAILABLE, pushed, 1), Start { attempt: 1 });
    waits_around(call.fails(1, UNAVAILABLE, UNSAID, 2), 2, 100);
    call.attempts.handle_overflow(0);
    assert_eq!(call.poll(3), Finish { attempt: 1 });
}

#[test]
fn an_endless_wait_is_none() {
    let policy = RetryPolicy::default().with_backoff(Duration::MAX, Duration::MAX);
    let mut call = Bench::retrying(policy, None);
    call.starts(0, 0);
    assert_eq!(call.fails(0, UNAVAILABLE, UNSAID, 0), Finish { attempt: 0 });
}
