//! The bound against its definition in whole numbers.

use super::super::world::World;
use super::*;
use crate::rng::Rng;

/// `quarters / 4` times the share, rounded up, or the floor.
fn capacity(quarters: u64, floor: u64, (weight, weights): (u64, u64), calls: u64) -> u64 {
    let share = u128::from(quarters) * u128::from(weight) * u128::from(calls + 1);
    floor.max(share.div_ceil(4 * u128::from(weights)) as u64)
}

#[test]
fn who_takes_a_call_is_what_the_definition_says() {
    let policy = super::super::RingHash::default();
    for seed in 0..600 {
        let mut rng = Rng::new(seed);
        let count = 1 + rng.below(90);
        let mut world = World::new(&policy, count, seed);
        let heaviest = [1, 2, 9, 1_000_000][rng.below(4)];
        for i in 0..count {
            world.weigh(i, 1 + rng.below(heaviest) as u32);
            let most = [0, 3, 12][rng.below(3)];
            (0..rng.below(most + 1)).for_each(|_| world.load(i).begin());
        }
        let mut members = world.members().to_vec();
        let share_ready = [0.3, 1.0][rng.below(2)];
        for member in &mut members {
            if rng.unit() >= share_ready {
                member.state = Connectivity::TransientFailure;
            }
        }
        let is_ready = |place: &usize| members[*place].state == Connectivity::Ready;
        let ready: Vec<usize> = (0..count).filter(is_ready).collect();
        let (quarters, floor) = ([4, 5, 6, 8, 400][rng.below(5)], rng.below(6) as u64);
        let config = BoundedLoad::default()
            .with_factor(quarters as f64 / 4.0)
            .with_floor(floor as u32);
        config.check().unwrap();
        let keyed: Vec<(String, u32)> = (0..count)
            .map(|place| (format!("e-{place}"), members[place].weight))
            .collect();
        let ranks = Arc::new(Ranks::new(&keyed));
        // Places are another order than slots.
        members.reverse();
        let homes: Vec<&Member> = members.iter().collect();
        let Some(bound) = Bound::new(config, &homes, ranks.clone()) else {
            assert!(ready.is_empty());
            continue;
        };
        let ready: Vec<usize> = ready.iter().map(|place| count - 1 - place).collect();
        let weight = |place: usize| u64::from(homes[place].weight);
        let weights: u64 = ready.iter().map(|&place| weight(place)).sum();
        let in_flight = |place: usize| u64::from(homes[place].load.in_flight());
        let calls: u64 = ready.iter().map(|&place| in_flight(place)).sum();
        let has_room = |place: &usize| {
            let share = (weight(*place), weights);
            in_flight(*place) < capacity(quarters, floor, share, calls)
        };
        assert!(ready.iter().any(has_room), "seed {seed}: nobody has room");
        for _ in 0..30 {
            let (owner, hash) = (ready[rng.below(ready.len())], rng.word());
            let avoid: Vec<usize> = (0..rng.below(4)).map(|_| rng.below(count)).collect();
            // In the key's own order.
            let mut order = vec![0; count];
            let mut left: Vec<usize> = (0..count).collect();
            for next in &mut order {
                *next = ranks.first(hash, |place| left.contains(&place)).unwrap();
                left.retain(|place| place != next);
            }
            let able = |place: &usize| ready.contains(place) && has_room(place);
            let other = order.into_iter().find(|p| able(p) && !avoid.contains(p));
            let expected = match has_room(&owner) {
                true => owner,
                false => other.unwrap_or(owner),
            };
            let taken = bound.place(owner, hash, |place| avoid.contains(&place));
            assert_eq!(taken, expected, "seed {seed}: {config:?} {owner} {avoid:?}");
            let below = in_flight(owner) < floor;
            assert_eq!(bound.is_below_floor(owner), below, "seed {seed}");
        }
    }
}

#[test]
fn factors_that_bound_nothing_or_everything_are_told() {
    let check = |factor| BoundedLoad::default().with_factor(factor).check();
    for factor in [1.0, 1.25, 2.0, 100.0] {
        assert!(check(factor).is_ok());
    }
    for factor in [0.99, -2.0, 100.5, f64::NAN, f64::INFINITY] {
        let error = check(factor).unwrap_err();
        let text = format!("bounded load: factor {factor:?} is not in 1.0..=100.0");
        assert!(error.is_config());
        assert_eq!(error.to_string(), text);
    }
}
