//! The one task of a channel: carries news to the balancer and does what the balancer says.
//!
//! It decides nothing. What it knows by itself is only what the pure rooms may not touch: sockets, tasks,
//! the clock.

mod asking;
mod dialling;
mod ending;
mod telling;

use asking::Asking;
pub(super) use asking::{Ask, Lists};
use dialling::Dials;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{self, Abortable, BoxFuture, FutureExt};
use futures_util::stream::{BoxStream, FuturesUnordered};
use tokio::sync::{mpsc, watch};

use crate::balancer::{Action, AttemptId, Backoff, Balancer, HealthSource, Publication};
use crate::endpoint::{Address, Endpoint, EndpointId};
use crate::error::{ConnectError, ResolveError};
use crate::probe::HealthCheck;
use crate::report::Health;
use crate::resolver::{Hints, Update};
use crate::timestamp::Timestamp;
use crate::transport::{Condition, Connection, Connector, Control};

use super::bell::Bell;
use super::idle::Idleness;
use super::resolution::Heard;
use super::shared::{Command, Core};
use super::snapshot::{Live, Seat, Seats, Snapshot};

/// How long each thing may take.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// One attempt to connect: TCP, TLS and the server's settings.
    pub(super) connect: Duration,
    /// From the moment an endpoint or the channel is left to the end of its last call.
    pub(super) drain: Duration,
    /// How servers are asked how they are, and how soon again when one does not say.
    pub(super) health: Option<HealthCheck>,
    pub(super) backoff: Backoff,
    /// How long no call is made before the channel lets go of what it has.
    pub(super) idle: Option<Duration>,
}

/// How much news is taken in before it is acted on: enough for a rack that goes dark, few enough that calls do not wait
/// for a new picker.
const TOGETHER: usize = 256;

