//! What next, for this one call?

use std::time::Duration;

use super::budget::Budget;
use super::policy::{Codes, HedgingPolicy, MOST_ATTEMPTS, RetryPolicy};
use super::pushback::Pushback;
use crate::report::StatusCode;
use crate::rng::remix;
use crate::timestamp::Timestamp;

/// The attempts of one call: told how each goes, it says when to make another and which of them is the call's answer.
///
/// After every piece of news (`handle_*`), and at the time it last said to wait for, ask [`poll`](Self::poll), again
/// and again until it says [`Step::Wait`] or ends. An attempt that goes elsewhere because it never reached a server is
/// still the same attempt: such transparent retries are not told here, and cost nothing.
///
/// ```
/// use equipoise::retry::{Attempts, Budget, Pushback, RetryBudget, RetryPolicy, Step};
/// use equipoise::{StatusCode, Timestamp};
///
/// let budget = Budget::new(&RetryBudget::default());
/// let begun = Timestamp::from_secs(5);
/// budget.call(begun);
/// let mut attempts = Attempts::retrying(&RetryPolicy::default(), None, 1 << 63);
/// assert_eq!(attempts.poll(&budget, begun), Step::Start { attempt: 0 });
/// assert_eq!(attempts.poll(&budget, begun), Step::Wait { until: Timestamp::MAX });
///
/// let (code, failed) = (StatusCode::UNAVAILABLE, Timestamp::from_millis(5_010));
/// attempts.handle_ended(0, code, Pushback::Unsaid, &budget, failed);
/// let Step::Wait { until } = attempts.poll(&budget, failed) else { panic!() };
/// assert_eq!(attempts.poll(&budget, until), Step::Start { attempt: 1 });
///
/// attempts.handle_head(1);
/// assert_eq!(attempts.poll(&budget, until), Step::Commit { attempt: 1 });
/// ```
#[derive(Debug)]
pub struct Attempts {
    rule: Rule,
    /// Of the call; never, where it has none.
    deadline: Timestamp,
    max_attempts: u32,
    codes: Codes,
    /// How many have begun.
    begun: u32,
    /// Those that have begun and not ended: a bit each.
    running: u32,
    /// The last of those that have ended.
    ended: u32,
    /// While the call is undecided: one of these two, or `running`, is not empty.
    next: Option<Next>,
    end: Option<Step>,
}

#[derive(Debug)]
enum Rule {
    Retry {
        policy: RetryPolicy,
        random: u64,
        /// Waits of our own choosing since the server last chose one.
        waits: u32,
    },
    Hedge {
        delay: Duration,
        /// What servers have asked for.
        not_before: Timestamp,
    },
}

/// The attempt to come, before the deadline.
#[derive(Clone, Copy, Debug)]
struct Next {
    at: Timestamp,
    /// The budget has been asked; a copy of what is under way asks only when its time has come.
    paid: bool,
}

/// What to do next for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an attempt now.
    Start {
        /// Its number: 0 is the first. It is the value of `grpc-previous-rpc-attempts`, which the first has not.
        attempt: u32,
    },
    /// Nothing, until an attempt has news or this time has come; [`Timestamp::MAX`] never comes.
    Wait {
        /// When to ask again.
        until: Timestamp,
    },
    /// The call is this attempt from now on, whatever comes of it: cancel the others, and keep no more of the request
    /// than this one still needs. Asked again, it is the same.
    Commit {
        /// One that is under way.
        attempt: u32,
    },
    /// The call ends as this attempt has ended: cancel the others. Asked again, it is the same.
    Finish {
        /// One that has ended.
        attempt: u32,
    },
    /// The deadline has passed: cancel all attempts; the call ends with DEADLINE_EXCEEDED. Asked again, it is the same.
    Expire,
}

impl Attempts {
    /// A call that is tried again when it fails; `random` is a word of its own.
    pub fn retrying(policy: &RetryPolicy, deadline: Option<Timestamp>, random: u64) -> Self {
        let rule = Rule::Retry {
            policy: *policy,
            random,
            waits: 0,
        };
        Self::new(rule, policy.max_attempts, policy.codes, deadline)
    }

    /// A call that is sent again when it takes long; `p95` is what its method takes, where the policy
    /// [asks for that](HedgingPolicy::is_live) and it is known.
    pub fn hedging(
        policy: &HedgingPolicy,
        p95: Option<Duration>,
        deadline: Option<Timestamp>,
    ) -> Self {
        let rule = Rule::Hedge {
            delay: policy.delay(p95),
            not_before: Timestamp::ZERO,
        };
        Self::new(rule, policy.max_attempts, policy.codes, deadline)
    }

    fn new(rule: Rule, max_attempts: u32, codes: Codes, deadline: Option<Timestamp>) -> Self {
        Self {
            rule,
            deadline: deadline.unwrap_or(Timestamp::MAX),
            max_attempts: max_attempts.clamp(1, MOST_ATTEMPTS),
            codes,
            begun: 0,
            running: 0,
            ended: 0,
            next: Some(Next {
                at: Timestamp::ZERO,
                paid: true,
            }),
            end: None,
        }
    }

    /// How many attempts have begun.
    pub fn begun(&self) -> u32 {
        self.begun
    }

