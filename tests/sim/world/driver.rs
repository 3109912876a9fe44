//! The driver's part: does the balancer's work, and brings it news of dials and connections.

use std::collections::BTreeSet;
use std::time::Duration;

use equipoise::balancer::{Action, AttemptId};
use equipoise::load::Notice;
use equipoise::{Address, ConnectError, EndpointId, Health, Outcome, StatusCode};

use super::{Connection, Dial, Dialled, Dialling, Job, Seat, World, number};

impl World {
    pub(super) fn after_news(&mut self) {
        // News of one endpoint may be the end of others: a bridge ends with the first that is ready.
        self.checks.departed(&self.balancer);
        if self.settings.lag.is_zero() {
            self.pump();
        } else if !self.pumping {
            self.pumping = true;
            self.schedule(self.now + self.settings.lag, Job::Pump);
        }
    }

    pub(super) fn pump(&mut self) {
        let mut published = false;
        self.checks.events(&mut self.balancer, self.now);
        while let Some(action) = self.balancer.poll_action(self.now) {
            if self.act(action) {
                published = true;
                // Of what the policies decided, before whoever leaves by it is closed.
                self.checks.events(&mut self.balancer, self.now);
            }
        }
        self.checks.events(&mut self.balancer, self.now);
        self.checks.settled(&self.balancer, self.now);
        self.seats
            .retain(|_, seat| !(seat.closed && seat.guards == 0));
        if published {
            for call in std::mem::take(&mut self.waiting) {
                self.assign(call);
            }
        }
    }

    pub(super) fn act(&mut self, action: Action) -> bool {
        self.deeds += u64::from(!matches!(action, Action::Publish(_)));
        if let Action::Abandon { .. } | Action::Close { .. } = action {
            // Another mood may be the end of one that is on its way out.
            self.checks.departed(&self.balancer);
        }
        match action {
            Action::Open {
                id,
                endpoint,
                loads,
            } => {
                self.trace
                    .note(self.now, "open", number(id), u64::from(endpoint.weight()));
                self.checks.opened(id, &endpoint, &self.balancer);
                self.seats.entry(id).or_insert_with(|| Seat {
                    loads,
                    open: BTreeSet::new(),
                    closed: false,
                    guards: 0,
                });
            }
            Action::Connect {
                attempt,
                id,
                address,
                ..
            } => {
                self.trace.note(self.now, "connect", number(id), 0);
                self.checks.connect(id, attempt, &address, self.now);
                self.dial(attempt, id, address);
            }
            Action::Abandon { attempt } => {
                self.trace.note(self.now, "abandon", 0, 0);
                self.checks.abandon(attempt);
                self.dialling.remove(&attempt);
            }
            Action::Retire { connection } => {
                self.trace.note(self.now, "retire", 0, 0);
                self.retire(connection);
            }
            Action::Close { id } => {
                self.trace.note(self.now, "close", number(id), 0);
                self.checks.closed(id);
                let seat = self.seats.get_mut(&id).expect("only a seat can be closed");
                seat.closed = true;
                for name in std::mem::take(&mut seat.open) {
                    self.drop_if_unused(name);
                }
            }
            Action::Publish(publication) => {
                self.trace
                    .note(self.now, "publish", publication.state as u64, 0);
                self.checks.gather(&mut self.balancer);
                self.checks
                    .published(&self.balancer, &publication, self.now);
                self.publications += 1;
                assert_eq!(publication.pickers.len(), self.policies);
                self.pickers = Some(publication.pickers);
                self.state = publication.state;
                return true;
            }
            Action::Resolve => self.trace.note(self.now, "resolve", 0, 0),
            // No call here finds a connection full.
            Action::Usage => unreachable!("no endpoint has more than one connection"),
            Action::Measure => {
                self.trace.note(self.now, "measure", 0, 0);
                for (&id, seat) in self.seats.iter().filter(|(_, seat)| !seat.closed) {
                    // Every call has the same number of bytes.
                    let total = 1_000 * seat.loads.picks();
                    self.balancer.handle_traffic(id, total, self.now);
                }
            }
        }
        false
    }

    pub(super) fn dial(&mut self, name: AttemptId, id: EndpointId, address: Address) {
        let host = self
            .hosts
            .get(&address)
            .expect("only known hosts are listed");
        let jitter = 0.5 + self.rng.unit();
        let delay = match host.dialling {
            Dialling::Refuse => Duration::from_micros(50),
            _ => host.dial_delay.mul_f64(jitter),
        };
        self.dials.push(Dialled {
            at: self.now,
            address: address.clone(),
        });
        self.dialling.insert(
            name,
            Dial {
                id,
                address,
                since: self.now,
            },
        );
        if delay < self.settings.budget {
            self.schedule(self.now + delay, Job::Dialled(name));
        }
        self.schedule(self.now + self.settings.budget, Job::Budget(name));
    }

