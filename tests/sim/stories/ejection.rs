//! Who is kept from the calls, for how long, and how they come back.

use std::time::Duration;

use equipoise::balancer::{HealthSource, MaxEjection, Standing};
use equipoise::policy::{Adaptive, LeastRequest, RoundRobin};
use equipoise::{Connectivity, StatusCode};

use super::{Make, at, endpoints, host, world_with};
use crate::judged::Ejection;
use crate::world::{Answers, Ending, Host, Request, Says, Settings, World, ms, secs};

/// Calls that are placed by a key are not kept from those who start slowly.
const KEYLESS: Request = Request {
    deadline: secs(1),
    wait_for_ready: false,
    patience: None,
    keyless: true,
};

fn judged(seed: u64, ejection: Ejection) -> Settings {
    Settings {
        ejection: Some(ejection),
        ..Settings::new(seed)
    }
}

fn answer(world: &mut World, n: u16, answers: Answers) {
    world.hosts.get_mut(&host(n)).expect("it is there").answers = answers;
}

fn failing(after: Duration) -> Answers {
    Answers::Fail(StatusCode::UNAVAILABLE, after)
}

fn standings(world: &World) -> Vec<Standing> {
    let views = world.balancer.endpoints();
    views.map(|view| view.standing).collect()
}

fn ejected(world: &World) -> usize {
    let admitted = |standing: &&Standing| **standing != Standing::Admitted;
    standings(world).iter().filter(admitted).count()
}

/// G1 with ejection: a sinkhole is out after five failures, whatever the policy.
#[test]
fn g1_a_sinkhole_is_ejected() {
    let policies: [(&str, Make); 3] = [
        ("round robin", || Box::new(RoundRobin::default())),
        ("adaptive", || Box::new(Adaptive::default())),
        ("least request", || Box::new(LeastRequest::default())),
    ];
    for (name, policy) in policies {
        let mut world = world_with(judged(1, Ejection::default()), 3, policy());
        for host in world.hosts.values_mut() {
            *host = Host::serving(ms(20));
        }
        answer(&mut world, 2, failing(Duration::from_micros(200)));
        world.resolve(endpoints(1..=3));
        let every = Duration::from_micros(500);
        world.traffic(every, at(10_000), Request::default());
        world.run_until(at(11_000));
        let early = world.share(&host(2), at(500), at(2_000));
        let late = world.share(&host(2), at(2_000), at(10_000));
        assert!(early <= 0.20 && late <= 0.01, "{name}: {early}, {late}");
        world.run_until(at(12_000));
        world.assert_clean();
        if name == "round robin" {
            let failed = world.ended(Ending::Error(StatusCode::UNAVAILABLE));
            assert_eq!(failed, 5, "as many as it takes");
        }
    }
}

/// G3: everybody fails. As many are ejected as may be, never the last; the checks look at every instant.
#[test]
fn g3_all_fail_and_never_all_are_ejected() {
    for count in 1..=20 {
        for percent in [0, 10, 33, 50, 67, 100] {
            let ejection = Ejection {
                most: MaxEjection::Share(percent),
                ..Ejection::default()
            };
            let settings = judged(u64::from(percent), ejection);
            let mut world = world_with(settings, count, Box::new(RoundRobin::default()));
            for n in 1..=count {
                answer(&mut world, n, failing(ms(1)));
            }
            world.resolve(endpoints(1..=count));
            world.traffic(ms(1), at(500), Request::default());
            world.run_until(at(600));
            let all = usize::from(count);
            let cap = ((all * percent as usize).div_ceil(100)).min(all - 1);
            assert_eq!(ejected(&world), cap, "{percent} % of {count}");
            assert_eq!(world.all_ended(), 500, "and calls are made all the same");
            assert_eq!(world.ended(Ending::NoEndpoint), 0);
        }
    }
}

