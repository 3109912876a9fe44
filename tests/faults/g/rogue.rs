//! G20: a policy of the user's own that panics, or names nobody's endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use equipoise::policy::{
    Connect, Decision, Member, PickInfo, PickResult, Picker, Policy, RoundRobin,
};
use equipoise::rng::Rng;
use equipoise::{Channel, Endpoint, EndpointId, Timestamp};
use tonic::Code;

use super::{SAY_HELLO, load};
use crate::balanced::{clean, ready, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::ledger::{Verdict, audit};
use crate::rig::load::Load;
use crate::{Fleet, reference};

/// How it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Sound,
    PanicsInPick,
    PanicsInUpdate,
    NamesNobody,
}

/// Takes turns, when it is sound.
#[derive(Clone, Debug, Default)]
struct Rogue {
    mood: Arc<AtomicU8>,
    turns: RoundRobin,
}

impl Rogue {
    fn is(&self, mood: Mood) -> bool {
        self.mood.load(Ordering::Relaxed) == mood as u8
    }

    fn tell(&self, mood: Mood) {
        // A flag on its own: nothing else is read in its order.
        self.mood.store(mood as u8, Ordering::Relaxed);
    }
}

impl Policy for Rogue {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        assert!(!self.is(Mood::PanicsInUpdate), "as it was told to");
        let mut decision = self.turns.update(members, now, rng);
        decision.picker = Arc::new(RoguePicker(self.clone(), decision.picker));
        decision.connect = Connect::All;
        decision
    }
}

#[derive(Debug)]
struct RoguePicker(Rogue, Arc<dyn Picker>);

impl Picker for RoguePicker {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        assert!(!self.0.is(Mood::PanicsInPick), "as it was told to");
        match self.0.is(Mood::NamesNobody) {
            true => PickResult::Pick(EndpointId::new(1_000, 7)),
            false => self.1.pick(info),
        }
    }
}

/// Three servers of 1 ms, of which the last is not in the list yet.
async fn start() -> (Footprint, Fleet, Rogue, Channel) {
    let before = Footprint::take();
    let (fleet, rogue) = (Fleet::start(Duration::from_millis(1)), Rogue::default());
    let builder = reference(&fleet.addresses()[..2]).policy(rogue.clone());
    let channel = ready(builder).await;
    (before, fleet, rogue, channel)
}

/// A hundred calls after `first`.
async fn hundred(channel: &Channel, fleet: &Fleet, first: u64) -> Verdict {
    let load = Load {
        first,
        deadline: Duration::from_millis(300),
        ..load(100)
    };
    let calls = load.run(channel).await;
    let mut executions = fleet.ledger.executions();
    executions.retain(|e| e.id >= first);
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_true();
    verdict
}

/// A picker that panics: its calls end INTERNAL, and the next one after it is well.
#[test]
fn g20_a_picker_that_panics_fails_its_calls() {
    alone(async {
        let (before, fleet, rogue, channel) = start().await;
        rogue.tell(Mood::PanicsInPick);
        let verdict = hundred(&channel, &fleet, 1).await;
        assert_eq!(verdict.code(Code::Internal), 100, "{verdict}");
        assert_eq!(verdict.executed, [100, 0, 0], "{verdict}");
        let told = verdict.messages.values().next().cloned();
        assert!(
            told.is_some_and(|text| text.contains("panicked")),
            "{verdict}"
        );
        rogue.tell(Mood::Sound);
        hundred(&channel, &fleet, 1_001).await.assert_unnoticed();
        clean(channel, fleet, &before).await;
    });
}

/// A policy that panics when the list changes: its last picker serves on, and it is asked again without another change.
#[test]
fn g20_a_policy_that_panics_is_asked_again() {
    alone(async {
        let (before, fleet, rogue, channel) = start().await;
        rogue.tell(Mood::PanicsInUpdate);
        let all = fleet.addresses().into_iter().map(Endpoint::from);
        channel
            .set_endpoints(all)
            .expect("the list is in our hands");
        until("the third is ready", || {
            channel.endpoints().len() == 3 && crate::balanced::all_ready(&channel)
        })
        .await;
        let verdict = hundred(&channel, &fleet, 1).await;
        verdict.assert_unnoticed();
        assert_eq!(verdict.server("b3"), 0, "nobody told of it: {verdict}");
        rogue.tell(Mood::Sound);
        let running = Load {
            first: 1_001,
            rate: 200,
            ..load(0)
        };
        let running = running.run_until_stopped(&channel);
        until("the third has calls", || {
            crate::status(&channel, fleet.addresses()[2]).picks > 0
        })
        .await;
        assert_eq!(crate::failed_from(&running.stop().await, 0), 0);
        // One that panics at once takes nobody's place.
        let other = Rogue::default();
        other.tell(Mood::PanicsInUpdate);
        channel.set_policy(other).expect("nobody knows yet");
        hundred(&channel, &fleet, 2_000_001)
            .await
            .assert_unnoticed();
        clean(channel, fleet, &before).await;
    });
}

/// A picker that names somebody who is not in the list: calls wait for a better one, to their deadline at the most.
#[test]
fn g20_a_picker_that_names_nobody_lets_calls_wait() {
    alone(async {
        let (before, fleet, rogue, channel) = start().await;
        rogue.tell(Mood::NamesNobody);
        let verdict = hundred(&channel, &fleet, 1).await;
        assert_eq!(verdict.code(Code::DeadlineExceeded), 100, "{verdict}");
        assert_eq!(verdict.executed, [100, 0, 0], "{verdict}");
        // And those that still wait when it is sound again are served.
        let waiting = Load {
            first: 1_001,
            ..load(100)
        };
        let sound = async {
            until("they wait", || channel.waiting() > 0).await;
            rogue.tell(Mood::Sound);
        };
        let (calls, ()) = tokio::join!(waiting.run(&channel), sound);
        assert_eq!(crate::failed_from(&calls, 0), 0);
        clean(channel, fleet, &before).await;
    });
}

/// The control: unguarded, the caller's own task ends with the picker.
#[test]
fn g20_control_unguarded_a_panic_ends_the_callers_task() {
    alone(async {
        let rogue = Rogue::default();
        rogue.tell(Mood::PanicsInPick);
        let mut policy = rogue.clone();
        let decision = policy.update(&[], Timestamp::ZERO, &mut Rng::new(1));
        let caller = tokio::spawn(async move {
            let info = PickInfo {
                now: Timestamp::ZERO,
                random: 1,
                path: SAY_HELLO,
                hash: None,
                avoid: &[],
            };
            decision.picker.pick(&info)
        });
        assert!(caller.await.is_err_and(|ended| ended.is_panic()));
    });
}
