//! Which of these gets the call?
//!
//! A [`Policy`] looks at the members of a channel whenever one of them changes, and leaves behind an
//! immutable [`Picker`]. Picking takes no lock, allocates nothing, and follows from its arguments and
//! the live loads alone, so a pick can be replayed. A pick is an id: whether that endpoint can still
//! take the call is for the channel to find out, and losing that race is a pick again with the loser
//! in [`PickInfo::avoid`].
//!
//! | policy | gives a call to | weights |
//! |---|---|---|
//! | [`Adaptive`] (default) | the least decayed-peak latency × (calls in flight + 1) of all | capacity |
//! | [`PeakEwma`] | the same, of two drawn at random | chance of being drawn, and capacity |
//! | [`LeastRequest`] | the fewest calls in flight of two to ten, or of all | chance of being drawn, and capacity |
//! | [`LeastBandwidth`] | the fewest bytes per second of two to ten | capacity |
//! | [`LeastUtilization`] | the least utilization that servers report, of two to ten | capacity, between reports |
//! | [`LeastLoad`] | the least of a load function of your own, of two to ten | capacity |
//! | [`RoundRobin`] | everyone in turn | not heeded |
//! | [`WeightedRoundRobin`] | everyone in turn, by configured or reported weight | turns |
//! | [`Random`] | anyone | not heeded |
//! | [`WeightedRandom`] | anyone | chance |
//! | [`PickFirst`] | the first that can be reached, until it is lost | chance to be first, where shuffled |
//! | [`RingHash`] | whoever has the call's key, on gRPC's hash ring | share of the keys |
//! | [`Maglev`] | the same, by a table: more even, and the quickest | share of the keys |
//! | [`Rendezvous`] | the same, by rank: fewest keys move; or the least busy of a key's first few | share of the keys |
//!
//! [`BoundedLoad`] on the last three lets hot keys spill over. Errors never look like speed: an endpoint that fails
//! call after call comes last for every policy that heeds load, but for a trial call every 5 s (see
//! [`load`](crate::load)). The others know of connections alone.

mod adaptive;
mod bounded;
mod chances;
mod choices;
mod hash_on;
mod keyed;
mod lagging;
mod least_bandwidth;
mod least_load;
mod least_request;
mod least_utilization;
mod maglev;
mod peak_ewma;
mod pick_first;
mod random;
mod ranks;
mod rendezvous;
pub mod ring_hash;
mod roster;
mod round_robin;
mod stride;
mod weighted_random;
mod weighted_round_robin;
#[cfg(test)]
mod world;

use std::fmt::Debug;
use std::sync::Arc;

pub use adaptive::Adaptive;
pub use bounded::BoundedLoad;
pub use hash_on::{ClientIp, HashKey, HashOn};
pub use least_bandwidth::LeastBandwidth;
pub use least_load::LeastLoad;
pub use least_request::LeastRequest;
pub use least_utilization::LeastUtilization;
pub use maglev::Maglev;
pub use peak_ewma::PeakEwma;
pub use pick_first::PickFirst;
pub use random::Random;
pub use rendezvous::Rendezvous;
#[doc(inline)]
pub use ring_hash::RingHash;
pub use round_robin::RoundRobin;
pub use weighted_random::WeightedRandom;
pub use weighted_round_robin::WeightedRoundRobin;

