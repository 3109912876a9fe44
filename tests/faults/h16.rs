//! H16: the caller drops a call at every poll there is. Everything it held is free again, and no other
//! call notices.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use equipoise::policy::{Connect, Decision, Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::Rng;
use equipoise::{Channel, Connectivity, EndpointId, Timestamp};
use tonic::{Code, Request, Response, Status};

use crate::Fleet;
use crate::balanced::{clean, in_flight, over, quiet, ready, until};
use crate::frames::{FrameServer, Script, Step, code, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{HelloReply, HelloRequest};

/// What each server takes for a call: long enough that no answer is there within the poll that sent the
/// call, even where a busy machine stops that poll for a while.
const WORK: Duration = Duration::from_millis(20);

type Answer = Result<Response<HelloReply>, Status>;

/// When a call is dropped.
#[derive(Clone, Copy, Debug)]
enum Dropped {
    /// Right after so many polls.
    After(usize),
    /// After so many polls, when it has just been woken for one more: what it was told is lost with it.
    Woken(usize),
}

/// Polls a call up to there and drops it; its answer, where it had one by then.
async fn cut<T>(call: impl Future<Output = T>, at: Dropped) -> Option<T> {
    let mut call = pin!(call);
    let mut polls = 0;
    std::future::poll_fn(move |cx| {
        if matches!(at, Dropped::After(0)) || matches!(at, Dropped::Woken(last) if polls == last) {
            return Poll::Ready(None);
        }
        polls += 1;
        match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if matches!(at, Dropped::After(last) if polls == last) => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Runs `round` for every place to drop, until in both ways the call was answered before it; `least` is
/// how many polls it takes at the least.
async fn at_every_poll(least: usize, mut round: impl AsyncFnMut(Dropped) -> bool) {
    for way in [Dropped::After, Dropped::Woken] {
        let mut polls = 0;
        while !round(way(polls)).await {
            polls += 1;
            assert!(polls < 100, "never answered");
        }
        println!("  answered within {polls} polls");
        assert!(polls >= least, "answered within {polls} polls");
    }
}

fn hello(id: u64) -> HelloRequest {
    HelloRequest {
        id,
        ..Default::default()
    }
}

async fn say(channel: Channel, request: HelloRequest) -> Answer {
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_secs(10));
    GreeterClient::new(channel).say_hello(request).await
}

#[test]
fn h16_a_unary_call_dropped_at_every_poll() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(WORK);
        let channel = ready(over(&fleet.addresses())).await;
        let (mut id, mut beside) = (0, Vec::new());
        at_every_poll(2, async |at| {
            id += 2;
            let other = tokio::spawn(say(channel.clone(), hello(id)));
            let answer = cut(say(channel.clone(), hello(id + 1)), at).await;
            other
                .await
                .expect("no panic")
                .expect("nothing is wrong with it");
            beside.push(id);
            quiet(&channel).await;
            answer
                .map(|answer| answer.expect("nothing is wrong with it"))
                .is_some()
        })
        .await;
        // Nothing was executed twice, and the others once each.
        until("the servers are done", || {
            fleet.ledger.executions().iter().all(|e| e.end.is_some())
        })
        .await;
        let mut executed: Vec<u64> = fleet.ledger.executions().iter().map(|e| e.id).collect();
        executed.sort_unstable();
        let all = executed.len();
        executed.dedup();
        assert_eq!(executed.len(), all);
        assert!(beside.iter().all(|id| executed.contains(id)));
        assert!(channel.endpoints().iter().all(|e| e.connections == 1));
        clean(channel, fleet, &before).await;
    });
}

#[test]
fn h16_a_waiting_call_dropped_at_every_poll() {
    alone(async {
        let before = Footprint::take();
        // One at a time: the others wait in the line.
        let fleet = Fleet::of(vec![Options {
            work: WORK,
            max_concurrent_streams: Some(1),
            ..Options::new("b1")
        }]);
        let channel = ready(over(&fleet.addresses())).await;
        let mut id = 0;
        at_every_poll(3, async |at| {
            id += 3;
            let (first, last) = (hello(id), hello(id + 2));
            let first = tokio::spawn(say(channel.clone(), first));
            until("the only slot is taken", || in_flight(&channel) == 1).await;
            let mut between = Box::pin(cut(say(channel.clone(), hello(id + 1)), at));
            // It takes its place in the line before the last one does.
            let early = std::future::poll_fn(|cx| Poll::Ready(between.as_mut().poll(cx))).await;
            let last = tokio::spawn(say(channel.clone(), last));
            let answer = match early {
                Poll::Ready(answer) => answer,
                Poll::Pending => between.await,
            };
            for other in [first, last] {
                other.await.expect("no panic").expect("it has its turn");
            }
            quiet(&channel).await;
            answer
                .map(|answer| answer.expect("it has its turn"))
                .is_some()
        })
        .await;
        assert_eq!(channel.endpoints()[0].connections, 1);
        clean(channel, fleet, &before).await;
    });
}

