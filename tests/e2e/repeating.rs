//! Retries and hedging as they are asked for: off unless declared harmless, by service and by method.

use std::time::Duration;

use equipoise::policy::RoundRobin;
use equipoise::retry::{HedgingPolicy, RetryBudget, RetryPolicy, Throttling};
use equipoise::{Builder, Channel, Connectivity, MethodConfig, Served, StatusCode};
use tonic::Code;

use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{Options, Server};
use crate::rig::ledger::Ledger;
use crate::{endpoints, quiet, until};

const SERVICE: &str = "equipoise.demo.v1.Greeter";
const HELLO: &str = "/equipoise.demo.v1.Greeter/SayHello";
const GATHER: &str = "/equipoise.demo.v1.Greeter/Gather";
const MS: Duration = Duration::from_millis(1);

fn failing(name: &str, code: Code) -> Server {
    Server::start(Options {
        fail: Some((code, 1_000)),
        ..Options::new(name)
    })
}

/// One server that fails every call and one that is well, in turns; how many of 10 calls of each method fail.
async fn failed(set: impl FnOnce(Builder<Channel>) -> Builder<Channel>) -> [usize; 2] {
    let servers = [failing("a", Code::Unavailable), crate::server("b")];
    let all: Vec<_> = servers.iter().collect();
    let builder = Channel::from_endpoints(endpoints(&all))
        .policy(RoundRobin::default())
        .retry(RetryPolicy::default().with_backoff(MS, MS))
        .outlier_detection(None);
    let channel = set(builder).connect().await.unwrap();
    until("both are ready", || {
        let states = channel.endpoints();
        let mut states = states.iter().map(|endpoint| endpoint.state);
        states.all(|state| state == Connectivity::Ready)
    })
    .await;
    let mut client = GreeterClient::new(channel.clone());
    // What is ready is in force 5 ms later.
    tokio::time::sleep(20 * MS).await;
    let mut failed = [0; 2];
    for _ in 0..10 {
        let hello = client.say_hello(HelloRequest::default()).await;
        let requests = tokio_stream::iter([HelloRequest::default()]);
        let gather = client.gather(requests).await;
        for (failed, ended) in failed.iter_mut().zip([hello.map(drop), gather.map(drop)]) {
            if let Err(status) = ended {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                *failed += 1;
            }
        }
    }
    quiet(&channel).await;
    failed
}

#[tokio::test]
async fn calls_are_repeated_only_where_that_is_declared_harmless() {
    let harmless = MethodConfig::default().with_idempotent(true);
    let harmful = MethodConfig::default().with_idempotent(false);
    let some = |failed: usize| (1..=10).contains(&failed);
    let [hello, gather] = failed(|builder| builder).await;
    assert!(
        hello + gather == 10,
        "nothing was declared: {hello} {gather}"
    );
    let unsaid = MethodConfig::default().with_timeout(Duration::from_secs(20));
    let [hello, gather] = failed(|builder| builder.service_config(SERVICE, unsaid)).await;
    assert!(
        hello + gather == 10,
        "something else was said: {hello} {gather}"
    );
    let repeated = failed(|builder| builder.service_config(SERVICE, harmless)).await;
    assert_eq!(repeated, [0, 0], "the whole service");
    let [hello, gather] = failed(|builder| builder.method_config(GATHER, harmless)).await;
    assert!(some(hello) && gather == 0, "one method: {hello} {gather}");
    let but_one = |builder: Builder<Channel>| {
        builder
            .service_config(SERVICE, harmless)
            .method_config(HELLO, harmful)
    };
    let [hello, gather] = failed(but_one).await;
    assert!(some(hello) && gather == 0, "all but one: {hello} {gather}");
    // No budget, no attempts.
    let nothing = RetryBudget::default().with_share(0.0).with_reserve(0);
    let [hello, gather] = failed(|builder| {
        builder
            .service_config(SERVICE, harmless)
            .retry_budget(nothing)
    })
    .await;
    assert!(some(hello + gather), "{hello} {gather}");
}

/// A request that a call may not keep is sent once; how much it may keep can be said.
#[tokio::test]
async fn a_request_is_sent_again_only_if_it_could_be_kept() {
    let kib = 1 << 10;
    for (limits, small, large) in [
        (None, 2, 1),
        (Some((400 * kib, 1_000 * kib)), 2, 2),
        (Some((400 * kib, 200 * kib)), 2, 1),
        (Some((0, 1_000 * kib)), 1, 1),
    ] {
        let ledger = Ledger::create();
        let server = Server::start(Options {
            ledger: Some(ledger.path().into()),
            ..Options::new("a")
        });
        let twice = RetryPolicy::default()
            .with_max_attempts(2)
            .with_backoff(MS, MS);
        let harmless = MethodConfig::default().with_idempotent(true);
        let mut builder = Channel::from_endpoints(endpoints(&[&server]))
            .outlier_detection(None)
            .retry(twice)
            .service_config(SERVICE, harmless);
        if let Some((per_call, per_channel)) = limits {
            builder = builder.retry_buffer(per_call, per_channel);
        }
        let channel = builder.build().unwrap();
        let mut client = GreeterClient::new(channel.clone());
        for (id, bytes) in [(1, 10), (2, 300 * kib)] {
            let request = HelloRequest {
                id,
                code: Code::Unavailable as u32,
                payload: vec![7; bytes],
                ..HelloRequest::default()
            };
            let status = client.say_hello(request).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        }
        quiet(&channel).await;
        let attempts = |id| ledger.executions().iter().filter(|e| e.id == id).count();
        assert_eq!((attempts(1), attempts(2)), (small, large), "{limits:?}");
    }
}

