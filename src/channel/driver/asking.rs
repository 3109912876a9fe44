//! Where the endpoint lists come from: a resolver that is asked again when it breaks, and after the channel was idle.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::FutureExt;
use futures_util::stream::BoxStream;

use crate::balancer::Backoff;
use crate::error::ResolveError;
use crate::resolver::Update;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// A stream of endpoint lists.
pub(in crate::channel) type Lists = BoxStream<'static, Result<Update, ResolveError>>;

/// Begins to ask the resolver, anew each time.
pub(in crate::channel) type Ask = Box<dyn Fn() -> Lists + Send>;

/// What a resolver says next.
pub(super) type Answer = Option<Result<Update, ResolveError>>;

/// The resolver of a channel, if it has one.
pub(super) struct Asking {
    ask: Option<Ask>,
    lists: Option<Lists>,
    backoff: Backoff,
    /// How often it has panicked soon after it was asked, in a row, and when that was.
    panics: u32,
    begun: Timestamp,
    /// When it is asked again.
    again: Option<Timestamp>,
}

/// A resolver that has gone on for so long is asked again as soon as one that never panicked.
const CALM: Duration = Duration::from_secs(10);

impl Asking {
    /// `lists`: what it was asked first.
    pub(super) fn new(ask: Option<Ask>, lists: Option<Lists>, backoff: Backoff) -> Self {
        Self {
            ask,
            lists,
            backoff,
            panics: 0,
            begun: Timestamp::ZERO,
            again: None,
        }
    }

    /// The next list or error; `None` when there will be no more.
    pub(super) async fn next(&mut self) -> Answer {
        let Some(stream) = &mut self.lists else {
            return std::future::pending().await;
        };
        match AssertUnwindSafe(stream.next()).catch_unwind().await {
            Ok(next) => next,
            // It is somebody else's code; the channel and its last list stay.
            Err(_) => {
                self.lists = None;
                Some(Err(ResolveError::new("the resolver panicked")))
            }
        }
    }

    /// Takes note of what [`next`](Self::next) gave, and when: one that panicked is asked again, later each time.
    pub(super) fn heed(&mut self, answer: &Answer, now: Timestamp) {
        match answer {
            Some(Err(_)) if self.lists.is_none() && self.ask.is_some() => {
                self.panics = match now.since(self.begun) >= CALM {
                    true => 1,
                    false => self.panics.saturating_add(1),
                };
                let mut rng = Rng::new(fastrand::u64(..));
                self.again = Some(now + self.backoff.delay(self.panics, &mut rng));
            }
            Some(_) => {}
            None => self.lists = None,
        }
    }

    /// When [`tick`](Self::tick) is due.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.again
    }

    /// Asks again if it is time to.
    pub(super) fn tick(&mut self, now: Timestamp) {
        if self.again.is_some_and(|at| at <= now) {
            self.begin(now);
        }
    }

    /// Asks anew.
    pub(super) fn begin(&mut self, now: Timestamp) {
        (self.again, self.begun) = (None, now);
        let ask = self.ask.as_ref();
        let asked = ask.map(|ask| catch_unwind(AssertUnwindSafe(ask)));
        match asked {
            Some(Ok(lists)) => self.lists = Some(lists),
            Some(Err(_)) => {
                self.lists = None;
                let error = ResolveError::new("the resolver panicked");
                self.heed(&Some(Err(error)), now);
            }
            None => {}
        }
    }

    /// Asks no more.
    pub(super) fn stop(&mut self) {
        (self.lists, self.again) = (None, None);
    }
}
