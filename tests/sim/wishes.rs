//! What do the policies want? Every policy of a world is watched: what it decided is noted on its way to the
//! balancer, and who takes the place of whom is judged by the pickers that come out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use equipoise::load::Scoring;
use equipoise::policy::{
    Connect, Decision, HashOn, Member, PickInfo, PickResult, Picker, Pickers, Policy,
};
use equipoise::rng::{Rng, remix};
use equipoise::{Connectivity, EndpointId, Error, Timestamp};

/// What is wished for an endpoint, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    LetGo,
    Keep,
    Connect,
}

/// What a policy said when it was last asked.
#[derive(Debug)]
struct Said {
    /// How often it was asked since somebody looked.
    asked: u32,
    connect: Connect,
    wake: Option<Timestamp>,
    /// Where its picker is in memory: to hold the picker itself would keep slots occupied.
    picker: usize,
    /// How many of the probes its picker gave to somebody, where it was tried.
    served: Option<usize>,
    /// Somebody was ready whom it wanted connected.
    somebody: bool,
}

const PROBES: usize = 4;

impl Said {
    fn serves_none(&self) -> bool {
        self.served == Some(0)
    }

    fn serves_all(&self) -> bool {
        self.served == Some(PROBES)
    }

    fn wish(&self, id: EndpointId) -> Wish {
        match &self.connect {
            Connect::All => Wish::Connect,
            Connect::Only(ids) | Connect::Exactly(ids) if ids.contains(&id) => Wish::Connect,
            Connect::Only(_) => Wish::Keep,
            Connect::Exactly(_) => Wish::LetGo,
        }
    }
}

fn address(picker: &Arc<dyn Picker>) -> usize {
    Arc::as_ptr(picker).cast::<()>() as usize
}

type Notes = Arc<Mutex<Said>>;

fn read(notes: &Notes) -> MutexGuard<'_, Said> {
    notes.lock().expect("nobody panics while holding it")
}

/// A policy whose every decision is noted.
#[derive(Debug)]
pub(crate) struct Watched {
    policy: Box<dyn Policy>,
    notes: Notes,
    probing: Arc<AtomicBool>,
}

impl Watched {
    fn new(policy: Box<dyn Policy>, probing: &Arc<AtomicBool>) -> Self {
        let nothing = Said {
            asked: 0,
            connect: Connect::Only(Vec::new()),
            wake: None,
            picker: 0,
            served: None,
            somebody: false,
        };
        Self {
            policy,
            notes: Arc::new(Mutex::new(nothing)),
            probing: probing.clone(),
        }
    }
}

impl Policy for Watched {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        let decision = self.policy.update(members, now, rng);
        let probe = |n: u64| PickInfo {
            // So early that nothing is due which calls should get.
            now: Timestamp::ZERO,
            random: remix(n),
            path: "/sim.Probe",
            hash: None,
            avoid: &[],
        };
        let served = (0..PROBES as u64).filter(|&n| {
            let result = decision.picker.pick(&probe(n));
            matches!(
                result,
                PickResult::Pick(_) | PickResult::PickAndConnect { .. }
            )
        });
        let mut said = read(&self.notes);
        // Relaxed: one thread turns a world.
        let probing = self.probing.load(Ordering::Relaxed);
        said.served = probing.then(|| served.count());
        said.asked += 1;
        said.connect = decision.connect.clone();
        said.wake = decision.wake;
        said.picker = address(&decision.picker);
        let mut ready = members.iter().filter(|m| m.state == Connectivity::Ready);
        said.somebody = ready.any(|member| said.wish(member.id) == Wish::Connect);
        decision
    }

    fn scoring(&self) -> Scoring {
        self.policy.scoring()
    }

    fn hash_on(&self) -> HashOn {
        self.policy.hash_on()
    }

    fn check(&self) -> Result<(), Error> {
        self.policy.check()
    }
}

/// The policies in play, by number.
#[derive(Default)]
pub(crate) struct Wishes {
    chairs: Vec<Chair>,
    probing: Arc<AtomicBool>,
}

struct Chair {
    holder: Notes,
    /// Who is to take its place.
    next: Option<Notes>,
    /// The picker that was published last.
    picker: usize,
}

impl Wishes {
    /// Tries each picker from now on. A probe is a pick like any other: those that take turns move on by it.
    pub(crate) fn probe(&self) {
        // Relaxed: one thread turns a world.
        self.probing.store(true, Ordering::Relaxed);
    }

