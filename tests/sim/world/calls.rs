//! The clients' part: a call is picked for, carried, and ends once.

use std::sync::Arc;

use equipoise::balancer::{AttemptId, spared};
use equipoise::load::{Admission, Entrance, Notice};
use equipoise::policy::{PickInfo, PickResult, Picker};
use equipoise::{Completion, Connectivity, EndpointId, Outcome, StatusCode};

use super::{Answers, Ending, Job, Picked, Running, World, ms, number};

/// How many endpoints that turn out to be full or gone are passed over before a call waits.
const PICKS: usize = 32;

/// What one look gave.
enum Look {
    Taken,
    /// The call has ended.
    Fail,
    /// The call waits: for room, where somebody was full.
    Wait(Vec<EndpointId>),
}

impl World {
    /// Finds an endpoint for a call as the channel does, or lets it wait.
    pub(super) fn assign(&mut self, number_of_call: u64) {
        if !self.calls.contains_key(&number_of_call) {
            return;
        }
        if self.state == Connectivity::Idle {
            self.wait(number_of_call, Vec::new());
            let lag = self.settings.lag;
            return match lag.is_zero() {
                true => self.wake(),
                false => self.at(self.now + lag, Self::wake),
            };
        }
        match self.look(number_of_call) {
            Look::Taken | Look::Fail => {}
            Look::Wait(full) => self.wait(number_of_call, full),
        }
        for id in std::mem::take(&mut self.wants) {
            self.want(id);
        }
    }

    /// One look at what is published now, as in `Call::pick`.
    fn look(&mut self, number_of_call: u64) -> Look {
        let call = &self.calls[&number_of_call];
        let (waits, hash) = (call.request.wait_for_ready, call.hash);
        let mut avoid = call.avoid.clone();
        let Some(picker) = self.picker(number_of_call) else {
            return Look::Wait(Vec::new());
        };
        let (mut from, tried) = (0, avoid.len());
        let (mut spared_once, mut full): (Vec<EndpointId>, Vec<EndpointId>) = Default::default();
        for _ in 0..PICKS {
            let random = self.rng.word();
            let result = picker.pick(&PickInfo {
                now: self.now,
                random,
                path: "/sim.World/Call",
                hash,
                avoid: &avoid[from..],
            });
            let id = match result {
                PickResult::Pick(id) => id,
                PickResult::PickAndConnect { id, connect } => {
                    self.wants.push(connect);
                    id
                }
                PickResult::Queue { connect } => {
                    self.wants.extend(connect);
                    return Look::Wait(full);
                }
                PickResult::Fail if waits => return Look::Wait(full),
                PickResult::Fail => {
                    self.finish(number_of_call, Ending::NoEndpoint);
                    return Look::Fail;
                }
            };
            self.checks.picked(id);
            let again = avoid[tried..].contains(&id);
            let id = match again && !spared_once.contains(&id) {
                false => id,
                true => match spared_once.last() {
                    Some(&id) => id,
                    None => break,
                },
            };
            if avoid[..tried].contains(&id) {
                from = tried;
            }
            let Some(seat) = self.seats.get(&id) else {
                return Look::Wait(Vec::new());
            };
            let spares = seat
                .loads
                .spared(self.now)
                .is_some_and(|(elapsed, window)| spared(elapsed, window, random.rotate_left(32)));
            if !again && hash.is_none() && spares {
                spared_once.push(id);
                avoid.push(id);
                continue;
            }
            spared_once.retain(|&other| other != id);
            let (entrance, open) = (seat.loads.entrance(), seat.open.first().copied());
            assert!(
                !self.settings.lag.is_zero() || (entrance != Entrance::Shut && open.is_some()),
                "{:?}: {id:?} was picked: {entrance:?}, over {open:?}",
                self.now
            );
            match (entrance, open) {
                (Entrance::Free, Some(connection)) => {
                    let admission = seat.loads.try_begin().expect("it was free");
                    self.start(number_of_call, id, connection, admission);
                    return Look::Taken;
                }
                (Entrance::Full, _) => full.push(id),
                (Entrance::Shut, _) | (_, None) => {}
            }
            avoid.push(id);
        }
        Look::Wait(full)
    }

