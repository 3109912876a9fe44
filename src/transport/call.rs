//! One call, from the request's head to the response's.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::header::{HeaderValue, USER_AGENT};
use http::uri::{PathAndQuery, Scheme, Uri};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::{Code, Status};

use super::body::ResponseBody;
use super::failure::{Phase, judge};
use super::link::Link;
use super::pump::{Look, Pump, Upload, look};
use super::{CallError, Outgoing, Payload, Reached, Slot};

/// Messages up to this size leave h2 in one go, unless a neighbour has used up the connection's window.
/// The stream of a larger one is kept to the end of the response, so that an early answer can reset it.
const SMALL: usize = 16 * 1024;

/// The most that one `send_data` takes.
const LARGEST: usize = i32::MAX as usize;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("equipoise/", env!("CARGO_PKG_VERSION")));

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
    async fn take_back(&mut self) -> Option<Body> {
        let (pump, _) = self.pump.as_mut()?;
        pump.await.ok().flatten()
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

/// Sends `request` on a stream of its own, and resolves with the response's head.
pub(super) async fn call(
    mut sender: SendRequest<Bytes>,
    link: Arc<Link>,
    request: Outgoing,
    slot: Slot,
) -> Result<http::Response<ResponseBody>, CallError> {
    let Outgoing { head, payload } = request;
    let outbound = match outbound(&head, &link) {
        Ok(outbound) => outbound,
        // Wrong anywhere: not handed back.
        Err(status) => return Err(failed(status, Reached::No)),
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
            if status.code() == Code::Unavailable {
                // The connection has ended for h2, and its task is about to say so on another thread.
                // Until then it must not be picked again: the call would be back here at once, and at
                // the end of its retries.
                held.link.slots.close();
            }
            return Err(CallError {
                status,
                reached,
                request: Some(Outgoing { head, payload }),
            });
        }
    };
    held.link.count_opened();

    let (found, body) = match payload {
        Payload::Whole(message) => (Look::Whole(message), Body::empty()),
        Payload::Untouched(mut body) => {
            let found = poll_fn(|cx| Poll::Ready(look(&mut body, cx))).await;
            (found, body)
        }
    };
    // What can be sent again, and the stream's sending half where it may be needed again.
    let (mut whole, mut upload) = (None, None);
    match found {
        Look::Whole(message) if message.len() > LARGEST => {
            stream.send_reset(Reason::CANCEL);
            let text = format!(
                "a message of {} bytes is more than HTTP/2 can queue ({LARGEST})",
                message.len()
            );
            return Err(failed(Status::resource_exhausted(text), Reached::Maybe));
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
            return Err(failed(status, Reached::Maybe));
        }
    }

    let error = match response.await {
        Ok(response) => {
            held.link.heard();
            return Ok(response.map(|stream| ResponseBody::new(stream, upload, held)));
        }
        Err(error) => error,
    };
    held.over();
    drop(upload);
    if let Some(status) = held.upload_failure() {
        return Err(failed(status, Reached::Maybe));
    }
    // Read after the error came: h2 writes before it fails.
    let written = held.link.meter.sent() != before;
    let (status, reached) = judge(&error, Phase::Waiting { written }, &held.link);
    let payload = match (reached, whole) {
        (Reached::Maybe, _) => None,
        (_, Some(message)) => Some(Payload::Whole(message)),
        (_, None) => held.take_back().await.map(Payload::Untouched),
    };
    Err(CallError {
        status,
        reached,
        request: payload.map(|payload| Outgoing { head, payload }),
    })
}

fn failed(status: Status, reached: Reached) -> CallError {
    CallError {
        status,
        reached,
        request: None,
    }
}

/// The head as it goes out: with scheme, authority and user agent. The one it is made from stays as it
/// was, for another connection.
fn outbound(head: &http::Request<()>, link: &Link) -> Result<http::Request<()>, Status> {
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(match head.uri().authority() {
        Some(own) => own.clone(),
        None => link.authority.clone(),
    });
    let path = head.uri().path_and_query();
    uri.path_and_query = Some(path.cloned().unwrap_or(PathAndQuery::from_static("/")));
    let uri = Uri::from_parts(uri)
        .map_err(|error| Status::internal(format!("uri {:?}: {error}", head.uri())))?;
    let mut outbound = http::Request::new(());
    *outbound.method_mut() = head.method().clone();
    *outbound.uri_mut() = uri;
    *outbound.version_mut() = http::Version::HTTP_2;
    *outbound.headers_mut() = head.headers().clone();
    outbound.headers_mut().entry(USER_AGENT).or_insert(AGENT);
    Ok(outbound)
}