use crate::endpoint::{Connectivity, Endpoint, EndpointId};
use crate::error::Error;
use crate::load::{Load, Scoring};
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Turns members into a picker, over and over.
///
/// Called from one task, never at the same time as itself. It may keep state between updates.
///
/// A policy of one's own, for a replicated store: the first endpoint of the list leads, the others stand in.
///
/// ```
/// use std::sync::Arc;
///
/// use equipoise::policy::{Connect, Decision, Member, PickInfo, PickResult, Picker, Policy};
/// use equipoise::rng::Rng;
/// use equipoise::{Connectivity, EndpointId, Timestamp};
///
/// #[derive(Clone, Debug)]
/// struct LeaderFirst;
///
/// impl Policy for LeaderFirst {
///     fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
///         let mut ready: Vec<_> = members.iter().filter(|m| m.state == Connectivity::Ready).collect();
///         // The order of the list; those that have left it and serve on come last.
///         ready.sort_by_key(|m| m.place.unwrap_or(usize::MAX));
///         let hopeful = members.iter().any(|m| m.state != Connectivity::TransientFailure);
///         Decision {
///             picker: Arc::new(InOrder(ready.iter().map(|m| m.id).collect(), hopeful)),
///             connect: Connect::All,
///             wake: None,
///         }
///     }
/// }
///
/// #[derive(Debug)]
/// struct InOrder(Vec<EndpointId>, bool);
///
/// impl Picker for InOrder {
///     fn pick(&self, info: &PickInfo<'_>) -> PickResult {
///         let free = self.0.iter().find(|id| !info.avoid.contains(id));
///         match free.or(self.0.first()) {
///             Some(id) => PickResult::Pick(*id),
///             None if self.1 => PickResult::Queue { connect: None },
///             None => PickResult::Fail,
///         }
///     }
/// }
///
/// let channel = equipoise::Channel::builder("static:10.0.0.1:50051,10.0.0.2:50051")?
///     .policy(LeaderFirst)
///     .build()?;
/// #
/// # use equipoise::{Endpoint, load::{Cells, Load, Scoring}};
/// # let mut cells = Cells::new(Scoring::InFlight);
/// # let mut member = |slot: u32, place| Member {
/// #     id: EndpointId::new(slot, 1),
/// #     state: Connectivity::Ready,
/// #     weight: 1,
/// #     place,
/// #     endpoint: Arc::new(Endpoint::from(std::net::SocketAddr::from(([10, 0, 0, 1], 80)))),
/// #     load: Arc::new(Load::new(cells.cell(slot as usize))),
/// # };
/// # let members = [member(0, None), member(1, Some(1)), member(2, Some(0))];
/// # let decision = LeaderFirst.update(&members, Timestamp::ZERO, &mut Rng::new(1));
/// # let (now, first) = (Timestamp::ZERO, [members[2].id]);
/// # let mut info = PickInfo { now, random: 0, path: "/", hash: None, avoid: &[] };
/// # assert_eq!(decision.picker.pick(&info), PickResult::Pick(members[2].id));
/// # info.avoid = &first;
/// # assert_eq!(decision.picker.pick(&info), PickResult::Pick(members[1].id));
/// # Ok::<(), equipoise::Error>(())
/// ```
pub trait Policy: Send + Debug {
    /// Called with *all* members, whenever their set, their state, their weight, their hash key or their place in
    /// the list has changed, at the time of [`Decision::wake`], and once at the beginning with whatever there is.
    ///
    /// They come in the order of their slots, which a new list does not change; [`Member::place`] is the order of
    /// the list.
    ///
    /// One that panics is asked again with the next change, after a second at the latest; what it decided last holds
    /// until then. One that was to take another's place does not.
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision;

    /// What the endpoints' score cells should hold for this policy; asked when it is given to a
    /// channel, and possibly again.
    fn scoring(&self) -> Scoring {
        Scoring::InFlight
    }

    /// What of a request [`PickInfo::hash`] is made from; asked when it is given to a channel, and possibly again.
    /// Default: nothing, so that only a call with a [`HashKey`] of its own has a hash.
    fn hash_on(&self) -> HashOn {
        HashOn::default()
    }

