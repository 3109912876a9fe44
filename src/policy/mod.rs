//! Which of these gets the call?
//!
//! A [`Policy`] looks at the members of a channel whenever one of them changes, and leaves behind an
//! immutable [`Picker`]. Picking takes no lock, allocates nothing, and follows from its arguments and
//! the live loads alone, so a pick can be replayed. A pick is an id: whether that endpoint can still
//! take the call is for the channel to find out, and losing that race is a pick again with the loser
//! in [`PickInfo::avoid`].

mod adaptive;
mod least_request;
mod random;
mod round_robin;

use std::fmt::Debug;
use std::sync::Arc;

pub use adaptive::Adaptive;
pub use least_request::LeastRequest;
pub use random::Random;
pub use round_robin::RoundRobin;

use crate::endpoint::{Connectivity, EndpointId};
use crate::load::{Load, Scoring};
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Turns members into a picker, over and over.
///
/// Called from one task, never at the same time as itself. It may keep state between updates.
pub trait Policy: Send + Debug {
    /// Called with *all* members, in a stable order, whenever their set, their state or their weight
    /// has changed, and once at the beginning with whatever there is.
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision;

    /// What the endpoints' score cells should hold for this policy; asked once, at the beginning.
    fn scoring(&self) -> Scoring {
        Scoring::InFlight
    }
}

/// What a policy decided.
#[derive(Debug)]
pub struct Decision {
    /// Who answers the calls from now on.
    pub picker: Arc<dyn Picker>,
    /// Which members should be connected.
    pub connect: Connect,
}

/// Which members a policy wants connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Every member, at once and again whenever a connection is lost.
    All,
    /// Only these; the others keep what they have and are not dialled again.
    Only(Vec<EndpointId>),
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
    /// Its live facts, shared with the calls that change them.
    pub load: Arc<Load>,
}

/// Chooses an endpoint for one call.
pub trait Picker: Send + Sync + Debug {
    /// Chooses among the members this picker was built from.
    ///
    /// A picker prefers members outside `info.avoid`, and falls back on one inside rather than fail.
    fn pick(&self, info: &PickInfo<'_>) -> PickResult;
}

/// The facts of one call that a pick may rest on.
#[derive(Clone, Copy, Debug)]
pub struct PickInfo<'a> {
    /// The time of the pick.
    pub now: Timestamp,
    /// 64 uniform bits, the pick's only source of chance. Use [`remix`](crate::rng::remix) for a second draw.
    pub random: u64,
    /// The request's path: `/package.Service/Method`.
    pub path: &'a str,
    /// Endpoints this call has tried or found full.
    pub avoid: &'a [EndpointId],
}

/// What a picker says of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PickResult {
    /// This endpoint.
    Pick(EndpointId),
    /// Nobody is ready, somebody may be soon: wait for the next picker. `connect` names an idle
    /// member that should be dialled for this call's sake.
    Queue {
        /// The member to dial, if the policy does not connect to all of them anyway.
        connect: Option<EndpointId>,
    },
    /// Nobody can take it. A call that waits for readiness waits on; others end UNAVAILABLE.
    Fail,
}

/// The ready members, and what to answer when there is none: what every picker here begins with.
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
