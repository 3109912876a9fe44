//! H1, H3 to H6, H12 and H14: calls that are tried again, and calls that must not be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use equipoise::retry::{RetryBudget, RetryPolicy};
use equipoise::{Builder, Channel, MethodConfig};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::{Code, Request, Status};
use tower::Service;

use crate::Fleet;
use crate::balanced::{PATIENCE, clean, over, ready, report};
use crate::frames::{FrameServer, Script, Step, code, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{Options, tonic_endpoint};
use crate::rig::ledger::Verdict;
use crate::rig::load::{self, Load};
use crate::rig::{now, timer};
use crate::size;

const MS: Duration = Duration::from_millis(1);
pub(super) const SERVICE: &str = "equipoise.demo.v1.Greeter";

/// The demo's calls may be carried out twice; who fails is not ejected, since here all fail.
pub(super) fn repeated(builder: Builder<Channel>, config: MethodConfig) -> Builder<Channel> {
    builder
        .service_config(SERVICE, config.with_idempotent(true))
        .outlier_detection(None)
}

/// A storm: every call fails with UNAVAILABLE. What the ledger says of it.
async fn storm(set: impl FnOnce(Builder<Channel>) -> Builder<Channel>) -> Verdict {
    let before = Footprint::take();
    let options = Options::three(Duration::ZERO).map(|options| Options {
        fail: Some((Code::Unavailable, 1_000)),
        ..options
    });
    let fleet = Fleet::of(options.into());
    let channel = ready(set(over(&fleet.addresses()))).await;
    let load = Load {
        rate: 1_000,
        ..Load::of(size::of(2_000, 10_000))
    };
    let calls = load.run(&channel).await;
    let verdict = fleet.ledger.audit(&calls);
    println!("{verdict}");
    assert!(verdict.lost.is_empty(), "{verdict}");
    assert_eq!(
        verdict.code(Code::Unavailable),
        verdict.calls,
        "no call is given another status than its last attempt's\n{verdict}"
    );
    clean(channel, fleet, &before).await;
    verdict
}

/// Attempts for each call, as the servers counted them.
fn per_call(verdict: &Verdict) -> f64 {
    let attempts: usize = verdict.servers.values().sum();
    attempts as f64 / verdict.calls as f64
}

fn quick_retries() -> MethodConfig {
    let policy = RetryPolicy::default().with_backoff(5 * MS, 50 * MS);
    MethodConfig::default().with_retry(policy)
}

/// H1: all servers fail all calls, and the retries are a fifth of the calls.
#[test]
fn h1_a_budget_of_a_fifth_stops_the_storm() {
    alone(async {
        let budget = RetryBudget::default().with_reserve(0);
        let verdict =
            storm(|builder| repeated(builder, quick_retries()).retry_budget(budget)).await;
        let attempts = per_call(&verdict);
        assert!((1.15..=1.21).contains(&attempts), "{attempts}\n{verdict}");
    });
}

/// H1, gRPC's own budget: five failures, and that is all until calls succeed again.
#[test]
fn h1_tokens_stop_the_storm_at_once() {
    alone(async {
        let budget = RetryBudget::tokens(10, 0.1);
        let verdict =
            storm(|builder| repeated(builder, quick_retries()).retry_budget(budget)).await;
        let attempts = per_call(&verdict);
        assert!(attempts > 1.0 && attempts <= 1.01, "{attempts}\n{verdict}");
    });
}

/// H1, the control: a budget that refuses nothing lets each call be sent three times.
#[test]
fn h1_control_without_a_budget_the_load_is_threefold() {
    alone(async {
        let budget = RetryBudget::default()
            .with_share(1.0)
            .with_reserve(1_000_000);
        let verdict =
            storm(|builder| repeated(builder, quick_retries()).retry_budget(budget)).await;
        assert!(per_call(&verdict) > 2.9, "{verdict}");
        let verdict = storm(|builder| builder.outlier_detection(None)).await;
        assert_eq!(verdict.retries, 0, "not declared idempotent\n{verdict}");
    });
}

/// A scripted server whose calls are counted, and a channel to it and perhaps to others.
async fn scripted(
    answer: impl Fn(usize) -> Vec<Step> + Send + Sync + 'static,
) -> (FrameServer, Arc<AtomicUsize>) {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counter = attempts.clone();
    let server = FrameServer::start(Script {
        // A counter on its own: nothing else is read in its order.
        stream: stream(move |_| answer(counter.fetch_add(1, Ordering::Relaxed))),
        ..Script::default()
    });
    (server.await, attempts)
}

async fn hello(channel: &Channel) -> Result<(), Status> {
    let mut request = Request::new(HelloRequest::default());
    request.set_timeout(Duration::from_secs(10));
    let answer = GreeterClient::new(channel.clone()).say_hello(request).await;
    answer.map(drop)
}

fn code_of(ended: Result<(), Status>) -> Code {
    ended.err().map_or(Code::Ok, |status| status.code())
}

/// H3: nobody said that the method may be carried out twice, and the connection dies with the call under way.
#[test]
fn h3_a_call_that_is_not_idempotent_is_executed_once_at_most() {
    alone(async {
        for (idempotent, expected) in [(false, (1, Code::Unavailable)), (true, (2, Code::Ok))] {
            let (server, attempts) = scripted(|nth| match nth {
                0 => vec![Step::UntilEnd, Step::Kill],
                _ => Step::reply(b""),
            })
            .await;
            let config = MethodConfig::default().with_idempotent(idempotent);
            let builder = over(&[server.address()]).outlier_detection(None);
            let channel = ready(builder.service_config(SERVICE, config)).await;
            let code = code_of(hello(&channel).await);
            let seen = (attempts.load(Ordering::Relaxed), code);
            assert_eq!(seen, expected, "idempotent: {idempotent}");
        }
    });
}

/// How many attempts a call makes that fails so each time, whatever the code.
async fn attempts_at(steps: impl Fn() -> Vec<Step> + Send + Sync + 'static) -> usize {
    let (server, attempts) = scripted(move |_| steps()).await;
    let codes = [Code::Unavailable, Code::Internal, Code::Unknown];
    let codes = codes.map(|code| equipoise::StatusCode::new(code as u8));
    let policy = RetryPolicy::default()
        .with_codes(codes)
        .with_backoff(MS, MS);
    let config = MethodConfig::default().with_retry(policy);
    let channel = ready(repeated(over(&[server.address()]), config)).await;
    let ended = hello(&channel).await;
    println!("{ended:?}");
    assert!(ended.is_err());
    attempts.load(Ordering::Relaxed)
}

/// H4: once there is a head the call is this attempt, whatever becomes of it.
#[test]
fn h4_nothing_is_tried_again_after_the_head() {
    alone(async {
        let ways: [fn() -> Vec<Step>; 3] = [
            || vec![Step::UntilEnd, Step::Headers, Step::Trailers(14)],
            || {
                let reset = Step::Reset(code::INTERNAL_ERROR);
                vec![Step::UntilEnd, Step::Headers, reset]
            },
            || {
                vec![
                    Step::UntilEnd,
                    Step::Headers,
                    Step::Pause(20 * MS),
                    Step::Kill,
                ]
            },
        ];
        for (way, steps) in ways.into_iter().enumerate() {
            assert_eq!(attempts_at(steps).await, 1, "{way}");
        }
    });
}

/// H4, the control: the same failures without a head before them are tried again.
#[test]
fn h4_control_without_a_head_it_is_tried_again() {
    alone(async {
        let ways: [fn() -> Vec<Step>; 3] = [
            || vec![Step::UntilEnd, Step::TrailersOnly(14)],
            || vec![Step::UntilEnd, Step::Reset(code::INTERNAL_ERROR)],
            || vec![Step::UntilEnd, Step::Pause(20 * MS), Step::Kill],
        ];
        for (way, steps) in ways.into_iter().enumerate() {
            // The second connection in a row that is lost is not made anew at once.
            assert!(attempts_at(steps).await >= 2, "{way}");
        }
    });
}

/// The wait of the retries' policy here.
const WAIT: Duration = Duration::from_millis(200);

/// A call whose first attempt fails with these fields in its head, and whose second is answered; how it ended after how
/// many attempts, and how long it took.
async fn pushed_back(fields: crate::frames::Fields) -> (Code, usize, Duration) {
    let (server, attempts) = scripted(move |nth| match nth {
        0 => vec![Step::UntilEnd, Step::LastHead(200, fields)],
        _ => Step::reply(b""),
    })
    .await;
    let policy = RetryPolicy::default().with_backoff(WAIT, WAIT);
    let config = MethodConfig::default().with_retry(policy);
    let channel = ready(repeated(over(&[server.address()]), config)).await;
    let begun = Instant::now();
    let code = code_of(hello(&channel).await);
    (code, attempts.load(Ordering::Relaxed), begun.elapsed())
}

const UNAVAILABLE: (&str, &str) = ("grpc-status", "14");

/// H5: what the server says of the next attempt holds exactly.
#[test]
fn h5_pushback_is_kept_to() {
    alone(async {
        const PUSHBACK: &str = "grpc-retry-pushback-ms";
        const CASES: [(crate::frames::Fields, Option<u32>); 6] = [
            (&[(PUSHBACK, "0"), UNAVAILABLE], Some(0)),
            (&[(PUSHBACK, "500"), UNAVAILABLE], Some(500)),
            (&[(PUSHBACK, "-1"), UNAVAILABLE], None),
            (&[(PUSHBACK, "abc"), UNAVAILABLE], None),
            (&[(PUSHBACK, "2147483648"), UNAVAILABLE], None),
            (&[(PUSHBACK, "7"), (PUSHBACK, "7"), UNAVAILABLE], None),
        ];
        for (fields, wait) in CASES {
            let (code, attempts, took) = pushed_back(fields).await;
            let Some(wait) = wait else {
                assert_eq!((code, attempts), (Code::Unavailable, 1), "{fields:?}");
                continue;
            };
            assert_eq!((code, attempts), (Code::Ok, 2), "{fields:?}");
            assert!(took >= wait * MS, "{fields:?}: {took:?}");
            report("beyond the wait", took - wait * MS, 10 * MS);
        }
    });
}

/// H5, the control: without a word it is the policy's wait, a fifth shorter or longer.
#[test]
fn h5_control_without_a_word_it_is_the_policys_wait() {
    alone(async {
        let (code, attempts, took) = pushed_back(&[UNAVAILABLE]).await;
        assert_eq!((code, attempts), (Code::Ok, 2));
        let least = WAIT * 8 / 10;
        assert!(took >= least, "{took:?}");
        report("beyond the wait", took - least, WAIT * 4 / 10 + 10 * MS);
    });
}

const MEGABYTE: usize = 1 << 20;

async fn gather(channel: &Channel, messages: usize, each: usize) -> Result<(u64, u64), Status> {
    let requests = (0..messages).map(move |_| HelloRequest {
        id: 1,
        payload: vec![5; each],
        ..HelloRequest::default()
    });
    let requests = futures_util::stream::iter(requests);
    let answer = GreeterClient::new(channel.clone()).gather(requests).await;
    let reply = answer?.into_inner();
    Ok((reply.messages, reply.bytes))
}

/// H6: a request larger than what is kept of one is sent all the same, once; a smaller one is sent again from its start,
/// also where it is a stream.
#[test]
fn h6_a_request_is_sent_again_whole_or_not_at_all() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::of(vec![
            Options {
                fail: Some((Code::Unavailable, 1_000)),
                // By then all that has room has been sent.
                work: 200 * MS,
                ..Options::new("b1")
            },
            Options::new("b2"),
        ]);
        let policy = RetryPolicy::default().with_backoff(MS, MS);
        let config = MethodConfig::default().with_retry(policy);
        let budget = RetryBudget::default().with_reserve(1_000);
        let builder = repeated(over(&fleet.addresses()), config)
            .policy(equipoise::policy::RoundRobin::default())
            .retry_budget(budget);
        let channel = ready(builder).await;
        // Calls are sent to an endpoint a moment after it is ready: until some came to the one that fails.
        let again = || {
            let executions = fleet.ledger.executions();
            executions.iter().filter(|e| e.attempt == 2).count()
        };
        let begun = Instant::now();
        while again() < 3 {
            assert!(begun.elapsed() < PATIENCE, "none is sent again");
            let gathered = gather(&channel, 3, 50_000).await;
            assert_eq!(gathered.expect("sent again"), (3, 150_000));
        }
        // Ten megabytes, in one message and in many: the calls that come to the sound server are carried out to the
        // last byte, the others fail, and none is sent twice.
        let so_far = fleet.ledger.executions().len();
        let (mut ok, mut failed) = (0, 0);
        for (messages, each) in [(160, 64 << 10), (10, MEGABYTE)].repeat(4) {
            match gather(&channel, messages, each).await {
                Ok(sum) => {
                    assert_eq!(sum, (messages as u64, (messages * each) as u64));
                    ok += 1;
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    failed += 1;
                }
            }
        }
        println!("large: {ok} ok, {failed} failed");
        assert!(ok > 0 && failed > 0, "{ok} ok, {failed} failed");
        let executions = fleet.ledger.executions().split_off(so_far);
        assert!(executions.iter().all(|e| e.attempt == 1), "{executions:?}");
        assert_eq!(executions.len(), 8);
        clean(channel, fleet, &before).await;
    });
}

