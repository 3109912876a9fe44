//! D: membership, whatever the resolver.

mod churn;
mod hostile;
mod large;
mod resolver;

use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use equipoise::Override;
use equipoise::policy::RoundRobin;
use equipoise::rng::Rng;
use futures_util::future::join_all;
use tonic::transport::Channel;
use tonic::transport::channel::Change;
use tonic::{Code, Request, Status, Streaming};

use crate::Fleet;
use crate::balanced::{all_ready, clean, endpoints, listed, over, ready, report, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::delay::Delay;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloReply};
use crate::rig::greeter::{Options, tonic_endpoint};
use crate::rig::ledger::{Call, Execution, audit};
use crate::rig::load::Load;
use crate::rig::{holes, now};
use crate::size::{self, figure};

/// D4, the same list again and again under load: re-ordered, with duplicates. Nothing happens.
#[test]
fn d4_the_same_list_again() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(Duration::from_millis(1));
        let wires = wires(&fleet.addresses(), Duration::ZERO);
        let addresses: Vec<SocketAddr> = wires.iter().map(|wire| wire.address).collect();
        let channel = ready(over(&addresses).policy(RoundRobin::default())).await;
        // The picker of all three is out a little later than their states.
        let first = Load {
            first: 1_000_001,
            ..Load::of(60)
        };
        let first = first.run(&channel).await;
        let picks = || -> Vec<u64> { channel.endpoints().iter().map(|e| e.picks).collect() };
        let picked = picks();
        let seed = size::seed();
        let mut rng = Rng::new(seed);
        let begin = Instant::now();
        let load = Load::of(size::calls(1_000));
        let calls = load.run_with(channel.clone(), |_| {
            let list = endpoints(&again(&addresses, &mut rng));
            channel.set_endpoints(list).expect("it is open");
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let verdict = fleet.ledger.audit(&[first, calls].concat());
        println!("seed {seed}\n{verdict}");
        verdict.assert_unnoticed();
        let accepted: Vec<usize> = wires.iter().map(Delay::accepted).collect();
        assert_eq!(accepted, [1, 1, 1], "seed {seed}: connections");
        // The turn goes on where it was: no server has more than its turn.
        for (before, after) in picked.into_iter().zip(picks()) {
            let turns = after - before;
            let turn = load.calls / 3;
            assert!(
                (turn..=turn + 1).contains(&turns),
                "seed {seed}: {turns} picks"
            );
        }
        for status in channel.endpoints() {
            assert!(status.since >= begin.elapsed(), "seed {seed}: {status:?}");
        }
        clean(channel, (wires, fleet), &before).await;
    });
}

/// D4, the control: a client that takes each list for news connects anew each time, and the wires see it.
#[test]
fn d4_control_inserting_again_connects_again() {
    alone(async {
        let fleet = Fleet::start(Duration::from_millis(1));
        let wires = wires(&fleet.addresses(), Duration::ZERO);
        let (client, changes) = Channel::balance_channel::<SocketAddr>(1_024);
        let load = Load::of(200);
        let calls = load.run_with(client, |_| {
            for wire in &wires {
                let change = Change::Insert(wire.address, tonic_endpoint(wire.address));
                changes.try_send(change).expect("room for all");
            }
            ControlFlow::Continue(())
        });
        let verdict = fleet.ledger.audit(&calls.await);
        let accepted: usize = wires.iter().map(Delay::accepted).sum();
        println!("{verdict}\n  {accepted} connections");
        verdict.assert_true();
        assert!(accepted > 10, "{accepted}");
    });
}

/// A wire to each server, to count connections or to take time.
fn wires(servers: &[SocketAddr], each_way: Duration) -> Vec<Delay> {
    let wires = servers.iter().map(|&server| Delay::start(server, each_way));
    wires.collect()
}

/// The same endpoints in another order, each once to three times.
fn again(addresses: &[SocketAddr], rng: &mut Rng) -> Vec<SocketAddr> {
    let mut list = Vec::new();
    for &address in addresses {
        list.extend(std::iter::repeat_n(address, 1 + rng.below(3)));
    }
    for last in (1..list.len()).rev() {
        list.swap(last, rng.below(last + 1));
    }
    list
}

