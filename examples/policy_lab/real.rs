//! One run over real servers and the real channel, on loopback and in real time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use equipoise::{Channel, Connectivity, Endpoint, HashKey, Timestamp};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Code, Request};

use super::contenders::{Contender, Weights};
use super::fleet::Fleet;
use super::outcome::{End, Figures, Run, Sample, warm_up};
use super::proto::HelloRequest;
use super::proto::greeter_client::GreeterClient;
use super::readings::EVERY;
use super::runs::Results;
use super::scenario::{Change, Scenario, Server};
use super::workload::{Call, Workload};

/// Progress is told every so many calls.
const STEP: u64 = 100;
/// How long the connections may take before the first call.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whom a call was given to, as its server says; by the number of the call.
pub type Picked = Arc<[AtomicU32]>;
pub const NOBODY: u32 = u32::MAX;

/// All the runs of a scenario, one at a time. The contenders take turns, so that a noisy minute is shared.
///
/// # Errors
///
/// When a run cannot be made.
pub fn runs(
    scenario: &Scenario,
    contenders: &[&'static Contender],
    seeds: &[u64],
    progress: &dyn Fn(u64),
) -> Result<Results, String> {
    let mut done = vec![Vec::new(); contenders.len()];
    for &seed in seeds {
        for (contender, done) in contenders.iter().zip(&mut done) {
            let run = run(scenario, contender, seed, progress)?;
            done.push(Figures::of(&run, scenario));
        }
    }
    let done = done.concat();
    Ok(Results::medians(scenario, contenders, &done, seeds.len()))
}

/// Runs `scenario` under one policy. Calls come when they are due, whatever became of those before, and their latency
/// counts from then. `progress` is told of calls that were made, from time to time.
///
/// # Errors
///
/// When the servers cannot be started or reached.
pub fn run(
    scenario: &Scenario,
    contender: &Contender,
    seed: u64,
    progress: &dyn Fn(u64),
) -> Result<Run, String> {
    let runtime = Runtime::new().map_err(|why| format!("no runtime: {why}"))?;
    let run = runtime.block_on(play(scenario, contender, seed, progress));
    // Nothing of it disturbs the next run.
    runtime.shutdown_timeout(PATIENCE);
    run
}

async fn play(
    scenario: &Scenario,
    contender: &Contender,
    seed: u64,
    progress: &dyn Fn(u64),
) -> Result<Run, String> {
    let picked: Picked = (0..scenario.requests)
        .map(|_| AtomicU32::new(NOBODY))
        .collect();
    let mut fleet = Fleet::new(scenario, seed, picked.clone(), contender.reports);
    let mut list = Vec::new();
    for &server in &scenario.servers {
        list.push(Some(endpoint(&mut fleet, server, contender.weights)?));
    }
    let mut channels = Vec::new();
    for _ in 0..scenario.clients {
        let channel = Channel::from_endpoints(list.iter().flatten().cloned())
            // What is compared is what policies do by themselves.
            .outlier_detection(None)
            .build();
        let channel = channel.map_err(|why| format!("no channel: {why}"))?;
        let policy = channel.set_policy((contender.make)());
        policy.map_err(|why| format!("{}: {why}", contender.name))?;
        channels.push(channel);
    }
    settle(&channels).await?;

    let mut workload = Workload::new(scenario, seed);
    let mut events = scenario.events.iter().peekable();
    let (mut calls, mut samples) = (JoinSet::new(), Vec::new());
    let start = Instant::now();
    let mut reports = contender.reports.then(|| start + EVERY);
    for _ in 0..scenario.requests {
        let call = workload.next_call();
        let at = call.at.since(Timestamp::ZERO);
        while let Some(event) = events.next_if(|event| event.at <= at) {
            wait(start + event.at, &mut reports, &fleet, &channels).await;
            match event.change {
                Change::Kill(server) => fleet.kill(server),
                Change::Slow { server, factor } => fleet.slow(server, factor),
                Change::Add(server) => {
                    list.push(Some(endpoint(&mut fleet, server, contender.weights)?));
                }
                Change::Remove(server) => {
                    fleet.leave(server);
                    list[server] = None;
                }
            }
            if matches!(event.change, Change::Add(_) | Change::Remove(_)) {
                for channel in &channels {
                    let list = list.iter().flatten().cloned();
                    let set = channel.set_endpoints(list);
                    set.map_err(|why| format!("the list cannot be changed: {why}"))?;
                }
            }
        }
        if call.number == warm_up(scenario.requests) {
            fleet.warm();
        }
        wait(start + at, &mut reports, &fleet, &channels).await;
        let channel = channels[call.client].clone();
        let key = contender.keyed.then(|| HashKey::raw(call.key));
        calls.spawn(one(channel, call, key, start + at, scenario.deadline));
        while let Some(done) = calls.try_join_next() {
            samples.push(done.map_err(|why| format!("a call broke off: {why}"))?);
        }
        if call.number % STEP == STEP - 1 {
            progress(STEP);
        }
    }
    progress(scenario.requests % STEP);
    let utilisations = fleet.utilisations();
    while let Some(done) = calls.join_next().await {
        samples.push(done.map_err(|why| format!("a call broke off: {why}"))?);
    }
    samples.sort_unstable_by_key(|sample: &Sample| sample.number);
    for (sample, picked) in samples.iter_mut().zip(picked.iter()) {
        // Relaxed: the call has ended, and its end came after.
        let server = picked.load(Ordering::Relaxed);
        sample.server = (server != NOBODY).then_some(server as usize);
    }
    for channel in channels {
        channel.close().await;
    }
    Ok(Run {
        samples,
        utilisations,
        moves: Vec::new(),
    })
}

/// Waits until then. What the servers say of themselves meanwhile is told to the clients, from the `reports` on.
async fn wait(until: Instant, reports: &mut Option<Instant>, fleet: &Fleet, channels: &[Channel]) {
    while let Some(next) = reports
        && *next <= until
    {
        tokio::time::sleep_until(*next).await;
        for (address, report) in fleet.reports() {
            for channel in channels {
                // One that has left the list is known no more.
                channel.report_load(address, &report);
            }
        }
        *next += EVERY;
    }
    tokio::time::sleep_until(until).await;
}

/// A new server, as the clients' lists have it.
fn endpoint(fleet: &mut Fleet, server: Server, weights: Weights) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from(fleet.start(server)?);
    let weight = weights.of(&server);
    endpoint.with_weight(weight).map_err(|why| why.to_string())
}

