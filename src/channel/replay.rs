//! A request that can be sent again: its body is read once, and every attempt gets all of it from the start.
//!
//! What the attempts have taken is kept until the call is committed to one of them; from then on only that one goes
//! on, and what it has read is let go of. A body larger than the [`Allowance`] commits the call by itself, to the
//! attempt that is furthest.
//!
//! There is no task. Whoever needs a frame that nobody has taken yet asks the caller's body for it, and when that has
//! none, all who wait are woken by it: an attempt that is dropped or not polled any more takes nothing with it.

mod allowance;
mod waiting;

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use allowance::FRAME;
pub(super) use allowance::{Allowance, BufferLimits};
use waiting::Waiting;

/// One sending of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempt(u32);

/// The request of one call, kept by the call. Without it there are no new attempts, and what those there are have
/// all read is let go of.
pub(super) struct Replay {
    shared: Arc<Shared>,
}

/// The request as one attempt reads it.
struct Reader {
    shared: Arc<Shared>,
    attempt: Attempt,
    over: bool,
}

struct Shared {
    allowance: Arc<Allowance>,
    committed: AtomicBool,
    state: Mutex<State>,
    waiting: Arc<Waiting>,
}

struct State {
    source: Source,
    /// Frames that were taken from the source, without those before that nobody needs any more.
    frames: VecDeque<Kept>,
    gone: usize,
    /// Bytes taken from the allowance.
    held: usize,
    /// What came after the last frame.
    end: Option<Result<(), Status>>,
    winner: Option<Attempt>,
    /// Whether there may be new attempts.
    open: bool,
    attempts: u32,
    /// Who reads, and how many frames each has read.
    readers: Vec<(Attempt, usize)>,
}

/// The caller's own body.
enum Source {
    Idle(Body),
    /// An attempt is asking it, outside the lock.
    Asked,
    /// Ended, or of no use any more.
    Gone,
}

struct Kept {
    piece: Piece,
    bytes: usize,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    // Rare, and thrice as large.
    Trailers(Box<HeaderMap>),
}

impl Piece {
    fn of(frame: Frame<Bytes>) -> Option<Self> {
        match frame.into_data() {
            Ok(data) => Some(Self::Data(data)),
            Err(frame) => Some(Self::Trailers(Box::new(frame.into_trailers().ok()?))),
        }
    }

    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(*trailers),
        }
    }

    fn data(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }

    fn bytes(&self) -> usize {
        let bytes = match self {
            Self::Data(data) => data.len(),
            Self::Trailers(trailers) => {
                let entries = trailers.iter();
                let entries = entries.map(|(name, value)| name.as_str().len() + value.len());
                entries.map(|entry| entry + FRAME).sum()
            }
        };
        bytes + FRAME
    }
}

impl Replay {
    /// Takes the body of a call. Nothing is read before an attempt asks for it.
    pub(super) fn new(body: Body, allowance: Arc<Allowance>) -> Self {
        let state = State {
            source: Source::Idle(body),
            frames: VecDeque::new(),
            gone: 0,
            held: 0,
            end: None,
            winner: None,
            open: true,
            attempts: 0,
            readers: Vec::new(),
        };
        Self {
            shared: Arc::new(Shared {
                allowance,
                committed: AtomicBool::new(false),
                state: Mutex::new(state),
                waiting: Arc::default(),
            }),
        }
    }

    /// The request for one more attempt, from its start. Once the call is committed it is of no use: reading it is
    /// an error.
    pub(super) fn attempt(&self) -> (Attempt, Body) {
        let mut state = self.shared.state();
        let attempt = Attempt(state.attempts);
        state.attempts += 1;
        state.readers.push((attempt, 0));
        drop(state);
        let reader = Reader {
            shared: self.shared.clone(),
            attempt,
            over: false,
        };
        (attempt, Body::new(reader))
    }

    /// Commits the call to an attempt: reading the request is an error for all others, and nothing is kept any more
    /// that this one has read. `false`: it is committed to another already.
    pub(super) fn commit(&self, attempt: Attempt) -> bool {
        let mut state = self.shared.state();
        if let Some(winner) = state.winner {
            return winner == attempt;
        }
        self.shared.settle(&mut state, attempt);
        let unused = self.shared.trim(&mut state);
        drop(state);
        drop(unused);
        self.shared.waiting.wake_all();
        true
    }

