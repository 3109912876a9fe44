//! One table: what an error of h2 means for a call, by the phase the call was in.

use h2::Reason;
use tonic::{Code, Status};

use super::Reached;
use super::link::Link;

/// How far a call had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// h2 did not take it.
    Opening,
    /// It was taken, and no response head came yet.
    Waiting {
        /// Bytes were written on the connection since it was taken.
        written: bool,
    },
    /// The response head was given out.
    Answering,
}

/// What `error` means for a call on `link`.
pub(super) fn judge(error: &h2::Error, phase: Phase, link: &Link) -> (Status, Reached) {
    let (code, unprocessed) = match Kind::of(error) {
        Kind::Io => (Code::Unavailable, None),
        // The server names the streams it will not process: this one.
        Kind::GoAway { remote: true } => (Code::Unavailable, Some(Reached::Refused)),
        // We broke the connection off: the server's fault, or a neighbour's, never this call's.
        Kind::GoAway { remote: false } => (Code::Unavailable, None),
        Kind::Reset(Reason::REFUSED_STREAM) => (Code::Unavailable, Some(Reached::Refused)),
        Kind::Reset(reason) => (reset_code(reason), None),
        // Frames on this stream that h2 could not accept.
        Kind::Rejected => (Code::Internal, None),
        // Only from a call that h2 would not take: headers HTTP/2 forbids, or no stream ids left.
        Kind::Misuse => (Code::Internal, None),
    };
    let reached = match (phase, unprocessed) {
        (Phase::Opening, _) => Reached::No,
        (Phase::Waiting { .. }, Some(reached)) => reached,
        (Phase::Waiting { written: false }, None) if error.is_io() => Reached::No,
        _ => Reached::Maybe,
    };
    let code = match phase {
        // Nothing was sent, so nothing the server did can be told: the connection was unusable.
        Phase::Opening if code != Code::Internal => Code::Unavailable,
        _ => code,
    };
    (Status::new(code, text(error, link)), reached)
}

/// What a status says: the reason recorded for the connection where it is the connection that failed.
fn text(error: &h2::Error, link: &Link) -> String {
    match link.lost() {
        Some(reason) if error.is_io() => reason.to_string(),
        _ => format!("{}: {error}", link.address),
    }
}

/// The errors of h2, in the words of its predicates.
enum Kind {
    Io,
    GoAway { remote: bool },
    Reset(Reason),
    Rejected,
    Misuse,
}

impl Kind {
    fn of(error: &h2::Error) -> Self {
        if error.is_io() {
            return Self::Io;
        }
        if error.is_go_away() {
            return Self::GoAway {
                remote: error.is_remote(),
            };
        }
        match error.reason() {
            Some(reason) if error.is_reset() && error.is_remote() => Self::Reset(reason),
            Some(_) => Self::Rejected,
            None => Self::Misuse,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    // What only a live connection can produce (resets, GOAWAY, lost sockets) is in tests/transport.rs.
    #[test]
    fn every_reset_code_has_its_status() {
        let codes = [13, 13, 13, 13, 13, 13, 13, 14, 1, 13, 13, 8, 7, 13, 2, 2];
        for (reason, code) in codes.into_iter().enumerate() {
            let reason = Reason::from(reason as u32);
            assert_eq!(reset_code(reason), Code::from_i32(code), "{reason:?}");
        }
    }
}
