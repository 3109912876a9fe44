//! G3, G4 and G6: who is ejected, who never is, and how one comes back.

use std::time::Duration;

use equipoise::balancer::{MaxEjection, OutlierDetection, Panic, Standing};
use equipoise::policy::RoundRobin;
use equipoise::{Blame, Classifier, StatusCode};
use tonic::Code;

use super::seen::{Sight, ejected, on, share, while_doing};
use super::{detection, judged, load};
use crate::balanced::{clean, ready, report};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::ledger::{Execution, Verdict, audit};
use crate::rig::load::Load;
use crate::rig::now;
use crate::{Fleet, status, until};

const SECOND: Duration = Duration::from_secs(1);

/// Servers of 1 ms; the first `failing` of them fail each call.
fn fleet(size: u8, failing: usize, code: Code) -> Fleet {
    let mut options: Vec<Options> = (1..=size)
        .map(|n| Options {
            listen: ([127, 0, 0, n + 1], 0).into(),
            work: Duration::from_millis(1),
            ..Options::new(&format!("b{n}"))
        })
        .collect();
    for options in &mut options[..failing] {
        options.fail = Some((code, 1_000));
    }
    Fleet::of(options)
}

/// A load over a fleet, by turns, and what was seen of it.
struct Ran {
    verdict: Verdict,
    executions: Vec<Execution>,
    sights: Vec<Sight>,
}

async fn run(
    fleet: Fleet,
    detection: OutlierDetection,
    panic: Panic,
    classifier: Classifier,
) -> Ran {
    let before = Footprint::take();
    let addresses = fleet.addresses();
    let builder = judged(&addresses)
        .outlier_detection(detection)
        .panic(panic)
        .classifier(classifier);
    let channel = ready(builder.policy(RoundRobin::default())).await;
    let load = load(1_000);
    let (calls, sights) = while_doing(&channel, &addresses, load.run(&channel)).await;
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_true();
    clean(channel, (), &before).await;
    drop(fleet);
    Ran {
        verdict,
        executions,
        sights,
    }
}

fn most_out(sights: &[Sight]) -> usize {
    let out = sights.iter().map(Sight::out);
    out.max().expect("there is one sight at least")
}

/// The share of `server` among the last half of the calls that were taken.
fn late_share(ran: &Ran, server: &str) -> f64 {
    super::seen::share_of_calls(server, &ran.executions, 501..u64::MAX)
}

/// G3: by default not all are ejected, and when too few are left all are used.
#[test]
fn g3_never_all_are_ejected_and_all_are_used_when_too_few_are_left() {
    alone(async {
        let usual = Classifier::default();
        let fleet = fleet(3, 3, Code::Unavailable);
        let ran = run(fleet, detection(), Panic::default(), usual).await;
        assert_eq!(most_out(&ran.sights), 2, "half of three, rounded up");
        // Each call was sent, and the server's own word came back.
        let calls = ran.verdict.calls;
        assert_eq!(ran.verdict.executed, [0, calls, 0], "{}", ran.verdict);
        assert_eq!(ran.verdict.code(Code::Unavailable), calls);
        for server in ["b1", "b2", "b3"] {
            let share = late_share(&ran, server);
            assert!(share >= 0.2, "{server} had {share}: {}", ran.verdict);
        }
    });
}

/// Of many, as many as may be and not one more.
#[test]
fn g3_no_more_are_ejected_than_may_be() {
    alone(async {
        for (size, most, percent) in [(5, 1, 20), (5, 3, 60), (4, 3, 100), (5, 0, 0)] {
            let usual = Classifier::default();
            let detection = detection().with_max_ejection(MaxEjection::Share(percent));
            let fleet = fleet(size, size.into(), Code::Internal);
            let ran = run(fleet, detection, Panic::use_all_below(0), usual).await;
            assert_eq!(most_out(&ran.sights), most, "{percent} % of {size}");
        }
    });
}

/// By option calls fail at once when too few are left.
#[test]
fn g3_calls_fail_at_once_by_option() {
    alone(async {
        let usual = Classifier::default();
        let fleet = fleet(3, 3, Code::Unavailable);
        let ran = run(fleet, detection(), Panic::fail_below(50), usual).await;
        let [unsent, sent, more] = ran.verdict.executed;
        // Five in a row on each of two, and what was under way.
        assert!(sent <= 100, "{}", ran.verdict);
        let calls = ran.verdict.calls;
        assert_eq!((unsent + sent, more), (calls, 0));
        assert_eq!(ran.verdict.code(Code::Unavailable), calls);
        let told = ran.verdict.messages.values().cloned().collect::<String>();
        println!("  told: {told}");
    });
}

