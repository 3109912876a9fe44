//! The only file that reads a clock.

use std::time::Duration;

use tokio::time::Instant;

use crate::Timestamp;

/// Turns the runtime's monotonic clock into [`Timestamp`]s and back.
///
/// tokio's clock rather than the standard one, so that a paused test clock drives a whole channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            epoch: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.epoch.elapsed()
    }

    /// The runtime's instant for `at`; far enough away to mean "never" where it cannot be expressed.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        const FAR: Duration = Duration::from_secs(86_400 * 365 * 30);
        let offset = Duration::from_nanos(at.as_nanos()).min(FAR);
        self.epoch + offset
    }
}
