//! One table: what a failure means for a call, by how far the call had come. `failure.md` shows it, and a
//! test holds the two together.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use h2::Reason;
use tonic::{Code, Status};

use super::Reached;
use super::link::Link;
use crate::report::{Outcome, StatusCode};

/// How far a call had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No endpoint was chosen yet.
    Queued,
    /// h2 did not take it.
    Opening,
    /// It was taken, and no response head came yet.
    Waiting {
        /// Bytes were written on the connection since it was taken.
        written: bool,
    },
    /// The response head was received.
    Answering,
}

/// How a call failed without a server's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No endpoint can be connected.
    NoEndpoint,
    /// As many calls wait as the channel holds.
    LineFull,
    /// The servers turn most calls away, and this one was spared them.
    Throttled,
    /// The call's time is over.
    Deadline,
    /// The connection is gone.
    Lost,
    /// The server names the streams it will not process: this one.
    GoneAway,
    /// We broke the connection off: the server's fault, or a neighbour's, never this call's.
    BrokenOff(Reason),
    /// The server reset the stream.
    Reset(Reason),
    /// Frames on this stream that h2 did not accept.
    Rejected(Reason),
    /// We reset the stream.
    GivenUp,
    /// The connection has no stream ids left.
    IdsUsedUp,
    /// Headers or a URI that HTTP/2 forbids.
    BadHead,
    /// A message larger than h2 can queue.
    TooLarge,
    /// The caller's request stream ended in an error with this code.
    Upload(Code),
    /// An HTTP answer without `grpc-status`.
    Http(http::StatusCode),
    /// 200, and a content-type that is not gRPC's.
    ContentType,
    /// The response ended without `grpc-status`.
    NoStatus,
    /// A `grpc-status` that cannot be read.
    BadStatus,
    /// An error of h2 of a kind that was not there when this was written.
    Unknown,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What the caller is told.
    pub(crate) code: Code,
    /// Whether the server can have seen the call, and so whether it may go elsewhere.
    pub(crate) reached: Reached,
    /// What the endpoint's load counts it as.
    counted: Code,
}

impl Failure {
    /// The table.
    pub(crate) fn verdict(self, phase: Phase) -> Verdict {
        use Phase::{Answering, Opening, Queued, Waiting};
        let (code, reached) = match (self, phase) {
            // The caller's own doing, however far it came.
            (Self::Upload(code), _) => (code, Reached::Local),
            (Self::BadHead, _) => (Code::Internal, Reached::Local),
            (Self::TooLarge, _) => (Code::ResourceExhausted, Reached::Local),
            (Self::GivenUp, _) => (Code::Cancelled, Reached::Local),

            (Self::LineFull, _) => (Code::ResourceExhausted, Reached::No),
            (Self::Deadline, Queued) => (Code::DeadlineExceeded, Reached::No),
            (Self::Deadline, _) => (Code::DeadlineExceeded, Reached::Maybe),
            (Self::Unknown, Queued | Opening) => (Code::Unknown, Reached::No),
            // Nothing was sent, so nothing the server did can be told: the connection was unusable.
            (_, Queued | Opening) | (Self::NoEndpoint | Self::Throttled | Self::IdsUsedUp, _) => {
                (Code::Unavailable, Reached::No)
            }

            (Self::Lost, Waiting { written: false }) => (Code::Unavailable, Reached::No),
            (Self::Lost, _) => (Code::Unavailable, Reached::Maybe),
            (Self::GoneAway, Waiting { .. }) => (Code::Unavailable, Reached::LeftOut),
            (Self::Reset(Reason::REFUSED_STREAM), Waiting { .. }) => {
                (Code::Unavailable, Reached::Refused)
            }
            // Too late to be handed back, whatever the server says.
            (Self::GoneAway, Answering) => (Code::Unavailable, Reached::Maybe),
            (Self::BrokenOff(reason), _) => (broken_off_code(reason), Reached::Maybe),
            (Self::Reset(reason), _) => (reset_code(reason), Reached::Maybe),
            (Self::Rejected(_), _) => (Code::Internal, Reached::Maybe),

            (Self::Http(status), _) => (http_code(status), Reached::Maybe),
            (Self::ContentType | Self::NoStatus | Self::BadStatus | Self::Unknown, _) => {
                (Code::Unknown, Reached::Maybe)
            }
        };
        // No method said so: a web server's quick 404 must not look like a quick answer.
        let counted = match self {
            Self::Http(_) if !StatusCode::new(code as u8).is_server_fault() => Code::Unknown,
            _ => code,
        };
        Verdict {
            code,
            reached,
            counted,
        }
    }

