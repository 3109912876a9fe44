//! The one task of a channel: carries news to the balancer and does what the balancer says.
//!
//! It decides nothing. What it knows by itself is only what the pure rooms may not touch: sockets, tasks,
//! the clock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{BoxStream, FuturesUnordered};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::balancer::{Action, AttemptId, Balancer, Event, Publication};
use crate::endpoint::{Address, Connectivity, Endpoint, EndpointId};
use crate::error::{ConnectError, ResolveError};
use crate::resolver::{Hints, Update};
use crate::timestamp::Timestamp;
use crate::transport::{Condition, Connection, Connector, Control};

use super::resolution::Heard;
use super::shared::{Command, Core};
use super::snapshot::{Live, Seat, Seats, Snapshot};

/// A stream of endpoint lists.
pub(super) type Lists = BoxStream<'static, Result<Update, ResolveError>>;

/// How long each thing may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// One attempt to connect: TCP, TLS and the server's settings.
    pub(super) connect: Duration,
    /// From the moment an endpoint or the channel is left to the end of its last call.
    pub(super) drain: Duration,
}

/// How much news is taken in before it is acted on: enough for a rack that goes dark, few enough that calls do not wait
/// for a new picker.
const TOGETHER: usize = 256;

pub(super) struct Driver<C: Connector> {
    core: Arc<Core<C::Connection>>,
    connector: C,
    balancer: Balancer,
    limits: Limits,
    commands: mpsc::UnboundedReceiver<Command>,
    lists: Option<Lists>,
    listed: bool,
    hints: Hints,
    dials: JoinSet<(AttemptId, Result<C::Connection, ConnectError>)>,
    dialling: HashMap<AttemptId, (EndpointId, AbortHandle)>,
    conditions: FuturesUnordered<BoxFuture<'static, Seen>>,
    connections: HashMap<AttemptId, Known<C::Connection>>,
    cut_offs: BTreeSet<(Timestamp, AttemptId)>,
    seats: Vec<Option<Arc<Seat<C::Connection>>>>,
    published: Arc<Seats<C::Connection>>,
    seats_changed: bool,
    /// Snapshots that were replaced while a call looked at them. Whoever lets go of one last frees it, pickers, seats
    /// and all, which for ten thousand endpoints takes from 50 µs to milliseconds: that is not to be a call.
    replaced: Vec<Arc<Snapshot<C::Connection>>>,
}

/// A connection from its first call to its last byte.
struct Known<N> {
    seat: Arc<Seat<N>>,
    control: Arc<dyn Control>,
    lost: bool,
    cut_off: Option<Timestamp>,
}

/// A change seen on one connection, and the receiver to see the next one.
type Seen = (AttemptId, Condition, watch::Receiver<Condition>);

/// What woke the driver.
enum News<N> {
    Command(Option<Command>),
    List(Option<Result<Update, ResolveError>>),
    Dialled(AttemptId, Result<N, ConnectError>),
    Condition(Seen),
    Time,
}

impl<C: Connector> Driver<C> {
    pub(super) fn new(
        core: Arc<Core<C::Connection>>,
        connector: C,
        balancer: Balancer,
        limits: Limits,
        commands: mpsc::UnboundedReceiver<Command>,
        hints: Hints,
    ) -> Self {
        Self {
            core,
            connector,
            balancer,
            limits,
            commands,
            lists: None,
            listed: false,
            hints,
            dials: JoinSet::new(),
            dialling: HashMap::new(),
            conditions: FuturesUnordered::new(),
            connections: HashMap::new(),
            cut_offs: BTreeSet::new(),
            seats: Vec::new(),
            published: Arc::new(Seats::new(Vec::new())),
            seats_changed: false,
            replaced: Vec::new(),
        }
    }

