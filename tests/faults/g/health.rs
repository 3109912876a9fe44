//! G7 and G8: what servers say of themselves, and what they do not.

use std::time::Duration;

use equipoise::balancer::Panic;
use equipoise::policy::RoundRobin;
use equipoise::{Builder, Channel, Connectivity, Health, HealthCheck, Unfit};
use tonic::Code;

use super::seen::{on, while_doing};
use crate::balanced::{clean, over, ready, report};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::health::Word;
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::rig::now;
use crate::{Fleet, reference, status, until};

/// Three servers of 1 ms that serve; the first says something else of itself, or has nobody to ask.
fn fleet(first: Option<Word>) -> Fleet {
    let mut options = Options::three(Duration::from_millis(1));
    for options in &mut options {
        options.health = Some(Word::Serving);
    }
    options[0].health = first;
    Fleet::of(options.into())
}

/// A channel by turns that asks the servers how they are.
fn asking(fleet: &Fleet) -> Builder<Channel> {
    reference(&fleet.addresses())
        .policy(RoundRobin::default())
        .health_check(HealthCheck::default())
}

fn slowly() -> Load {
    Load {
        rate: 500,
        ..Load::of(500)
    }
}

/// The health of the first server comes to what `expected` says.
async fn until_first(fleet: &Fleet, channel: &Channel, expected: impl Fn(&Health) -> bool) {
    let first = fleet.addresses()[0];
    until("the first is what it says", || {
        expected(&status(channel, first).health)
    })
    .await;
    let others = &fleet.addresses()[1..];
    until("the others are ready", || {
        let mut others = others.iter();
        others.all(|&other| status(channel, other).state == Connectivity::Ready)
    })
    .await;
}

/// Nobody notices, and the first server takes as many calls as `expected` says.
async fn unnoticed(
    fleet: Fleet,
    channel: Channel,
    before: &Footprint,
    expected: std::ops::RangeInclusive<usize>,
) {
    // A state is shown up to 5 ms before calls heed it.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let load = slowly();
    let verdict = fleet.ledger.audit(&load.run(&channel).await);
    println!("{verdict}");
    verdict.assert_unnoticed();
    assert!(expected.contains(&verdict.server("b1")), "{verdict}");
    clean(channel, fleet, before).await;
}

