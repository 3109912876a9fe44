//! The server's word on how a call ended, read, and mended where tonic would stumble over it.

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

use crate::report::{Outcome, StatusCode};
use crate::retry::Pushback;
use crate::transport::{Failure, Phase};

// As constants: a name given as text is parsed anew at each look-up.
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const RETRY_PUSHBACK: HeaderName = HeaderName::from_static(Pushback::KEY);
const GRPC_STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// The code in `grpc-status`, if there is one. Afterwards tonic reads the same code out of `headers`, and does not
/// panic.
pub(super) fn read(headers: &mut HeaderMap) -> Option<StatusCode> {
    let mut values = headers.get_all(GRPC_STATUS).iter();
    let value = values.next()?;
    let code = code(value.as_bytes()).filter(|_| values.next().is_none());
    // Most have nothing else to say.
    if headers.len() > 1 {
        mend_details(headers);
        mend_message(headers);
    }
    Some(code.unwrap_or_else(|| mend_status(headers)))
}

/// What the server said about trying again.
pub(super) fn pushback(headers: &HeaderMap) -> Pushback {
    let values = headers.get_all(RETRY_PUSHBACK).iter();
    Pushback::read(values.map(HeaderValue::as_bytes))
}

/// How a call ended that ended with `code`, and these headers or trailers.
pub(super) fn outcome(code: StatusCode, headers: &HeaderMap) -> Outcome {
    match code != StatusCode::OK && headers.contains_key(RETRY_PUSHBACK) {
        true => Outcome::Pushed(code),
        false => Outcome::Answered(code),
    }
}

/// Whether there is a `grpc-status`.
pub(super) fn has_status(headers: &HeaderMap) -> bool {
    headers.contains_key(GRPC_STATUS)
}

fn code(value: &[u8]) -> Option<StatusCode> {
    match value {
        [digit @ b'0'..=b'9'] => Some(StatusCode::new(digit - b'0')),
        [b'1', digit @ b'0'..=b'6'] => Some(StatusCode::new(10 + digit - b'0')),
        _ => None,
    }
}

/// Puts one status in the place of what cannot be read, and says so where the server gave no message.
fn mend_status(headers: &mut HeaderMap) -> StatusCode {
    let code = Failure::BadStatus.verdict(Phase::Answering).code as u8;
    let said: Vec<String> = headers
        .get_all(GRPC_STATUS)
        .iter()
        .map(|value| format!("{value:?}"))
        .collect();
    if headers.get(GRPC_MESSAGE).is_none_or(HeaderValue::is_empty) {
        let text = format!("grpc-status cannot be read: {}", said.join(", "));
        if let Ok(text) = HeaderValue::try_from(encode(&text)) {
            headers.insert(GRPC_MESSAGE, text);
        }
    }
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(code)));
    StatusCode::new(code)
}

/// Drops a `grpc-status-details-bin` that is not base64: tonic would panic on it.
fn mend_details(headers: &mut HeaderMap) {
    if let Some(value) = headers.get(GRPC_STATUS_DETAILS)
        && !is_base64(value.as_bytes())
    {
        headers.remove(GRPC_STATUS_DETAILS);
    }
}

/// Replaces what is not UTF-8 in a message: tonic would drop the whole of it and the code with it, against
/// gRPC's rule that a bad message is never an error.
fn mend_message(headers: &mut HeaderMap) {
    let Some(value) = headers.get(GRPC_MESSAGE) else {
        return;
    };
    let decoded = decode(value.as_bytes());
    if let Err(error) = String::from_utf8(decoded) {
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        match HeaderValue::try_from(encode(&text)) {
            Ok(text) => headers.insert(GRPC_MESSAGE, text),
            Err(_) => headers.remove(GRPC_MESSAGE),
        };
    }
}

/// Percent-decodes; a `%` that two hexadecimal digits do not follow stays as it is.
fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    let (mut decoded, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        let escaped = match text[at] {
            b'%' => digit(at + 1).zip(digit(at + 2)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                decoded.push((high << 4 | low) as u8);
                at += 3;
            }
            None => {
                decoded.push(text[at]);
                at += 1;
            }
        }
    }
    decoded
}

/// Percent-encodes as gRPC does: all but printable ASCII, and `%`.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | ..b' ' | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            plain => encoded.push(char::from(plain)),
        }
    }
    encoded
}

