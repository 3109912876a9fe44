//! A tonic channel as one connection, and the calls on it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower_service::Service;

use super::super::failure::{CallersOwn, Phase};
use super::super::link::{Link, Order};
use super::super::{
    CallError, Condition, Connection, Control, Outgoing, Payload, Reached, Slot, Slots,
};
use crate::error::ConnectError;

use super::errors::{Verdict, judged, verdict};
use super::upload::{Lender, lend};

/// A connection made by [`TonicConnector`](super::TonicConnector).
///
/// Dropping it lets the calls on it finish, and then closes it; 20 s later at the latest, also where the server
/// reads nothing of what is left to be written.
pub struct TonicConnection {
    channel: Channel,
    link: Arc<Link>,
}

impl TonicConnection {
    pub(super) fn new(channel: Channel, link: Arc<Link>) -> Self {
        Self { channel, link }
    }
}

impl Connection for TonicConnection {
    type Body = TonicBody;

    fn call(
        &self,
        request: Outgoing,
        slot: Slot,
    ) -> impl Future<Output = Result<http::Response<TonicBody>, CallError>> + Send + 'static {
        call(self.channel.clone(), self.link.clone(), request, slot)
    }

    fn slots(&self) -> &Arc<Slots> {
        &self.link.slots
    }

    fn condition(&self) -> watch::Receiver<Condition> {
        self.link.condition()
    }

    fn control(&self) -> Arc<dyn Control> {
        self.link.clone()
    }
}

impl Drop for TonicConnection {
    fn drop(&mut self) {
        self.link.tell(Order::Finish);
    }
}

impl fmt::Debug for TonicConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TonicConnection")
            .field("address", &self.link.address)
            .field("slots", &self.link.slots)
            .field("condition", &*self.link.condition().borrow())
            .finish()
    }
}

async fn call(
    mut channel: Channel,
    link: Arc<Link>,
    request: Outgoing,
    slot: Slot,
) -> Result<http::Response<TonicBody>, CallError> {
    let Outgoing { head, payload } = request;
    let before = link.meter.sent();
    let (lender, lent) = lend(payload, slot).map_err(|status| CallError {
        status,
        reached: Reached::Local,
        request: None,
    })?;
    let mut outbound = http::Request::new(Body::new(lent));
    *outbound.method_mut() = head.method().clone();
    *outbound.uri_mut() = head.uri().clone();
    *outbound.version_mut() = http::Version::HTTP_2;
    *outbound.headers_mut() = head.headers().clone();

    let answer = match poll_fn(|cx| channel.poll_ready(cx)).await {
        Ok(()) => {
            let answering = channel.call(outbound);
            // A handle keeps the connection open.
            drop(channel);
            answering.await
        }
        Err(error) => Err(error),
    };
    let error = match answer {
        Ok(response) => return Ok(response.map(|body| TonicBody::new(body, lender, link))),
        Err(error) => error,
    };
    if let Some(status) = lender.failure() {
        return Err(CallError {
            status,
            reached: Reached::Local,
            request: None,
        });
    }
    // Read after the error came: what was written for the call was written before it.
    let written = link.meter.sent() != before;
    let Verdict {
        status,
        reached,
        gone,
    } = judged(&error, Phase::Waiting { written }, &link);
    if gone {
        // Where the bytes are encrypted this may be the first sign of a GOAWAY.
        let why = ConnectError::new(status.message());
        link.advance(Condition::Draining(why));
    }
    let request = match reached {
        Reached::No | Reached::LeftOut | Reached::Refused => lender
            .take_back()
            .map(|payload: Payload| Outgoing { head, payload }),
        Reached::Maybe | Reached::Local => None,
    };
    Err(CallError {
        status,
        reached,
        request,
    })
}

/// The body of a response from a tonic channel. Dropping it before its end cancels the call. `Default` is an empty
/// one.
#[derive(Default)]
pub struct TonicBody {
    open: Option<Open>,
}

// The order of the fields is the order of release: the stream first, then the upload and its slot.
struct Open {
    body: Body,
    lender: Lender,
    link: Arc<Link>,
}

impl TonicBody {
    fn new(body: Body, lender: Lender, link: Arc<Link>) -> Self {
        Self {
            open: Some(Open { body, lender, link }),
        }
    }
}

impl http_body::Body for TonicBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(open) = &mut this.open else {
            return Poll::Ready(None);
        };
        let frame = match ready!(Pin::new(&mut open.body).poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
            Some(Err(status)) => Some(Err(open.failure(status))),
            end => end,
        };
        this.open = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.open
            .as_ref()
            .is_none_or(|open| open.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.open {
            Some(open) => open.body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Open {
    /// tonic makes a status of every error, by rules of its own; what it was made of says more.
    fn failure(&self, status: Status) -> Status {
        if let Some(own) = self.lender.failure() {
            return CallersOwn::mark(own);
        }
        match verdict(&status, Phase::Answering, &self.link) {
            Some(Verdict { status, .. }) => status,
            None => status,
        }
    }
}

impl fmt::Debug for TonicBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.open.is_some() { "open" } else { "ended" };
        write!(f, "TonicBody({state})")
    }
}
