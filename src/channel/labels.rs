//! What an error that this process made says of itself.

use std::time::Duration;

use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};

use crate::endpoint::Endpoint;

/// What an error of our own says of the call's journey.
#[derive(Clone, Copy, Debug)]
pub(super) struct Labels {
    pub(super) attempts: u32,
    pub(super) timeout: Duration,
}

impl Labels {
    /// DEADLINE_EXCEEDED, saying in which phase.
    pub(super) fn deadline_exceeded(&self, phase: &str, tried: Option<&Endpoint>) -> Status {
        let mut status =
            Status::deadline_exceeded(format!("deadline of {:?} exceeded {phase}", self.timeout));
        self.put_on(&mut status, tried);
        status
    }

    /// Adds `equipoise-endpoint` and `equipoise-attempts` to an error that this process made.
    pub(super) fn put_on(&self, status: &mut Status, tried: Option<&Endpoint>) {
        let metadata = status.metadata_mut();
        if let Some(endpoint) = tried {
            let name = endpoint.address().to_string();
            // A unix path may hold what a header cannot; then the name is left out.
            if let Ok(name) = name.parse::<MetadataValue<Ascii>>() {
                metadata.insert("equipoise-endpoint", name);
            }
        }
        metadata.insert("equipoise-attempts", self.attempts.into());
    }
}
