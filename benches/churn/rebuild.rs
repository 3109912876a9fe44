//! One change among many: what the next picker costs.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use equipoise::policy::{Member, Policy};
use equipoise::rng::Rng;
use equipoise::{Connectivity, Endpoint, Timestamp};

use crate::middle;
use crate::policies::{SUBJECTS, Subject, fleet};

const SIZES: [usize; 3] = [10, 1_000, 10_000];
const ROUNDS: usize = 15;

#[derive(Clone, Copy, Debug)]
enum Change {
    Weight,
    State,
    Membership,
}

const CHANGES: [Change; 3] = [Change::Weight, Change::State, Change::Membership];

/// One policy among so many endpoints.
struct Bench {
    policy: Box<dyn Policy>,
    members: Vec<Member>,
    away: Option<Member>,
    rng: Rng,
    now: Timestamp,
    /// Microseconds, by change.
    micros: [Vec<f64>; CHANGES.len()],
}

impl Bench {
    fn new(subject: &Subject, n: usize) -> Self {
        let policy = (subject.policy)();
        let mut bench = Self {
            members: fleet(subject, &*policy, n),
            policy,
            away: None,
            rng: Rng::new(1),
            now: Timestamp::from_secs(1),
            micros: Default::default(),
        };
        bench.update();
        bench
    }

    fn change(&mut self, change: Change) {
        let at = self.members.len() / 2;
        let member = &mut self.members[at];
        match change {
            Change::Weight => {
                // 1 is 2 then, 5 is 6, and back.
                member.weight ^= 3;
                let endpoint = Endpoint::clone(&member.endpoint).with_weight(member.weight);
                member.endpoint = Arc::new(endpoint.expect("no weight here is 3"));
            }
            Change::State => {
                member.state = match member.state {
                    Connectivity::Ready => Connectivity::TransientFailure,
                    _ => Connectivity::Ready,
                };
            }
            // Where it was: the order is by slot.
            Change::Membership => match self.away.take() {
                Some(member) => self.members.insert(at, member),
                None => self.away = Some(self.members.remove(at)),
            },
        }
    }

    /// Microseconds; what it takes to drop the picker does not count.
    fn update(&mut self) -> f64 {
        let start = Instant::now();
        let decision = self.policy.update(&self.members, self.now, &mut self.rng);
        let took = start.elapsed();
        black_box(decision);
        took.as_nanos() as f64 / 1e3
    }
}

/// Per policy, the dearest change among the most endpoints.
pub(crate) fn measure() -> Vec<(&'static Subject, f64)> {
    let of = |subject| SIZES.map(|n| Bench::new(subject, n));
    let mut benches: Vec<_> = SUBJECTS.iter().map(of).collect();
    for _ in 0..ROUNDS {
        for bench in benches.iter_mut().flatten() {
            // The first after the others' turns would pay for cold caches.
            bench.update();
            for (kind, change) in CHANGES.into_iter().enumerate() {
                // There and back: as many rounds with the one as with the other.
                for _ in 0..2 {
                    bench.change(change);
                    let micros = bench.update();
                    bench.micros[kind].push(micros);
                }
            }
        }
    }
    println!("microseconds per update after one change, medians of {ROUNDS} interleaved rounds");
    println!("{:<26} {:>9} {CHANGES:>11?}", "", "endpoints");
    let mut dearest = Vec::new();
    for (subject, benches) in SUBJECTS.iter().zip(&benches) {
        let mut most = 0.0;
        for (bench, n) in benches.iter().zip(SIZES) {
            let micros = bench.micros.each_ref().map(|micros| middle(micros));
            println!("{:<26} {n:>9} {micros:>11.1?}", subject.name);
            most = micros.into_iter().fold(0.0, f64::max);
        }
        dearest.push((subject, most));
    }
    println!();
    dearest
}
