//! What do policies see of an endpoint?
//!
//! One state, made of three: is it connected, does it say that it is well, and does it stand among those who may have
//! calls. Who is ejected or not serving looks to a policy like one that cannot be reached.

use super::action::HealthSource;
use super::health::Damped;
use super::outlier::{Counts, Standing};
use super::panic::{Mood, Panic};
use super::table::Row;
use super::{Balancer, Event, Stale};
use crate::endpoint::{Connectivity, EndpointId};
use crate::load::{Entry, Notice};
use crate::report::Health;
use crate::timestamp::Timestamp;

/// What the state of an endpoint is made of beside its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings {
    pub(super) mood: Mood,
    pub(super) panic: Panic,
    pub(super) health: HealthSource,
}

impl Row {
    /// The state that policies see.
    pub(super) fn effective(&self, around: Surroundings) -> Connectivity {
        let (link, panicking) = (self.link.state(), around.mood == Mood::UseAll);
        if matches!(self.standing, Standing::Ejected { .. }) && !panicking {
            return Connectivity::TransientFailure;
        }
        if link != Connectivity::Ready || around.health == HealthSource::None {
            return link;
        }
        match self.health.health() {
            Health::Serving | Health::Unchecked => link,
            Health::Unknown => Connectivity::Connecting,
            Health::NotServing(_) => {
                let overridden =
                    around.health == HealthSource::Port || around.panic.overrides_health();
                match panicking && overridden {
                    true => link,
                    false => Connectivity::TransientFailure,
                }
            }
        }
    }

    /// Who is to be let in.
    fn entry(&self, around: Surroundings) -> Entry {
        let panicking = around.mood == Mood::UseAll;
        let unwell = self.link.state() == Connectivity::Ready
            && self.effective(around) != Connectivity::Ready;
        match self.standing {
            Standing::Ejected { .. } if !panicking => Entry::Shut,
            // Connected, so a call could reach it: one that prefers it, or was picked for it a moment ago.
            _ if unwell => Entry::Shut,
            Standing::Probation if !panicking => Entry::Trial,
            _ => Entry::Open,
        }
    }

    /// Lets calls in as the endpoint stands. Whether more are than before.
    pub(super) fn admit(&mut self, around: Surroundings) -> bool {
        let entry = self.entry(around);
        let before = std::mem::replace(&mut self.entry, entry);
        // Not told again: that would make a trial that is under way nobody's.
        if before != entry {
            self.loads.admit(entry);
        }
        before != entry && entry == Entry::Open
    }
}

impl Balancer {
    /// The end of a call on this endpoint said something of it. News of an endpoint that has left is ignored.
    pub fn handle_notice(&mut self, id: EndpointId, notice: Notice, now: Timestamp) {
        let Some(outliers) = &mut self.outliers else {
            return;
        };
        match notice {
            Notice::FaultsInARow => outliers.handle_run(id, now),
            Notice::Trial { passed } => outliers.handle_trial(id, passed, now),
        }
        self.restand(now);
    }

    /// Counts what calls said of all endpoints since the last time, where that is due, and lets ejections end. A trial that
    /// has been under way for a whole interval is not waited for any longer: it may be a stream on which nothing is said
    /// for days.
    pub(super) fn sweep(&mut self, now: Timestamp) {
        let Some(outliers) = &mut self.outliers else {
            return;
        };
        outliers.handle_timeout(now);
        if outliers.sweep_due().is_some_and(|due| due <= now) {
            let counts = self.table.rows_mut().map(|row| {
                let (good, bad) = row.loads.verdicts();
                let before = std::mem::replace(&mut row.counted, (good, bad));
                // A count may be read a moment late; never less than nothing.
                let since = |now: u64, before: u64| now.saturating_sub(before);
                let counts = Counts {
                    successes: since(good, before.0),
                    failures: since(bad, before.1),
                };
                (row.id, counts)
            });
            outliers.handle_counts(counts, now, &mut self.rng);
            for row in self.table.rows_mut() {
                let before = std::mem::replace(&mut row.trial, row.loads.trial());
                if let Some(trial) = before
                    && row.trial == before
                    && row.loads.release_trial(trial)
                {
                    // Calls that wait may go there.
                    self.stale = self.stale.max(Stale::Members);
                }
            }
        }
        self.restand(now);
    }

