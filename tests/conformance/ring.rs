//! The ring: every entry of it, whose each key is, and who stands in.

use std::collections::BTreeMap;

use equipoise::HashKey;
use equipoise::policy::ring_hash::Ring;
use serde_json::Value;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh64::xxh64;

use crate::{hex, number, ring_hash, rows, text, whole};

/// Hash keys and weights.
type List = Vec<(String, u32)>;

/// A ring of the vectors, made by ours from the endpoints in any order.
struct Case<'a> {
    row: &'a Value,
    endpoints: List,
    ring: Ring,
}

impl<'a> Case<'a> {
    fn new(row: &'a Value, arrange: fn(&mut List)) -> Self {
        let endpoint = |value: &Value| {
            let weight = whole(&value["weight"]).try_into().expect("a weight");
            (text(&value["hash_key"]).to_owned(), weight)
        };
        let mut endpoints: Vec<_> = rows(&row["endpoints"]).iter().map(endpoint).collect();
        arrange(&mut endpoints);
        let (min, max) = (whole(&row["min_ring_size"]), whole(&row["max_ring_size"]));
        let ring = Ring::new(&endpoints, min, max).expect("a ring");
        Self {
            row,
            endpoints,
            ring,
        }
    }

    fn name(&self) -> &str {
        text(&self.row["name"])
    }

    fn key(&self, index: usize) -> &str {
        &self.endpoints[index].0
    }

    /// Position, hash key and number of each entry. The number is the one whose hash stands there.
    fn entries(&self) -> Vec<(u64, &str, usize)> {
        let mut left = self.replicas();
        let mut numbers = BTreeMap::new();
        for (&key, count) in &mut left {
            for replica in 0..*count {
                let name = format!("{key}_{replica}");
                numbers.insert((xxh64(name.as_bytes(), 0), key), replica);
            }
        }
        let entries = self.ring.entries();
        entries
            .map(|(position, owner)| {
                let key = self.key(owner);
                let replica = numbers.remove(&(position, key));
                (position, key, replica.expect("each entry is a hash, once"))
            })
            .collect()
    }

    fn replicas(&self) -> BTreeMap<&str, usize> {
        let mut counts: BTreeMap<&str, usize> =
            self.endpoints.iter().map(|(key, _)| (&**key, 0)).collect();
        for (_, owner) in self.ring.entries() {
            *counts.get_mut(self.key(owner)).expect("it is known") += 1;
        }
        counts
    }

    fn walk(&self, hash: u64) -> Vec<&str> {
        self.ring.walk(hash).map(|index| self.key(index)).collect()
    }
}

/// The orders a resolver may give a list in.
const ORDERS: [fn(&mut List); 3] = [|_| {}, |list| list.reverse(), |list| list.rotate_left(1)];

