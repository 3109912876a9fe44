//! The rows whose faults the kernel itself makes, in a network namespace. Without the right to have one they are
//! skipped; their siblings in [`silent`](super::silent) and [`connecting`](super::connecting) are not.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use equipoise::Connectivity;
use equipoise::policy::RoundRobin;
use equipoise::transport::Http2Options;
use tonic::Code;

use super::connecting::{fails_at_once, fails_politely};
use super::silent::second;
use crate::namespace::{network, shell};
use crate::rig::clean::{Footprint, alone};
use crate::rig::load::Load;
use crate::size;
use crate::{Fleet, clean, failed_from, is_ready, reference, report, status, until};

/// `nft` can do what the faults need.
const FILTER: &str = "nft add table inet faults
nft 'add chain inet faults in { type filter hook input priority 0; }'";

/// N5, all packets to and from one of three servers are dropped, and later they are not.
#[test]
fn n5_dropped_by_the_kernel() {
    if network("n::namespaces::n5_dropped_by_the_kernel", FILTER) {
        alone(dropped(|b2, _| {
            vec![
                format!("tcp dport {0} drop", b2.port()),
                format!("tcp sport {0} drop", b2.port()),
            ]
        }));
    }
}

/// N6, only those of the connection that is there: new ones work.
#[test]
fn n6_one_flow_dropped_by_the_kernel() {
    if network("n::namespaces::n6_one_flow_dropped_by_the_kernel", FILTER) {
        alone(dropped(|_, ours| {
            vec![
                format!("tcp sport {ours} drop"),
                format!("tcp dport {ours} drop"),
            ]
        }));
    }
}

/// The rules are made from the server's address and the port of our connection to it.
async fn dropped(rules: fn(SocketAddr, u16) -> Vec<String>) {
    let before = Footprint::take();
    let fleet = Fleet::start(Duration::from_millis(1));
    let addresses = fleet.addresses();
    let builder = reference(&addresses).connect_timeout(second());
    let builder = builder
        .keepalive(second(), second())
        .policy(RoundRobin::default());
    let channel = builder.build().expect("in range");
    until("every endpoint is ready", || is_ready(&channel)).await;
    let b2 = addresses[1];
    let rules = rules(b2, our_port(b2));
    let load = Load {
        rate: size::of(400, 2_000),
        ..Load::of(size::calls(800))
    };
    let at = size::fault_before(load.calls);
    let (mut known, mut in_flight) = (0, 0);
    let calls = load.run_with(channel.clone(), |number| {
        if number == at {
            let b2 = status(&channel, b2);
            (known, in_flight) = (b2.picks, b2.in_flight);
            for rule in &rules {
                shell(&format!("nft add rule inet faults in {rule}"));
            }
        }
        ControlFlow::Continue(())
    });
    let calls = calls.await;
    let verdict = fleet.ledger.audit(&calls);
    println!("{verdict}");
    let picked = (status(&channel, b2).picks - known) as usize + in_flight as usize;
    assert!(
        verdict.lost.is_empty() && verdict.repeated.is_empty(),
        "{verdict}"
    );
    // The fault was there, and it was these calls' alone.
    assert!(
        (1..=picked).contains(&verdict.failed),
        "{picked} picks\n{verdict}"
    );
    let codes = [Code::Unavailable, Code::DeadlineExceeded];
    let named: usize = codes.iter().map(|&code| verdict.code(code)).sum();
    assert_eq!(named, verdict.failed, "{verdict}");
    shell("nft flush chain inet faults in");
    let back = until("it is ready again", || {
        status(&channel, b2).state == Connectivity::Ready
    });
    report("READY again after", back.await, Duration::from_secs(3));
    let after = Load {
        first: 1_000_000,
        ..Load::of(300)
    };
    assert_eq!(failed_from(&after.run(&channel).await, 0), 0);
    drop(fleet);
    clean(channel, &before).await;
}

/// The port our connection to a server comes from; there is nobody else in this network.
fn our_port(server: SocketAddr) -> u16 {
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("linux lists sockets there");
    let there = format!(":{:04X}", server.port());
    let mut ports = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        // ESTABLISHED
        let ours = remote.ends_with(&there) && state == "01";
        let port = ours.then(|| local.rsplit_once(':'))??.1;
        u16::from_str_radix(port, 16).ok()
    });
    ports.next().expect("we are connected")
}

/// N8, routes that end every connect at once, each with an error of its own.
#[test]
fn n8_routes_that_lead_nowhere() {
    let routes = "ip route add blackhole 10.9.9.1/32
ip route add prohibit 10.9.9.2/32
ip route add unreachable 10.9.9.3/32";
    if network("n::namespaces::n8_routes_that_lead_nowhere", routes) {
        alone(async {
            let before = Footprint::take();
            let at = |host: u8| SocketAddr::from(([10, 9, 9, host], 80));
            for (address, errno) in [
                (at(1), "os error 22"),
                (at(2), "os error 13"),
                (at(3), "os error 113"),
            ] {
                fails_at_once(Http2Options::default(), &[address], errno).await;
            }
            let all = [at(1), at(2), at(3)];
            fails_politely(Http2Options::default(), &all, None).await;
            before
                .restored(crate::PATIENCE)
                .await
                .expect("nothing is left");
        });
    }
}
