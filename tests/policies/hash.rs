//! Ring, Maglev and rendezvous over whole fleets: how evenly keys are shared, which move when the fleet changes, and
//! what a bound on load holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use equipoise::load::{Cells, Load};
use equipoise::policy::{
    BoundedLoad, Connect, Decision, Maglev, Member, PickInfo, PickResult, Picker, Policy,
    Rendezvous, RingHash,
};
use equipoise::rng::{Rng, remix};
use equipoise::{
    Address, Completion, Connectivity, Endpoint, EndpointId, Outcome, StatusCode, Timestamp,
};
use xxhash_rust::xxh64::xxh64;

/// Endpoints by number, whose address and hash key follow from it whatever the list they are in.
struct Fleet {
    cells: Cells,
    members: Vec<Member>,
    numbers: Vec<usize>,
}

impl Fleet {
    fn new(numbers: impl IntoIterator<Item = usize>, name: impl Fn(usize) -> String) -> Self {
        let mut fleet = Self {
            cells: Cells::new(RingHash::default().scoring()),
            members: Vec::new(),
            numbers: Vec::new(),
        };
        for number in numbers {
            let address: Address = name(number).parse().expect("an address");
            let slot = fleet.members.len();
            fleet.members.push(Member {
                id: EndpointId::new(slot as u32, 1),
                state: Connectivity::Ready,
                weight: 1,
                place: Some(slot),
                endpoint: Arc::new(Endpoint::new(address)),
                load: Arc::new(Load::new(fleet.cells.cell(slot))),
            });
            fleet.numbers.push(number);
        }
        fleet
    }

    /// All with ports of their own, so that other `town`s have other hash keys.
    fn of(numbers: impl IntoIterator<Item = usize>, town: usize) -> Self {
        let name = |n: usize| format!("10.{town}.{}.{}:50051", n / 250, n % 250 + 1);
        Self::new(numbers, name)
    }

    /// That of the published vectors.
    fn published(count: usize) -> Self {
        let name = |n: usize| format!("10.0.{}.{}:8080", n / 250, n % 250 + 1);
        Self::new(0..count, name)
    }

    fn weigh(mut self, weight: impl Fn(usize) -> u32) -> Self {
        for (member, &number) in self.members.iter_mut().zip(&self.numbers) {
            member.weight = weight(number);
        }
        self
    }

    fn decide(&self, policy: &mut dyn Policy) -> Decision {
        policy.update(&self.members, Timestamp::ZERO, &mut Rng::new(1))
    }

    fn picker(&self, policy: &mut dyn Policy) -> Arc<dyn Picker> {
        self.decide(policy).picker
    }

    /// The number of the one that is picked.
    fn pick(&self, picker: &dyn Picker, hash: u64) -> usize {
        match ask(picker, hash) {
            PickResult::Pick(id) => self.numbers[id.slot()],
            other => panic!("picked nobody: {other:?}"),
        }
    }

    /// Whose each of `keys` is.
    fn owners(&self, policy: &mut dyn Policy, keys: u64) -> Vec<usize> {
        let picker = self.picker(policy);
        (0..keys)
            .map(|key| self.pick(&*picker, remix(key)))
            .collect()
    }
}

fn ask(picker: &dyn Picker, hash: u64) -> PickResult {
    picker.pick(&PickInfo {
        now: Timestamp::ZERO,
        random: remix(!hash),
        path: "/a.B/C",
        hash: Some(hash),
        avoid: &[],
    })
}

/// How many keys each has.
fn counts(owners: &[usize]) -> BTreeMap<usize, u64> {
    let mut counts = BTreeMap::new();
    for owner in owners {
        *counts.entry(*owner).or_default() += 1;
    }
    counts
}

