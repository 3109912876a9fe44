//! The balancer as its driver sees it: news in, actions out, literal times.

mod judging;
mod lists;
mod policies;
mod readings;
mod several;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::*;
use crate::endpoint::Address;
use crate::load::{Cells, Load, Scoring};
use crate::policy::{Connect, Decision, Member, PickInfo, PickResult, Picker};
use crate::report::{Completion, Outcome, StatusCode};
use Connectivity::{Connecting, Idle, Ready, TransientFailure};

/// What the policy was shown, update by update.
type Seen = Arc<Mutex<Vec<Vec<(EndpointId, Connectivity, u32)>>>>;

/// Notes what it is shown, connects to whom it is told to.
#[derive(Debug, Default)]
struct Spy {
    seen: Seen,
    only: Arc<Mutex<Option<Vec<EndpointId>>>>,
}

#[derive(Debug)]
struct FirstReady(Option<EndpointId>);

impl Policy for Spy {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        let facts = members.iter().map(|m| (m.id, m.state, m.weight)).collect();
        self.seen.lock().unwrap().push(facts);
        let ready = members.iter().find(|m| m.state == Ready);
        Decision {
            picker: Arc::new(FirstReady(ready.map(|m| m.id))),
            connect: match &*self.only.lock().unwrap() {
                None => Connect::All,
                Some(ids) => Connect::Only(ids.clone()),
            },
            wake: None,
        }
    }

    fn scoring(&self) -> Scoring {
        Scoring::Latency {
            window: Duration::from_secs(5),
        }
    }
}

impl Picker for FirstReady {
    fn pick(&self, _: &PickInfo<'_>) -> PickResult {
        self.0.map_or(PickResult::Fail, PickResult::Pick)
    }
}

/// A balancer and the time, in milliseconds.
struct Bench {
    balancer: Balancer,
    now: Timestamp,
    seen: Seen,
    only: Arc<Mutex<Option<Vec<EndpointId>>>>,
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new(format!("10.0.0.1:{port}").parse::<Address>().unwrap())
}

fn list(ports: impl IntoIterator<Item = u16>) -> Vec<Endpoint> {
    ports.into_iter().map(endpoint).collect()
}

fn why() -> ConnectError {
    ConnectError::new("connection refused")
}

/// The defaults, where nobody is judged: no timers but those that the test is about.
fn calm() -> Config {
    Config {
        outliers: None,
        ..Config::default()
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(calm())
    }

    fn with(mut config: Config) -> Self {
        config.backoff.jitter = 0.0;
        let spy = Spy::default();
        let (seen, only) = (spy.seen.clone(), spy.only.clone());
        Self {
            balancer: Balancer::new(config, Box::new(spy), Vec::new(), 1),
            now: Timestamp::ZERO,
            seen,
            only,
        }
    }

    fn at(&mut self, millis: u64) -> &mut Self {
        self.now = Timestamp::from_millis(millis);
        self
    }

    fn resolve(&mut self, list: Vec<Endpoint>) -> Vec<String> {
        self.balancer.handle_resolution(Ok(list), self.now);
        self.work()
    }

    fn connected(&mut self, attempt: u64) -> Vec<String> {
        assert!(self.balancer.handle_connected(AttemptId(attempt), self.now));
        self.work()
    }

    fn failed(&mut self, attempt: u64) -> Vec<String> {
        self.balancer
            .handle_connect_failed(AttemptId(attempt), why(), self.now);
        self.work()
    }

    fn lost(&mut self, attempt: u64) -> Vec<String> {
        self.balancer
            .handle_lost(AttemptId(attempt), ConnectError::new("goaway"), self.now);
        self.work()
    }

    fn timeout(&mut self) -> Vec<String> {
        self.balancer.handle_timeout(self.now);
        self.work()
    }

    fn due(&self) -> Option<u64> {
        self.balancer
            .poll_timeout()
            .map(|at| at.as_nanos() / 1_000_000)
    }

    /// Everything there is to do, in words.
    fn work(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(action) = self.balancer.poll_action(self.now) {
            words.push(match action {
                Action::Open { id, endpoint, .. } => format!("open {id:?} x{}", endpoint.weight()),
                Action::Connect {
                    attempt,
                    id,
                    address,
                    ..
                } => {
                    format!("connect #{} {id:?} {address}", attempt.0)
                }
                Action::Abandon { attempt } => format!("abandon #{}", attempt.0),
                Action::Retire { connection } => format!("retire #{}", connection.0),
                Action::Close { id } => format!("close {id:?}"),
                Action::Publish(publication) => format!("publish {}", publication.state),
                Action::Resolve => "resolve".into(),
                Action::Measure => "measure".into(),
                Action::Usage => "usage".into(),
            });
        }
        words
    }

    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.balancer.poll_event())
            .map(|event| match event {
                Event::Endpoint { id, from, to, why, .. } => match why {
                    Some(why) => format!("{id:?} {from} {to}: {why}"),
                    None => format!("{id:?} {from} {to}"),
                },
                Event::Channel { from, to } => format!("channel {from} {to}"),
                Event::Resolved { endpoints, added, removed, duplicates, over_limit } => {
                    format!("resolved {endpoints} +{added} -{removed} twice {duplicates} over {over_limit}")
                }
                Event::Kept { endpoints, until } => format!("kept {endpoints} until {until:?}"),
                Event::Switched { policy } => format!("switched {policy}"),
                Event::Panicked { policy } => format!("panicked {policy}"),
                Event::ResolveFailed(error) => format!("no answer: {error}"),
                Event::Standing { id, standing, .. } => format!("{id:?} {standing:?}"),
                Event::Health { id, health, .. } => format!("{id:?} {health:?}"),
                Event::Panic { on, usable, of } => format!("panic {on}: {usable} of {of}"),
            })
            .collect()
    }
}