    /// Whether the policy can work as it was made; asked when a channel is built with it or is given it. Default:
    /// yes.
    ///
    /// # Errors
    ///
    /// What is wrong with it, naming value and rule.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// A policy that is chosen while the program runs, by a name in a file, say.
///
/// It can be given to [`Channel::set_policy`](crate::Channel::set_policy) and its like. A
/// [`Builder`](crate::Builder) wants a policy that can be cloned: build the channel with any, and set the boxed one
/// after that. The same goes for a service or a method, which needs one of its own from the builder.
///
/// ```
/// use equipoise::policy::{Adaptive, LeastRequest, Policy, RoundRobin};
/// use equipoise::{Channel, Error};
///
/// fn named(name: &str) -> Result<Box<dyn Policy>, Error> {
///     Ok(match name {
///         "round_robin" => Box::new(RoundRobin::default()),
///         "least_of_five" => Box::new(LeastRequest::choices(5)?),
///         _ => Box::new(Adaptive::default()),
///     })
/// }
///
/// let channel = Channel::builder("static:10.0.0.1:50051,10.0.0.2:50051")?
///     .service_policy("shop.Cart", Adaptive::default())
///     .build()?;
/// channel.set_policy(named("least_of_five")?)?;
/// channel.set_service_policy("shop.Cart", named("round_robin")?)?;
/// # Ok::<(), Error>(())
/// ```
impl<P: Policy + ?Sized> Policy for Box<P> {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        (**self).update(members, now, rng)
    }

    fn scoring(&self) -> Scoring {
        (**self).scoring()
    }

    fn hash_on(&self) -> HashOn {
        (**self).hash_on()
    }

    fn check(&self) -> Result<(), Error> {
        (**self).check()
    }
}

/// What a policy decided.
#[derive(Debug)]
pub struct Decision {
    /// Who answers the calls from now on.
    pub picker: Arc<dyn Picker>,
    /// Which members should be connected.
    pub connect: Connect,
    /// When to ask again although nothing has changed; `None` waits for a change. A time that has passed means
    /// with the next publication, 5 ms after the last at the soonest.
    pub wake: Option<Timestamp>,
}

/// Which members a policy wants connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Every member, at once and again whenever a connection is lost.
    All,
    /// Only these; the others keep what they have, and are dialled when a pick asks for it, and before a
    /// connection of theirs wears out. One that has failed is tried again only if it is named.
    Only(Vec<EndpointId>),
    /// Only these; the others let go of what they have, once their calls are over, and call off their dials. Where
    /// the channel has other policies, only what none of them uses or wants is let go. One that a call asked for
    /// (a strict [`Override`](crate::Override)) stays connected until the wish for it changes.
    Exactly(Vec<EndpointId>),
}

/// One endpoint as a policy sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// What to answer when it is picked.
    pub id: EndpointId,
    /// Its effective state: only a ready member can take a call.
    pub state: Connectivity,
    /// The weight its operator gave it, at least 1.
    pub weight: u32,
    /// Where in the list it stands. `None`: it has left the list, and is ready, and stays until one that is in it
    /// is ready too.
    pub place: Option<usize>,
    /// What the resolver said of it.
    pub endpoint: Arc<Endpoint>,
    /// Its live facts as this policy sees them, shared with the calls that change them.
    pub load: Arc<Load>,
}

/// Chooses an endpoint for one call.
///
/// While a channel changes from one policy to another, their pickers are also asked about a call that there is not,
/// without a key and at [`Timestamp::ZERO`]: the new policy takes over when it would give that call to somebody. One
/// whose picker never does comes into force only when the policy before it has nobody either.
pub trait Picker: Send + Sync + Debug {
    /// Chooses among the members this picker was built from.
    ///
    /// A picker prefers members outside `info.avoid`, and falls back on one inside rather than fail.
    /// Whoever it picks was ready when it was built. Where it panics the call ends INTERNAL; a call for which it names
    /// nobody's id waits for the next picker.
    fn pick(&self, info: &PickInfo<'_>) -> PickResult;
}

/// The pickers of a channel's policies, by the number of the policy.
pub type Pickers = Arc<[Arc<dyn Picker>]>;

/// The facts of one call that a pick may rest on.
#[derive(Clone, Copy, Debug)]
pub struct PickInfo<'a> {
    /// The time of the pick.
    pub now: Timestamp,
    /// 64 uniform bits, the pick's only source of chance. Use [`remix`](crate::rng::remix) for a second draw.
    pub random: u64,
    /// The request's path: `/package.Service/Method`.
    pub path: &'a str,
    /// What the call is to be placed by: its own [`HashKey`], else what [`Policy::hash_on`] names. `None` where
    /// it has neither.
    pub hash: Option<u64>,
    /// Endpoints this call has tried or found full.
    pub avoid: &'a [EndpointId],
}