/// One of each kind, the ring with 160 entries for each of `count` endpoints.
fn kinds(count: usize) -> [(&'static str, Box<dyn Policy>); 3] {
    let entries = 160 * count as u64;
    [
        (
            "ring",
            Box::new(RingHash::default().with_sizes(entries, entries)),
        ),
        ("maglev", Box::new(Maglev::default())),
        ("rendezvous", Box::new(Rendezvous::default())),
    ]
}

fn bounded(bound: BoundedLoad) -> [(&'static str, Box<dyn Policy>); 4] {
    [
        (
            "ring",
            Box::new(RingHash::default().with_bounded_load(bound)),
        ),
        (
            "maglev",
            Box::new(Maglev::default().with_bounded_load(bound)),
        ),
        (
            "rendezvous",
            Box::new(Rendezvous::default().with_bounded_load(bound)),
        ),
        (
            "top 2",
            Box::new(Rendezvous::default().with_top(2).with_bounded_load(bound)),
        ),
    ]
}

const KEYS: u64 = 200_000;

/// Published figures: the ring of 160 each 1.17, 1.19, 1.23; Maglev 1.01, 1.04, 1.05, 1.16; rendezvous 1.01, 1.03,
/// 1.06. Of five fleets on average; one may do somewhat worse.
#[test]
fn keys_are_shared_evenly() {
    for (count, most) in [
        (10, &[1.30, 1.03, 1.03][..]),
        (50, &[1.40, 1.07, 1.07]),
        (100, &[1.50, 1.10, 1.10]),
        (500, &[1.60, 1.25]),
    ] {
        for town in 0..2 {
            let fleet = Fleet::of(0..count, town);
            for ((name, mut policy), most) in kinds(count).into_iter().zip(most) {
                let owners = fleet.owners(&mut *policy, KEYS);
                let busiest = counts(&owners).into_values().max().unwrap_or(0);
                let uneven = busiest as f64 * count as f64 / KEYS as f64;
                assert!(
                    (1.0..*most).contains(&uneven),
                    "{name} of {count} in town {town}: {uneven}"
                );
            }
        }
    }
}

/// The share of keys that move between two that stay: Maglev's is at most one and a half times what is published,
/// 0.27, 0.46, 0.54 and 0.92 %.
#[test]
fn who_leaves_takes_hardly_any_other_keys_along() {
    for (count, collateral) in [(10, 0.0027), (50, 0.0046), (100, 0.0054), (500, 0.0092)] {
        for leaver in [0, count / 2, count - 1] {
            let before = Fleet::of(0..count, 0);
            let after = Fleet::of((0..count).filter(|&n| n != leaver), 0);
            let most = [0.0, 1.5 * collateral, 0.0];
            // One look at every endpoint for every key takes a while with 500.
            let kinds = kinds(count).into_iter().zip(most).skip(1);
            for ((name, mut policy), most) in kinds.take(if count < 500 { 2 } else { 1 }) {
                let was = before.owners(&mut *policy, KEYS);
                let is = after.owners(&mut *policy, KEYS);
                let (mut unavoidable, mut moved) = (0, 0);
                let mut heirs = Vec::new();
                for (was, is) in was.into_iter().zip(is) {
                    match was == leaver {
                        true => {
                            unavoidable += 1;
                            heirs.push(is);
                        }
                        false => moved += u64::from(was != is),
                    }
                }
                let what = format!("{name}, {leaver} of {count}");
                let moved = moved as f64 / KEYS as f64;
                assert!(moved <= most, "{what}: {moved}");
                // What it had, about one of `count` parts, goes to all the others alike.
                let ideal = unavoidable as f64 * count as f64 / KEYS as f64;
                assert!((0.8..1.25).contains(&ideal), "{what}: {ideal}");
                if count <= 50 {
                    let mean = unavoidable as f64 / (count - 1) as f64;
                    let heirs = counts(&heirs);
                    assert_eq!(heirs.len(), count - 1, "{what}");
                    let most = heirs.into_values().max().unwrap_or(0) as f64;
                    // Two of Maglev's orders of entries may be alike for a stretch; then one gains what another loses.
                    let times = if name == "maglev" { 4.0 } else { 1.7 };
                    assert!(most < times * mean, "{what}: {most} of {mean}");
                }
            }
        }
    }
}

#[test]
fn as_many_keys_move_on_a_ring_as_published() {
    let vectors = include_str!("../conformance/vectors/ring_hash.json");
    let vectors: serde_json::Value = serde_json::from_str(vectors).expect("JSON");
    let rows = vectors["edge"]["churn_default_sizes"]["rows"].as_array();
    let rows = rows.expect("rows");
    assert_eq!(rows.len(), 5);
    for row in rows {
        let number = |name: &str| row[name].as_u64().expect("a number");
        let (from, to) = (number("from") as usize, number("to") as usize);
        let (before, after) = (Fleet::published(from), Fleet::published(to));
        // One policy, as in a channel whose list changes.
        let mut policy = RingHash::default();
        let (was, is) = (before.picker(&mut policy), after.picker(&mut policy));
        let keys = 0..number("keys");
        let hashes = keys.map(|key| xxh64(format!("key-{key}").as_bytes(), 0));
        let moved = hashes.filter(|&hash| before.pick(&*was, hash) != after.pick(&*is, hash));
        assert_eq!(moved.count() as u64, number("moved"), "{from} to {to}");
    }
}

/// Sizes that leave every survivor with as many entries as it had.
#[test]
fn on_a_ring_no_other_key_moves_while_counts_stay() {
    for count in [3, 10, 100] {
        let fleet = |n| Fleet::of(0..n, 0);
        let ring = |n: usize| RingHash::default().with_sizes(40 * n as u64, 4_096);
        let was = fleet(count).owners(&mut ring(count), 20_000);
        let is = fleet(count - 1).owners(&mut ring(count - 1), 20_000);
        let mut moved = 0;
        for (was, is) in was.into_iter().zip(is) {
            assert!(was == is || was == count - 1, "{count}: {was} to {is}");
            moved += usize::from(was != is);
        }
        assert!(moved * count > 10_000, "{count}: {moved}");
    }
}

#[test]
fn every_client_has_the_same_owners_whatever_the_order_of_its_list() {
    let mut rng = Rng::new(1);
    let weight = |number: usize| 1 + number as u32 % 3;
    let mut numbers: Vec<usize> = (0..20).collect();
    let first = Fleet::of(numbers.clone(), 0).weigh(weight);
    for (_, mut policy) in kinds(20) {
        let expected = first.owners(&mut *policy, 5_000);
        for _ in 0..5 {
            (1..numbers.len()).for_each(|i| numbers.swap(i, rng.below(i + 1)));
            let client = Fleet::of(numbers.clone(), 0).weigh(weight);
            let owners = client.owners(&mut *policy, 5_000);
            assert!(owners == expected, "{policy:?}: {numbers:?}");
        }
    }
}

/// A service is scaled up and down again: sessions stay with their server while it is there.
#[test]
fn sessions_stay_while_the_fleet_grows_and_shrinks() {
    let sizes = [10, 11, 14, 20, 13, 10, 9, 10];
    let sessions = 20_000;
    for ((name, mut policy), allowed) in kinds(20).into_iter().zip([0.0, 0.01, 0.0]) {
        let mut policy: Box<dyn Policy> = match name {
            // Its counts must stay, which a least total does not see to.
            "ring" => continue,
            _ => std::mem::replace(&mut policy, Box::new(RingHash::default())),
        };
        let first = Fleet::of(0..sizes[0], 0).owners(&mut *policy, sessions);
        let mut was = first.clone();
        for step in sizes.windows(2) {
            let (from, to) = (step[0], step[1]);
            let is = Fleet::of(0..to, 0).owners(&mut *policy, sessions);
            let needless = was.iter().zip(&is).filter(|&(&was, &is)| {
                // Neither has its server left, nor is the one it has now new.
                was != is && was < to && is < from
            });
            let needless = needless.count() as f64 / sessions as f64;
            // More come or go at once than one.
            let allowed = allowed * from.abs_diff(to) as f64;
            assert!(needless <= allowed, "{name}, {from} to {to}: {needless}");
            let moved = was.iter().zip(&is).filter(|(was, is)| was != is).count();
            let ideal = from.abs_diff(to) as f64 / from.max(to) as f64;
            let moved = moved as f64 / sessions as f64;
            assert!(
                (0.8 * ideal..1.2 * ideal + allowed).contains(&moved),
                "{name}, {from} to {to}: {moved}"
            );
            was = is;
        }
        assert!(was == first, "{name}: the same fleet, the same owners");
    }
}

#[test]
fn shares_are_those_of_the_weights() {
    let weight = |number: usize| [1, 2, 3, 10][number % 4];
    let fleet = Fleet::of(0..40, 0).weigh(weight);
    let sum: u32 = (0..40).map(weight).sum();
    // A ring's are as uneven as its entries lie; the others are within the noise of some 1,250 keys and more.
    for ((name, mut policy), tolerance) in kinds(40).into_iter().zip([0.5, 0.09, 0.09]) {
        let counts = counts(&fleet.owners(&mut *policy, KEYS));
        let mut by_weight = BTreeMap::<u32, f64>::new();
        for number in 0..40 {
            let ideal = f64::from(weight(number)) / f64::from(sum) * KEYS as f64;
            let share = counts[&number] as f64 / ideal;
            assert!((share - 1.0).abs() < tolerance, "{name}, {number}: {share}");
            *by_weight.entry(weight(number)).or_default() += share / 10.0;
        }
        // All of one weight together.
        for (weight, share) in by_weight {
            assert!(
                (share - 1.0).abs() < tolerance / 3.0,
                "{name}, {weight}: {share}"
            );
        }
    }
}

/// One whose weight is raised takes keys from all, and nobody else does.
#[test]
fn a_weight_moves_keys_to_or_from_its_own_endpoint_only() {
    let mut policy = Rendezvous::default();
    let before = Fleet::of(0..30, 0);
    let after = Fleet::of(0..30, 0).weigh(|number| if number == 7 { 4 } else { 1 });
    let was = before.owners(&mut policy, 50_000);
    let is = after.owners(&mut policy, 50_000);
    for (was, is) in was.iter().zip(&is) {
        assert!(was == is || *is == 7, "{was} to {is}");
    }
    let (was, is) = (counts(&was)[&7], counts(&is)[&7]);
    let times = is as f64 / was as f64;
    assert!(
        (3.3..4.0).contains(&times),
        "4/33 of the keys, not 1/30: {times}"
    );
}

fn end(load: &Load) {
    let done = Completion {
        outcome: Outcome::Answered(StatusCode::OK),
        latency: Duration::from_millis(1),
    };
    load.end(&done, Timestamp::ZERO, Timestamp::ZERO);
}

/// Calls begin and end at random, most of them with one of a few keys. Whoever is given a call is within the bound with
/// it; and while calls only begin, all are.
#[test]
fn nobody_is_given_more_than_the_bound() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let count = 2 + rng.below(40);
        let heaviest = [1, 5][rng.below(2)];
        let weights: Vec<u32> = (0..count).map(|_| 1 + rng.below(heaviest) as u32).collect();
        let sum: u32 = weights.iter().sum();
        let (factor, floor) = ([1.0, 1.25, 2.0][rng.below(3)], [0, 4][rng.below(2)]);
        let bound = BoundedLoad::default().with_factor(factor).with_floor(floor);
        for (name, mut policy) in bounded(bound) {
            let fleet = Fleet::of(0..count, 0).weigh(|number| weights[number]);
            let picker = fleet.picker(&mut *policy);
            let most = |number: usize, calls: usize| {
                let mean = calls as f64 * f64::from(weights[number]) / f64::from(sum);
                (factor * mean).ceil().max(f64::from(floor))
            };
            let in_flight = |number: usize| f64::from(fleet.members[number].load.in_flight());
            let mut calls: Vec<usize> = Vec::new();
            for step in 0..3_000 {
                let only_begins = step < 500;
                if !only_begins && rng.unit() < 0.5 && !calls.is_empty() {
                    let ended = calls.swap_remove(rng.below(calls.len()));
                    end(&fleet.members[ended].load);
                    continue;
                }
                let key = if rng.unit() < 0.7 {
                    rng.below(3)
                } else {
                    rng.below(10_000)
                };
                let picked = fleet.pick(&*picker, remix(key as u64));
                fleet.members[picked].load.begin();
                calls.push(picked);
                let what = format!("seed {seed}, {name} of {count}, {bound:?}, step {step}");
                let (has, may) = (in_flight(picked), most(picked, calls.len()));
                assert!(has <= may, "{what}: {has} of {may}");
                if only_begins {
                    let within = |n: usize| in_flight(n) <= most(n, calls.len());
                    assert!((0..count).all(within), "{what}");
                }
            }
        }
    }
}

