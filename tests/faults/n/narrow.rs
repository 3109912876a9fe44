//! N11: a server behind a link of 64 kbit/s.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bytes::Bytes;
use equipoise::policy::{Adaptive, LeastRequest, PeakEwma, Policy, RoundRobin};
use equipoise::{Builder, Channel};
use prost::Message;
use tokio::net::TcpStream;
use tonic::Status;

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, Server};
use crate::rig::ledger::Verdict;
use crate::rig::load::{Client, Load};
use crate::rig::narrow::Narrow;
use crate::size::{self, figure};
use crate::{Fleet, clean, is_ready, reference, status, until};

const WORK: Duration = Duration::from_millis(1);

/// 64 kbit/s, in bytes.
const LINK: u32 = 8 * 1_024;

/// What each call brings and takes back: an eighth of a second of that link, each way.
const PAYLOAD: usize = 1_024;

/// The reference settings' keepalive: a ping after so long without a byte, and as long for its answer.
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn n11_a_narrow_link_under_peak_ewma() {
    alone(gets_less_than(0.05, PeakEwma::default()));
}

#[test]
fn n11_a_narrow_link_under_adaptive() {
    alone(gets_less_than(0.05, Adaptive::default()));
}

#[test]
fn n11_a_narrow_link_under_least_request() {
    alone(gets_less_than(0.15, LeastRequest::default()));
}

/// N11, the control: in turns it keeps its third, at a load that the link just carries, and those calls are late.
#[test]
fn n11_control_in_turns_a_narrow_link_keeps_its_third() {
    alone(async {
        let load = Load {
            rate: 12,
            ..load(size::of(36, 120))
        };
        let learns = load.calls / 3;
        let (share, verdict) = share_of_narrow(RoundRobin::default(), load, learns).await;
        verdict.assert_unnoticed();
        assert!((share - 1.0 / 3.0).abs() < 0.05, "{share}");
        let both_ways = 2 * SECOND * PAYLOAD as u32 / LINK;
        assert!(verdict.latency(0.75) >= both_ways, "{verdict}");
    });
}

fn load(calls: u64) -> Load {
    Load {
        request: HelloRequest {
            payload: vec![b'.'; PAYLOAD],
            echo: true,
            ..HelloRequest::default()
        },
        ..Load::of(calls)
    }
}

async fn gets_less_than(most: f64, policy: impl Policy + Clone + Sync + 'static) {
    let load = Load {
        rate: size::of(500, 2_000),
        ..load(size::of(1_500, 10_000))
    };
    let two_seconds = 2 * u64::from(load.rate);
    let (share, verdict) = share_of_narrow(policy, load, two_seconds).await;
    verdict.assert_true();
    figure("its share", (share * 1e4).round() / 100.0, "%");
    figure("calls that failed", verdict.failed as f64, "");
    assert!(share < most, "{share}");
}

/// One of three servers is behind the narrow link: its share after so many calls to learn, and its connection is kept.
async fn share_of_narrow(
    policy: impl Policy + Clone + Sync + 'static,
    load: Load,
    learns: u64,
) -> (f64, Verdict) {
    let before = Footprint::take();
    let fleet = Fleet::start(WORK);
    let link = Narrow::start(fleet.addresses()[1], LINK);
    let mut addresses = fleet.addresses();
    addresses[1] = link.address;
    // Nobody is ejected for calls that take too long there: the policy alone has to see it.
    let builder = reference(&addresses).outlier_detection(None);
    let builder = builder.policy(policy);
    let channel = builder.build().expect("in range");
    until("every endpoint is ready", || is_ready(&channel)).await;
    let mut known = 0;
    let calls = load.run_with(channel.clone(), |number| {
        if number == learns {
            known = status(&channel, link.address).picks;
        }
        ControlFlow::Continue(())
    });
    let verdict = fleet.ledger.audit(&calls.await);
    println!("{verdict}");
    let narrow = status(&channel, link.address);
    // No keepalive has ended it.
    assert_eq!(link.accepted(), 1, "{narrow:?}");
    let share = (narrow.picks - known) as f64 / (load.calls - learns) as f64;
    drop((fleet, link));
    clean(channel, &before).await;
    (share, verdict)
}

/// A link on which one frame of 16 KiB takes 4 s: twice as long as a server may be silent, and what answers a ping
/// stands in the queue behind it.
const NARROWER: u32 = LINK / 2;

/// Asks for an answer of one such frame, or three.
fn long_answer() -> CountdownRequest {
    CountdownRequest {
        count: 1,
        payload_bytes: NARROWER * size::of(4, 12),
        ..CountdownRequest::default()
    }
}

/// Takes that answer: how long that took, and what came of it.
async fn take_long_answer(client: impl Client) -> (Duration, Result<usize, Status>) {
    let begin = Instant::now();
    let taken = async {
        let mut answer = GreeterClient::new(client)
            .countdown(long_answer())
            .await?
            .into_inner();
        let mut bytes = 0;
        while let Some(reply) = answer.message().await? {
            bytes += reply.payload.len();
        }
        Ok(bytes)
    };
    let taken = taken.await;
    (begin.elapsed(), taken)
}

/// A server behind that link, and no other.
fn behind_the_link() -> (Server, Narrow, Builder<Channel>) {
    let server = Server::start(Options::new("b1"));
    let link = Narrow::start(server.address, NARROWER);
    let builder = reference(&[link.address]);
    (server, link, builder)
}

/// N11, bytes that arrive are life: nobody waits for the answer to a ping while they do.
#[test]
fn n11_a_long_answer_outlasts_the_keepalive() {
    alone(async {
        let before = Footprint::take();
        let (server, link, builder) = behind_the_link();
        let channel = builder.connect().await.expect("it can be reached");
        let (took, taken) = take_long_answer(channel.clone()).await;
        println!("{took:?}");
        let bytes = taken.expect("it arrives in full");
        assert_eq!(bytes, long_answer().payload_bytes as usize);
        // Or a ping would have been answered in time.
        assert!(took > 3 * SECOND, "{took:?}");
        let connections = link.accepted();
        figure("closed by keepalive", connections as f64 - 1.0, "");
        assert_eq!(connections, 1, "{:?}", channel.endpoints());
        drop((server, link));
        clean(channel, &before).await;
    });
}

/// N11, the control: whoever waits for the answer to a ping, and for nothing else, gives that link up.
#[test]
fn n11_control_a_ping_behind_a_long_answer_is_answered_late() {
    alone(async {
        let (_server, link, _) = behind_the_link();
        let socket = TcpStream::connect(link.address).await.expect("it listens");
        let (mut sender, mut connection) = h2::client::handshake(socket)
            .await
            .expect("the preface is written");
        let mut pings = connection.ping_pong().expect("nobody has taken it");
        let connection = tokio::spawn(connection);
        let head = http::Request::post("http://a/equipoise.demo.v1.Greeter/Countdown")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(());
        let head = head.expect("a request");
        let message = long_answer().encode_to_vec();
        let prefix = [0, 0, 0, 0, message.len() as u8];
        let (response, mut body) = sender.send_request(head, false).expect("it is open");
        let message = Bytes::from([&prefix[..], &message].concat());
        body.send_data(message, true).expect("it is open");
        let response = response.await.expect("its head comes at once");
        let begin = Instant::now();
        let answered = pings.ping(h2::Ping::opaque()).await;
        let took = begin.elapsed();
        println!("{took:?}: {answered:?}");
        answered.expect("in the end it is answered");
        // A ping and the wait for it.
        assert!(took > 2 * SECOND, "{took:?}");
        drop((response, sender));
        connection.abort();
    });
}
