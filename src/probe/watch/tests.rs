//! The watch by itself, on a connection that does what a test says, with a clock that jumps.

use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http_body::Frame;
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot, watch as watching};
use tokio::time::timeout;

use super::*;
use crate::balancer::Damped;
use crate::timestamp::Timestamp;
use crate::transport::{CallError, Condition, Control, Reached, Slots, Traffic};

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;
const SERVICE_UNKNOWN: i32 = 3;
const SAYS_NOT: Health = Health::NotServing(Unfit::SaysSo);
const S: Duration = Duration::from_secs(1);
/// On a clock that jumps: longer than any pause.
const PATIENCE: Duration = Duration::from_secs(600);

/// A connection whose calls go to a test.
struct Fake {
    slots: Arc<Slots>,
    condition: watching::Sender<Condition>,
    calls: mpsc::UnboundedSender<Call>,
}

/// One call that was made on it.
struct Call {
    at: Instant,
    path: String,
    request: Bytes,
    head: oneshot::Sender<Result<http::Response<()>, Status>>,
    frames: mpsc::UnboundedSender<Result<Frame<Bytes>, Status>>,
}

/// The answers to a call, and its slot.
#[derive(Default)]
struct Answers {
    frames: Option<mpsc::UnboundedReceiver<Result<Frame<Bytes>, Status>>>,
    _slot: Option<Slot>,
}

impl http_body::Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.get_mut().frames {
            Some(frames) => frames.poll_recv(cx),
            None => Poll::Ready(None),
        }
    }
}

struct NoControl;

impl Control for NoControl {
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    fn abort(&self, _: &str) {}
}

impl Connection for Fake {
    type Body = Answers;

    fn call(
        &self,
        request: Outgoing,
        slot: Slot,
    ) -> impl Future<Output = Result<http::Response<Answers>, CallError>> + Send + 'static {
        let (head, answered) = oneshot::channel();
        let (frames, receiver) = mpsc::unbounded_channel();
        let calls = self.calls.clone();
        async move {
            let Payload::Untouched(body) = request.payload else {
                panic!("nobody took anything of it")
            };
            let call = Call {
                at: Instant::now(),
                path: request.head.uri().to_string(),
                request: body.collect().await.unwrap().to_bytes(),
                head,
                frames,
            };
            calls.send(call).ok().unwrap();
            let head = answered.await.unwrap_or(Err(Status::internal("no head")));
            let body = Answers {
                frames: Some(receiver),
                _slot: Some(slot),
            };
            head.map(|head| head.map(|()| body))
                .map_err(|status| CallError {
                    status,
                    reached: Reached::Maybe,
                    request: None,
                })
        }
    }

    fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    fn condition(&self) -> watching::Receiver<Condition> {
        self.condition.subscribe()
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::new(NoControl)
    }
}

/// What keeps a connection, as a channel does.
struct Kept(Fake);

impl AsRef<Fake> for Kept {
    fn as_ref(&self) -> &Fake {
        &self.0
    }
}

struct Bench {
    connection: Option<Arc<Kept>>,
    calls: mpsc::UnboundedReceiver<Call>,
    news: BoxStream<'static, Health>,
}

impl Bench {
    fn new() -> Self {
        Self::with_limit(100)
    }

    fn with_limit(limit: u32) -> Self {
        let (sender, calls) = mpsc::unbounded_channel();
        let connection = Arc::new(Kept(Fake {
            slots: Slots::new(limit),
            condition: watching::Sender::new(Condition::Open),
            calls: sender,
        }));
        let news = watch(
            Arc::downgrade(&connection),
            "shop.Cart".into(),
            "127.0.0.1:1".parse().unwrap(),
            Backoff::default(),
            7,
        )
        .boxed();
        Self {
            connection: Some(connection),
            calls,
            news,
        }
    }

    /// The next call, while nothing is said.
    async fn call(&mut self) -> Call {
        let call = async {
            tokio::select! {
                biased;
                said = self.news.next() => panic!("said {said:?} before a call"),
                call = self.calls.recv() => call.unwrap(),
            }
        };
        timeout(PATIENCE, call).await.expect("it asks")
    }

    async fn says(&mut self) -> Health {
        let said = timeout(PATIENCE, self.news.next()).await;
        said.expect("something is said").expect("it goes on")
    }

    /// Nothing is said, nor asked, for an hour.
    async fn rests(&mut self) {
        let quiet = async {
            tokio::select! {
                said = self.news.next() => panic!("said {said:?}"),
                _ = self.calls.recv() => panic!("asked again"),
            }
        };
        assert!(timeout(3_600 * S, quiet).await.is_err());
    }
}

/// A call whose head has been answered.
struct Accepted(mpsc::UnboundedSender<Result<Frame<Bytes>, Status>>);

impl Call {
    fn accept(self) -> Accepted {
        let head = http::Response::builder().header("content-type", "application/grpc");
        self.head.send(Ok(head.body(()).unwrap())).unwrap();
        Accepted(self.frames)
    }

    fn refuse(self, status: Status) {
        self.head.send(Err(status)).unwrap();
    }
}

