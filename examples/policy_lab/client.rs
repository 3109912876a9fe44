//! One client: a policy, what it knows of the servers from its own calls, and the calls that wait in it.
//!
//! Decides what a channel's balancer decides, without dialling: who is being connected, who is told to the policy
//! in which state, and where a newcomer's score begins. The members' slots are the servers' numbers.

use std::collections::VecDeque;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use equipoise::load::{Cells, Load, Scoring, median};
use equipoise::policy::{Connect, Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::Rng;
use equipoise::{Completion, Connectivity, Endpoint, EndpointId, LoadReport, Timestamp};

use super::contenders::{Contender, Weights};
use super::scenario::Server;

/// A policy that wants to be asked again at once is asked after this: pickers are never closer together.
const COALESCE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub struct Client {
    policy: Box<dyn Policy>,
    picker: Option<Arc<dyn Picker>>,
    cells: Cells,
    members: Vec<Member>,
    /// By slot, of those too that have left: their calls go on.
    loads: Vec<Arc<Load>>,
    /// The bytes of all answers by slot, where the policy goes by them.
    bytes: Option<Vec<u64>>,
    rng: Rng,
    keyed: bool,
    /// Whom it dials, and since when; the earliest first.
    dialled: VecDeque<(Timestamp, usize)>,
    wake: Option<Timestamp>,
    /// Calls that wait for another picker, in their order.
    pub waiting: VecDeque<usize>,
}

/// What a client makes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Send(usize),
    /// Kept until there is another picker.
    Wait,
    Fail,
}

/// The endpoint that a client's list has for this server.
pub fn endpoint(number: usize, server: &Server, weights: Weights) -> Arc<Endpoint> {
    let address = Ipv6Addr::from((0xfd << 120) | number as u128);
    let endpoint = Endpoint::from(SocketAddr::from((address, 50_051)));
    Arc::new(
        endpoint
            .with_weight(weights.of(server))
            .expect("it is at least 1"),
    )
}

impl Client {
    /// A client whose list is `endpoints`, connected to none of them.
    pub fn new(contender: &Contender, endpoints: &[Arc<Endpoint>], seed: u64) -> Self {
        let policy = (contender.make)();
        let counts = matches!(policy.scoring(), Scoring::Bandwidth { .. });
        let mut client = Self {
            picker: None,
            cells: Cells::new(policy.scoring()),
            policy,
            members: Vec::with_capacity(endpoints.len()),
            loads: Vec::with_capacity(endpoints.len()),
            bytes: counts.then(Vec::new),
            rng: Rng::new(seed),
            keyed: contender.keyed,
            dialled: VecDeque::new(),
            wake: None,
            waiting: VecDeque::new(),
        };
        endpoints.iter().for_each(|e| client.enlist(e.clone()));
        client
    }

    fn enlist(&mut self, endpoint: Arc<Endpoint>) {
        let slot = self.loads.len();
        let load = Arc::new(Load::new(self.cells.cell(slot)));
        self.loads.push(load.clone());
        if let Some(bytes) = &mut self.bytes {
            bytes.push(0);
        }
        self.members.push(Member {
            id: EndpointId::new(slot as u32, 1),
            state: Connectivity::Idle,
            weight: endpoint.weight(),
            place: Some(self.members.len()),
            endpoint,
            load,
        });
    }

    /// A new server is in the list; [`decide`](Self::decide) follows.
    pub fn add(&mut self, endpoint: Arc<Endpoint>) {
        self.enlist(endpoint);
    }

    /// A server is in the list no more; [`decide`](Self::decide) follows.
    pub fn remove(&mut self, slot: usize) {
        self.members.retain(|member| member.id.slot() != slot);
        for (place, member) in self.members.iter_mut().enumerate() {
            member.place = Some(place);
        }
    }

    /// The connection to a server is lost, and it refuses others; [`decide`](Self::decide) follows.
    pub fn lose(&mut self, slot: usize) {
        if let Some(member) = self.member(slot) {
            member.state = Connectivity::TransientFailure;
        }
    }

    fn member(&mut self, slot: usize) -> Option<&mut Member> {
        // By slot, with gaps.
        let at = self
            .members
            .binary_search_by_key(&slot, |m| m.id.slot())
            .ok()?;
        self.members.get_mut(at)
    }

    /// Asks the policy, and dials whom it wants. Whether it dials anybody anew.
    pub fn decide(&mut self, now: Timestamp) -> bool {
        let mut dials = false;
        loop {
            let decision = self.policy.update(&self.members, now, &mut self.rng);
            self.picker = Some(decision.picker);
            self.wake = decision.wake.map(|at| at.max(now + COALESCE));
            let (mut wanted, exactly) = match decision.connect {
                Connect::All => (None, false),
                Connect::Only(ids) => (Some(ids), false),
                Connect::Exactly(ids) => (Some(ids), true),
            };
            if let Some(ids) = &mut wanted {
                ids.sort_unstable();
            }
            let mut changed = false;
            for member in &mut self.members {
                let wanted = wanted
                    .as_ref()
                    .is_none_or(|ids| ids.binary_search(&member.id).is_ok());
                let state = match member.state {
                    Connectivity::Idle if wanted => {
                        self.dialled.push_back((now, member.id.slot()));
                        dials = true;
                        Connectivity::Connecting
                    }
                    Connectivity::Ready | Connectivity::Connecting if exactly && !wanted => {
                        Connectivity::Idle
                    }
                    as_it_is => as_it_is,
                };
                changed |= state != member.state;
                member.state = state;
            }
            if !changed {
                return dials;
            }
        }
    }

