//! Loads that were read a while ago: what is known by now of those who read idle then.
//!
//! A reading that is a quarter of a second old draws every call of that quarter to whoever was idle in it, and from
//! every client. So calls given since count on top of the reading, each for two typical ones. In simulation (10 and 50
//! servers, 1 to 64 clients, readings every 0.25 s and every 1 s) comparing utilization as read had a p99 of 1.2 to 4.2
//! times that of round robin where all servers are alike; with the calls given since it is 0.9 to 1.5 times, and at
//! most 0.6 times where servers differ or falter. Counting all calls in flight instead does no better, and an idle
//! stream would weigh for as long as it is open.
//!
//! Who has no reading counts as typical, and every call under way there as given since: missing data draws nobody.
//! Typical is the median, not the mean: one stream that carries most of the bytes, or one server that tells nonsense,
//! says nothing of the others.

use std::time::Duration;

use super::least_load::{Choices, least};
use super::{Decision, Member};
use crate::endpoint::Connectivity;
use crate::load::Load;
use crate::timestamp::Timestamp;

/// How often the median is taken anew: as often as gRPC makes weights from reports (gRFC A58).
const EVERY: Duration = Duration::from_secs(1);

/// How many typical calls one that was given since counts for. With 1, many clients still flock together (64 clients,
/// readings every second: p99 249 ms, and 208 with 2); with 4 nothing more is gained.
const SINCE: f64 = 2.0;

/// What was read of one endpoint.
pub(super) struct Reading {
    /// Its load, on a scale on which all endpoints should be equal; `None` where nothing is known.
    pub(super) load: Option<f64>,
    /// How many more calls are under way than there were then.
    pub(super) since: u32,
}

/// What is typical of the fleet.
#[derive(Clone, Copy)]
struct Typical {
    /// The median load of those of whom it is known.
    load: f64,
    /// What one more call adds.
    call: f64,
}

/// The decision to take the least of some ready members by what `read` says of their facts and weights, and to be asked
/// again when the median has aged.
pub(super) fn least_by_reading<F>(
    members: &[Member],
    choices: Choices,
    now: Timestamp,
    read: F,
) -> Decision
where
    F: Fn(&Load, f64, Timestamp) -> Reading + Send + Sync + 'static,
{
    let ready = || members.iter().filter(|m| m.state == Connectivity::Ready);
    let typical = typical(ready(), now, &read);
    let decision = least(members, choices, move |load, weight, now| match typical {
        Some(typical) => {
            let Reading { load, since } = read(load, weight, now);
            load.unwrap_or(typical.load) + typical.call * f64::from(since) / weight
        }
        // Nothing to compare: whoever has fewest in flight.
        None => 0.0,
    });
    Decision {
        // With one there is no choice.
        wake: (ready().count() > 1).then_some(now + EVERY),
        ..decision
    }
}

fn typical<'a>(
    ready: impl Iterator<Item = &'a Member>,
    now: Timestamp,
    read: impl Fn(&Load, f64, Timestamp) -> Reading,
) -> Option<Typical> {
    let mut loads = Vec::new();
    let (mut members, mut calls) = (0.0, 0.0);
    for member in ready {
        members += 1.0;
        calls += f64::from(member.load.in_flight());
        loads.extend(read(&member.load, member.weight.into(), now).load);
    }
    let middle = loads.len().checked_sub(1)? / 2;
    let load = *loads.select_nth_unstable_by(middle, f64::total_cmp).1;
    Some(Typical {
        load,
        call: SINCE * load / (calls / members + 1.0),
    })
}

#[cfg(test)]
mod tests {
    use super::super::world::{OK, World};
    use super::super::{LeastLoad, LeastUtilization, Policy};
    use super::*;
    use crate::report::LoadReport;
    use crate::rng::Rng;

    const MINUTE: Duration = Duration::from_secs(60);
    const MS: Duration = Duration::from_millis(1);

    fn report(world: &World, i: usize, cpu_utilization: f64) {
        let report = LoadReport {
            cpu_utilization,
            ..LoadReport::default()
        };
        world.load(i).report(&report, world.now());
    }

    /// How many of 1,000 calls a second that take 50 ms each of ten endpoints got in the quarter of a second after
    /// readings: of a half, but for `said`. All were at a half before, and had their calls in flight.
    fn drawn(mut policy: impl Policy, said: &[Option<f64>]) -> Vec<u64> {
        let mut world = World::new(&policy, 10, 3);
        let serve = |_| (50 * MS, OK);
        for round in 0..2 {
            for i in 0..10 {
                match said.get(i).filter(|_| round == 1) {
                    None => report(&world, i, 0.5),
                    Some(Some(said)) => report(&world, i, *said),
                    Some(None) => world.load(i).join(None, world.now()),
                }
            }
            let picker = world.picker(&mut policy);
            let picks = world.run(&*picker, 1_000, 250 * MS, serve);
            if round == 1 {
                return picks;
            }
        }
        unreachable!()
    }

    #[test]
    fn an_old_reading_does_not_draw_everybody() {
        let ten = || LeastUtilization::default().with_choices(10).unwrap();
        let fair = drawn(ten(), &[Some(0.5)])[0];
        assert!((20..=30).contains(&fair), "{fair}");
        let idle = drawn(ten(), &[Some(0.05)])[0];
        assert!((31..=60).contains(&idle), "{idle}");
        let full = drawn(ten(), &[Some(5.0)])[0];
        assert_eq!(full, 0);
        let as_read = |load: &Load, now: Timestamp| load.utilization(now, MINUTE).unwrap_or(0.5);
        let as_read = LeastLoad::by(as_read).with_choices(10).unwrap();
        let all = drawn(as_read, &[Some(0.05)])[0];
        assert_eq!(all, 250, "control: compared as read");
    }

    #[test]
    fn missing_and_absurd_figures_draw_nobody() {
        for said in [None, Some(f64::NAN), Some(-1.0)] {
            let picks = drawn(LeastUtilization::default(), &[said]);
            assert!(picks[0] <= 30, "{said:?}: {picks:?}");
        }
        // Nor do they hide what the others say.
        let ten = LeastUtilization::default().with_choices(10).unwrap();
        let picks = drawn(ten, &[Some(f64::MAX), Some(0.01)]);
        assert_eq!(picks[0], 0, "{picks:?}");
        assert!(picks[2..].iter().all(|n| n + 5 < picks[1]), "{picks:?}");
    }

    #[test]
    fn without_any_reading_it_is_whoever_has_fewest_in_flight() {
        let mut policy = LeastUtilization::default().with_choices(10).unwrap();
        let mut world = World::new(&policy, 3, 1);
        let picker = world.picker(&mut policy);
        world.load(0).begin();
        world.load(2).begin();
        assert!((0..50).all(|_| world.pick(&*picker, &[]) == 1));
    }

    #[test]
    fn it_asks_for_a_new_median_each_second_while_there_is_a_choice() {
        for (n, wakes) in [(1, false), (2, true), (9, true)] {
            let mut policy = LeastUtilization::default();
            let world = World::new(&policy, n, 1);
            let decision = policy.update(world.members(), world.now(), &mut Rng::new(1));
            let expected = wakes.then_some(world.now() + Duration::from_secs(1));
            assert_eq!(decision.wake, expected);
        }
    }
}
