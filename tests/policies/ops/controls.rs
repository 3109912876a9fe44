//! Would a broken policy be caught? Each of these breaks one promise, and is.

use std::sync::Arc;

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

/// The control's own control: what is broken above is not the rest of it.
#[test]
fn who_is_not_broken_passes() {
    #[derive(Debug)]
    struct Sound;

    impl Policy for Sound {
        fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
            // Of at most four members the fault that is left never shows.
            let few = members.len() < 5;
            let mut broken = Broken(if few {
                Fault::Panics
            } else {
                Fault::IgnoresAvoid
            });
            let decision = broken.update(members, now, rng);
            match few {
                true => decision,
                false => equipoise::policy::Random.update(members, now, rng),
            }
        }
    }
    let subject = Subject {
        policy: || Box::new(Sound),
        manner: Spreads,
        reach: everyone,
    };
    assert_eq!(search(subject, 100, 1), Ok(()));
}
