//! Which endpoints are there? The list as resolved, kept by identity.
//!
//! An endpoint is the same one from list to list when its id, where given, and its *set* of addresses are
//! the same; then it keeps its slot, its load and its connections. Weight and hash key are edited in place.

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};

use super::connectivity::Link;
use super::health::Damped;
use super::outlier::Standing;
use crate::endpoint::{Address, Connectivity, Endpoint, EndpointId};
use crate::load::{Entry, Load, Loads};
use crate::timestamp::Timestamp;

/// Everything known of one endpoint.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: EndpointId,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) loads: Loads,
    pub(super) link: Link,
    /// The state last told, and since when.
    pub(super) state: Connectivity,
    pub(super) since: Timestamp,
    /// What its link waits for, as entered in the list of deadlines.
    pub(super) deadline: Option<Timestamp>,
    /// Whether it stands in the line of those who want to dial.
    pub(super) in_line: bool,
    /// Whether it may have calls, and how well its server is.
    pub(super) standing: Standing,
    pub(super) health: Damped,
    /// Who is let in, as its loads were told.
    pub(super) entry: Entry,
    /// The trial that was under way at the last sweep.
    pub(super) trial: Option<u32>,
    /// Calls answered without blame and server faults at the last sweep.
    pub(super) counted: (u64, u64),
    /// Whether it could not be used when that was last looked at, panic or not.
    pub(super) unusable: bool,
    /// Where in the list it is. `None`: not in it any more, and in use until somebody who is can take calls.
    pub(super) place: Option<usize>,
}

/// All endpoints, in slots. A slot keeps its place; its tenants change.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Slot>,
    places: BTreeMap<Identity, usize>,
    vacant: Vec<usize>,
    /// How many are on the way out.
    leaving: usize,
    limit: usize,
    /// Salts the choice of who stays when there are too many: not the same for every client.
    salt: u64,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// The loads of the tenant before. As long as a picker or a call holds one of them, it may write to the
    /// slot's score cells, so the slot must stay empty.
    former: Vec<Weak<Load>>,
    row: Option<Row>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Identity {
    id: Option<Arc<str>>,
    addresses: Vec<Address>,
}

impl Identity {
    fn of(endpoint: &Endpoint) -> Self {
        let mut addresses = endpoint.addresses().to_vec();
        addresses.sort_unstable();
        Self {
            id: endpoint.id().map(Arc::from),
            addresses,
        }
    }

    fn rank(&self, salt: u64) -> u64 {
        // SipHash with fixed keys: the same in every run.
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        self.hash(&mut hasher);
        hasher.finish()
    }
}

impl Slot {
    /// Whether nobody remembers the tenant before.
    fn is_free(&self) -> bool {
        self.former.iter().all(|load| load.strong_count() == 0)
    }
}

/// What a new list changed.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Endpoints that were not there before, and endpoints with another weight.
    pub(super) opened: Vec<EndpointId>,
    /// How many of those are new.
    pub(super) added: usize,
    /// Whether anybody who was there before has another place in the list, or none.
    pub(super) moved: bool,
    /// Endpoints that have left.
    pub(super) closed: Vec<Row>,
    /// Endpoints that were listed again after their first mention.
    pub(super) duplicates: usize,
    /// Endpoints beyond the limit.
    pub(super) over_limit: usize,
}

impl Table {
    /// Room for `limit` endpoints.
    pub(super) fn new(limit: usize, salt: u64) -> Self {
        Self {
            slots: Vec::new(),
            places: BTreeMap::new(),
            vacant: Vec::new(),
            leaving: 0,
            limit,
            salt,
        }
    }

