//! E: DNS, by look-ups that the test answers.

use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use equipoise::balancer::Backoff;
use equipoise::policy::RoundRobin;
use equipoise::resolver::{Dns, Hints, Resolver, Update};
use equipoise::transport::{Connector, Http2Connection, Http2Connector};
use equipoise::{
    Address, BalanceLayer, Channel, ConnectError, Connectivity, Endpoint, ResolveError, Target,
    WaitForReady,
};
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{self, BoxStream, StreamExt};
use http::uri::Authority;
use tonic::{Code, Request, Status};
use tower_layer::Layer;

use crate::balanced::{all_ready, by, clean, endpoints, named, ready, report, until};
use crate::d::blue_and_green;
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{Options, Server};
use crate::rig::holes;
use crate::rig::load::Load;
use crate::rig::names::Name;

const MS: Duration = Duration::from_millis(1);
const WORK: Duration = MS;
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(86_400);

/// A hundred endpoints that are all down, dialled again and again.
fn all_down(resolver: impl Resolver + 'static) -> Channel {
    let builder = by(resolver).backoff(Backoff {
        base: 20 * MS,
        cap: 40 * MS,
        ..Backoff::default()
    });
    builder.build().expect("all is in range")
}

/// E3, all backends are down and ask for another look-up. There is one resolver for all of them, and it looks
/// no more often than it may.
#[test]
fn e3_all_backends_down_ask_for_one_look_up() {
    alone(async {
        let before = Footprint::take();
        let holes: Vec<_> = (0..100).map(|_| holes::refused()).collect();
        let addresses: Vec<SocketAddr> = holes.iter().map(|hole| hole.address).collect();
        let name = Name::of(&addresses);
        let (min_interval, window) = (100 * MS, 1_500 * MS);
        let dns = Dns::default()
            .with_lookup(name.look_up())
            .with_min_interval(min_interval)
            .with_refresh(NEVER)
            .allow_loopback();
        let begin = Instant::now();
        let channel = all_down(dns);
        until("the window is over", || begin.elapsed() >= window).await;
        let (asked, took) = (name.asked(), begin.elapsed());
        println!("  {asked} look-ups in {took:?}");
        assert_eq!(channel.state(), Connectivity::TransientFailure);
        let most = took.as_millis() / min_interval.as_millis() + 2;
        assert!(asked as u128 <= most, "{asked} look-ups in {took:?}");
        // It does look: without the wishes there would be one.
        assert!(asked >= 5, "{asked} look-ups in {took:?}");
        clean(channel, holes, &before).await;
    });
}

/// Gives one list, and then counts what it is asked for.
#[derive(Debug)]
struct Counting(Vec<Endpoint>, Arc<AtomicUsize>);

impl Resolver for Counting {
    fn watch(&self, _: &Target, hints: Hints) -> BoxStream<'static, Result<Update, ResolveError>> {
        let update = Update {
            endpoints: self.0.clone(),
        };
        let wishes = self.1.clone();
        let counting = stream::once(async move {
            loop {
                hints.wanted().await;
                // A counter on its own: nothing else is read in its order.
                wishes.fetch_add(1, Ordering::Relaxed);
            }
        });
        stream::iter([Ok(update)]).chain(counting).boxed()
    }
}

/// E3, the control: the wishes are many more than the look-ups.
#[test]
fn e3_control_the_wishes_are_many() {
    alone(async {
        let holes: Vec<_> = (0..100).map(|_| holes::refused()).collect();
        let addresses: Vec<SocketAddr> = holes.iter().map(|hole| hole.address).collect();
        let wishes = Arc::new(AtomicUsize::new(0));
        let begin = Instant::now();
        let channel = all_down(Counting(endpoints(&addresses), wishes.clone()));
        until("the window is over", || begin.elapsed() >= 1_500 * MS).await;
        // As where it is counted.
        let wishes = wishes.load(Ordering::Relaxed);
        println!("  {wishes} wishes in {:?}", begin.elapsed());
        assert!(wishes > 50, "{wishes}");
        drop(channel);
    });
}

/// Three servers become six in the name at call 1,000 of 4,000. How many calls of those after all six are ready
/// went to each, and how long after the change the first call went to a new one.
async fn scaled_up(refresh: Duration) -> (Vec<usize>, Option<Duration>) {
    let before = Footprint::take();
    let fleet = blue_and_green(WORK);
    let addresses = fleet.addresses();
    let name = Name::of(&addresses[..3]);
    let channel = ready(named(&name, refresh).policy(RoundRobin::default())).await;
    let (mut changed, mut complete) = (None, None);
    let load = Load::of(4_000);
    let calls = load.run_with(channel.clone(), |number| {
        if number == 1_000 {
            name.moves_to(&addresses);
            changed = Some(crate::rig::now());
        }
        // The picker of all six may be out 5 ms later: 10 calls.
        if complete.is_none() && channel.endpoints().len() == 6 && all_ready(&channel) {
            complete = Some(number + 40);
        }
        ControlFlow::Continue(())
    });
    let calls = calls.await;
    let verdict = fleet.ledger.audit(&calls);
    println!("{verdict}\n  complete before call {complete:?}");
    verdict.assert_unnoticed();
    let changed = changed.expect("1,000 calls were made");
    let server = |call: &crate::rig::ledger::Call| call.end.as_ref().map(|end| end.server.clone());
    let new = ["b4", "b5", "b6"].map(String::from);
    let first = calls
        .iter()
        .find(|call| new.contains(&server(call).unwrap()));
    let first = first.map(|call| call.start - changed);
    let rest = &calls[complete.unwrap_or(1_000) as usize..];
    let counts = (1..=6).map(|n| {
        let name = format!("b{n}");
        rest.iter()
            .filter(|call| server(call) == Some(name.clone()))
            .count()
    });
    let counts = counts.collect();
    clean(channel, fleet, &before).await;
    (counts, first)
}

