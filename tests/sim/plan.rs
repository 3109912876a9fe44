//! What one seed makes of a world: its size, its settings, its traffic and its misfortunes.
//!
//! Each seed allows a random subset of the kinds of fault: a common fault in every run would hide the
//! rare ones behind it.

use std::sync::Arc;
use std::time::Duration;

use equipoise::balancer::{
    Backoff, Config, FailurePercentage, HealthSource, MaxEjection, Panic, SuccessRate,
};
use equipoise::policy::{
    Adaptive, Connect, Decision, LeastRequest, Member, PickFirst, PickInfo, PickResult, Picker,
    Policy, Random, RingHash, RoundRobin,
};
use equipoise::rng::Rng;
use equipoise::{Address, Connectivity, Endpoint, StatusCode, Timestamp};

use crate::checks::Checks;
use crate::judged::{Ejection, longest_out};
use crate::world::{Answers, Dialling, Ending, Host, Request, Says, Settings, World, ms, secs};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Refuse,
    Die,
    Domino,
    Freeze,
    Goaway,
    Wear,
    CloseAtOnce,
    SlowDial,
    Errors,
    Stall,
    Shuffle,
    Shrink,
    Restore,
    Reweigh,
    Rename,
    Empty,
    NoAnswer,
    Burst,
    Blackout,
    Ask,
    Switch,
    Flaky,
    Overload,
    Sicken,
    Flap,
    Unwatch,
    Sleep,
}

const FAULTS: [Fault; 21] = [
    Fault::Refuse,
    Fault::Die,
    Fault::Domino,
    Fault::Freeze,
    Fault::Goaway,
    Fault::Wear,
    Fault::CloseAtOnce,
    Fault::SlowDial,
    Fault::Errors,
    Fault::Stall,
    Fault::Shuffle,
    Fault::Shrink,
    Fault::Restore,
    Fault::Reweigh,
    Fault::Rename,
    Fault::Empty,
    Fault::NoAnswer,
    Fault::Burst,
    Fault::Blackout,
    Fault::Ask,
    Fault::Switch,
];

/// Faults by which endpoints are judged, and idleness.
const JUDGED: [Fault; 7] = [
    Fault::Errors,
    Fault::Flaky,
    Fault::Overload,
    Fault::Sicken,
    Fault::Flap,
    Fault::Unwatch,
    Fault::Sleep,
];

/// Of so many policies a world has some.
const POLICIES: usize = 8;