    /// Makes `list` the list. Who stays when it is too long depends on the set of endpoints alone, not
    /// on their order or on who was there before: the choice is stable under every re-ordering.
    ///
    /// `bridged`: when nobody in it is ready, those who are stay and are marked as leaving, except where
    /// one of their addresses is another's now.
    pub(super) fn replace(
        &mut self,
        list: Vec<Endpoint>,
        bridged: bool,
        mut loads: impl FnMut(usize) -> Loads,
        now: Timestamp,
    ) -> Change {
        let mut change = Change::default();
        let listed = self.read(list, &mut change);
        let bridged =
            bridged && !listed.is_empty() && !self.any_ready(|who| listed.contains_key(who));
        let addresses: BTreeSet<Address> = match bridged {
            true => listed
                .keys()
                .flat_map(|who| who.addresses.clone())
                .collect(),
            false => BTreeSet::new(),
        };
        let mut moved = false;
        change.closed = self.keep(|identity, row| {
            let place = listed.get(identity).map(|&(place, _)| place);
            moved |= row.place != place;
            row.place = place;
            // Where another server has its address now, its connection leads to nobody in the list.
            let replaced = || identity.addresses.iter().any(|at| addresses.contains(at));
            place.is_some() || (bridged && row.state == Connectivity::Ready && !replaced())
        });
        change.moved = moved;
        // Newcomers take their slots in the order of the list, so that ids are easy to follow.
        let mut newcomers = Vec::new();
        for (identity, (place, endpoint)) in listed {
            let known = self
                .places
                .get(&identity)
                .and_then(|&at| self.slots[at].row.as_mut());
            match known {
                Some(row) if !row.endpoint.is_described_as(&endpoint) => {
                    row.endpoint = Arc::new(endpoint);
                    change.opened.push(row.id);
                }
                Some(_) => {}
                None => newcomers.push((place, identity, endpoint)),
            }
        }
        newcomers.sort_unstable_by_key(|&(place, ..)| place);
        change.added = newcomers.len();
        let mut free = self.take_free(newcomers.len()).into_iter();
        for (place, identity, endpoint) in newcomers {
            let at = free.next().unwrap_or(self.slots.len());
            let id = self.settle(at, place, endpoint, loads(at), now);
            self.places.insert(identity, at);
            change.opened.push(id);
        }
        change
    }

    /// The first mention of each endpoint, with its place in the list; of too many those of the lowest rank. Of the others
    /// nothing is kept but that they were there: a list of millions costs little more than itself.
    fn read(
        &self,
        list: Vec<Endpoint>,
        change: &mut Change,
    ) -> BTreeMap<Identity, (usize, Endpoint)> {
        let mut kept: BTreeMap<(u64, Identity), (usize, Endpoint)> = BTreeMap::new();
        // By their ranks alone, which are unique but for one chance in billions; then a count is off by one.
        let mut cut = HashSet::new();
        for endpoint in list {
            let identity = Identity::of(&endpoint);
            let rank = identity.rank(self.salt);
            let place = kept.len() + cut.len();
            match kept.entry((rank, identity)) {
                Place::Occupied(_) => change.duplicates += 1,
                Place::Vacant(_) if cut.contains(&rank) => change.duplicates += 1,
                Place::Vacant(vacant) => {
                    vacant.insert((place, endpoint));
                    if kept.len() > self.limit
                        && let Some(((rank, _), _)) = kept.pop_last()
                    {
                        cut.insert(rank);
                    }
                }
            }
        }
        change.over_limit = cut.len();
        let kept = kept.into_iter();
        kept.map(|((_, identity), entry)| (identity, entry))
            .collect()
    }

    /// Whether one of those is ready.
    fn any_ready(&self, of: impl Fn(&Identity) -> bool) -> bool {
        let mut places = self.places.iter().filter(|(identity, _)| of(identity));
        places.any(|(_, &at)| {
            let row = self.slots[at].row.as_ref();
            row.is_some_and(|row| row.state == Connectivity::Ready)
        })
    }

    /// Takes out those who do not stay.
    fn keep(&mut self, mut stays: impl FnMut(&Identity, &mut Row) -> bool) -> Vec<Row> {
        let mut gone = Vec::new();
        self.places.retain(|identity, &mut at| {
            let slot = &mut self.slots[at];
            let row = slot.row.take_if(|row| !stays(identity, row));
            let stayed = row.is_none();
            if let Some(row) = row {
                slot.former = row.loads.iter().map(Arc::downgrade).collect();
                self.vacant.push(at);
                gone.push(row);
            }
            stayed
        });
        self.leaving = self.rows().filter(|row| row.place.is_none()).count();
        gone
    }

