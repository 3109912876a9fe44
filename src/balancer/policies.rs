//! The policies of one channel, each with the score cells that it compares.

use std::collections::BTreeSet;

use crate::endpoint::EndpointId;
use crate::load::{Cells, Load, Loads, median};
use crate::policy::{Connect, Member, Pickers, Policy};
use crate::rng::Rng;
use crate::timestamp::Timestamp;

use super::connectivity::Wish;
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
    pub(super) wishes: Wishes,
    /// When to ask them again, at the latest.
    pub(super) wake: Option<Timestamp>,
}

/// What is wished for each endpoint: the most that any policy wishes for it.
#[derive(Debug)]
pub(super) struct Wishes {
    /// Everyone, when `None`.
    connect: Option<BTreeSet<EndpointId>>,
    /// Of the others.
    otherwise: Wish,
}

impl Wishes {
    /// Of no policy.
    fn none() -> Self {
        Self {
            connect: Some(BTreeSet::new()),
            otherwise: Wish::LetGo,
        }
    }

    fn add(&mut self, connect: Connect) {
        let (ids, otherwise) = match connect {
            Connect::All => {
                self.connect = None;
                return;
            }
            Connect::Only(ids) => (ids, Wish::Keep),
            Connect::Exactly(ids) => (ids, Wish::LetGo),
        };
        self.otherwise = self.otherwise.max(otherwise);
        if let Some(wanted) = &mut self.connect {
            wanted.extend(ids);
        }
    }

    pub(super) fn of(&self, id: EndpointId) -> Wish {
        match &self.connect {
            None => Wish::Connect,
            Some(ids) if ids.contains(&id) => Wish::Connect,
            Some(_) => self.otherwise,
        }
    }
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

    /// Whether any of them goes by the bytes that pass.
    pub(super) fn measured(&self) -> bool {
        let mut all = std::iter::once(&self.first).chain(&self.more);
        all.any(|scored| scored.cells.measured())
    }

    /// Asks them all.
    pub(super) fn decide<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a Row> + Clone,
        now: Timestamp,
        rng: &mut Rng,
    ) -> Decisions {
        let mut pickers = Vec::with_capacity(1 + self.more.len());
        let mut wishes = Wishes::none();
        let mut wake = None;
        let all = std::iter::once(&mut self.first).chain(&mut self.more);
        for (number, scored) in all.enumerate() {
            let members: Vec<Member> = rows
                .clone()
                .map(|row| Member {
                    id: row.id,
                    state: row.state,
                    weight: row.endpoint.weight(),
                    place: row.place,
                    endpoint: row.endpoint.clone(),
                    load: row.loads.of(number).clone(),
                })
                .collect();
            let decision = scored.policy.update(&members, now, rng);
            pickers.push(decision.picker);
            wishes.add(decision.connect);
            wake = wake.into_iter().chain(decision.wake).min();
        }
        Decisions {
            pickers: pickers.into(),
            wishes,
            wake,
        }
    }
}
