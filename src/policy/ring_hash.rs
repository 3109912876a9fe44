//! Who had this key last time?

mod ring;

use std::sync::Arc;

pub use ring::{Ring, RingError};

use super::{Connect, Decision, HashOn, Member, PickInfo, PickResult, Picker, Policy, Unready};
use crate::endpoint::{Connectivity, Endpoint, EndpointId};
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
    hash_on: HashOn,
    min: u64,
    max: u64,
    placed: Option<Placed>,
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
            hash_on,
            min: 1_024,
            max: 4_096,
            placed: None,
        }
    }

    /// The least and the greatest number of entries of the ring, over all endpoints. Default 1,024 and 4,096, as
    /// in gRPC; 1 ≤ `min` ≤ `max` ≤ 8,388,608, or the channel is not built. More entries share
    /// the keys more evenly, see [`Ring`], and cost some 50 bytes each and time when the list changes. Of more than `max`
    /// endpoints some get no call.
    pub fn with_sizes(mut self, min: u64, max: u64) -> Self {
        (self.min, self.max) = (min, max);
        self
    }

    /// A ring for `members`; `None` where there can be none.
    fn place(&self, members: &[Member]) -> Option<Placed> {
        // By hash key, and where those are the same by what else is lasting: slots depend on history.
        let keys = members.iter().map(|member| member.endpoint.hash_key());
        let mut keys: Vec<_> = keys.enumerate().collect();
        keys.sort_by(|(a, a_key), (b, b_key)| {
            let (a, b) = (&members[*a].endpoint, &members[*b].endpoint);
            let by_key = a_key.as_bytes().cmp(b_key.as_bytes());
            by_key.then_with(|| (a.addresses(), a.id()).cmp(&(b.addresses(), b.id())))
        });
        let order: Vec<usize> = keys.iter().map(|&(member, _)| member).collect();
        let input = keys.into_iter();
        let input = input.map(|(member, key)| (key.into_owned(), members[member].weight));
        let input: Vec<(String, u32)> = input.collect();
        let ring = Ring::new(&input, self.min, self.max).ok()?;
        let mut met = vec![false; order.len()];
        ring.clockwise(0).for_each(|place| met[place] = true);
        Some(Placed {
            made_for: members.iter().map(Made::of).collect(),
            ring: Arc::new(ring),
            order,
            met,
        })
    }
}

/// A ring, and whom it was made for.
#[derive(Clone, Debug)]
struct Placed {
    made_for: Vec<Made>,
    ring: Arc<Ring>,
    /// The members in the order of their hash keys: what the ring's indices mean.
    order: Vec<usize>,
    /// Which of them have an entry.
    met: Vec<bool>,
}

#[derive(Clone, Debug)]
struct Made {
    id: EndpointId,
    weight: u32,
    endpoint: Arc<Endpoint>,
}

impl Made {
    fn of(member: &Member) -> Self {
        Self {
            id: member.id,
            weight: member.weight,
            endpoint: member.endpoint.clone(),
        }
    }

    /// Whether this is what the ring was made from. What a resolver says anew is another `Arc`.
    fn is(&self, member: &Member) -> bool {
        self.id == member.id
            && self.weight == member.weight
            && Arc::ptr_eq(&self.endpoint, &member.endpoint)
    }
}

impl Placed {
    fn is_for(&self, members: &[Member]) -> bool {
        let mut pairs = self.made_for.iter().zip(members);
        self.made_for.len() == members.len() && pairs.all(|(made, member)| made.is(member))
    }
}

