//! One look at what is published: an endpoint that takes the call, or what to wait for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tonic::Status;

use crate::balancer::spared;
use crate::endpoint::{Address, Connectivity};
use crate::policy::{PickInfo, PickResult};
use crate::rng;
use crate::transport::{Connection, Failure, Phase};

use super::super::shared::Shared;
use super::super::snapshot::{Admitted, Ground, Room, Seat, Snapshot};
use super::super::waiters::Need;
use super::Call;

/// How many endpoints that turn out to be full or gone are passed over before the call waits for room.
const PICKS: usize = 32;

/// What one look at the snapshot gave.
pub(super) enum Look<N: Connection> {
    Admitted(Admitted<N>),
    Wait(Need),
    Fail(Status),
}

impl Call {
    /// One look at what is published now: pick, and reserve a slot.
    pub(super) fn look<N: Connection>(
        &mut self,
        shared: &Shared<N>,
        head: &http::Request<()>,
    ) -> Look<N> {
        let core = &*shared.core;
        let snapshot = core.snapshot.load();
        if snapshot.state == Connectivity::Shutdown {
            return Look::Fail(unavailable(
                snapshot.why.as_deref(),
                "the channel is closed",
            ));
        }
        if snapshot.state == Connectivity::Idle {
            shared.wake();
            return Look::Wait(Need::State);
        }
        if core
            .breaker
            .as_ref()
            .is_some_and(|breaker| breaker.is_full())
        {
            return Look::Wait(Need::Room);
        }
        // Endpoints named to be avoided, and those found full or gone, are passed over in this look only: the
        // next may see another list.
        let tried = self.avoid.len();
        let named = self.avoid_addresses.iter().flatten();
        let named = named.filter_map(|address| snapshot.seats.at(address));
        self.avoid.extend(named.map(|seat| seat.id));
        let look = match self.look_at_wanted(shared, &snapshot) {
            Some(look) => look,
            None => self.pick(shared, &snapshot, head),
        };
        self.avoid.truncate(tried);
        look
    }

    fn pick<N: Connection>(
        &mut self,
        shared: &Shared<N>,
        snapshot: &Snapshot<N>,
        head: &http::Request<()>,
    ) -> Look<N> {
        let (policy, path) = (self.policy, head.uri().path());
        let (Some(picker), Some(hash_on)) =
            (snapshot.pickers.get(policy), snapshot.hash_on.get(policy))
        else {
            return Look::Wait(Need::State);
        };
        // By what this picker's policy says: it may be another than at the last look.
        let hash = self.key.or_else(|| hash_on.hash(head));
        let mut room = Need::State;
        // Whom to avoid: at first everyone in `avoid`; when nobody else is left, only those tried in this look.
        let (mut from, tried) = (0, self.avoid.len());
        // Whom it passed over to spare them, once: where nobody else is left, one of them has to do.
        let mut spared = Vec::new();
        for _ in 0..PICKS {
            self.random = rng::remix(self.random);
            let info = PickInfo {
                now: self.now,
                random: self.random,
                path,
                hash,
                avoid: &self.avoid[from..],
            };
            // It may be the user's own: where it panics that is one call's end, and not the end of the caller's task.
            let Ok(picked) = catch_unwind(AssertUnwindSafe(|| picker.pick(&info))) else {
                tracing::error!(target: "equipoise", policy, "picker panicked");
                return Look::Fail(Status::internal("the policy's picker panicked"));
            };
            let id = match picked {
                PickResult::Pick(id) => id,
                PickResult::PickAndConnect { id, connect } => {
                    shared.want(connect);
                    id
                }
                PickResult::Queue { connect } => {
                    if let Some(id) = connect {
                        shared.want(id);
                    }
                    // Whoever was found full may be sooner than whoever is not ready yet.
                    return Look::Wait(room);
                }
                PickResult::Fail if self.wait_for_ready => return Look::Wait(room),
                PickResult::Fail => {
                    let why = snapshot.why.as_deref();
                    return Look::Fail(unavailable(why, "no endpoint is ready"));
                }
            };
            let again = self.avoid[tried..].contains(&id);
            let id = match again && !spared.contains(&id) {
                false => id,
                // Nobody is left to try, but for those who were spared.
                true => match spared.last() {
                    Some(&id) => id,
                    None => break,
                },
            };
            if self.avoid[..tried].contains(&id) {
                from = tried;
            }
            let Some(seat) = snapshot.seats.get(id) else {
                // The policy named somebody who is not there: its picker is older than this list.
                return Look::Wait(Need::State);
            };
            // Calls that are placed by a key stay where they are: theirs would move twice.
            if !again && hash.is_none() && self.spares(seat) {
                spared.push(id);
                self.avoid.push(id);
                continue;
            }
            spared.retain(|&other| other != id);
            match seat.take(Ground::Picked, &shared.core, policy, self.now) {
                Room::Taken(admitted) => return Look::Admitted(admitted),
                Room::Full => room = Need::Room,
                Room::Gone => {}
            }
            self.avoid.push(id);
        }
        Look::Wait(room)
    }

