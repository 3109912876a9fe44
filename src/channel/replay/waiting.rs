//! Who is woken when the caller's body has more?

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use super::Attempt;

/// Who waits for the caller's body. It is what the body is asked to wake.
#[derive(Default)]
pub(super) struct Waiting {
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    /// The body has woken somebody since it was last asked.
    woken: bool,
    wakers: Vec<(Attempt, Waker)>,
}

impl Waiting {
    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing that can panic runs under the lock.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body is about to be asked.
    pub(super) fn begin(&self) {
        self.line().woken = false;
    }

    /// Wakes `waker` when there is news. Answers whether there has been since the body was asked.
    pub(super) fn join(&self, attempt: Attempt, waker: &Waker) -> bool {
        let mut line = self.line();
        let mut wakers = line.wakers.iter_mut();
        match wakers.find(|(other, _)| *other == attempt) {
            Some((_, before)) => before.clone_from(waker),
            None => line.wakers.push((attempt, waker.clone())),
        }
        line.woken
    }

    pub(super) fn leave(&self, attempt: Attempt) {
        self.line().wakers.retain(|&(other, _)| other != attempt);
    }

    pub(super) fn wake_all(&self) {
        // Taken out first: waking may run anything.
        let wakers = std::mem::take(&mut self.line().wakers);
        for (_, waker) in wakers {
            waker.wake();
        }
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.line().woken = true;
        self.wake_all();
    }
}
