//! Who gets the calls.

use std::sync::Arc;
use std::time::Duration;

use equipoise::load::Load;
use equipoise::policy::{
    Adaptive, Connect, Decision, LeastRequest, Member, PickInfo, PickResult, Picker, Policy,
};
use equipoise::rng::{Rng, scale};
use equipoise::{Connectivity, EndpointId, StatusCode, Timestamp};

use super::{Make, at, endpoints, host, world_with};
use crate::world::{Answers, Dialling, Ending, Host, Request, Settings, World, ms};

/// G1: one backend fails in 0.2 ms, the others answer in 20 ms, 2,000 calls a second.
fn sinkhole(seed: u64, policy: Box<dyn Policy>) -> World {
    let mut world = world_with(Settings::new(seed), 3, policy);
    for host in world.hosts.values_mut() {
        *host = Host::serving(ms(20));
    }
    let broken = world.hosts.get_mut(&host(2)).expect("it is there");
    broken.answers = Answers::Fail(StatusCode::UNAVAILABLE, Duration::from_micros(200));
    world.resolve(endpoints(1..=3));
    world.traffic(Duration::from_micros(500), at(10_000), Request::default());
    world.run_until(at(12_000));
    world.assert_clean();
    world
}

#[test]
fn g1_a_sinkhole_gets_next_to_nothing() {
    let policies: [(&str, Make); 3] = [
        ("adaptive", || Box::new(Adaptive::default())),
        ("least request of two", || Box::new(LeastRequest::default())),
        ("least request of all", || {
            Box::new(LeastRequest::full_scan())
        }),
    ];
    for (name, policy) in policies {
        for seed in 1..=3 {
            let world = sinkhole(seed, policy());
            let early = world.share(&host(2), at(500), at(2_000));
            assert!(early <= 0.20, "{name}, seed {seed}: {early} after 500 ms");
            let late = world.share(&host(2), at(2_000), at(10_000));
            assert!(late <= 0.01, "{name}, seed {seed}: {late} after 2 s");
        }
    }
}

/// The negative control: whoever looks at calls in flight alone is drawn to the one that fails fast.
#[test]
fn g1_control_a_naive_least_loaded_picker_falls_in() {
    for seed in 1..=3 {
        let world = sinkhole(seed, Box::new(Naive));
        let share = world.share(&host(2), at(500), at(10_000));
        assert!(share >= 0.5, "seed {seed}: {share}");
    }
}

/// Fewest calls in flight, ties by chance.
#[derive(Debug)]
struct Naive;

#[derive(Debug)]
struct NaivePicker(Vec<(EndpointId, Arc<Load>)>);

impl Policy for Naive {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        let ready = members
            .iter()
            .filter(|member| member.state == Connectivity::Ready);
        let ready = ready
            .map(|member| (member.id, member.load.clone()))
            .collect();
        Decision {
            picker: Arc::new(NaivePicker(ready)),
            connect: Connect::All,
            wake: None,
        }
    }
}

impl Picker for NaivePicker {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let Some(least) = self.0.iter().map(|(_, load)| load.in_flight()).min() else {
            return PickResult::Queue { connect: None };
        };
        let tied: Vec<EndpointId> = self
            .0
            .iter()
            .filter(|(_, load)| load.in_flight() == least)
            .map(|(id, _)| *id)
            .collect();
        PickResult::Pick(tied[scale(info.random, tied.len())])
    }
}

/// A recovered server gets its share again.
#[test]
fn a_sinkhole_that_recovers_is_used_again() {
    for policy in [
        Box::new(Adaptive::default()) as Box<dyn Policy>,
        Box::new(LeastRequest::default()),
    ] {
        let name = format!("{policy:?}");
        let mut world = world_with(Settings::new(4), 3, policy);
        for host in world.hosts.values_mut() {
            *host = Host::serving(ms(20));
        }
        let broken = world.hosts.get_mut(&host(2)).expect("it is there");
        broken.answers = Answers::Fail(StatusCode::UNAVAILABLE, Duration::from_micros(200));
        world.resolve(endpoints(1..=3));
        world.traffic(ms(1), at(40_000), Request::default());
        world.at(at(10_000), |world| {
            world.hosts.insert(host(2), Host::serving(ms(20)));
        });
        world.run_until(at(40_000));
        let share = world.share(&host(2), at(25_000), at(40_000));
        assert!(
            share > 0.2,
            "{name}: {share} of the calls 15 s after it recovered"
        );
    }
}

/// The first member leads; the others are connected only while it is not ready, and serve meanwhile.
#[derive(Debug)]
struct LeaderFirst;