    /// Takes out those of the leaving who are `done`.
    pub(super) fn take_leaving(&mut self, done: impl Fn(&Row) -> bool) -> Vec<Row> {
        self.keep(|_, row| !(row.place.is_none() && done(row)))
    }

    /// Whether anybody is on the way out.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving > 0
    }

    /// Up to `count` vacant slots whose former tenant nobody remembers, lowest first.
    fn take_free(&mut self, count: usize) -> Vec<usize> {
        self.vacant.sort_unstable();
        let slots = &self.slots;
        let mut free = Vec::new();
        self.vacant.retain(|&at| {
            let take = free.len() < count && slots[at].is_free();
            if take {
                free.push(at);
            }
            !take
        });
        free
    }

    fn settle(
        &mut self,
        at: usize,
        place: usize,
        endpoint: Endpoint,
        loads: Loads,
        now: Timestamp,
    ) -> EndpointId {
        if at == self.slots.len() {
            self.slots.push(Slot {
                generation: 0,
                former: Vec::new(),
                row: None,
            });
        } else {
            let slot = &mut self.slots[at];
            slot.generation = slot.generation.wrapping_add(1);
        }
        let slot = &mut self.slots[at];
        // Slots are bounded by twice the limit of endpoints and what their pickers keep alive.
        let number = u32::try_from(at).unwrap_or(u32::MAX);
        let id = EndpointId::new(number, slot.generation);
        slot.row = Some(Row {
            id,
            endpoint: Arc::new(endpoint),
            loads,
            link: Link::new(),
            state: Connectivity::Idle,
            since: now,
            deadline: None,
            in_line: false,
            standing: Standing::Admitted,
            health: Damped::default(),
            entry: Entry::Open,
            trial: None,
            counted: (0, 0),
            unusable: false,
            place: Some(place),
        });
        id
    }

    /// The endpoint `id` names, if it is still there.
    pub(super) fn get_mut(&mut self, id: EndpointId) -> Option<&mut Row> {
        let row = self.slots.get_mut(id.slot())?.row.as_mut()?;
        (row.id == id).then_some(row)
    }

    /// Whether the endpoint `id` names is still there.
    pub(super) fn contains(&self, id: EndpointId) -> bool {
        let slot = self.slots.get(id.slot());
        slot.and_then(|slot| slot.row.as_ref())
            .is_some_and(|row| row.id == id)
    }

    /// All endpoints by slot: an order that a new list does not change.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> + Clone {
        self.slots.iter().filter_map(|slot| slot.row.as_ref())
    }

    /// The same, to be changed.
    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = &mut Row> {
        self.slots.iter_mut().filter_map(|slot| slot.row.as_mut())
    }

    /// How many endpoints the list has.
    pub(super) fn listed(&self) -> usize {
        self.places.len() - self.leaving
    }
}

#[cfg(test)]
mod tests {
    use super::super::policies::Policies;
    use super::*;
    use crate::load::Terms;
    use crate::policy::Random;

    struct Bench {
        table: Table,
        policies: Policies,
    }

    impl Bench {
        fn new(limit: usize) -> Self {
            Self {
                table: Table::new(limit, 7),
                policies: Policies::new(Terms::NONE, Box::new(Random), vec![Box::new(Random)]),
            }
        }

        fn replace(&mut self, list: &[Endpoint]) -> Change {
            let loads = |slot| self.policies.loads(slot);
            self.table
                .replace(list.to_vec(), true, loads, Timestamp::ZERO)
        }