    /// What the caller is told, in these words.
    pub(crate) fn status(self, phase: Phase, text: impl Into<String>) -> Status {
        Status::new(self.verdict(phase).code, text)
    }

    /// Which failure an error of h2 is.
    fn of(error: &h2::Error, phase: Phase, link: &Link) -> Self {
        if error.is_io() {
            return Self::Lost;
        }
        match (error.reason(), phase) {
            (Some(_), _) if error.is_go_away() && error.is_remote() => Self::GoneAway,
            (Some(reason), _) if error.is_go_away() => Self::BrokenOff(reason),
            (Some(reason), _) if error.is_reset() && error.is_remote() => Self::Reset(reason),
            (Some(reason), _) if error.is_reset() && error.is_library() => Self::Rejected(reason),
            (Some(_), _) if error.is_reset() => Self::GivenUp,
            // h2 has one word for all misuse. A head it would not take is the caller's; without ids it takes none.
            (None, Phase::Answering) => Self::Unknown,
            (None, _) if link.is_out_of_ids() => Self::IdsUsedUp,
            (None, _) => Self::BadHead,
            _ => Self::Unknown,
        }
    }
}

impl Verdict {
    /// How the endpoint's load counts it, where it ends the call.
    pub(crate) fn outcome(self) -> Outcome {
        outcome(StatusCode::new(self.counted as u8), self.reached)
    }
}

/// How an endpoint's load counts a call that ended with `code` and had come so far.
pub(crate) fn outcome(code: StatusCode, reached: Reached) -> Outcome {
    match reached {
        // These say nothing of the server.
        Reached::Local => Outcome::Cancelled,
        Reached::No => Outcome::Refused,
        Reached::LeftOut | Reached::Refused | Reached::Maybe => Outcome::Answered(code),
    }
}

/// What `error` means for a call on `link`. The status is ours, and carries no error of h2: what tonic would make of one
/// depends on its features.
pub(super) fn judge(error: &h2::Error, phase: Phase, link: &Link) -> (Status, Reached) {
    let Verdict { code, reached, .. } = Failure::of(error, phase, link).verdict(phase);
    (Status::new(code, text(error, link)), reached)
}

/// What a status says: the reason recorded for the connection where it is the connection that failed.
fn text(error: &h2::Error, link: &Link) -> String {
    match link.lost() {
        Some(reason) if error.is_io() => reason.to_string(),
        _ => format!("{}: {error}", link.address),
    }
}

/// gRPC's mapping of RST_STREAM codes (PROTOCOL-HTTP2.md, "Errors"). STREAM_CLOSED and
/// HTTP_1_1_REQUIRED, which it leaves open, as in grpc-go.
fn reset_code(reason: Reason) -> Code {
    match reason {
        Reason::NO_ERROR
        | Reason::PROTOCOL_ERROR
        | Reason::INTERNAL_ERROR
        | Reason::FLOW_CONTROL_ERROR
        | Reason::SETTINGS_TIMEOUT
        | Reason::STREAM_CLOSED
        | Reason::FRAME_SIZE_ERROR
        | Reason::COMPRESSION_ERROR
        | Reason::CONNECT_ERROR
        | Reason::HTTP_1_1_REQUIRED => Code::Internal,
        Reason::REFUSED_STREAM => Code::Unavailable,
        Reason::CANCEL => Code::Cancelled,
        Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Unknown,
    }
}

/// Floods (of headers, CONTINUATION, tiny frames) are told apart from broken frames: h2 names the first two reasons
/// for floods only.
fn broken_off_code(reason: Reason) -> Code {
    match reason {
        Reason::ENHANCE_YOUR_CALM | Reason::COMPRESSION_ERROR => Code::ResourceExhausted,
        _ => Code::Unavailable,
    }
}

/// gRPC's mapping of HTTP statuses (http-grpc-status-mapping.md).
fn http_code(status: http::StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// Says of a response body's error that it is the caller's own doing: its request stream ended in an error. Such an end
/// is not held against the endpoint. It is the same for a body as [`Reached::Local`] is for a head.
///
/// ```
/// use equipoise::transport::CallersOwn;
/// use tonic::{Code, Status};
///
/// let marked = CallersOwn::mark(Status::data_loss("the file ended early"));
/// assert_eq!(marked.code(), Code::DataLoss);
/// let own = CallersOwn::of(&marked);
/// assert!(own.is_some_and(|own| own.message() == "the file ended early"));
/// assert!(CallersOwn::of(&Status::data_loss("of the server")).is_none());
/// ```
#[derive(Clone, Debug)]
pub struct CallersOwn(Status);

impl CallersOwn {
    /// `status` with the mark as its source, for [`Connection::Body`](super::Connection::Body) to end in.
    pub fn mark(status: Status) -> Status {
        let mut marked = status.clone();
        marked.set_source(Arc::new(Self(status)));
        marked
    }

    /// The status that was marked, as it was.
    pub fn of(status: &Status) -> Option<&Status> {
        let source = status.source()?.downcast_ref::<Self>()?;
        Some(&source.0)
    }
}

impl fmt::Display for CallersOwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request's own stream failed: {}", self.0.message())
    }
}

