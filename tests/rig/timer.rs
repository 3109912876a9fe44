//! Pauses finer than a millisecond.
//!
//! tokio's timer counts in milliseconds: a handler of 1.5 ms would take 2 or 3, and a schedule of 2,000
//! calls a second would come in pairs. One thread with a heap wakes within some tens of microseconds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Resolves when `pause` has gone by, at once where it is zero.
pub async fn pause(pause: Duration) {
    if !pause.is_zero() {
        until(Instant::now() + pause).await;
    }
}

/// Resolves at `due`.
pub async fn until(due: Instant) {
    if due <= Instant::now() {
        return;
    }
    let (wake, woken) = oneshot::channel();
    timer().add(due, wake);
    woken.await.expect("the timer thread never ends");
}

#[derive(Default)]
struct Timer {
    entries: Mutex<BinaryHeap<Entry>>,
    earlier: Condvar,
}

fn timer() -> &'static Timer {
    static TIMER: OnceLock<&'static Timer> = OnceLock::new();
    TIMER.get_or_init(|| {
        let timer: &'static Timer = Box::leak(Box::default());
        thread::Builder::new()
            .name("rig timer".into())
            .spawn(|| timer.run())
            .expect("one more thread can be had");
        timer
    })
}

impl Timer {
    fn add(&self, due: Instant, wake: oneshot::Sender<()>) {
        let mut entries = self.entries.lock().expect("no holder panics");
        let first = entries.peek().is_none_or(|first| due < first.due.0);
        entries.push(Entry {
            due: Reverse(due),
            wake,
        });
        if first {
            self.earlier.notify_one();
        }
    }

    fn run(&self) -> ! {
        let mut entries = self.entries.lock().expect("no holder panics");
        loop {
            let now = Instant::now();
            entries = match entries.peek().map(|first| first.due.0) {
                None => self.earlier.wait(entries).expect("no holder panics"),
                Some(due) if due > now => {
                    let waited = self.earlier.wait_timeout(entries, due - now);
                    waited.expect("no holder panics").0
                }
                Some(_) => {
                    if let Some(entry) = entries.pop() {
                        // Whoever waited may have been dropped.
                        let _ = entry.wake.send(());
                    }
                    entries
                }
            };
        }
    }
}

struct Entry {
    due: Reverse<Instant>,
    wake: oneshot::Sender<()>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}