#[test]
fn nothing_happens_before_the_first_list() {
    let mut bench = Bench::new();
    assert_eq!(bench.work(), [""; 0]);
    assert_eq!((bench.balancer.state(), bench.due()), (Connecting, None));
}

#[test]
fn from_the_list_to_ready() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.resolve(list([1, 2])),
        [
            "open 0.0 x1",
            "open 1.0 x1",
            "publish CONNECTING",
            "connect #0 0.0 10.0.0.1:1",
            "connect #1 1.0 10.0.0.1:2",
        ]
    );
    assert_eq!(
        bench.events(),
        [
            "resolved 2 +2 -0 twice 0 over 0",
            "0.0 IDLE CONNECTING",
            "1.0 IDLE CONNECTING"
        ]
    );
    assert_eq!(
        bench.due(),
        Some(5),
        "the policy has yet to see that they are connecting"
    );
    // The first to be ready changes the state of the whole: at once.
    assert_eq!(bench.at(2).connected(1), ["publish READY"]);
    assert_eq!(
        bench.events(),
        ["1.0 CONNECTING READY", "channel CONNECTING READY"]
    );
    // The second can wait until 5 ms after that.
    assert_eq!(bench.at(3).connected(0), [""; 0]);
    assert_eq!(bench.due(), Some(7));
    assert_eq!(bench.at(7).timeout(), ["publish READY"]);
    assert_eq!(bench.due(), None, "a quiet channel has no timers");
    let seen = bench.seen.lock().unwrap();
    let states: Vec<Vec<Connectivity>> = seen
        .iter()
        .map(|seen| seen.iter().map(|m| m.1).collect())
        .collect();
    assert_eq!(
        states,
        [[Idle, Idle], [Connecting, Ready], [Ready, Ready]],
        "once per publication"
    );
}

#[test]
fn a_lost_connection_is_published_at_once_and_redialled() {
    let mut bench = Bench::new();
    bench.resolve(list([1, 2]));
    bench.at(1).connected(0);
    bench.at(2).connected(1);
    bench.at(10).timeout();
    bench.events();
    assert_eq!(
        bench.at(5_000).lost(0),
        ["publish READY", "connect #2 0.0 10.0.0.1:1", "resolve"]
    );
    assert_eq!(bench.events(), ["0.0 READY CONNECTING: goaway"]);
    assert_eq!(
        bench.at(5_001).lost(1),
        ["publish CONNECTING", "connect #3 1.0 10.0.0.1:2", "resolve"]
    );
    assert_eq!(bench.at(5_001).lost(1), [""; 0], "once is enough");
}

