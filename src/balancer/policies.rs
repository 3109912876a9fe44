//! The policies of one channel, each with the score cells that it compares.

use std::collections::BTreeSet;

use crate::endpoint::EndpointId;
use crate::load::{Cells, Load, Loads, median};
use crate::policy::{Connect, Member, Pickers, Policy};
use crate::rng::Rng;
use crate::timestamp::Timestamp;

use super::table::Row;

/// At least one policy, by number.
#[derive(Debug)]
pub(super) struct Policies {
    first: Scored,
    more: Vec<Scored>,
}

#[derive(Debug)]
struct Scored {
    policy: Box<dyn Policy>,
    cells: Cells,
}

impl Scored {
    fn new(policy: Box<dyn Policy>) -> Self {
        Self {
            cells: Cells::new(policy.scoring()),
            policy,
        }
    }

    fn load(&mut self, slot: usize) -> Load {
        Load::new(self.cells.cell(slot))
    }
}

/// What the policies want together.
#[derive(Debug)]
pub(super) struct Decisions {
    /// By the number of the policy.
    pub(super) pickers: Pickers,
    /// Who should be connected, as far as any of them says; everyone, when `None`.
    pub(super) connect: Option<BTreeSet<EndpointId>>,
}

impl Policies {
    pub(super) fn new(first: Box<dyn Policy>, more: Vec<Box<dyn Policy>>) -> Self {
        Self {
            first: Scored::new(first),
            more: more.into_iter().map(Scored::new).collect(),
        }
    }

    /// Fresh loads for the new tenant of `slot`; see [`Cells::cell`].
    pub(super) fn loads(&mut self, slot: usize) -> Loads {
        let more = self.more.iter_mut().map(|scored| scored.load(slot));
        Loads::new(self.first.load(slot), more)
    }

    /// What a newcomer among `others` should begin with, for each policy.
    pub(super) fn medians(&self, others: &[&Loads]) -> Vec<Option<crate::load::Estimate>> {
        (0..=self.more.len())
            .map(|policy| median(others.iter().map(|loads| &**loads.of(policy))))
            .collect()
    }

    /// Asks them all.
    pub(super) fn decide<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a Row> + Clone,
        now: Timestamp,
        rng: &mut Rng,
    ) -> Decisions {
        let mut pickers = Vec::with_capacity(1 + self.more.len());
        let mut connect = Some(BTreeSet::new());
        let all = std::iter::once(&mut self.first).chain(&mut self.more);
        for (number, scored) in all.enumerate() {
            let members: Vec<Member> = rows
                .clone()
                .map(|row| Member {
                    id: row.id,
                    state: row.state,
                    weight: row.endpoint.weight(),
                    endpoint: row.endpoint.clone(),
                    load: row.loads.of(number).clone(),
                })
                .collect();
            let decision = scored.policy.update(&members, now, rng);
            pickers.push(decision.picker);
            connect = match (connect, decision.connect) {
                (Some(mut wanted), Connect::Only(ids)) => {
                    wanted.extend(ids);
                    Some(wanted)
                }
                _ => None,
            };
        }
        Decisions {
            pickers: pickers.into(),
            connect,
        }
    }
}