    /// Whether an endpoint that has come back, or has just come, is to be spared this call.
    #[inline]
    fn spares<N: Connection>(&self, seat: &Seat<N>) -> bool {
        let Some((elapsed, window)) = seat.loads.spared(self.now) else {
            return false;
        };
        // Turned round: the policy drew from the word as it is.
        spared(elapsed, window, self.random.rotate_left(32))
    }

    /// The endpoint an [`Override`] asks for; `None` when the policy should choose.
    fn look_at_wanted<N: Connection>(
        &self,
        shared: &Shared<N>,
        snapshot: &Snapshot<N>,
    ) -> Option<Look<N>> {
        let wanted = self.wanted.as_ref()?;
        let seat = snapshot.seats.at(&wanted.address);
        // A wish is no reason to go back to where the call was just turned away.
        if !wanted.strict && seat.is_some_and(|seat| self.avoid.contains(&seat.id)) {
            return None;
        }
        let ground = match wanted.strict {
            true => Ground::Named,
            false => Ground::Picked,
        };
        let take = |seat: &Arc<Seat<N>>| seat.take(ground, &shared.core, self.policy, self.now);
        let room = seat.map(|seat| (seat, take(seat)));
        if let Some((_, Room::Taken(admitted))) = room {
            return Some(Look::Admitted(admitted));
        }
        if !wanted.strict {
            return None;
        }
        Some(match room {
            Some((_, Room::Full)) => Look::Wait(Need::Room),
            Some((seat, _)) => self.missing(shared, seat, &wanted.address),
            None if self.wait_for_ready => Look::Wait(Need::State),
            None if snapshot.state == Connectivity::Connecting && snapshot.seats.is_empty() => {
                Look::Wait(Need::State)
            }
            None => Look::Fail(Status::unavailable(format!(
                "the endpoint asked for, {}, is not in the list",
                wanted.address
            ))),
        })
    }

    /// Why a strictly wanted endpoint cannot take the call, or that it soon may.
    fn missing<N: Connection>(
        &self,
        shared: &Shared<N>,
        seat: &Seat<N>,
        address: &Address,
    ) -> Look<N> {
        let notes = seat.notes();
        match notes.state {
            Connectivity::TransientFailure if !self.wait_for_ready => {
                let why = notes.last_error.as_ref().map(ToString::to_string);
                Look::Fail(unavailable(
                    why.as_deref(),
                    &format!("the endpoint asked for, {address}, is not ready"),
                ))
            }
            // One that has failed is dialled again after its backoff, if anybody wishes for it: this call does.
            Connectivity::Idle | Connectivity::TransientFailure => {
                shared.want(seat.id);
                Look::Wait(Need::State)
            }
            _ => Look::Wait(Need::State),
        }
    }
}

fn unavailable(why: Option<&str>, otherwise: &str) -> Status {
    let text = match why {
        Some(why) => format!("{otherwise}: {why}"),
        None => otherwise.to_owned(),
    };
    Failure::NoEndpoint.status(Phase::Queued, text)
}
