//! The body of a request, lent to tonic: taken back when the call went nowhere, ended when the call is over.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::Reason;
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

use super::super::pump::{Look, look};
use super::super::{Payload, Slot};

/// Our side of a body that was lent. Dropped, it ends the upload: hyper alone would carry it on after the response has
/// ended or its reader has gone.
pub(super) struct Lender {
    shared: Arc<Shared>,
    // What can be sent again.
    whole: Option<Bytes>,
}

/// tonic's side of it.
pub(super) struct Lent {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    // Held by both sides, so that it is free only when both have let go of the stream.
    _slot: Slot,
}

struct State {
    // Goes out before the rest.
    first: Vec<Bytes>,
    rest: Option<Body>,
    untouched: bool,
    over: bool,
    failed: Option<Status>,
    waker: Option<Waker>,
}

/// Lends a body.
///
/// # Errors
///
/// When it fails at once, by the caller's own doing.
pub(super) fn lend(payload: Payload, slot: Slot) -> Result<(Lender, Lent), Status> {
    let (whole, mut first, rest) = match payload {
        Payload::Whole(message) => (Some(message), Vec::new(), None),
        Payload::Untouched(mut body) => {
            // Nobody is to be woken: a body that is not done is polled again by hyper.
            let mut cx = Context::from_waker(Waker::noop());
            match look(&mut body, &mut cx) {
                Look::Whole(message) => (Some(message), Vec::new(), None),
                Look::Streaming(taken) => (None, taken, Some(body)),
                Look::Failed(status) => return Err(status),
            }
        }
    };
    first.extend(whole.clone().filter(|message| !message.is_empty()));
    // The last goes first.
    first.reverse();
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            untouched: first.is_empty(),
            first,
            rest,
            over: false,
            failed: None,
            waker: None,
        }),
        _slot: slot,
    });
    let lent = Lent {
        shared: shared.clone(),
    };
    Ok((Lender { shared, whole }, lent))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing of the caller's runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, and gives what is left of the body and whether nothing was taken from it: hyper's task polls it
    /// until this moment.
    fn end(&self) -> (bool, Option<Body>) {
        let mut state = self.state();
        state.over = true;
        let (untouched, rest) = (state.untouched, state.rest.take());
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        (untouched, rest)
    }
}

impl Lender {
    /// What the caller's own body failed with.
    pub(super) fn failure(&self) -> Option<Status> {
        self.shared.state().failed.clone()
    }

    /// The body as it was, unless something was taken from it that is not here any more.
    pub(super) fn take_back(mut self) -> Option<Payload> {
        let (untouched, rest) = self.shared.end();
        match self.whole.take() {
            Some(message) => Some(Payload::Whole(message)),
            None if untouched => rest.map(Payload::Untouched),
            None => None,
        }
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        drop(self.shared.end());
    }
}

impl Lent {
    /// An error that makes hyper reset the stream with CANCEL; it looks for h2's own along the sources.
    fn cancelling(mut status: Status) -> Status {
        status.set_source(Arc::new(h2::Error::from(Reason::CANCEL)));
        status
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = self.shared.state();
        if state.over {
            let status = Status::cancelled("the call is over");
            return Poll::Ready(Some(Err(Self::cancelling(status))));
        }
        if let Some(data) = state.first.pop() {
            state.untouched = false;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some(mut body) = state.rest.take() else {
            return Poll::Ready(None);
        };
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        // The caller's code runs without the lock: it may drop the response of this very call.
        drop(state);
        let polled = loop {
            match Pin::new(&mut body).poll_frame(cx) {
                // Trailers do not exist in a gRPC request.
                Poll::Ready(Some(Ok(frame))) if !frame.is_data() => {}
                polled => break polled,
            }
        };
        let mut state = self.shared.state();
        let (result, left) = match polled {
            Poll::Pending if state.over => {
                let status = Status::cancelled("the call is over");
                (Poll::Ready(Some(Err(Self::cancelling(status)))), Some(body))
            }
            Poll::Pending => {
                state.rest = Some(body);
                (Poll::Pending, None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                state.untouched = false;
                let left = match state.over {
                    true => Some(body),
                    false => state.rest.replace(body),
                };
                (Poll::Ready(Some(Ok(frame))), left)
            }
            Poll::Ready(Some(Err(status))) => {
                state.failed = Some(status.clone());
                (Poll::Ready(Some(Err(Self::cancelling(status)))), Some(body))
            }
            Poll::Ready(None) => (Poll::Ready(None), Some(body)),
        };
        drop(state);
        drop(left);
        result
    }

    fn is_end_stream(&self) -> bool {
        let state = self.shared.state();
        !state.over && state.first.is_empty() && state.rest.is_none()
    }
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = self.shared.state().over;
        f.debug_struct("Lender").field("over", &over).finish()
    }
}
