//! D9 and D10: resolvers that answer too much, or break.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use equipoise::policy::PickFirst;
use equipoise::resolver::{Hints, Resolver, Update};
use equipoise::{Channel, Endpoint, ResolveError, Target};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;

use crate::balanced::{by, clean, endpoints, ready, until};
use crate::cost::{forget_peak, memory};
use crate::rig::clean::{Footprint, alone};
use crate::rig::load::Load;
use crate::size::{self, figure};
use crate::{Fleet, report};

const WORK: Duration = Duration::from_millis(1);

/// What is done with the list of the fleet, once it is out.
#[derive(Clone, Copy, Debug)]
enum Then {
    Panic,
    Hang,
}

/// Answers once; when it is told to, it breaks.
#[derive(Debug)]
struct Breaking {
    list: Vec<Endpoint>,
    then: Then,
    breaks: watch::Receiver<bool>,
    asked: Arc<AtomicUsize>,
}

impl Resolver for Breaking {
    fn watch(&self, _: &Target, _: Hints) -> BoxStream<'static, Result<Update, ResolveError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let first = Ok(Update {
            endpoints: self.list.clone(),
        });
        let (then, mut breaks) = (self.then, self.breaks.clone());
        let rest = async move {
            let told = breaks.wait_for(|breaks| *breaks).await.is_ok();
            match then {
                Then::Panic if told => panic!("a resolver that panics, as it was asked to"),
                _ => std::future::pending().await,
            }
        };
        stream::iter([first]).chain(stream::once(rest)).boxed()
    }
}

/// D10: the resolver's task panics. The last list stays, nobody notices, it shows, and it is asked again.
#[test]
fn d10_a_resolver_that_panics() {
    alone(breaks(Then::Panic));
}

/// And one that never says anything more.
#[test]
fn d10_a_resolver_that_hangs() {
    alone(breaks(Then::Hang));
}

async fn breaks(then: Then) {
    let before = Footprint::take();
    let fleet = Fleet::start(WORK);
    let (tell, breaks) = watch::channel(false);
    let asked = Arc::new(AtomicUsize::new(0));
    let resolver = Breaking {
        list: endpoints(&fleet.addresses()),
        then,
        breaks,
        asked: asked.clone(),
    };
    let channel = ready(by(resolver)).await;
    let age = || channel.resolution().expect("there is a resolver").age;
    let load = Load::of(size::calls(1_000));
    let at = size::fault_before(load.calls);
    let calls = load.run_with(channel.clone(), |number| {
        if number == at {
            tell.send_replace(true);
        }
        std::ops::ControlFlow::Continue(())
    });
    let verdict = fleet.ledger.audit(&calls.await);
    println!("{verdict}");
    verdict.assert_unnoticed();
    let aged = age().expect("there was a list");
    figure("age of the list at the end", aged.as_secs_f64() * 1e3, "ms");
    match then {
        // It grows older for as long as the load took.
        Then::Hang => assert!(aged > Duration::from_millis(200), "{aged:?}"),
        Then::Panic => {
            let begin = Instant::now();
            let again = || asked.load(Ordering::Relaxed) > 1;
            until("it is asked again", again).await;
            report("asked again", begin.elapsed(), Duration::from_secs(1));
        }
    }
    if let Then::Panic = then {
        until("it is said", || {
            let shown = channel.resolution().expect("there is a resolver");
            shown
                .last_error
                .is_some_and(|error| error.contains("panicked"))
        })
        .await;
    }
    clean(channel, fleet, &before).await;
}

/// The control: a client whose resolver runs with its calls is gone with it.
#[test]
fn d10_control_a_naive_client_panics_with_its_resolver() {
    alone(async {
        let (tell, breaks) = watch::channel(true);
        let resolver = Breaking {
            list: Vec::new(),
            then: Then::Panic,
            breaks,
            asked: Arc::default(),
        };
        let target: Target = "static:127.0.0.1:1".parse().expect("a target");
        let mut lists = resolver.watch(&target, Hints::default());
        let naive = tokio::spawn(async move { while lists.next().await.is_some() {} });
        let ended = naive.await.expect_err("nobody catches it");
        assert!(ended.is_panic());
        drop(tell);
    });
}

