//! The loads of one endpoint, one for each policy of its channel.

use std::sync::Arc;
use std::time::Duration;

use super::gate::{Admission, Entrance, Entry, Gate, Notice, Terms};
use super::{Estimate, Latency, Load, Outcomes};
use crate::classifier::Blame;
use crate::report::{Completion, LoadReport, StatusCode};
use crate::timestamp::Timestamp;

/// The live facts of one endpoint, for all policies of its channel.
///
/// A call counts as under way for every policy: what is busy is busy for all. How it went counts only for the
/// policy that chose the endpoint, so that one slow method does not colour what the policy of another sees.
///
/// Policies are named by their number, from 0, in the order in which the channel was given them. A number that
/// is not one of them is taken for the first.
#[derive(Clone, Debug)]
pub struct Loads {
    // Nearly every channel has one policy: a call then goes straight to its load.
    first: Arc<Load>,
    more: Arc<[Arc<Load>]>,
    gate: Arc<Gate>,
}

impl Loads {
    /// The loads of one endpoint, that of the first policy first. Every call is let in.
    pub fn new(first: Load, more: impl IntoIterator<Item = Load>) -> Self {
        Self::under(Terms::NONE, first, more)
    }

    /// The same, where calls are let in and judged by `terms`.
    pub fn under(terms: Terms, first: Load, more: impl IntoIterator<Item = Load>) -> Self {
        Self {
            first: Arc::new(first),
            more: more.into_iter().map(Arc::new).collect(),
            gate: Arc::new(Gate::new(terms)),
        }
    }

    /// What the `policy`-th policy sees.
    #[inline]
    pub fn of(&self, policy: usize) -> &Arc<Load> {
        match policy.checked_sub(1) {
            None => &self.first,
            Some(at) => self.more.get(at).unwrap_or(&self.first),
        }
    }