/// G4: a server fails from 1 s to 4 s. It is out for 30 s, answers one trial call, and comes back little by little.
#[test]
fn g4_an_ejected_server_comes_back_little_by_little() {
    let settings = judged(4, Ejection::default());
    let mut world = world_with(settings, 3, Box::new(RoundRobin::default()));
    world.resolve(endpoints(1..=3));
    world.traffic(ms(1), at(60_000), KEYLESS);
    world.at(at(1_000), |world| answer(world, 2, failing(ms(1))));
    world.at(at(4_000), |world| answer(world, 2, Answers::Serve));
    world.run_until(at(1_030));
    let out = standings(&world)[1];
    let Standing::Ejected { until } = out else {
        panic!("{out:?} after thirty calls");
    };
    assert!((at(31_010)..at(31_030)).contains(&until), "{until:?}");
    world.run_until(at(31_000));
    assert_eq!(world.share(&host(2), at(1_030), at(31_000)), 0.0);
    world.run_until(until + ms(30));
    assert_eq!(standings(&world)[1], Standing::Admitted);
    world.run_until(at(61_000));
    let first = world.share(&host(2), until, until + secs(1));
    assert!(first > 0.0 && first <= 0.5 / 3.0, "{first}");
    let then = world.share(&host(2), until + ms(5_100), at(60_000));
    assert!((0.95 / 3.0..1.05 / 3.0).contains(&then), "{then}");
    world.assert_clean();
    assert_eq!(world.checks.bench.all_ejections, 1);
}

/// G4: one that does not get well is out for 30, 60, 90 s and so on up to 300 s, and costs one call each time.
#[test]
fn g4_each_further_time_is_longer() {
    let settings = judged(5, Ejection::default());
    let mut world = world_with(settings, 3, Box::new(RoundRobin::default()));
    answer(&mut world, 2, failing(ms(1)));
    world.resolve(endpoints(1..=3));
    world.traffic(ms(10), at(1_700_000), Request::default());
    let mut now = at(200);
    for times in 1..=11_u32 {
        world.run_until(now);
        let Standing::Ejected { until } = standings(&world)[1] else {
            panic!("not out at {now:?}");
        };
        let begun = until.since(at(0)) - secs(30) * times.min(10);
        assert!(now.since(at(0)) - begun < ms(400), "{until:?} at {now:?}");
        now = until + ms(200);
    }
    assert_eq!(world.checks.bench.all_ejections, 11);
    let failed = world.ended(Ending::Error(StatusCode::UNAVAILABLE));
    assert_eq!(failed, 5 + 10, "five at first, then one trial each time");
}

/// G5: all servers fail 3 % of their calls, for ten minutes.
fn background(count: u16, every: Duration) {
    let settings = judged(u64::from(count), Ejection::default());
    let mut world = world_with(settings, count, Box::new(RoundRobin::default()));
    for n in 1..=count {
        let answers = Answers::Err(30, StatusCode::INTERNAL, ms(1));
        answer(&mut world, n, answers);
    }
    world.resolve(endpoints(1..=count));
    world.traffic(every, at(600_000), Request::default());
    for second in 1..=601 {
        world.run_until(at(1_000 * second));
        world.picks.clear();
    }
    assert_eq!(world.checks.bench.all_ejections, 0);
    let failed = world.ended(Ending::Error(StatusCode::INTERNAL)) as f64;
    let share = failed / world.all_ended() as f64;
    assert!((0.02..0.04).contains(&share), "{share}");
}

#[test]
fn g5_background_errors_at_ten_calls_a_second_eject_nobody() {
    background(3, ms(100));
    background(10, ms(100));
}

#[test]
fn g5_background_errors_at_five_thousand_calls_a_second_eject_nobody_of_three() {
    background(3, Duration::from_micros(200));
}

#[test]
fn g5_background_errors_at_five_thousand_calls_a_second_eject_nobody_of_ten() {
    background(10, Duration::from_micros(200));
}

fn watched(seed: u64) -> World {
    let mut settings = Settings::new(seed);
    settings.config.health = HealthSource::Server;
    let mut world = world_with(settings, 3, Box::new(RoundRobin::default()));
    world.resolve(endpoints(1..=3));
    world.traffic(ms(1), at(60_000), Request::default());
    world
}

