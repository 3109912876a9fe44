//! B10: a server that takes few streams at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use equipoise::Channel;
use futures_util::stream;
use tokio::task::JoinSet;
use tonic::Code;

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::ledger::{Call, End, Execution, audit};
use crate::rig::load::Load;
use crate::rig::now;
use crate::rig::rivals::tonic_balance;
use crate::size;
use crate::{Fleet, all_ready, clean, report, status};

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
