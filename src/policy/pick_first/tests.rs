//! The search step by step, in literal times.

use super::super::world;
use super::*;
use crate::endpoint::{Address, Endpoint};
use crate::load::{Cells, Load, Scoring};
use Connectivity::{Connecting, Idle, Ready, TransientFailure};

/// A policy with members whose states are set by hand.
struct Bench {
    policy: PickFirst,
    members: Vec<Member>,
    rng: Rng,
}

/// What it said: who gets the calls, whom to connect, when to ask again.
#[derive(Debug, PartialEq)]
struct Said {
    pick: Pick,
    connect: Vec<usize>,
    wake: Option<u64>,
}

#[derive(Debug, PartialEq)]
enum Pick {
    One(usize),
    Wait,
    Fail,
}

fn said(pick: Pick, connect: &[usize], wake: impl Into<Option<u64>>) -> Said {
    Said {
        pick,
        connect: connect.to_vec(),
        wake: wake.into(),
    }
}

impl Bench {
    fn new(policy: PickFirst, n: usize) -> Self {
        let endpoints = (0..n).map(world::endpoint);
        Self::of(policy, endpoints)
    }

    fn of(policy: PickFirst, endpoints: impl Iterator<Item = Endpoint>) -> Self {
        let mut cells = Cells::new(Scoring::InFlight);
        let member = |(slot, endpoint): (usize, Endpoint)| Member {
            id: EndpointId::new(slot as u32, 1),
            state: Idle,
            weight: endpoint.weight(),
            place: Some(slot),
            endpoint: Arc::new(endpoint),
            load: Arc::new(Load::new(cells.cell(slot))),
        };
        Self {
            policy,
            members: endpoints.enumerate().map(member).collect(),
            rng: Rng::new(1),
        }
    }

    fn states(&mut self, states: &[Connectivity]) -> &mut Self {
        for (member, &state) in self.members.iter_mut().zip(states) {
            member.state = state;
        }
        self
    }

    fn places(&mut self, places: &[Option<usize>]) -> &mut Self {
        for (member, &place) in self.members.iter_mut().zip(places) {
            member.place = place;
        }
        self
    }

    fn at(&mut self, millis: u64) -> Said {
        let now = Timestamp::from_millis(millis);
        let decision = self.policy.update(&self.members, now, &mut self.rng);
        let info = PickInfo {
            now,
            random: self.rng.word(),
            path: "/a.B/C",
            hash: None,
            avoid: &[],
        };
        let Connect::Exactly(connect) = decision.connect else {
            panic!("wants {:?}", decision.connect);
        };
        Said {
            pick: match decision.picker.pick(&info) {
                PickResult::Pick(id) => Pick::One(id.slot()),
                PickResult::Queue { connect: None } => Pick::Wait,
                PickResult::Fail => Pick::Fail,
                other => panic!("said {other:?}"),
            },
            connect: connect.iter().map(|id| id.slot()).collect(),
            wake: decision.wake.map(|at| at.as_nanos() / 1_000_000),
        }
    }
}

#[test]
fn one_after_the_other_and_the_first_to_connect_wins() {
    let mut bench = Bench::new(PickFirst::default(), 3);
    assert_eq!(bench.at(0), said(Pick::Wait, &[0], 250));
    bench.states(&[Connecting, Idle, Idle]);
    assert_eq!(bench.at(0), said(Pick::Wait, &[0], 250));
    assert_eq!(bench.at(249), said(Pick::Wait, &[0], 250));
    // The timer: the second joins in, the first goes on.
    assert_eq!(bench.at(250), said(Pick::Wait, &[0, 1], 500));
    bench.states(&[Connecting, Connecting, Idle]);
    // The failure of an earlier one hurries nobody; that of the latest does.
    bench.states(&[TransientFailure, Connecting, Idle]);
    assert_eq!(bench.at(300), said(Pick::Wait, &[0, 1], 500));
    bench.states(&[TransientFailure, TransientFailure, Idle]);
    assert_eq!(bench.at(310), said(Pick::Wait, &[0, 1, 2], None));
    bench.states(&[TransientFailure, TransientFailure, Connecting]);
    assert_eq!(bench.at(320), said(Pick::Wait, &[0, 1, 2], None));
    // A late success of any wins, and the others are let go.
    bench.states(&[TransientFailure, Ready, Connecting]);
    assert_eq!(bench.at(400), said(Pick::One(1), &[1], None));
}

#[test]
fn it_stays_until_lost_and_then_begins_with_the_first() {
    let mut bench = Bench::new(PickFirst::default(), 3);
    bench.states(&[TransientFailure, Ready, Idle]);
    assert_eq!(bench.at(0), said(Pick::One(1), &[1], None));
    bench.states(&[Ready, Ready, Idle]);
    assert_eq!(bench.at(10), said(Pick::One(1), &[1], None), "sticky");
    bench.places(&[Some(2), Some(1), Some(0)]);
    assert_eq!(bench.at(20), said(Pick::One(1), &[1], None), "a new order");
    bench.places(&[Some(0), Some(1), Some(2)]);
    bench.states(&[Idle, Connecting, Idle]);
    assert_eq!(bench.at(5_000), said(Pick::Wait, &[0], 5_250));
}

