//! What a [`Load`] makes of calls.

use std::sync::Arc;

use super::*;
use crate::report::StatusCode;

const WINDOW: Duration = Duration::from_secs(5);
const LATENCY: Scoring = Scoring::Latency { window: WINDOW };

fn ms(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn load(scoring: Scoring) -> Load {
    Load::new(Cells::new(scoring).cell(0))
}

fn fleet<const N: usize>(scoring: Scoring) -> [Load; N] {
    let mut cells = Cells::new(scoring);
    std::array::from_fn(|slot| Load::new(cells.cell(slot)))
}

/// One call from `started` to `started + took`, both in milliseconds.
fn call(load: &Load, outcome: Outcome, started: u64, took: u64) {
    load.begin();
    let completion = Completion {
        outcome,
        latency: Duration::from_millis(took),
    };
    load.end(&completion, ms(started), ms(started + took));
}

fn ok(load: &Load, started: u64, took: u64) {
    call(load, Outcome::Answered(StatusCode::OK), started, took);
}

fn fail(load: &Load, started: u64, took: u64) {
    call(
        load,
        Outcome::Answered(StatusCode::UNAVAILABLE),
        started,
        took,
    );
}

/// What the endpoint's estimate is worth at `at` milliseconds, in milliseconds.
fn worth(load: &Load, at: u64) -> f64 {
    let height = score::Ascent::new(WINDOW).at(ms(at)) as f64;
    ((load.cell.word().key() as f64 - height) / 8192.0).exp2() / 1e6
}

#[track_caller]
fn near(got: f64, expected: f64) {
    assert!(
        (got / expected - 1.0).abs() < 0.02,
        "{got} is not near {expected}"
    );
}

#[test]
fn counts_are_derived_and_add_up() {
    let load = load(LATENCY);
    assert_eq!((load.outcomes().total(), load.latency().count()), (0, 0));
    assert!(
        load.record.get().is_none(),
        "nothing is allocated before the first end"
    );
    ok(&load, 0, 10);
    ok(&load, 0, 10);
    fail(&load, 0, 1);
    call(&load, Outcome::Answered(StatusCode::new(5)), 0, 1);
    call(&load, Outcome::Cancelled, 0, 1);
    call(&load, Outcome::Refused, 0, 0);
    load.begin();
    let outcomes = load.outcomes();
    assert_eq!(outcomes.answered(StatusCode::OK), 2);
    assert_eq!(outcomes.answered(StatusCode::UNAVAILABLE), 1);
    assert_eq!(outcomes.answered(StatusCode::new(5)), 1);
    assert_eq!((outcomes.cancelled(), outcomes.refused()), (1, 1));
    assert_eq!((outcomes.total(), load.in_flight()), (6, 1));
    assert_eq!(
        load.latency().count(),
        4,
        "answers of any status; nothing else"
    );
}

#[test]
fn the_estimate_is_a_maximum_that_fades() {
    let load = load(LATENCY);
    ok(&load, 0, 100);
    near(worth(&load, 100), 100.0);
    ok(&load, 100, 1);
    near(worth(&load, 100), 100.0);
    near(worth(&load, 5_100), 100.0 / std::f64::consts::E);
    ok(&load, 20_000, 50);
    near(worth(&load, 20_050), 50.0);
}

#[test]
fn the_mean_follows_answers_that_were_no_fault() {
    let load = load(Scoring::InFlight);
    assert_eq!(load.latency().ewma(), None);
    ok(&load, 0, 32);
    assert_eq!(load.latency().ewma(), Some(Duration::from_millis(32)));
    ok(&load, 0, 64);
    assert_eq!(load.latency().ewma(), Some(Duration::from_millis(33)));
    fail(&load, 0, 1_000);
    call(&load, Outcome::Cancelled, 0, 1_000);
    assert_eq!(load.latency().ewma(), Some(Duration::from_millis(33)));
    call(
        &load,
        Outcome::Answered(StatusCode::OK),
        0,
        u64::MAX / 1_000_000,
    );
    assert!(
        load.latency().ewma() > Some(Duration::from_secs(3_600)),
        "saturates"
    );
}

#[test]
fn a_sample_is_capped_at_a_multiple_of_the_fastest_mean() {
    let [fast, slow] = fleet(LATENCY);
    ok(&slow, 0, 2_000);
    near(worth(&slow, 2_000), 2_000.0);
    ok(&fast, 2_000, 10);
    ok(&slow, 12_000, 2_000);
    ok(&slow, 62_000, 2_000);
    near(worth(&slow, 64_000), 2_000.0);
    ok(&fast, 64_000, 10);
    ok(&slow, 80_000, 2_000);
    near(worth(&slow, 82_000), 640.0);
    // Nor does a cancelled call get above.
    call(&slow, Outcome::Cancelled, 80_000, 9_000);
    near(worth(&slow, 89_000), 640.0);
}

#[test]
fn a_cancelled_call_raises_and_never_lowers() {
    let load = load(LATENCY);
    ok(&load, 0, 10);
    call(&load, Outcome::Cancelled, 10, 0);
    near(worth(&load, 10), 10.0);
    call(&load, Outcome::Cancelled, 10, 50);
    near(worth(&load, 60), 50.0);
    call(&load, Outcome::Refused, 60, 9_000);
    near(worth(&load, 60), 50.0);
}

#[test]
fn the_ladder_of_faults() {
    let [bad, good] = fleet(LATENCY);
    ok(&good, 0, 10);
    ok(&bad, 0, 20);
    // Faster than any answer, and looks four times as slow as its own.
    for _ in 0..4 {
        fail(&bad, 50, 0);
        near(worth(&bad, 50), 80.0);
        assert!(!bad.penalised());
    }
    fail(&bad, 50, 0);
    near(worth(&bad, 50), 5_000.0);
    assert!(bad.penalised());
    assert_eq!(bad.trial_due(), Some(ms(5_050)));
    // A deadline that passed counts as what it took, and never as more than the penalty.
    fail(&good, 0, 400);
    near(worth(&good, 400), 1_600.0);
    fail(&good, 0, 4_000);
    near(worth(&good, 4_000), 5_000.0);
    assert!(!good.penalised());
}

#[test]
fn a_fault_of_one_that_never_answered_counts_by_the_floor() {
    let [bad, good] = fleet(LATENCY);
    ok(&good, 0, 10);
    bad.join(None, ms(10));
    fail(&bad, 10, 0);
    near(worth(&bad, 10), 40.0);
    assert!(bad.cell.word().on_trial(), "a fault is no answer");
}

#[test]
fn a_success_in_between_begins_the_ladder_anew() {
    let load = load(LATENCY);
    for _ in 0..10 {
        for _ in 0..4 {
            fail(&load, 100, 1);
        }
        ok(&load, 100, 1);
    }
    assert!(!load.penalised());
    // What is said of the request is an answer as well.
    for _ in 0..4 {
        fail(&load, 100, 1);
    }
    call(&load, Outcome::Answered(StatusCode::new(5)), 100, 1);
    fail(&load, 100, 1);
    assert!(!load.penalised());
    // A cancelled call is not.
    for _ in 0..3 {
        fail(&load, 100, 1);
    }
    call(&load, Outcome::Cancelled, 100, 1);
    fail(&load, 100, 1);
    assert!(load.penalised());
}

#[test]
fn steady_errors_do_not_pile_up() {
    let load = load(LATENCY);
    ok(&load, 0, 10);
    for second in 1..600 {
        for _ in 0..3 {
            fail(&load, second * 1_000, 1);
        }
        ok(&load, second * 1_000, 10);
    }
    near(worth(&load, 599_001), 40.0);
}

#[test]
fn only_a_call_begun_after_the_last_fault_ends_the_penalty() {
    for scoring in [LATENCY, Scoring::InFlight] {
        let load = load(scoring);
        ok(&load, 0, 10);
        let before = load.cell.word().key();
        for _ in 0..5 {
            fail(&load, 1_000, 1);
        }
        ok(&load, 500, 700);
        assert!(load.penalised(), "begun before: says nothing of now");
        ok(&load, 1_001, 200);
        assert!(load.penalised(), "begun at the same time: no better");
        fail(&load, 2_000, 0);
        ok(&load, 1_500, 700);
        assert!(load.penalised(), "renewed meanwhile");
        ok(&load, 7_000, 20);
        assert!(!load.penalised());
        match scoring {
            Scoring::Latency { .. } => near(worth(&load, 7_020), 20.0),
            _ => assert_eq!(load.cell.word().key(), before),
        }
    }
}

#[test]
fn a_trial_is_claimed_once_and_renewed_by_failing() {
    let load = load(Scoring::InFlight);
    assert_eq!(load.trial_due(), None);
    for _ in 0..5 {
        fail(&load, 0, 0);
    }
    let trials = &load.cell.shared().trials;
    assert!(!trials.due(ms(4_999)) && trials.due(ms(5_000)));
    assert_eq!(load.trial_due(), Some(ms(5_000)));
    assert_eq!(load.claim_trial(ms(5_000), ms(5_100)), Some(ms(10_100)));
    assert_eq!(
        load.claim_trial(ms(5_000), ms(5_100)),
        None,
        "somebody else has it"
    );
    fail(&load, 5_100, 400);
    assert_eq!(load.trial_due(), Some(ms(10_500)));
}

#[test]
fn in_flight_scores_hold_no_latency() {
    let [a, b] = fleet(Scoring::InFlight);
    ok(&a, 0, 1_000);
    ok(&b, 0, 1);
    for _ in 0..4 {
        fail(&a, 0, 1_000);
    }
    assert_eq!(a.score(), b.score());
    a.begin();
    assert!(a.score() > b.score());
    fail(&b, 0, 1);
    for _ in 0..4 {
        fail(&b, 0, 1);
    }
    for _ in 0..10_000 {
        a.begin();
    }
    assert!(
        a.score() < b.score(),
        "penalised is behind any number of calls"
    );
}

#[test]
fn a_newcomer_begins_at_the_median() {
    let [a, b, c, new] = fleet(LATENCY);
    assert_eq!(median([&a, &b, &c]), None);
    new.join(None, ms(1_000));
    ok(&a, 1_000, 10);
    ok(&b, 1_000, 30);
    ok(&c, 1_000, 90);
    new.join(median([&a, &b, &c, &new]), ms(1_100));
    near(worth(&new, 1_030), 30.0);
    assert_eq!(new.estimate(), None);
    new.begin();
    new.spoke();
    assert_eq!(new.estimate(), b.estimate());
    for _ in 0..5 {
        fail(&c, 1_100, 1);
    }
    assert_eq!(median([&a, &c]), a.estimate(), "the penalised tell nothing");
}

#[test]
fn reconnecting_forgets_faults_and_latency_and_keeps_counts() {
    let [a, b] = fleet(LATENCY);
    ok(&b, 0, 10);
    ok(&a, 0, 1_000);
    for _ in 0..5 {
        fail(&a, 1_000, 1);
    }
    a.begin();
    a.join(b.estimate(), ms(2_000));
    assert!(!a.penalised() && a.cell.word().on_trial());
    assert_eq!(a.cell.word().key(), b.cell.word().key());
    assert_eq!((a.in_flight(), a.outcomes().total()), (1, 6));
    for _ in 0..4 {
        fail(&a, 2_000, 1);
    }
    assert!(!a.penalised(), "the ladder begins anew");
}

#[test]
fn threads_leave_nothing_behind() {
    let load = Arc::new(load(LATENCY));
    ok(&load, 0, 1);
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let load = load.clone();
            std::thread::spawn(move || {
                for i in 0..20_000u64 {
                    match (i + thread) % 4 {
                        0 => ok(&load, 100, 1 + i % 8),
                        1 => fail(&load, 100, 1),
                        2 => call(&load, Outcome::Cancelled, 100, 1),
                        _ => call(&load, Outcome::Refused, 100, 1),
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let outcomes = load.outcomes();
    assert_eq!(load.in_flight(), 0);
    assert_eq!(outcomes.answered(StatusCode::OK), 20_001);
    assert_eq!(outcomes.answered(StatusCode::UNAVAILABLE), 20_000);
    assert_eq!((outcomes.cancelled(), outcomes.refused()), (20_000, 20_000));
    assert_eq!(
        load.outcomes().total() + u64::from(load.in_flight()),
        80_001
    );
    assert_eq!(
        load.cell.word().0 >> 24,
        load.cell.word().key(),
        "idle: the score is the key"
    );
    // Ended by a call begun after everything else, whatever the threads' interleaving left behind.
    ok(&load, 1_000_000, 7);
    assert!(!load.penalised());
    near(worth(&load, 1_000_007), 7.0);
}

#[test]
fn a_new_scoring_begins_with_what_is_known() {
    let mut cells = Cells::new(Scoring::InFlight);
    let [known, unknown, bad] = std::array::from_fn(|slot| Load::new(cells.cell(slot)));
    for load in [&known, &unknown, &bad] {
        load.join(None, ms(0));
        load.begin();
    }
    for i in 0..500 {
        ok(&known, i, 10);
        fail(&bad, i, 1);
    }
    assert!(bad.penalised());
    assert!(cells.switch(LATENCY));
    assert!(!cells.switch(LATENCY), "nothing new");
    rescore([&known, &unknown, &bad], ms(1_000));
    for load in [&known, &unknown, &bad] {
        assert_eq!(load.in_flight(), 1);
    }
    near(worth(&known, 1_000), 10.0);
    near(worth(&bad, 1_000), 5_000.0);
    assert!(bad.penalised());
    ok(&bad, 2_000, 10);
    near(worth(&bad, 2_010), 10.0);
    assert!(cells.switch(Scoring::InFlight));
    rescore([&known, &unknown, &bad], ms(3_000));
    for load in [&known, &unknown, &bad] {
        assert_eq!((load.cell.word().key(), load.in_flight()), (0, 1));
    }
}

/// Who has not answered yet begins at the median, also where its trial is over because a stream of its spoke or
/// another policy's call was answered.
#[test]
fn under_a_new_scoring_nobody_begins_as_if_it_took_no_time() {
    let mut cells = Cells::new(Scoring::InFlight);
    let loads: [Load; 4] = std::array::from_fn(|slot| Load::new(cells.cell(slot)));
    for (load, millis) in loads.iter().zip([10, 10, 20]) {
        ok(load, 0, millis);
    }
    let [.., silent] = &loads;
    cells.switch(LATENCY);
    rescore(&loads, ms(1_000));
    near(worth(silent, 1_000), 10.0);
    assert!(silent.cell.word().on_trial());
    silent.spoke();
    near(worth(silent, 1_000), 10.0);
}

/// It spoke before, and will not again: a trial would last until the stream ends.
#[test]
fn an_endpoint_with_calls_in_flight_is_not_put_on_trial_by_a_new_scoring() {
    let mut cells = Cells::new(Scoring::InFlight);
    let loads: [Load; 2] = std::array::from_fn(|slot| Load::new(cells.cell(slot)));
    ok(&loads[0], 0, 10);
    loads[1].begin();
    cells.switch(LATENCY);
    rescore(&loads, ms(1_000));
    assert!(!loads[1].cell.word().on_trial());
    near(worth(&loads[1], 1_000), 10.0);
}

/// A call may end while the scoring changes: it has read the old one, and writes after the new one is in force.
#[test]
fn a_score_of_the_old_scoring_does_not_last() {
    let steep = Scoring::Latency {
        window: Duration::from_secs(1),
    };
    let an_hour = 3_600_000;
    for (before, after) in [
        (steep, Scoring::InFlight),
        (steep, LATENCY),
        (LATENCY, steep),
    ] {
        let mut cells = Cells::new(before);
        let load = Load::new(cells.cell(0));
        load.begin();
        let slope = load.cell.shared().slope();
        cells.switch(after);
        rescore([&load], ms(an_hour));
        let fresh = load.cell.word().key();
        // What the call makes of the slope that it has read.
        let key = score::Ascent::of(slope).map_or(0, |ascent| ascent.at(ms(an_hour)) + 300_000);
        load.cell.apply(Event::Answered { key, clears: true });
        load.settle(slope, ms(an_hour));
        let key = load.cell.word().key();
        assert!(
            key.abs_diff(fresh) < 300_000,
            "{before:?} {after:?}: {key} for {fresh}"
        );
    }
}
