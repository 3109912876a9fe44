//! What the clones of a channel, its calls and its driver have in common.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::endpoint::{Connectivity, Endpoint, EndpointId};
use crate::error::Error;
use crate::load::Notice;
use crate::policy::Policy;
use crate::retry::{Budget, RetryBudget, Throttle, Throttling};
use crate::transport::Connection;

use super::bell::Breaker;
use super::replay::{Allowance, BufferLimits};
use super::resolution::Heard;
use super::routes::Routes;
use super::snapshot::Snapshot;
use super::waiters::Waiters;

/// What the calls of a channel may do together.
#[derive(Clone, Debug)]
pub(super) struct CallLimits {
    /// How many may wait for an endpoint.
    pub(super) queue: usize,
    /// How many may be in flight.
    pub(super) in_flight: Option<u32>,
    pub(super) throttling: Option<Throttling>,
    pub(super) retry_budget: RetryBudget,
    pub(super) retry_buffer: BufferLimits,
}

/// What the calls and the driver share.
pub(super) struct Core<N> {
    pub(super) snapshot: ArcSwap<Snapshot<N>>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) clock: Clock,
    pub(super) routes: Routes,
    /// The most calls in flight, where there is such a limit.
    pub(super) breaker: Option<Arc<Breaker>>,
    /// Who keeps calls from servers that refuse them anyway, where somebody does.
    pub(super) throttle: Option<Arc<Throttle>>,
    /// What all calls together may send beyond what they were asked to.
    pub(super) budget: Budget,
    /// What they may keep of their requests.
    pub(super) allowance: Arc<Allowance>,
    pub(super) state: watch::Sender<Connectivity>,
    /// What was last heard of the endpoint list; the driver alone writes it.
    pub(super) heard: ArcSwap<Heard>,
}

impl<N> Core<N> {
    /// What calls and driver begin with.
    pub(super) fn new(first: Snapshot<N>, limits: &CallLimits, routes: Routes) -> Self {
        Self {
            state: watch::Sender::new(first.state),
            snapshot: ArcSwap::from_pointee(first),
            waiters: Waiters::new(limits.queue),
            clock: Clock::start(),
            routes,
            breaker: limits.in_flight.map(Breaker::new),
            throttle: limits.throttling.as_ref().map(Throttle::new).map(Arc::new),
            budget: Budget::new(&limits.retry_budget),
            allowance: Arc::new(Allowance::new(limits.retry_buffer)),
            heard: ArcSwap::default(),
        }
    }
}

impl<N: Connection> Core<N> {
    /// Tells the calls that wait of the snapshot that is published.
    pub(super) fn tell_of_snapshot(&self) {
        let waiting = self.waiters.len();
        let mut room = self.snapshot.load().seats.room(waiting);
        if let Some(breaker) = &self.breaker {
            room = room.min(breaker.room());
        }
        self.waiters.published(room);
    }
}

/// What a channel asks of its driver.
#[derive(Debug)]
pub(super) enum Command {
    SetEndpoints(Vec<Endpoint>),
    /// Another policy takes the place of that with this number.
    SetPolicy(usize, Box<dyn Policy>),
    /// A pick asked for a connection to this endpoint.
    Want(EndpointId),
    /// The end of a call on this endpoint said something of it.
    Notice(EndpointId, Notice),
    /// A call found every connection of this endpoint full.
    Crowded(EndpointId),
    /// A call is made on a channel that is idle.
    Wake,
    /// Take no more calls; answer when every connection is closed.
    Close(oneshot::Sender<()>),
}

/// A driver that waits for a runtime to run on.
type Dormant = Mutex<Option<BoxFuture<'static, ()>>>;

/// What the clones of one channel and the calls that wait in it share. When the last of them goes, the
/// driver ends.
pub(super) struct Shared<N> {
    pub(super) core: Arc<Core<N>>,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) by_hand: bool,
    started: AtomicBool,
    dormant: Dormant,
}

impl<N: Connection> Shared<N> {
    pub(super) fn new(
        core: Arc<Core<N>>,
        commands: mpsc::UnboundedSender<Command>,
        by_hand: bool,
        driver: BoxFuture<'static, ()>,
    ) -> Arc<Self> {
        let shared = Arc::new(Self {
            core,
            commands,
            by_hand,
            started: AtomicBool::new(false),
            dormant: Mutex::new(Some(driver)),
        });
        shared.start();
        shared
    }

    /// Starts the driver, once there is a runtime to run it on.
    pub(super) fn start(&self) {
        // Relaxed: only a hint; the lock decides who takes the driver.
        if self.started.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let dormant = self
            .dormant
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(driver) = dormant {
            runtime.spawn(driver);
        }
        self.started.store(true, Ordering::Relaxed);
    }

    /// Drops a driver that never ran, which closes the channel; says whether there was one.
    pub(super) fn give_up(&self) -> bool {
        let mut dormant = self.dormant.lock().unwrap_or_else(PoisonError::into_inner);
        dormant.take().is_some()
    }

    /// Tells the driver what the user wants.
    ///
    /// The user's code may block its thread next. tokio keeps the task that was woken last for the thread it was woken
    /// on, and no other thread can take it over from there. So one more is woken, which takes that place: then the
    /// driver is anybody's.
    ///
    /// # Errors
    ///
    /// When the driver is gone: the channel is closed.
    pub(super) fn order(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).map_err(|_| Error::closed())?;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async {});
        }
        Ok(())
    }

    /// A call is made: an idle channel connects again.
    pub(super) fn wake(&self) {
        // No driver, no connections, as below.
        let _ = self.commands.send(Command::Wake);
    }

    /// Asks for a connection to an endpoint that the policy did not connect by itself.
    pub(super) fn want(&self, id: EndpointId) {
        // No driver, no connections: the call that asked is told so by the snapshot.
        let _ = self.commands.send(Command::Want(id));
    }
}