#[test]
fn when_all_have_failed_calls_fail_and_all_are_tried_on() {
    let mut bench = Bench::new(PickFirst::default(), 2);
    bench.states(&[TransientFailure, TransientFailure]);
    assert_eq!(bench.at(0), said(Pick::Fail, &[0, 1], None));
    assert_eq!(bench.at(90_000), said(Pick::Fail, &[0, 1], None));
    bench.states(&[TransientFailure, Ready]);
    assert_eq!(bench.at(90_001), said(Pick::One(1), &[1], None));
    bench.members.clear();
    assert_eq!(bench.at(90_002), said(Pick::Fail, &[], None));
}

#[test]
fn a_new_list_begins_the_search_anew_and_who_has_left_serves_meanwhile() {
    let mut bench = Bench::new(PickFirst::default(), 4);
    bench.states(&[Ready, Idle, Idle, Idle]);
    bench.places(&[Some(0), None, None, None]);
    bench.members.truncate(1);
    assert_eq!(bench.at(0), said(Pick::One(0), &[0], None));
    let mut bench = Bench {
        members: Bench::new(PickFirst::default(), 4).members,
        ..bench
    };
    bench.states(&[Ready, Idle, Idle, Idle]);
    bench.places(&[None, Some(1), Some(2), Some(0)]);
    assert_eq!(bench.at(1_000), said(Pick::One(0), &[0, 3], 1_250));
    bench.states(&[Ready, Idle, Idle, Connecting]);
    assert_eq!(bench.at(1_250), said(Pick::One(0), &[0, 3, 1], 1_500));
    bench.places(&[None, Some(0), Some(2), Some(1)]);
    assert_eq!(bench.at(1_300), said(Pick::One(0), &[0, 1, 3], 1_550));
    bench.states(&[Ready, Idle, Idle, Ready]);
    assert_eq!(bench.at(1_400), said(Pick::One(3), &[3], None));
}

#[test]
fn a_list_in_another_order_calls_off_no_dial() {
    let mut bench = Bench::new(PickFirst::default(), 3);
    bench.at(0);
    assert_eq!(bench.at(250), said(Pick::Wait, &[0, 1], 500));
    bench.states(&[Connecting, Connecting, Idle]);
    bench.places(&[Some(1), Some(2), Some(0)]);
    assert_eq!(bench.at(300), said(Pick::Wait, &[2, 0, 1], 550));
    bench.states(&[Connecting, Connecting, Connecting]);
    assert_eq!(bench.at(310), said(Pick::Wait, &[2, 0, 1], 550));
    // Once more; and one that has failed waits for its turn.
    bench.places(&[Some(2), Some(1), Some(0)]);
    bench.states(&[Connecting, TransientFailure, Connecting]);
    assert_eq!(bench.at(320), said(Pick::Wait, &[2, 0], 570));
    // One that has left the list is called off.
    bench.places(&[None, Some(1), Some(0)]);
    assert_eq!(bench.at(330), said(Pick::Wait, &[2], 580));
}

#[test]
fn families_take_turns() {
    let addresses = ["10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1", "unix:/s"];
    let endpoint = |text: &&str| Endpoint::new(text.parse::<Address>().unwrap());
    let mut bench = Bench::of(PickFirst::default(), addresses.iter().map(endpoint));
    bench.at(0);
    bench.at(250);
    bench.at(500);
    assert_eq!(bench.at(750), said(Pick::Wait, &[0, 2, 3, 1], None));
}

/// misc.json: a113_weighted_shuffle.
#[test]
fn a_shuffle_puts_each_first_by_its_weight_and_is_kept() {
    let weights = [1, 2, 5];
    let mut firsts = [0u32; 3];
    for seed in 0..16_000 {
        let endpoint = |(slot, weight)| world::endpoint(slot).with_weight(weight).unwrap();
        let endpoints = weights.into_iter().enumerate().map(endpoint);
        let mut bench = Bench::of(PickFirst::shuffled(), endpoints);
        bench.rng = Rng::new(seed);
        let [first] = bench.at(0).connect[..] else {
            panic!("one at first");
        };
        firsts[first] += 1;
        bench.places(&[Some(2), Some(0), Some(1)]);
        assert_eq!(bench.at(1).connect, [first], "seed {seed}: its own order");
    }
    for (got, share) in firsts.into_iter().zip([0.125, 0.25, 0.625]) {
        let expected = share * 16_000.0;
        assert!((f64::from(got) - expected).abs() < 250.0, "{firsts:?}");
    }
}

#[test]
fn bad_staggers_name_value_and_range() {
    for millis in [0, 99, 2_001] {
        let stagger = Duration::from_millis(millis);
        let error = PickFirst::default().with_stagger(stagger).check();
        let text = error.unwrap_err().to_string();
        assert_eq!(
            text,
            format!("pick first: stagger {stagger:?} is not in 100ms..=2s")
        );
    }
    for millis in [100, 2_000] {
        let stagger = Duration::from_millis(millis);
        assert!(PickFirst::default().with_stagger(stagger).check().is_ok());
    }
}
