//! Would a broken policy be caught? Each of these breaks one promise, and is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use equipoise::load::{Load, Scoring};
use equipoise::policy::{Connect, Decision, Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::Rng;
use equipoise::{Connectivity, EndpointId, Timestamp};

use super::{Spreads, Subject, everyone, search};

/// How it is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    PicksAnyone,
    IgnoresAvoid,
    QueuesForEver,
    FailsEarly,
    DialsAnyone,
    NamesStrangers,
    DialsNobody,
    WakesForEver,
    Panics,
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct Broken(Fault);

impl Policy for Broken {
    fn update(&mut self, members: &[Member], now: Timestamp, _: &mut Rng) -> Decision {
        let of = |fit: fn(Connectivity) -> bool| {
            let fitting = members.iter().filter(move |m| fit(m.state));
            fitting.map(|m| m.id).collect::<Vec<_>>()
        };
        let ready = match self.0 {
            Fault::PicksAnyone => of(|_| true),
            _ => of(|state| state == Connectivity::Ready),
        };
        let idle = of(|state| state == Connectivity::Idle);
        let wait = PickResult::Queue { connect: None };
        let hopeful = members
            .iter()
            .any(|m| matches!(m.state, Connectivity::Idle | Connectivity::Connecting));
        let connect = match self.0 {
            Fault::NamesStrangers => Connect::Only(vec![EndpointId::new(0, 0)]),
            Fault::DialsNobody => Connect::Exactly(Vec::new()),
            _ => Connect::All,
        };
        assert!(self.0 != Fault::Panics || members.len() < 5, "too many");
        Decision {
            picker: Arc::new(First {
                otherwise: match self.0 {
                    Fault::FailsEarly => PickResult::Fail,
                    Fault::DialsAnyone if hopeful => PickResult::Queue {
                        connect: members.first().map(|m| m.id),
                    },
                    Fault::QueuesForEver => wait,
                    _ if hopeful && !idle.is_empty() => PickResult::Queue {
                        connect: Some(idle[0]),
                    },
                    _ if hopeful => wait,
                    _ => PickResult::Fail,
                },
                ready,
                heeds: self.0 != Fault::IgnoresAvoid,
            }),
            connect,
            wake: (self.0 == Fault::WakesForEver).then_some(now),
        }
    }
}

#[derive(Debug)]
struct First {
    ready: Vec<EndpointId>,
    heeds: bool,
    otherwise: PickResult,
}

impl Picker for First {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let mut free = self.ready.iter().filter(|id| !info.avoid.contains(id));
        let free = free.next().filter(|_| self.heeds);
        let first = free.or(self.ready.first());
        first.map_or_else(|| self.otherwise.clone(), |id| PickResult::Pick(*id))
    }
}

macro_rules! broken {
    ($($name:ident: $fault:expr, $words:literal;)*) => {
        $(#[test]
        fn $name() {
            let subject = Subject {
                policy: || Box::new(Broken($fault)),
                manner: Spreads,
                reach: everyone,
            };
            let why = search(subject, 200, 1).expect_err("a broken promise goes unnoticed");
            assert!(why.contains($words), "{why}");
        })*
    };
}

broken! {
    who_picks_anyone: Fault::PicksAnyone, "picks one who is not ready";
    who_ignores_avoid: Fault::IgnoresAvoid, "picks one to be avoided";
    who_queues_for_ever: Fault::QueuesForEver, "waits for nobody";
    who_fails_early: Fault::FailsEarly, "fails though somebody may become ready";
    who_dials_anyone: Fault::DialsAnyone, "dials one who is not idle";
    who_names_strangers: Fault::NamesStrangers, "is no member";
    who_dials_nobody: Fault::DialsNobody, "dials nobody";
    who_wakes_for_ever: Fault::WakesForEver, "again and again";
    who_panics: Fault::Panics, "too many";
}

/// The control's own control: without a fault it passes.
#[test]
fn who_is_not_broken_passes() {
    let subject = Subject {
        policy: || Box::new(Broken(Fault::Nothing)),
        manner: Spreads,
        reach: everyone,
    };
    assert_eq!(search(subject, 100, 1), Ok(()));
}

