//! Is this endpoint connected, and if not, what is being done about it?
//!
//! One [`Link`] per endpoint: the connections it has and the dialling that goes on. News goes in, one
//! `match` answers it, what to do comes out as [`Effects`]. The state that policies see is derived from
//! the two, never stored.
//!
//! A *pass* tries every address of the endpoint, each after a quarter of a second or as soon as the one
//! before has failed; the first to connect wins. When all have failed the endpoint waits out its backoff.
//!
//! A pass begins when there is no connection and somebody wants one, when one should be replaced, or when calls found
//! all there are full. There is one pass at a time, whatever it is for.

use std::collections::VecDeque;
use std::time::Duration;

use super::AttemptId;
use super::backoff::Backoff;
use crate::endpoint::{Address, Connectivity, Endpoint, interleave};
use crate::error::ConnectError;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// So many calls served are worth the making of a connection, however short it lived. A server that closes
/// each after a few is still paced.
const OF_USE: u64 = 100;

/// A connection beyond the first that carried nothing for so long is closed: much longer than the pauses of a
/// bursty load, much shorter than what a server's file descriptors should be held for nothing.
const UNUSED: Duration = Duration::from_secs(30);

/// The connections of one endpoint, and the way to more of them.
#[derive(Debug)]
pub(super) struct Link {
    /// The oldest first.
    live: Vec<Live>,
    dial: Dial,
    wish: Wish,
    /// A call asked for it; good for one pass.
    asked: bool,
    /// A call found all its connections full; good for one pass.
    crowded: bool,
    /// The last thing that happened to it was a failure: TRANSIENT_FAILURE until it is ready again.
    failed: bool,
    /// Failures in a row, for the backoff.
    failures: u32,
    /// Its last connection was short-lived and it was dialled again at once all the same.
    spared: bool,
    why: Option<ConnectError>,
}

/// What the policies wish for an endpoint, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// That it have no connection.
    LetGo,
    /// Nothing: what it has it keeps.
    Keep,
    /// That it be connected.
    Connect,
}

#[derive(Debug)]
struct Live {
    name: AttemptId,
    since: Timestamp,
    /// Calls that the endpoint had served when it was made.
    served: u64,
    /// When it was last known to carry calls.
    used: Timestamp,
    /// It has lived long enough, or served enough, for the failures before it to be forgiven.
    proven: bool,
    /// It should be replaced.
    worn: bool,
}

#[derive(Debug)]
enum Dial {
    None,
    Attempting {
        untried: VecDeque<Address>,
        under_way: Vec<AttemptId>,
        next: Next,
    },
    Waiting {
        until: Timestamp,
    },
}

/// When the next address of a pass is tried.
#[derive(Debug, PartialEq)]
enum Next {
    /// As soon as the connect rate allows: it stands in line.
    InLine,
    /// When the stagger has passed, if no attempt fails before.
    At(Timestamp),
    /// Never: all are tried.
    Nothing,
}

/// What an endpoint can hear.
#[derive(Debug)]
pub(super) enum News {
    /// What the policies wish for it.
    Wished(Wish),
    /// A call waits for it.
    Asked,
    /// A call found every connection at its peer's stream limit.
    Crowded,
    /// Whether a connection carried calls since this was last told.
    Usage(AttemptId, bool),
    /// Its deadline may have passed.
    Tick,
    /// An attempt gave a connection.
    Connected(AttemptId),
    /// An attempt gave none.
    Failed(AttemptId, ConnectError),
    /// A connection should be replaced.
    Worn(AttemptId),
    /// A connection takes no more calls.
    Lost(AttemptId, ConnectError),
}

/// What follows from a piece of news.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Effects {
    /// Dials nobody needs any more.
    pub(super) abandon: Vec<AttemptId>,
    /// Connections that were replaced, or are not needed any more.
    pub(super) retire: Vec<AttemptId>,
    /// It joins the line of those who want to dial.
    pub(super) join_line: bool,
    /// The list of endpoints may be out of date.
    pub(super) resolve: bool,
}

/// What the transitions take from their surroundings.
pub(super) struct Around<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) backoff: &'a Backoff,
    /// The most connections it may have; one more while a worn one is replaced.
    pub(super) most: usize,
    /// Calls that the endpoint has served, since it was added. Counted when asked, which is seldom.
    pub(super) served: &'a dyn Fn() -> u64,
    pub(super) now: Timestamp,
    pub(super) rng: &'a mut Rng,
}

impl Link {
    pub(super) fn new() -> Self {
        Self {
            live: Vec::new(),
            dial: Dial::None,
            wish: Wish::Keep,
            asked: false,
            crowded: false,
            failed: false,
            failures: 0,
            spared: false,
            why: None,
        }
    }