    /// The attempt has left for a server. Only from here on does it take long.
    pub fn handle_started(&mut self, attempt: u32, now: Timestamp) {
        let newest = attempt + 1 == self.begun && self.is_running(attempt);
        if let (Rule::Hedge { delay, not_before }, true, None) = (&self.rule, newest, self.next) {
            // Counted from here, not from the first: a client that was held up does not send all copies at once.
            let at = (now + *delay).max(*not_before);
            self.next = self.may_start_at(at).then_some(Next { at, paid: false });
        }
    }

    /// The attempt has its response headers, which are not those of a failure without a body ("trailers-only").
    pub fn handle_head(&mut self, attempt: u32) {
        if self.is_running(attempt) {
            self.commit(attempt);
        }
    }

    /// The attempt ended without response headers, or with nothing but trailers: by the server's word, or by ours
    /// where no endpoint could be reached or a connection broke. Cancelled attempts are not told.
    pub fn handle_ended(
        &mut self,
        attempt: u32,
        code: StatusCode,
        pushback: Pushback,
        budget: &Budget,
        now: Timestamp,
    ) {
        if !self.is_running(attempt) {
            return;
        }
        self.running &= !(1 << attempt);
        self.ended = attempt;
        let success = code == StatusCode::OK;
        let decides = success || !self.codes.contains(code);
        // Also where no attempts are left: what is measured is the servers, not this call.
        if !decides || pushback == Pushback::Stop && !success {
            budget.failed();
        }
        if decides {
            self.finish(attempt);
            return;
        }
        let at = match (&mut self.rule, pushback) {
            (_, Pushback::Stop) => {
                self.max_attempts = self.begun;
                now
            }
            (Rule::Retry { waits, .. }, Pushback::After(wait)) => {
                *waits = 0;
                now + wait
            }
            (
                Rule::Retry {
                    policy,
                    random,
                    waits,
                },
                Pushback::Unsaid,
            ) => {
                *random = remix(*random);
                let wait = policy.backoff(*waits, *random);
                *waits += 1;
                now + wait
            }
            (Rule::Hedge { not_before, .. }, Pushback::After(wait)) => {
                *not_before = (now + wait).max(*not_before);
                *not_before
            }
            (Rule::Hedge { not_before, .. }, Pushback::Unsaid) => now.max(*not_before),
        };
        // The budget comes last: what it gives is spent. Two failures before the next attempt begins are followed by
        // that one alone.
        let paid = self.next.is_some_and(|next| next.paid);
        let starts = self.may_start_at(at) && (paid || budget.try_retry(now));
        self.next = starts.then_some(Next { at, paid: true });
        if self.running == 0 && !starts {
            self.finish(attempt);
        }
    }

    /// The attempt was not sent, for want of a place to wait in: that says nothing of servers. Others that are under way
    /// go on, and no further one begins.
    pub fn handle_turned_away(&mut self, attempt: u32) {
        if !self.is_running(attempt) {
            return;
        }
        self.running &= !(1 << attempt);
        self.max_attempts = self.begun;
        self.next = None;
        if self.running == 0 {
            self.finish(attempt);
        }
    }

    /// The request has outgrown what is kept of it to be sent again; `attempt` is the one that most of it was sent on,
    /// and the only one that can have the rest. While any is under way the call is this one, also where it has ended
    /// already; where none is, the call ends as the last did. No other may begin from here on.
    pub fn handle_overflow(&mut self, attempt: u32) {
        if self.end.is_some() {
            return;
        }
        self.max_attempts = self.begun.max(1);
        match self.running {
            // Nobody has been sent any of it yet.
            0 if self.begun == 0 => {}
            // None is left to carry it.
            0 => self.finish(self.ended),
            _ if self.is_running(attempt) => self.commit(attempt),
            _ if attempt < self.begun => self.finish(attempt),
            running => self.commit(running.trailing_zeros()),
        }
    }

    /// What to do now.
    pub fn poll(&mut self, budget: &Budget, now: Timestamp) -> Step {
        if let Some(end) = self.end {
            return end;
        }
        if now >= self.deadline {
            return self.over(Step::Expire);
        }
        match self.next {
            Some(next) if next.at > now => Step::Wait { until: next.at },
            Some(next) => {
                self.next = None;
                // A copy that is refused is not sent later either; what it was to be a copy of goes on.
                match next.paid || budget.try_hedge(now) {
                    true => self.start(),
                    false => Step::Wait {
                        until: self.deadline,
                    },
                }
            }
            None => Step::Wait {
                until: self.deadline,
            },
        }
    }

    fn start(&mut self) -> Step {
        let attempt = self.begun;
        self.begun += 1;
        self.running |= 1 << attempt;
        Step::Start { attempt }
    }

    fn is_running(&self, attempt: u32) -> bool {
        attempt < self.begun && self.running & 1 << attempt != 0 && self.end.is_none()
    }

    fn may_start_at(&self, at: Timestamp) -> bool {
        self.begun < self.max_attempts && at < self.deadline
    }

    fn commit(&mut self, attempt: u32) {
        self.over(Step::Commit { attempt });
    }

    fn finish(&mut self, attempt: u32) {
        self.over(Step::Finish { attempt });
    }

    fn over(&mut self, end: Step) -> Step {
        self.next = None;
        self.end = Some(end);
        end
    }
}

#[cfg(test)]
mod tests;
