//! How many calls ended which way.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::report::StatusCode;

/// How the calls of one endpoint ended, since it was added: a copy made at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    pub(super) answered: [u64; StatusCode::COUNT],
    pub(super) cancelled: u64,
    pub(super) refused: u64,
}

impl Outcomes {
    /// Calls that ended with `code`.
    pub fn answered(&self, code: StatusCode) -> u64 {
        self.answered[code.number()]
    }

    /// Calls that the server answered with anything but a fault of its own.
    pub(crate) fn served(&self) -> u64 {
        let codes = (0..).map(StatusCode::new).zip(self.answered);
        codes
            .filter(|(code, _)| !code.is_server_fault())
            .map(|(_, count)| count)
            .sum()
    }

    /// Calls whose caller went away first.
    pub fn cancelled(&self) -> u64 {
        self.cancelled
    }

    /// Calls that never reached the server and went elsewhere.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// These and those.
    pub(super) fn plus(mut self, others: Self) -> Self {
        for (sum, count) in self.answered.iter_mut().zip(others.answered) {
            *sum += count;
        }
        self.cancelled += others.cancelled;
        self.refused += others.refused;
        self
    }

    /// All calls that have ended.
    pub fn total(&self) -> u64 {
        self.answered.iter().sum::<u64>() + self.cancelled + self.refused
    }
}

/// The live counts. Of OK there is none: those are the answers that no other count holds, which
/// spares the common case an atomic operation.
#[derive(Debug)]
pub(super) struct Counters {
    others: [AtomicU64; StatusCode::COUNT],
    cancelled: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    pub(super) const fn new() -> Self {
        Self {
            others: [const { AtomicU64::new(0) }; StatusCode::COUNT],
            cancelled: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(super) fn answered(&self, code: StatusCode) {
        if code != StatusCode::OK {
            add(&self.others[code.number()]);
        }
    }

    pub(super) fn cancelled(&self) {
        add(&self.cancelled);
    }

    pub(super) fn refused(&self) {
        add(&self.refused);
    }

    /// The counts, when `answers` calls were answered in all. Read first what counts answers: a call
    /// that ends meanwhile then makes OK too small for a moment, never negative.
    pub(super) fn read(&self, answers: u64) -> Outcomes {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut answered = [0; StatusCode::COUNT];
        for (copy, count) in answered.iter_mut().zip(&self.others) {
            *copy = get(count);
        }
        let not_ok: u64 = answered.iter().sum();
        answered[StatusCode::OK.number()] = answers.saturating_sub(not_ok);
        Outcomes {
            answered,
            cancelled: get(&self.cancelled),
            refused: get(&self.refused),
        }
    }
}

fn add(count: &AtomicU64) {
    // Relaxed: a count guards no other data.
    count.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ok_is_what_no_other_code_claims() {
        let counters = Counters::new();
        for code in [StatusCode::OK, StatusCode::UNAVAILABLE, StatusCode::new(5)] {
            counters.answered(code);
        }
        counters.cancelled();
        counters.refused();
        counters.refused();
        let outcomes = counters.read(3);
        assert_eq!(outcomes.answered(StatusCode::OK), 1);
        assert_eq!(outcomes.answered(StatusCode::UNAVAILABLE), 1);
        assert_eq!(outcomes.answered(StatusCode::new(5)), 1);
        assert_eq!(
            (outcomes.cancelled(), outcomes.refused(), outcomes.total()),
            (1, 2, 6)
        );
        assert_eq!(outcomes.served(), 2, "OK and NOT_FOUND, not UNAVAILABLE");
        assert_eq!(
            counters.read(0).answered(StatusCode::OK),
            0,
            "never below zero"
        );
    }
}