/// Everything a seed decides before the clock starts.
pub(crate) struct Plan {
    settings: Settings,
    /// At least one.
    policies: Vec<usize>,
    endpoints: Vec<Endpoint>,
    hosts: Vec<(Address, Host)>,
    chaos: Duration,
    every: Duration,
    faults: Vec<(Timestamp, Fault, u64)>,
    cancels: bool,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) trace: u64,
    pub(crate) calls: u64,
    pub(crate) ok: u64,
    pub(crate) dials: usize,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let count = match rng.below(20) {
            0 => 50,
            _ => 1 + rng.below(8),
        };
        let mut endpoints = Vec::new();
        let mut hosts = Vec::new();
        for n in 0..count {
            let addresses = match rng.below(4) {
                0 => 1 + rng.below(3),
                _ => 1,
            };
            let addresses: Vec<Address> = (0..addresses)
                .map(|a| match a {
                    1 => format!("[fd00::{n:x}]:80").parse().expect("an address"),
                    _ => format!("10.{a}.0.{}:80", n + 1)
                        .parse()
                        .expect("an address"),
                })
                .collect();
            for address in &addresses {
                let latency = Duration::from_micros(500 << rng.below(7));
                hosts.push((address.clone(), Host::serving(latency)));
            }
            endpoints.push(Endpoint::with_addresses(addresses).expect("one at least"));
        }
        let pick = |rng: &mut Rng, of: &[u64]| of[rng.below(of.len())];
        let base = ms(pick(&mut rng, &[100, 1_000]));
        let mut settings = Settings {
            seed: rng.word(),
            config: Config {
                backoff: Backoff {
                    base,
                    cap: base * pick(&mut rng, &[2, 20, 120]) as u32,
                    ..Backoff::default()
                },
                connect_rate: pick(&mut rng, &[5, 50, 200]) as u32,
                max_endpoints: match rng.below(10) {
                    0 => 3,
                    _ => 10_000,
                },
                linger: ms(pick(&mut rng, &[0, 500, 30_000])),
                keep_last_good: ms(pick(&mut rng, &[0, 700, 300_000])),
                ..Config::default()
            },
            budget: ms(pick(&mut rng, &[200, 1_000, 10_000])),
            lag: Duration::from_micros(pick(&mut rng, &[0, 0, 100, 5_000])),
            ejection: None,
        };
        let chaos = secs(5 + rng.below(20) as u64);
        let allowed: Vec<Fault> = FAULTS.into_iter().filter(|_| rng.below(3) == 0).collect();
        let mut faults = match allowed.len() {
            0 => Vec::new(),
            kinds => (0..rng.below(40))
                .map(|_| {
                    // Some before there is a list.
                    let at = match rng.below(20) {
                        0 => Timestamp::from_millis(rng.below(4) as u64),
                        _ => Timestamp::ZERO + chaos.mul_f64(rng.unit()),
                    };
                    (at, allowed[rng.below(kinds)], rng.word())
                })
                .collect(),
        };
        // Of its own, so that a seed's world stays what it was but for this.
        let mut judges = Rng::new(equipoise::rng::remix(seed ^ 0x6a75_6467));
        judge(&mut settings, &mut judges);
        let allowed: Vec<Fault> = JUDGED
            .into_iter()
            .filter(|_| judges.below(2) == 0)
            .collect();
        if !allowed.is_empty() {
            faults.extend((0..judges.below(12)).map(|_| {
                let at = Timestamp::ZERO + chaos.mul_f64(judges.unit());
                (at, allowed[judges.below(allowed.len())], judges.word())
            }));
        }
        let fails = settings.fails_in_panic();
        let hidden = |fault: &Fault| matches!(fault, Fault::Switch | Fault::Blackout);
        faults.retain(|(_, fault, _)| !(fails && hidden(fault)));
        Self {
            settings,
            policies: match rng.below(4) {
                0 => (0..2 + rng.below(2)).map(|_| rng.below(POLICIES)).collect(),
                _ => vec![rng.below(POLICIES)],
            },
            endpoints,
            hosts,
            chaos,
            every: ms(pick(&mut rng, &[10, 50, 200])),
            faults,
            cancels: rng.below(3) == 0,
        }
    }

    /// The same world without those faults that put other policies in the place of the planned ones.
    pub(crate) fn without_switches(mut self) -> Self {
        let kept = |fault: &Fault| !matches!(fault, Fault::Switch | Fault::Blackout);
        self.faults.retain(|(_, fault, _)| kept(fault));
        self
    }

    fn policy(which: usize) -> Box<dyn Policy> {
        match which {
            0 => Box::new(Adaptive::default()),
            1 => Box::new(LeastRequest::default()),
            2 => Box::new(Random),
            3 => Box::new(RoundRobin::default()),
            4 => Box::new(PickFirst::default()),
            5 => Box::new(PickFirst::shuffled()),
            6 => Box::new(Leader),
            _ => Box::new(RingHash::default().with_sizes(64, 256)),
        }
    }

    /// Chaos, healing, proof of life.
    pub(crate) fn run(self, keep_words: bool) -> Outcome {
        let mut policies = self.policies.iter().map(|&which| Self::policy(which));
        let first = policies.next().expect("a plan has a policy");
        let more = policies.collect();
        self.run_with(first, more, keep_words)
    }

    pub(crate) fn run_with(
        self,
        first: Box<dyn Policy>,
        more: Vec<Box<dyn Policy>>,
        keep_words: bool,
    ) -> Outcome {
        let mut world = World::with_policies(self.settings.clone(), first, more);
        world.trace.words = keep_words.then(Default::default);
        world.checks.wishes.probe();
        let words = WordsOnPanic;
        words.watch(&mut world, |world| self.live(world))
    }

    fn live(self, world: &mut World) -> Outcome {
        let end = Timestamp::ZERO + self.chaos;
        let hidden = |fault: &Fault| matches!(fault, Fault::Switch | Fault::Blackout);
        let switched = self.faults.iter().any(|(_, fault, _)| hidden(fault));
        world.hosts.extend(self.hosts.iter().cloned());
        for (at, fault, word) in self.faults {
            let endpoints = self.endpoints.clone();
            world.at(at, move |world| strike(world, fault, word, &endpoints));
        }
        let endpoints = self.endpoints.clone();
        world.at(Timestamp::from_millis(3), move |world| {
            world.resolve(endpoints)
        });
        clients(world, self.every, end, self.cancels);
        world.run_until(end);

        // Heal: every host is well again, and the list is whole.
        world.hosts.extend(self.hosts.iter().cloned());
        for (address, _) in &self.hosts {
            world.say(address, Says::Serving);
        }
        world.wake();
        world.resolve(self.endpoints.clone());
        let restored = self.settings.seed & 1 == 0 && !self.settings.fails_in_panic();
        // These give everybody calls; others may never come to one that is on probation.
        let spread = self.policies.iter().any(|which| (1..=3).contains(which));
        let spread = spread && (restored || !switched);
        if restored {
            for (number, &which) in self.policies.iter().enumerate() {
                world.switch(number, Self::policy(which));
            }
        }
        let config = &self.settings.config;
        let in_line = self.hosts.len() as f64 / f64::from(config.connect_rate);
        let pause = config.backoff.cap.mul_f64(1.0 + config.backoff.jitter);
        let bound = self.settings.budget + config.stagger * 3 + pause + secs(1);
        let held = longest_out(&self.settings);
        let bound = end + bound + Duration::from_secs_f64(in_line) + held;
        // Who is on probation gets back by calls alone.
        let patient = Request {
            deadline: secs(2),
            ..Request::default()
        };
        if self.settings.ejection.is_some() {
            world.traffic(ms(20), bound + held + secs(3), patient);
        }
        world.run_until_or(bound, "READY after the faults have ended", |world| {
            world.balancer.state() == Connectivity::Ready
        });
        world.run_until_or(bound + secs(1), "every endpoint as wished", |world| {
            world.checks.as_wished(&world.balancer)
        });

        if self.settings.ejection.is_some() {
            // One answer may still be under way that ejects once more, and each trial waits for its call.
            world.run_until_or(bound + held + secs(3), "everybody is admitted", |world| {
                Checks::forgiven(&world.balancer, spread)
            });
            world.run_until(bound + held + secs(3));
        }

        // Alive: calls succeed, and then nothing is left.
        world.run_for(secs(6));
        world.assert_clean();
        let before = (world.all_ended(), world.ended(Ending::Ok));
        let (start, calls) = (world.now, 30);
        // Where nobody was connected before, each call may have to wait for a connection of its own.
        let mut request = Request::default();
        if world.checks.wishes.lazy() {
            request.deadline += Duration::from_secs_f64(in_line);
        }
        world.traffic(ms(10), start + ms(10 * calls), request);
        world.run_for(request.deadline + secs(2));
        let after = (
            world.all_ended() - before.0,
            world.ended(Ending::Ok) - before.1,
        );
        assert_eq!(after, (calls, calls), "calls in a healed world");
        world.assert_clean();
        // A worn connection whose replacement failed may still be waiting for the next attempt.
        world.run_until(world.now.max(bound + secs(1)));
        world.checks.nothing_worn();
        let dials = world.dials.len();
        world.run_for(secs(60));
        assert_eq!(world.dials.len(), dials, "a healed world is a quiet one");
        match self.settings.ejection {
            None => assert_eq!(world.balancer.poll_timeout(), None, "and waits for nothing"),
            Some(ejection) => {
                let due = world.balancer.poll_timeout();
                let sweep = due.is_none_or(|due| due <= world.now + ejection.interval);
                assert!(sweep, "and waits for sweeps alone");
            }
        }
        Outcome {
            trace: world.trace.hash,
            calls: world.all_ended(),
            ok: world.ended(Ending::Ok),
            dials,
        }
    }
}

