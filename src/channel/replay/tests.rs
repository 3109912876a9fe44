//! Bodies in memory, read by several attempts at their own pace.

use std::sync::atomic::AtomicU32;

use http_body_util::BodyExt;

use std::task::Wake;

use super::*;

mod random;

/// What a scripted body does when it is asked.
#[derive(Clone, Debug)]
enum Turn {
    Data(Bytes),
    Trailers,
    Error,
    /// It has nothing, and wakes as soon as it has said so, before that, or when it is told to.
    Nothing(Wakes),
    Panic,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wakes {
    Early,
    Told,
}

/// A body that plays a script, and who is to be woken when it is told to go on.
struct Script {
    turns: VecDeque<Turn>,
    asleep: Arc<Mutex<Option<Waker>>>,
    polls: Arc<AtomicU32>,
}

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(match self.turns.pop_front() {
            None => None,
            Some(Turn::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Turn::Trailers) => Some(Ok(Frame::trailers(trailers()))),
            Some(Turn::Error) => Some(Err(Status::data_loss("half a file"))),
            Some(Turn::Nothing(Wakes::Early)) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Turn::Nothing(Wakes::Told)) => {
                *self.asleep.lock().unwrap() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Some(Turn::Panic) => panic!("as scripted"),
        })
    }
}

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "abc".parse().unwrap());
    trailers
}

fn allowance(per_call: usize, per_channel: usize) -> Allowance {
    Allowance::new(BufferLimits {
        per_call,
        per_channel,
    })
}

fn usual() -> Allowance {
    Allowance::new(BufferLimits::default())
}

/// A request over a scripted body, and what the test sees of it.
struct Bench {
    replay: Replay,
    allowance: Arc<Allowance>,
    asleep: Arc<Mutex<Option<Waker>>>,
    polls: Arc<AtomicU32>,
}

impl Bench {
    fn new(turns: impl IntoIterator<Item = Turn>) -> Self {
        Self::with(usual(), turns)
    }

    fn with(allowance: Allowance, turns: impl IntoIterator<Item = Turn>) -> Self {
        let (asleep, polls) = (Arc::default(), Arc::default());
        let allowance = Arc::new(allowance);
        let body = Body::new(Script {
            turns: turns.into_iter().collect(),
            asleep: Arc::clone(&asleep),
            polls: Arc::clone(&polls),
        });
        Self {
            replay: Replay::new(body, allowance.clone()),
            allowance,
            asleep,
            polls,
        }
    }

    fn polls(&self) -> u32 {
        self.polls.load(Ordering::Relaxed)
    }

    /// The script goes on; says whether anybody waited for that.
    fn go_on(&self) -> bool {
        let waker = self.asleep.lock().unwrap().take();
        waker.map(Waker::wake).is_some()
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What one attempt has read.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Data(Bytes),
    Trailers,
    End,
    Error(tonic::Code),
}

struct Hand {
    attempt: Attempt,
    body: Body,
    seen: Vec<Seen>,
    pending: bool,
    woken: Arc<Woken>,
}

impl Hand {
    fn of(replay: &Replay) -> Self {
        let (attempt, body) = replay.attempt();
        Self {
            attempt,
            body,
            seen: Vec::new(),
            pending: false,
            woken: Arc::default(),
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.seen.last(), Some(Seen::End | Seen::Error(_)))
    }

    /// Polls once; `false` when there is nothing to be had now.
    fn read(&mut self) -> bool {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(self.woken.clone());
        let mut cx = Context::from_waker(&waker);
        let seen = match Pin::new(&mut self.body).poll_frame(&mut cx) {
            Poll::Pending => {
                self.pending = true;
                return false;
            }
            Poll::Ready(None) => Seen::End,
            Poll::Ready(Some(Err(status))) => Seen::Error(status.code()),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Seen::Data(data),
                Err(frame) => {
                    assert_eq!(frame.into_trailers().unwrap(), trailers());
                    Seen::Trailers
                }
            },
        };
        self.pending = false;
        self.seen.push(seen);
        true
    }