    /// The time at which the policy wants to be asked again.
    pub fn wake(&self) -> Option<Timestamp> {
        self.wake
    }

    /// What was dialled at `then` has come to its end: those that `serve` are ready. Whether anything has changed.
    pub fn connected(
        &mut self,
        then: Timestamp,
        now: Timestamp,
        serves: impl Fn(usize) -> bool,
    ) -> bool {
        let mut joining = Vec::new();
        let mut changed = false;
        while let Some(&(since, slot)) = self.dialled.front()
            && since <= then
        {
            self.dialled.pop_front();
            let Some(member) = self.member(slot) else {
                continue;
            };
            if member.state != Connectivity::Connecting {
                continue;
            }
            changed = true;
            match serves(slot) {
                true => joining.push(slot),
                false => member.state = Connectivity::TransientFailure,
            }
        }
        self.welcome(&joining, now);
        changed
    }

    /// Makes everyone ready who has not failed, at once.
    pub fn connect_all(&mut self, now: Timestamp) {
        self.decide(now);
        let idle = self
            .members
            .iter()
            .filter(|m| matches!(m.state, Connectivity::Idle | Connectivity::Connecting));
        let joining: Vec<usize> = idle.map(|m| m.id.slot()).collect();
        self.welcome(&joining, now);
        self.dialled.clear();
        self.decide(now);
    }

    /// Lets those that become ready begin at the median of those that are.
    fn welcome(&mut self, joining: &[usize], now: Timestamp) {
        if joining.is_empty() {
            return;
        }
        let ready = self
            .members
            .iter()
            .filter(|m| m.state == Connectivity::Ready);
        let median = median(ready.map(|member| &*member.load));
        for &slot in joining {
            if let Some(member) = self.member(slot) {
                member.state = Connectivity::Ready;
                member.load.join(median, now);
            }
        }
    }

    /// Picks for one call. `true`: it dials somebody meanwhile.
    pub fn choose(&mut self, key: u64, now: Timestamp) -> (Choice, bool) {
        let Some(picker) = &self.picker else {
            return (Choice::Wait, false);
        };
        let picked = picker.pick(&PickInfo {
            now,
            random: self.rng.word(),
            path: "/lab.Lab/Call",
            hash: self.keyed.then_some(key),
            avoid: &[],
        });
        match picked {
            PickResult::Pick(id) => (Choice::Send(id.slot()), false),
            PickResult::PickAndConnect { id, connect } => {
                (Choice::Send(id.slot()), self.dial(connect, now))
            }
            PickResult::Queue { connect } => {
                let dials = connect.is_some_and(|id| self.dial(id, now));
                (Choice::Wait, dials)
            }
            PickResult::Fail => (Choice::Fail, false),
        }
    }

    /// Dials an idle member, and tells the policy.
    fn dial(&mut self, id: EndpointId, now: Timestamp) -> bool {
        match self.member(id.slot()) {
            Some(member) if member.state == Connectivity::Idle => {
                member.state = Connectivity::Connecting;
                self.dialled.push_back((now, id.slot()));
                self.decide(now);
                true
            }
            _ => false,
        }
    }

    /// Whom a call with this key would go to, or wait for.
    pub fn owner(&self, key: u64, now: Timestamp) -> Option<usize> {
        let picked = self.picker.as_ref()?.pick(&PickInfo {
            now,
            random: key,
            path: "/lab.Lab/Call",
            hash: Some(key),
            avoid: &[],
        });
        match picked {
            PickResult::Pick(id) | PickResult::PickAndConnect { id, .. } => Some(id.slot()),
            PickResult::Queue { connect } => connect.map(|id| id.slot()),
            PickResult::Fail => None,
        }
    }

    pub fn begin(&self, slot: usize) {
        self.loads[slot].begin();
    }

    pub fn end(&self, slot: usize, completion: &Completion, began: Timestamp, now: Timestamp) {
        self.loads[slot].end(completion, began, now);
    }

    /// What a server says of itself has come.
    pub fn report(&self, slot: usize, report: &LoadReport, now: Timestamp) {
        self.loads[slot].report(report, now);
    }

    /// An answer of so many bytes has come.
    pub fn received(&mut self, slot: usize, bytes: usize) {
        if let Some(counts) = &mut self.bytes {
            counts[slot] += bytes as u64;
        }
    }

    /// Whether bytes are to be counted: then [`measure`](Self::measure) is for every quarter of a second.
    pub fn counts_bytes(&self) -> bool {
        self.bytes.is_some()
    }

    /// Tells the policy of the bytes so far.
    pub fn measure(&self, now: Timestamp) {
        let Some(bytes) = &self.bytes else {
            return;
        };
        let ready = self.members.iter();
        for member in ready.filter(|m| m.state == Connectivity::Ready) {
            member.load.measure(bytes[member.id.slot()], now);
        }
    }
}
