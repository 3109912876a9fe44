//! H2: an outage that outlives its cause, because everything is tried again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use equipoise::balancer::Backoff;
use equipoise::policy::RoundRobin;
use equipoise::retry::HedgingPolicy;
use equipoise::{Channel, Endpoint, MethodConfig};
use tokio::task::JoinSet;
use tonic::Request;

use super::retries::repeated;
use crate::balanced::{clean, over, ready};
use crate::frames::{FrameServer, Script, Step, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::timer;
use crate::size;

/// How large the scenario is. A third of the capacity goes for a while and comes back.
struct Scale {
    /// Calls a second that a server can serve.
    capacity: u32,
    /// Calls that wait at a server before it turns more away.
    queue: u32,
    /// Calls a second that are made.
    offered: u32,
    deadline: Duration,
    /// When a caller loses patience with an attempt.
    patience: Duration,
    outage: Duration,
    /// After the return, until all should be well, and how long it is looked at then.
    settle: Duration,
    look: Duration,
}

fn scale() -> Scale {
    let ms = Duration::from_millis;
    size::of(
        Scale {
            capacity: 150,
            queue: 300,
            offered: 350,
            deadline: ms(500),
            patience: ms(200),
            outage: ms(2_500),
            settle: ms(4_000),
            look: ms(3_000),
        },
        Scale {
            capacity: 500,
            queue: 1_000,
            offered: 1_100,
            deadline: ms(1_000),
            patience: ms(400),
            outage: ms(5_000),
            settle: ms(30_000),
            look: ms(30_000),
        },
    )
}

/// A server with one worker, which takes calls in their order and works on each to the end, also on those that nobody
/// waits for any more. While it is down each call breaks its connection.
async fn server(scale: &Scale, down: Arc<AtomicBool>) -> FrameServer {
    let service = Duration::from_secs(1) / scale.capacity;
    let most = service * scale.queue;
    let free = Mutex::new(Instant::now());
    let answer = move |_| {
        // A flag on its own: nothing else is read in its order.
        if down.load(Ordering::Relaxed) {
            return vec![Step::Kill];
        }
        let now = Instant::now();
        let mut free = free.lock().expect("nothing panics under it");
        if free.saturating_duration_since(now) > most {
            return vec![Step::TrailersOnly(14)];
        }
        *free = (*free).max(now) + service;
        vec![
            Step::Pause(*free - now),
            Step::Headers,
            Step::Message(bytes::Bytes::new()),
            Step::Trailers(0),
        ]
    };
    FrameServer::start(Script {
        stream: stream(answer),
        ..Script::default()
    })
    .await
}

/// Who makes the calls.
#[derive(Clone, Copy, PartialEq)]
enum Caller {
    /// One call each; the channel sends a copy when its caller would lose patience.
    Hedged,
    /// Tries again by itself, three times in all, without a budget.
    Naive,
}

async fn one(channel: Channel, caller: Caller, deadline: Duration, patience: Duration) -> bool {
    let mut client = GreeterClient::new(channel);
    let end = Instant::now() + deadline;
    let (attempts, limit) = match caller {
        Caller::Hedged => (1, deadline),
        Caller::Naive => (4, patience),
    };
    for _ in 0..attempts {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let mut request = Request::new(HelloRequest::default());
        request.set_timeout(limit.min(left));
        if client.say_hello(request).await.is_ok() {
            return Instant::now() <= end;
        }
    }
    false
}

/// The share of calls that succeed once all should be well again, and before the outage.
async fn goodput(caller: Caller) -> (f64, f64) {
    let before = Footprint::take();
    let scale = scale();
    let down = Arc::new(AtomicBool::new(false));
    let up = Arc::new(AtomicBool::new(false));
    let servers = [
        server(&scale, down.clone()).await,
        server(&scale, up.clone()).await,
        server(&scale, up.clone()).await,
    ];
    let addresses: Vec<SocketAddr> = servers.iter().map(FrameServer::address).collect();
    let backoff = Backoff {
        base: Duration::from_millis(200),
        cap: Duration::from_secs(1),
        ..Backoff::default()
    };
    let builder = over(&addresses)
        .policy(RoundRobin::default())
        .backoff(backoff)
        .outlier_detection(None);
    let policy = HedgingPolicy::after(scale.patience).with_max_attempts(4);
    let channel = ready(match caller {
        Caller::Hedged => repeated(builder, MethodConfig::default().with_hedging(policy)),
        Caller::Naive => builder,
    })
    .await;
    let calm = Duration::from_secs(1);
    let (out, back) = (calm, calm + scale.outage);
    let (from, to) = (back + scale.settle, back + scale.settle + scale.look);
    let begun = Instant::now();
    let (mut running, mut number) = (JoinSet::new(), 0);
    let all = |endpoints: &[SocketAddr]| {
        let list = endpoints.iter().copied().map(Endpoint::from);
        channel.set_endpoints(list).expect("the list is ours");
    };
    let (mut is_out, mut is_back) = (false, false);
    loop {
        let due = Duration::from_secs(1) * number / scale.offered;
        if due >= to {
            break;
        }
        timer::until(begun + due).await;
        if due >= out && !is_out {
            is_out = true;
            down.store(true, Ordering::Relaxed);
            all(&addresses[1..]);
        }
        if due >= back && !is_back {
            is_back = true;
            down.store(false, Ordering::Relaxed);
            all(&addresses);
        }
        let call = one(channel.clone(), caller, scale.deadline, scale.patience);
        running.spawn(async move { (due, call.await) });
        number += 1;
    }
    let calls = running.join_all().await;
    let share = |from: Duration, to: Duration| {
        let calls = calls.iter().filter(|(due, _)| (from..to).contains(due));
        let ok: Vec<bool> = calls.map(|&(_, ok)| ok).collect();
        ok.iter().filter(|&&ok| ok).count() as f64 / ok.len() as f64
    };
    let shares = (share(from, to), share(Duration::ZERO, out));
    println!(
        "before {:.3}, during {:.3}, at once after {:.3}, later {:.3}",
        shares.1,
        share(out, back),
        share(back, from),
        shares.0
    );
    clean(channel, servers, &before).await;
    shares
}

/// H2: with the budget everything is well again by itself.
#[test]
fn h2_the_outage_ends_with_its_cause() {
    alone(async {
        let (later, before) = goodput(Caller::Hedged).await;
        assert!(before >= 0.97, "{before}");
        assert!(later >= 0.99, "{later}");
    });
}

/// H2, the control: callers that simply try again keep the servers busy with what nobody waits for.
#[test]
fn h2_control_naive_retries_keep_the_outage_alive() {
    alone(async {
        let (later, before) = goodput(Caller::Naive).await;
        assert!(before >= 0.97, "{before}");
        assert!(later < 0.7, "the test is too weak: {later}");
    });
}
