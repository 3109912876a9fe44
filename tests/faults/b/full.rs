//! B10: a server that takes few streams at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use equipoise::Channel;
use futures_util::stream;
use tokio::task::JoinSet;
use tonic::Code;

use crate::frames::{self, FrameServer, Script, Step, kind};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::ledger::{Call, End, Execution, Verdict, audit};
use crate::rig::load::Load;
use crate::rig::now;
use crate::rig::rivals::tonic_balance;
use crate::size::{self, figure};
use crate::wire::{self, Processed};
use crate::{Fleet, all_ready, clean, is_ready, reference, report, status, until};

/// B10, one of three servers takes 10 streams at a time. tonic sends it as much as the others, and the
/// calls wait unseen inside hyper.
#[test]
fn b10_control_calls_queue_behind_a_full_connection() {
    alone(async {
        let mut options = Options::three(Duration::from_millis(100));
        options[0].max_concurrent_streams = Some(10);
        let fleet = Fleet::of(options.into());
        let client = tonic_balance(&fleet.addresses());
        let load = Load {
            deadline: Duration::from_secs(10),
            ..Load::of(size::of(900, 10_000))
        };
        let calls = load.run_closed(&client, 90).await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        size::time("p99", verdict.latency(0.99), Duration::from_millis(250));
        // tonic sends before the SETTINGS come: a server may refuse what is above its limit.
        assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
        assert!(
            verdict.latency(0.99) > Duration::from_millis(250),
            "{verdict}"
        );
    });
}

/// The same on our channel: the full one is passed over, and no call waits inside its connection.
#[test]
fn b10_a_full_connection_is_passed_over() {
    alone(async {
        let before = Footprint::take();
        let mut options = Options::three(Duration::from_millis(100));
        options[0].max_concurrent_streams = Some(10);
        let fleet = Fleet::of(options.into());
        let addresses = fleet.addresses();
        let channel = all_ready(&addresses).await;
        let picked = Picked::default();
        let calls = callers(&channel, 90, size::of(900, 10_000), &picked).await;
        let executions = fleet.ledger.executions();
        let verdict = audit(&calls, &executions);
        let limited = status(&channel, addresses[0]);
        let on_b1: Vec<&Execution> = executions.iter().filter(|e| e.server == "b1").collect();
        let open = overlap(on_b1.iter().map(|e| (e.start, ended(e))));
        // From the pick on, so a call that waits inside the connection counts too.
        let most = overlap(on_b1.iter().map(|e| (picked.at(e.id), ended(e))));
        let mut waits = picked.waits(&executions);
        waits.sort_unstable();
        let wait = |share: f64| waits[(share * (waits.len() - 1) as f64) as usize];
        println!(
            "{verdict}\n  b1: {open} open at most, {most} on the way or open at most; pick to server p50 {:?} p99 {:?} p99.9 {:?}",
            wait(0.5),
            wait(0.99),
            wait(0.999)
        );
        verdict.assert_unnoticed();
        assert!(open <= 10, "{open} streams open on b1");
        assert!(most <= 10, "{most} calls on the way to b1");
        assert_eq!(limited.refused, 0, "{limited:?}");
        assert!(verdict.server("b1") > 0, "{verdict}");
        assert_eq!(waits.len(), calls.len());
        report("pick to server, p99", wait(0.99), Duration::from_millis(5));
        report(
            "latency, p99",
            verdict.latency(0.99),
            Duration::from_millis(250),
        );
        drop(fleet);
        clean(channel, &before).await;
    });
}

/// When each call was picked.
#[derive(Clone, Default)]
struct Picked {
    at: Arc<Mutex<HashMap<u64, Duration>>>,
}

impl Picked {
    fn at(&self, id: u64) -> Duration {
        self.at.lock().expect("no holder panics")[&id]
    }

    /// From the pick to the moment the server has the call.
    fn waits(&self, executions: &[Execution]) -> Vec<Duration> {
        let at = self.at.lock().expect("no holder panics");
        let waits = executions.iter().map(|e| e.start.saturating_sub(at[&e.id]));
        waits.collect()
    }
}

/// So many callers, each making one call after another.
async fn callers(channel: &Channel, callers: u64, calls: u64, picked: &Picked) -> Vec<Call> {
    let mut running = JoinSet::new();
    for caller in 1..=callers {
        let (channel, picked) = (channel.clone(), picked.clone());
        running.spawn(async move {
            let mut done = Vec::new();
            for id in (caller..=calls).step_by(callers as usize) {
                done.push(gather(channel.clone(), id, &picked).await);
            }
            done
        });
    }
    running.join_all().await.into_iter().flatten().collect()
}

