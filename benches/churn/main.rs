//! What change costs: `cargo bench --bench churn`.
//!
//! * *One change among many*: microseconds per `Policy::update` after one endpoint's weight, state or membership
//!   has changed, per policy and number of endpoints.
//! * *Readers meanwhile*: one thread picks among 10,000 endpoints by the snapshot in force while another makes and
//!   publishes a new picker every 5 ms, which is as often as a channel does, and while none does, in turns. The 99.9th
//!   percentile of a pick, clock read included; the thread's own time per pick, which other work on the machine does
//!   not enter; and how many picks take longer than 20 µs. A snapshot is freed by the last who holds it: how often that
//!   was the reader, and what it takes when it is.
//! * *A whole list at once*: milliseconds and bytes from the list handed to a `Balancer` until it has nothing more to
//!   do, and bytes of a whole channel whose dials are never answered.
//!
//! Medians over interleaved rounds. Takes no arguments and ignores those it gets. The last line is for programs:
//! per policy the dearest change among 10,000 in microseconds, what updates do to readers, as quotients of
//! 99.9th percentiles and of a reader's own time, and the microseconds of freeing a snapshot; picks in a million that take
//! longer than 20 µs and than 1 ms, over all policies; then the whole list. Fails when an endpoint that was never
//! connected takes more than 4 KiB.

#[path = "../common/policies.rs"]
mod policies;
mod readers;
mod rebuild;
mod whole;

use std::alloc::System;
use std::process::ExitCode;

use readers::Ratios;
use rustix::time::{ClockId, clock_gettime};
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
    let readers = readers::measure();
    for (policy, Ratios { p999, own, free }) in readers.by_policy {
        figure(&format!("{}_reader_p999", policy.key), p999);
        figure(&format!("{}_reader_own", policy.key), own);
        figure(&format!("{}_free_us", policy.key), free);
    }
    figure("free_all_us", readers.free_all);
    for (name, [long, very_long]) in [("calm", readers.calm), ("churn", readers.churn)] {
        figure(&format!("over_20us_ppm_{name}"), long);
        figure(&format!("over_1ms_ppm_{name}"), very_long);
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

/// Nanoseconds that this thread has run, whatever else the machine does.
fn own_nanos() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
