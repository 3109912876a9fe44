//! What must be true of one endpoint, as the model has it?

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use equipoise::balancer::{AttemptId, Backoff};
use equipoise::{Address, Connectivity, Timestamp};

use crate::checks::Identity;
use crate::judged::Judged;
use crate::wishes::Wish;

/// The model of one endpoint.
pub(crate) struct Track {
    pub(crate) identity: Identity,
    pub(crate) state: Connectivity,
    pub(crate) live: BTreeMap<AttemptId, Live>,
    /// Calls it answered without a fault of its own.
    pub(crate) served: u64,
    pub(crate) under_way: BTreeSet<AttemptId>,
    /// Addresses dialled in the pass that goes on.
    pub(crate) tried: BTreeSet<Address>,
    pub(crate) failures: u32,
    /// Its last connection was short-lived and let pass.
    pub(crate) spared: bool,
    pub(crate) failed: Failure,
    /// It wore out too soon, and its replacement is being waited for or made.
    pub(crate) replacing: bool,
    /// What the policies wish for it, as far as they have been asked.
    pub(crate) wish: Wish,
    /// A call asked for it; good for one pass.
    pub(crate) asked: bool,
    /// A connection wore out and has not been replaced.
    pub(crate) wears: bool,
    /// It was let go of, and has not failed since.
    pub(crate) let_go: bool,
    /// No pass may begin before.
    pub(crate) not_before: Timestamp,
    /// By then the backoff is over.
    pub(crate) not_after: Timestamp,
    /// The list does not have it any more.
    pub(crate) leaving: bool,
    pub(crate) judged: Judged,
}

/// Whether it looks failed while it is not connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Failure {
    None,
    /// Until it is connected.
    Lasting,
    /// It was let go of in its backoff: until that is over, somewhere between the two.
    Forgotten {
        from: Timestamp,
        until: Timestamp,
    },
}

pub(crate) struct Live {
    pub(crate) since: Timestamp,
    /// Calls the endpoint had served before.
    pub(crate) served: u64,
    pub(crate) proven: bool,
    pub(crate) worn: bool,
}

impl Track {
    pub(crate) fn forgive(&mut self, backoff: &Backoff, now: Timestamp) {
        let stable = backoff.base.min(Duration::from_millis(250));
        for live in self.live.values_mut().filter(|live| !live.proven) {
            if now >= live.since + stable || self.served >= live.served + 100 {
                live.proven = true;
                self.failures = 0;
                self.spared = false;
            }
        }
    }

    pub(crate) fn fail(&mut self, backoff: &Backoff, now: Timestamp) {
        self.failures += 1;
        // A microsecond for rounding.
        let rounding = Duration::from_micros(1);
        let nominal = backoff.nominal(self.failures);
        let least = nominal.mul_f64(1.0 - backoff.jitter);
        self.not_before = now + least.saturating_sub(rounding);
        self.not_after = now + nominal.mul_f64(1.0 + backoff.jitter) + rounding;
    }

    /// It looks failed from now on: for the time of its backoff where nobody but calls wants it.
    pub(crate) fn look_failed(&mut self) {
        self.let_go = self.wish == Wish::LetGo;
        self.failed = match self.let_go {
            true => self.forgotten(),
            false => Failure::Lasting,
        };
    }

    fn forgotten(&self) -> Failure {
        Failure::Forgotten {
            from: self.not_before,
            until: self.not_after,
        }
    }

    /// Nobody wants it connected any more.
    pub(crate) fn let_go(&mut self) {
        let waits = self.tried.is_empty() && (self.replacing || self.failed != Failure::None);
        self.failed = match waits {
            true => self.forgotten(),
            false => Failure::None,
        };
        self.live.clear();
        self.tried.clear();
        self.asked = false;
        self.replacing = false;
        self.wears = false;
        self.let_go = true;
    }
}
