//! Who is fit to be used: ejection, health and panic as they come together, and a channel that is idle.

use super::*;
use crate::load::{Entrance, Notice};
use crate::report::{Health, Unfit};

const BAD: Health = Health::NotServing(Unfit::SaysSo);

fn judged() -> Config {
    Config {
        outliers: Some(
            OutlierDetection::default()
                .with_success_rate(None)
                .with_failure_percentage(None),
        ),
        ..Config::default()
    }
}

/// A balancer with `count` endpoints that are connected since 1 ms.
fn connected(count: u16, config: Config) -> Bench {
    let mut bench = Bench::with(config);
    bench.resolve(list(1..=count));
    for attempt in 0..u64::from(count) {
        bench.at(1).connected(attempt);
    }
    bench.at(10).timeout();
    bench.events();
    bench
}

fn id(bench: &Bench, at: usize) -> EndpointId {
    bench.balancer.endpoints().nth(at).unwrap().id
}

fn entrance(bench: &Bench, at: usize) -> Entrance {
    bench.balancer.endpoints().nth(at).unwrap().loads.entrance()
}

fn states(bench: &Bench) -> Vec<Connectivity> {
    bench.balancer.endpoints().map(|view| view.state).collect()
}

fn notice(bench: &mut Bench, at: usize, notice: Notice) -> Vec<String> {
    let id = id(bench, at);
    bench.balancer.handle_notice(id, notice, bench.now);
    bench.work()
}

fn health(bench: &mut Bench, at: usize, health: Health) -> Vec<String> {
    let id = id(bench, at);
    bench.balancer.handle_health(id, health, bench.now);
    bench.work()
}

/// The answer of the picker that was published last.
fn answer(bench: &mut Bench) -> Option<PickResult> {
    let mut last = None;
    while let Some(action) = bench.balancer.poll_action(bench.now) {
        if let Action::Publish(publication) = action {
            last = Some(publication.pickers[0].clone());
        }
    }
    let info = PickInfo {
        now: bench.now,
        random: 0,
        path: "/",
        hash: None,
        avoid: &[],
    };
    last.map(|picker| picker.pick(&info))
}

#[test]
fn from_a_run_of_faults_to_probation_and_back() {
    let mut bench = connected(3, judged());
    let ejected = notice(bench.at(1_000), 0, Notice::FaultsInARow);
    assert_eq!(ejected, ["publish READY"], "at once");
    assert_eq!(states(&bench), [TransientFailure, Ready, Ready]);
    assert_eq!(entrance(&bench, 0), Entrance::Shut);
    let events = bench.events();
    assert!(events[0].starts_with("0.0 Ejected"), "{events:?}");
    assert_eq!(events[1], "0.0 READY TRANSIENT_FAILURE");
    // 30 s for the first time.
    bench.at(30_999).timeout();
    assert_eq!(entrance(&bench, 0), Entrance::Shut);
    assert_eq!(bench.due(), Some(31_000));
    bench.at(31_000).timeout();
    assert_eq!(states(&bench), [Ready, Ready, Ready]);
    let loads = bench.balancer.endpoints().next().unwrap().loads.clone();
    let trial = loads.try_begin().unwrap();
    assert!(trial.is_trial() && loads.try_begin().is_none());
    let completion = Completion {
        outcome: Outcome::Answered(StatusCode::OK),
        latency: Duration::from_millis(5),
    };
    let told = loads.end(0, &completion, trial, bench.now, bench.now);
    bench.events();
    // Calls that wait for that one trial hear that there is room for all, though no state has changed.
    bench.at(31_100);
    assert_eq!(notice(&mut bench, 0, told.unwrap()), ["publish READY"]);
    assert_eq!(bench.events(), ["0.0 Admitted"]);
    assert!(!loads.try_begin().unwrap().is_trial());
    assert!(
        loads.spared(bench.now).is_some(),
        "and it is spared at first"
    );
}