    fn read_all(&mut self) -> &[Seen] {
        while !self.is_over() && self.read() {}
        &self.seen
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }
}

fn data(text: &'static str) -> Turn {
    Turn::Data(Bytes::from_static(text.as_bytes()))
}

fn saw(text: &'static str) -> Seen {
    Seen::Data(Bytes::from_static(text.as_bytes()))
}

const LOST: Seen = Seen::Error(tonic::Code::Cancelled);

#[test]
fn a_unary_message_comes_with_its_end_and_as_often_as_it_is_needed() {
    let bench = Bench::new([data("hello")]);
    for _ in 0..3 {
        let mut hand = Hand::of(&bench.replay);
        assert!(!hand.body.is_end_stream());
        // Two looks and no wait between: the transport sends it as one DATA frame with the end.
        assert!(hand.read() && hand.read());
        assert_eq!(hand.seen, [saw("hello"), Seen::End]);
        assert!(hand.body.is_end_stream());
    }
    assert_eq!(bench.polls(), 2, "the caller's body is read once");
    assert_eq!(bench.allowance.held(), 5 + FRAME);
    assert!(!bench.replay.is_committed());
    drop(bench.replay);
    assert_eq!(bench.allowance.held(), 0);
}

#[test]
fn the_bytes_are_the_callers_own() {
    let text = Bytes::from(vec![b'.'; 1_000]);
    let bench = Bench::new([Turn::Data(text.clone())]);
    for _ in 0..2 {
        let mut hand = Hand::of(&bench.replay);
        hand.read();
        let [Seen::Data(read)] = &hand.seen[..] else {
            panic!("{:?}", hand.seen)
        };
        assert_eq!(read.as_ptr(), text.as_ptr());
    }
}

#[test]
fn an_empty_request_is_empty_for_all() {
    let replay = Replay::new(Body::empty(), Arc::new(usual()));
    assert!(replay.attempt().1.is_end_stream());
    let bench = Bench::new([]);
    for _ in 0..2 {
        assert_eq!(Hand::of(&bench.replay).read_all(), [Seen::End]);
    }
}

#[test]
fn trailers_and_errors_come_again_too() {
    let bench = Bench::new([data("a"), Turn::Trailers]);
    for _ in 0..2 {
        let mut hand = Hand::of(&bench.replay);
        assert_eq!(hand.read_all(), [saw("a"), Seen::Trailers, Seen::End]);
    }
    let bench = Bench::new([data("a"), Turn::Error]);
    for _ in 0..2 {
        let mut hand = Hand::of(&bench.replay);
        let error = Seen::Error(tonic::Code::DataLoss);
        assert_eq!(hand.read_all(), [saw("a"), error]);
        assert!(hand.read());
        assert_eq!(hand.seen[2], Seen::End, "and nothing after it");
    }
}

#[test]
fn one_that_is_dropped_takes_nothing_with_it() {
    let bench = Bench::new([data("a"), Turn::Nothing(Wakes::Told), data("b")]);
    let (mut one, mut other) = (Hand::of(&bench.replay), Hand::of(&bench.replay));
    assert!(one.read() && !one.read());
    assert!(other.read());
    // With the question open that it asked.
    drop(one);
    bench.go_on();
    assert_eq!(other.read_all(), [saw("a"), saw("b"), Seen::End]);
    let mut late = Hand::of(&bench.replay);
    assert_eq!(late.read_all(), [saw("a"), saw("b"), Seen::End]);
}

#[test]
fn all_who_wait_are_woken_by_the_body_whoever_asked_it() {
    let bench = Bench::new([Turn::Nothing(Wakes::Told), data("a")]);
    let mut hands: Vec<Hand> = (0..3).map(|_| Hand::of(&bench.replay)).collect();
    assert!(!hands[0].read());
    bench.go_on();
    assert!(hands[0].is_woken());

    let turns = vec![Turn::Nothing(Wakes::Told); 4];
    let bench = Bench::new(turns.into_iter().chain([data("a")]));
    let mut hands: Vec<Hand> = (0..3).map(|_| Hand::of(&bench.replay)).collect();
    for hand in &mut hands {
        assert!(!hand.read());
    }
    bench.go_on();
    assert!(hands.iter().all(Hand::is_woken));
    // The first finds nothing again; what the last then takes is news for it.
    assert!(!hands[0].read() && !hands[0].is_woken());
    assert!(hands[2].read());
    assert!(hands[0].is_woken());
    assert!(hands[0].read() && hands[1].read());
}

