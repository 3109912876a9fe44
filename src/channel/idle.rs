//! Is anybody still making calls?

use std::time::Duration;

use crate::timestamp::Timestamp;

/// Notices that none was made for long enough, by looking at the counts now and then: calls themselves do nothing for it.
#[derive(Debug)]
pub(super) struct Idleness {
    timeout: Option<Duration>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing was seen to happen since then.
    Quiet {
        since: Timestamp,
        looked: Timestamp,
        picks: u64,
    },
    Idle,
}

impl Idleness {
    /// Begins with the channel; `None` never ends.
    pub(super) fn new(timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            state: State::Quiet {
                since: Timestamp::ZERO,
                looked: Timestamp::ZERO,
                picks: 0,
            },
        }
    }

    /// When to look next.
    pub(super) fn due(&self) -> Option<Timestamp> {
        match self.state {
            State::Quiet { looked, .. } => self.timeout.map(|timeout| looked + timeout / 8),
            State::Idle => None,
        }
    }

    /// A look: `picks` calls were given to endpoints so far; `busy`: some are under way or wait. Whether the time has
    /// come, which is said once.
    pub(super) fn look(&mut self, picks: u64, busy: bool, now: Timestamp) -> bool {
        if self.due().is_none_or(|due| due > now) {
            return false;
        }
        let State::Quiet {
            since,
            looked,
            picks: before,
        } = &mut self.state
        else {
            return false;
        };
        *looked = now;
        if std::mem::replace(before, picks) != picks || busy {
            *since = now;
        }
        let idle = self
            .timeout
            .is_some_and(|timeout| now.since(*since) >= timeout);
        if idle {
            self.state = State::Idle;
        }
        idle
    }

    /// A call is made. Whether the channel was idle.
    pub(super) fn end(&mut self, now: Timestamp) -> bool {
        let was = matches!(self.state, State::Idle);
        if was {
            self.state = State::Quiet {
                since: now,
                looked: now,
                picks: 0,
            };
        }
        was
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn idle_when_nothing_happened_for_the_timeout() {
        let mut idleness = Idleness::new(Some(Duration::from_millis(800)));
        assert_eq!(idleness.due(), Some(ms(100)));
        assert!(!idleness.look(0, false, ms(99)), "not yet time to look");
        for at in [100, 200, 300, 400, 500, 600, 700] {
            assert!(!idleness.look(0, false, ms(at)), "{at}");
        }
        assert!(!idleness.look(1, false, ms(800)), "a call was made");
        assert!(!idleness.look(1, false, ms(1_500)));
        assert!(!idleness.look(1, true, ms(1_600)), "one is under way");
        assert!(!idleness.look(1, false, ms(2_399)));
        assert!(idleness.look(1, false, ms(2_500)));
        assert_eq!(idleness.due(), None);
        assert!(!idleness.look(1, false, ms(9_999)), "said once");
        assert!(idleness.end(ms(10_000)) && !idleness.end(ms(10_001)));
        assert!(!idleness.look(0, false, ms(10_100)));
        assert!(idleness.look(0, false, ms(10_900)));
    }

    #[test]
    fn never_without_a_timeout() {
        let mut idleness = Idleness::new(None);
        assert_eq!(idleness.due(), None);
        assert!(!idleness.look(0, false, Timestamp::MAX));
    }
}
