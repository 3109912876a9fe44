//! Never more out than may be.

use super::*;

/// The rule in words, reckoned in another way than the code does: the fewest that are at least so many percent.
fn allowed(cap: MaxEjection, all: u32) -> usize {
    let (percent, last) = match cap {
        MaxEjection::Share(percent) => (percent, all.saturating_sub(1)),
        MaxEjection::A50(percent) => (percent, all),
    };
    let fewest = (0..=all).find(|out| out * 100 >= percent * all);
    fewest.unwrap_or(all).min(last) as usize
}

/// Keeps count of who is out, and looks after each single change.
#[derive(Default)]
struct Watch {
    out: BTreeSet<usize>,
    ejected: BTreeSet<usize>,
}

impl Watch {
    fn look(&mut self, outliers: &mut Outliers, allowed: usize, when: &str) {
        for (slot, standing) in changes(outliers) {
            match standing {
                Admitted => self.out.remove(&slot),
                Probation | Ejected { .. } => self.out.insert(slot),
            };
            match standing {
                Ejected { .. } => self.ejected.insert(slot),
                Admitted | Probation => self.ejected.remove(&slot),
            };
            assert!(self.out.len() <= allowed, "{when}: {:?}", self.out);
        }
        assert_eq!(outliers.out(), self.out.len(), "{when}");
        assert_eq!(outliers.ejected.len(), self.ejected.len(), "{when}");
    }
}

#[test]
fn everybody_fails_and_as_many_are_out_as_may_be() {
    let mut rng = Rng::new(1);
    for all in 1..=20 {
        for percent in 0..=100 {
            for cap in [MaxEjection::Share(percent), MaxEjection::A50(percent)] {
                let allowed = allowed(cap, all);
                if let MaxEjection::Share(_) = cap {
                    assert!(allowed < all as usize);
                }
                let config = OutlierDetection::default()
                    .with_max_ejection(cap)
                    .with_failure_percentage(FailurePercentage::default().with_minimum_hosts(1))
                    .with_success_rate(SuccessRate::default().with_stdev_factor(0));
                let mut outliers = fleet(config, all);
                let mut watch = Watch::default();
                let mut most = 0;
                for half in 1..=40 {
                    let now = at(half * 5);
                    let when = format!("{cap:?} of {all} at {now:?}");
                    outliers.handle_timeout(now);
                    watch.look(&mut outliers, allowed, &when);
                    for slot in 0..all {
                        // Whoever may be called fails: on probation once, else on and on.
                        match outliers.standing(id(slot)) {
                            Some(Probation) if half % 3 == 0 => {
                                outliers.handle_trial(id(slot), false, now);
                            }
                            Some(Admitted) if slot % 2 == 0 => outliers.handle_run(id(slot), now),
                            _ => {}
                        }
                        watch.look(&mut outliers, allowed, &when);
                        most = most.max(watch.ejected.len());
                    }
                    if half % 2 == 0 {
                        let each: Vec<_> = (0..u64::from(all)).map(|slot| (slot, 1_000)).collect();
                        outliers.handle_counts(counts(&each), now, &mut rng);
                        watch.look(&mut outliers, allowed, &when);
                        most = most.max(watch.ejected.len());
                    }
                }
                assert_eq!(most, allowed, "{cap:?} of {all} is made use of");
            }
        }
    }
}

#[test]
fn of_one_none_of_two_one_of_three_two() {
    for (all, expected) in [(1, 0), (2, 1), (3, 2), (4, 2), (10, 5)] {
        let mut outliers = fleet(OutlierDetection::default(), all);
        (0..all).for_each(|slot| outliers.handle_run(id(slot), at(1)));
        assert_eq!(changes(&mut outliers).len(), expected, "of {all}");
    }
}

