//! Who comes first for this key?

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::bounded::BoundedLoad;
use super::keyed::{Homes, Keyed, Placement};
use super::ranks::{MOST, Ranks};
use super::{Decision, HashOn, Member, PickInfo, PickResult, Picker, Policy};
use crate::endpoint::Connectivity;
use crate::error::Error;
use crate::load::Load;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Gives calls with the same key to the same endpoint, on every client alike, by ranking the endpoints anew for each
/// key (rendezvous hashing, or highest random weight: Thaler and Ravishankar, 1998).
///
/// The keys are shared as evenly as chance has it, in proportion to the weights, and a key moves only if it must:
/// when an endpoint leaves, its keys alone move, spread over all the others; when one comes, or its weight is raised,
/// keys move to it alone. A [ring](super::RingHash) is less even, and a [`Maglev`](super::Maglev) table moves some
/// other keys too. For that, a pick looks at every endpoint: for 1 to 3 ns each, so up to some 200 endpoints it is the
/// best of the three.
///
/// What the key is, and what happens while its owner is not connected yet, is as with the ring. When the owner is
/// down, is full or has turned the call away, the next in the key's ranking stands in.
///
/// With [`with_top`](Self::with_top) a key has several homes, and the least busy of them gets the call.
///
/// Weights count as configured. An endpoint's ranks follow from [its hash key](crate::Endpoint::with_hash_key), by
/// default its first address; where several have the same one and the same weight, the lower address owns what is
/// theirs.
///
/// ```
/// use equipoise::policy::Rendezvous;
///
/// let channel = equipoise::Channel::builder("static:10.0.0.1:50051,10.0.0.2:50051")?
///     .policy(Rendezvous::on_metadata("x-session-id"))
///     // Where the caches of two servers may well hold the same.
///     .service_policy("shop.Catalog", Rendezvous::on_metadata("x-product").with_top(2))
///     .build()?;
///
/// let error = equipoise::Channel::builder("static:10.0.0.1:50051")?
///     .policy(Rendezvous::default().with_top(17))
///     .build()
///     .unwrap_err();
/// assert_eq!(error.to_string(), "rendezvous: top 17 is not in 1..=16");
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rendezvous {
    top: usize,
    homes: Homes<Ranking>,
}

/// How many homes a key may have: as many as are kept in order without an allocation.
const TOPS: RangeInclusive<usize> = 1..=MOST;

impl Default for Rendezvous {
    /// Places calls by their [`HashKey`](crate::HashKey) alone.
    fn default() -> Self {
        Self::on(HashOn::default())
    }
}

impl Rendezvous {
    /// Places calls by a metadata entry: [`HashOn::metadata`].
    pub fn on_metadata(name: impl Into<String>) -> Self {
        Self::on(HashOn::metadata(name))
    }

    /// Places calls by what `hash_on` says of them.
    pub fn on(hash_on: HashOn) -> Self {
        Self {
            top: 1,
            homes: Homes::on(hash_on),
        }
    }

    /// How many homes a key has: the first `count` in its ranking that are not down. The call goes to the one that
    /// has fewest calls in flight of those that are ready, the first in the ranking where several have. Default 1;
    /// 1 to 16, or the channel is not built.
    ///
    /// It waits only when none of them is ready; the first that is idle is connected meanwhile. A home that fails call
    /// after call comes after the others, but for a trial call every 5 s, until one succeeds.
    pub fn with_top(mut self, count: usize) -> Self {
        self.top = count;
        self
    }

    /// Bounds what one endpoint may have in flight. Default: no bound.
    pub fn with_bounded_load(mut self, bound: BoundedLoad) -> Self {
        self.homes.bounded = Some(bound);
        self
    }
}

impl Policy for Rendezvous {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        let ranking = |endpoints: &[(String, u32)], ranks: &Arc<Ranks>| {
            (!endpoints.is_empty()).then(|| Ranking(ranks.clone()))
        };
        let top = self.top;
        self.homes
            .update(members, ranking, |keyed, homes| match top {
                ..=1 => Arc::new(keyed),
                _ => Arc::new(LeastOfTop {
                    top,
                    loads: homes.iter().map(|home| home.load.clone()).collect(),
                    keyed,
                }),
            })
    }

    fn hash_on(&self) -> HashOn {
        self.homes.hash_on.clone()
    }

    fn check(&self) -> Result<(), Error> {
        self.homes.check()?;
        match TOPS.contains(&self.top) {
            true => Ok(()),
            false => Err(Error::config(format!(
                "rendezvous: top {} is not in {TOPS:?}",
                self.top
            ))),
        }
    }
}

#[derive(Clone, Debug)]
struct Ranking(Arc<Ranks>);

impl Placement for Ranking {
    #[inline]
    fn owner(&self, hash: u64) -> usize {
        self.0.first(hash, |_| true).unwrap_or(0)
    }

    fn first(&self, hash: u64, accept: impl Fn(usize) -> bool) -> Option<usize> {
        self.0.first(hash, accept)
    }
}

/// The same with several homes for a key.
#[derive(Debug)]
struct LeastOfTop {
    top: usize,
    keyed: Keyed<Ranking>,
    /// By place.
    loads: Box<[Arc<Load>]>,
}

impl Picker for LeastOfTop {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let chosen = info.hash.and_then(|hash| self.least(hash, info));
        chosen.unwrap_or_else(|| self.keyed.pick(info))
    }
}

impl LeastOfTop {
    /// Whether this call is the trial that a penalised home is due.
    fn claims_trial(&self, place: usize, info: &PickInfo<'_>) -> bool {
        let load = &self.loads[place];
        let due = load.trial_due().filter(|&due| due <= info.now);
        due.is_some_and(|due| load.claim_trial(due, info.now).is_some())
    }

    /// `None` when every home of the key is down or has turned the call away.
    fn least(&self, hash: u64, info: &PickInfo<'_>) -> Option<PickResult> {
        let seats = &self.keyed.seats;
        let avoided = |place: usize| info.avoid.contains(&seats[place].id);
        let mut homes = [0; MOST];
        let room = &mut homes[..self.top.min(MOST)];
        let usable = |place: usize| !seats[place].has_failed() && !avoided(place);
        let homes = self
            .keyed
            .placement
            .0
            .top(hash, usable, room)
            .iter()
            .copied();
        let ready = |place: &usize| seats[*place].state == Connectivity::Ready;
        let ready = homes.clone().filter(ready);
        let trial = ready.clone().find(|&place| self.claims_trial(place, info));
        // The first of those that have fewest; a penalty counts as more than anybody has.
        let least = trial.or(ready.min_by_key(|&place| self.loads[place].score()));
        let mut idle = homes
            .clone()
            .filter(|&place| seats[place].state == Connectivity::Idle);
        let connect = idle.next().map(|place| seats[place].id);
        let Some(least) = least else {
            return (homes.len() > 0).then_some(PickResult::Queue { connect });
        };
        let place = match (&self.keyed.bound, trial) {
            (Some(bound), None) => bound.place(least, hash, avoided),
            _ => least,
        };
        let id = seats[place].id;
        Some(match connect {
            Some(connect) => PickResult::PickAndConnect { id, connect },
            None => PickResult::Pick(id),
        })
    }
}

#[cfg(test)]
mod tests;
