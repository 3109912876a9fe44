//! One call at literal times, and under arbitrary events.

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::Step::{Commit, Expire, Finish, Start, Wait};
use super::*;
use crate::retry::RetryBudget;

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

fn hedges(max_attempts: u32) -> Bench {
    let policy = HedgingPolicy::after(millis(20)).with_max_attempts(max_attempts);
    Bench::hedging(policy, None)
}

/// Fault matrix H7.
#[test]
fn hedges_are_sent_one_delay_apart_and_the_first_answer_wins() {
    let mut call = hedges(4);
    call.starts(0, 100);
    for (attempt, at) in [(1, 120), (2, 140), (3, 160)] {
        assert_eq!(call.poll(at - 20), wait(at));
        assert_eq!(call.poll(at - 1), wait(at));
        call.starts(attempt, at);
    }
    assert_eq!(call.poll(160), WAIT_FOR_NEWS);
    call.attempts.handle_head(2);
    call.attempts.handle_head(0);
    assert_eq!(call.poll(170), Commit { attempt: 2 });
}

#[test]
fn a_call_that_is_quick_is_sent_once() {
    let mut call = hedges(4);
    call.starts(0, 0);
    call.attempts.handle_head(0);
    assert_eq!(call.poll(19), Commit { attempt: 0 });
    assert_eq!(call.poll(500), Commit { attempt: 0 });
}

#[test]
fn the_delay_begins_when_an_attempt_leaves() {
    let mut call = hedges(3);
    assert_eq!(call.poll(0), Start { attempt: 0 });
    assert_eq!(call.poll(500), WAIT_FOR_NEWS, "it waits for an endpoint");
    call.attempts.handle_started(0, ms(600));
    assert_eq!(call.poll(600), wait(620));
    // It went elsewhere, transparently.
    call.attempts.handle_started(0, ms(610));
    assert_eq!(call.poll(610), wait(620));
    assert_eq!(call.poll(700), Start { attempt: 1 });
    call.attempts.handle_started(0, ms(700));
    assert_eq!(call.poll(700), WAIT_FOR_NEWS, "the newest has not left");
    call.attempts.handle_started(1, ms(701));
    assert_eq!(call.poll(701), wait(721));
}

#[test]
fn a_client_that_was_held_up_does_not_send_all_at_once() {
    let mut call = hedges(5);
    call.starts(0, 0);
    call.starts(1, 1_000);
    assert_eq!(call.poll(1_000), wait(1_020));
}

#[test]
fn without_a_delay_all_are_sent_at_once() {
    let policy = HedgingPolicy::after(Duration::ZERO).with_max_attempts(3);
    let mut call = Bench::hedging(policy, None);
    (0..3).for_each(|attempt| call.starts(attempt, 5));
    assert_eq!(call.poll(5), WAIT_FOR_NEWS);
}

#[test]
fn a_non_fatal_failure_is_replaced_at_once_and_the_rhythm_goes_on() {
    let mut call = hedges(4);
    call.starts(0, 0);
    assert_eq!(call.fails(0, UNAVAILABLE, UNSAID, 5), Start { attempt: 1 });
    call.attempts.handle_started(1, ms(6));
    assert_eq!(call.poll(6), wait(26));
    call.starts(2, 26);
    // The failure of an older one brings the next forward too.
    assert_eq!(call.fails(1, UNAVAILABLE, UNSAID, 30), Start { attempt: 3 });
    call.attempts.handle_started(3, ms(30));
    assert_eq!(call.fails(3, UNAVAILABLE, UNSAID, 31), WAIT_FOR_NEWS);
    assert_eq!(
        call.fails(2, UNAVAILABLE, UNSAID, 32),
        Finish { attempt: 2 }
    );
}

#[test]
fn a_fatal_failure_or_a_success_decides_against_all_others() {
    for code in [INTERNAL, StatusCode::OK] {
        let mut call = hedges(4);
        call.starts(0, 0);
        call.starts(1, 20);
        assert_eq!(call.fails(1, code, UNSAID, 21), Finish { attempt: 1 });
        assert_eq!(
            call.fails(0, UNAVAILABLE, UNSAID, 22),
            Finish { attempt: 1 }
        );
    }
}

