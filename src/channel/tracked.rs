//! The response's body, followed to its end: only there is it known how the call went.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;

use crate::clock::Clock;
use crate::load::Admission;
use crate::report::{Completion, Outcome, StatusCode};
use crate::timestamp::Timestamp;
use crate::transport::{CallersOwn, Connection, Failure, Phase, Reached, outcome};

use super::bell::Permit;
use super::deadline::Deadline;
use super::labels::Labels;
use super::snapshot::Seat;
use super::trailers;

/// A call in flight on an endpoint: counted from the pick until this is finished or dropped.
pub(super) struct InFlight<N> {
    seat: Arc<Seat<N>>,
    /// The number of the policy that chose the endpoint.
    policy: usize,
    clock: Clock,
    started: Timestamp,
    first: Option<Timestamp>,
    /// By what it was let in; nothing once it has ended.
    admission: Option<Admission>,
    permit: Option<Permit>,
}

impl<N> InFlight<N> {
    /// Follows a call that was let in.
    pub(super) fn begin(
        seat: Arc<Seat<N>>,
        policy: usize,
        admission: Admission,
        permit: Option<Permit>,
        clock: Clock,
        started: Timestamp,
    ) -> Self {
        Self {
            seat,
            policy,
            clock,
            started,
            first: None,
            admission: Some(admission),
            permit,
        }
    }

    /// The first message has come: that is the latency, whatever follows.
    fn first_message(&mut self) {
        if self.first.is_none() {
            self.first = Some(self.clock.now());
            let admission = self.admission.as_mut();
            let notice = admission.and_then(|admission| self.seat.loads.spoke(admission));
            if let Some(notice) = notice {
                self.seat.bell.notice(self.seat.id, notice);
            }
        }
    }

    /// Where the call is.
    pub(super) fn seat(&self) -> &Arc<Seat<N>> {
        &self.seat
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// Counts the call out, and says when that was.
    pub(super) fn end(mut self, outcome: Outcome) -> Timestamp {
        self.settle(outcome)
    }

    fn settle(&mut self, outcome: Outcome) -> Timestamp {
        let now = self.clock.now();
        let Some(admission) = self.admission.take() else {
            return now;
        };
        // An expired stream counts as what it took, not as its quick first message. One that was dropped after it does not:
        // a watch ends so, however well it is served.
        let expired = matches!(
            outcome,
            Outcome::Answered(StatusCode::DEADLINE_EXCEEDED)
                | Outcome::Pushed(StatusCode::DEADLINE_EXCEEDED)
        );
        let until = self.first.filter(|_| !expired).unwrap_or(now);
        let completion = Completion {
            outcome,
            latency: until.since(self.started),
        };
        let Seat {
            id, loads, bell, ..
        } = &*self.seat;
        let narrow = self.permit.is_some() || loads.is_narrow();
        if let Some(notice) = loads.end(self.policy, &completion, admission, self.started, now) {
            bell.notice(*id, notice);
        }
        if let (Some(throttle), Outcome::Answered(code) | Outcome::Pushed(code)) =
            (&bell.throttle, outcome)
        {
            throttle.ended(code, now);
        }
        if narrow {
            self.permit = None;
            bell.waiters.freed();
        }
        now
    }
}

impl<N> Drop for InFlight<N> {
    fn drop(&mut self) {
        self.settle(Outcome::Cancelled);
    }
}

pin_project! {
    /// The body of a response: passes its frames on, and reports the call's end to the endpoint's load.
    ///
    /// Dropping it early cancels the call.
    pub struct ResponseBody<N: Connection> {
        #[pin]
        inner: Option<N::Body>,
        call: Option<Tracking<N>>,
    }
}

/// What is still owed when the response ends.
pub(super) struct Tracking<N> {
    pub(super) in_flight: InFlight<N>,
    pub(super) deadline: Option<Deadline>,
    pub(super) labels: Labels,
    /// The head said OK already: the end need not say more.
    pub(super) ok: bool,
}

impl<N> Tracking<N> {
    /// The call ended with `code`, by the server's word or by the loss of its stream.
    fn answered(self, code: StatusCode, outcome: Outcome) -> Result<(), Status> {
        match &self.deadline {
            Some(deadline) if deadline.explains(code, self.in_flight.clock) => Err(self.expired()),
            _ => {
                self.in_flight.end(outcome);
                Ok(())
            }
        }
    }

