//! The virtual world: hosts, a resolver, clients and a clock around the pure core.
//!
//! Everything that happens is a job in one queue ordered by (time, sequence). The world plays the
//! channel's part: it hands news to the balancer, does its actions, and carries calls by the picker last
//! published. It is the only source of time and, by its seed, of chance.

mod calls;
mod driver;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use equipoise::balancer::{AttemptId, Balancer, Config, HealthSource, Panic};
use equipoise::load::{Admission, Loads, Notice};
use equipoise::policy::{Pickers, Policy};
use equipoise::rng::Rng;
use equipoise::{
    Address, Connectivity, Endpoint, EndpointId, Health, Outcome, ResolveError, StatusCode,
    Timestamp, Unfit,
};

use crate::checks::Checks;
use crate::judged::Ejection;
use crate::wishes::Wishes;

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// What a host does with a dial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Dialling {
    /// Settings come after the host's dial delay.
    Accept,
    /// Connection refused.
    Refuse,
    /// Nothing comes: the attempt ends with the budget.
    Hang,
    /// Settings come, and the connection is closed again after this time.
    CloseAfter(Duration),
}

/// What a host does with a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Answers {
    /// OK, after about the host's latency.
    Serve,
    /// This code, after exactly this time.
    Fail(StatusCode, Duration),
    /// The same for so many of a thousand calls, by chance; the others as `Serve`.
    Err(u32, StatusCode, Duration),
    /// Nothing, ever.
    Stall,
}

/// One server at one address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    pub(crate) dialling: Dialling,
    pub(crate) dial_delay: Duration,
    pub(crate) answers: Answers,
    /// The mean; half of it is fixed, the other half exponential.
    pub(crate) latency: Duration,
    /// What it says of its health, where it is asked.
    pub(crate) says: Says,
}

/// What a host says of its health, or somebody else of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Says {
    Serving,
    NotServing,
    /// Nothing any more: the watch has ended.
    Nothing,
}

impl Says {
    fn health(self) -> Health {
        match self {
            Self::Serving => Health::Serving,
            Self::NotServing => Health::NotServing(Unfit::SaysSo),
            Self::Nothing => Health::NotServing(Unfit::WatchEnded("reset".into())),
        }
    }
}

impl Host {
    pub(crate) const fn serving(latency: Duration) -> Self {
        Self {
            dialling: Dialling::Accept,
            dial_delay: ms(1),
            answers: Answers::Serve,
            latency,
            says: Says::Serving,
        }
    }
}

/// What stays the same while a world turns.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) config: Config,
    /// How long one dial may take.
    pub(crate) budget: Duration,
    /// How long the driver takes to get to the balancer's work; zero does it at once.
    pub(crate) lag: Duration,
    /// Who is ejected for failing; `None` is nobody. What the config says of it is made from this.
    pub(crate) ejection: Option<Ejection>,
}

impl Settings {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            config: Config::default(),
            budget: secs(10),
            lag: Duration::ZERO,
            ejection: None,
        }
    }

    /// Whether calls fail where too few endpoints can be used.
    pub(crate) fn fails_in_panic(&self) -> bool {
        let kinds = (1..=100).map(Panic::fail_below);
        kinds.into_iter().any(|panic| {
            [false, true]
                .map(|over| panic.over_not_serving(over))
                .contains(&self.config.panic)
        })
    }
}

/// A call of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) deadline: Duration,
    pub(crate) wait_for_ready: bool,
    /// The client goes away after this time.
    pub(crate) patience: Option<Duration>,
    /// No key comes with it, also not by chance.
    pub(crate) keyless: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            deadline: secs(1),
            wait_for_ready: false,
            patience: None,
            keyless: false,
        }
    }
}

/// How a call ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    Ok,
    /// The server's own answer, or a connection lost under it.
    Error(StatusCode),
    /// No endpoint could take it.
    NoEndpoint,
    Deadline,
    Cancelled,
}

type Script = Box<dyn FnOnce(&mut World)>;

