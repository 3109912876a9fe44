//! What policies ask of the balancer beyond connections: to be asked again, to let go, to make way.

use super::*;
use crate::load::Loads;
use crate::policy::{Adaptive, LeastRequest, PickFirst, RoundRobin};

/// A policy whose every answer is set by hand.
#[derive(Clone, Debug)]
struct Puppet {
    serves: Arc<Mutex<Option<EndpointId>>>,
    connect: Connect,
    wake: Arc<Mutex<Option<Timestamp>>>,
    scoring: Scoring,
}

impl Puppet {
    fn new(serves: Option<EndpointId>, connect: Connect) -> Self {
        Self {
            serves: Arc::new(Mutex::new(serves)),
            connect,
            wake: Arc::default(),
            scoring: Scoring::InFlight,
        }
    }
}

impl Policy for Puppet {
    fn update(&mut self, _: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        Decision {
            picker: Arc::new(FirstReady(*self.serves.lock().unwrap())),
            connect: self.connect.clone(),
            wake: *self.wake.lock().unwrap(),
        }
    }

    fn scoring(&self) -> Scoring {
        self.scoring
    }
}

const A: EndpointId = EndpointId::new(0, 0);
const B: EndpointId = EndpointId::new(1, 0);

/// Two connected endpoints under `policy`, at 100 ms.
fn connected(policy: impl Policy + 'static, more: Vec<Box<dyn Policy>>) -> Bench {
    let mut bench = Bench::new();
    let config = calm();
    bench.balancer = Balancer::new(config, Box::new(policy), more, 1);
    bench.resolve(list([1, 2]));
    bench.at(1).connected(0);
    bench.at(2).connected(1);
    bench.at(100).timeout();
    bench.events();
    bench
}

fn states(bench: &Bench) -> Vec<Connectivity> {
    bench.balancer.endpoints().map(|view| view.state).collect()
}

fn loads(bench: &Bench) -> Vec<Loads> {
    let views = bench.balancer.endpoints();
    views.map(|view| view.loads.clone()).collect()
}

#[test]
fn a_policy_is_asked_again_when_it_wishes() {
    let puppet = Puppet::new(Some(A), Connect::All);
    let wake = puppet.wake.clone();
    let mut bench = connected(puppet, Vec::new());
    assert_eq!(bench.due(), None);
    *wake.lock().unwrap() = Some(Timestamp::from_millis(700));
    bench.at(200).lost(0);
    bench.at(201).connected(2);
    bench.at(206).timeout();
    assert_eq!(bench.due(), Some(700));
    *wake.lock().unwrap() = None;
    assert_eq!(bench.at(700).timeout(), ["publish READY"]);
    assert_eq!(bench.due(), None);
    // Asked for at once, it is asked with the next publication, not in a loop.
    *wake.lock().unwrap() = Some(Timestamp::ZERO);
    bench.at(800).lost(1);
    assert_eq!(bench.due(), Some(0));
    assert_eq!(bench.timeout(), [""; 0]);
    assert_eq!(bench.due(), Some(805));
}

#[test]
fn what_is_let_go_of_is_retired_after_the_new_picker_is_out() {
    let mut bench = connected(RoundRobin::default(), Vec::new());
    let only_b = Puppet::new(Some(B), Connect::Exactly(vec![B]));
    assert!(bench.balancer.handle_policy(0, Box::new(only_b)));
    assert_eq!(
        bench.at(105).timeout(),
        ["publish READY", "retire #0", "publish READY"],
        "once more without it"
    );
    assert_eq!(states(&bench), [Idle, Ready]);
    assert_eq!(bench.events(), ["0.0 READY IDLE", "switched 0"]);
    assert_eq!(bench.due(), None, "and it is not dialled again");
}

#[test]
fn nobody_lets_go_of_what_another_policy_wants_or_keeps() {
    let exactly_b = Connect::Exactly(vec![B]);
    for (other, expected) in [
        (Connect::All, [Ready, Ready]),
        (Connect::Only(Vec::new()), [Ready, Ready]),
        (Connect::Exactly(vec![A]), [Ready, Ready]),
        (exactly_b.clone(), [Idle, Ready]),
    ] {
        let other_policy = Puppet::new(Some(B), other.clone());
        let mut bench = connected(RoundRobin::default(), vec![Box::new(other_policy)]);
        let puppet = Puppet::new(Some(B), exactly_b.clone());
        assert!(bench.balancer.handle_policy(0, Box::new(puppet)));
        bench.at(105).timeout();
        assert_eq!(states(&bench), expected, "{other:?}");
    }
}