#[test]
fn a_loss_does_not_wait_for_the_next_publication() {
    let mut bench = Bench::new();
    bench.resolve(list([1, 2, 3]));
    for attempt in 0..3 {
        bench.at(1).connected(attempt);
    }
    bench.at(10).timeout();
    bench.at(5_000).lost(0);
    // A millisecond after a publication, and the state of the whole stays READY.
    assert_eq!(bench.at(5_001).lost(1)[0], "publish READY");
}

#[test]
fn those_who_left_do_not_pile_up_in_line() {
    let mut bench = Bench::with(Config {
        connect_rate: 1,
        ..calm()
    });
    for round in 0..100 {
        bench.resolve(list(10 * round + 1..=10 * round + 10));
    }
    assert_eq!(bench.balancer.pace.len(), 10);
}

#[test]
fn all_refused_fails_with_the_newest_words() {
    let mut bench = Bench::new();
    bench.resolve(list([1, 2]));
    assert_eq!(
        bench.at(1).failed(0),
        ["resolve"],
        "the other may still come"
    );
    assert_eq!(
        bench.at(2).failed(1),
        ["publish TRANSIENT_FAILURE", "resolve"]
    );
    assert_eq!(
        bench.balancer.why.as_deref(),
        Some("10.0.0.1:2: connection refused")
    );
    assert_eq!(bench.due(), Some(1_001));
    assert_eq!(bench.at(1_001).timeout(), ["connect #2 0.0 10.0.0.1:1"]);
    // The state stays as it was, the words change: the picker is kept, the policy is not asked.
    let asked = bench.seen.lock().unwrap().len();
    assert_eq!(
        bench.at(1_050).failed(2),
        ["publish TRANSIENT_FAILURE", "resolve"]
    );
    assert_eq!(bench.seen.lock().unwrap().len(), asked);
    assert_eq!(
        bench.balancer.why.as_deref(),
        Some("10.0.0.1:1: connection refused")
    );
}

#[test]
fn a_weight_is_news_that_can_wait() {
    let mut bench = Bench::new();
    bench.resolve(list([1]));
    bench.at(1).connected(0);
    let heavy = vec![endpoint(1).with_weight(4).unwrap()];
    assert_eq!(bench.at(2).resolve(heavy), ["open 0.0 x4"]);
    assert_eq!(bench.due(), Some(6));
    assert_eq!(bench.at(6).timeout(), ["publish READY"]);
    assert_eq!(bench.seen.lock().unwrap().last().unwrap()[0].2, 4);
}

#[test]
fn a_worn_connection_is_replaced_without_a_publication() {
    let mut bench = Bench::new();
    bench.resolve(list([1]));
    bench.at(1).connected(0);
    bench.at(10).timeout();
    bench
        .at(9_000)
        .balancer
        .handle_worn(AttemptId(0), Timestamp::from_secs(9));
    assert_eq!(bench.work(), ["connect #1 0.0 10.0.0.1:1"]);
    assert_eq!(bench.at(9_001).connected(1), ["retire #0"]);
    assert_eq!(bench.at(9_002).lost(0), [""; 0]);
    let view = bench.balancer.endpoints().next().unwrap();
    assert_eq!(
        (view.state, view.connections, view.since),
        (Ready, 1, Timestamp::from_millis(1))
    );
}

