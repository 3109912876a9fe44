//! What was seen while a row ran: of the channel, moment by moment, and of the servers, by their ledger.

use std::net::SocketAddr;
use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use equipoise::balancer::Standing;
use equipoise::{Channel, Connectivity, Health};
use tokio::time::MissedTickBehavior;

use crate::rig::ledger::Execution;
use crate::rig::now;
use crate::status;

/// A channel's endpoints from one moment on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sight {
    pub(super) at: Duration,
    pub(super) endpoints: Vec<Seen>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) state: Connectivity,
    pub(super) standing: Standing,
    pub(super) health: Health,
}

impl Sight {
    fn of(channel: &Channel, addresses: &[SocketAddr]) -> Self {
        let endpoints = addresses.iter().map(|&address| {
            let status = status(channel, address);
            Seen {
                state: status.state,
                standing: status.standing,
                health: status.health,
            }
        });
        Self {
            at: now(),
            endpoints: endpoints.collect(),
        }
    }

    /// How many are ejected or on probation.
    pub(super) fn out(&self) -> usize {
        let out = |seen: &&Seen| seen.standing != Standing::Admitted;
        self.endpoints.iter().filter(out).count()
    }
}

/// Looks at the endpoints each millisecond until `doing` is done, and gives each sight that was another than the last.
pub(super) async fn while_doing<T>(
    channel: &Channel,
    addresses: &[SocketAddr],
    doing: impl Future<Output = T>,
) -> (T, Vec<Sight>) {
    let mut doing = pin!(doing);
    let mut sights: Vec<Sight> = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! { done = &mut doing => Some(done), _ = ticks.tick() => None };
        let sight = Sight::of(channel, addresses);
        if sights
            .last()
            .is_none_or(|last| last.endpoints != sight.endpoints)
        {
            sights.push(sight);
        }
        if let Some(done) = done {
            return (done, sights);
        }
    }
}

/// When the endpoint was first seen ejected.
pub(super) fn ejected(sights: &[Sight], endpoint: usize) -> Option<Duration> {
    let is_out = |sight: &&Sight| {
        let standing = sight.endpoints[endpoint].standing;
        matches!(standing, Standing::Ejected { .. })
    };
    sights.iter().find(is_out).map(|sight| sight.at)
}

/// How many calls `server` took in `window`.
pub(super) fn on(server: &str, executions: &[Execution], window: &Range<Duration>) -> usize {
    let there = executions.iter().filter(|e| window.contains(&e.start));
    there.filter(|e| e.server == server).count()
}

/// Its share of all that were taken then; none of none is 0.
pub(super) fn share(server: &str, executions: &[Execution], window: &Range<Duration>) -> f64 {
    let all = executions.iter().filter(|e| window.contains(&e.start));
    let all = all.count();
    on(server, executions, window) as f64 / all.max(1) as f64
}

/// The share of `server` of the calls that were made from the number `first` to before `end`.
pub(super) fn share_of_calls(server: &str, executions: &[Execution], calls: Range<u64>) -> f64 {
    let all = executions.iter().filter(|e| calls.contains(&e.id));
    let (mut there, mut count) = (0, 0);
    for execution in all {
        count += 1;
        there += usize::from(execution.server == server);
    }
    there as f64 / f64::from(count.max(1))
}
