//! Is this endpoint connected, and if not, what is being done about it?
//!
//! One [`Link`] per endpoint: the connections it has and the dialling that goes on. News goes in, one
//! `match` answers it, what to do comes out as [`Effects`]. The state that policies see is derived from
//! the two, never stored.
//!
//! A *pass* tries every address of the endpoint, each after a quarter of a second or as soon as the one
//! before has failed; the first to connect wins. When all have failed the endpoint waits out its backoff.

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

/// The connections of one endpoint, and the way to more of them.
#[derive(Debug)]
pub(super) struct Link {
    live: Vec<Live>,
    dial: Dial,
    wish: Wish,
    /// A call asked for it; good for one pass.
    asked: bool,
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
    /// Connections that were replaced.
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
            (News::Tick, Dial::Attempting { next, .. }) => {
                if matches!(next, Next::At(at) if *at <= around.now) {
                    *next = Next::InLine;
                    effects.join_line = true;
                }
            }
            (News::Tick, Dial::Waiting { until }) => {
                if *until <= around.now {
                    self.dial = Dial::None;
                }
            }
            (News::Connected(name), Dial::Attempting { under_way, .. })
                if under_way.contains(&name) =>
            {
                under_way.retain(|&other| other != name);
                effects.abandon.append(under_way);
                self.dial = Dial::None;
                self.asked = false;
                self.failed = false;
                effects.retire = self.drop_worn();
                self.live.push(Live {
                    name,
                    since: around.now,
                    served: (around.served)(),
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
                let lost = self.live.swap_remove(at);
                effects.resolve = true;
                self.why = Some(why);
                // A server may go away soon after a connection was made by chance, as in a rolling restart;
                // only one that does it again is paced like one that cannot be reached.
                let spared = !self.spared && self.failures == 0;
                match (self.live.is_empty(), lost.proven, dial) {
                    (true, false, Dial::None) if spared => self.spared = true,
                    (true, false, Dial::None) => {
                        self.failed = self.sticks();
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
        effects.join_line |= self.start_if_needed(around.endpoint);
        effects
    }

    /// Starts a pass when one is wanted and nothing stands in its way; says whether it did.
    fn start_if_needed(&mut self, endpoint: &Endpoint) -> bool {
        let missing = self.live.is_empty() && (self.wish == Wish::Connect || self.asked);
        // In use, or it would not wear: it is replaced whoever wants it.
        let worn = self.live.iter().any(|live| live.worn);
        if !matches!(self.dial, Dial::None) || !(missing || worn) {
            return false;
        }
        self.dial = Dial::Attempting {
            untried: VecDeque::from(interleave(endpoint.addresses().to_vec(), |address| address)),
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
mod tests {
    use super::*;
    use Connectivity::{Connecting, Idle, Ready, TransientFailure};

    const STAGGER: Duration = Duration::from_millis(250);

    /// A link with its surroundings, and a hand to play the balancer's part.
    struct Bench {
        link: Link,
        endpoint: Endpoint,
        backoff: Backoff,
        rng: Rng,
        names: u64,
        served: u64,
    }

    impl Bench {
        fn new(addresses: &[&str]) -> Self {
            let addresses = addresses.iter().map(|text| text.parse().unwrap());
            Self {
                link: Link::new(),
                endpoint: Endpoint::with_addresses(addresses).unwrap(),
                backoff: Backoff {
                    jitter: 0.0,
                    ..Backoff::default()
                },
                rng: Rng::new(1),
                names: 0,
                served: 0,
            }
        }

        fn tell(&mut self, millis: u64, news: News) -> Effects {
            self.link.handle(
                news,
                Around {
                    endpoint: &self.endpoint,
                    backoff: &self.backoff,
                    served: &|| self.served,
                    now: Timestamp::from_millis(millis),
                    rng: &mut self.rng,
                },
            )
        }

        fn turn(&mut self, millis: u64) -> Option<(AttemptId, String)> {
            let name = AttemptId(self.names);
            self.names += 1;
            let now = Timestamp::from_millis(millis);
            let address = self.link.take_turn(name, STAGGER, now)?;
            Some((name, address.to_string()))
        }

        fn dial(&mut self, millis: u64) -> AttemptId {
            self.turn(millis).expect("it wants to dial").0
        }

        fn connected(millis: u64) -> (Self, AttemptId) {
            let mut bench = Self::new(&["10.0.0.1:1"]);
            assert!(bench.tell(millis, News::Wished(Wish::Connect)).join_line);
            let name = bench.dial(millis);
            assert_eq!(
                bench.tell(millis, News::Connected(name)),
                Effects::default()
            );
            assert_eq!(bench.link.state(), Ready);
            (bench, name)
        }

        fn at(&self) -> Option<u64> {
            self.link.deadline().map(|at| at.as_nanos() / 1_000_000)
        }
    }

    fn why() -> ConnectError {
        ConnectError::new("refused")
    }

    fn ids(names: &[AttemptId]) -> Effects {
        Effects {
            abandon: names.to_vec(),
            ..Effects::default()
        }
    }

    #[test]
    fn interleaving_follows_the_published_orders() {
        // misc.json: happy_eyeballs_interleave.
        let vectors: [(&str, &[usize]); 8] = [
            ("444", &[0, 1, 2]),
            ("6644", &[0, 2, 1, 3]),
            ("46", &[0, 1]),
            ("4446", &[0, 3, 1, 2]),
            ("64446", &[0, 1, 4, 2, 3]),
            ("4466uu", &[0, 2, 4, 1, 3, 5]),
            ("u4466", &[0, 1, 3, 2, 4]),
            ("666u4", &[0, 3, 4, 1, 2]),
        ];
        for (families, expected) in vectors {
            let addresses: Vec<Address> = families
                .chars()
                .zip(1..)
                .map(|(family, port)| match family {
                    '4' => format!("10.0.0.1:{port}").parse().unwrap(),
                    '6' => format!("[fd00::1]:{port}").parse().unwrap(),
                    _ => format!("unix:/s/{port}").parse().unwrap(),
                })
                .collect();
            let order: Vec<usize> = interleave(addresses.clone(), |address| address)
                .iter()
                .map(|tried| addresses.iter().position(|a| a == tried).unwrap())
                .collect();
            assert_eq!(order, expected, "{families}");
        }
    }

    #[test]
    fn nobody_dials_what_nobody_wants() {
        let mut bench = Bench::new(&["10.0.0.1:1"]);
        assert_eq!(bench.link.state(), Idle);
        assert_eq!(bench.tell(0, News::Wished(Wish::Keep)), Effects::default());
        assert_eq!(bench.turn(0), None);
        assert_eq!(bench.at(), None);
    }

    #[test]
    fn addresses_are_tried_a_stagger_apart() {
        let mut bench = Bench::new(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]);
        assert!(bench.tell(0, News::Wished(Wish::Connect)).join_line);
        assert_eq!(bench.link.state(), Connecting);
        let (a, address) = bench.turn(0).unwrap();
        assert_eq!(address, "10.0.0.1:1");
        assert_eq!(bench.turn(0), None, "one turn, one address");
        assert_eq!(bench.at(), Some(250));
        assert_eq!(bench.tell(249, News::Tick), Effects::default());
        assert!(bench.tell(250, News::Tick).join_line);
        assert!(!bench.tell(250, News::Tick).join_line, "already in line");
        let (b, _) = bench.turn(260).unwrap();
        assert_eq!(bench.at(), Some(510));
        // The first to answer wins, whichever that is; the rest are abandoned and the third is not tried.
        assert_eq!(bench.tell(300, News::Connected(b)), ids(&[a]));
        assert_eq!(bench.link.state(), Ready);
        assert_eq!(bench.at(), None);
    }

    #[test]
    fn a_failure_brings_the_next_address_at_once() {
        let mut bench = Bench::new(&["10.0.0.1:1", "10.0.0.2:1"]);
        bench.tell(0, News::Wished(Wish::Connect));
        let a = bench.dial(0);
        let effects = bench.tell(3, News::Failed(a, why()));
        assert!(effects.join_line && !effects.resolve);
        assert_eq!(bench.link.state(), Connecting, "the pass is not over");
        let (b, address) = bench.turn(3).unwrap();
        assert_eq!(address, "10.0.0.2:1");
        let effects = bench.tell(9, News::Failed(b, why()));
        assert!(effects.resolve && !effects.join_line);
        assert_eq!(bench.link.state(), TransientFailure);
        assert_eq!(bench.at(), Some(1_009));
        assert_eq!(bench.link.why().unwrap().to_string(), "refused");
    }

    #[test]
    fn the_pass_waits_for_an_attempt_still_under_way() {
        let mut bench = Bench::new(&["10.0.0.1:1", "10.0.0.2:1"]);
        bench.tell(0, News::Wished(Wish::Connect));
        let a = bench.dial(0);
        bench.tell(250, News::Tick);
        let b = bench.dial(250);
        assert_eq!(bench.tell(251, News::Failed(b, why())), Effects::default());
        assert_eq!((bench.link.state(), bench.at()), (Connecting, None));
        assert_eq!(bench.tell(300, News::Connected(a)), Effects::default());
        assert_eq!(bench.link.state(), Ready);
    }

    #[test]
    fn failures_wait_longer_and_longer_and_look_failed_meanwhile() {
        let mut bench = Bench::new(&["10.0.0.1:1"]);
        bench.tell(0, News::Wished(Wish::Connect));
        for (dialled, again) in [(0, 1_000), (1_000, 2_600), (2_600, 5_160), (5_160, 9_256)] {
            let name = bench.dial(dialled);
            bench.tell(dialled, News::Failed(name, why()));
            assert_eq!(bench.at(), Some(again));
            assert!(!bench.tell(again - 1, News::Tick).join_line);
            assert!(bench.tell(again, News::Tick).join_line);
            assert_eq!(bench.link.state(), TransientFailure, "sticky until ready");
        }
        let name = bench.dial(9_256);
        bench.tell(9_300, News::Connected(name));
        assert_eq!(bench.link.state(), Ready);
    }

    #[test]
    fn one_lost_after_a_stable_time_is_redialled_at_once() {
        let (mut bench, name) = Bench::connected(0);
        let effects = bench.tell(250, News::Lost(name, why()));
        assert!(effects.join_line && effects.resolve);
        assert_eq!(bench.link.state(), Connecting);
        let name = bench.dial(250);
        bench.tell(251, News::Failed(name, why()));
        assert_eq!(bench.at(), Some(1_251), "the first failure in a row");
    }

    #[test]
    fn having_been_ready_ends_the_failure() {
        let mut bench = Bench::new(&["10.0.0.1:1"]);
        bench.tell(0, News::Wished(Wish::Connect));
        let name = bench.dial(0);
        bench.tell(0, News::Failed(name, why()));
        bench.tell(1_000, News::Tick);
        let name = bench.dial(1_000);
        bench.tell(1_000, News::Connected(name));
        bench.tell(2_000, News::Lost(name, why()));
        assert_eq!(bench.link.state(), Connecting);
    }

    #[test]
    fn one_lost_too_soon_is_forgiven_once_and_then_counts_as_a_failure() {
        let (mut bench, name) = Bench::connected(0);
        assert!(bench.tell(1, News::Lost(name, why())).join_line, "once");
        assert_eq!(bench.link.state(), Connecting);
        let name = bench.dial(1);
        bench.tell(2, News::Connected(name));
        let effects = bench.tell(249, News::Lost(name, why()));
        assert!(effects.resolve && !effects.join_line);
        assert_eq!(
            (bench.link.state(), bench.at()),
            (TransientFailure, Some(1_249))
        );
        bench.tell(1_249, News::Tick);
        let name = bench.dial(1_249);
        bench.tell(1_249, News::Connected(name));
        assert_eq!(bench.link.state(), Ready);
        bench.tell(1_250, News::Lost(name, why()));
        assert_eq!(
            bench.at(),
            Some(2_850),
            "the second failure in a row: 1.6 s"
        );
        bench.tell(2_850, News::Tick);
        let name = bench.dial(2_850);
        bench.tell(2_850, News::Connected(name));
        assert!(
            bench.tell(3_100, News::Lost(name, why())).join_line,
            "stable"
        );
        let name = bench.dial(3_100);
        bench.tell(3_100, News::Connected(name));
        assert!(
            bench.tell(3_101, News::Lost(name, why())).join_line,
            "forgiven again"
        );
    }

    #[test]
    fn one_lost_too_soon_that_was_of_use_is_redialled_at_once_each_time() {
        let (mut bench, mut name) = Bench::connected(0);
        for millis in (1..10).map(|n| 10 * n) {
            bench.served += OF_USE;
            let effects = bench.tell(millis, News::Lost(name, why()));
            assert!(effects.join_line && effects.resolve);
            assert_eq!(bench.link.state(), Connecting);
            name = bench.dial(millis);
            bench.tell(millis, News::Connected(name));
        }
        // Without use it is forgiven once, as ever.
        bench.served += OF_USE - 1;
        assert!(bench.tell(91, News::Lost(name, why())).join_line);
        let name = bench.dial(91);
        bench.tell(91, News::Connected(name));
        bench.served += OF_USE - 1;
        assert!(!bench.tell(92, News::Lost(name, why())).join_line);
        assert_eq!(
            (bench.link.state(), bench.at()),
            (TransientFailure, Some(1_092))
        );
    }

    #[test]
    fn one_lost_that_nobody_wants_is_left_alone() {
        let (mut bench, name) = Bench::connected(0);
        bench.tell(10, News::Wished(Wish::Keep));
        assert_eq!(bench.link.state(), Ready, "it keeps what it has");
        let effects = bench.tell(900, News::Lost(name, why()));
        assert!(effects.resolve && !effects.join_line);
        assert_eq!((bench.link.state(), bench.at()), (Idle, None));
    }

    #[test]
    fn a_worn_one_is_replaced_before_it_is_retired() {
        let (mut bench, old) = Bench::connected(0);
        assert!(bench.tell(5_000, News::Worn(old)).join_line);
        assert!(
            !bench.tell(5_000, News::Worn(old)).join_line,
            "one pass at a time"
        );
        assert_eq!(bench.link.state(), Ready);
        let new = bench.dial(5_000);
        let effects = bench.tell(5_010, News::Connected(new));
        assert_eq!(effects.retire, [old]);
        assert_eq!((bench.link.state(), bench.link.connections()), (Ready, 1));
        // The retired one is nobody's any more.
        assert_eq!(
            bench.tell(5_020, News::Lost(old, why())),
            Effects::default()
        );
        assert_eq!(bench.link.state(), Ready);
    }

    #[test]
    fn a_worn_one_is_replaced_whoever_wants_it() {
        let (mut bench, old) = Bench::connected(0);
        bench.tell(1_000, News::Wished(Wish::Keep));
        assert!(bench.tell(5_000, News::Worn(old)).join_line);
        let new = bench.dial(5_000);
        bench.tell(5_000, News::Failed(new, why()));
        assert!(bench.tell(6_000, News::Tick).join_line, "and tried again");
        let new = bench.dial(6_000);
        assert_eq!(bench.tell(6_001, News::Connected(new)).retire, [old]);
        let effects = bench.tell(9_000, News::Lost(new, why()));
        assert!(!effects.join_line, "one that is lost is not");
        assert_eq!(bench.link.state(), Idle);
    }

    #[test]
    fn a_worn_one_lost_before_its_replacement_came() {
        let (mut bench, old) = Bench::connected(0);
        bench.tell(5_000, News::Worn(old));
        let new = bench.dial(5_000);
        assert!(!bench.tell(5_001, News::Lost(old, why())).join_line);
        assert_eq!(
            bench.link.state(),
            Connecting,
            "its replacement is under way"
        );
        bench.tell(5_002, News::Connected(new));
        assert_eq!(bench.link.state(), Ready);
    }

    #[test]
    fn a_replacement_that_fails_waits_and_leaves_the_worn_one_in_use() {
        let (mut bench, old) = Bench::connected(0);
        bench.tell(5_000, News::Worn(old));
        let new = bench.dial(5_000);
        bench.tell(5_000, News::Failed(new, why()));
        assert_eq!((bench.link.state(), bench.at()), (Ready, Some(6_000)));
        bench.tell(5_500, News::Lost(old, why()));
        assert_eq!(
            (bench.link.state(), bench.at()),
            (TransientFailure, Some(6_000))
        );
    }

    #[test]
    fn one_that_wears_out_at_once_is_not_replaced_in_a_tight_loop() {
        let (mut bench, old) = Bench::connected(0);
        assert_eq!(bench.tell(1, News::Worn(old)), Effects::default());
        assert_eq!((bench.link.state(), bench.at()), (Ready, Some(1_001)));
        assert!(bench.tell(1_001, News::Tick).join_line);

        let (mut bench, old) = Bench::connected(0);
        bench.tell(1, News::Worn(old));
        assert!(
            bench.tell(500, News::Lost(old, why())).join_line,
            "it had lived long enough"
        );
        assert_eq!(bench.link.state(), Connecting);
    }

    #[test]
    fn asked_for_is_good_for_one_pass() {
        let mut bench = Bench::new(&["10.0.0.1:1"]);
        assert!(bench.tell(0, News::Asked).join_line);
        assert!(!bench.tell(0, News::Asked).join_line, "once");
        let name = bench.dial(0);
        bench.tell(0, News::Failed(name, why()));
        assert_eq!(bench.at(), Some(1_000));
        assert!(
            !bench.tell(1_000, News::Tick).join_line,
            "nobody asked again"
        );
        assert_eq!(bench.link.state(), TransientFailure);
        assert!(bench.tell(1_100, News::Asked).join_line);
        let name = bench.dial(1_100);
        bench.tell(1_100, News::Failed(name, why()));
        assert!(
            !bench.tell(1_200, News::Asked).join_line,
            "the backoff holds"
        );
        assert!(bench.tell(2_700, News::Tick).join_line, "asked meanwhile");
    }

    #[test]
    fn one_let_go_of_that_is_asked_for_and_fails_is_forgiven_after_its_backoff() {
        let mut bench = Bench::new(&["10.0.0.1:1"]);
        bench.tell(0, News::Wished(Wish::LetGo));
        assert!(bench.tell(0, News::Asked).join_line);
        let name = bench.dial(0);
        bench.tell(0, News::Failed(name, why()));
        assert_eq!(bench.link.state(), TransientFailure);
        assert!(!bench.tell(1_000, News::Tick).join_line);
        assert_eq!((bench.link.state(), bench.at()), (Idle, None));
        assert!(
            bench.tell(1_001, News::Asked).join_line,
            "and may be asked again"
        );
    }

    #[test]
    fn a_wish_withdrawn_calls_off_only_what_has_not_begun() {
        let mut bench = Bench::new(&["10.0.0.1:1", "10.0.0.2:1"]);
        bench.tell(0, News::Wished(Wish::Connect));
        bench.tell(0, News::Wished(Wish::Keep));
        assert_eq!((bench.link.state(), bench.turn(0)), (Idle, None));
        assert!(bench.tell(0, News::Wished(Wish::Connect)).join_line);
        let a = bench.dial(0);
        bench.tell(1, News::Failed(a, why()));
        bench.tell(2, News::Wished(Wish::Keep));
        let b = bench.dial(2);
        bench.tell(3, News::Failed(b, why()));
        assert_eq!(bench.at(), Some(1_003));
        assert!(!bench.tell(1_003, News::Tick).join_line);
        bench.tell(1_004, News::Wished(Wish::Connect));
        assert_eq!(bench.link.state(), TransientFailure);
        assert!(bench.turn(1_004).is_some());
    }

    #[test]
    fn news_of_the_past_changes_nothing() {
        let (mut bench, name) = Bench::connected(0);
        let stranger = AttemptId(77);
        for news in [
            News::Connected(name),
            News::Failed(name, why()),
            News::Connected(stranger),
            News::Failed(stranger, why()),
            News::Worn(stranger),
            News::Lost(stranger, why()),
            News::Tick,
        ] {
            assert_eq!(bench.tell(1, news), Effects::default());
            assert_eq!((bench.link.state(), bench.at()), (Ready, None));
        }
    }
}