/// Takes no calls from NOT_SERVING to SERVING; `watched` or not.
async fn says_no_for_a_while(watched: bool) {
    let before = Footprint::take();
    let mut fleet = fleet(Some(Word::Serving));
    let first = fleet.addresses()[0];
    let builder = match watched {
        true => asking(&fleet),
        false => reference(&fleet.addresses()).policy(RoundRobin::default()),
    };
    let channel = ready(builder).await;
    let running = slowly().run_until_stopped(&channel);
    tokio::time::sleep(Duration::from_millis(300)).await;
    fleet.tell(0, |options| options.health = Some(Word::NotServing));
    let told = now();
    if watched {
        let no = Health::NotServing(Unfit::SaysSo);
        until("it is heard", || status(&channel, first).health == no).await;
        assert_eq!(
            status(&channel, first).state,
            Connectivity::TransientFailure
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    } else {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let picks = status(&channel, first).picks;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let picked = status(&channel, first).picks - picks;
    let back = now();
    fleet.tell(0, |options| options.health = Some(Word::Serving));
    until("it is ready", || {
        status(&channel, first).state == Connectivity::Ready
    })
    .await;
    let took = now() - back;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let calls = running.stop().await;
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_unnoticed();
    if watched {
        assert_eq!(picked, 0, "after NOT_SERVING was heard");
        let mut there = executions.iter().filter(|e| e.server == "b1");
        let last = there.clone().filter(|e| e.start < back).map(|e| e.start);
        let late = last.max().expect("it had calls").saturating_sub(told);
        report("calls after NOT_SERVING", late, Duration::from_millis(100));
        // The connection is young: it has yet to show that it is steady.
        report("calls after SERVING", took, Duration::from_millis(1_100));
        assert!(there.any(|e| e.start > back), "and has calls again");
    } else {
        assert!(picked >= 70, "a third of 250: {picked}");
        assert!(fleet.ledger.asked("b1").is_empty(), "nobody asked it");
    }
    clean(channel, fleet, &before).await;
}

/// G7: who says NOT_SERVING has no calls until it says SERVING.
#[test]
fn g7_not_serving_means_no_calls() {
    alone(says_no_for_a_while(true));
}

/// The control: who is not asked keeps its calls.
#[test]
fn g7_control_unasked_it_keeps_its_calls() {
    alone(says_no_for_a_while(false));
}

/// G7: who does not know the service has no calls.
#[test]
fn g7_a_service_that_is_unknown_is_not_served() {
    alone(async {
        let before = Footprint::take();
        let fleet = fleet(Some(Word::UnknownService));
        let check = HealthCheck::of_service("equipoise.demo.v1.Greeter").expect("a name");
        let channel = asking(&fleet)
            .health_check(check)
            .connect()
            .await
            .expect("two serve");
        let unknown = Health::NotServing(Unfit::UnknownService);
        until_first(&fleet, &channel, |health| *health == unknown).await;
        unnoticed(fleet, channel, &before, 0..=0).await;
    });
}

/// G7: who has no health service counts as healthy.
#[test]
fn g7_without_a_health_service_it_is_healthy() {
    alone(async {
        let before = Footprint::take();
        let fleet = fleet(None);
        let channel = ready(asking(&fleet)).await;
        until_first(&fleet, &channel, |health| *health == Health::Unchecked).await;
        unnoticed(fleet, channel, &before, 150..=180).await;
    });
}

/// G7: who says nothing has no calls until it does.
#[test]
fn g7_silence_is_no_yes() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = fleet(Some(Word::Silence));
        let first = fleet.addresses()[0];
        let channel = asking(&fleet).build().expect("in range");
        until("it is asked", || !fleet.ledger.asked("b1").is_empty()).await;
        until_first(&fleet, &channel, |health| *health == Health::Unknown).await;
        assert_eq!(status(&channel, first).state, Connectivity::Connecting);
        let load = slowly();
        let verdict = fleet.ledger.audit(&load.run(&channel).await);
        println!("{verdict}");
        verdict.assert_unnoticed();
        assert_eq!(verdict.server("b1"), 0, "{verdict}");
        fleet.tell(0, |options| options.health = Some(Word::Serving));
        until_first(&fleet, &channel, |health| *health == Health::Serving).await;
        let first_of_these = load.calls + 1;
        let load = Load {
            first: first_of_these,
            ..slowly()
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        let calls = load.run(&channel).await;
        let executions = fleet.ledger.executions();
        let again = executions.iter().filter(|e| e.id >= first_of_these);
        let again = again.filter(|e| e.server == "b1").count();
        assert!((150..=180).contains(&again), "{again}");
        assert_eq!(crate::failed_from(&calls, first_of_these), 0);
        clean(channel, fleet, &before).await;
    });
}

/// G7: who cuts each watch is asked again ever more rarely, and nobody notices.
#[test]
fn g7_watches_that_are_cut_are_opened_again_with_pauses() {
    alone(async {
        let before = Footprint::take();
        let fleet = fleet(Some(Word::Cut(Duration::from_millis(200))));
        // gRPC's own backoff: the bound of ten a minute goes with it.
        let builder = over(&fleet.addresses()).policy(RoundRobin::default());
        let builder = builder.health_check(HealthCheck::default());
        let channel = ready(builder).await;
        let begin = now();
        let load = Load {
            rate: 300,
            ..Load::of(900)
        };
        let verdict = fleet.ledger.audit(&load.run(&channel).await);
        println!("{verdict}");
        verdict.assert_unnoticed();
        let asked = fleet.ledger.asked("b1");
        let after: Vec<Duration> = asked.iter().map(|at| at.saturating_sub(begin)).collect();
        // At 0 s, 0.2 s, about 1.4 s and 3.2 s.
        println!("  asked after {after:?}");
        assert!((2..=5).contains(&asked.len()), "{after:?}");
        assert_eq!(fleet.ledger.asked("b2").len(), 1);
        clean(channel, fleet, &before).await;
    });
}