    /// Runs until the last clone of the channel is dropped or the channel is closed, and then until the
    /// last connection is.
    pub(super) async fn run(mut self, lists: Option<Lists>, first: Option<Vec<Endpoint>>) {
        self.lists = lists;
        if let Some(endpoints) = first {
            let now = self.core.clock.now();
            self.balancer.handle_resolution(Ok(endpoints), now);
        }
        let mut farewells = Vec::new();
        'open: loop {
            self.act();
            self.sweep();
            // What came together is acted on together: a thousand connections lost at once are then one question to
            // the policies and not a thousand.
            let mut next = Some(self.news().await);
            let mut handled = 0;
            while let Some(news) = next {
                match news {
                    News::Command(None) => break 'open,
                    News::Command(Some(Command::Close(done))) => {
                        farewells.push(done);
                        break 'open;
                    }
                    news => self.handle(news),
                }
                handled += 1;
                next = match handled < TOGETHER {
                    true => self.news().now_or_never(),
                    false => None,
                };
            }
        }
        self.finish(farewells).await;
    }

    async fn news(&mut self) -> News<C::Connection> {
        let due = self.balancer.poll_timeout();
        let cut_off = self.cut_offs.first().map(|&(at, _)| at);
        let wake = due.into_iter().chain(cut_off).min();
        let clock = self.core.clock;
        loop {
            tokio::select! {
                command = self.commands.recv() => return News::Command(command),
                list = next_list(&mut self.lists) => return News::List(list),
                Some(dialled) = self.dials.join_next() => match dialled {
                    Ok((attempt, result)) => return News::Dialled(attempt, result),
                    // Aborted by us, or a connector that panicked: then its attempt ends by its name.
                    Err(error) => if let Some(news) = self.broken(&error) {
                        return news;
                    },
                },
                Some(seen) = self.conditions.next() => return News::Condition(seen),
                () = sleep_until(wake.map(|at| clock.instant(at))) => return News::Time,
            }
        }
    }

    /// The attempt whose task ended without an answer, if anybody still waits for it.
    fn broken(&self, error: &tokio::task::JoinError) -> Option<News<C::Connection>> {
        let task = error.id();
        let (&attempt, _) = self
            .dialling
            .iter()
            .find(|(_, (_, handle))| handle.id() == task)?;
        let why = ConnectError::new("the connector panicked");
        Some(News::Dialled(attempt, Err(why)))
    }

    fn handle(&mut self, news: News<C::Connection>) {
        let now = self.core.clock.now();
        match news {
            News::Command(Some(Command::SetEndpoints(endpoints))) => {
                self.balancer.handle_resolution(Ok(endpoints), now);
            }
            News::Command(Some(Command::SetPolicy(number, policy))) => {
                // The number comes from the channel's own routes.
                self.balancer.handle_policy(number, policy);
            }
            News::Command(Some(Command::Want(id))) => self.balancer.handle_wanted(id, now),
            // Both end the loop that calls this.
            News::Command(Some(Command::Close(_)) | None) => {}
            News::List(Some(found)) => {
                self.listed = true;
                let found = found.map(|update| update.endpoints);
                self.balancer.handle_resolution(found, now);
            }
            News::List(None) => {
                self.lists = None;
                if !self.listed {
                    let error = ResolveError::new("the resolver ended without a list");
                    self.balancer.handle_resolution(Err(error), now);
                }
            }
            News::Dialled(attempt, result) => self.dialled(attempt, result, now),
            News::Condition(seen) => self.condition(seen, now),
            News::Time => {
                self.cut_off(now);
                self.balancer.handle_timeout(now);
            }
        }
    }

    fn dialled(
        &mut self,
        attempt: AttemptId,
        result: Result<C::Connection, ConnectError>,
        now: Timestamp,
    ) {
        let Some((id, _)) = self.dialling.remove(&attempt) else {
            return;
        };
        let connection = match result {
            Ok(connection) => connection,
            Err(why) => {
                if let Some(seat) = self.seat(id) {
                    seat.notes().last_error = Some(why.clone());
                }
                return self.balancer.handle_connect_failed(attempt, why, now);
            }
        };
        let Some(seat) = self.seat(id).cloned() else {
            return;
        };
        if !self.balancer.handle_connected(attempt, now) {
            return;
        }
        let waiters = self.core.waiters.clone();
        connection.slots().on_freed(move || waiters.freed());
        let control = connection.control();
        self.connections.insert(
            attempt,
            Known {
                seat: seat.clone(),
                control: control.clone(),
                lost: false,
                cut_off: None,
            },
        );
        let mut condition = connection.condition();
        seat.add(
            Arc::new(Live {
                id: attempt,
                connection,
            }),
            control,
        );
        // Room where there was none: a replacement makes no new snapshot.
        self.core.waiters.freed();
        // What happened before this moment counts too.
        condition.mark_changed();
        self.conditions.push(Box::pin(watch(attempt, condition)));
    }

    fn condition(&mut self, (id, condition, receiver): Seen, now: Timestamp) {
        let Some(known) = self.connections.get_mut(&id) else {
            return;
        };
        let lost = match &condition {
            Condition::Open => None,
            Condition::Worn(_) => {
                if !known.lost {
                    self.balancer.handle_worn(id, now);
                }
                None
            }
            Condition::Draining(why) | Condition::Closed(why) => Some(why.clone()),
        };
        if let Some(why) = lost
            && !known.lost
        {
            known.lost = true;
            known.seat.remove(id);
            known.seat.notes().last_error = Some(why.clone());
            self.balancer.handle_lost(id, why, now);
        }
        match condition {
            Condition::Closed(_) => {
                if let Some(known) = self.connections.remove(&id) {
                    known.seat.settle(id);
                    if let Some(at) = known.cut_off {
                        self.cut_offs.remove(&(at, id));
                    }
                }
            }
            _ => self.conditions.push(Box::pin(watch(id, receiver))),
        }
    }

    /// Does everything the balancer wants done.
    fn act(&mut self) {
        let now = self.core.clock.now();
        let mut closed = HashSet::new();
        while let Some(action) = self.balancer.poll_action(now) {
            match action {
                Action::Open {
                    id,
                    endpoint,
                    loads,
                } => {
                    let slot = id.slot();
                    if self.seats.len() <= slot {
                        self.seats.resize_with(slot + 1, || None);
                    }
                    match &self.seats[slot] {
                        Some(seat) if seat.id == id => seat.change(endpoint),
                        _ => {
                            let seat = Seat::new(id, endpoint, loads, now);
                            self.seats[slot] = Some(Arc::new(seat));
                            self.seats_changed = true;
                        }
                    }
                }
                Action::Connect {
                    attempt,
                    id,
                    endpoint,
                    address,
                } => self.dial(attempt, id, &endpoint, &address),
                Action::Abandon { attempt } => {
                    if let Some((_, task)) = self.dialling.remove(&attempt) {
                        task.abort();
                    }
                }
                Action::Retire { connection } => self.leave(connection),
                Action::Close { id } => {
                    let seat = self.seats.get_mut(id.slot()).and_then(Option::take);
                    self.seats_changed |= seat.is_some();
                    closed.insert(id);
                }
                Action::Publish(publication) => {
                    // First: calls that are woken by it ask why an endpoint is not ready.
                    self.note_events(now);
                    self.publish(publication);
                }
                Action::Resolve => self.hints.look_again(),
                Action::Measure => {
                    for seat in self.seats.iter().flatten() {
                        let total = seat.notes().traffic().total();
                        self.balancer.handle_traffic(seat.id, total, now);
                    }
                }
            }
        }
        // Only now: until the new snapshot was out, picks could still name them.
        if !closed.is_empty() {
            let gone = |known: &Known<_>| closed.contains(&known.seat.id);
            let known = self.connections.iter().filter(|(_, known)| gone(known));
            // Those that drain already are among them: their calls have no more time than others.
            let ids: Vec<AttemptId> = known.map(|(&id, _)| id).collect();
            for id in ids {
                self.retire(id, now);
            }
        }
        self.note_events(now);
    }

    fn note_events(&mut self, now: Timestamp) {
        while let Some(event) = self.balancer.poll_event() {
            self.note(event, now);
        }
    }

    fn seat(&self, id: EndpointId) -> Option<&Arc<Seat<C::Connection>>> {
        let seat = self.seats.get(id.slot())?.as_ref()?;
        (seat.id == id).then_some(seat)
    }

    fn dial(&mut self, attempt: AttemptId, id: EndpointId, endpoint: &Endpoint, address: &Address) {
        let budget = self.limits.connect;
        let connecting = self.connector.connect(endpoint, address);
        let address = address.clone();
        let task = self.dials.spawn(async move {
            let result = match tokio::time::timeout(budget, connecting).await {
                Ok(result) => result,
                Err(_) => Err(ConnectError::new(format!(
                    "{address}: not connected within {budget:?}"
                ))),
            };
            (attempt, result)
        });
        self.dialling.insert(attempt, (id, task));
    }

    /// Stops using a connection: its calls go on to their end.
    fn leave(&mut self, id: AttemptId) {
        if let Some(known) = self.connections.get_mut(&id) {
            known.lost = true;
            known.seat.remove(id);
        }
    }

    /// Stops using a connection of an endpoint or a channel that is left: its calls go on, but not for ever.
    fn retire(&mut self, id: AttemptId, now: Timestamp) {
        self.leave(id);
        if let Some(known) = self.connections.get_mut(&id) {
            // The first deadline stays.
            let at = *known.cut_off.get_or_insert(now + self.limits.drain);
            self.cut_offs.insert((at, id));
        }
    }

    /// Ends the calls on connections whose time is up.
    fn cut_off(&mut self, now: Timestamp) {
        while let Some(&(at, id)) = self.cut_offs.first() {
            if at > now {
                return;
            }
            self.cut_offs.pop_first();
            if let Some(known) = self.connections.get(&id) {
                let drain = self.limits.drain;
                known
                    .control
                    .abort(&format!("drain deadline of {drain:?} passed"));
            }
        }
    }

    fn publish(&mut self, publication: Publication) {
        if std::mem::take(&mut self.seats_changed) {
            self.published = Arc::new(Seats::new(self.seats.clone()));
        }
        let state = publication.state;
        let next = Snapshot {
            pickers: publication.pickers,
            hash_on: publication.hash_on,
            seats: self.published.clone(),
            state,
            why: publication.why,
        };
        // When it returns, every call that looks at the last one is counted.
        self.replaced.push(self.core.snapshot.swap(Arc::new(next)));
        self.sweep();
        self.core.waiters.published();
        self.core
            .state
            .send_if_modified(|current| std::mem::replace(current, state) != state);
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
            Event::Switched { policy } => {
                tracing::info!(target: "equipoise", policy, "policy switched");
            }
            Event::Resolved { .. } | Event::Kept { .. } | Event::ResolveFailed(_) => {
                let mut heard = Heard::clone(&self.core.heard.load());
                heard.note(&event, now);
                self.core.heard.store(Arc::new(heard));
            }
        }
    }

    /// Takes no more calls, lets those under way end, and says so.
    async fn finish(&mut self, mut farewells: Vec<oneshot::Sender<()>>) {
        self.shut("the channel is closed");
        self.lists = None;
        // Dropping them drops what they made, too.
        self.dials = JoinSet::new();
        self.dialling.clear();
        let now = self.core.clock.now();
        let open: Vec<AttemptId> = self.connections.keys().copied().collect();
        for id in open {
            self.retire(id, now);
        }
        self.seats.clear();
        let mut abandoned = false;
        while !self.connections.is_empty() {
            let cut_off = self
                .cut_offs
                .first()
                .map(|&(at, _)| self.core.clock.instant(at));
            tokio::select! {
                command = self.commands.recv(), if !abandoned => match command {
                    Some(Command::Close(done)) => farewells.push(done),
                    Some(_) => {}
                    None => abandoned = true,
                },
                Some((id, condition, receiver)) = self.conditions.next() => match condition {
                    Condition::Closed(_) => {
                        if let Some(known) = self.connections.remove(&id) {
                            known.seat.settle(id);
                        }
                    }
                    _ => self.conditions.push(Box::pin(watch(id, receiver))),
                },
                () = sleep_until(cut_off) => self.cut_off(self.core.clock.now()),
            }
        }
        for done in farewells {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }

    /// Frees the replaced snapshots at which nobody looks any more.
    fn sweep(&mut self) {
        self.replaced.retain(|old| Arc::strong_count(old) > 1);
    }

    fn shut(&self, why: &str) {
        let last = self.core.snapshot.load();
        if last.state == Connectivity::Shutdown {
            return;
        }
        self.core.snapshot.store(Arc::new(Snapshot {
            pickers: last.pickers.clone(),
            hash_on: last.hash_on.clone(),
            seats: Arc::new(Seats::new(Vec::new())),
            state: Connectivity::Shutdown,
            why: Some(why.into()),
        }));
        self.core.waiters.published();
        self.core.state.send_replace(Connectivity::Shutdown);
    }
}

/// A driver that is dropped before it finished was on a runtime that was shut down: its calls must hear of it.
impl<C: Connector> Drop for Driver<C> {
    fn drop(&mut self) {
        self.shut("the runtime it ran on was shut down");
        for seat in self.seats.iter().flatten() {
            seat.clear();
        }
    }
}

async fn next_list(lists: &mut Option<Lists>) -> Option<Result<Update, ResolveError>> {
    let Some(stream) = lists else {
        return std::future::pending().await;
    };
    match AssertUnwindSafe(stream.next()).catch_unwind().await {
        Ok(next) => next,
        // It was somebody else's code, and is not asked again; the channel and its last list stay.
        Err(_) => {
            *lists = None;
            Some(Err(ResolveError::new("the resolver panicked")))
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The next change of a connection. Its task may end without a word when its runtime does.
async fn watch(id: AttemptId, mut condition: watch::Receiver<Condition>) -> Seen {
    let seen = match condition.changed().await {
        Ok(()) => condition.borrow_and_update().clone(),
        Err(_) => Condition::Closed(ConnectError::new("the connection's task ended")),
    };
    (id, seen, condition)
}