/// Whether tonic's decoder takes it: the standard alphabet, padding optional, and no stray bits at the end.
fn is_base64(text: &[u8]) -> bool {
    let padding = text.iter().rev().take_while(|&&b| b == b'=').count();
    let digits = &text[..text.len() - padding];
    let value = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let padded = padding == 0 || (padding <= 2 && text.len().is_multiple_of(4));
    let stray = match digits.len() % 4 {
        0 => 0,
        2 => 0b1111,
        3 => 0b11,
        _ => return false,
    };
    let last = digits.last().and_then(|&b| value(b)).unwrap_or(0);
    padded && digits.iter().all(|&b| value(b).is_some()) && last & stray == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    fn headers(fields: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    /// What we read, and what tonic reads afterwards.
    fn both(fields: &[(&'static str, &[u8])]) -> (Option<usize>, Option<Status>) {
        let mut headers = headers(fields);
        let ours = read(&mut headers).map(StatusCode::number);
        (ours, Status::from_header_map(&headers))
    }

    #[test]
    fn codes_are_read_as_the_wire_has_them_and_tonic_reads_the_same() {
        for (text, code, message) in [
            ("0", 0, ""),
            ("7", 7, ""),
            ("14", 14, ""),
            ("16", 16, ""),
            ("17", 2, "grpc-status cannot be read: \"17\""),
            ("999", 2, "grpc-status cannot be read: \"999\""),
            ("-1", 2, "grpc-status cannot be read: \"-1\""),
            ("abc", 2, "grpc-status cannot be read: \"abc\""),
            ("", 2, "grpc-status cannot be read: \"\""),
            ("01", 2, "grpc-status cannot be read: \"01\""),
        ] {
            let (ours, theirs) = both(&[("grpc-status", text.as_bytes())]);
            let theirs = theirs.unwrap();
            assert_eq!(
                (ours, theirs.code() as usize),
                (Some(code), code),
                "{text:?}"
            );
            assert_eq!(theirs.message(), message);
        }
        let (ours, theirs) = both(&[("grpc-message", b"alone")]);
        assert!(ours.is_none() && theirs.is_none());
    }

    #[test]
    fn a_status_given_twice_is_none_and_a_message_of_the_server_stays() {
        for twice in [[b"0", b"5"], [b"5", b"0"], [b"0", b"0"]] {
            let (ours, theirs) = both(&[("grpc-status", twice[0]), ("grpc-status", twice[1])]);
            let theirs = theirs.unwrap();
            assert_eq!((ours, theirs.code() as u8), (Some(2), 2));
            assert!(theirs.message().contains("\", \""), "{theirs:?}");
        }
        let (ours, theirs) = both(&[("grpc-status", b"abc"), ("grpc-message", b"as%20said")]);
        assert_eq!((ours, theirs.unwrap().message()), (Some(2), "as said"));
    }

    #[test]
    fn a_message_that_cannot_be_decoded_costs_neither_the_code_nor_the_rest() {
        for (message, text) in [
            (&b"%41%zz%4"[..], "A%zz%4"),
            (b"caf%C3%A9", "caf\u{e9}"),
            (b"bad %ff byte", "bad \u{fffd} byte"),
            (b"raw \xff byte, 100%", "raw \u{fffd} byte, 100%"),
            (b"%25 stays", "% stays"),
        ] {
            for (status, code) in [(&b"5"[..], 5), (b"0", 0)] {
                let (ours, theirs) = both(&[("grpc-status", status), ("grpc-message", message)]);
                let theirs = theirs.unwrap();
                assert_eq!((ours, theirs.code() as usize), (Some(code), code));
                assert_eq!(theirs.message(), text);
            }
        }
    }

    #[test]
    fn details_that_tonic_would_panic_on_are_dropped() {
        for (text, stays) in [
            ("", true),
            ("CAESBA", true),
            ("CAESBA==", true),
            ("CAES", true),
            ("CAE", true),
            ("CAE=", true),
            ("not base64!", false),
            ("A", false),
            ("CAE==", false),
            ("====", false),
            ("CB", false),
            ("C-ES", false),
        ] {
            let name = "grpc-status-details-bin";
            let mut headers = headers(&[("grpc-status", b"3"), (name, text.as_bytes())]);
            assert_eq!(read(&mut headers).map(StatusCode::number), Some(3));
            assert_eq!(headers.contains_key(name), stays, "{text:?}");
            // Whatever stays must not panic tonic.
            let _ = Status::from_header_map(&headers);
        }
    }
}
