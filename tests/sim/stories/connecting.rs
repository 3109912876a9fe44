//! Dials that fail, connections that are lost, and how politely they are made again.

use equipoise::policy::RoundRobin;
use equipoise::{Connectivity, Endpoint, StatusCode, Timestamp};

use super::{at, endpoints, host, world, world_with};
use crate::world::{Dialling, Ending, Request, Settings, World, ms, secs};

/// The gaps between dials follow the published schedule: 0.8 to 1.2 of 1 s, 1.6 s, 2.56 s ..
fn assert_polite(dials: &[Timestamp], lasting: std::time::Duration) {
    let mut wait = 1.0;
    for pair in dials.windows(2) {
        let gap = (pair[1].since(pair[0])).as_secs_f64() - lasting.as_secs_f64();
        assert!(
            (wait * 0.8 - 0.01..wait * 1.2 + 0.01).contains(&gap),
            "{gap} s where {wait} s were due, in {dials:?}"
        );
        wait *= 1.6;
    }
}

/// N1: one of three refuses from the start.
#[test]
fn n1_one_of_three_refuses_from_the_start() {
    let mut world = world(3);
    world.hosts.get_mut(&host(2)).expect("it is there").dialling = Dialling::Refuse;
    world.resolve(endpoints(1..=3));
    world.traffic(ms(6), at(60_000), Request::default());
    world.run_until(at(61_000));
    assert_eq!(
        (world.all_ended(), world.ended(Ending::Ok)),
        (10_000, 10_000)
    );
    assert_eq!(world.share(&host(2), at(0), at(60_000)), 0.0);
    let dials: Vec<_> = world
        .dials_to(&host(2))
        .into_iter()
        .filter(|&t| t < at(60_000))
        .collect();
    assert!(
        (2..=10).contains(&dials.len()),
        "{} dials in 60 s",
        dials.len()
    );
    assert_polite(&dials, ms(0));
    let states: Vec<_> = world
        .endpoints()
        .into_iter()
        .map(|(_, _, state)| state)
        .collect();
    use Connectivity::{Ready, TransientFailure};
    assert_eq!(states, [Ready, TransientFailure, Ready]);
    assert_eq!(
        (
            world.dials_to(&host(1)).len(),
            world.dials_to(&host(3)).len()
        ),
        (1, 1)
    );
}

/// N2: a server dies under load.
#[test]
fn n2_a_server_is_lost() {
    let mut world = world(3);
    world.resolve(endpoints(1..=3));
    world.traffic(ms(1), at(10_000), Request::default());
    world.at(at(5_000), |world| {
        world.hosts.get_mut(&host(2)).expect("it is there").dialling = Dialling::Refuse;
        world.cut(&host(2));
    });
    world.run_until(at(4_999));
    let share = world.share(&host(2), at(1_000), at(4_999));
    assert!(
        (0.32..0.35).contains(&share),
        "the control: it had its share, {share}"
    );
    world.run_until(at(12_000));
    world.assert_clean();
    // Only calls under way on it were hit: at 333 calls/s of 1 ms each that is one or none.
    let hit = world.ended(Ending::Error(StatusCode::UNAVAILABLE));
    assert!(hit <= 5, "{hit} calls were hit");
    assert_eq!(world.ended(Ending::Ok) + hit, world.all_ended());
    assert_eq!(world.share(&host(2), at(5_001), at(12_000)), 0.0);
    assert_eq!(world.balancer.state(), Connectivity::Ready);
}

/// A server that says GOAWAY is left at once and nothing fails: calls under way go on or elsewhere.
#[test]
fn a_rolling_restart_by_goaway_fails_nothing() {
    let mut world = world(3);
    world.resolve(endpoints(1..=3));
    world.traffic(ms(1), at(10_000), Request::default());
    for (n, millis) in [(1, 2_000), (2, 4_000), (3, 6_000)] {
        world.at(at(millis), move |world| world.goaway(&host(n)));
    }
    world.run_until(at(12_000));
    world.assert_clean();
    assert_eq!(
        (world.all_ended(), world.ended(Ending::Ok)),
        (10_000, 10_000)
    );
    assert_eq!(world.dials.len(), 6, "each was redialled once, at once");
}