/// A client stream of one message: its body is first asked for when the call has its connection, which
/// tells when it was picked.
async fn gather(channel: Channel, id: u64, picked: &Picked) -> Call {
    let at = picked.at.clone();
    let body = stream::once(async move {
        at.lock().expect("no holder panics").insert(id, now());
        HelloRequest {
            id,
            ..HelloRequest::default()
        }
    });
    let start = now();
    let answer = GreeterClient::new(channel).gather(body).await;
    let (code, server, message) = match answer {
        Ok(reply) => (Code::Ok, reply.into_inner().server, String::new()),
        Err(status) => (status.code(), String::new(), status.message().into()),
    };
    let end = End {
        at: now(),
        code,
        server,
        not_sent: false,
        message,
    };
    Call {
        id,
        due: start,
        start,
        deadline: None,
        end: Some(end),
    }
}

fn ended(execution: &Execution) -> Duration {
    let (end, _) = execution.end.expect("it was answered");
    end
}

/// The most that there were at one time, each from its start to its end.
fn overlap(all: impl Iterator<Item = (Duration, Duration)>) -> i32 {
    let changes = all.flat_map(|(start, end)| [(start, 1), (end, -1)]);
    let mut changes: Vec<(Duration, i32)> = changes.collect();
    // At the same nanosecond the end comes first.
    changes.sort_unstable();
    let mut open = 0;
    let levels = changes.into_iter().map(|(_, change)| {
        open += change;
        open
    });
    levels.max().unwrap_or(0)
}

/// How long the scripted server works on each call.
const WORK: Duration = Duration::from_millis(100);

/// Ninety callers over two sound servers and one that says such a limit, with up to two connections each. Gives what
/// became of the calls, when each connection to the limited one opened its streams, and the most that were open there at
/// one time.
async fn with_two_connections(limit: Option<u32>) -> (Verdict, Vec<Vec<Instant>>, i32) {
    let before = Footprint::take();
    let fleet = Fleet::of(Options::three(WORK)[1..].to_vec());
    let script =
        frames::stream(|_| [vec![Step::UntilEnd, Step::Pause(WORK)], Step::reply(b"")].concat());
    let limited = FrameServer::start(Script {
        limit,
        stream: script,
        ..Script::default()
    })
    .await;
    let addresses = [&[limited.address()], &fleet.addresses()[..]].concat();
    let builder = reference(&addresses).max_connections_per_endpoint(2);
    let channel = builder.build().expect("in range");
    until("every endpoint is ready", || is_ready(&channel)).await;
    let picked = Picked::default();
    let begin = Instant::now();
    let calls = callers(&channel, 90, size::of(900, 10_000), &picked).await;
    let mut executions = fleet.ledger.executions();
    let mut opened: Vec<Vec<Instant>> = Vec::new();
    for nth in 0..limited.connections() {
        let peer = limited.peer(nth).await;
        executions.extend(wire::executions(&peer, "limited", |_| Processed::Answered));
        let heads = peer.frames().into_iter().filter(|f| f.is(kind::HEADERS));
        opened.push(heads.map(|f| f.at).collect());
    }
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    drop((fleet, limited));
    clean(channel, &before).await;
    // Each takes its time there.
    let open = opened.iter().flatten().map(|at| *at - begin);
    let most = overlap(open.map(|at| (at, at + WORK)));
    (verdict, opened, most)
}

/// Whether never more than ten were open on the connection: each was for as long as its work takes.
fn ten_at_a_time(opened: &[Instant]) -> bool {
    let mut elevens = opened.windows(11);
    elevens.all(|eleven| eleven[10] - eleven[0] >= WORK)
}

/// B10 where an endpoint may have two connections: the limited server gets a second one, and is used twice as much.
#[test]
fn b10_a_full_connection_gets_company() {
    alone(async {
        let (verdict, opened, most) = with_two_connections(Some(10)).await;
        verdict.assert_unnoticed();
        let streams: Vec<usize> = opened.iter().map(Vec::len).collect();
        println!("  streams of each connection {streams:?}, {most} open at most");
        assert_eq!(opened.len(), 2, "connections to the limited server");
        for opened in &opened {
            // Both are used, and neither is ever over its limit.
            assert!(opened.len() >= 10, "{streams:?}");
            assert!(ten_at_a_time(opened), "more than ten at a time");
        }
        figure("streams at a time over both connections", most, "");
        assert!((11..=20).contains(&most), "{most} open");
        report(
            "latency with a second connection, p99",
            verdict.latency(0.99),
            Duration::from_millis(250),
        );
    });
}

/// The control: a server that says no limit gets no second connection, and more than ten calls at a time on its first.
#[test]
fn b10_control_without_a_limit_one_connection_takes_them_all() {
    alone(async {
        let (verdict, opened, most) = with_two_connections(None).await;
        verdict.assert_unnoticed();
        assert_eq!(opened.len(), 1, "connections to the server");
        assert!(!ten_at_a_time(&opened[0]), "never more than ten at a time");
        assert!(most > 20, "{most} open");
    });
}