/// One endpoint of the list takes all calls, whoever else is ready: before it is, such a policy must wait for its
/// place.
#[derive(Debug)]
struct Leader;

#[derive(Debug)]
struct Led(PickResult);

impl Policy for Leader {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        let listed = members.iter().filter(|member| member.place.is_some());
        let leader = listed.max_by_key(|member| member.id);
        let result = match leader.map(|leader| (leader.id, leader.state)) {
            Some((id, Connectivity::Ready)) => PickResult::Pick(id),
            None | Some((_, Connectivity::TransientFailure)) => PickResult::Fail,
            Some(_) => PickResult::Queue { connect: None },
        };
        Decision {
            picker: Arc::new(Led(result)),
            connect: Connect::Exactly(leader.map(|leader| leader.id).into_iter().collect()),
            wake: None,
        }
    }
}

impl Picker for Led {
    fn pick(&self, _: &PickInfo<'_>) -> PickResult {
        self.0.clone()
    }
}

/// How the endpoints of a world are judged.
fn judge(settings: &mut Settings, rng: &mut Rng) {
    let pick = |rng: &mut Rng, of: &[u64]| of[rng.below(of.len())];
    let base = ms(pick(rng, &[20, 200, 1_000, 5_000]));
    let share = SuccessRate::default()
        .with_request_volume(pick(rng, &[1, 5]) as u32)
        .with_minimum_hosts(pick(rng, &[1, 3]) as u32)
        .with_stdev_factor(pick(rng, &[0, 500, 1_900]) as u32);
    let percentage = FailurePercentage::default()
        .with_threshold(pick(rng, &[0, 50, 85]) as u32)
        .with_request_volume(pick(rng, &[1, 5]) as u32)
        .with_minimum_hosts(pick(rng, &[1, 2]) as u32)
        .with_enforcement(pick(rng, &[50, 100]) as u32);
    let ejection = Ejection {
        interval: ms(pick(rng, &[20, 100, 1_000])),
        base,
        longest: base * pick(rng, &[1, 3, 10]) as u32,
        most: match rng.below(2) {
            0 => MaxEjection::Share(pick(rng, &[0, 10, 34, 50, 100]) as u32),
            _ => MaxEjection::A50(pick(rng, &[10, 50, 100]) as u32),
        },
        in_a_row: [None, Some(1), Some(3), Some(5)][rng.below(4)],
        by_rate: (rng.below(3) == 0).then_some(share),
        by_share: (rng.below(2) == 0).then_some(percentage),
        slow_start: ms(pick(rng, &[0, 100, 5_000])),
    };
    settings.ejection = (rng.below(4) > 0).then_some(ejection);
    let config = &mut settings.config;
    config.max_in_flight_per_endpoint = [None, None, None, Some(3), Some(8)][rng.below(5)];
    config.health = match rng.below(6) {
        0 | 1 => HealthSource::Server,
        2 => HealthSource::Port,
        _ => HealthSource::None,
    };
    config.panic = match rng.below(10) {
        0..4 => Panic::default(),
        4 => Panic::use_all_below(0),
        5 => Panic::use_all_below(30),
        6 => Panic::use_all_below(100),
        7 => Panic::default().over_not_serving(true),
        8 => Panic::fail_below(50),
        _ => Panic::fail_below(30),
    };
    config.slow_start = ms(pick(rng, &[0, 0, 1_000]));
}

