//! What change costs: `cargo bench --bench churn`.
//!
//! * *One change among many*: microseconds per `Policy::update` after one endpoint's weight, state or membership
//!   has changed, per policy and number of endpoints.
//! * *Readers meanwhile*: one thread picks among 10,000 endpoints by the snapshot in force while another makes and
//!   publishes a new picker as fast as it can, and while none does, in turns; nanoseconds per pick, clock read
//!   included: the 99.9th percentile, and the longest pick of the quietest round.
//! * *A whole list at once*: milliseconds and bytes from the list handed to a `Balancer` until it has nothing more to
//!   do, and bytes of a whole channel whose dials are never answered.
//!
//! Medians over interleaved rounds. Takes no arguments and ignores those it gets. The last line is for programs:
//! per policy the dearest change among 10,000 in microseconds and what updates do to readers, as a quotient of
//! 99.9th percentiles; then the whole list. Fails when an endpoint that was never connected takes more than 4 KiB.

#[path = "../common/policies.rs"]
mod policies;
mod readers;
mod rebuild;
mod whole;

use std::alloc::System;
use std::process::ExitCode;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// DESIGN.md, "Numbers that hold the design to account".
const MOST_BYTES: f64 = 4_096.0;

fn main() -> ExitCode {
    let mut line = "RESULT churn".to_owned();
    let mut figure = |key: &str, value: f64| line += &format!(" {key}={value:.2}");
    for (policy, micros) in rebuild::measure() {
        figure(&format!("{}_us", policy.key), micros);
    }
    for (policy, ratio) in readers::measure() {
        figure(&format!("{}_reader", policy.key), ratio);
    }
    let whole = whole::measure();
    figure("list_10000_ms", whole.millis);
    figure("list_10000_to_1000", whole.growth);
    figure("balancer_bytes", whole.balancer_bytes);
    figure("channel_bytes", whole.channel_bytes);
    println!("{line}");
    match whole.balancer_bytes.max(whole.channel_bytes) <= MOST_BYTES {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The middle one.
fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
