//! What a new list does: who is kept, who leaves and when, and what an empty one means.

use super::*;

#[test]
fn the_same_list_again_is_no_work_at_all() {
    let mut bench = Bench::new();
    bench.resolve(list([1, 2, 3]));
    for attempt in 0..3 {
        bench.at(10).connected(attempt);
    }
    bench.at(20).timeout();
    bench.events();
    for again in [[1, 2, 3, 3], [1, 1, 2, 3], [1, 2, 1, 3]] {
        assert_eq!(bench.at(30).resolve(list(again)), [""; 0]);
        assert_eq!(bench.events(), ["resolved 3 +0 -0 twice 1 over 0"]);
        assert_eq!(bench.due(), None);
    }
    // In another order it is one question to the policies: some go by it.
    assert_eq!(bench.at(40).resolve(list([3, 1, 2])), ["publish READY"]);
    assert_eq!(bench.events(), ["resolved 3 +0 -0 twice 0 over 0"]);
    assert_eq!(bench.due(), None);
}

#[test]
fn a_removed_endpoint_leaves_with_the_next_publication_at_once() {
    let mut bench = Bench::new();
    bench.resolve(list([1, 2, 3]));
    bench.at(1).connected(0);
    bench.at(2).connected(1);
    // One is connected, one is being dialled; both leave.
    assert_eq!(
        bench.at(3).resolve(list([2])),
        ["close 0.0", "abandon #2", "close 2.0", "publish READY"]
    );
    assert_eq!(bench.seen.lock().unwrap().last().unwrap().len(), 1);
    let late = AttemptId(2);
    assert!(
        !bench.balancer.handle_connected(late, bench.now),
        "nobody wants it any more"
    );
    bench.balancer.handle_lost(AttemptId(0), why(), bench.now);
    assert_eq!(
        bench.work(),
        [""; 0],
        "what became of it is nobody's business"
    );
}

#[test]
fn an_empty_list_means_nobody() {
    let mut bench = Bench::new();
    bench.resolve(list([1]));
    bench.at(1).connected(0);
    assert_eq!(
        bench.at(2).resolve(vec![]),
        ["close 0.0", "publish TRANSIENT_FAILURE"]
    );
    assert_eq!(
        bench.balancer.why.as_deref(),
        Some("the resolver found no endpoints")
    );
    let words = bench.at(3).resolve(list([1]));
    assert_eq!(
        words,
        [
            "open 0.1 x1",
            "publish CONNECTING",
            "connect #1 0.1 10.0.0.1:1"
        ]
    );
}

/// Two ready endpoints, and then an empty list at 2 s, to take effect a minute later.
fn kept() -> Bench {
    let mut bench = Bench::with(Config {
        keep_last_good: Duration::from_secs(60),
        ..calm()
    });
    bench.resolve(list([1, 2]));
    bench.at(1).connected(0);
    bench.at(2).connected(1);
    bench.at(100).work();
    bench.events();
    assert_eq!(bench.at(2_000).resolve(vec![]), [""; 0]);
    assert_eq!(bench.events(), ["kept 2 until 62s"]);
    assert_eq!(bench.due(), Some(62_000));
    bench
}

#[test]
fn the_last_good_list_outlives_an_empty_one_for_a_while() {
    let mut bench = kept();
    // Counted from the first empty one; neither another nor an error changes that.
    assert_eq!(bench.at(30_000).resolve(vec![]), [""; 0]);
    let error = Err(ResolveError::new("no such name"));
    bench.balancer.handle_resolution(error, bench.now);
    assert_eq!(bench.work(), [""; 0]);
    assert_eq!(
        bench.events(),
        ["kept 2 until 62s", "no answer: no such name"]
    );
    assert_eq!(bench.at(61_999).timeout(), [""; 0]);
    assert_eq!(
        bench.at(62_000).timeout(),
        ["close 0.0", "close 1.0", "publish TRANSIENT_FAILURE"]
    );
    assert_eq!(
        bench.events(),
        [
            "resolved 0 +0 -2 twice 0 over 0",
            "channel READY TRANSIENT_FAILURE"
        ]
    );
    assert_eq!(bench.due(), None);
    // There is nothing left to keep.
    assert_eq!(bench.at(63_000).resolve(vec![]), [""; 0]);
    assert_eq!(bench.events(), ["resolved 0 +0 -0 twice 0 over 0"]);
}

