//! A fleet that changes as it is told, and a policy over it: does every answer keep the policy's promises?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use Connectivity::{Connecting, Idle, Ready, TransientFailure};
use equipoise::load::{Cells, Load, median};
use equipoise::policy::{Connect, Decision, Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::Rng;
use equipoise::{Completion, Connectivity, Endpoint, EndpointId, Outcome, Timestamp};

/// What a policy may do with the members that it can use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Manner {
    /// Anyone who is ready will do: a call waits only while nobody is.
    Spreads,
    /// A call with a hash may wait for an idle or connecting member though others are ready, and a call without
    /// one rather than go to one that it should avoid.
    Pins,
    /// All calls go to one, also those that should avoid it, until it is lost.
    Holds,
}

/// Those of the members that the policy gives calls to at all.
pub type Reach = fn(&[Member]) -> BTreeSet<EndpointId>;

/// How the fleet is at first; weights and states follow from `seed`.
#[derive(Clone, Debug)]
pub struct Start {
    pub members: usize,
    pub holes: bool,
    pub seed: u64,
}

/// One step. Members and calls are named by a number, taken modulo how many there are.
#[derive(Clone, Debug)]
pub enum Op {
    /// Changes that come together: the policy is asked once.
    Update(Vec<Change>),
    Pick {
        /// By the picker of the update before.
        late: bool,
        hash: Option<u64>,
        random: u64,
        avoid: Avoid,
    },
    Speak(usize),
    End(usize, Outcome, Duration),
    Pass(Duration),
}

#[derive(Clone, Debug)]
pub enum Change {
    Add(u32),
    Remove(usize),
    /// Everybody leaves the list, and so many come.
    Replace(usize),
    Reorder(u64),
    Weigh(usize, u32),
    Rename(usize, &'static str),
    Turn(usize, Connectivity),
    /// All at once.
    TurnAll(Connectivity),
}

#[derive(Clone, Debug)]
pub enum Avoid {
    Those(Vec<usize>),
    /// Nobody who is there: former tenants of slots, and slots there are none of.
    Strangers(u32),
    AllBut(usize),
    All,
}

/// As in a list of hostile making.
pub const WEIGHTS: [u32; 7] = [1, 1, 2, 3, 100, 1_000_000, u32::MAX];
/// Some are the same.
pub const KEYS: [&str; 6] = ["", "a", "a", "b", "ä\u{0}\n", "10.0.0.1:80"];

const STATES: [Connectivity; 6] = [Ready, Ready, Ready, Idle, Connecting, TransientFailure];

#[derive(Debug)]
pub struct Fleet {
    policy: Box<dyn Policy>,
    manner: Manner,
    reach: Reach,
    cells: Cells,
    rng: Rng,
    now: Timestamp,
    slots: Vec<Slot>,
    /// The slots of those in the list, in its order.
    list: Vec<usize>,
    /// Who became ready since the policy was asked last.
    joining: Vec<usize>,
    ever: u32,
    calls: Vec<Call>,
    wake: Option<Timestamp>,
    /// The last two answers.
    views: Vec<View>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    /// A slot is empty until nobody holds the load of its former tenant.
    former: Weak<Load>,
    tenant: Option<Member>,
}

#[derive(Debug)]
struct Call {
    load: Arc<Load>,
    started: Timestamp,
}

/// What the policy answered, and to what.
#[derive(Debug)]
struct View {
    picker: Arc<dyn Picker>,
    connect: Connect,
    states: BTreeMap<EndpointId, Connectivity>,
    reached: BTreeSet<EndpointId>,
}

impl Fleet {
    /// # Errors
    ///
    /// What is wrong with the policy's first answer.
    pub fn new(
        policy: Box<dyn Policy>,
        manner: Manner,
        reach: Reach,
        start: &Start,
    ) -> Result<Self, String> {
        let mut fleet = Self {
            manner,
            reach,
            cells: Cells::new(policy.scoring()),
            policy,
            rng: Rng::new(start.seed),
            now: Timestamp::from_secs(1),
            slots: Vec::new(),
            list: Vec::new(),
            joining: Vec::new(),
            ever: 0,
            calls: Vec::new(),
            wake: None,
            views: Vec::new(),
        };
        for _ in 0..start.members {
            if start.holes && fleet.rng.below(3) == 0 {
                fleet.slots.push(Slot::default());
            }
            let weight = WEIGHTS[fleet.rng.below(WEIGHTS.len())];
            let slot = fleet.slots.len();
            fleet.slots.push(Slot::default());
            fleet.move_in(slot, weight);
            let state = STATES[fleet.rng.below(STATES.len())];
            fleet.turn(slot, state);
        }
        fleet.ask()?;
        Ok(fleet)
    }