    /// All of them, that of the first policy first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Load>> {
        std::iter::once(&self.first).chain(self.more.iter())
    }

    /// The endpoint has become ready: [`Load::join`] for each policy, with its own median.
    pub fn join(&self, medians: impl IntoIterator<Item = Option<Estimate>>, now: Timestamp) {
        for (load, median) in self.iter().zip(medians) {
            load.join(median, now);
        }
    }

    /// Whether a call would be let in just now: it may still be refused by [`try_begin`](Self::try_begin), when another
    /// comes first.
    #[inline]
    pub fn entrance(&self) -> Entrance {
        self.gate.entrance(|| self.in_flight())
    }

    /// Gives a call to this endpoint, if it is let in. Each that is needs one [`end`](Self::end).
    #[inline]
    pub fn try_begin(&self) -> Option<Admission> {
        let admission = self.gate.enter()?;
        match self.gate.terms().max_in_flight {
            Some(limit) if !admission.is_trial() => {
                if !self.first.try_begin(limit) {
                    return None;
                }
            }
            _ => self.first.begin(),
        }
        for load in self.more.iter() {
            load.begin();
        }
        Some(admission)
    }

    /// Gives a call to this endpoint, whether it would be let in or not: who asks for an endpoint by name means it.
    pub fn begin(&self) -> Admission {
        self.iter().for_each(|load| load.begin());
        Admission::PLAIN
    }

    /// The first message of a call that goes on has arrived; see [`Load::spoke`]. A trial call has passed with it: the
    /// stream may go on for days.
    #[inline]
    pub fn spoke(&self, admission: &mut Admission) -> Option<Notice> {
        self.iter().for_each(|load| load.spoke());
        let taken = std::mem::replace(admission, Admission::PLAIN).trial()?;
        let current = self.gate.leave(taken);
        current.then_some(Notice::Trial { passed: true })
    }

    /// A call of the `policy`-th policy that began at `started` has ended at `now`.
    #[inline]
    pub fn end(
        &self,
        policy: usize,
        completion: &Completion,
        admission: Admission,
        started: Timestamp,
        now: Timestamp,
    ) -> Option<Notice> {
        let load = self.of(policy);
        let blame = self.gate.blame(completion.outcome);
        load.end_by(completion, blame, started, now);
        if !self.more.is_empty() {
            let answered = blame == Some(Blame::Nobody);
            // The pointer tells one load of this endpoint from another, not who anybody is.
            let others = self.iter().filter(|other| !Arc::ptr_eq(other, load));
            others.for_each(|other| other.end_of_another(answered));
        }
        let trial = admission.trial();
        let trial = trial.is_some_and(|taken| self.gate.leave(taken));
        self.gate.judge(blame, trial)
    }

    /// Whether calls that wait for room should hear when one ends here.
    #[inline]
    pub fn is_narrow(&self) -> bool {
        self.gate.is_narrow()
    }

    /// Changes who is let in.
    pub(crate) fn admit(&self, entry: Entry) {
        self.gate.set(entry);
    }

    /// The trial that is under way on an endpoint on probation.
    pub(crate) fn trial(&self) -> Option<u32> {
        self.gate.trial()
    }

    /// Lets another trial in beside this one, whose end says nothing any more. `false` where it is over already.
    pub(crate) fn release_trial(&self, trial: u32) -> bool {
        self.gate.leave(trial)
    }

    /// From `now` on the endpoint is given a share of its calls that grows to the whole within `window`.
    pub(crate) fn spare(&self, now: Timestamp, window: Duration) {
        self.gate.spare(now, window);
    }

    /// For how long the endpoint has been spared calls at `now`, and for how long it is in all; nothing where it is
    /// not.
    #[inline]
    pub fn spared(&self, now: Timestamp) -> Option<(Duration, Duration)> {
        self.gate.spared(now)
    }

    /// How many calls were answered without blame for the server or its load so far, and how many ended in its fault:
    /// what ejection goes by.
    pub(crate) fn verdicts(&self) -> (u64, u64) {
        let outcomes = self.outcomes();
        let classifier = &self.gate.terms().classifier;
        let codes = (0..StatusCode::COUNT as u8).map(StatusCode::new);
        let good = codes.filter(|&code| classifier.blame(code) == Blame::Nobody);
        let good = good.map(|code| outcomes.answered(code)).sum();
        (good, self.gate.all_faults())
    }

    /// The server said how it is doing: [`Load::report`] for each policy.
    pub fn report(&self, report: &LoadReport, now: Timestamp) {
        self.iter().for_each(|load| load.report(report, now));
    }

    /// `total` bytes have passed between us and the endpoint so far: [`Load::measure`] for each policy.
    pub fn measure(&self, total: u64, now: Timestamp) {
        self.iter().for_each(|load| load.measure(total, now));
    }

    /// Calls given to this endpoint that have not ended.
    pub fn in_flight(&self) -> u32 {
        self.first.in_flight()
    }

    /// Calls ever given to this endpoint.
    pub fn picks(&self) -> u64 {
        self.outcomes().total() + u64::from(self.in_flight())
    }

    /// How its calls ended, those of all policies together.
    pub fn outcomes(&self) -> Outcomes {
        let more = self.more.iter().map(|load| load.outcomes());
        more.fold(self.first.outcomes(), Outcomes::plus)
    }

    /// How long its calls took, those of all policies together.
    pub fn latency(&self) -> Latency {
        let more = self.more.iter().map(|load| load.latency());
        more.fold(self.first.latency(), Latency::plus)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cells, Scoring};
    use super::*;
    use crate::report::Outcome;

    const SCORING: Scoring = Scoring::Latency {
        window: Duration::from_secs(5),
    };
    const OK: Outcome = Outcome::Answered(StatusCode::OK);
    const UNAVAILABLE: Outcome = Outcome::Answered(StatusCode::UNAVAILABLE);

    fn ms(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn loads() -> Loads {
        let mut cells = [SCORING, Scoring::InFlight, SCORING].map(Cells::new);
        let [first, second, third] = cells.each_mut().map(|cells| Load::new(cells.cell(0)));
        Loads::new(first, [second, third])
    }

    fn call(loads: &Loads, policy: usize, outcome: Outcome, millis: u64) {
        let admission = loads.begin();
        let latency = Duration::from_millis(millis);
        let notice = loads.end(
            policy,
            &Completion { outcome, latency },
            admission,
            ms(10),
            ms(10 + millis),
        );
        assert_eq!(notice, None, "nobody asked for any");
    }

    #[test]
    fn a_call_under_way_counts_for_all_and_its_end_for_whoever_chose() {
        let loads = loads();
        let (one, _two) = (loads.begin(), loads.begin());
        assert!(loads.iter().all(|load| load.in_flight() == 2));
        let latency = Duration::from_millis(30);
        let completion = Completion {
            outcome: OK,
            latency,
        };
        let _ = loads.end(2, &completion, one, ms(10), ms(40));
        assert!(loads.iter().all(|load| load.in_flight() == 1));
        assert_eq!((loads.in_flight(), loads.picks()), (1, 2));
        assert_eq!(loads.of(0).estimate(), None, "0 has chosen nobody yet");
        assert!(loads.of(2).estimate().is_some());
        assert_eq!(loads.of(7).in_flight(), 1, "no such policy: the first");
    }

    #[test]
    fn faults_and_slow_answers_of_one_policy_are_not_seen_by_another() {
        let loads = loads();
        call(&loads, 0, OK, 10);
        let before = loads.of(0).score();
        for _ in 0..6 {
            call(&loads, 2, UNAVAILABLE, 900);
            call(&loads, 2, OK, 900);
        }
        assert_eq!(loads.of(0).score(), before);
        for _ in 0..6 {
            call(&loads, 2, UNAVAILABLE, 900);
        }
        assert!(loads.of(2).penalised() && !loads.of(0).penalised());
        let sum = loads.outcomes();
        assert_eq!(sum.answered(StatusCode::UNAVAILABLE), 12);
        assert_eq!((sum.answered(StatusCode::OK), sum.total()), (7, 19));
        let latency = loads.latency();
        assert_eq!(latency.count(), 19);
        let mean = latency.ewma().unwrap();
        assert!(
            mean > Duration::from_millis(800) && mean < Duration::from_millis(900),
            "{mean:?} leans to where more answers came from"
        );
    }

    #[test]
    fn a_newcomer_that_has_answered_anybody_is_on_trial_no_more() {
        let loads = loads();
        loads.join([None, None, None], ms(0));
        let on_trial = |policy: usize| loads.of(policy).cell().word().on_trial();
        assert!(on_trial(0) && on_trial(2));
        call(&loads, 2, UNAVAILABLE, 1);
        assert!(on_trial(0), "a fault is no answer");
        call(&loads, 2, OK, 1);
        assert!(!on_trial(0) && !on_trial(2));
        loads.join([None, None, None], ms(20));
        let mut admission = loads.begin();
        assert_eq!(loads.spoke(&mut admission), None);
        assert!(!on_trial(0) && !on_trial(2), "nor one whose stream goes on");
    }
}