/// H6, the control: where nothing was declared harmless the small ones fail at that server too.
#[test]
fn h6_control_without_retries_a_small_request_fails() {
    alone(async {
        let options = Options {
            fail: Some((Code::Unavailable, 1_000)),
            ..Options::new("b1")
        };
        let fleet = Fleet::of(vec![options]);
        let channel = ready(over(&fleet.addresses()).outlier_detection(None)).await;
        let ended = gather(&channel, 3, 50_000).await;
        assert_eq!(ended.expect_err("it fails").code(), Code::Unavailable);
        assert_eq!(fleet.ledger.executions().len(), 1);
    });
}

/// What a server read in the head of an attempt: `grpc-previous-rpc-attempts` and `grpc-timeout`, and when.
pub(super) struct Head {
    at: Instant,
    pub(super) previous: Option<String>,
    timeout: String,
}

/// A server that fails each call, and tells of their heads. It ends with its only connection.
pub(super) async fn reading() -> (SocketAddr, mpsc::UnboundedReceiver<Head>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    let (seen, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("a connection");
        let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let head = |name: &str| {
                let value = request.headers().get(name)?;
                Some(value.to_str().expect("text").to_owned())
            };
            let _ = seen.send(Head {
                at: Instant::now(),
                previous: head("grpc-previous-rpc-attempts"),
                timeout: head("grpc-timeout").expect("the call has a deadline"),
            });
            let response = http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "14")
                .body(())
                .expect("a response");
            let _ = respond.send_response(response, true);
        }
    });
    (address, heads)
}