#[test]
fn a_dial_that_is_let_go_of_is_called_off_and_a_failure_is_forgotten_after_its_backoff() {
    let mut bench = Bench::new();
    bench.balancer = Balancer::new(
        Config {
            backoff: Backoff {
                jitter: 0.0,
                ..Backoff::default()
            },
            ..calm()
        },
        Box::new(PickFirst::default()),
        Vec::new(),
        1,
    );
    let words = bench.resolve(list([1, 2, 3]));
    assert_eq!(words[4..], ["connect #0 0.0 10.0.0.1:1"]);
    bench.at(5).timeout();
    assert_eq!(bench.due(), Some(250));
    assert_eq!(
        bench.at(250).timeout(),
        ["publish CONNECTING", "connect #1 1.0 10.0.0.1:2"]
    );
    assert_eq!(bench.at(260).failed(0), ["publish CONNECTING", "resolve"]);
    assert_eq!(states(&bench), [TransientFailure, Connecting, Idle]);
    // 250 ms after the second, the third; then the second is there.
    assert_eq!(
        bench.at(500).timeout(),
        ["publish CONNECTING", "connect #2 2.0 10.0.0.1:3"]
    );
    assert_eq!(
        bench.at(501).connected(1),
        ["publish READY", "abandon #2", "resolve"][..2]
    );
    assert_eq!(states(&bench), [TransientFailure, Ready, Idle]);
    bench.at(1_260).timeout();
    assert_eq!(states(&bench), [Idle, Ready, Idle], "its backoff is over");
    // Lost: the search begins with the first again.
    let words = bench.at(60_000).lost(1);
    assert!(
        words.contains(&"connect #3 0.0 10.0.0.1:1".to_owned()),
        "{words:?}"
    );
}

#[test]
fn the_old_policy_serves_until_the_new_one_can() {
    let old = Puppet::new(Some(A), Connect::Exactly(vec![A]));
    let mut bench = Bench::new();
    bench.balancer = Balancer::new(calm(), Box::new(old), Vec::new(), 1);
    bench.resolve(list([1, 2]));
    bench.at(1).connected(0);
    bench.at(100).timeout();
    bench.events();
    let new = Puppet::new(None, Connect::Exactly(vec![B]));
    let serves = new.serves.clone();
    bench.balancer.handle_policy(0, Box::new(new));
    // Both have the connections they wish for.
    assert_eq!(
        bench.at(110).timeout(),
        ["publish READY", "connect #1 1.0 10.0.0.1:2"]
    );
    assert_eq!(bench.events(), ["1.0 IDLE CONNECTING"]);
    assert_eq!(picked(&mut bench), Some(A));
    *serves.lock().unwrap() = Some(B);
    let words = bench.at(200).connected(1);
    assert!(words.contains(&"retire #0".to_owned()), "{words:?}");
    assert_eq!(
        bench.events(),
        ["1.0 CONNECTING READY", "0.0 READY IDLE", "switched 0"]
    );
    assert_eq!(picked(&mut bench), Some(B));
}

#[test]
fn a_switch_before_the_first_list_publishes_nothing() {
    let mut bench = Bench::new();
    let first = Box::new(RoundRobin::default());
    bench.balancer = Balancer::new(calm(), first, Vec::new(), 1);
    bench
        .balancer
        .handle_policy(0, Box::new(PickFirst::default()));
    assert_eq!(bench.timeout(), [""; 0], "calls wait, and none fails");
    assert_eq!(bench.due(), None);
    let words = bench.resolve(list([1, 2]));
    let connects = words.iter().filter(|word| word.starts_with("connect"));
    assert_eq!(connects.count(), 1, "by the new one: {words:?}");
    assert!(bench.events().contains(&"switched 0".to_owned()));
}

/// Whom the pickers of the next publication name.
fn picked(bench: &mut Bench) -> Option<EndpointId> {
    bench.balancer.stale = Stale::Urgent;
    let mut picked = None;
    while let Some(action) = bench.balancer.poll_action(bench.now) {
        if let Action::Publish(publication) = action {
            let info = PickInfo {
                now: bench.now,
                random: 1,
                path: "/",
                hash: None,
                avoid: &[],
            };
            picked = match publication.pickers[0].pick(&info) {
                PickResult::Pick(id) => Some(id),
                _ => None,
            };
        }
    }
    picked
}

#[test]
fn a_third_takes_the_place_of_a_second_that_waits_and_a_policy_that_fails_makes_way() {
    let old = Puppet::new(Some(A), Connect::All);
    let old_serves = old.serves.clone();
    let mut bench = connected(old, Vec::new());
    let second = Puppet::new(None, Connect::All);
    bench.balancer.handle_policy(0, Box::new(second.clone()));
    bench.at(105).timeout();
    let third = Puppet::new(None, Connect::All);
    bench.balancer.handle_policy(0, Box::new(third));
    bench.at(110).timeout();
    *second.serves.lock().unwrap() = Some(B);
    assert_eq!(picked(&mut bench), Some(A));
    assert_eq!(bench.events(), [""; 0]);
    *old_serves.lock().unwrap() = None;
    assert_eq!(picked(&mut bench), None);
    assert_eq!(bench.events(), ["switched 0"], "neither serves: it goes");
    assert!(
        !bench
            .balancer
            .handle_policy(1, Box::new(RoundRobin::default()))
    );
}