#[test]
fn committed_to_one_the_others_end_and_nothing_is_kept_that_it_has_read() {
    let bench = Bench::new([data("a"), data("b"), data("c")]);
    let (mut one, mut other) = (Hand::of(&bench.replay), Hand::of(&bench.replay));
    one.read();
    one.read();
    other.read();
    assert_eq!(bench.allowance.held(), 2 * (1 + FRAME));
    assert!(bench.replay.commit(other.attempt));
    assert!(bench.replay.is_committed());
    assert_eq!(bench.replay.winner(), Some(other.attempt));
    assert_eq!(
        bench.allowance.held(),
        1 + FRAME,
        "b, which it has not read"
    );
    assert!(bench.replay.commit(other.attempt), "as often as one likes");
    assert!(!bench.replay.commit(one.attempt), "but once to one");
    assert_eq!(one.read_all(), [saw("a"), saw("b"), LOST]);
    assert_eq!(
        other.read_all(),
        [saw("a"), saw("b"), saw("c"), Seen::End],
        "which came after, and was not kept"
    );
    assert_eq!(bench.allowance.held(), 0);
    assert_eq!(Hand::of(&bench.replay).read_all(), [LOST]);
}

#[test]
fn one_that_waits_hears_of_a_commitment() {
    let bench = Bench::new([Turn::Nothing(Wakes::Told)]);
    let (mut one, mut other) = (Hand::of(&bench.replay), Hand::of(&bench.replay));
    assert!(!one.read() && bench.go_on());
    assert!(bench.replay.commit(other.attempt));
    assert!(one.is_woken());
    assert_eq!(one.read_all(), [LOST]);
    assert_eq!(other.read_all(), [Seen::End]);
}

#[test]
fn a_request_too_large_for_its_call_commits_it_to_the_one_that_is_furthest() {
    let allowance = allowance(2 * FRAME + 10, 1_000);
    let bench = Bench::with(
        allowance,
        [data("aaaa"), data("bbbb"), data("ccc"), data("d")],
    );
    let (mut one, mut other) = (Hand::of(&bench.replay), Hand::of(&bench.replay));
    one.read();
    other.read();
    other.read();
    assert!(!bench.replay.is_committed());
    other.read();
    assert_eq!(bench.replay.winner(), Some(other.attempt));
    assert_eq!(bench.allowance.held(), 0);
    assert_eq!(one.read_all(), [saw("aaaa"), LOST]);
    let all = [saw("aaaa"), saw("bbbb"), saw("ccc"), saw("d"), Seen::End];
    assert_eq!(other.read_all(), all);
    assert!(!bench.replay.commit(one.attempt));
}

#[test]
fn the_calls_of_a_channel_share_what_they_may_keep() {
    let allowance = Arc::new(allowance(1_000, 2 * FRAME + 8));
    let [first, second, third] = ["aaaa", "bbbb", "c"].map(|text| {
        let body = http_body_util::Full::new(Bytes::from_static(text.as_bytes()));
        Replay::new(Body::new(body), allowance.clone())
    });
    assert_eq!(Hand::of(&first).read_all(), [saw("aaaa"), Seen::End]);
    assert_eq!(Hand::of(&second).read_all(), [saw("bbbb"), Seen::End]);
    assert_eq!(allowance.held(), 2 * FRAME + 8);
    assert_eq!(Hand::of(&third).read_all(), [saw("c"), Seen::End]);
    assert!(third.is_committed() && !first.is_committed());
    drop(first);
    assert_eq!(allowance.held(), FRAME + 4);
    drop((second, third));
    assert_eq!(allowance.held(), 0);
}

