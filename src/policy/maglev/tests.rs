//! The table against the paper's description of it, taken by the letter; and who stands in.

use xxhash_rust::xxh64::xxh64;

use super::super::world::World;
use super::super::{Member, PickInfo, PickResult, Picker};
use super::*;
use crate::endpoint::{Connectivity, Endpoint};

fn endpoints(weights: &[u32]) -> Vec<(String, u32)> {
    let named = |(i, &weight): (usize, &u32)| (format!("e-{i}"), weight);
    weights.iter().enumerate().map(named).collect()
}

fn owners(table: &Table) -> Vec<usize> {
    match table {
        Table::Narrow(owners) => owners.iter().map(|&owner| owner.into()).collect(),
        Table::Wide(owners) => owners.iter().map(|&owner| owner as usize).collect(),
    }
}

/// Every endpoint's whole order of entries is written down. In each round all are asked whether they have a turn;
/// those who do are served in the order in which they had their last one.
fn by_the_letter(endpoints: &[(String, u32)], size: usize) -> Vec<usize> {
    let order = |(key, _): &(String, u32)| -> Vec<usize> {
        let offset = xxh64(key.as_bytes(), 0) % size as u64;
        let skip = xxh64(key.as_bytes(), 1) % (size as u64 - 1) + 1;
        let nth = |n: u64| ((offset + n * skip) % size as u64) as usize;
        (0..size as u64).map(nth).collect()
    };
    let orders: Vec<Vec<usize>> = endpoints.iter().map(order).collect();
    let weight = |at: usize| u128::from(endpoints[at].1.max(1));
    let heaviest = (0..endpoints.len()).map(weight).max().unwrap();
    let mut turns = vec![0_u128; endpoints.len()];
    let mut queue: Vec<usize> = (0..endpoints.len()).collect();
    let mut table = vec![None; size];
    for round in 0_u128.. {
        // The first round in which a turn is due is the first that is not before it.
        let is_due = |at: &usize| round * weight(*at) >= turns[*at] * heaviest;
        let (due, later): (Vec<usize>, Vec<usize>) = queue.iter().partition(|at| is_due(at));
        for &at in &due {
            turns[at] += 1;
            let free = orders[at].iter().find(|&&entry| table[entry].is_none());
            let Some(&entry) = free else {
                return table.into_iter().flatten().collect();
            };
            table[entry] = Some(at);
        }
        queue = later;
        queue.extend(due);
    }
    unreachable!("some round is the last")
}

#[test]
fn a_table_is_what_the_paper_says() {
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let size = [2, 3, 5, 13, 101, 251, 1_009][rng.below(7)];
        let heaviest = [1, 2, 7, 1_000, u32::MAX as usize][rng.below(5)];
        let weights: Vec<u32> = (0..1 + rng.below(30))
            .map(|_| rng.below(heaviest + 1) as u32)
            .collect();
        let endpoints = endpoints(&weights);
        let table = Table::new(&endpoints, size as u32).unwrap();
        let expected = by_the_letter(&endpoints, size);
        assert_eq!(owners(&table), expected, "seed {seed}: {size} {weights:?}");
        if endpoints.len() <= size {
            let everyone = (0..endpoints.len()).all(|at| expected.contains(&at));
            assert!(everyone, "seed {seed}: {size} {weights:?}");
        }
    }
}

#[test]
fn more_endpoints_than_half_words_can_name() {
    let endpoints = endpoints(&[1; 70_000]);
    let table = Table::new(&endpoints, 65_537).unwrap();
    assert!(matches!(table, Table::Wide(_)));
    let mut owners = owners(&table);
    owners.sort_unstable();
    // One turn is all there was: for the first by key.
    assert!(owners.into_iter().eq(0..65_537));
    let table = Table::new(&endpoints[..65_536], 65_537).unwrap();
    assert!(matches!(table, Table::Narrow(_)));
}

#[test]
fn hashes_are_spread_over_all_entries_also_small_ones() {
    let table = Table::new(&endpoints(&[1; 5]), 101).unwrap();
    for step in [1, 1 << 20, 1 << 50] {
        let mut calls = [0; 5];
        for n in 0..10_000_u64 {
            calls[table.owner(n.wrapping_mul(step))] += 1;
        }
        let even = |n: &u32| (1_600..2_400).contains(n);
        assert!(calls.iter().all(even), "{step}: {calls:?}");
    }
    assert!(table.owner(0) < 5 && table.owner(u64::MAX) < 5);
}