/// G7: who flaps ten times a second is out until it has calmed down.
#[test]
fn g7_flapping_is_damped() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = fleet(Some(Word::Serving));
        let addresses = fleet.addresses();
        let channel = ready(asking(&fleet)).await;
        let running = slowly().run_until_stopped(&channel);
        let mut words = 0;
        let flapping = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            for _ in 0..20 {
                for word in [Word::NotServing, Word::Serving] {
                    ticks.tick().await;
                    fleet.tell(0, |options| options.health = Some(word));
                    words += 1;
                }
            }
        };
        let ((), sights) = while_doing(&channel, &addresses, flapping).await;
        let verdict = fleet.ledger.audit(&running.stop().await);
        println!("{verdict}");
        verdict.assert_unnoticed();
        let states = sights.iter().map(|sight| sight.endpoints[0].state);
        let mut states: Vec<Connectivity> = states.collect();
        states.dedup();
        println!("  {words} words, states {states:?}");
        // 2 s of it: at most two changes a second.
        assert!((2..=5).contains(&states.len()), "{states:?}");
        // The others were never disturbed.
        let steady = |i: usize| {
            sights
                .iter()
                .all(|s| s.endpoints[i].state == Connectivity::Ready)
        };
        assert!(steady(1) && steady(2), "{sights:?}");
        clean(channel, fleet, &before).await;
    });
}

/// The first so many say NOT_SERVING, and would answer. By `used`, each has its calls all the same; else they go to the
/// others, and fail where there are none.
async fn say_no(noes: usize, panic: Panic, used: bool) {
    let before = Footprint::take();
    let mut fleet = fleet(Some(Word::Serving));
    let addresses = fleet.addresses();
    let channel = ready(asking(&fleet).panic(panic)).await;
    for server in 0..noes {
        fleet.tell(server, |options| options.health = Some(Word::NotServing));
    }
    until("they are heard", || {
        let mut noes = addresses[..noes].iter();
        noes.all(|&a| !status(&channel, a).health.is_serving())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begin = now();
    let calls = slowly().run(&channel).await;
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_true();
    if used {
        verdict.assert_unnoticed();
        for server in ["b1", "b2", "b3"] {
            assert!(on(server, &executions, &(begin..now())) >= 150, "{verdict}");
        }
    } else if noes < 3 {
        verdict.assert_unnoticed();
        for server in &["b1", "b2", "b3"][..noes] {
            assert_eq!(verdict.server(server), 0, "{verdict}");
        }
    } else {
        assert_eq!(verdict.executed, [500, 0, 0], "{verdict}");
        assert_eq!(verdict.code(Code::Unavailable), 500, "{verdict}");
        report(
            "turned away",
            verdict.latency(0.99),
            Duration::from_millis(20),
        );
    }
    clean(channel, fleet, &before).await;
}

/// G8: by option those who all say no are used all the same.
#[test]
fn g8_all_say_no_and_are_used_by_option() {
    alone(say_no(3, Panic::default().over_not_serving(true), true));
}

/// By default who says no means it.
#[test]
fn g8_all_say_no_and_are_believed_by_default() {
    alone(say_no(3, Panic::default(), false));
}

/// The control: one that says no, with the same option, is believed. It was the panic that used them.
#[test]
fn g8_control_one_alone_that_says_no_is_not_used() {
    alone(say_no(1, Panic::default().over_not_serving(true), false));
}
