//! G18: new pickers by the thousand while calls wait.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use equipoise::policy::{Connect, Decision, Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::Rng;
use equipoise::{Address, Connectivity, Endpoint, EndpointId, Timestamp};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::Code;

use super::SAY_HELLO;
use crate::frames::{FrameServer, Script};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::ledger::{Call, End, audit};
use crate::rig::load::call;
use crate::rig::{now, timer};
use crate::size::{self, figure};
use crate::wire::{Processed, executions};
use crate::{clean, reference, until};

/// As many as may wait.
const WAITING: u64 = 1_000;

/// Gives every call to one endpoint, once it is ready, and keeps a record of its pickers.
#[derive(Clone, Debug)]
struct Recorded {
    server: Address,
    record: Arc<Record>,
}

#[derive(Debug, Default)]
struct Record {
    /// Pickers that were made.
    made: AtomicU64,
    /// Told of each: who asks again and again instead has a processor that the calls lack.
    another: Notify,
    /// Those of them that a call asked.
    asked: AtomicU64,
    /// How often calls asked, and were told to wait.
    waits: AtomicU64,
    /// Calls that were given an endpoint, and when the last was.
    given: AtomicU64,
    last_given: AtomicU64,
    /// When the first picker was made that can serve.
    serves: OnceLock<Duration>,
}

#[derive(Debug)]
struct Asked {
    to: Option<EndpointId>,
    was_asked: AtomicBool,
    record: Arc<Record>,
}

impl Policy for Recorded {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        let there = members
            .iter()
            .find(|member| *member.endpoint.address() == self.server);
        let to = there.filter(|member| member.state == Connectivity::Ready);
        let to = to.map(|member| member.id);
        if to.is_some() {
            self.record.serves.get_or_init(now);
        }
        self.record.made.fetch_add(1, Ordering::Relaxed);
        self.record.another.notify_one();
        let picker = Asked {
            to,
            was_asked: AtomicBool::new(false),
            record: self.record.clone(),
        };
        Decision {
            picker: Arc::new(picker),
            connect: Connect::Only(there.map(|member| member.id).into_iter().collect()),
            wake: None,
        }
    }
}

impl Picker for Asked {
    // Counters and a maximum, each on its own: they are read when all is over.
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        // The channel asks about a call that there is not, too.
        let real = info.path == SAY_HELLO;
        if real && !self.was_asked.swap(true, Ordering::Relaxed) {
            self.record.asked.fetch_add(1, Ordering::Relaxed);
        }
        match self.to {
            Some(id) => {
                if real {
                    let at = now().as_nanos() as u64;
                    self.record.given.fetch_add(1, Ordering::Relaxed);
                    self.record.last_given.fetch_max(at, Ordering::Relaxed);
                }
                PickResult::Pick(id)
            }
            None => {
                self.record
                    .waits
                    .fetch_add(u64::from(real), Ordering::Relaxed);
                PickResult::Queue { connect: None }
            }
        }
    }
}

