//! Which endpoints fail while the others do not?
//!
//! gRPC's outlier detection (A50), with two things added: runs of failures eject at once, and an ejection ends in a
//! probation, one call at a time, that only an answer ends.
//!
//! ```text
//!              a rule, a run              the time has passed, a new connection
//! Admitted ───────────────────▶ Ejected ───────────────────────▶ Probation
//!    ▲                          │     ▲                          │   │
//!    │  room is needed          │     │  a trial fails           │   │
//!    ├──────────────────────────┘     └──────────────────────────┘   │
//!    └───────────────────────────────────────────────────────────────┘
//!       a trial is answered, room is needed
//! ```
//!
//! The cap counts those on probation with the ejected. So at every moment all the others take calls without limit, and a
//! trial that fails always finds room. Where the cap is reached and another one fails, the one whose ejection ended
//! first is let back untried: who may have recovered is better than who is known to fail. Otherwise a backup that is
//! never picked, and so never tried, would keep a failing primary in use.

mod config;
mod standing;
mod statistics;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use config::{FailurePercentage, MaxEjection, OutlierDetection, SuccessRate};
pub use standing::Standing;
pub(crate) use statistics::Counts;

use crate::endpoint::EndpointId;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

use standing::{News, Record};

/// The standing of every endpoint of one channel.
///
/// Whoever drives it, in this order where several are due: hands ends of ejections in by
/// [`handle_timeout`](Self::handle_timeout), counts by [`handle_counts`](Self::handle_counts); and takes what has changed
/// by [`poll_change`](Self::poll_change) after every call. What counts as a failure is for the caller to say, and so is
/// which calls are neither: cancelled ones, and those that never reached the server.
///
/// Time is an argument and must not go backwards.
#[derive(Debug)]
pub(crate) struct Outliers {
    config: OutlierDetection,
    records: BTreeMap<EndpointId, Record>,
    /// Who is ejected, by when that ends.
    ejected: BTreeSet<(Timestamp, EndpointId)>,
    /// Who is on probation, by when the ejection ended.
    probation: BTreeSet<(Timestamp, EndpointId)>,
    swept: Timestamp,
    /// Somebody's multiplier may be above zero.
    marked: bool,
    changes: VecDeque<(EndpointId, Standing)>,
}

/// One endpoint that a rule is against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) id: EndpointId,
    pub(crate) rule: Rule,
    pub(crate) verdict: Verdict,
}

/// Which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    SuccessRate,
    FailurePercentage,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ejected,
    /// As many are out as may be.
    Capped,
    /// Chance spared it, as the rule's enforcement asks.
    Unenforced,
}

impl Outliers {
    /// Of nobody yet. `config` is taken as it is: [`OutlierDetection::validate`] says whether it makes sense.
    pub(crate) fn new(config: OutlierDetection) -> Self {
        Self {
            config,
            records: BTreeMap::new(),
            ejected: BTreeSet::new(),
            probation: BTreeSet::new(),
            swept: Timestamp::ZERO,
            marked: false,
            changes: VecDeque::new(),
        }
    }

    /// An endpoint has joined. It is admitted, which is no change.
    ///
    /// Where some join and others leave, those who join come first: the cap is then not lowered for a moment.
    pub(crate) fn insert(&mut self, id: EndpointId) {
        self.records.entry(id).or_insert(Record::NEW);
    }

    /// An endpoint has left. Where more are out than may be of those who stay, some are let back: those on
    /// probation first, then those who would be back soonest.
    pub(crate) fn remove(&mut self, id: EndpointId) {
        if let Some(record) = self.records.remove(&id) {
            self.note_exit(id, record);
        }
        while self.out() > self.most() {
            let first = self.probation.first().or(self.ejected.first());
            let Some(&(_, id)) = first else { break };
            self.tell(id, News::RoomNeeded);
        }
    }

    /// A sweep: how the calls of each endpoint ended since the last one. Gives what the rules found, also where
    /// nothing came of it.
    pub(crate) fn handle_counts(
        &mut self,
        counts: impl IntoIterator<Item = (EndpointId, Counts)>,
        now: Timestamp,
        rng: &mut Rng,
    ) -> Vec<Finding> {
        let mut candidates: Vec<(EndpointId, Counts)> = counts
            .into_iter()
            .filter(|(id, _)| self.records.get(id).is_some_and(Record::is_candidate))
            .collect();
        // The worst come first: they are to be out where not all can be.
        candidates.sort_by(|(_, a), (_, b)| a.success_rate().total_cmp(&b.success_rate()));
        let OutlierDetection {
            success_rate,
            failure_percentage,
            ..
        } = self.config;
        let by_rate = success_rate.map(|rule| {
            (
                Rule::SuccessRate,
                rule.enforcement,
                rule.suspects(&candidates),
            )
        });
        let by_share = failure_percentage.map(|rule| {
            let suspects = rule.suspects(&candidates);
            (Rule::FailurePercentage, rule.enforcement, suspects)
        });
        let mut findings = Vec::new();
        for (rule, enforcement, suspects) in by_rate.into_iter().chain(by_share) {
            for id in suspects {
                // Once per sweep, also where both rules are against it.
                if self.standing(id) == Some(Standing::Admitted) {
                    let verdict = self.judge(id, enforcement, now, rng);
                    findings.push(Finding { id, rule, verdict });
                }
            }
        }
        self.marked = false;
        for record in self.records.values_mut() {
            record.end_interval();
            self.marked |= record.multiplier > 0;
        }
        self.swept = now;
        findings
    }

