//! What must hold at every step, judged from outside: a model of each endpoint that is told the same
//! news as the balancer, and knows the rules but not how they are kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use equipoise::balancer::{AttemptId, Backoff, Balancer, Event, Publication, View};
use equipoise::{Address, Connectivity, Endpoint, EndpointId, Outcome, Timestamp};

use crate::world::Settings;

/// Beyond this many endpoints the checks that look at all of them are made now and then.
const MANY: usize = 64;

pub(crate) struct Checks {
    backoff: Backoff,
    connect_rate: usize,
    max_endpoints: usize,
    prompt: bool,
    tracks: BTreeMap<EndpointId, Track>,
    listed: Option<BTreeSet<Identity>>,
    keep_last_good: Duration,
    /// When the empty list takes effect that was given last.
    kept: Option<Timestamp>,
    /// Whether the balancer has told of it.
    kept_told: bool,
    unresolved: bool,
    channel: Connectivity,
    /// Dials that lost their race or their endpoint: the balancer must abandon each.
    discarded: BTreeSet<AttemptId>,
    /// Whom the picker in force may name.
    pickable: BTreeSet<EndpointId>,
    recent_dials: VecDeque<Timestamp>,
    steps: u64,
}

type Identity = (Option<String>, BTreeSet<Address>);

fn identity(endpoint: &Endpoint) -> Identity {
    let addresses = endpoint.addresses().iter().cloned().collect();
    (endpoint.id().map(str::to_owned), addresses)
}

/// The model of one endpoint.
struct Track {
    identity: Identity,
    state: Connectivity,
    live: BTreeMap<AttemptId, Live>,
    /// Calls it answered without a fault of its own.
    served: u64,
    under_way: BTreeSet<AttemptId>,
    /// Addresses dialled in the pass that goes on.
    tried: BTreeSet<Address>,
    failures: u32,
    /// Its last connection was short-lived and let pass.
    spared: bool,
    failed: bool,
    /// It wore out too soon, and its replacement is being waited for or made.
    replacing: bool,
    /// No pass may begin before.
    not_before: Timestamp,
    /// The list does not have it any more.
    leaving: bool,
}

struct Live {
    since: Timestamp,
    /// Calls the endpoint had served before.
    served: u64,
    proven: bool,
    worn: bool,
}

impl Track {
    fn forgive(&mut self, backoff: &Backoff, now: Timestamp) {
        let stable = backoff.base.min(Duration::from_millis(250));
        for live in self.live.values_mut().filter(|live| !live.proven) {
            if now >= live.since + stable || self.served >= live.served + 100 {
                live.proven = true;
                self.failures = 0;
                self.spared = false;
            }
        }
    }

    fn fail(&mut self, backoff: &Backoff, now: Timestamp) {
        self.failures += 1;
        // A microsecond for rounding.
        let least = backoff.nominal(self.failures).mul_f64(1.0 - backoff.jitter);
        self.not_before = now + least.saturating_sub(Duration::from_micros(1));
    }
}

