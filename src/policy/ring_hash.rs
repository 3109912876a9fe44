//! Who had this key last time?

mod ring;

use std::sync::Arc;

pub use ring::{Ring, RingError};

use super::bounded::BoundedLoad;
use super::keyed::{Homes, Placement};
use super::{Decision, HashOn, Member, Policy};
use crate::error::Error;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Gives calls with the same key to the same endpoint, on every client alike, by gRPC's hash [`Ring`] (A42, A61,
/// A76): the same as grpc-go's for the same hash keys, weights and sizes.
///
/// What the key is says a call's [`HashKey`](crate::HashKey), else what the policy hashes on. A call without
/// either goes to anyone, by chance.
///
/// * *The owner is down*: the next endpoint on the ring stands in until it is back.
/// * *It is not connected yet, or its connection was lost*: the call waits for it. Endpoints are connected
///   when a call needs them first, so that a client of many keeps connections to few; a lost connection is made
///   anew when the next call needs it, and one that failed is tried again by itself.
/// * *It is full, or turned the call away*: the next on the ring takes that call.
/// * *It has more than its share*: nothing, unless a [bound](Self::with_bounded_load) says otherwise.
/// * *Nobody is connected or being connected*: the first endpoint in the order of hash keys is, so that the
///   channel becomes READY, and recovers, without a call. gRPC's does that only after a failure.
///
/// Under [`service_policy`](crate::Builder::service_policy) beside a policy that connects to everyone, everyone
/// is connected.
///
/// Weights count as configured. An endpoint's place follows from
/// [its hash key](crate::Endpoint::with_hash_key), by default its first address; where several have the same one,
/// the lower address owns what is theirs. The ring is made anew only when endpoints, weights or hash keys change.
///
/// ```
/// use equipoise::policy::{HashOn, RingHash};
///
/// let by_session = RingHash::on_metadata("x-session-id");
/// let by_tenant_and_method = RingHash::on(HashOn::metadata("x-tenant").and(HashOn::method()));
/// let channel = equipoise::Channel::builder("static:10.0.0.1:50051,10.0.0.2:50051")?
///     .service_policy("shop.Cart", by_session)
///     .service_policy("shop.Stock", by_tenant_and_method.with_sizes(4_096, 4_096))
///     .build()?;
///
/// let error = equipoise::Channel::builder("static:10.0.0.1:50051")?
///     .policy(RingHash::on_metadata("x session"))
///     .build()
///     .unwrap_err();
/// assert_eq!(error.to_string(), "hash on metadata \"x session\": not a legal name");
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RingHash {
    min: u64,
    max: u64,
    homes: Homes<Ring>,
}

impl Default for RingHash {
    /// Places calls by their [`HashKey`](crate::HashKey) alone.
    fn default() -> Self {
        Self::on(HashOn::default())
    }
}

impl RingHash {
    /// Places calls by a metadata entry: [`HashOn::metadata`].
    pub fn on_metadata(name: impl Into<String>) -> Self {
        Self::on(HashOn::metadata(name))
    }

    /// Places calls by what `hash_on` says of them.
    pub fn on(hash_on: HashOn) -> Self {
        Self {
            min: 1_024,
            max: 4_096,
            homes: Homes::on(hash_on),
        }
    }

    /// The least and the greatest number of entries of the ring, over all endpoints. Default 1,024 and 4,096, as in
    /// gRPC; 1 ≤ `min` ≤ `max` ≤ 8,388,608, or the channel is not built. More entries share the keys more evenly, see
    /// [`Ring`], and cost some 50 bytes each and time when the list changes. Of more than `max` endpoints some get no
    /// call.
    pub fn with_sizes(mut self, min: u64, max: u64) -> Self {
        (self.min, self.max) = (min, max);
        self
    }

    /// Bounds what one endpoint may have in flight. Default: no bound, as in gRPC.
    pub fn with_bounded_load(mut self, bound: BoundedLoad) -> Self {
        self.homes.bounded = Some(bound);
        self
    }
}

impl Policy for RingHash {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        let ring = |endpoints: &[_], _: &_| Ring::new(endpoints, self.min, self.max).ok();
        self.homes.update(members, ring, |keyed, _| Arc::new(keyed))
    }

    fn hash_on(&self) -> HashOn {
        self.homes.hash_on.clone()
    }

    fn check(&self) -> Result<(), Error> {
        self.homes.check()?;
        ring::check_sizes(self.min, self.max).map_err(|error| Error::config(error.to_string()))
    }
}

impl Placement for Ring {
    #[inline]
    fn owner(&self, hash: u64) -> usize {
        Self::owner(self, hash)
    }

    /// Clockwise, as gRPC has it. Endpoints come more than once: remembering who came would cost an allocation.
    fn first(&self, hash: u64, accept: impl Fn(usize) -> bool) -> Option<usize> {
        self.clockwise(hash).find(|&place| accept(place))
    }

    fn reach(&self, count: usize) -> Vec<bool> {
        let mut reach = vec![false; count];
        self.clockwise(0).for_each(|place| reach[place] = true);
        reach
    }
}

#[cfg(test)]
mod tests;