/// Without a bound one key is one endpoint's, whatever that one has to do.
#[test]
fn without_a_bound_a_hot_key_stays_with_its_owner() {
    for (name, mut policy) in kinds(10) {
        let fleet = Fleet::of(0..10, 0);
        let picker = fleet.picker(&mut *policy);
        for _ in 0..200 {
            fleet.members[fleet.pick(&*picker, 7)].load.begin();
        }
        let loads = fleet.members.iter().map(|m| m.load.in_flight());
        assert_eq!(loads.max(), Some(200), "{name}");
    }
}

/// Published figures for four calls in flight per server, no floor: factor 2 leaves 90 to 96 % of the calls with their
/// owner, 1.5 74 to 81 %, 1.25 54 to 59 %.
#[test]
fn most_calls_stay_with_their_owner_under_a_bound() {
    let count = 50;
    for (factor, least, most) in [(2.0, 0.90, 0.97), (1.5, 0.72, 0.83), (1.25, 0.50, 0.64)] {
        let bound = BoundedLoad::default().with_factor(factor).with_floor(0);
        let mut policy = Maglev::default().with_bounded_load(bound);
        let fleet = Fleet::of(0..count, 0);
        let (picker, free) = (
            fleet.picker(&mut policy),
            fleet.picker(&mut Maglev::default()),
        );
        let mut rng = Rng::new(3);
        let mut calls: Vec<usize> = Vec::new();
        let mut kept = 0;
        let rounds = 40_000;
        for _ in 0..rounds {
            if calls.len() == 4 * count {
                let ended = calls.swap_remove(rng.below(calls.len()));
                end(&fleet.members[ended].load);
            }
            let hash = rng.word();
            let picked = fleet.pick(&*picker, hash);
            kept += usize::from(picked == fleet.pick(&*free, hash));
            fleet.members[picked].load.begin();
            calls.push(picked);
        }
        let kept = kept as f64 / rounds as f64;
        assert!((least..most).contains(&kept), "factor {factor}: {kept}");
    }
}

