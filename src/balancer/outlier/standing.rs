//! May an endpoint have calls, and how does that change?

use std::fmt;

use super::config::OutlierDetection;
use crate::timestamp::Timestamp;

/// Whether an endpoint may have calls, as far as its answers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As many as it is picked for.
    Admitted,
    /// One at a time: it was ejected, the time has passed, and it has answered nothing yet.
    Probation,
    /// None.
    Ejected {
        /// When it will be on probation.
        until: Timestamp,
    },
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Admitted => "admitted",
            Self::Probation => "on probation",
            Self::Ejected { .. } => "ejected",
        })
    }
}

/// What can happen to the standing of one endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// It fails where others do not, and may be ejected.
    Accused(Timestamp),
    /// So late it is.
    Time(Timestamp),
    /// A call that began on probation was answered.
    Answered,
    /// A call that began on probation failed.
    Failed(Timestamp),
    /// It has to make room, since too many are out.
    RoomNeeded,
    /// It was lost and is connected again: most often another process answers now.
    Reconnected,
}

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) standing: Standing,
    /// When its last ejection was to end.
    pub(super) until: Timestamp,
    /// How many times over it is out when it is ejected the next time, less one.
    pub(super) multiplier: u32,
    /// It was let back since the last sweep: calls from before it was ejected may be in its counts.
    let_back: bool,
}

impl Record {
    pub(super) const NEW: Self = Self {
        standing: Standing::Admitted,
        until: Timestamp::ZERO,
        multiplier: 0,
        let_back: false,
    };

    /// Takes news; says whether the standing has changed. News that comes too late, or too early, changes nothing.
    pub(super) fn handle(&mut self, news: News, config: &OutlierDetection) -> bool {
        use Standing::{Admitted, Ejected, Probation};
        self.standing = match (self.standing, news) {
            (Admitted, News::Accused(now)) | (Probation, News::Failed(now)) => {
                self.multiplier = self.multiplier.saturating_add(1);
                self.until = now + config.ejection_time(self.multiplier);
                Ejected { until: self.until }
            }
            (Ejected { until }, News::Time(now)) if until <= now => {
                self.let_back = true;
                Probation
            }
            (Ejected { .. }, News::Reconnected) => {
                self.let_back = true;
                Probation
            }
            (Ejected { .. }, News::RoomNeeded) => {
                self.let_back = true;
                Admitted
            }
            (Probation, News::Answered | News::RoomNeeded) => Admitted,
            (
                Admitted,
                News::Time(_)
                | News::Answered
                | News::Failed(_)
                | News::RoomNeeded
                | News::Reconnected,
            )
            | (Probation, News::Accused(_) | News::Time(_) | News::Reconnected)
            | (
                Ejected { .. },
                News::Accused(_) | News::Time(_) | News::Answered | News::Failed(_),
            ) => return false,
        };
        true
    }

    /// Whether its counts speak of it as it is now.
    pub(super) fn is_candidate(&self) -> bool {
        self.standing == Standing::Admitted && !self.let_back
    }

    /// A sweep is over. An interval without any ejection takes back one time.
    pub(super) fn end_interval(&mut self) {
        let ejected = matches!(self.standing, Standing::Ejected { .. });
        if !ejected && !self.let_back {
            self.multiplier = self.multiplier.saturating_sub(1);
        }
        self.let_back = false;
    }
}