    /// As many failures of an endpoint in a row as [`OutlierDetection::with_consecutive_failures`] asks for were seen.
    /// It is ejected at once, unless it is out already, or nobody else may be; so say it again while the run
    /// goes on.
    pub(crate) fn handle_run(&mut self, id: EndpointId, now: Timestamp) {
        let wanted = self.config.consecutive_failures().is_some();
        if wanted && self.standing(id) == Some(Standing::Admitted) && self.makes_room() {
            self.tell(id, News::Accused(now));
        }
    }

    /// A call that began while its endpoint was on probation has ended: with an answer, or with a failure of the
    /// server's. The first answer admits the endpoint, and a failure ejects it again.
    pub(crate) fn handle_trial(&mut self, id: EndpointId, answered: bool, now: Timestamp) {
        self.tell(
            id,
            match answered {
                true => News::Answered,
                false => News::Failed(now),
            },
        );
    }

    /// An endpoint was lost and is connected again. Most often its server was started anew, so an ejection is over; one
    /// call at a time will tell whether it was right.
    pub(crate) fn handle_reconnected(&mut self, id: EndpointId) {
        self.tell(id, News::Reconnected);
    }

    /// So late it is: whose ejection has ended is on probation.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) {
        while let Some(&(until, id)) = self.ejected.first()
            && until <= now
        {
            self.tell(id, News::Time(now));
        }
    }

    /// The next change, in the order they came about. One of an endpoint that has left names nobody.
    pub(crate) fn poll_change(&mut self) -> Option<(EndpointId, Standing)> {
        self.changes.pop_front()
    }

    /// When the next ejection ends.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.ejected.first().map(|&(until, _)| until)
    }

    /// When the next sweep is due; never while nothing can come of one.
    pub(crate) fn sweep_due(&self) -> Option<Timestamp> {
        let rules = self.config.success_rate.is_some() || self.config.failure_percentage.is_some();
        let wanted = rules || self.marked || !self.probation.is_empty();
        let useful = !self.records.is_empty() && wanted;
        useful.then(|| self.swept + self.config.interval)
    }

    /// How an endpoint stands; `None` where it is not known.
    pub(crate) fn standing(&self, id: EndpointId) -> Option<Standing> {
        self.records.get(&id).map(|record| record.standing)
    }

    /// What comes of a rule's being against somebody.
    fn judge(
        &mut self,
        id: EndpointId,
        enforcement: u32,
        now: Timestamp,
        rng: &mut Rng,
    ) -> Verdict {
        if !self.has_room() {
            return Verdict::Capped;
        }
        if rng.below(100) >= enforcement as usize {
            return Verdict::Unenforced;
        }
        self.makes_room();
        self.tell(id, News::Accused(now));
        Verdict::Ejected
    }

    fn most(&self) -> usize {
        self.config.max_ejection.of(self.records.len())
    }

    fn out(&self) -> usize {
        self.ejected.len() + self.probation.len()
    }

    /// Whether one more may be ejected, if need be in exchange for one on probation.
    fn has_room(&self) -> bool {
        self.out() < self.most() || !self.probation.is_empty()
    }

    /// Sees to it that one more may be ejected; `false` where none may.
    fn makes_room(&mut self) -> bool {
        if self.out() >= self.most()
            && let Some(&(_, first)) = self.probation.first()
        {
            self.tell(first, News::RoomNeeded);
        }
        self.out() < self.most()
    }

    /// Hands one piece of news to one endpoint, and takes note of what follows.
    fn tell(&mut self, id: EndpointId, news: News) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        let before = *record;
        if !record.handle(news, &self.config) {
            return;
        }
        let after = *record;
        self.marked |= after.multiplier > 0;
        self.note_exit(id, before);
        match after.standing {
            Standing::Admitted => {}
            Standing::Probation => {
                self.probation.insert((after.until, id));
            }
            Standing::Ejected { until } => {
                self.ejected.insert((until, id));
            }
        }
        self.changes.push_back((id, after.standing));
    }

    /// An endpoint is not where its record says any more.
    fn note_exit(&mut self, id: EndpointId, record: Record) {
        match record.standing {
            Standing::Admitted => false,
            Standing::Probation => self.probation.remove(&(record.until, id)),
            Standing::Ejected { until } => self.ejected.remove(&(until, id)),
        };
    }
}

#[cfg(test)]
mod tests;