    /// Does what follows from those who stand otherwise now.
    pub(super) fn restand(&mut self, now: Timestamp) {
        while let Some((id, standing)) = self.outliers.as_mut().and_then(|o| o.poll_change()) {
            let Some(row) = self.table.get_mut(id) else {
                continue;
            };
            let before = std::mem::replace(&mut row.standing, standing);
            if let (Standing::Probation, Standing::Admitted, Some(detection)) =
                (before, standing, &self.config.outliers)
            {
                row.loads.spare(now, detection.slow_start());
            }
            if standing == Standing::Admitted {
                // It may look to the policies as before, and takes more calls: those that wait for room must hear.
                self.stale = self.stale.max(Stale::Members);
            }
            let endpoint = row.endpoint.clone();
            if let Standing::Ejected { until } = standing {
                let (address, pause) = (endpoint.address(), until.since(now));
                let words = format!("{address}: ejected for {pause:?}, since its calls fail");
                self.explain(words);
            }
            self.events.push_back(Event::Standing {
                id,
                endpoint,
                standing,
            });
            self.note_state(id, false, now);
        }
    }

    /// An endpoint's server, or who watches its port, says how it is. News of one that has left is ignored.
    pub fn handle_health(&mut self, id: EndpointId, health: Health, now: Timestamp) {
        let Some(row) = self.table.get_mut(id) else {
            return;
        };
        let address = row.endpoint.address().clone();
        let changed = row.health.handle(health, now);
        let unfit = match row.health.health() {
            Health::NotServing(unfit) => Some(unfit.to_string()),
            Health::Unknown | Health::Serving | Health::Unchecked => None,
        };
        if let Some(unfit) = unfit {
            self.explain(format!("{address}: {unfit}"));
        }
        self.enter_deadline(id);
        if changed {
            self.note_health(id, now);
        }
    }

    /// An endpoint's health may count as another than before, by the time that has passed.
    pub(super) fn age_health(&mut self, id: EndpointId, now: Timestamp) {
        let row = self.table.get_mut(id);
        if row.is_some_and(|row| row.health.handle_timeout(now)) {
            self.note_health(id, now);
        }
    }

    /// An endpoint has its first connection, or the first after it was lost: nothing is known of the server behind it.
    pub(super) fn forget(&mut self, id: EndpointId) {
        if let Some(row) = self.table.get_mut(id) {
            row.health = Damped::default();
        }
        if let Some(outliers) = &mut self.outliers {
            outliers.handle_reconnected(id);
        }
    }

    fn note_health(&mut self, id: EndpointId, now: Timestamp) {
        if let Some(row) = self.table.get_mut(id) {
            self.events.push_back(Event::Health {
                id,
                endpoint: row.endpoint.clone(),
                health: row.health.health().clone(),
            });
        }
        self.note_state(id, false, now);
    }

    /// Panics or calms down, by how many endpoints can be used.
    pub(super) fn reconsider(&mut self, now: Timestamp) {
        let all = self.table.rows().count();
        let mood = self.config.panic.mood(self.unusable, all);
        if mood == self.mood {
            return;
        }
        self.stale = match (mood, self.mood) {
            (Mood::Fail, _) | (_, Mood::Fail) => Stale::Urgent,
            // Whoever is on probation lets more calls in from now on.
            _ => self.stale.max(Stale::Members),
        };
        self.mood = mood;
        self.events.push_back(Event::Panic {
            on: mood != Mood::Calm,
            usable: all - self.unusable,
            of: all,
        });
        if mood == Mood::Fail {
            let usable = all - self.unusable;
            self.explain(format!(
                "only {usable} of {all} endpoints can be used, and fewer than so many are to be used by none"
            ));
        }
        let ids: Vec<EndpointId> = self.table.rows().map(|row| row.id).collect();
        for id in ids {
            self.note_state(id, false, now);
        }
    }

    pub(super) fn surroundings(&self) -> Surroundings {
        Surroundings {
            mood: self.mood,
            panic: self.config.panic,
            health: self.config.health,
        }
    }
}
