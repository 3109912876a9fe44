//! The policy as its balancer sees it: who is picked, who is dialled, against a picker by brute force.

use super::super::world;
use super::super::{Connect, PickInfo, PickResult, Picker};
use super::*;
use crate::endpoint::{Connectivity, Endpoint, EndpointId};
use crate::load::{Cells, Load, Scoring};
use Connectivity::{Connecting, Idle, Ready, TransientFailure};

const ALL: [Connectivity; 4] = [Idle, Connecting, Ready, TransientFailure];

fn member(slot: usize, state: Connectivity, endpoint: Endpoint) -> Member {
    Member {
        id: EndpointId::new(slot as u32, 1),
        state,
        weight: endpoint.weight(),
        place: Some(slot),
        endpoint: Arc::new(endpoint),
        load: Arc::new(Load::new(Cells::new(Scoring::InFlight).cell(0))),
    }
}

/// Members whose hash keys are in another order than their slots.
fn members(states: &[Connectivity]) -> Vec<Member> {
    let slots = states.iter().enumerate();
    slots
        .map(|(slot, &state)| {
            let key = format!("key-{:03}", slot * 7 % 1_000);
            member(slot, state, world::endpoint(slot).with_hash_key(key))
        })
        .collect()
}

fn update(policy: &mut RingHash, members: &[Member]) -> (Arc<dyn Picker>, Vec<EndpointId>) {
    let decision = policy.update(members, Timestamp::ZERO, &mut Rng::new(1));
    let Connect::Only(connect) = decision.connect else {
        panic!("it connects to everyone");
    };
    (decision.picker, connect)
}

fn pick(picker: &dyn Picker, hash: Option<u64>, random: u64, avoid: &[EndpointId]) -> PickResult {
    picker.pick(&PickInfo {
        now: Timestamp::ZERO,
        random,
        path: "/a.B/C",
        hash,
        avoid,
    })
}

/// The rules in words: over the distinct endpoints in the order of the walk.
fn keyed(walk: &[(EndpointId, Connectivity)]) -> Option<PickResult> {
    let (id, state) = walk.iter().find(|(_, state)| *state != TransientFailure)?;
    Some(match state {
        Ready => PickResult::Pick(*id),
        Idle => PickResult::Queue { connect: Some(*id) },
        _ => PickResult::Queue { connect: None },
    })
}

fn by_chance(walk: &[(EndpointId, Connectivity)], anybody_connecting: bool) -> Option<PickResult> {
    let ready = walk.iter().position(|(_, state)| *state == Ready);
    let on_the_way = &walk[..ready.unwrap_or(walk.len())];
    let idle = on_the_way.iter().find(|(_, state)| *state == Idle);
    let connect = idle.map(|(id, _)| *id).filter(|_| !anybody_connecting);
    let waits = on_the_way.iter().any(|(_, state)| *state == Connecting);
    match (ready.map(|at| walk[at].0), connect) {
        (Some(id), None) => Some(PickResult::Pick(id)),
        (Some(id), Some(connect)) => Some(PickResult::PickAndConnect { id, connect }),
        (None, None) if !waits => None,
        (None, connect) => Some(PickResult::Queue { connect }),
    }
}

