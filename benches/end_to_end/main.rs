//! What a call costs the client, over real sockets, beside what else there is.
//!
//! The servers are one child process on a core of its own, the client is on another. All lanes run in one
//! process, in turns of a fraction of a second, so that a machine that changes its pace changes it for all;
//! figures that are compared come from the same round.
//!
//! `cargo bench --bench end_to_end` measures all cells, `-- --cell main` the one that is held to account
//! (64 B, 64 callers, 3 endpoints), `-- --cell tls` the same over TLS with lanes of its own, and
//! `-- --quick` both in short rounds.

mod bare_h2;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/rig/mod.rs"]
mod rig;
mod rivals;
mod secure;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bare_h2::BareH2;
use common::stats::{Spread, quantile};
use futures_util::future::BoxFuture;
use rig::greeter::proto::greeter_client::GreeterClient;
use rig::greeter::proto::{CountdownRequest, HelloRequest};
use rig::greeter::{Options, tonic_endpoint};
use rig::load::Client;
use rig::process::{ServerProcess, serve_if_asked};
use rig::rivals::tonic_balance;
use rivals::{Hyper, TonicInTurn};
use rustix::time::{ClockId, clock_gettime};
use tonic::Status;

const ENDPOINTS: [usize; 4] = [1, 3, 10, 100];
const CALLERS: [usize; 2] = [1, 64];
const MESSAGES: [Message; 3] = [Message::Small, Message::Large, Message::Stream];

/// What one call carries.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Message {
    /// 64 B each way.
    Small,
    /// 1 MiB each way.
    Large,
    /// 64 replies of 4 KiB.
    Stream,
}

impl Message {
    fn name(self) -> &'static str {
        match self {
            Self::Small => "64 B",
            Self::Large => "1 MiB",
            Self::Stream => "stream of 64 × 4 KiB",
        }
    }
}

/// One line of the table of what is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    message: Message,
    callers: usize,
    endpoints: usize,
}

const MAIN: Cell = Cell {
    message: Message::Small,
    callers: 64,
    endpoints: 3,
};

/// How long a cell is measured.
#[derive(Clone, Copy, Debug)]
struct Rounds {
    count: usize,
    each: Duration,
}

impl Rounds {
    /// Of the cells that are held to account.
    const LONG: Self = Self {
        count: 9,
        each: Duration::from_millis(1_000),
    };
    const SHORT: Self = Self {
        count: 7,
        each: Duration::from_millis(250),
    };
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Extent {
    All,
    Main,
    Tls,
    Quick,
}

impl Extent {
    fn from_arguments() -> Result<Self, String> {
        let mut extent = Self::All;
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // Cargo's own.
                "--bench" => {}
                "--quick" => extent = Self::Quick,
                "--cell" => match arguments.next().as_deref() {
                    Some("main") => extent = Self::Main,
                    Some("tls") => extent = Self::Tls,
                    other => return Err(format!("--cell {other:?}: there are main and tls")),
                },
                _ => {
                    return Err(format!(
                        "{argument:?}: takes --quick, --cell main, --cell tls"
                    ));
                }
            }
        }
        Ok(extent)
    }

    fn rounds(self, cell: Cell) -> Option<Rounds> {
        match (self, cell == MAIN) {
            (Self::Quick, true) => Some(Rounds::SHORT),
            (Self::All | Self::Main, true) => Some(Rounds::LONG),
            (Self::All, false) => Some(Rounds {
                count: 7,
                each: Duration::from_millis(200),
            }),
            (Self::Main | Self::Quick, false) | (Self::Tls, _) => None,
        }
    }

    fn rounds_by_tls(self) -> Option<Rounds> {
        match self {
            Self::All | Self::Tls => Some(Rounds::LONG),
            Self::Quick => Some(Rounds::SHORT),
            Self::Main => None,
        }
    }
}

