//! A thousand worlds, one seed each.

use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use equipoise::policy::{Connect, Decision, Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::Rng;
use equipoise::{EndpointId, Timestamp};

use crate::plan::{Outcome, Plan};

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

/// Runs a world; when it fails, runs it again for its trace, and names the seed.
fn run(seed: u64) -> Outcome {
    catch_unwind(|| Plan::of(seed).run(false)).unwrap_or_else(|_| {
        eprintln!("world {seed} failed; its last steps:");
        let again = catch_unwind(|| Plan::of(seed).run(true));
        assert!(
            again.is_err(),
            "seed {seed} failed once and not again: not deterministic"
        );
        panic!("seed {seed} failed: EQUIPOISE_SIM_SEED={seed} cargo test --test sim swarm");
    })
}

#[test]
fn a_thousand_worlds() {
    if let Some(seed) = setting("EQUIPOISE_SIM_SEED") {
        println!("seed {seed}: {:?}", run(seed));
        return;
    }
    let first = setting("EQUIPOISE_SIM_FIRST").unwrap_or(0);
    let count = setting("EQUIPOISE_SIM_SEEDS").unwrap_or(1_000);
    let (next, calls, ok) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    // Relaxed: the scope's end orders what the workers did before what is read below.
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return;
                    }
                    let outcome = run(first + n);
                    calls.fetch_add(outcome.calls, Ordering::Relaxed);
                    ok.fetch_add(outcome.ok, Ordering::Relaxed);
                }
            });
        }
    });
    let (calls, ok) = (calls.into_inner(), ok.into_inner());
    println!("{count} worlds, {calls} calls, {ok} ok");
    // The faults bite, and most calls are served nonetheless.
    assert!(
        ok < calls && ok > calls / 2,
        "{ok} of {calls} calls were served"
    );
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let traces: Vec<u64> = (5_000..5_020).map(|seed| run(seed).trace).collect();
    let again: Vec<u64> = (5_000..5_020).map(|seed| run(seed).trace).collect();
    assert_eq!(traces, again, "seeds 5000..5020");
    let distinct: std::collections::BTreeSet<u64> = traces.into_iter().collect();
    assert_eq!(distinct.len(), 20, "different seeds, different traces");
}

/// Names the first member, whatever its state.
#[derive(Debug)]
struct Reckless;

#[derive(Debug)]
struct First(Option<EndpointId>);

impl Policy for Reckless {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        Decision {
            picker: Arc::new(First(members.first().map(|member| member.id))),
            connect: Connect::All,
            wake: None,
        }
    }
}

impl Picker for First {
    fn pick(&self, _: &PickInfo<'_>) -> PickResult {
        self.0.map_or(PickResult::Fail, PickResult::Pick)
    }
}

/// The negative control: the checks do see what they look for.
#[test]
fn a_policy_that_picks_the_unready_is_caught() {
    let caught = (0..3)
        .filter(|&seed| {
            let plan = Plan::of(seed).without_switches();
            catch_unwind(|| plan.run_with(Box::new(Reckless), Vec::new(), false)).is_err()
        })
        .count();
    assert_eq!(
        caught, 3,
        "every world has an endpoint that is not ready at first"
    );
}