/// Random fleets, states, keys and lists to avoid, against the rules applied to the whole walk.
#[test]
fn every_pick_is_what_the_rules_say_of_the_whole_walk() {
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let count = 1 + rng.below(12);
        let kinds = 1 + rng.below(4);
        let states: Vec<_> = (0..count)
            .map(|_| ALL[(seed as usize + rng.below(kinds)) % 4])
            .collect();
        let members = members(&states);
        let size = 1 + rng.below(40) as u64;
        let mut policy = RingHash::default().with_sizes(size, size);
        let (picker, _) = update(&mut policy, &members);
        // The ring as anybody would make it: its input in any order.
        let keys = members.iter().map(|m| m.endpoint.hash_key().into_owned());
        let input: Vec<_> = keys.map(|key| (key, 1)).collect();
        let ring = Ring::new(&input, size, size).unwrap();
        for _ in 0..50 {
            let avoid: Vec<_> = (0..rng.below(4))
                .map(|_| EndpointId::new(rng.below(count) as u32, 1))
                .collect();
            let hash = rng.word();
            let walk = ring.walk(hash).map(|i| (members[i].id, states[i]));
            let walk: Vec<_> = walk.collect();
            let others = walk.iter().filter(|(id, _)| !avoid.contains(id));
            let others: Vec<_> = others.copied().collect();
            let connecting = walk.iter().any(|(_, state)| *state == Connecting);
            let what = format!("seed {seed}: {walk:?} avoiding {avoid:?}");
            let expected = keyed(&others).or_else(|| keyed(&walk));
            assert_eq!(
                pick(&*picker, Some(hash), rng.word(), &avoid),
                expected.unwrap_or(PickResult::Fail),
                "{what}"
            );
            let expected = by_chance(&others, connecting);
            let expected = expected.or_else(|| by_chance(&walk, connecting));
            assert_eq!(
                pick(&*picker, None, hash, &avoid),
                expected.unwrap_or(PickResult::Fail),
                "without a key, {what}"
            );
        }
    }
}

#[test]
fn who_is_connected_without_a_call() {
    for (states, expected) in [
        // In the order of hash keys, which is that of slots here.
        (&[][..], &[][..]),
        (&[Idle, Idle, Idle], &[0]),
        (&[Connecting, Idle, Idle], &[0]),
        (&[Ready, Idle, Idle], &[]),
        (&[Idle, Ready, Idle], &[]),
        (&[Idle, Ready, Connecting], &[2]),
        (&[TransientFailure, Idle, Idle], &[0, 1]),
        (&[TransientFailure, Connecting, Idle], &[0, 1]),
        (&[TransientFailure, Ready, Idle], &[0]),
        (&[TransientFailure, TransientFailure], &[0, 1]),
    ] {
        let (_, mut connect) = update(&mut RingHash::default(), &members(states));
        connect.sort_unstable();
        let slots: Vec<usize> = connect.iter().map(|id| id.slot()).collect();
        assert_eq!(slots, expected, "{states:?}");
    }
}

#[test]
fn the_first_to_be_connected_is_the_first_by_key_and_has_an_entry() {
    let endpoint = |slot, key: &str| world::endpoint(slot).with_hash_key(key);
    let list = [
        member(0, Idle, endpoint(0, "c")),
        member(1, Idle, endpoint(1, "b")),
        member(2, TransientFailure, endpoint(2, "a")),
    ];
    let (_, connect) = update(&mut RingHash::default(), &list);
    assert_eq!(connect, [list[2].id, list[1].id]);
    // With room for one entry, the others can be asked for by nobody.
    let (picker, connect) = update(&mut RingHash::default().with_sizes(1, 1), &list);
    assert_eq!(connect, [list[2].id]);
    assert_eq!(pick(&*picker, Some(1), 1, &[]), PickResult::Fail);
}

#[test]
fn the_ring_is_made_anew_only_for_another_list() {
    let mut policy = RingHash::default();
    let mut list = members(&[Ready; 5]);
    let ring = |policy: &RingHash| {
        let placed = policy.homes.placed.as_ref();
        placed.map(|placed| placed.placement.clone())
    };
    update(&mut policy, &list);
    let first = ring(&policy).unwrap();
    list[1].state = Idle;
    list[4].state = TransientFailure;
    update(&mut policy, &list);
    assert!(Arc::ptr_eq(&first, &ring(&policy).unwrap()));

    let changes: [fn(&mut Vec<Member>); 4] = [
        |list| list.truncate(4),
        |list| list[0].weight = 3,
        |list| list[0].endpoint = Arc::new(world::endpoint(0).with_hash_key("another")),
        |list| list[0].id = EndpointId::new(0, 2),
    ];
    for change in changes {
        let before = ring(&policy).unwrap();
        change(&mut list);
        update(&mut policy, &list);
        assert!(!Arc::ptr_eq(&before, &ring(&policy).unwrap()));
    }
    update(&mut policy, &[]);
    assert!(ring(&policy).is_none());
}

