//! H13: servers that end every connection as soon as it is there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::Code;

use crate::frames::{FrameServer, Script};
use crate::rig::clean::{Footprint, alone};
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::rig::rivals::tonic_balance;
use crate::rig::timer;
use crate::size::{self, figure};
use crate::wire::Shut;
use crate::{clean, reference};

/// The row's minute, and less where a few pauses tell as much.
fn window(minute: bool) -> Duration {
    let full = if minute { 60 } else { 20 };
    size::of(Duration::from_secs(2), Duration::from_secs(full))
}

fn load() -> Load {
    Load {
        rate: 500,
        ..Load::of(size::calls(1_000))
    }
}

/// What may be dialled in the window: with the shortest pauses of the reference settings 0, 0.16, 0.42, 0.83, 1.48,
/// 2.53, 4.21 s, and then every 1.6 s at most; and once more at once, where a connection came about.
fn most(took: Duration) -> usize {
    7 + 1 + (took.as_secs_f64() / 1.6) as usize
}

/// Right after accept: dialled by the backoff, however many calls there are, and every call fails soon.
#[test]
fn h13_closed_right_after_accept() {
    alone(async {
        let before = Footprint::take();
        let servers = [
            Shut::start().await,
            Shut::start().await,
            Shut::start().await,
        ];
        let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        let begin = Instant::now();
        let channel = reference(&addresses).build().expect("in range");
        let calls = load().run(&channel).await;
        timer::until(begin + window(true)).await;
        let took = begin.elapsed();
        let verdict = audit(&calls, &[]);
        println!("{verdict}");
        assert_eq!(verdict.code(Code::Unavailable), calls.len(), "{verdict}");
        for server in &servers {
            let dialled = server.accepted();
            figure("connects per server", dialled as f64, "");
            assert!(
                (3..=most(took)).contains(&dialled),
                "{dialled} connects in {took:?}"
            );
        }
        drop(servers);
        clean(channel, &before).await;
    });
}

/// After the server's settings: the connection was ready, and is gone before it took a call. The first time it is
/// dialled again at once, then by the backoff; calls wait or fail, and none of them dials.
#[test]
fn h13_closed_right_after_the_settings() {
    alone(async {
        let before = Footprint::take();
        let server = Arc::new(FrameServer::start(Script::default()).await);
        let closer = server.clone();
        let closing = tokio::spawn(async move {
            for nth in 0.. {
                // Waits without the limit of `peer`: there may be none for long.
                while closer.connections() <= nth {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                closer.peer(nth).await.close();
            }
        });
        let begin = Instant::now();
        let channel = reference(&[server.address()]).build().expect("in range");
        let calls = load().run(&channel).await;
        timer::until(begin + window(false)).await;
        let took = begin.elapsed();
        let verdict = audit(&calls, &[]);
        println!("{verdict}");
        assert!(verdict.lost.is_empty(), "{verdict}");
        let named = [Code::Ok, Code::Unavailable, Code::DeadlineExceeded];
        let named: usize = named.iter().map(|&code| verdict.code(code)).sum();
        assert_eq!(named, calls.len(), "{verdict}");
        let dialled = server.connections();
        figure("connects, closed after the settings", dialled as f64, "");
        assert!(
            (3..=most(took)).contains(&dialled),
            "{dialled} connects in {took:?}"
        );
        closing.abort();
        // It was told to end, and that is its end.
        let _ = closing.await;
        drop(server);
        clean(channel, &before).await;
    });
}

/// H13, the control: tonic dials for every call.
#[test]
fn h13_control_tonic_dials_for_every_call() {
    alone(async {
        let server = Shut::start().await;
        let client = tonic_balance(&[server.address]);
        let calls = load().run(&client).await;
        println!("{}", audit(&calls, &[]));
        let dialled = server.accepted();
        figure("connects", dialled as f64, "");
        assert!(dialled as u64 > load().calls / 10, "{dialled}");
    });
}
