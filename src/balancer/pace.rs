//! Whose turn is it to dial? A line of endpoints, let through at a limited rate.

use std::collections::VecDeque;
use std::time::Duration;

use crate::endpoint::EndpointId;
use crate::timestamp::Timestamp;

/// A first-come-first-served line whose head may go when the rate allows it.
///
/// Kept as the one instant at which the next departure would be exactly on schedule: a departure
/// may run ahead of that by a tenth of a second's worth, so that a few endpoints never wait.
#[derive(Debug)]
pub(super) struct Pace {
    line: VecDeque<EndpointId>,
    interval: Duration,
    ahead: Duration,
    due: Timestamp,
}

impl Pace {
    /// At most `rate` departures a second, and a tenth of that at once.
    pub(super) fn new(rate: u32) -> Self {
        // Rounded up: rather a hair slower than one too many.
        let interval = Duration::from_nanos(1_000_000_000u64.div_ceil(u64::from(rate.max(1))));
        let burst = (rate / 10).max(1);
        Self {
            line: VecDeque::new(),
            interval,
            ahead: interval * (burst - 1),
            due: Timestamp::ZERO,
        }
    }

    /// Joins the line.
    pub(super) fn queue(&mut self, id: EndpointId) {
        self.line.push_back(id);
    }

    /// Sends away those who are not to be kept.
    pub(super) fn retain(&mut self, keep: impl Fn(EndpointId) -> bool) {
        self.line.retain(|&id| keep(id));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.line.len()
    }

    /// When the head of the line may go; nothing when nobody waits.
    pub(super) fn next_turn(&self) -> Option<Timestamp> {
        (!self.line.is_empty()).then(|| self.opens())
    }

    /// The head of the line, if it may go now. It costs nothing until [`spend`](Self::spend) says
    /// that it did go.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<EndpointId> {
        match self.opens() <= now {
            true => self.line.pop_front(),
            false => None,
        }
    }

    /// One has gone.
    pub(super) fn spend(&mut self, now: Timestamp) {
        self.due = self.due.max(now) + self.interval;
    }

    fn opens(&self) -> Timestamp {
        Timestamp::ZERO + self.due.since(Timestamp::ZERO + self.ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departures(rate: u32, waiting: u32, until: Timestamp) -> Vec<Timestamp> {
        let mut pace = Pace::new(rate);
        for slot in 0..waiting {
            pace.queue(EndpointId::new(slot, 0));
        }
        let mut now = Timestamp::ZERO;
        let mut gone = Vec::new();
        while let Some(at) = pace.next_turn().filter(|&at| at <= until) {
            now = now.max(at);
            let id = pace.pop(now).expect("it was due");
            assert_eq!(id.slot(), gone.len(), "out of turn");
            pace.spend(now);
            gone.push(now);
        }
        gone
    }

    #[test]
    fn a_tenth_goes_at_once_and_the_rest_on_schedule() {
        let gone = departures(200, 2_000, Timestamp::from_secs(60));
        assert_eq!(gone.len(), 2_000);
        assert_eq!(gone[19], Timestamp::ZERO);
        assert_eq!(gone[20], Timestamp::from_millis(5));
        assert_eq!(gone[1_999], Timestamp::from_millis(9_900));
    }

    #[test]
    fn no_second_sees_more_than_the_rate_and_a_tenth() {
        for rate in [1, 7, 200, 1_000] {
            let gone = departures(rate, 3_000, Timestamp::from_secs(20));
            for (i, &start) in gone.iter().enumerate() {
                let end = start + Duration::from_secs(1);
                let within = gone[i..].iter().take_while(|&&at| at < end).count();
                assert!(
                    within <= (rate + (rate / 10).max(1)) as usize,
                    "{within} at {rate}/s"
                );
            }
        }
    }

    #[test]
    fn a_place_in_line_that_is_not_used_costs_nothing() {
        let mut pace = Pace::new(1);
        pace.queue(EndpointId::new(0, 0));
        pace.queue(EndpointId::new(1, 0));
        assert!(pace.pop(Timestamp::ZERO).is_some());
        assert!(
            pace.pop(Timestamp::ZERO).is_some(),
            "the first was not spent"
        );
        pace.spend(Timestamp::ZERO);
        pace.queue(EndpointId::new(2, 0));
        assert_eq!(pace.pop(Timestamp::from_millis(999)), None);
        assert_eq!(pace.next_turn(), Some(Timestamp::from_secs(1)));
        assert!(pace.pop(Timestamp::from_secs(1)).is_some());
        assert_eq!(pace.next_turn(), None, "nobody waits");
    }
}
