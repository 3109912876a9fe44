//! Which endpoints are in play?
//!
//! A [`Balancer`] is a value without I/O that holds every decision about membership and connections:
//! which endpoints there are, which of them to dial, at which address and when, what state they are in,
//! and which picker answers the calls. Its methods come in three kinds:
//!
//! * `handle_*` takes news: a list, a connection made or lost, a deadline reached;
//! * `poll_*` gives what follows: [`poll_action`](Balancer::poll_action) the work, until it says `None`,
//!   after *every* `handle_*`; [`poll_event`](Balancer::poll_event) what there is to tell;
//!   [`poll_timeout`](Balancer::poll_timeout), after those, when [`handle_timeout`](Balancer::handle_timeout)
//!   is due;
//! * plain nouns are getters.
//!
//! Time is an argument and must not go backwards. Several pieces of news may be handed in before the work
//! is drained; what follows from them is then computed once.
//!
//! Before the first list there is no publication at all: the state is CONNECTING, and calls wait.

mod action;
mod backoff;
mod bridge;
mod connectivity;
mod fitness;
mod health;
mod outlier;
mod pace;
mod panic;
mod policies;
mod publishing;
mod several;
mod slow_start;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use action::{Action, AttemptId, Config, Event, HealthSource, Publication, View};
pub use backoff::Backoff;
#[cfg(test)]
pub(crate) use health::Damped;
pub use outlier::{FailurePercentage, MaxEjection, OutlierDetection, Standing, SuccessRate};
pub use panic::Panic;
pub use slow_start::spared;

use crate::endpoint::{Connectivity, Endpoint, EndpointId};
use crate::error::{ConnectError, ResolveError};
use crate::load::MEASURED_EVERY;
use crate::policy::{HashOn, Pickers, Policy};
use crate::report::LoadReport;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

use connectivity::{Around, Effects, News, Wish};
use fitness::Surroundings;
use outlier::Outliers;
use pace::Pace;
use panic::Mood;
use policies::Policies;
use table::Table;

/// The brain of one channel.
#[derive(Debug)]
pub struct Balancer {
    config: Config,
    policies: Policies,
    rng: Rng,
    table: Table,
    /// Whom each dial and each connection belongs to.
    attempts: BTreeMap<AttemptId, EndpointId>,
    next_attempt: u64,
    deadlines: BTreeSet<(Timestamp, EndpointId)>,
    pace: Pace,
    tally: Tally,
    /// Who is ejected, where anybody may be.
    outliers: Option<Outliers>,
    /// Nobody makes calls, and nobody is connected.
    asleep: bool,
    /// How many endpoints cannot be used, and what follows.
    unusable: usize,
    mood: Mood,
    /// Endpoints that became ready since the last publication.
    joining: Vec<EndpointId>,
    /// Until when endpoints that left the list may stay in use, while there are any.
    bridge: Option<Timestamp>,
    /// When the empty list takes effect that the resolver gave.
    kept: Option<Timestamp>,
    /// When a policy wants to be asked again.
    wake: Option<Timestamp>,
    /// When bytes are to be counted next, where a policy goes by them.
    measure: Option<Timestamp>,
    /// Endpoints with more than one connection, and when to ask next which of those are of use.
    several: BTreeSet<EndpointId>,
    usage: Option<Timestamp>,
    resolved: Resolved,
    stale: Stale,
    published: Option<(Timestamp, Pickers, Arc<[HashOn]>)>,
    state: Connectivity,
    why: Option<Arc<str>>,
    look_again: bool,
    actions: VecDeque<Action>,
    events: VecDeque<Event>,
}

/// What the resolver has said so far.
#[derive(Debug, PartialEq)]
enum Resolved {
    Nothing,
    Failure,
    List,
}

/// In how far the last publication is out of date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    No,
    /// Only the words for calls that fail.
    Words,
    /// Something a policy can see.
    Members,
    /// Something that calls must not go on with.
    Urgent,
}

/// How many endpoints are in each state.
#[derive(Debug, Default)]
struct Tally {
    idle: usize,
    connecting: usize,
    ready: usize,
    failed: usize,
}

