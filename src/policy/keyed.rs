//! Whose key is this, and what if its owner cannot take the call?

use std::fmt::Debug;
use std::sync::Arc;

use super::bounded::{Bound, BoundedLoad};
use super::ranks::Ranks;
use super::{Connect, Decision, HashOn, Member, PickInfo, PickResult, Picker, Unready};
use crate::endpoint::{Connectivity, Endpoint, EndpointId};
use crate::error::Error;

/// Gives each hash an owner among endpoints that go by their place: by their order of hash keys.
pub(super) trait Placement: Clone + Debug + Send + Sync + 'static {
    /// Whose `hash` is.
    fn owner(&self, hash: u64) -> usize;

    /// The first of those whom `accept` takes, in the order in which they stand in for the owner, who comes first.
    fn first(&self, hash: u64, accept: impl Fn(usize) -> bool) -> Option<usize>;

    /// Which of `count` places some hash comes to.
    fn reach(&self, count: usize) -> Vec<bool> {
        vec![true; count]
    }
}

/// What the policies of this family keep from one update to the next.
#[derive(Clone, Debug)]
pub(super) struct Homes<P> {
    pub(super) hash_on: HashOn,
    pub(super) bounded: Option<BoundedLoad>,
    pub(super) placed: Option<Placed<P>>,
}

impl<P: Placement> Homes<P> {
    pub(super) fn on(hash_on: HashOn) -> Self {
        Self {
            hash_on,
            bounded: None,
            placed: None,
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        self.hash_on.check()?;
        self.bounded.map_or(Ok(()), |bounded| bounded.check())
    }

    /// The decision on `members`. `place` makes a placement of hash keys and weights, when they are others than
    /// before; `picker` is what becomes of the picker by that placement.
    pub(super) fn update(
        &mut self,
        members: &[Member],
        place: impl FnOnce(&[(String, u32)], &Arc<Ranks>) -> Option<P>,
        picker: impl FnOnce(Keyed<P>, &[&Member]) -> Arc<dyn Picker>,
    ) -> Decision {
        let placed = self.placed.take().filter(|placed| placed.is_for(members));
        self.placed = placed.or_else(|| Placed::new(members, place));
        let Some(placed) = &self.placed else {
            return Decision {
                picker: Arc::new(Unready(PickResult::Fail)),
                connect: Connect::Only(Vec::new()),
                wake: None,
            };
        };
        let homes: Vec<&Member> = placed.order.iter().map(|&at| &members[at]).collect();
        let bounded = self.bounded;
        let bound = bounded.and_then(|config| Bound::new(config, &homes, placed.ranks.clone()));
        let keyed = Keyed::new(placed, &homes, bound);
        Decision {
            picker: picker(keyed, &homes),
            connect: match bounded {
                Some(_) => Connect::All,
                None => Connect::Only(placed.wanted(members)),
            },
            wake: None,
        }
    }
}

/// A placement, and whom it was made for.
#[derive(Clone, Debug)]
pub(super) struct Placed<P> {
    made_for: Vec<Made>,
    pub(super) placement: Arc<P>,
    ranks: Arc<Ranks>,
    /// Members by place.
    order: Vec<usize>,
    /// Which places some hash comes to.
    reach: Vec<bool>,
    /// The members of the list, in the order of their hash keys, while others have the places.
    heirs: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Made {
    id: EndpointId,
    weight: u32,
    role: Role,
    endpoint: Arc<Endpoint>,
}

/// Whether a member has keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It is in the list.
    Listed,
    /// It has left, and has the keys of the list that it was in until somebody in the new one is ready.
    Bridge,
    /// It has left, and is of no use any more.
    Gone,
}

impl Role {
    fn of(member: &Member) -> Self {
        match (member.place, member.state) {
            (Some(_), _) => Self::Listed,
            (None, Connectivity::Ready) => Self::Bridge,
            (None, _) => Self::Gone,
        }
    }
}

impl Made {
    fn of(member: &Member) -> Self {
        Self {
            id: member.id,
            weight: member.weight,
            role: Role::of(member),
            endpoint: member.endpoint.clone(),
        }
    }

