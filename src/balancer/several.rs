//! Does an endpoint need more than one connection?

use std::time::Duration;

use super::connectivity::News;
use super::{Action, AttemptId, Balancer};
use crate::endpoint::EndpointId;
use crate::timestamp::Timestamp;

/// How often it is asked whether connections beyond the first of an endpoint are still of use: a fraction of how
/// long they may stay unused.
const USAGE_EVERY: Duration = Duration::from_secs(5);

impl Balancer {
    /// A call found every connection of this endpoint at its peer's stream limit. One more is dialled, unless the
    /// endpoint has as many as [`Config::max_connections_per_endpoint`](super::Config::max_connections_per_endpoint) allows or is dialled already; if it failed
    /// before, when its backoff allows. The endpoint stays READY meanwhile.
    pub fn handle_crowded(&mut self, id: EndpointId, now: Timestamp) {
        self.tell(id, News::Crowded, now);
    }

    /// The answer to [`Action::Usage`] for one connection: whether it carries calls, or has since the last answer.
    /// News of a connection that was lost, replaced or removed before is ignored.
    pub fn handle_usage(&mut self, connection: AttemptId, busy: bool, now: Timestamp) {
        if let Some(&id) = self.attempts.get(&connection) {
            self.tell(id, News::Usage(connection, busy), now);
        }
    }

    /// Keeps the set of endpoints with more than one connection true for one of them.
    pub(super) fn note_several(&mut self, id: EndpointId, several: bool, now: Timestamp) {
        match several {
            true => self.several.insert(id),
            false => self.several.remove(&id),
        };
        self.usage = match self.several.is_empty() {
            true => None,
            false => self.usage.or(Some(now + USAGE_EVERY)),
        };
    }

    /// Asks which connections are of use, when it is time to.
    pub(super) fn ask_usage(&mut self, now: Timestamp) {
        if self.usage.is_some_and(|at| at <= now) {
            self.usage = Some(now + USAGE_EVERY);
            self.actions.push_back(Action::Usage);
        }
    }
}