#[test]
fn calls_in_flight_latencies_and_penalties_outlast_the_switch() {
    let mut bench = connected(LeastRequest::default(), Vec::new());
    let [a, b] = &loads(&bench)[..] else {
        panic!("two endpoints");
    };
    let end = |loads: &Loads, admission, code, millis| {
        let completion = Completion {
            outcome: Outcome::Answered(code),
            latency: Duration::from_millis(millis),
        };
        let _ = loads.end(
            0,
            &completion,
            admission,
            Timestamp::from_millis(101),
            Timestamp::from_millis(101 + millis),
        );
    };
    let under_way = [a.begin(), a.begin(), a.begin()];
    end(a, a.begin(), StatusCode::OK, 10);
    for _ in 0..5 {
        end(b, b.begin(), StatusCode::UNAVAILABLE, 1);
    }
    assert!(b.of(0).penalised());
    bench
        .balancer
        .handle_policy(0, Box::new(Adaptive::default()));
    bench.at(200).timeout();
    assert_eq!(bench.events(), ["switched 0"]);
    assert_eq!((a.in_flight(), b.in_flight()), (3, 0));
    assert!(a.of(0).estimate().is_some(), "known from before");
    assert!(b.of(0).penalised() && !a.of(0).penalised());
    assert_eq!(picked(&mut bench), Some(A), "the penalty counts");
    bench
        .balancer
        .handle_policy(0, Box::new(LeastRequest::full_scan()));
    bench.at(300).timeout();
    assert_eq!(a.of(0).estimate(), None);
    assert!(b.of(0).penalised());
    assert_eq!(picked(&mut bench), Some(A));
    for admission in under_way {
        end(a, admission, StatusCode::OK, 10);
    }
    assert_eq!((a.in_flight(), a.picks()), (0, 4));
}

/// Does as another does, and panics when it is told to.
#[derive(Clone, Debug)]
struct Fickle {
    panics: Arc<Mutex<bool>>,
    like: Puppet,
}

impl Fickle {
    fn new(like: Puppet) -> Self {
        Self {
            panics: Arc::default(),
            like,
        }
    }

    fn tell(&self, panics: bool) {
        *self.panics.lock().unwrap() = panics;
    }
}

impl Policy for Fickle {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        let panics = *self.panics.lock().unwrap();
        assert!(!panics, "as it was told to");
        self.like.update(members, now, rng)
    }
}

#[test]
fn what_a_policy_said_last_holds_while_it_panics_and_it_is_asked_again() {
    let only_a = Connect::Only(vec![A]);
    let fickle = Fickle::new(Puppet::new(Some(A), only_a));
    let mut bench = Bench::new();
    bench.balancer = Balancer::new(calm(), Box::new(fickle.clone()), Vec::new(), 1);
    bench.resolve(list([1, 2]));
    bench.at(1).connected(0);
    bench.at(100).timeout();
    bench.events();
    fickle.tell(true);
    let words = bench.at(200).resolve(list([1, 2, 3]));
    assert!(words.contains(&"publish READY".to_owned()), "{words:?}");
    let connects = words.iter().filter(|word| word.starts_with("connect"));
    assert_eq!(connects.count(), 0, "its wish holds, too: {words:?}");
    assert!(bench.events().contains(&"panicked 0".to_owned()));
    assert_eq!(picked(&mut bench), Some(A));
    bench.events();
    assert_eq!(bench.due(), Some(1_200), "a second after the last time");
    bench.at(1_200).timeout();
    assert_eq!(bench.events(), ["panicked 0"]);
    fickle.tell(false);
    *fickle.like.serves.lock().unwrap() = Some(B);
    bench.at(2_200).timeout();
    assert_eq!(bench.events(), [""; 0]);
    assert_eq!(bench.due(), None);
    assert_eq!(picked(&mut bench), Some(B));
}

#[test]
fn a_policy_that_has_never_answered_lets_calls_fail_and_connects_to_all() {
    let fickle = Fickle::new(Puppet::new(Some(A), Connect::Only(Vec::new())));
    fickle.tell(true);
    let mut bench = Bench::new();
    bench.balancer = Balancer::new(calm(), Box::new(fickle), Vec::new(), 1);
    let words = bench.resolve(list([1, 2]));
    let connects = words.iter().filter(|word| word.starts_with("connect"));
    assert_eq!(connects.count(), 2, "{words:?}");
    assert_eq!(picked(&mut bench), None);
}

#[test]
fn a_policy_that_panics_takes_nobodys_place() {
    let mut bench = connected(Puppet::new(Some(A), Connect::All), Vec::new());
    let fickle = Fickle::new(Puppet::new(Some(B), Connect::All));
    fickle.tell(true);
    bench.balancer.handle_policy(0, Box::new(fickle.clone()));
    bench.at(105).timeout();
    assert_eq!(bench.events(), ["panicked 0"]);
    assert_eq!(bench.due(), None);
    fickle.tell(false);
    assert_eq!(picked(&mut bench), Some(A), "it was let go of");
    assert_eq!(bench.events(), [""; 0]);
}
