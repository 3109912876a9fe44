//! Literal news at literal times.

mod cap;
mod noise;
mod sequences;
mod vectors;

use std::time::Duration;

use super::*;
use Standing::{Admitted, Ejected, Probation};

fn id(slot: u32) -> EndpointId {
    EndpointId::new(slot, 0)
}

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn fleet(config: OutlierDetection, size: u32) -> Outliers {
    config.validate().expect("a config that makes sense");
    let mut outliers = Outliers::new(config);
    (0..size).for_each(|slot| outliers.insert(id(slot)));
    outliers
}

/// Counts by slot.
fn counts(each: &[(u64, u64)]) -> Vec<(EndpointId, Counts)> {
    let counts = each.iter().map(|&(successes, failures)| Counts {
        successes,
        failures,
    });
    (0..).map(id).zip(counts).collect()
}

/// All that has changed, by slot.
fn changes(outliers: &mut Outliers) -> Vec<(usize, Standing)> {
    let changes = std::iter::from_fn(|| outliers.poll_change());
    changes
        .map(|(id, standing)| (id.slot(), standing))
        .collect()
}

/// A sweep without a call.
fn rest(outliers: &mut Outliers, now: Timestamp) {
    let findings = outliers.handle_counts([], now, &mut Rng::new(1));
    assert_eq!(findings, []);
}

#[test]
fn a_run_ejects_time_and_an_answer_bring_back() {
    let mut outliers = fleet(OutlierDetection::default(), 3);
    assert_eq!(outliers.poll_timeout(), None);
    outliers.handle_run(id(1), at(7));
    let ejected = Ejected { until: at(37) };
    assert_eq!(changes(&mut outliers), [(1, ejected)]);
    assert_eq!(outliers.standing(id(1)), Some(ejected));
    assert_eq!(outliers.poll_timeout(), Some(at(37)));
    outliers.handle_timeout(Timestamp::from_millis(36_999));
    assert_eq!(changes(&mut outliers), []);
    outliers.handle_timeout(at(37));
    assert_eq!(changes(&mut outliers), [(1, Probation)]);
    assert_eq!(outliers.poll_timeout(), None);
    // Nobody calls it: it stays as it is.
    for sweep in 4..40 {
        outliers.handle_timeout(at(sweep * 10));
        rest(&mut outliers, at(sweep * 10));
    }
    assert_eq!(outliers.standing(id(1)), Some(Probation));
    outliers.handle_trial(id(1), true, at(400));
    assert_eq!(changes(&mut outliers), [(1, Admitted)]);
}

#[test]
fn each_failed_trial_ejects_for_longer_up_to_the_longest() {
    let mut outliers = fleet(OutlierDetection::default(), 3);
    outliers.handle_run(id(0), at(0));
    let mut now = at(0);
    for times in (1..=10).chain([10, 10]) {
        let until = now + Duration::from_secs(30 * times);
        assert_eq!(outliers.poll_timeout(), Some(until), "time {times}");
        // No sweep between the end of an ejection and the trial takes anything back.
        outliers.handle_timeout(until);
        rest(&mut outliers, until);
        outliers.handle_trial(id(0), false, until);
        now = until;
    }
}

#[test]
fn a_relapse_costs_more_until_it_is_forgiven() {
    let back = |quiet_intervals: u64| {
        let mut outliers = fleet(OutlierDetection::default(), 3);
        outliers.handle_run(id(0), at(1));
        outliers.handle_timeout(at(31));
        outliers.handle_trial(id(0), true, at(31));
        // The interval in which it was let back is not a quiet one.
        (4..=4 + quiet_intervals).for_each(|sweep| rest(&mut outliers, at(sweep * 10)));
        outliers.handle_run(id(0), at(1_000));
        outliers.poll_timeout().unwrap().since(at(1_000)).as_secs()
    };
    assert_eq!((back(0), back(1), back(2)), (60, 30, 30));
}

