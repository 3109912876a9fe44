//! Fault matrix H9: the end of a call against its deadline, the end of a wait, the start of a copy, a request that
//! outgrows its copy, and a caller that leaves, in every order that chance finds.
//!
//! The attempts and the budget are the real ones. Around them runs what a channel does, as threads whose order a
//! scheduler chooses: two calls that share a budget, a thread for each attempt, one for the clock. A schedule in which
//! somebody waits for ever fails by itself; a failure prints the schedule.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use equipoise::retry::{Attempts, Budget, HedgingPolicy, Pushback, RetryBudget, RetryPolicy, Step};
use equipoise::{StatusCode, Timestamp};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

const DEADLINE: u64 = 100;
const MOST: u32 = 3;
/// Further attempts of both calls together.
const MAY_ADD: u32 = 2;

#[derive(Debug)]
enum News {
    Left(u32),
    Head(u32),
    Ended(u32, StatusCode, Pushback),
    Overflow(u32),
    /// The caller has left.
    Dropped,
}

#[derive(Default)]
struct World {
    now: u64,
    calls: [Line; 2],
}

/// What one call waits for.
#[derive(Default)]
struct Line {
    news: VecDeque<News>,
    /// The time it wants to be woken at.
    until: Option<u64>,
    over: bool,
}

struct Shared {
    world: Mutex<World>,
    changed: Condvar,
    budget: Budget,
}

impl Shared {
    fn tell(&self, call: usize, news: News) {
        let mut world = self.world.lock().unwrap();
        world.calls[call].news.push_back(news);
        self.changed.notify_all();
    }
}