/// A stream on which nothing is said may go on for days.
#[test]
fn a_trial_that_lasts_is_not_waited_for() {
    let mut bench = connected(3, judged());
    notice(bench.at(1_000), 0, Notice::FaultsInARow);
    bench.at(31_000).timeout();
    let loads = bench.balancer.endpoints().next().unwrap().loads.clone();
    let lasting = loads.try_begin().unwrap();
    bench.at(41_000).timeout();
    assert_eq!(entrance(&bench, 0), Entrance::Full, "not for long yet");
    assert_eq!(bench.due(), Some(51_000));
    bench.at(51_000).timeout();
    assert_eq!(entrance(&bench, 0), Entrance::Free);
    let another = loads.try_begin().unwrap();
    assert!(another.is_trial() && loads.try_begin().is_none());
    // One that was let in since is another.
    bench.at(61_000).timeout();
    assert_eq!(entrance(&bench, 0), Entrance::Full);
    let end = |admission| {
        let completion = Completion {
            outcome: Outcome::Answered(StatusCode::UNAVAILABLE),
            latency: Duration::from_millis(5),
        };
        loads.end(0, &completion, admission, bench.now, bench.now)
    };
    assert_eq!(end(lasting), None);
    assert_eq!(end(another), Some(Notice::Trial { passed: false }));
}

#[test]
fn a_trial_that_fails_ejects_for_longer() {
    let mut bench = connected(3, judged());
    notice(bench.at(1_000), 0, Notice::FaultsInARow);
    bench.at(31_000).timeout();
    notice(bench.at(31_100), 0, Notice::Trial { passed: false });
    assert_eq!(entrance(&bench, 0), Entrance::Shut);
    bench.at(91_099).timeout();
    assert_eq!(entrance(&bench, 0), Entrance::Shut);
    bench.at(91_100).timeout();
    assert_eq!(entrance(&bench, 0), Entrance::Free);
}

#[test]
fn who_leaves_and_returns_is_judged_anew() {
    let mut bench = connected(3, judged());
    notice(bench.at(1_000), 0, Notice::FaultsInARow);
    bench.at(2_000).resolve(list([2, 3]));
    bench.at(3_000).resolve(list([1, 2, 3]));
    let standings: Vec<Standing> = bench.balancer.endpoints().map(|v| v.standing).collect();
    assert_eq!(standings, [Standing::Admitted; 3]);
    assert_eq!(bench.balancer.unusable, 0);
}

/// Two are out of four. Two of the four are exchanged for two others, so there are four at every moment.
#[test]
fn an_exchange_of_endpoints_lets_nobody_back() {
    let config = Config {
        linger: Duration::ZERO,
        ..judged()
    };
    let mut bench = connected(4, config);
    notice(bench.at(1_000), 0, Notice::FaultsInARow);
    notice(bench.at(1_001), 1, Notice::FaultsInARow);
    bench.at(2_000).resolve(list([1, 2, 5, 6]));
    let out = bench
        .balancer
        .endpoints()
        .filter(|v| v.standing != Standing::Admitted);
    assert_eq!(out.count(), 2);
}

#[test]
fn without_an_answer_nobody_is_ready_and_bad_news_shuts_the_gate() {
    let config = Config {
        health: HealthSource::Server,
        panic: Panic::use_all_below(0),
        ..calm()
    };
    let mut bench = connected(2, config);
    assert_eq!(states(&bench), [Connecting, Connecting]);
    assert_eq!(
        entrance(&bench, 0),
        Entrance::Shut,
        "connected, and unasked"
    );
    assert_eq!(health(bench.at(20), 0, Health::Serving), ["publish READY"]);
    assert_eq!(entrance(&bench, 0), Entrance::Free);
    health(bench.at(30), 1, Health::Unchecked);
    assert_eq!(states(&bench), [Ready, Ready]);
    assert_eq!(health(bench.at(31), 0, BAD), ["publish READY"], "at once");
    assert_eq!(states(&bench), [TransientFailure, Ready]);
    // Also to a call that prefers it, or was picked for it a moment ago.
    assert_eq!(entrance(&bench, 0), Entrance::Shut);
    health(bench.at(20_000), 0, Health::Serving);
    assert_eq!(
        (states(&bench)[0], entrance(&bench, 0)),
        (Ready, Entrance::Free)
    );
    // On another connection nothing is known again.
    health(bench.at(20_010), 0, BAD);
    bench.at(21_000).lost(0);
    bench.at(21_001).timeout();
    bench.at(21_010).connected(2);
    assert_eq!(states(&bench)[0], Connecting);
}