/// What a picker says of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PickResult {
    /// This endpoint.
    Pick(EndpointId),
    /// This endpoint; and an idle member should be dialled meanwhile, for the calls to come.
    PickAndConnect {
        /// Who gets the call.
        id: EndpointId,
        /// The member to dial.
        connect: EndpointId,
    },
    /// Nobody is ready, somebody may be soon: wait for the next picker. `connect` names an idle
    /// member that should be dialled for this call's sake.
    Queue {
        /// The member to dial, if the policy does not connect to all of them anyway.
        connect: Option<EndpointId>,
    },
    /// Nobody can take it. A call that waits for readiness waits on; others end UNAVAILABLE.
    Fail,
}

/// What every policy here decides: `picker` of the ready members, or of what to answer while there is
/// none; and connections to all.
fn among_ready<P: Picker + 'static>(
    members: &[Member],
    picker: impl FnOnce(Vec<&Member>) -> P,
) -> Decision {
    let ready: Vec<&Member> = members
        .iter()
        .filter(|member| member.state == Connectivity::Ready)
        .collect();
    Decision {
        picker: match ready.is_empty() {
            true => Arc::new(Unready(unready(members))),
            false => Arc::new(picker(ready)),
        },
        connect: Connect::All,
        wake: None,
    }
}

/// What to answer when no member is ready.
///
/// Channel state by gRPC's rule for policies over many endpoints: some ready one makes READY; else one
/// that is connecting or idle makes CONNECTING, which queues; else calls fail.
pub(crate) fn unready(members: &[Member]) -> PickResult {
    let may_become_ready = members
        .iter()
        .any(|m| matches!(m.state, Connectivity::Connecting | Connectivity::Idle));
    match may_become_ready {
        true => PickResult::Queue { connect: None },
        false => PickResult::Fail,
    }
}

/// The picker of nobody.
#[derive(Debug)]
struct Unready(PickResult);

