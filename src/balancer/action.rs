//! The balancer's words: what it is told to heed, what it asks for, what it tells.

use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::outlier::{OutlierDetection, Standing};
use super::panic::Panic;
use crate::classifier::Classifier;
use crate::endpoint::{Address, Connectivity, Endpoint, EndpointId};
use crate::error::{ConnectError, Error, ResolveError};
use crate::load::{Loads, Terms};
use crate::policy::{HashOn, Pickers};
use crate::report::Health;
use crate::timestamp::Timestamp;

/// What a balancer heeds.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long to wait after failed attempts.
    pub backoff: Backoff,
    /// New connections per second, over all endpoints; a tenth of that may go at once. Default 200, so
    /// that a large fleet's restart is no connection storm; at least 1.
    pub connect_rate: u32,
    /// How many endpoints are used; the rest of a longer list is left out and counted. Default 10,000;
    /// at least 1. Bounds what a broken resolver can cost.
    pub max_endpoints: usize,
    /// How long one address of an endpoint is tried before the next joins in. Default 250 ms, RFC 8305's
    /// Connection Attempt Delay; at least 10 ms, its lower bound.
    pub stagger: Duration,
    /// How long ready endpoints that are not in the list any more stay in use while nobody in the list is
    /// ready: a fleet replaced at once is then no gap. Default 30 s, that of the drain deadline; 0 lets
    /// them go at once.
    pub linger: Duration,
    /// How long the last list with somebody in it stays in use when the resolver says that there is nobody,
    /// from the first time it says so. Default 0: an empty list takes effect at once. Up to 24 h.
    pub keep_last_good: Duration,
    /// Calls that one endpoint may have in flight; the rest go elsewhere. Default: no limit; at least 1.
    pub max_in_flight_per_endpoint: Option<u32>,
    /// Whom the codes of calls that end speak of.
    pub classifier: Classifier,
    /// Who is ejected for failing; `None` is nobody.
    pub outliers: Option<OutlierDetection>,
    /// What happens when too few endpoints can be used.
    pub panic: Panic,
    /// Whether endpoints are asked how they are, and by what. Default: they are not.
    pub health: HealthSource,
    /// How long an endpoint that joins others is spared. Default 0: it is not. Up to 1 h.
    pub slow_start: Duration,
    /// The most connections an endpoint has: another is dialled when calls find those it has full, and closed
    /// again when it carried nothing for 30 s. Default 1, which is gRPC's; in `1..=10`, the range of gRFC A105.
    pub max_connections_per_endpoint: usize,
}

/// Where news of an endpoint's health comes from ([`Balancer::handle_health`](super::Balancer::handle_health)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthSource {
    /// There is none: who is connected is well.
    #[default]
    None,
    /// The server says so itself: until it has, its endpoint is CONNECTING.
    Server,
    /// From outside, by connecting to its port: nothing is known of what goes on behind it.
    Port,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            connect_rate: 200,
            max_endpoints: 10_000,
            stagger: Duration::from_millis(250),
            linger: Duration::from_secs(30),
            keep_last_good: Duration::ZERO,
            max_in_flight_per_endpoint: None,
            classifier: Classifier::default(),
            outliers: Some(OutlierDetection::default()),
            panic: Panic::default(),
            health: HealthSource::None,
            slow_start: Duration::ZERO,
            max_connections_per_endpoint: 1,
        }
    }
}

impl Config {
    /// What endpoints let calls in by.
    pub(super) fn terms(&self) -> Terms {
        Terms {
            max_in_flight: self.max_in_flight_per_endpoint,
            faults_in_a_row: self
                .outliers
                .as_ref()
                .and_then(OutlierDetection::consecutive_failures),
            classifier: self.classifier,
        }
    }