#[test]
fn in_panic_the_ejected_are_used_and_those_who_say_so_are_not() {
    let half = MaxEjection::Share(100);
    let config = Config {
        outliers: judged().outliers.map(|o| o.with_max_ejection(half)),
        health: HealthSource::Server,
        ..Config::default()
    };
    let mut bench = connected(4, config);
    for at in 0..4 {
        health(bench.at(20), at, Health::Serving);
    }
    health(bench.at(1_000), 0, BAD);
    notice(bench.at(1_001), 1, Notice::FaultsInARow);
    assert_eq!(
        states(&bench),
        [TransientFailure, TransientFailure, Ready, Ready],
        "half can be used"
    );
    bench.events();
    notice(bench.at(1_002), 2, Notice::FaultsInARow);
    assert_eq!(states(&bench), [TransientFailure, Ready, Ready, Ready]);
    let free = [
        Entrance::Shut,
        Entrance::Free,
        Entrance::Free,
        Entrance::Free,
    ];
    assert_eq!([0, 1, 2, 3].map(|at| entrance(&bench, at)), free);
    assert!(bench.events().contains(&"panic true: 1 of 4".to_owned()));
    // One is well again: half can be used, and those ejected are out as before.
    health(bench.at(15_000), 0, Health::Serving);
    assert_eq!(
        states(&bench),
        [Ready, TransientFailure, TransientFailure, Ready]
    );
    assert_eq!(entrance(&bench, 1), Entrance::Shut);
    assert!(bench.events().contains(&"panic false: 2 of 4".to_owned()));
}

#[test]
fn health_of_the_port_alone_is_overridden_in_panic() {
    for (source, over, expected) in [
        (HealthSource::Port, false, Ready),
        (HealthSource::Server, false, TransientFailure),
        (HealthSource::Server, true, Ready),
    ] {
        let config = Config {
            health: source,
            panic: Panic::default().over_not_serving(over),
            ..calm()
        };
        let mut bench = connected(1, config);
        health(bench.at(20), 0, BAD);
        assert_eq!(states(&bench), [expected], "{source:?} {over}");
    }
}

#[test]
fn a_panic_that_fails_calls_says_so_until_it_is_over() {
    let config = Config {
        health: HealthSource::Server,
        panic: Panic::fail_below(60),
        ..calm()
    };
    let mut bench = connected(3, config);
    for at in 0..3 {
        health(bench.at(20), at, Health::Serving);
    }
    health(bench.at(1_000), 0, BAD);
    assert_eq!(bench.balancer.state(), Ready, "two of three are enough");
    let id = id(&bench, 1);
    bench
        .balancer
        .handle_health(id, BAD, Timestamp::from_millis(1_001));
    bench.at(1_001);
    assert_eq!(
        answer(&mut bench),
        Some(PickResult::Fail),
        "one is ready, and not used"
    );
    assert_eq!(bench.balancer.state(), TransientFailure);
    bench.at(20_000);
    bench.balancer.handle_health(id, Health::Serving, bench.now);
    assert!(matches!(answer(&mut bench), Some(PickResult::Pick(_))));
    assert_eq!(bench.balancer.state(), Ready);
}

#[test]
fn asleep_it_lets_go_keeps_its_list_and_connects_again_when_it_is_woken() {
    let mut bench = connected(2, calm());
    bench
        .at(60_000)
        .balancer
        .handle_idle(Timestamp::from_millis(60_000));
    let mut words = bench.work();
    words.sort();
    assert_eq!(words, ["publish IDLE", "retire #0", "retire #1"]);
    assert_eq!(bench.due(), None, "asleep");
    // Lists come and go, late calls wish for endpoints, and nobody is dialled.
    let words = bench.at(61_000).resolve(list([2, 3]));
    assert!(words.contains(&"publish IDLE".to_owned()), "{words:?}");
    assert!(
        !words.iter().any(|word| word.starts_with("connect")),
        "{words:?}"
    );
    let id = id(&bench, 0);
    bench.balancer.handle_wanted(id, bench.now);
    assert_eq!(bench.work(), [""; 0]);
    bench.at(62_000).balancer.handle_awake();
    let words = bench.work();
    let dials = words.iter().filter(|word| word.starts_with("connect"));
    assert_eq!(dials.count(), 2, "{words:?}");
    assert!(
        words.contains(&"publish CONNECTING".to_owned()),
        "{words:?}"
    );
}

#[test]
fn woken_before_its_first_list_it_lets_calls_wait() {
    let mut bench = Bench::new();
    bench.balancer.handle_idle(Timestamp::from_millis(1_000));
    bench.at(1_000);
    assert_eq!(
        answer(&mut bench),
        Some(PickResult::Queue { connect: None })
    );
    assert_eq!(bench.balancer.state(), Idle);
    bench.at(2_000).balancer.handle_awake();
    assert_eq!(
        answer(&mut bench),
        Some(PickResult::Queue { connect: None })
    );
    assert_eq!(bench.balancer.state(), Connecting);
}
