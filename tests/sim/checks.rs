//! What must hold at every step, judged from outside: a model of each endpoint that is told the same
//! news as the balancer, and knows the rules but not how they are kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use equipoise::balancer::{AttemptId, Backoff, Balancer, Event, Publication, Standing, View};
use equipoise::load::Notice;
use equipoise::{
    Address, Blame, Classifier, Connectivity, Endpoint, EndpointId, Health, Outcome, Timestamp,
};

use crate::judged::{Bench, Judged, Mood};
use crate::track::{Failure, Live, Track};
use crate::wishes::{Wish, Wishes};
use crate::world::{Settings, ms};

/// Beyond this many endpoints the checks that look at all of them are made now and then.
const MANY: usize = 64;

/// Publications that can wait are this far apart.
const COALESCE: Duration = ms(5);

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
    /// Connections that are to be retired: replaced, or let go of.
    to_retire: BTreeSet<AttemptId>,
    pub(crate) wishes: Wishes,
    pub(crate) bench: Bench,
    /// What the balancer has told and nobody has looked into.
    told: VecDeque<Event>,
    /// Who was closed since the balancer's work began: there may be news of them still.
    gone: BTreeSet<EndpointId>,
    /// Who took the place of another and is still to be told of.
    switched: VecDeque<usize>,
    last_published: Timestamp,
    /// The news was that time has passed.
    timed: bool,
    steps: u64,
}

pub(crate) type Identity = (Option<String>, BTreeSet<Address>);

fn identity(endpoint: &Endpoint) -> Identity {
    let addresses = endpoint.addresses().iter().cloned().collect();
    (endpoint.id().map(str::to_owned), addresses)
}

impl Checks {
    pub(crate) fn new(settings: &Settings, wishes: Wishes) -> Self {
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
            to_retire: BTreeSet::new(),
            wishes,
            bench: Bench::new(settings),
            told: VecDeque::new(),
            gone: BTreeSet::new(),
            switched: VecDeque::new(),
            last_published: Timestamp::ZERO,
            timed: false,
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
        self.timed = true;
        if self.kept.is_some_and(|until| until <= now) {
            self.kept = None;
            self.listed = Some(BTreeSet::new());
        }
    }