    /// The effective state.
    pub(super) fn state(&self) -> Connectivity {
        if !self.live.is_empty() {
            return Connectivity::Ready;
        }
        if self.failed {
            return Connectivity::TransientFailure;
        }
        match self.dial {
            Dial::None => Connectivity::Idle,
            Dial::Attempting { .. } => Connectivity::Connecting,
            Dial::Waiting { .. } => Connectivity::TransientFailure,
        }
    }

    pub(super) fn wish(&self) -> Wish {
        self.wish
    }

    pub(super) fn connections(&self) -> usize {
        self.live.len()
    }

    /// What last went wrong with it.
    pub(super) fn why(&self) -> Option<&ConnectError> {
        self.why.as_ref()
    }

    /// Dials under way.
    pub(super) fn under_way(&self) -> &[AttemptId] {
        match &self.dial {
            Dial::Attempting { under_way, .. } => under_way,
            Dial::None | Dial::Waiting { .. } => &[],
        }
    }

    /// The connections it has.
    pub(super) fn live(&self) -> impl Iterator<Item = AttemptId> {
        self.live.iter().map(|live| live.name)
    }

    /// Whether `name` is a dial under way or a connection of its own.
    pub(super) fn holds(&self, name: AttemptId) -> bool {
        self.under_way().contains(&name) || self.live().any(|live| live == name)
    }

