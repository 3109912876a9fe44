//! Whole calls over connections that do what a test says, with a clock that jumps.

use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tonic::Code;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::super::super::{BalanceLayer, Builder, Channel, MethodConfig};
use super::*;
use crate::endpoint::{Address, Connectivity, Endpoint};
use crate::error::ConnectError;
use crate::retry::{HedgingPolicy, RetryBudget, RetryPolicy};
use crate::transport::{CallError, Condition, Connector, Control, Reached, Slot, Slots, Traffic};

const MS: Duration = Duration::from_millis(1);
const PATH: &str = "/t.S/M";
/// More than a call may keep of its request, in three pieces.
const PIECE: usize = 100 << 10;

/// Connects to anybody whose port is not 9, and hands each attempt to the test.
#[derive(Clone, Debug)]
struct Fakes(mpsc::UnboundedSender<Sent>);

struct Fake {
    address: Address,
    slots: Arc<Slots>,
    condition: watch::Sender<Condition>,
    sent: mpsc::UnboundedSender<Sent>,
}

/// An attempt that has left.
#[derive(Debug)]
struct Sent {
    at: Instant,
    to: Address,
    head: Box<http::Request<()>>,
    body: Body,
    answer: oneshot::Sender<Result<http::Response<Option<u8>>, CallError>>,
}

/// A reply that ends with a status, and the slot it came in.
#[derive(Default)]
struct Reply {
    status: Option<u8>,
    _slot: Option<Slot>,
}

impl http_body::Body for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let status = self.get_mut().status.take();
        Poll::Ready(status.map(|status| Ok(Frame::trailers(grpc_status(status)))))
    }

    fn is_end_stream(&self) -> bool {
        self.status.is_none()
    }
}

fn grpc_status(status: u8) -> http::HeaderMap {
    let mut headers = http::HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    headers
}

struct NoControl;

impl Control for NoControl {
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    fn abort(&self, _: &str) {}
}

impl Connector for Fakes {
    type Connection = Fake;

    fn connect(
        &self,
        _: &Endpoint,
        address: &Address,
    ) -> BoxFuture<'static, Result<Fake, ConnectError>> {
        let dead = address.to_string().ends_with(":9");
        let fake = Fake {
            address: address.clone(),
            slots: Slots::new(100),
            condition: watch::Sender::new(Condition::Open),
            sent: self.0.clone(),
        };
        Box::pin(async move {
            match dead {
                true => Err(ConnectError::new("nobody is there")),
                false => Ok(fake),
            }
        })
    }
}

impl Connection for Fake {
    type Body = Reply;

    fn call(
        &self,
        request: Outgoing,
        slot: Slot,
    ) -> impl Future<Output = Result<http::Response<Reply>, CallError>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let Payload::Untouched(body) = request.payload else {
            panic!("nobody took anything of it")
        };
        let sent = Sent {
            at: Instant::now(),
            to: self.address.clone(),
            head: request.head,
            body,
            answer,
        };
        self.sent.send(sent).expect("the test listens");
        async move {
            let answer = answered.await.expect("the test answers, or keeps it");
            answer.map(|response| {
                response.map(|status| Reply {
                    status,
                    _slot: Some(slot),
                })
            })
        }
    }

    fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::new(NoControl)
    }
}

impl Sent {
    fn header(&self, name: &str) -> Option<&str> {
        let value = self.head.headers().get(name)?;
        value.to_str().ok()
    }

    /// Reads so many pieces of the request.
    async fn read(&mut self, pieces: usize) {
        for _ in 0..pieces {
            let frame = self.body.frame().await.expect("there is more");
            assert_eq!(frame.unwrap().into_data().unwrap().len(), PIECE);
        }
    }

    /// A head, and later OK.
    fn succeeds(self) {
        let response = http::Response::new(Some(0));
        self.answer.send(Ok(response)).expect("the call waits");
    }

    /// Nothing but a status, and the server's word about trying again.
    fn fails(self, code: Code, pushback: Option<&'static str>) -> Body {
        let mut response = http::Response::new(None);
        *response.headers_mut() = grpc_status(code as u8);
        if let Some(pushback) = pushback {
            let value = HeaderValue::from_static(pushback);
            response.headers_mut().insert(Pushback::KEY, value);
        }
        self.answer.send(Ok(response)).expect("the call waits");
        self.body
    }

    /// The request cannot be read to its end, as the connection would tell.
    async fn stumbles(mut self) {
        let error = loop {
            match self.body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => break status,
                None => panic!("the request is whole"),
            }
        };
        let error = CallError {
            status: error,
            reached: Reached::Local,
            request: None,
        };
        // It may be cancelled already.
        let _ = self.answer.send(Err(error));
    }

    fn is_cancelled(&self) -> bool {
        self.answer.is_closed()
    }
}

