//! The line of calls that wait for an endpoint: first come, first served, bounded.
//!
//! A call joins, looks, and only then sleeps. A new snapshot is told to everybody at once where there is room for all of
//! them or for none; else they look one after another, since the first to look is the first to be served. A slot that
//! came free is told to the first that waits for room; if that one cannot use it, it hands the news on to the next,
//! and so on to the end of the line. Who comes later does not look while news is on its way to somebody before
//! it, or it would take what was meant for that one.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, fence};

/// What a call in the line waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A new snapshot: nobody it may go to is ready.
    State,
    /// Room: everybody it may go to is full.
    Room,
}

/// What a call in the line was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Nothing,
    /// A slot came free.
    Freed,
    /// A new snapshot was published.
    Published,
    /// It held back for somebody before it, and that one is done.
    Turn,
}

#[derive(Debug)]
struct Entry {
    need: Need,
    news: News,
    /// Has it looked at what there is?
    look: Look,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Not since it joined, or since a snapshot with room for some was published: it looks when its turn comes.
    Never,
    /// It is looking.
    Now,
    /// It has, and found nothing.
    Done,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    for_room: usize,
    /// Whether any may hold back for somebody before it.
    held_back: bool,
    entries: BTreeMap<u64, Entry>,
}

/// The line.
#[derive(Debug)]
pub(super) struct Waiters {
    limit: usize,
    // How many wait at all, and how many of them for room: read without the lock.
    waiting: AtomicUsize,
    for_room: AtomicUsize,
    line: Mutex<Line>,
}

/// The line has as many calls as it may hold.
#[derive(Debug)]
pub(super) struct Full;

