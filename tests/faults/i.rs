//! I: clock, processor, memory, process.

mod many;
mod queued;
mod stalled;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use equipoise::Connectivity;
use tonic::Code;

use crate::Fleet;
use crate::balanced::{all_ready, in_flight, named, until};
use crate::child::{Client, task, tell};
use crate::frames::{FrameServer, Peer, Script, Step, kind, stream};
use crate::namespace::uptime;
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::ledger::{Call, audit};
use crate::rig::load::{Load, call};
use crate::rig::names::Name;
use crate::rig::{now, timer};
use crate::size::{self, figure, skipped};

const WORK: Duration = Duration::from_millis(1);

fn list(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    addresses.join(",")
}

fn addresses(list: &str) -> Vec<SocketAddr> {
    let addresses = list
        .split(',')
        .map(|a| a.parse().expect("the parent writes addresses"));
    addresses.collect()
}

/// I1: under a wall clock that jumps by hours and years nobody notices anything. A library of twenty lines makes it
/// jump, put before the client's process.
#[test]
fn i1_a_wall_clock_that_jumps() {
    alone(async {
        let before = Footprint::take();
        let library =
            std::env::temp_dir().join(format!("equipoise-clock-{}.so", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/i/wrong_clock.c");
        // Rust's own linker.
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status();
        assert!(built.expect("there is a linker").success());
        under_a_wrong_clock(&[("LD_PRELOAD", library.to_str().expect("a plain path"))]).await;
        std::fs::remove_file(library).expect("we made it");
        before
            .restored(crate::PATIENCE)
            .await
            .expect("nothing is left");
    });
}

/// The same by libfaketime: the clock runs a thousand times as fast.
#[test]
fn i1_by_libfaketime() {
    const TEST: &str = "i::i1_by_libfaketime";
    let mut libraries = ["/usr/lib", "/usr/lib64", "/usr/local/lib"]
        .map(PathBuf::from)
        .into_iter()
        .chain(
            std::fs::read_dir("/usr/lib")
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path())
                // At once: an open folder would count as one of a row that runs meanwhile.
                .collect::<Vec<_>>(),
        )
        .map(|folder| folder.join("faketime/libfaketime.so.1"));
    match libraries.find(|library| library.exists()) {
        None => skipped(TEST, "libfaketime is not installed"),
        Some(library) => alone(async move {
            let library = library.to_str().expect("a plain path").to_owned();
            under_a_wrong_clock(&[
                ("LD_PRELOAD", &library),
                ("FAKETIME", "-10y x1000"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ])
            .await;
        }),
    }
}

/// I1, the control: where nothing is put before it the same client sees no jump.
#[test]
fn i1_control_the_clock_is_wrong_only_where_it_is_made_so() {
    alone(async {
        let jumped = jumped(&[]).await;
        assert!(jumped < 60.0, "{jumped} s");
    });
}

async fn under_a_wrong_clock(environment: &[(&str, &str)]) {
    let jumped = jumped(environment).await;
    figure("the wall clock went wrong by", jumped.round(), "s");
    assert!(jumped > 300.0, "the fault is not there: {jumped} s");
}

/// By how many seconds the wall clock was wrong for a client that makes its calls meanwhile. It noticed nothing.
async fn jumped(environment: &[(&str, &str)]) -> f64 {
    let fleet = Fleet::start(WORK);
    let task = list(&fleet.addresses());
    let mut client = Client::start("i::client_under_a_wrong_clock", &task, environment);
    let jumped: f64 = client.told("JUMPED").parse().expect("a number");
    let made: usize = client.told("CALLS").parse().expect("a number");
    assert_eq!(client.told("FAILED"), "0");
    assert_eq!(client.told("CONNECTIONS"), "3");
    client.ended();
    println!("calls {made} ok {made} failed 0");
    let executed = fleet.ledger.executions().len();
    assert_eq!(executed, made, "not each call once");
    jumped
}

/// The client of these tests.
#[test]
fn client_under_a_wrong_clock() {
    let Some(list) = task() else { return };
    alone(async move {
        let name = Name::of(&addresses(&list));
        // Looked up again and again, too.
        let channel = named(&name, Duration::from_millis(100))
            .build()
            .expect("in range");
        until("every endpoint is ready", || {
            !channel.endpoints().is_empty() && all_ready(&channel)
        })
        .await;
        let (mut known, mut jumped) = (SystemTime::now(), Duration::ZERO);
        let begin = Instant::now();
        let load = Load::of(size::calls(1_500));
        let calls = load.run_with(channel.clone(), |_| {
            // How far the wall clock is from where it was, but for the time that has gone by.
            let wall = SystemTime::now();
            let off = match wall.duration_since(known) {
                Ok(forward) => forward.saturating_sub(begin.elapsed()),
                Err(back) => back.duration(),
            };
            jumped = jumped.max(off);
            known = known.min(wall);
            std::ops::ControlFlow::Continue(())
        });
        let calls = calls.await;
        tell("JUMPED", &jumped.as_secs_f64().to_string());
        tell("CALLS", &calls.len().to_string());
        tell("FAILED", &crate::failed_from(&calls, 0).to_string());
        let connections: usize = channel.endpoints().iter().map(|e| e.connections).sum();
        tell("CONNECTIONS", &connections.to_string());
    });
}

/// And nothing of ours reads that clock.
#[test]
fn i1_no_wall_clock_is_read() {
    let mut files = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut read = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a folder of ours");
            files.extend(entries.map(|entry| entry.expect("it can be read").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).expect("a file of ours");
            read += 1;
            for name in ["SystemTime", "UNIX_EPOCH"] {
                assert!(!source.contains(name), "{name} in {}", path.display());
            }
        }
    }
    assert!(read > 50, "only {read} files");
}

/// I2: a machine that has run for thirty years, or for no time at all.
#[test]
fn i2_a_late_monotonic_clock() {
    let thirty_years = 30 * 365 * 86_400;
    if uptime("i::i2_a_late_monotonic_clock", thirty_years) {
        alone(async {
            assert!(
                now() > Duration::from_secs(thirty_years),
                "the fault is not there"
            );
            let before = Footprint::take();
            let fleet = Fleet::start(WORK);
            let channel = crate::all_ready(&fleet.addresses()).await;
            let calls = Load::of(size::calls(1_000)).run(&channel).await;
            let verdict = fleet.ledger.audit(&calls);
            println!("{verdict}");
            verdict.assert_unnoticed();
            drop(fleet);
            crate::clean(channel, &before).await;
        });
    }
}

/// I2, the control: the clock that all other tests run by is younger.
#[test]
fn i2_control_the_clock_is_young_elsewhere() {
    assert!(now() < Duration::from_secs(30 * 365 * 86_400));
}

/// A server that answers after 20 ms, but for one call in ten.
async fn slowish() -> FrameServer {
    let script = stream(|call| match call.nth % 10 {
        9 => Vec::new(),
        _ => {
            let mut steps = vec![Step::UntilEnd, Step::Pause(Duration::from_millis(20))];
            steps.extend(Step::reply(b""));
            steps
        }
    });
    FrameServer::start(Script {
        stream: script,
        ..Script::default()
    })
    .await
}

/// All connections there were to a server.
async fn peers(server: &FrameServer) -> Vec<Peer> {
    let mut peers = Vec::new();
    for nth in 0..server.connections() {
        peers.push(server.peer(nth).await);
    }
    peers
}

/// I3: a client that was frozen and goes on does not make up for what it has missed.
#[test]
fn i3_a_frozen_client_goes_on() {
    alone(async {
        let servers = [slowish().await, slowish().await, slowish().await];
        // It has one call, and gives no answer.
        let mute = FrameServer::start(Script {
            stream: stream(|_| Vec::new()),
            ..Script::default()
        })
        .await;
        let task = list(&servers.each_ref().map(FrameServer::address));
        let task = format!("{task} {}", mute.address());
        let mut client = Client::start("i::client_that_is_frozen", &task, &[]);
        client.told("RUNNING");
        // It is under way when the client is frozen, and late when that goes on.
        mute.peer(0).await.wait(|f| f.is(kind::HEADERS)).await;
        client.freeze();
        timer::pause(size::of(Duration::from_secs(3), Duration::from_secs(30))).await;
        let all = || servers.iter().chain([&mute]);
        let connections = || all().map(FrameServer::connections).sum::<usize>();
        let made = connections();
        let thawed = Instant::now();
        client.thaw();
        let told =
            |client: &mut Client, name| -> u32 { client.told(name).parse().expect("a number") };
        let gap = told(&mut client, "FROZEN-MS");
        assert!(gap >= 2_000, "it was not frozen: {gap} ms");
        let (queries, odd, late) = (
            told(&mut client, "QUERIES"),
            told(&mut client, "ODD"),
            told(&mut client, "LATE"),
        );
        let (kept, expired, failed, served) = (
            told(&mut client, "KEPT-CODE"),
            told(&mut client, "EXPIRED"),
            told(&mut client, "FAILED-AFTER"),
            told(&mut client, "FIRST-AFTER-MS"),
        );
        client.ended();
        let connects = connections() - made;
        let second = thawed..thawed + Duration::from_secs(1);
        let mut pings = 0;
        for server in all() {
            for peer in peers(server).await {
                let ping = |f: &crate::frames::Frame| {
                    f.is(kind::PING) && !f.is_ack() && second.contains(&f.at)
                };
                pings = pings.max(peer.count(ping));
            }
        }
        figure("connects after it", connects as f64, "");
        figure("queries after it", queries, "");
        figure("pings per connection after it", pings as f64, "");
        assert!(connects <= 3, "{connects} connects");
        assert!(queries <= 1, "{queries} queries");
        assert!(pings <= 1, "{pings} pings on a connection");
        // What was under way and is late is DEADLINE_EXCEEDED: one call for certain, of others as chance will have it.
        figure("late when it went on", expired, "");
        assert_eq!(Code::from(kept as i32), Code::DeadlineExceeded);
        assert!(expired > 0, "none was late");
        assert_eq!(
            (odd, late),
            (0, 0),
            "calls that ended otherwise, or long after it"
        );
        assert_eq!(failed, 0, "calls that began after it failed");
        let served = Duration::from_millis(served.into());
        crate::report("the first answer after it", served, Duration::from_secs(1));
    });
}

/// The client of that test.
#[test]
fn client_that_is_frozen() {
    let Some(task) = task() else { return };
    let (list, mute) = task.split_once(' ').expect("the parent writes both");
    let (list, mute) = (addresses(list), addresses(mute));
    alone(async move {
        let name = Name::of(&list);
        let second = Duration::from_secs(1);
        // Overdue when it goes on, and then not before two seconds are over, less a fifth.
        let channel = named(&name, 2 * second).keepalive(second, second);
        let channel = channel.build().expect("in range");
        until("every endpoint is ready", || {
            !channel.endpoints().is_empty() && all_ready(&channel)
        })
        .await;
        let load = Load {
            rate: 200,
            ..Load::default()
        };
        let running = load.run_until_stopped(&channel);
        timer::pause(Duration::from_millis(500)).await;
        let muted = crate::all_ready(&mute).await;
        let request = HelloRequest::default();
        let kept = tokio::spawn(call(muted.clone(), request, 2 * second, now()));
        until("it is under way", || in_flight(&muted) == 1).await;
        // Before it is told: it may be frozen at once.
        let mut seen = Instant::now();
        tell("RUNNING", "now");
        let gap = loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let gap = seen.elapsed();
            if gap > Duration::from_millis(1_500) {
                break gap;
            }
            seen = Instant::now();
        };
        let (thawed, frozen, asked) = (now(), now() - gap, name.asked());
        timer::pause(second).await;
        let queries = name.asked() - asked;
        let mut calls = running.stop().await;
        let kept = kept.await.expect("no panic");
        calls.push(kept.clone());
        let code = |call: &Call| call.end.as_ref().map(|end| end.code);
        // It was frozen a moment after `frozen`, and for more than a second: what ended later than that ended after it.
        // Every tenth is never answered, whatever happens: it runs out of time.
        let under_way = |call: &&Call| {
            call.start < frozen
                && call
                    .end
                    .as_ref()
                    .is_none_or(|end| end.at >= frozen + second)
        };
        let at_once = thawed + Duration::from_millis(900);
        let (mut expired, mut odd, mut late) = (0, 0, 0);
        for call in calls.iter().filter(under_way) {
            match code(call) {
                Some(Code::DeadlineExceeded) => expired += 1,
                Some(Code::Ok) => {}
                _ => {
                    println!("odd: {call:?}");
                    odd += 1;
                }
            }
            late += u32::from(call.end.as_ref().is_none_or(|end| end.at > at_once));
        }
        let after = || calls.iter().filter(|call| call.start >= thawed);
        let failed =
            after().filter(|c| !matches!(code(c), Some(Code::Ok | Code::DeadlineExceeded)));
        let failed = failed.inspect(|call| println!("failed: {call:?}")).count();
        let answered = after().filter(|call| code(call) == Some(Code::Ok));
        let first = answered
            .filter_map(|call| call.end.as_ref().map(|end| end.at))
            .min();
        let first = first.map_or(1_000_000, |at| (at - thawed).as_millis());
        tell("FROZEN-MS", &gap.as_millis().to_string());
        tell("QUERIES", &queries.to_string());
        tell("ODD", &odd.to_string());
        tell("LATE", &late.to_string());
        let code = kept.end.map_or(Code::Ok, |end| end.code);
        tell("KEPT-CODE", &(code as i32).to_string());
        tell("EXPIRED", &expired.to_string());
        tell("FAILED-AFTER", &failed.to_string());
        tell("FIRST-AFTER-MS", &first.to_string());
    });
}

