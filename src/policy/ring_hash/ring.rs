//! Which endpoint owns which part of the hash space?

use std::error::Error as StdError;
use std::fmt::{self, Write};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::iter;

use hashring::HashRing;
use xxhash_rust::xxh64::xxh64;

/// The most entries a ring may have, as in gRPC and Envoy.
const LARGEST: u64 = 8_388_608;

/// A hash ring, entry for entry that of gRPC (A42) as grpc-go builds it.
///
/// Entry `i` of an endpoint stands at the xxHash64, seed 0, of its hash key, `_` and `i`. How many entries an
/// endpoint has follows from its share of the weights: the lightest gets the fewest that make a ring of `min`
/// entries, the others in proportion, and all together no more than `max`. Endpoints are placed in the order of
/// their hash keys, bytewise, so the order they are given in does not matter. A hash belongs to the first entry
/// at or after it, the first of all behind the last.
///
/// Since `min` is a total, an endpoint that leaves changes how many entries the others have, and some keys move
/// between two that stay: with the default sizes 18 % of the keys move when one of ten leaves, not 10 %. The
/// busiest of 3 owns 1.05 times its share, of 10 1.14 times, of 100 1.8 times, of 1,000 4.5 times; a larger
/// `min` evens that out.
///
/// ```
/// use equipoise::policy::ring_hash::Ring;
///
/// let endpoints = ["a", "b", "c"].map(|key| (key.to_owned(), 1));
/// let ring = Ring::new(&endpoints, 1_024, 4_096)?;
/// assert_eq!(ring.len(), 1_026);
///
/// let hash = 0x7c1b_2034_a068_4560;
/// let order: Vec<usize> = ring.walk(hash).collect();
/// assert_eq!(order.len(), 3);
/// assert_eq!(order[0], ring.owner(hash));
/// # Ok::<(), equipoise::policy::ring_hash::RingError>(())
/// ```
#[derive(Clone)]
pub struct Ring {
    spots: HashRing<Spot, BuildHasherDefault<AsItIs>>,
    /// Whose each entry is, in the order of their positions.
    owners: Vec<u32>,
    /// Whose each sector of the hash space is, all sectors of one size; `SHARED` where it is not one endpoint's.
    /// Most questions are answered here, at a fifth of what the search costs.
    sectors: Box<[u32]>,
    /// How many endpoints have an entry.
    placed: usize,
}

/// A position, and the entries that stand there: more than one where hash keys are the same.
#[derive(Clone, Copy)]
struct Spot {
    position: u64,
    /// The first of those entries, and whose it is.
    first: u32,
    owner: u32,
}

/// No endpoint's index.
const SHARED: u32 = u32::MAX;
/// More sectors would push what calls need out of the processor's caches.
const MOST_SECTORS: usize = 1 << 16;

impl Hash for Spot {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.position);
    }
}

/// Positions are hashes already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, position: u64) {
        self.0 = position;
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh64(bytes, self.0);
    }
}