/// A service with little to do keeps its keys where they are: the floor.
#[test]
fn below_the_floor_nothing_moves() {
    for (name, mut policy) in bounded(BoundedLoad::default()) {
        if name == "top 2" {
            continue;
        }
        let fleet = Fleet::of(0..10, 0);
        let picker = fleet.picker(&mut *policy);
        let owner = fleet.pick(&*picker, 7);
        for _ in 0..4 {
            assert_eq!(fleet.pick(&*picker, 7), owner, "{name}");
            fleet.members[owner].load.begin();
        }
        assert_ne!(
            fleet.pick(&*picker, 7),
            owner,
            "{name}: 5 are more than twice 0.5"
        );
    }
}

/// What one endpoint has too much of goes to all others, not to a neighbour; each key to the same one every time.
#[test]
fn what_is_too_much_is_spread_over_all_others() {
    let bound = BoundedLoad::default().with_floor(0);
    for (name, mut policy) in bounded(bound).into_iter().take(3) {
        let fleet = Fleet::of(0..10, 0);
        let picker = fleet.picker(&mut *policy);
        let owners: Vec<usize> = (0..4_000)
            .map(|key| fleet.pick(&*picker, remix(key)))
            .collect();
        let full = owners[0];
        (0..100).for_each(|_| fleet.members[full].load.begin());
        let mut heirs = Vec::new();
        for (key, &owner) in (0..).zip(&owners) {
            let picked = fleet.pick(&*picker, remix(key));
            assert_eq!(picked, fleet.pick(&*picker, remix(key)), "{name}");
            match owner == full {
                true => heirs.push(picked),
                false => assert_eq!(picked, owner, "{name}: another's key"),
            }
        }
        let mean = heirs.len() as f64 / 9.0;
        let heirs = counts(&heirs);
        let most = heirs.values().copied().max().unwrap_or(0) as f64;
        assert!(
            heirs.len() == 9 && !heirs.contains_key(&full),
            "{name}: {heirs:?}"
        );
        assert!(most < 1.6 * mean, "{name}: {heirs:?}");
    }
}