#[test]
fn pushback_sets_the_time_of_the_next_hedge_and_the_rhythm_goes_on() {
    let mut call = hedges(5);
    call.starts(0, 0);
    call.starts(1, 20);
    let pushed = |wait| Pushback::After(millis(wait));
    assert_eq!(call.fails(0, UNAVAILABLE, pushed(100), 25), wait(125));
    // Whoever fails meanwhile without a word does not shorten what was asked for; whoever asks for more gets it.
    assert_eq!(call.fails(1, UNAVAILABLE, UNSAID, 30), wait(125));
    call.starts(2, 125);
    assert_eq!(call.poll(125), wait(145));
    assert_eq!(
        call.fails(2, UNAVAILABLE, pushed(0), 130),
        Start { attempt: 3 }
    );
    call.attempts.handle_started(3, ms(130));
    assert_eq!(call.poll(130), wait(150));
}

#[test]
fn the_longest_pushback_counts() {
    let mut call = hedges(5);
    call.starts(0, 0);
    call.starts(1, 20);
    let pushed = |wait| Pushback::After(millis(wait));
    assert_eq!(call.fails(0, UNAVAILABLE, pushed(100), 20), wait(120));
    assert_eq!(call.fails(1, UNAVAILABLE, pushed(10), 30), wait(120));
    call.starts(2, 120);
}

#[test]
fn two_failures_before_the_next_attempt_pay_for_that_one_alone() {
    let mut call = hedges(5);
    // One hedge and one retry.
    let two = RetryBudget::default().with_share(0.002).with_reserve(0);
    call.budget = Budget::new(&two);
    (0..1_000).for_each(|_| call.budget.call(ms(0)));
    call.starts(0, 0);
    call.starts(1, 20);
    let pushed = Pushback::After(millis(100));
    assert_eq!(call.fails(0, UNAVAILABLE, pushed, 20), wait(120));
    assert_eq!(call.fails(1, UNAVAILABLE, UNSAID, 30), wait(120));
    call.starts(2, 120);
}

#[test]
fn a_pushback_outlasts_a_refusal_by_the_budget() {
    let mut call = hedges(5);
    let one = RetryBudget::default().with_share(0.001).with_reserve(0);
    call.budget = Budget::new(&one);
    (0..1_000).for_each(|_| call.budget.call(ms(0)));
    call.starts(0, 0);
    assert_eq!(call.poll(20), Start { attempt: 1 });
    let pushed = Pushback::After(millis(500));
    assert_eq!(call.fails(0, UNAVAILABLE, pushed, 21), WAIT_FOR_NEWS);
    call.attempts.handle_started(1, ms(30));
    assert_eq!(call.poll(30), wait(521));
}

#[test]
fn a_server_that_says_stop_ends_hedging_but_not_what_is_under_way() {
    let mut call = hedges(5);
    call.starts(0, 0);
    call.starts(1, 20);
    assert_eq!(
        call.fails(0, UNAVAILABLE, Pushback::Stop, 25),
        WAIT_FOR_NEWS
    );
    call.attempts.handle_started(1, ms(26));
    assert_eq!(call.poll(500), WAIT_FOR_NEWS);
    assert_eq!(
        call.fails(1, UNAVAILABLE, UNSAID, 501),
        Finish { attempt: 1 }
    );
}

#[test]
fn a_hedge_that_is_refused_leaves_the_running_ones_alone() {
    let mut call = hedges(3).with_budget(RetryBudget::default());
    call.starts(0, 0);
    assert_eq!(call.poll(20), WAIT_FOR_NEWS, "no call paid for a hedge");
    assert_eq!(call.poll(500), WAIT_FOR_NEWS);
    // A failure is replaced out of the whole budget.
    assert_eq!(
        call.fails(0, UNAVAILABLE, UNSAID, 501),
        Start { attempt: 1 }
    );
}

/// Fault matrix H8.
#[test]
fn hedging_that_is_throttled_after_the_only_attempt_failed_ends_at_once() {
    for pushback in [UNSAID, Pushback::After(millis(500))] {
        let mut call = hedges(3).with_budget(RetryBudget::tokens(1, 1.0));
        call.starts(0, 0);
        assert_eq!(
            call.fails(0, UNAVAILABLE, pushback, 5),
            Finish { attempt: 0 }
        );
    }
    // While another is under way it has the last word.
    let mut call = hedges(3).with_budget(RetryBudget::tokens(2, 1.0));
    call.starts(0, 0);
    call.starts(1, 20);
    assert_eq!(call.fails(0, UNAVAILABLE, UNSAID, 25), WAIT_FOR_NEWS);
    assert_eq!(call.poll(900), WAIT_FOR_NEWS);
    assert_eq!(
        call.fails(1, UNAVAILABLE, UNSAID, 901),
        Finish { attempt: 1 }
    );
}

