//! The rows of the fault matrix that need real sockets, one file for each group of rows.
//!
//! Each row stands beside its negative control: the same fault against stock tonic or tower, which shows
//! that the rig really makes the fault and that the ledger sees it. [`matrix`] is the table of all rows and their
//! tests, [`size`] how large they are run, and [`full`] the full run.

mod b;
mod balanced;
mod c;
mod child;
mod cost;
mod d;
mod e;
mod full;
mod g;
mod h;
mod h10;
mod h11;
mod h13;
mod h15;
mod h16;
mod h17;
mod h18;
mod i;
mod lifecycle;
mod matrix;
mod n;
mod namespace;
mod rig_itself;
mod size;
mod wire;

#[path = "../rig/frames.rs"]
mod frames;
#[path = "../rig/mod.rs"]
mod rig;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use equipoise::balancer::{Backoff, OutlierDetection};
use equipoise::{Builder, Channel, Connectivity, Endpoint, EndpointStatus};
use rig::clean::Footprint;
use rig::greeter::Options;
use rig::greeter::proto::HelloRequest;
use rig::greeter::proto::greeter_client::GreeterClient;
use rig::ledger::{Call, Ledger};
use rig::process::ServerProcess;
use tonic::Code;

/// Three servers, each a process of its own, that write to one ledger.
struct Fleet {
    ledger: Ledger,
    options: Vec<Options>,
    servers: Vec<Option<ServerProcess>>,
}

impl Fleet {
    /// `b1`, `b2` and `b3`, which take `work` for a call.
    fn start(work: Duration) -> Self {
        Self::of(Options::three(work).into())
    }

    /// A process for each of the options.
    fn of(mut options: Vec<Options>) -> Self {
        let ledger = Ledger::create();
        let mut servers = Vec::new();
        for options in &mut options {
            options.ledger = Some(ledger.path().into());
            let server = ServerProcess::start(options);
            // It comes back at the same place.
            options.listen = server.address();
            servers.push(Some(server));
        }
        Self {
            ledger,
            options,
            servers,
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.options.iter().map(|options| options.listen).collect()
    }

    /// `kill -9`.
    fn kill(&mut self, index: usize) {
        self.servers[index].take().expect("it runs").kill();
    }

    /// SIGTERM, and waits for the end.
    async fn terminate(&mut self, index: usize) {
        let server = self.servers[index].take().expect("it runs");
        server.terminate();
        assert!(server.ended().await.success());
    }

    /// Starts a server again that was killed or terminated.
    fn restart(&mut self, index: usize) {
        self.servers[index] = Some(ServerProcess::start(&self.options[index]));
    }
}

/// A limit on waiting that only a hang reaches.
const PATIENCE: Duration = Duration::from_secs(20);

/// Our own channel over `addresses`, with the reference settings of the fault matrix.
fn reference(addresses: &[SocketAddr]) -> Builder<Channel> {
    reference_over(addresses.iter().copied().map(Endpoint::from))
}

/// The same over endpoints of any kind.
fn reference_over(endpoints: impl IntoIterator<Item = Endpoint>) -> Builder<Channel> {
    let second = Duration::from_secs(1);
    Channel::from_endpoints(endpoints)
        .connect_timeout(second)
        .backoff(reference_backoff())
        .keepalive(second, second)
        .drain_deadline(5 * second)
        .queue_limit(1_000)
        .outlier_detection(
            OutlierDetection::default()
                .with_interval(second)
                .with_base_ejection_time(2 * second)
                // Of the size of the others: the default is for ejections of half a minute.
                .with_slow_start(second),
        )
}

fn reference_backoff() -> Backoff {
    Backoff {
        base: Duration::from_millis(200),
        multiplier: 1.6,
        jitter: 0.2,
        cap: Duration::from_secs(2),
    }
}

/// That channel, once every one of `addresses` is ready.
async fn all_ready(addresses: &[SocketAddr]) -> Channel {
    let channel = reference(addresses)
        .build()
        .expect("the settings are in range");
    until("every endpoint is ready", || is_ready(&channel)).await;
    channel
}

/// The same, with `last` in the list only when calls are sent to one of the `first`. A connection is ready up to 5 ms before
/// calls are sent there; until then others are all there is, also for a call that would rather stay away from them.
async fn all_ready_after(first: &[SocketAddr], last: SocketAddr) -> Channel {
    all_ready_in_turn(reference(first), first, last).await
}

/// The same for a channel over the `first` that is begun as it should be.
async fn all_ready_in_turn(
    builder: Builder<Channel>,
    first: &[SocketAddr],
    last: SocketAddr,
) -> Channel {
    let channel = builder.build().expect("the settings are in range");
    until("the first are ready", || is_ready(&channel)).await;
    let mut client = GreeterClient::new(channel.clone());
    // Enough that one slow first answer is not what a newcomer is taken for.
    for _ in 0..10 * first.len() {
        let answer = client.say_hello(HelloRequest::default()).await;
        answer.expect("the first are well");
    }
    let all = first.iter().copied().chain([last]);
    let set = channel.set_endpoints(all.map(Endpoint::from));
    set.expect("the list is in our hands");
    until("all are ready", || {
        channel.endpoints().len() > first.len() && is_ready(&channel)
    })
    .await;
    channel
}

fn is_ready(channel: &Channel) -> bool {
    let endpoints = channel.endpoints();
    let mut states = endpoints.iter().map(|e| e.state);
    !endpoints.is_empty() && states.all(|state| state == Connectivity::Ready)
}

/// What the channel knows of the endpoint at `address`.
fn status(channel: &Channel, address: SocketAddr) -> EndpointStatus {
    let address = address.to_string();
    let mut endpoints = channel.endpoints().into_iter();
    let found = endpoints.find(|e| e.address.to_string() == address);
    found.unwrap_or_else(|| panic!("{address} is not in the list"))
}

/// Waits for something that must come about, and says how long it took.
async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "never came about: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    begin.elapsed()
}

/// CLEAN, the end of each row: nothing is in flight, nobody waits, and with the last clone of the channel
/// goes all that was there since `before`. What else the row opened must be gone already.
async fn clean(channel: Channel, before: &Footprint) {
    until("in flight and waiting are back to zero", || {
        channel.waiting() == 0 && channel.endpoints().iter().all(|e| e.in_flight == 0)
    })
    .await;
    drop(channel);
    before.restored(PATIENCE).await.expect("nothing is left");
}

/// Reports how long something took on real sockets, and fails beyond ten times its bound: the bound
/// itself is judged in virtual time.
#[track_caller]
fn report(what: &str, took: Duration, bound: Duration) {
    println!("{what}: {took:?}, bound {bound:?}");
    size::time(what, took, bound);
    assert!(
        took <= 10 * bound,
        "{what}: {took:?}, ten times {bound:?} is too long"
    );
}

/// How many of the calls from `first` on did not end with OK.
fn failed_from(calls: &[Call], first: u64) -> usize {
    let failed = |call: &&Call| call.end.as_ref().is_none_or(|end| end.code != Code::Ok);
    calls
        .iter()
        .filter(|call| call.id >= first)
        .filter(failed)
        .count()
}