    /// Whether the balancer can work with these.
    ///
    /// # Errors
    ///
    /// Names the first value out of its range, and the range.
    pub fn validate(&self) -> Result<(), Error> {
        self.backoff.validate()?;
        if self.connect_rate == 0 {
            return Err(Error::config(
                "connect rate 0 must be at least 1 per second",
            ));
        }
        if self.max_endpoints == 0 {
            return Err(Error::config("max endpoints 0 must be at least 1"));
        }
        if self.stagger < Duration::from_millis(10) {
            return Err(Error::config(format!(
                "stagger {:?} must be at least 10ms",
                self.stagger
            )));
        }
        if self.max_in_flight_per_endpoint == Some(0) {
            return Err(Error::config(
                "max_in_flight_per_endpoint 0 must be at least 1",
            ));
        }
        if let Some(outliers) = &self.outliers {
            outliers.validate()?;
        }
        self.panic.validate()?;
        const HOUR: Duration = Duration::from_secs(3_600);
        if self.slow_start > HOUR {
            return Err(Error::config(format!(
                "slow_start {:?} is not in 0s..=1h",
                self.slow_start
            )));
        }
        const DAY: Duration = Duration::from_secs(86_400);
        if self.keep_last_good > DAY {
            return Err(Error::config(format!(
                "keep_last_good {:?} is not in 0s..=24h",
                self.keep_last_good
            )));
        }
        let connections = self.max_connections_per_endpoint;
        if !(1..=10).contains(&connections) {
            return Err(Error::config(format!(
                "max connections per endpoint {connections} is not in 1..=10"
            )));
        }
        Ok(())
    }
}

/// One dial; the connection that comes of it keeps the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub(super) u64);

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Make a seat for this endpoint or, when it has one, note its new weight. Always before the first
    /// [`Publish`](Self::Publish) whose picker names it.
    Open {
        /// Whose seat.
        id: EndpointId,
        /// What the resolver said of it.
        endpoint: Arc<Endpoint>,
        /// Its live facts: calls begin and end here.
        loads: Loads,
    },
    /// Dial, and say how it went by [`handle_connected`](super::Balancer::handle_connected) or
    /// [`handle_connect_failed`](super::Balancer::handle_connect_failed).
    Connect {
        /// The name of the dial.
        attempt: AttemptId,
        /// For whom.
        id: EndpointId,
        /// What the resolver said of it.
        endpoint: Arc<Endpoint>,
        /// Where to.
        address: Address,
    },
    /// Drop this dial; nobody needs it.
    Abandon {
        /// The name of the dial.
        attempt: AttemptId,
    },
    /// This connection has been replaced, or is one more than its endpoint needs: it takes no new calls, and those under way finish.
    Retire {
        /// The name of the connection.
        connection: AttemptId,
    },
    /// This endpoint has left: after the next [`Publish`](Self::Publish) no pick names it. Its connections
    /// finish what they carry until the drain deadline.
    Close {
        /// Who left.
        id: EndpointId,
    },
    /// From now on calls are answered by these pickers.
    Publish(Publication),
    /// Ask the resolver to look again: a connection was lost, or an endpoint used up its addresses.
    Resolve,
    /// Count the bytes of every endpoint that has a seat, and say how many by
    /// [`handle_traffic`](super::Balancer::handle_traffic). Every 250 ms, and only where a policy goes by them.
    Measure,
    /// Say of every connection of the endpoints that have more than one whether it carried calls, by
    /// [`handle_usage`](super::Balancer::handle_usage). Every 5 s, and only while there are such endpoints.
    Usage,
}

/// What calls go by until the next one.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Answer the calls, each those of its policy, by the number of the policy.
    pub pickers: Pickers,
    /// What each of them places calls by.
    pub hash_on: Arc<[HashOn]>,
    /// The state of the whole.
    pub state: Connectivity,
    /// The last failure in words, for calls that fail for lack of an endpoint.
    pub why: Option<Arc<str>>,
}

