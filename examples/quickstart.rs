//! The whole idea on one screen: a generated tonic client over several real servers of different speeds,
//! while one of them leaves the list, one is stopped under load and one joins.
//!
//! `cargo run --release --example quickstart [-- --seconds N]`

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use equipoise::{Channel, Connectivity, Endpoint};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use proto::greeter_client::GreeterClient;
use proto::greeter_server::{Greeter, GreeterServer};
use proto::{CountdownRequest, GatherReply, HelloReply, HelloRequest};

mod proto {
    include!(concat!(env!("OUT_DIR"), "/equipoise.demo.v1.rs"));
}

const CALLERS: usize = 16;

#[tokio::main]
async fn main() -> ExitCode {
    let seconds = match arguments() {
        Ok(seconds) => seconds,
        Err(Usage::Help) => {
            println!("usage: quickstart [--seconds N]   N from 2 to 600, default 4");
            return ExitCode::SUCCESS;
        }
        Err(Usage::Wrong(why)) => {
            eprintln!("quickstart: {why}; usage: quickstart [--seconds N]");
            return ExitCode::from(2);
        }
    };
    match show(Duration::from_secs(seconds)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

enum Usage {
    Help,
    Wrong(String),
}

fn arguments() -> Result<u64, Usage> {
    let mut seconds = 4;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Err(Usage::Help),
            "--seconds" => {
                let text = arguments.next().unwrap_or_default();
                seconds = text
                    .parse()
                    .ok()
                    .filter(|n| (2..=600).contains(n))
                    .ok_or_else(|| Usage::Wrong(format!("--seconds {text:?} is not in 2..=600")))?;
            }
            other => return Err(Usage::Wrong(format!("unknown argument {other:?}"))),
        }
    }
    Ok(seconds)
}

async fn show(length: Duration) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    // Five servers: two quick, two of middling speed, one slow. The fifth joins later.
    let mut servers = Vec::new();
    for millis in [1, 1, 3, 10, 2] {
        servers.push(Server::start(Duration::from_millis(millis)).await?);
    }
    let mut stop = servers[2].stop.take();
    let endpoints = |of: &[usize]| -> Vec<Endpoint> {
        of.iter()
            .map(|&i| Endpoint::from(servers[i].address))
            .collect()
    };

    // This is all there is to it: a channel over the endpoints, under a generated client.
    let channel = Channel::from_endpoints(endpoints(&[0, 1, 2, 3]))
        .timeout(Duration::from_secs(5))
        .connect()
        .await?;
    let client = GreeterClient::new(channel.clone());

    let tally = Arc::new(Tally::default());
    let end = Instant::now() + length;
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| tokio::spawn(call_until(end, client.clone(), tally.clone())))
        .collect();

    let mut screen = Screen::new();
    let mut steps = vec![
        (0.75, "server 5 joins the list", endpoints(&[1, 2, 3, 4])),
        (0.25, "server 1 leaves the list", endpoints(&[1, 2, 3])),
    ];
    let start = end - length;
    let mut headline = "four servers, one of them slow".to_owned();
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    while Instant::now() < end {
        ticks.tick().await;
        let passed = start.elapsed().as_secs_f64() / length.as_secs_f64();
        if let Some((_, what, list)) = steps.pop_if(|(at, ..)| passed >= *at) {
            channel.set_endpoints(list)?;
            headline = what.to_owned();
        }
        if passed >= 0.5
            && let Some(stop) = stop.take()
        {
            // As a deployment does it: finish what you have, take no more, and be gone.
            let _ = stop.send(());
            headline = "server 3 is stopped, and still in the list".to_owned();
        }
        screen.draw(&headline, &channel, &servers, &tally)?;
    }
    for caller in callers {
        caller.await?;
    }
    screen.draw("done", &channel, &servers, &tally)?;

    let (ok, failed) = (
        tally.ok.load(Ordering::Relaxed),
        tally.failed.load(Ordering::Relaxed),
    );
    let ready = channel
        .endpoints()
        .iter()
        .filter(|e| e.state == Connectivity::Ready)
        .count();
    if let Some(error) = tally.first_error.get() {
        eprintln!("quickstart: first failure: {error}");
    }
    println!(
        "RESULT quickstart calls={} ok={ok} failed={failed} endpoints={} ready={ready}",
        ok + failed,
        channel.endpoints().len(),
    );
    channel.close().await;
    Ok(failed == 0 && ok > 0)
}