#[test]
fn what_cannot_be_a_table_is_told_at_build() {
    for size in [2, 3, 65_537, 655_373, 4_999_999, 5_000_011] {
        assert!(
            Maglev::default().with_table_size(size).check().is_ok(),
            "{size}"
        );
    }
    for size in [0, 1, 4, 65_536, 65_539 * 3, 5_000_009, 5_000_077, u32::MAX] {
        let policy = Maglev::default().with_table_size(size);
        let error = policy.check().unwrap_err();
        let text = format!("maglev: table size {size} is not a prime in 2..=5000011");
        assert!(error.is_config());
        assert_eq!(error.to_string(), text);
        assert!(Table::new(&endpoints(&[1]), size).is_none());
    }
    assert!(Maglev::on_metadata("x y").check().is_err());
    assert!(Table::new(&[], 65_537).is_none());
}

fn pick(picker: &dyn Picker, hash: u64) -> PickResult {
    picker.pick(&PickInfo {
        now: Timestamp::ZERO,
        random: 0,
        path: "/a.B/C",
        hash: Some(hash),
        avoid: &[],
    })
}

/// What one leaves behind is spread, in the same way each time, and comes back to it.
#[test]
fn the_keys_of_one_that_is_down_go_to_all_others() {
    let mut policy = Maglev::default();
    let mut members = World::new(&policy, 10, 1).members().to_vec();
    let mut update = |members: &[Member]| {
        policy
            .update(members, Timestamp::ZERO, &mut Rng::new(1))
            .picker
    };
    let all = update(&members);
    members[4].state = Connectivity::TransientFailure;
    let without = update(&members);
    let gone = PickResult::Pick(members[4].id);
    let mut heirs = [0; 10];
    for hash in (0..20_000).map(crate::rng::remix) {
        match (pick(&*all, hash), pick(&*without, hash)) {
            (before, PickResult::Pick(heir)) if before == gone => heirs[heir.slot()] += 1,
            (before, after) => assert_eq!(after, before, "{hash:#x}"),
        }
    }
    let mut others = heirs.iter().enumerate().filter(|(slot, _)| *slot != 4);
    assert!(
        others.all(|(_, calls)| (150..300).contains(calls)),
        "{heirs:?}"
    );
    assert_eq!(heirs[4], 0);
    members[4].state = Connectivity::Ready;
    let again = update(&members);
    for hash in (0..1_000).map(crate::rng::remix) {
        assert_eq!(pick(&*again, hash), pick(&*all, hash));
    }
}

/// Of three endpoints, one has no entry in a table of two.
#[test]
fn who_has_no_entry_stands_in_for_others() {
    let mut policy = Maglev::default().with_table_size(2);
    let mut members = World::new(&policy, 3, 1).members().to_vec();
    for (member, key) in members.iter_mut().zip(["a", "b", "c"]) {
        member.endpoint = Arc::new(Endpoint::clone(&member.endpoint).with_hash_key(key));
    }
    let mut update = |members: &[Member]| {
        policy
            .update(members, Timestamp::ZERO, &mut Rng::new(1))
            .picker
    };
    let mut picked = |members: &[Member]| {
        let picker = update(members);
        let picks = (0..200).map(|hash| pick(&*picker, crate::rng::remix(hash)));
        members
            .iter()
            .map(|m| {
                picks
                    .clone()
                    .filter(|p| *p == PickResult::Pick(m.id))
                    .count()
            })
            .collect::<Vec<_>>()
    };
    let calls = picked(&members);
    assert!(calls[0] > 50 && calls[1] > 50 && calls[2] == 0, "{calls:?}");
    members[0].state = Connectivity::TransientFailure;
    let calls = picked(&members);
    assert!(calls[0] == 0 && calls[2] > 20, "{calls:?}");
    members[1].state = Connectivity::TransientFailure;
    assert_eq!(picked(&members), [0, 0, 200]);
}