#[test]
fn a_fleet_that_shrinks_gets_some_back() {
    let mut outliers = fleet(OutlierDetection::default(), 10);
    for slot in 0..5 {
        outliers.handle_run(id(slot), at(u64::from(slot)));
    }
    // The first is on probation, the others are still out.
    outliers.handle_timeout(at(30));
    let _ = changes(&mut outliers);
    outliers.remove(id(9));
    assert_eq!(
        changes(&mut outliers),
        [],
        "five of nine is half, rounded up"
    );
    outliers.remove(id(8));
    assert_eq!(
        changes(&mut outliers),
        [(0, Admitted)],
        "on probation goes first"
    );
    outliers.remove(id(7));
    assert_eq!(changes(&mut outliers), []);
    outliers.remove(id(6));
    assert_eq!(
        changes(&mut outliers),
        [(1, Admitted)],
        "then who is back soonest"
    );
    // One that is out leaves: of the five, three are allowed, and two are out.
    outliers.remove(id(2));
    assert_eq!(changes(&mut outliers), []);
    outliers.remove(id(5));
    outliers.remove(id(0));
    assert_eq!(changes(&mut outliers), [], "two of three may be out");
    outliers.remove(id(1));
    assert_eq!(changes(&mut outliers), [(3, Admitted)]);
    outliers.remove(id(3));
    assert_eq!(
        changes(&mut outliers),
        [(4, Admitted)],
        "the last one is never out"
    );
    assert_eq!(outliers.poll_timeout(), None);
}

#[test]
fn who_is_let_back_for_a_smaller_fleet_is_not_judged_by_what_was_before() {
    let mut outliers = fleet(OutlierDetection::default(), 3);
    outliers.handle_run(id(0), at(11));
    outliers.handle_run(id(1), at(12));
    outliers.remove(id(2));
    assert_eq!(outliers.standing(id(0)), Some(Admitted));
    outliers.remove(id(1));
    outliers.insert(id(3));
    outliers.insert(id(4));
    let each = counts(&[(0, 100), (0, 0), (0, 0), (100, 0), (100, 0)]);
    let mut rng = Rng::new(1);
    assert_eq!(outliers.handle_counts(each.clone(), at(20), &mut rng), []);
    // The multiplier is as it was, so the next time is the second.
    outliers.handle_run(id(0), at(21));
    assert_eq!(outliers.poll_timeout(), Some(at(81)));
}

#[test]
fn who_may_have_recovered_makes_room_for_who_fails() {
    // Primary and backup, one of them in use at a time: nobody tries the other.
    let mut outliers = fleet(OutlierDetection::default(), 2);
    outliers.handle_run(id(0), at(1));
    outliers.handle_run(id(1), at(2));
    let ejected = |until| Ejected { until: at(until) };
    assert_eq!(changes(&mut outliers), [(0, ejected(31))], "one of two");
    outliers.handle_timeout(at(31));
    let _ = changes(&mut outliers);
    outliers.handle_run(id(1), at(500));
    assert_eq!(
        changes(&mut outliers),
        [(0, Admitted), (1, ejected(530))],
        "room first, so that there is never nobody"
    );
    // A rule asks for room as a run does; chance, and a cap of nothing, leave everybody where they are.
    outliers.handle_timeout(at(530));
    rest(&mut outliers, at(530));
    let _ = changes(&mut outliers);
    let bad = counts(&[(0, 100), (100, 0)]);
    let alone = outliers.handle_counts(bad.clone(), at(540), &mut Rng::new(1));
    assert_eq!(alone, [], "one candidate is not two");
    let one = FailurePercentage::default().with_minimum_hosts(1);
    outliers.config = outliers
        .config
        .with_failure_percentage(one.with_enforcement(0));
    let spared = outliers.handle_counts(bad.clone(), at(550), &mut Rng::new(1));
    assert_eq!(spared[0].verdict, Verdict::Unenforced);
    assert_eq!(changes(&mut outliers), []);
    outliers.config = outliers.config.with_failure_percentage(one);
    let found = outliers.handle_counts(bad, at(560), &mut Rng::new(1));
    assert_eq!(found[0].verdict, Verdict::Ejected);
    let changed = changes(&mut outliers);
    assert_eq!(changed, [(1, Admitted), (0, ejected(590))]);
}

#[test]
fn a_failed_trial_always_finds_room() {
    let mut outliers = fleet(OutlierDetection::default(), 2);
    outliers.handle_run(id(0), at(1));
    outliers.handle_timeout(at(31));
    let _ = changes(&mut outliers);
    outliers.handle_trial(id(0), false, at(32));
    let again = Ejected { until: at(92) };
    assert_eq!(changes(&mut outliers), [(0, again)]);
}
