//! What the calls see: the picker that is in force, and where each endpoint's connections are kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::{ArcSwap, Guard};

use crate::balancer::AttemptId;
use crate::endpoint::{Address, Connectivity, Endpoint, EndpointId};
use crate::error::ConnectError;
use crate::load::Loads;
use crate::policy::{HashOn, Pickers};
use crate::timestamp::Timestamp;
use crate::transport::{Connection, Control, Slot, Traffic};

/// One published decision. A call loads it once per pick and keeps none of it.
pub(super) struct Snapshot<N> {
    /// By the number of the policy.
    pub(super) pickers: Pickers,
    /// What each of them places calls by.
    pub(super) hash_on: Arc<[HashOn]>,
    pub(super) seats: Arc<Seats<N>>,
    pub(super) state: Connectivity,
    /// Why calls fail while nobody can take them.
    pub(super) why: Option<Arc<str>>,
}

impl<N> fmt::Debug for Snapshot<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("state", &self.state)
            .field("pickers", &self.pickers)
            .finish_non_exhaustive()
    }
}

/// The seats by slot, made anew only when an endpoint comes or goes.
pub(super) struct Seats<N> {
    by_slot: Vec<Option<Arc<Seat<N>>>>,
    by_address: OnceLock<HashMap<Address, usize>>,
}

impl<N> Seats<N> {
    pub(super) fn new(by_slot: Vec<Option<Arc<Seat<N>>>>) -> Self {
        Self {
            by_slot,
            by_address: OnceLock::new(),
        }
    }

    /// The seat of `id`, unless its tenant has changed.
    pub(super) fn get(&self, id: EndpointId) -> Option<&Arc<Seat<N>>> {
        self.by_slot
            .get(id.slot())?
            .as_ref()
            .filter(|seat| seat.id == id)
    }

    pub(super) fn at(&self, address: &Address) -> Option<&Arc<Seat<N>>> {
        let by_address = self.by_address.get_or_init(|| {
            let mut map = HashMap::new();
            for seat in self.iter() {
                for address in seat.endpoint().addresses() {
                    map.entry(address.clone()).or_insert(seat.id.slot());
                }
            }
            map
        });
        self.by_slot.get(*by_address.get(address)?)?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Seat<N>>> {
        self.by_slot.iter().flatten()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

/// A live connection and the name the balancer gave it.
pub(super) struct Live<N> {
    pub(super) id: AttemptId,
    pub(super) connection: N,
}

/// Where one endpoint's load and connections are kept as long as it is in the list.
pub(super) struct Seat<N> {
    pub(super) id: EndpointId,
    pub(super) loads: Loads,
    // Weight and attributes may change in place.
    endpoint: ArcSwap<Endpoint>,
    connections: ArcSwap<Vec<Arc<Live<N>>>>,
    notes: Mutex<Notes>,
}

/// The slow-changing facts of a seat, for people to look at.
pub(super) struct Notes {
    pub(super) state: Connectivity,
    pub(super) since: Timestamp,
    pub(super) last_error: Option<ConnectError>,
    past: Traffic,
    open: Vec<(AttemptId, Arc<dyn Control>)>,
}

impl Notes {
    /// Bytes of all connections there are and were.
    pub(super) fn traffic(&self) -> Traffic {
        self.open
            .iter()
            .fold(self.past, |sum, (_, control)| sum + control.traffic())
    }
}

/// Whether a seat could take a call just now.
pub(super) enum Room<N: Connection> {
    Taken(Arc<Live<N>>, Slot),
    /// Connected, and every connection at its limit.
    Full,
    /// No connection that takes calls.
    Gone,
}

impl<N> Seat<N> {
    pub(super) fn new(
        id: EndpointId,
        endpoint: Arc<Endpoint>,
        loads: Loads,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            loads,
            endpoint: ArcSwap::new(endpoint),
            connections: ArcSwap::default(),
            notes: Mutex::new(Notes {
                state: Connectivity::Idle,
                since: now,
                last_error: None,
                past: Traffic::default(),
                open: Vec::new(),
            }),
        }
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        // Nothing that can panic runs under the lock.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who the seat is for, as of the latest list.
    pub(super) fn endpoint(&self) -> Arc<Endpoint> {
        self.endpoint.load_full()
    }

    pub(super) fn connections(&self) -> Guard<Arc<Vec<Arc<Live<N>>>>> {
        self.connections.load()
    }

    /// The list says something else of it now.
    pub(super) fn change(&self, endpoint: Arc<Endpoint>) {
        self.endpoint.store(endpoint);
    }

    /// Takes a new connection into use.
    pub(super) fn add(&self, live: Arc<Live<N>>, control: Arc<dyn Control>) {
        self.notes().open.push((live.id, control));
        let mut connections = Vec::clone(&self.connections.load());
        connections.push(live);
        self.connections.store(Arc::new(connections));
    }

    /// Stops using a connection. The calls on it go on.
    pub(super) fn remove(&self, id: AttemptId) {
        let mut connections = Vec::clone(&self.connections.load());
        connections.retain(|live| live.id != id);
        self.connections.store(Arc::new(connections));
    }

    /// Stops using every connection.
    pub(super) fn clear(&self) {
        self.connections.store(Arc::default());
    }

    /// Keeps the byte counts of a connection that is closed for good.
    pub(super) fn settle(&self, id: AttemptId) {
        let mut notes = self.notes();
        if let Some(at) = notes.open.iter().position(|(open, _)| *open == id) {
            let (_, control) = notes.open.swap_remove(at);
            notes.past = notes.past + control.traffic();
        }
    }
}

impl<N: Connection> Seat<N> {
    /// Reserves a slot on the first connection that has one.
    pub(super) fn try_reserve(&self) -> Room<N> {
        let connections = self.connections.load();
        let mut open = false;
        for live in connections.iter() {
            let slots = live.connection.slots();
            if let Some(slot) = slots.try_reserve() {
                return Room::Taken(live.clone(), slot);
            }
            open |= slots.is_open();
        }
        match open {
            true => Room::Full,
            false => Room::Gone,
        }
    }
}
