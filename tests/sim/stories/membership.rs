//! Lists that change, and who notices.

use equipoise::policy::{Adaptive, LeastRequest, Random, RoundRobin};
use equipoise::{Connectivity, Endpoint, Timestamp};

use super::{Make, at, endpoints, host, world, world_with};
use crate::world::{Dialling, Ending, Host, Request, Settings, ms, secs};

/// D4: the same list a thousand times over, re-ordered, with duplicates.
#[test]
fn d4_the_same_list_in_any_order_is_no_work() {
    let mut world = world(5);
    world.resolve(endpoints(1..=5));
    world.run_until(at(1_000));
    let before = (world.endpoints(), world.deeds);
    let published = world.publications;
    world.traffic(ms(1), at(11_000), Request::default());
    for n in 0..1_000u64 {
        world.at(at(1_000 + n * 10), move |world| {
            let mut list = endpoints(1..=5);
            list.rotate_left(n as usize % 5);
            if n % 3 == 0 {
                list.reverse();
            }
            let again: Vec<Endpoint> = list.iter().take(n as usize % 4).cloned().collect();
            list.extend(again);
            world.resolve(list);
        });
    }
    world.run_until(at(12_000));
    assert_eq!((world.endpoints(), world.deeds), before);
    // Policies are told of another order, once each time.
    assert!(world.publications <= published + 1_000);
    // The rotation goes on through all of it: every five calls in a row go to five servers.
    assert_eq!(world.picks.len(), 10_000);
    for five in world.picks.chunks(5) {
        let distinct: std::collections::BTreeSet<_> = five.iter().map(|pick| pick.id).collect();
        assert_eq!(distinct.len(), 5, "broken at {:?}", five[0].at);
    }
}

/// D5: every endpoint is replaced at once. The old ones go on until one of the new ones is ready, so that
/// no call waits, and not a call longer.
#[test]
fn d5_all_endpoints_are_replaced_at_once() {
    let policies: [Make; 4] = [
        || Box::new(Adaptive::default()),
        || Box::new(LeastRequest::default()),
        || Box::new(Random),
        || Box::new(RoundRobin::default()),
    ];
    for policy in policies {
        let mut world = world_with(Settings::new(1), 6, policy());
        for n in 4..=6 {
            world
                .hosts
                .get_mut(&host(n))
                .expect("it is there")
                .dial_delay = ms(200);
        }
        world.resolve(endpoints(1..=3));
        world.traffic(ms(1), at(10_000), Request::default());
        world.at(at(5_000), |world| world.resolve(endpoints(4..=6)));
        world.run_until(at(5_099));
        assert_eq!(world.balancer.state(), Connectivity::Ready);
        assert_eq!(world.waiting(), 0);
        let new = |n| world.share(&host(n), at(5_001), at(5_099));
        assert_eq!((new(4), new(5), new(6)), (0.0, 0.0, 0.0));
        world.run_until(at(12_000));
        world.assert_clean();
        assert_eq!(
            (world.all_ended(), world.ended(Ending::Ok)),
            (10_000, 10_000)
        );
        let old = |n| world.share(&host(n), at(5_500), at(10_000));
        assert_eq!((old(1), old(2), old(3)), (0.0, 0.0, 0.0));
    }
}

/// D6: an endpoint is removed with calls in flight.
#[test]
fn d6_a_removed_endpoint_finishes_its_calls_and_gets_no_more() {
    let mut world = world(2);
    world.hosts.insert(host(2), Host::serving(ms(500)));
    world.resolve(endpoints(1..=2));
    let request = Request {
        deadline: secs(20),
        ..Request::default()
    };
    world.traffic(ms(5), at(4_000), request);
    let removed: Timestamp = at(2_001);
    world.at(removed, |world| world.resolve(endpoints([1])));
    world.run_until(at(2_002));
    assert!(
        world.under_way() > 10,
        "calls are under way on it: {}",
        world.under_way()
    );
    world.run_until(at(30_000));
    assert_eq!(
        (world.all_ended(), world.ended(Ending::Ok)),
        (800, 800),
        "none was broken"
    );
    assert!(
        world.share(&host(2), at(0), removed) > 0.4,
        "the control: it had its share"
    );
    assert_eq!(world.share(&host(2), removed, at(30_000)), 0.0);
    world.assert_clean();
}

