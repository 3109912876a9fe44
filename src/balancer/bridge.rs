//! How do endpoints leave?
//!
//! At once, or, when nobody on the new list can take a call yet, as soon as somebody can: calls have somebody to go to
//! in between.

use super::{Action, Balancer, Stale};
use crate::balancer::table::Row;
use crate::endpoint::Connectivity;
use crate::timestamp::Timestamp;

impl Balancer {
    /// Notes a new list's departures. `closed` are gone; others may be kept for a while.
    pub(super) fn depart(&mut self, closed: Vec<Row>, now: Timestamp) {
        self.bridge = match self.table.is_leaving() {
            true => self.bridge.or(Some(now + self.config.linger)),
            false => None,
        };
        self.close(closed, now);
    }

    /// Whether anybody has to leave now: an endpoint went over to `state`. `leaving`: it is not in the
    /// list any more.
    pub(super) fn depart_by_state(&mut self, leaving: bool, state: Connectivity, now: Timestamp) {
        match (leaving, state) {
            (false, Connectivity::Ready) => self.end_bridge(now),
            // It can take no calls, so it is of no use.
            (true, Connectivity::Idle | Connectivity::Connecting)
            | (true, Connectivity::TransientFailure | Connectivity::Shutdown) => {
                let gone = self
                    .table
                    .take_leaving(|row| row.state != Connectivity::Ready);
                if !self.table.is_leaving() {
                    self.bridge = None;
                }
                self.close(gone, now);
            }
            (true, Connectivity::Ready) | (false, _) => {}
        }
    }

    /// Lets those go whose time is up.
    pub(super) fn depart_by_time(&mut self, now: Timestamp) {
        if self.bridge.is_some_and(|until| until <= now) {
            self.end_bridge(now);
        }
    }

    fn end_bridge(&mut self, now: Timestamp) {
        if self.bridge.take().is_some() {
            let gone = self.table.take_leaving(|_| true);
            self.close(gone, now);
        }
    }

    /// Ends everything that is under way for endpoints that were taken out of the table.
    fn close(&mut self, rows: Vec<Row>, now: Timestamp) {
        if rows.is_empty() {
            return;
        }
        self.stale = Stale::Urgent;
        for row in &rows {
            *self.tally.count(row.state) -= 1;
            self.unusable -= usize::from(row.unusable);
            if let Some(outliers) = &mut self.outliers {
                outliers.remove(row.id);
            }
            if let Some(at) = row.deadline {
                self.deadlines.remove(&(at, row.id));
            }
            self.several.remove(&row.id);
            for connection in row.link.live() {
                self.attempts.remove(&connection);
            }
            for &attempt in row.link.under_way() {
                self.attempts.remove(&attempt);
                self.actions.push_back(Action::Abandon { attempt });
            }
            self.actions.push_back(Action::Close { id: row.id });
        }
        if self.several.is_empty() {
            self.usage = None;
        }
        let table = &self.table;
        self.pace.retain(|id| table.contains(id));
        // Of those who stay fewer may be out than before.
        self.restand(now);
    }
}
