//! The slots of a connection: never more calls than the limit, every slot comes back, and whoever waits is told.

use std::sync::Arc;

use loom::thread;

use crate::slots::Slots;
use crate::sync::{AtomicUsize, Ordering};
use crate::{INTERRUPTIONS, Model};

pub const MODELS: &[Model] = &[
    ("never_more_than_the_limit", None, never_more_than_the_limit),
    (
        "every_slot_is_told_once",
        Some(INTERRUPTIONS),
        every_slot_is_told_once,
    ),
    (
        "closed_is_for_good",
        Some(INTERRUPTIONS),
        closed_is_for_good,
    ),
    ("a_limit_that_falls", None, a_limit_that_falls),
];

/// Counts who holds a slot of those at once, by other means than the slots' own.
#[derive(Default)]
struct Holders(AtomicUsize);

impl Holders {
    fn try_one(&self, slots: &Arc<Slots>, limit: usize) -> bool {
        let Some(slot) = slots.try_reserve() else {
            return false;
        };
        let others = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(others < limit, "{} calls in {limit} slots", others + 1);
        self.0.fetch_sub(1, Ordering::Relaxed);
        drop(slot);
        true
    }
}

fn never_more_than_the_limit() {
    let slots = Slots::new(1);
    let holders = Arc::new(Holders::default());
    let others: Vec<_> = (0..2)
        .map(|_| {
            let (slots, holders) = (slots.clone(), holders.clone());
            thread::spawn(move || holders.try_one(&slots, 1))
        })
        .collect();
    let ours = holders.try_one(&slots, 1);
    let theirs: Vec<bool> = others.into_iter().map(|o| o.join().unwrap()).collect();
    assert!(ours || theirs.contains(&true), "somebody gets it");
    assert_eq!((slots.open(), slots.limit()), (0, 1));
}

fn every_slot_is_told_once() {
    let slots = Slots::new(2);
    let told = Arc::new(AtomicUsize::new(0));
    let listener = told.clone();
    slots.on_freed(move |slots| {
        listener.fetch_add(slots, Ordering::Relaxed);
    });
    let took: Vec<_> = (0..2)
        .map(|_| {
            let slots = slots.clone();
            thread::spawn(move || usize::from(slots.try_reserve().is_some()))
        })
        .collect();
    slots.set_limit(1);
    let took: usize = took.into_iter().map(|took| took.join().unwrap()).sum();
    assert!(took >= 1);
    assert_eq!((slots.open(), told.load(Ordering::Relaxed)), (0, took));
}

fn closed_is_for_good() {
    let slots = Slots::new(1);
    let calling = {
        let slots = slots.clone();
        thread::spawn(move || drop(slots.try_reserve()))
    };
    // The server raises its limit and goes away; the order in which we hear of it is nobody's.
    let raising = {
        let slots = slots.clone();
        thread::spawn(move || slots.set_limit(5))
    };
    slots.close();
    assert!(slots.try_reserve().is_none() && !slots.is_open());
    calling.join().unwrap();
    raising.join().unwrap();
    assert!(slots.try_reserve().is_none() && !slots.is_open());
    assert_eq!((slots.open(), slots.limit()), (0, 0));
}

fn a_limit_that_falls() {
    let slots = Slots::new(2);
    let kept = slots.try_reserve();
    let calling = {
        let slots = slots.clone();
        thread::spawn(move || slots.try_reserve())
    };
    slots.set_limit(1);
    // Whoever asks from now on finds one open at least, and a limit of one.
    assert!(slots.try_reserve().is_none());
    let second = calling.join().unwrap();
    assert_eq!(slots.open(), 1 + u32::from(second.is_some()));
    drop(kept);
    assert_eq!(slots.try_reserve().is_some(), second.is_none());
    drop(second);
    assert_eq!((slots.open(), slots.limit()), (0, 1));
}
