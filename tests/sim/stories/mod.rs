//! Scenarios with a name, a script and bounds in virtual time.

mod choosing;
mod connecting;
mod ejection;
mod membership;
mod policies;

use equipoise::policy::{Policy, RoundRobin};
use equipoise::{Address, Endpoint, Timestamp};

use crate::world::{Host, Settings, World, ms};

/// Makes a policy.
type Make = fn() -> Box<dyn Policy>;

/// The `n`-th host's address, from 1.
fn host(n: u16) -> Address {
    let text = format!("10.0.{}.{}:80", n >> 8, n & 255);
    text.parse().expect("an address")
}

fn endpoints(hosts: impl IntoIterator<Item = u16>) -> Vec<Endpoint> {
    hosts.into_iter().map(|n| Endpoint::new(host(n))).collect()
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Hosts 1 to `count` that serve in 1 ms, none of them listed yet.
fn world_with(settings: Settings, count: u16, policy: Box<dyn Policy>) -> World {
    let mut world = World::new(settings, policy);
    for n in 1..=count {
        world.hosts.insert(host(n), Host::serving(ms(1)));
    }
    world
}

/// The same under round robin, with the defaults.
fn world(count: u16) -> World {
    world_with(Settings::new(1), count, Box::new(RoundRobin::default()))
}
