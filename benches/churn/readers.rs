//! Does anybody who picks wait for somebody who publishes?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use equipoise::Timestamp;
use equipoise::policy::{Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::Rng;

use crate::middle;
use crate::policies::{SUBJECTS, Subject, fleet};

const ENDPOINTS: usize = 10_000;
const ROUNDS: usize = 21;
const SPAN: Duration = Duration::from_millis(20);

/// What calls go by, as in the channel: one pointer, swapped.
struct Snapshot {
    picker: Arc<dyn Picker>,
}

/// How long picks took, in nanoseconds.
#[derive(Clone, Copy)]
struct Picks {
    p999: f64,
    longest: f64,
}

/// Per policy, the 99.9th percentile of a pick beside updates to that without.
pub(crate) fn measure() -> Vec<(&'static Subject, f64)> {
    println!(
        "nanoseconds per pick among {ENDPOINTS}, clock read included, medians of {ROUNDS} interleaved rounds"
    );
    println!(
        "{:<26} {:>22} {:>22} {:>9}",
        "", "calm: p99.9 longest", "churn: p99.9 longest", "updates/s"
    );
    SUBJECTS
        .iter()
        .map(|subject| (subject, of(subject)))
        .collect()
}

fn of(subject: &Subject) -> f64 {
    let mut policy = (subject.policy)();
    let mut members = fleet(&*policy, ENDPOINTS);
    let mut rng = Rng::new(1);
    let first = policy.update(&members, Timestamp::from_secs(1), &mut rng);
    let snapshot = ArcSwap::from_pointee(Snapshot {
        picker: first.picker,
    });
    let (mut calm, mut churn, mut updates) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        calm.push(read(&snapshot, &AtomicBool::new(false)));
        let ended = AtomicBool::new(false);
        let picks = thread::scope(|scope| {
            let reader = scope.spawn(|| read(&snapshot, &ended));
            while !ended.load(Ordering::Relaxed) {
                change(&mut members, updates);
                publish(&mut *policy, &members, &mut rng, &snapshot);
                updates += 1;
            }
            reader.join().expect("the reader panicked")
        });
        churn.push(picks);
    }
    let p999 = |picks: &[Picks]| middle(&picks.iter().map(|p| p.p999).collect::<Vec<_>>());
    // A median would tell how often other work on the machine interrupts.
    let longest = |picks: &[Picks]| picks.iter().map(|p| p.longest).fold(f64::MAX, f64::min);
    println!(
        "{:<26} {:>11.0} {:>10.0} {:>11.0} {:>10.0} {:>9.0}",
        subject.name,
        p999(&calm),
        longest(&calm),
        p999(&churn),
        longest(&churn),
        f64::from(updates) / (SPAN * ROUNDS as u32).as_secs_f64(),
    );
    let ratios = churn.iter().zip(&calm).map(|(a, b)| a.p999 / b.p999);
    middle(&ratios.collect::<Vec<_>>())
}

/// The weight of one of them, in turn.
fn change(members: &mut [Member], turn: u32) {
    let at = turn as usize % members.len();
    members[at].weight = 3 - members[at].weight;
}

fn publish(
    policy: &mut dyn Policy,
    members: &[Member],
    rng: &mut Rng,
    snapshot: &ArcSwap<Snapshot>,
) {
    let picker = policy.update(members, Timestamp::from_secs(1), rng).picker;
    snapshot.store(Arc::new(Snapshot { picker }));
}

/// Picks for a while, then says so.
fn read(snapshot: &ArcSwap<Snapshot>, ended: &AtomicBool) -> Picks {
    let mut rng = Rng::new(7);
    let mut nanos = Vec::with_capacity(1 << 20);
    let begin = Instant::now();
    let mut last = begin;
    while last.duration_since(begin) < SPAN && nanos.len() < nanos.capacity() {
        let random = rng.word();
        let result = snapshot.load().picker.pick(&PickInfo {
            now: Timestamp::from_secs(1),
            random,
            path: "/package.Service/Method",
            hash: Some(random),
            avoid: &[],
        });
        assert!(matches!(result, PickResult::Pick(_)), "{result:?}");
        let now = Instant::now();
        nanos.push(now.duration_since(last).as_nanos() as u32);
        last = now;
    }
    // Relaxed: it orders nothing; the writer publishes once more at the most.
    ended.store(true, Ordering::Relaxed);
    nanos.sort_unstable();
    Picks {
        p999: f64::from(nanos[nanos.len() * 999 / 1_000]),
        longest: nanos.last().copied().map_or(0.0, f64::from),
    }
}
