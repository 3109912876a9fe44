//! The leader first: one endpoint gets every call while it is fit, and the others stand in for it.

use std::sync::Arc;
use std::time::Duration;

use equipoise::policy::{
    Connect, Decision, LeastRequest, Member, PickInfo, PickResult, Picker, Policy,
};
use equipoise::rng::Rng;
use equipoise::{Connectivity, EndpointId, Timestamp};

/// For a replicated service whose first endpoint in the list is the one that writes, or has the warm cache.
///
/// * While the leader is ready it gets every call, but for those that should avoid it, and for trial calls alone
///   while it fails call after call.
/// * When it is lost, the followers share its calls, each going to the one with the fewest in flight.
/// * When it is back, it must have been ready for a *hold-down* before it leads again: one that comes and goes does
///   not drag the traffic along. Before its first connection there is nothing to wait for.
/// * When another endpoint becomes the first of the list, that one leads as soon as it is ready.
#[derive(Clone, Debug)]
pub struct LeaderFirst {
    hold_down: Duration,
    leader: Option<(EndpointId, Standing)>,
    /// Counts what is in flight, passes over those to be avoided and sends out the trial calls: policies can be
    /// made of policies.
    sharing: LeastRequest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Has not been ready yet.
    Awaited,
    Leads,
    Lost,
    /// Leads again, if it stays.
    Back {
        from: Timestamp,
    },
}

impl Standing {
    fn after(self, ready: bool, now: Timestamp, hold_down: Duration) -> Self {
        match (self, ready) {
            (Self::Awaited | Self::Leads, true) => Self::Leads,
            (Self::Back { from }, true) if from <= now => Self::Leads,
            (Self::Back { from }, true) => Self::Back { from },
            (Self::Lost, true) if hold_down.is_zero() => Self::Leads,
            (Self::Lost, true) => Self::Back {
                from: now + hold_down,
            },
            (Self::Awaited, false) => Self::Awaited,
            (Self::Leads | Self::Lost | Self::Back { .. }, false) => Self::Lost,
        }
    }
}

impl LeaderFirst {
    /// A leader that has been lost leads again after `hold_down`; with zero at once.
    pub fn with_hold_down(hold_down: Duration) -> Self {
        Self {
            hold_down,
            leader: None,
            sharing: LeastRequest::full_scan(),
        }
    }
}

impl Policy for LeaderFirst {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        let first = members.iter().find(|member| member.place == Some(0));
        self.leader = first.map(|first| {
            let before = self.leader.filter(|(id, _)| *id == first.id);
            let before = before.map_or(Standing::Awaited, |(_, standing)| standing);
            let ready = first.state == Connectivity::Ready;
            (first.id, before.after(ready, now, self.hold_down))
        });
        let leads = |standing| standing == Standing::Leads;
        let leader = first.filter(|_| self.leader.is_some_and(|(_, standing)| leads(standing)));
        let followers: Vec<Member> = members
            .iter()
            .filter(|member| first.is_none_or(|first| member.id != first.id))
            .cloned()
            .collect();
        let ready = followers.iter().filter(|m| m.state == Connectivity::Ready);
        Decision {
            picker: Arc::new(InRank {
                leader: leader.cloned(),
                ready: ready.map(|member| member.id).collect(),
                followers: self.sharing.update(&followers, now, rng).picker,
                all: self.sharing.update(members, now, rng).picker,
            }),
            connect: Connect::All,
            wake: match self.leader {
                Some((_, Standing::Back { from })) => Some(from),
                _ => None,
            },
        }
    }
}

#[derive(Debug)]
struct InRank {
    leader: Option<Member>,
    /// The followers that are.
    ready: Vec<EndpointId>,
    followers: Arc<dyn Picker>,
    all: Arc<dyn Picker>,
}

impl Picker for InRank {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let free = |id: &EndpointId| !info.avoid.contains(id);
        match &self.leader {
            Some(leader) if free(&leader.id) && !leader.load.penalised() => {
                PickResult::Pick(leader.id)
            }
            // Of all, the one that fails is last, and has its trial calls.
            Some(_) => self.all.pick(info),
            None if self.ready.iter().any(free) => self.followers.pick(info),
            // Better one that is held down than nobody.
            None => self.all.pick(info),
        }
    }
}