/// B11: TCP accepts, settings never come.
#[test]
fn b11_settings_never_come() {
    let settings = Settings {
        budget: secs(1),
        ..Settings::new(1)
    };
    let mut world = world_with(settings, 1, Box::new(RoundRobin::default()));
    world.hosts.get_mut(&host(1)).expect("it is there").dialling = Dialling::Hang;
    world.resolve(endpoints([1]));
    world.run_until(at(999));
    assert_eq!(world.balancer.state(), Connectivity::Connecting);
    world.run_until(at(1_000));
    assert_eq!(
        world.balancer.state(),
        Connectivity::TransientFailure,
        "the budget is used up"
    );
    // Calls that do not wait for readiness are told so at once, the others wait.
    world.call(Request::default());
    assert_eq!(world.ended(Ending::NoEndpoint), 1);
    world.call(Request {
        wait_for_ready: true,
        deadline: secs(2),
        ..Request::default()
    });
    world.run_until(at(60_000));
    assert_eq!(world.ended(Ending::Deadline), 1);
    assert_eq!(
        world.picks.len(),
        0,
        "nothing is sent where no settings were seen"
    );
    let dials = world.dials_to(&host(1));
    assert!(
        (2..=10).contains(&dials.len()),
        "{} dials in 60 s",
        dials.len()
    );
    assert_polite(&dials, secs(1));
}

/// H13: the server closes every connection as soon as it is made.
#[test]
fn a_server_that_closes_each_connection_is_not_dialled_in_a_loop() {
    for closes_after in [0, 1, 200] {
        let mut world = world(1);
        let host_1 = world.hosts.get_mut(&host(1)).expect("it is there");
        host_1.dialling = Dialling::CloseAfter(ms(closes_after));
        world.resolve(endpoints([1]));
        world.traffic(ms(10), at(60_000), Request::default());
        world.run_until(at(60_000));
        let dials = world.dials_to(&host(1));
        assert!(
            (2..=10).contains(&dials.len()),
            "{} dials in 60 s",
            dials.len()
        );
        // The first short-lived connection is let pass, since it may be a restart.
        assert!(
            dials[1].since(dials[0]) < ms(closes_after + 50),
            "{dials:?}"
        );
        assert_polite(&dials[1..], ms(closes_after));
    }
}

/// nginx closes each connection after so many calls: under load that is soon, and no reason to wait.
#[test]
fn a_server_that_closes_each_connection_after_many_calls_is_redialled_at_once() {
    for (every, dials) in [(ms(1), 45..=60), (ms(4), 2..=8)] {
        let mut world = world(1);
        let host_1 = world.hosts.get_mut(&host(1)).expect("it is there");
        host_1.dialling = Dialling::CloseAfter(ms(200));
        world.resolve(endpoints([1]));
        world.traffic(every, at(10_000), Request::default());
        world.run_until(at(10_000));
        let dialled = world.dials_to(&host(1)).len();
        assert!(dials.contains(&dialled), "every {every:?}: {dialled} dials");
        let refused = world.ended(Ending::NoEndpoint);
        assert_eq!(refused == 0, every == ms(1), "{refused} calls found nobody");
    }
}

/// One that holds its connections for a moment only is redialled at once, and the rate still bounds it.
#[test]
fn the_connect_rate_bounds_a_flood_of_short_connections() {
    let mut world = world(100);
    for host in world.hosts.values_mut() {
        host.dialling = Dialling::CloseAfter(ms(251));
    }
    world.resolve(endpoints(1..=100));
    // The checks of the world count dials in every window of a second.
    world.run_until(at(20_000));
    let dials = world.dials.len();
    assert!(
        (3_800..=4_020).contains(&dials),
        "{dials} dials in 20 s at 200/s"
    );
}

/// 2,000 endpoints at once: paced by the connect rate, and calls need not wait for the last of them.
#[test]
fn two_thousand_endpoints_are_dialled_at_the_connect_rate() {
    let mut world = world(2_000);
    world.resolve(endpoints(1..=2_000));
    world.run_until(at(10));
    assert_eq!(world.balancer.state(), Connectivity::Ready);
    world.traffic(ms(2), at(9_000), Request::default());
    world.run_until(at(5_000));
    assert_eq!(
        world.dials.len(),
        20 + 1_000,
        "a tenth at once, then one each 5 ms"
    );
    world.run_until(at(10_000));
    assert_eq!((world.dials.len(), world.all_ready()), (2_000, true));
    assert_eq!(world.ended(Ending::Ok), world.all_ended());
    // One picker for each 5 ms in which something became ready, and not one for each endpoint.
    assert!(
        world.publications <= 2_010,
        "{} publications",
        world.publications
    );
}

/// One dead address family costs one stagger.
#[test]
fn a_silent_address_costs_a_quarter_of_a_second() {
    let mut world = world(2);
    world.hosts.get_mut(&host(1)).expect("it is there").dialling = Dialling::Hang;
    let both = Endpoint::with_addresses([host(1), host(2)]).expect("there are two");
    world.resolve(vec![both]);
    world.call(Request::default());
    world.run_until_or(at(252), "READY by the second address", World::all_ready);
    world.run_until(at(30_000));
    assert_eq!((world.dials.len(), world.ended(Ending::Ok)), (2, 1));
}
