//! What a pick costs: `cargo bench --bench pick`.
//!
//! Per policy, number of endpoints and number of threads: nanoseconds per pick, and per pick + `begin` +
//! `end`. Beside them, in the same rounds: tower's `p2c::Balance` over `PendingRequests` and `PeakEwma`
//! (`poll_ready`, `call`, await of a service that is always ready, guard dropped), a bare atomic
//! increment, and a plain minimum over 512 packed words. With two threads ours share one picker and its endpoints;
//! tower's balancer cannot be shared, so each thread has its own. Endpoints are idle: for a scan of calls in flight
//! that is the dearest case, since all tie. The weighted policies are measured where weights differ, 1, 2, 5 and 10, all
//! others where they do not; readings are fresh. Clock reads are not counted, on either side where it can be helped.
//!
//! Takes no arguments and ignores those it gets. The last line holds ratios to `Balance` over
//! `PendingRequests` with as many endpoints on one thread (10 where no number is named), each the
//! median over rounds of the quotient within a round; allocations are those of all our picks,
//! begins and ends together.

#[path = "common/policies.rs"]
mod policies;

use std::alloc::System;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use equipoise::load::Load;
use equipoise::policy::{PickInfo, PickResult, Picker};
use equipoise::rng::Rng;
use equipoise::{EndpointId, Timestamp};
use policies::{SUBJECTS, answer, fleet};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::Service;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma, PendingRequests};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROUNDS: usize = 61;
const SIZES: [usize; 5] = [3, 10, 100, 1_000, 10_000];
/// The greatest number of endpoints that `Adaptive` compares one and all.
const SCANNED: usize = 512;
/// How long one measurement takes: less than a time slice, so that on a machine with other work most
/// are not interrupted, and the median knows nothing of the others.
const SPAN: Duration = Duration::from_millis(1);

/// Does the thing so many times.
type Work = Box<dyn FnMut(u64) + Send>;

/// What is measured, in what form, among how many endpoints, on how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(&'static str, &'static str, usize, usize);

struct Subject {
    key: Key,
    ours: bool,
    workers: Vec<Work>,
    iterations: u64,
    nanos: Vec<f64>,
}

impl Subject {
    fn new(key: Key, ours: bool, mut worker: impl FnMut() -> Work) -> Self {
        let workers = (0..key.3).map(|_| worker()).collect();
        let mut subject = Self {
            key,
            ours,
            workers,
            iterations: 1_000,
            nanos: Vec::new(),
        };
        let nanos = subject.run();
        subject.iterations = (SPAN.as_nanos() as f64 / nanos) as u64 + 1;
        subject
    }

    /// Nanoseconds per time, the mean of the threads.
    fn run(&mut self) -> f64 {
        let iterations = self.iterations;
        let timed = |work: &mut Work| {
            let start = Instant::now();
            work(iterations);
            start.elapsed().as_nanos() as f64 / iterations as f64
        };
        if let [only] = &mut self.workers[..] {
            return timed(only);
        }
        let barrier = Barrier::new(self.workers.len());
        let each: Vec<f64> = std::thread::scope(|scope| {
            let barrier = &barrier;
            let threads: Vec<_> = self
                .workers
                .iter_mut()
                .map(|work| {
                    scope.spawn(move || {
                        barrier.wait();
                        timed(work)
                    })
                })
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, f64>| thread.join();
            threads
                .into_iter()
                .map(|t| join(t).expect("a worker panicked"))
                .collect()
        });
        each.iter().sum::<f64>() / each.len() as f64
    }
}