#[test]
fn without_its_call_what_all_have_read_is_let_go_of() {
    let bench = Bench::new([data("a"), data("b"), data("c")]);
    let (mut one, mut other) = (Hand::of(&bench.replay), Hand::of(&bench.replay));
    one.read_all();
    other.read();
    drop(bench.replay);
    assert_eq!(bench.allowance.held(), 2 * (1 + FRAME), "b and c");
    drop(one);
    other.read();
    assert_eq!(bench.allowance.held(), 1 + FRAME);
    drop(other);
    assert_eq!(bench.allowance.held(), 0);
}

#[test]
fn a_body_that_nobody_can_read_any_more_is_dropped() {
    let bench = Bench::new([data("a"), data("b")]);
    let gone = || Arc::strong_count(&bench.polls) == 1;
    let mut one = Hand::of(&bench.replay);
    one.read();
    assert!(bench.replay.commit(one.attempt));
    assert!(!gone());
    drop(one);
    assert!(gone(), "though the call is still there");
}

#[test]
fn a_body_that_panics_is_an_error_for_the_others() {
    let bench = Bench::new([data("a"), Turn::Panic]);
    let (mut one, mut other) = (Hand::of(&bench.replay), Hand::of(&bench.replay));
    one.read();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one.read()));
    assert!(panicked.is_err());
    let error = Seen::Error(tonic::Code::Internal);
    assert_eq!(other.read_all(), [saw("a"), error]);
}

#[test]
fn the_size_is_what_is_left() {
    let body = http_body_util::Full::new(Bytes::from_static(b"hello"));
    let replay = Replay::new(Body::new(body), Arc::new(usual()));
    let mut hand = Hand::of(&replay);
    assert_eq!(hand.body.size_hint().exact(), Some(5));
    hand.read_all();
    assert_eq!(hand.body.size_hint().exact(), Some(0));
    let again = Hand::of(&replay);
    assert_eq!(again.body.size_hint().exact(), Some(5));
    let bench = Bench::new([data("abc"), Turn::Nothing(Wakes::Told)]);
    Hand::of(&bench.replay).read();
    let hint = Hand::of(&bench.replay).body.size_hint();
    assert_eq!((hint.lower(), hint.upper()), (3, None));
}

/// Threads that read at the same time, over a body that is filled by another.
#[test]
fn attempts_on_several_threads_all_read_everything() {
    let (sender, receiver) = channel();
    let allowance = Arc::new(allowance(1 << 20, 1 << 20));
    let replay = Replay::new(Body::new(receiver), allowance.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_time()
        .build()
        .unwrap();
    let bodies: Vec<Body> = (0..4).map(|_| replay.attempt().1).collect();
    let reading: Vec<_> = bodies
        .into_iter()
        .map(|body| runtime.spawn(async move { body.collect().await.map(|all| all.to_bytes()) }))
        .collect();
    runtime.spawn(async move {
        for n in 0..2_000u32 {
            sender.send(n).unwrap();
            if n % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let all: Vec<u8> = (0..2_000u32).flat_map(u32::to_be_bytes).collect();
    for read in reading {
        let read = runtime.block_on(async {
            let limit = std::time::Duration::from_secs(20);
            tokio::time::timeout(limit, read).await
        });
        assert_eq!(read.expect("nobody is forgotten").unwrap().unwrap(), all);
    }
    assert_eq!(allowance.held(), 2_000 * (4 + FRAME));
    drop(replay);
    assert_eq!(allowance.held(), 0);
}

/// A body that is fed by numbers.
fn channel() -> (tokio::sync::mpsc::UnboundedSender<u32>, Fed) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    (sender, Fed(receiver))
}

struct Fed(tokio::sync::mpsc::UnboundedReceiver<u32>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let number = ready!(self.0.poll_recv(cx));
        let data = number.map(|n| Bytes::copy_from_slice(&n.to_be_bytes()));
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }
}
