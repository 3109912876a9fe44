//! When do the calls get new pickers, and who is asked for them?

use std::sync::Arc;
use std::time::Duration;

use super::connectivity::{News, Wish};
use super::panic::Mood;
use super::{Action, Balancer, Event, Publication, Resolved, Stale};
use crate::endpoint::{Connectivity, EndpointId};
use crate::policy::{HashOn, PickInfo, PickResult, Picker, Pickers};
use crate::timestamp::Timestamp;

/// Publications for news that can wait are this far apart: a thousand endpoints that become ready one
/// after the other are then a few pickers and not a thousand.
const COALESCE: Duration = Duration::from_millis(5);

/// As many pickers, which answer every call like this.
fn answer_all(pickers: &Pickers, answer: PickResult) -> Pickers {
    #[derive(Debug)]
    struct Always(PickResult);

    impl Picker for Always {
        fn pick(&self, _: &PickInfo<'_>) -> PickResult {
            self.0.clone()
        }
    }

    let always: Arc<dyn Picker> = Arc::new(Always(answer));
    vec![always; pickers.len()].into()
}

impl Balancer {
    /// The state of the whole as it should be published.
    fn aggregate(&self) -> Connectivity {
        match self.resolved {
            _ if self.asleep => Connectivity::Idle,
            Resolved::Nothing => Connectivity::Connecting,
            Resolved::Failure | Resolved::List if self.mood == Mood::Fail => {
                Connectivity::TransientFailure
            }
            Resolved::Failure | Resolved::List => self.tally.aggregate(),
        }
    }

    /// When the next publication is due; nothing when the last one still holds.
    pub(super) fn publication_due(&self) -> Option<Timestamp> {
        let (last, ..) = match (&self.published, self.stale) {
            (_, Stale::No) => return None,
            (None, _) | (_, Stale::Urgent) => return Some(Timestamp::ZERO),
            (Some(published), Stale::Words | Stale::Members) => published,
        };
        match self.aggregate() == self.state {
            true => Some(*last + COALESCE),
            false => Some(Timestamp::ZERO),
        }
    }

    /// Publishes if it is time to.
    pub(super) fn publish(&mut self, now: Timestamp) {
        if self.publication_due().is_none_or(|due| due > now) {
            return;
        }
        let place = self.actions.len();
        let last = self.published.take();
        let (pickers, hash_on) = match (last, self.stale) {
            (Some((_, pickers, hash_on)), stale) if self.asleep || stale == Stale::Words => {
                self.stale = Stale::No;
                (pickers, hash_on)
            }
            _ => {
                self.stale = Stale::No;
                self.decide(now)
            }
        };
        // Woken before its first list, a channel has none yet, and not one of nobody.
        let waits = self.asleep || self.resolved == Resolved::Nothing;
        let pickers = match (waits, self.mood) {
            (true, _) => answer_all(&pickers, PickResult::Queue { connect: None }),
            (false, Mood::Fail) => answer_all(&pickers, PickResult::Fail),
            (false, Mood::Calm | Mood::UseAll) => pickers,
        };
        self.published = Some((now, pickers.clone(), hash_on.clone()));
        let (from, to) = (self.state, self.aggregate());
        if from != to {
            self.state = to;
            self.events.push_back(Event::Channel { from, to });
        }
        let publication = Action::Publish(Publication {
            pickers,
            hash_on,
            state: to,
            why: self.why.clone(),
        });
        // Before connections are retired that the decision lets go of: the pickers before still name them.
        self.actions.insert(place, publication);
    }

    /// Asks the policies, and does what they wish.
    fn decide(&mut self, now: Timestamp) -> (Pickers, Arc<[HashOn]>) {
        self.welcome(now);
        let decisions = self.policies.decide(self.table.rows(), now, &mut self.rng);
        let wishes = decisions.wishes;
        self.wake = decisions.wake;
        let measured = self.policies.measured() && self.table.rows().next().is_some();
        self.measure = measured.then(|| self.measure.unwrap_or(now));
        let changed: Vec<(EndpointId, Wish)> = self
            .table
            .rows()
            .map(|row| (row, wishes.of(row.id)))
            .filter(|(row, wish)| row.link.wish() != *wish)
            .map(|(row, wish)| (row.id, wish))
            .collect();
        for (id, wish) in changed {
            self.tell(id, News::Wished(wish), now);
        }
        let switched = decisions.switched.into_iter();
        self.events
            .extend(switched.map(|policy| Event::Switched { policy }));
        let panicked = decisions.panicked.into_iter();
        self.events
            .extend(panicked.map(|policy| Event::Panicked { policy }));
        (decisions.pickers, decisions.hash_on)
    }

    /// Lets endpoints that became ready start at the median of the others, so that they are neither
    /// flooded nor shunned for want of a past.
    fn welcome(&mut self, now: Timestamp) {
        if self.joining.is_empty() {
            return;
        }
        let mut joining = std::mem::take(&mut self.joining);
        joining.sort_unstable();
        let others = self.table.rows().filter(|row| {
            row.state == Connectivity::Ready && joining.binary_search(&row.id).is_err()
        });
        let others: Vec<_> = others.map(|row| &row.loads).collect();
        let medians = self.policies.medians(&others);
        // Where everybody is new, nobody is to be spared: the calls have to go somewhere.
        let spared = !self.config.slow_start.is_zero() && !others.is_empty();
        for id in joining {
            if let Some(row) = self.table.get_mut(id) {
                row.loads.join(medians.iter().copied(), now);
                if spared {
                    row.loads.spare(now, self.config.slow_start);
                }
            }
        }
    }
}
