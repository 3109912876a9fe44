//! The line of waiting calls: nobody sleeps on while there is something for it.
//!
//! The timer by which a call looks anyway is left out: with it no wake-up could be missed for long, and a lost one
//! would not be seen.

use std::future::poll_fn;
use std::sync::Arc;

use loom::future::block_on;
use loom::thread;

use crate::slots::{Slot, Slots};
use crate::sync::{AtomicUsize, Ordering};
use crate::waiters::{Need, Told, Waiters};
use crate::{INTERRUPTIONS, Model};

pub const MODELS: &[Model] = &[
    ("a_slot_that_comes_free", None, a_slot_that_comes_free),
    ("a_limit_that_rises", None, a_limit_that_rises),
    ("a_snapshot", None, a_snapshot),
    (
        "a_snapshot_and_then_a_slot",
        Some(INTERRUPTIONS),
        a_snapshot_and_then_a_slot,
    ),
    (
        "two_calls_and_one_slot",
        Some(INTERRUPTIONS),
        two_calls_and_one_slot,
    ),
    (
        "a_snapshot_with_room_for_one",
        Some(INTERRUPTIONS),
        a_snapshot_with_room_for_one,
    ),
    ("one_that_gives_up", Some(INTERRUPTIONS), one_that_gives_up),
    (
        "a_slot_told_to_nobody",
        Some(INTERRUPTIONS),
        a_slot_told_to_nobody,
    ),
    (
        "a_slot_for_the_one_behind",
        Some(INTERRUPTIONS),
        a_slot_for_the_one_behind,
    ),
];

/// A channel with one endpoint that has one connection.
#[derive(Clone)]
struct World {
    waiters: Arc<Waiters>,
    slots: Arc<Slots>,
    /// Whether the endpoint is in the published snapshot.
    published: Arc<AtomicUsize>,
}

impl World {
    fn new(limit: u32, published: bool) -> Self {
        let world = Self {
            waiters: Waiters::new(10),
            slots: Slots::new(limit),
            published: Arc::new(AtomicUsize::new(published.into())),
        };
        world.listen();
        world
    }

    /// The same channel, as seen by calls for another endpoint.
    fn beside(&self, limit: u32) -> Self {
        let world = Self {
            slots: Slots::new(limit),
            ..self.clone()
        };
        world.listen();
        world
    }

    fn listen(&self) {
        let told = self.waiters.clone();
        self.slots.on_freed(move |slots| told.room(slots));
    }

    fn publish(&self) {
        // Relaxed, which is less than the real snapshot has: what makes it seen are the fences.
        self.published.store(1, Ordering::Relaxed);
        self.waiters.published(self.slots.room());
    }

    fn look(&self) -> Result<Slot, Need> {
        match self.published.load(Ordering::Relaxed) {
            0 => Err(Need::State),
            _ => self.slots.try_reserve().ok_or(Need::Room),
        }
    }

    /// What `channel/call.rs` does, without the deadline and without the timer.
    fn call(&self) -> Slot {
        let need = match self.waiters.anyone_for_room() {
            true => Need::Room,
            false => match self.look() {
                Ok(slot) => return slot,
                Err(need) => need,
            },
        };
        let ticket = self.waiters.join(need).expect("room in the line");
        let mut turn = ticket.may_look().then_some(Told::NOTHING);
        let mut blocker = None;
        loop {
            if let Some(told) = turn {
                match self.look() {
                    Ok(slot) => {
                        ticket.served();
                        return slot;
                    }
                    Err(need) => {
                        if ticket.stay(need, told) {
                            turn = Some(Told::NOTHING);
                            continue;
                        }
                    }
                }
            }
            block_on(poll_fn(|cx| ticket.poll_news(cx)));
            turn = ticket.take_turn(&mut blocker);
        }
    }

    /// One whose caller loses patience while it waits.
    fn impatient(&self) {
        if self.waiters.anyone_for_room() {
            return;
        }
        let Err(need) = self.look() else {
            return;
        };
        let ticket = self.waiters.join(need).expect("room in the line");
        if ticket.may_look() {
            match self.look() {
                Ok(_) => return ticket.served(),
                Err(need) => drop(ticket.stay(need, Told::NOTHING)),
            }
        }
    }

