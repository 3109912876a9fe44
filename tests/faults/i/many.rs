//! I8: channels that come and go by the thousand.

use std::net::SocketAddr;
use std::time::Duration;

use equipoise::Channel;
use tokio::task::JoinSet;

use crate::Fleet;
use crate::balanced::over;
use crate::cost::memory;
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::size::{self, figure};

/// The most that memory may grow by, in KiB.
const MEMORY: usize = 10 * 1024;

/// A channel that has made a call.
async fn used(address: SocketAddr) -> Channel {
    let channel = over(&[address]).connect().await.expect("the server runs");
    let mut client = GreeterClient::new(channel.clone());
    let answer = client.say_hello(HelloRequest::default()).await;
    answer.expect("it serves");
    channel
}

/// So many, one after another, by each of four callers, over three servers in turn.
async fn come_and_go(addresses: &[SocketAddr], channels: usize) {
    const CALLERS: usize = 4;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let addresses = addresses.to_vec();
        callers.spawn(async move {
            for nth in (caller..channels).step_by(CALLERS) {
                drop(used(addresses[nth % addresses.len()]).await);
            }
        });
    }
    callers.join_all().await;
}

/// I8: what ten thousand channels held is given back.
#[test]
fn i8_channels_leave_nothing_behind() {
    alone(async {
        let fleet = Fleet::start(Duration::ZERO);
        let addresses = fleet.addresses();
        let channels = size::calls(500) as usize;
        let before = Footprint::take();
        // What the first ones take, the next ones use again.
        come_and_go(&addresses, channels / 10).await;
        let resident = memory("VmRSS:");
        come_and_go(&addresses, channels).await;
        let restored = before.restored(crate::PATIENCE).await;
        restored.expect("nothing is left");
        let grown = memory("VmRSS:").saturating_sub(resident);
        figure("memory grown by", grown as f64, "KiB");
        assert!(grown <= MEMORY, "{grown} KiB");
        drop(fleet);
    });
}

/// The control: a channel that is kept is seen.
#[test]
fn i8_control_a_channel_that_is_kept_is_seen() {
    alone(async {
        let fleet = Fleet::start(Duration::ZERO);
        let addresses = fleet.addresses();
        let before = Footprint::take();
        come_and_go(&addresses, 10).await;
        let kept = used(addresses[0]).await;
        let restored = before.restored(Duration::from_millis(300)).await;
        restored.expect_err("one is left");
        drop(kept);
        let restored = before.restored(crate::PATIENCE).await;
        restored.expect("nothing is left");
    });
}
