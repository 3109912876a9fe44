//! One run in virtual time: clients, servers, and a heap of what happens next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use equipoise::{Completion, LoadReport, Outcome, StatusCode, Timestamp};

use super::client::{Choice, Client, endpoint};
use super::contenders::Contender;
use super::moves::Observer;
use super::outcome::{End, Run, Sample, warm_up};
use super::readings::{EVERY, answer_bytes};
use super::scenario::{Change, Scenario};
use super::server::{Reached, Server};
use super::workload::{CLIENTS, Call, Workload, stream};

/// How often progress is told: every so many calls.
const STEP: u64 = 1_000;

/// Runs `scenario` under one policy. `progress` is told of calls that have arrived, from time to time.
pub fn run(scenario: &Scenario, contender: &Contender, seed: u64, progress: &dyn Fn(u64)) -> Run {
    let mut world = World::new(scenario, contender, seed);
    while let Some(Reverse((at, _, next))) = world.heap.pop() {
        world.now = at;
        if let Next::Arrival = next
            && world.next.number % STEP == STEP - 1
        {
            progress(STEP);
        }
        world.happen(next);
    }
    progress(scenario.requests % STEP);
    world.finish()
}

/// What happens at a time; calls by their place in `flights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// The next call of the workload.
    Arrival,
    /// A call is at its server.
    Reach(usize),
    /// A call is served.
    Served(usize),
    /// The answer is at the client.
    Answer(usize, How),
    /// A client's dials of a round trip ago are over.
    Connected(usize),
    Wake(usize),
    /// A server's antagonist comes or goes.
    Noise(usize),
    /// The next event of the scenario.
    Event(usize),
    /// A client counts the bytes that it got.
    Measure(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    Good,
    /// Too old when it came out of the queue.
    Dropped,
    Unavailable,
}

/// A call that is under way, or waits in its client.
#[derive(Clone, Debug)]
struct Flight {
    call: Call,
    server: usize,
    /// When it was sent, which is later than its arrival where it had to wait.
    sent: Timestamp,
    /// What the server said of itself when it answered.
    said: Option<LoadReport>,
}

