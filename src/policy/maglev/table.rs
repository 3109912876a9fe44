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
/// whenever it has a turn: everyone in the first round, and from then on the heaviest in every round, one of half its
/// weight in every second.
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

/// What an endpoint would like, and when.
struct Wish {
    /// Where it is in its order of the entries, and how it goes on.
    next: u32,
    skip: u32,
    /// Its next turn is in round `round + rest / weight`, rounded up.
    weight: u64,
    round: u64,
    rest: u64,
    /// How many rounds there are between two turns: whole ones, and so many `weight`ths. To divide in each turn
    /// would take half as long as all the rest.
    pause: (u64, u64),
}

impl Wish {
    fn new(endpoint: &(String, u32), heaviest: u64, size: u64) -> Self {
        let hash = |seed| xxh64(endpoint.0.as_bytes(), seed);
        let weight = weight(endpoint);
        Self {
            next: (hash(0) % size) as u32,
            skip: (hash(1) % (size - 1) + 1) as u32,
            weight,
            round: 0,
            rest: 0,
            pause: (heaviest / weight, heaviest % weight),
        }
    }

    /// The round of its next turn.
    #[inline]
    fn next_turn(&mut self) -> u64 {
        self.round += self.pause.0;
        self.rest += self.pause.1;
        if self.rest >= self.weight {
            self.rest -= self.weight;
            self.round += 1;
        }
        self.round + u64::from(self.rest > 0)
    }
}

fn weight((_, weight): &(String, u32)) -> u64 {
    u64::from((*weight).max(1))
}

/// Gives each of `size` entries to an endpoint.
fn fill(endpoints: &[(String, u32)], size: usize, mut give: impl FnMut(usize, u32)) {
    let heaviest = endpoints.iter().map(weight).max().unwrap_or(1);
    let wish = |endpoint| Wish::new(endpoint, heaviest, size as u64);
    let mut wishes: Vec<Wish> = endpoints.iter().map(wish).collect();
    let mut calendar = Calendar::new(wishes.len(), size);
    let mut free = Free::new(size);
    let mut left = size;
    for round in 0..size {
        while let Some(place) = calendar.next(round) {
            let wish = &mut wishes[place as usize];
            give(free.claim(wish), place);
            left -= 1;
            if left == 0 {
                return;
            }
            calendar.note(wish.next_turn(), place);
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

/// Who has a turn in which round, and in which order: a queue for each round. Asking everyone in every round would
/// take long where one weighs much more than many others.
struct Calendar {
    /// The first and the last in each round's queue.
    ends: Vec<(u32, u32)>,
    /// Who is behind each in the queue that it is in.
    behind: Vec<u32>,
}

const NOBODY: u32 = u32::MAX;

impl Calendar {
    /// Everyone has a turn in round 0. Later ones are of interest up to `rounds`: the heaviest has a turn in each, so
    /// there are no more of them than entries.
    fn new(count: usize, rounds: usize) -> Self {
        let mut calendar = Self {
            ends: vec![(NOBODY, NOBODY); rounds],
            behind: vec![NOBODY; count],
        };
        (0..count as u32).for_each(|place| calendar.note(0, place));
        calendar
    }

    #[inline]
    fn note(&mut self, round: u64, place: u32) {
        let Some((first, last)) = self.ends.get_mut(round as usize) else {
            return;
        };
        match *last {
            NOBODY => *first = place,
            ahead => self.behind[ahead as usize] = place,
        }
        *last = place;
        self.behind[place as usize] = NOBODY;
    }

    /// Takes the first out of a round's queue.
    #[inline]
    fn next(&mut self, round: usize) -> Option<u32> {
        let (first, last) = &mut self.ends[round];
        let place = *first;
        if place == NOBODY {
            return None;
        }
        *first = self.behind[place as usize];
        if *first == NOBODY {
            *last = NOBODY;
        }
        Some(place)
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