/// Calls until `end`, some impatient, some willing to wait.
fn clients(world: &mut World, every: Duration, end: Timestamp, cancels: bool) {
    if world.now >= end {
        return;
    }
    let patience = ms(1 + world.rng.below(50) as u64);
    let request = Request {
        deadline: ms(50 << world.rng.below(7)),
        wait_for_ready: world.rng.below(4) == 0,
        patience: (cancels && world.rng.below(4) == 0).then_some(patience),
        keyless: false,
    };
    world.call(request);
    let pause = every.mul_f64(2.0 * world.rng.unit());
    let next = world.now + pause.max(Duration::from_micros(1));
    world.at(next, move |world| clients(world, every, end, cancels));
}

fn strike(world: &mut World, fault: Fault, word: u64, endpoints: &[Endpoint]) {
    let mut rng = Rng::new(word);
    let addresses: Vec<Address> = world.hosts.keys().cloned().collect();
    let address = addresses[rng.below(addresses.len())].clone();
    let heal_after = ms(50 << rng.below(8));
    let well = Host::serving(world.hosts[&address].latency);
    let mut sick = well;
    match fault {
        Fault::Refuse => sick.dialling = Dialling::Refuse,
        Fault::Die => {
            sick.dialling = Dialling::Refuse;
            world.hosts.insert(address.clone(), sick);
            world.cut(&address);
        }
        Fault::Domino => {
            // Several losses within one publication's interval, with calls in between.
            for (n, address) in addresses.into_iter().enumerate().take(4) {
                world.at(world.now + ms(n as u64), move |world| {
                    world.cut(&address);
                    for _ in 0..20 {
                        world.call(Request::default());
                    }
                });
            }
            return;
        }
        Fault::Freeze => {
            sick.dialling = Dialling::Hang;
            sick.answers = Answers::Stall;
        }
        Fault::Goaway => world.goaway(&address),
        Fault::Wear => world.wear(&address),
        Fault::CloseAtOnce => {
            sick.dialling = Dialling::CloseAfter(ms(rng.below(400) as u64));
            world.hosts.insert(address.clone(), sick);
            world.cut(&address);
        }
        Fault::SlowDial => {
            sick.dial_delay = world.settings.budget.mul_f64(1.5 * rng.unit());
            world.cut(&address);
        }
        Fault::Errors => {
            sick.answers = Answers::Fail(StatusCode::UNAVAILABLE, Duration::from_micros(200));
        }
        Fault::Stall => sick.answers = Answers::Stall,
        Fault::Shuffle => {
            let mut list: Vec<Endpoint> = world_list(world);
            list.extend(list.clone().into_iter().filter(|_| rng.below(2) == 0));
            for i in (1..list.len()).rev() {
                list.swap(i, rng.below(i + 1));
            }
            let limited = world.settings.config.max_endpoints < list.len();
            let prompt = world.settings.lag.is_zero() && !list.is_empty();
            let settled = prompt && world.balancer.poll_timeout().is_none();
            let ready = world.balancer.state() == Connectivity::Ready;
            let deeds = world.deeds;
            world.resolve(list.clone());
            // Another order is news for policies, and none for connections while somebody serves.
            if settled && ready && !limited {
                assert_eq!(world.deeds, deeds, "another order was work");
            }
            let facts = |world: &World| {
                let due = world.balancer.poll_timeout();
                (world.deeds, world.publications, due)
            };
            let before = facts(world);
            world.resolve(list);
            if prompt {
                assert_eq!(facts(world), before, "the same list was work");
            }
            return;
        }
        Fault::Shrink => {
            let list = endpoints
                .iter()
                .filter(|_| rng.below(2) == 0)
                .cloned()
                .collect();
            return world.resolve(list);
        }
        Fault::Restore => return world.resolve(endpoints.to_vec()),
        Fault::Reweigh => {
            let heavier = endpoints.iter().map(|endpoint| {
                let weight = 1 + rng.below(9) as u32;
                let endpoint = endpoint.clone().with_hash_key(format!("{}", rng.below(9)));
                endpoint.with_weight(weight).expect("it is at least 1")
            });
            let list = heavier.collect();
            return world.resolve(list);
        }
        Fault::Rename => {
            let name = format!("tenant-{}", rng.below(3));
            let list = endpoints
                .iter()
                .map(|endpoint| endpoint.clone().with_id(&*name));
            return world.resolve(list.collect());
        }
        Fault::Empty => return world.resolve(Vec::new()),
        Fault::NoAnswer => return world.resolve_failed(),
        Fault::Burst => {
            for _ in 0..100 {
                world.call(Request::default());
            }
            return;
        }
        Fault::Blackout => {
            for address in addresses {
                let well = Host::serving(world.hosts[&address].latency);
                let dialling = Dialling::Refuse;
                world
                    .hosts
                    .insert(address.clone(), Host { dialling, ..well });
                world.cut(&address);
                world.at(world.now + heal_after, move |world| {
                    world.hosts.insert(address, well);
                });
            }
            if rng.below(2) == 0 {
                switches(world, &mut rng);
            }
            return;
        }
        Fault::Ask => {
            let ids: Vec<_> = world.balancer.endpoints().map(|view| view.id).collect();
            if !ids.is_empty() {
                world.want(ids[rng.below(ids.len())]);
            }
            return;
        }
        Fault::Switch => return switches(world, &mut rng),
        Fault::Flaky => {
            let most = 1 + rng.below(999) as u32;
            sick.answers = Answers::Err(most, StatusCode::INTERNAL, ms(1));
        }
        Fault::Overload => {
            sick.answers = Answers::Fail(StatusCode::RESOURCE_EXHAUSTED, ms(1));
        }
        Fault::Sicken => {
            world.say(&address, Says::NotServing);
            world.at(world.now + heal_after, move |world| {
                world.say(&address, Says::Serving);
            });
            return;
        }
        Fault::Flap => {
            for n in 0..20 {
                let (address, says) = match n % 2 {
                    0 => (address.clone(), Says::NotServing),
                    _ => (address.clone(), Says::Serving),
                };
                world.at(world.now + ms(50) * n, move |world| {
                    world.say(&address, says)
                });
            }
            return;
        }
        Fault::Unwatch => {
            world.say(&address, Says::Nothing);
            world.at(world.now + heal_after, move |world| {
                world.say(&address, Says::Serving);
            });
            return;
        }
        Fault::Sleep => return world.sleep(),
    }
    world.hosts.insert(address.clone(), sick);
    world.at(world.now + heal_after, move |world| {
        world.hosts.insert(address, well);
    });
}

/// One policy after the other for the same place, or a single one.
fn switches(world: &mut World, rng: &mut Rng) {
    let number = rng.below(world.policies);
    let mut at = world.now;
    for _ in 0..[1, 1, 2, 5][rng.below(4)] {
        let which = rng.below(POLICIES);
        world.at(at, move |world| world.switch(number, Plan::policy(which)));
        at = at + ms([0, 1, 6, 300][rng.below(4)]);
    }
}

/// The list in force.
fn world_list(world: &World) -> Vec<Endpoint> {
    world
        .balancer
        .endpoints()
        .map(|view| Endpoint::clone(view.endpoint))
        .collect()
}

/// Prints the end of the trace when a run fails.
struct WordsOnPanic;

impl WordsOnPanic {
    fn watch<T>(&self, world: &mut World, run: impl FnOnce(&mut World) -> T) -> T {
        let run = std::panic::AssertUnwindSafe(|| run(world));
        match std::panic::catch_unwind(run) {
            Ok(outcome) => outcome,
            Err(panic) => {
                for line in world.trace.words.iter().flatten() {
                    eprintln!("{line}");
                }
                std::panic::resume_unwind(panic)
            }
        }
    }
}
