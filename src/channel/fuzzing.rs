//! What the fuzz targets call that nobody else may: the readers of what servers and callers write.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use super::{deadline, trailers};
use crate::report::StatusCode;

/// The code in `grpc-status`; `headers` are mended for tonic.
pub fn read_status(headers: &mut HeaderMap) -> Option<StatusCode> {
    trailers::read(headers)
}

/// Reads a `grpc-timeout`.
pub fn read_timeout(value: &HeaderValue) -> Option<Duration> {
    deadline::parse(value)
}

/// Writes a `grpc-timeout`.
pub fn write_timeout(left: Duration) -> HeaderValue {
    deadline::format(left)
}