    /// A policy with the next number.
    pub(crate) fn seat(&mut self, policy: Box<dyn Policy>) -> Box<dyn Policy> {
        let watched = Watched::new(policy, &self.probing);
        self.chairs.push(Chair {
            holder: watched.notes.clone(),
            next: None,
            picker: 0,
        });
        Box::new(watched)
    }

    /// A policy that is to take the place of that with this number.
    pub(crate) fn replace(&mut self, number: usize, policy: Box<dyn Policy>) -> Box<dyn Policy> {
        let watched = Watched::new(policy, &self.probing);
        self.probe();
        self.chairs[number].next = Some(watched.notes.clone());
        Box::new(watched)
    }

    /// What a publication shows: who took the place of another; `None` where nobody was asked.
    /// `hidden`: it is not the policies that answer the calls just now.
    pub(crate) fn published(
        &mut self,
        pickers: &Pickers,
        hidden: bool,
        now: Timestamp,
    ) -> Option<Vec<usize>> {
        assert_eq!(pickers.len(), self.chairs.len());
        let anew = read(&self.chairs[0].holder).asked > 0;
        let mut switched = Vec::new();
        for (number, (chair, picker)) in self.chairs.iter_mut().zip(pickers.iter()).enumerate() {
            let picker = (!hidden).then(|| address(picker));
            if chair.judge(picker, anew, now) {
                switched.push(number);
            }
        }
        anew.then_some(switched)
    }

    /// What they wish together for an endpoint: the most that any of them does.
    pub(crate) fn of(&self, id: EndpointId) -> Wish {
        let wishes = self.all().map(|notes| read(notes).wish(id));
        wishes.max().expect("a world has a policy")
    }

    /// When one of them wants to be asked again.
    pub(crate) fn wake(&self) -> Option<Timestamp> {
        self.all().filter_map(|notes| read(notes).wake).min()
    }

    /// Whether nobody waits for the place of another.
    pub(crate) fn settled(&self) -> bool {
        self.chairs.iter().all(|chair| chair.next.is_none())
    }

    /// Whether none in force wants everyone connected.
    pub(crate) fn lazy(&self) -> bool {
        let mut holders = self.chairs.iter().map(|chair| read(&chair.holder));
        holders.all(|said| said.connect != Connect::All)
    }

    /// Whether a policy in force gives calls to nobody and wants this endpoint.
    pub(crate) fn waits_for(&self, id: EndpointId) -> bool {
        let mut holders = self.chairs.iter().map(|chair| read(&chair.holder));
        holders.any(|said| said.serves_none() && said.wish(id) == Wish::Connect)
    }

    fn all(&self) -> impl Iterator<Item = &Notes> {
        let pairs = self.chairs.iter();
        pairs.flat_map(|chair| std::iter::once(&chair.holder).chain(&chair.next))
    }
}

impl Chair {
    /// Judges the picker that was published, if it was a policy's own; whether it is that of another policy than before.
    fn judge(&mut self, picker: Option<usize>, anew: bool, now: Timestamp) -> bool {
        let times = |notes: &Notes| std::mem::take(&mut read(notes).asked);
        let asked = times(&self.holder);
        assert_eq!(asked, u32::from(anew), "{now:?}: asked all, and once");
        if !anew {
            let same = picker.is_none_or(|picker| picker == self.picker);
            assert!(same, "{now:?}: another picker from nowhere");
            return false;
        }
        self.picker = picker.unwrap_or(self.picker);
        let took_over = match self.next.take() {
            None => false,
            Some(next) => {
                assert_eq!(times(&next), 1, "{now:?}: whoever waits is asked too");
                let (old, new) = (read(&self.holder), read(&next));
                let serves = !old.serves_none() && new.serves_none();
                let took_over = picker.map_or(!serves, |picker| picker == new.picker);
                assert!(
                    !(took_over && old.serves_all() && new.serves_none()),
                    "{now:?}: a policy that serves made way for one that does not"
                );
                assert!(
                    took_over || !(old.serves_none() || new.serves_all()),
                    "{now:?}: a policy that serves waits, or one that does not stays"
                );
                drop((old, new));
                match took_over {
                    true => self.holder = next,
                    false => self.next = Some(next),
                }
                took_over
            }
        };
        let said = read(&self.holder);
        let known = picker.is_none_or(|picker| picker == said.picker);
        assert!(known, "{now:?}: the picker of nobody");
        assert!(
            !(said.somebody && said.serves_none()),
            "{now:?}: somebody it wants is ready, and its calls go to nobody"
        );
        took_over
    }
}
