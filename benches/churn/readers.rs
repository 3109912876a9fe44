//! Does anybody who picks wait for somebody who publishes?

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use equipoise::policy::{Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::Rng;
use equipoise::{Connectivity, Timestamp};

use crate::policies::{SUBJECTS, Subject, fleet};
use crate::{middle, own_nanos};

const ENDPOINTS: usize = 10_000;
const ROUNDS: usize = 15;
const SPAN: Duration = Duration::from_millis(50);
/// As often as a channel publishes at the most: what comes in between is coalesced.
const EVERY: Duration = Duration::from_millis(5);

/// A pick that takes longer is a stall: many times what a pick takes, and less than a time slice.
const LONG: usize = 20_000;
const VERY_LONG: usize = 1_000_000;

/// What calls go by, as in the channel: one pointer, swapped.
struct Snapshot {
    picker: Arc<dyn Picker>,
}

thread_local! {
    static READS: Cell<bool> = const { Cell::new(false) };
}

/// How many snapshots were freed by whoever picks.
static FREED: AtomicU32 = AtomicU32::new(0);

impl Drop for Snapshot {
    fn drop(&mut self) {
        // Relaxed: read when the reader has been joined.
        FREED.fetch_add(READS.get().into(), Ordering::Relaxed);
    }
}

/// How long the picks of one round took.
struct Picks {
    /// How many took so many nanoseconds; the last, how many took longer. Nothing is kept per pick: memory that is
    /// touched for the first time would be what is measured.
    nanos: Vec<u32>,
    very_long: u32,
    count: u32,
    /// Nanoseconds that the thread itself ran.
    own: f64,
}

impl Picks {
    /// The 99.9th percentile, in nanoseconds.
    fn p999(&self) -> f64 {
        let mut left = self.count - self.count / 1_000;
        let enough = |count: &u32| {
            left = left.saturating_sub(*count);
            left == 0
        };
        self.nanos.iter().position(enough).unwrap_or(0) as f64
    }

    /// Nanoseconds of the thread's own time per pick.
    fn own(&self) -> f64 {
        self.own / f64::from(self.count)
    }
}

/// Picks of many rounds that took longer than they may.
#[derive(Default)]
struct Stalls {
    picks: u64,
    long: u64,
    very_long: u64,
}

impl Stalls {
    fn count(&mut self, rounds: &[Picks]) {
        for picks in rounds {
            self.picks += u64::from(picks.count);
            self.long += picks.nanos[LONG..]
                .iter()
                .map(|&n| u64::from(n))
                .sum::<u64>();
            self.very_long += u64::from(picks.very_long);
        }
    }

    /// In a million.
    fn shares(&self) -> [f64; 2] {
        [self.long, self.very_long].map(|n| n as f64 * 1e6 / self.picks as f64)
    }
}

/// What updates do to readers.
pub(crate) struct Readers {
    pub(crate) by_policy: Vec<(&'static Subject, Ratios)>,
    /// Microseconds that it takes to let go of the last picker of endpoints that have all left.
    pub(crate) free_all: f64,
    /// Picks in a million that took longer than 20 µs and than 1 ms, without updates and with them, over all policies.
    pub(crate) calm: [f64; 2],
    pub(crate) churn: [f64; 2],
}

/// With updates, by without them.
pub(crate) struct Ratios {
    pub(crate) p999: f64,
    pub(crate) own: f64,
    /// Microseconds that it takes to let go of the last picker, where a reader does.
    pub(crate) free: f64,
}

pub(crate) fn measure() -> Readers {
    println!(
        "picks among {ENDPOINTS} while there is a new picker every {EVERY:?}, and while there is none; medians of \
         {ROUNDS} interleaved rounds; clock read included"
    );
    println!(
        "{:<26} {:^19}  {:^19}  {:^25}  {:^17}",
        "", "p99.9, ns", "own time, ns", "over 20 us, in a million", "freed by a reader"
    );
    println!(
        "{:<26} {:>9} {:>9}  {:>9} {:>9}  {:>12} {:>12}  {:>9} {:>7}",
        "", "without", "with", "without", "with", "without", "with", "pickers", "us each"
    );
    let (mut calm, mut churn) = (Stalls::default(), Stalls::default());
    let by_policy = SUBJECTS
        .iter()
        .map(|subject| (subject, of(subject, &mut calm, &mut churn)))
        .collect();
    let free_all = free_all();
    println!(
        "us to free a snapshot whose endpoints have all left (least request): {free_all:.0}\n"
    );
    Readers {
        by_policy,
        free_all,
        calm: calm.shares(),
        churn: churn.shares(),
    }
}

fn of(subject: &Subject, all_calm: &mut Stalls, all_churn: &mut Stalls) -> Ratios {
    let (mut publisher, snapshot) = Publisher::new(subject);
    let (mut calm, mut churn) = (Vec::new(), Vec::new());
    FREED.store(0, Ordering::Relaxed);
    for round in 0..ROUNDS {
        // Neither is always the first.
        for updates in [round % 2 == 0, round % 2 != 0] {
            match updates {
                true => churn.push(read_meanwhile(&snapshot, || {
                    let next = publisher.next();
                    publisher.replaced.push(snapshot.swap(next));
                    publisher.sweep();
                })),
                false => calm.push(read_meanwhile(&snapshot, || ())),
            }
        }
    }
    let freed = FREED.load(Ordering::Relaxed);
    let free = free(&snapshot, || snapshot.store(publisher.next()));
    all_calm.count(&calm);
    all_churn.count(&churn);
    let of = |rounds: &[Picks], figure: fn(&Picks) -> f64| -> Vec<f64> {
        rounds.iter().map(figure).collect()
    };
    let ratio = |figure| {
        let (with, without) = (of(&churn, figure), of(&calm, figure));
        let ratios = with.iter().zip(&without).map(|(a, b)| a / b);
        middle(&ratios.collect::<Vec<_>>())
    };
    let long = |rounds: &[Picks]| {
        let mut stalls = Stalls::default();
        stalls.count(rounds);
        stalls.shares()[0]
    };
    println!(
        "{:<26} {:>9.0} {:>9.0}  {:>9.1} {:>9.1}  {:>12.2} {:>12.2}  {freed:>9} {free:>7.1}",
        subject.name,
        middle(&of(&calm, Picks::p999)),
        middle(&of(&churn, Picks::p999)),
        middle(&of(&calm, Picks::own)),
        middle(&of(&churn, Picks::own)),
        long(&calm),
        long(&churn),
    );
    Ratios {
        p999: ratio(Picks::p999),
        own: ratio(Picks::own),
        free,
    }
}

struct Publisher {
    policy: Box<dyn Policy>,
    members: Vec<Member>,
    rng: Rng,
    turn: usize,
    replaced: Vec<Arc<Snapshot>>,
}

impl Publisher {
    fn new(subject: &Subject) -> (Self, ArcSwap<Snapshot>) {
        let policy = (subject.policy)();
        let mut publisher = Self {
            members: fleet(subject, &*policy, ENDPOINTS),
            policy,
            rng: Rng::new(1),
            turn: 0,
            replaced: Vec::new(),
        };
        let first = ArcSwap::new(publisher.snapshot());
        (publisher, first)
    }

    fn snapshot(&mut self) -> Arc<Snapshot> {
        let now = Timestamp::from_secs(1);
        let picker = self.policy.update(&self.members, now, &mut self.rng).picker;
        Arc::new(Snapshot { picker })
    }

    /// One of them is lost or comes back, each in turn: the first excepted, whom `PickFirst` goes to.
    fn next(&mut self) -> Arc<Snapshot> {
        let at = 1 + self.turn / 2 % (ENDPOINTS - 1);
        self.members[at].state = match self.turn % 2 {
            0 => Connectivity::TransientFailure,
            _ => Connectivity::Ready,
        };
        self.turn += 1;
        self.snapshot()
    }

    /// Frees the replaced at which nobody looks any more, as the channel does.
    fn sweep(&mut self) {
        self.replaced.retain(|old| Arc::strong_count(old) > 1);
    }

    /// Everybody leaves, and as many others come.
    fn replace(&mut self, subject: &Subject, snapshot: &ArcSwap<Snapshot>) {
        self.members = fleet(subject, &*self.policy, ENDPOINTS);
        snapshot.store(self.snapshot());
    }
}

/// Microseconds of its own time that a reader takes to let go of a snapshot that was replaced during its pick: it is the
/// last to hold it, and frees it.
fn free(snapshot: &ArcSwap<Snapshot>, mut publish: impl FnMut() + Send) -> f64 {
    READS.set(true);
    let before = FREED.load(Ordering::Relaxed);
    let round = |_| {
        let held = snapshot.load();
        thread::scope(|scope| {
            scope.spawn(&mut publish);
        });
        let start = own_nanos();
        drop(held);
        (own_nanos() - start) / 1e3
    };
    let micros: Vec<f64> = (0..ROUNDS).map(round).collect();
    READS.set(false);
    let freed = FREED.load(Ordering::Relaxed) - before;
    assert_eq!(freed as usize, ROUNDS, "somebody else was the last");
    middle(&micros)
}

/// Where everybody has left whom the snapshot was made of: their loads are freed with it.
fn free_all() -> f64 {
    let of_two = SUBJECTS.iter().find(|subject| subject.key == "p2c");
    let subject = of_two.expect("it is measured");
    let (mut publisher, snapshot) = Publisher::new(subject);
    free(&snapshot, || publisher.replace(subject, &snapshot))
}

/// What a thread that picks all the time sees while this one publishes.
fn read_meanwhile(snapshot: &ArcSwap<Snapshot>, mut publish: impl FnMut()) -> Picks {
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            READS.set(true);
            let picks = read(snapshot);
            // Relaxed: it orders nothing; one more is published at the most.
            ended.store(true, Ordering::Relaxed);
            picks
        });
        let mut due = Instant::now();
        while !ended.load(Ordering::Relaxed) {
            publish();
            due = Instant::now().max(due + EVERY);
            thread::sleep(due.duration_since(Instant::now()));
        }
        reader.join().expect("the reader panicked")
    })
}

fn read(snapshot: &ArcSwap<Snapshot>) -> Picks {
    let mut rng = Rng::new(7);
    let mut nanos = vec![0; 1 << 16];
    let (mut very_long, mut count) = (0, 0);
    let own = own_nanos();
    let begin = Instant::now();
    let mut last = begin;
    while last.duration_since(begin) < SPAN {
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
        let took = now.duration_since(last).as_nanos() as usize;
        nanos[took.min((1 << 16) - 1)] += 1;
        very_long += u32::from(took > VERY_LONG);
        count += 1;
        last = now;
    }
    Picks {
        nanos,
        very_long,
        count,
        own: own_nanos() - own,
    }
}
