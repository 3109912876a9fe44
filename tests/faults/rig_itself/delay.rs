//! The wire is as long as it says.

use std::time::Duration;

use crate::rig::clean::{Footprint, alone};
use crate::rig::delay::Delay;
use crate::rig::greeter::{Options, Server, tonic_endpoint};
use crate::rig::load::Load;

#[test]
fn a_round_trip_takes_twice_the_delay() {
    alone(async {
        let before = Footprint::take();
        let server = Server::start(Options::new("b1"));
        let wire = Delay::start(server.address, Duration::from_millis(20));
        let channel = tonic_endpoint(wire.address)
            .connect()
            .await
            .expect("it listens");
        let calls = Load {
            rate: 1_000,
            ..Load::of(50)
        }
        .run(&channel)
        .await;
        let verdict = crate::rig::ledger::audit(&calls, &[]);
        assert_eq!(verdict.ok, 50, "{verdict}");
        assert!(
            verdict.latencies[0] >= Duration::from_millis(40),
            "{verdict}"
        );
        drop((channel, wire, server));
        before
            .restored(Duration::from_secs(5))
            .await
            .expect("nothing is left");
    });
}
