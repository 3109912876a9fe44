//! Hedges of one call at literal times.

use super::*;

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
