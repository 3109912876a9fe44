//! One slow server of ten: how much does it still get, and what does that do to the tail?
//!
//! Ten servers in a child process on a core of its own; one takes 20 ms for a call, the others 1.5 ms. The
//! client makes 2,000 calls a second on a fixed schedule, through each lane in turn.

#[path = "common/mod.rs"]
mod common;
#[path = "../tests/rig/mod.rs"]
mod rig;

use std::net::SocketAddr;
use std::time::Duration;

use common::stats::{Spread, quantile};
use futures_util::future::BoxFuture;
use rig::greeter::Options;
use rig::ledger::Call;
use rig::load::{Client, Load};
use rig::process::{ServerProcess, serve_if_asked};
use rig::rivals::{tonic_balance, tower_peak_ewma};

const SERVERS: usize = 10;
const SLOW: &str = "slow";
/// 3 s at 2,000/s.
const CALLS: u64 = 6_000;
/// What a fresh channel learns first is not measured.
const LEARNING: u64 = 2_000;
const ROUNDS: usize = 7;

fn main() {
    if serve_if_asked() {
        return;
    }
    let server_core = common::two_cores("slow_server");
    let quick = Options {
        work: Duration::from_micros(1_500),
        ..Options::new("quick")
    };
    let mut options = vec![quick; SERVERS];
    options[0] = Options {
        work: Duration::from_millis(20),
        ..Options::new(SLOW)
    };
    let servers = ServerProcess::start_all(&options, Some(server_core));
    common::runtime().block_on(async {
        let lanes = lanes(&servers.addresses).await;
        let mut measured: Vec<(&str, Vec<Round>)> = Vec::new();
        for lane in &lanes {
            (lane.round)(LEARNING).await;
            measured.push((lane.name, Vec::new()));
        }
        for round in 0..ROUNDS {
            for turn in 0..lanes.len() {
                let turn = (round + turn) % lanes.len();
                measured[turn].1.push((lanes[turn].round)(CALLS).await);
            }
        }
        print(&measured);
        if let Some(result) = verdict(&measured) {
            println!("{result}");
        }
    });
}

/// A way to make calls, with its type forgotten.
struct Lane {
    name: &'static str,
    round: Box<dyn Fn(u64) -> BoxFuture<'static, Round>>,
}

const PEAK_EWMA: &str = "tower PeakEwma";
const OURS: &str = "equipoise adaptive";

async fn lanes(addresses: &[SocketAddr]) -> Vec<Lane> {
    let mut lanes = vec![
        lane("tonic balance_list", tonic_balance(addresses)),
        lane(PEAK_EWMA, tower_peak_ewma(addresses)),
    ];
    lanes.push(lane(OURS, ours(addresses).await));
    lanes
}

/// The channel of this crate, as it comes.
async fn ours(addresses: &[SocketAddr]) -> equipoise::Channel {
    let endpoints = addresses.iter().map(|&address| address.into());
    let channel = equipoise::Channel::from_endpoints(endpoints)
        .connect()
        .await;
    channel.expect("the servers are up")
}

fn lane<C: Client + Sync>(name: &'static str, client: C) -> Lane {
    let round = move |calls| -> BoxFuture<'static, Round> {
        let client = client.clone();
        Box::pin(async move { Round::of(Load::of(calls).run(&client).await) })
    };
    Lane {
        name,
        round: Box::new(round),
    }
}

/// The figures of one lane in one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// Share of the slow server, in percent.
    share: f64,
    /// In milliseconds.
    p50: f64,
    p99: f64,
}

impl Round {
    fn of(calls: Vec<Call>) -> Self {
        let mut latencies = Vec::new();
        let mut slow = 0;
        for call in &calls {
            let end = call.end.as_ref().expect("no call is lost");
            assert!(!end.server.is_empty(), "a call failed: {call:?}");
            slow += usize::from(end.server == SLOW);
            latencies.push(end.at - call.due);
        }
        latencies.sort_unstable();
        let millis = |q| quantile(&latencies, q).as_secs_f64() * 1e3;
        let share = 100.0 * slow as f64 / calls.len() as f64;
        Self {
            share,
            p50: millis(0.5),
            p99: millis(0.99),
        }
    }
}

fn print(measured: &[(&str, Vec<Round>)]) {
    println!("{ROUNDS} rounds of {CALLS} calls at 2,000/s; minimum, median and maximum");
    println!(
        "  {:20}{:>18}{:>18}{:>18}",
        "", "slow server %", "p50 ms", "p99 ms"
    );
    for (name, rounds) in measured {
        let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
        println!(
            "  {name:20}{:>18}{:>18}{:>18}",
            of(|round| round.share),
            of(|round| round.p50),
            of(|round| round.p99)
        );
    }
}

/// The figures that are held to account: the share is a percentage, p99 the median of ratios within a round.
fn verdict(measured: &[(&str, Vec<Round>)]) -> Option<String> {
    let rounds = |wanted| {
        measured
            .iter()
            .find(|(name, _)| *name == wanted)
            .map(|(_, rounds)| rounds)
    };
    let (ours, peak_ewma) = (rounds(OURS)?, rounds(PEAK_EWMA)?);
    let share = Spread::of(ours.iter().map(|round| round.share)).median;
    let p99 = Spread::of_ratios(ours, peak_ewma, |round| round.p99).median;
    Some(format!(
        "RESULT slow_server share={share:.2}% p99_vs_peak_ewma={p99:.3}"
    ))
}
