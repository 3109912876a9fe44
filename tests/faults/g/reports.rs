//! G12: load reports with numbers that no server can mean.

use std::ops::ControlFlow;
use std::time::Duration;

use equipoise::policy::WeightedRoundRobin;
use equipoise::{Address, Channel, LoadReport};

use super::load;
use super::seen::share_of_calls;
use crate::balanced::{clean, endpoints, ready, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::ledger::{Execution, audit};
use crate::rig::load::Load;
use crate::{Fleet, reference};

/// A server that is half full at so many requests a second.
fn at(rps: f64) -> LoadReport {
    LoadReport {
        cpu_utilization: 0.5,
        rps,
        ..LoadReport::default()
    }
}

/// Every field once with each number, else as `at(100.0)`.
fn hostile(numbers: &[f64]) -> Vec<LoadReport> {
    let mut reports = vec![LoadReport::default()];
    for &number in numbers {
        let fields: [fn(&mut LoadReport) -> &mut f64; 5] = [
            |report| &mut report.cpu_utilization,
            |report| &mut report.application_utilization,
            |report| &mut report.mem_utilization,
            |report| &mut report.rps,
            |report| &mut report.eps,
        ];
        for field in fields {
            let mut report = at(100.0);
            *field(&mut report) = number;
            reports.push(report);
        }
    }
    reports
}

/// A fleet whose second and third server report alike and whose first what is given, with each of 1,000 calls.
async fn reported(first: &[LoadReport]) -> Vec<Execution> {
    let before = Footprint::take();
    let fleet = Fleet::start(Duration::from_millis(1));
    let addresses = fleet.addresses();
    let policy = WeightedRoundRobin::reported()
        .with_blackout(Duration::ZERO)
        .with_update_period(Duration::from_millis(100));
    let channel = ready(reference(&addresses).policy(policy)).await;
    let report = |channel: &Channel, server: usize, report: &LoadReport| {
        channel.report_load(&Address::from(addresses[server]), report)
    };
    for server in 0..3 {
        assert!(report(&channel, server, &at(100.0)));
    }
    let load = Load {
        rate: 1_000,
        ..load(1_000)
    };
    let calls = load
        .run_with(channel.clone(), |number| {
            let sent = &first[number as usize % first.len()];
            assert!(report(&channel, 0, sent));
            for server in 1..3 {
                assert!(report(&channel, server, &at(100.0)));
            }
            ControlFlow::Continue(())
        })
        .await;
    // One that has left says what it likes.
    let set = channel.set_endpoints(endpoints(&addresses[1..]));
    set.expect("the list is in our hands");
    until("it has left", || channel.endpoints().len() == 2).await;
    assert!(!report(&channel, 0, &at(f64::MAX)), "nobody is told");
    let executions = fleet.ledger.executions();
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_unnoticed();
    clean(channel, fleet, &before).await;
    executions
}

/// G12: what is no number, or none that is meant, changes no weight.
#[test]
fn g12_numbers_that_are_none_change_nothing() {
    alone(async {
        let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -0.0];
        // Where a field is no number the others still count, so each share stays about a third.
        let executions = reported(&hostile(&numbers)).await;
        for server in ["b1", "b2", "b3"] {
            let share = share_of_calls(server, &executions, 201..u64::MAX);
            println!("  {server}: {share}");
            assert!((0.2..=0.5).contains(&share), "{server}: {share}");
        }
    });
}

/// G12: one huge number starves nobody, and ends.
#[test]
fn g12_huge_numbers_starve_nobody() {
    alone(async {
        let numbers = [1e308, f64::MAX, f64::MIN_POSITIVE];
        let executions = reported(&hostile(&numbers)).await;
        for server in ["b1", "b2", "b3"] {
            let share = share_of_calls(server, &executions, 201..u64::MAX);
            println!("  {server}: {share}");
            assert!(share >= 0.01, "{server}: {share}");
        }
    });
}

/// The control: numbers that are meant do change the weights.
#[test]
fn g12_control_numbers_that_are_meant_count() {
    alone(async {
        let executions = reported(&[at(400.0)]).await;
        let share = share_of_calls("b1", &executions, 301..u64::MAX);
        println!("  b1: {share}");
        assert!((0.6..=0.72).contains(&share), "four of six: {share}");
    });
}