#[test]
fn only_whom_the_policy_wants_is_dialled() {
    let mut bench = Bench::new();
    let (a, b) = (EndpointId::new(0, 0), EndpointId::new(1, 0));
    *bench.only.lock().unwrap() = Some(vec![b]);
    let words = bench.resolve(list([1, 2]));
    assert_eq!(
        words[2..],
        ["publish CONNECTING", "connect #0 1.0 10.0.0.1:2"]
    );
    assert_eq!(bench.at(1).connected(0), ["publish READY"]);
    // A call asks for the other one; the policy's own wish is not needed for that.
    bench.balancer.handle_wanted(a, bench.now);
    bench
        .balancer
        .handle_wanted(EndpointId::new(9, 9), bench.now);
    assert_eq!(bench.work(), ["connect #1 0.0 10.0.0.1:1"]);
    bench.at(2).connected(1);
    // Lost, it is left alone; the wanted one is redialled.
    assert_eq!(bench.at(900).lost(1), ["publish READY", "resolve"]);
    assert_eq!(
        bench.at(901).lost(0),
        ["publish CONNECTING", "connect #2 1.0 10.0.0.1:2", "resolve"]
    );
    let states: Vec<_> = bench.balancer.endpoints().map(|view| view.state).collect();
    assert_eq!(states, [Idle, Connecting]);
}

#[test]
fn a_changed_wish_holds_from_the_next_decision_on() {
    let mut bench = Bench::new();
    *bench.only.lock().unwrap() = Some(vec![EndpointId::new(0, 0)]);
    bench.resolve(list([1, 2]));
    *bench.only.lock().unwrap() = Some(vec![EndpointId::new(1, 0)]);
    assert_eq!(bench.at(1).failed(0), ["resolve"]);
    assert_eq!(
        bench.at(5).timeout(),
        ["publish CONNECTING", "connect #1 1.0 10.0.0.1:2"]
    );
    assert_eq!(bench.at(10).timeout(), ["publish CONNECTING"]);
    assert_eq!(
        bench.due(),
        Some(1_001),
        "the backoff of the one no longer wanted"
    );
    assert_eq!(bench.at(1_001).timeout(), [""; 0]);
    assert_eq!(bench.due(), None);
}

#[test]
fn addresses_of_one_endpoint_race() {
    let mut bench = Bench::new();
    let both = ["10.0.0.1:1", "[fd00::1]:1"].map(|text| text.parse().unwrap());
    let words = bench.resolve(vec![Endpoint::with_addresses(both).unwrap()]);
    assert_eq!(words[2], "connect #0 0.0 10.0.0.1:1");
    bench.at(5).timeout();
    assert_eq!(bench.due(), Some(250));
    assert_eq!(bench.at(250).timeout(), ["connect #1 0.0 [fd00::1]:1"]);
    assert_eq!(bench.at(260).connected(1), ["abandon #0", "publish READY"]);
    assert!(!bench.balancer.handle_connected(AttemptId(0), bench.now));
    assert_eq!(bench.due(), None);
}

#[test]
fn a_newcomer_starts_at_the_median_of_the_others() {
    let mut bench = Bench::new();
    bench.resolve(list([1, 2, 3, 4]));
    for attempt in 0..3 {
        bench.at(1).connected(attempt);
    }
    bench.at(10).timeout();
    let loads: Vec<_> = bench
        .balancer
        .endpoints()
        .map(|view| view.loads.of(0).clone())
        .collect();
    let call = |load: &Load, millis| {
        load.begin();
        let completion = Completion {
            outcome: Outcome::Answered(StatusCode::OK),
            latency: Duration::from_millis(millis),
        };
        load.end(
            &completion,
            Timestamp::from_millis(10),
            Timestamp::from_millis(50),
        );
    };
    for (load, millis) in loads.iter().zip([10, 30, 20]) {
        call(load, millis);
    }
    bench.at(60).connected(3);
    bench.at(65).timeout();
    assert_eq!(loads[3].score(), {
        let model = Cells::new(Spy::default().scoring()).cell(0);
        let model = Load::new(model);
        model.join(loads[2].estimate(), bench.now);
        model.score()
    });
}

#[test]
fn a_thousand_events_are_one_publication() {
    let mut bench = Bench::with(Config {
        connect_rate: 100_000,
        ..calm()
    });
    let words = bench.resolve(list(1..=1_000));
    let dialled = words
        .iter()
        .filter(|word| word.starts_with("connect"))
        .count();
    assert_eq!(dialled, 1_000);
    bench.at(5).timeout();
    bench.at(100);
    for attempt in 0..1_000 {
        assert!(
            bench
                .balancer
                .handle_connected(AttemptId(attempt), bench.now)
        );
    }
    assert_eq!(bench.work(), ["publish READY"]);
}