/// Three blue servers and three green ones.
pub(crate) fn blue_and_green(work: Duration) -> Fleet {
    let servers = (1..=6).map(|n| Options {
        work,
        listen: (IpAddr::from([127, 0, 0, n + 1]), 0).into(),
        ..Options::new(&format!("b{n}"))
    });
    Fleet::of(servers.collect())
}

const GREEN: [&str; 3] = ["b4", "b5", "b6"];

/// D5, all addresses replaced at once under load: nobody notices, however far away the new ones are. The
/// old ones serve until a new one can.
#[test]
fn d5_all_replaced_at_once() {
    alone(async {
        let before = Footprint::take();
        let fleet = blue_and_green(Duration::from_millis(20));
        let each_way = Duration::from_millis(100);
        let wires = wires(&fleet.addresses()[3..], each_way);
        let green: Vec<SocketAddr> = wires.iter().map(|wire| wire.address).collect();
        let channel = ready(over(&fleet.addresses()[..3])).await;
        let mut replaced = None;
        let load = Load::of(size::calls(2_000));
        let at = size::fault_before(load.calls);
        let calls = load.run_with(channel.clone(), |number| {
            if number == at {
                replaced = Some(now());
                channel
                    .set_endpoints(endpoints(&green))
                    .expect("it is open");
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_unnoticed();
        // SETTINGS of a new one take a way there and one back.
        let replaced = replaced.expect("the load was long enough");
        let meanwhile = replaced..replaced + each_way;
        let served_by = |call: &Call| call.end.as_ref().map(|end| end.server.clone());
        let mut bridged = 0;
        for call in calls.iter().filter(|call| meanwhile.contains(&call.start)) {
            let server = served_by(call).expect("it ended");
            assert!(!GREEN.contains(&&*server), "{call:?}");
            bridged += 1;
        }
        println!("  {bridged} calls meanwhile");
        assert!(bridged > 0);
        let last = served_by(calls.last().expect("there are calls")).expect("it ended");
        assert!(GREEN.contains(&&*last), "still {last}");
        assert_eq!(listed(&channel), sorted(green));
        clean(channel, (wires, fleet), &before).await;
    });
}

/// D5, the control: taking the old endpoints away first fails calls in between.
#[test]
fn d5_control_break_before_make_fails_calls() {
    alone(async {
        let fleet = blue_and_green(Duration::from_millis(20));
        let wires = wires(&fleet.addresses()[3..], Duration::from_millis(100));
        let green: Vec<SocketAddr> = wires.iter().map(|wire| wire.address).collect();
        let channel = ready(over(&fleet.addresses()[..3]).drain_deadline(Duration::ZERO)).await;
        let load = Load::of(1_000);
        let calls = load.run_with(channel.clone(), |number| {
            if number == 400 {
                channel.set_endpoints([]).expect("it is open");
            }
            if number == 500 {
                channel
                    .set_endpoints(endpoints(&green))
                    .expect("it is open");
            }
            ControlFlow::Continue(())
        });
        let verdict = fleet.ledger.audit(&calls.await);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(verdict.code(Code::Unavailable), verdict.failed, "{verdict}");
        // Those in flight, 20 ms of them, and those of the 50 ms without a list.
        assert!(verdict.failed > 50, "{verdict}");
        assert!(
            verdict.executed[0] > 0 && verdict.executed[1] > verdict.ok,
            "{verdict}"
        );
    });
}

fn sorted(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.sort_unstable();
    addresses
}

/// D6, an endpoint removed with calls and streams in flight.
#[test]
fn d6_removed_with_calls_in_flight() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(Duration::from_millis(20));
        let (b2, deadline) = (fleet.addresses()[1], Duration::from_millis(500));
        let channel = ready(over(&fleet.addresses()).drain_deadline(deadline)).await;
        // 200 ms of replies, and replies without an end.
        let mut short = streams(&channel, b2, 100).await;
        let mut long = streams(&channel, b2, u32::MAX).await;

        let (mut removed, mut applied) = (None, None);
        let load = Load::of(size::calls(1_000));
        let at = size::fault_before(load.calls);
        let calls = load.run_with(channel.clone(), |number| {
            if number == at {
                let rest = [fleet.addresses()[0], fleet.addresses()[2]];
                channel.set_endpoints(endpoints(&rest)).expect("it is open");
                removed = Some(Instant::now());
            }
            if applied.is_none() && !listed(&channel).contains(&b2) {
                applied = Some(number + 1);
            }
            ControlFlow::Continue(())
        });
        let endings = async {
            let short = join_all(short.iter_mut().map(drain)).await;
            (short, join_all(long.iter_mut().map(drain)).await)
        };
        let (calls, (short_ends, long_ends)) = tokio::join!(calls, endings);

        let mut executions = fleet.ledger.executions();
        executions.retain(|execution| execution.id < STREAMS);
        let verdict = audit(&calls, &executions);
        println!("{verdict}\n  applied before call {applied:?}");
        verdict.assert_unnoticed();
        let applied = applied.expect("it was applied under load");
        let b2 = |execution: &&Execution| execution.server == "b2";
        let last = executions.iter().filter(b2).map(|execution| execution.id);
        let last = last.max().expect("it had calls before");
        assert!(last < applied, "call {last} on a removed endpoint");

        for (messages, _, end) in short_ends {
            assert_eq!(messages, 100, "{end:?}");
            end.expect("shorter than the drain deadline");
        }
        let removed = removed.expect("the load was long enough");
        for (_, at, end) in long_ends {
            let status = end.expect_err("it has no end");
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(status.message().contains("drain deadline"), "{status:?}");
            let after = at - removed;
            assert!(after >= deadline, "cut off after {after:?}");
            report(
                "past the drain deadline",
                after - deadline,
                Duration::from_millis(50),
            );
        }
        drop((short, long));
        clean(channel, fleet, &before).await;
    });
}