    /// The code of an end that has no status of its own.
    fn unsaid(&self) -> StatusCode {
        match self.ok {
            true => StatusCode::OK,
            false => StatusCode::new(Failure::NoStatus.verdict(Phase::Answering).code as u8),
        }
    }

    /// Whether the deadline has passed without the timer having been asked.
    fn is_late(&self) -> bool {
        let deadline = self.deadline.as_ref();
        deadline.is_some_and(|deadline| self.in_flight.clock.now() >= deadline.at)
    }

    /// The deadline has passed.
    fn expired(self) -> Status {
        let endpoint = self.in_flight.seat.endpoint();
        self.in_flight
            .end(Failure::Deadline.verdict(Phase::Answering).outcome());
        self.labels
            .deadline_exceeded("while the response was under way", Some(&endpoint))
    }
}

impl<N: Connection> ResponseBody<N> {
    /// Follows `inner`. `head` is that of the response: a call that ends in its head ends here.
    ///
    /// # Errors
    ///
    /// When it ends there because its deadline has passed.
    pub(super) fn follow(
        head: &mut HeaderMap,
        inner: N::Body,
        tracking: Tracking<N>,
    ) -> Result<Self, Status> {
        let ok = match trailers::read(head) {
            None => false,
            // Against the protocol, and still read by tonic, which then asks for no trailers: so the call goes on,
            // within its deadline.
            Some(StatusCode::OK) if !inner.is_end_stream() => true,
            Some(code) => {
                // Not left to the server to end: the slot would be held as long as it likes.
                drop(inner);
                tracking.answered(code, trailers::outcome(code, head))?;
                return Ok(Self::default());
            }
        };
        Ok(Self {
            inner: Some(inner),
            call: Some(Tracking { ok, ..tracking }),
        })
    }
}

/// An empty body of no call: what interceptors answer with.
impl<N: Connection> Default for ResponseBody<N> {
    fn default() -> Self {
        Self {
            inner: None,
            call: None,
        }
    }
}

impl<N: Connection> fmt::Debug for ResponseBody<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("ended", &self.call.is_none())
            .finish()
    }
}

impl<N: Connection> Body for ResponseBody<N> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let polled = inner.poll_frame(cx);
        if polled.is_pending() {
            let Some(deadline) = this.call.as_mut().and_then(|c| c.deadline.as_mut()) else {
                return Poll::Pending;
            };
            ready!(deadline.sleep.as_mut().poll(cx));
            // Dropping the body resets the stream, and only then is the slot free.
            this.inner.set(None);
            return Poll::Ready(this.call.take().map(|call| Err(call.expired())));
        }
        Poll::Ready(match ready!(polled) {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    let said = trailers::read(trailers);
                    this.inner.set(None);
                    if let Some(call) = this.call.take() {
                        let code = said.unwrap_or_else(|| call.unsaid());
                        let outcome = trailers::outcome(code, trailers);
                        if let Err(status) = call.answered(code, outcome) {
                            return Poll::Ready(Some(Err(status)));
                        }
                    }
                } else if this.call.as_ref().is_some_and(Tracking::is_late) {
                    // A reader slower than the server never waits, so the timer is never asked.
                    this.inner.set(None);
                    return Poll::Ready(this.call.take().map(|call| Err(call.expired())));
                } else if let Some(call) = this.call {
                    call.in_flight.first_message();
                }
                Some(Ok(frame))
            }
            Some(Err(mut status)) => {
                this.inner.set(None);
                if let Some(call) = this.call.take() {
                    let endpoint = call.in_flight.seat.endpoint();
                    let labels = call.labels;
                    let code = StatusCode::new(status.code() as u8);
                    if let Some(own) = CallersOwn::of(&status).cloned() {
                        call.in_flight.end(outcome(code, Reached::Local));
                        return Poll::Ready(Some(Err(own)));
                    }
                    match call.answered(code, Outcome::Answered(code)) {
                        Ok(()) => labels.put_on(&mut status, Some(&endpoint)),
                        Err(expired) => status = expired,
                    }
                }
                Some(Err(status))
            }
            None => {
                this.inner.set(None);
                if let Some(call) = this.call.take() {
                    // No trailers: tonic makes the same of it.
                    let code = call.unsaid();
                    call.in_flight.end(Outcome::Answered(code));
                }
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