#[derive(Debug)]
struct LeaderPicker {
    serving: Vec<EndpointId>,
    hopeful: bool,
}

impl Policy for LeaderFirst {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        // Weight marks the leader.
        let leader = members.iter().max_by_key(|member| member.weight);
        let ready = |member: &&Member| member.state == Connectivity::Ready;
        let (serving, connect) = match leader {
            Some(leader) if leader.state == Connectivity::TransientFailure => {
                let followers = members.iter().filter(ready).map(|member| member.id);
                (followers.collect(), Connect::All)
            }
            Some(leader) => {
                let serving = Some(leader).filter(ready).map(|leader| leader.id);
                (
                    serving.into_iter().collect(),
                    Connect::Only(vec![leader.id]),
                )
            }
            None => (Vec::new(), Connect::All),
        };
        let failed = |member: &Member| member.state == Connectivity::TransientFailure;
        Decision {
            picker: Arc::new(LeaderPicker {
                serving,
                hopeful: !members.iter().all(failed),
            }),
            connect,
            wake: None,
        }
    }
}

impl Picker for LeaderPicker {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        match (self.serving.len(), self.hopeful) {
            (0, true) => PickResult::Queue { connect: None },
            (0, false) => PickResult::Fail,
            (count, _) => PickResult::Pick(self.serving[scale(info.random, count)]),
        }
    }
}

#[test]
fn a_policy_of_ones_own_leader_first_followers_as_fallback() {
    let mut world = world_with(Settings::new(1), 3, Box::new(LeaderFirst));
    let mut list = endpoints(1..=3);
    list[1] = list[1].clone().with_weight(2).expect("it is at least 1");
    world.resolve(list);
    world.traffic(ms(2), at(60_000), Request::default());
    world.run_until(at(5_000));
    assert_eq!(world.dials.len(), 1, "only the leader is dialled");
    assert_eq!(world.share(&host(2), at(0), at(5_000)), 1.0);

    // The leader dies: the followers are dialled and take over.
    world.hosts.get_mut(&host(2)).expect("it is there").dialling = Dialling::Refuse;
    world.cut(&host(2));
    world.run_until(at(10_000));
    let share = world.share(&host(1), at(5_050), at(10_000));
    assert!((0.4..0.6).contains(&share), "{share}");
    assert_eq!(world.share(&host(2), at(5_001), at(10_000)), 0.0);

    // It returns: within one backoff it has all the calls again, and lost followers are left alone.
    world.hosts.get_mut(&host(2)).expect("it is there").dialling = Dialling::Accept;
    world.run_until(at(25_000));
    world.cut(&host(1));
    world.cut(&host(3));
    world.run_until(at(61_000));
    assert_eq!(world.share(&host(2), at(25_000), at(60_000)), 1.0);
    assert_eq!(
        (
            world.dials_to(&host(1)).len(),
            world.dials_to(&host(3)).len()
        ),
        (1, 1)
    );
    let lost = world.all_ended() - world.ended(Ending::Ok);
    assert!(
        lost <= 2,
        "{lost} calls were under way on the leader when it died"
    );
    world.assert_clean();
}

/// A picker that asks for connections call by call: each pick names who should be dialled for it.
#[derive(Debug)]
struct OnDemand;

#[derive(Debug)]
struct OnDemandPicker(Vec<(EndpointId, Connectivity)>);

impl Policy for OnDemand {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        let members = members
            .iter()
            .map(|member| (member.id, member.state))
            .collect();
        Decision {
            picker: Arc::new(OnDemandPicker(members)),
            connect: Connect::Only(Vec::new()),
            wake: None,
        }
    }
}

impl Picker for OnDemandPicker {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let Some(&(id, state)) = self.0.get(scale(info.random, self.0.len())) else {
            return PickResult::Fail;
        };
        match state {
            Connectivity::Ready => PickResult::Pick(id),
            _ => PickResult::Queue { connect: Some(id) },
        }
    }
}

#[test]
fn endpoints_are_dialled_when_a_call_asks_for_them() {
    let mut world = world_with(Settings::new(2), 3, Box::new(OnDemand));
    world.resolve(endpoints(1..=3));
    world.run_until(at(60_000));
    assert_eq!(world.dials.len(), 0, "nobody asked");
    world.traffic(ms(5), at(61_000), Request::default());
    world.run_until(at(63_000));
    assert_eq!((world.dials.len(), world.ended(Ending::Ok)), (3, 200));
    world.cut(&host(1));
    world.run_until(at(120_000));
    assert_eq!(world.dials.len(), 3, "lost, and nobody asked again");
}