impl Ring {
    /// The ring of these endpoints, each a hash key and a weight, with `min` to `max` entries. gRPC's defaults
    /// are 1,024 and 4,096. Weight 0 counts as 1.
    ///
    /// Endpoints with one hash key stand in one another's places: the first of them owns what is theirs, and
    /// the others follow it on every [`walk`](Self::walk). Of more than `max` endpoints some have no entry
    /// at all: they own nothing, and no walk comes to them.
    ///
    /// Cost: one hash per entry, and sorting them.
    ///
    /// # Errors
    ///
    /// When there is no endpoint or there are more than 8,388,608, or unless
    /// 1 ≤ `min` ≤ `max` ≤ 8,388,608.
    pub fn new(endpoints: &[(String, u32)], min: u64, max: u64) -> Result<Self, RingError> {
        check_sizes(min, max)?;
        let count = endpoints.len();
        if count == 0 || count as u64 > LARGEST {
            return Err(RingError::Endpoints(count));
        }
        let entries = entries(endpoints, min as f64, max as f64);
        let mut spots: Vec<Spot> = Vec::with_capacity(entries.len());
        for (first, &(position, owner)) in (0..).zip(&entries) {
            if spots.last().is_none_or(|last| last.position < position) {
                spots.push(Spot {
                    position,
                    first,
                    owner,
                });
            }
        }
        let sectors = sectors(&spots);
        let owners: Vec<u32> = entries.into_iter().map(|(_, owner)| owner).collect();
        let mut seen = vec![false; count];
        owners.iter().for_each(|&owner| seen[owner as usize] = true);
        let mut ring = HashRing::with_hasher(BuildHasherDefault::default());
        ring.batch_add(spots);
        Ok(Self {
            spots: ring,
            owners,
            sectors,
            placed: seen.iter().filter(|&&seen| seen).count(),
        })
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Never: a ring has entries.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Whose `hash` is, as an index into the list the ring was made of.
    #[inline]
    pub fn owner(&self, hash: u64) -> usize {
        // There are 4 sectors at least: no shift by 64.
        let sector = hash >> (64 - self.sectors.len().trailing_zeros());
        match self.sectors[sector as usize] {
            SHARED => self.spot(hash).map_or(0, |spot| spot.owner as usize),
            owner => owner as usize,
        }
    }

    /// The endpoints in the order in which they stand in for the owner of `hash`, who comes first; each
    /// once, as an index into the list the ring was made of.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let most = self.owners.iter().max().map_or(0, |&most| most as usize);
        let mut seen = vec![false; most + 1];
        self.clockwise(hash)
            .filter(move |&owner| !std::mem::replace(&mut seen[owner], true))
            .take(self.placed)
    }

    /// Every entry, by its position: the position, and whose it is. For a look at the ring, or a comparison
    /// with that of another implementation.
    pub fn entries(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        let spots = iter::successors(self.spot(0), |spot| {
            let next = self.spot(spot.position.checked_add(1)?)?;
            (next.position > spot.position).then_some(next)
        });
        let mut spots = spots.peekable();
        let mut position = 0;
        (0..).zip(&self.owners).map(move |(entry, &owner)| {
            if let Some(spot) = spots.next_if(|spot| spot.first == entry) {
                position = spot.position;
            }
            (position, owner as usize)
        })
    }

    /// Whose the entries are, from the one that `hash` belongs to once around.
    pub(super) fn clockwise(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let first = self.spot(hash).map_or(0, |spot| spot.first as usize);
        let (before, after) = self.owners.split_at(first);
        after.iter().chain(before).map(|&owner| owner as usize)
    }

    /// Where `hash` belongs.
    fn spot(&self, hash: u64) -> Option<&Spot> {
        self.spots.get(&hash)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("entries", &self.owners.len())
            .field("endpoints", &self.placed)
            .finish()
    }
}

/// Whether a ring can have such sizes.
pub(super) fn check_sizes(min: u64, max: u64) -> Result<(), RingError> {
    match 1 <= min && min <= max && max <= LARGEST {
        true => Ok(()),
        false => Err(RingError::Sizes { min, max }),
    }
}

/// Whose each sector is: four to eight for each of the `spots`, which are in the order of their positions.
fn sectors(spots: &[Spot]) -> Box<[u32]> {
    let count = (4 * spots.len().next_power_of_two()).min(MOST_SECTORS);
    let shift = 64 - count.trailing_zeros();
    let mut ahead = spots.iter().peekable();
    let owner_of = |sector: u64| {
        let (start, last) = (sector << shift, sector << shift | ((1 << shift) - 1));
        while ahead.next_if(|spot| spot.position < start).is_some() {}
        match ahead.peek() {
            Some(spot) if spot.position < last => SHARED,
            Some(spot) => spot.owner,
            None => spots.first().map_or(SHARED, |first| first.owner),
        }
    };
    (0..count as u64).map(owner_of).collect()
}