#[test]
fn under_a_bound_everyone_is_connected_and_without_one_who_is_needed() {
    let mut fleet = Fleet::of(0..3, 0);
    for member in &mut fleet.members {
        member.state = Connectivity::Idle;
    }
    for (name, mut policy) in bounded(BoundedLoad::default()) {
        let decision = fleet.decide(&mut *policy);
        assert_eq!(decision.connect, Connect::All, "{name}");
    }
    for (name, mut policy) in kinds(3) {
        let decision = fleet.decide(&mut *policy);
        let first = Connect::Only(vec![fleet.members[0].id]);
        assert_eq!(decision.connect, first, "{name}");
        let PickResult::Queue { connect: Some(_) } = ask(&*decision.picker, 7) else {
            panic!("{name}: an idle owner is waited for");
        };
    }
}

/// The list was replaced, and nobody on the new one is ready: the keys stay where they were until somebody is.
#[test]
fn the_old_list_keeps_its_keys_until_somebody_new_is_ready() {
    for (name, mut policy) in kinds(6) {
        let mut fleet = Fleet::of(0..6, 0);
        let mut old = Fleet::of(0..3, 0);
        let was = old.owners(&mut *policy, 2_000);
        for (member, n) in fleet.members.iter_mut().zip(0..) {
            match n {
                0..3 => member.place = None,
                _ => (member.place, member.state) = (Some(n - 3), Connectivity::Idle),
            }
        }
        assert!(fleet.owners(&mut *policy, 2_000) == was, "{name}");
        let first = Connect::Only(vec![fleet.members[3].id]);
        assert_eq!(fleet.decide(&mut *policy).connect, first, "{name}");
        // Somebody is: those who have left are not among the members any more.
        old.members = fleet.members.split_off(3);
        old.members[0].state = Connectivity::Ready;
        let picker = old.picker(&mut *policy);
        let owner = ask(&*picker, remix(1));
        let new = old.members.iter().map(|m| m.id).collect::<Vec<_>>();
        match owner {
            PickResult::Pick(id) | PickResult::Queue { connect: Some(id) } => {
                assert!(new.contains(&id), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}