fn each_case(check: impl Fn(&Case<'_>)) {
    let vectors = ring_hash();
    for row in rows(&vectors["rings"]) {
        for arrange in ORDERS {
            check(&Case::new(row, arrange));
        }
    }
}

#[test]
fn the_hash_is_xxhash64() {
    let vectors = ring_hash();
    for row in rows(&vectors["xxh64"]) {
        let input = text(&row["input"]);
        let seed = match &row["seed"] {
            Value::String(seed) => seed.parse().expect("a seed"),
            seed => whole(seed),
        };
        assert_eq!(
            xxh64(input.as_bytes(), seed),
            hex(&row["hash"]),
            "{input:?}"
        );
        assert_eq!(text(&row["dec"]), hex(&row["hash"]).to_string());
        if seed == 0 {
            assert_eq!(HashKey::bytes(input), HashKey::raw(hex(&row["hash"])));
        }
    }
}

#[test]
fn every_ring_has_its_size_and_its_replicas_whatever_the_order_of_the_list() {
    each_case(|case| {
        let size = whole(&case.row["ring_size"]);
        assert_eq!(case.ring.len() as u64, size, "{}", case.name());
        let scale: f64 = text(&case.row["scale"]).parse().expect("a number");
        assert_eq!(scale.ceil() as u64, size, "{}", case.name());
        let expected = case.row["replicas"].as_object().expect("counts");
        let counts = case.replicas();
        assert_eq!(counts.len(), expected.len(), "{}", case.name());
        for (key, count) in expected {
            assert_eq!(counts[&**key] as u64, whole(count), "{} {key}", case.name());
        }
    });
}

/// The counts of an implementation that keeps the resolver's order are others: that ours do not follow it
/// is no accident.
#[test]
fn some_rings_would_differ_if_the_list_were_not_sorted() {
    let vectors = ring_hash();
    let differ = rows(&vectors["rings"]).iter().filter(|row| {
        row["replicas"] != row["replicas_if_order_reversed"]
            || row["replicas"] != row["replicas_if_order_given"]
    });
    assert!(differ.count() > 0);
}

#[test]
fn every_entry_is_where_it_belongs() {
    each_case(|case| {
        let entries = case.entries();
        let listed = rows(&case.row["entries"]);
        assert!(listed.len() == entries.len() || case.row["entries_complete"] == false);
        let last = &case.row["last_entry"];
        let ends = listed
            .iter()
            .zip(&entries)
            .chain([(last, &entries[entries.len() - 1])]);
        for (expected, &(position, key, replica)) in ends {
            let expected = (
                hex(&expected["hash"]),
                text(&expected["hash_key"]),
                whole(&expected["replica"]) as usize,
            );
            assert_eq!((position, key, replica), expected, "{}", case.name());
        }
        let mut digest = Sha256::new();
        for (position, key, replica) in &entries {
            digest.update(format!("{position:016x} {key} {replica}\n"));
        }
        let digest: String = digest
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(digest, text(&case.row["ring_sha256"]), "{}", case.name());
    });
}

#[test]
fn every_key_has_its_owner_and_those_who_stand_in() {
    each_case(|case| {
        let entries = case.entries();
        for lookup in rows(&case.row["lookups"]) {
            let hash = hex(&lookup["hash"]);
            let key = text(&lookup["key"]);
            assert_eq!(HashKey::bytes(key), HashKey::raw(hash));
            let failover: Vec<&str> = rows(&lookup["failover"]).iter().map(text).collect();
            assert_eq!(case.walk(hash), failover, "{} {key:?}", case.name());
            let owner = case.key(case.ring.owner(hash));
            assert_eq!(owner, text(&lookup["hash_key"]), "{} {key:?}", case.name());
            let entry = entries[whole(&lookup["index"]) as usize];
            assert_eq!(owner, entry.1, "{} {key:?}", case.name());
        }
        for boundary in rows(&case.row["boundary"]) {
            let hash = hex(&boundary["hash"]);
            let owner = case.key(case.ring.owner(hash));
            let expected = text(&boundary["hash_key"]);
            assert_eq!(owner, expected, "{} {hash:#x}", case.name());
        }
    });
}

/// A fleet of the vectors' statistics.
fn fleet(size: u64) -> List {
    let key = |i| format!("10.0.{}.{}:8080", i / 250, i % 250 + 1);
    (0..size).map(|i| (key(i), 1)).collect()
}

fn with_default_sizes(endpoints: &[(String, u32)]) -> Ring {
    Ring::new(endpoints, 1_024, 4_096).expect("a ring")
}

#[test]
fn shares_of_the_hash_space_are_as_uneven_as_published() {
    let vectors = ring_hash();
    for row in rows(&vectors["edge"]["imbalance_default_sizes"]["rows"]) {
        let count = whole(&row["endpoints"]);
        let ring = with_default_sizes(&fleet(count));
        assert_eq!(ring.len() as u64, whole(&row["ring_size"]));
        assert_eq!(ring.len() as u64, count * whole(&row["replicas_each"]));
        let mut shares = vec![0.0; count as usize];
        let entries: Vec<(u64, usize)> = ring.entries().collect();
        let (mut before, _) = entries[entries.len() - 1];
        for (position, owner) in entries {
            shares[owner] += position.wrapping_sub(before) as f64 / 2.0_f64.powi(64);
            before = position;
        }
        let of_mean = |share: f64| share * count as f64;
        let most = of_mean(shares.iter().copied().fold(0.0, f64::max));
        let least = of_mean(shares.iter().copied().fold(1.0, f64::min));
        for (got, expected) in [(most, "max_over_mean"), (least, "min_over_mean")] {
            let expected = number(&row[expected]);
            assert!((got - expected).abs() < 1e-4, "{count}: {got} {expected}");
        }
    }
}

#[test]
fn as_many_keys_move_as_published() {
    let vectors = ring_hash();
    for row in rows(&vectors["edge"]["churn_default_sizes"]["rows"]) {
        let (from, to) = (whole(&row["from"]), whole(&row["to"]));
        let stay = from.min(to) as usize;
        let (before, after) = (
            with_default_sizes(&fleet(from)),
            with_default_sizes(&fleet(to)),
        );
        let (mut moved, mut unavoidable) = (0, 0);
        for key in 0..whole(&row["keys"]) {
            let hash = xxh64(format!("key-{key}").as_bytes(), 0);
            let (was, is) = (before.owner(hash), after.owner(hash));
            moved += u64::from(was != is);
            unavoidable += u64::from(was.max(is) >= stay);
        }
        assert_eq!(moved, whole(&row["moved"]), "{from} to {to}");
        let expected = whole(&row["of_which_unavoidable"]);
        assert_eq!(unavoidable, expected, "{from} to {to}");
    }
}

/// Where the others keep their counts, a key leaves its owner only with it.
#[test]
fn no_key_moves_between_two_that_keep_their_counts() {
    let endpoints = fleet(10);
    let ring = Ring::new(&endpoints, 1_000, 4_096).expect("a ring");
    let rest = Ring::new(&endpoints[..9], 900, 4_096).expect("a ring");
    assert_eq!((ring.len(), rest.len()), (1_000, 900));
    let mut moved = 0;
    for key in 0..20_000 {
        let hash = xxh64(format!("key-{key}").as_bytes(), 0);
        let heir = ring.walk(hash).find(|&owner| owner != 9);
        assert_eq!(Some(rest.owner(hash)), heir, "key-{key}");
        moved += u32::from(ring.owner(hash) == 9);
    }
    assert!((1_000..4_000).contains(&moved), "{moved}");
}
