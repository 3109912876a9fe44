//! The loads of one endpoint, one for each policy of its channel.

use std::sync::Arc;

use super::{Estimate, Latency, Load, Outcomes};
use crate::report::{Completion, LoadReport};
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
}

impl Loads {
    /// The loads of one endpoint, that of the first policy first.
    pub fn new(first: Load, more: impl IntoIterator<Item = Load>) -> Self {
        Self {
            first: Arc::new(first),
            more: more.into_iter().map(Arc::new).collect(),
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

    /// A call was given to this endpoint. Each `begin` needs one [`end`](Self::end).
    #[inline]
    pub fn begin(&self) {
        self.first.begin();
        for load in self.more.iter() {
            load.begin();
        }
    }

    /// The first message of a call that goes on has arrived; see [`Load::spoke`].
    #[inline]
    pub fn spoke(&self) {
        self.iter().for_each(|load| load.spoke());
    }

    /// A call of the `policy`-th policy that began at `started` has ended at `now`.
    #[inline]
    pub fn end(&self, policy: usize, completion: &Completion, started: Timestamp, now: Timestamp) {
        let load = self.of(policy);
        load.end(completion, started, now);
        if !self.more.is_empty() {
            // The pointer tells one load of this endpoint from another, not who anybody is.
            let others = self.iter().filter(|other| !Arc::ptr_eq(other, load));
            others.for_each(|other| other.end_of_another(completion.outcome));
        }
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
    use crate::report::{Outcome, StatusCode};
    use std::time::Duration;

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
        loads.begin();
        let latency = Duration::from_millis(millis);
        loads.end(
            policy,
            &Completion { outcome, latency },
            ms(10),
            ms(10 + millis),
        );
    }

    #[test]
    fn a_call_under_way_counts_for_all_and_its_end_for_whoever_chose() {
        let loads = loads();
        loads.begin();
        loads.begin();
        assert!(loads.iter().all(|load| load.in_flight() == 2));
        let latency = Duration::from_millis(30);
        let completion = Completion {
            outcome: OK,
            latency,
        };
        loads.end(2, &completion, ms(10), ms(40));
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
        loads.begin();
        loads.spoke();
        assert!(!on_trial(0) && !on_trial(2), "nor one whose stream goes on");
    }
}