    /// Before the work is done: who is not there any more is to be closed.
    pub(crate) fn departed(&mut self, balancer: &Balancer) {
        let there: BTreeSet<EndpointId> = balancer.endpoints().map(|view| view.id).collect();
        for (_, track) in self.tracks.iter_mut().filter(|(id, _)| !there.contains(id)) {
            self.bench.shrunk |= !track.leaving;
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
        if track.live.is_empty() {
            track.judged.forget_health();
            track.judged.connected_anew();
        }
        track.tried.clear();
        track.failed = Failure::None;
        track.replacing = false;
        track.asked = false;
        track.wears = false;
        let worn = track.live.iter().filter(|(_, live)| live.worn);
        self.to_retire.extend(worn.map(|(&name, _)| name));
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
        let fault = match outcome {
            Outcome::Answered(code) => Classifier::default().blame(code) == Blame::Server,
            _ => false,
        };
        if let Some(track) = self.tracks.get_mut(&id) {
            track.served += u64::from(served);
            if fault {
                track.judged.fault();
            }
        }
    }

    /// A trial call has ended that was let in in this epoch.
    pub(crate) fn trial_ended(&mut self, id: EndpointId, epoch: u64) {
        if let Some(track) = self.tracks.get_mut(&id) {
            track.judged.trial_ended(epoch);
        }
    }

    /// The balancer is about to hear what the end of a call meant.
    pub(crate) fn noticed(&mut self, id: EndpointId, notice: Notice) {
        if let Some(track) = self.tracks.get_mut(&id) {
            track.judged.noticed(notice);
        }
    }

    /// The balancer is about to hear how an endpoint is.
    pub(crate) fn said(&mut self, id: EndpointId, health: &Health, now: Timestamp) {
        if let Some(track) = self.tracks.get_mut(&id) {
            track.judged.said(health, now);
        }
    }

    /// The channel goes idle: everybody is let go of.
    pub(crate) fn slept(&mut self, now: Timestamp) {
        self.bench.asleep = true;
        for track in self.tracks.values_mut().filter(|track| !track.leaving) {
            track.wish = Wish::LetGo;
            track.forgive(&self.backoff, now);
            self.to_retire.extend(track.live.keys());
            self.discarded.append(&mut track.under_way);
            track.let_go();
        }
    }

    /// A call was let in on an endpoint that has so many, with it. The epoch if it is a trial.
    pub(crate) fn let_in(
        &mut self,
        id: EndpointId,
        trial: bool,
        in_flight: u32,
        now: Timestamp,
    ) -> Option<u64> {
        let track = self.tracks.get_mut(&id)?;
        self.bench.let_in(&mut track.judged, trial, in_flight, now)
    }

    pub(crate) fn dial_failed(&mut self, id: EndpointId, name: AttemptId, now: Timestamp) {
        let Some(track) = self.tracks.get_mut(&id) else {
            return;
        };
        track.forgive(&self.backoff, now);
        let all_tried = track.tried.len() == track.identity.1.len();
        if track.under_way.remove(&name) && track.under_way.is_empty() && all_tried {
            track.tried.clear();
            track.asked = false;
            track.wears = false;
            track.fail(&self.backoff, now);
            track.look_failed();
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
        track.wears = true;
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
            (true, _) if track.failed == Failure::None => track.not_before = now,
            // Once, at once.
            (false, false) if !track.spared && track.failures == 0 => track.spared = true,
            (false, replacing) => {
                if !replacing {
                    track.fail(&self.backoff, now);
                }
                track.look_failed();
            }
            (true, _) => {}
        }
    }

    /// A call asks for a connection to this endpoint.
    pub(crate) fn asked(&mut self, id: EndpointId) {
        if let Some(track) = self.tracks.get_mut(&id).filter(|track| !track.leaving) {
            track.asked |= track.live.is_empty();
        }
    }

    /// The policies have been asked.
    fn wished(&mut self, now: Timestamp) {
        let there = self.tracks.iter_mut().filter(|(_, track)| !track.leaving);
        for (&id, track) in there {
            let wish = self.wishes.of(id);
            if std::mem::replace(&mut track.wish, wish) != wish && wish == Wish::LetGo {
                track.forgive(&self.backoff, now);
                self.to_retire.extend(track.live.keys());
                self.discarded.append(&mut track.under_way);
                track.let_go();
            }
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
            failed: Failure::None,
            replacing: false,
            wish: Wish::Keep,
            asked: false,
            wears: false,
            let_go: false,
            not_before: Timestamp::ZERO,
            not_after: Timestamp::ZERO,
            judged: Judged::NEW,
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
        let missing = track.live.is_empty() && (track.wish == Wish::Connect || track.asked);
        assert!(
            missing
                || track.wears
                || track.live.values().any(|live| live.worn)
                || !track.tried.is_empty(),
            "{now:?}: {id:?} is dialled and nobody wants it: {:?}",
            track.wish
        );
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

    /// `left`: whose it is, and how many connections that endpoint has besides.
    pub(crate) fn retired(&mut self, name: AttemptId, left: Option<(EndpointId, usize)>) {
        assert!(
            self.to_retire.remove(&name),
            "{name:?} was retired, and neither replaced nor let go of"
        );
        let bare = left.filter(|&(id, count)| {
            let track = self.tracks.get(&id);
            count == 0 && !track.is_some_and(|track| track.let_go && track.live.is_empty())
        });
        assert!(
            !self.prompt || bare.is_none(),
            "{name:?}, the last of {bare:?}, was retired before its replacement was there"
        );
    }

    pub(crate) fn closed(&mut self, id: EndpointId) {
        let track = self
            .tracks
            .remove(&id)
            .expect("only what was opened can be closed");
        assert!(track.leaving, "{id:?} was closed and is still listed");
        self.gone.insert(id);
    }

    pub(crate) fn published(
        &mut self,
        balancer: &Balancer,
        publication: &Publication,
        now: Timestamp,
    ) {
        let nothing = self.listed.is_none() && !self.unresolved;
        assert!(
            !nothing || publication.state != Connectivity::TransientFailure,
            "{now:?}: published before the resolver has said anything"
        );
        let hidden = nothing || self.bench.asleep || self.bench.mood == Mood::Fail;
        if let Some(switched) = self.wishes.published(&publication.pickers, hidden, now) {
            self.switched.extend(switched);
            self.wished(now);
            // Whoever has left the list leaves with its last connection.
            self.departed(balancer);
        }
        self.last_published = now;
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

    /// Takes what the balancer tells, to be looked into later. Its mood counts at once: the pickers go by it.
    pub(crate) fn gather(&mut self, balancer: &mut Balancer) {
        while let Some(event) = balancer.poll_event() {
            if let Event::Panic { on, .. } = event {
                self.bench.panic(on);
            }
            self.told.push_back(event);
        }
    }

    pub(crate) fn events(&mut self, balancer: &mut Balancer, now: Timestamp) {
        self.gather(balancer);
        while let Some(event) = self.told.pop_front() {
            match event {
                Event::Endpoint { id, .. }
                | Event::Standing { id, .. }
                | Event::Health { id, .. }
                    if self.gone.contains(&id) => {}
                Event::Endpoint { id, from, to, .. } => {
                    let track = self
                        .tracks
                        .get_mut(&id)
                        .expect("events are of endpoints there are");
                    assert_eq!(track.state, from, "{id:?} changed behind our back");
                    let recovers = matches!(to, Connectivity::Connecting | Connectivity::Idle);
                    let by_health = self.bench.checks_health()
                        && from == Connectivity::TransientFailure
                        && recovers;
                    assert!(
                        legal(from, to, track.let_go) || by_health || track.judged.rejudged,
                        "{id:?} went from {from} to {to}"
                    );
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
                Event::Switched { policy } => {
                    let switched = self.switched.pop_front();
                    assert_eq!(switched, Some(policy), "told of another switch");
                }
                Event::ResolveFailed(_) => {}
                Event::Panicked { policy } => panic!("policy {policy} panicked"),
                Event::Panic { .. } => {
                    let tracks = self.tracks.values_mut();
                    self.bench.reopen(tracks.map(|track| &mut track.judged));
                }
                Event::Standing { id, standing, .. } => {
                    let track = self.tracks.get_mut(&id).expect("it was opened");
                    self.bench.stands(&mut track.judged, standing, now);
                }
                Event::Health { id, health, .. } => {
                    let track = self.tracks.get_mut(&id).expect("it was opened");
                    track.judged.shown(&health);
                    self.bench.all_changes_of_health += 1;
                }
            }
        }
    }

    /// After the work has been done.
    pub(crate) fn settled(&mut self, balancer: &Balancer, now: Timestamp) {
        // While the work waits, more deadlines pass; then they are due at once, and rightly so.
        let due = balancer.poll_timeout().filter(|_| self.prompt);
        // Other news may come at the very time of a timer, and before it.
        let timed = std::mem::take(&mut self.timed);
        assert!(
            !timed || due.is_none_or(|at| at > now),
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
        assert!(
            self.switched.is_empty(),
            "{now:?}: nobody was told of a switch: {:?}",
            self.switched
        );
        // A wish to be asked again waits for the next publication, which may be due later than that.
        let awake = self.prompt && !self.bench.asleep;
        if let Some(wake) = self.wishes.wake().filter(|_| awake) {
            let by = wake.max(self.last_published + COALESCE);
            assert!(
                due.is_some_and(|at| at <= by),
                "{now:?}: a policy wants to be asked again at {wake:?}, and the next timer is {due:?}"
            );
        }
        self.gone.clear();
        self.steps += 1;
        if self.tracks.len() > MANY && !self.steps.is_multiple_of(128) {
            return;
        }
        self.departed(balancer);
        self.judged(balancer, timed, now);
        for track in self.tracks.values_mut() {
            track.judged.rejudged = false;
        }
        assert!(
            self.discarded.is_empty(),
            "{now:?}: not abandoned: {:?}",
            self.discarded
        );
        let left = &self.to_retire;
        assert!(left.is_empty(), "{now:?}: not retired: {left:?}");
        let mut seen = BTreeSet::new();
        let mut states = BTreeSet::new();
        for view in balancer.endpoints() {
            let track = self.tracks.get(&view.id);
            let track = track.unwrap_or_else(|| panic!("{now:?}: {:?} was not opened", view.id));
            assert_eq!(view.state, track.state, "{now:?}: {:?}", view.id);
            assert_eq!(view.connections, track.live.len(), "{now:?}: {:?}", view.id);
            let ready = view.state == Connectivity::Ready;
            let connected = !track.live.is_empty();
            assert!(connected || !ready, "{now:?}: {:?}", view.id);
            assert!(!(connected && self.bench.asleep), "{now:?}: {:?}", view.id);
            let failed = view.state == Connectivity::TransientFailure;
            let may_be = match track.failed {
                _ if connected || self.bench.expected(&track.judged, connected).is_some() => true,
                Failure::None => !failed,
                Failure::Lasting => failed != ready,
                Failure::Forgotten { from, until } => match failed {
                    true => now <= until || !self.prompt,
                    false => now >= from,
                },
            };
            assert!(
                may_be,
                "{now:?}: {:?} forgot a failure, or made one up: {} after {:?}",
                view.id, view.state, track.failed
            );
            let waits = ready && self.prompt && self.wishes.waits_for(view.id);
            assert!(
                !waits || due.is_some_and(|at| at <= now + COALESCE),
                "{now:?}: {:?} is ready and wanted, and calls go to nobody",
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
            _ if self.bench.asleep => Connectivity::Idle,
            _ if self.bench.mood == Mood::Fail => Connectivity::TransientFailure,
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

    /// Everybody shows the state that follows from connection, health, standing and mood; as many are out as may be, and
    /// the mood is right.
    fn judged(&mut self, balancer: &Balancer, timed: bool, now: Timestamp) {
        let (mut usable, mut out, mut all) = (0, 0, 0);
        for view in balancer.endpoints() {
            let track = self.tracks.get(&view.id);
            let track = track.unwrap_or_else(|| panic!("{now:?}: {:?} was not opened", view.id));
            let connected = !track.live.is_empty();
            assert_eq!(
                view.standing, track.judged.standing,
                "{now:?}: {:?} stands otherwise, and nobody was told",
                view.id
            );
            if let Some(expected) = self.bench.expected(&track.judged, connected) {
                assert_eq!(
                    view.state, expected,
                    "{now:?}: {:?}, {:?} in {:?}",
                    view.id, track.judged, self.bench.mood
                );
            }
            self.bench.settled(&track.judged, timed, now);
            all += 1;
            usable += usize::from(self.bench.usable(&track.judged, connected, view.state));
            out += usize::from(track.judged.standing != Standing::Admitted);
        }
        assert_eq!(
            self.bench.mood,
            self.bench.due_mood(usable, all),
            "{now:?}: {usable} of {all} can be used"
        );
        self.bench.all_settled(out, all, now);
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

    /// Whether nobody is ejected, and nobody on probation where calls come to everybody.
    pub(crate) fn forgiven(balancer: &Balancer, spread: bool) -> bool {
        balancer.endpoints().all(|view| match view.standing {
            Standing::Admitted => true,
            Standing::Probation => !spread,
            Standing::Ejected { .. } => false,
        })
    }

    /// Whether every endpoint is as the policies wish: connected, or ready or idle as it happens.
    pub(crate) fn as_wished(&self, balancer: &Balancer) -> bool {
        use Connectivity::{Idle, Ready};
        let mut views = balancer.endpoints();
        self.wishes.settled()
            && views.all(|view| match self.wishes.of(view.id) {
                Wish::Connect => view.state == Ready,
                Wish::Keep | Wish::LetGo => matches!(view.state, Ready | Idle),
            })
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
/// meanwhile, except by one that was let go of after it failed.
fn legal(from: Connectivity, to: Connectivity, let_go: bool) -> bool {
    use Connectivity::{Connecting, Idle, Ready, TransientFailure};
    match from {
        Idle => to == Connecting,
        Connecting => matches!(to, Ready | TransientFailure | Idle),
        Ready => matches!(to, Connecting | Idle | TransientFailure),
        TransientFailure => to == Ready || (let_go && matches!(to, Connecting | Idle)),
        Connectivity::Shutdown => false,
    }
}
