//! B4: a server that takes keepalive pings for abuse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use equipoise::{Channel, Endpoint};
use tokio::task::JoinSet;

use crate::frames::{Frame, FrameServer, Peer, Script, code, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::tonic_endpoint;
use crate::rig::load::Client;
use crate::rig::timer;
use crate::size::{self, figure};
use crate::{clean, status};

/// The interval of the first connection: the seconds of the row, made short.
fn interval() -> Duration {
    size::of(Duration::from_millis(50), Duration::from_secs(1))
}

/// The row's minute.
fn window() -> Duration {
    60 * interval()
}

/// What grpc-go's servers allow: a ping that comes within five minutes of the one before, with nothing sent since, is a
/// strike, and the third strike is the end.
const STRIKES: usize = 2;

fn pings(frames: &[Frame]) -> Vec<Instant> {
    let pings = frames.iter().filter(|f| f.is(kind::PING) && !f.is_ack());
    pings.map(|f| f.at).collect()
}

/// Never answers a call, and enforces that rule.
async fn strict() -> (Arc<FrameServer>, tokio::task::JoinHandle<()>) {
    let server = FrameServer::start(Script {
        // Room given back would be something read, and no reason to ping.
        room: false,
        stream: stream(|_| Vec::new()),
        ..Script::default()
    })
    .await;
    let server = Arc::new(server);
    let watched = server.clone();
    let enforcing = tokio::spawn(async move {
        let mut enforcing = JoinSet::new();
        for nth in 0.. {
            // Waits without the limit of `peer`: there may be none for long.
            while watched.connections() <= nth {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            enforcing.spawn(enforce(watched.peer(nth).await));
        }
    });
    (server, enforcing)
}

async fn enforce(peer: Peer) {
    // The first ping is none too many.
    while pings(&peer.frames()).len() <= 1 + STRIKES {
        if peer.is_closed() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let last = peer.streams().last().copied().unwrap_or(0);
    peer.goaway(last, code::ENHANCE_YOUR_CALM, b"too_many_pings");
    peer.close();
}

/// For as long as the window: a call each fifth of an interval, given up after two of them. Each new one lets our pings go on. Gives the
/// number of connections at its end.
async fn calls(client: impl Client, server: &FrameServer) -> usize {
    let begin = Instant::now();
    let mut running = JoinSet::new();
    for number in 0.. {
        let due = interval() / 5 * number;
        if due > window() {
            break;
        }
        timer::until(begin + due).await;
        let mut client = GreeterClient::new(client.clone());
        running.spawn(async move {
            let call = client.say_hello(HelloRequest::default());
            // It is never answered; an error of its connection is no concern here.
            let _ = tokio::time::timeout(2 * interval(), call).await;
        });
        while running.try_join_next().is_some() {}
    }
    let connections = server.connections();
    running.join_all().await;
    connections
}

/// B4, GOAWAY too_many_pings. tonic comes back with the same interval, again and again.
#[test]
fn b4_control_tonic_pings_on() {
    alone(async {
        let (server, enforcing) = strict().await;
        let client = tonic_endpoint(server.address())
            .http2_keep_alive_interval(interval())
            .keep_alive_while_idle(true)
            .connect()
            .await
            .expect("it listens");
        let connections = calls(client, &server).await;
        enforcing.abort();
        println!("{connections} connections in {:?}", window());
        assert!(connections > 4, "{connections}");
    });
}

/// The same on our channel: each connection pings half as often as the one before.
#[test]
fn b4_too_many_pings() {
    alone(async {
        let before = Footprint::take();
        let (server, enforcing) = strict().await;
        let channel = Channel::from_endpoints([Endpoint::from(server.address())])
            .keepalive(interval(), crate::PATIENCE)
            .drain_deadline(Duration::from_secs(1))
            .connect()
            .await
            .expect("it listens");
        // Four pings each, at 1, 2, 4 and 8 times the interval, take the whole of it.
        let connections = calls(channel.clone(), &server).await;
        println!("{connections} connections in {:?}", window());
        figure("connections in the window", connections as f64, "");
        assert!((2..=4).contains(&connections), "{connections}");
        for nth in 0..connections {
            let pings = pings(&server.peer(nth).await.frames());
            let gaps: Vec<Duration> = pings.windows(2).map(|two| two[1] - two[0]).collect();
            println!("connection {nth}: {gaps:?}");
            assert!(nth + 1 == connections || gaps.len() > STRIKES, "{gaps:?}");
            let interval = interval() * (1 << nth);
            for gap in gaps {
                // Seen by the server; a busy machine brings two of them nearer.
                assert!(
                    gap >= interval.mul_f64(0.8),
                    "{nth}: {gap:?} of {interval:?}"
                );
            }
        }
        let endpoint = status(&channel, server.address());
        let why = endpoint.last_error.expect("connections were ended");
        assert!(why.contains("too_many_pings"), "{why}");
        enforcing.abort();
        drop(server);
        clean(channel, &before).await;
    });
}