    /// Whether the call is committed, by [`commit`](Self::commit) or because its request is too large to be kept.
    /// There is no other attempt to be made then.
    pub(super) fn is_committed(&self) -> bool {
        // Relaxed: tells nothing but itself; to whom it is asks the lock.
        self.shared.committed.load(Ordering::Relaxed)
    }

    /// The attempt that the call is committed to.
    pub(super) fn winner(&self) -> Option<Attempt> {
        self.shared.state().winner
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.open = false;
        let unused = self.shared.trim(&mut state);
        drop(state);
        drop(unused);
    }
}

/// What an attempt can do next.
enum Step {
    Give(Frame<Bytes>),
    End(Result<(), Status>),
    Wait,
    /// Ask the caller's body.
    Ask(Body),
}

impl State {
    fn read(&mut self, attempt: Attempt) -> Option<&mut usize> {
        let mut readers = self.readers.iter_mut();
        let (_, read) = readers.find(|(reader, _)| *reader == attempt)?;
        Some(read)
    }

    fn is_lost(&self, attempt: Attempt) -> bool {
        self.winner.is_some_and(|winner| winner != attempt)
    }

    /// What is kept that an attempt has not read.
    fn unread(&self, attempt: Attempt) -> impl Iterator<Item = &Piece> {
        let mut readers = self.readers.iter();
        let read = readers.find(|(reader, _)| *reader == attempt);
        let read = read.map_or(usize::MAX, |&(_, read)| read);
        let unread = self.frames.iter().skip(read - self.gone.min(read));
        unread.map(|kept| &kept.piece)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The caller's body is polled and dropped outside the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, state: &mut State, winner: Attempt) {
        state.winner = Some(winner);
        // Relaxed: see `is_committed`.
        self.committed.store(true, Ordering::Relaxed);
    }

    /// Lets go of what nobody needs any more; the body is to be dropped outside the lock.
    fn trim(&self, state: &mut State) -> Source {
        let read = state.readers.iter();
        let needed = match (state.winner, state.open) {
            (Some(winner), _) => read.filter(|r| r.0 == winner).map(|r| r.1).min(),
            (None, true) => return Source::Gone,
            (None, false) => read.map(|r| r.1).min(),
        };
        while needed.is_none_or(|needed| state.gone < needed)
            && let Some(kept) = state.frames.pop_front()
        {
            state.gone += 1;
            state.held -= kept.bytes;
            self.allowance.give_back(kept.bytes);
        }
        match (needed, &state.source) {
            (None, Source::Idle(_)) => std::mem::replace(&mut state.source, Source::Gone),
            _ => Source::Gone,
        }
    }

    fn step(&self, attempt: Attempt, cx: &Context<'_>) -> Step {
        let mut state = self.state();
        if state.is_lost(attempt) {
            return Step::End(Err(lost()));
        }
        let kept = state.unread(attempt).next().cloned();
        if let Some(piece) = kept {
            if let Some(read) = state.read(attempt) {
                *read += 1;
            }
            // The body stays: it has a reader.
            let _ = self.trim(&mut state);
            return Step::Give(piece.frame());
        }
        if let Some(end) = &state.end {
            return Step::End(end.clone());
        }
        match std::mem::replace(&mut state.source, Source::Asked) {
            Source::Idle(body) => {
                self.waiting.begin();
                Step::Ask(body)
            }
            Source::Asked => {
                self.waiting.join(attempt, cx.waker());
                Step::Wait
            }
            // A body that panicked, or whose attempts were all given up.
            Source::Gone => {
                state.source = Source::Gone;
                Step::End(Err(lost()))
            }
        }
    }

