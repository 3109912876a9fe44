//! What a policy answered, and whether it may.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use Connectivity::{Connecting, Idle, Ready, TransientFailure};
use equipoise::policy::{Connect, PickInfo, PickResult, Picker};
use equipoise::{Connectivity, EndpointId};

/// What a policy may do with the members that it can use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Manner {
    /// Anyone who is ready will do: a call waits only while nobody is.
    Spreads,
    /// A call with a hash may wait for an idle or connecting member though others are ready, and a call without
    /// one rather than go to one that it should avoid.
    Pins,
    /// All calls go to one, also those that should avoid it, until it is lost.
    Holds,
}

/// What the policy answered, and to what.
#[derive(Debug)]
pub struct View {
    pub picker: Arc<dyn Picker>,
    pub connect: Connect,
    pub states: BTreeMap<EndpointId, Connectivity>,
    pub reached: BTreeSet<EndpointId>,
}

impl View {
    fn is(&self, id: EndpointId, state: Connectivity) -> bool {
        self.states.get(&id) == Some(&state)
    }

    fn wishes(&self, id: EndpointId) -> bool {
        match &self.connect {
            Connect::All => true,
            Connect::Only(ids) | Connect::Exactly(ids) => ids.contains(&id),
        }
    }

    /// Some of those it uses that are in this state.
    fn reached(&self, state: Connectivity) -> impl Iterator<Item = EndpointId> {
        let reached = self.reached.iter().copied();
        reached.filter(move |id| self.is(*id, state))
    }

    /// # Errors
    ///
    /// The promise that its wishes for connections break.
    pub fn check_wishes(&self) -> Result<(), String> {
        if let Connect::Only(ids) | Connect::Exactly(ids) = &self.connect
            && let Some(id) = ids.iter().find(|id| !self.states.contains_key(id))
        {
            return Err(format!("wants {id:?} connected, who is no member"));
        }
        // Nobody is ready, nor about to be: somebody must be dialled, or the channel is stuck.
        let mut under_way = self.reached(Ready).chain(self.reached(Connecting));
        let mut others = self.reached(Idle).chain(self.reached(TransientFailure));
        match under_way.next().is_none() && !self.reached.is_empty() {
            true if !others.any(|id| self.wishes(id)) => Err(format!("dials nobody: {self:?}")),
            _ => Ok(()),
        }
    }

    /// Who was picked.
    ///
    /// # Errors
    ///
    /// The promise that this answer to a call breaks.
    pub fn check(
        &self,
        manner: Manner,
        info: &PickInfo<'_>,
        result: &PickResult,
    ) -> Result<Option<EndpointId>, &'static str> {
        let others = self.reached(Ready).any(|id| !info.avoid.contains(&id));
        let hopeful = self
            .reached(Idle)
            .chain(self.reached(Connecting))
            .next()
            .is_some();
        match *result {
            PickResult::Pick(id) | PickResult::PickAndConnect { id, .. } if !self.is(id, Ready) => {
                Err("picks one who is not ready")
            }
            PickResult::Pick(id) | PickResult::PickAndConnect { id, .. }
                if manner != Manner::Holds && others && info.avoid.contains(&id) =>
            {
                Err("picks one to be avoided, though another is ready")
            }
            PickResult::PickAndConnect { connect, .. } if !self.is(connect, Idle) => {
                Err("dials one who is not idle")
            }
            PickResult::Pick(id) | PickResult::PickAndConnect { id, .. } => Ok(Some(id)),
            PickResult::Queue { connect: Some(id) } if !self.is(id, Idle) => {
                Err("dials one who is not idle")
            }
            PickResult::Queue { connect } => {
                let dialled = self.reached(Idle).any(|id| self.wishes(id)) || connect.is_some();
                let mut connecting = self.reached(Connecting);
                match manner {
                    _ if !dialled && connecting.next().is_none() => Err("waits for nobody"),
                    Manner::Spreads | Manner::Holds if self.reached(Ready).next().is_some() => {
                        Err("waits though somebody is ready")
                    }
                    Manner::Pins if info.hash.is_none() && others => {
                        Err("waits without a hash though somebody is ready")
                    }
                    _ => Ok(None),
                }
            }
            PickResult::Fail if self.reached(Ready).next().is_some() => {
                Err("fails though somebody is ready")
            }
            PickResult::Fail if hopeful => Err("fails though somebody may become ready"),
            PickResult::Fail => Ok(None),
        }
    }
}