    /// Whether this is what the placement was made from. What a resolver says anew is another `Arc`.
    fn is(&self, member: &Member) -> bool {
        self.id == member.id
            && self.weight == member.weight
            && self.role == Role::of(member)
            && Arc::ptr_eq(&self.endpoint, &member.endpoint)
    }
}

impl<P: Placement> Placed<P> {
    fn new(
        members: &[Member],
        place: impl FnOnce(&[(String, u32)], &Arc<Ranks>) -> Option<P>,
    ) -> Option<Self> {
        let listed = by_hash_key(members, Role::Listed);
        let bridge = by_hash_key(members, Role::Bridge);
        let (places, heirs) = match bridge.is_empty() {
            true => (listed, Vec::new()),
            false => (bridge, listed),
        };
        let order: Vec<usize> = places.iter().map(|&(member, _)| member).collect();
        let input = places.into_iter();
        let input: Vec<(String, u32)> = input
            .map(|(member, key)| (key, members[member].weight))
            .collect();
        let ranks = Arc::new(Ranks::new(&input));
        let placement = place(&input, &ranks)?;
        Some(Self {
            made_for: members.iter().map(Made::of).collect(),
            reach: placement.reach(order.len()),
            placement: Arc::new(placement),
            ranks,
            order,
            heirs: heirs.into_iter().map(|(member, _)| member).collect(),
        })
    }

    fn is_for(&self, members: &[Member]) -> bool {
        let mut pairs = self.made_for.iter().zip(members);
        self.made_for.len() == members.len() && pairs.all(|(made, member)| made.is(member))
    }

    /// Whom to connect without a call. Who is being connected is to be seen through, who has failed is tried again;
    /// and one is begun with where there is nobody to wait for.
    fn wanted(&self, members: &[Member]) -> Vec<EndpointId> {
        let of = |at: &usize| Seat::of(&members[*at]);
        let (seats, reach): (Vec<Seat>, &[bool]) = match self.heirs.is_empty() {
            true => (self.order.iter().map(of).collect(), &self.reach),
            false => (self.heirs.iter().map(of).collect(), &[]),
        };
        let begun = seats.iter().filter(|seat| {
            matches!(
                seat.state,
                Connectivity::Connecting | Connectivity::TransientFailure
            )
        });
        let census = Census::new(&seats, reach);
        let unasked = census.idle.filter(|_| !census.ready && !census.connecting);
        begun.map(|seat| seat.id).chain(unasked).collect()
    }
}

/// The members in this role with their hash keys: by hash key, and where those are the same by what else is lasting.
/// Slots depend on history.
fn by_hash_key(members: &[Member], role: Role) -> Vec<(usize, String)> {
    let members_in = members.iter().enumerate();
    let members_in = members_in.filter(|(_, member)| Role::of(member) == role);
    let keys = members_in.map(|(at, member)| (at, member.endpoint.hash_key().into_owned()));
    let mut keys: Vec<(usize, String)> = keys.collect();
    keys.sort_by(|(a, a_key), (b, b_key)| {
        let (a, b) = (&members[*a].endpoint, &members[*b].endpoint);
        let by_key = a_key.as_bytes().cmp(b_key.as_bytes());
        by_key.then_with(|| (a.addresses(), a.id()).cmp(&(b.addresses(), b.id())))
    });
    keys
}

/// One placement with the states of its endpoints.
#[derive(Debug)]
pub(super) struct Keyed<P> {
    pub(super) placement: Arc<P>,
    /// By place.
    pub(super) seats: Box<[Seat]>,
    pub(super) bound: Option<Bound>,
    /// Whether any that some hash comes to is ready, is connecting, has not failed.
    ready: bool,
    connecting: bool,
    hopeful: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) id: EndpointId,
    pub(super) state: Connectivity,
}

