//! N4 and N8: addresses that cannot be connected to, silently or at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use equipoise::policy::PickFirst;
use equipoise::transport::Http2Options;
use equipoise::{Address, Channel, Connectivity, Endpoint};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Code;

use crate::cost::processor;
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::rig::{holes, timer};
use crate::size::{self, figure};
use crate::{Fleet, clean, reference, report, status, until};

const WORK: Duration = Duration::from_millis(1);

/// How long one call takes on a channel that has just been made.
async fn first_call(channel: &Channel, begin: Instant) -> Duration {
    let mut client = GreeterClient::new(channel.clone());
    let answer = client.say_hello(HelloRequest::default()).await;
    answer.expect("somebody can be reached");
    begin.elapsed()
}

/// N4, one of three addresses swallows connections: the others start at once, and nobody notices.
#[test]
fn n4_a_black_hole_among_three() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = Fleet::start(WORK);
        fleet.kill(2);
        let hole = holes::black_hole();
        swallows(hole.address).await;
        let addresses = [&[hole.address], &fleet.addresses()[..2]].concat();
        let begin = Instant::now();
        let channel = reference(&addresses).build().expect("in range");
        let took = first_call(&channel, begin).await;
        report("the first answer", took, Duration::from_millis(200));
        let mut verdict = fleet
            .ledger
            .audit(&Load::of(size::calls(1_000)).run(&channel).await);
        // The call above has no number.
        verdict.unasked.clear();
        println!("{verdict}");
        verdict.assert_unnoticed();
        until("it is given up", || {
            status(&channel, hole.address).state == Connectivity::TransientFailure
        })
        .await;
        let dead = status(&channel, hole.address);
        assert_eq!(dead.picks, 0, "{dead:?}");
        drop((fleet, hole));
        clean(channel, &before).await;
    });
}

/// The same for a policy that wants one connection only: with two black holes first, the third is dialled two steps of
/// a quarter of a second later.
#[test]
fn n4_two_black_holes_before_the_first_that_answers() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = Fleet::start(WORK);
        fleet.kill(1);
        fleet.kill(2);
        let holes = [holes::black_hole(), holes::black_hole()];
        let addresses = [holes[0].address, holes[1].address, fleet.addresses()[0]];
        let begin = Instant::now();
        let builder = reference(&addresses).policy(PickFirst::default());
        let channel = builder.build().expect("in range");
        let took = first_call(&channel, begin).await;
        // In the order of the list, and not all at once.
        assert!(took >= Duration::from_millis(500), "{took:?}");
        report(
            "the first answer after two black holes",
            took,
            Duration::from_millis(700),
        );
        let mut verdict = fleet
            .ledger
            .audit(&Load::of(size::calls(1_000)).run(&channel).await);
        verdict.unasked.clear();
        println!("{verdict}");
        verdict.assert_unnoticed();
        drop((fleet, holes));
        clean(channel, &before).await;
    });
}

/// What a naive client sees there: nothing, for its whole time.
async fn swallows(hole: SocketAddr) {
    let connect = TcpStream::connect(hole);
    let ended = tokio::time::timeout(Duration::from_millis(300), connect).await;
    assert!(ended.is_err(), "it is no black hole: {ended:?}");
}

/// N4, the control: who dials one address after the other is still at the first when we have long been served.
#[test]
fn n4_control_one_address_after_the_other_ends_in_the_first() {
    alone(async {
        let fleet = Fleet::start(WORK);
        let hole = holes::black_hole();
        let addresses = [&[hole.address], &fleet.addresses()[..]].concat();
        // tokio's own way with a list.
        let connect = TcpStream::connect(&addresses[..]);
        let ended = tokio::time::timeout(Duration::from_millis(1_500), connect).await;
        assert!(ended.is_err(), "it is no black hole: {ended:?}");
        // The others would have answered.
        let others = TcpStream::connect(&addresses[1..]).await;
        others.expect("they listen");
    });
}

/// Addresses of the documentation's network, which cannot be reached from loopback: connecting there fails in no time
/// and on our own side, most often with EINVAL.
pub(super) fn unreachable() -> Vec<SocketAddr> {
    (1..=3)
        .map(|n| SocketAddr::from(([192, 0, 2, n], 80)))
        .collect()
}

