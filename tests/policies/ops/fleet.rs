//! A fleet that changes as it is told, and a policy over it: does every answer keep the policy's promises?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use Connectivity::{Connecting, Idle, Ready, TransientFailure};
use equipoise::load::{Cells, Load, median};
use equipoise::policy::{Decision, Member, PickInfo, Policy};
use equipoise::rng::Rng;
use equipoise::{Completion, Connectivity, Endpoint, EndpointId, LoadReport, Outcome, Timestamp};

use super::view::{Manner, View};

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
    /// News of how busy one is, or each.
    Read(Option<usize>, Reading),
    Pass(Duration),
}

#[derive(Clone, Debug)]
pub enum Reading {
    /// The server said so.
    Report(LoadReport),
    /// So many bytes more than at the last count.
    Bytes(u64),
    /// The count has gone back to this.
    BytesAnew(u64),
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
    /// As last counted.
    bytes: u64,
}

#[derive(Debug)]
struct Call {
    load: Arc<Load>,
    started: Timestamp,
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
            Op::Read(which, reading) => match which {
                Some(which) => match self.slot(*which) {
                    Some(slot) => self.read(slot, reading),
                    None => Ok(()),
                },
                None => (0..self.slots.len()).try_for_each(|slot| self.read(slot, reading)),
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
            bytes: _,
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

    /// Tells the tenant's load, and looks at what is known by it: nobody can put a policy out of action.
    fn read(&mut self, slot: usize, reading: &Reading) -> Result<(), String> {
        let Slot { tenant, bytes, .. } = &mut self.slots[slot];
        let Some(Member { id, load, .. }) = tenant else {
            return Ok(());
        };
        *bytes = match reading {
            Reading::Report(_) => *bytes,
            Reading::Bytes(more) => bytes.saturating_add(*more),
            Reading::BytesAnew(total) => *total,
        };
        match reading {
            Reading::Report(report) => load.report(report, self.now),
            Reading::Bytes(_) | Reading::BytesAnew(_) => load.measure(*bytes, self.now),
        }
        let known = [
            load.bandwidth(self.now),
            load.utilization(self.now, Duration::MAX),
            load.reported_weight(self.now, Duration::ZERO, Duration::MAX, 1.0),
        ];
        match known.iter().flatten().all(|n| n.is_finite() && *n >= 0.0) {
            true => Ok(()),
            false => Err(format!("{id:?} has {known:?}")),
        }
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
