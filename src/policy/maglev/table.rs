//! Which endpoint has which entry of the table?

use std::fmt;
use std::ops::RangeInclusive;

use xxhash_rust::xxh64::xxh64;

use crate::error::Error;
use crate::rng::scale;

/// The sizes that a table may have, if they are primes. The greatest is Envoy's.
const SIZES: RangeInclusive<u32> = 2..=5_000_011;

/// Whether a table can have this size.
pub(super) fn check_size(size: u32) -> Result<(), Error> {
    match SIZES.contains(&size) && is_prime(size) {
        true => Ok(()),
        false => Err(Error::config(format!(
            "maglev: table size {size} is not a prime in {SIZES:?}"
        ))),
    }
}

fn is_prime(n: u32) -> bool {
    let mut factors = (2..).take_while(|factor| factor * factor <= n);
    n >= 2 && factors.all(|factor| !n.is_multiple_of(factor))
}

/// A table of a prime number of entries, each an endpoint's.
///
/// Every endpoint has an order of its own in which it would like the entries, and takes the next that is free
/// whenever it has a turn: the heaviest in every round, one of half its weight in every second.
#[derive(Clone)]
pub(super) enum Table {
    /// In half the memory, so that more of it stays in the processor's caches.
    Narrow(Box<[u16]>),
    Wide(Box<[u32]>),
}

impl Table {
    /// The table of these endpoints, each a hash key and a weight, in their order; weight 0 counts as 1. `None` when
    /// there is none, or with a size that no table can have.
    pub(super) fn new(endpoints: &[(String, u32)], size: u32) -> Option<Self> {
        if endpoints.is_empty() || endpoints.len() > u32::MAX as usize {
            return None;
        }
        check_size(size).ok()?;
        let size = size as usize;
        if endpoints.len() > 1 << 16 {
            let mut owners = vec![0; size].into_boxed_slice();
            fill(endpoints, size, |entry, place| owners[entry] = place);
            return Some(Self::Wide(owners));
        }
        let mut owners = vec![0; size].into_boxed_slice();
        fill(endpoints, size, |entry, place| owners[entry] = place as u16);
        Some(Self::Narrow(owners))
    }

    /// Whose `hash` is, as an index into the list the table was made of.
    #[inline]
    pub(super) fn owner(&self, hash: u64) -> usize {
        // The product's high bits depend on all bits of the hash, also of one that is a small number.
        let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match self {
            Self::Narrow(owners) => usize::from(owners[scale(spread, owners.len())]),
            Self::Wide(owners) => owners[scale(spread, owners.len())] as usize,
        }
    }
}

/// Where an endpoint is in the order in which it would like the entries.
struct Wish {
    next: u32,
    skip: u32,
    weight: u64,
    turns: u64,
}

impl Wish {
    fn new((key, weight): &(String, u32), size: u64) -> Self {
        let hash = |seed| xxh64(key.as_bytes(), seed);
        Self {
            next: (hash(0) % size) as u32,
            skip: (hash(1) % (size - 1) + 1) as u32,
            weight: u64::from((*weight).max(1)),
            turns: 0,
        }
    }
}

/// Gives each of `size` entries to an endpoint.
fn fill(endpoints: &[(String, u32)], size: usize, mut give: impl FnMut(usize, u32)) {
    let wish = |endpoint| Wish::new(endpoint, size as u64);
    let mut wishes: Vec<Wish> = endpoints.iter().map(wish).collect();
    let heaviest = wishes.iter().map(|wish| wish.weight).max().unwrap_or(1);
    let mut calendar = Calendar::new(wishes.len(), size);
    let mut free = Free::new(size);
    let mut left = size;
    let mut round = Vec::new();
    for number in 0.. {
        calendar.take(number, &mut round);
        for &place in &round {
            let wish = &mut wishes[place as usize];
            let entry = free.claim(wish);
            give(entry, place);
            left -= 1;
            if left == 0 {
                return;
            }
            wish.turns += 1;
            let next = (wish.turns * heaviest).div_ceil(wish.weight);
            calendar.note(next, place);
        }
    }
}

/// Which entries nobody has: a bit each, so that looking for one stays in the nearest cache.
struct Free {
    taken: Vec<u64>,
    size: u32,
}

impl Free {
    fn new(size: usize) -> Self {
        Self {
            taken: vec![0; size.div_ceil(64)],
            size: size as u32,
        }
    }

    /// The next entry in the order of `wish` that is free; there must be one.
    #[inline]
    fn claim(&mut self, wish: &mut Wish) -> usize {
        loop {
            let entry = wish.next as usize;
            // The size is a prime, so this comes to every entry before it comes to one again.
            wish.next += wish.skip;
            if wish.next >= self.size {
                wish.next -= self.size;
            }
            let (word, bit) = (&mut self.taken[entry / 64], 1 << (entry % 64));
            if *word & bit == 0 {
                *word |= bit;
                return entry;
            }
        }
    }
}

/// Who has a turn in which round. Asking everyone in every round would take long where one weighs much more than
/// many others.
struct Calendar {
    /// The last that was noted for each round, and who was noted before each one.
    last: Vec<u32>,
    before: Vec<u32>,
}

const NOBODY: u32 = u32::MAX;

impl Calendar {
    /// Everyone has a turn in round 0. Later ones are of interest up to `rounds`: the heaviest has a turn in each, so
    /// there are no more of them than entries.
    fn new(count: usize, rounds: usize) -> Self {
        let mut calendar = Self {
            last: vec![NOBODY; rounds],
            before: vec![NOBODY; count],
        };
        (0..count as u32).for_each(|place| calendar.note(0, place));
        calendar
    }

    #[inline]
    fn note(&mut self, round: u64, place: u32) {
        if let Some(last) = self.last.get_mut(round as usize) {
            self.before[place as usize] = std::mem::replace(last, place);
        }
    }

    /// Those of one round, in their order.
    fn take(&mut self, round: usize, places: &mut Vec<u32>) {
        places.clear();
        let mut next = self.last[round];
        while next != NOBODY {
            places.push(next);
            next = self.before[next as usize];
        }
        // Mostly they are in the reverse order, and this is quick.
        places.sort_unstable();
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = match self {
            Self::Narrow(owners) => owners.len(),
            Self::Wide(owners) => owners.len(),
        };
        f.debug_struct("Table").field("entries", &entries).finish()
    }
}