/// G18: a thousand calls wait for a server that is connected and has not said its settings, while the list changes again
/// and again: one endpoint takes the place of another beside the server. An endpoint that leaves is published at once, so
/// each change is a picker of its own; the next one comes when that one was made, and every tenth time the policy is
/// exchanged as well. Somewhere in the last tenth of all changes the settings come. The orders in which one call joins
/// the line while one picker comes are all tried by the models in `tests/models`.
#[test]
fn g18_pickers_swapped_while_calls_wait() {
    alone(async {
        let swaps = size::of(300, 10_000);
        let before = Footprint::take();
        let server = FrameServer::start(Script {
            settings: false,
            ..Script::default()
        })
        .await;
        let record = Arc::new(Record::default());
        let policy = Recorded {
            server: server.address().into(),
            record: record.clone(),
        };
        let builder = reference(&[server.address()]).policy(policy.clone());
        let channel = builder.connect_timeout(Duration::from_secs(600));
        let channel = channel.build().expect("in range");
        let peer = server.peer(0).await;
        let mut waiting = JoinSet::new();
        for id in 1..=WAITING {
            let request = HelloRequest {
                id,
                ..HelloRequest::default()
            };
            let hour = Duration::from_secs(3_600);
            waiting.spawn(call(channel.clone(), request, hour, now()));
        }
        until("all wait", || channel.waiting() as u64 == WAITING).await;

        let seed = size::seed();
        let settings_at = swaps - 1 - Rng::new(seed).word() % (swaps / 10);
        println!("seed {seed}: settings come with change {settings_at} of {swaps}");
        let made = || record.made.load(Ordering::Relaxed);
        let (first, begin) = (made(), Instant::now());
        for swap in 0..swaps {
            if swap == settings_at {
                assert_eq!(
                    channel.waiting() as u64,
                    WAITING,
                    "nobody can be served yet"
                );
                peer.settings(None);
            }
            if swap % 10 == 0 {
                let exchanged = channel.set_policy(policy.clone());
                exchanged.expect("it can work as it is");
            }
            // Nobody dials it.
            let beside = SocketAddr::from(([192, 0, 2, 1 + (swap % 2) as u8], 80));
            let list = [server.address(), beside].map(Endpoint::from);
            let known = made();
            channel
                .set_endpoints(list)
                .expect("the list is in our hands");
            while made() == known {
                record.another.notified().await;
            }
        }
        let took = begin.elapsed();
        let mut calls = Vec::new();
        let all_end = async {
            while let Some(call) = waiting.join_next().await {
                calls.push(call.expect("no panic"));
            }
        };
        let in_time = tokio::time::timeout(crate::PATIENCE, all_end).await;
        let stuck = WAITING as usize - calls.len();
        assert!(in_time.is_ok(), "{stuck} calls are stuck: {record:?}");
        let verdict = audit(&calls, &executions(&peer, "late", |_| Processed::Answered));
        println!("{verdict}\n  {swaps} changes in {took:?}: {record:?}");
        verdict.assert_unnoticed();

        let (made, asked) = (made() - first, record.asked.load(Ordering::Relaxed));
        figure("pickers", made as f64, "");
        figure("pickers that waiting calls asked", asked as f64, "");
        assert!(made >= swaps, "{made} pickers");
        assert!(asked > swaps / 2, "{asked} pickers were asked");
        // Each of those that waited asked many: as many as it could, while the next one was made.
        let waits = record.waits.load(Ordering::Relaxed);
        assert!(waits > 10 * WAITING, "{waits} times");
        assert_eq!(record.given.load(Ordering::Relaxed), WAITING);
        let serves = record.serves.get().copied().expect("one could serve");
        let last = Duration::from_nanos(record.last_given.load(Ordering::Relaxed));
        // All are sent meanwhile, a thousand calls: on a busy machine that takes the time it takes.
        let took = last.saturating_sub(serves);
        size::time("the last has its endpoint", took, Duration::from_millis(10));
        let limit = size::of(Duration::from_secs(1), Duration::from_millis(100));
        assert!(took <= limit, "{took:?} until the last had its endpoint");
        assert_eq!(server.connections(), 1);
        drop((server, peer));
        clean(channel, &before).await;
    });
}

/// What a look takes where there is much to look at.
const LOOK: Duration = Duration::from_millis(4);

/// Waits as one should not: looks, and only then asks to be woken.
async fn naive(line: Arc<(AtomicBool, Notify)>, id: u64) -> Call {
    let (ready, news) = &*line;
    let start = now();
    let served = async {
        while !ready.load(Ordering::Acquire) {
            timer::pause(LOOK).await;
            news.notified().await;
        }
        now()
    };
    let served = tokio::time::timeout(Duration::from_millis(500), served).await;
    Call {
        id,
        due: start,
        start,
        deadline: None,
        end: served.ok().map(|at| End {
            at,
            code: Code::Ok,
            server: String::new(),
            not_sent: false,
            message: String::new(),
        }),
    }
}

/// G18, the control: news that comes between the look and the sleep is lost, and so is whoever waited for it.
#[test]
fn g18_control_who_looks_before_it_lies_down_misses_the_last_word() {
    alone(async {
        let line = Arc::new((AtomicBool::new(false), Notify::new()));
        let mut waiting = JoinSet::new();
        for id in 1..=WAITING {
            waiting.spawn(naive(line.clone(), id));
        }
        let (ready, news) = &*line;
        for _ in 0..20 {
            timer::pause(2 * LOOK).await;
            news.notify_waiters();
        }
        // While they look into the last news.
        timer::pause(LOOK / 2).await;
        ready.store(true, Ordering::Release);
        news.notify_waiters();
        let verdict = audit(&waiting.join_all().await, &[]);
        println!("{verdict}");
        assert!(!verdict.lost.is_empty(), "{verdict}");
    });
}
