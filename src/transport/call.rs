//! One call, from the request's head to the response's.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::USER_AGENT;
use http::uri::{PathAndQuery, Uri};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::{Code, Status};

use super::body::ResponseBody;
use super::failure::{Failure, Phase, Verdict, judge};
use super::link::Link;
use super::pump::{Look, Pump, Upload, look};
use super::{CallError, Outgoing, Payload, Reached, Slot};

/// Messages up to this size leave h2 in one go, unless a neighbour has used up the connection's window.
/// The stream of a larger one is kept to the end of the response, so that an early answer can reset it.
const SMALL: usize = 16 * 1024;

/// The most that one `send_data` takes.
const LARGEST: usize = i32::MAX as usize;

/// What a call holds besides its stream. Dropped before [`over`](Self::over) it counts as cancelled.
pub(super) struct Held {
    link: Arc<Link>,
    over: bool,
    // One of the two has the slot: the upload, from when the request needs a task of its own.
    slot: Option<Slot>,
    pump: Option<(JoinHandle<Option<Body>>, Arc<Upload>)>,
}

impl Held {
    pub(super) fn new(link: Arc<Link>, slot: Slot) -> Self {
        Self {
            link,
            over: false,
            slot: Some(slot),
            pump: None,
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// The call has ended without our giving it up.
    pub(super) fn over(&mut self) {
        self.over = true;
    }

    /// What the caller's own body failed with, if that is what ended the call.
    pub(super) fn upload_failure(&self) -> Option<Status> {
        let (_, upload) = self.pump.as_ref()?;
        upload.failed.get().cloned()
    }

    /// Starts the task that carries the rest of the request. On the connection's own runtime, so that
    /// the caller need not be in one.
    fn pump(&mut self, stream: SendStream<Bytes>, body: Body, taken: Vec<Bytes>) {
        let upload = Upload::new(self.slot.take());
        let pump = Pump {
            stream,
            body,
            taken,
            upload: upload.clone(),
        };
        self.pump = Some((self.link.runtime.spawn(pump.run()), upload));
    }

    /// The body, if the pump took nothing from it before its stream failed.
    fn poll_take_back(&mut self, cx: &mut Context<'_>) -> Poll<Option<Body>> {
        let Some((pump, _)) = self.pump.as_mut() else {
            return Poll::Ready(None);
        };
        let body = ready!(Pin::new(pump).poll(cx)).ok().flatten();
        self.pump = None;
        Poll::Ready(body)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.over {
            self.link.count_cancelled();
        }
        if let Some((pump, _)) = &self.pump {
            pump.abort();
        }
    }
}

/// Opens a stream for `request`, sends what there is of it, and gives what resolves with the response's head.
pub(super) fn call(
    mut sender: SendRequest<Bytes>,
    link: Arc<Link>,
    request: Outgoing,
    slot: Slot,
) -> Sending {
    let Outgoing { mut head, payload } = request;
    // Before the copy is made: the original has room for one more, a copy would have to grow.
    let agent = head.headers_mut().entry(USER_AGENT);
    agent.or_insert_with(|| link.agent.clone());
    let outbound = match outbound(&head, &link) {
        Ok(outbound) => outbound,
        // Wrong anywhere: not handed back.
        Err(text) => return Sending::Failed(Some(own(Failure::BadHead, text))),
    };
    // Declared before what refers to the stream: dropped after it.
    let mut held = Held::new(link, slot);
    let before = held.link.meter.sent();
    let opened = sender.send_request(outbound, false);
    // A handle keeps the connection open, and the stream alive if h2 had to park it.
    drop(sender);
    let (response, mut stream) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            held.over();
            let (status, reached) = judge(&error, Phase::Opening, &held.link);
            if reached == Reached::Local {
                return Sending::Failed(Some(failed(status, reached)));
            }
            if status.code() == Code::Unavailable {
                // The connection has ended for h2, and its task is about to say so on another thread.
                // Until then it must not be picked again: the call would be back here at once, and at
                // the end of its retries.
                held.link.slots.close();
            }
            return Sending::Failed(Some(CallError {
                status,
                reached,
                request: Some(Outgoing { head, payload }),
            }));
        }
    };
    held.link.count_opened();

    let (found, body) = match payload {
        Payload::Whole(message) => (Look::Whole(message), Body::empty()),
        Payload::Untouched(mut body) => {
            // Nobody is to be woken: a body that is not done is polled again by its pump.
            let mut cx = Context::from_waker(Waker::noop());
            (look(&mut body, &mut cx), body)
        }
    };
    let (mut whole, mut upload) = (None, None);
    match found {
        Look::Whole(message) if message.len() > LARGEST => {
            stream.send_reset(Reason::CANCEL);
            let text = format!(
                "a message of {} bytes is more than HTTP/2 can queue ({LARGEST})",
                message.len()
            );
            return Sending::Failed(Some(own(Failure::TooLarge, text)));
        }
        Look::Whole(message) => {
            // An error means that the stream is gone already, which the response tells.
            let _ = stream.send_data(message.clone(), true);
            upload = (message.len() > SMALL).then_some(stream);
            whole = Some(message);
        }
        Look::Streaming(taken) => held.pump(stream, body, taken),
        Look::Failed(status) => {
            stream.send_reset(Reason::CANCEL);
            return Sending::Failed(Some(upload_failed(status)));
        }
    }
    Sending::Waiting(Waiting {
        response,
        upload,
        whole,
        head,
        before,
        held,
    })
}

