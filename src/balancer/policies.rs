//! The policies of one channel, each with the score cells that it compares.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::EndpointId;
use crate::load::{Cells, Load, Loads, Terms, median, rescore};
use crate::policy::{
    Connect, Decision, HashOn, Member, PickInfo, PickResult, Picker, Pickers, Policy,
};
use crate::rng::Rng;
use crate::timestamp::Timestamp;

use super::connectivity::Wish;
use super::table::Row;

/// How soon a policy that panicked is asked again, if nothing changes before.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// At least one policy, by number.
#[derive(Debug)]
pub(super) struct Policies {
    first: Scored,
    more: Vec<Scored>,
    hash_on: Arc<[HashOn]>,
    /// What endpoints let calls in by.
    terms: Terms,
}

#[derive(Debug)]
struct Scored {
    policy: Box<dyn Policy>,
    cells: Cells,
    /// Who is to take its place, as soon as it can serve.
    next: Option<Box<dyn Policy>>,
    /// What it decided last, which holds on where it panics.
    last: Option<(Arc<dyn Picker>, Connect)>,
}

/// Who answers the calls from now on, and how that came about.
struct Answer {
    picker: Arc<dyn Picker>,
    /// It is that of another policy than before.
    switched: bool,
    /// A policy panicked.
    panicked: bool,
}

impl Scored {
    fn new(policy: Box<dyn Policy>) -> Self {
        Self {
            cells: Cells::new(policy.scoring()),
            policy,
            next: None,
            last: None,
        }
    }

    fn load(&mut self, slot: usize) -> Load {
        Load::new(self.cells.cell(slot))
    }

    /// Asks the policy, and the one that is to take its place.
    fn decide(
        &mut self,
        members: &[Member],
        wishes: &mut Wishes,
        wake: &mut Option<Timestamp>,
        now: Timestamp,
        rng: &mut Rng,
    ) -> Answer {
        let mut heed = |decision: Decision| {
            wishes.add(decision.connect);
            *wake = (*wake).into_iter().chain(decision.wake).min();
            decision.picker
        };
        let decided = guarded(|| self.policy.update(members, now, rng));
        let mut panicked = decided.is_none();
        let current = decided.unwrap_or_else(|| self.held(now));
        self.last = Some((current.picker.clone(), current.connect.clone()));
        let mut next = self.next.take();
        let offered = next
            .as_mut()
            .map(|next| guarded(|| next.update(members, now, rng)));
        // One that cannot even be asked does not take anybody's place.
        panicked |= matches!(offered, Some(None));
        let (Some(next), Some(offered)) = (next, offered.flatten()) else {
            return Answer {
                picker: heed(current),
                switched: false,
                panicked,
            };
        };
        // Until then the old one serves, and both have their connections.
        if serves(&*current.picker) && !serves(&*offered.picker) {
            self.next = Some(next);
            heed(offered);
            return Answer {
                picker: heed(current),
                switched: false,
                panicked,
            };
        }
        if self.cells.switch(next.scoring()) {
            rescore(members.iter().map(|member| &*member.load), now);
        }
        self.policy = next;
        self.last = Some((offered.picker.clone(), offered.connect.clone()));
        Answer {
            picker: heed(offered),
            switched: true,
            panicked,
        }
    }

    /// What holds on while the policy panics: its last word, or that nobody can be picked.
    fn held(&self, now: Timestamp) -> Decision {
        let (picker, connect) = self
            .last
            .clone()
            .unwrap_or_else(|| (Arc::new(Nobody), Connect::All));
        Decision {
            picker,
            connect,
            wake: Some(now + ASK_AGAIN),
        }
    }
}

/// The picker of a policy that has never answered.
#[derive(Debug)]
struct Nobody;

impl Picker for Nobody {
    fn pick(&self, _: &PickInfo<'_>) -> PickResult {
        PickResult::Fail
    }
}

/// What a policy says, which may be anybody's code: nothing where it panicked. The channel lives on with what it has.
fn guarded<T>(ask: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(ask)).ok()
}

/// Whether a call that wants nothing special would be given to somebody.
fn serves(picker: &dyn Picker) -> bool {
    let any = PickInfo {
        // At that time no trial is due: none is taken from the calls.
        now: Timestamp::ZERO,
        random: 0,
        path: "/",
        hash: None,
        avoid: &[],
    };
    matches!(
        guarded(|| picker.pick(&any)),
        Some(PickResult::Pick(_) | PickResult::PickAndConnect { .. })
    )
}

/// What the policies want together.
#[derive(Debug)]
pub(super) struct Decisions {
    /// By the number of the policy.
    pub(super) pickers: Pickers,
    pub(super) hash_on: Arc<[HashOn]>,
    /// Those that have taken the place of another.
    pub(super) switched: Vec<usize>,
    /// Those that panicked when they were asked.
    pub(super) panicked: Vec<usize>,
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
    pub(super) fn new(terms: Terms, first: Box<dyn Policy>, more: Vec<Box<dyn Policy>>) -> Self {
        let all = std::iter::once(&first).chain(&more);
        Self {
            hash_on: all.map(|policy| policy.hash_on()).collect(),
            first: Scored::new(first),
            more: more.into_iter().map(Scored::new).collect(),
            terms,
        }
    }

    /// Lets `policy` take the place of that with this number, as soon as it can serve. Whether there is one.
    pub(super) fn switch(&mut self, number: usize, policy: Box<dyn Policy>) -> bool {
        let scored = match number.checked_sub(1) {
            None => Some(&mut self.first),
            Some(at) => self.more.get_mut(at),
        };
        match scored {
            Some(scored) => {
                scored.next = Some(policy);
                true
            }
            None => false,
        }
    }

    /// Fresh loads for the new tenant of `slot`; see [`Cells::cell`].
    pub(super) fn loads(&mut self, slot: usize) -> Loads {
        let more = self.more.iter_mut().map(|scored| scored.load(slot));
        Loads::under(self.terms, self.first.load(slot), more)
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
        let (mut wake, mut switched, mut panicked) = (None, Vec::new(), Vec::new());
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
            let answer = scored.decide(&members, &mut wishes, &mut wake, now, rng);
            pickers.push(answer.picker);
            if answer.switched {
                switched.push(number);
            }
            if answer.panicked {
                panicked.push(number);
            }
        }
        if !switched.is_empty() {
            let all = std::iter::once(&self.first).chain(&self.more);
            self.hash_on = all.map(|scored| scored.policy.hash_on()).collect();
        }
        Decisions {
            pickers: pickers.into(),
            hash_on: self.hash_on.clone(),
            switched,
            panicked,
            wishes,
            wake,
        }
    }
}
