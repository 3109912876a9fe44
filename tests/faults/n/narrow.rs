//! N11: a server behind a link of 64 kbit/s.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use equipoise::policy::{Adaptive, LeastRequest, PeakEwma, Policy, RoundRobin};
use equipoise::{Builder, Channel};
use tonic::Status;

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, Server, tonic_endpoint};
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
    let builder = reference(&addresses).policy(policy);
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

/// How many bytes an answer over the narrow link has: some seconds of it, and never a second without a byte. What a
/// ping is answered with stands in the queue behind all of them.
fn long_answer() -> u32 {
    LINK * size::of(4, 12)
}

/// Takes that answer: how long that took, and what came of it.
async fn take_long_answer(client: impl Client) -> (Duration, Result<usize, Status>) {
    let begin = Instant::now();
    let request = CountdownRequest {
        count: 1,
        payload_bytes: long_answer(),
        ..CountdownRequest::default()
    };
    let taken = async {
        let mut answer = GreeterClient::new(client)
            .countdown(request)
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

/// A server behind the narrow link, that is all there is.
fn behind_the_link() -> (Server, Narrow, Builder<Channel>) {
    let server = Server::start(Options::new("b1"));
    let link = Narrow::start(server.address, LINK);
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
        assert_eq!(bytes, long_answer() as usize);
        // Or a ping would have been answered in time.
        assert!(took > 3 * SECOND, "{took:?}");
        let connections = link.accepted();
        figure("closed by keepalive", connections as f64 - 1.0, "");
        assert_eq!(connections, 1, "{:?}", channel.endpoints());
        drop((server, link));
        clean(channel, &before).await;
    });
}

/// N11, the control: tonic with the same keepalive waits for the answer to its ping, whatever arrives meanwhile.
#[test]
fn n11_control_tonic_gives_up_a_link_on_which_bytes_arrive() {
    alone(async {
        let (_server, link, _) = behind_the_link();
        let endpoint = tonic_endpoint(link.address)
            .http2_keep_alive_interval(SECOND)
            .keep_alive_timeout(SECOND);
        let channel = endpoint.connect().await.expect("it can be reached");
        let (took, taken) = take_long_answer(channel).await;
        println!("{took:?}: {taken:?}");
        taken.expect_err("it is cut");
        assert!(took < 3 * SECOND, "{took:?}");
    });
}