/// What has happened, for those who watch.
#[derive(Clone, Debug)]
pub enum Event {
    /// An endpoint's effective state changed.
    Endpoint {
        /// Whose.
        id: EndpointId,
        /// What the resolver said of it.
        endpoint: Arc<Endpoint>,
        /// Its state before.
        from: Connectivity,
        /// Its state now.
        to: Connectivity,
        /// The failure or loss behind it, where there was one.
        why: Option<ConnectError>,
    },
    /// The state of the whole changed.
    Channel {
        /// Before.
        from: Connectivity,
        /// Now.
        to: Connectivity,
    },
    /// The resolver gave a list.
    Resolved {
        /// Endpoints in use.
        endpoints: usize,
        /// Endpoints that are new.
        added: usize,
        /// Endpoints that have left.
        removed: usize,
        /// Mentions of an endpoint after its first, which are not used.
        duplicates: usize,
        /// Endpoints left out for [`Config::max_endpoints`].
        over_limit: usize,
    },
    /// The resolver says that there is nobody, and the last list stays in use for now
    /// ([`Config::keep_last_good`]). Told each time it says so.
    Kept {
        /// Endpoints in use.
        endpoints: usize,
        /// When the empty list takes effect.
        until: Timestamp,
    },
    /// The policy with this number has taken the place of the one before.
    Switched {
        /// Its number.
        policy: usize,
    },
    /// The policy with this number panicked when it was asked, or the one that is to take its place did. The first is
    /// asked again soon, and its last word holds until then; the other is not.
    Panicked {
        /// Its number.
        policy: usize,
    },
    /// An endpoint was ejected, is on probation, or has come back.
    Standing {
        /// Whose.
        id: EndpointId,
        /// What the resolver said of it.
        endpoint: Arc<Endpoint>,
        /// How it stands now.
        standing: Standing,
    },
    /// Another health of an endpoint counts from now on.
    Health {
        /// Whose.
        id: EndpointId,
        /// What the resolver said of it.
        endpoint: Arc<Endpoint>,
        /// What it is.
        health: Health,
    },
    /// So few endpoints can be used that [`Config::panic`] says what happens to calls; or enough can again.
    Panic {
        /// Whether it is so now.
        on: bool,
        /// Endpoints that can be used.
        usable: usize,
        /// All endpoints.
        of: usize,
    },
    /// The resolver has no answer just now; the last good list stays in use.
    ResolveFailed(ResolveError),
}

/// One endpoint as it stands.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its name in this channel.
    pub id: EndpointId,
    /// What the resolver said of it.
    pub endpoint: &'a Arc<Endpoint>,
    /// Its live facts.
    pub loads: &'a Loads,
    /// Its effective state.
    pub state: Connectivity,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// What last went wrong with it; kept after it has recovered.
    pub why: Option<&'a ConnectError>,
    /// How many connections take its calls.
    pub connections: usize,
    /// How it stands with those who would send it calls.
    pub standing: Standing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_config_names_value_and_rule() {
        assert!(Config::default().validate().is_ok());
        let broken = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        for (error, text) in [
            (
                broken(|c| c.connect_rate = 0),
                "connect rate 0 must be at least 1",
            ),
            (
                broken(|c| c.max_endpoints = 0),
                "max endpoints 0 must be at least 1",
            ),
            (
                broken(|c| c.stagger = Duration::from_millis(9)),
                "stagger 9ms must be at least 10ms",
            ),
            (
                broken(|c| c.keep_last_good = Duration::from_secs(86_401)),
                "keep_last_good 86401s is not in 0s..=24h",
            ),
            (
                broken(|c| c.max_connections_per_endpoint = 0),
                "max connections per endpoint 0 is not in 1..=10",
            ),
            (
                broken(|c| c.max_connections_per_endpoint = 11),
                "max connections per endpoint 11 is not in 1..=10",
            ),
            (
                broken(|c| c.backoff.multiplier = 0.0),
                "multiplier 0 must be",
            ),
        ] {
            assert!(error.contains(text), "{error}");
        }
    }
}