        fn shown(&self) -> Vec<String> {
            let rows = self.table.rows();
            rows.map(|row| format!("{:?} {}", row.id, row.endpoint.address()))
                .collect()
        }
    }

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(format!("10.0.0.1:{port}").parse::<Address>().unwrap())
    }

    fn pair(a: u16, b: u16) -> Endpoint {
        let addresses = [a, b].map(|port| endpoint(port).address().clone());
        Endpoint::with_addresses(addresses).unwrap()
    }

    fn quiet(change: &Change) -> bool {
        change.opened.is_empty() && change.closed.is_empty()
    }

    #[test]
    fn the_same_set_in_any_order_changes_nothing() {
        let mut bench = Bench::new(10);
        assert_eq!(bench.replace(&[pair(1, 2), endpoint(3)]).added, 2);
        let shown = bench.shown();
        assert_eq!(shown, ["0.0 10.0.0.1:1", "1.0 10.0.0.1:3"]);
        let change = bench.replace(&[endpoint(3), pair(2, 1), endpoint(3), pair(1, 2)]);
        assert!(quiet(&change));
        assert_eq!(change.duplicates, 2);
        assert_eq!(bench.shown(), shown);
    }

    #[test]
    fn identity_is_the_id_and_the_set_of_addresses() {
        let mut bench = Bench::new(10);
        bench.replace(&[endpoint(1).with_id("a"), pair(1, 2)]);
        // A changed id, and a changed set, are other servers.
        let change = bench.replace(&[endpoint(1).with_id("b"), pair(1, 3)]);
        assert_eq!((change.added, change.closed.len()), (2, 2));
        // The same address with and without an id are two.
        let change = bench.replace(&[endpoint(1), endpoint(1).with_id("b")]);
        assert_eq!(
            (change.added, change.closed.len(), change.duplicates),
            (1, 1, 0)
        );
    }

    #[test]
    fn a_weight_is_edited_in_place_and_the_first_mention_counts() {
        let mut bench = Bench::new(10);
        let id = bench.replace(&[endpoint(1)]).opened[0];
        let heavy = |weight| endpoint(1).with_weight(weight).unwrap();
        let change = bench.replace(&[heavy(5), heavy(9)]);
        assert_eq!(
            (change.opened.as_slice(), change.added),
            ([id].as_slice(), 0)
        );
        assert_eq!(bench.table.get_mut(id).unwrap().endpoint.weight(), 5);
        assert!(quiet(&bench.replace(&[heavy(5), heavy(9)])));
    }

    #[test]
    fn a_slot_is_let_again_only_when_nobody_remembers_its_tenant() {
        let mut bench = Bench::new(10);
        bench.replace(&[endpoint(1), endpoint(2)]);
        let held = bench.replace(&[endpoint(2)]).closed.pop().unwrap().loads;
        bench.replace(&[endpoint(2), endpoint(3)]);
        assert_eq!(bench.shown(), ["1.0 10.0.0.1:2", "2.0 10.0.0.1:3"]);
        drop(held);
        bench.replace(&[endpoint(2), endpoint(3), endpoint(4)]);
        assert_eq!(
            bench.shown(),
            ["0.1 10.0.0.1:4", "1.0 10.0.0.1:2", "2.0 10.0.0.1:3"]
        );
        let stale = EndpointId::new(0, 0);
        assert!(
            bench.table.get_mut(stale).is_none(),
            "a stale id names nobody"
        );
        assert!(bench.table.get_mut(EndpointId::new(99, 0)).is_none());
    }

    #[test]
    fn too_many_are_cut_the_same_way_whatever_the_order() {
        let mut list: Vec<Endpoint> = (1..=50).map(endpoint).collect();
        let mut bench = Bench::new(20);
        let change = bench.replace(&list);
        assert_eq!((change.added, change.over_limit), (20, 30));
        let shown = bench.shown();
        for _ in 0..20 {
            list.rotate_left(7);
            let change = bench.replace(&list);
            assert!(quiet(&change));
            assert_eq!(bench.shown(), shown);
        }
        // Nor does it depend on what was there before.
        let addresses = |bench: &Bench| {
            let rows = bench
                .table
                .rows()
                .map(|row| row.endpoint.address().to_string());
            rows.collect::<std::collections::BTreeSet<_>>()
        };
        let mut other = Bench::new(20);
        other.replace(&(30..=49).map(endpoint).collect::<Vec<_>>());
        other.replace(&list);
        assert_eq!(addresses(&other), addresses(&bench));
        // Those beyond the limit are counted once, however often they are named.
        let twice = [list.clone(), list.clone()].concat();
        let change = bench.replace(&twice);
        assert_eq!((change.duplicates, change.over_limit), (50, 30));
        assert!(quiet(&change) && !change.moved);
        // One more endpoint pushes out one at most.
        list.push(endpoint(51));
        assert!(bench.replace(&list).closed.len() <= 1);
        assert_eq!(bench.table.listed(), 20);
    }
}
