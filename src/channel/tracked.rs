//! The response's body, followed to its end: only there is it known how the call went.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;

use crate::clock::Clock;
use crate::report::{Completion, Outcome, StatusCode};
use crate::timestamp::Timestamp;
use crate::transport::Connection;

use super::deadline::Deadline;
use super::labels::Labels;
use super::snapshot::Seat;

// As constants: a name given as text is parsed anew at each look-up.
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// A call in flight on an endpoint: counted from the pick until this is finished or dropped.
pub(super) struct InFlight<N> {
    seat: Arc<Seat<N>>,
    /// The number of the policy that chose the endpoint.
    policy: usize,
    clock: Clock,
    started: Timestamp,
    first: Option<Timestamp>,
    ended: bool,
}

impl<N> InFlight<N> {
    /// Counts the call in.
    pub(super) fn begin(
        seat: Arc<Seat<N>>,
        policy: usize,
        clock: Clock,
        started: Timestamp,
    ) -> Self {
        seat.loads.begin();
        Self {
            seat,
            policy,
            clock,
            started,
            first: None,
            ended: false,
        }
    }

    /// The first message has come: that is the latency, whatever follows.
    fn first_message(&mut self) {
        if self.first.is_none() {
            self.first = Some(self.clock.now());
            self.seat.loads.spoke();
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
        self.ended = true;
        let now = self.clock.now();
        // An expired or cancelled stream counts as what it took, not as its quick first message.
        let until = match (self.first, outcome) {
            (Some(first), Outcome::Answered(code)) if code != StatusCode::DEADLINE_EXCEEDED => {
                first
            }
            _ => now,
        };
        let completion = Completion {
            outcome,
            latency: until.since(self.started),
        };
        let loads = &self.seat.loads;
        loads.end(self.policy, &completion, self.started, now);
        now
    }
}

impl<N> Drop for InFlight<N> {
    fn drop(&mut self) {
        if !self.ended {
            self.settle(Outcome::Cancelled);
        }
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
}

impl<N> Tracking<N> {
    /// The call ended with `code`, by the server's word or by the loss of its stream.
    fn answered(self, code: StatusCode) -> Result<(), Status> {
        match &self.deadline {
            Some(deadline) if deadline.explains(code, self.in_flight.clock) => Err(self.expired()),
            _ => {
                self.in_flight.end(Outcome::Answered(code));
                Ok(())
            }
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
            .end(Outcome::Answered(StatusCode::DEADLINE_EXCEEDED));
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
        let call = match head.get(GRPC_STATUS) {
            None => Some(tracking),
            Some(_) => {
                sanitise(head);
                tracking.answered(status_code(head))?;
                None
            }
        };
        Ok(Self {
            inner: Some(inner),
            call,
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
                    sanitise(trailers);
                    let code = status_code(trailers);
                    this.inner.set(None);
                    if let Some(call) = this.call.take()
                        && let Err(status) = call.answered(code)
                    {
                        return Poll::Ready(Some(Err(status)));
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
                    match call.answered(StatusCode::new(status.code() as u8)) {
                        Ok(()) => labels.put_on(&mut status, Some(&endpoint)),
                        Err(expired) => status = expired,
                    }
                }
                Some(Err(status))
            }
            None => {
                this.inner.set(None);
                if let Some(call) = this.call.take() {
                    // No trailers: tonic makes UNKNOWN of it, and so do we.
                    call.in_flight.end(Outcome::Answered(StatusCode::UNKNOWN));
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

/// The code in `grpc-status`; UNKNOWN where it is missing or no number.
fn status_code(headers: &HeaderMap) -> StatusCode {
    let value = headers.get(GRPC_STATUS).map(HeaderValue::as_bytes);
    match value {
        Some([digit @ b'0'..=b'9']) => StatusCode::new(digit - b'0'),
        Some([b'1', digit @ b'0'..=b'9']) => StatusCode::new(10 + digit - b'0'),
        _ => StatusCode::UNKNOWN,
    }
}

/// Drops a `grpc-status-details-bin` that is not base64: tonic would panic on it.
fn sanitise(headers: &mut HeaderMap) {
    if let Some(value) = headers.get(GRPC_STATUS_DETAILS)
        && !is_base64(value.as_bytes())
    {
        headers.remove(GRPC_STATUS_DETAILS);
    }
}

/// Whether tonic's decoder takes it: the standard alphabet, padding optional, and no stray bits at the end.
fn is_base64(text: &[u8]) -> bool {
    let padding = text.iter().rev().take_while(|&&b| b == b'=').count();
    let digits = &text[..text.len() - padding];
    let value = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let padded = padding == 0 || (padding <= 2 && text.len().is_multiple_of(4));
    let stray = match digits.len() % 4 {
        0 => 0,
        2 => 0b1111,
        3 => 0b11,
        _ => return false,
    };
    let last = digits.last().and_then(|&b| value(b)).unwrap_or(0);
    padded && digits.iter().all(|&b| value(b).is_some()) && last & stray == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_as_the_wire_has_them() {
        for (text, code) in [
            ("0", 0),
            ("7", 7),
            ("14", 14),
            ("16", 16),
            ("17", 2),
            ("99", 2),
            ("999", 2),
            ("-1", 2),
            ("abc", 2),
            ("", 2),
            ("01", 2),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", HeaderValue::from_str(text).unwrap());
            assert_eq!(status_code(&headers).number(), code, "{text:?}");
        }
        assert_eq!(status_code(&HeaderMap::new()), StatusCode::UNKNOWN);
    }

    #[test]
    fn details_that_tonic_would_panic_on_are_dropped() {
        for (text, stays) in [
            ("", true),
            ("CAESBA", true),
            ("CAESBA==", true),
            ("CAES", true),
            ("CAE", true),
            ("CAE=", true),
            ("not base64!", false),
            ("A", false),
            ("CAE==", false),
            ("====", false),
            ("CB", false),
            ("C-ES", false),
        ] {
            let mut headers = HeaderMap::new();
            let name = "grpc-status-details-bin";
            headers.insert(name, HeaderValue::from_str(text).unwrap());
            sanitise(&mut headers);
            assert_eq!(headers.contains_key(name), stays, "{text:?}");
            if stays {
                headers.insert("grpc-status", HeaderValue::from_static("3"));
                // Whatever stays must not panic tonic.
                let _ = Status::from_header_map(&headers);
            }
        }
    }
}
