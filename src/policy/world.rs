//! A small fleet in virtual time, for the policies' own tests.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use super::{Decision, Member, PickInfo, PickResult, Picker, Policy};
use crate::endpoint::{Connectivity, Endpoint, EndpointId};
use crate::load::{Cells, Load, median};
use crate::report::{Completion, Outcome, StatusCode};
use crate::rng::Rng;
use crate::timestamp::Timestamp;

pub(super) const OK: Outcome = Outcome::Answered(StatusCode::OK);
pub(super) const UNAVAILABLE: Outcome = Outcome::Answered(StatusCode::UNAVAILABLE);

/// An endpoint for a slot.
pub(super) fn endpoint(slot: usize) -> Endpoint {
    let [.., c, d] = (slot as u32).to_be_bytes();
    Endpoint::from(std::net::SocketAddr::from(([10, 0, c, d], 80)))
}

pub(super) struct World {
    cells: Cells,
    members: Vec<Member>,
    most_in_flight: Vec<u32>,
    calls: BinaryHeap<Reverse<Ending>>,
    now: Timestamp,
    rng: Rng,
}

/// When a call ends and began, on whom, and how; in the order in which they end.
type Ending = (Timestamp, Timestamp, usize, bool);

impl World {
    pub(super) fn new(policy: &dyn Policy, n: usize, seed: u64) -> Self {
        let mut world = Self {
            cells: Cells::new(policy.scoring()),
            members: Vec::new(),
            most_in_flight: Vec::new(),
            calls: BinaryHeap::new(),
            now: Timestamp::from_secs(1),
            rng: Rng::new(seed),
        };
        for _ in 0..n {
            world.add();
        }
        world
    }

    /// A new ready member: its index.
    pub(super) fn add(&mut self) -> usize {
        let slot = self.members.len();
        let load = Load::new(self.cells.cell(slot));
        load.join(median(self.members.iter().map(|m| &*m.load)), self.now);
        self.members.push(Member {
            id: EndpointId::new(slot as u32, 1),
            state: Connectivity::Ready,
            weight: 1,
            place: Some(slot),
            endpoint: Arc::new(endpoint(slot)),
            load: Arc::new(load),
        });
        self.most_in_flight.push(0);
        slot
    }

    pub(super) fn weigh(&mut self, i: usize, weight: u32) {
        self.members[i].weight = weight;
    }

    pub(super) fn id(&self, i: usize) -> EndpointId {
        self.members[i].id
    }

    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(super) fn load(&self, i: usize) -> &Load {
        &self.members[i].load
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    pub(super) fn most_in_flight(&self, i: usize) -> u32 {
        self.most_in_flight[i]
    }

    pub(super) fn picker(&mut self, policy: &mut dyn Policy) -> Arc<dyn Picker> {
        self.decide(policy).picker
    }

    pub(super) fn decide(&mut self, policy: &mut dyn Policy) -> Decision {
        policy.update(&self.members, self.now, &mut self.rng)
    }

    /// Lets time go by without calls.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.end_calls();
    }

    pub(super) fn pick(&mut self, picker: &dyn Picker, avoid: &[EndpointId]) -> usize {
        let info = PickInfo {
            now: self.now,
            random: self.rng.word(),
            path: "/a.B/C",
            hash: None,
            avoid,
        };
        match picker.pick(&info) {
            PickResult::Pick(id) => id.slot(),
            other => panic!("picked nobody: {other:?}"),
        }
    }

    /// Evenly spaced calls for a while; `serve` says how long each takes and how it ends (OK or
    /// UNAVAILABLE). How many each member got.
    pub(super) fn run(
        &mut self,
        picker: &dyn Picker,
        per_second: u64,
        during: Duration,
        mut serve: impl FnMut(usize) -> (Duration, Outcome),
    ) -> Vec<u64> {
        let mut picks = vec![0; self.members.len()];
        let end = self.now + during;
        while self.now < end {
            let who = self.pick(picker, &[]);
            self.members[who].load.begin();
            picks[who] += 1;
            let most = &mut self.most_in_flight[who];
            *most = (*most).max(self.members[who].load.in_flight());
            let (took, outcome) = serve(who);
            let ending = (self.now + took, self.now, who, outcome == OK);
            self.calls.push(Reverse(ending));
            self.now = self.now + Duration::from_nanos(1_000_000_000 / per_second);
            self.end_calls();
        }
        picks
    }

    fn end_calls(&mut self) {
        while let Some(&Reverse((at, started, who, ok))) = self.calls.peek() {
            if at > self.now {
                break;
            }
            self.calls.pop();
            let completion = Completion {
                outcome: if ok { OK } else { UNAVAILABLE },
                latency: at.since(started),
            };
            self.members[who].load.end(&completion, started, at);
        }
    }
}