fn main() {
    if serve_if_asked() {
        return;
    }
    let extent = Extent::from_arguments().unwrap_or_else(|error| {
        eprintln!("end_to_end: {error}");
        std::process::exit(2);
    });
    let server_core = common::two_cores("end_to_end");
    println!(
        "per lane: minimum, median and maximum over rounds; ×: median of the rounds' ratios of CPU to the first"
    );
    let mut results = Vec::new();
    if extent != Extent::Tls {
        results.extend(plain(extent, server_core));
    }
    if let Some(rounds) = extent.rounds_by_tls() {
        results.extend(secure::run(rounds, server_core));
    }
    if !results.is_empty() {
        println!("RESULT end_to_end {}", results.join(" "));
    }
}

/// The cells in plain text; the figures of the main one.
fn plain(extent: Extent, server_core: usize) -> Option<String> {
    let most = ENDPOINTS.into_iter().max().unwrap_or(0);
    let options: Vec<_> = (0..most).map(|n| Options::new(&format!("b{n}"))).collect();
    let servers = ServerProcess::start_all(&options, Some(server_core));
    let mut result = None;
    for endpoints in ENDPOINTS {
        let cells = MESSAGES.into_iter().flat_map(|message| {
            CALLERS.map(|callers| Cell {
                message,
                callers,
                endpoints,
            })
        });
        let cells = cells.filter_map(|cell| Some((cell, extent.rounds(cell)?)));
        let cells: Vec<_> = cells.collect();
        if cells.is_empty() {
            continue;
        }
        // A runtime of their own: connections and tasks of other lanes are gone.
        common::runtime().block_on(async {
            let lanes = lanes(&servers.addresses[..endpoints]).await;
            for (cell, rounds) in cells {
                let measured = measure(&lanes, cell, rounds).await;
                print(cell, rounds, &measured);
                if cell == MAIN {
                    result = verdict(&measured);
                }
            }
        });
    }
    result
}

/// A way to make calls, with its type forgotten.
struct Lane {
    name: &'static str,
    round: Box<dyn Fn(Cell, Duration) -> BoxFuture<'static, Round>>,
}

const BASE: &str = "h2";
const TONIC_BALANCE: &str = "tonic balance_list";
const OURS: &str = "equipoise";

async fn lanes(addresses: &[SocketAddr]) -> Vec<Lane> {
    let endpoints = addresses.iter().copied().map(tonic_endpoint);
    let mut lanes = vec![
        lane(BASE, BareH2::connect(addresses).await),
        lane("hyper", Hyper::connect(addresses).await),
        lane("tonic channels", TonicInTurn::connect(endpoints).await),
        lane(TONIC_BALANCE, tonic_balance(addresses)),
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

fn lane<C: Client>(name: &'static str, client: C) -> Lane {
    let round = move |cell, time| -> BoxFuture<'static, Round> {
        Box::pin(round(GreeterClient::new(client.clone()), cell, time))
    };
    Lane {
        name,
        round: Box::new(round),
    }
}

/// The figures of one lane in one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// CPU time of the client for each call, in microseconds.
    cpu: f64,
    /// Calls a second.
    rate: f64,
    p50: f64,
    p99: f64,
    p999: f64,
}

/// All lanes take turns; each round begins with another one.
async fn measure(lanes: &[Lane], cell: Cell, rounds: Rounds) -> Vec<(&'static str, Vec<Round>)> {
    let mut measured: Vec<_> = lanes.iter().map(|lane| (lane.name, Vec::new())).collect();
    for lane in lanes {
        (lane.round)(cell, rounds.each / 4).await;
    }
    for round in 0..rounds.count {
        for turn in 0..lanes.len() {
            let turn = (round + turn) % lanes.len();
            measured[turn]
                .1
                .push((lanes[turn].round)(cell, rounds.each).await);
        }
    }
    measured
}

