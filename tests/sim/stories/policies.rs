//! What policies may ask for: one connection at a time, another policy in their place, to be asked again.

use std::sync::Arc;
use std::time::Duration;

use equipoise::policy::{
    Adaptive, Connect, Decision, LeastRequest, Member, PickFirst, PickInfo, PickResult, Picker,
    Policy, RingHash, RoundRobin,
};
use equipoise::rng::Rng;
use equipoise::{Connectivity, EndpointId, Timestamp};

use super::{at, endpoints, host, world, world_with};
use crate::world::{Dialling, Ending, Request, Settings, World, ms};

fn set(world: &mut World, n: u16, dialling: Dialling) {
    world.hosts.get_mut(&host(n)).expect("it is there").dialling = dialling;
}

fn ready(world: &World) -> Vec<usize> {
    let all = world.endpoints().into_iter();
    let ready = all.filter(|(_, _, state)| *state == Connectivity::Ready);
    ready.map(|(id, ..)| id.slot()).collect()
}

/// Each in turn dies for two minutes, a minute after the one before: calls go on, on one connection, and an
/// endpoint in its backoff is not dialled before that is over.
#[test]
fn pick_first_over_a_rolling_loss_with_backoff_of_minutes() {
    let mut settings = Settings::new(3);
    settings.config.backoff.base = Duration::from_secs(60);
    settings.config.backoff.jitter = 0.0;
    let mut world = world_with(settings, 4, Box::new(PickFirst::default()));
    world.resolve(endpoints(1..=4));
    world.traffic(ms(50), at(600_000), Request::default());
    for turn in 0..8_u16 {
        let n = 1 + turn % 4;
        world.at(at(60_000 * u64::from(turn) + 30_000), move |world| {
            set(world, n, Dialling::Refuse);
            world.cut(&host(n));
        });
        let back = 60_000 * u64::from(turn) + 150_000;
        world.at(at(back), move |world| set(world, n, Dialling::Accept));
    }
    for minute in 1..10 {
        world.run_until(at(60_000 * minute));
        assert_eq!(ready(&world).len(), 1, "one connection in minute {minute}");
    }
    world.run_until(at(700_000));
    world.assert_clean();
    let lost = world.all_ended() - world.ended(Ending::Ok);
    assert!(lost <= 8, "{lost} calls, one at each loss at the most");
    for n in 1..=4 {
        let dials = world.dials_to(&host(n));
        assert!(dials.len() <= 8, "{n}: {dials:?}");
    }
    assert!(world.dials_to(&host(2)).len() >= 2, "the others stood in");
}

/// The policy changes while nobody can be reached: calls fail or wait as before, and all is well afterwards.
#[test]
fn a_switch_during_an_outage() {
    let mut world = world(3);
    world.resolve(endpoints(1..=3));
    world.traffic(ms(10), at(30_000), Request::default());
    world.run_until(at(2_000));
    for n in 1..=3 {
        set(&mut world, n, Dialling::Refuse);
        world.cut(&host(n));
    }
    world.run_until(at(5_000));
    let policies: [Box<dyn Policy>; 4] = [
        Box::new(RingHash::default()),
        Box::new(LeastRequest::default()),
        Box::new(PickFirst::shuffled()),
        Box::new(PickFirst::default()),
    ];
    for policy in policies {
        world.switch(0, policy);
        world.run_for(ms(100));
    }
    assert_eq!(world.balancer.state(), Connectivity::TransientFailure);
    for n in 1..=3 {
        set(&mut world, n, Dialling::Accept);
    }
    world.run_until(at(20_000));
    assert_eq!(ready(&world).len(), 1, "the last one is pick first");
    let lost = world.all_ended() - world.ended(Ending::Ok);
    world.switch(0, Box::new(Adaptive::default()));
    world.run_until(at(32_000));
    assert_eq!(ready(&world).len(), 3);
    let now = world.all_ended() - world.ended(Ending::Ok);
    assert_eq!(now, lost, "calls lost by a switch in good times");
    world.assert_clean();
}

/// Gives calls to endpoints only when they have been ready for a while, unless nobody has.
#[derive(Debug)]
struct HoldDown {
    since: Vec<(EndpointId, Timestamp)>,
}

const HOLD: Duration = ms(5_000);

#[derive(Debug)]
struct Among(Vec<EndpointId>);

impl Policy for HoldDown {
    fn update(&mut self, members: &[Member], now: Timestamp, _: &mut Rng) -> Decision {
        let ready = members.iter().filter(|m| m.state == Connectivity::Ready);
        let since = |id: EndpointId| self.since.iter().find(|known| known.0 == id);
        let since = ready.map(|m| (m.id, since(m.id).map_or(now, |known| known.1)));
        self.since = since.collect();
        let (old, new): (Vec<(EndpointId, Timestamp)>, Vec<_>) = self
            .since
            .iter()
            .copied()
            .partition(|known| now >= known.1 + HOLD);
        let wake = new.iter().map(|known| known.1 + HOLD).min();
        let serving = if old.is_empty() { new } else { old };
        Decision {
            picker: Arc::new(Among(serving.into_iter().map(|known| known.0).collect())),
            connect: Connect::All,
            wake,
        }
    }
}

impl Picker for Among {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        match self.0.len() {
            0 => PickResult::Queue { connect: None },
            count => PickResult::Pick(self.0[equipoise::rng::scale(info.random, count)]),
        }
    }
}

/// Whoever comes back gets calls when it has been held down, though nothing else happens at that time.
#[test]
fn a_policy_that_holds_down_whoever_returns() {
    let policy = Box::new(HoldDown { since: Vec::new() });
    let mut world = world_with(Settings::new(5), 2, policy);
    world.resolve(endpoints(1..=2));
    world.traffic(ms(5), at(30_000), Request::default());
    world.run_until(at(10_000));
    assert_eq!(world.balancer.poll_timeout(), None, "nobody is held down");
    world.cut(&host(2));
    world.run_until(at(30_000));
    assert_eq!(world.share(&host(2), at(10_001), at(15_000)), 0.0);
    let share = world.share(&host(2), at(15_020), at(30_000));
    assert!((0.4..0.6).contains(&share), "{share}");
    // Nor does it wait when it is replaced meanwhile.
    world.cut(&host(1));
    world.run_for(ms(1_000));
    world.switch(0, Box::new(RoundRobin::default()));
    world.run_for(ms(1_000));
    assert_eq!(world.balancer.poll_timeout(), None, "the wish went with it");
}