/// A call whose response's head has not come yet. Dropping it cancels the call.
pub(super) enum Sending {
    Waiting(Waiting),
    /// The stream failed before the server saw it; its pump is asked for what it was given.
    TakingBack(Held, Option<CallError>, Option<Box<http::Request<()>>>),
    Failed(Option<CallError>),
    Done,
}

// The order of the fields is the order of release: what refers to the stream, then the slot.
pub(super) struct Waiting {
    response: ResponseFuture,
    // The stream's sending half, where it may be needed again.
    upload: Option<SendStream<Bytes>>,
    // What can be sent again.
    whole: Option<Bytes>,
    head: Box<http::Request<()>>,
    before: u64,
    held: Held,
}

impl Future for Sending {
    type Output = Result<http::Response<ResponseBody>, CallError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match this {
                Self::Waiting(waiting) => {
                    let result = ready!(Pin::new(&mut waiting.response).poll(cx));
                    let Self::Waiting(waiting) = std::mem::replace(this, Self::Done) else {
                        continue;
                    };
                    match result {
                        Ok(response) => return Poll::Ready(Ok(waiting.answered(response))),
                        Err(error) => *this = waiting.broken(&error),
                    }
                }
                Self::TakingBack(held, error, head) => {
                    let body = ready!(held.poll_take_back(cx));
                    let (error, head) = (error.take(), head.take());
                    *this = Self::Failed(error.map(|error| CallError {
                        request: body.zip(head).map(|(body, head)| Outgoing {
                            head,
                            payload: Payload::Untouched(body),
                        }),
                        ..error
                    }));
                }
                Self::Failed(error) => match error.take() {
                    Some(error) => return Poll::Ready(Err(error)),
                    None => return Poll::Pending,
                },
                // Polled after it resolved.
                Self::Done => return Poll::Pending,
            }
        }
    }
}

impl Waiting {
    fn answered(self, response: http::Response<RecvStream>) -> http::Response<ResponseBody> {
        self.held.link.heard();
        response.map(|stream| ResponseBody::new(stream, self.upload, self.held))
    }

    fn broken(self, error: &h2::Error) -> Sending {
        let Self {
            response,
            upload,
            whole,
            head,
            before,
            mut held,
        } = self;
        held.over();
        drop((response, upload));
        if let Some(status) = held.upload_failure() {
            return Sending::Failed(Some(upload_failed(status)));
        }
        // Read after the error came: h2 writes before it fails.
        let written = held.link.meter.sent() != before;
        let (status, reached) = judge(error, Phase::Waiting { written }, &held.link);
        let mut error = failed(status, reached);
        match (reached, whole) {
            (Reached::Maybe | Reached::Local, _) => {}
            (_, Some(message)) => {
                let payload = Payload::Whole(message);
                error.request = Some(Outgoing { head, payload });
            }
            (_, None) => return Sending::TakingBack(held, Some(error), Some(head)),
        }
        Sending::Failed(Some(error))
    }
}

fn failed(status: Status, reached: Reached) -> CallError {
    CallError {
        status,
        reached,
        request: None,
    }
}

/// What the caller itself did wrong, before the server could say anything.
fn own(failure: Failure, text: String) -> CallError {
    let Verdict { code, reached, .. } = failure.verdict(Phase::Opening);
    failed(Status::new(code, text), reached)
}

fn upload_failed(status: Status) -> CallError {
    let reached = Failure::Upload(status.code())
        .verdict(Phase::Opening)
        .reached;
    failed(status, reached)
}

/// The head as it goes out: with scheme and authority. The one it is made from stays as it was, for another
/// connection.
fn outbound(head: &http::Request<()>, link: &Link) -> Result<http::Request<()>, String> {
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(link.scheme.clone());
    uri.authority = Some(match head.uri().authority() {
        Some(own) => own.clone(),
        None => link.authority.clone(),
    });
    let path = head.uri().path_and_query();
    uri.path_and_query = Some(path.cloned().unwrap_or(PathAndQuery::from_static("/")));
    let uri = Uri::from_parts(uri).map_err(|error| format!("uri {:?}: {error}", head.uri()))?;
    let mut outbound = http::Request::new(());
    *outbound.method_mut() = head.method().clone();
    *outbound.uri_mut() = uri;
    *outbound.version_mut() = http::Version::HTTP_2;
    *outbound.headers_mut() = head.headers().clone();
    Ok(outbound)
}