/// What the sequences must come to for the rest to mean anything.
#[derive(Debug, Default)]
struct Sights {
    reused_slot: AtomicBool,
    hole: AtomicBool,
    left_the_list: AtomicBool,
    moved_in_the_list: AtomicBool,
    extreme_weights: AtomicBool,
    same_key: AtomicBool,
    penalised: AtomicBool,
    avoids_all: AtomicBool,
    end_of_time: AtomicBool,
    reports: AtomicBool,
    reported_weights: AtomicBool,
    bytes: AtomicBool,
    no_bytes: AtomicBool,
}

#[derive(Debug)]
struct Witness(Arc<Sights>);

impl Policy for Witness {
    fn update(&mut self, members: &[Member], now: Timestamp, _: &mut Rng) -> Decision {
        let sights = &self.0;
        let places = members.iter().filter_map(|m| m.place);
        let weighs = |weight| members.iter().any(|m| m.weight == weight);
        let mut keys: Vec<_> = members.iter().map(|m| m.endpoint.hash_key()).collect();
        keys.sort_unstable();
        // One alone is no choice.
        let ready_with = |known: &dyn Fn(&Load) -> bool| {
            let ready = members.iter().filter(|m| m.state == Connectivity::Ready);
            ready.filter(|m| known(&m.load)).count() > 1
        };
        for (sight, seen) in [
            (
                &sights.reused_slot,
                members.iter().any(|m| m.id.generation() > 1),
            ),
            (
                &sights.hole,
                members.iter().enumerate().any(|(at, m)| m.id.slot() > at),
            ),
            (
                &sights.left_the_list,
                members.iter().any(|m| m.place.is_none()),
            ),
            (&sights.moved_in_the_list, !places.is_sorted()),
            (&sights.extreme_weights, weighs(1) && weighs(u32::MAX)),
            (
                &sights.same_key,
                keys.windows(2).any(|pair| pair[0] == pair[1]),
            ),
            (
                &sights.penalised,
                members.iter().any(|m| m.load.penalised()),
            ),
            (&sights.end_of_time, now == Timestamp::MAX),
            (
                &sights.reports,
                ready_with(&|load| load.utilization(now, STALE).is_some()),
            ),
            (
                &sights.reported_weights,
                ready_with(&|load| {
                    // As `WeightedRoundRobin::reported` asks by default.
                    load.reported_weight(now, Duration::from_secs(10), STALE, 1.0)
                        .is_some()
                }),
            ),
            (
                &sights.bytes,
                ready_with(&|load| load.bandwidth(now) > Some(0.0)),
            ),
            (
                &sights.no_bytes,
                ready_with(&|load| load.bandwidth(now) == Some(0.0)),
            ),
        ] {
            // Relaxed, here and below: all on one thread.
            sight.fetch_or(seen, Ordering::Relaxed);
        }
        let ready = members.iter().filter(|m| m.state == Connectivity::Ready);
        let ready: Vec<EndpointId> = ready.map(|m| m.id).collect();
        let Decision { picker, .. } = Broken(Fault::Nothing).update(members, now, &mut Rng::new(0));
        Decision {
            picker: Arc::new(Watched(picker, ready, sights.clone())),
            connect: Connect::All,
            wake: None,
        }
    }

    fn scoring(&self) -> Scoring {
        Scoring::Bandwidth {
            window: Duration::from_secs(5),
        }
    }
}

/// When reported weights are stale by default.
const STALE: Duration = Duration::from_secs(180);

#[derive(Debug)]
struct Watched(Arc<dyn Picker>, Vec<EndpointId>, Arc<Sights>);

impl Picker for Watched {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let Self(picker, ready, sights) = self;
        let all = !ready.is_empty() && ready.iter().all(|id| info.avoid.contains(id));
        sights.avoids_all.fetch_or(all, Ordering::Relaxed);
        picker.pick(info)
    }
}

#[test]
fn the_sequences_come_to_everything() {
    static SIGHTS: LazyLock<Arc<Sights>> = LazyLock::new(Arc::default);
    let subject = Subject {
        policy: || Box::new(Witness(SIGHTS.clone())),
        manner: Spreads,
        reach: everyone,
    };
    assert_eq!(search(subject, 250, 1), Ok(()));
    let sights = format!("{:?}", *SIGHTS);
    assert!(!sights.contains("false"), "{sights}");
}
