//! How large a row is run, and what it says of itself.
//!
//! In `cargo test` a row runs briefly. The full run (see [`full`](crate::full)) starts the same test at the fault
//! matrix' own load, and reads from what it prints the figures for the page.

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `full`: the matrix' load.
pub(crate) const SIZE: &str = "EQUIPOISE_FAULT_SIZE";
/// Where in the load the fault comes, and what else of a row is left to chance.
pub(crate) const SEED: &str = "EQUIPOISE_FAULT_SEED";

/// The matrix' load is asked for, and its windows for real.
pub(crate) fn is_full() -> bool {
    std::env::var(SIZE).is_ok_and(|size| size == "full")
}

/// One thing in `cargo test`, another in the full run.
pub(crate) fn of<T>(quick: T, full: T) -> T {
    if is_full() { full } else { quick }
}

/// So many calls in `cargo test`, the matrix' 10,000 in the full run.
pub(crate) fn calls(quick: u64) -> u64 {
    of(quick, 10_000)
}

/// 1 in `cargo test`.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var(SEED).ok();
    seed.map_or(1, |seed| seed.parse().expect("a seed is a number"))
}

/// The call of so many before which the fault comes: in the second fifth, by the seed.
pub(crate) fn fault_before(calls: u64) -> u64 {
    let fifth = calls / 5;
    fifth + equipoise::rng::Rng::new(seed()).word() % fifth
}

/// A figure of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) value: f64,
    /// Empty for a count.
    pub(crate) unit: String,
    /// The most that the criterion allows; none where it is another check's affair.
    pub(crate) bound: Option<f64>,
}

/// How a line that holds a figure begins.
pub(crate) const FIGURE: &str = "FIGURE ";
/// How a line begins that names a test which could not be run here.
pub(crate) const SKIPPED: &str = "SKIPPED ";

/// Tells a figure: for people, and for the page.
pub(crate) fn figure(what: impl Display, value: impl Into<f64>, unit: &str) {
    tell(what, value.into(), unit, None);
}

/// Tells a time and its bound.
pub(crate) fn time(what: impl Display, took: Duration, bound: Duration) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    tell(what, ms(took), "ms", Some(ms(bound)));
}

fn tell(what: impl Display, value: f64, unit: &str, bound: Option<f64>) {
    let figure = Figure {
        what: what.to_string(),
        value,
        unit: unit.into(),
        bound,
    };
    let line = serde_json::to_string(&figure).expect("text and numbers");
    println!("{FIGURE}{line}");
}

/// Says, so that nobody can overlook it, that a test was not run and why. The tests that may do so are in
/// [`MAY_SKIP`](crate::matrix::MAY_SKIP).
pub(crate) fn skipped(test: &str, why: impl Display) {
    assert!(
        crate::matrix::MAY_SKIP.contains(&test),
        "{test} may not be skipped: {why}"
    );
    // The harness keeps to itself what a test prints that passes, but not what goes to the stream itself. Where that
    // is closed nobody listens.
    let _ = writeln!(std::io::stderr(), "\n{SKIPPED}{test}: {why}");
    println!("{SKIPPED}{test}: {why}");
}
