//! All the runs of a scenario, as many at a time as there are cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::contenders::{BASELINE, Contender};
use super::outcome::Figures;
use super::scenario::Scenario;
use super::world;

/// What a scenario came to.
#[derive(Clone, Debug)]
pub struct Results {
    pub scenario: Scenario,
    /// By contender, in the order of the table: medians over the seeds.
    pub rows: Vec<(&'static str, Figures)>,
}

impl Results {
    pub fn of(&self, policy: &str) -> Option<&Figures> {
        let row = self.rows.iter().find(|(name, _)| *name == policy);
        row.map(|(_, figures)| figures)
    }

    /// Of `done`, the runs of each contender one after the other, so many each.
    pub fn medians(
        scenario: &Scenario,
        contenders: &[&'static Contender],
        done: &[Figures],
        each: usize,
    ) -> Self {
        let rows = contenders.iter().zip(done.chunks(each));
        let rows = rows.filter_map(|(contender, runs)| {
            let median = Figures::median(runs)?;
            Some((contender.name, median))
        });
        Self {
            scenario: scenario.clone(),
            rows: rows.collect(),
        }
    }

    pub fn baseline(&self) -> Option<&Figures> {
        self.of(BASELINE)
    }
}

/// Beyond so many pairs of a client and a server one run at a time is enough for the memory.
const WIDE: usize = 250_000;

/// Runs every contender under every seed. What comes out does not depend on the number of cores.
pub fn run(
    scenario: &Scenario,
    contenders: &[&'static Contender],
    seeds: &[u64],
    progress: &(dyn Fn(u64) + Sync),
) -> Results {
    let cores = match scenario.clients * scenario.servers.len() > WIDE {
        true => 1,
        false => thread::available_parallelism().map_or(1, usize::from),
    };
    let jobs: Vec<_> = contenders
        .iter()
        .flat_map(|contender| seeds.iter().map(move |&seed| (*contender, seed)))
        .collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![None; jobs.len()]);
    thread::scope(|scope| {
        for _ in 0..cores.min(jobs.len()) {
            scope.spawn(|| {
                // A counter on its own: nothing else is read in its order.
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(contender, seed)) = jobs.get(at) else {
                        return;
                    };
                    let run = world::run(scenario, contender, seed, progress);
                    let figures = Figures::of(&run, scenario);
                    done.lock().expect("no thread panicked")[at] = Some(figures);
                }
            });
        }
    });
    let done = done.into_inner().expect("no thread panicked");
    let done: Vec<Figures> = done.into_iter().flatten().collect();
    Results::medians(scenario, contenders, &done, seeds.len())
}
