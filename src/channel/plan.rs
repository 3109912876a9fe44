//! Settings that are found good, and the channel they make.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use tokio::sync::mpsc;

use crate::balancer::{self, Balancer};
use crate::endpoint::Connectivity;
use crate::error::Error;
use crate::policy::{HashOn, PickInfo, PickResult, Picker};
use crate::probe::HealthCheck;
use crate::resolver::{Hints, Resolver};
use crate::retry::{RetryBudget, RetryPolicy};
use crate::target::Target;
use crate::transport::Connector;

use super::bell::Bell;
use super::driver::{Ask, Driver, Limits};
use super::replay::BufferLimits;
use super::routes::{MakePolicy, Wanted};
use super::service::Channel;
use super::shared::{CallLimits, Core, Shared};
use super::snapshot::{Seats, Snapshot};

/// What a builder collects beside the policies, the resolver and the transport.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) timeout: Option<Duration>,
    pub(super) connect_timeout: Duration,
    pub(super) drain_deadline: Duration,
    pub(super) calls: CallLimits,
    pub(super) retry: RetryPolicy,
    pub(super) health: Option<HealthCheck>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) keep_last_good: Duration,
    pub(super) balancer: balancer::Config,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: None,
            connect_timeout: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(30),
            calls: CallLimits {
                queue: 1_000,
                in_flight: None,
                throttling: None,
                retry_budget: RetryBudget::default(),
                retry_buffer: BufferLimits::default(),
            },
            retry: RetryPolicy::default(),
            health: None,
            idle_timeout: Some(Duration::from_secs(1_800)),
            keep_last_good: Duration::from_secs(300),
            balancer: balancer::Config::default(),
        }
    }
}

impl Settings {
    /// # Errors
    ///
    /// Names the value that is out of its range, and the range.
    pub(super) fn check(&self) -> Result<(), Error> {
        const MS: Duration = Duration::from_millis(1);
        const HOUR: Duration = Duration::from_secs(3_600);
        if let Some(Duration::ZERO) = self.timeout {
            return Err(Error::config("timeout 0ns is not above zero"));
        }
        if !(MS..=HOUR).contains(&self.connect_timeout) {
            return Err(Error::config(format!(
                "connect_timeout {:?} is not in 1ms..=1h",
                self.connect_timeout
            )));
        }
        if self.drain_deadline > 24 * HOUR {
            return Err(Error::config(format!(
                "drain_deadline {:?} is not in 0s..=24h",
                self.drain_deadline
            )));
        }
        if self.calls.in_flight == Some(0) {
            return Err(Error::config("max_in_flight 0 must be at least 1"));
        }
        if let Some(timeout) = self.idle_timeout
            && !(MS..=24 * HOUR).contains(&timeout)
        {
            return Err(Error::config(format!(
                "idle_timeout {timeout:?} is not in 1ms..=24h"
            )));
        }
        self.retry.validate()?;
        self.calls.retry_budget.validate()?;
        if let Some(throttling) = &self.calls.throttling {
            throttling.validate()?;
        }
        self.balancer.validate()?;
        Ok(())
    }
}

/// Settings that were found good: all it takes to make a channel over a connector.
pub(super) struct Plan {
    pub(super) target: Target,
    // What calls go under where the target is a name and the connector has no better one.
    pub(super) name: Option<Authority>,
    pub(super) resolver: Option<Arc<dyn Resolver>>,
    pub(super) policy: MakePolicy,
    pub(super) wanted: Wanted,
    pub(super) settings: Settings,
}

impl Plan {
    pub(super) fn channel<C: Connector>(&self, connector: C) -> Channel<C> {
        let connector = match &self.name {
            Some(name) => connector.named(name),
            None => connector,
        };
        let settings = &self.settings;
        let seed = fastrand::u64(..);
        let first = (self.policy)();
        let (routes, more) = self.wanted.routes(settings.timeout, settings.retry);
        let unborn: Arc<dyn Picker> = Arc::new(Unborn);
        let snapshot = Snapshot {
            pickers: vec![unborn; 1 + more.len()].into(),
            hash_on: vec![HashOn::default(); 1 + more.len()].into(),
            seats: Arc::new(Seats::new(Vec::new())),
            state: Connectivity::Connecting,
            why: None,
        };
        let balancer = Balancer::new(settings.balancer.clone(), first, more, seed);
        let core = Arc::new(Core::new(snapshot, &settings.calls, routes));
        let (commands, orders) = mpsc::unbounded_channel();
        let bell = Bell::new(
            core.waiters.clone(),
            core.throttle.clone(),
            commands.downgrade(),
        );
        let limits = Limits {
            connect: settings.connect_timeout,
            drain: settings.drain_deadline,
            health: settings.health.clone(),
            backoff: settings.balancer.backoff,
            idle: settings.idle_timeout,
        };
        let hints = Hints::default();
        let (lists, ask, first) = match &self.resolver {
            Some(resolver) => {
                let lists = resolver.watch(&self.target, hints.clone());
                let (resolver, target) = (resolver.clone(), self.target.clone());
                let hints = hints.clone();
                let ask: Ask = Box::new(move || resolver.watch(&target, hints.clone()));
                (Some(lists), Some(ask), None)
            }
            None => (None, None, self.target.fixed().map(<[_]>::to_vec)),
        };
        let driver = Driver::new(
            core.clone(),
            bell,
            connector,
            balancer,
            limits,
            orders,
            (hints, ask, lists),
        );
        let running = Box::pin(driver.run(first));
        let shared = Shared::new(core, commands, self.resolver.is_none(), running);
        Channel::new(shared, crate::rng::remix(seed))
    }
}

/// The picker before the first list: everybody waits.
#[derive(Debug)]
struct Unborn;

impl Picker for Unborn {
    fn pick(&self, _: &PickInfo<'_>) -> PickResult {
        PickResult::Queue { connect: None }
    }
}
