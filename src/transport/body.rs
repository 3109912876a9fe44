//! The body of a response, which holds all that belongs to its call.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http_body::{Frame, SizeHint};
use tonic::Status;

use super::call::Held;
use super::failure::{CallersOwn, Phase, judge};

/// The body of a response. Reading it gives the server room to send more; dropping it before its end
/// cancels the call (RST_STREAM CANCEL). `Default` is an empty one.
#[derive(Default)]
pub struct ResponseBody {
    open: Option<Open>,
}

// The order of the fields is the order of release: the stream first, then the slot.
struct Open {
    stream: RecvStream,
    // Kept where part of the request may still be queued in h2.
    upload: Option<SendStream<Bytes>>,
    held: Held,
    data_ended: bool,
}

impl ResponseBody {
    pub(super) fn new(stream: RecvStream, upload: Option<SendStream<Bytes>>, held: Held) -> Self {
        Self {
            open: Some(Open {
                stream,
                upload,
                held,
                data_ended: false,
            }),
        }
    }

    /// Lets go of everything. What is left of the request is of no use to a server that has answered
    /// in full, and would hold its slot.
    fn end(&mut self) {
        if let Some(mut open) = self.open.take() {
            open.held.over();
            if let Some(upload) = &mut open.upload {
                upload.send_reset(Reason::CANCEL);
            }
        }
    }
}

impl http_body::Body for ResponseBody {
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
        let failure = if open.data_ended {
            match ready!(open.stream.poll_trailers(cx)) {
                Ok(trailers) => {
                    this.end();
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Err(error) => error,
            }
        } else {
            match ready!(open.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    open.held.link().heard();
                    // An error here means that the stream is gone, which the next poll says.
                    let _ = open.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                None => {
                    open.data_ended = true;
                    return Pin::new(this).poll_frame(cx);
                }
                Some(Err(error)) => error,
            }
        };
        let status = match open.held.upload_failure() {
            Some(own) => CallersOwn::mark(own),
            None => judge(&failure, Phase::Answering, open.held.link()).0,
        };
        this.end();
        Poll::Ready(Some(Err(status)))
    }

    fn is_end_stream(&self) -> bool {
        self.open.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.open {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // Ended on the wire and dropped unread (a response without messages, for one) is no cancelling.
        if let Some(open) = &self.open
            && open.stream.is_end_stream()
        {
            self.end();
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.open.is_some() { "open" } else { "ended" };
        write!(f, "ResponseBody({state})")
    }
}
