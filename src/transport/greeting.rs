//! What the first bytes of a server say when they are not HTTP/2: somebody else is at home.

/// What the server speaks, judging by the first bytes it sent; `None` where they may be HTTP/2.
///
/// HTTP/2 begins with a SETTINGS frame: three bytes of a small length, and a 4. Read as such, what the
/// others begin with would be a frame of more than a megabyte, which no server may send. A frame of a type
/// that HTTP/2 knows is left to h2, first or not.
pub(super) fn foreign(first: &[u8]) -> Option<String> {
    if let [0x14..=0x17, 0x03, ..] = first {
        let text =
            "the server speaks TLS, and this channel plaintext; use an https:// target or .tls(..)";
        return Some(text.to_owned());
    }
    if !first.starts_with(b"HTTP/") {
        /// The type of frame with the highest number: CONTINUATION (RFC 9113 §6).
        const LAST_TYPE: u8 = 9;
        let odd = first.get(3).is_some_and(|&kind| kind > LAST_TYPE);
        return odd.then(|| {
            let shown = &first[..first.len().min(8)];
            format!(
                "the server does not speak HTTP/2; its first bytes are \"{}\"",
                shown.escape_ascii()
            )
        });
    }
    let line = first.split(|byte| matches!(byte, b'\r' | b'\n')).next();
    let line: String = String::from_utf8_lossy(line.unwrap_or_default())
        .chars()
        .take(80)
        .collect();
    // So nginx, Go and others answer plaintext on a port that wants TLS.
    let tls = first.windows(5).any(|word| word == b"HTTPS");
    Some(match tls {
        true => format!(
            "the server speaks TLS, and this channel plaintext (it answered {line:?}); use an https:// target or .tls(..)"
        ),
        false => format!("the server speaks HTTP/1.x, not HTTP/2 (it answered {line:?})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_and_http_1_are_told_by_their_first_bytes() {
        for (first, word) in [
            (&b"\x15\x03\x03\x00\x02\x02\x46"[..], Some("speaks TLS")),
            (b"\x16\x03\x01\x02\x00", Some("speaks TLS")),
            (
                b"HTTP/1.1 404 Not Found\r\n\r\n",
                Some("HTTP/1.x, not HTTP/2 (it answered \"HTTP/1.1 404 Not Found\")"),
            ),
            (
                b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
                Some("speaks TLS"),
            ),
            (
                b"\xff\"SSH-2.0-x",
                Some("does not speak HTTP/2; its first bytes are \"\\xff\\\"SSH-2.\""),
            ),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", None),
            (b"\x00\x00\x08\x06\x00\x00\x00\x00\x00", None),
            (b"\x00\x00", None),
            (b"\x15", None),
            (b"", None),
        ] {
            let said = foreign(first);
            match word {
                Some(word) => assert!(said.as_ref().is_some_and(|s| s.contains(word)), "{said:?}"),
                None => assert_eq!(said, None),
            }
        }
    }

    #[test]
    fn what_is_quoted_of_a_server_is_short_and_printable() {
        let mut first = b"HTTP/1.1 200 \x1b[31m\xff".to_vec();
        first.extend([b'a'; 10_000]);
        let said = foreign(&first).unwrap();
        assert!(said.len() < 200 && !said.contains('\x1b'), "{said}");
    }
}
