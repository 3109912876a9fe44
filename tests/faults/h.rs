//! H: retries, hedging, deadlines.

mod hedging;
mod memory;
mod metastable;
mod retries;
mod stacked;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::Fleet;
use crate::balanced::{clean, over, ready};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{Options, Server, tonic_endpoint};
use crate::rig::ledger::{Call, audit};
use crate::rig::load::{Load, call};
use crate::rig::rivals::tonic_balance;
use crate::rig::{holes, now, timer};

/// H3, a connection dies after calls were sent: none is sent again.
#[test]
fn h3_a_call_that_was_sent_is_not_sent_again() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = Fleet::start(Duration::from_millis(50));
        let channel = ready(over(&fleet.addresses())).await;
        let load = Load::of(1_000);
        let killed = 500;
        let calls = load.run_with(channel.clone(), |number| {
            if number == killed {
                fleet.kill(0);
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let executions = fleet.ledger.executions();
        let verdict = audit(&calls, &executions);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(verdict.executed[2], 0, "{verdict}");
        assert_eq!(verdict.retries, 0, "{verdict}");
        // The fault was there: calls under way that will never be answered.
        let cut = executions.iter().filter(|e| e.end.is_none());
        let cut: BTreeSet<u64> = cut.map(|e| e.id).collect();
        assert!(!cut.is_empty());
        let failed = calls.iter().filter(|call| !is_ok(call)).map(|call| call.id);
        let failed: BTreeSet<u64> = failed.collect();
        assert!(failed.is_superset(&cut), "{:?}", cut.difference(&failed));
        assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
        clean(channel, fleet, &before).await;
    });
}

fn is_ok(call: &Call) -> bool {
    call.end.as_ref().is_some_and(|end| end.code == Code::Ok)
}

/// H3, the control: a client that simply tries again executes it twice,
/// and the ledger knows.
#[test]
fn h3_control_a_naive_retry_executes_twice() {
    alone(async {
        let mut fleet = Fleet::start(Duration::from_millis(300));
        let deadline = Duration::from_secs(5);
        let mut calls = Vec::new();
        let channels = fleet
            .addresses()
            .into_iter()
            .map(|address| tonic_endpoint(address).connect_lazy());
        let channels: Vec<Channel> = channels.collect();
        for id in 1..=20 {
            let (first, second) = (channels[0].clone(), channels[1].clone());
            let request = HelloRequest {
                id,
                ..Default::default()
            };
            calls.push(tokio::spawn(async move {
                let start = now();
                let mut ended = call(first, request.clone(), deadline, start).await;
                if ended.end.as_ref().is_some_and(|end| end.code != Code::Ok) {
                    ended = call(second, request, deadline, start).await;
                }
                ended
            }));
        }
        // Once each has been taken.
        while fleet.ledger.executions().len() < 20 {
            timer::pause(Duration::from_millis(5)).await;
        }
        fleet.kill(0);
        let mut ended = Vec::new();
        for call in calls {
            ended.push(call.await.expect("no panic"));
        }
        let verdict = fleet.ledger.audit(&ended);
        println!("{verdict}");
        assert_eq!(
            (verdict.ok, verdict.executed),
            (20, [0, 0, 20]),
            "{verdict}"
        );
    });
}

/// H10, a deadline while the call waits for an endpoint. tonic's does not run there.
#[test]
fn h10_control_tonic_has_no_deadline_while_it_waits_for_an_endpoint() {
    alone(async {
        let (channel, _changes) = Channel::balance_channel::<SocketAddr>(1);
        let mut request = Request::new(HelloRequest::default());
        request.set_timeout(Duration::from_millis(50));
        let mut client = GreeterClient::new(channel);
        let call = client.say_hello(request);
        let ended = tokio::time::timeout(Duration::from_millis(500), call).await;
        assert!(ended.is_err(), "it ended: {ended:?}");
    });
}

/// H10, a deadline while connecting: nor there.
#[test]
fn h10_control_tonic_has_no_deadline_while_it_connects() {
    alone(async {
        let hole = holes::black_hole();
        let mut request = Request::new(HelloRequest::default());
        request.set_timeout(Duration::from_millis(50));
        let mut client = GreeterClient::new(tonic_balance(&[hole.address]));
        let call = client.say_hello(request);
        let ended = tokio::time::timeout(Duration::from_millis(500), call).await;
        assert!(ended.is_err(), "it ended: {ended:?}");
    });
}

/// H10, a deadline after the call was sent. tonic answers CANCELLED.
#[test]
fn h10_control_tonic_calls_an_expired_deadline_cancelled() {
    alone(async {
        let slow = Options {
            work: Duration::from_secs(5),
            ..Options::new("b1")
        };
        let server = Server::start(slow);
        let client = tonic_balance(&[server.address]);
        let load = Load {
            deadline: Duration::from_millis(50),
            rate: 200,
            ..Load::of(10)
        };
        let calls = load.run(&client).await;
        let verdict = audit(&calls, &[]);
        println!("{verdict}");
        assert_eq!(
            (verdict.lost.len(), verdict.code(Code::Cancelled)),
            (0, 10),
            "{verdict}"
        );
        assert_eq!(verdict.code(Code::DeadlineExceeded), 0, "{verdict}");
    });
}