impl StdError for CallersOwn {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::link::tests::link;
    use super::*;

    const OPENING: Phase = Phase::Opening;
    const UNWRITTEN: Phase = Phase::Waiting { written: false };
    const WAITING: Phase = Phase::Waiting { written: true };
    const ANSWERING: Phase = Phase::Answering;

    /// Every failure under its name in `failure.md`. A new variant does not compile without its row there.
    fn name(failure: Failure) -> String {
        match failure {
            Failure::NoEndpoint => "no endpoint can be connected".into(),
            Failure::LineFull => "the line of waiting calls is full".into(),
            Failure::Throttled => "the servers turn most calls away".into(),
            Failure::Deadline => "the deadline passed".into(),
            Failure::Lost => "the connection was lost: closed, reset, silent under keepalive, cut at the drain deadline".into(),
            Failure::GoneAway => "the server's GOAWAY leaves the call out".into(),
            Failure::BrokenOff(Reason::ENHANCE_YOUR_CALM | Reason::COMPRESSION_ERROR) => {
                "we broke the connection off: too much of something (ENHANCE_YOUR_CALM, COMPRESSION_ERROR)".into()
            }
            Failure::BrokenOff(_) => "we broke the connection off: frames that HTTP/2 forbids".into(),
            Failure::Reset(reason) => match u32::from(reason) {
                0..=13 => format!("RST_STREAM {reason:?}"),
                _ => "RST_STREAM with a code of no name".into(),
            },
            Failure::Rejected(_) => {
                "we reset the stream: frames that HTTP/2 forbids, a head without `:status`, headers larger than announced".into()
            }
            Failure::GivenUp => "we reset the stream: the call was given up".into(),
            Failure::IdsUsedUp => "the connection's stream ids are used up".into(),
            Failure::BadHead => "the request's head cannot be sent over HTTP/2".into(),
            Failure::TooLarge => "a message is larger than HTTP/2 can queue".into(),
            Failure::Upload(_) => "the caller's request stream ended in an error".into(),
            Failure::Http(status) => match status.as_u16() {
                429 | 502..=504 => "`:status` 429, 502, 503, 504 without `grpc-status`".into(),
                number @ (400 | 401 | 403 | 404) => format!("`:status` {number} without `grpc-status`"),
                _ => "any other `:status` but 200 without `grpc-status`".into(),
            },
            Failure::ContentType => "`:status` 200 with a content-type that is not gRPC's".into(),
            Failure::NoStatus => "the response ended without `grpc-status`".into(),
            Failure::BadStatus => "`grpc-status` is no code, or is there more than once".into(),
            Failure::Unknown => "an error that this table does not know".into(),
        }
    }

    /// Every failure there is, with every reason, HTTP status and code.
    fn all() -> Vec<Failure> {
        let mut all = vec![
            Failure::NoEndpoint,
            Failure::LineFull,
            Failure::Throttled,
            Failure::Deadline,
            Failure::Lost,
            Failure::GoneAway,
            Failure::GivenUp,
            Failure::IdsUsedUp,
            Failure::BadHead,
            Failure::TooLarge,
            Failure::ContentType,
            Failure::NoStatus,
            Failure::BadStatus,
            Failure::Unknown,
        ];
        // 14 and beyond have no name.
        for reason in (0..=15).chain([u32::MAX]).map(Reason::from) {
            all.extend([
                Failure::BrokenOff(reason),
                Failure::Reset(reason),
                Failure::Rejected(reason),
            ]);
        }
        let statuses = (100..600).filter_map(|number| http::StatusCode::from_u16(number).ok());
        all.extend(statuses.map(Failure::Http));
        all.extend((0..17).map(|code| Failure::Upload(Code::from_i32(code))));
        all
    }

    /// The phases that a cell of the table names.
    fn phases(cell: &str) -> Vec<Phase> {
        let phase = |word| match word {
            "queued" => Phase::Queued,
            "opening" => OPENING,
            "unwritten" => UNWRITTEN,
            "waiting" => WAITING,
            "answering" => ANSWERING,
            other => panic!("no phase: {other:?}"),
        };
        cell.split(", ").map(phase).collect()
    }