impl Accepted {
    fn raw(&self, bytes: impl Into<Bytes>) {
        self.0.send(Ok(Frame::data(bytes.into()))).unwrap();
    }

    fn say(&self, status: i32) {
        self.raw(message(&[0x08, status as u8]));
    }

    fn end(self, code: &'static str) {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        self.0.send(Ok(Frame::trailers(trailers))).unwrap();
    }

    fn reset(self) {
        let status = Status::internal("reset by peer");
        self.0.send(Err(status)).unwrap();
    }
}

fn message(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(bytes.len() as u32);
    framed.put_slice(bytes);
    framed.freeze()
}

fn ended(health: &Health) -> &str {
    match health {
        Health::NotServing(Unfit::WatchEnded(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_server_says_is_said_once() {
    let mut bench = Bench::new();
    let call = bench.call().await;
    assert_eq!(call.path, "/grpc.health.v1.Health/Watch");
    assert_eq!(call.request, message(b"\x0a\x09shop.Cart"));
    let began = Instant::now();
    let server = call.accept();
    for (status, health) in [
        (SERVING, Health::Serving),
        (NOT_SERVING, SAYS_NOT),
        (SERVING, Health::Serving),
        (SERVICE_UNKNOWN, Health::NotServing(Unfit::UnknownService)),
        // UNKNOWN, and one that is not known to us: the same to us.
        (0, SAYS_NOT),
    ] {
        server.say(status);
        assert_eq!(bench.says().await, health, "{status}");
    }
    for again in [0, 2, 7, 100] {
        server.say(again);
    }
    bench.rests().await;
    assert!(
        began.elapsed() < 3_601 * S,
        "{:?}: it was said late",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn one_that_never_answers_is_unknown_for_ever() {
    let mut bench = Bench::new();
    let call = bench.call().await;
    bench.rests().await;
    let _server = call.accept();
    // A head without a body is no answer either.
    bench.rests().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_health_service_it_is_not_asked_again() {
    // At once, and by a server that changed its mind.
    for answered in [false, true] {
        let mut bench = Bench::new();
        let server = bench.call().await.accept();
        if answered {
            server.say(NOT_SERVING);
            assert_eq!(bench.says().await, SAYS_NOT);
        }
        server.end("12");
        assert_eq!(bench.says().await, Health::Unchecked);
        bench.rests().await;
    }
    let mut bench = Bench::new();
    bench.call().await.refuse(Status::unimplemented(""));
    assert_eq!(bench.says().await, Health::Unchecked);
    bench.rests().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_without_an_answer_is_waited_out_and_one_after_an_answer_is_not() {
    let mut bench = Bench::new();
    let first = bench.call().await;
    let began = first.at;
    first.refuse(Status::unavailable("go\naway"));
    assert_eq!(ended(&bench.says().await), "Unavailable: go away");
    let second = bench.call().await;
    let waited = second.at - began;
    assert!(
        (S * 4 / 5..S * 6 / 5 + BREATH).contains(&waited),
        "{waited:?}"
    );
    second.accept().end("0");
    assert_eq!(ended(&bench.says().await), "Ok: the server ended it");
    let third = bench.call().await;
    let waited = third.at - began - waited;
    assert!((S * 5 / 4..S * 2).contains(&waited), "{waited:?}");
    let server = third.accept();
    server.say(SERVING);
    assert_eq!(bench.says().await, Health::Serving);
    let asked = Instant::now();
    server.reset();
    assert_eq!(ended(&bench.says().await), "Internal: reset by peer");
    let fourth = bench.call().await;
    assert!(fourth.at - asked <= BREATH, "at once");
    // No less unwell until it says otherwise.
    bench.rests().await;
    drop(fourth);
}

#[tokio::test(start_paused = true)]
async fn a_stream_reset_each_second_is_opened_ten_times_a_minute_at_most() {
    let mut bench = Bench::new();
    let mut damped = Damped::default();
    let began = Instant::now();
    let now = || Timestamp::ZERO + began.elapsed();
    let (mut opened, mut changes) = (0, 0);
    let run = async {
        loop {
            let server = bench.call().await.accept();
            opened += 1;
            server.say(SERVING);
            changes += u32::from(damped.handle(bench.says().await, now()));
            sleep(S).await;
            server.reset();
            changes += u32::from(damped.handle(bench.says().await, now()));
        }
    };
    assert!(timeout(60 * S, run).await.is_err());
    assert!((5..=10).contains(&(opened - 1)), "{opened}");
    assert!((1..=60).contains(&changes), "{changes}");
}

#[tokio::test(start_paused = true)]
async fn flapping_ten_times_a_second_is_told_but_counts_at_most_twice_a_second() {
    let mut bench = Bench::new();
    let server = bench.call().await.accept();
    server.say(SERVING);
    let mut damped = Damped::default();
    let began = Instant::now();
    let (mut told, mut changes) = (0, Vec::new());
    let mut note = |health: Option<Health>| {
        let now = Timestamp::ZERO + began.elapsed();
        let changed = match health {
            Some(health) => {
                told += 1;
                damped.handle(health, now)
            }
            None => damped.handle_timeout(now),
        };
        changes.extend(changed.then_some(now));
    };
    note(Some(bench.says().await));
    sleep(20 * S).await;
    for tick in 0..600 {
        server.say(if tick % 2 == 0 { NOT_SERVING } else { SERVING });
        note(Some(bench.says().await));
        sleep(Duration::from_millis(50)).await;
        note(None);
    }
    assert_eq!(told, 601);
    assert!((4..=5).contains(&changes.len()), "{changes:?}");
    assert!(
        changes.windows(4).all(|four| four[3].since(four[0]) > S),
        "{changes:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_heard_a_hundred_times_a_second_and_its_end_in_time() {
    let mut bench = Bench::new();
    let server = bench.call().await.accept();
    let began = Instant::now();
    let flood = async {
        for tick in 0..10_000u32 {
            server.say(if tick % 2 == 0 { SERVING } else { NOT_SERVING });
            if tick % 10 == 9 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        server.say(SERVICE_UNKNOWN);
        Instant::now()
    };
    let mut told = 0;
    let hear = async {
        loop {
            told += 1;
            if bench.says().await == Health::NotServing(Unfit::UnknownService) {
                return Instant::now();
            }
        }
    };
    let (last, heard) = tokio::join!(flood, hear);
    assert!(heard - last <= 2 * BREATH, "{:?}", heard - last);
    let most = (last - began).as_millis() / BREATH.as_millis() + 3;
    assert!(told as u128 <= most, "{told}");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_answer_ends_the_watch_and_is_kept_short() {
    let huge = {
        let mut head = BytesMut::from(&[0u8][..]);
        head.put_u32(5_000);
        head.freeze()
    };
    for (bytes, why) in [
        (message(&[0x08]), "Internal: "),
        (message(&[0xff; 9]), "Internal: "),
        (Bytes::from_static(b"<html>"), "Internal: protocol error"),
        (
            Bytes::from_static(&[1, 0, 0, 0, 0]),
            "Internal: protocol error",
        ),
        // Refused by its length alone, before any of it has come.
        (huge, "OutOfRange: "),
        (Bytes::from_static(&[0, 255, 255, 255, 255]), "OutOfRange: "),
    ] {
        let mut bench = Bench::new();
        let server = bench.call().await.accept();
        server.raw(bytes.clone());
        let said = bench.says().await;
        assert!(ended(&said).starts_with(why), "{bytes:?}: {said:?}");
        assert!(server.0.is_closed(), "the stream was left");
        bench.call().await;
    }
    let mut bench = Bench::new();
    bench
        .call()
        .await
        .refuse(Status::unknown("\u{1b}é".repeat(5_000)));
    let said = bench.says().await;
    assert_eq!(ended(&said).chars().count(), "Unknown: ".len() + REASON);
    assert!(!ended(&said).contains('\u{1b}'));
}

#[tokio::test(start_paused = true)]
async fn without_a_free_stream_it_waits_and_says_nothing() {
    let mut bench = Bench::with_limit(2);
    let slots = bench.connection.as_ref().unwrap().0.slots.clone();
    let taken = (slots.try_reserve(), slots.try_reserve());
    bench.rests().await;
    drop(taken);
    let freed = Instant::now();
    let server = bench.call().await.accept();
    assert!(freed.elapsed() <= LAST_LOOK);
    server.say(SERVING);
    assert_eq!(bench.says().await, Health::Serving);
    assert_eq!(slots.open(), 1, "the watch's own");
    drop(bench);
    assert_eq!(slots.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_single_stream_is_left_to_the_calls() {
    let mut bench = Bench::with_limit(1);
    assert_eq!(bench.says().await, Health::Unchecked);
    bench.rests().await;
    // None at all is another matter: there may be some later.
    let mut bench = Bench::with_limit(0);
    bench.rests().await;
}

#[tokio::test(start_paused = true)]
async fn it_does_not_hold_the_connection() {
    let mut bench = Bench::new();
    let call = bench.call().await;
    let connection = bench.connection.take().unwrap();
    assert_eq!(
        Arc::strong_count(&connection),
        1,
        "while it waits for the head"
    );
    let server = call.accept();
    server.say(SERVING);
    assert_eq!(bench.says().await, Health::Serving);
    assert_eq!(Arc::strong_count(&connection), 1, "and for answers");
    drop(connection);
    server.say(NOT_SERVING);
    assert_eq!(bench.says().await, SAYS_NOT, "the open call goes on");
    server.reset();
    ended(&bench.says().await);
    assert_eq!(bench.news.next().await, None, "and is not made again");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// Any bytes at all: no panic, no endless loop, and whatever is said is unwell or an answer.
    #[test]
    fn any_bytes_are_survived(chunks in prop::collection::vec(
        prop::collection::vec(any::<u8>(), 0..40), 0..20,
    )) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut bench = Bench::new();
            let server = bench.call().await.accept();
            for chunk in chunks {
                // It may have hung up.
                let _ = server.0.send(Ok(Frame::data(chunk.into())));
            }
            drop(server);
            // The stream has ended, whatever was on it.
            ended(&bench.says().await);
            bench.call().await;
        });
    }
}