struct World<'a> {
    scenario: &'a Scenario,
    contender: &'a Contender,
    seed: u64,
    now: Timestamp,
    /// By time; of the same time, the earlier noted first.
    heap: BinaryHeap<Reverse<(Timestamp, u64, Next)>>,
    noted: u64,
    half_way: Duration,
    workload: Workload,
    next: Call,
    clients: Vec<Client>,
    servers: Vec<Server>,
    flights: Vec<Flight>,
    free: Vec<usize>,
    samples: Vec<Sample>,
    observer: Option<Observer>,
    /// When the warm-up was over, and the last call came.
    warm: Option<Timestamp>,
    last: Option<Timestamp>,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, contender: &'a Contender, seed: u64) -> Self {
        let begin = Timestamp::ZERO;
        let servers = scenario.servers.iter().enumerate();
        let servers: Vec<Server> = servers
            .map(|(number, &facts)| {
                Server::new(facts, number, scenario, seed, begin, contender.reports)
            })
            .collect();
        let endpoints = scenario.servers.iter().enumerate();
        let endpoints: Vec<_> = endpoints
            .map(|(number, facts)| endpoint(number, facts, contender.weights))
            .collect();
        let client = |number| {
            let seed = stream(seed, CLIENTS + number as u64);
            Client::new(contender, &endpoints, seed)
        };
        let mut workload = Workload::new(scenario, seed);
        let next = workload.next_call();
        let observed = contender.keyed && !scenario.events.is_empty();
        let mut world = Self {
            scenario,
            contender,
            seed,
            now: begin,
            heap: BinaryHeap::new(),
            noted: 0,
            half_way: scenario.round_trip / 2,
            workload,
            next,
            clients: (0..scenario.clients).map(client).collect(),
            servers,
            flights: Vec::new(),
            free: Vec::new(),
            samples: Vec::with_capacity(usize::try_from(scenario.requests).unwrap_or(0)),
            observer: observed.then(|| Observer::new(contender, &endpoints, scenario.keys)),
            warm: None,
            last: None,
        };
        for client in 0..scenario.clients {
            world.decide(client);
            if world.clients[client].counts_bytes() {
                // Not all at once.
                let first = EVERY.mul_f64(client as f64 / scenario.clients as f64);
                world.note(begin + first, Next::Measure(client));
            }
        }
        for server in 0..world.servers.len() {
            world.disturb(server);
        }
        for (number, event) in scenario.events.iter().enumerate() {
            world.note(begin + event.at, Next::Event(number));
        }
        world.note(next.at, Next::Arrival);
        world
    }

    fn note(&mut self, at: Timestamp, next: Next) {
        self.noted += 1;
        self.heap.push(Reverse((at, self.noted, next)));
    }

    /// Whether all calls have been made, and each is served or too old by now.
    fn over(&self) -> bool {
        let last = self.last.map(|last| last + self.scenario.deadline);
        last.is_some_and(|last| last < self.now)
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Arrival => self.arrive(),
            Next::Reach(flight) => self.reach(flight),
            Next::Served(flight) => {
                let server = self.flights[flight].server;
                if self.servers[server].finish(flight, self.now) {
                    self.respond(flight, How::Good);
                    self.serve(server);
                }
            }
            Next::Answer(flight, how) => self.answer(flight, how),
            Next::Connected(client) => {
                let then = Timestamp::from_nanos(
                    self.now.as_nanos() - self.scenario.round_trip.as_nanos() as u64,
                );
                let servers = &self.servers;
                let serves = |server: usize| servers[server].serves();
                if self.clients[client].connected(then, self.now, serves) {
                    self.decide(client);
                }
            }
            Next::Wake(client) => {
                if !self.over() && self.clients[client].wake() == Some(self.now) {
                    self.decide(client);
                }
            }
            Next::Noise(server) => {
                if let Some(noise) = &mut self.servers[server].noise {
                    noise.turn();
                }
                self.disturb(server);
            }
            Next::Event(number) => self.change(number),
            Next::Measure(client) => {
                if !self.over() {
                    self.clients[client].measure(self.now);
                    self.note(self.now + EVERY, Next::Measure(client));
                }
            }
        }
    }

    /// Notes when the antagonist turns next.
    fn disturb(&mut self, server: usize) {
        if self.over() {
            return;
        }
        if let Some(noise) = &mut self.servers[server].noise {
            let stays = noise.stays();
            self.note(self.now + stays, Next::Noise(server));
        }
    }

    fn arrive(&mut self) {
        let call = self.next;
        let number = call.number;
        if number == warm_up(self.scenario.requests) {
            self.warm = Some(self.now);
        }
        match number + 1 < self.scenario.requests {
            true => {
                self.next = self.workload.next_call();
                self.note(self.next.at, Next::Arrival);
            }
            false => self.last = Some(self.now),
        }
        let flight = Flight {
            call,
            server: 0,
            sent: self.now,
            said: None,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.flights[at] = flight;
                at
            }
            None => {
                self.flights.push(flight);
                self.flights.len() - 1
            }
        };
        if self.choose(at) == Choice::Wait {
            self.clients[call.client].waiting.push_back(at);
        }
    }

    /// Sends a call, or ends it; one that waits is the caller's to keep.
    fn choose(&mut self, at: usize) -> Choice {
        let call = self.flights[at].call;
        let (choice, dials) = self.clients[call.client].choose(call.key, self.now);
        if dials {
            self.follow(call.client, dials);
        }
        match choice {
            Choice::Send(server) => {
                self.clients[call.client].begin(server);
                self.flights[at].server = server;
                self.flights[at].sent = self.now;
                self.note(self.now + self.half_way, Next::Reach(at));
            }
            Choice::Fail => self.end(at, None, End::Unavailable),
            Choice::Wait => {}
        }
        choice
    }

    /// Notes what follows from a client's policy having been asked.
    fn follow(&mut self, client: usize, dials: bool) {
        if dials {
            self.note(self.now + self.scenario.round_trip, Next::Connected(client));
        }
        if let Some(at) = self.clients[client].wake() {
            self.note(at, Next::Wake(client));
        }
    }

    /// A client's policy is asked, and the calls that wait there ask its picker.
    fn decide(&mut self, client: usize) {
        let dials = self.clients[client].decide(self.now);
        self.follow(client, dials);
        for at in std::mem::take(&mut self.clients[client].waiting) {
            if self.too_late(at) {
                self.end(at, None, End::DeadlineExceeded);
            } else if self.choose(at) == Choice::Wait {
                self.clients[client].waiting.push_back(at);
            }
        }
    }

    fn too_late(&self, at: usize) -> bool {
        self.now.since(self.flights[at].call.at) > self.scenario.deadline
    }

    fn reach(&mut self, at: usize) {
        let server = self.flights[at].server;
        match self.servers[server].reach(at, self.now) {
            Reached::Queued => self.serve(server),
            Reached::Turned => self.respond(at, How::Unavailable),
            Reached::Lost => self.answer(at, How::Unavailable),
        }
    }

    /// A server sends its answer, and what it says of itself with it.
    fn respond(&mut self, at: usize, how: How) {
        let server = self.flights[at].server;
        self.flights[at].said = self.servers[server].report(self.now);
        self.note(self.now + self.half_way, Next::Answer(at, how));
    }

    /// Fills the free slots of a server from its queue.
    fn serve(&mut self, server: usize) {
        while let Some(at) = self.servers[server].next() {
            if self.too_late(at) {
                self.servers[server].fail(self.now);
                self.respond(at, How::Dropped);
                continue;
            }
            let counted = self.warm.is_some() && self.last.is_none();
            let work = self.flights[at].call.work;
            let takes = self.servers[server].begin(at, work, self.now, counted);
            self.note(self.now + takes, Next::Served(at));
        }
    }

    /// A client hears of a call that it sent.
    fn answer(&mut self, at: usize, how: How) {
        let Flight {
            call, server, sent, ..
        } = self.flights[at];
        let client = &mut self.clients[call.client];
        if let Some(said) = self.flights[at].said.take() {
            client.report(server, &said, self.now);
        }
        if how == How::Good {
            client.received(server, answer_bytes(call.work));
        }
        let end = match how {
            How::Unavailable => End::Unavailable,
            _ if how == How::Dropped || self.too_late(at) => End::DeadlineExceeded,
            _ => End::Ok,
        };
        let code = match end {
            End::Ok => StatusCode::OK,
            End::DeadlineExceeded => StatusCode::DEADLINE_EXCEEDED,
            End::Unavailable => StatusCode::UNAVAILABLE,
        };
        let completion = Completion {
            outcome: Outcome::Answered(code),
            latency: self.now.since(sent),
        };
        self.clients[call.client].end(server, &completion, sent, self.now);
        self.end(at, Some(server), end);
    }

    /// A call is over.
    fn end(&mut self, at: usize, server: Option<usize>, end: End) {
        let call = self.flights[at].call;
        self.samples.push(Sample {
            number: call.number,
            at: call.at,
            server,
            took: match end {
                End::DeadlineExceeded => self.scenario.deadline,
                End::Ok | End::Unavailable => self.now.since(call.at),
            },
            end,
        });
        self.free.push(at);
    }

    /// The `number`-th event of the scenario.
    fn change(&mut self, number: usize) {
        let change = self.scenario.events[number].change;
        let mut lost = Vec::new();
        match change {
            Change::Slow { server, factor } => return self.servers[server].slow(factor),
            Change::Kill(server) => {
                lost = self.servers[server].kill(self.now);
                self.clients.iter_mut().for_each(|c| c.lose(server));
            }
            Change::Remove(server) => {
                self.servers[server].leave(self.now);
                self.clients.iter_mut().for_each(|c| c.remove(server));
            }
            Change::Add(facts) => {
                let number = self.servers.len();
                let new = Server::new(
                    facts,
                    number,
                    self.scenario,
                    self.seed,
                    self.now,
                    self.contender.reports,
                );
                self.servers.push(new);
                let endpoint = endpoint(number, &facts, self.contender.weights);
                self.clients
                    .iter_mut()
                    .for_each(|c| c.add(endpoint.clone()));
                self.disturb(number);
            }
        }
        if let Some(observer) = &mut self.observer {
            let added = self.servers.last().map(Server::facts);
            observer.see(change, added, self.now);
        }
        // The policies first: who is lost must not be picked again by a call that was waiting.
        for client in 0..self.clients.len() {
            self.decide(client);
        }
        for at in lost {
            self.answer(at, How::Unavailable);
        }
    }

    fn finish(mut self) -> Run {
        for client in 0..self.clients.len() {
            for at in std::mem::take(&mut self.clients[client].waiting) {
                self.end(at, None, End::DeadlineExceeded);
            }
        }
        // Clocks of long runs are apart by what the last calls took; order is by number.
        self.samples.sort_unstable_by_key(|sample| sample.number);
        let (warm, last) = (self.warm.unwrap_or_default(), self.last.unwrap_or(self.now));
        let busy = self.servers.iter();
        Run {
            utilisations: busy.map(|s| s.utilisation(warm, last)).collect(),
            moves: self.observer.map(Observer::moves).unwrap_or_default(),
            samples: self.samples,
        }
    }
}
