//! Figures that come from outside: bytes counted in time, and reports of servers.

use super::*;
use crate::load::Load;

/// A policy that goes by bytes, and picks nobody.
#[derive(Debug)]
struct Counted;

impl Policy for Counted {
    fn update(&mut self, _: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        Decision {
            picker: Arc::new(FirstReady(None)),
            connect: Connect::Only(Vec::new()),
            wake: None,
        }
    }

    fn scoring(&self) -> Scoring {
        Scoring::Bandwidth {
            window: Duration::from_secs(5),
        }
    }
}

fn counting() -> Bench {
    let mut bench = Bench::new();
    let more: Vec<Box<dyn Policy>> = vec![Box::new(Counted)];
    let spy = Spy::default();
    bench.seen = spy.seen.clone();
    bench.balancer = Balancer::new(calm(), Box::new(spy), more, 1);
    bench
}

fn ids(bench: &Bench) -> Vec<EndpointId> {
    bench.balancer.endpoints().map(|view| view.id).collect()
}

/// What the second policy sees of the first endpoint.
fn load(bench: &Bench) -> Arc<Load> {
    let first = bench.balancer.endpoints().next().unwrap();
    first.loads.of(1).clone()
}

#[test]
fn bytes_are_counted_four_times_a_second_where_a_policy_goes_by_them() {
    let mut bench = counting();
    assert_eq!(bench.due(), None, "nobody to count");
    bench.resolve(list([1]));
    bench.connected(0);
    bench.at(10).timeout();
    bench.at(100);
    assert_eq!(bench.due(), Some(260), "counted first at 10");
    assert_eq!(bench.at(260).timeout(), ["measure"]);
    // Late once, and no more often for it.
    assert_eq!(bench.at(600).timeout(), ["measure"]);
    assert_eq!(bench.due(), Some(850));
    let words = bench.at(700).resolve(vec![]);
    assert_eq!(words.last().unwrap(), "publish TRANSIENT_FAILURE");
    assert_eq!(bench.due(), None, "nobody to count again");
    bench.at(900).resolve(list([2]));
    assert_eq!(bench.due(), Some(900));
}

#[test]
fn without_such_a_policy_nothing_is_counted() {
    let mut bench = Bench::new();
    bench.resolve(list([1]));
    bench.connected(0);
    bench.at(10).timeout();
    assert_eq!(bench.due(), None);
}

#[test]
fn the_count_of_an_endpoint_is_its_bandwidth() {
    let mut bench = counting();
    bench.resolve(list([1, 2]));
    bench.connected(0);
    bench.connected(1);
    bench.at(10).timeout();
    let [a, b] = ids(&bench)[..] else {
        panic!("two endpoints")
    };
    bench.balancer.handle_traffic(a, 5_000, bench.now);
    bench.at(260);
    bench.balancer.handle_traffic(a, 5_500, bench.now);
    bench.balancer.handle_traffic(b, 99_000, bench.now);
    assert_eq!(load(&bench).bandwidth(bench.now), Some(2_000.0));
    bench.at(300).resolve(list([2]));
    bench.balancer.handle_traffic(a, 6_000, bench.now);
    assert_eq!(load(&bench).bandwidth(bench.now), None, "b, counted once");
}

#[test]
fn a_report_is_told_to_every_policy_and_news_of_the_past_to_none() {
    let mut bench = counting();
    bench.resolve(list([1]));
    let id = ids(&bench)[0];
    let report = |cpu_utilization| LoadReport {
        cpu_utilization,
        ..LoadReport::default()
    };
    bench.balancer.handle_reading(id, &report(0.5), bench.now);
    let minute = Duration::from_secs(60);
    for load in bench.balancer.endpoints().next().unwrap().loads.iter() {
        assert_eq!(load.utilization(bench.now, minute), Some(0.5));
    }
    bench.at(10).resolve(vec![]);
    bench.at(20).resolve(list([2]));
    bench.balancer.handle_reading(id, &report(0.9), bench.now);
    assert_eq!(load(&bench).utilization(bench.now, minute), None);
}
