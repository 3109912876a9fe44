//! A whole list at once: time and memory.

use std::hint::black_box;

use equipoise::balancer::{Balancer, Config};
use equipoise::policy::Adaptive;
use equipoise::transport::{Connector, Http2Connection};
use equipoise::{Address, BalanceLayer, ConnectError, Endpoint, Timestamp};
use futures_util::future::{BoxFuture, pending};
use stats_alloc::Region;
use tower_layer::Layer;

use crate::policies::endpoint;
use crate::{ALLOCATOR, middle, own_nanos};

const FEW: usize = 1_000;
const MANY: usize = 10_000;
const ROUNDS: usize = 31;

pub(crate) struct Whole {
    /// For all of the many, and how many times the time for the few that is.
    pub(crate) millis: f64,
    pub(crate) growth: f64,
    /// Per endpoint, of the many.
    pub(crate) balancer_bytes: f64,
    pub(crate) channel_bytes: f64,
}

pub(crate) fn measure() -> Whole {
    let (mut few, mut many, mut growth) = (Vec::new(), Vec::new(), Vec::new());
    let (mut one_more, mut all_others) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (_, less) = first_list(list(0, FEW));
        let (mut balancer, more) = first_list(list(0, MANY));
        few.push(less);
        many.push(more);
        growth.push(more / less);
        one_more.push(hand(&mut balancer, list(1, MANY), 1));
        all_others.push(hand(&mut balancer, list(2 * MANY, MANY), 2));
    }
    let whole = Whole {
        millis: middle(&many),
        growth: middle(&growth),
        balancer_bytes: balancer_bytes(),
        channel_bytes: channel_bytes(),
    };
    println!("a list handed to a balancer, until it has no more to do; medians of {ROUNDS} rounds");
    println!(
        "{FEW:>6} endpoints, the first list    {:>8.2} ms",
        middle(&few)
    );
    println!(
        "{MANY:>6} endpoints, the first list    {:>8.2} ms",
        whole.millis
    );
    println!(
        "{MANY:>6} endpoints, one of them new   {:>8.2} ms",
        middle(&one_more)
    );
    println!(
        "{MANY:>6} endpoints, all of them new   {:>8.2} ms",
        middle(&all_others)
    );
    println!(
        "bytes per endpoint never connected: {:.0} in a balancer, {:.0} in a channel",
        whole.balancer_bytes, whole.channel_bytes
    );
    println!();
    whole
}

fn list(from: usize, count: usize) -> Vec<Endpoint> {
    (from..from + count).map(endpoint).collect()
}

fn first_list(list: Vec<Endpoint>) -> (Balancer, f64) {
    let policy = Box::new(Adaptive::default());
    let mut balancer = Balancer::new(Config::default(), policy, Vec::new(), 1);
    let millis = hand(&mut balancer, list, 0);
    (balancer, millis)
}

/// Milliseconds of this thread's time until there is nothing left to do or to tell.
fn hand(balancer: &mut Balancer, list: Vec<Endpoint>, second: u64) -> f64 {
    let now = Timestamp::from_secs(second);
    let start = own_nanos();
    balancer.handle_resolution(Ok(list), now);
    while let Some(action) = balancer.poll_action(now) {
        black_box(action);
    }
    while let Some(event) = balancer.poll_event() {
        black_box(event);
    }
    (own_nanos() - start) / 1e6
}

/// With the picker that a channel would keep.
fn balancer_bytes() -> f64 {
    let region = Region::new(ALLOCATOR);
    let (balancer, _) = first_list(list(0, MANY));
    let change = region.change();
    black_box(balancer);
    bytes(change)
}

fn bytes(change: stats_alloc::Stats) -> f64 {
    // What reallocation adds or takes is in these.
    let held = change.bytes_allocated as f64 - change.bytes_deallocated as f64;
    held / MANY as f64
}

/// Dials, and is never answered.
#[derive(Clone, Debug)]
struct Mute;

impl Connector for Mute {
    type Connection = Http2Connection;

    fn connect(
        &self,
        _: &Endpoint,
        _: &Address,
    ) -> BoxFuture<'static, Result<Http2Connection, ConnectError>> {
        Box::pin(pending())
    }
}

fn channel_bytes() -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime starts");
    runtime.block_on(async {
        let region = Region::new(ALLOCATOR);
        let layer = BalanceLayer::from_endpoints(list(0, MANY)).build();
        let channel = layer.expect("the settings are good").layer(Mute);
        while channel.endpoints().len() < MANY {
            tokio::task::yield_now().await;
        }
        let held = bytes(region.change());
        channel.close().await;
        held
    })
}