    /// `UNAVAILABLE` for `Unavailable`, as gRPC writes it.
    fn wire_name(code: Code) -> String {
        let mut name = String::new();
        for char in format!("{code:?}").chars() {
            if char.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(char.to_ascii_uppercase());
        }
        name
    }

    #[test]
    fn the_table_says_what_the_code_does_in_every_row() {
        let rows = include_str!("failure.md")
            .lines()
            .filter(|line| line.starts_with("| "));
        let rows: Vec<Vec<&str>> = rows
            .skip(1)
            .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
            .collect();
        let (mut seen, mut checked) = (BTreeSet::new(), 0);
        for row in &rows {
            let [what, when, code, reached, counts] = row[..] else {
                panic!("not five cells: {row:?}");
            };
            let of_this_row: Vec<Failure> = all()
                .into_iter()
                .filter(|failure| name(*failure) == what)
                .collect();
            assert!(!of_this_row.is_empty(), "no failure is called {what:?}");
            for phase in phases(when) {
                assert!(
                    seen.insert((what, format!("{phase:?}"))),
                    "twice: {what:?} {phase:?}"
                );
                for &failure in &of_this_row {
                    let verdict = failure.verdict(phase);
                    let context = format!("{failure:?} {phase:?} {verdict:?}");
                    match failure {
                        Failure::Upload(own) => {
                            assert_eq!((verdict.code, code), (own, "that error's own"))
                        }
                        _ => assert_eq!(wire_name(verdict.code), code, "{context}"),
                    }
                    assert_eq!(format!("{:?}", verdict.reached), reached, "{context}");
                    let faulty = match verdict.outcome() {
                        Outcome::Answered(code) => code.is_server_fault(),
                        Outcome::Pushed(_) => panic!("no failure of ours asks for time"),
                        Outcome::Cancelled | Outcome::Refused => false,
                    };
                    assert_eq!(if faulty { "yes" } else { "no" }, counts, "{context}");
                    checked += 1;
                }
            }
        }
        for failure in all() {
            let name = name(failure);
            assert!(
                rows.iter().any(|row| row[0] == name),
                "no row for {failure:?}: {name:?}"
            );
        }
        println!("{} rows, {checked} cases", rows.len());
    }

    /// What a call may have done is never done twice: whatever follows the first byte and is not the server's own word
    /// stays where it was.
    #[test]
    fn only_what_no_server_processed_may_go_elsewhere() {
        for failure in all() {
            for phase in [WAITING, ANSWERING] {
                let again = matches!(
                    failure.verdict(phase).reached,
                    Reached::No | Reached::LeftOut | Reached::Refused
                );
                let unprocessed = matches!(
                    failure,
                    Failure::GoneAway | Failure::Reset(Reason::REFUSED_STREAM)
                ) && phase == WAITING;
                // These come before there is a stream.
                let nowhere = matches!(
                    failure,
                    Failure::NoEndpoint
                        | Failure::LineFull
                        | Failure::Throttled
                        | Failure::IdsUsedUp
                );
                assert_eq!(again, unprocessed || nowhere, "{failure:?} {phase:?}");
            }
        }
    }

    // What only a live connection can produce (resets, GOAWAY, lost sockets) is in tests/transport.
    #[test]
    fn an_error_of_an_unknown_kind_is_unknown() {
        // The one kind that h2 lets others make, and never makes itself.
        let error = h2::Error::from(Reason::HTTP_1_1_REQUIRED);
        for (phase, reached) in [
            (OPENING, Reached::No),
            (WAITING, Reached::Maybe),
            (ANSWERING, Reached::Maybe),
        ] {
            assert_eq!(Failure::of(&error, phase, &link()), Failure::Unknown);
            let (status, found) = judge(&error, phase, &link());
            assert_eq!((status.code(), found), (Code::Unknown, reached));
            assert!(status.message().starts_with("127.0.0.1:1: "), "{status}");
            assert!(status.source().is_none(), "no error of h2 goes out");
        }
    }

    #[test]
    fn a_callers_own_error_comes_out_of_its_mark_as_it_was() {
        let mut own = Status::data_loss("torn");
        own.metadata_mut().insert("why", "disk".parse().unwrap());
        let marked = CallersOwn::mark(own.clone());
        assert_eq!(
            (marked.code(), marked.message()),
            (own.code(), own.message())
        );
        let out = CallersOwn::of(&marked).unwrap();
        assert_eq!(
            (out.code(), out.message(), out.metadata().len()),
            (own.code(), own.message(), 1)
        );
        assert!(CallersOwn::of(&own).is_none());
    }
}