impl Tally {
    fn count(&mut self, state: Connectivity) -> &mut usize {
        match state {
            Connectivity::Idle => &mut self.idle,
            Connectivity::Connecting => &mut self.connecting,
            Connectivity::Ready => &mut self.ready,
            // Endpoints are never SHUTDOWN.
            Connectivity::TransientFailure | Connectivity::Shutdown => &mut self.failed,
        }
    }

    /// gRPC's rule for policies over many endpoints (A48, A58).
    fn aggregate(&self) -> Connectivity {
        if self.ready > 0 {
            Connectivity::Ready
        } else if self.connecting + self.idle > 0 {
            Connectivity::Connecting
        } else {
            Connectivity::TransientFailure
        }
    }
}

impl Balancer {
    /// A balancer with no endpoints. What chance decides follows from `seed`.
    ///
    /// Its policies are numbered in the order given, `first` being 0. They share endpoints, connections and
    /// calls in flight; who is connected is the union of what they wish.
    ///
    /// `config` is taken as it is: [`Config::validate`] says whether it makes sense.
    pub fn new(
        config: Config,
        first: Box<dyn Policy>,
        more: Vec<Box<dyn Policy>>,
        seed: u64,
    ) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            table: Table::new(config.max_endpoints, rng.word()),
            pace: Pace::new(config.connect_rate),
            policies: Policies::new(config.terms(), first, more),
            rng,
            attempts: BTreeMap::new(),
            next_attempt: 0,
            deadlines: BTreeSet::new(),
            tally: Tally::default(),
            outliers: config.outliers.map(Outliers::new),
            asleep: false,
            unusable: 0,
            mood: Mood::Calm,
            joining: Vec::new(),
            bridge: None,
            kept: None,
            wake: None,
            measure: None,
            several: BTreeSet::new(),
            usage: None,
            resolved: Resolved::Nothing,
            stale: Stale::No,
            published: None,
            state: Connectivity::Connecting,
            why: None,
            look_again: false,
            actions: VecDeque::new(),
            events: VecDeque::new(),
            config,
        }
    }

    /// The resolver gave a complete list, or has no answer.
    ///
    /// An empty list means that there is nobody; after a list with somebody in it, it takes effect when
    /// [`Config::keep_last_good`] has passed. Ready endpoints that are not in a list of others stay in
    /// use until one of those is ready, for [`Config::linger`] at the most. An error leaves the last list
    /// in use; before the first list it makes calls fail rather than wait.
    pub fn handle_resolution(
        &mut self,
        found: Result<Vec<Endpoint>, ResolveError>,
        now: Timestamp,
    ) {
        let list = match found {
            Ok(list) => list,
            Err(error) => {
                if self.resolved != Resolved::List {
                    self.resolved = Resolved::Failure;
                    self.explain(error.to_string());
                    self.stale = self.stale.max(Stale::Members);
                }
                self.events.push_back(Event::ResolveFailed(error));
                return;
            }
        };
        if list.is_empty() && self.keeps(now) {
            return;
        }
        self.take_up(list, now);
    }

    /// Whether an empty list has to wait, because the list before it is still good enough.
    fn keeps(&mut self, now: Timestamp) -> bool {
        let endpoints = self.table.listed();
        if endpoints == 0 || self.config.keep_last_good.is_zero() {
            return false;
        }
        // Counted from the first time on.
        let until = *self.kept.get_or_insert(now + self.config.keep_last_good);
        self.events.push_back(Event::Kept { endpoints, until });
        true
    }

    /// Makes `list` the list.
    fn take_up(&mut self, list: Vec<Endpoint>, now: Timestamp) {
        let first = self.resolved != Resolved::List;
        self.resolved = Resolved::List;
        self.kept = None;
        if list.is_empty() {
            self.explain("the resolver found no endpoints".into());
        }
        let bridged = !self.config.linger.is_zero();
        let policies = &mut self.policies;
        let loads = |slot| policies.loads(slot);
        let change = self.table.replace(list, bridged, loads, now);
        if first || change.moved || !change.opened.is_empty() {
            self.stale = self.stale.max(Stale::Members);
        }
        let removed = change.closed.len();
        self.tally.idle += change.added;
        // Before the others leave: how many may be out is not to be fewer for a moment.
        if let Some(outliers) = &mut self.outliers {
            change.opened.iter().for_each(|&id| outliers.insert(id));
        }
        self.depart(change.closed, now);
        for &id in &change.opened {
            if let Some(row) = self.table.get_mut(id) {
                self.actions.push_back(Action::Open {
                    id,
                    endpoint: row.endpoint.clone(),
                    loads: row.loads.clone(),
                });
            }
        }
        self.events.push_back(Event::Resolved {
            endpoints: self.table.listed(),
            added: change.added,
            removed,
            duplicates: change.duplicates,
            over_limit: change.over_limit,
        });
    }

    /// A dial gave a connection that takes calls. `false`: nobody wants it any more, drop it.
    #[must_use = "a connection nobody wants must be dropped"]
    pub fn handle_connected(&mut self, attempt: AttemptId, now: Timestamp) -> bool {
        let Some(&id) = self.attempts.get(&attempt) else {
            return false;
        };
        self.tell(id, News::Connected(attempt), now);
        true
    }

    /// A dial gave nothing, or not within the connect budget.
    pub fn handle_connect_failed(&mut self, attempt: AttemptId, why: ConnectError, now: Timestamp) {
        if let Some(&id) = self.attempts.get(&attempt) {
            self.tell(id, News::Failed(attempt, why), now);
        }
    }

    /// A connection still takes calls and should be replaced: another is made before it is retired.
    pub fn handle_worn(&mut self, connection: AttemptId, now: Timestamp) {
        if let Some(&id) = self.attempts.get(&connection) {
            self.tell(id, News::Worn(connection), now);
        }
    }

    /// A connection takes no more calls: it drains or it is gone. News of a connection that was lost,
    /// replaced or removed before is ignored.
    pub fn handle_lost(&mut self, connection: AttemptId, why: ConnectError, now: Timestamp) {
        if let Some(&id) = self.attempts.get(&connection) {
            self.tell(id, News::Lost(connection, why), now);
        }
    }

    /// A pick asked for a connection to this endpoint. It is dialled once, at the earliest when its
    /// backoff allows. On an idle channel that was a call from before, and nobody is: who makes one wakes it first.
    pub fn handle_wanted(&mut self, id: EndpointId, now: Timestamp) {
        if !self.asleep {
            self.tell(id, News::Asked, now);
        }
    }

    /// Another policy is to take the place of the one with this number. It does as soon as it has somebody for a
    /// call, or the one before has nobody; until then that one's pickers stay in force, and both have the
    /// connections they wish for. A third policy takes the place of a second that still waits. `false`: there is
    /// no policy with this number.
    ///
    /// Calls in flight stay counted. Scores that held something else begin anew, from the latency that was
    /// seen and with the penalties there are.
    pub fn handle_policy(&mut self, number: usize, policy: Box<dyn Policy>) -> bool {
        let known = self.policies.switch(number, policy);
        // Before there is a list there is nothing to decide, and a picker of nobody would let calls fail.
        if known && self.resolved != Resolved::Nothing {
            self.stale = self.stale.max(Stale::Members);
        }
        known
    }

    /// No calls have been made for as long as is enough: every connection is let go of, and the channel is IDLE, until
    /// [`handle_awake`](Self::handle_awake). The list of endpoints stays, and may change.
    pub fn handle_idle(&mut self, now: Timestamp) {
        if std::mem::replace(&mut self.asleep, true) {
            return;
        }
        self.wake = None;
        self.measure = None;
        self.stale = Stale::Urgent;
        let ids: Vec<EndpointId> = self.table.rows().map(|row| row.id).collect();
        for id in ids {
            self.tell(id, News::Wished(Wish::LetGo), now);
        }
    }

    /// Calls are made again.
    pub fn handle_awake(&mut self) {
        if std::mem::replace(&mut self.asleep, false) {
            self.stale = Stale::Urgent;
        }
    }

    /// A server said how it is doing. News of an endpoint that has left is ignored.
    pub fn handle_reading(&mut self, id: EndpointId, report: &LoadReport, now: Timestamp) {
        if let Some(row) = self.table.get_mut(id) {
            row.loads.report(report, now);
        }
    }

    /// The answer to [`Action::Measure`] for one endpoint: `total` bytes have passed between us and it so far, both
    /// directions and all its connections together. News of an endpoint that has left is ignored.
    pub fn handle_traffic(&mut self, id: EndpointId, total: u64, now: Timestamp) {
        if let Some(row) = self.table.get_mut(id) {
            row.loads.measure(total, now);
        }
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            if let Some(row) = self.table.get_mut(id) {
                row.deadline = None;
            }
            self.age_health(id, now);
            self.tell(id, News::Tick, now);
        }
        self.sweep(now);
        self.depart_by_time(now);
        if self.wake.is_some_and(|at| at <= now) {
            self.wake = None;
            self.stale = self.stale.max(Stale::Members);
        }
        if self.measure.is_some_and(|at| at <= now) {
            self.measure = Some(now + MEASURED_EVERY);
            self.actions.push_back(Action::Measure);
        }
        self.ask_usage(now);
        if self.kept.is_some_and(|until| until <= now) {
            self.take_up(Vec::new(), now);
        }
    }

    /// The next thing to do, in the order it is to be done.
    pub fn poll_action(&mut self, now: Timestamp) -> Option<Action> {
        if self.actions.is_empty() {
            self.restand(now);
            self.reconsider(now);
            self.publish(now);
            self.dial(now);
            if std::mem::take(&mut self.look_again) {
                self.actions.push_back(Action::Resolve);
            }
        }
        self.actions.pop_front()
    }

    /// The next thing that has happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let deadline = self.deadlines.first().map(|&(at, _)| at);
        let publication = self.publication_due();
        let turn = self.pace.next_turn();
        let timers = [
            deadline,
            publication,
            turn,
            self.bridge,
            self.kept,
            self.wake,
            self.measure,
            self.outliers.as_ref().and_then(Outliers::poll_timeout),
            self.outliers
                .as_ref()
                .filter(|_| !self.asleep)
                .and_then(Outliers::sweep_due),
            self.usage,
        ];
        timers.into_iter().flatten().min()
    }

    /// The state of the whole: READY when some endpoint is, else CONNECTING when some endpoint may soon
    /// be, else TRANSIENT_FAILURE.
    pub fn state(&self) -> Connectivity {
        self.state
    }

    /// Every endpoint, in a stable order.
    pub fn endpoints(&self) -> impl Iterator<Item = View<'_>> {
        self.table.rows().map(|row| View {
            id: row.id,
            endpoint: &row.endpoint,
            loads: &row.loads,
            state: row.state,
            since: row.since,
            why: row.link.why(),
            connections: row.link.connections(),
            standing: row.standing,
        })
    }

    /// Hands one piece of news to one endpoint, and takes note of what follows.
    fn tell(&mut self, id: EndpointId, news: News, now: Timestamp) {
        let Some(row) = self.table.get_mut(id) else {
            return;
        };
        let around = Around {
            endpoint: &row.endpoint,
            backoff: &self.config.backoff,
            most: self.config.max_connections_per_endpoint,
            served: &|| row.loads.outcomes().served(),
            now,
            rng: &mut self.rng,
        };
        let ended = match &news {
            News::Failed(attempt, _) | News::Lost(attempt, _) => Some(*attempt),
            _ => None,
        };
        let first = matches!(&news, News::Connected(_)) && row.link.connections() == 0;
        let Effects {
            abandon,
            retire,
            join_line,
            resolve,
        } = row.link.handle(news, around);
        if let Some(attempt) = ended.filter(|&attempt| !row.link.holds(attempt)) {
            self.attempts.remove(&attempt);
        }
        for attempt in abandon {
            self.attempts.remove(&attempt);
            self.actions.push_back(Action::Abandon { attempt });
        }
        for connection in retire {
            self.attempts.remove(&connection);
            self.actions.push_back(Action::Retire { connection });
        }
        // One place in line is enough, also for a pass that was called off and wanted again.
        if join_line && !std::mem::replace(&mut row.in_line, true) {
            self.pace.queue(id);
        }
        let several = row.link.connections() > 1;
        self.look_again |= resolve;
        if first {
            self.forget(id);
        }
        self.note_several(id, several, now);
        self.enter_deadline(id);
        self.note_state(id, resolve, now);
    }

    /// Keeps the list of deadlines true for one endpoint.
    fn enter_deadline(&mut self, id: EndpointId) {
        let Some(row) = self.table.get_mut(id) else {
            return;
        };
        let both = [row.link.deadline(), row.health.deadline()];
        let deadline = both.into_iter().flatten().min();
        if deadline == row.deadline {
            return;
        }
        if let Some(at) = std::mem::replace(&mut row.deadline, deadline) {
            self.deadlines.remove(&(at, id));
        }
        if let Some(at) = deadline {
            self.deadlines.insert((at, id));
        }
    }

    /// Notices that an endpoint's effective state has changed. `failure`: by a failure or a loss.
    fn note_state(&mut self, id: EndpointId, failure: bool, now: Timestamp) {
        let surroundings = self.surroundings();
        let calm = Surroundings {
            mood: Mood::Calm,
            ..surroundings
        };
        let Some(row) = self.table.get_mut(id) else {
            return;
        };
        let unusable = row.effective(calm) == Connectivity::TransientFailure;
        if std::mem::replace(&mut row.unusable, unusable) != unusable {
            match unusable {
                true => self.unusable += 1,
                false => self.unusable -= 1,
            }
        }
        // Calls that wait for room there hear of it with the next publication, which the state alone would not bring.
        if row.admit(surroundings) {
            self.stale = self.stale.max(Stale::Words);
        }
        let (from, to) = (row.state, row.effective(surroundings));
        let why = row.link.why().filter(|_| failure);
        // A connector's own error names the address; one of another's making may not.
        let words = why.map(|why| {
            let (text, address) = (why.to_string(), row.endpoint.address().to_string());
            match text.contains(&address) {
                true => text,
                false => format!("{address}: {text}"),
            }
        });
        if from != to {
            *self.tally.count(from) -= 1;
            *self.tally.count(to) += 1;
            row.state = to;
            row.since = now;
            self.events.push_back(Event::Endpoint {
                id,
                endpoint: row.endpoint.clone(),
                from,
                to,
                why: why.cloned(),
            });
            let urgency = match from {
                Connectivity::Ready => Stale::Urgent,
                _ => Stale::Members,
            };
            self.stale = self.stale.max(urgency);
            let leaving = row.place.is_none();
            if to == Connectivity::Ready {
                self.joining.push(id);
            }
            self.depart_by_state(leaving, to, now);
        }
        if let Some(words) = words {
            self.explain(words);
        }
    }

    /// Notes the words for calls that fail from now on.
    fn explain(&mut self, words: String) {
        if self.why.as_deref() == Some(&*words) {
            return;
        }
        self.why = Some(words.into());
        if self.state == Connectivity::TransientFailure {
            self.stale = self.stale.max(Stale::Words);
        }
    }

    /// Lets those in line dial, as far as the connect rate allows.
    fn dial(&mut self, now: Timestamp) {
        while let Some(id) = self.pace.pop(now) {
            let Some(row) = self.table.get_mut(id) else {
                continue;
            };
            row.in_line = false;
            let attempt = AttemptId(self.next_attempt);
            let Some(address) = row.link.take_turn(attempt, self.config.stagger, now) else {
                continue;
            };
            self.next_attempt += 1;
            self.pace.spend(now);
            self.attempts.insert(attempt, id);
            self.actions.push_back(Action::Connect {
                attempt,
                id,
                endpoint: row.endpoint.clone(),
                address,
            });
            self.enter_deadline(id);
        }
    }
}

#[cfg(test)]
mod tests;