#[test]
fn news_that_comes_too_late_or_of_nobody_changes_nothing() {
    let mut outliers = fleet(OutlierDetection::default(), 4);
    for answered in [true, false] {
        outliers.handle_trial(id(0), answered, at(1));
        outliers.handle_trial(id(9), answered, at(1));
    }
    outliers.handle_run(id(9), at(1));
    outliers.handle_timeout(at(1));
    outliers.remove(id(9));
    assert_eq!(changes(&mut outliers), []);
    outliers.handle_run(id(0), at(1));
    let _ = changes(&mut outliers);
    // Calls that began before go on failing, or are answered after all.
    outliers.handle_run(id(0), at(2));
    outliers.handle_trial(id(0), true, at(2));
    outliers.handle_trial(id(0), false, at(2));
    assert_eq!(changes(&mut outliers), []);
    outliers.handle_timeout(at(31));
    let _ = changes(&mut outliers);
    outliers.handle_run(id(0), at(32));
    assert_eq!(
        changes(&mut outliers),
        [],
        "only a trial may end a probation"
    );
    // Known already.
    outliers.insert(id(0));
    assert_eq!(outliers.standing(id(0)), Some(Probation));
    // The next tenant of the slot is somebody else.
    outliers.remove(id(0));
    outliers.insert(EndpointId::new(0, 1));
    assert_eq!(outliers.standing(id(0)), None);
    assert_eq!(outliers.standing(EndpointId::new(0, 1)), Some(Admitted));
    assert_eq!(outliers.poll_timeout(), None);
}

#[test]
fn runs_can_be_turned_off() {
    let config = OutlierDetection::default().with_consecutive_failures(None);
    let mut outliers = fleet(config, 4);
    outliers.handle_run(id(0), at(1));
    assert_eq!(changes(&mut outliers), []);
}

#[test]
fn failures_from_before_an_ejection_do_not_count_again() {
    let config = OutlierDetection::default().with_base_ejection_time(Duration::from_secs(1));
    let mut outliers = fleet(config, 3);
    rest(&mut outliers, at(10));
    // Ejected, back, and answering, all in one interval: its counts are mostly those of before.
    outliers.handle_run(id(0), at(12));
    outliers.handle_timeout(at(13));
    outliers.handle_trial(id(0), true, at(13));
    let bad = counts(&[(5, 100), (100, 0), (100, 0)]);
    let mut rng = Rng::new(1);
    assert_eq!(outliers.handle_counts(bad.clone(), at(20), &mut rng), []);
    // Those of the next interval are its own.
    assert_eq!(outliers.handle_counts(bad, at(30), &mut rng).len(), 1);
    // Late failures of one that is out, or on probation, are no news.
    let bad = counts(&[(0, 100), (100, 0), (100, 0)]);
    assert_eq!(outliers.handle_counts(bad.clone(), at(31), &mut rng), []);
    outliers.handle_timeout(at(32));
    assert_eq!(outliers.standing(id(0)), Some(Probation));
    assert_eq!(outliers.handle_counts(bad.clone(), at(33), &mut rng), []);
    assert_eq!(outliers.handle_counts(bad, at(34), &mut rng), []);
}

#[test]
fn the_worst_go_first_where_not_all_can() {
    let mut outliers = fleet(OutlierDetection::default(), 4);
    let all_bad = counts(&[(10, 90), (1, 99), (2, 98), (0, 100)]);
    let findings = outliers.handle_counts(all_bad, at(10), &mut Rng::new(1));
    let found: Vec<_> = findings.iter().map(|f| (f.id.slot(), f.verdict)).collect();
    let expected = [
        (3, Verdict::Ejected),
        (1, Verdict::Ejected),
        (2, Verdict::Capped),
        (0, Verdict::Capped),
    ];
    assert_eq!(found, expected);
}

