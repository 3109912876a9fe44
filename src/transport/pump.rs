//! Carries a request body that is not all there at once, under flow control.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;
use tonic::Status;
use tonic::body::Body;

use super::Slot;

/// What a first look at a request body found.
pub(super) enum Look {
    /// The whole of it, one message.
    Whole(Bytes),
    /// More is to come; this was taken so far.
    Streaming(Vec<Bytes>),
    /// The caller's own error.
    Failed(Status),
}

/// Polls the body until it is pending, ends, or is seen to have more than one message: a unary message
/// and the end that follows it at once then leave together.
pub(super) fn look(body: &mut Body, cx: &mut Context<'_>) -> Look {
    let mut first: Option<Bytes> = None;
    loop {
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => return Look::Streaming(first.into_iter().collect()),
            Poll::Ready(None) => return Look::Whole(first.unwrap_or_default()),
            Poll::Ready(Some(Err(status))) => return Look::Failed(status),
            // Trailers do not exist in a gRPC request.
            Poll::Ready(Some(Ok(frame))) => match (frame.into_data(), first.take()) {
                (Ok(data), None) => first = Some(data),
                (Ok(data), Some(before)) => return Look::Streaming(vec![before, data]),
                (Err(_), before) => first = before,
            },
        }
    }
}

/// What a pump shares with the call it works for.
#[derive(Debug)]
pub(super) struct Upload {
    /// The error of the caller's body that ended the call.
    pub(super) failed: OnceLock<Status>,
    // Held by both, so that it is free only when both have let go of the stream.
    _slot: Option<Slot>,
}

impl Upload {
    pub(super) fn new(slot: Option<Slot>) -> Arc<Self> {
        Arc::new(Self {
            failed: OnceLock::new(),
            _slot: slot,
        })
    }
}

/// The task of one request body. The order of the fields is the order of release: a pump that is
/// aborted drops the last reference to its stream, which resets it, before its slot.
pub(super) struct Pump {
    pub(super) stream: SendStream<Bytes>,
    pub(super) body: Body,
    pub(super) taken: Vec<Bytes>,
    pub(super) upload: Arc<Upload>,
}

impl Pump {
    /// Runs until the body has ended or the stream is gone. Gives the body back if nothing was taken
    /// from it.
    pub(super) async fn run(mut self) -> Option<Body> {
        let mut untouched = self.taken.is_empty();
        for data in std::mem::take(&mut self.taken) {
            self.send(data).await?;
        }
        loop {
            // Room first: a message is taken from the caller only when it can go.
            if self.room(1).await.is_none() {
                return untouched.then_some(self.body);
            }
            let frame = poll_fn(|cx| match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(Some(frame)),
                // An idle upload learns of a reset or a lost connection only by asking.
                Poll::Pending => self.stream.poll_reset(cx).map(|_| None),
            });
            match frame.await {
                None => return untouched.then_some(self.body),
                Some(Some(Ok(frame))) => {
                    untouched = false;
                    if let Ok(data) = frame.into_data() {
                        self.send(data).await?;
                    }
                }
                Some(Some(Err(status))) => {
                    // Before the reset: the response side wakes by it and asks for the reason.
                    let _ = self.upload.failed.set(status);
                    self.stream.send_reset(Reason::CANCEL);
                    return None;
                }
                Some(None) => {
                    // An error means that the stream is gone, which the response side tells.
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return None;
                }
            }
        }
    }

    /// Waits until up to `wanted` bytes can go, and says how many; `None` when the stream is gone.
    async fn room(&mut self, wanted: usize) -> Option<usize> {
        self.stream.reserve_capacity(wanted);
        // Asked first: `poll_capacity` only tells of changes.
        let room = self.stream.capacity();
        if room > 0 {
            return Some(room);
        }
        poll_fn(|cx| self.stream.poll_capacity(cx)).await?.ok()
    }

    /// Sends one message in pieces that the windows have room for, so that h2 never holds data which
    /// only the server could set free: an end queued behind it would keep the slot.
    async fn send(&mut self, mut data: Bytes) -> Option<()> {
        while !data.is_empty() {
            let room = self.room(data.len()).await?;
            let piece = data.split_to(room.min(data.len()));
            self.stream.send_data(piece, false).ok()?;
        }
        Some(())
    }
}