    /// Asks the caller's body for an attempt that has read all there is. `Ready`: it may look again.
    fn ask(&self, attempt: Attempt, body: Body, cx: &Context<'_>) -> Poll<()> {
        let mut asking = Asking {
            shared: self,
            body: Some(body),
        };
        let waker = Waker::from(self.waiting.clone());
        let polled = match &mut asking.body {
            Some(body) => Pin::new(body).poll_frame(&mut Context::from_waker(&waker)),
            None => Poll::Ready(None),
        };
        // From here on nothing of the caller's runs under the lock.
        let body = asking.body.take().map_or(Source::Gone, Source::Idle);
        let pending = polled.is_pending();
        let mut state = self.state();
        let (next, ended) = match polled {
            Poll::Pending | Poll::Ready(Some(Ok(_))) => (body, Source::Gone),
            Poll::Ready(None | Some(Err(_))) => (Source::Gone, body),
        };
        state.source = next;
        let woken = match polled {
            // With the body back in its place and under the same lock: who waits for this attempt to have asked, and
            // this attempt itself, are either in the line when the body wakes it, or woken here.
            Poll::Pending => self.waiting.join(attempt, cx.waker()),
            Poll::Ready(Some(Ok(frame))) => {
                self.keep(&mut state, attempt, frame);
                true
            }
            Poll::Ready(Some(Err(status))) => {
                state.end = Some(Err(status));
                true
            }
            Poll::Ready(None) => {
                state.end = Some(Ok(()));
                true
            }
        };
        let unused = self.trim(&mut state);
        drop(state);
        drop((ended, unused));
        if woken {
            self.waiting.wake_all();
        }
        match pending {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }

    /// Keeps a frame that `attempt` asked for. Where it is one too many, the call is committed to that attempt: none
    /// is further. What the one reads that the call is committed to is only handed through, and counts as nothing.
    fn keep(&self, state: &mut State, attempt: Attempt, frame: Frame<Bytes>) {
        let Some(piece) = Piece::of(frame) else {
            return;
        };
        let mut bytes = 0;
        if state.winner.is_none() {
            bytes = piece.bytes();
            match self.allowance.take(bytes, state.held) {
                true => state.held += bytes,
                false => {
                    bytes = 0;
                    self.settle(state, attempt);
                }
            }
        }
        state.frames.push_back(Kept { piece, bytes });
    }
}

/// What is kept when the last who could read it is gone.
impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        self.allowance.give_back(state.held);
    }
}

/// A question to the caller's body. One that panics is asked no more, and whoever waits for it hears of that.
struct Asking<'a> {
    shared: &'a Shared,
    body: Option<Body>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.body.is_none() {
            return;
        }
        let mut state = self.shared.state();
        state.source = Source::Gone;
        state.end = Some(Err(Status::internal("the body of the request panicked")));
        drop(state);
        self.shared.waiting.wake_all();
    }
}

fn lost() -> Status {
    Status::cancelled("the call goes on with another attempt")
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        while !this.over {
            match this.shared.step(this.attempt, cx) {
                Step::Give(frame) => return Poll::Ready(Some(Ok(frame))),
                Step::End(end) => {
                    this.over = true;
                    return Poll::Ready(end.err().map(Err));
                }
                Step::Wait => return Poll::Pending,
                Step::Ask(body) => ready!(this.shared.ask(this.attempt, body, cx)),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.shared.state();
        let at_end = match (&state.end, &state.source) {
            (Some(end), _) => end.is_ok(),
            (None, Source::Idle(body)) => body.is_end_stream(),
            (None, Source::Asked | Source::Gone) => false,
        };
        let unread = state.unread(self.attempt).next().is_some();
        self.over || (at_end && !unread && !state.is_lost(self.attempt))
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.shared.state();
        let kept: usize = state.unread(self.attempt).map(Piece::data).sum();
        let rest = match &state.source {
            Source::Idle(body) => body.size_hint(),
            Source::Gone if matches!(state.end, Some(Ok(()))) => SizeHint::with_exact(0),
            Source::Asked | Source::Gone => SizeHint::default(),
        };
        let kept = kept as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(kept));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(kept)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.readers.retain(|&(reader, _)| reader != self.attempt);
        self.shared.waiting.leave(self.attempt);
        let unused = self.shared.trim(&mut state);
        drop(state);
        drop(unused);
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        f.debug_struct("Replay")
            .field("attempts", &state.attempts)
            .field("held", &state.held)
            .field("winner", &state.winner)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