    fn spawn(&self, act: fn(&Self)) -> thread::JoinHandle<()> {
        let world = self.clone();
        thread::spawn(move || act(&world))
    }

    /// Nobody waits and nobody is counted.
    fn is_at_rest(&self) {
        assert_eq!((self.slots.open(), self.waiters.len()), (0, 0));
        assert!(!self.waiters.anyone_for_room());
    }
}

fn a_slot_that_comes_free() {
    let world = World::new(1, true);
    let slot = world.slots.try_reserve();
    let waiting = world.spawn(|world| drop(world.call()));
    drop(slot);
    waiting.join().unwrap();
    world.is_at_rest();
}

fn a_limit_that_rises() {
    let world = World::new(0, true);
    let waiting = world.spawn(|world| drop(world.call()));
    world.slots.set_limit(1);
    waiting.join().unwrap();
    world.is_at_rest();
}

fn a_snapshot() {
    let world = World::new(1, false);
    let waiting = world.spawn(|world| drop(world.call()));
    world.publish();
    waiting.join().unwrap();
    world.is_at_rest();
}

/// Two look one after another, whoever came first, and the second hears of the slot.
fn a_snapshot_with_room_for_one() {
    let world = World::new(1, false);
    let waiting = [
        world.spawn(|world| drop(world.call())),
        world.spawn(|world| drop(world.call())),
    ];
    world.publish();
    waiting.into_iter().for_each(|call| call.join().unwrap());
    world.is_at_rest();
}

/// The call waits for a snapshot first and for room afterwards, and the slot may come free in between.
fn a_snapshot_and_then_a_slot() {
    let world = World::new(1, false);
    let slot = world.slots.try_reserve();
    let waiting = world.spawn(|world| drop(world.call()));
    let publishing = world.spawn(World::publish);
    drop(slot);
    waiting.join().unwrap();
    publishing.join().unwrap();
    world.is_at_rest();
}

/// Each gives the slot back, which is all the other may ever hear.
fn two_calls_and_one_slot() {
    let world = World::new(1, true);
    let slot = world.slots.try_reserve();
    let waiting = [
        world.spawn(|world| drop(world.call())),
        world.spawn(|world| drop(world.call())),
    ];
    drop(slot);
    waiting.into_iter().for_each(|call| call.join().unwrap());
    world.is_at_rest();
}

/// Both come free while only one call waits for them, and whoever gets the first keeps it: the other slot was told to
/// nobody, and is for the call that held back.
fn a_slot_told_to_nobody() {
    let world = World::new(2, true);
    let slots = [world.slots.try_reserve(), world.slots.try_reserve()];
    let waiting = [0, 1].map(|_| {
        let world = world.clone();
        thread::spawn(move || world.call())
    });
    drop(slots);
    let taken = waiting.map(|call| call.join().unwrap());
    assert_eq!(world.slots.open(), 2);
    drop(taken);
    world.is_at_rest();
}

/// The first in the line waits for another endpoint than the one that has room, and must hand that on.
fn a_slot_for_the_one_behind() {
    let first = World::new(1, true);
    let second = first.beside(1);
    let kept = first.slots.try_reserve();
    let freed = second.slots.try_reserve();
    let waiting = first.spawn(|world| drop(world.call()));
    let behind = {
        let second = second.clone();
        thread::spawn(move || {
            drop(second.call());
            drop(kept);
        })
    };
    drop(freed);
    waiting.join().unwrap();
    behind.join().unwrap();
    first.is_at_rest();
    second.is_at_rest();
}

/// What it was told, or would have been, is for the one behind it.
fn one_that_gives_up() {
    let world = World::new(1, true);
    let slot = world.slots.try_reserve();
    let leaving = world.spawn(World::impatient);
    let waiting = world.spawn(|world| drop(world.call()));
    drop(slot);
    leaving.join().unwrap();
    waiting.join().unwrap();
    world.is_at_rest();
}
