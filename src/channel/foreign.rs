//! An answer that is not gRPC: a proxy's error page, a web server behind the wrong port.

use std::fmt::Write as _;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode as HttpStatus};
use http_body::Body;
use tokio::runtime::Handle;
use tonic::{Code, Status};

use crate::report::Outcome;
use crate::transport::{Failure, Phase};

use super::deadline::Deadline;
use super::trailers;

/// How much of the answer is quoted, in bytes.
const QUOTED: usize = 4 * 1024;

/// How long its text is waited for, and in how many pieces.
const PATIENCE: Duration = Duration::from_secs(1);
const PIECES: usize = 1_000;

/// Whether a response is gRPC's. A `grpc-status` in the head makes it so, whatever else it says; a missing content-type
/// is let pass, as tonic does.
pub(super) fn is_grpc<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    let plain = response.status() == HttpStatus::OK
        && headers.get(CONTENT_TYPE).is_none_or(is_grpc_content_type);
    plain || trailers::has_status(headers)
}

/// `application/grpc`, alone or with a suffix that names the codec.
fn is_grpc_content_type(value: &HeaderValue) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let value = value.as_bytes();
    let (start, rest) = value.split_at(GRPC.len().min(value.len()));
    start.eq_ignore_ascii_case(GRPC) && matches!(rest, [] | [b'+' | b';' | b' ', ..])
}

/// What became of a call that was answered so.
pub(super) enum Word {
    /// The server gave a status after all, in the trailers.
    Given(Status),
    /// The status that is made of the answer, with the start of its text, and how the endpoint's load counts it.
    Made(Status, Outcome),
}

/// Judges a response that is not [gRPC's](is_grpc). Takes at most [`PATIENCE`], or until the deadline.
pub(super) async fn judge<B>(response: Response<B>, deadline: &mut Option<Deadline>) -> Word
where
    B: Body<Data = Bytes, Error = Status>,
{
    let (head, body) = response.into_parts();
    let (failure, mut message) = match head.headers.get(CONTENT_TYPE) {
        Some(kind) if head.status == HttpStatus::OK => {
            let message = format!("server answered HTTP 200 with content-type {kind:?}, not gRPC");
            (Failure::ContentType, message)
        }
        _ => {
            let number = head.status.as_u16();
            let message = format!("server answered HTTP {number}, not gRPC");
            (Failure::Http(head.status), message)
        }
    };
    match read(body, deadline).await {
        Read::Given(status) => return Word::Given(status),
        Read::Text(text) if text.trim_ascii().is_empty() => {}
        Read::Text(text) => {
            message.push_str(": ");
            quote(&text, &mut message);
        }
    }
    let verdict = failure.verdict(Phase::Answering);
    Word::Made(Status::new(verdict.code, message), verdict.outcome())
}

enum Read {
    Given(Status),
    Text(Vec<u8>),
}

/// The start of a body, and what its trailers say.
async fn read<B>(body: B, deadline: &mut Option<Deadline>) -> Read
where
    B: Body<Data = Bytes, Error = Status>,
{
    let mut body = pin!(body);
    // Without a runtime there are no timers: then what is there already has to do.
    let patience = Handle::try_current().map(|_| tokio::time::sleep(PATIENCE));
    let mut patience = pin!(patience.ok().map(Box::pin));
    let mut text = Vec::new();
    for _ in 0..PIECES {
        let frame = poll_fn(|cx| {
            if let Poll::Ready(frame) = body.as_mut().poll_frame(cx) {
                return Poll::Ready(frame);
            }
            let Some(patience) = patience.as_mut().get_mut() else {
                return Poll::Ready(None);
            };
            let late = deadline.as_mut().map(|deadline| &mut deadline.sleep);
            match patience.as_mut().poll(cx).is_ready()
                || late.is_some_and(|late| late.as_mut().poll(cx).is_ready())
            {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        });
        // An error ends it as well as an end does: what was read stays.
        let Some(Ok(frame)) = frame.await else {
            break;
        };
        match frame.into_data() {
            Ok(data) => {
                let room = QUOTED + 1 - text.len();
                text.extend_from_slice(&data[..data.len().min(room)]);
            }
            Err(frame) => {
                let given = frame.into_trailers().ok().and_then(|mut trailers| {
                    trailers::read(&mut trailers)?;
                    Status::from_header_map(&trailers)
                });
                match given {
                    // OK contradicts all that came before it.
                    Some(status) if status.code() != Code::Ok => return Read::Given(status),
                    _ => break,
                }
            }
        }
        if text.len() > QUOTED {
            break;
        }
    }
    Read::Text(text)
}

/// Appends `text`, at most [`QUOTED`] bytes of it, as something that can be printed in a line.
fn quote(text: &[u8], to: &mut String) {
    let start = &text[..text.len().min(QUOTED)];
    for char in String::from_utf8_lossy(start).trim().chars() {
        match char.is_control() {
            // Writing to a string cannot fail.
            true => drop(write!(to, "{}", char.escape_default())),
            false => to.push(char),
        }
    }
    if text.len() > QUOTED {
        to.push_str("...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_grpc_is_told_by_status_content_type_and_grpc_status() {
        let ok = "application/grpc";
        for (status, kind, grpc_status, expected) in [
            (200, Some(ok), false, true),
            (200, Some("application/grpc+proto"), false, true),
            (200, Some("Application/gRPC; charset=x"), false, true),
            (200, None, false, true),
            (200, Some("application/grpc-web"), false, false),
            (200, Some("application/json"), false, false),
            (200, Some("app"), false, false),
            (200, Some("text/html"), true, true),
            (502, Some(ok), false, false),
            (502, Some("text/html"), false, false),
            (502, Some("text/html"), true, true),
        ] {
            let mut response = Response::builder().status(status);
            if let Some(kind) = kind {
                response = response.header(CONTENT_TYPE, kind);
            }
            if grpc_status {
                response = response.header("grpc-status", "5");
            }
            let response = response.body(()).unwrap();
            assert_eq!(is_grpc(&response), expected, "{response:?}");
        }
    }

    #[test]
    fn a_quote_fits_in_a_line() {
        let quoted = |text: &[u8]| {
            let mut to = String::new();
            quote(text, &mut to);
            to
        };
        assert_eq!(
            quoted(b"\n <b>Bad</b>\r\n\tGateway\x1b[31m \xff\n"),
            "<b>Bad</b>\\r\\n\\tGateway\\u{1b}[31m \u{fffd}"
        );
        let long = vec![b'x'; QUOTED + 1];
        assert_eq!(quoted(&long[..QUOTED]).len(), QUOTED);
        assert_eq!(quoted(&long).len(), QUOTED + 3);
    }

    #[test]
    fn without_a_runtime_what_is_there_has_to_do() {
        let body = tonic::body::Body::new(http_body_util::Full::new(Bytes::from_static(b"gone")));
        let response = Response::builder().status(503).body(body).unwrap();
        let mut deadline = None;
        let judged = pin!(judge(response, &mut deadline));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Word::Made(status, _)) = judged.poll(&mut cx) else {
            panic!("it waits, or the server gave a status");
        };
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), "server answered HTTP 503, not gRPC: gone");
    }
}
