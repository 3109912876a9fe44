//! How a call ended, in the few words the pure rooms need.

use std::time::Duration;

/// gRPC's status codes by number; the pure rooms count by it and never see a `tonic::Status`.
///
/// A number beyond 16 from the wire counts as UNKNOWN, as the gRPC specification asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatusCode(u8);

impl StatusCode {
    /// How many codes there are.
    pub const COUNT: usize = 17;
    /// The call succeeded.
    pub const OK: Self = Self(0);
    /// The call was given up, by its caller or by its server.
    pub const CANCELLED: Self = Self(1);
    /// No sensible code was given.
    pub const UNKNOWN: Self = Self(2);
    /// The deadline passed first.
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// A quota or a queue was full.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// Something inside the server broke.
    pub const INTERNAL: Self = Self(13);
    /// The server cannot be reached or will not serve just now.
    pub const UNAVAILABLE: Self = Self(14);
    /// Data was lost beyond recovery.
    pub const DATA_LOSS: Self = Self(15);

    /// The code with this number; UNKNOWN beyond 16.
    pub const fn new(number: u8) -> Self {
        if number as usize >= Self::COUNT {
            return Self::UNKNOWN;
        }
        Self(number)
    }

    /// Its number, `0..17`.
    pub const fn number(self) -> usize {
        self.0 as usize
    }

    /// Whether it speaks of the server rather than of the request: these feed the error penalty of
    /// the load-aware policies. NOT_FOUND and the like are answers.
    pub const fn is_server_fault(self) -> bool {
        matches!(
            self,
            Self::UNKNOWN
                | Self::DEADLINE_EXCEEDED
                | Self::RESOURCE_EXHAUSTED
                | Self::INTERNAL
                | Self::UNAVAILABLE
                | Self::DATA_LOSS
        )
    }
}

/// How one call on one endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A status was received or, for a lost connection or a passed deadline, made by us.
    Answered(StatusCode),
    /// The caller went away first. Says nothing good of the server, and nothing bad.
    Cancelled,
    /// The call never reached the server and went elsewhere. Not held against its answers, only
    /// counted.
    Refused,
}

/// Everything that is learnt of an endpoint when a call on it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// How it ended.
    pub outcome: Outcome,
    /// From opening the stream to the first message, or to the end where there was none; for a
    /// cancelled or expired call, the time it had taken by then.
    pub latency: Duration,
}