type Ended = Result<http::Response<ResponseBody<Fake>>, Status>;

struct Bench {
    channel: Channel<Fakes>,
    sent: mpsc::UnboundedReceiver<Sent>,
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::from(std::net::SocketAddr::from(([10, 0, 0, 1], port)))
}

impl Bench {
    /// Over so many endpoints, with a budget that refuses nothing.
    async fn new(endpoints: u16, config: MethodConfig) -> Self {
        Self::with(endpoints, config, |builder| builder).await
    }

    async fn with(
        endpoints: u16,
        config: MethodConfig,
        set: impl FnOnce(Builder<BalanceLayer>) -> Builder<BalanceLayer>,
    ) -> Self {
        let list = (0..endpoints).map(|n| endpoint(100 + n));
        let budget = RetryBudget::default()
            .with_share(1.0)
            .with_hedges(1.0)
            .with_reserve(1_000);
        let builder = BalanceLayer::from_endpoints(list)
            .service_config("t.S", config.with_idempotent(true))
            .outlier_detection(None)
            .retry_budget(budget);
        let (calls, sent) = mpsc::unbounded_channel();
        let channel = set(builder).build().unwrap().layer(Fakes(calls));
        let bench = Self { channel, sent };
        let mut state = Connectivity::Idle;
        while state != Connectivity::Ready {
            state = bench.channel.state_changed(state).await;
        }
        // News is put in force within 5 ms.
        tokio::time::sleep(10 * MS).await;
        bench
    }

    fn call(&self, body: Body) -> JoinHandle<Ended> {
        self.call_by(body, None)
    }

    fn call_by(&self, body: Body, limit: Option<&'static str>) -> JoinHandle<Ended> {
        let mut request = http::Request::new(body);
        *request.uri_mut() = PATH.parse().unwrap();
        if let Some(limit) = limit {
            let limit = HeaderValue::from_static(limit);
            request.headers_mut().insert("grpc-timeout", limit);
        }
        tokio::spawn(self.channel.clone().call(request))
    }

    async fn sent(&mut self) -> Sent {
        let sent = timeout(60_000 * MS, self.sent.recv()).await;
        sent.expect("an attempt leaves").expect("it is open")
    }

    /// Whether another attempt leaves within that time.
    async fn sends_within(&mut self, time: Duration) -> bool {
        timeout(time, self.sent.recv()).await.is_ok()
    }

    /// Nothing is held for anybody any more.
    #[track_caller]
    fn is_clean(&self) {
        let core = &self.channel.shared.core;
        assert_eq!(core.allowance.held(), 0, "bytes of requests are kept");
        assert_eq!(core.waiters.len(), 0);
        for endpoint in self.channel.endpoints() {
            assert_eq!(endpoint.in_flight, 0, "{}", endpoint.address);
        }
    }
}

/// Reads the answer to its end.
async fn code(call: JoinHandle<Ended>) -> Code {
    let ended = timeout(60_000 * MS, call).await.expect("it ends");
    match ended.unwrap() {
        Err(status) => status.code(),
        Ok(response) => {
            let head = response.headers().get("grpc-status").cloned();
            let rest = response.into_body().collect().await;
            let rest = rest.expect("it was answered").trailers().cloned();
            let status = head.or_else(|| rest?.get("grpc-status").cloned());
            let status = status.expect("a status").to_str().unwrap().to_owned();
            Code::from_bytes(status.as_bytes())
        }
    }
}

fn pieces(count: usize) -> Body {
    let piece = Bytes::from(vec![7; PIECE]);
    let frames = (0..count).map(move |_| Ok::<_, Status>(Frame::data(piece.clone())));
    Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(
        frames,
    )))
}

fn hedged(delay: Duration, attempts: u32) -> MethodConfig {
    let policy = HedgingPolicy::after(delay).with_max_attempts(attempts);
    MethodConfig::default().with_hedging(policy)
}

fn retried(attempts: u32) -> MethodConfig {
    MethodConfig::default().with_retry(RetryPolicy::default().with_max_attempts(attempts))
}

async fn settle() {
    tokio::time::sleep(MS).await;
}