/// What a `grpc-timeout` says.
fn time_in(timeout: &str) -> Duration {
    let (digits, unit) = timeout.split_at(timeout.len() - 1);
    assert!(digits.len() <= 8, "{timeout}");
    let count: u32 = digits.parse().expect("a number");
    match unit {
        "u" => count * Duration::from_micros(1),
        "m" => count * MS,
        other => panic!("{other} is coarser than it must be: {timeout}"),
    }
}

/// H12 and H14, as a server reads them: a first attempt has no count, and each header is of the time that is left.
#[test]
fn h12_h14_each_attempt_has_its_own_headers() {
    alone(async {
        let (address, mut heads) = reading().await;
        let policy = RetryPolicy::default()
            .with_max_attempts(4)
            .with_backoff(50 * MS, 50 * MS);
        let config = MethodConfig::default().with_retry(policy);
        let channel = ready(repeated(over(&[address]), config)).await;
        let begun = Instant::now();
        // Ten seconds.
        assert_eq!(code_of(hello(&channel).await), Code::Unavailable);
        for attempt in 0..4u32 {
            let head = heads.try_recv().expect("four attempts");
            let expected = (attempt > 0).then(|| attempt.to_string());
            assert_eq!(head.previous, expected);
            let left = time_in(&head.timeout);
            // It was written before it was seen.
            let slack = Duration::from_secs(10).saturating_sub(head.at - begun);
            assert!(left + 500 * MS > slack, "{left:?} of {slack:?}");
            let waited = 40 * MS * attempt;
            assert!(
                left + waited <= Duration::from_secs(10) + MS,
                "{attempt}: {left:?}"
            );
        }
        assert!(heads.try_recv().is_err(), "no fifth");
    });
}