fn main() -> ExitCode {
    let mut subjects = subjects();
    let allocations = allocations(&mut subjects);
    for _ in 0..ROUNDS {
        for subject in &mut subjects {
            let nanos = subject.run();
            subject.nanos.push(nanos);
        }
    }
    let results: BTreeMap<Key, Vec<f64>> = subjects.into_iter().map(|s| (s.key, s.nanos)).collect();
    table(&results);
    let ratio = |name, what, n| {
        let (ours, tower) = (
            &results[&Key(name, what, n, 1)],
            &results[&Key(PENDING, CALL, n, 1)],
        );
        middle(ours.iter().zip(tower).map(|(a, b)| a / b).collect())
    };
    let mut line = "RESULT pick".to_owned();
    let mut figure = |key: &str, ratio: f64| line += &format!(" {key}={ratio:.3}");
    for policy in SUBJECTS {
        if !FIGURES.iter().any(|(_, key, _)| *key == policy.key) {
            figure(policy.key, ratio(policy.name, CALL, 10));
        }
    }
    for (key, policy, n) in FIGURES {
        figure(key, ratio(named(policy).name, CALL, *n));
    }
    figure("packed_512", ratio(PACKED, PICK, SCANNED));
    println!("{line} allocations={allocations}");
    match allocations {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Policies with other figures than the one among 10: what it is called, whose it is, among how many.
const FIGURES: &[(&str, &str, usize)] = &[
    ("adaptive_10", "adaptive", 10),
    ("adaptive_512", "adaptive", SCANNED),
    ("rendezvous_10", "rendezvous", 10),
    ("rendezvous_100", "rendezvous", 100),
];

/// The policy with this key.
fn named(key: &str) -> &'static policies::Subject {
    let found = SUBJECTS.iter().find(|policy| policy.key == key);
    found.expect("figures are of policies there are")
}

const PICK: &str = "pick";
const CALL: &str = "pick + begin + end";
const PENDING: &str = "tower p2c PendingRequests";
const EWMA: &str = "tower p2c PeakEwma";
const PACKED: &str = "minimum of packed words";
const INCREMENT: &str = "atomic increment";

fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for threads in [1, 2] {
        for n in SIZES {
            for policy in SUBJECTS {
                ours(&mut subjects, policy, n, threads);
            }
            tower(&mut subjects, n, threads);
        }
        let counter = Arc::new(AtomicU64::new(0));
        subjects.push(Subject::new(
            Key(INCREMENT, PICK, 1, threads),
            false,
            || {
                let counter = counter.clone();
                Box::new(move |times| {
                    for _ in 0..times {
                        black_box(counter.fetch_add(1, Ordering::Relaxed));
                    }
                })
            },
        ));
    }
    for (_, policy, n) in FIGURES {
        if !SIZES.contains(n) {
            ours(&mut subjects, named(policy), *n, 1);
        }
    }
    tower(&mut subjects, SCANNED, 1);
    subjects.push(Subject::new(Key(PACKED, PICK, SCANNED, 1), false, packed));
    subjects
}

fn packed() -> Work {
    let mut rng = Rng::new(5);
    let words: [AtomicU64; SCANNED] = std::array::from_fn(|_| AtomicU64::new(rng.word() >> 1));
    Box::new(move |times| {
        for _ in 0..times {
            let mut best = (u64::MAX, 0);
            for (i, word) in black_box(&words).iter().enumerate() {
                let word = word.load(Ordering::Relaxed);
                if word < best.0 {
                    best = (word, i);
                }
            }
            black_box(best);
        }
    })
}

/// A policy among `n` ready endpoints.
fn ours(subjects: &mut Vec<Subject>, whose: &policies::Subject, n: usize, threads: usize) {
    let name = whose.name;
    let mut policy = (whose.policy)();
    let members = fleet(whose, &*policy, n);
    let now = Timestamp::from_millis(2);
    let picker = policy.update(&members, now, &mut Rng::new(1)).picker;
    let loads: Arc<[Arc<Load>]> = members.into_iter().map(|member| member.load).collect();
    let mut seed = 0;
    subjects.push(Subject::new(Key(name, PICK, n, threads), true, || {
        seed += 1;
        picking(picker.clone(), Rng::new(seed))
    }));
    subjects.push(Subject::new(Key(name, CALL, n, threads), true, || {
        seed += 1;
        calling(picker.clone(), loads.clone(), Rng::new(seed))
    }));
}