/// A list of many: addresses of loopback where nobody listens.
pub(super) fn many(count: u32) -> Vec<Endpoint> {
    let address =
        |n: u32| SocketAddr::from(((0x7f01_0000 | n >> 8).to_be_bytes(), 1 + (n & 0xff) as u16));
    (0..count).map(|n| Endpoint::from(address(n))).collect()
}

/// D9: a million endpoints. As many as are allowed are taken, the same ones each time, and the rest costs nothing.
#[test]
fn d9_a_million_endpoints() {
    alone(async {
        const LIMIT: usize = 10_000;
        let count = size::of(100_000, 1_000_000);
        let before = Footprint::take();
        let policy = PickFirst::default();
        let channel = Channel::from_endpoints([])
            .policy(policy)
            .build()
            .expect("in range");
        // Another task of the same runtime: how long it was kept waiting.
        let (stop, worst) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, longest) = (stop.clone(), worst.clone());
        let watchdog = tokio::spawn(async move {
            // A flag and a maximum on their own: nothing else is read in their order.
            while !stopped.load(Ordering::Relaxed) {
                let begin = Instant::now();
                tokio::time::sleep(Duration::from_millis(1)).await;
                let late = begin.elapsed().as_micros() as u64;
                longest.fetch_max(late, Ordering::Relaxed);
            }
        });
        let mut list = many(count);
        let kept = |channel: &Channel| -> Vec<String> {
            let mut kept: Vec<String> = channel
                .endpoints()
                .iter()
                .map(|e| e.address.to_string())
                .collect();
            kept.sort_unstable();
            kept
        };
        // Sets the peak back to what is used now, the list included.
        forget_peak();
        let start = memory("VmRSS:");
        channel.set_endpoints(list.drain(..)).expect("it is open");
        let took = until_so_many(&channel, LIMIT).await;
        let grown = memory("VmHWM:").saturating_sub(start);
        let first = kept(&channel);
        assert_eq!(first.len(), LIMIT);
        figure(
            "peak of memory above the list's own",
            (grown / 1024) as f64,
            "MiB",
        );
        figure("taken up after", took.as_secs_f64() * 1e3, "ms");
        // `collect` may hold the list a second time.
        let twice = count as usize * size_of::<Endpoint>() / 1024;
        println!("{grown} KiB, a copy of the list is {twice} KiB");
        assert!(grown <= 64 * 1024 + twice, "{grown} KiB");
        // In another order they are the same.
        let mut list = many(count);
        list.reverse();
        channel.set_endpoints(list).expect("it is open");
        channel.set_endpoints(many(count)).expect("it is open");
        // The lists are taken up one after the other, and a call goes behind them all.
        until("the lists are taken up", || {
            channel.endpoints().len() == LIMIT
        })
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(kept(&channel), first, "another subset");
        stop.store(true, Ordering::Relaxed);
        watchdog.await.expect("no panic");
        let worst = Duration::from_micros(worst.load(Ordering::Relaxed));
        println!("a task beside it waited for {worst:?} at most");
        figure(
            "longest pause of a task beside it",
            worst.as_secs_f64() * 1e3,
            "ms",
        );
        clean(channel, (), &before).await;
    });
}

async fn until_so_many(channel: &Channel, count: usize) -> Duration {
    let begin = Instant::now();
    until("the list is taken up", || {
        channel.endpoints().len() == count
    })
    .await;
    begin.elapsed()
}

/// The control: tonic's own list of endpoints has room for 1,024, and panics with one more.
#[test]
fn d9_control_tonic_panics_on_a_long_list() {
    alone(async {
        let naive = tokio::spawn(async {
            let addresses: Vec<SocketAddr> = (0..1_025)
                .map(|n| SocketAddr::from(([127, 0, 0, 1], 1 + n)))
                .collect();
            drop(crate::rig::rivals::tonic_balance(&addresses));
        });
        let ended = naive.await.expect_err("it has become better: say so");
        assert!(ended.is_panic());
    });
}
