//! One server in virtual time: a queue, first come first served, in front of so many slots.

use std::collections::VecDeque;
use std::time::Duration;

use equipoise::{LoadReport, Timestamp};

use super::readings::Meter;
use super::scenario::{Scenario, Server as Facts};
use super::workload::Noise;

/// Calls are told apart by their numbers in the world.
#[derive(Debug)]
pub struct Server {
    facts: Facts,
    pub noise: Option<Noise>,
    /// Where it is to say how it is doing.
    meter: Option<Meter>,
    slowed: f64,
    queue: VecDeque<usize>,
    serving: Vec<usize>,
    killed: bool,
    /// When it was there, and how much its slots did after the warm-up.
    from: Timestamp,
    until: Option<Timestamp>,
    busy: Duration,
}

/// What becomes of a call that has reached its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The connection is gone.
    Lost,
    /// It answers UNAVAILABLE.
    Turned,
    /// It is in the queue: [`Server::next`] follows.
    Queued,
}

impl Server {
    pub fn new(
        facts: Facts,
        number: usize,
        scenario: &Scenario,
        seed: u64,
        from: Timestamp,
        reports: bool,
    ) -> Self {
        Self {
            facts,
            noise: scenario
                .antagonist
                .map(|antagonist| Noise::new(antagonist, seed, number)),
            meter: reports.then(|| Meter::new(facts.slots, from)),
            slowed: 1.0,
            queue: VecDeque::new(),
            serving: Vec::new(),
            killed: false,
            from,
            until: None,
            busy: Duration::ZERO,
        }
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn serves(&self) -> bool {
        !self.killed
    }

    pub fn slow(&mut self, factor: f64) {
        self.slowed = factor;
    }

    /// It leaves the list; its calls go on.
    pub fn leave(&mut self, now: Timestamp) {
        self.until.get_or_insert(now);
    }

    /// It is gone, and so are these calls.
    pub fn kill(&mut self, now: Timestamp) -> Vec<usize> {
        self.killed = true;
        self.leave(now);
        let mut calls = std::mem::take(&mut self.serving);
        calls.extend(self.queue.drain(..));
        calls
    }

    pub fn reach(&mut self, call: usize, now: Timestamp) -> Reached {
        match (self.killed, self.facts.broken) {
            (true, _) => Reached::Lost,
            (_, true) => {
                self.fail(now);
                Reached::Turned
            }
            _ => {
                self.queue.push_back(call);
                Reached::Queued
            }
        }
    }

    /// The call at the head of the queue, where a slot is free.
    pub fn next(&mut self) -> Option<usize> {
        match self.serving.len() < self.facts.slots {
            true => self.queue.pop_front(),
            false => None,
        }
    }

    /// It answers a call with an error.
    pub fn fail(&mut self, now: Timestamp) {
        if let Some(meter) = &mut self.meter {
            meter.fail(now);
        }
    }

    /// What it says of itself with an answer.
    pub fn report(&mut self, now: Timestamp) -> Option<LoadReport> {
        self.meter.as_mut().map(|meter| meter.report(now))
    }

    /// Begins to serve `call`. How long it takes: the speed is that of this moment. `counted`: the warm-up is over.
    pub fn begin(
        &mut self,
        call: usize,
        work: Duration,
        now: Timestamp,
        counted: bool,
    ) -> Duration {
        let left = self.noise.as_ref().map_or(1.0, Noise::factor);
        let takes = work.div_f64(self.facts.speed * left * self.slowed);
        self.serving.push(call);
        if let Some(meter) = &mut self.meter {
            meter.begin(now);
        }
        if counted {
            self.busy += takes;
        }
        takes
    }

    /// Has served `call`. `false`: it was killed before.
    pub fn finish(&mut self, call: usize, now: Timestamp) -> bool {
        let Some(at) = self.serving.iter().position(|&other| other == call) else {
            return false;
        };
        self.serving.swap_remove(at);
        if let Some(meter) = &mut self.meter {
            meter.finish(now);
        }
        true
    }

    /// The part of the time between that its slots were busy; `None` where it was not there.
    pub fn utilisation(&self, from: Timestamp, until: Timestamp) -> Option<f64> {
        let until = self.until.map_or(until, |left| left.min(until));
        let there = until.since(self.from.max(from)).as_secs_f64();
        let slots = there * self.facts.slots as f64;
        (slots > 0.0).then(|| self.busy.as_secs_f64() / slots)
    }
}