impl Seat {
    fn of(member: &Member) -> Self {
        Self {
            id: member.id,
            state: member.state,
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(
            self.state,
            Connectivity::TransientFailure | Connectivity::Shutdown
        )
    }
}

/// Whether any of some seats is ready, or is connecting, and the first that is idle.
#[derive(Default)]
struct Census {
    ready: bool,
    connecting: bool,
    idle: Option<EndpointId>,
}

impl Census {
    /// Of those that `reach` has; an empty one has all.
    fn new(seats: &[Seat], reach: &[bool]) -> Self {
        let mut census = Self::default();
        for (place, seat) in seats.iter().enumerate() {
            match seat.state {
                _ if reach.get(place) == Some(&false) => {}
                Connectivity::Ready => census.ready = true,
                Connectivity::Connecting => census.connecting = true,
                Connectivity::Idle => census.idle = census.idle.or(Some(seat.id)),
                Connectivity::TransientFailure | Connectivity::Shutdown => {}
            }
        }
        census
    }
}

impl<P: Placement> Picker for Keyed<P> {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let place = self.placement.owner(info.hash.unwrap_or(info.random));
        let owner = &self.seats[place];
        if owner.state == Connectivity::Ready && !info.avoid.contains(&owner.id) {
            match (&self.bound, info.hash) {
                (Some(bound), Some(hash)) if !bound.is_below_floor(place) => {
                    return self.within(bound, place, hash, info.avoid);
                }
                _ => return PickResult::Pick(owner.id),
            }
        }
        self.further(info)
    }
}

impl<P: Placement> Keyed<P> {
    fn new(placed: &Placed<P>, homes: &[&Member], bound: Option<Bound>) -> Self {
        let seats: Box<[Seat]> = homes.iter().map(|member| Seat::of(member)).collect();
        let census = Census::new(&seats, &placed.reach);
        Self {
            placement: placed.placement.clone(),
            seats,
            bound,
            ready: census.ready,
            connecting: census.connecting,
            hopeful: census.ready || census.connecting || census.idle.is_some(),
        }
    }

    /// `place`, who is ready, if there is room under the bound; else who takes its call.
    fn within(&self, bound: &Bound, place: usize, hash: u64, avoid: &[EndpointId]) -> PickResult {
        let avoided = |place: usize| avoid.contains(&self.seats[place].id);
        PickResult::Pick(self.seats[bound.place(place, hash, avoided)].id)
    }

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
        let place = self.first(hash, avoid, |seat| !seat.has_failed())?;
        let Seat { id, state } = self.seats[place];
        Some(match (state, &self.bound) {
            (Connectivity::Ready, Some(bound)) => self.within(bound, place, hash, avoid),
            (Connectivity::Ready, None) => PickResult::Pick(id),
            (Connectivity::Idle, _) => PickResult::Queue { connect: Some(id) },
            _ => PickResult::Queue { connect: None },
        })
    }

    /// The first that is ready, where there is no key to keep; an idle one that comes before it is connected, one
    /// at a time.
    fn by_chance(&self, random: u64, avoid: &[EndpointId]) -> Option<PickResult> {
        let first = |wanted: fn(&Seat) -> bool| self.first(random, avoid, wanted);
        let ready = match self.ready {
            true => first(|seat| seat.state == Connectivity::Ready),
            false => None,
        };
        let sooner = match self.connecting {
            true => None,
            false => self.first_but(random, avoid, ready),
        };
        let connect = sooner.map(|place| self.seats[place].id);
        match (ready.map(|place| self.seats[place].id), connect) {
            (Some(id), None) => Some(PickResult::Pick(id)),
            (Some(id), Some(connect)) => Some(PickResult::PickAndConnect { id, connect }),
            (None, Some(_)) => Some(PickResult::Queue { connect }),
            (None, None) => first(|seat| seat.state == Connectivity::Connecting)
                .map(|_| PickResult::Queue { connect: None }),
        }
    }

    /// The first that is idle, unless `ready` comes before it.
    fn first_but(&self, random: u64, avoid: &[EndpointId], ready: Option<usize>) -> Option<usize> {
        let first = self.placement.first(random, |place| {
            let seat = &self.seats[place];
            let idle = seat.state == Connectivity::Idle && !avoid.contains(&seat.id);
            idle || Some(place) == ready
        });
        first.filter(|place| Some(*place) != ready)
    }

    fn first(
        &self,
        hash: u64,
        avoid: &[EndpointId],
        wanted: impl Fn(&Seat) -> bool,
    ) -> Option<usize> {
        self.placement.first(hash, |place| {
            let seat = &self.seats[place];
            wanted(seat) && !avoid.contains(&seat.id)
        })
    }
}
