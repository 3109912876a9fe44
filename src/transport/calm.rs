//! Servers that found our keepalive pings too many, and how seldom they are asked from then on.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::endpoint::Address;

/// The longest interval that complaints lead to: what gRPC servers use for pings of their own. One configured longer
/// stays.
const LONGEST: Duration = Duration::from_secs(2 * 3_600);

/// How many addresses are remembered; beyond, the one that first complained is forgotten.
const REMEMBERED: usize = 1_024;

/// Whether an error of h2 is a server's complaint about pings. The debug data of a GOAWAY can be had only from the
/// error's text.
pub(super) fn is_complaint(error: &h2::Error) -> bool {
    error.is_go_away()
        && error.is_remote()
        && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
        && error.to_string().ends_with("(b\"too_many_pings\")")
}

/// The intervals of the addresses that complained; the connections of one connector share it.
#[derive(Debug, Default)]
pub(super) struct Calm {
    // Asked once for each connection that is made.
    raised: Mutex<VecDeque<(Address, Duration)>>,
}

impl Calm {
    /// The interval for a new connection to `address`.
    pub(super) fn interval(&self, address: &Address, configured: Duration) -> Duration {
        let raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        let found = raised.iter().find(|(known, _)| known == address);
        found.map_or(configured, |(_, raised)| configured.max(*raised))
    }

    /// A server complained on a connection with this interval: the next ones have twice as much, which is given
    /// back. Several connections that were made with the same interval double it once.
    pub(super) fn complained(&self, address: &Address, used: Duration) -> Duration {
        let next = used.saturating_mul(2).min(LONGEST).max(used);
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, raised)) = raised.iter_mut().find(|(known, _)| known == address) {
            *raised = next.max(*raised);
            return *raised;
        }
        if raised.len() == REMEMBERED {
            raised.pop_front();
        }
        raised.push_back((address.clone(), next));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn address(n: usize) -> Address {
        Address::from(std::net::SocketAddr::from((
            [10, 0, (n / 256) as u8, (n % 256) as u8],
            1,
        )))
    }

    #[test]
    fn each_complaint_doubles_the_interval_of_its_address() {
        let calm = Calm::default();
        assert_eq!(calm.interval(&address(1), 10 * S), 10 * S);
        assert_eq!(calm.complained(&address(1), 10 * S), 20 * S);
        // Of a connection as old as that one.
        assert_eq!(calm.complained(&address(1), 10 * S), 20 * S);
        assert_eq!(calm.complained(&address(1), 20 * S), 40 * S);
        assert_eq!(calm.interval(&address(1), 10 * S), 40 * S);
        assert_eq!(calm.interval(&address(1), 60 * S), 60 * S);
        assert_eq!(calm.interval(&address(2), 10 * S), 10 * S);
    }

    #[test]
    fn it_goes_to_two_hours_and_never_down() {
        let calm = Calm::default();
        let mut used = 10 * S;
        for _ in 0..20 {
            used = calm.complained(&address(1), used);
        }
        assert_eq!(used, LONGEST);
        assert_eq!(calm.complained(&address(2), 2 * LONGEST), 2 * LONGEST);
        assert_eq!(calm.complained(&address(3), Duration::MAX), Duration::MAX);
    }

    #[test]
    fn so_many_addresses_are_remembered_and_no_more() {
        let calm = Calm::default();
        for n in 0..=REMEMBERED {
            calm.complained(&address(n), S);
        }
        assert_eq!(calm.interval(&address(0), S), S, "the oldest is forgotten");
        assert_eq!(calm.interval(&address(1), S), 2 * S);
        assert_eq!(calm.interval(&address(REMEMBERED), S), 2 * S);
    }
}
