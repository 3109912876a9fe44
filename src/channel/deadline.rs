//! `grpc-timeout`: read from the caller, written for the server with what is left.
//!
//! tonic writes the header and, without its own transport, nobody reads it; so this channel does.

use std::pin::Pin;
use std::time::Duration;

use http::HeaderValue;
use http::header::HeaderName;
use tokio::time::Sleep;

use crate::clock::Clock;
use crate::report::StatusCode;
use crate::timestamp::Timestamp;

pub(super) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// When a call must be over.
#[derive(Debug)]
pub(super) struct Deadline {
    pub(super) at: Timestamp,
    /// Wakes the call then, or within the timer's millisecond after.
    pub(super) sleep: Pin<Box<Sleep>>,
}

impl Deadline {
    pub(super) fn at(at: Timestamp, clock: Clock) -> Self {
        Self {
            at,
            sleep: Box::pin(tokio::time::sleep_until(clock.instant(at))),
        }
    }

    /// Whether a call that a server ended with `code` has in truth run out of time: a server that obeys
    /// `grpc-timeout` gives up at the same moment, tonic's with CANCELLED, others by resetting the stream, and
    /// may be heard first.
    pub(super) fn explains(&self, code: StatusCode, clock: Clock) -> bool {
        // What the server was told is rounded down by up to a millisecond.
        const ROUNDING: Duration = Duration::from_millis(1);
        code == StatusCode::CANCELLED && clock.now() + ROUNDING >= self.at
    }
}

/// Reads a `grpc-timeout`: up to eight digits and a unit of H, M, S, m, u or n. `None` for anything
/// else, which the gRPC specification lets a receiver ignore.
pub(super) fn parse(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits
        .iter()
        .fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3_600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Writes `left` in the finest unit that fits eight digits, rounded down so that a server is never
/// promised more than there is.
pub(super) fn format(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let nanos = left.as_nanos();
    let units: [(u128, u8); 6] = [
        (1, b'n'),
        (1_000, b'u'),
        (1_000_000, b'm'),
        (1_000_000_000, b'S'),
        (60_000_000_000, b'M'),
        (3_600_000_000_000, b'H'),
    ];
    let (count, unit) = units
        .into_iter()
        .map(|(size, unit)| (nanos / size, unit))
        .find(|&(count, _)| count <= MOST)
        .unwrap_or((MOST, b'H'));

    // Digits from the right: at most eight of them and the unit.
    let mut text = [0u8; 9];
    let mut start = text.len() - 1;
    text[start] = unit;
    let mut rest = count as u32;
    loop {
        start -= 1;
        text[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    HeaderValue::from_bytes(&text[start..]).unwrap_or(HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit_and_nothing_else() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3_600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("15m", Some(Duration::from_millis(15))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("1.5S", None),
            ("123456789n", None),
            ("1 S", None),
        ] {
            let read = parse(&HeaderValue::from_str(text).unwrap());
            assert_eq!(read, expected, "{text:?}");
        }
    }

    #[test]
    fn writes_the_finest_unit_rounded_down() {
        for (left, expected) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(5), "5000000u"),
            (Duration::from_millis(100_000_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::from_secs(100_000_000 * 60), "1666666H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(format(left), expected, "{left:?}");
        }
    }

    #[test]
    fn what_is_written_reads_back_as_no_more() {
        for nanos in [0, 1, 999, 99_999_999, 100_000_000, 123_456_789_012, 1 << 60] {
            let left = Duration::from_nanos(nanos);
            let read = parse(&format(left)).unwrap();
            assert!(
                read <= left && left - read <= left / 1_000,
                "{left:?} {read:?}"
            );
        }
    }
}