async fn round<C: Client>(client: GreeterClient<C>, cell: Cell, time: Duration) -> Round {
    let (begin, used) = (Instant::now(), cpu_time());
    let callers =
        (0..cell.callers).map(|_| tokio::spawn(caller(client.clone(), cell.message, begin + time)));
    let callers: Vec<_> = callers.collect();
    let mut latencies = Vec::new();
    for caller in callers {
        latencies.extend(
            caller
                .await
                .expect("no caller panics")
                .expect("no call fails"),
        );
    }
    let (elapsed, used) = (begin.elapsed(), cpu_time() - used);
    latencies.sort_unstable();
    let calls = latencies.len() as f64;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    Round {
        cpu: micros(used) / calls,
        rate: calls / elapsed.as_secs_f64(),
        p50: micros(quantile(&latencies, 0.5)),
        p99: micros(quantile(&latencies, 0.99)),
        p999: micros(quantile(&latencies, 0.999)),
    }
}

/// Makes one call after the other until `end`, and tells how long each took.
async fn caller<C: Client>(
    mut client: GreeterClient<C>,
    message: Message,
    end: Instant,
) -> Result<Vec<Duration>, Status> {
    let payload = match message {
        Message::Small => vec![b'.'; 64],
        Message::Large => vec![b'.'; 1 << 20],
        Message::Stream => Vec::new(),
    };
    let mut latencies = Vec::new();
    let mut start = Instant::now();
    while start < end {
        match message {
            Message::Small | Message::Large => {
                let payload = payload.clone();
                let request = HelloRequest {
                    payload,
                    echo: true,
                    ..Default::default()
                };
                client.say_hello(request).await?;
            }
            Message::Stream => {
                let request = CountdownRequest {
                    count: 64,
                    payload_bytes: 4_096,
                    ..Default::default()
                };
                let mut replies = client.countdown(request).await?.into_inner();
                while replies.message().await?.is_some() {}
            }
        }
        let now = Instant::now();
        latencies.push(now - start);
        start = now;
    }
    Ok(latencies)
}

/// CPU time that this process has used.
fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).expect("it starts at zero")
}

fn print(cell: Cell, rounds: Rounds, measured: &[(&'static str, Vec<Round>)]) {
    let Cell {
        message,
        callers,
        endpoints,
    } = cell;
    let (count, each) = (rounds.count, rounds.each);
    println!(
        "\n{}, {callers} callers, {endpoints} endpoints ({count} rounds of {each:?})",
        message.name()
    );
    let columns = ["CPU µs/call", "calls/s", "p50 µs", "p99 µs", "p99.9 µs"];
    let [cpu, rate, p50, p99, p999] = columns;
    println!(
        "  {:19}{cpu:>17}     ×{rate:>23}{p50:>23}{p99:>23}{p999:>23}",
        ""
    );
    let base = measured.first();
    for (name, rounds) in measured {
        let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
        let ratio = base.map(|(_, base)| Spread::of_ratios(rounds, base, |round| round.cpu).median);
        println!(
            "  {name:19}{:>17}{:6.2}{:>23}{:>23}{:>23}{:>23}",
            of(|round| round.cpu),
            ratio.unwrap_or(f64::NAN),
            of(|round| round.rate),
            of(|round| round.p50),
            of(|round| round.p99),
            of(|round| round.p999),
        );
    }
}

/// The rounds of one lane.
fn rounds_of<'a>(measured: &'a [(&'static str, Vec<Round>)], wanted: &str) -> Option<&'a [Round]> {
    let lane = measured.iter().find(|(name, _)| *name == wanted);
    lane.map(|(_, rounds)| rounds.as_slice())
}

/// The figures that are held to account: medians of ratios within a round.
fn verdict(measured: &[(&'static str, Vec<Round>)]) -> Option<String> {
    let rounds = |wanted| rounds_of(measured, wanted);
    let (ours, base, balance) = (rounds(OURS)?, rounds(BASE)?, rounds(TONIC_BALANCE)?);
    let ratio =
        |under: &[Round], figure: fn(&Round) -> f64| Spread::of_ratios(ours, under, figure).median;
    Some(format!(
        "cpu_vs_h2={:.3} cpu_vs_tonic_balance={:.3} p99_vs_tonic_balance={:.3}",
        ratio(base, |round| round.cpu),
        ratio(balance, |round| round.cpu),
        ratio(balance, |round| round.p99),
    ))
}
