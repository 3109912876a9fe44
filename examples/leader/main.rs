//! A policy of one's own, for a replicated service: the leader gets every call, and followers stand in for it.
//!
//! Three real servers on loopback; the leader is stopped, comes and goes, and comes back, while calls go on. Not
//! one of them may fail, nor be answered by somebody who should not have had it.
//!
//! `cargo run --example leader [-- --seconds S --hold-down MS --callers C]`

mod arguments;
mod policy;
mod servers;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use equipoise::balancer::Backoff;
use equipoise::{Channel, Connectivity, Endpoint};
use tokio::time::sleep;

use arguments::{Options, USAGE};
use policy::LeaderFirst;
use proto::HelloRequest;
use proto::greeter_client::GreeterClient;
use servers::Server;

mod proto {
    include!(concat!(env!("OUT_DIR"), "/equipoise.demo.v1.rs"));
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The longest that anything here may take that is over in no time where all is well.
const PATIENCE: Duration = Duration::from_secs(10);
const LEADER: &str = "leader";
const FOLLOWERS: [&str; 2] = ["follower 1", "follower 2"];

#[tokio::main]
async fn main() -> ExitCode {
    let options = match arguments::read(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("leader: {why}; --help tells more");
            return ExitCode::from(2);
        }
    };
    match show(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("leader: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn show(options: &Options) -> Result<bool, Failure> {
    let mut leader = Server::start(LEADER).await?;
    let mut followers = Vec::new();
    for name in FOLLOWERS {
        followers.push(Server::start(name).await?);
    }

    // The order of the list says who leads.
    let list = std::iter::once(&leader).chain(&followers);
    let channel = Channel::from_endpoints(list.map(|server| Endpoint::from(server.address)))
        .policy(LeaderFirst::with_hold_down(options.hold_down))
        .backoff(Backoff {
            base: Duration::from_millis(50),
            ..Backoff::default()
        })
        .timeout(PATIENCE)
        .connect()
        .await?;
    settled(&channel, &leader, Connectivity::Ready).await?;

    // The first phase begins before the callers do: without one they would think it is all over.
    let tally = Arc::new(Tally::default());
    tally.begin("all three are up", &[LEADER]);
    let callers: Vec<_> = (0..options.callers)
        .map(|_| tokio::spawn(call(GreeterClient::new(channel.clone()), tally.clone())))
        .collect();
    sleep(options.phase).await;

    tally.begin(
        "the leader is being stopped",
        &[LEADER, FOLLOWERS[0], FOLLOWERS[1]],
    );
    leader.stop().await?;
    settled(&channel, &leader, Connectivity::TransientFailure).await?;
    tally.begin("the leader is gone", &FOLLOWERS);
    sleep(options.phase).await;

    tally.begin(
        "the leader comes, and is gone before the hold-down is over",
        &FOLLOWERS,
    );
    leader.restart().await?;
    until(&channel, &leader, Connectivity::Ready).await?;
    leader.stop().await?;
    settled(&channel, &leader, Connectivity::TransientFailure).await?;
    sleep(options.phase).await;

    tally.begin(
        "the leader is back, and held down, until its first call",
        &[LEADER, FOLLOWERS[0], FOLLOWERS[1]],
    );
    leader.restart().await?;
    until(&channel, &leader, Connectivity::Ready).await?;
    let (back, served) = (Instant::now(), tally.served(LEADER));
    while tally.served(LEADER) == served {
        if back.elapsed() > options.hold_down + PATIENCE {
            return Err("the leader is back, and does not lead again".into());
        }
        sleep(Duration::from_millis(1)).await;
    }
    let held = back.elapsed();
    // The other calls of that moment.
    sleep(Duration::from_millis(50)).await;
    tally.begin("the leader leads again", &[LEADER]);
    sleep(options.phase).await;

    tally.end();
    for caller in callers {
        caller.await?;
    }
    channel.close().await;
    println!("\nready again, the leader got its first call after {held:.0?}");
    Ok(tally.tell())
}

/// Waits until a server is seen in this state.
async fn until(channel: &Channel, server: &Server, state: Connectivity) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let mut endpoints = channel.endpoints().into_iter();
        if endpoints.any(|e| e.address == server.address.into() && e.state == state) {
            return Ok(());
        }
        sleep(Duration::from_millis(1)).await;
    }
    Err(format!("the {} was not {state} within {PATIENCE:?}", server.name).into())
}

/// Waits until it is, and the picker in force is one that knows: it follows within 5 ms.
async fn settled(channel: &Channel, server: &Server, state: Connectivity) -> Result<(), Failure> {
    until(channel, server, state).await?;
    sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// Who answered how many calls, by the phase in which they began.
#[derive(Default)]
struct Tally(Mutex<Phases>);

#[derive(Default)]
struct Phases {
    all: Vec<Phase>,
    ended: bool,
}

struct Phase {
    name: &'static str,
    /// Who should answer, each of them.
    expected: Vec<&'static str>,
    served: BTreeMap<String, u64>,
    failures: Vec<String>,
}

impl Tally {
    fn phases(&self) -> std::sync::MutexGuard<'_, Phases> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, name: &'static str, expected: &[&'static str]) {
        // It is a while before there is more to tell.
        println!("{name} ..");
        self.phases().all.push(Phase {
            name,
            expected: expected.to_vec(),
            served: BTreeMap::new(),
            failures: Vec::new(),
        });
    }

    fn end(&self) {
        self.phases().ended = true;
    }

    /// The phase there is, until the end.
    fn now(&self) -> Option<usize> {
        let phases = self.phases();
        phases.all.len().checked_sub(1).filter(|_| !phases.ended)
    }

    fn note(&self, phase: usize, answer: Result<String, tonic::Status>) {
        let phase = &mut self.phases().all[phase];
        match answer {
            Ok(server) => *phase.served.entry(server).or_insert(0) += 1,
            Err(status) => phase.failures.push(status.to_string()),
        }
    }

    fn served(&self, server: &str) -> u64 {
        let phases = self.phases();
        phases
            .all
            .iter()
            .filter_map(|phase| phase.served.get(server))
            .sum()
    }

    /// Prints all of it; whether it was as it should be.
    fn tell(&self) -> bool {
        let (mut ok, mut failed, mut misplaced) = (0, 0, 0);
        for phase in &self.phases().all {
            println!("\n== {}", phase.name);
            for server in [LEADER, FOLLOWERS[0], FOLLOWERS[1]] {
                let calls = phase.served.get(server).copied().unwrap_or(0);
                println!("{server:<12}{calls:>8} calls");
                ok += calls;
                if calls > 0 && !phase.expected.contains(&server) {
                    eprintln!("leader: {server} should have had none");
                    misplaced += calls;
                }
            }
            for failure in phase.failures.iter().take(3) {
                eprintln!("leader: a call failed: {failure}");
            }
            failed += phase.failures.len();
        }
        println!(
            "\nRESULT leader calls={} ok={ok} failed={failed} misplaced={misplaced}",
            ok + failed as u64
        );
        ok > 0 && failed == 0 && misplaced == 0
    }
}

async fn call(mut client: GreeterClient<Channel>, tally: Arc<Tally>) {
    while let Some(phase) = tally.now() {
        let request = HelloRequest {
            name: "equipoise".to_owned(),
            ..HelloRequest::default()
        };
        let answer = client.say_hello(request).await;
        tally.note(phase, answer.map(|response| response.into_inner().server));
    }
}