/// D11: no traffic for ten minutes while the list changes a hundred times, then one call.
#[test]
fn d11_the_list_is_kept_current_without_traffic() {
    let mut world = world(200);
    for n in 0..100u16 {
        world.at(at(u64::from(n) * 6_000), move |world| {
            world.resolve(endpoints([n + 1, n + 2]));
        });
    }
    world.run_until(at(600_000));
    world.call(Request::default());
    world.run_for(secs(2));
    assert_eq!((world.all_ended(), world.ended(Ending::Ok)), (1, 1));
    let picked = &world.picks[0].address;
    assert!([host(100), host(101)].contains(picked), "{picked}");
    assert_eq!(world.dials.len(), 101, "each host was dialled once");
    let slots = world.endpoints().iter().map(|(id, ..)| id.slot()).max();
    assert!(slots < Some(8), "slots are let again: {slots:?}");
}

/// An empty list means nobody; the next one brings them back.
#[test]
fn an_empty_list_fails_calls_until_the_next() {
    let mut world = world(2);
    world.resolve(endpoints(1..=2));
    world.run_until(at(1_000));
    world.resolve(Vec::new());
    world.call(Request::default());
    assert_eq!(world.ended(Ending::NoEndpoint), 1);
    world.call(Request {
        wait_for_ready: true,
        ..Request::default()
    });
    world.run_until(at(1_500));
    world.resolve(endpoints(1..=2));
    world.run_until(at(3_000));
    assert_eq!((world.ended(Ending::Ok), world.all_ended()), (1, 2));
}

/// D3: an empty list after a good one. The good one stays in use for five minutes, in which nobody notices,
/// and then there is nobody.
#[test]
fn d3_an_empty_list_waits_while_the_last_good_one_is_kept() {
    let mut settings = Settings::new(3);
    settings.config.keep_last_good = secs(300);
    let mut world = world_with(settings, 2, Box::new(RoundRobin::default()));
    world.resolve(endpoints(1..=2));
    world.traffic(ms(20), at(400_000), Request::default());
    // Again and again, as a resolver would that looks twice a minute, with an error in between.
    for n in 0..12 {
        world.at(at(10_001 + n * 29_000), move |world| match n {
            3 => world.resolve_failed(),
            _ => world.resolve(Vec::new()),
        });
    }
    // Connections are kept up all the while.
    world.at(at(200_000), |world| world.cut(&host(1)));
    world.run_until(at(310_000));
    assert_eq!(world.balancer.state(), Connectivity::Ready);
    assert_eq!(world.ended(Ending::NoEndpoint), 0);
    let served = world.ended(Ending::Ok);
    assert!(served > 15_000, "{served}");
    world.run_until(at(310_001));
    assert_eq!(world.balancer.state(), Connectivity::TransientFailure);
    world.run_until(at(401_000));
    // From that very moment on, every call.
    assert_eq!(world.ended(Ending::NoEndpoint), 4_499);
    world.assert_clean();
    world.resolve(endpoints(1..=2));
    world.run_until(at(402_000));
    assert_eq!(world.balancer.state(), Connectivity::Ready);
}

/// D1: sixty seconds of errors after a good list, and nobody notices.
#[test]
fn d1_sixty_seconds_of_resolver_errors() {
    let mut world = world(3);
    world.resolve(endpoints(1..=3));
    world.run_until(at(100));
    for n in 0..12 {
        world.at(at(1_000 + n * 5_000), |world| world.resolve_failed());
    }
    world.at(at(30_000), |world| world.cut(&host(2)));
    world.traffic(ms(6), at(60_100), Request::default());
    world.run_until(at(62_000));
    let (all, ok) = (world.all_ended(), world.ended(Ending::Ok));
    // But for the call that was cut.
    assert!(all == 10_000 && ok >= all - 1, "{ok} of {all}");
}

/// A resolver that stops answering takes nobody away.
#[test]
fn a_resolver_error_keeps_the_last_good_list() {
    let mut world = world(2);
    world.resolve_failed();
    assert_eq!(world.balancer.state(), Connectivity::TransientFailure);
    world.resolve(endpoints(1..=2));
    world.run_until(at(100));
    world.resolve_failed();
    world.traffic(ms(1), at(1_100), Request::default());
    world.run_until(at(3_000));
    assert_eq!((world.all_ended(), world.ended(Ending::Ok)), (1_000, 1_000));
}

/// A changed id at the same address is another server: its connection is made anew.
#[test]
fn a_changed_id_at_the_same_address_is_dialled_anew() {
    let mut world = world(1);
    let tenant = |name: &str| vec![Endpoint::new(host(1)).with_id(name)];
    world.resolve(tenant("a"));
    world.run_until(at(100));
    let a = world.endpoints()[0].0;
    world.hosts.get_mut(&host(1)).expect("it is there").dialling = Dialling::Hang;
    world.resolve(tenant("b"));
    world.run_until(at(200));
    let (b, _, state) = world.endpoints()[0].clone();
    assert_ne!(a, b);
    assert_eq!((state, world.dials.len()), (Connectivity::Connecting, 2));
}