fn ms(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

/// How a call ended; what follows says nothing of it.
#[derive(Debug)]
enum End {
    Answer,
    Failure,
    Expired,
    Dropped,
}

/// The call's own loop, as a channel has it. How it ended, and how many attempts it made.
fn carry(shared: &Arc<Shared>, call: usize, mut attempts: Attempts) -> (End, u32) {
    let mut servers = Vec::new();
    let mut running = 0u32;
    // Who alone can have the rest of the request, once it is too large to be kept.
    let mut reader = None;
    let end = loop {
        let mut world = shared.world.lock().unwrap();
        let now = world.now;
        match attempts.poll(&shared.budget, ms(now)) {
            Step::Start { attempt } => {
                assert!(now < DEADLINE, "attempt {attempt} at {now}");
                assert_eq!(attempt as usize, servers.len());
                assert!(attempt < MOST);
                running |= 1 << attempt;
                drop(world);
                let shared = shared.clone();
                servers.push(thread::spawn(move || serve(&shared, call, attempt)));
                continue;
            }
            Step::Wait { until } => {
                assert!(until > ms(now));
                // With nobody under way it waits for an attempt to come, never just for the deadline.
                assert!(running != 0 || until < ms(DEADLINE), "it hangs");
                let until = until.as_nanos().div_ceil(1_000_000);
                assert!(until <= DEADLINE, "the deadline is always waited for");
                world.calls[call].until = Some(until);
                shared.changed.notify_all();
                while world.calls[call].news.is_empty() && world.now < until {
                    world = shared.changed.wait(world).unwrap();
                }
            }
            Step::Commit { attempt } => {
                assert!(
                    running & 1 << attempt != 0,
                    "committed to one that has ended"
                );
                assert!(reader.is_none_or(|reader| reader == attempt));
                // By its head, or by a request that was too large: then it goes on alone.
                break End::Answer;
            }
            Step::Finish { attempt } => {
                assert!(attempt < attempts.begun() && running & 1 << attempt == 0);
                assert!(reader.is_none_or(|reader| reader == attempt));
                break End::Failure;
            }
            Step::Expire => {
                assert!(now >= DEADLINE);
                break End::Expired;
            }
        }
        world.calls[call].until = None;
        let (news, now) = (world.calls[call].news.pop_front(), ms(world.now));
        drop(world);
        match news {
            None => {}
            Some(News::Left(attempt)) => attempts.handle_started(attempt, now),
            Some(News::Head(attempt)) => attempts.handle_head(attempt),
            Some(News::Ended(attempt, code, pushback)) => {
                running &= !(1 << attempt);
                attempts.handle_ended(attempt, code, pushback, &shared.budget, now);
            }
            Some(News::Overflow(attempt)) => {
                // With nobody under way the call ends as the last did.
                if running != 0 {
                    reader.get_or_insert(attempt);
                }
                attempts.handle_overflow(attempt);
            }
            Some(News::Dropped) => break End::Dropped,
        }
    };
    let begun = attempts.begun();
    let mut world = shared.world.lock().unwrap();
    world.calls[call].over = true;
    shared.changed.notify_all();
    drop(world);
    for server in servers {
        server.join().unwrap();
    }
    // What comes after the end changes nothing of it, and begins nothing.
    if !matches!(end, End::Dropped) {
        let mut world = shared.world.lock().unwrap();
        let said = attempts.poll(&shared.budget, ms(world.now));
        while let Some(news) = world.calls[call].news.pop_front() {
            match news {
                News::Left(attempt) => attempts.handle_started(attempt, ms(world.now)),
                News::Head(attempt) => attempts.handle_head(attempt),
                News::Ended(attempt, code, pushback) => {
                    let now = ms(world.now);
                    attempts.handle_ended(attempt, code, pushback, &shared.budget, now);
                }
                News::Overflow(attempt) => attempts.handle_overflow(attempt),
                News::Dropped => {}
            }
            assert_eq!(attempts.poll(&shared.budget, ms(DEADLINE * 2)), said);
        }
        assert_eq!(attempts.begun(), begun);
    }
    (end, begun)
}

/// One attempt at a server.
fn serve(shared: &Shared, call: usize, attempt: u32) {
    let mut chance = thread_rng();
    if chance.gen_range(0..8) != 0 {
        shared.tell(call, News::Left(attempt));
    }
    // What carries a request reads on for a moment when its attempt is over: it may become too large then, too.
    let (early, late) = match chance.gen_range(0..16) {
        0 => (true, false),
        1 => (false, true),
        _ => (false, false),
    };
    if early {
        shared.tell(call, News::Overflow(attempt));
    }
    let pushback = match chance.gen_range(0..6) {
        0 => Pushback::Stop,
        1 => Pushback::After(Duration::from_millis(30)),
        _ => Pushback::Unsaid,
    };
    match chance.gen_range(0..6) {
        // It never answers.
        0 => {}
        1 => shared.tell(call, News::Head(attempt)),
        2 => shared.tell(call, News::Ended(attempt, StatusCode::INTERNAL, pushback)),
        _ => shared.tell(
            call,
            News::Ended(attempt, StatusCode::UNAVAILABLE, pushback),
        ),
    }
    if late {
        shared.tell(call, News::Overflow(attempt));
    }
}

/// The clock: goes to where somebody waits for, or some way there.
fn tick(shared: &Shared) {
    let mut world = shared.world.lock().unwrap();
    loop {
        if world.calls.iter().all(|line| line.over) {
            return;
        }
        let open = world.calls.iter().filter(|line| !line.over);
        let Some(next) = open.filter_map(|line| line.until).min() else {
            world = shared.changed.wait(world).unwrap();
            continue;
        };
        // Not so eager that calls do little else than expire.
        drop(world);
        for _ in 0..thread_rng().gen_range(0..12) {
            thread::yield_now();
        }
        world = shared.world.lock().unwrap();
        if next > world.now {
            let step = thread_rng().gen_range(1..=next - world.now);
            world.now += if thread_rng().gen_bool(0.5) {
                next - world.now
            } else {
                step
            };
            shared.changed.notify_all();
        }
        drop(world);
        thread::yield_now();
        world = shared.world.lock().unwrap();
        let waits = world
            .calls
            .iter()
            .any(|line| !line.over && line.until.is_some_and(|until| until > world.now));
        let over = world.calls.iter().all(|line| line.over);
        if !waits && !over {
            world = shared.changed.wait(world).unwrap();
        }
    }
}

/// How often calls ended in each way, and how many attempts there were: what no schedule comes to is not tested.
#[derive(Debug, Default)]
struct Seen {
    ends: [AtomicUsize; 4],
    retried: AtomicUsize,
    hedged: AtomicUsize,
}

fn story(seen: &Seen) {
    let budget = RetryBudget::default()
        .with_share(f64::from(MAY_ADD) / 2.0)
        .with_hedges(0.5)
        .with_reserve(0);
    let shared = Arc::new(Shared {
        world: Mutex::default(),
        changed: Condvar::new(),
        budget: Budget::new(&budget),
    });
    for _ in 0..2 {
        shared.budget.call(ms(0));
    }
    let clock = thread::spawn({
        let shared = shared.clone();
        move || tick(&shared)
    });
    let leaver = thread::spawn({
        let shared = shared.clone();
        let leaves = thread_rng().gen_range(0..4) == 0;
        move || {
            if leaves {
                shared.tell(1, News::Dropped);
            }
        }
    });
    let deadline = Some(ms(DEADLINE));
    let retry = RetryPolicy::default()
        .with_max_attempts(MOST)
        .with_backoff(Duration::from_millis(20), Duration::from_millis(50));
    let hedge = HedgingPolicy::after(Duration::from_millis(20)).with_max_attempts(MOST);
    let random = thread_rng().gen_range(0..u64::MAX);
    let machines = [
        Attempts::retrying(&retry, deadline, random),
        Attempts::hedging(&hedge, None, deadline),
    ];
    let calls = (0..).zip(machines).map(|(call, attempts)| {
        let shared = shared.clone();
        thread::spawn(move || carry(&shared, call, attempts))
    });
    let calls: Vec<_> = calls.collect();
    let ends: Vec<(End, u32)> = calls.into_iter().map(|call| call.join().unwrap()).collect();
    clock.join().unwrap();
    leaver.join().unwrap();
    // Relaxed: only counted, and read when all is over.
    for (end, _) in &ends {
        let kind = match end {
            End::Answer => 0,
            End::Failure => 1,
            End::Expired => 2,
            End::Dropped => 3,
        };
        seen.ends[kind].fetch_add(1, Ordering::Relaxed);
    }
    seen.retried
        .fetch_add(usize::from(ends[0].1 > 1), Ordering::Relaxed);
    seen.hedged
        .fetch_add(usize::from(ends[1].1 > 1), Ordering::Relaxed);
    let extra: u32 = ends.iter().map(|(_, begun)| begun.saturating_sub(1)).sum();
    assert!(extra <= MAY_ADD, "{extra} further attempts: {ends:?}");
}

#[test]
fn h9_a_call_ends_once_in_every_order_of_events() {
    let schedules = std::env::var("EQUIPOISE_SCHEDULES").ok();
    let schedules = schedules.map_or(10_000, |n| n.parse().expect("a number"));
    let seen = Arc::new(Seen::default());
    let counted = seen.clone();
    shuttle::check_random(move || story(&counted), schedules);
    println!("{schedules} schedules: {seen:?}");
    let each = [&seen.retried, &seen.hedged].into_iter().chain(&seen.ends);
    for count in each {
        // Whatever chance does, a hundredth of them.
        assert!(count.load(Ordering::Relaxed) * 100 >= schedules, "{seen:?}");
    }
}
