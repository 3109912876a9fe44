//! The worked examples of A50, number for number.
//!
//! They know no probation and look at the time only in sweeps: an ejection is over in the first sweep *after* its end.
//! So here ends are looked at when a sweep is due, just before it, and only those that have passed by then; and each
//! probation ends at once with an answer. Nothing else is done for it. In use, ends are looked at when they come:
//! up to an interval earlier, and the rest (counts, multipliers, who is judged when) stays in step with A50's sweeps.

use serde_json::Value;

use super::*;
use crate::balancer::outlier::statistics::spread;

fn vectors() -> Value {
    let text = include_str!("../../../../tests/conformance/vectors/outlier_detection.json");
    serde_json::from_str(text).expect("the vectors are JSON")
}

fn rows(value: &Value) -> &[Value] {
    let rows = value.as_array().expect("a list");
    assert!(!rows.is_empty(), "an empty list tests nothing");
    rows
}

fn whole(value: &Value) -> u32 {
    let whole = value.as_u64().expect("a whole number");
    whole.try_into().expect("a small one")
}

fn numbers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .expect("a list")
        .iter()
        .map(whole)
        .collect()
}

#[track_caller]
fn close(got: f64, expected: &Value) {
    let expected = expected.as_f64().expect("a number");
    assert!((got - expected).abs() < 1e-12, "{got}, not {expected}");
}

fn config(row: &Value, cap: fn(u32) -> MaxEjection) -> OutlierDetection {
    let secs = |value: &Value| Duration::from_secs_f64(value.as_f64().expect("seconds"));
    let success_rate = row["sr"].is_object().then(|| {
        let rule = &row["sr"];
        SuccessRate::default()
            .with_stdev_factor(whole(&rule["stdev_factor"]))
            .with_enforcement(whole(&rule["enforcement"]))
            .with_minimum_hosts(whole(&rule["min_hosts"]))
            .with_request_volume(whole(&rule["volume"]))
    });
    let failure_percentage = row["fp"].is_object().then(|| {
        let rule = &row["fp"];
        FailurePercentage::default()
            .with_threshold(whole(&rule["threshold"]))
            .with_enforcement(whole(&rule["enforcement"]))
            .with_minimum_hosts(whole(&rule["min_hosts"]))
            .with_request_volume(whole(&rule["volume"]))
    });
    OutlierDetection::default()
        .with_interval(secs(&row["interval"]))
        .with_base_ejection_time(secs(&row["base"]))
        .with_max_ejection_time(secs(&row["max"]))
        .with_max_ejection(cap(whole(&row["max_pct"])))
        .with_success_rate(success_rate)
        .with_failure_percentage(failure_percentage)
        .with_consecutive_failures(None)
}

fn counts_of(row: &Value) -> Vec<(EndpointId, Counts)> {
    let pairs = rows(row).iter().map(|pair| match &numbers(pair)[..] {
        &[successes, failures] => (u64::from(successes), u64::from(failures)),
        other => panic!("{other:?} is no pair"),
    });
    counts(&pairs.collect::<Vec<_>>())
}

/// One sweep of A50's; what happened, in the words of the vectors.
fn sweep(
    outliers: &mut Outliers,
    counts: Vec<(EndpointId, Counts)>,
    now: Timestamp,
) -> Vec<(u32, &'static str, &'static str)> {
    let mut events = Vec::new();
    if outliers.poll_timeout().is_some_and(|until| until < now) {
        outliers.handle_timeout(now);
    }
    for (slot, standing) in changes(outliers) {
        assert_eq!(standing, Probation);
        outliers.handle_trial(id(slot as u32), true, now);
        events.push((slot as u32, "uneject", ""));
    }
    let _ = changes(outliers);
    for finding in outliers.handle_counts(counts, now, &mut Rng::new(1)) {
        let by = match finding.rule {
            Rule::SuccessRate => "success_rate",
            Rule::FailurePercentage => "failure_percentage",
        };
        let action = match finding.verdict {
            Verdict::Ejected => "eject",
            Verdict::Capped => "max_ejection_overflow",
            Verdict::Unenforced => "enforcement_percentage",
        };
        events.push((finding.id.slot() as u32, action, by));
    }
    let ejected = events.iter().filter(|(_, action, _)| *action == "eject");
    let ejected: Vec<usize> = ejected.map(|&(slot, ..)| slot as usize).collect();
    let changed: Vec<usize> = changes(outliers).iter().map(|&(slot, _)| slot).collect();
    assert_eq!(changed, ejected, "what is found and ejected is a change");
    events
}

/// The same as the vectors have it.
fn expected_events(row: &Value) -> Vec<(u32, &str, &str)> {
    let events = row.as_array().expect("a list").iter();
    events
        .map(|event| {
            let action = match event["action"].as_str().expect("an action") {
                "unenforced" => event["reason"].as_str().expect("a reason"),
                action => action,
            };
            let by = event["by"].as_str().unwrap_or_default();
            (whole(&event["endpoint"]), action, by)
        })
        .collect()
}

