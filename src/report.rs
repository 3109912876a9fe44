//! What is learnt of an endpoint: how a call ended, and what the server said of itself.

use std::fmt;
use std::sync::Arc;
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
    /// The call was given up.
    pub const CANCELLED: Self = Self(1);
    /// No sensible code was given.
    pub const UNKNOWN: Self = Self(2);
    /// The deadline passed first.
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// The call was given up for a conflict with another.
    pub const ABORTED: Self = Self(10);
    /// A quota or a queue was full.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// Something inside the server broke.
    pub const INTERNAL: Self = Self(13);
    /// The server cannot be reached or will not serve just now.
    pub const UNAVAILABLE: Self = Self(14);
    /// Data was lost beyond recovery.
    pub const DATA_LOSS: Self = Self(15);
    /// The request is wrong, whatever the state of things.
    pub const INVALID_ARGUMENT: Self = Self(3);
    /// What was asked for is not there.
    pub const NOT_FOUND: Self = Self(5);
    /// What was to be made is there already.
    pub const ALREADY_EXISTS: Self = Self(6);
    /// The caller may not do that.
    pub const PERMISSION_DENIED: Self = Self(7);
    /// Things are not in the state that the request needs.
    pub const FAILED_PRECONDITION: Self = Self(9);
    /// Beyond the end of what there is.
    pub const OUT_OF_RANGE: Self = Self(11);
    /// The server does not know the method.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// The caller is not known to be whom it says.
    pub const UNAUTHENTICATED: Self = Self(16);

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
    /// The same, and the server asked for time before anybody tries again (`grpc-retry-pushback-ms`): that speaks of its
    /// load, whatever the code.
    Pushed(StatusCode),
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
    /// From opening the stream to the first message, or to the end where there was none; for an
    /// expired call, the time it had taken by then.
    pub latency: Duration,
}

/// What a server said of itself: the figures of gRPC's backend metrics (ORCA, gRFC A51).
///
/// Reports are handed in by [`Channel::report_load`](crate::Channel::report_load). Which figures count is for the
/// policy to say: [`LeastUtilization`](crate::policy::LeastUtilization) needs a [`utilization`](Self::utilization),
/// [`WeightedRoundRobin::reported`](crate::policy::WeightedRoundRobin::reported) that and `rps`, and heeds `eps`;
/// [`LeastLoad`](crate::policy::LeastLoad) what its function reads. A metric of your own, such as the length of a queue
/// by what it may hold, goes into `application_utilization`.
///
/// All are zero or more; zero stands for "not said", as in the message they come in. Whoever takes a report
/// ignores what is not: a value that is negative, infinite or no number counts as not said, and so does a memory
/// utilization above 1. More figures may be added: end a literal with `..LoadReport::default()`.
///
/// ```
/// use equipoise::LoadReport;
///
/// let report = LoadReport {
///     cpu_utilization: 0.4,
///     rps: 120.0,
///     ..LoadReport::default()
/// };
/// assert_eq!(report.utilization(), Some(0.4));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// Share of its processors that is busy; above 1 where it may use more than it was promised.
    pub cpu_utilization: f64,
    /// How full it is by a measure of its own; 1 is full, and more is possible. Preferred to that of the processors.
    pub application_utilization: f64,
    /// Share of its memory in use, up to 1.
    pub mem_utilization: f64,
    /// Requests per second that it answers, of all its clients: `rps_fractional` in the message, QPS in gRPC's words.
    pub rps: f64,
    /// Errors per second among those.
    pub eps: f64,
}

impl LoadReport {
    /// How full the server is: by its own measure, else by its processors. `None` where it said neither.
    pub fn utilization(&self) -> Option<f64> {
        let both = [self.application_utilization, self.cpu_utilization];
        both.into_iter()
            .find(|&said| said > 0.0 && said.is_finite())
    }

    /// The same without what no server can mean.
    pub(crate) fn sane(&self) -> Self {
        let sane = |value: f64, most: f64| match value > 0.0 && value <= most {
            true => value,
            false => 0.0,
        };
        Self {
            cpu_utilization: sane(self.cpu_utilization, f64::MAX),
            application_utilization: sane(self.application_utilization, f64::MAX),
            mem_utilization: sane(self.mem_utilization, 1.0),
            rps: sane(self.rps, f64::MAX),
            eps: sane(self.eps, f64::MAX),
        }
    }
}

/// What a health check has found: whether a server that is connected can take calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Asked, and not answered so far: no calls yet.
    #[default]
    Unknown,
    /// It takes calls.
    Serving,
    /// It cannot be asked, and counts as serving: it has no health service (gRFC A17 wants it so), or no stream to
    /// spare for the question.
    Unchecked,
    /// It is to get no calls.
    NotServing(Unfit),
}

impl Health {
    /// Whether calls may be sent there.
    pub fn is_serving(&self) -> bool {
        matches!(self, Self::Serving | Self::Unchecked)
    }
}

/// Why a connected server is to get no calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It says so itself: NOT_SERVING, or any status but SERVING and SERVICE_UNKNOWN.
    SaysSo,
    /// It does not know the service that it was asked about: SERVICE_UNKNOWN.
    UnknownService,
    /// It no longer says anything: the call that asked has ended, for this reason.
    WatchEnded(Arc<str>),
    /// Its address takes no new connections, for this reason.
    Unreachable(Arc<str>),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SaysSo => f.write_str("the server says that it is not serving"),
            Self::UnknownService => {
                f.write_str("the server's health service does not know the service asked about")
            }
            Self::WatchEnded(why) => write!(f, "the server's health watch ended: {why}"),
            Self::Unreachable(why) => write!(f, "the server takes no new connections: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_server_can_mean_counts_as_not_said() {
        for bad in [-1.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let report = LoadReport {
                cpu_utilization: bad,
                application_utilization: bad,
                mem_utilization: bad,
                rps: bad,
                eps: bad,
            };
            assert_eq!(report.utilization(), None, "{bad}");
            assert_eq!(report.sane(), LoadReport::default(), "{bad}");
        }
        let report = LoadReport {
            cpu_utilization: 1.5,
            application_utilization: 7.0,
            mem_utilization: 1.0,
            rps: 1e300,
            eps: 1e-300,
        };
        assert_eq!(report.sane(), report);
        let more_than_all = LoadReport {
            mem_utilization: 1.01,
            ..LoadReport::default()
        };
        assert_eq!(more_than_all.sane(), LoadReport::default());
    }

    #[test]
    fn its_own_measure_is_preferred_to_that_of_the_processors() {
        let report = |application_utilization, cpu_utilization| LoadReport {
            application_utilization,
            cpu_utilization,
            ..LoadReport::default()
        };
        assert_eq!(report(0.5, 0.9).utilization(), Some(0.5));
        assert_eq!(report(0.0, 0.9).utilization(), Some(0.9));
        assert_eq!(report(f64::NAN, 0.9).utilization(), Some(0.9));
        assert_eq!(report(-0.5, 0.0).utilization(), None);
    }
}