/// What tower's retry layer does around a channel: the request as it was, four times; and what a more careful one does,
/// which says in a header how many there were before.
#[derive(Clone)]
pub(super) struct Again<C> {
    client: C,
    count: Option<&'static str>,
}

impl<C> Again<C> {
    pub(super) fn new(client: C, count: Option<&'static str>) -> Self {
        Self { client, count }
    }
}

impl<C: load::Client> Service<http::Request<Body>> for Again<C> {
    type Response = http::Response<C::ResponseBody>;
    type Error = tonic::codegen::StdError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { mut client, count } = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let mut attempts = 0u32;
            loop {
                let body = http_body_util::Full::new(body.clone());
                let mut request = http::Request::from_parts(head.clone(), Body::new(body));
                if let Some(count) = count.filter(|_| attempts > 0) {
                    request.headers_mut().insert(count, attempts.into());
                }
                let ready = std::future::poll_fn(|cx| client.poll_ready(cx)).await;
                ready.map_err(Into::into)?;
                let response = client.call(request).await.map_err(Into::into)?;
                attempts += 1;
                let status = response.headers().get("grpc-status");
                if attempts == 4 || status.is_none_or(|status| status == "0") {
                    return Ok(response);
                }
                timer::pause(50 * MS).await;
            }
        })
    }
}

/// H12, the control: a retry around tonic's channel promises the whole time again, and does not say that it is one.
#[test]
fn h12_control_a_retry_around_tonic_sends_the_same_time_again() {
    alone(async {
        let (address, mut heads) = reading().await;
        let client = Again::new(tonic_endpoint(address).connect_lazy(), None);
        let ended = load::call(client, HelloRequest::default(), 10_000 * MS, now()).await;
        let end = ended.end.expect("it ended");
        assert_eq!(end.code, Code::Unavailable, "{end:?}");
        let first = heads.try_recv().expect("four attempts");
        for _ in 1..4 {
            let head = heads.try_recv().expect("four attempts");
            assert_eq!((&head.timeout, head.previous), (&first.timeout, None));
            let left = 10_000 * MS - (head.at - first.at);
            assert!(time_in(&head.timeout) > left + MS, "{}", head.timeout);
        }
    });
}
