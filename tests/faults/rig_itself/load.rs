//! The load tells of each call, whatever becomes of it.

use std::time::Duration;

use tonic::body::Body;
use tonic::{Code, Status};

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::{Options, Server, tonic_endpoint};
use crate::rig::ledger::{Call, Ledger};
use crate::rig::load::Load;
use crate::rig::timer;

#[test]
fn every_kind_of_load_is_told_in_full_and_leaves_nothing() {
    alone(every_kind());
}

async fn every_kind() {
    let ledger = Ledger::create();
    let before = Footprint::take();
    let options = Options {
        ledger: Some(ledger.path().into()),
        ..Options::new("b1")
    };
    let server = Server::start(options);
    let client = tonic_endpoint(server.address)
        .connect()
        .await
        .expect("it listens");

    let open = Load::of(200).run(&client).await;
    let closed = Load {
        first: 1_001,
        ..Load::of(200)
    }
    .run_closed(&client, 8)
    .await;
    let running = Load {
        first: 2_001,
        ..Load::default()
    }
    .run_until_stopped(&client);
    timer::pause(Duration::from_millis(120)).await;
    let stopped = running.stop().await;
    assert!(stopped.len() >= 200, "{}", stopped.len());

    let calls: Vec<Call> = [open, closed, stopped].concat();
    let verdict = ledger.audit(&calls);
    verdict.assert_unnoticed();
    assert_eq!(verdict.server("b1"), calls.len());
    drop(client);
    server.shutdown().await;
    before
        .restored(Duration::from_secs(5))
        .await
        .expect("nothing is left");
}

#[test]
fn codes_and_cancelled_work_are_seen() {
    alone(codes());
}

async fn codes() {
    let ledger = Ledger::create();
    let options = Options {
        ledger: Some(ledger.path().into()),
        fail: Some((Code::ResourceExhausted, 500)),
        ..Options::new("b1")
    };
    let server = Server::start(options);
    let client = tonic_endpoint(server.address)
        .connect()
        .await
        .expect("it listens");
    let failing = Load::of(100).run(&client).await;
    let request = HelloRequest {
        work_us: 10_000_000,
        ..Default::default()
    };
    let deadline = Duration::from_millis(50);
    let cut = Load {
        first: 101,
        deadline,
        request,
        ..Load::of(1)
    }
    .run(&client)
    .await;
    server.abort();

    let verdict = ledger.audit(&[failing, cut].concat());
    verdict.assert_true();
    assert_eq!(
        (verdict.ok, verdict.code(Code::ResourceExhausted)),
        (50, 50)
    );
    let executions = ledger.executions();
    let last = executions
        .iter()
        .find(|e| e.id == 101)
        .expect("it was begun");
    assert_eq!(last.end.map(|(_, code)| code), Some(Code::Cancelled));
    assert!(verdict.worst() >= deadline, "{verdict}");
}

#[test]
fn a_client_that_never_answers_loses_its_calls() {
    #[derive(Clone)]
    struct Mute;
    impl tower::Service<http::Request<Body>> for Mute {
        type Response = http::Response<Body>;
        type Error = Status;
        type Future = std::future::Pending<Result<Self::Response, Status>>;
        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), Status>> {
            std::task::Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            std::future::pending()
        }
    }
    // Virtual time, and no sockets: it disturbs nobody.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be had");
    let calls = runtime.block_on(
        Load {
            rate: 1_000_000,
            ..Load::of(3)
        }
        .run(&Mute),
    );
    let verdict = crate::rig::ledger::audit(&calls, &[]);
    assert_eq!(verdict.lost, [1, 2, 3]);
    assert_eq!((verdict.ok, verdict.failed), (0, 0));
}