enum Job {
    /// A dial's outcome is due.
    Dialled(AttemptId),
    /// A dial's budget is used up.
    Budget(AttemptId),
    /// The host closes a connection of its own accord.
    Close(AttemptId),
    /// The driver gets to the balancer's work.
    Pump,
    /// The server answers attempt number so-and-so of a call.
    Answer(u64, u32, Outcome),
    Deadline(u64),
    Patience(u64),
    /// The first message of attempt number so-and-so of a call that goes on.
    Message(u64, u32),
    /// What the end of a call meant gets to the balancer.
    Notice(EndpointId, Notice),
    /// A server's word on its health comes over this connection.
    Health(AttemptId, Health),
    /// A call has ended where room is scarce: somebody who waits for it may look.
    Freed,
    Script(Script),
}

struct Seat {
    loads: Loads,
    /// Connections that take calls.
    open: BTreeSet<AttemptId>,
    closed: bool,
    guards: u32,
}

struct Dial {
    id: EndpointId,
    address: Address,
    since: Timestamp,
}

struct Connection {
    id: EndpointId,
    address: Address,
    calls: BTreeSet<u64>,
    /// The balancer has been told that it is lost.
    told: bool,
}

struct Call {
    request: Request,
    /// What it is to be placed by, by policies that heed it.
    hash: Option<u64>,
    since: Timestamp,
    avoid: Vec<EndpointId>,
    attempt: u32,
    running: Option<Running>,
    /// Who was found full at the last look: if anybody, it waits for room.
    full: Vec<EndpointId>,
}

struct Running {
    id: EndpointId,
    connection: AttemptId,
    since: Timestamp,
    admission: Admission,
    /// Of its endpoint's standing, where it is a trial.
    epoch: Option<u64>,
}

/// One pick that was carried out.
#[derive(Clone, Debug)]
pub(crate) struct Picked {
    pub(crate) at: Timestamp,
    pub(crate) id: EndpointId,
    pub(crate) address: Address,
}

/// A dial that was made.
#[derive(Clone, Debug)]
pub(crate) struct Dialled {
    pub(crate) at: Timestamp,
    pub(crate) address: Address,
}

pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) settings: Settings,
    pub(crate) balancer: Balancer,
    pub(crate) hosts: BTreeMap<Address, Host>,
    pub(crate) checks: Checks,
    pub(crate) rng: Rng,
    /// What happened, for those who ask.
    pub(crate) dials: Vec<Dialled>,
    pub(crate) picks: Vec<Picked>,
    pub(crate) endings: BTreeMap<Ending, u64>,
    /// Actions done, publications aside.
    pub(crate) deeds: u64,
    pub(crate) publications: u64,
    pub(crate) trace: Trace,
    pickers: Option<Pickers>,
    /// What the last publication said of the whole.
    state: Connectivity,
    asleep: bool,
    /// How much news of room is on its way.
    freeing: u32,
    /// Whom a look wants connected; told when it is over.
    wants: Vec<EndpointId>,
    pub(crate) policies: usize,
    queue: BTreeMap<(Timestamp, u64), Job>,
    sequence: u64,
    pumping: bool,
    seats: BTreeMap<EndpointId, Seat>,
    dialling: BTreeMap<AttemptId, Dial>,
    connections: BTreeMap<AttemptId, Connection>,
    calls: BTreeMap<u64, Call>,
    waiting: VecDeque<u64>,
    next_call: u64,
}

/// A running hash of everything that happens, and the words for it where somebody wants to read them.
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) words: Option<VecDeque<String>>,
}

impl Trace {
    fn note(&mut self, now: Timestamp, kind: &str, a: u64, b: u64) {
        for word in [now.as_nanos(), kind.len() as u64, a, b] {
            self.hash = equipoise::rng::remix(self.hash ^ word);
        }
        for byte in kind.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if let Some(words) = &mut self.words {
            words.push_back(format!("{now:?} {kind} {a} {b}"));
            if words.len() > 400 {
                words.pop_front();
            }
        }
    }
}