pub(super) struct Driver<C: Connector> {
    core: Arc<Core<C::Connection>>,
    bell: Arc<Bell>,
    balancer: Balancer,
    limits: Limits,
    commands: mpsc::UnboundedReceiver<Command>,
    asking: Asking,
    listed: bool,
    idleness: Idleness,
    hints: Hints,
    dials: Dials<C>,
    /// What each connection's server says next of itself.
    probes: FuturesUnordered<Abortable<BoxFuture<'static, Said>>>,
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

/// The next word of a server's health, and where more comes from; none when there is no more.
type Said = (AttemptId, Option<(Health, BoxStream<'static, Health>)>);

/// A connection from its first call to its last byte.
struct Known<N> {
    seat: Arc<Seat<N>>,
    control: Arc<dyn Control>,
    lost: bool,
    cut_off: Option<Timestamp>,
    /// Ends the question how its server is: that is a call, and would keep the connection from closing.
    probe: Option<future::AbortHandle>,
    /// What the server said on it last.
    said: Option<Health>,
}

impl<N> Known<N> {
    /// It takes no more calls.
    fn lose(&mut self, id: AttemptId) {
        self.lost = true;
        self.seat.remove(id);
        if let Some(probe) = self.probe.take() {
            probe.abort();
        }
    }
}

/// A change seen on one connection, and the receiver to see the next one.
type Seen = (AttemptId, Condition, watch::Receiver<Condition>);

/// What woke the driver.
enum News<N> {
    Command(Option<Command>),
    List(Option<Result<Update, ResolveError>>),
    Dialled(AttemptId, (EndpointId, Address), Result<N, ConnectError>),
    Condition(Seen),
    Health(Said),
    Time,
}

impl<C: Connector> Driver<C> {
    pub(super) fn new(
        core: Arc<Core<C::Connection>>,
        bell: Arc<Bell>,
        connector: C,
        balancer: Balancer,
        limits: Limits,
        commands: mpsc::UnboundedReceiver<Command>,
        (hints, ask, lists): (Hints, Option<Ask>, Option<Lists>),
    ) -> Self {
        Self {
            core,
            bell,
            balancer,
            commands,
            asking: Asking::new(ask, lists, limits.backoff),
            listed: false,
            idleness: Idleness::new(limits.idle),
            hints,
            dials: Dials::new(connector, limits.connect),
            probes: FuturesUnordered::new(),
            conditions: FuturesUnordered::new(),
            connections: HashMap::new(),
            cut_offs: BTreeSet::new(),
            seats: Vec::new(),
            published: Arc::new(Seats::new(Vec::new())),
            seats_changed: false,
            replaced: Vec::new(),
            limits,
        }
    }

    /// Runs until the last clone of the channel is dropped or the channel is closed, and then until the
    /// last connection is.
    pub(super) async fn run(mut self, first: Option<Vec<Endpoint>>) {
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
        let idle = self.idleness.due();
        let again = self.asking.due();
        let wake = [due, cut_off, idle, again].into_iter().flatten().min();
        let clock = self.core.clock;
        loop {
            tokio::select! {
                command = self.commands.recv() => return News::Command(command),
                list = self.asking.next() => return News::List(list),
                (attempt, to, result) = self.dials.next() => return News::Dialled(attempt, to, result),
                Some(seen) = self.conditions.next() => return News::Condition(seen),
                // An error is that of an aborted one: its connection is of no use any more.
                Some(said) = self.probes.next() => if let Ok(said) = said {
                    return News::Health(said);
                },
                () = sleep_until(wake.map(|at| clock.instant(at))) => return News::Time,
            }
        }
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
            News::Command(Some(Command::Wake)) => {
                if self.idleness.end(now) {
                    self.asking.begin(now);
                    self.balancer.handle_awake();
                }
            }
            News::Command(Some(Command::Want(id))) => self.balancer.handle_wanted(id, now),
            News::Command(Some(Command::Notice(id, notice))) => {
                self.balancer.handle_notice(id, notice, now);
            }
            News::Command(Some(Command::Crowded(id))) => {
                // What has changed since it was sent is known by now.
                if self.seat(id).is_some_and(|seat| seat.is_crowded()) {
                    self.balancer.handle_crowded(id, now);
                }
            }
            // Both end the loop that calls this.
            News::Command(Some(Command::Close(_)) | None) => {}
            News::List(answer) => {
                self.asking.heed(&answer, now);
                let found = match answer {
                    Some(found) => found.map(|update| update.endpoints),
                    None if self.listed => return,
                    None => Err(ResolveError::new("the resolver ended without a list")),
                };
                self.listed = true;
                self.balancer.handle_resolution(found, now);
            }
            News::Dialled(attempt, to, result) => self.dialled(attempt, to, result, now),
            News::Condition(seen) => self.condition(seen, now),
            News::Health((connection, said)) => self.said(connection, said, now),
            News::Time => {
                self.cut_off(now);
                self.asking.tick(now);
                self.rest(now);
                self.balancer.handle_timeout(now);
            }
        }
    }

    fn dialled(
        &mut self,
        attempt: AttemptId,
        (id, address): (EndpointId, Address),
        result: Result<C::Connection, ConnectError>,
        now: Timestamp,
    ) {
        let connection = match result {
            Ok(connection) => connection,
            Err(why) => {
                if let Some(seat) = self.seat(id) {
                    seat.notes().last_error = Some(why.clone());
                    seat.uncrowd();
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
        connection
            .slots()
            .on_freed(move |slots| waiters.room(slots));
        // Of the first there is a new snapshot, which is told to everybody.
        let room = match seat.connections().is_empty() {
            true => 1,
            false => connection.slots().limit() as usize,
        };
        let control = connection.control();
        let mut condition = connection.condition();
        let live = Arc::new(Live::new(attempt, connection));
        let probe = self.limits.health.as_ref().map(|check| {
            let (probe, registration) = future::AbortHandle::new_pair();
            let said = check.begin(&live, &address, self.limits.backoff, fastrand::u64(..));
            let said = Box::pin(listen(attempt, said));
            self.probes.push(Abortable::new(said, registration));
            probe
        });
        self.connections.insert(
            attempt,
            Known {
                seat: seat.clone(),
                control: control.clone(),
                lost: false,
                cut_off: None,
                probe,
                said: None,
            },
        );
        seat.add(live, control);
        // Room where there was none, for all who wait for it.
        self.core.waiters.room(room);
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
            known.lose(id);
            let seat = known.seat.clone();
            seat.notes().last_error = Some(why.clone());
            self.balancer.handle_lost(id, why, now);
            self.heed_others(&seat, now);
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
                            let seat = Seat::new(id, endpoint, loads, self.bell.clone(), now);
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
                } => self.dials.begin(attempt, id, &endpoint, address),
                Action::Abandon { attempt } => self.dials.abandon(attempt),
                Action::Retire { connection } => self.leave(connection, now),
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
                Action::Usage => {
                    // The question how the server is goes on as long as the connection, and is no use of it.
                    let health = self.limits.health.as_ref().map(HealthCheck::source);
                    let own = u32::from(health == Some(HealthSource::Server));
                    for seat in self.seats.iter().flatten() {
                        let connections = seat.connections();
                        for live in connections.iter().filter(|_| connections.len() > 1) {
                            self.balancer
                                .handle_usage(live.id, live.take_used(own), now);
                        }
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

    fn seat(&self, id: EndpointId) -> Option<&Arc<Seat<C::Connection>>> {
        let seat = self.seats.get(id.slot())?.as_ref()?;
        (seat.id == id).then_some(seat)
    }

    /// Lets go of everything if no call has been made for long enough.
    fn rest(&mut self, now: Timestamp) {
        let seats = self.seats.iter().flatten();
        let calls = seats.fold((0u64, 0u64), |(picks, open), seat| {
            let open = open + u64::from(seat.loads.in_flight());
            (picks.wrapping_add(seat.loads.picks()), open)
        });
        let (picks, open) = calls;
        let busy = open > 0 || self.core.waiters.len() > 0;
        if self.idleness.look(picks, busy, now) {
            tracing::info!(target: "equipoise", "no calls: the channel is idle");
            self.asking.stop();
            self.balancer.handle_idle(now);
        }
    }

    /// Stops using a connection: its calls go on to their end.
    fn leave(&mut self, id: AttemptId, now: Timestamp) {
        if let Some(known) = self.connections.get_mut(&id) {
            known.lose(id);
            let seat = known.seat.clone();
            self.heed_others(&seat, now);
        }
    }

    /// A connection is used no more: what its server said on it counts no longer where it has another, on which it
    /// may have nothing new to say.
    fn heed_others(&mut self, seat: &Seat<C::Connection>, now: Timestamp) {
        let connections = seat.connections();
        let others = connections.iter().rev();
        let mut said = others.filter_map(|live| self.connections.get(&live.id)?.said.clone());
        if let Some(health) = said.next() {
            self.balancer.handle_health(seat.id, health, now);
        }
    }

    /// What a server says of itself, and may say more.
    fn said(
        &mut self,
        id: AttemptId,
        said: Option<(Health, BoxStream<'static, Health>)>,
        now: Timestamp,
    ) {
        let known = self.connections.get(&id).filter(|known| !known.lost);
        let (Some(known), Some((health, more))) = (known, said) else {
            return;
        };
        self.balancer
            .handle_health(known.seat.id, health.clone(), now);
        // Whoever aborts it aborts all that follows.
        if let Some(known) = self.connections.get_mut(&id) {
            let (probe, registration) = future::AbortHandle::new_pair();
            known.probe = Some(probe);
            known.said = Some(health);
            let said = Box::pin(listen(id, more));
            self.probes.push(Abortable::new(said, registration));
        }
    }

    /// Stops using a connection of an endpoint or a channel that is left: its calls go on, but not for ever.
    fn retire(&mut self, id: AttemptId, now: Timestamp) {
        self.leave(id, now);
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
        self.core.tell_of_snapshot();
        self.core
            .state
            .send_if_modified(|current| std::mem::replace(current, state) != state);
    }

    /// Frees the replaced snapshots at which nobody looks any more.
    fn sweep(&mut self) {
        self.replaced.retain(|old| Arc::strong_count(old) > 1);
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The next word of a server's health.
async fn listen(id: AttemptId, mut said: BoxStream<'static, Health>) -> Said {
    let next = said.next().await;
    (id, next.map(|health| (health, said)))
}

/// The next change of a connection. Its task may end without a word when its runtime does.
async fn watch(id: AttemptId, mut condition: watch::Receiver<Condition>) -> Seen {
    let seen = match condition.changed().await {
        Ok(()) => condition.borrow_and_update().clone(),
        Err(_) => Condition::Closed(ConnectError::new("the connection's task ended")),
    };
    (id, seen, condition)
}
