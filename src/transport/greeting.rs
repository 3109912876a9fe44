//! What a server says first, where that shows that it does not speak HTTP/2.

use std::fmt;

/// How much of it is kept.
pub(super) const LENGTH: usize = 8;

/// What the first bytes of a server are a sign of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// A status line.
    Http1,
    /// A TLS record: an alert, for this client's plain text.
    Tls,
    /// Nothing that HTTP/2 begins with: the bytes.
    Other([u8; LENGTH], usize),
}

impl Greeting {
    /// Reads the first `length` bytes received. `None` when HTTP/2 may begin so.
    pub(super) fn of(bytes: [u8; LENGTH], length: usize) -> Option<Self> {
        /// Of a frame's head: length, type.
        const SETTINGS: u8 = 4;
        let first = &bytes[..length.min(LENGTH)];
        match *first {
            [b'H', b'T', b'T', b'P', b'/', ..] => Some(Self::Http1),
            // Content type alert or handshake, version 3.x.
            [21 | 22, 3, 0..=4, ..] => Some(Self::Tls),
            [_, _, _, SETTINGS, ..] | [] | [_] | [_, _] | [_, _, _] => None,
            _ => Some(Self::Other(bytes, first.len())),
        }
    }

    /// Whether it is sure that nothing better will follow, so that there is no use in waiting for it.
    pub(super) fn is_certain(self) -> bool {
        matches!(self, Self::Http1 | Self::Tls)
    }
}

impl fmt::Display for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http1 => f.write_str("the server answered HTTP/1.1, not HTTP/2"),
            Self::Tls => f.write_str("the server speaks TLS, and this connection is plain text"),
            Self::Other(bytes, length) => write!(
                f,
                "the server does not speak HTTP/2; its first bytes are \"{}\"",
                bytes[..*length].escape_ascii()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Option<String> {
        let mut first = [0; LENGTH];
        let length = bytes.len().min(LENGTH);
        first[..length].copy_from_slice(&bytes[..length]);
        Greeting::of(first, length).map(|greeting| greeting.to_string())
    }

    #[test]
    fn first_bytes_are_told_apart() {
        let http2: [&[u8]; 4] = [b"", b"\0\0", b"\0\0\x06\x04\0\0\0\0\0", b"\0\0\0\x04"];
        for bytes in http2 {
            assert_eq!(text(bytes), None);
        }
        assert!(
            text(b"HTTP/1.1 400 Bad Request")
                .unwrap()
                .contains("HTTP/1.1")
        );
        assert!(text(b"HTTP/1.0 400").unwrap().contains("HTTP/1.1"));
        for alert in [
            &b"\x15\x03\x01\0\x02\x02\x28"[..],
            b"\x15\x03\x03\0\x02",
            b"\x16\x03\x03",
        ] {
            assert!(text(alert).unwrap().contains("speaks TLS"));
        }
        assert!(
            text(b"\xff\"SSH-2.0-x")
                .unwrap()
                .ends_with("its first bytes are \"\\xff\\\"SSH-2.\"")
        );
    }
}