/// All attempts of a call have its deadline, and each of them an endpoint of its own.
#[tokio::test(start_paused = true)]
async fn each_attempt_says_how_many_came_before_it_and_what_time_is_left() {
    let mut bench = Bench::new(4, retried(4)).await;
    let begun = Instant::now();
    let call = bench.call_by(pieces(1), Some("1S"));
    let mut seen = Vec::new();
    for attempt in 0..4 {
        let mut sent = bench.sent().await;
        sent.read(1).await;
        let previous = sent.header("grpc-previous-rpc-attempts").map(str::to_owned);
        assert_eq!(previous, (attempt > 0).then(|| attempt.to_string()));
        let left = super::super::deadline::parse(&sent.head.headers()["grpc-timeout"]).unwrap();
        let exact = 1_000 * MS - (sent.at - begun);
        assert!(left <= exact && left + MS > exact, "{left:?} of {exact:?}");
        assert!(!seen.contains(&sent.to), "{} again", sent.to);
        seen.push(sent.to.clone());
        if attempt < 3 {
            sent.fails(Code::Unavailable, Some("100"));
        } else {
            // Kept unanswered: the call ends by its deadline, and in no other way.
            assert_eq!(code(call).await, Code::DeadlineExceeded);
            let took = begun.elapsed();
            assert!((1_000 * MS..1_002 * MS).contains(&took), "{took:?}");
            assert!(sent.is_cancelled());
            break;
        }
    }
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_wait_the_server_asks_for_is_kept_to_the_millisecond() {
    for (said, waits) in [
        ("0", Some(0)),
        ("500", Some(500)),
        ("-1", None),
        ("abc", None),
        ("2147483648", None),
    ] {
        let mut bench = Bench::new(2, retried(3)).await;
        let call = bench.call(pieces(1));
        let first = bench.sent().await;
        let failed = Instant::now();
        first.fails(Code::Unavailable, Some(said));
        match waits {
            Some(waits) => {
                let second = bench.sent().await;
                let took = second.at - failed;
                assert!(
                    took >= waits * MS && took <= (waits + 1) * MS,
                    "{said}: {took:?}"
                );
                second.succeeds();
                assert_eq!(code(call).await, Code::Ok, "{said}");
            }
            None => {
                assert_eq!(code(call).await, Code::Unavailable, "{said}");
                assert!(failed.elapsed() <= MS, "{said}");
                assert!(!bench.sends_within(60_000 * MS).await, "{said}");
            }
        }
        settle().await;
        bench.is_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_cut_off_does_not_end_the_call() {
    let mut bench = Bench::new(2, hedged(Duration::ZERO, 2)).await;
    let call = bench.call(pieces(5));
    let (mut first, mut second) = (bench.sent().await, bench.sent().await);
    second.read(2).await;
    assert!(bench.channel.shared.core.allowance.held() > 0);
    first.read(3).await;
    // By now the request is too large to be kept, and the second is told so, before the call itself is.
    second.stumbles().await;
    settle().await;
    assert!(!call.is_finished(), "{:?}", call.await);
    first.read(2).await;
    first.succeeds();
    assert_eq!(code(call).await, Code::Ok);
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn what_a_copy_says_that_was_cut_off_is_not_the_answer() {
    let mut bench = Bench::new(2, hedged(Duration::ZERO, 2)).await;
    let call = bench.call(pieces(5));
    let (mut first, second) = (bench.sent().await, bench.sent().await);
    first.read(3).await;
    // It has not read a thing, and answers all the same: half a request would be believed to be the whole.
    second.succeeds();
    settle().await;
    assert!(!call.is_finished());
    first.read(2).await;
    first.fails(Code::DataLoss, None);
    assert_eq!(code(call).await, Code::DataLoss);
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_become_too_large_is_not_sent_again() {
    for config in [retried(3), hedged(20 * MS, 3)] {
        let mut bench = Bench::new(3, config).await;
        // It takes long, and is not hedged; it fails, and is not tried again.
        let call = bench.call(pieces(5));
        let mut first = bench.sent().await;
        first.read(3).await;
        assert!(!bench.sends_within(100 * MS).await, "{config:?}");
        let failed = Instant::now();
        let rest = first.fails(Code::Unavailable, Some("0"));
        assert_eq!(code(call).await, Code::Unavailable, "{config:?}");
        assert!(failed.elapsed() <= MS, "{config:?}: {:?}", failed.elapsed());
        assert!(!bench.sends_within(1_000 * MS).await, "{config:?}");
        drop(rest);
        bench.is_clean();
    }
}

/// What carries a request's body runs beside the call, and may read on for a moment when its attempt is over.
#[tokio::test(start_paused = true)]
async fn a_request_that_becomes_too_large_behind_its_attempts_back_ends_as_that_did() {
    for (config, others) in [(retried(3), 0), (hedged(Duration::ZERO, 2), 1)] {
        let mut bench = Bench::new(3, config).await;
        let call = bench.call(pieces(5));
        let mut first = bench.sent().await;
        first.read(2).await;
        let second = match others {
            0 => None,
            _ => Some(bench.sent().await),
        };
        let mut rest = first.fails(Code::Unavailable, None);
        settle().await;
        assert!(!call.is_finished());
        rest.frame().await.expect("there is more").unwrap();
        if let Some(second) = second {
            second.stumbles().await;
        }
        assert_eq!(code(call).await, Code::Unavailable, "{config:?}");
        assert!(!bench.sends_within(1_000 * MS).await, "{config:?}");
        drop(rest);
        bench.is_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_finds_no_place_in_the_line_leaves_the_call_alone() {
    let limits = |builder: Builder<BalanceLayer>| builder.max_in_flight(1).queue_limit(1);
    let mut bench = Bench::with(2, hedged(20 * MS, 2), limits).await;
    let call = bench.call(pieces(1));
    let first = bench.sent().await;
    let waiting = bench.call(pieces(1));
    assert!(!bench.sends_within(100 * MS).await, "there is room for one");
    assert!(!call.is_finished(), "{:?}", call.await);
    first.succeeds();
    assert_eq!(code(call).await, Code::Ok);
    bench.sent().await.succeeds();
    assert_eq!(code(waiting).await, Code::Ok);
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_closed_channel_is_not_tried_again() {
    let mut bench = Bench::new(2, retried(5)).await;
    let call = bench.call(pieces(1));
    let first = bench.sent().await;
    bench.channel.close().await;
    let closed = Instant::now();
    first.fails(Code::Unavailable, None);
    assert_eq!(code(call).await, Code::Unavailable);
    assert!(closed.elapsed() <= MS, "{:?}", closed.elapsed());
}

/// Where calls were sent, and not how often that was tried.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_found_nobody_does_not_count_as_sent() {
    let mut bench = Bench::new(1, retried(3)).await;
    let dead = endpoint(9);
    bench.channel.set_endpoints([dead]).unwrap();
    while bench.channel.state() != Connectivity::TransientFailure {
        settle().await;
    }
    let begun = Instant::now();
    let status = bench.call(pieces(1)).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(begun.elapsed() > 100 * MS, "it was tried again");
    assert_eq!(status.metadata().get("equipoise-attempts").unwrap(), "0");
    assert!(!bench.sends_within(MS).await);
}

#[tokio::test(start_paused = true)]
async fn calls_dropped_at_any_time_leave_nothing_behind() {
    let states = (0..=3).flat_map(|after| [(after, true), (after, false)]);
    for (config, (after, fails)) in [retried(3), hedged(20 * MS, 3)]
        .into_iter()
        .flat_map(|config| states.clone().map(move |state| (config, state)))
    {
        let mut bench = Bench::new(3, config).await;
        let call = bench.call(pieces(2));
        let mut kept = Vec::new();
        for attempt in 1..=after {
            let mut sent = bench.sent().await;
            sent.read(1).await;
            match fails || attempt < after {
                true => drop(sent.fails(Code::Unavailable, None)),
                false => kept.push(sent),
            }
        }
        call.abort();
        let _ = call.await;
        assert!(kept.iter().all(Sent::is_cancelled));
        drop(kept);
        settle().await;
        bench.is_clean();
        assert!(!bench.sends_within(1_000 * MS).await, "{config:?}");
    }
}

/// An answer that came quickly since the slow attempt was given up must not make the method look quick: with each copy
/// the delay would shrink, and more copies be sent.
#[tokio::test(start_paused = true)]
async fn the_delay_of_hedging_grows_with_the_attempts_that_lost() {
    let policy = HedgingPolicy::at_p95_or(1_000 * MS);
    let mut bench = Bench::new(2, MethodConfig::default().with_hedging(policy)).await;
    for _ in 0..100 {
        let call = bench.call(pieces(1));
        let sent = bench.sent().await;
        tokio::time::sleep(10 * MS).await;
        sent.succeeds();
        assert_eq!(code(call).await, Code::Ok);
    }
    let mut delays = Vec::new();
    for _ in 0..40 {
        let call = bench.call(pieces(1));
        let slow = bench.sent().await;
        let copy = bench.sent().await;
        assert_ne!(slow.to, copy.to);
        delays.push(copy.at - slow.at);
        tokio::time::sleep(10 * MS).await;
        copy.succeeds();
        assert_eq!(code(call).await, Code::Ok);
        assert!(slow.is_cancelled());
    }
    let (first, last) = (delays[0], delays[39]);
    assert!((10 * MS..13 * MS).contains(&first), "{delays:?}");
    assert!(last >= 3 * first, "{delays:?}");
    bench.is_clean();
}

/// Calls that are not repeated pay nothing for those that are.
#[tokio::test(start_paused = true)]
async fn what_a_plain_call_is_boxed_in_stays_small() {
    let bench = Bench::new(1, retried(2)).await;
    let request = http::Request::new(Body::empty());
    let shared = bench.channel.shared.clone();
    let call = super::super::run(shared, request, 0, tracing::Span::none());
    let size = size_of_val(&call);
    println!("the future of a call takes {size} bytes");
    assert!(size < 1_024, "{size}");
}
