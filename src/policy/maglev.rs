//! Who had this key last time, looked up in one step?

mod table;

use std::sync::Arc;

use table::Table;

use super::bounded::BoundedLoad;
use super::keyed::{Homes, Placement};
use super::ranks::Ranks;
use super::{Decision, HashOn, Member, Policy};
use crate::error::Error;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Gives calls with the same key to the same endpoint, on every client alike, by a table in which endpoints have
/// nearly equal parts (Maglev, Eisenbud and others, NSDI 2016).
///
/// Beside a [ring](super::RingHash) the keys are shared much more evenly (the busiest of 100 owns 1.05 times its
/// share, not 1.8 times), and finding the owner takes one look. For that a few keys move between two endpoints that
/// both stay when another comes or goes: of 10 endpoints 0.3 % of the keys, of 100 0.5 %, of 500 0.9 %; a table ten
/// times as large makes that a quarter. With [`Rendezvous`](super::Rendezvous) none do.
///
/// What the key is, and what happens while its owner is not connected yet, is as with the ring. When the owner is
/// down, is full or has turned the call away, another stands in that differs from key to key, so that what one
/// endpoint leaves behind is spread over all the others.
///
/// Weights count as configured: twice the weight, twice the entries. An endpoint's entries follow from
/// [its hash key](crate::Endpoint::with_hash_key), by default its first address. The table is made anew only when
/// endpoints, weights or hash keys change, in about a millisecond. Of more endpoints than entries some own no key,
/// and only stand in for others.
///
/// ```
/// use equipoise::policy::{BoundedLoad, HashOn, Maglev};
///
/// let channel = equipoise::Channel::builder("static:10.0.0.1:50051,10.0.0.2:50051")?
///     .policy(Maglev::on_metadata("x-session-id"))
///     .service_policy(
///         "shop.Stock",
///         Maglev::on(HashOn::cookie("session")).with_bounded_load(BoundedLoad::default()),
///     )
///     .build()?;
///
/// let error = equipoise::Channel::builder("static:10.0.0.1:50051")?
///     .policy(Maglev::default().with_table_size(65_536))
///     .build()
///     .unwrap_err();
/// assert_eq!(error.to_string(), "maglev: table size 65536 is not a prime in 2..=5000011");
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Maglev {
    size: u32,
    homes: Homes<Lookup>,
}

impl Default for Maglev {
    /// Places calls by their [`HashKey`](crate::HashKey) alone.
    fn default() -> Self {
        Self::on(HashOn::default())
    }
}

impl Maglev {
    /// Places calls by a metadata entry: [`HashOn::metadata`].
    pub fn on_metadata(name: impl Into<String>) -> Self {
        Self::on(HashOn::metadata(name))
    }

    /// Places calls by what `hash_on` says of them.
    pub fn on(hash_on: HashOn) -> Self {
        Self {
            size: 65_537,
            homes: Homes::on(hash_on),
        }
    }

    /// Entries of the table. Default 65,537, as in the paper and in Envoy; a prime up to 5,000,011 (Envoy's limit),
    /// or the channel is not built.
    ///
    /// A hundred times the number of endpoints keeps shares within a few per cent of one another. An entry takes two
    /// bytes, four with more than 65,536 endpoints; making a table ten times as large takes more than ten times as
    /// long.
    pub fn with_table_size(mut self, size: u32) -> Self {
        self.size = size;
        self
    }

    /// Bounds what one endpoint may have in flight. Default: no bound.
    pub fn with_bounded_load(mut self, bound: BoundedLoad) -> Self {
        self.homes.bounded = Some(bound);
        self
    }
}

impl Policy for Maglev {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        let lookup = |endpoints: &[(String, u32)], ranks: &Arc<Ranks>| {
            Some(Lookup {
                table: Table::new(endpoints, self.size)?,
                ranks: ranks.clone(),
            })
        };
        self.homes
            .update(members, lookup, |keyed, _| Arc::new(keyed))
    }

    fn hash_on(&self) -> HashOn {
        self.homes.hash_on.clone()
    }

    fn check(&self) -> Result<(), Error> {
        self.homes.check()?;
        table::check_size(self.size)
    }
}

/// A table, and who stands in where its word does not hold.
#[derive(Clone, Debug)]
struct Lookup {
    table: Table,
    ranks: Arc<Ranks>,
}

impl Placement for Lookup {
    #[inline]
    fn owner(&self, hash: u64) -> usize {
        self.table.owner(hash)
    }

    fn first(&self, hash: u64, accept: impl Fn(usize) -> bool) -> Option<usize> {
        let owner = self.table.owner(hash);
        match accept(owner) {
            true => Some(owner),
            false => self.ranks.first(hash, accept),
        }
    }
}

#[cfg(test)]
mod tests;
