//! The clients' part: a call is picked for, carried, and ends once.

use equipoise::balancer::AttemptId;
use std::sync::Arc;

use equipoise::policy::{PickInfo, PickResult, Picker};
use equipoise::{Completion, EndpointId, Outcome, StatusCode};

use super::{Answers, Ending, Job, Picked, Running, World, number};

impl World {
    pub(super) fn assign(&mut self, number_of_call: u64) {
        // A few races lost in a row are possible while the balancer's work waits, more are not.
        for _ in 0..64 {
            let Some(call) = self.calls.get(&number_of_call) else {
                return;
            };
            let Some(picker) = self.picker(number_of_call) else {
                return self.wait(number_of_call);
            };
            let info = PickInfo {
                now: self.now,
                random: self.rng.word(),
                path: "/sim.World/Call",
                hash: call.hash,
                avoid: &call.avoid,
            };
            let waits = call.request.wait_for_ready;
            let result = picker.pick(&info);
            if let PickResult::PickAndConnect { connect, .. } = result {
                self.want(connect);
            }
            match result {
                PickResult::Pick(id) | PickResult::PickAndConnect { id, .. } => {
                    self.checks.picked(id);
                    let open = self
                        .seats
                        .get(&id)
                        .and_then(|seat| seat.open.first().copied());
                    match open {
                        Some(connection) => return self.start(number_of_call, id, connection),
                        None => {
                            assert!(
                                !self.settings.lag.is_zero(),
                                "{:?}: {id:?} was picked and has no connection",
                                self.now
                            );
                            let call = self.calls.get_mut(&number_of_call).expect("it is known");
                            if call.avoid.contains(&id) {
                                // Everybody left is lost already: the next picker will say more.
                                return self.wait(number_of_call);
                            }
                            call.avoid.push(id);
                        }
                    }
                }
                PickResult::Queue { connect } => {
                    self.wait(number_of_call);
                    if let Some(id) = connect {
                        self.want(id);
                    }
                    return;
                }
                PickResult::Fail => {
                    return match waits {
                        true => self.wait(number_of_call),
                        false => self.finish(number_of_call, Ending::NoEndpoint),
                    };
                }
            }
        }
        panic!("{:?}: a pick that never ends", self.now);
    }

    pub(super) fn wait(&mut self, number_of_call: u64) {
        let call = self.calls.get_mut(&number_of_call).expect("it is known");
        call.avoid.clear();
        let deadline = call.since + call.request.deadline;
        if deadline <= self.now {
            return self.finish(number_of_call, Ending::Deadline);
        }
        self.waiting.push_back(number_of_call);
        self.schedule(deadline, Job::Deadline(number_of_call));
    }

    /// The picker of the call's policy: the calls take turns at the policies.
    fn picker(&self, number_of_call: u64) -> Option<Arc<dyn Picker>> {
        let policy = number_of_call as usize % self.policies;
        self.pickers.as_ref().map(|pickers| pickers[policy].clone())
    }

    pub(super) fn start(&mut self, number_of_call: u64, id: EndpointId, connection: AttemptId) {
        self.trace
            .note(self.now, "call", number(id), number_of_call);
        let seat = self.seats.get_mut(&id).expect("it was picked");
        seat.loads.begin();
        seat.guards += 1;
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
        });
        let attempt = call.attempt;
        let deadline = call.since + call.request.deadline;
        let answer = match host.answers {
            Answers::Serve => {
                let spread = 0.5 - 0.5 * (1.0 - self.rng.unit()).ln();
                let latency = host.latency.mul_f64(spread);
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
        seat.loads.end(policy, &completion, running.since, self.now);
        self.checks.ended(running.id, outcome);
        seat.guards -= 1;
        if seat.closed && seat.guards == 0 {
            self.seats.remove(&running.id);
        }
        if let Some(connection) = self.connections.get_mut(&running.connection) {
            connection.calls.remove(&number_of_call);
        }
        self.drop_if_unused(running.connection);
    }

    pub(super) fn end_attempt(&mut self, number_of_call: u64, outcome: Outcome) {
        let call = &self.calls[&number_of_call];
        let left = call.running.map(|running| running.id);
        self.release(number_of_call, outcome);
        match outcome {
            Outcome::Answered(StatusCode::OK) => self.finish(number_of_call, Ending::Ok),
            Outcome::Answered(code) => self.finish(number_of_call, Ending::Error(code)),
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