/// Waits until every client is ready, and nobody is being connected any more.
async fn settle(channels: &[Channel]) -> Result<(), String> {
    let settled = async {
        for channel in channels {
            let mut state = channel.state();
            while state != Connectivity::Ready {
                state = channel.state_changed(state).await;
            }
            let connecting = || {
                let endpoints = channel.endpoints();
                let mut states = endpoints.iter().map(|endpoint| endpoint.state);
                states.any(|state| state == Connectivity::Connecting)
            };
            while connecting() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let settled = tokio::time::timeout(PATIENCE, settled).await;
    settled.map_err(|_| format!("the servers were not reached within {PATIENCE:?}"))
}

/// Makes one call.
async fn one(
    channel: Channel,
    call: Call,
    key: Option<HashKey>,
    due: Instant,
    deadline: Duration,
) -> Sample {
    let mut request = Request::new(HelloRequest {
        id: call.number,
        work_us: u64::try_from(call.work.as_micros()).unwrap_or(u64::MAX),
        ..HelloRequest::default()
    });
    request.set_timeout(deadline);
    if let Some(key) = key {
        request.extensions_mut().insert(key);
    }
    let answer = GreeterClient::new(channel).say_hello(request).await;
    let (took, end) = match answer {
        Ok(_) => (due.elapsed(), End::Ok),
        Err(status) if status.code() == Code::DeadlineExceeded => (deadline, End::DeadlineExceeded),
        Err(_) => (due.elapsed(), End::Unavailable),
    };
    Sample {
        number: call.number,
        at: call.at,
        server: None,
        took,
        end,
    }
}