    /// When to tell it [`News::Tick`].
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        match &self.dial {
            Dial::Attempting {
                next: Next::At(at), ..
            } => Some(*at),
            Dial::Waiting { until } => Some(*until),
            Dial::Attempting { .. } | Dial::None => None,
        }
    }

    /// Its turn in the line has come: the address to dial as `name`, or nothing when it no longer
    /// wants to dial.
    pub(super) fn take_turn(
        &mut self,
        name: AttemptId,
        stagger: Duration,
        now: Timestamp,
    ) -> Option<Address> {
        let Dial::Attempting {
            untried,
            under_way,
            next,
        } = &mut self.dial
        else {
            return None;
        };
        if *next != Next::InLine {
            return None;
        }
        let address = untried.pop_front()?;
        under_way.push(name);
        *next = match untried.is_empty() {
            true => Next::Nothing,
            false => Next::At(now + stagger),
        };
        Some(address)
    }

    /// Every transition there is.
    pub(super) fn handle(&mut self, news: News, around: Around<'_>) -> Effects {
        let mut effects = Effects::default();
        self.forgive(&around);
        match (news, &mut self.dial) {
            (News::Wished(Wish::LetGo), dial) => {
                self.wish = Wish::LetGo;
                self.asked = false;
                self.crowded = false;
                effects.retire = self.live.drain(..).map(|live| live.name).collect();
                // What failed has time to get well before anybody asks again; the backoff goes on.
                self.failed = false;
                if let Dial::Attempting { under_way, .. } = dial {
                    effects.abandon.append(under_way);
                    *dial = Dial::None;
                }
            }
            (News::Wished(wish), dial) => {
                self.wish = wish;
                // A pass that is only waiting for its first turn is called off; one that has begun is
                // seen through, or wishes that come and go would get around the backoff.
                let unbegun = matches!(dial, Dial::Attempting { untried, under_way, .. }
                    if under_way.is_empty() && untried.len() == around.endpoint.addresses().len());
                if wish == Wish::Keep && !self.asked && unbegun {
                    *dial = Dial::None;
                }
            }
            (News::Asked, _) => self.asked |= self.live.is_empty(),
            // With none there is a pass for that already, and its connection will be empty.
            (News::Crowded, _) => {
                self.crowded |= !self.live.is_empty() && self.live.len() < around.most;
            }
            (News::Usage(name, busy), _) => {
                let Some(at) = self.live.iter().position(|live| live.name == name) else {
                    return effects;
                };
                // Calls go to the oldest that has room, so it is the newer ones that fall idle.
                match busy {
                    true => self.live[at].used = around.now,
                    false if at > 0 && around.now >= self.live[at].used + UNUSED => {
                        self.live.remove(at);
                        effects.retire.push(name);
                    }
                    false => {}
                }
            }
            (News::Tick, Dial::Attempting { next, .. }) => {
                if matches!(next, Next::At(at) if *at <= around.now) {
                    *next = Next::InLine;
                    effects.join_line = true;
                }
            }
            (News::Tick, Dial::Waiting { until }) => {
                if *until <= around.now {
                    self.dial = Dial::None;
                    // One more was wanted and could not be had; those there are serve.
                    self.failed &= self.live.is_empty() || self.live.iter().any(|live| live.worn);
                }
            }
            (News::Connected(name), Dial::Attempting { under_way, .. })
                if under_way.contains(&name) =>
            {
                under_way.retain(|&other| other != name);
                effects.abandon.append(under_way);
                self.dial = Dial::None;
                self.asked = false;
                self.crowded = false;
                self.failed = false;
                effects.retire = self.drop_worn();
                self.live.push(Live {
                    name,
                    since: around.now,
                    served: (around.served)(),
                    used: around.now,
                    proven: false,
                    worn: false,
                });
            }
            (
                News::Failed(name, why),
                Dial::Attempting {
                    untried,
                    under_way,
                    next,
                },
            ) if under_way.contains(&name) => {
                under_way.retain(|&other| other != name);
                self.why = Some(why);
                match (untried.is_empty(), under_way.is_empty()) {
                    (false, _) => {
                        effects.join_line = *next != Next::InLine;
                        *next = Next::InLine;
                    }
                    (true, false) => {}
                    (true, true) => {
                        effects.resolve = true;
                        self.asked = false;
                        self.crowded = false;
                        self.failed = self.sticks();
                        self.wait(around);
                        return effects;
                    }
                }
            }
            (News::Worn(name), dial) => {
                let Some(live) = self.live.iter_mut().find(|live| live.name == name) else {
                    return effects;
                };
                live.worn = true;
                // One that wears out as soon as it is made is paced like one that fails.
                if !live.proven && matches!(dial, Dial::None) {
                    self.wait(around);
                    return effects;
                }
            }
            (News::Lost(name, why), dial) => {
                let Some(at) = self.live.iter().position(|live| live.name == name) else {
                    return effects;
                };
                let lost = self.live.remove(at);
                effects.resolve = true;
                self.why = Some(why);
                // A server may go away soon after a connection was made by chance, as in a rolling restart;
                // only one that does it again is paced like one that cannot be reached.
                let spared = !self.spared && self.failures == 0;
                match (self.live.is_empty(), lost.proven, dial) {
                    (_, false, Dial::None) if spared => self.spared = true,
                    (none_left, false, Dial::None) => {
                        if none_left {
                            self.failed = self.sticks();
                        }
                        self.wait(around);
                        return effects;
                    }
                    (true, false, _) => self.failed = self.sticks(),
                    // It waits because the connection wore out too soon, not because a dial failed.
                    (true, true, dial @ Dial::Waiting { .. }) if !self.failed => *dial = Dial::None,
                    _ => {}
                }
            }
            // News of an attempt that has been decided already, and ticks that come for nothing.
            (News::Connected(_) | News::Failed(..) | News::Tick, _) => return effects,
        }
        effects.join_line |= self.start_if_needed(&around);
        effects
    }

    /// Starts a pass when one is wanted and nothing stands in its way; says whether it did.
    fn start_if_needed(&mut self, around: &Around<'_>) -> bool {
        let missing = self.live.is_empty() && (self.wish == Wish::Connect || self.asked);
        // In use, or it would not wear: it is replaced whoever wants it.
        let worn = self.live.iter().any(|live| live.worn);
        // In use too, or it would not be full.
        let crowded =
            self.crowded && self.wish != Wish::LetGo && (1..around.most).contains(&self.live.len());
        if !matches!(self.dial, Dial::None) || !(missing || worn || crowded) {
            return false;
        }
        let addresses = around.endpoint.addresses().to_vec();
        self.dial = Dial::Attempting {
            untried: VecDeque::from(interleave(addresses, |address| address)),
            under_way: Vec::new(),
            next: Next::InLine,
        };
        true
    }

    /// Whether a failure outlasts its backoff. Not where only calls ask for it: the next one must find it idle, or
    /// it would not ask.
    fn sticks(&self) -> bool {
        self.wish != Wish::LetGo
    }

    fn wait(&mut self, around: Around<'_>) {
        self.failures = self.failures.saturating_add(1);
        self.dial = Dial::Waiting {
            until: around.now + around.backoff.delay(self.failures, around.rng),
        };
    }

    /// Forgives the failures before a connection once it has lived long enough, or been of use: a proxy
    /// that closes each connection after a thousand calls (nginx does) is no failing server, however soon
    /// they are made.
    fn forgive(&mut self, around: &Around<'_>) {
        let forgiveness = around.backoff.forgiveness();
        for live in self.live.iter_mut().filter(|live| !live.proven) {
            let of_use = (around.served)().saturating_sub(live.served) >= OF_USE;
            if of_use || around.now >= live.since + forgiveness {
                live.proven = true;
                self.failures = 0;
                self.spared = false;
            }
        }
    }

    fn drop_worn(&mut self) -> Vec<AttemptId> {
        let worn = self.live.iter().filter(|live| live.worn);
        let names = worn.map(|live| live.name).collect();
        self.live.retain(|live| !live.worn);
        names
    }
}

#[cfg(test)]
mod tests;