/// E4, three servers become six, and nobody disconnects. The new ones get their share all the same.
#[test]
fn e4_scaled_up_without_a_disconnect() {
    alone(async {
        let refresh = 200 * MS;
        let (counts, first) = scaled_up(refresh).await;
        let all: usize = counts.iter().sum();
        assert!(all >= 1_000, "{counts:?}");
        for count in &counts {
            let share = *count as f64 / all as f64;
            assert!((share - 1.0 / 6.0).abs() < 0.02, "{counts:?}");
        }
        let first = first.expect("the new ones had calls");
        report("to the first call", first, refresh + Duration::from_secs(1));
    });
}

/// E4, the control: a name that is looked up only when a connection is lost stays what it was.
#[test]
fn e4_control_without_a_refresh_the_new_ones_get_nothing() {
    alone(async {
        let (counts, first) = scaled_up(NEVER).await;
        assert_eq!(
            (&counts[3..], first),
            ([0; 3].as_slice(), None),
            "{counts:?}"
        );
    });
}

/// Passes no wish on.
#[derive(Debug)]
struct Deaf(Dns);

impl Resolver for Deaf {
    fn watch(&self, target: &Target, _: Hints) -> BoxStream<'static, Result<Update, ResolveError>> {
        self.0.watch(target, Hints::default())
    }
}

const MIN_INTERVAL: Duration = Duration::from_millis(100);

fn only_when_asked(name: &Name) -> Dns {
    Dns::default()
        .with_lookup(name.look_up())
        .with_min_interval(MIN_INTERVAL)
        .with_refresh(NEVER)
        .allow_loopback()
}

/// Both servers of a name are gone before the name says so, 300 ms later, and where they have moved. Calls that
/// wait are made all the time, for `window`: how they ended, and how long after the news the first call was
/// answered, if it was.
async fn moved(
    channel: &Channel,
    name: &Name,
    fleet: &mut crate::Fleet,
    window: Duration,
) -> (Vec<Result<String, Status>>, Option<Duration>) {
    until("both are ready", || all_ready(channel)).await;
    fleet.kill(0);
    fleet.kill(1);
    until("the loss is known", || {
        channel.state() != Connectivity::Ready
    })
    .await;
    let begin = Instant::now();
    let (mut news, mut calls) = (None, Vec::new());
    let answered = Arc::new(Mutex::new(None));
    while begin.elapsed() < window {
        if news.is_none() && begin.elapsed() >= 300 * MS {
            name.moves_to(&fleet.addresses()[3..]);
            news = Some(Instant::now());
        }
        let (channel, answered) = (channel.clone(), answered.clone());
        calls.push(tokio::spawn(async move {
            let mut request = Request::new(HelloRequest::default());
            request.extensions_mut().insert(WaitForReady);
            request.set_timeout(Duration::from_secs(5));
            let reply = GreeterClient::new(channel).say_hello(request).await?;
            let mut answered = answered.lock().expect("nobody panics with it");
            answered.get_or_insert_with(Instant::now);
            Ok(reply.into_inner().server)
        }));
        tokio::time::sleep(10 * MS).await;
    }
    let news = news.expect("the window is longer");
    let calls = join_all(calls).await;
    let ended = calls
        .into_iter()
        .map(|call| call.expect("it does not panic"));
    let answered = *answered.lock().expect("nobody panics with it");
    (ended.collect(), answered.map(|at| at - news))
}

/// E5, a rolling move: the old servers are gone before the name has the new ones. The gap is as long as a look-up
/// may take to be allowed, and calls that wait do not notice it.
#[test]
fn e5_moved_before_the_name_says_so() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = blue_and_green(WORK);
        let name = Name::of(&fleet.addresses()[..2]);
        let channel = ready(by(only_when_asked(&name))).await;
        let window = Duration::from_secs(1);
        let (calls, answered) = moved(&channel, &name, &mut fleet, window).await;
        for call in &calls {
            let server = call.as_ref().expect("it waits for the new ones");
            assert!(["b4", "b5", "b6"].contains(&&**server), "{server}");
        }
        let gap = answered.expect("they were answered");
        let budget = Duration::from_secs(1);
        report("from the news to an answer", gap, MIN_INTERVAL + budget);
        clean(channel, fleet, &before).await;
    });
}

