//! I5: many calls, little memory, and nobody who could serve.
//!
//! The client is a process of its own with a limit on its memory; what it may have is nobody else's.

use std::net::SocketAddr;
use std::time::Duration;

use equipoise::Channel;
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::balanced::over;
use crate::child::{Client, task, tell};
use crate::cost::{forget_peak, memory};
use crate::frames::{FrameServer, Script};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::size::figure;

/// All the memory that the client may write to: RLIMIT_DATA.
const MEMORY: u64 = 64 << 20;
const CALLS: usize = 100_000;
/// The limit of the line, by default.
const LINE: usize = 1_000;
/// What each call brings along.
const PAYLOAD: usize = 256;

/// Connected, and not ready before its settings.
async fn server() -> FrameServer {
    let script = Script {
        settings: false,
        ..Script::default()
    };
    FrameServer::start(script).await
}

fn start(server: &FrameServer, line: usize) -> Client {
    let task = format!("{} {line}", server.address());
    Client::start("i::queued::client_with_little_memory", &task, &[])
}

/// I5: those who find the line full are sent away, those in it are served, and the client lives.
#[test]
fn i5_a_hundred_thousand_calls_in_little_memory() {
    alone(async {
        let before = Footprint::take();
        let server = server().await;
        let mut client = start(&server, LINE);
        let peer = server.peer(0).await;
        let mut number = |name: &str| -> usize {
            let told = client.told(name);
            told.parse().expect("a number")
        };
        let shed = number("SHED");
        let (odd, waiting, grown) = (number("ODD"), number("WAITING"), number("GROWN"));
        figure("of 100,000 calls sent away", shed as f64, "");
        figure("memory grown by", grown as f64 / 1_024.0, "MiB");
        assert_eq!((shed, odd, waiting), (CALLS - LINE, 0, LINE));
        peer.settings(None);
        assert_eq!(number("SERVED"), LINE);
        client.ended();
        drop((server, peer));
        let restored = before.restored(crate::PATIENCE).await;
        restored.expect("nothing is left");
    });
}

/// The control: with a line that takes them all the client is out of memory, and gone.
#[test]
fn i5_control_with_a_line_for_all_it_dies() {
    alone(async {
        let server = server().await;
        let mut client = start(&server, CALLS);
        client.told("LIMITED");
        let ended = client.died();
        println!("with a line of {CALLS}: {ended}");
    });
}

/// The client of these tests.
#[test]
fn client_with_little_memory() {
    let Some(task) = task() else { return };
    let (address, line) = task.split_once(' ').expect("the parent writes both");
    let address: SocketAddr = address.parse().expect("an address");
    let line: usize = line.parse().expect("a number");
    alone(async move {
        let channel = over(&[address])
            .queue_limit(line)
            .connect_timeout(Duration::from_secs(120));
        let channel = channel.build().expect("in range");
        let limit = |most: u64| Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(Resource::Core, limit(0)).expect("less is always allowed");
        setrlimit(Resource::Data, limit(MEMORY)).expect("less is always allowed");
        tell("LIMITED", "now");
        forget_peak();
        let start = memory("VmRSS:");
        let mut calls = JoinSet::new();
        let (mut shed, mut odd) = (0, 0);
        for begun in 1..=CALLS {
            calls.spawn(hello(channel.clone()));
            // Each has been sent away or waits before there are too many more of them.
            while begun % 100 == 0 && shed + odd + channel.waiting() < begun {
                tokio::task::yield_now().await;
                while let Some(ended) = calls.try_join_next() {
                    match ended.expect("no panic").map_err(|status| status.code()) {
                        Err(Code::ResourceExhausted) => shed += 1,
                        _ => odd += 1,
                    }
                }
            }
        }
        let grown = memory("VmHWM:").saturating_sub(start);
        tell("SHED", &shed.to_string());
        tell("ODD", &odd.to_string());
        tell("WAITING", &channel.waiting().to_string());
        tell("GROWN", &grown.to_string());
        let ended = calls.join_all().await;
        let served = ended.iter().filter(|ended| ended.is_ok()).count();
        tell("SERVED", &served.to_string());
        channel.close().await;
    });
}

async fn hello(channel: Channel) -> Result<(), Status> {
    let request = HelloRequest {
        payload: vec![5; PAYLOAD],
        ..HelloRequest::default()
    };
    let answer = GreeterClient::new(channel).say_hello(request).await;
    answer.map(drop)
}