/// Nobody of the new list is ready yet: the old one keeps its keys, all of them, until somebody is.
#[test]
fn who_has_left_the_list_keeps_the_keys_until_somebody_on_it_is_ready() {
    let mut list = members(&[Ready, Ready, Ready, Idle, Idle]);
    let mut old = list[..3].to_vec();
    let (before, _) = update(&mut RingHash::default(), &old);
    for member in &mut list[..3] {
        member.place = None;
    }
    let mut policy = RingHash::default();
    update(&mut policy, &old);
    let (between, connect) = update(&mut policy, &list);
    assert_eq!(connect, [list[3].id], "the first of the new list by key");
    list[3].state = Connecting;
    list[4].state = TransientFailure;
    let (still, mut connect) = update(&mut policy, &list);
    connect.sort_unstable();
    assert_eq!(connect, [list[3].id, list[4].id]);
    let new = list.split_off(3);
    let (after, _) = update(&mut policy, &new);
    let (fresh, _) = update(&mut RingHash::default(), &new);
    for hash in (0..500).map(crate::rng::remix) {
        let picks = |picker: &Arc<dyn Picker>| {
            let keyed = pick(&**picker, Some(hash), 0, &[]);
            (keyed, pick(&**picker, None, hash, &[]))
        };
        assert!(matches!(picks(&before).0, PickResult::Pick(_)));
        assert_eq!(picks(&between), picks(&before));
        assert_eq!(picks(&still), picks(&before));
        assert_eq!(picks(&after), picks(&fresh));
    }
    // Those that are not ready any more stand in for nobody.
    for member in &mut old {
        (member.place, member.state) = (None, TransientFailure);
    }
    old.extend(new);
    let (picker, _) = update(&mut policy, &old);
    for hash in (0..500).map(crate::rng::remix) {
        let picked = pick(&*picker, Some(hash), 0, &[]);
        assert_eq!(picked, PickResult::Queue { connect: None });
    }
}

/// Slots depend on what was there before; whose a key is must not.
#[test]
fn where_hash_keys_are_the_same_the_lower_address_owns_them() {
    let twin = |n| world::endpoint(n).with_hash_key("twin");
    for (a, b) in [(3, 5), (5, 3)] {
        let list = [member(0, Ready, twin(a)), member(1, Ready, twin(b))];
        let lower = if a < b { 0 } else { 1 };
        let (picker, _) = update(&mut RingHash::default(), &list);
        for hash in 0..50_u64 {
            let hash = crate::rng::remix(hash);
            let picked = pick(&*picker, Some(hash), 0, &[]);
            assert_eq!(picked, PickResult::Pick(list[lower].id));
            let other = pick(&*picker, Some(hash), 0, &[list[lower].id]);
            assert_eq!(other, PickResult::Pick(list[1 - lower].id));
        }
    }
}

#[test]
fn with_nobody_or_no_ring_calls_fail() {
    let list = members(&[Ready, Idle]);
    let mut impossible = RingHash::default().with_sizes(9, 8);
    for (policy, list) in [
        (&mut RingHash::default(), &[][..]),
        (&mut impossible, &list[..]),
    ] {
        let (picker, connect) = update(policy, list);
        assert_eq!(pick(&*picker, Some(1), 1, &[]), PickResult::Fail);
        assert_eq!(connect, []);
    }
}

#[test]
fn what_cannot_work_is_told_at_build() {
    assert!(RingHash::default().check().is_ok());
    assert!(RingHash::on_metadata("x-session-id").check().is_ok());
    for (policy, text) in [
        (RingHash::on_metadata("x y"), "hash on metadata \"x y\""),
        (RingHash::default().with_sizes(0, 9), "ring sizes 0..=9"),
        (RingHash::default().with_sizes(10, 9), "ring sizes 10..=9"),
    ] {
        let error = policy.check().unwrap_err();
        assert!(
            error.is_config() && error.to_string().contains(text),
            "{error}"
        );
    }
}