/// The control: without panic the last one gets all calls.
#[test]
fn g3_control_without_panic_the_last_one_is_buried() {
    alone(async {
        let usual = Classifier::default();
        let fleet = fleet(3, 3, Code::Unavailable);
        let ran = run(fleet, detection(), Panic::use_all_below(0), usual).await;
        let shares = ["b1", "b2", "b3"].map(|server| late_share(&ran, server));
        let most = shares.into_iter().fold(0.0, f64::max);
        assert!(most >= 0.9, "{shares:?}");
    });
}

/// The only one is never ejected, unless gRPC's way to count is asked for.
#[test]
fn g3_the_only_one_is_never_ejected() {
    alone(async {
        let usual = Classifier::default();
        let calm = Panic::use_all_below(0);
        let ran = run(fleet(1, 1, Code::Unknown), detection(), calm, usual).await;
        assert_eq!(most_out(&ran.sights), 0);
        let calls = ran.verdict.calls;
        assert_eq!(ran.verdict.executed, [0, calls, 0], "{}", ran.verdict);
        // The control: by A50's arithmetic it is.
        let a50 = detection().with_max_ejection(MaxEjection::A50(10));
        let ran = run(fleet(1, 1, Code::Unknown), a50, calm, usual).await;
        assert_eq!(most_out(&ran.sights), 1);
        assert!(ran.verdict.executed[0] > calls * 9 / 10, "{}", ran.verdict);
    });
}

/// G6: answers about the request say nothing of the server.
#[test]
fn g6_application_errors_eject_nobody() {
    alone(async {
        for code in [Code::NotFound, Code::InvalidArgument] {
            let (usual, panic) = (Classifier::default(), Panic::default());
            let ran = run(fleet(3, 1, code), detection(), panic, usual).await;
            assert_eq!(most_out(&ran.sights), 0, "{code:?}");
            let on_b1 = ran.verdict.server("b1");
            assert_eq!(ran.verdict.code(code), on_b1, "{}", ran.verdict);
            let third = ran.verdict.calls / 3;
            assert!(on_b1.abs_diff(third) <= 11, "a third: {}", ran.verdict);
        }
    });
}

/// The control: the same answers of the same servers, for a service that says they are the server's fault.
#[test]
fn g6_control_where_they_are_the_servers_fault_they_eject() {
    alone(async {
        for code in [Code::NotFound, Code::InvalidArgument] {
            let strict = Classifier::default();
            let strict = strict.with(StatusCode::new(code as u8), Blame::Server);
            let panic = Panic::default();
            let ran = run(fleet(3, 1, code), detection(), panic, strict).await;
            assert!(ejected(&ran.sights, 0).is_some(), "{code:?}");
            assert!(ran.verdict.server("b1") <= 50, "{}", ran.verdict);
        }
    });
}

/// What a server that was ejected and has healed was given.
struct Returned {
    out: Duration,
    /// Calls that began there while it was on probation, until the first was answered.
    tried: usize,
    /// Its shares of the first second after it was admitted, and of a second after the window.
    first: f64,
    fair: f64,
}

