//! The protocols of the hot path, checked in every interleaving that loom knows: `tests/models/run`.
//!
//! The files under test are those of the crate, unchanged: what they meet over comes from their `crate::sync`, which
//! is loom's here. A binary rather than a test, since as a test their own tests would be built along.
//!
//! Loom finds lost wake-ups as deadlocks, and reads every value that the orderings allow for a load. It does not model
//! `SeqCst` accesses, of which there are none here, only fences. `tests/models/controls` breaks the files one line at
//! a time and wants each break to be found.

#[path = "../../../src/classifier.rs"]
#[allow(dead_code)]
mod classifier;
#[path = "../../../src/load/mod.rs"]
#[allow(dead_code, unused_imports)]
mod load;
#[path = "../../../src/report.rs"]
#[allow(dead_code)]
mod report;
#[path = "../../../src/transport/slots.rs"]
#[allow(dead_code)]
mod slots;
#[path = "../../../src/timestamp.rs"]
#[allow(dead_code)]
mod timestamp;
#[path = "../../../src/channel/waiters.rs"]
#[allow(dead_code)]
mod waiters;

mod counting;
mod reserving;
mod waiting;

/// In place of the crate's own: the same names, from loom.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// How often a thread may be interrupted where every way would be too many.
const INTERRUPTIONS: usize = 2;

/// A model, by its name.
type Model = (&'static str, Option<usize>, fn());

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    let mut ran = 0;
    for (room, models) in [
        ("waiting", waiting::MODELS),
        ("reserving", reserving::MODELS),
        ("counting", counting::MODELS),
    ] {
        for (name, interruptions, model) in models {
            let name = format!("{room}::{name}");
            if !chosen.is_empty() && !chosen.contains(&name) {
                continue;
            }
            println!("{name} ...");
            let started = Instant::now();
            let mut checker = loom::model::Builder::new();
            checker.preemption_bound = *interruptions;
            let (model, ways) = (*model, Arc::new(AtomicUsize::new(0)));
            let counted = ways.clone();
            checker.check(move || {
                // Relaxed, and not loom's: it only counts, from one way to the next.
                counted.fetch_add(1, Ordering::Relaxed);
                model();
            });
            let ways = ways.load(Ordering::Relaxed);
            // With one way alone nothing was interleaved, and nothing is proven.
            assert!(ways > 1, "{name} has but one way");
            println!("{name} holds ({ways} ways, {:.1?})", started.elapsed());
            ran += 1;
        }
    }
    if ran == 0 {
        eprintln!("no model is called {chosen:?}");
        std::process::exit(2);
    }
}