    /// # Errors
    ///
    /// The promise that is broken.
    pub fn step(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Update(changes) => {
                changes.iter().for_each(|change| self.change(change));
                self.ask()
            }
            Op::Pick {
                late,
                hash,
                random,
                avoid,
            } => self.pick(*late, *hash, *random, avoid),
            Op::Speak(call) => {
                if let Some(call) = self.call(*call) {
                    self.calls[call].load.spoke();
                }
                Ok(())
            }
            Op::End(call, outcome, latency) => match self.call(*call) {
                Some(call) => self.end(call, *outcome, *latency),
                None => Ok(()),
            },
            Op::Pass(time) => self.pass(*time),
        }
    }

    /// Ends all calls: nobody is busy any more.
    ///
    /// # Errors
    ///
    /// Who is busy without a call.
    pub fn finish(mut self) -> Result<(), String> {
        while let Some(last) = self.calls.len().checked_sub(1) {
            self.end(last, Outcome::Cancelled, Duration::from_millis(1))?;
        }
        match self.members().find(|m| m.load.in_flight() != 0) {
            Some(member) => Err(format!("{:?} is busy without a call", member.id)),
            None => Ok(()),
        }
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.slots.iter().filter_map(|slot| slot.tenant.as_ref())
    }

    /// The slot of the `which`-th member.
    fn slot(&self, which: usize) -> Option<usize> {
        let count = self.members().count();
        let at = which.checked_rem(count)?;
        self.members().nth(at).map(|member| member.id.slot())
    }