fn pick(picker: &dyn Picker, now: Timestamp, random: u64) -> EndpointId {
    let info = PickInfo {
        now,
        random,
        path: "/package.Service/Method",
        hash: Some(random),
        avoid: &[],
    };
    match picker.pick(&info) {
        PickResult::Pick(id) => id,
        other => panic!("all are ready, yet {other:?}"),
    }
}

fn picking(picker: Arc<dyn Picker>, mut rng: Rng) -> Work {
    let now = Timestamp::from_secs(1);
    Box::new(move |times| {
        for _ in 0..times {
            black_box(pick(&*picker, now, rng.word()));
        }
    })
}

fn calling(picker: Arc<dyn Picker>, loads: Arc<[Arc<Load>]>, mut rng: Rng) -> Work {
    let mut now = Timestamp::from_secs(1);
    Box::new(move |times| {
        for _ in 0..times {
            let random = rng.word();
            let load = &loads[pick(&*picker, now, random).slot()];
            load.begin();
            let started = now;
            now = now + Duration::from_micros(1);
            load.end(black_box(&answer(random)), started, now);
        }
    })
}

/// A service that is always ready and answers at once.
struct Instantly;

impl Service<()> for Instantly {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

fn tower(subjects: &mut Vec<Subject>, n: usize, threads: usize) {
    subjects.push(Subject::new(Key(PENDING, CALL, n, threads), false, || {
        let service = || PendingRequests::new(Instantly, CompleteOnResponse::default());
        let services: Vec<_> = (0..n).map(|_| service()).collect();
        balancing(Balance::new(ServiceList::new::<()>(services)))
    }));
    subjects.push(Subject::new(Key(EWMA, CALL, n, threads), false, || {
        let (rtt, decay) = (Duration::from_millis(1), 5e9);
        let service = || PeakEwma::new(Instantly, rtt, decay, CompleteOnResponse::default());
        let services: Vec<_> = (0..n).map(|_| service()).collect();
        balancing(Balance::new(ServiceList::new::<()>(services)))
    }));
}

fn balancing<B: Service<(), Response = ()> + Send + 'static>(mut balance: B) -> Work
where
    B::Error: std::fmt::Debug,
{
    Box::new(move |times| {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..times {
            let ready = balance.poll_ready(&mut context);
            assert!(matches!(ready, Poll::Ready(Ok(()))), "{ready:?}");
            let response = pin!(balance.call(())).poll(&mut context);
            assert!(matches!(response, Poll::Ready(Ok(()))), "{response:?}");
        }
    })
}

/// How often our side allocates in some thousand picks and calls of every kind.
fn allocations(subjects: &mut [Subject]) -> usize {
    let ours = subjects.iter_mut().filter(|s| s.ours);
    let count = |subject: &mut Subject| {
        let region = Region::new(ALLOCATOR);
        for work in &mut subject.workers {
            work(5_000);
        }
        let change = region.change();
        change.allocations + change.reallocations
    };
    ours.map(count).sum()
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(results: &BTreeMap<Key, Vec<f64>>) {
    println!("nanoseconds, medians of {ROUNDS} interleaved rounds");
    for threads in [1, 2] {
        println!("\n{threads} thread(s)");
        for ((name, what), sizes) in rows(results, threads) {
            let cells: Vec<String> = sizes
                .into_iter()
                .map(|(n, nanos)| format!("{n:>6}: {nanos:>7.1}"))
                .collect();
            println!("{name:<26} {what:<19} {}", cells.join("  "));
        }
    }
    println!();
}

type Rows = BTreeMap<(&'static str, &'static str), Vec<(usize, f64)>>;

fn rows(results: &BTreeMap<Key, Vec<f64>>, of_threads: usize) -> Rows {
    let mut rows = Rows::new();
    for (&Key(name, what, n, threads), nanos) in results {
        if threads == of_threads {
            let row = rows.entry((name, what)).or_default();
            row.push((n, middle(nanos.clone())));
        }
    }
    rows
}
