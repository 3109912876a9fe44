//! The policy of `examples/leader`: who gets the call while a leader comes and goes, at literal times.

#[path = "../../examples/leader/policy.rs"]
pub mod policy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use Connectivity::{Connecting, Idle, Ready, TransientFailure};
use equipoise::load::{Cells, Load, Scoring};
use equipoise::policy::{Connect, Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::Rng;
use equipoise::{Completion, Connectivity, Endpoint, EndpointId, Outcome, StatusCode, Timestamp};

use policy::LeaderFirst;

const LEADER: usize = 0;
const UNAVAILABLE: Outcome = Outcome::Answered(StatusCode::UNAVAILABLE);

/// A leader and two followers, by slot, under a hold-down of 500 ms.
struct Group {
    policy: LeaderFirst,
    members: Vec<Member>,
    picker: Arc<dyn Picker>,
    wake: Option<Timestamp>,
    rng: Rng,
}

impl Group {
    /// The followers are ready.
    fn with_leader(state: Connectivity) -> Self {
        let mut policy = LeaderFirst::with_hold_down(Duration::from_millis(500));
        let mut cells = Cells::new(Scoring::InFlight);
        let member = |(slot, state): (usize, Connectivity)| Member {
            id: EndpointId::new(slot as u32, 1),
            state,
            weight: 1,
            place: Some(slot),
            endpoint: Arc::new(Endpoint::from(SocketAddr::from((
                [10, 0, 0, 1],
                1 + slot as u16,
            )))),
            load: Arc::new(Load::new(cells.cell(slot))),
        };
        let members: Vec<Member> = [state, Ready, Ready]
            .into_iter()
            .enumerate()
            .map(member)
            .collect();
        assert_eq!(policy.scoring(), Scoring::InFlight);
        let mut rng = Rng::new(1);
        let decision = policy.update(&members, Timestamp::ZERO, &mut rng);
        assert_eq!(decision.connect, Connect::All);
        Self {
            policy,
            members,
            picker: decision.picker,
            wake: decision.wake,
            rng,
        }
    }

    fn ask(&mut self, millis: u64) {
        let now = Timestamp::from_millis(millis);
        let decision = self.policy.update(&self.members, now, &mut self.rng);
        (self.picker, self.wake) = (decision.picker, decision.wake);
    }

    fn turn(&mut self, slot: usize, state: Connectivity, millis: u64) {
        self.members[slot].state = state;
        self.ask(millis);
    }

    fn result(&mut self, millis: u64, avoid: &[usize]) -> PickResult {
        let avoid: Vec<EndpointId> = avoid.iter().map(|slot| self.members[*slot].id).collect();
        self.picker.pick(&PickInfo {
            now: Timestamp::from_millis(millis),
            random: self.rng.word(),
            path: "/a.B/C",
            hash: None,
            avoid: &avoid,
        })
    }

    fn pick(&mut self, millis: u64, avoid: &[usize]) -> usize {
        match self.result(millis, avoid) {
            PickResult::Pick(id) => id.slot(),
            other => panic!("picked nobody: {other:?}"),
        }
    }

    /// Who gets twelve calls at a time, by slot.
    fn shares(&mut self, millis: u64) -> [usize; 3] {
        let mut shares = [0; 3];
        for _ in 0..12 {
            let slot = self.pick(millis, &[]);
            self.members[slot].load.begin();
            shares[slot] += 1;
        }
        for (slot, calls) in shares.into_iter().enumerate() {
            (0..calls).for_each(|_| self.end(slot, Outcome::Cancelled, millis));
        }
        shares
    }

    fn end(&mut self, slot: usize, outcome: Outcome, millis: u64) {
        let completion = Completion {
            outcome,
            latency: Duration::from_millis(1),
        };
        let now = Timestamp::from_millis(millis);
        self.members[slot].load.end(&completion, now, now);
    }

    /// One call to a member, as it goes.
    fn call(&mut self, slot: usize, outcome: Outcome, millis: u64) {
        self.members[slot].load.begin();
        self.end(slot, outcome, millis);
    }
}

#[test]
fn a_leader_gets_all_and_the_followers_share_when_it_is_lost() {
    let mut group = Group::with_leader(Ready);
    assert_eq!(group.shares(1), [12, 0, 0]);
    assert_eq!(group.wake, None);
    for state in [Idle, Connecting, TransientFailure] {
        group.turn(LEADER, state, 2);
        assert_eq!(group.shares(3), [0, 6, 6], "fewest in flight, {state}");
    }
}

#[test]
fn a_leader_leads_as_soon_as_it_is_ready_for_the_first_time() {
    let mut group = Group::with_leader(Connecting);
    assert_eq!(group.shares(1), [0, 6, 6]);
    group.turn(LEADER, TransientFailure, 5);
    group.turn(LEADER, Ready, 10);
    assert_eq!((group.shares(10), group.wake), ([12, 0, 0], None));
}

#[test]
fn a_leader_that_is_back_waits_out_the_hold_down() {
    let mut group = Group::with_leader(Ready);
    group.turn(LEADER, TransientFailure, 1_000);
    group.turn(LEADER, Ready, 2_000);
    let due = Timestamp::from_millis(2_500);
    assert_eq!((group.shares(2_000), group.wake), ([0, 6, 6], Some(due)));
    // Other news does not make it longer, nor shorter.
    group.turn(1, TransientFailure, 2_300);
    assert_eq!((group.shares(2_499), group.wake), ([0, 0, 12], Some(due)));
    group.ask(2_500);
    assert_eq!((group.shares(2_500), group.wake), ([12, 0, 0], None));
}

#[test]
fn a_leader_that_flaps_never_leads() {
    let mut group = Group::with_leader(Ready);
    for round in 1..20 {
        group.turn(LEADER, TransientFailure, round * 1_000);
        assert_eq!((group.shares(round * 1_000), group.wake), ([0, 6, 6], None));
        group.turn(LEADER, Ready, round * 1_000 + 600);
        assert_eq!(group.shares(round * 1_000 + 600), [0, 6, 6]);
        let due = Timestamp::from_millis(round * 1_000 + 1_100);
        assert_eq!(group.wake, Some(due), "from the last time it came back");
    }
}

#[test]
fn one_that_is_held_down_is_better_than_nobody() {
    let mut group = Group::with_leader(Ready);
    group.turn(LEADER, TransientFailure, 1_000);
    group.turn(LEADER, Ready, 2_000);
    assert_eq!(
        group.pick(2_001, &[1, 2]),
        LEADER,
        "both followers are to be avoided"
    );
    group.turn(1, TransientFailure, 2_010);
    group.turn(2, Connecting, 2_010);
    assert_eq!(group.shares(2_020), [12, 0, 0]);
    group.turn(LEADER, TransientFailure, 2_030);
    assert_eq!(
        group.result(2_030, &[]),
        PickResult::Queue { connect: None }
    );
    group.turn(2, TransientFailure, 2_040);
    assert_eq!(group.result(2_040, &[]), PickResult::Fail);
}

#[test]
fn those_to_be_avoided_come_last() {
    let mut group = Group::with_leader(Ready);
    assert_eq!(group.pick(1, &[LEADER, 2]), 1);
    assert_eq!(group.pick(1, &[1, 2]), LEADER);
    let picks: Vec<usize> = (0..50).map(|_| group.pick(1, &[0, 1, 2])).collect();
    assert!(picks.iter().all(|slot| *slot < 3));
    group.turn(LEADER, TransientFailure, 2);
    assert_eq!(group.pick(3, &[1]), 2);
}

/// The penalty is that of every policy here: at the fifth fault in a row, with a trial call after 5 s.
#[test]
fn a_leader_that_only_fails_gets_trial_calls_alone() {
    let mut group = Group::with_leader(Ready);
    for _ in 0..5 {
        assert_eq!(group.pick(100, &[]), LEADER);
        group.call(LEADER, UNAVAILABLE, 100);
    }
    assert!(group.members[LEADER].load.penalised());
    assert_eq!(group.shares(101), [0, 6, 6]);
    assert_eq!(group.pick(5_100, &[]), LEADER, "its trial");
    assert_eq!(group.shares(5_101), [0, 6, 6], "no more than one");
    group.call(LEADER, Outcome::Answered(StatusCode::OK), 5_101);
    assert_eq!(group.shares(5_102), [12, 0, 0]);
}

#[test]
fn the_list_says_who_leads() {
    let mut group = Group::with_leader(Ready);
    // Slots do not change; places do.
    (group.members[LEADER].place, group.members[2].place) = (Some(2), Some(0));
    group.ask(10);
    assert_eq!(group.shares(10), [0, 0, 12], "it was ready before");
    group.turn(2, TransientFailure, 20);
    assert_eq!(group.shares(20), [6, 6, 0], "who led before is a follower");
    // Nobody in the list is ready: those who have left it serve on.
    group.members[LEADER].place = None;
    group.turn(1, Connecting, 30);
    assert_eq!(group.shares(30), [12, 0, 0]);
}
