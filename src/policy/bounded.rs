//! How much may one endpoint have at a time, whoever's keys are its own?

use std::sync::Arc;

use super::Member;
use super::ranks::Ranks;
use super::roster::{Roster, UNBROKEN};
use crate::endpoint::Connectivity;
use crate::error::Error;

/// A bound on what one endpoint may have at a time, for the policies that place calls by a key: hot keys spill
/// over, and the others stay where they are (consistent hashing with bounded loads, Mirrokni, Thorup and
/// Zadimoghaddam, 2016).
///
/// An endpoint may have `factor` times its share of the calls in flight, the one to be placed included: its share by
/// weight among the endpoints that are ready. That is rounded up, and `floor` calls it may always have. The call
/// that is one too many goes to the first endpoint with room in an order that is the key's own (its rendezvous
/// order), so that what one endpoint has too much of is spread over all the others, and each key spills to the same
/// ones every time. At any time some endpoint has room.
///
/// * In flight are the calls of this channel, by all its policies: what a server has from other clients is
///   not known. Calls that are placed at the same moment do not see one another, so the bound may be passed by as
///   many as there are threads.
/// * Everyone is connected, not only those with keys that are used: what is too much must have somewhere to go.
/// * A key waits for its owner to connect, as without a bound. Calls without a key go to anyone, by chance, and are
///   not held to the bound.
/// * A call to an endpoint that has `floor` in flight or more costs a walk over the counts of all.
///
/// ```
/// use equipoise::policy::{BoundedLoad, RingHash};
///
/// let bound = BoundedLoad::default().with_factor(1.5).with_floor(8);
/// let channel = equipoise::Channel::builder("static:10.0.0.1:50051,10.0.0.2:50051")?
///     .policy(RingHash::on_metadata("x-session-id").with_bounded_load(bound))
///     .build()?;
///
/// let error = equipoise::Channel::builder("static:10.0.0.1:50051")?
///     .policy(RingHash::default().with_bounded_load(BoundedLoad::default().with_factor(0.9)))
///     .build()
///     .unwrap_err();
/// assert_eq!(error.to_string(), "bounded load: factor 0.9 is not in 1.0..=100.0");
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundedLoad {
    factor: f64,
    floor: u32,
}

/// Below, there may be nobody with room. Above, only fleets of more than a hundred are bounded at all.
const FACTORS: std::ops::RangeInclusive<f64> = 1.0..=100.0;

impl Default for BoundedLoad {
    /// Twice the share, and at least 4 calls.
    fn default() -> Self {
        Self {
            factor: 2.0,
            floor: 4,
        }
    }
}

impl BoundedLoad {
    /// How many times its share an endpoint may have. Default 2; 1 to 100, or the channel is not built.
    ///
    /// What is in flight varies more than what is stored. In a simulation with 4 calls per server on average,
    /// without a floor, factor 2 left 90 to 96 % of the calls with the owner of their key, 1.5 left 74 to 81 %, and
    /// 1.25 left 54 to 59 %.
    pub fn with_factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// How many calls an endpoint may always have. Default 4, so that the keys of a service with little to do stay
    /// where they are; 0 holds to the factor alone.
    pub fn with_floor(mut self, floor: u32) -> Self {
        self.floor = floor;
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match FACTORS.contains(&self.factor) {
            true => Ok(()),
            false => Err(Error::config(format!(
                "bounded load: factor {:?} is not in {FACTORS:?}",
                self.factor
            ))),
        }
    }
}

/// The bound, for the endpoints that are ready now.
#[derive(Debug)]
pub(super) struct Bound {
    floor: u32,
    /// All weights of those who are ready.
    weights: f64,
    ready: Roster,
    /// By place; `None` of those who are not ready.
    seats: Box<[Option<Seat>]>,
    /// For whom the owner has no room.
    ranks: Arc<Ranks>,
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    position: u32,
    /// Its weight times the factor.
    share: f64,
}

impl Bound {
    /// `members` by place, as in `ranks`; `None` when nobody is ready.
    pub(super) fn new(config: BoundedLoad, members: &[&Member], ranks: Arc<Ranks>) -> Option<Self> {
        let is_ready = |(_, member): &(usize, &Member)| member.state == Connectivity::Ready;
        let places = members.iter().copied().enumerate().filter(is_ready);
        let mut places: Vec<(usize, &Member)> = places.collect();
        if places.is_empty() {
            return None;
        }
        // The order of the roster's positions.
        places.sort_by_key(|(_, member)| member.id.slot());
        let weight = |member: &Member| f64::from(member.weight);
        let weights: f64 = places.iter().map(|(_, member)| weight(member)).sum();
        let mut seats = vec![None; members.len()];
        for (position, (place, member)) in (0..).zip(&places) {
            let share = config.factor * weight(member);
            seats[*place] = Some(Seat { position, share });
        }
        let mut ready: Vec<&Member> = places.into_iter().map(|(_, member)| member).collect();
        Some(Self {
            floor: config.floor,
            weights,
            ready: Roster::new(&mut ready, UNBROKEN),
            seats: seats.into(),
            ranks,
        })
    }

    /// Whether one who is ready has so few calls that nobody else's matter.
    #[inline]
    pub(super) fn is_below_floor(&self, place: usize) -> bool {
        let in_flight = |seat: Seat| self.ready.in_flight(seat.position as usize);
        self.seats[place].map_or(0, in_flight) < self.floor
    }

    /// `owner`, who is ready, if there is room; else who takes its call.
    #[inline]
    pub(super) fn place(&self, owner: usize, hash: u64, avoid: impl Fn(usize) -> bool) -> usize {
        match self.is_below_floor(owner) {
            true => owner,
            false => self.spill(owner, hash, avoid),
        }
    }

    fn spill(&self, owner: usize, hash: u64, avoid: impl Fn(usize) -> bool) -> usize {
        let calls = (self.ready.total_in_flight() + 1) as f64;
        let has_room = |place: usize| {
            self.seats[place].is_some_and(|seat| {
                let in_flight = self.ready.in_flight(seat.position as usize);
                // A whole number is below a bound where it is below the bound rounded up.
                in_flight < self.floor || f64::from(in_flight) * self.weights < seat.share * calls
            })
        };
        if has_room(owner) {
            return owner;
        }
        // All bounds together are more than what is in flight, so somebody has room, unless that is one to be avoided,
        // or calls have begun meanwhile.
        let other = |place: usize| has_room(place) && !avoid(place);
        self.ranks.first(hash, other).unwrap_or(owner)
    }
}

#[cfg(test)]
mod tests;