#[test]
fn dials_are_paced() {
    let mut bench = Bench::new();
    let words = bench.resolve(list(1..=100));
    let dialled = words
        .iter()
        .filter(|word| word.starts_with("connect"))
        .count();
    assert_eq!(dialled, 20, "a tenth of a second's worth");
    assert_eq!(bench.due(), Some(5));
    let words = bench.at(5).timeout();
    assert_eq!(
        words,
        ["publish CONNECTING", "connect #20 20.0 10.0.0.1:21"]
    );
    // Those who leave while they stand in line give up their place.
    let words = bench.at(10).resolve(list([100]));
    assert_eq!(
        words[words.len() - 2..],
        ["publish CONNECTING", "connect #21 99.0 10.0.0.1:100"]
    );
    assert_eq!(bench.due(), None, "nobody is left in line");
}

#[test]
fn a_wish_that_comes_and_goes_leaves_no_second_place_in_line() {
    let mut bench = Bench::with(Config {
        connect_rate: 1,
        ..calm()
    });
    bench.resolve(list([1, 2]));
    for turn in 0..50 {
        *bench.only.lock().unwrap() = (turn % 2 == 0).then(Vec::new);
        bench.at(5 + turn * 5).timeout();
        bench.balancer.stale = Stale::Members;
    }
    bench.at(1_000).timeout();
    assert_eq!(bench.balancer.pace.next_turn(), None);
    assert_eq!(bench.balancer.attempts.len(), 2);
}

#[test]
fn the_state_of_the_whole_follows_grpcs_table() {
    // misc.json: state_aggregation, petiole_spec_A48_A58.
    for (states, expected) in [
        ("R", Ready),
        ("RT", Ready),
        ("C", Connecting),
        ("CI", Connecting),
        ("I", Connecting),
        ("IT", Connecting),
        ("CT", Connecting),
        ("T", TransientFailure),
        ("TT", TransientFailure),
        ("RCIT", Ready),
        ("", TransientFailure),
    ] {
        let mut tally = Tally::default();
        for state in states.chars() {
            *tally.count(match state {
                'R' => Ready,
                'C' => Connecting,
                'I' => Idle,
                _ => TransientFailure,
            }) += 1;
        }
        assert_eq!(tally.aggregate(), expected, "{states}");
    }
}

#[test]
fn the_cost_of_a_list_grows_with_its_length() {
    /// What `lists` lists of `endpoints` each cost, all kept: both sides then take as much fresh memory
    /// from the system, which is no cost of ours.
    fn cost(lists: u32, endpoints: u32) -> Duration {
        let list: Vec<Endpoint> = (0..endpoints)
            .map(|n| {
                let text = format!("10.{}.{}.{}:80", n >> 16, n >> 8 & 255, n & 255);
                Endpoint::new(text.parse::<Address>().unwrap())
            })
            .collect();
        let mut benches: Vec<Bench> = (0..lists).map(|_| Bench::new()).collect();
        let lists: Vec<_> = benches.iter().map(|_| list.clone()).collect();
        let start = Instant::now();
        for (bench, list) in benches.iter_mut().zip(lists) {
            bench.balancer.handle_resolution(Ok(list), Timestamp::ZERO);
            while bench.balancer.poll_action(Timestamp::ZERO).is_some() {}
        }
        start.elapsed()
    }
    // The quickest of interleaved runs: noise only ever adds time, and one quiet moment decides.
    let (mut small, mut large) = (Duration::MAX, Duration::MAX);
    for round in 1..=60 {
        small = small.min(cost(10, 1_000) / 10);
        large = large.min(cost(1, 10_000));
        if round >= 5 && large <= small * 15 {
            return;
        }
    }
    panic!("1,000 endpoints took {small:?}, 10,000 {large:?}");
}