/// All entries, position and owner, sorted by position; where positions are the same, by hash key and then
/// by place in the list.
fn entries(endpoints: &[(String, u32)], min: f64, max: f64) -> Vec<(u64, u32)> {
    let mut order: Vec<(u32, &str, f64)> = (0..)
        .zip(endpoints)
        .map(|(index, (key, weight))| (index, key.as_str(), f64::from((*weight).max(1))))
        .collect();
    order.sort_by(|a, b| a.1.cmp(b.1));
    // Whole numbers far below 2^53: exact in any order.
    let sum: f64 = order.iter().map(|(_, _, weight)| weight).sum();
    let least = order.iter().map(|(_, _, weight)| weight / sum);
    let least = least.fold(f64::INFINITY, f64::min);
    let scale = ((least * min).ceil() / least).min(max);
    let mut entries = Vec::with_capacity(scale.ceil() as usize);
    let (mut target, mut emitted) = (0.0, 0.0);
    let mut name = String::new();
    for (index, key, weight) in order {
        target += scale * (weight / sum);
        name.clear();
        name.push_str(key);
        name.push('_');
        let stem = name.len();
        for replica in 0_u32.. {
            if emitted >= target {
                break;
            }
            name.truncate(stem);
            // Writing to a string does not fail.
            let _ = write!(name, "{replica}");
            entries.push((xxh64(name.as_bytes(), 0), index));
            emitted += 1.0;
        }
    }
    // Stable: entries at one position keep the order in which they were made.
    entries.sort_by_key(|&(position, _)| position);
    entries
}

/// Why there is no such ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RingError {
    /// Of so many endpoints.
    Endpoints(usize),
    /// Of such sizes.
    Sizes {
        /// The least number of entries asked for.
        min: u64,
        /// The greatest.
        max: u64,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoints(count) => {
                write!(f, "a ring of {count} endpoints: expected 1..={LARGEST}")
            }
            Self::Sizes { min, max } => write!(
                f,
                "ring sizes {min}..={max}: expected 1 <= min <= max <= {LARGEST}"
            ),
        }
    }
}