    fn call(&self, which: usize) -> Option<usize> {
        which.checked_rem(self.calls.len())
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Add(weight) => self.add(*weight),
            Change::Remove(which) => {
                if let Some(slot) = self.slot(*which) {
                    self.list.retain(|listed| *listed != slot);
                }
            }
            Change::Replace(count) => {
                self.list.clear();
                (0..*count).for_each(|_| self.add(1));
            }
            Change::Reorder(seed) => {
                let mut rng = Rng::new(*seed);
                for at in (1..self.list.len()).rev() {
                    self.list.swap(at, rng.below(at + 1));
                }
            }
            Change::Weigh(which, weight) => self.edit(*which, |member| {
                member.weight = *weight;
                let endpoint = Endpoint::clone(&member.endpoint).with_weight(*weight);
                member.endpoint = Arc::new(endpoint.expect("no weight here is 0"));
            }),
            Change::Rename(which, key) => self.edit(*which, |member| {
                member.endpoint = Arc::new(Endpoint::clone(&member.endpoint).with_hash_key(*key));
            }),
            Change::Turn(which, state) => {
                if let Some(slot) = self.slot(*which) {
                    self.turn(slot, *state);
                }
            }
            Change::TurnAll(state) => {
                (0..self.slots.len()).for_each(|slot| self.turn(slot, *state));
            }
        }
    }

    fn edit(&mut self, which: usize, edit: impl FnOnce(&mut Member)) {
        let slot = self.slot(which);
        if let Some(member) = slot.and_then(|slot| self.slots[slot].tenant.as_mut()) {
            edit(member);
        }
    }

    fn turn(&mut self, slot: usize, state: Connectivity) {
        let Some(member) = &mut self.slots[slot].tenant else {
            return;
        };
        if member.state != Ready && state == Ready {
            self.joining.push(slot);
        }
        member.state = state;
    }

    fn add(&mut self, weight: u32) {
        let free = |slot: &Slot| slot.tenant.is_none() && slot.former.strong_count() == 0;
        let slot = self.slots.iter().position(free).unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        self.move_in(slot, weight);
    }

    fn move_in(&mut self, slot: usize, weight: u32) {
        self.ever += 1;
        let ip = Ipv4Addr::from(0x0a00_0000 + self.ever);
        let endpoint = Endpoint::from(SocketAddr::from((ip, 80))).with_weight(weight);
        let load = Arc::new(Load::new(self.cells.cell(slot)));
        let Slot {
            generation,
            former,
            tenant,
        } = &mut self.slots[slot];
        *generation += 1;
        *former = Arc::downgrade(&load);
        *tenant = Some(Member {
            id: EndpointId::new(slot as u32, *generation),
            state: Idle,
            weight,
            place: Some(0),
            endpoint: Arc::new(endpoint.expect("no weight here is 0")),
            load,
        });
        self.list.push(slot);
    }

    /// Those who left the list go, unless they are ready and nobody in it is.
    fn depart(&mut self) {
        let places: BTreeMap<usize, usize> = self.list.iter().copied().zip(0..).collect();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if let Some(member) = &mut slot.tenant {
                member.place = places.get(&at).copied();
            }
        }
        let bridged = !self
            .members()
            .any(|member| member.place.is_some() && member.state == Ready);
        for slot in &mut self.slots {
            let gone = |m: &mut Member| m.place.is_none() && !(bridged && m.state == Ready);
            slot.tenant.take_if(gone);
        }
    }

    /// Those who became ready begin with what is usual among the others.
    fn welcome(&mut self) {
        let joining = std::mem::take(&mut self.joining);
        let others = self
            .members()
            .filter(|member| member.state == Ready && !joining.contains(&member.id.slot()));
        let median = median(others.map(|member| &*member.load));
        for slot in joining {
            if let Some(member) = &self.slots[slot].tenant {
                member.load.join(median, self.now);
            }
        }
    }

    /// Asks the policy, and looks at what it wants.
    fn ask(&mut self) -> Result<(), String> {
        self.depart();
        self.welcome();
        let members: Vec<Member> = self.members().cloned().collect();
        let Decision {
            picker,
            connect,
            wake,
        } = self.policy.update(&members, self.now, &mut self.rng);
        // The end of time never comes.
        self.wake = wake.filter(|at| *at < Timestamp::MAX);
        let view = View {
            picker,
            connect,
            states: members.iter().map(|m| (m.id, m.state)).collect(),
            reached: (self.reach)(&members),
        };
        view.check_wishes()?;
        if self.views.len() == 2 {
            self.views.remove(0);
        }
        self.views.push(view);
        Ok(())
    }

    /// Lets time pass, and asks the policy when it wants to be asked.
    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        let mut at_once = 0;
        // Somebody who wants to be asked every second is not asked for all of a century.
        for _ in 0..50 {
            let Some(wake) = self.wake.filter(|wake| *wake <= end) else {
                break;
            };
            at_once = if wake > self.now { 0 } else { at_once + 1 };
            if at_once > 3 {
                return Err(format!("wants to be asked at {wake:?}, again and again"));
            }
            self.now = self.now.max(wake);
            self.ask()?;
        }
        self.now = end;
        match self.wake {
            Some(wake) if wake <= end => self.ask(),
            _ => Ok(()),
        }
    }

    fn end(&mut self, call: usize, outcome: Outcome, latency: Duration) -> Result<(), String> {
        let call = self.calls.swap_remove(call);
        let completion = Completion { outcome, latency };
        call.load.end(&completion, call.started, self.now);
        self.check_busy(&call.load)
    }

    /// As many are under way as have begun and not ended.
    fn check_busy(&self, load: &Arc<Load>) -> Result<(), String> {
        let calls = self.calls.iter().filter(|c| Arc::ptr_eq(&c.load, load));
        match (calls.count(), load.in_flight() as usize) {
            (calls, counted) if calls == counted => Ok(()),
            (calls, counted) => Err(format!("{calls} calls are under way, {counted} counted")),
        }
    }

    fn pick(
        &mut self,
        late: bool,
        hash: Option<u64>,
        random: u64,
        avoid: &Avoid,
    ) -> Result<(), String> {
        let current = self.views.len() - 1;
        let view = &self.views[current.saturating_sub(usize::from(late))];
        let avoid = self.avoided(avoid);
        let info = PickInfo {
            now: self.now,
            random,
            path: "/package.Service/Method",
            hash,
            avoid: &avoid,
        };
        let result = view.picker.pick(&info);
        let id = view
            .check(self.manner, &info, &result)
            .map_err(|why| format!("{why}: {result:?} to {info:?}\n{view:?}"))?;
        // Whoever has left since cannot take it.
        let tenant = id.and_then(|id| {
            let tenant = self.slots[id.slot()].tenant.as_ref();
            tenant.filter(|member| member.id == id)
        });
        let Some(load) = tenant.map(|member| member.load.clone()) else {
            return Ok(());
        };
        load.begin();
        self.calls.push(Call {
            load: load.clone(),
            started: self.now,
        });
        self.check_busy(&load)
    }

    fn avoided(&self, avoid: &Avoid) -> Vec<EndpointId> {
        let ids = || self.members().map(|member| member.id);
        match avoid {
            Avoid::Those(which) => {
                let slots = which.iter().filter_map(|which| self.slot(*which));
                let tenants = slots.filter_map(|slot| self.slots[slot].tenant.as_ref());
                tenants.map(|member| member.id).collect()
            }
            Avoid::Strangers(count) => (0..*count)
                .map(|slot| EndpointId::new(slot * 7, u32::MAX))
                .collect(),
            Avoid::AllBut(which) => {
                let but = self.slot(*which);
                ids().filter(|id| Some(id.slot()) != but).collect()
            }
            Avoid::All => ids().collect(),
        }
    }
}