/// Connects from loopback, and counts.
fn dial_from_loopback(
    dialled: &Arc<AtomicUsize>,
) -> impl Fn(&Endpoint, &Address) -> futures_util::future::BoxFuture<'static, io::Result<TcpStream>>
+ Send
+ Sync
+ use<> {
    let dialled = dialled.clone();
    move |_, address| {
        // A counter on its own: nothing else is read in its order.
        dialled.fetch_add(1, Ordering::Relaxed);
        let to = address.to_string().parse().expect("an IP address");
        Box::pin(async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            socket.connect(to).await
        })
    }
}

/// N8, every connect fails at once on the client's own side: no busy loop, and calls fail soon and say why.
#[test]
fn n8_connects_that_fail_at_once() {
    alone(async {
        let before = Footprint::take();
        let dialled = Arc::new(AtomicUsize::new(0));
        let options = Http2Options::default().with_dialler(dial_from_loopback(&dialled));
        fails_politely(options, &unreachable(), Some(&dialled)).await;
        // And by our own sockets.
        let loopback = "127.0.0.1".parse().expect("an address");
        let options = Http2Options::default().with_local_address(loopback);
        let options = options.expect("it is one of ours");
        fails_at_once(options, &unreachable(), "os error ").await;
        before
            .restored(crate::PATIENCE)
            .await
            .expect("nothing is left");
    });
}

/// The control: a client without a pause dials as fast as it can.
#[test]
fn n8_control_a_naive_client_spins() {
    alone(async {
        let dialled = Arc::new(AtomicUsize::new(0));
        let dial = dial_from_loopback(&dialled);
        let address = Address::from(unreachable()[0]);
        let endpoint = Endpoint::from(unreachable()[0]);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(100) {
            dial(&endpoint, &address)
                .await
                .expect_err("there is no way");
        }
        let count = dialled.load(Ordering::Relaxed);
        println!("{count} dials in 100 ms");
        assert!(count > 500, "{count}");
    });
}

/// Calls on addresses that cannot be connected to end soon, and say the address and the error.
pub(super) async fn fails_at_once(options: Http2Options, addresses: &[SocketAddr], errno: &str) {
    let endpoints = addresses.iter().copied().map(Endpoint::from);
    let channel = Channel::from_endpoints(endpoints).http2(options);
    let channel = channel.build().expect("in range");
    until("all have failed", || {
        channel.state() == Connectivity::TransientFailure
    })
    .await;
    let calls = Load::of(size::calls(200)).run(&channel).await;
    let verdict = audit(&calls, &[]);
    println!("{verdict}");
    assert_eq!(verdict.code(Code::Unavailable), calls.len(), "{verdict}");
    for call in &calls {
        let end = call.end.as_ref().expect("none is lost");
        assert!(end.not_sent, "{end:?}");
        let named = addresses
            .iter()
            .any(|a| end.message.contains(&a.to_string()));
        assert!(named && end.message.contains(errno), "{end:?}");
    }
    let slowest = calls
        .iter()
        .filter_map(|call| call.end.as_ref().map(|end| end.at - call.start));
    let slowest = slowest.max().expect("there are calls");
    report("to fail", slowest, Duration::from_millis(20));
}

/// A window without calls: what it costs, and how often each address is dialled.
pub(super) async fn fails_politely(
    options: Http2Options,
    addresses: &[SocketAddr],
    dialled: Option<&AtomicUsize>,
) {
    let endpoints = addresses.iter().copied().map(Endpoint::from);
    let mut channel = Channel::from_endpoints(endpoints).http2(options);
    // The full run has gRPC's own backoff, and its minute.
    if !size::is_full() {
        channel = channel.backoff(crate::reference_backoff());
    }
    let channel = channel.build().expect("in range");
    let window = size::of(Duration::from_secs(2), Duration::from_secs(60));
    let (begin, used) = (Instant::now(), processor());
    timer::until(begin + window).await;
    let (took, used) = (begin.elapsed(), processor() - used);
    let share = 100.0 * used.as_secs_f64() / took.as_secs_f64();
    println!("{used:?} of processor in {took:?}");
    figure("processor", share, "% of a core");
    assert!(share < size::of(20.0, 2.0), "{share} % of a core");
    assert_eq!(channel.state(), Connectivity::TransientFailure);
    if let Some(dialled) = dialled {
        let each = dialled.load(Ordering::Relaxed) as f64 / addresses.len() as f64;
        figure("connects per address", each, "");
        assert!((2.0..=10.0).contains(&each), "{each} connects per address");
    }
    channel.close().await;
}