#[test]
fn a_list_with_somebody_in_it_ends_the_keeping() {
    let mut bench = kept();
    assert_eq!(bench.at(10_000).resolve(list([1, 2])), [""; 0]);
    assert_eq!(bench.due(), None);
    // The time begins anew with the next empty one.
    bench.events();
    assert_eq!(bench.at(20_000).resolve(vec![]), [""; 0]);
    assert_eq!(bench.events(), ["kept 2 until 80s"]);
    assert_eq!(
        bench.at(25_000).resolve(list([2])),
        ["close 0.0", "publish READY"]
    );
    assert_eq!(bench.due(), None);
}

#[test]
fn an_empty_list_before_any_other_is_not_put_off() {
    let mut bench = Bench::with(Config {
        keep_last_good: Duration::from_secs(60),
        ..calm()
    });
    assert_eq!(bench.resolve(vec![]), ["publish TRANSIENT_FAILURE"]);
    assert_eq!(bench.due(), None);
}

#[test]
fn a_resolver_error_is_a_state() {
    let mut bench = Bench::new();
    let error = || Err(ResolveError::new("no such name"));
    bench.balancer.handle_resolution(error(), bench.now);
    assert_eq!(
        bench.work(),
        ["publish TRANSIENT_FAILURE"],
        "nothing to wait for"
    );
    assert_eq!(bench.balancer.why.as_deref(), Some("no such name"));
    assert_eq!(
        bench.at(1).resolve(list([1])),
        [
            "open 0.0 x1",
            "publish CONNECTING",
            "connect #0 0.0 10.0.0.1:1"
        ]
    );
    bench.at(2).connected(0);
    bench.events();
    bench.balancer.handle_resolution(error(), bench.now);
    assert_eq!(bench.work(), [""; 0], "the last good list stays in use");
    assert_eq!(bench.events(), ["no answer: no such name"]);
}

/// Two endpoints that are ready, and then a list without them.
fn replaced(by: impl IntoIterator<Item = u16>) -> Bench {
    let mut bench = Bench::new();
    bench.resolve(list([1, 2]));
    bench.connected(0);
    bench.connected(1);
    bench.at(5).timeout();
    bench.at(1_000).resolve(list(by));
    assert_eq!(bench.at(1_005).timeout(), ["publish READY"]);
    bench
}

#[test]
fn the_old_stay_until_a_new_one_is_ready() {
    let mut bench = replaced([3, 4]);
    assert_eq!(bench.balancer.state(), Ready);
    assert_eq!(bench.balancer.endpoints().count(), 4);
    bench.at(1_100).failed(2);
    assert_eq!(bench.balancer.endpoints().count(), 4);
    let words = bench.at(1_200).connected(3);
    assert_eq!(words, ["close 0.0", "close 1.0", "publish READY"]);
    assert_eq!(bench.seen.lock().unwrap().last().map(Vec::len), Some(2));
}

#[test]
fn the_old_go_when_their_time_is_up() {
    let mut bench = replaced([3]);
    bench.at(1_100).failed(2);
    // A list that changes nothing gives them no more time.
    bench.at(20_000).resolve(list([3]));
    bench.at(30_999).timeout();
    assert_eq!(bench.balancer.state(), Ready);
    assert_eq!(bench.due(), Some(31_000));
    let words = bench.at(31_000).timeout();
    assert_eq!(
        words,
        ["close 0.0", "close 1.0", "publish TRANSIENT_FAILURE"]
    );
}

#[test]
fn the_old_go_one_by_one_as_they_are_lost() {
    let mut bench = replaced([3]);
    let words = bench.at(1_100).lost(0);
    assert_eq!(words, ["close 0.0", "publish READY", "resolve"]);
    let words = bench.at(1_200).lost(1);
    assert_eq!(words, ["close 1.0", "publish CONNECTING", "resolve"]);
}

#[test]
fn the_old_may_come_back_and_an_empty_list_takes_them_at_once() {
    let mut bench = replaced([3]);
    // The first is listed again, and ready: nobody needs the other.
    assert_eq!(
        bench.at(1_100).resolve(list([1, 3])),
        ["close 1.0", "publish READY"]
    );
    let mut bench = replaced([3]);
    let words = bench.at(1_100).resolve(list([]));
    assert_eq!(
        words.last().map(String::as_str),
        Some("publish TRANSIENT_FAILURE")
    );
    assert_eq!(bench.balancer.endpoints().count(), 0);
    assert_eq!(bench.due(), None);
}