#[derive(Default)]
struct Tally {
    ok: AtomicU64,
    failed: AtomicU64,
    first_error: std::sync::OnceLock<String>,
}

async fn call_until(end: Instant, mut client: GreeterClient<Channel>, tally: Arc<Tally>) {
    while Instant::now() < end {
        let request = HelloRequest {
            name: "equipoise".to_owned(),
            ..HelloRequest::default()
        };
        match client.say_hello(request).await {
            Ok(_) => {
                tally.ok.fetch_add(1, Ordering::Relaxed);
            }
            Err(status) => {
                tally.failed.fetch_add(1, Ordering::Relaxed);
                let _ = tally.first_error.set(status.to_string());
            }
        }
    }
}

/// A live table where there is a terminal, else a few plain lines.
struct Screen {
    live: bool,
    lines: usize,
    last: String,
}

impl Screen {
    fn new() -> Self {
        Self {
            live: std::io::stdout().is_terminal(),
            lines: 0,
            last: String::new(),
        }
    }

    fn draw(
        &mut self,
        headline: &str,
        channel: &Channel,
        servers: &[Server],
        tally: &Tally,
    ) -> std::io::Result<()> {
        if !self.live && self.last == headline {
            return Ok(());
        }
        self.last = headline.to_owned();
        let mut rows = vec![
            format!("== {headline}: {} calls", tally.ok.load(Ordering::Relaxed)),
            format!(
                "{:<24}{:<20}{:>9}{:>10}{:>10}{:>10}",
                "endpoint", "state", "in flight", "picks", "p50", "p99"
            ),
        ];
        for endpoint in channel.endpoints() {
            let number = servers
                .iter()
                .position(|s| s.address.to_string() == endpoint.address.to_string())
                .map_or(0, |i| i + 1);
            let time = |d: Option<Duration>| {
                d.map_or("-".to_owned(), |d| {
                    format!("{:.1} ms", d.as_secs_f64() * 1e3)
                })
            };
            rows.push(format!(
                "{:<24}{:<20}{:>9}{:>10}{:>10}{:>10}",
                format!("{number} {}", endpoint.address),
                endpoint.state.to_string(),
                endpoint.in_flight,
                endpoint.picks,
                time(endpoint.latency_p50),
                time(endpoint.latency_p99),
            ));
        }
        let mut out = std::io::stdout().lock();
        if self.live && self.lines > 0 {
            // Back to the first line of the last table, and clear what follows.
            write!(out, "\x1b[{}A\x1b[J", self.lines)?;
        }
        self.lines = rows.len();
        for row in rows {
            writeln!(out, "{row}")?;
        }
        out.flush()
    }
}

/// A real tonic server on a free port of the loopback interface.
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
}

impl Server {
    async fn start(work: Duration) -> Result<Self, std::io::Error> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let service = GreeterServer::new(Demo { work });
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                // A dropped sender must not stop the server: then it serves to the end.
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            });
        tokio::spawn(serving);
        Ok(Self {
            address,
            stop: Some(stop),
        })
    }
}

struct Demo {
    work: Duration,
}

type Replies =
    std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<HelloReply, Status>> + Send>>;

#[tonic::async_trait]
impl Greeter for Demo {
    async fn say_hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloReply>, Status> {
        tokio::time::sleep(self.work).await;
        Ok(Response::new(HelloReply {
            message: format!("hello, {}", request.into_inner().name),
            ..HelloReply::default()
        }))
    }

    type CountdownStream = Replies;

    async fn countdown(&self, _: Request<CountdownRequest>) -> Result<Response<Replies>, Status> {
        Err(Status::unimplemented("the quickstart says hello only"))
    }

    async fn gather(
        &self,
        _: Request<tonic::Streaming<HelloRequest>>,
    ) -> Result<Response<GatherReply>, Status> {
        Err(Status::unimplemented("the quickstart says hello only"))
    }

    type ChatStream = Replies;

    async fn chat(
        &self,
        _: Request<tonic::Streaming<HelloRequest>>,
    ) -> Result<Response<Replies>, Status> {
        Err(Status::unimplemented("the quickstart says hello only"))
    }
}