fn number(id: EndpointId) -> u64 {
    (id.slot() as u64) << 32 | u64::from(id.generation())
}

impl World {
    pub(crate) fn new(settings: Settings, policy: Box<dyn Policy>) -> Self {
        Self::with_policies(settings, policy, Vec::new())
    }

    /// A world whose calls take turns at several policies.
    pub(crate) fn with_policies(
        mut settings: Settings,
        first: Box<dyn Policy>,
        more: Vec<Box<dyn Policy>>,
    ) -> Self {
        let policies = more.len();
        settings.config.outliers = settings.ejection.map(Ejection::detection);
        settings.config.validate().expect("the plan is valid");
        let mut rng = Rng::new(settings.seed);
        let mut wishes = Wishes::default();
        let first = wishes.seat(first);
        let more = more.into_iter().map(|policy| wishes.seat(policy)).collect();
        Self {
            now: Timestamp::ZERO,
            balancer: Balancer::new(settings.config.clone(), first, more, rng.word()),
            checks: Checks::new(&settings, wishes),
            settings,
            hosts: BTreeMap::new(),
            rng,
            dials: Vec::new(),
            picks: Vec::new(),
            endings: BTreeMap::new(),
            deeds: 0,
            publications: 0,
            trace: Trace {
                hash: 0,
                words: None,
            },
            pickers: None,
            state: Connectivity::Connecting,
            asleep: false,
            freeing: 0,
            wants: Vec::new(),
            policies: 1 + policies,
            queue: BTreeMap::new(),
            sequence: 0,
            pumping: false,
            seats: BTreeMap::new(),
            dialling: BTreeMap::new(),
            connections: BTreeMap::new(),
            calls: BTreeMap::new(),
            waiting: VecDeque::new(),
            next_call: 0,
        }
    }

    // Scripting.

    /// Runs `script` at `at`.
    pub(crate) fn at(&mut self, at: Timestamp, script: impl FnOnce(&mut Self) + 'static) {
        self.schedule(at, Job::Script(Box::new(script)));
    }

