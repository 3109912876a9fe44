//! D7: a list that changes a hundred times a second.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use equipoise::rng::Rng;
use equipoise::{Builder, Channel};

use crate::Fleet;
use crate::balanced::{all_ready, clean, endpoints, listed, over, ready, report, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::{Options, tonic_endpoint};
use crate::rig::ledger::Verdict;
use crate::rig::load::Load;
use crate::size::{self, figure};

const ALL: usize = 50;
const WORK: Duration = Duration::from_millis(1);
/// Lists a second.
const LISTS: u32 = 100;

/// Three servers that listen on all of loopback, so that each has as many addresses as are wanted.
fn everywhere(work: Duration) -> Fleet {
    let servers = (1..=3).map(|n| Options {
        work,
        listen: (Ipv4Addr::UNSPECIFIED, 0).into(),
        ..Options::new(&format!("b{n}"))
    });
    Fleet::of(servers.collect())
}

/// Fifty addresses of theirs.
fn fifty(fleet: &Fleet) -> Vec<SocketAddr> {
    let servers = fleet.addresses();
    let ports = servers.iter().map(SocketAddr::port).cycle();
    let hosts = (1..=ALL as u8).map(|n| [127, 0, 1, n]);
    hosts.zip(ports).map(SocketAddr::from).collect()
}

/// Each with a chance of a half, one at least, in any order.
fn some(all: &[SocketAddr], rng: &mut Rng) -> Vec<SocketAddr> {
    let mut list = all.to_vec();
    for last in (1..list.len()).rev() {
        list.swap(last, rng.below(last + 1));
    }
    let mut first = true;
    list.retain(|_| std::mem::take(&mut first) || rng.below(2) == 0);
    list
}

/// The sockets this process has open.
fn sockets() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").expect("linux lists open files there");
    let links = files.flatten().map(|file| std::fs::read_link(file.path()));
    let sockets = links.filter(|link| {
        let link = link.as_ref().ok();
        link.is_some_and(|link| link.to_string_lossy().starts_with("socket:"))
    });
    sockets.count()
}

/// What became of a load while the list changed.
struct Churned {
    channel: Channel,
    verdict: Verdict,
    endpoints: usize,
    connections: usize,
}

/// Calls for so many seconds over a list that changes so often, by `builder`'s channel over all fifty.
async fn churned(builder: Builder<Channel>, fleet: &Fleet, seconds: u64) -> Churned {
    let all = fifty(fleet);
    let seed = size::seed();
    let mut rng = Rng::new(seed);
    let none = sockets();
    let channel = ready(builder).await;
    let rate = 500;
    let load = Load {
        rate,
        // It is not the servers' or the machine's speed that is asked for.
        deadline: Duration::from_secs(5),
        ..Load::of(u64::from(rate) * seconds)
    };
    let each = u64::from(rate / LISTS);
    let (mut lists, mut known, mut live) = (0, 0, 0);
    let calls = load.run_with(channel.clone(), |number| {
        if number % each == 0 {
            let list = endpoints(&some(&all, &mut rng));
            channel.set_endpoints(list).expect("it is open");
            lists += 1;
            known = known.max(channel.endpoints().len());
            live = live.max(sockets().saturating_sub(none));
        }
        ControlFlow::Continue(())
    });
    let verdict = fleet.ledger.audit(&calls.await);
    println!("seed {seed}, {lists} lists\n{verdict}");
    Churned {
        channel,
        verdict,
        endpoints: known,
        connections: live,
    }
}

/// D7: no call fails, whoever it was that has just gone; those who go are let go of, and once the list rests it is used
/// as it is.
#[test]
fn d7_a_hundred_lists_a_second() {
    alone(async {
        let before = Footprint::take();
        let fleet = everywhere(WORK);
        let all = fifty(&fleet);
        let churned = churned(over(&all), &fleet, size::of(3, 60)).await;
        churned.verdict.assert_unnoticed();
        figure("endpoints at most", churned.endpoints as f64, "");
        let live = churned.connections;
        figure(
            "connections at most, with those that drain",
            live as f64,
            "",
        );
        assert!(churned.endpoints <= ALL, "{}", churned.endpoints);
        // None has more than one that serves and one that drains, with a call of a millisecond.
        assert!((2..=2 * ALL).contains(&live), "{live}");

        // Nobody starves: the last list is in use soon.
        let channel = churned.channel;
        let last = endpoints(&all);
        channel.set_endpoints(last).expect("it is open");
        let begin = Instant::now();
        until("all fifty are in use", || {
            listed(&channel).len() == ALL && all_ready(&channel)
        })
        .await;
        let took = begin.elapsed();
        report("all fifty in use", took, Duration::from_secs(1));
        clean(channel, fleet, &before).await;
    });
}

/// The control: with endpoints that go at once, without a time to drain, calls fail.
#[test]
fn d7_control_without_draining_calls_fail() {
    alone(async {
        // Long enough that some are under way whenever an endpoint goes, on a busy machine too.
        let fleet = everywhere(20 * WORK);
        let all = fifty(&fleet);
        let builder = over(&all).drain_deadline(Duration::ZERO);
        let verdict = churned(builder, &fleet, 3).await.verdict;
        assert!(verdict.failed > 10, "{verdict}");
    });
}

/// The control: a client that connects anew to each list, and keeps what it had until all calls may have ended, is
/// seen to have more connections than there are endpoints.
#[test]
fn d7_control_a_connection_for_each_line_of_each_list_is_seen() {
    alone(async {
        let fleet = everywhere(WORK);
        let all = fifty(&fleet);
        let mut rng = Rng::new(size::seed());
        let none = sockets();
        let mut kept = Vec::new();
        for _ in 0..10 {
            for address in some(&all, &mut rng) {
                let connected = tonic_endpoint(address).connect().await;
                kept.push(connected.expect("the servers run"));
            }
        }
        let live = sockets().saturating_sub(none);
        figure("connections at most", live as f64, "");
        assert!(live > 2 * ALL, "{live}");
        drop(kept);
    });
}