/// The ids of streams lie above.
const STREAMS: u64 = 1_000_000;

/// Five streams on one certain server, each of so many replies, 2 ms apart.
async fn streams(
    channel: &equipoise::Channel,
    on: SocketAddr,
    count: u32,
) -> Vec<Streaming<HelloReply>> {
    let mut streams = Vec::new();
    for number in 0..5 {
        let mut request = Request::new(CountdownRequest {
            id: STREAMS + u64::from(count) + number,
            count,
            pause_us: 2_000,
            ..Default::default()
        });
        request.extensions_mut().insert(Override::strict(on));
        let replies = GreeterClient::new(channel.clone()).countdown(request).await;
        streams.push(replies.expect("the server runs").into_inner());
    }
    streams
}

/// Reads to the end: how many messages there were, and when and how it ended.
async fn drain(stream: &mut Streaming<HelloReply>) -> (u32, Instant, Result<(), Status>) {
    let mut messages = 0;
    loop {
        match stream.message().await {
            Ok(Some(_)) => messages += 1,
            Ok(None) => return (messages, Instant::now(), Ok(())),
            Err(status) => return (messages, Instant::now(), Err(status)),
        }
    }
}

/// D6, an endpoint removed under load. The control shows the ledger's side: a removed endpoint gets no
/// more calls, while one that merely is not wanted any more, and was never removed, does.
#[test]
fn d6_control_the_ledger_sees_picks_of_an_endpoint() {
    alone(async {
        let fleet = Fleet::start(Duration::from_millis(1));
        let (client, changes) = Channel::balance_channel::<SocketAddr>(16);
        for address in fleet.addresses() {
            let change = Change::Insert(address, tonic_endpoint(address));
            changes.try_send(change).expect("three fit");
        }
        let first = Load::of(1_000).run(&client).await;
        let before = fleet.ledger.audit(&first);
        before.assert_unnoticed();
        assert!(before.server("b2") > 0, "{before}");

        changes
            .try_send(Change::Remove(fleet.addresses()[1]))
            .expect("one fits");
        let second = Load {
            first: 1_001,
            ..Load::of(1_000)
        }
        .run(&client)
        .await;
        let mut executions = fleet.ledger.executions();
        executions.retain(|execution| execution.id > 1_000);
        let after = audit(&second, &executions);
        println!("{after}");
        after.assert_unnoticed();
        // The first call finds the change in the queue before it picks.
        assert_eq!(after.server("b2"), 0, "{after}");
        assert!(after.server("b1") > 0 && after.server("b3") > 0, "{after}");
    });
}

