//! More than one connection for an endpoint that is full, and back to one.

use super::*;

/// A balancer that allows `most` connections, with one endpoint that is ready since 1 ms.
fn one_ready(most: usize) -> Bench {
    let mut bench = Bench::with(Config {
        max_connections_per_endpoint: most,
        ..calm()
    });
    bench.resolve(list([1]));
    bench.at(1).connected(0);
    bench.at(10).timeout();
    assert_eq!(bench.due(), None, "nothing to ask about");
    bench.events();
    bench
}

fn crowded(bench: &mut Bench) -> Vec<String> {
    let id = bench.balancer.endpoints().next().unwrap().id;
    bench.balancer.handle_crowded(id, bench.now);
    bench.work()
}

fn usage(bench: &mut Bench, connection: u64, busy: bool) -> Vec<String> {
    bench
        .balancer
        .handle_usage(AttemptId(connection), busy, bench.now);
    bench.work()
}

fn connections(bench: &Bench) -> usize {
    bench.balancer.endpoints().next().unwrap().connections
}

#[test]
fn a_full_endpoint_gets_one_more_at_a_time_up_to_the_limit() {
    let mut bench = one_ready(3);
    assert_eq!(
        crowded(bench.at(1_000)),
        ["connect #1 0.0 10.0.0.1:1"],
        "and nothing is published"
    );
    assert_eq!(crowded(bench.at(1_001)), [""; 0], "one at a time");
    assert_eq!(bench.at(1_010).connected(1), [""; 0]);
    assert_eq!(crowded(bench.at(1_020)), ["connect #2 0.0 10.0.0.1:1"]);
    bench.at(1_030).connected(2);
    assert_eq!(crowded(bench.at(1_040)), [""; 0], "three is the most");
    assert_eq!(connections(&bench), 3);
    assert_eq!(bench.events(), [""; 0], "its state has not changed");
    // One lost makes room for another.
    assert_eq!(bench.at(9_000).lost(1), ["resolve"]);
    assert_eq!(crowded(bench.at(9_001)), ["connect #3 0.0 10.0.0.1:1"]);
}

#[test]
fn by_default_an_endpoint_has_one() {
    assert_eq!(calm().max_connections_per_endpoint, 1);
    let mut bench = one_ready(1);
    assert_eq!(crowded(bench.at(1_000)), [""; 0]);
    assert_eq!(bench.due(), None);
}

#[test]
fn one_more_that_cannot_be_had_backs_off_and_leaves_the_state_alone() {
    let mut bench = one_ready(2);
    crowded(bench.at(1_000));
    assert_eq!(bench.at(1_001).failed(1), ["resolve"]);
    assert_eq!(crowded(bench.at(1_500)), [""; 0], "it is backing off");
    assert_eq!(bench.due(), Some(2_001));
    assert_eq!(bench.at(2_001).timeout(), ["connect #2 0.0 10.0.0.1:1"]);
    assert_eq!(bench.at(2_002).failed(2), ["resolve"]);
    assert_eq!(bench.due(), Some(3_602), "longer the second time");
    assert_eq!(bench.at(3_602).timeout(), [""; 0], "nobody asked again");
    let view = bench.balancer.endpoints().next().unwrap();
    assert_eq!(
        (view.state, view.since),
        (Ready, Timestamp::from_millis(1)),
        "READY all along"
    );
    assert_eq!(bench.events(), [""; 0]);
    assert_eq!(bench.due(), None);
}

#[test]
fn usage_is_asked_for_only_while_some_endpoint_has_several() {
    let mut bench = one_ready(3);
    crowded(bench.at(1_000));
    bench.at(1_100).connected(1);
    assert_eq!(bench.due(), Some(6_100));
    assert_eq!(bench.at(6_100).timeout(), ["usage"]);
    assert_eq!(bench.due(), Some(11_100));
    assert_eq!(bench.at(8_000).lost(1), ["resolve"]);
    assert_eq!(bench.due(), None);
    crowded(bench.at(8_001));
    bench.at(9_000).connected(2);
    assert_eq!(bench.due(), Some(14_000));
    let words = bench.at(9_001).resolve(vec![]);
    assert!(words.contains(&"close 0.0".into()), "{words:?}");
    assert_eq!(bench.due(), None, "who has left is asked nothing");
}

#[test]
fn those_that_carry_nothing_for_half_a_minute_go_and_the_last_stays() {
    let mut bench = one_ready(3);
    crowded(bench.at(1_000));
    bench.at(1_000).connected(1);
    crowded(bench.at(2_000));
    bench.at(2_000).connected(2);
    assert_eq!(usage(bench.at(30_000), 1, true), [""; 0]);
    assert_eq!(usage(bench.at(31_999), 2, false), [""; 0]);
    assert_eq!(usage(bench.at(32_000), 2, false), ["retire #2"]);
    assert_eq!(usage(bench.at(59_999), 1, false), [""; 0], "busy at 30 s");
    assert_eq!(usage(bench.at(60_000), 0, false), [""; 0], "the oldest");
    assert_eq!(usage(bench.at(60_000), 1, false), ["retire #1"]);
    assert_eq!(usage(bench.at(99_000), 0, false), [""; 0], "the last");
    assert_eq!(usage(bench.at(99_000), 1, false), [""; 0], "it has gone");
    assert_eq!((connections(&bench), bench.due()), (1, None));
    assert_eq!(bench.events(), [""; 0]);
}