fn assert_state(outliers: &Outliers, ejected: &Value, multipliers: &Value, when: &str) {
    let records = outliers.records.iter();
    let out = records.filter(|(_, record)| record.standing != Admitted);
    let out: Vec<u32> = out.map(|(id, _)| id.slot() as u32).collect();
    assert_eq!(out, numbers(ejected), "{when}");
    let got: Vec<u32> = outliers.records.values().map(|r| r.multiplier).collect();
    assert_eq!(got, numbers(multipliers), "{when}");
}

/// The two ways to count differ only in whether the last one may be out, which these do not try.
const CAPS: [fn(u32) -> MaxEjection; 2] = [MaxEjection::A50, MaxEjection::Share];

#[test]
fn single_sweeps() {
    let vectors = vectors();
    for row in rows(&vectors["single_sweeps"]) {
        let name = row["name"].as_str().expect("a name");
        for cap in CAPS {
            let config = config(&row["config"], cap);
            let counts = counts_of(&row["counts_success_failure"]);
            let trace = &row["trace"]["sr"];
            if trace.is_object() {
                let rule = config.success_rate.expect("the rule that is traced");
                let busy = counts
                    .iter()
                    .map(|&(_, counts)| counts)
                    .filter(|counts| counts.calls() >= u128::from(rule.request_volume));
                let rates: Vec<f64> = busy.map(Counts::success_rate).collect();
                let (mean, deviation) = spread(&rates);
                close(mean, &trace["mean"]);
                close(deviation, &trace["stdev"]);
                close(rule.bound(&rates), &trace["threshold"]);
            }
            let mut outliers = fleet(config, counts.len() as u32);
            let events = sweep(&mut outliers, counts, at(10));
            assert_eq!(events, expected_events(&row["events"]), "{name}");
            assert_state(&outliers, &row["ejected_after"], &row["multipliers"], name);
        }
    }
}

#[test]
fn timelines() {
    let vectors = vectors();
    for row in rows(&vectors["timelines"]) {
        let name = row["name"].as_str().expect("a name");
        for cap in CAPS {
            let config = config(&row["config"], cap);
            let sweeps = rows(&row["sweeps"]);
            let size = rows(&sweeps[0]["counts"]).len() as u32;
            let mut outliers = fleet(config, size);
            for row in sweeps {
                let secs = row["t"].as_f64().expect("a time");
                let now = Timestamp::ZERO + Duration::from_secs_f64(secs);
                assert_eq!(outliers.sweep_due(), Some(now));
                let events = sweep(&mut outliers, counts_of(&row["counts"]), now);
                let when = format!("{name}: at {secs}");
                assert_eq!(events, expected_events(&row["events"]), "{when}");
                assert_state(&outliers, &row["ejected"], &row["multipliers"], &when);
            }
        }
    }
}

#[test]
fn one_dead_host_is_found_from_five_on() {
    let vectors = vectors();
    let helper = &vectors["stats_helper"];
    let values: Vec<f64> = numbers(&helper["values"])
        .into_iter()
        .map(f64::from)
        .collect();
    let (mean, deviation) = spread(&values);
    close(mean, &helper["mean"]);
    close(deviation, &helper["population_stdev"]);
    for row in rows(&vectors["one_dead_host_threshold"]) {
        let hosts = whole(&row["n"]) as usize;
        let mut each = vec![(100, 0); hosts];
        each[0] = (0, 100);
        let counts = counts(&each);
        let rates: Vec<f64> = counts.iter().map(|(_, c)| c.success_rate()).collect();
        let (mean, deviation) = spread(&rates);
        close(mean, &row["mean"]);
        close(deviation, &row["stdev"]);
        let rule = SuccessRate::default().with_minimum_hosts(1);
        close(rule.bound(&rates), &row["threshold_default_factor"]);
        let expected = row["ejectable"].as_bool().expect("yes or no");
        let found = rule.suspects(&counts);
        assert_eq!(found, if expected { vec![id(0)] } else { vec![] });
    }
}

#[test]
fn times_by_multiplier() {
    let vectors = vectors();
    let detection = OutlierDetection::default();
    let rows = rows(&vectors["ejection_seconds_by_multiplier_base30_max300"]);
    for (times, secs) in (1..).zip(rows) {
        let secs = u64::from(whole(secs));
        assert_eq!(detection.ejection_time(times), Duration::from_secs(secs));
    }
}

#[test]
fn rounding_ejects_nobody() {
    let vectors = vectors();
    for row in rows(&vectors["float_rounding_hazard"]["rows"]) {
        let one = (
            u64::from(whole(&row["each_success"])),
            u64::from(whole(&row["each_failure"])),
        );
        let counts = counts(&vec![one; whole(&row["endpoints"]) as usize]);
        let rule = SuccessRate::default()
            .with_stdev_factor(whole(&row["stdev_factor"]))
            .with_request_volume(1);
        let rates: Vec<f64> = counts.iter().map(|(_, c)| c.success_rate()).collect();
        close(rates[0], &row["rate"]);
        close(spread(&rates).0, &row["mean"]);
        close(rule.bound(&rates), &row["threshold"]);
        // The control: compared as they are, rounding decides.
        let naive = rates.iter().filter(|&&rate| rate < rule.bound(&rates));
        assert_eq!(naive.count(), whole(&row["naive_f64_ejects"]) as usize);
        let found = rule.suspects(&counts).len();
        assert_eq!(found, whole(&row["should_eject"]) as usize);
    }
}