impl Policy for RingHash {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        if !self
            .placed
            .as_ref()
            .is_some_and(|placed| placed.is_for(members))
        {
            self.placed = self.place(members);
        }
        let Some(placed) = &self.placed else {
            return Decision {
                picker: Arc::new(Unready(PickResult::Fail)),
                connect: Connect::Only(Vec::new()),
                wake: None,
            };
        };
        let seat = |&member: &usize| Seat {
            id: members[member].id,
            state: members[member].state,
        };
        let seats: Box<[Seat]> = placed.order.iter().map(seat).collect();
        let met = seats.iter().zip(&placed.met).filter(|(_, met)| **met);
        let met = met.map(|(seat, _)| seat);
        let first = |state| met.clone().find(|seat| seat.state == state);
        let idle = first(Connectivity::Idle);
        let connecting = first(Connectivity::Connecting).is_some();
        let ready = first(Connectivity::Ready).is_some();
        // Who is being connected is to be seen through, who has failed is tried again without a call.
        let begun = seats.iter().filter(|seat| {
            matches!(
                seat.state,
                Connectivity::Connecting | Connectivity::TransientFailure
            )
        });
        let unasked = idle.filter(|_| !ready && !connecting);
        let connect = begun.chain(unasked).map(|seat| seat.id).collect();
        let picker = Clockwise {
            ready,
            connecting,
            hopeful: ready || connecting || idle.is_some(),
            ring: placed.ring.clone(),
            seats,
        };
        Decision {
            picker: Arc::new(picker),
            connect: Connect::Only(connect),
            wake: None,
        }
    }

    fn hash_on(&self) -> HashOn {
        self.hash_on.clone()
    }

    fn check(&self) -> Result<(), Error> {
        self.hash_on.check()?;
        ring::check_sizes(self.min, self.max).map_err(|error| Error::config(error.to_string()))
    }
}

/// One ring with the states of its endpoints.
#[derive(Debug)]
struct Clockwise {
    ring: Arc<Ring>,
    /// By the ring's index.
    seats: Box<[Seat]>,
    /// Whether any endpoint with an entry is ready, is connecting, has not failed.
    ready: bool,
    connecting: bool,
    hopeful: bool,
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    id: EndpointId,
    state: Connectivity,
}

impl Picker for Clockwise {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let owner = &self.seats[self.ring.owner(info.hash.unwrap_or(info.random))];
        if owner.state == Connectivity::Ready && !info.avoid.contains(&owner.id) {
            return PickResult::Pick(owner.id);
        }
        self.further(info)
    }
}

impl Clockwise {
    /// The owner cannot take it, or should not.
    #[cold]
    fn further(&self, info: &PickInfo<'_>) -> PickResult {
        if !self.hopeful {
            return PickResult::Fail;
        }
        let look = |avoid| match info.hash {
            Some(hash) => self.keyed(hash, avoid),
            None => self.by_chance(info.random, avoid),
        };
        let others = look(info.avoid);
        let anyone = || match info.avoid {
            [] => None,
            _ => look(&[]),
        };
        others.or_else(anyone).unwrap_or(PickResult::Fail)
    }

    /// The first that has not failed decides, ready or not: the key comes before the wait.
    fn keyed(&self, hash: u64, avoid: &[EndpointId]) -> Option<PickResult> {
        self.clockwise(hash, avoid).find_map(|seat| {
            let id = seat.id;
            match seat.state {
                Connectivity::Ready => Some(PickResult::Pick(id)),
                Connectivity::Idle => Some(PickResult::Queue { connect: Some(id) }),
                Connectivity::Connecting => Some(PickResult::Queue { connect: None }),
                Connectivity::TransientFailure | Connectivity::Shutdown => None,
            }
        })
    }

    /// The first that is ready, where there is no key to keep; an idle one that is met on the way is
    /// connected, one at a time.
    fn by_chance(&self, random: u64, avoid: &[EndpointId]) -> Option<PickResult> {
        let (mut connect, mut waits) = (None, false);
        for seat in self.clockwise(random, avoid) {
            match (seat.state, connect) {
                (Connectivity::Ready, None) => return Some(PickResult::Pick(seat.id)),
                (Connectivity::Ready, Some(connect)) => {
                    let id = seat.id;
                    return Some(PickResult::PickAndConnect { id, connect });
                }
                (Connectivity::Idle, None) if !self.connecting => connect = Some(seat.id),
                (Connectivity::Connecting, _) => waits = true,
                _ => {}
            }
            if !self.ready && (waits || connect.is_some()) {
                break;
            }
        }
        (waits || connect.is_some()).then_some(PickResult::Queue { connect })
    }

    /// Once around from where `hash` belongs, passing over those in `avoid`. Endpoints come more than once:
    /// remembering who came would cost an allocation.
    fn clockwise(&self, hash: u64, avoid: &[EndpointId]) -> impl Iterator<Item = &Seat> {
        let seats = self.ring.clockwise(hash).map(|place| &self.seats[place]);
        seats.filter(move |seat| !avoid.contains(&seat.id))
    }
}

#[cfg(test)]
mod tests;