    pub(super) fn dialled(&mut self, name: AttemptId) {
        let Some(dial) = self.dialling.get(&name) else {
            return;
        };
        // What counts is what the host does by now.
        match self.hosts[&dial.address].dialling {
            Dialling::Hang => {}
            Dialling::Refuse => self.dial_failed(name, "connection refused"),
            Dialling::Accept => self.connected(name),
            Dialling::CloseAfter(after) => {
                self.connected(name);
                self.schedule(self.now + after, Job::Close(name));
            }
        }
    }

    pub(super) fn connected(&mut self, name: AttemptId) {
        let Some(dial) = self.dialling.remove(&name) else {
            return;
        };
        self.trace.note(self.now, "connected", number(dial.id), 0);
        let kept = self.balancer.handle_connected(name, self.now);
        self.checks.connected(dial.id, name, kept, self.now);
        if kept {
            let seat = self
                .seats
                .get_mut(&dial.id)
                .expect("a dial is made for a seat");
            seat.open.insert(name);
            let address = dial.address.clone();
            self.connections.insert(
                name,
                Connection {
                    id: dial.id,
                    address: dial.address,
                    calls: BTreeSet::new(),
                    told: false,
                },
            );
            self.ask_health(name, &address);
        }
        self.after_news();
    }

    /// A server's word on its health, unless its connection is of no use any more.
    pub(super) fn told_health(&mut self, name: AttemptId, health: Health) {
        if !self.is_open(name) {
            return;
        }
        let id = self.connections[&name].id;
        let serving = u64::from(health.is_serving());
        self.trace.note(self.now, "health", number(id), serving);
        self.checks.said(id, &health, self.now);
        self.balancer.handle_health(id, health, self.now);
        self.after_news();
    }

    /// What the end of a call meant.
    pub(super) fn notice(&mut self, id: EndpointId, notice: Notice) {
        let kind = match notice {
            Notice::FaultsInARow => 0,
            Notice::Trial { passed } => 1 + u64::from(passed),
        };
        self.trace.note(self.now, "notice", number(id), kind);
        self.checks.noticed(id, notice);
        self.balancer.handle_notice(id, notice, self.now);
        self.after_news();
    }

    pub(super) fn dial_failed(&mut self, name: AttemptId, why: &'static str) {
        let Some(dial) = self.dialling.remove(&name) else {
            return;
        };
        assert!(
            self.now <= dial.since + self.settings.budget,
            "a dial beyond its budget"
        );
        self.trace.note(self.now, "dial failed", number(dial.id), 0);
        self.checks.dial_failed(dial.id, name, self.now);
        self.balancer
            .handle_connect_failed(name, ConnectError::new(why), self.now);
        self.after_news();
    }

    pub(super) fn connections_to(&self, address: &Address) -> Vec<AttemptId> {
        let there = self
            .connections
            .iter()
            .filter(|(_, c)| c.address == *address);
        there.map(|(&name, _)| name).collect()
    }

    pub(super) fn is_open(&self, name: AttemptId) -> bool {
        let connection = self.connections.get(&name);
        let seat = connection.and_then(|connection| self.seats.get(&connection.id));
        seat.is_some_and(|seat| seat.open.contains(&name))
    }

    /// Tells the balancer, once, that a connection takes no more calls.
    pub(super) fn tell_lost(&mut self, name: AttemptId, why: &'static str) {
        let Some(connection) = self.connections.get_mut(&name) else {
            return;
        };
        if std::mem::replace(&mut connection.told, true) {
            return;
        }
        let id = connection.id;
        self.trace.note(self.now, why, number(id), 0);
        self.checks.lost(id, name, self.now);
        if let Some(seat) = self.seats.get_mut(&id) {
            seat.open.remove(&name);
        }
        self.balancer
            .handle_lost(name, ConnectError::new(why), self.now);
        self.after_news();
        self.drop_if_unused(name);
    }

    /// A connection breaks, and the calls on it with it.
    pub(super) fn close(&mut self, name: AttemptId) {
        self.tell_lost(name, "closed");
        let Some(connection) = self.connections.remove(&name) else {
            return;
        };
        for call in connection.calls {
            self.end_attempt(call, Outcome::Answered(StatusCode::UNAVAILABLE));
        }
    }

    pub(super) fn retire(&mut self, name: AttemptId) {
        // It may have broken while the balancer's work was waiting.
        let id = self.connections.get(&name).map(|connection| connection.id);
        let seat = id.and_then(|id| self.seats.get_mut(&id));
        let left = seat.map(|seat| {
            seat.open.remove(&name);
            seat.open.len()
        });
        self.checks.retired(name, id.zip(left));
        self.drop_if_unused(name);
    }

    /// A connection that takes no more calls goes when its last call has ended.
    pub(super) fn drop_if_unused(&mut self, name: AttemptId) {
        let unused = |connection: &Connection| connection.calls.is_empty();
        if !self.is_open(name) && self.connections.get(&name).is_some_and(unused) {
            self.connections.remove(&name);
        }
    }
}