/// I3, the control: a plain interval of tokio's makes up for every tick that it has missed.
#[test]
fn i3_control_a_naive_timer_makes_up_for_what_it_missed() {
    alone(async {
        let mut client = Client::start("i::client_with_a_naive_timer", "tick", &[]);
        client.told("RUNNING");
        client.freeze();
        timer::pause(Duration::from_secs(2)).await;
        client.thaw();
        let took: u32 = client.told("TOOK-MS").parse().expect("a number");
        client.ended();
        println!("ten ticks in {took} ms");
        assert!(took < 500, "{took} ms");
    });
}

/// The client of that test.
#[test]
fn client_with_a_naive_timer() {
    if task().is_none() {
        return;
    }
    alone(async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        ticks.tick().await;
        // Before it is told: it may be frozen at once.
        let mut last = Instant::now();
        tell("RUNNING", "now");
        loop {
            ticks.tick().await;
            if last.elapsed() > Duration::from_secs(1) {
                break;
            }
            last = Instant::now();
        }
        // They are a tenth of a second apart, but for those that are late.
        let late = Instant::now();
        for _ in 0..10 {
            ticks.tick().await;
        }
        tell("TOOK-MS", &late.elapsed().as_millis().to_string());
    });
}

/// I4: a client that gets a twentieth of a processor takes no server for dead, and is well as soon as it gets more.
#[test]
fn i4_a_starved_client() {
    alone(async {
        let time = size::of(Duration::from_secs(3), Duration::from_secs(10));
        let gaps = starved(time, Client::starve).await;
        // Twenty a second: the fault was there.
        let least = 10 * time.as_secs() as u32;
        assert!(gaps >= least, "only {gaps} gaps");
    });
}