#[test]
fn no_hedge_begins_at_the_deadline_or_after() {
    for (deadline, expected) in [(21, wait(20)), (20, wait(20)), (15, wait(15))] {
        let policy = HedgingPolicy::after(millis(20));
        let mut call = Bench::hedging(policy, Some(deadline));
        call.starts(0, 0);
        assert_eq!(call.poll(0), expected, "{deadline}");
        let then = match deadline {
            21 => Start { attempt: 1 },
            _ => Expire,
        };
        assert_eq!(call.poll(20), then, "{deadline}");
    }
    // With another under way, a pushback beyond the deadline only means that there is no next one.
    let mut call = Bench::hedging(
        HedgingPolicy::after(millis(20)).with_max_attempts(3),
        Some(100),
    );
    call.starts(0, 0);
    call.starts(1, 20);
    let pushed = Pushback::After(millis(80));
    assert_eq!(call.fails(0, UNAVAILABLE, pushed, 20), wait(100));
    assert_eq!(call.poll(99), wait(100));
    assert_eq!(
        call.fails(1, UNAVAILABLE, UNSAID, 99),
        Finish { attempt: 1 }
    );
}

#[test]
fn the_attempt_that_was_sent_most_goes_on_when_the_request_outgrows_its_copy() {
    // The first has ended already: nobody else can have the rest of the request.
    for (named, then) in [
        (0, Finish { attempt: 0 }),
        (1, Commit { attempt: 1 }),
        (2, Commit { attempt: 2 }),
        (7, Commit { attempt: 1 }),
    ] {
        let mut call = hedges(4);
        call.starts(0, 0);
        call.starts(1, 20);
        call.starts(2, 40);
        call.fails(0, UNAVAILABLE, Pushback::After(millis(999)), 41);
        call.attempts.handle_overflow(named);
        assert_eq!(call.poll(2_000), then);
    }
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
fn a_copy_that_was_turned_away_is_as_if_it_had_not_been() {
    let mut call = hedges(4);
    call.starts(0, 0);
    call.starts(1, 20);
    call.attempts.handle_turned_away(1);
    assert_eq!(call.poll(21), WAIT_FOR_NEWS, "no other is sent");
    call.attempts.handle_turned_away(1);
    assert_eq!(
        call.fails(0, UNAVAILABLE, UNSAID, 50),
        Finish { attempt: 0 }
    );

    // The last that was left.
    let mut call = hedges(4);
    call.starts(0, 0);
    assert_eq!(call.fails(0, UNAVAILABLE, UNSAID, 5), Start { attempt: 1 });
    call.attempts.handle_turned_away(1);
    assert_eq!(call.poll(6), Finish { attempt: 1 });
}

#[test]
fn an_endless_wait_is_none() {
    let policy = RetryPolicy::default().with_backoff(Duration::MAX, Duration::MAX);
    let mut call = Bench::retrying(policy, None);
    call.starts(0, 0);
    assert_eq!(call.fails(0, UNAVAILABLE, UNSAID, 0), Finish { attempt: 0 });
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Started(u32),
    Head(u32),
    Ended(u32, StatusCode, Pushback),
    Overflow(u32),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let attempt = || 0u32..6;
    let code = prop_oneof![
        6 => Just(UNAVAILABLE),
        1 => Just(INTERNAL),
        1 => Just(StatusCode::OK),
    ];
    let pushback = prop_oneof![
        6 => Just(UNSAID),
        2 => (0u64..300).prop_map(|wait| Pushback::After(millis(wait))),
        1 => Just(Pushback::Stop),
    ];
    let event = prop_oneof![
        8 => attempt().prop_map(Event::Started),
        1 => attempt().prop_map(Event::Head),
        10 => (attempt(), code, pushback)
            .prop_map(|(attempt, code, pushback)| Event::Ended(attempt, code, pushback)),
        1 => attempt().prop_map(Event::Overflow),
        10 => (0u64..200).prop_map(Event::Pass),
    ];
    vec(event, 0..60)
}

/// What was seen of a call.
#[derive(Debug, Default)]
struct Seen {
    begun: u32,
    running: Vec<u32>,
    failures: u32,
    end: Option<Step>,
    /// Nothing may begin any more.
    closed: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Fault matrix H9, V11, V12: one end, bounded attempts, none after the end, never stuck.
    #[test]
    fn a_call_ends_once_whatever_happens(
        events in events(),
        hedging in any::<bool>(),
        max_attempts in 2u32..=5,
        delay in 0u64..100,
        deadline in prop_oneof![Just(None), (0u64..2_000).prop_map(Some)],
        (retries, copies, reserve) in (any::<bool>(), any::<bool>(), any::<bool>()),
        random in any::<u64>(),
    ) {
        let shares = RetryBudget::default()
            .with_share(f64::from(u8::from(retries)))
            .with_hedges(f64::from(u8::from(copies)))
            .with_reserve(u32::from(reserve));
        let budget = Budget::new(&shares);
        budget.call(Timestamp::ZERO);
        let may_add = u32::from(retries) + 10 * u32::from(reserve);

        let deadline = deadline.map(ms);
        let mut attempts = match hedging {
            true => Attempts::hedging(
                &HedgingPolicy::after(millis(delay)).with_max_attempts(max_attempts), None, deadline,
            ),
            false => Attempts::retrying(
                &RetryPolicy::default().with_max_attempts(max_attempts), deadline, random,
            ),
        };
        let mut seen = Seen::default();
        let mut now = 0;
        // Whatever is still open in the end fails, and time passes as far as it is waited for.
        let mut events = events.into_iter();
        let mut rounds = 0;
        loop {
            // What it says of this moment.
            let until = loop {
                match attempts.poll(&budget, ms(now)) {
                    Start { attempt } => {
                        prop_assert!(!seen.closed && seen.end.is_none());
                        prop_assert!(deadline.is_none_or(|deadline| ms(now) < deadline));
                        prop_assert_eq!(attempt, seen.begun);
                        seen.begun += 1;
                        prop_assert!(seen.begun <= max_attempts);
                        prop_assert!(seen.begun <= 1 + may_add);
                        prop_assert!(hedging || seen.running.is_empty());
                        prop_assert!(
                            seen.failures > 0 || seen.begun <= 1 + u32::from(copies).min(may_add)
                        );
                        seen.running.push(attempt);
                    }
                    Wait { until } => {
                        prop_assert!(seen.end.is_none());
                        prop_assert!(until > ms(now));
                        prop_assert!(deadline.is_none_or(|deadline| until <= deadline));
                        prop_assert!(!seen.running.is_empty() || until < Timestamp::MAX);
                        break Some(until);
                    }
                    end => {
                        prop_assert_eq!(*seen.end.get_or_insert(end), end);
                        match end {
                            Commit { attempt } => prop_assert!(seen.running.contains(&attempt)),
                            Finish { attempt } => prop_assert!(
                                attempt < seen.begun && !seen.running.contains(&attempt)
                            ),
                            _ => prop_assert!(deadline.is_some_and(|deadline| ms(now) >= deadline)),
                        }
                        break None;
                    }
                }
            };
            prop_assert_eq!(attempts.begun(), seen.begun);
            let event = match (events.next(), until) {
                (Some(event), _) => event,
                (None, None) => break,
                (None, Some(_)) if !seen.running.is_empty() => {
                    Event::Ended(seen.running[0], UNAVAILABLE, UNSAID)
                }
                (None, Some(until)) => Event::Pass(until.since(ms(now)).as_nanos().div_ceil(1_000_000) as u64),
            };
            rounds += 1;
            prop_assert!(rounds < 100, "it does not end");
            let over = seen.end.is_some();
            match event {
                Event::Started(attempt) => attempts.handle_started(attempt, ms(now)),
                Event::Head(attempt) => {
                    attempts.handle_head(attempt);
                    seen.closed |= seen.running.contains(&attempt);
                }
                Event::Ended(attempt, code, pushback) => {
                    attempts.handle_ended(attempt, code, pushback, &budget, ms(now));
                    if let (false, Some(at)) = (over, seen.running.iter().position(|&it| it == attempt)) {
                        seen.running.remove(at);
                        seen.failures += 1;
                        seen.closed |= code != UNAVAILABLE || pushback == Pushback::Stop;
                    }
                }
                Event::Overflow(attempt) => {
                    attempts.handle_overflow(attempt);
                    seen.closed |= seen.begun > 0;
                }
                Event::Pass(millis) => now += millis,
            }
        }
        prop_assert!(seen.end.is_some());
    }
}