impl Picker for Unready {
    fn pick(&self, _: &PickInfo<'_>) -> PickResult {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Cells;
    use crate::rng::Rng;

    fn policies() -> Vec<Box<dyn Policy>> {
        vec![
            Box::new(Adaptive::default()),
            Box::new(LeastBandwidth::default()),
            Box::new(LeastLoad::by(|load, _| load.in_flight().into())),
            Box::new(LeastRequest::default()),
            Box::new(LeastRequest::full_scan()),
            Box::new(LeastUtilization::default()),
            Box::new(PeakEwma::default()),
            Box::new(Random),
            Box::new(RoundRobin::default()),
            Box::new(WeightedRandom),
            Box::new(WeightedRoundRobin::default()),
            Box::new(WeightedRoundRobin::reported()),
        ]
    }

    /// Those that pick somebody while anybody is ready, and whether each is picked in a short time.
    fn all_policies() -> Vec<(Box<dyn Policy>, bool)> {
        let even = policies().into_iter().map(|policy| (policy, true));
        // Without a key. Shares are so uneven that some may not be picked for long.
        let bound = BoundedLoad::default();
        let uneven: Vec<Box<dyn Policy>> = vec![
            Box::new(RingHash::default()),
            Box::new(RingHash::default().with_bounded_load(bound)),
            Box::new(Maglev::default().with_table_size(1_009)),
            Box::new(Rendezvous::default()),
            Box::new(Rendezvous::default().with_top(3).with_bounded_load(bound)),
        ];
        let uneven = uneven.into_iter().map(|policy| (policy, false));
        even.chain(uneven).collect()
    }

    fn members(states: &[Connectivity], scoring: Scoring) -> Vec<Member> {
        let mut cells = Cells::new(scoring);
        let member = |(slot, &state): (usize, &Connectivity)| Member {
            id: EndpointId::new(slot as u32, 1),
            state,
            weight: 1 + slot as u32 % 3,
            place: Some(slot),
            endpoint: Arc::new(world::endpoint(slot)),
            load: Arc::new(Load::new(cells.cell(slot))),
        };
        states.iter().enumerate().map(member).collect()
    }

    fn pick(picker: &dyn Picker, random: u64, avoid: &[EndpointId]) -> PickResult {
        picker.pick(&PickInfo {
            now: Timestamp::from_secs(1),
            random,
            path: "/a.B/C",
            hash: None,
            avoid,
        })
    }

    #[test]
    fn with_nobody_ready_calls_wait_or_fail() {
        use Connectivity::{Connecting, Idle, TransientFailure};
        let queue = PickResult::Queue { connect: None };
        for (states, expected) in [
            (&[][..], &PickResult::Fail),
            (&[TransientFailure], &PickResult::Fail),
            (&[TransientFailure, Idle], &queue),
            (&[Connecting, TransientFailure], &queue),
        ] {
            for mut policy in policies() {
                let members = members(states, policy.scoring());
                let decision = policy.update(&members, Timestamp::ZERO, &mut Rng::new(1));
                assert_eq!(
                    &pick(&*decision.picker, 1, &[]),
                    expected,
                    "{policy:?} {states:?}"
                );
                assert_eq!(decision.connect, Connect::All);
            }
        }
    }

    /// Random states, sizes and lists to avoid: whoever is picked is ready, is not to be avoided where
    /// that is possible, and everyone eligible is picked in the end.
    #[test]
    fn only_the_ready_are_picked_and_the_avoided_last() {
        use Connectivity::{Connecting, Idle, Ready, TransientFailure};
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let n = [1, 2, 3, 10, 70, 200, 700][rng.below(7)];
            let share = [0.1, 0.5, 1.0][rng.below(3)];
            let states: Vec<_> = (0..n)
                .map(|_| match rng.unit() < share {
                    true => Ready,
                    false => [Idle, Connecting, TransientFailure][rng.below(3)],
                })
                .collect();
            let avoid: Vec<_> = (0..rng.below(4))
                .map(|_| EndpointId::new(rng.below(n) as u32, 1))
                .collect();
            for (mut policy, evenly) in all_policies() {
                let members = members(&states, policy.scoring());
                let picker = policy.update(&members, Timestamp::ZERO, &mut rng).picker;
                let ready = |id: &EndpointId| states[id.slot()] == Ready;
                let all: Vec<_> = members.iter().map(|m| m.id).filter(ready).collect();
                if all.is_empty() {
                    continue;
                }
                let mut eligible = all.clone();
                eligible.retain(|id| !avoid.contains(id));
                let avoided = eligible.is_empty();
                if avoided {
                    eligible = all;
                }
                let mut picked: Vec<EndpointId> = Vec::new();
                for _ in 0..40 * n {
                    let id = match pick(&*picker, rng.word(), &avoid) {
                        PickResult::Pick(id) | PickResult::PickAndConnect { id, .. } => id,
                        other => {
                            // It would rather wait for one that is idle than take one to be avoided.
                            assert!(!evenly && avoided, "seed {seed}: {policy:?}: {other:?}");
                            continue;
                        }
                    };
                    assert!(
                        eligible.contains(&id),
                        "seed {seed}: {policy:?} picked {id:?}"
                    );
                    // Never ended: so that the load-aware ones move on.
                    members[id.slot()].load.begin();
                    picked.push(id);
                }
                picked.sort_unstable();
                picked.dedup();
                let every = evenly || (n <= 10 && !avoided);
                assert!(!every || picked == eligible, "seed {seed}: {policy:?}");
            }
        }
    }
}