impl View {
    fn is(&self, id: EndpointId, state: Connectivity) -> bool {
        self.states.get(&id) == Some(&state)
    }

    fn wishes(&self, id: EndpointId) -> bool {
        match &self.connect {
            Connect::All => true,
            Connect::Only(ids) | Connect::Exactly(ids) => ids.contains(&id),
        }
    }

    /// Some of those it uses that are in this state.
    fn reached(&self, state: Connectivity) -> impl Iterator<Item = EndpointId> {
        let reached = self.reached.iter().copied();
        reached.filter(move |id| self.is(*id, state))
    }

    fn check_wishes(&self) -> Result<(), String> {
        if let Connect::Only(ids) | Connect::Exactly(ids) = &self.connect
            && let Some(id) = ids.iter().find(|id| !self.states.contains_key(id))
        {
            return Err(format!("wants {id:?} connected, who is no member"));
        }
        // Nobody is ready, nor about to be: somebody must be dialled, or the channel is stuck.
        let mut under_way = self.reached(Ready).chain(self.reached(Connecting));
        let mut others = self.reached(Idle).chain(self.reached(TransientFailure));
        match under_way.next().is_none() && !self.reached.is_empty() {
            true if !others.any(|id| self.wishes(id)) => Err(format!("dials nobody: {self:?}")),
            _ => Ok(()),
        }
    }

    /// Whether this answer to a call keeps every promise; and who was picked.
    fn check(
        &self,
        manner: Manner,
        info: &PickInfo<'_>,
        result: &PickResult,
    ) -> Result<Option<EndpointId>, &'static str> {
        let others = self.reached(Ready).any(|id| !info.avoid.contains(&id));
        let hopeful = self
            .reached(Idle)
            .chain(self.reached(Connecting))
            .next()
            .is_some();
        match *result {
            PickResult::Pick(id) | PickResult::PickAndConnect { id, .. } if !self.is(id, Ready) => {
                Err("picks one who is not ready")
            }
            PickResult::Pick(id) | PickResult::PickAndConnect { id, .. }
                if manner != Manner::Holds && others && info.avoid.contains(&id) =>
            {
                Err("picks one to be avoided, though another is ready")
            }
            PickResult::PickAndConnect { connect, .. } if !self.is(connect, Idle) => {
                Err("dials one who is not idle")
            }
            PickResult::Pick(id) | PickResult::PickAndConnect { id, .. } => Ok(Some(id)),
            PickResult::Queue { connect: Some(id) } if !self.is(id, Idle) => {
                Err("dials one who is not idle")
            }
            PickResult::Queue { connect } => {
                let dialled = self.reached(Idle).any(|id| self.wishes(id)) || connect.is_some();
                let mut connecting = self.reached(Connecting);
                match manner {
                    _ if !dialled && connecting.next().is_none() => Err("waits for nobody"),
                    Manner::Spreads | Manner::Holds if self.reached(Ready).next().is_some() => {
                        Err("waits though somebody is ready")
                    }
                    Manner::Pins if info.hash.is_none() && others => {
                        Err("waits without a hash though somebody is ready")
                    }
                    _ => Ok(None),
                }
            }
            PickResult::Fail if self.reached(Ready).next().is_some() => {
                Err("fails though somebody is ready")
            }
            PickResult::Fail if hopeful => Err("fails though somebody may become ready"),
            PickResult::Fail => Ok(None),
        }
    }
}