/// A method's own policy, its service's, and the channel's: told apart by the codes they heed.
#[tokio::test]
async fn how_a_call_is_repeated_is_said_by_its_method_else_its_service_else_the_channel() {
    let codes = |code| {
        RetryPolicy::default()
            .with_codes([code])
            .with_backoff(MS, MS)
    };
    let harmless = MethodConfig::default().with_idempotent(true);
    let aborted = codes(StatusCode::ABORTED);
    for (service, method, asked, repeated) in [
        (harmless, None, Code::Unavailable, true),
        (harmless, None, Code::Aborted, false),
        (harmless.with_retry(aborted), None, Code::Aborted, true),
        (harmless.with_retry(aborted), None, Code::Unavailable, false),
        (harmless, Some(aborted), Code::Aborted, true),
        (harmless, Some(aborted), Code::Unavailable, false),
    ] {
        let ledger = Ledger::create();
        let server = Server::start(Options {
            ledger: Some(ledger.path().into()),
            ..Options::new("a")
        });
        let mut builder = Channel::from_endpoints(endpoints(&[&server]))
            .outlier_detection(None)
            .service_config(SERVICE, service);
        if let Some(policy) = method {
            let config = MethodConfig::default().with_retry(policy);
            builder = builder.method_config(HELLO, config);
        }
        let channel = builder.build().unwrap();
        let mut client = GreeterClient::new(channel.clone());
        let request = tonic::Request::new(HelloRequest {
            id: 1,
            code: asked as u32,
            ..HelloRequest::default()
        });
        let status = client.say_hello(request).await.unwrap_err();
        assert_eq!(status.code(), asked);
        let attempts: Vec<u32> = ledger.executions().iter().map(|e| e.attempt).collect();
        let expected: &[u32] = if repeated { &[1, 2, 3] } else { &[1] };
        assert_eq!(attempts, expected, "{asked:?} {method:?} {service:?}");
    }
}

#[tokio::test]
async fn a_reply_says_how_many_endpoints_were_tried() {
    let servers = [failing("a", Code::Unavailable), crate::server("b")];
    let all: Vec<_> = servers.iter().collect();
    let channel = Channel::from_endpoints(endpoints(&all))
        .policy(RoundRobin::default())
        .retry(RetryPolicy::default().with_backoff(MS, MS))
        .service_config(SERVICE, MethodConfig::default().with_idempotent(true))
        .outlier_detection(None)
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let mut seen = [0; 3];
    while seen[..2].contains(&0) {
        // Until both are ready all attempts may go to the one that fails, or but the last.
        let Ok(reply) = client.say_hello(HelloRequest::default()).await else {
            continue;
        };
        let served = reply.extensions().get::<Served>().unwrap();
        seen[served.attempts() as usize - 1] += 1;
    }
}

#[test]
fn bad_settings_are_refused_by_name() {
    let error = |set: &dyn Fn(Builder<Channel>) -> Builder<Channel>| {
        let builder = Channel::builder("static:127.0.0.1:1").unwrap();
        set(builder).build().unwrap_err().to_string()
    };
    let harmless = MethodConfig::default().with_idempotent(true);
    let retry = RetryPolicy::default();
    assert_eq!(
        error(&|b| b.retry(retry.with_max_attempts(1))),
        "retry: 1 attempts are not in 2..=5"
    );
    let config = harmless.with_retry(retry.with_backoff(Duration::ZERO, MS));
    assert_eq!(
        error(&|b| b.service_config(SERVICE, config)),
        format!("service {SERVICE:?}: retry: initial backoff 0ns is not above zero")
    );
    let config = harmless.with_retry(retry.with_codes([]));
    assert_eq!(
        error(&|b| b.method_config(HELLO, config)),
        format!("method {HELLO:?}: retry: no codes are given to try again at")
    );
    let config = harmless.with_hedging(HedgingPolicy::at_p95_or(Duration::ZERO));
    assert_eq!(
        error(&|b| b.method_config(HELLO, config)),
        format!(
            "method {HELLO:?}: hedging: delay 0ns while the 95th percentile is unknown is not above zero"
        )
    );
    // How, without whether.
    let config = MethodConfig::default().with_retry(retry);
    assert_eq!(
        error(&|b| b.service_config(SERVICE, config)),
        format!(
            "service {SERVICE:?}: calls are retried and hedged only where they are declared with_idempotent(true)"
        )
    );
    assert_eq!(
        error(&|b| b.retry_budget(RetryBudget::default().with_share(1.5))),
        "retry budget share 1.5 is not in 0.0..=1.0"
    );
    assert_eq!(
        error(&|b| b.retry_budget(RetryBudget::tokens(0, 0.1))),
        "retry budget of 0 tokens is not in 1..=1000"
    );
    assert_eq!(
        error(&|b| b.throttling(Throttling::default().with_multiplier(0.5))),
        "throttling multiplier 0.5 must be finite and at least 1"
    );
}