    /// Puts a call at the end of the line, where it waits for news or, if anybody is `full`, for room.
    pub(super) fn wait(&mut self, number_of_call: u64, full: Vec<EndpointId>) {
        let call = self.calls.get_mut(&number_of_call).expect("it is known");
        call.full = full;
        let deadline = call.since + call.request.deadline;
        if deadline <= self.now {
            return self.finish(number_of_call, Ending::Deadline);
        }
        self.waiting.push_back(number_of_call);
        self.schedule(deadline, Job::Deadline(number_of_call));
    }

    /// A call has ended where room is scarce: the first in the line that waits for room looks, and if it cannot use
    /// it, the next.
    pub(super) fn freed(&mut self) {
        let for_room = |&call: &u64| self.calls.get(&call).is_some_and(|c| !c.full.is_empty());
        let line: Vec<u64> = self.waiting.iter().copied().filter(for_room).collect();
        for call in line {
            match self.look(call) {
                Look::Taken => {
                    self.waiting.retain(|&waiting| waiting != call);
                    return;
                }
                Look::Fail => {}
                Look::Wait(full) => {
                    self.calls.get_mut(&call).expect("it waits").full = full;
                }
            }
            for id in std::mem::take(&mut self.wants) {
                self.want(id);
            }
        }
    }

    /// That nobody waits for room where there is some, and nothing to come that would tell it so.
    pub(super) fn overlooked(&self) {
        // Among several, a call that is told of room on one may use that of another.
        let sole = self.seats.len() == 1;
        if !sole || !self.settings.lag.is_zero() || self.freeing > 0 || self.waiting.is_empty() {
            return;
        }
        let soon = self.now + ms(5);
        if self.balancer.poll_timeout().is_some_and(|due| due <= soon) {
            return;
        }
        for call in self.waiting.iter().filter_map(|call| self.calls.get(call)) {
            if let ([id], Some(_)) = (call.full.as_slice(), call.hash) {
                let seat = self.seats.get(id).filter(|seat| !seat.open.is_empty());
                let free = seat.is_some_and(|seat| seat.loads.entrance() == Entrance::Free);
                assert!(
                    !free,
                    "{:?}: a call waits for room on {id:?}, which has some",
                    self.now
                );
            }
        }
    }

    /// The picker of the call's policy: the calls take turns at the policies.
    fn picker(&self, number_of_call: u64) -> Option<Arc<dyn Picker>> {
        let policy = number_of_call as usize % self.policies;
        self.pickers.as_ref().map(|pickers| pickers[policy].clone())
    }

    fn start(
        &mut self,
        number_of_call: u64,
        id: EndpointId,
        connection: AttemptId,
        admission: Admission,
    ) {
        self.trace
            .note(self.now, "call", number(id), number_of_call);
        let seat = self.seats.get_mut(&id).expect("it was picked");
        seat.guards += 1;
        let trial = admission.is_trial();
        let in_flight = seat.loads.in_flight();
        let epoch = self.checks.let_in(id, trial, in_flight, self.now);
        let carrier = self.connections.get_mut(&connection).expect("it is open");
        carrier.calls.insert(number_of_call);
        let host = self.hosts[&carrier.address];
        self.picks.push(Picked {
            at: self.now,
            id,
            address: carrier.address.clone(),
        });
        let call = self.calls.get_mut(&number_of_call).expect("it is known");
        call.attempt += 1;
        call.running = Some(Running {
            id,
            connection,
            since: self.now,
            admission,
            epoch,
        });
        let attempt = call.attempt;
        let deadline = call.since + call.request.deadline;
        let answer = match host.answers {
            Answers::Err(most, code, after) if self.rng.below(1_000) < most as usize => {
                Some((self.now + after, code))
            }
            Answers::Serve | Answers::Err(..) => {
                let spread = 0.5 - 0.5 * (1.0 - self.rng.unit()).ln();
                let latency = host.latency.mul_f64(spread);
                if number_of_call % 8 == 7 {
                    let halfway = self.now + latency / 2;
                    self.schedule(halfway, Job::Message(number_of_call, attempt));
                }
                Some((self.now + latency, StatusCode::OK))
            }
            Answers::Fail(code, after) => Some((self.now + after, code)),
            Answers::Stall => None,
        };
        match answer.filter(|&(at, _)| at < deadline) {
            Some((at, code)) => {
                let outcome = Outcome::Answered(code);
                self.schedule(at, Job::Answer(number_of_call, attempt, outcome));
            }
            None => self.schedule(deadline, Job::Deadline(number_of_call)),
        }
    }

