//! I6: code of the user's that blocks a thread of the runtime.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use equipoise::Channel;

use crate::Fleet;
use crate::balanced::{all_ready, clean, endpoints, listed, over, ready, report, until};
use crate::rig::clean::{Footprint, alone};

/// How long the thread is blocked.
const BLOCKED: Duration = Duration::from_millis(1_200);

fn applied(channel: &Channel, addresses: &[SocketAddr]) -> bool {
    let mut all = addresses.to_vec();
    all.sort_unstable();
    listed(channel) == all && all_ready(channel)
}

/// Sets a list, and blocks the thread it runs on: whom it woke by that, it may have kept to itself.
async fn set_and_block(channel: Channel, addresses: Vec<SocketAddr>) {
    let set = channel.set_endpoints(endpoints(&addresses));
    set.expect("the list is in our hands");
    std::thread::sleep(BLOCKED);
}

/// I6: a runtime of two threads goes on with the other one.
#[test]
fn i6_one_of_two_threads_is_blocked() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(Duration::from_millis(1));
        let addresses = fleet.addresses();
        let channel = ready(over(&addresses[..1])).await;
        for list in [&addresses[..], &addresses[..2]] {
            let begin = Instant::now();
            let blocking = tokio::spawn(set_and_block(channel.clone(), list.to_vec()));
            until("the list is applied", || applied(&channel, list)).await;
            let took = begin.elapsed();
            report("applied after", took, Duration::from_secs(1));
            assert!(took < BLOCKED / 2, "{took:?}");
            blocking.await.expect("no panic");
        }
        clean(channel, fleet, &before).await;
    });
}

/// The control: a runtime of one thread does nothing meanwhile.
#[test]
fn i6_control_the_only_thread_is_blocked() {
    alone(async {
        let fleet = Fleet::start(Duration::from_millis(1));
        let addresses = fleet.addresses();
        let on_one_thread = tokio::task::spawn_blocking(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().expect("a runtime can be had");
            runtime.block_on(async {
                let channel = ready(over(&addresses[..1])).await;
                let begin = Instant::now();
                set_and_block(channel.clone(), addresses.clone()).await;
                let at_once = applied(&channel, &addresses);
                until("the list is applied", || applied(&channel, &addresses)).await;
                (at_once, begin.elapsed())
            })
        });
        let (at_once, took) = on_one_thread.await.expect("no panic");
        assert!(!at_once && took >= BLOCKED, "{took:?}");
    });
}
