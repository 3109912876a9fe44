//! What happened, told to people: in the log, and in the notes of each seat.

use crate::balancer::{Event, Standing};
use crate::endpoint::Connectivity;
use crate::report::Health;
use crate::timestamp::Timestamp;
use crate::transport::Connector;

use super::{Arc, Driver, Heard};

impl<C: Connector> Driver<C> {
    pub(super) fn note_events(&mut self, now: Timestamp) {
        while let Some(event) = self.balancer.poll_event() {
            self.note(event, now);
        }
    }

    /// Tells people what happened.
    fn note(&self, event: Event, now: Timestamp) {
        match event {
            Event::Endpoint {
                id,
                endpoint,
                from,
                to,
                why,
            } => {
                let address = endpoint.address();
                let reason = why.as_ref().map(tracing::field::display);
                match to {
                    Connectivity::TransientFailure => {
                        tracing::warn!(target: "equipoise", %address, %from, %to, why = reason, "endpoint state");
                    }
                    _ => {
                        tracing::info!(target: "equipoise", %address, %from, %to, why = reason, "endpoint state");
                    }
                }
                if let Some(seat) = self.seat(id) {
                    let mut notes = seat.notes();
                    notes.state = to;
                    notes.since = now;
                    if why.is_some() {
                        notes.last_error = why;
                    }
                }
            }
            Event::Channel { from, to } => {
                tracing::info!(target: "equipoise", %from, %to, "channel state");
            }
            Event::Standing {
                id,
                endpoint,
                standing,
            } => {
                let address = endpoint.address();
                match standing {
                    Standing::Ejected { until } => {
                        let pause = until.since(now);
                        tracing::warn!(target: "equipoise", %address, ?pause, "endpoint ejected");
                    }
                    Standing::Probation => {
                        tracing::info!(target: "equipoise", %address, "endpoint on probation");
                    }
                    Standing::Admitted => {
                        tracing::info!(target: "equipoise", %address, "endpoint admitted");
                    }
                }
                if let Some(seat) = self.seat(id) {
                    seat.notes().standing = standing;
                }
            }
            Event::Health {
                id,
                endpoint,
                health,
            } => {
                let address = endpoint.address();
                match &health {
                    Health::NotServing(why) => {
                        tracing::warn!(target: "equipoise", %address, %why, "endpoint health");
                    }
                    health => {
                        tracing::info!(target: "equipoise", %address, ?health, "endpoint health");
                    }
                }
                if let Some(seat) = self.seat(id) {
                    seat.notes().health = health;
                }
            }
            Event::Panic { on, usable, of } => match on {
                true => {
                    tracing::warn!(target: "equipoise", usable, of, "panic: too few endpoints can be used");
                }
                false => {
                    tracing::info!(target: "equipoise", usable, of, "panic is over");
                }
            },
            Event::Switched { policy } => {
                tracing::info!(target: "equipoise", policy, "policy switched");
            }
            Event::Panicked { policy } => {
                tracing::error!(target: "equipoise", policy, "policy panicked: what it decided last holds");
            }
            Event::Resolved { .. } | Event::Kept { .. } | Event::ResolveFailed(_) => {
                let mut heard = Heard::clone(&self.core.heard.load());
                heard.note(&event, now);
                self.core.heard.store(Arc::new(heard));
            }
        }
    }
}