    /// Takes a call off its endpoint.
    pub(super) fn release(&mut self, number_of_call: u64, outcome: Outcome) {
        let call = self.calls.get_mut(&number_of_call).expect("it is known");
        let Some(running) = call.running.take() else {
            return;
        };
        let completion = Completion {
            outcome,
            latency: self.now.since(running.since),
        };
        let seat = self.seats.get_mut(&running.id).expect("it carries a call");
        let policy = number_of_call as usize % self.policies;
        let narrow = seat.loads.is_narrow();
        let notice = seat.loads.end(
            policy,
            &completion,
            running.admission,
            running.since,
            self.now,
        );
        self.checks.ended(running.id, outcome);
        if let Some(epoch) = running.epoch {
            self.checks.trial_ended(running.id, epoch);
        }
        seat.guards -= 1;
        if seat.closed && seat.guards == 0 {
            self.seats.remove(&running.id);
        }
        if narrow {
            self.freeing += 1;
            self.schedule(self.now, Job::Freed);
        }
        if let Some(notice) = notice {
            self.tell_notice(running.id, notice);
        }
        if let Some(connection) = self.connections.get_mut(&running.connection) {
            connection.calls.remove(&number_of_call);
        }
        self.drop_if_unused(running.connection);
    }

    /// The first message of a call that goes on: a trial has passed with it.
    pub(super) fn spoke(&mut self, number_of_call: u64, attempt: u32) {
        let call = self.calls.get_mut(&number_of_call);
        let Some(call) = call.filter(|call| call.attempt == attempt) else {
            return;
        };
        let Some(running) = &mut call.running else {
            return;
        };
        let (id, epoch) = (running.id, running.epoch.take());
        let notice = self.seats[&id].loads.spoke(&mut running.admission);
        if let Some(epoch) = epoch {
            self.checks.trial_ended(id, epoch);
        }
        if let Some(notice) = notice {
            self.tell_notice(id, notice);
        }
    }

    /// What a call meant gets to the balancer when the driver comes to it.
    fn tell_notice(&mut self, id: EndpointId, notice: Notice) {
        self.freeing += 1;
        let at = self.now + self.settings.lag;
        self.schedule(at, Job::Notice(id, notice));
    }

    pub(super) fn end_attempt(&mut self, number_of_call: u64, outcome: Outcome) {
        let call = &self.calls[&number_of_call];
        let left = call.running.as_ref().map(|running| running.id);
        self.release(number_of_call, outcome);
        match outcome {
            Outcome::Answered(StatusCode::OK) => self.finish(number_of_call, Ending::Ok),
            Outcome::Answered(code) | Outcome::Pushed(code) => {
                self.finish(number_of_call, Ending::Error(code));
            }
            Outcome::Cancelled => self.finish(number_of_call, Ending::Cancelled),
            Outcome::Refused => {
                let call = self.calls.get_mut(&number_of_call).expect("it is known");
                call.avoid.extend(left);
                self.assign(number_of_call);
            }
        }
    }

    /// The deadline has passed or the client has gone.
    pub(super) fn give_up(&mut self, number_of_call: u64, ending: Ending) {
        let Some(call) = self.calls.get(&number_of_call) else {
            return;
        };
        if ending == Ending::Deadline && call.since + call.request.deadline > self.now {
            return;
        }
        let outcome = match ending {
            Ending::Deadline => Outcome::Answered(StatusCode::DEADLINE_EXCEEDED),
            _ => Outcome::Cancelled,
        };
        self.release(number_of_call, outcome);
        self.finish(number_of_call, ending);
    }

    pub(super) fn finish(&mut self, number_of_call: u64, ending: Ending) {
        self.trace
            .note(self.now, "end", number_of_call, self.all_ended());
        let call = self
            .calls
            .remove(&number_of_call)
            .expect("a call ends once");
        assert!(call.running.is_none(), "it ended and still counts");
        assert!(
            self.now <= call.since + call.request.deadline,
            "a call beyond its deadline"
        );
        self.waiting.retain(|&waiting| waiting != number_of_call);
        *self.endings.entry(ending).or_default() += 1;
    }
}