impl Waiters {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            waiting: AtomicUsize::new(0),
            for_room: AtomicUsize::new(0),
            line: Mutex::default(),
        })
    }

    /// Calls in the line.
    pub(super) fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for room: a newcomer then joins the line instead of looking first.
    pub(super) fn anyone_for_room(&self) -> bool {
        self.for_room.load(Ordering::Relaxed) > 0
    }

    /// Joins the end of the line. The caller must look, when it [may](Ticket::may_look), before it sleeps.
    pub(super) fn join(self: &Arc<Self>, need: Need) -> Result<Ticket, Full> {
        let mut line = self.line();
        if line.entries.len() >= self.limit {
            return Err(Full);
        }
        let id = line.next;
        line.next += 1;
        line.for_room += usize::from(need == Need::Room);
        let entry = Entry {
            need,
            news: News::Nothing,
            look: Look::Never,
            waker: None,
        };
        line.entries.insert(id, entry);
        self.publish_counts(&line);
        drop(line);
        // Pairs with the fences in `freed` and `published`: either they see this call in the line, or
        // this call's next look sees what they changed.
        fence(Ordering::SeqCst);
        Ok(Ticket {
            waiters: self.clone(),
            id,
        })
    }

    /// A slot came free: the first call that waits for room and knows of none is told.
    pub(super) fn freed(&self) {
        // Pairs with the fence in `join`.
        fence(Ordering::SeqCst);
        if self.for_room.load(Ordering::Relaxed) == 0 {
            return;
        }
        let waker = self.line().tell_freed(None);
        wake(waker);
    }

    /// Room for `slots` more calls: as many of those that wait for it are told, in order.
    pub(super) fn room(&self, slots: usize) {
        if slots == 1 {
            return self.freed();
        }
        // Pairs with the fence in `join`.
        fence(Ordering::SeqCst);
        if self.for_room.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut line = self.line();
        let entries = line.entries.values_mut();
        let untold = entries.filter(|e| e.need == Need::Room && e.news == News::Nothing);
        let told = untold.take(slots).map(|entry| {
            entry.news = News::Freed;
            entry.waker.take()
        });
        let wakers: Vec<Option<Waker>> = told.collect();
        drop(line);
        wakers.into_iter().for_each(wake);
    }

    /// A new snapshot was published, in which there is `room` for so many calls. Where that is too little for all of
    /// those who wait the first look first, else all look at once.
    pub(super) fn published(&self, room: usize) {
        // Pairs with the fence in `join`.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut line = self.line();
        // While some still wait for their turn from the last time it would begin anew, and those at the end of the line
        // might never have one.
        let in_turn = room > 0 && room < line.entries.len() && !line.held_back;
        let entries = line.entries.values_mut();
        let told = entries.filter_map(|entry| {
            if in_turn && entry.look != Look::Now {
                entry.news = News::Nothing;
                entry.look = Look::Never;
                return None;
            }
            // Who is looking may be looking at the last one.
            entry.news = News::Published;
            entry.waker.take()
        });
        let mut wakers: Vec<Waker> = told.collect();
        if in_turn {
            line.held_back = true;
            wakers.extend(line.tell_held_back());
        }
        drop(line);
        for waker in wakers {
            waker.wake();
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing that can panic runs under the lock.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_counts(&self, line: &Line) {
        // Relaxed: ordered by the fences in `join`, `stay`, `freed` and `published`.
        self.waiting.store(line.entries.len(), Ordering::Relaxed);
        self.for_room.store(line.for_room, Ordering::Relaxed);
    }
}

impl Line {
    /// Tells the first call behind `after` that waits for room and has no news yet.
    fn tell_freed(&mut self, after: Option<u64>) -> Option<Waker> {
        let from = after.map_or(Unbounded, Excluded);
        let mut entries = self.entries.range_mut((from, Unbounded));
        let (_, entry) = entries.find(|(_, e)| e.need == Need::Room && e.news == News::Nothing)?;
        entry.news = News::Freed;
        entry.waker.take()
    }

    /// Lets the first call look that held back for somebody before it.
    fn tell_held_back(&mut self) -> Option<Waker> {
        if !self.held_back {
            return None;
        }
        let mut entries = self.entries.values_mut();
        let next = entries.find(|e| e.look == Look::Never && e.news == News::Nothing);
        let Some(entry) = next else {
            self.held_back = false;
            return None;
        };
        entry.news = News::Turn;
        entry.waker.take()
    }

    /// Whether the call may look without taking what was meant for one before it: all those have looked, and know of
    /// nothing new.
    fn is_turn_of(&self, id: u64) -> bool {
        let mut before = self.entries.range(..id);
        before.all(|(_, e)| e.news == News::Nothing && e.look == Look::Done)
    }

    /// The first call before this one that was told something and has not come for it.
    fn blocker(&self, id: u64) -> Option<u64> {
        let mut before = self.entries.range(..id);
        before
            .find(|(_, e)| e.news != News::Nothing)
            .map(|(&id, _)| id)
    }

    /// What the end of a look, or of a place in the line, has to hand on: a slot goes to the next that waits for room.
    fn hand_on(&mut self, id: u64, news: News) -> Option<Waker> {
        let told = match news {
            News::Freed => self.tell_freed(Some(id)),
            News::Published | News::Turn | News::Nothing => None,
        };
        told.or_else(|| self.tell_held_back())
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A place in the line; left by dropping it.
#[derive(Debug)]
pub(super) struct Ticket {
    waiters: Arc<Waiters>,
    id: u64,
}

impl Ticket {
    /// Whether this call, having just joined, may look: nothing is on its way to anybody before it. Else it is told when
    /// its turn has come.
    pub(super) fn may_look(&self) -> bool {
        let mut line = self.waiters.line();
        let may = line.is_turn_of(self.id);
        line.held_back |= !may;
        if let Some(entry) = line.entries.get_mut(&self.id)
            && may
        {
            entry.look = Look::Now;
        }
        may
    }

    /// Sleeps until there is news. On waking the caller [takes its turn](Self::take_turn), looks, and then either leaves
    /// (by [`served`](Self::served) or by dropping the ticket) or calls [`stay`](Self::stay).
    pub(super) fn poll_news(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut line = self.waiters.line();
        let Some(entry) = line.entries.get_mut(&self.id) else {
            return Poll::Ready(());
        };
        if entry.news != News::Nothing {
            return Poll::Ready(());
        }
        entry.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes the news, if there are any, and says whether to look now. What comes after this is news again.
    ///
    /// Who was told nothing looks only when nobody before it was told something, or `blocker`, whom it found at the
    /// last time, still has not come for it.
    pub(super) fn take_turn(&self, blocker: &mut Option<u64>) -> Option<Told> {
        let mut line = self.waiters.line();
        let entry = line.entries.get_mut(&self.id)?;
        let news = std::mem::replace(&mut entry.news, News::Nothing);
        let may_look = match news {
            News::Freed | News::Published => true,
            News::Turn => line.is_turn_of(self.id),
            News::Nothing => {
                let ahead = line.blocker(self.id);
                let before = std::mem::replace(blocker, ahead);
                ahead.is_none() || ahead == before
            }
        };
        if news != News::Nothing {
            *blocker = None;
        }
        if may_look {
            line.entries.get_mut(&self.id)?.look = Look::Now;
            return Some(Told(news));
        }
        // Whoever it holds back for tells the first of those who do.
        line.held_back = true;
        None
    }

    /// Stays in the line after a look that found nothing, and hands a free slot on to the next.
    ///
    /// Answers whether the caller must look once more before it sleeps: a slot that came free before it was
    /// known to wait for room was not told to it.
    pub(super) fn stay(&self, need: Need, told: Told) -> bool {
        let mut line = self.waiters.line();
        let mut before = need;
        if let Some(entry) = line.entries.get_mut(&self.id) {
            before = std::mem::replace(&mut entry.need, need);
        }
        let look_again = before == Need::State && need == Need::Room;
        if let Some(entry) = line.entries.get_mut(&self.id) {
            entry.look = if look_again { Look::Now } else { Look::Done };
        }
        match (before, need) {
            (Need::State, Need::Room) => line.for_room += 1,
            (Need::Room, Need::State) => line.for_room -= 1,
            _ => {}
        }
        self.waiters.publish_counts(&line);
        let waker = match look_again {
            true => None,
            false => line.hand_on(self.id, told.0),
        };
        drop(line);
        wake(waker);
        if look_again {
            // Pairs with the fence in `freed`, as in `join`.
            fence(Ordering::SeqCst);
        }
        look_again
    }

    /// Leaves the line served, the slot it was told of used.
    pub(super) fn served(self) {
        // Dropping the ticket lets the next one look if it held back for this one.
    }

    /// Leaves the line for another reason: what it was told is for the next.
    pub(super) fn given_up(self, told: Told) {
        let mut line = self.waiters.line();
        if let Some(entry) = line.entries.get_mut(&self.id)
            && entry.news == News::Nothing
        {
            entry.news = told.0;
        }
        drop(line);
        // Dropping the ticket hands it on.
    }
}

/// What a waking call was told; handed back when it has looked.
#[derive(Debug)]
pub(super) struct Told(News);

impl Told {
    /// Not told anything: the look right after joining.
    pub(super) const NOTHING: Self = Self(News::Nothing);
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut line = self.waiters.line();
        let Some(entry) = line.entries.remove(&self.id) else {
            return;
        };
        line.for_room -= usize::from(entry.need == Need::Room);
        self.waiters.publish_counts(&line);
        // News that this call will not use, having left, must not be lost with it. A snapshot was told to
        // everybody by itself.
        let waker = line.hand_on(self.id, entry.news);
        drop(line);
        wake(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A waiting call: its ticket, and how often it was woken.
    struct Call {
        ticket: Ticket,
        woken: Arc<Woken>,
    }

    impl Call {
        fn joined(waiters: &Arc<Waiters>, need: Need) -> Self {
            Self {
                ticket: waiters.join(need).expect("room in the line"),
                woken: Arc::default(),
            }
        }

        /// One that has looked, found nothing and sleeps.
        fn asleep(waiters: &Arc<Waiters>, need: Need) -> Self {
            let call = Self::joined(waiters, need);
            assert!(call.ticket.may_look());
            call.ticket.stay(need, Told::NOTHING);
            assert!(call.sleep());
            call
        }

        fn sleep(&self) -> bool {
            let waker = Waker::from(self.woken.clone());
            self.ticket
                .poll_news(&mut Context::from_waker(&waker))
                .is_pending()
        }

        fn times(&self) -> u32 {
            self.woken.0.load(Ordering::Relaxed)
        }
    }

    /// It looks.
    fn looking(call: &Call) -> Told {
        let told = call.ticket.take_turn(&mut None);
        told.expect("nobody before it is told of anything")
    }

    fn times(calls: &[&Call]) -> Vec<u32> {
        calls.iter().map(|c| c.times()).collect()
    }

    #[test]
    fn a_free_slot_goes_to_the_first_that_waits_for_room_and_stops_there() {
        let waiters = Waiters::new(10);
        let state = Call::asleep(&waiters, Need::State);
        let a = Call::asleep(&waiters, Need::Room);
        let b = Call::asleep(&waiters, Need::Room);
        waiters.freed();
        assert_eq!(times(&[&state, &a, &b]), [0, 1, 0]);
        looking(&a);
        a.ticket.served();
        assert_eq!(times(&[&state, &b]), [0, 0], "the slot is used");
    }

    /// A call that waits for one certain endpoint must not keep a slot of another from those behind it.
    #[test]
    fn a_slot_that_one_cannot_use_is_handed_on() {
        let waiters = Waiters::new(10);
        let calls: Vec<Call> = (0..3).map(|_| Call::asleep(&waiters, Need::Room)).collect();
        waiters.freed();
        for (turn, call) in calls.iter().enumerate() {
            let expected: Vec<u32> = (0..3).map(|i| u32::from(i <= turn)).collect();
            let woken: Vec<u32> = calls.iter().map(Call::times).collect();
            assert_eq!(woken, expected, "turn {turn}");
            let told = looking(call);
            assert!(!call.ticket.stay(Need::Room, told));
        }
    }

    #[test]
    fn two_slots_are_told_to_two_calls() {
        let waiters = Waiters::new(10);
        let a = Call::asleep(&waiters, Need::Room);
        let b = Call::asleep(&waiters, Need::Room);
        waiters.freed();
        waiters.freed();
        // Also when the owner of the first never comes back to it.
        assert_eq!(times(&[&a, &b]), [1, 1]);
    }

    #[test]
    fn several_slots_are_told_to_the_first_so_many_that_wait_for_room() {
        let waiters = Waiters::new(10);
        let state = Call::asleep(&waiters, Need::State);
        let calls: Vec<Call> = (0..4).map(|_| Call::asleep(&waiters, Need::Room)).collect();
        waiters.freed();
        waiters.room(2);
        let woken: Vec<u32> = calls.iter().map(Call::times).collect();
        assert_eq!(woken, [1, 1, 1, 0], "the first knew already");
        waiters.room(usize::MAX);
        assert_eq!(calls[3].times() + state.times(), 1);
    }

    #[test]
    fn a_snapshot_is_told_to_everybody() {
        let waiters = Waiters::new(10);
        let calls = [Need::State, Need::Room, Need::State].map(|n| Call::asleep(&waiters, n));
        waiters.published(3);
        assert!(calls.iter().all(|call| call.times() == 1));
    }

    /// Else those who are woken first, by whatever order, would pass the others.
    #[test]
    fn where_a_snapshot_has_little_room_the_first_look_first() {
        let waiters = Waiters::new(10);
        let mut calls: Vec<Call> = (0..4)
            .map(|_| Call::asleep(&waiters, Need::State))
            .collect();
        let first = calls.remove(0);
        waiters.published(1);
        assert_eq!(
            (first.times(), times(&calls.iter().collect::<Vec<_>>())),
            (1, vec![0, 0, 0])
        );
        // The first has no use for it, turns to room, and looks once more.
        let told = first.ticket.take_turn(&mut None).expect("its turn");
        assert!(first.ticket.stay(Need::Room, told));
        assert_eq!(calls[0].times(), 0, "it is looking");
        assert!(!first.ticket.stay(Need::Room, Told::NOTHING));
        assert_eq!(calls[0].times(), 1);
        // One who comes now waits for its turn, too; and the next, whose caller has left, hands it on.
        let newcomer = Call::joined(&waiters, Need::State);
        assert!(!newcomer.ticket.may_look());
        drop(calls.remove(0));
        assert_eq!(times(&[&calls[0], &calls[1], &newcomer]), [1, 0, 0]);
        // Another snapshot meanwhile: whoever it is that never comes to its turn, nobody waits for it for ever.
        waiters.published(1);
        assert_eq!(times(&[&first, &calls[1]]), [1, 1]);
        assert!(newcomer.ticket.take_turn(&mut None).is_some());
    }

    #[test]
    fn a_turn_that_comes_too_early_comes_again() {
        let waiters = Waiters::new(10);
        let a = Call::asleep(&waiters, Need::Room);
        let b = Call::asleep(&waiters, Need::State);
        waiters.published(1);
        let told = a.ticket.take_turn(&mut None).expect("its turn");
        assert!(!a.ticket.stay(Need::Room, told));
        // A slot for the first, before the second has looked.
        waiters.freed();
        assert!(
            b.ticket.take_turn(&mut None).is_none(),
            "not before the first"
        );
        assert!(b.sleep());
        assert!(a.ticket.take_turn(&mut None).is_some());
        a.ticket.served();
        assert_eq!(b.times(), 2);
        assert!(b.ticket.take_turn(&mut None).is_some());
    }

    #[test]
    fn news_of_a_call_that_leaves_goes_to_the_next() {
        let waiters = Waiters::new(10);
        let a = Call::asleep(&waiters, Need::Room);
        let b = Call::asleep(&waiters, Need::Room);
        waiters.freed();
        drop(a.ticket);
        assert_eq!(b.times(), 1);
    }

    #[test]
    fn news_during_a_look_is_not_lost() {
        let waiters = Waiters::new(10);
        let a = Call::asleep(&waiters, Need::Room);
        waiters.freed();
        let told = looking(&a);
        waiters.freed();
        assert!(!a.ticket.stay(Need::Room, told));
        assert!(!a.sleep(), "the second slot is news");
    }

    #[test]
    fn turning_to_room_means_one_more_look() {
        let waiters = Waiters::new(10);
        let a = Call::asleep(&waiters, Need::State);
        waiters.freed();
        assert_eq!(a.times(), 0);
        assert!(a.ticket.stay(Need::Room, Told::NOTHING));
        assert!(a.sleep());
        waiters.freed();
        assert_eq!(a.times(), 1);
    }

    /// Who comes while a slot is promised to another holds back, and looks when that one is done.
    #[test]
    fn a_newcomer_does_not_take_what_was_promised_and_gets_its_own_look() {
        let waiters = Waiters::new(10);
        let a = Call::asleep(&waiters, Need::Room);
        waiters.freed();
        let b = Call::joined(&waiters, Need::Room);
        let c = Call::joined(&waiters, Need::Room);
        assert!(!b.ticket.may_look() && !c.ticket.may_look());
        let mut blocker = None;
        assert!(b.ticket.take_turn(&mut blocker).is_none());
        assert_eq!(blocker, Some(a.ticket.id));
        assert!(b.sleep() && c.sleep());
        looking(&a);
        a.ticket.served();
        assert_eq!(times(&[&b, &c]), [1, 0]);
        looking(&b);
        b.ticket.served();
        assert_eq!(c.times(), 1, "slots that came free before anybody waited");
        let told = looking(&c);
        c.ticket.stay(Need::Room, told);
        let d = Call::joined(&waiters, Need::Room);
        assert!(d.ticket.may_look(), "nothing is on its way to anybody");
    }

    #[test]
    fn bounded_and_empty_again() {
        let waiters = Waiters::new(2);
        let a = waiters.join(Need::Room).expect("first");
        let b = waiters.join(Need::State).expect("second");
        assert!(waiters.join(Need::State).is_err());
        assert!(waiters.anyone_for_room() && a.may_look());
        drop((a, b));
        assert_eq!(waiters.len(), 0);
        assert!(!waiters.anyone_for_room());
    }
}
