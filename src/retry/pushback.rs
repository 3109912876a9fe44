//! What did the server say about trying again?

use std::time::Duration;

/// What a server asked for in the `grpc-retry-pushback-ms` of an attempt that failed (gRFC A6).
///
/// ```
/// use equipoise::retry::Pushback;
/// use std::time::Duration;
///
/// let said = |values: &[&'static str]| Pushback::read(values.iter().map(|value| value.as_bytes()));
/// assert_eq!(said(&[]), Pushback::Unsaid);
/// assert_eq!(said(&["500"]), Pushback::After(Duration::from_millis(500)));
/// assert_eq!(said(&["-1"]), Pushback::Stop);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pushback {
    /// Nothing: the client's own policy holds.
    #[default]
    Unsaid,
    /// The next attempt comes exactly this long after the failure, if there is one.
    After(Duration),
    /// No further attempt. It counts as a failure where failures are counted, whatever the status.
    Stop,
}

impl Pushback {
    /// The metadata key that it comes in, among the trailers.
    pub const KEY: &'static str = "grpc-retry-pushback-ms";

    /// Reads every value of that key. One whole number of milliseconds that a signed 32-bit integer holds, without a
    /// sign or needless zeros, is a time to wait; any other value, or more than one, says stop.
    pub fn read<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (None, _) => Self::Unsaid,
            (Some(value), None) => millis(value).map_or(Self::Stop, |millis| {
                Self::After(Duration::from_millis(millis.into()))
            }),
            (Some(_), Some(_)) => Self::Stop,
        }
    }
}

fn millis(value: &[u8]) -> Option<u32> {
    let digits = value.iter().all(u8::is_ascii_digit);
    let needless_zeros = value.len() > 1 && value.starts_with(b"0");
    if !digits || needless_zeros {
        return None;
    }
    let number: i32 = str::from_utf8(value).ok()?.parse().ok()?;
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_plain_number_is_a_wait_and_all_else_is_a_stop() {
        for (value, expected) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("500", Some(500)),
            ("2147483647", Some(2_147_483_647)),
            ("2147483648", None),
            ("99999999999999999999999", None),
            ("-1", None),
            ("-0", None),
            ("-2147483648", None),
            ("+5", None),
            ("00", None),
            ("0500", None),
            ("abc", None),
            ("", None),
            (" 5", None),
            ("5 ", None),
            ("5.0", None),
            ("1e3", None),
            ("0x10", None),
            ("5,6", None),
        ] {
            let expected = expected.map_or(Pushback::Stop, |millis| {
                Pushback::After(Duration::from_millis(millis))
            });
            assert_eq!(Pushback::read([value.as_bytes()]), expected, "{value:?}");
        }
        assert_eq!(Pushback::read([&b"\xff"[..]]), Pushback::Stop);
    }

    #[test]
    fn silence_is_no_stop_and_a_repeated_word_is() {
        assert_eq!(Pushback::read([]), Pushback::Unsaid);
        assert_eq!(Pushback::read([&b"5"[..], b"5"]), Pushback::Stop);
        assert_eq!(Pushback::read([&b"5"[..], b"5", b"5"]), Pushback::Stop);
    }
}
