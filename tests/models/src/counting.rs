//! The score word of an endpoint: calls in flight never drift, and nothing of an old scoring or an old tenant stays.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use crate::Model;
use crate::load::{Cells, Load, Scoring, rescore};
use crate::report::{Completion, Outcome, StatusCode};
use crate::sync::{AtomicUsize, Ordering};
use crate::timestamp::Timestamp;

pub const MODELS: &[Model] = &[
    ("two_calls", None, two_calls),
    (
        "a_call_while_it_becomes_ready",
        None,
        a_call_while_it_becomes_ready,
    ),
    (
        "a_call_while_the_scoring_changes",
        None,
        a_call_while_the_scoring_changes,
    ),
    ("a_slot_with_a_new_tenant", None, a_slot_with_a_new_tenant),
    (
        "a_trial_is_never_forgotten",
        None,
        a_trial_is_never_forgotten,
    ),
];

const LATENCY: Scoring = Scoring::Latency {
    window: Duration::from_secs(5),
};
const OK: Outcome = Outcome::Answered(StatusCode::OK);
const UNAVAILABLE: Outcome = Outcome::Answered(StatusCode::UNAVAILABLE);

const fn at(seconds: u64) -> Timestamp {
    Timestamp::from_secs(seconds)
}

fn endpoint(scoring: Scoring) -> (Cells, Arc<Load>) {
    let mut cells = Cells::new(scoring);
    let load = Arc::new(Load::new(cells.cell(0)));
    (cells, load)
}

fn end(load: &Load, outcome: Outcome) {
    let completion = Completion {
        outcome,
        latency: Duration::from_millis(10),
    };
    load.end(&completion, at(1), at(2));
}

fn call(load: &Load, outcome: Outcome) {
    load.begin();
    assert!(load.in_flight() > 0);
    end(load, outcome);
}

/// The calls of other threads than the model's own.
fn spawn(load: &Arc<Load>, outcome: Outcome) -> thread::JoinHandle<()> {
    let load = load.clone();
    thread::spawn(move || call(&load, outcome))
}

fn two_calls() {
    let (_cells, load) = endpoint(LATENCY);
    let other = spawn(&load, Outcome::Cancelled);
    call(&load, OK);
    other.join().unwrap();
    assert_eq!(load.in_flight(), 0);
    assert_eq!(load.outcomes().total(), 2);
}

fn a_call_while_it_becomes_ready() {
    let (_cells, load) = endpoint(LATENCY);
    let other = spawn(&load, OK);
    load.join(None, at(3));
    call(&load, Outcome::Refused);
    other.join().unwrap();
    assert_eq!(load.in_flight(), 0);
}

/// From latencies to calls in flight: a key that stays would be beyond all the others for good.
fn a_call_while_the_scoring_changes() {
    let (mut cells, load) = endpoint(LATENCY);
    let other = spawn(&load, OK);
    if cells.switch(Scoring::InFlight) {
        rescore([&*load], at(3));
    }
    other.join().unwrap();
    assert_eq!(load.in_flight(), 0);
    assert_eq!(load.cell().word().key(), 0, "of the old scoring");
}

/// The last call of the former tenant ends while its slot is wanted: whoever comes next begins with nothing.
fn a_slot_with_a_new_tenant() {
    let (mut cells, load) = endpoint(LATENCY);
    // Who remembers the former tenant: counted as std's `Arc` does, since loom's knows no `Weak`.
    let remembered = Arc::new(AtomicUsize::new(1));
    load.begin();
    let other = {
        let (load, remembered) = (load.clone(), remembered.clone());
        thread::spawn(move || {
            end(&load, OK);
            remembered.fetch_sub(1, Ordering::Release);
        })
    };
    // `Weak::strong_count` is relaxed.
    let forgotten = remembered.load(Ordering::Relaxed) == 0;
    let next = forgotten.then(|| Load::new(cells.cell(0)));
    if let Some(next) = &next {
        next.begin();
    }
    other.join().unwrap();
    match next {
        Some(next) => assert_eq!((next.in_flight(), next.cell().word().key()), (1, 0)),
        None => assert_eq!(load.in_flight(), 0),
    }
}

/// The fifth fault in a row penalises the endpoint while a pick looks at who is due: somebody will call it again.
fn a_trial_is_never_forgotten() {
    let (_cells, load) = endpoint(LATENCY);
    for _ in 0..4 {
        call(&load, UNAVAILABLE);
    }
    let other = spawn(&load, UNAVAILABLE);
    let trials = &load.cell().shared().trials;
    trials.restart();
    if let Some(due) = load.trial_due() {
        trials.announce(due);
    }
    other.join().unwrap();
    assert!(load.penalised());
    assert!(
        trials.due(at(2) + Duration::from_secs(5)),
        "nobody asks again"
    );
}
