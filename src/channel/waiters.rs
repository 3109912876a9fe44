//! The line of calls that wait for an endpoint: first come, first served, bounded.
//!
//! A call joins, looks once more, and only then sleeps; whoever changes something wakes the head of the
//! line, and each call that was woken hands the news on to the next. So calls are looked at in their
//! order, one at a time, and none is woken for nothing in bulk.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

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
}

#[derive(Debug)]
struct Entry {
    need: Need,
    news: News,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    for_room: usize,
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

    /// Whether somebody waits for room: a newcomer then joins the line instead of taking it first.
    pub(super) fn anyone_for_room(&self) -> bool {
        self.for_room.load(Ordering::Relaxed) > 0
    }

    /// Joins the end of the line. The caller must look once more before it sleeps.
    pub(super) fn join(self: &Arc<Self>, need: Need) -> Result<Ticket, Full> {
        let mut line = self.line();
        if line.entries.len() >= self.limit {
            return Err(Full);
        }
        let id = line.next;
        line.next += 1;
        line.for_room += usize::from(need == Need::Room);
        line.entries.insert(
            id,
            Entry {
                need,
                news: News::Nothing,
                waker: None,
            },
        );
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

    /// A slot came free: the first call that waits for room is told.
    pub(super) fn freed(&self) {
        // Pairs with the fence in `join`.
        fence(Ordering::SeqCst);
        if self.for_room.load(Ordering::Relaxed) == 0 {
            return;
        }
        let waker = self.line().tell_after(None, News::Freed);
        wake(waker);
    }

    /// A new snapshot was published: every call is told, in order.
    pub(super) fn published(&self) {
        // Pairs with the fence in `join`.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let waker = self.line().tell_after(None, News::Published);
        wake(waker);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // A panic while the lock is held is impossible short of a bug in the map; the line itself stays whole.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_counts(&self, line: &Line) {
        // Relaxed: ordered by the fences in `join`, `stay`, `freed` and `published`.
        self.waiting.store(line.entries.len(), Ordering::Relaxed);
        self.for_room.store(line.for_room, Ordering::Relaxed);
    }
}

impl Line {
    /// Tells the first call behind `after` that can use the news.
    fn tell_after(&mut self, after: Option<u64>, news: News) -> Option<Waker> {
        let from = after.map_or(Unbounded, Excluded);
        let entry = self
            .entries
            .range_mut((from, Unbounded))
            .map(|(_, entry)| entry)
            .find(|entry| news == News::Published || entry.need == Need::Room)?;
        // A new snapshot says more than a free slot does.
        if entry.news != News::Published {
            entry.news = news;
        }
        entry.waker.take()
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
    /// Whether this call may look: nobody before it waits for room, or it does not wait for room itself.
    pub(super) fn may_look(&self) -> bool {
        let line = self.waiters.line();
        line.entries[&self.id].need == Need::State
            || line
                .entries
                .range(..self.id)
                .all(|(_, entry)| entry.need == Need::State)
    }

    /// Sleeps until there is news. On waking the caller looks, and then either leaves (by dropping the
    /// ticket) or calls [`stay`](Self::stay).
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

    /// Takes the news, to be looked into now. What comes after this is news again.
    pub(super) fn take_news(&self) -> Told {
        let mut line = self.waiters.line();
        let news = line.entries.get_mut(&self.id).map_or(News::Nothing, |e| {
            std::mem::replace(&mut e.news, News::Nothing)
        });
        Told(news)
    }

    /// Stays in the line after a look that found nothing, and hands a new snapshot on to the next.
    ///
    /// Answers whether the caller must look once more before it sleeps: a slot that came free before it was
    /// known to wait for room was not told to it.
    pub(super) fn stay(&self, need: Need, told: Told) -> bool {
        let mut line = self.waiters.line();
        let mut before = need;
        if let Some(entry) = line.entries.get_mut(&self.id) {
            before = std::mem::replace(&mut entry.need, need);
        }
        match (before, need) {
            (Need::State, Need::Room) => line.for_room += 1,
            (Need::Room, Need::State) => line.for_room -= 1,
            _ => {}
        }
        self.waiters.publish_counts(&line);
        let waker = match told.0 {
            News::Published => line.tell_after(Some(self.id), News::Published),
            News::Freed | News::Nothing => None,
        };
        drop(line);
        wake(waker);
        let look_again = before == Need::State && need == Need::Room;
        if look_again {
            // Pairs with the fence in `freed`, as in `join`.
            fence(Ordering::SeqCst);
        }
        look_again
    }

    /// Leaves the line served, and lets the next one look too: there may be more.
    pub(super) fn served(self, told: Told) {
        let mut line = self.waiters.line();
        if let Some(entry) = line.entries.get_mut(&self.id)
            && entry.news == News::Nothing
        {
            entry.news = told.0;
        }
        drop(line);
        // Dropping the ticket hands the news on.
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
        // News that this call will not use, having left, must not be lost with it.
        let waker = match entry.news {
            News::Nothing => None,
            news => line.tell_after(Some(self.id), news),
        };
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
        fn asleep(waiters: &Arc<Waiters>, need: Need) -> Self {
            let call = Self {
                ticket: waiters.join(need).expect("room in the line"),
                woken: Arc::default(),
            };
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

    fn times(calls: &[&Call]) -> Vec<u32> {
        calls.iter().map(|c| c.times()).collect()
    }

    #[test]
    fn a_free_slot_goes_to_the_first_that_waits_for_room() {
        let waiters = Waiters::new(10);
        let state = Call::asleep(&waiters, Need::State);
        let a = Call::asleep(&waiters, Need::Room);
        let b = Call::asleep(&waiters, Need::Room);
        waiters.freed();
        assert_eq!(times(&[&state, &a, &b]), [0, 1, 0]);
        // Served, it lets the next one look; that one finds nothing and says no more.
        let told = a.ticket.take_news();
        a.ticket.served(told);
        assert_eq!(times(&[&state, &b]), [0, 1]);
        let told = b.ticket.take_news();
        assert!(!b.ticket.stay(Need::Room, told));
        assert!(b.sleep());
        assert_eq!(state.times(), 0);
    }

    #[test]
    fn a_snapshot_goes_down_the_whole_line_in_order() {
        let waiters = Waiters::new(10);
        let calls: Vec<Call> = [Need::State, Need::Room, Need::State]
            .into_iter()
            .map(|need| Call::asleep(&waiters, need))
            .collect();
        waiters.published();
        for (turn, call) in calls.iter().enumerate() {
            let woken: Vec<u32> = calls.iter().map(Call::times).collect();
            let expected: Vec<u32> = (0..3).map(|i| u32::from(i <= turn)).collect();
            assert_eq!(woken, expected, "turn {turn}");
            let told = call.ticket.take_news();
            call.ticket.stay(Need::State, told);
        }
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
        let told = a.ticket.take_news();
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
        waiters.freed();
        assert_eq!(a.times(), 1);
    }

    #[test]
    fn bounded_and_empty_again() {
        let waiters = Waiters::new(2);
        let a = waiters.join(Need::Room).expect("first");
        let b = waiters.join(Need::State).expect("second");
        assert!(waiters.join(Need::State).is_err());
        assert!(waiters.anyone_for_room() && a.may_look() && b.may_look());
        drop((a, b));
        assert_eq!(waiters.len(), 0);
        assert!(!waiters.anyone_for_room());
    }

    #[test]
    fn only_the_first_for_room_may_look_unasked() {
        let waiters = Waiters::new(3);
        let a = waiters.join(Need::Room).expect("first");
        let b = waiters.join(Need::Room).expect("second");
        assert!(a.may_look() && !b.may_look());
        drop(a);
        assert!(b.may_look());
    }
}
