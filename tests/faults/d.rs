//! D: membership, whatever the resolver.

use std::net::SocketAddr;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::transport::channel::Change;

use crate::Fleet;
use crate::rig::clean::alone;
use crate::rig::greeter::tonic_endpoint;
use crate::rig::holes;
use crate::rig::ledger::audit;
use crate::rig::load::Load;

/// D11, the list changes while nobody calls. tonic reads changes only while it has a call to place: its
/// channel for them fills up, and a resolver would be stuck.
#[test]
fn d11_control_discovery_stands_still_without_calls() {
    alone(async {
        let refused = holes::refused();
        let capacity = 16;
        let (_client, changes) = Channel::balance_channel::<SocketAddr>(capacity);
        let insert = || Change::Insert(refused.address, tonic_endpoint(refused.address));
        let taken = (0..100)
            .take_while(|_| changes.try_send(insert()).is_ok())
            .count();
        assert_eq!(taken, capacity);
        // However long nobody calls.
        let sent = tokio::time::timeout(Duration::from_millis(300), changes.send(insert())).await;
        assert!(sent.is_err(), "somebody read a change: {sent:?}");
    });
}

/// D6, an endpoint removed under load. The control shows the ledger's side: a removed endpoint gets no
/// more calls, while one that merely is not wanted any more, and was never removed, does.
#[test]
fn d6_control_the_ledger_sees_picks_of_an_endpoint() {
    alone(async {
        let fleet = Fleet::start(Duration::from_millis(1));
        let (client, changes) = Channel::balance_channel::<SocketAddr>(16);
        for address in fleet.addresses() {
            let change = Change::Insert(address, tonic_endpoint(address));
            changes.try_send(change).expect("three fit");
        }
        let first = Load::of(1_000).run(&client).await;
        let before = fleet.ledger.audit(&first);
        before.assert_unnoticed();
        assert!(before.server("b2") > 0, "{before}");

        changes
            .try_send(Change::Remove(fleet.addresses()[1]))
            .expect("one fits");
        let second = Load {
            first: 1_001,
            ..Load::of(1_000)
        }
        .run(&client)
        .await;
        let mut executions = fleet.ledger.executions();
        executions.retain(|execution| execution.id > 1_000);
        let after = audit(&second, &executions);
        println!("{after}");
        after.assert_unnoticed();
        // The first call finds the change in the queue before it picks.
        assert_eq!(after.server("b2"), 0, "{after}");
        assert!(after.server("b1") > 0 && after.server("b3") > 0, "{after}");
    });
}