impl StdError for RingError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// The same by definition: every entry in one list, every question a look through all of it.
    struct Oracle {
        entries: Vec<(u64, usize)>,
    }

    impl Oracle {
        fn new(endpoints: &[(String, u32)], min: u64, max: u64) -> Self {
            let mut order: Vec<usize> = (0..endpoints.len()).collect();
            order.sort_by_key(|&i| (endpoints[i].0.as_bytes(), i));
            let weight = |i: usize| f64::from(endpoints[i].1.max(1));
            let sum: f64 = order.iter().map(|&i| weight(i)).sum();
            let least = order.iter().map(|&i| weight(i) / sum);
            let least = least.min_by(f64::total_cmp).unwrap();
            let scale = f64::min((least * min as f64).ceil() / least, max as f64);
            let (mut entries, mut target) = (Vec::new(), 0.0);
            for (rank, &i) in order.iter().enumerate() {
                target += scale * (weight(i) / sum);
                let mut replica = 0;
                while (entries.len() as f64) < target {
                    let name = format!("{}_{replica}", endpoints[i].0);
                    entries.push((xxh64(name.as_bytes(), 0), rank, replica, i));
                    replica += 1;
                }
            }
            entries.sort_unstable();
            let entries = entries.into_iter().map(|(at, _, _, i)| (at, i)).collect();
            Self { entries }
        }

        fn walk(&self, hash: u64) -> Vec<usize> {
            let (behind, ahead): (Vec<_>, Vec<_>) =
                self.entries.iter().partition(|(at, _)| *at < hash);
            let mut order = Vec::new();
            for (_, owner) in ahead.into_iter().chain(behind) {
                if !order.contains(&owner) {
                    order.push(owner);
                }
            }
            order
        }
    }

    #[test]
    fn a_ring_is_what_a_look_through_all_entries_says() {
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let count = 1 + rng.below(40);
            let names = 1 + rng.below(60);
            let heaviest = [1, 3, 1_000, u32::MAX as usize][rng.below(4)];
            let endpoints: Vec<(String, u32)> = (0..count)
                .map(|_| {
                    (
                        format!("e-{}", rng.below(names)),
                        rng.below(heaviest) as u32,
                    )
                })
                .collect();
            let min = 1 + rng.below(300) as u64;
            let max = min + rng.below(300) as u64;
            let ring = Ring::new(&endpoints, min, max).unwrap();
            let oracle = Oracle::new(&endpoints, min, max);
            let what = format!("seed {seed}: {endpoints:?} {min}..={max}");
            assert_eq!(ring.len(), oracle.entries.len(), "{what}");
            assert!(!ring.is_empty() && ring.len() as u64 <= max + 1, "{what}");
            let entries: Vec<_> = ring.entries().collect();
            assert_eq!(entries, oracle.entries, "{what}");
            let random = (0..50).map(|_| rng.word()).collect::<Vec<_>>();
            let around = entries
                .iter()
                .flat_map(|&(at, _)| [at.wrapping_sub(1), at, at.wrapping_add(1)]);
            // Where sectors begin and end.
            let edges = (0..256_u64).flat_map(|n| [n << 56, (n << 56).wrapping_sub(1)]);
            let hashes = around.chain(random).chain(edges);
            for hash in hashes {
                let expected = oracle.walk(hash);
                let walk: Vec<usize> = ring.walk(hash).collect();
                assert_eq!(walk, expected, "{what} at {hash:#x}");
                assert_eq!(ring.owner(hash), expected[0], "{what} at {hash:#x}");
            }
        }
    }

    #[test]
    fn one_hash_key_is_one_place_and_the_first_owns_it() {
        let endpoints = ["b", "a", "b", "b"].map(|key| (key.to_owned(), 1));
        let ring = Ring::new(&endpoints, 40, 40).unwrap();
        assert_eq!(ring.len(), 40);
        let mut rng = Rng::new(3);
        for _ in 0..1_000 {
            let walk: Vec<usize> = ring.walk(rng.word()).collect();
            assert!(matches!(walk[..], [0, 2, 3, 1] | [1, 0, 2, 3]), "{walk:?}");
        }
    }

    #[test]
    fn who_has_no_entry_is_not_met() {
        let endpoints: Vec<_> = (0..10).map(|i| (format!("e-{i}"), 1)).collect();
        let ring = Ring::new(&endpoints, 4, 4).unwrap();
        assert_eq!(ring.len(), 4);
        let mut met: Vec<usize> = ring.walk(7).collect();
        met.sort_unstable();
        assert_eq!(met.len(), 4);
        assert!(met.iter().all(|&i| i < 10));
    }

    #[test]
    fn what_cannot_be_a_ring_is_refused() {
        let one = [("a".to_owned(), 0)];
        let of_none = Ring::new(&[], 1, 1).unwrap_err();
        assert_eq!(of_none, RingError::Endpoints(0));
        assert_eq!(
            of_none.to_string(),
            "a ring of 0 endpoints: expected 1..=8388608"
        );
        for (min, max) in [
            (0, 0),
            (0, 9),
            (10, 9),
            (1, LARGEST + 1),
            (u64::MAX, u64::MAX),
        ] {
            let error = Ring::new(&one, min, max).unwrap_err();
            assert_eq!(error, RingError::Sizes { min, max });
            let text = format!("ring sizes {min}..={max}: expected 1 <= min");
            assert!(error.to_string().starts_with(&text), "{error}");
        }
        assert_eq!(Ring::new(&one, 1, 1).unwrap().len(), 1);
    }

    #[test]
    fn the_largest_ring_can_be_made() {
        let endpoints = [("a".to_owned(), 1), ("b".to_owned(), u32::MAX)];
        let ring = Ring::new(&endpoints, LARGEST, LARGEST).unwrap();
        assert_eq!(ring.len() as u64, LARGEST);
        assert_eq!(ring.walk(1).count(), 2);
    }
}