#[test]
fn enforcement_is_a_matter_of_chance() {
    // Of ten thousand, with three standard deviations.
    for (percent, least, most) in [(1, 70, 130), (30, 2_860, 3_140), (99, 9_870, 9_930)] {
        let rule = FailurePercentage::default().with_enforcement(percent);
        let config = OutlierDetection::default().with_failure_percentage(rule);
        let ejected = (0..10_000).filter(|&seed| {
            let mut outliers = fleet(config, 3);
            let bad = counts(&[(0, 100), (100, 0), (100, 0)]);
            let findings = outliers.handle_counts(bad, at(10), &mut Rng::new(seed));
            let verdict = findings[0].verdict;
            assert!(
                matches!(verdict, Verdict::Ejected | Verdict::Unenforced),
                "seed {seed}: {verdict:?}"
            );
            verdict == Verdict::Ejected
        });
        let ejected = ejected.count();
        assert!(
            (least..=most).contains(&ejected),
            "{percent} %, seeds 0..10000: {ejected}"
        );
    }
}

#[test]
fn a_sweep_is_due_only_while_something_can_come_of_it() {
    let rules = OutlierDetection::default();
    let mut outliers = Outliers::new(rules);
    assert_eq!(outliers.sweep_due(), None, "nobody is there");
    outliers.insert(id(0));
    assert_eq!(outliers.sweep_due(), Some(at(10)));
    // A late one puts off those after it.
    rest(&mut outliers, at(13));
    assert_eq!(outliers.sweep_due(), Some(at(23)));
    outliers.remove(id(0));
    assert_eq!(outliers.sweep_due(), None);

    let mut outliers = fleet(rules.with_failure_percentage(None), 2);
    assert_eq!(outliers.sweep_due(), None, "nothing to judge or forgive");
    outliers.handle_run(id(0), at(1));
    outliers.handle_timeout(at(31));
    assert_eq!(outliers.sweep_due(), Some(at(10)));
    rest(&mut outliers, at(31));
    assert_eq!(outliers.sweep_due(), Some(at(41)));
    rest(&mut outliers, at(41));
    assert_eq!(
        outliers.sweep_due(),
        Some(at(51)),
        "forgiven, and its trial may last"
    );
    outliers.handle_trial(id(0), true, at(42));
    assert_eq!(outliers.sweep_due(), None);
}

#[test]
fn the_end_of_time_is_no_overflow() {
    let config = OutlierDetection::default()
        .with_base_ejection_time(Duration::MAX)
        .with_interval(Duration::MAX);
    let mut outliers = fleet(config, 2);
    outliers.handle_run(id(0), at(1));
    let never = Timestamp::MAX;
    assert_eq!(outliers.poll_timeout(), Some(never));
    assert_eq!(outliers.sweep_due(), Some(never));
    outliers.handle_timeout(never);
    outliers.handle_trial(id(0), false, never);
    outliers.handle_timeout(never);
    assert_eq!(outliers.standing(id(0)), Some(Probation));
}

#[test]
fn standings_show_as_words() {
    let shown = [Admitted, Probation, Ejected { until: at(1) }].map(|s| s.to_string());
    assert_eq!(shown, ["admitted", "on probation", "ejected"]);
}

#[test]
fn a_new_connection_ends_an_ejection_in_probation() {
    let mut outliers = fleet(OutlierDetection::default(), 3);
    outliers.handle_reconnected(id(0));
    assert_eq!(changes(&mut outliers), [], "nobody is ejected");
    outliers.handle_run(id(0), at(5));
    assert_eq!(changes(&mut outliers), [(0, Ejected { until: at(35) })]);
    outliers.handle_reconnected(id(0));
    outliers.handle_reconnected(id(0));
    assert_eq!(changes(&mut outliers), [(0, Probation)]);
    assert_eq!(outliers.poll_timeout(), None);
    outliers.handle_trial(id(0), false, at(7));
    let twice = Ejected { until: at(67) };
    assert_eq!(changes(&mut outliers), [(0, twice)], "twice as long");
    outliers.handle_reconnected(id(0));
    outliers.handle_trial(id(0), true, at(8));
    assert_eq!(changes(&mut outliers), [(0, Probation), (0, Admitted)]);
}
