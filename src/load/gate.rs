//! May this endpoint take one more call?
//!
//! Who decides is the balancer; who heeds it is every call, without a lock. An endpoint on probation lets one call in at
//! a time, a *trial*; who was let in as one carries that in its [`Admission`], so that calls from before are not
//! taken for it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::classifier::{Blame, Classifier};
use crate::report::Outcome;
use crate::timestamp::Timestamp;

/// What all endpoints of a channel are admitted and judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Calls that one endpoint may have in flight. Default: no limit.
    pub max_in_flight: Option<u32>,
    /// How many server faults in a row are told of ([`Notice::FaultsInARow`]). Default: none are.
    pub faults_in_a_row: Option<u32>,
    /// Whom a status speaks of.
    pub classifier: Classifier,
}

impl Terms {
    /// Everybody is let in, and nobody is told of.
    pub const NONE: Self = Self {
        max_in_flight: None,
        faults_in_a_row: None,
        classifier: Classifier::USUAL,
    };
}

/// How an endpoint stands with those who would send it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Calls are let in.
    Open,
    /// One at a time is.
    Trial,
    /// None is.
    Shut,
}

/// Whether a call would be let in just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Yes.
    Free,
    /// No, because of those under way: the end of one of them may change that.
    Full,
    /// No, whatever ends.
    Shut,
}

/// A call that was let in; it owes [`Loads::end`](super::Loads::end).
#[derive(Debug)]
#[must_use = "the end of the call is owed"]
pub struct Admission {
    /// The word by which it was let in as a trial.
    trial: Option<u32>,
}

impl Admission {
    /// That of a call which is nobody's trial.
    pub(super) const PLAIN: Self = Self { trial: None };

    /// Whether the endpoint is judged by this call.
    pub fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    pub(super) fn trial(&self) -> Option<u32> {
        self.trial
    }
}

/// What the end of a call means beyond the call: to be told to
/// [`Balancer::handle_notice`](crate::balancer::Balancer::handle_notice).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// So many server faults came one after the other as there may be.
    FaultsInARow,
    /// An endpoint on probation answered its trial call, or failed it.
    Trial {
        /// Whether it was answered without a server fault.
        passed: bool,
    },
}

// The lowest two bits of the word; the others count how often the entry was changed and how many trials have ended, so
// that each trial has its own word.
const OPEN: u32 = 0;
const TRIAL: u32 = 1;
const TRIAL_TAKEN: u32 = 2;
const SHUT: u32 = 3;
const KIND: u32 = 3;
const EPOCH: u32 = 4;

/// The gate of one endpoint.
#[derive(Debug)]
pub(super) struct Gate {
    word: AtomicU32,
    // Server faults in a row, and in all.
    faults: AtomicU32,
    all_faults: AtomicU64,
    // Until when the endpoint is spared, 0 for not at all, and for how long that is in all.
    spared_until: AtomicU64,
    spared_for: AtomicU64,
    terms: Terms,
}