/// I4, the control: the same client with all of its processor sees no such gaps.
#[test]
fn i4_control_left_alone_it_runs_without_gaps() {
    alone(async {
        let gaps = starved(Duration::from_secs(1), |_, _| {}).await;
        assert!(gaps <= 5, "{gaps} gaps");
    });
}

/// How often a client did not run for 30 ms and more while it was treated so, for so long. It was well then.
async fn starved(time: Duration, treat: impl Fn(&Client, Duration)) -> u32 {
    let script = stream(|_| Step::reply(b""));
    let script = Script {
        stream: script,
        ..Script::default()
    };
    let servers = [
        FrameServer::start(script.clone()).await,
        FrameServer::start(script.clone()).await,
        FrameServer::start(script).await,
    ];
    let task = list(&servers.each_ref().map(FrameServer::address));
    // Longer than it is starved, and a second.
    let window = time + Duration::from_secs(1);
    let task = format!("{task} {}", window.as_millis());
    let mut client = Client::start("i::client_that_is_starved", &task, &[]);
    client.told("RUNNING");
    treat(&client, time);
    // It is told by the time, and not by us: its own clock goes on.
    let gaps = client.told("GAPS").parse().expect("a number");
    let failed = client.told("FAILED-AFTER");
    client.ended();
    for server in &servers {
        let connections = server.connections();
        figure("connections per server", connections as f64, "");
        assert!(connections <= 2, "{connections} connections");
    }
    assert_eq!(failed, "0");
    gaps
}

/// The client of these tests.
#[test]
fn client_that_is_starved() {
    let Some(task) = task() else { return };
    let (list, window) = task.split_once(' ').expect("the parent writes both");
    let (list, window) = (addresses(list), window.parse().expect("a number"));
    alone(async move {
        let second = Duration::from_secs(1);
        let channel = crate::reference(&list).keepalive(second, second);
        let channel = channel.connect().await.expect("they run");
        let load = Load {
            rate: 50,
            ..Load::default()
        };
        let running = load.run_until_stopped(&channel);
        tell("RUNNING", "now");
        let (begin, mut gaps) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_millis(window) {
            let last = Instant::now();
            tokio::time::sleep(Duration::from_millis(2)).await;
            gaps += u32::from(last.elapsed() >= Duration::from_millis(30));
        }
        tell("GAPS", &gaps.to_string());
        let starved = running.stop().await;
        let verdict = audit(&starved, &[]);
        println!("{verdict}");
        let after = Load {
            first: 1_000_000,
            ..Load::of(size::calls(300).min(2_000))
        };
        let failed = crate::failed_from(&after.run(&channel).await, 0);
        assert_eq!(channel.state(), Connectivity::Ready);
        tell("FAILED-AFTER", &failed.to_string());
    });
}
