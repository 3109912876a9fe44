//! B: HTTP/2.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::Fleet;
use crate::rig::clean::alone;
use crate::rig::delay::Delay;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::{Options, Server, tonic_endpoint};
use crate::rig::ledger::{Ledger, audit};
use crate::rig::load::{Client, Load, call};
use crate::rig::rivals::tonic_balance;
use crate::rig::{holes, now, timer};

/// B1, a rolling restart with GOAWAY. tonic fails calls while a server is away.
#[test]
fn b1_control_tonic_fails_calls_in_a_rolling_restart() {
    alone(async {
        let mut fleet = Fleet::start(Duration::from_millis(1));
        let client = tonic_balance(&fleet.addresses());
        let running = Load::default().run_until_stopped(&client);
        for index in 0..3 {
            timer::pause(Duration::from_millis(200)).await;
            fleet.terminate(index).await;
            // As long as a server takes to come up.
            timer::pause(Duration::from_millis(200)).await;
            fleet.restart(index);
        }
        timer::pause(Duration::from_millis(200)).await;
        let calls = running.stop().await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        assert!(verdict.failed > 0, "{verdict}");
        for server in ["b1", "b2", "b3"] {
            assert!(verdict.server(server) > 0, "{verdict}");
        }
    });
}

/// B8, the client's own cancellations, on a wire so long that each answer comes after its call was given
/// up. h2 with its defaults remembers 50 reset streams; answers to forgotten ones end the connection, and
/// the innocent calls on it.
#[test]
fn b8_control_a_cancel_storm_kills_a_tonic_connection() {
    alone(async {
        let ledger = Ledger::create();
        let options = Options {
            ledger: Some(ledger.path().into()),
            ..Options::new("b1")
        };
        let server = Server::start(options);
        let wire = Delay::start(server.address, Duration::from_millis(25));
        let client = tonic_endpoint(wire.address)
            .connect()
            .await
            .expect("it listens");
        let beside = Load {
            rate: 400,
            ..Load::of(1_000)
        };
        let (calls, ()) = tokio::join!(beside.run(&client), cancel_storm(client.clone(), 5_000));
        let mut executions = ledger.executions();
        let stormed = executions
            .iter()
            .filter(|execution| execution.id > STORM)
            .count();
        executions.retain(|execution| execution.id <= STORM);
        let verdict = audit(&calls, &executions);
        println!("{verdict}\n  {stormed} cancelled calls reached the server");
        assert!(
            stormed > 1_000,
            "only {stormed} cancelled calls reached the server"
        );
        verdict.assert_true();
        assert!(verdict.failed > 0, "{verdict}");
    });
}

/// The ids of cancelled calls lie above.
const STORM: u64 = 1_000_000;

/// 2,000 calls a second, each given up after 10 ms.
async fn cancel_storm(client: impl Client, calls: u64) {
    let begin = Instant::now();
    for number in 1..=calls {
        timer::until(begin + Duration::from_micros(500) * number as u32).await;
        let request = HelloRequest {
            id: STORM + number,
            ..Default::default()
        };
        let call = call(client.clone(), request, Duration::from_secs(1), now());
        tokio::spawn(async move {
            let cancel = timer::pause(Duration::from_millis(10));
            tokio::select! { _ = call => {}, () = cancel => {} }
        });
    }
}

/// B10, one of three servers takes 10 streams at a time. tonic sends it as much as the others, and the
/// calls wait unseen inside hyper.
#[test]
fn b10_control_calls_queue_behind_a_full_connection() {
    alone(async {
        let mut options = Options::three(Duration::from_millis(100));
        options[0].max_concurrent_streams = Some(10);
        let fleet = Fleet::of(options.into());
        let client = tonic_balance(&fleet.addresses());
        let load = Load {
            deadline: Duration::from_secs(10),
            ..Load::of(900)
        };
        let calls = load.run_closed(&client, 90).await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        // tonic sends before the SETTINGS come: a server may refuse what is above its limit.
        assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
        assert!(
            verdict.latency(0.99) > Duration::from_millis(250),
            "{verdict}"
        );
    });
}

/// B11, TCP accepts and SETTINGS never come. tonic calls that connected.
#[test]
fn b11_control_tonic_connects_to_a_silent_address() {
    alone(async {
        let silent = holes::silent();
        let endpoint = tonic_endpoint(silent.address).connect_timeout(Duration::from_millis(500));
        endpoint
            .connect()
            .await
            .expect("tonic waits for no SETTINGS");
        let client = tonic_balance(&[silent.address]);
        let load = Load {
            deadline: Duration::from_millis(200),
            rate: 200,
            ..Load::of(20)
        };
        let verdict = audit(&load.run(&client).await, &[]);
        println!("{verdict}");
        assert_eq!((verdict.ok, verdict.failed), (0, 20), "{verdict}");
        // Sent into the silence, so each waits for its whole deadline.
        assert!(
            verdict.latencies[0] >= Duration::from_millis(199),
            "{verdict}"
        );
    });
}