/// Ejects the first of three, heals it, and lets it come back with this `window`.
async fn returns(base: Duration, window: Duration) -> Returned {
    let before = Footprint::take();
    let mut fleet = fleet(3, 1, Code::Unavailable);
    let addresses = fleet.addresses();
    let detection = detection()
        .with_base_ejection_time(base)
        .with_slow_start(window);
    let builder = judged(&addresses).outlier_detection(detection);
    let channel = ready(builder.policy(RoundRobin::default())).await;
    let load = Load {
        rate: 500,
        ..Load::default()
    };
    let running = load.run_until_stopped(&channel);
    let standing = || status(&channel, addresses[0]).standing;
    until("it is ejected", || {
        matches!(standing(), Standing::Ejected { .. })
    })
    .await;
    let ejected = now();
    // Well again, but slow for now, so that there is time for more than one call to be tried.
    fleet.tell(0, |options| {
        options.fail = None;
        options.work = Duration::from_millis(150);
    });
    until("it is on probation", || standing() == Standing::Probation).await;
    let probation = now();
    until("it is admitted", || standing() == Standing::Admitted).await;
    let admitted = now();
    fleet.tell(0, |options| options.work = Duration::from_millis(1));
    tokio::time::sleep(window + 2 * SECOND).await;
    let end = now();
    let calls = running.stop().await;
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_true();
    assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
    // Five in a row, and those under way.
    assert!(verdict.failed <= 20, "{verdict}");
    let out = ejected + Duration::from_millis(100)..probation - Duration::from_millis(20);
    assert_eq!(on("b1", &executions, &out), 0, "ejected is ejected");
    let first_after = |e: &&Execution| e.server == "b1" && e.start >= out.end;
    let trial = executions
        .iter()
        .filter(first_after)
        .min_by_key(|e| e.start);
    let trial = trial.expect("one call is tried");
    let (answered, code) = trial.end.expect("it was answered");
    assert_eq!(code, Code::Ok);
    let returned = Returned {
        out: probation - ejected,
        tried: on("b1", &executions, &(out.end..answered)),
        first: share("b1", &executions, &(admitted..admitted + SECOND)),
        fair: share("b1", &executions, &(end - SECOND..end)),
    };
    clean(channel, fleet, &before).await;
    returned
}

/// G4: out for the base time, then one call, then few, then a fair share.
#[test]
fn g4_one_that_heals_comes_back_step_by_step() {
    alone(async {
        let returned = returns(SECOND, 2 * SECOND).await;
        let Returned {
            out,
            tried,
            first,
            fair,
        } = returned;
        println!("  first second {first}, after the window {fair}");
        // It is seen a moment late.
        assert!(out >= SECOND - Duration::from_millis(50), "{out:?}");
        report(
            "out beyond the base time",
            out.saturating_sub(SECOND),
            SECOND / 10,
        );
        assert_eq!(tried, 1, "one call at a time");
        assert!(first <= 0.5 / 3.0 && first > 0.0, "{first}");
        assert!((fair - 1.0 / 3.0).abs() <= 0.05, "{fair}");
    });
}

/// The control: without slow start it has its share at once.
#[test]
fn g4_control_without_slow_start_it_has_its_share_at_once() {
    alone(async {
        let returned = returns(SECOND / 2, Duration::ZERO).await;
        assert!(returned.first >= 0.25, "{}", returned.first);
        assert_eq!(returned.tried, 1);
    });
}

/// G4: one that does not heal is out for longer each time, and tried by one call each time.
#[test]
fn g4_one_that_does_not_heal_is_out_for_longer_each_time() {
    alone(async {
        let before = Footprint::take();
        let fleet = fleet(3, 1, Code::Unavailable);
        let base = Duration::from_millis(400);
        let detection = detection().with_base_ejection_time(base);
        let builder = judged(&fleet.addresses()).outlier_detection(detection);
        let channel = ready(builder.policy(RoundRobin::default())).await;
        let load = Load {
            rate: 250,
            ..Load::of(750)
        };
        let calls = load.run(&channel).await;
        let executions = fleet.ledger.executions();
        let verdict = audit(&calls, &executions);
        println!("{verdict}");
        verdict.assert_true();
        let there = executions.iter().filter(|e| e.server == "b1");
        let mut starts: Vec<Duration> = there.map(|e| e.start).collect();
        starts.sort_unstable();
        let gaps = starts.windows(2).map(|pair| pair[1] - pair[0]);
        let gaps: Vec<Duration> = gaps.filter(|&gap| gap >= base - base / 8).collect();
        println!("  {} calls there, gaps {gaps:?}", starts.len());
        // After 0.4 s, 0.8 s and 1.2 s; 3 s have no room for more.
        assert_eq!(gaps.len(), 3, "{starts:?}");
        for (k, gap) in (1..).zip(&gaps) {
            assert!(*gap >= base * k - base / 8, "{k}: {gap:?}");
            assert!(*gap <= base * k + SECOND, "{k}: {gap:?}");
        }
        // Each of those gaps ends in one call.
        assert_eq!(verdict.failed, starts.len(), "{verdict}");
        assert!(starts.len() <= 20, "{starts:?}");
        let trials = starts.len() - starts.iter().filter(|&&s| s < starts[0] + base / 2).count();
        assert_eq!(trials, 3, "one call each time: {starts:?}");
        clean(channel, fleet, &before).await;
    });
}