/// E5, the control: when nobody tells the resolver, it does not look, and nothing is answered.
#[test]
fn e5_control_a_resolver_that_is_not_told_leaves_a_hole() {
    alone(async {
        let mut fleet = blue_and_green(WORK);
        let name = Name::of(&fleet.addresses()[..2]);
        let channel = ready(by(Deaf(only_when_asked(&name)))).await;
        let window = Duration::from_secs(1);
        // Without the patience to wait for all of its calls.
        let hole = tokio::time::timeout(2 * window, moved(&channel, &name, &mut fleet, window));
        assert!(hole.await.is_err(), "somebody was answered");
        assert_eq!(channel.state(), Connectivity::TransientFailure);
        assert_eq!(name.asked(), 1);
    });
}

/// Notes where it is to dial, and does so only on this machine.
#[derive(Clone, Debug, Default)]
struct Noting {
    inner: Http2Connector,
    dialled: Arc<Mutex<Vec<IpAddr>>>,
}

impl Noting {
    fn dialled(&self) -> Vec<IpAddr> {
        let mut dialled = self.dialled.lock().expect("nobody panics with it").clone();
        dialled.sort_unstable();
        dialled.dedup();
        dialled
    }
}

impl Connector for Noting {
    type Connection = Http2Connection;

    fn named(mut self, name: &Authority) -> Self {
        self.inner = self.inner.named(name);
        self
    }

    fn connect(
        &self,
        endpoint: &Endpoint,
        address: &Address,
    ) -> BoxFuture<'static, Result<Http2Connection, ConnectError>> {
        let Address::Tcp(to) = address else {
            panic!("{address} came out of a name");
        };
        let mut dialled = self.dialled.lock().expect("nobody panics with it");
        dialled.push(to.ip());
        match to.ip().is_loopback() {
            true => self.inner.connect(endpoint, address),
            false => Box::pin(async { Err(ConnectError::new("not really")) }),
        }
    }
}

/// What a hostile name server could answer.
const HOSTILE: [&str; 8] = [
    "169.254.169.254",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "fe80::1",
    "ff02::1",
    "::",
    "::ffff:169.254.169.254",
];

fn hostile_and(good: SocketAddr) -> Vec<SocketAddr> {
    let hostile = HOSTILE.iter().map(|ip| ip.parse().expect("an address"));
    let hostile = hostile.map(|ip: IpAddr| SocketAddr::new(ip, good.port()));
    hostile.chain([good]).collect()
}

fn layered(resolver: impl Resolver + 'static, connector: &Noting) -> Channel<Noting> {
    let builder = BalanceLayer::builder("dns:///greeter.test:80").expect("a name");
    let layer = builder.resolver(resolver).build().expect("all is in range");
    layer.layer(connector.clone())
}

async fn hello(channel: &Channel<Noting>) -> Result<String, Status> {
    let request = HelloRequest::default();
    let reply = GreeterClient::new(channel.clone()).say_hello(request).await;
    reply.map(|reply| reply.into_inner().server)
}

/// E11, a name's answers point where no server may be. They are not dialled; the good one among them is.
#[test]
fn e11_hostile_answers_are_not_dialled() {
    alone(async {
        let before = Footprint::take();
        let server = Server::start(Options::new("good"));
        let name = Name::of(&hostile_and(server.address));
        let dns = Dns::default()
            .with_lookup(name.look_up())
            .with_min_interval(10 * MS)
            .with_refresh(20 * MS);
        let connector = Noting::default();
        let channel = layered(dns.clone().allow_loopback(), &connector);
        for _ in 0..100 {
            assert_eq!(hello(&channel).await.expect("it is there"), "good");
        }
        until("it was looked up again", || name.asked() > 5).await;
        assert_eq!(connector.dialled(), [server.address.ip()]);
        drop(channel);

        // Without leave, this machine is no place to go either; the error says what would give it.
        let connector = Noting::default();
        let channel = layered(dns, &connector);
        let status = hello(&channel).await.expect_err("nobody is left");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let text = status.message();
        assert!(text.contains("none of its 8 addresses"), "{text}");
        let asked = name.asked();
        until("it was looked up again", || name.asked() > asked + 5).await;
        assert_eq!(connector.dialled(), [] as [IpAddr; 0]);
        drop((channel, server));
        let restored = before.restored(Duration::from_secs(5)).await;
        restored.expect("nothing is left");
    });
}

/// E11, the control: the same answers without the rules are dialled, and the connector sees it.
#[test]
fn e11_control_without_the_rules_everything_is_dialled() {
    alone(async {
        let server = Server::start(Options::new("good"));
        let addresses = hostile_and(server.address);
        let resolver = Counting(endpoints(&addresses), Arc::default());
        let connector = Noting::default();
        let channel = layered(resolver, &connector);
        assert_eq!(hello(&channel).await.expect("it is there"), "good");
        until("all were dialled", || {
            connector.dialled().len() == addresses.len()
        })
        .await;
    });
}