impl Checks {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            backoff: settings.config.backoff,
            connect_rate: settings.config.connect_rate as usize,
            max_endpoints: settings.config.max_endpoints,
            prompt: settings.lag.is_zero(),
            tracks: BTreeMap::new(),
            listed: None,
            keep_last_good: settings.config.keep_last_good,
            kept: None,
            kept_told: false,
            unresolved: false,
            channel: Connectivity::Connecting,
            discarded: BTreeSet::new(),
            pickable: BTreeSet::new(),
            recent_dials: VecDeque::new(),
            steps: 0,
        }
    }

    // The resolver's news.

    pub(crate) fn listed(&mut self, list: &[Endpoint], balancer: &Balancer, now: Timestamp) {
        let somebody = self.listed.as_ref().is_some_and(|list| !list.is_empty());
        if list.is_empty() && somebody && !self.keep_last_good.is_zero() {
            // From the first empty one on.
            if self.kept.is_none() {
                self.kept = Some(now + self.keep_last_good);
                self.kept_told = false;
            }
        } else {
            self.kept = None;
            self.listed = Some(list.iter().map(identity).collect());
        }
        self.departed(balancer);
    }

    /// Time has passed, and the balancer is about to hear of it.
    pub(crate) fn time(&mut self, now: Timestamp) {
        if self.kept.is_some_and(|until| until <= now) {
            self.kept = None;
            self.listed = Some(BTreeSet::new());
        }
    }

    /// Before the work is done: who is not there any more is to be closed.
    pub(crate) fn departed(&mut self, balancer: &Balancer) {
        let there: BTreeSet<EndpointId> = balancer.endpoints().map(|view| view.id).collect();
        for (_, track) in self.tracks.iter_mut().filter(|(id, _)| !there.contains(id)) {
            track.leaving = true;
            self.discarded.append(&mut track.under_way);
        }
    }

    pub(crate) fn unresolved(&mut self) {
        self.unresolved |= self.listed.is_none();
    }

    // The driver's news.

    pub(crate) fn connected(
        &mut self,
        id: EndpointId,
        name: AttemptId,
        kept: bool,
        now: Timestamp,
    ) {
        let wanted = self
            .tracks
            .get(&id)
            .is_some_and(|track| track.under_way.contains(&name));
        assert_eq!(
            kept, wanted,
            "{now:?}: a connection of {id:?} was judged wrongly"
        );
        let Some(track) = self.tracks.get_mut(&id).filter(|_| kept) else {
            assert!(
                !self.prompt,
                "{now:?}: a dial nobody wants was not abandoned"
            );
            return;
        };
        track.forgive(&self.backoff, now);
        track.under_way.remove(&name);
        self.discarded.append(&mut track.under_way);
        track.tried.clear();
        track.failed = false;
        track.replacing = false;
        track.live.retain(|_, live| !live.worn);
        let live = Live {
            since: now,
            served: track.served,
            proven: false,
            worn: false,
        };
        track.live.insert(name, live);
    }

    pub(crate) fn ended(&mut self, id: EndpointId, outcome: Outcome) {
        let served = matches!(outcome, Outcome::Answered(code) if !code.is_server_fault());
        if let Some(track) = self.tracks.get_mut(&id).filter(|_| served) {
            track.served += 1;
        }
    }

    pub(crate) fn dial_failed(&mut self, id: EndpointId, name: AttemptId, now: Timestamp) {
        let Some(track) = self.tracks.get_mut(&id) else {
            return;
        };
        track.forgive(&self.backoff, now);
        let all_tried = track.tried.len() == track.identity.1.len();
        if track.under_way.remove(&name) && track.under_way.is_empty() && all_tried {
            track.tried.clear();
            track.failed = true;
            track.fail(&self.backoff, now);
        }
    }

    pub(crate) fn worn(&mut self, id: EndpointId, name: AttemptId, now: Timestamp) {
        let Some(track) = self.tracks.get_mut(&id).filter(|track| !track.leaving) else {
            return;
        };
        track.forgive(&self.backoff, now);
        let Some(live) = track.live.get_mut(&name) else {
            return;
        };
        live.worn = true;
        if !live.proven && !track.replacing {
            track.replacing = true;
            track.fail(&self.backoff, now);
        }
    }

    pub(crate) fn lost(&mut self, id: EndpointId, name: AttemptId, now: Timestamp) {
        let Some(track) = self.tracks.get_mut(&id).filter(|track| !track.leaving) else {
            return;
        };
        track.forgive(&self.backoff, now);
        let Some(lost) = track.live.remove(&name) else {
            return;
        };
        if !track.live.is_empty() {
            return;
        }
        match (lost.proven, track.replacing) {
            (true, _) if !track.failed => track.not_before = now,
            // Once, at once.
            (false, false) if !track.spared && track.failures == 0 => track.spared = true,
            (false, false) => {
                track.failed = true;
                track.fail(&self.backoff, now);
            }
            (false, true) => track.failed = true,
            (true, _) => {}
        }
    }

    // The balancer's work.

    pub(crate) fn opened(&mut self, id: EndpointId, endpoint: &Endpoint, balancer: &Balancer) {
        let identity = identity(endpoint);
        let track = self.tracks.entry(id).or_insert_with(|| Track {
            identity: identity.clone(),
            state: Connectivity::Idle,
            live: BTreeMap::new(),
            served: 0,
            under_way: BTreeSet::new(),
            tried: BTreeSet::new(),
            failures: 0,
            spared: false,
            failed: false,
            replacing: false,
            not_before: Timestamp::ZERO,
            // The next list may have come before this one's work was done.
            leaving: balancer.endpoints().all(|view| view.id != id),
        });
        assert_eq!(track.identity, identity, "{id:?} became another endpoint");
    }

    pub(crate) fn connect(
        &mut self,
        id: EndpointId,
        name: AttemptId,
        address: &Address,
        now: Timestamp,
    ) {
        let track = self.tracks.get_mut(&id);
        let track = track.unwrap_or_else(|| panic!("{now:?}: {id:?} is dialled and not there"));
        assert!(!track.leaving, "{now:?}: {id:?} is dialled on its way out");
        assert!(
            !track.tried.is_empty() || now >= track.not_before,
            "{now:?}: {id:?} is dialled before its backoff ends at {:?}",
            track.not_before
        );
        assert!(
            track.identity.1.contains(address),
            "{now:?}: {address} is not of {id:?}"
        );
        assert!(
            track.tried.insert(address.clone()),
            "{now:?}: {id:?} dials {address} twice in one pass"
        );
        track.under_way.insert(name);
        self.recent_dials.push_back(now);
        while self
            .recent_dials
            .front()
            .is_some_and(|&at| at + Duration::from_secs(1) <= now)
        {
            self.recent_dials.pop_front();
        }
        let allowed = self.connect_rate + (self.connect_rate / 10).max(1);
        assert!(
            self.recent_dials.len() <= allowed,
            "{now:?}: {} dials in a second, {allowed} allowed",
            self.recent_dials.len()
        );
    }

    pub(crate) fn abandon(&mut self, name: AttemptId) {
        assert!(
            self.discarded.remove(&name),
            "{name:?} was abandoned and still needed"
        );
    }

    pub(crate) fn retired(&mut self, id: EndpointId, name: AttemptId, left: &BTreeSet<AttemptId>) {
        let track = self.tracks.get(&id);
        let needed = track.is_some_and(|track| track.live.contains_key(&name));
        assert!(!needed, "{id:?}: {name:?} was retired and not replaced");
        assert!(
            !self.prompt || !left.is_empty(),
            "{id:?}: the last connection was retired before its replacement was there"
        );
    }

    pub(crate) fn closed(&mut self, id: EndpointId) {
        let track = self
            .tracks
            .remove(&id)
            .expect("only what was opened can be closed");
        assert!(track.leaving, "{id:?} was closed and is still listed");
    }

    pub(crate) fn published(&mut self, balancer: &Balancer, publication: &Publication) {
        assert_eq!(publication.state, balancer.state());
        let ready = balancer
            .endpoints()
            .filter(|view| view.state == Connectivity::Ready);
        self.pickable = ready.map(|view| view.id).collect();
        let unknown = self
            .pickable
            .iter()
            .find(|id| !self.tracks.contains_key(id));
        assert_eq!(
            unknown, None,
            "published before it was opened, or after it was closed"
        );
    }

    pub(crate) fn events(&mut self, balancer: &mut Balancer) {
        while let Some(event) = balancer.poll_event() {
            match event {
                Event::Endpoint { id, from, to, .. } => {
                    let track = self
                        .tracks
                        .get_mut(&id)
                        .expect("events are of endpoints there are");
                    assert_eq!(track.state, from, "{id:?} changed behind our back");
                    assert!(legal(from, to), "{id:?} went from {from} to {to}");
                    track.state = to;
                }
                Event::Channel { from, to } => {
                    assert_eq!(self.channel, from);
                    assert_ne!(from, to);
                    self.channel = to;
                }
                Event::Resolved {
                    endpoints,
                    over_limit,
                    ..
                } => assert!(endpoints <= self.max_endpoints && (over_limit == 0 || endpoints > 0)),
                Event::Kept { endpoints, .. } => {
                    assert!(endpoints > 0, "nobody was kept");
                    self.kept_told = true;
                }
                Event::ResolveFailed(_) | Event::Switched { .. } => {}
            }
        }
    }

    /// After the work has been done.
    pub(crate) fn settled(&mut self, balancer: &Balancer, now: Timestamp) {
        // While the work waits, more deadlines pass; then they are due at once, and rightly so.
        let due = balancer.poll_timeout().filter(|_| self.prompt);
        assert!(
            due.is_none_or(|at| at > now),
            "{now:?}: a timer that is due for ever: {due:?}"
        );
        assert_eq!(
            balancer.state(),
            self.channel,
            "{now:?}: a change of state without an event"
        );
        assert!(
            self.kept
                .is_none_or(|until| self.kept_told && (until > now || !self.prompt)),
            "{now:?}: the last list outlived its time, or nobody was told: {:?}",
            self.kept
        );
        self.steps += 1;
        if self.tracks.len() > MANY && !self.steps.is_multiple_of(128) {
            return;
        }
        assert!(
            self.discarded.is_empty(),
            "{now:?}: not abandoned: {:?}",
            self.discarded
        );
        let mut seen = BTreeSet::new();
        let mut states = BTreeSet::new();
        for view in balancer.endpoints() {
            let track = self.tracks.get(&view.id);
            let track = track.unwrap_or_else(|| panic!("{now:?}: {:?} was not opened", view.id));
            assert_eq!(view.state, track.state, "{now:?}: {:?}", view.id);
            assert_eq!(view.connections, track.live.len(), "{now:?}: {:?}", view.id);
            let ready = view.state == Connectivity::Ready;
            assert_eq!(ready, !track.live.is_empty(), "{now:?}: {:?}", view.id);
            let failed = view.state == Connectivity::TransientFailure;
            assert_eq!(
                failed,
                track.failed && !ready,
                "{now:?}: {:?} forgot a failure, or made one up",
                view.id
            );
            assert!(view.since <= now);
            seen.insert(track.identity.clone());
            states.insert(format!("{}", view.state));
        }
        assert_eq!(
            seen.len(),
            self.tracks.len(),
            "{now:?}: some were opened and are not there"
        );
        let expected = match &self.listed {
            None if self.unresolved => Connectivity::TransientFailure,
            None => Connectivity::Connecting,
            Some(_) if states.contains("READY") => Connectivity::Ready,
            Some(_) if states.contains("CONNECTING") || states.contains("IDLE") => {
                Connectivity::Connecting
            }
            Some(_) => Connectivity::TransientFailure,
        };
        assert_eq!(balancer.state(), expected, "{now:?}: of {states:?}");
        if let Some(listed) = &self.listed {
            let listed_here = seen.intersection(listed).count();
            if listed.len() <= self.max_endpoints {
                assert_eq!(listed_here, listed.len(), "{now:?}");
                self.bridged(balancer, listed, now);
            } else {
                // Who is left out of a list that is too long may stay for a while, as if not listed.
                assert!(listed_here >= self.max_endpoints, "{now:?}");
                assert!(seen.len() <= 2 * self.max_endpoints, "{now:?}");
            }
        }
    }

    /// Whoever is there and not listed is ready while nobody listed is, and not for ever.
    fn bridged(&self, balancer: &Balancer, listed: &BTreeSet<Identity>, now: Timestamp) {
        let is_listed = |view: &View<'_>| listed.contains(&identity(view.endpoint));
        let (there, left): (Vec<_>, Vec<_>) = balancer.endpoints().partition(is_listed);
        let ready = |view: &View<'_>| view.state == Connectivity::Ready;
        assert!(
            left.is_empty()
                || (left.iter().all(ready) && !there.iter().any(ready) && !there.is_empty()),
            "{now:?}: endpoints nobody listed: {left:?}"
        );
    }

    /// That every connection that should be replaced has been.
    pub(crate) fn nothing_worn(&self) {
        for (id, track) in &self.tracks {
            assert!(
                track.live.values().all(|live| !live.worn),
                "{id:?} is worn still"
            );
        }
    }

    // The calls.

    pub(crate) fn picked(&self, id: EndpointId) {
        assert!(
            self.pickable.contains(&id),
            "{id:?} was picked and was not ready in the picker's snapshot"
        );
    }

    pub(crate) fn in_flight(&self, seats: impl ExactSizeIterator<Item = (EndpointId, u32, u32)>) {
        if seats.len() > MANY && !self.steps.is_multiple_of(128) {
            return;
        }
        for (id, counted, guards) in seats {
            assert_eq!(
                counted, guards,
                "in flight on {id:?} and calls that hold it"
            );
        }
    }
}

/// An endpoint goes these ways only. TRANSIENT_FAILURE is left for READY alone, whatever is dialled
/// meanwhile.
fn legal(from: Connectivity, to: Connectivity) -> bool {
    use Connectivity::{Connecting, Idle, Ready, TransientFailure};
    match from {
        Idle => to == Connecting,
        Connecting => matches!(to, Ready | TransientFailure | Idle),
        Ready => matches!(to, Connecting | Idle | TransientFailure),
        TransientFailure => to == Ready,
        Connectivity::Shutdown => false,
    }
}