impl Gate {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            word: AtomicU32::new(OPEN),
            faults: AtomicU32::new(0),
            all_faults: AtomicU64::new(0),
            spared_until: AtomicU64::new(0),
            spared_for: AtomicU64::new(0),
            terms,
        }
    }

    pub(super) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Changes who is let in. Only the balancer does.
    pub(super) fn set(&self, entry: Entry) {
        let kind = match entry {
            Entry::Open => OPEN,
            Entry::Trial => TRIAL,
            Entry::Shut => SHUT,
        };
        // Relaxed throughout this file: the word guards no other data. Who reads an old one lets a call in, or sends
        // it elsewhere, a moment late, as if it had come before.
        let change = |word: u32| Some((word & !KIND).wrapping_add(EPOCH) | kind);
        let _ = self
            .word
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        self.faults.store(0, Ordering::Relaxed);
    }

    /// Whether a call would be let in where `in_flight` are under way, which is asked only where it matters.
    #[inline]
    pub(super) fn entrance(&self, in_flight: impl FnOnce() -> u32) -> Entrance {
        match self.word.load(Ordering::Relaxed) & KIND {
            OPEN => match self.terms.max_in_flight {
                Some(limit) if in_flight() >= limit => Entrance::Full,
                _ => Entrance::Free,
            },
            TRIAL => Entrance::Free,
            TRIAL_TAKEN => Entrance::Full,
            _ => Entrance::Shut,
        }
    }

    /// Lets a call in, but for the limit of calls in flight.
    #[inline]
    pub(super) fn enter(&self) -> Option<Admission> {
        let word = self.word.load(Ordering::Relaxed);
        match word & KIND {
            OPEN => Some(Admission::PLAIN),
            TRIAL => {
                let taken = word & !KIND | TRIAL_TAKEN;
                let won =
                    self.word
                        .compare_exchange(word, taken, Ordering::Relaxed, Ordering::Relaxed);
                won.ok().map(|_| Admission { trial: Some(taken) })
            }
            _ => None,
        }
    }

    /// The trial is over, was none, or is not waited for any longer: the next may be let in. `false` where the entry was changed meanwhile: then it
    /// is nobody's trial any more, and says nothing of how the endpoint stands now.
    #[cold]
    pub(super) fn leave(&self, taken: u32) -> bool {
        let free = (taken & !KIND).wrapping_add(EPOCH) | TRIAL;
        let left = self
            .word
            .compare_exchange(taken, free, Ordering::Relaxed, Ordering::Relaxed);
        left.is_ok()
    }

    /// The trial that is under way, if there is one.
    pub(super) fn trial(&self) -> Option<u32> {
        let word = self.word.load(Ordering::Relaxed);
        (word & KIND == TRIAL_TAKEN).then_some(word)
    }

    /// Whether calls that wait for room should hear when one ends here.
    pub(super) fn is_narrow(&self) -> bool {
        self.terms.max_in_flight.is_some() || self.word.load(Ordering::Relaxed) & KIND != OPEN
    }

    /// What the end of a call means; `trial`: it was the endpoint's trial to its end.
    #[inline]
    pub(super) fn judge(&self, blame: Option<Blame>, trial: bool) -> Option<Notice> {
        let run = match blame {
            Some(Blame::Nobody) => {
                // A load, and a store only where there is something to forget: this is every good call.
                if self.faults.load(Ordering::Relaxed) != 0 {
                    self.faults.store(0, Ordering::Relaxed);
                }
                false
            }
            Some(Blame::Server) => {
                self.all_faults.fetch_add(1, Ordering::Relaxed);
                let run = self.faults.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
                // Told again with each further run: the first may have come when nobody more might be ejected.
                let limit = self.terms.faults_in_a_row;
                limit.is_some_and(|limit| run.checked_rem(limit) == Some(0))
            }
            Some(Blame::Load) | None => false,
        };
        match (trial, blame) {
            // A server that is well enough to say that it is busy has passed.
            (true, Some(blame)) => Some(Notice::Trial {
                passed: blame != Blame::Server,
            }),
            _ => run.then_some(Notice::FaultsInARow),
        }
    }

    /// How many calls ended in a fault of the server so far.
    pub(super) fn all_faults(&self) -> u64 {
        self.all_faults.load(Ordering::Relaxed)
    }

    /// Whom a call's end speaks of; `None` where it says nothing.
    #[inline]
    pub(super) fn blame(&self, outcome: Outcome) -> Option<Blame> {
        match outcome {
            Outcome::Answered(code) => Some(self.terms.classifier.blame(code)),
            Outcome::Pushed(_) => Some(Blame::Load),
            Outcome::Cancelled | Outcome::Refused => None,
        }
    }

    /// From `now` on the endpoint gets a share of its calls that grows to the whole within `window`.
    pub(super) fn spare(&self, now: Timestamp, window: Duration) {
        let nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        // A call that sees one of the two alone is spared, or not, as if it had come a moment earlier.
        self.spared_for.store(nanos, Ordering::Relaxed);
        self.spared_until
            .store((now + window).as_nanos(), Ordering::Relaxed);
    }

    /// How long the endpoint has been spared at `now`, and of how long in all; nothing where it is not. That is one
    /// load, once the window has passed.
    #[inline]
    pub(super) fn spared(&self, now: Timestamp) -> Option<(Duration, Duration)> {
        let until = self.spared_until.load(Ordering::Relaxed);
        let left = until.checked_sub(now.as_nanos()).filter(|&left| left > 0)?;
        let window = self.spared_for.load(Ordering::Relaxed);
        let elapsed = window.saturating_sub(left);
        Some((Duration::from_nanos(elapsed), Duration::from_nanos(window)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::StatusCode;

    #[test]
    fn a_trial_that_is_not_waited_for_is_nobodys_and_another_is_let_in() {
        let gate = Gate::new(Terms::NONE);
        assert_eq!(gate.trial(), None);
        gate.set(Entry::Trial);
        assert_eq!(gate.trial(), None);
        let taken = gate.enter().and_then(|a| a.trial()).expect("a trial");
        assert_eq!(gate.trial(), Some(taken));
        assert!(gate.enter().is_none() && gate.leave(taken));
        assert!(!gate.leave(taken));
        let next = gate.enter().and_then(|a| a.trial()).expect("another");
        assert!(gate.leave(next) && !gate.leave(next), "it is over");
        let third = gate.enter().and_then(|a| a.trial()).expect("a third");
        assert!(!gate.leave(next) && third != next, "each is itself");
    }

    const OK: Outcome = Outcome::Answered(StatusCode::OK);
    const UNAVAILABLE: Outcome = Outcome::Answered(StatusCode::UNAVAILABLE);

    fn gate(faults_in_a_row: u32) -> Gate {
        Gate::new(Terms {
            faults_in_a_row: Some(faults_in_a_row),
            ..Terms::NONE
        })
    }

    fn ms(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    /// Ends a call as `Loads` does.
    fn end(gate: &Gate, admission: Admission, outcome: Outcome) -> Option<Notice> {
        let trial = admission.trial().is_some_and(|taken| gate.leave(taken));
        gate.judge(gate.blame(outcome), trial)
    }

    fn entrance(gate: &Gate) -> Entrance {
        gate.entrance(|| 0)
    }

    #[test]
    fn on_probation_one_at_a_time_is_let_in_and_is_a_trial() {
        let gate = gate(5);
        let before = gate.enter().unwrap();
        assert!(!before.is_trial());
        gate.set(Entry::Shut);
        assert_eq!(entrance(&gate), Entrance::Shut);
        assert!(gate.enter().is_none());
        gate.set(Entry::Trial);
        assert_eq!(entrance(&gate), Entrance::Free);
        let trial = gate.enter().unwrap();
        assert!(trial.is_trial());
        assert_eq!(entrance(&gate), Entrance::Full);
        assert!(gate.enter().is_none(), "one at a time");
        // A call from before the ejection is no trial, whatever comes of it, and frees nobody's place.
        assert_eq!(end(&gate, before, UNAVAILABLE), None);
        assert_eq!(entrance(&gate), Entrance::Full);
        let failed = Some(Notice::Trial { passed: false });
        assert_eq!(end(&gate, trial, UNAVAILABLE), failed);
        assert_eq!(entrance(&gate), Entrance::Free);
    }

    #[test]
    fn a_trial_that_says_nothing_gives_its_place_to_the_next() {
        let gate = gate(5);
        gate.set(Entry::Trial);
        for outcome in [Outcome::Cancelled, Outcome::Refused] {
            let trial = gate.enter().unwrap();
            assert_eq!(end(&gate, trial, outcome), None);
        }
        let trial = gate.enter().unwrap();
        assert_eq!(end(&gate, trial, OK), Some(Notice::Trial { passed: true }));
    }

    #[test]
    fn a_trial_from_before_a_change_is_none() {
        let gate = gate(5);
        gate.set(Entry::Trial);
        let old = gate.enter().unwrap();
        gate.set(Entry::Shut);
        gate.set(Entry::Trial);
        let new = gate.enter().unwrap();
        assert_eq!(end(&gate, old, OK), None, "it says nothing of now");
        assert_eq!(entrance(&gate), Entrance::Full, "the place is another's");
        assert_eq!(end(&gate, new, OK), Some(Notice::Trial { passed: true }));
    }

    #[test]
    fn a_run_from_before_an_ejection_is_forgotten() {
        let gate = gate(3);
        let fault = || {
            let admission = gate.enter().unwrap();
            end(&gate, admission, UNAVAILABLE)
        };
        assert_eq!((fault(), fault()), (None, None));
        // Ejected for its rate and let back in by a trial that ends busy, so that nothing else ends the run.
        gate.set(Entry::Trial);
        gate.set(Entry::Open);
        assert_eq!((fault(), fault()), (None, None), "two of three");
        assert_eq!(fault(), Some(Notice::FaultsInARow));
    }

    #[test]
    fn a_server_that_says_it_is_busy_has_passed() {
        let gate = gate(5);
        gate.set(Entry::Trial);
        for outcome in [
            Outcome::Pushed(StatusCode::UNAVAILABLE),
            Outcome::Answered(StatusCode::RESOURCE_EXHAUSTED),
            Outcome::Answered(StatusCode::ABORTED),
        ] {
            let trial = gate.enter().unwrap();
            let notice = end(&gate, trial, outcome);
            assert_eq!(notice, Some(Notice::Trial { passed: true }), "{outcome:?}");
        }
        assert_eq!(gate.all_faults(), 0);
    }

    #[test]
    fn each_run_of_faults_is_told_of_and_an_answer_ends_it() {
        let gate = gate(3);
        let told = |outcome| {
            let admission = gate.enter().unwrap();
            end(&gate, admission, outcome) == Some(Notice::FaultsInARow)
        };
        let pushed = Outcome::Pushed(StatusCode::UNAVAILABLE);
        for (at, outcome, expected) in [
            (1, UNAVAILABLE, false),
            (2, UNAVAILABLE, false),
            (3, OK, false),
            (4, UNAVAILABLE, false),
            (5, UNAVAILABLE, false),
            // Neither speaks of the server: the run goes on.
            (6, Outcome::Cancelled, false),
            (7, pushed, false),
            (8, UNAVAILABLE, true),
            (9, UNAVAILABLE, false),
            (10, UNAVAILABLE, false),
            (11, UNAVAILABLE, true),
        ] {
            assert_eq!(told(outcome), expected, "call {at}");
        }
        assert_eq!(gate.all_faults(), 8);
        // Whoever stands otherwise begins anew.
        gate.set(Entry::Open);
        assert!(!told(UNAVAILABLE) && !told(UNAVAILABLE) && told(UNAVAILABLE));
    }

    #[test]
    fn the_classifier_of_the_terms_decides() {
        let classifier = Classifier::default()
            .with(StatusCode::ABORTED, Blame::Server)
            .with(StatusCode::UNAVAILABLE, Blame::Nobody);
        let gate = Gate::new(Terms {
            faults_in_a_row: Some(1),
            classifier,
            ..Terms::NONE
        });
        let admission = gate.enter().unwrap();
        assert_eq!(end(&gate, admission, UNAVAILABLE), None);
        let admission = gate.enter().unwrap();
        let aborted = Outcome::Answered(StatusCode::ABORTED);
        let notice = end(&gate, admission, aborted);
        assert_eq!(notice, Some(Notice::FaultsInARow));
        assert_eq!(gate.all_faults(), 1);
    }

    #[test]
    fn a_limit_is_heeded_and_only_then_are_calls_counted() {
        let gate = Gate::new(Terms {
            max_in_flight: Some(2),
            ..Terms::NONE
        });
        assert!(gate.is_narrow());
        assert_eq!(gate.entrance(|| 1), Entrance::Free);
        assert_eq!(gate.entrance(|| 2), Entrance::Full);
        let gate = Gate::new(Terms::NONE);
        let free = gate.entrance(|| unreachable!("nobody asked for a limit"));
        assert_eq!(free, Entrance::Free);
        assert!(!gate.is_narrow());
        gate.set(Entry::Trial);
        assert!(gate.is_narrow(), "calls wait for the trial of another");
        gate.set(Entry::Open);
        assert!(!gate.is_narrow());
    }

    #[test]
    fn spared_for_the_window_and_no_longer() {
        let gate = Gate::new(Terms::NONE);
        let window = Duration::from_secs(5);
        assert_eq!(gate.spared(ms(0)), None);
        gate.spare(ms(1_000), window);
        let at = |millis| {
            gate.spared(ms(millis)).map(|(elapsed, of)| {
                assert_eq!(of, window);
                elapsed.as_millis()
            })
        };
        assert_eq!(at(1_000), Some(0));
        // By a clock read before it came back.
        assert_eq!(at(900), Some(0));
        assert_eq!(at(3_500), Some(2_500));
        assert_eq!(at(5_999), Some(4_999));
        assert_eq!(at(6_000), None);
    }
}