/// G7: no call goes to a server that says it is not serving, or no longer says anything, from the moment that
/// this is known; the others have its calls.
#[test]
fn g7_a_server_that_is_not_serving_gets_no_calls() {
    for (seed, says) in [(1, Says::NotServing), (2, Says::Nothing)] {
        let mut world = watched(seed);
        world.at(at(5_000), move |world| world.say(&host(2), says));
        world.at(at(20_000), |world| world.say(&host(2), Says::Serving));
        world.run_until(at(61_000));
        // The word takes a millisecond.
        assert_eq!(world.share(&host(2), at(5_002), at(20_000)), 0.0);
        for (from, to) in [(1_000, 5_000), (20_010, 60_000)] {
            let share = world.share(&host(2), at(from), at(to));
            assert!((0.32..0.35).contains(&share), "{says:?}: {share}");
        }
        assert_eq!(world.ended(Ending::Ok), world.all_ended());
        world.assert_clean();
    }
}

/// G7: a server that changes its mind ten times a second is out after three changes, and back 4 s after the last.
#[test]
fn g7_flapping_is_damped() {
    let mut world = watched(3);
    for n in 0..600 {
        let says = match n % 2 {
            0 => Says::NotServing,
            _ => Says::Serving,
        };
        let when = 20_000 + 50 * n;
        world.at(at(when), move |world| world.say(&host(2), says));
    }
    world.run_until(at(19_900));
    let before = world.checks.bench.all_changes_of_health;
    assert_eq!(before, 3, "each is known to serve");
    world.run_until(at(49_999));
    let changes = world.checks.bench.all_changes_of_health - before;
    assert_eq!(changes, 3, "out, back and out again");
    assert_eq!(world.share(&host(2), at(20_110), at(49_999)), 0.0);
    // The last word is that of 49,950.
    world.run_until(at(53_960));
    let states: Vec<_> = world
        .endpoints()
        .into_iter()
        .map(|(.., state)| state)
        .collect();
    assert_eq!(states, [Connectivity::Ready; 3]);
    world.run_until(at(61_000));
    assert_eq!(world.ended(Ending::Ok), world.all_ended());
    world.assert_clean();
}

/// G19: one endpoint joins two, and later another one joins these. The old ones never get more than before, and the new
/// one gets more from second to second, from a tenth of its share on.
#[test]
fn g19_newcomers_start_slowly_and_no_old_one_surges() {
    let mut settings = Settings::new(19);
    settings.config.slow_start = secs(10);
    let mut world = world_with(settings, 4, Box::new(RoundRobin::default()));
    world.resolve(endpoints(1..=2));
    world.traffic(Duration::from_micros(500), at(60_000), KEYLESS);
    world.at(at(10_000), |world| world.resolve(endpoints(1..=3)));
    world.at(at(40_000), |world| world.resolve(endpoints(1..=4)));
    world.run_until(at(61_000));
    for (joined, n) in [(10_100, 3_u16), (40_100, 4)] {
        let fair = 1.0 / f64::from(n);
        let mut last = 0.0;
        for second in 0..10 {
            let from = at(joined + 1_000 * second);
            let share = |n: u16| world.share(&host(n), from, from + secs(1));
            let new = share(n);
            assert!(
                (0.05 * fair..1.03 * fair).contains(&new),
                "{n} has {new} in second {second}"
            );
            assert!(new >= last - 0.01, "{n}: {new} after {last}");
            last = new;
            for old in 1..n {
                let before = 1.0 / f64::from(n - 1);
                let now = share(old);
                assert!(now <= before + 0.01, "{old} has {now}, and had {before}");
                assert!(now >= fair - 0.02, "{old} has {now}");
            }
        }
        let later = at(joined + 11_000);
        let new = world.share(&host(n), later, later + secs(5));
        assert!((0.98 * fair..1.02 * fair).contains(&new), "{n}: {new}");
    }
    world.assert_clean();
}