    /// Turns until `end`.
    pub(crate) fn run_until(&mut self, end: Timestamp) {
        while self.step(end) {}
        self.now = end;
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now + duration);
    }

    /// Turns until `done`, or fails at `end`.
    pub(crate) fn run_until_or(
        &mut self,
        end: Timestamp,
        what: &str,
        done: impl Fn(&Self) -> bool,
    ) {
        while !done(self) {
            assert!(self.step(end), "{what}: not by {end:?}");
        }
    }

    /// The resolver gives a list.
    pub(crate) fn resolve(&mut self, list: Vec<Endpoint>) {
        self.trace.note(self.now, "list", list.len() as u64, 0);
        self.balancer.handle_resolution(Ok(list.clone()), self.now);
        self.checks.listed(&list, &self.balancer, self.now);
        self.after_news();
    }

    /// The resolver has no answer.
    pub(crate) fn resolve_failed(&mut self) {
        self.trace.note(self.now, "no answer", 0, 0);
        let error = ResolveError::new("the resolver does not answer");
        self.balancer.handle_resolution(Err(error), self.now);
        self.checks.unresolved();
        self.after_news();
    }

    /// Another policy is to take the place of that with this number.
    pub(crate) fn switch(&mut self, number: usize, policy: Box<dyn Policy>) {
        self.trace.note(self.now, "switch", number as u64, 0);
        let policy = self.checks.wishes.replace(number, policy);
        assert!(self.balancer.handle_policy(number, policy));
        self.after_news();
    }

    /// A call asks for a connection. Where the driver takes its time, the policies may have changed their
    /// minds meanwhile.
    pub(crate) fn want(&mut self, id: EndpointId) {
        let ask = move |world: &mut Self| {
            // Whoever asks makes a call.
            world.wake();
            world.checks.asked(id);
            world.balancer.handle_wanted(id, world.now);
            world.after_news();
        };
        match self.settings.lag.is_zero() {
            true => ask(self),
            false => self.at(self.now + self.settings.lag, ask),
        }
    }

    /// No calls have been made for long enough, as the driver sees it.
    pub(crate) fn sleep(&mut self) {
        if std::mem::replace(&mut self.asleep, true) {
            return;
        }
        self.trace.note(self.now, "idle", 0, 0);
        self.checks.slept(self.now);
        self.balancer.handle_idle(self.now);
        self.after_news();
    }

    /// A call is made again.
    pub(crate) fn wake(&mut self) {
        if std::mem::replace(&mut self.asleep, false) {
            self.trace.note(self.now, "awake", 0, 0);
            self.checks.bench.asleep = false;
            self.balancer.handle_awake();
            self.after_news();
        }
    }

    /// The host says of itself from now on what `says` is.
    pub(crate) fn say(&mut self, address: &Address, says: Says) {
        if let Some(host) = self.hosts.get_mut(address) {
            host.says = says;
        }
        for name in self.connections_to(address) {
            self.ask_health(name, address);
        }
    }

    /// What a host says of its health reaches us over this connection a moment later.
    fn ask_health(&mut self, name: AttemptId, address: &Address) {
        if self.settings.config.health != HealthSource::None {
            let says = self.hosts[address].says;
            self.schedule(self.now + ms(1), Job::Health(name, says.health()));
        }
    }

    /// A client makes a call.
    pub(crate) fn call(&mut self, request: Request) {
        let call = self.next_call;
        self.next_call += 1;
        if let Some(patience) = request.patience {
            self.schedule(self.now + patience, Job::Patience(call));
        }
        // A few keys come again and again, and some calls have none.
        let hash = match self.rng.below(4) {
            0 => None,
            _ if request.keyless => None,
            _ => Some(equipoise::rng::remix(self.rng.below(50) as u64)),
        };
        self.calls.insert(
            call,
            Call {
                request,
                hash,
                since: self.now,
                avoid: Vec::new(),
                attempt: 0,
                running: None,
                full: Vec::new(),
            },
        );
        self.assign(call);
    }

    /// Calls at `every` until `end`, from now on.
    pub(crate) fn traffic(&mut self, every: Duration, end: Timestamp, request: Request) {
        if self.now >= end {
            return;
        }
        self.call(request);
        self.at(self.now + every, move |world| {
            world.traffic(every, end, request)
        });
    }

    /// The host loses every connection, and the calls on them.
    pub(crate) fn cut(&mut self, address: &Address) {
        for connection in self.connections_to(address) {
            self.close(connection);
        }
    }

    /// The host sends GOAWAY on every connection: calls under way go on, but for every third, which it
    /// has not processed.
    pub(crate) fn goaway(&mut self, address: &Address) {
        for name in self.connections_to(address) {
            let calls: Vec<u64> = self.connections[&name].calls.iter().copied().collect();
            self.tell_lost(name, "goaway");
            for call in calls.into_iter().filter(|call| call % 3 == 0) {
                self.end_attempt(call, Outcome::Refused);
            }
        }
    }

    /// Every connection of the host nears a limit of its own.
    pub(crate) fn wear(&mut self, address: &Address) {
        for name in self.connections_to(address) {
            let Some(id) = self.connections.get(&name).map(|connection| connection.id) else {
                continue;
            };
            self.trace.note(self.now, "worn", number(id), 0);
            self.checks.worn(id, name, self.now);
            self.balancer.handle_worn(name, self.now);
            self.after_news();
        }
    }

    // Facts.

    /// Calls that wait for an endpoint.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn ended(&self, ending: Ending) -> u64 {
        self.endings.get(&ending).copied().unwrap_or(0)
    }

    /// Calls that ended, however they did.
    pub(crate) fn all_ended(&self) -> u64 {
        self.endings.values().sum()
    }

    pub(crate) fn under_way(&self) -> usize {
        self.calls.len()
    }

    /// Names, addresses and states of the endpoints there are.
    pub(crate) fn endpoints(&self) -> Vec<(EndpointId, Address, Connectivity)> {
        let views = self.balancer.endpoints();
        views
            .map(|view| (view.id, view.endpoint.address().clone(), view.state))
            .collect()
    }

    pub(crate) fn all_ready(&self) -> bool {
        self.balancer
            .endpoints()
            .all(|view| view.state == Connectivity::Ready)
    }

    pub(crate) fn dials_to(&self, address: &Address) -> Vec<Timestamp> {
        let dials = self.dials.iter().filter(|dial| dial.address == *address);
        dials.map(|dial| dial.at).collect()
    }

    /// The share of picks between two times that went to `address`.
    pub(crate) fn share(&self, address: &Address, from: Timestamp, to: Timestamp) -> f64 {
        let within: Vec<&Picked> = self
            .picks
            .iter()
            .filter(|pick| (from..to).contains(&pick.at))
            .collect();
        let there = within
            .iter()
            .filter(|pick| pick.address == *address)
            .count();
        there as f64 / within.len().max(1) as f64
    }

    /// That nothing is left of the calls there were.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.calls.len(), 0, "calls without an end");
        assert_eq!(self.waiting.len(), 0, "calls waiting");
        for (id, seat) in &self.seats {
            assert_eq!(
                (seat.loads.in_flight(), seat.guards),
                (0, 0),
                "in flight on {id:?}"
            );
        }
        let leftover = self.seats.values().filter(|seat| seat.closed).count();
        assert_eq!(leftover, 0, "seats of endpoints long gone");
        assert_eq!(
            self.seats.len(),
            self.balancer.endpoints().count(),
            "seats and endpoints"
        );
    }

    // The queue.

    fn schedule(&mut self, at: Timestamp, job: Job) {
        self.queue.insert((at, self.sequence), job);
        self.sequence += 1;
    }

    /// Does the next thing, if one is due by `end`.
    fn step(&mut self, end: Timestamp) -> bool {
        let job = self.queue.first_key_value().map(|(&(at, _), _)| at);
        // A driver looks at the timer after it has done the work.
        let timer = self.balancer.poll_timeout().filter(|_| !self.pumping);
        let next = [job, timer].into_iter().flatten().min();
        let Some(next) = next.filter(|&at| at <= end) else {
            return false;
        };
        self.now = self.now.max(next);
        if job == Some(next) {
            if let Some((_, job)) = self.queue.pop_first() {
                self.perform(job);
            }
        } else {
            self.trace.note(self.now, "timer", 0, 0);
            self.checks.time(self.now);
            self.balancer.handle_timeout(self.now);
            self.after_news();
        }
        self.overlooked();
        self.checks.in_flight(
            self.seats
                .iter()
                .map(|(&id, seat)| (id, seat.loads.in_flight(), seat.guards)),
        );
        true
    }

    fn perform(&mut self, job: Job) {
        match job {
            Job::Dialled(name) => self.dialled(name),
            Job::Budget(name) => self.dial_failed(name, "no settings within the connect budget"),
            Job::Close(name) => self.close(name),
            Job::Pump => {
                self.pumping = false;
                self.pump();
            }
            Job::Answer(call, attempt, outcome) => {
                let current = self
                    .calls
                    .get(&call)
                    .is_some_and(|call| call.attempt == attempt);
                if current {
                    self.end_attempt(call, outcome);
                }
            }
            Job::Deadline(call) => self.give_up(call, Ending::Deadline),
            Job::Patience(call) => self.give_up(call, Ending::Cancelled),
            Job::Script(script) => script(self),
            Job::Message(call, attempt) => self.spoke(call, attempt),
            Job::Notice(id, notice) => {
                self.freeing -= 1;
                self.notice(id, notice);
            }
            Job::Health(name, health) => self.told_health(name, health),
            Job::Freed => {
                self.freeing -= 1;
                self.freed();
            }
        }
    }
}
