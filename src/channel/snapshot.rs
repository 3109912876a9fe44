//! What the calls see: the picker that is in force, and where each endpoint's connections are kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::{ArcSwap, Guard};

use crate::balancer::{AttemptId, Standing};
use crate::endpoint::{Address, Connectivity, Endpoint, EndpointId};
use crate::error::ConnectError;
use crate::load::{Entrance, Loads};
use crate::policy::{HashOn, Pickers};
use crate::report::Health;
use crate::timestamp::Timestamp;
use crate::transport::{Connection, Control, Slot, Traffic};

use super::bell::{Bell, Breaker};
use super::shared::Core;
use super::tracked::InFlight;

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

impl<N: Connection> Seats<N> {
    /// For how many more calls there is room at those that take calls; counted to `enough`, and not beyond the limits of
    /// connections.
    pub(super) fn room(&self, enough: usize) -> usize {
        let mut room = 0;
        for seat in self.iter() {
            if seat.loads.entrance() == Entrance::Free {
                let connections = seat.connections();
                room += connections
                    .iter()
                    .map(|live| live.connection.slots().room())
                    .sum::<usize>();
            }
            if room >= enough {
                break;
            }
        }
        room
    }
}

/// A live connection and the name the balancer gave it.
pub(super) struct Live<N> {
    pub(super) id: AttemptId,
    pub(super) connection: N,
    // Whether it was given calls since it was last asked. Kept of those beyond the first alone.
    used: AtomicBool,
}

impl<N> Live<N> {
    pub(super) fn new(id: AttemptId, connection: N) -> Self {
        Self {
            id,
            connection,
            used: AtomicBool::new(false),
        }
    }

    fn note_used(&self) {
        // Relaxed, as in `take_used`: the flag guards no data, and one that is seen late counts the next time. Read
        // first: it is set nearly always, and its line stays shared between cores.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

impl<N> AsRef<N> for Live<N> {
    fn as_ref(&self) -> &N {
        &self.connection
    }
}

impl<N: Connection> Live<N> {
    /// Whether it carries calls, or was given any since this was last asked. `own`: so many of its streams are of our
    /// own making, and nobody's calls.
    pub(super) fn take_used(&self, own: u32) -> bool {
        self.used.swap(false, Ordering::Relaxed) || self.connection.slots().open() > own
    }
}

/// Where one endpoint's load and connections are kept as long as it is in the list.
pub(super) struct Seat<N> {
    pub(super) id: EndpointId,
    pub(super) loads: Loads,
    // Weight and attributes may change in place.
    endpoint: ArcSwap<Endpoint>,
    // The oldest first.
    connections: ArcSwap<Vec<Arc<Live<N>>>>,
    // A call found them all full and told the driver, and since then nothing has changed.
    crowded: AtomicBool,
    notes: Mutex<Notes>,
    pub(super) bell: Arc<Bell>,
}

/// The slow-changing facts of a seat, for people to look at.
pub(super) struct Notes {
    pub(super) state: Connectivity,
    pub(super) since: Timestamp,
    pub(super) last_error: Option<ConnectError>,
    pub(super) standing: Standing,
    pub(super) health: Health,
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
    Taken(Admitted<N>),
    /// It takes calls, and has as many as it may.
    Full,
    /// It takes none: it is not connected, or ejected.
    Gone,
}

/// A call that was let in, and a slot on one of the endpoint's connections.
pub(super) struct Admitted<N: Connection> {
    pub(super) in_flight: InFlight<N>,
    pub(super) live: Arc<Live<N>>,
    pub(super) slot: Slot,
}

/// On what ground a call asks for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// It was picked.
    Picked,
    /// The caller asked for it, and for nobody else: it is not ours to keep it from where it must go.
    Named,
}

impl<N> Seat<N> {
    pub(super) fn new(
        id: EndpointId,
        endpoint: Arc<Endpoint>,
        loads: Loads,
        bell: Arc<Bell>,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            bell,
            loads,
            endpoint: ArcSwap::new(endpoint),
            connections: ArcSwap::default(),
            crowded: AtomicBool::new(false),
            notes: Mutex::new(Notes {
                state: Connectivity::Idle,
                since: now,
                last_error: None,
                standing: Standing::Admitted,
                health: Health::Unknown,
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
        self.uncrowd();
    }

    /// Stops using a connection. The calls on it go on.
    pub(super) fn remove(&self, id: AttemptId) {
        let mut connections = Vec::clone(&self.connections.load());
        connections.retain(|live| live.id != id);
        self.connections.store(Arc::new(connections));
        self.uncrowd();
    }

    /// Stops using every connection.
    pub(super) fn clear(&self) {
        self.connections.store(Arc::default());
    }

    /// Whether the driver is still to hear that all connections are full. `true` once; then not until
    /// [`uncrowd`](Self::uncrowd).
    pub(super) fn is_first_to_find_it_full(&self) -> bool {
        // Relaxed, here and below: the flag guards no data. Who finds it set although it is about to be cleared waits
        // in the line, and looks again when there is news; one told too late costs a connection that is closed again.
        !self.crowded.load(Ordering::Relaxed) && !self.crowded.swap(true, Ordering::Relaxed)
    }

    /// Whether what a call said of it still holds: nothing has changed since.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// From now on it is news again when all connections are full: there are others than before, or a dial for one
    /// more has failed.
    pub(super) fn uncrowd(&self) {
        self.crowded.store(false, Ordering::Relaxed);
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
    /// Lets in a call of the policy with this number that begins at `now`: by the endpoint's word, then by a slot on
    /// the oldest connection that has one.
    pub(super) fn take(
        self: &Arc<Self>,
        ground: Ground,
        core: &Core<N>,
        policy: usize,
        now: Timestamp,
    ) -> Room<N> {
        // Asked before anything is taken: what is given back again is told to the next that waits, who would do the
        // same, and so on in a circle.
        if ground == Ground::Picked {
            match self.loads.entrance() {
                Entrance::Free => {}
                Entrance::Full => return Room::Full,
                Entrance::Shut => return Room::Gone,
            }
        }
        let (live, slot) = match self.try_reserve() {
            Ok(reserved) => reserved,
            Err(true) => {
                if self.is_first_to_find_it_full() {
                    self.bell.crowded(self.id);
                }
                return Room::Full;
            }
            Err(false) => return Room::Gone,
        };
        let permit = core.breaker.as_ref().map(Breaker::try_acquire);
        if matches!(permit, Some(None)) {
            return Room::Full;
        }
        let admission = match ground {
            Ground::Picked => self.loads.try_begin(),
            Ground::Named => Some(self.loads.begin()),
        };
        // Another was quicker.
        let Some(admission) = admission else {
            return Room::Full;
        };
        let seat = self.clone();
        Room::Taken(Admitted {
            in_flight: InFlight::begin(seat, policy, admission, permit.flatten(), core.clock, now),
            live,
            slot,
        })
    }

    /// Reserves a slot on the oldest connection that has one, so that the newer ones fall idle when they are not
    /// needed; else says whether there is any that takes calls.
    fn try_reserve(&self) -> Result<(Arc<Live<N>>, Slot), bool> {
        let connections = self.connections.load();
        let mut open = false;
        for (at, live) in connections.iter().enumerate() {
            let slots = live.connection.slots();
            if let Some(slot) = slots.try_reserve() {
                if at > 0 {
                    live.note_used();
                }
                return Ok((live.clone(), slot));
            }
            open |= slots.is_open();
        }
        Err(open)
    }
}