/// Picks the first ready endpoint that is not to be avoided.
#[derive(Clone, Debug)]
struct InOrder;

impl Policy for InOrder {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        let ready = members.iter().filter(|m| m.state == Connectivity::Ready);
        Decision {
            picker: Arc::new(First(ready.map(|m| m.id).collect())),
            connect: Connect::All,
            wake: None,
        }
    }
}

#[derive(Debug)]
struct First(Vec<EndpointId>);

impl Picker for First {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let mut open = self.0.iter().filter(|id| !info.avoid.contains(id));
        match open.next().or(self.0.first()) {
            Some(&id) => PickResult::Pick(id),
            None => PickResult::Queue { connect: None },
        }
    }
}

#[test]
fn h16_a_refused_call_dropped_at_every_poll() {
    alone(async {
        let before = Footprint::take();
        let refusing = FrameServer::start(Script {
            stream: stream(|_| vec![Step::Pause(WORK), Step::Reset(code::REFUSED_STREAM)]),
            ..Script::default()
        })
        .await;
        let serving = FrameServer::start(Script {
            stream: stream(|_| [vec![Step::Pause(WORK)], Step::reply(b"")].concat()),
            ..Script::default()
        })
        .await;
        let addresses = [refusing.address(), serving.address()];
        let channel = ready(over(&addresses).policy(InOrder)).await;
        // The picker of both is out a little later than their states.
        while say(channel.clone(), hello(1)).await.is_err() {}
        at_every_poll(3, async |at| {
            let request = || hello(1);
            let other = tokio::spawn(say(channel.clone(), request()));
            let answer = cut(say(channel.clone(), request()), at).await;
            other
                .await
                .expect("no panic")
                .expect("it went to the second");
            quiet(&channel).await;
            answer
                .map(|answer| answer.expect("it went to the second"))
                .is_some()
        })
        .await;
        let endpoints = channel.endpoints();
        let (first, second) = (&endpoints[0], &endpoints[1]);
        println!(
            "  refused {}, cancelled {} and {}",
            first.refused, first.cancelled, second.cancelled
        );
        assert!(first.refused > 0 && second.outcome(Code::Ok) > 0);
        assert!(
            first.cancelled > 0 && second.cancelled > 0,
            "not dropped in both places"
        );
        // Whoever was dropped with the server still at work was reset there.
        let peer = serving.peer(0).await;
        assert!(peer.count(|frame| frame.is(kind::RST_STREAM)) as u64 <= second.cancelled);
        assert!(endpoints.iter().all(|e| e.connections == 1));
        drop((peer, endpoints));
        clean(channel, (refusing, serving), &before).await;
    });
}

/// H16, the control: dropped in the same places, a call that counts itself in and out, and has no guard,
/// stays counted for ever.
#[test]
fn h16_control_a_call_without_a_guard_leaks() {
    alone(async {
        let fleet = Fleet::start(WORK);
        let channel = ready(over(&fleet.addresses())).await;
        let counted = AtomicUsize::new(0);
        let naive = |request| -> Pin<Box<dyn Future<Output = Answer> + '_>> {
            let channel = channel.clone();
            let counted = &counted;
            Box::pin(async move {
                // A counter on its own: nothing else is read in its order.
                counted.fetch_add(1, Ordering::Relaxed);
                let answer = say(channel, request).await;
                counted.fetch_sub(1, Ordering::Relaxed);
                answer
            })
        };
        let mut leaked = 0;
        at_every_poll(2, async |at| {
            let answer = cut(naive(hello(1)), at).await;
            leaked += usize::from(answer.is_none());
            answer.is_some()
        })
        .await;
        // Only those that were never polled are not counted: one in each way to drop.
        assert_eq!(counted.load(Ordering::Relaxed), leaked - 2);
        assert!(leaked > 2);
    });
}