/// D11, the list changes 100 times in ten minutes without a call, and then there is one.
#[test]
fn d11_changes_without_traffic() {
    alone(async {
        // Only a runtime of one thread can turn its clock.
        let test = tokio::task::spawn_blocking(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().expect("a runtime can be had");
            runtime.block_on(changes_without_traffic());
        });
        test.await.expect("it passed");
    });
}

async fn changes_without_traffic() {
    let before = Footprint::take();
    let fleet = Fleet::start(Duration::from_millis(1));
    let addresses = fleet.addresses();
    let seed = size::seed();
    let mut rng = Rng::new(seed);
    let channel = ready(over(&addresses)).await;
    let begin = tokio::time::Instant::now();
    let mut held = None;
    for change in 0..100 {
        let left_out = rng.below(4);
        let mut list = addresses.clone();
        if left_out < 3 {
            list.remove(left_out);
        }
        channel.set_endpoints(endpoints(&list)).expect("it is open");
        // Nobody calls; the list is taken up and connected to all the same.
        until("the list is in use", || {
            listed(&channel) == sorted(list.clone()) && all_ready(&channel)
        })
        .await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(6)).await;
        tokio::time::resume();
        // One connection for each server, and no more tasks than at first.
        if change == 0 {
            held = Some(Footprint::take());
        }
    }
    assert!(begin.elapsed() >= Duration::from_secs(600));
    // All three may be there again, when at first there were two.
    channel
        .set_endpoints(endpoints(&addresses[..2]))
        .expect("it is open");
    until("the list is in use", || {
        listed(&channel) == sorted(addresses[..2].to_vec())
    })
    .await;
    let held = held.expect("there was a first change");
    held.restored(Duration::from_secs(5))
        .await
        .expect("nothing piles up");

    // And all at once, faster than they can be taken up.
    for change in 0..100 {
        let list = endpoints(&[addresses[change % 3]]);
        channel.set_endpoints(list).expect("it is never full");
    }
    channel
        .set_endpoints(endpoints(&addresses[2..]))
        .expect("it is never full");
    until("the last list is in use", || {
        listed(&channel) == addresses[2..]
    })
    .await;
    let calls = Load::of(1).run(&channel).await;
    let verdict = fleet.ledger.audit(&calls);
    println!("seed {seed}\n{verdict}");
    verdict.assert_unnoticed();
    assert_eq!(verdict.server("b3"), 1, "seed {seed}: {verdict}");
    clean(channel, fleet, &before).await;
}

/// D11, the list changes while nobody calls. tonic reads changes only while it has a call to place: its
/// channel for them fills up, and a resolver would be stuck.
#[test]
fn d11_control_discovery_stands_still_without_calls() {
    alone(async {
        let refused = holes::refused();
        let capacity = 16;
        let (_client, changes) = Channel::balance_channel::<SocketAddr>(capacity);
        let insert = || Change::Insert(refused.address, tonic_endpoint(refused.address));
        let taken = (0..100)
            .take_while(|_| changes.try_send(insert()).is_ok())
            .count();
        figure("of 100 changes taken up", 0.0, "");
        assert_eq!(taken, capacity);
        // However long nobody calls.
        let sent = tokio::time::timeout(Duration::from_millis(300), changes.send(insert())).await;
        assert!(sent.is_err(), "somebody read a change: {sent:?}");
    });
}
