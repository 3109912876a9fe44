//! Several homes for a key, against the rules applied to a sorted list.

use super::super::Member;
use std::time::Duration;

use super::super::world::{OK, UNAVAILABLE, World};
use super::*;
use crate::endpoint::EndpointId;
use crate::report::Completion;
use Connectivity::{Connecting, Idle, Ready, TransientFailure};

fn pick(picker: &dyn Picker, hash: Option<u64>, random: u64, avoid: &[EndpointId]) -> PickResult {
    picker.pick(&PickInfo {
        now: Timestamp::ZERO,
        random,
        path: "/a.B/C",
        hash,
        avoid,
    })
}

/// Members whose slots are in the order of their hash keys, with states and calls in flight by chance.
fn members(count: usize, kinds: &[Connectivity], rng: &mut Rng) -> Vec<Member> {
    let world = World::new(&Rendezvous::default(), count, 1);
    let mut members = world.members().to_vec();
    for (slot, member) in members.iter_mut().enumerate() {
        let endpoint = member.endpoint.as_ref().clone();
        member.endpoint = Arc::new(endpoint.with_hash_key(format!("e-{slot:03}")));
        member.state = kinds[rng.below(kinds.len())];
        (0..rng.below(4)).for_each(|_| member.load.begin());
    }
    members
}

fn ranks(members: &[Member]) -> Ranks {
    let keys = members.iter().map(|m| m.endpoint.hash_key().into_owned());
    Ranks::new(&keys.map(|key| (key, 1)).collect::<Vec<_>>())
}

#[test]
fn the_least_busy_home_is_what_the_rules_say() {
    for seed in 0..500 {
        let mut rng = Rng::new(seed);
        let kinds = [
            &[Ready][..],
            &[Ready, Idle],
            &[Ready, Idle, Connecting, TransientFailure],
            &[Idle, Connecting, TransientFailure],
        ];
        let count = 1 + rng.below(30);
        let members = members(count, kinds[rng.below(4)], &mut rng);
        let top = 2 + rng.below(15);
        let mut policy = Rendezvous::default().with_top(top);
        let picker = policy.update(&members, Timestamp::ZERO, &mut rng).picker;
        let mut single = Rendezvous::default();
        let single = single.update(&members, Timestamp::ZERO, &mut rng).picker;
        let ranks = ranks(&members);
        for _ in 0..40 {
            let avoid: Vec<EndpointId> = (0..rng.below(4))
                .map(|_| members[rng.below(count)].id)
                .collect();
            let hash = rng.word();
            let mut order = Vec::new();
            while let Some(next) = ranks.first(hash, |place| !order.contains(&place)) {
                order.push(next);
            }
            order.retain(|&p| {
                members[p].state != TransientFailure && !avoid.contains(&members[p].id)
            });
            order.truncate(top);
            let in_state = |state| {
                order
                    .iter()
                    .map(|&p| &members[p])
                    .filter(move |m| m.state == state)
            };
            let fewest = in_state(Ready).map(|m| m.load.in_flight()).min();
            let least = in_state(Ready).find(|m| Some(m.load.in_flight()) == fewest);
            let idle = in_state(Idle).next();
            let expected = match (least, idle) {
                (None, _) if order.is_empty() => pick(&*single, Some(hash), 0, &avoid),
                (None, idle) => PickResult::Queue {
                    connect: idle.map(|home| home.id),
                },
                (Some(least), None) => PickResult::Pick(least.id),
                (Some(least), Some(idle)) => PickResult::PickAndConnect {
                    id: least.id,
                    connect: idle.id,
                },
            };
            let what = format!("seed {seed}: top {top} of {members:?} avoiding {avoid:?}");
            assert_eq!(pick(&*picker, Some(hash), 0, &avoid), expected, "{what}");
            // Without a key there are no homes.
            let random = rng.word();
            let expected = pick(&*single, None, random, &avoid);
            assert_eq!(pick(&*picker, None, random, &avoid), expected, "{what}");
        }
    }
}

/// Two homes, both over their bound: the call goes on along the key's ranking.
#[test]
fn homes_that_are_full_spill_over() {
    let mut rng = Rng::new(1);
    let members = members(10, &[Ready], &mut rng);
    let mut policy = Rendezvous::default()
        .with_top(2)
        .with_bounded_load(BoundedLoad::default().with_floor(0));
    let picker = policy.update(&members, Timestamp::ZERO, &mut rng).picker;
    for hash in (0..100).map(crate::rng::remix) {
        let mut homes = [0; 3];
        ranks(&members).top(hash, |_| true, &mut homes);
        let [first, second, third] = homes.map(|home| &members[home]);
        let mut begun = Vec::new();
        for home in [first, second] {
            (0..60).for_each(|_| home.load.begin());
            begun.push(home);
        }
        let picked = pick(&*picker, Some(hash), 0, &[]);
        assert_eq!(picked, PickResult::Pick(third.id));
        let picked = pick(&*picker, Some(hash), 0, &[third.id]);
        let of_others = [first, second, third]
            .iter()
            .all(|m| picked != PickResult::Pick(m.id));
        assert!(of_others, "{picked:?}");
        for home in begun {
            let done = crate::report::Completion {
                outcome: super::super::world::OK,
                latency: std::time::Duration::ZERO,
            };
            (0..60).for_each(|_| home.load.end(&done, Timestamp::ZERO, Timestamp::ZERO));
        }
    }
}

#[test]
fn a_home_that_fails_at_once_gets_trials_alone_and_comes_back() {
    let mut policy = Rendezvous::default().with_top(2);
    let mut world = World::new(&policy, 3, 1);
    let picker = world.picker(&mut policy);
    let mut rng = Rng::new(5);
    // A hundred calls a second for so many seconds, each over at once: how many of them the first got.
    let mut run = |seconds: u64, broken: bool| {
        let mut picks = 0;
        for _ in 0..seconds * 100 {
            let now = world.now();
            let info = PickInfo {
                now,
                random: rng.word(),
                path: "/",
                hash: Some(rng.word()),
                avoid: &[],
            };
            let PickResult::Pick(id) = picker.pick(&info) else {
                panic!("all are ready");
            };
            let load = world.load(id.slot());
            load.begin();
            let outcome = match id.slot() == 0 && broken {
                true => UNAVAILABLE,
                false => OK,
            };
            let latency = Duration::from_millis(1);
            load.end(&Completion { outcome, latency }, now, now + latency);
            picks += u32::from(id.slot() == 0);
            world.pass(Duration::from_millis(10));
        }
        picks
    };
    assert!(run(10, false) > 200, "a third, if it is sound");
    let picks = run(60, true);
    assert!(
        (10..=25).contains(&picks),
        "{picks}: five, then one per 5 s"
    );
    run(10, false);
    assert!(run(10, false) > 200, "a trial has cleared it");
}

#[test]
fn what_cannot_work_is_told_at_build() {
    for top in [1, 2, 16] {
        assert!(Rendezvous::default().with_top(top).check().is_ok());
    }
    for top in [0, 17, usize::MAX] {
        let error = Rendezvous::default().with_top(top).check().unwrap_err();
        assert!(error.is_config());
        assert_eq!(
            error.to_string(),
            format!("rendezvous: top {top} is not in 1..=16")
        );
    }
    assert!(Rendezvous::on_metadata("x y").check().is_err());
    let unbound = BoundedLoad::default().with_factor(0.0);
    assert!(
        Rendezvous::default()
            .with_bounded_load(unbound)
            .check()
            .is_err()
    );
}
