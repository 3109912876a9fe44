//! Times in headers: what is read, what is written, that a server is never promised more than there is, and that it is
//! heard when it asks for a pause.

use std::time::Duration;

use equipoise::fuzzing::{read_timeout, write_timeout};
use equipoise::retry::Pushback;
use http::HeaderValue;

use super::input::Input;

const MOST: Duration = Duration::from_secs(99_999_999 * 3_600);

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    // Any magnitude, the small ones as likely as the large ones.
    let (seconds, nanos) = (input.word() >> (input.byte() % 64), input.word() >> 32);
    written(Duration::new(
        seconds,
        u32::try_from(nanos % 1_000_000_000).expect("it is below a thousand million"),
    ));
    if let Ok(value) = HeaderValue::from_bytes(input.0) {
        assert_eq!(read_timeout(&value), by_the_book(input.0), "{value:?}");
        if let Some(time) = read_timeout(&value) {
            written(time);
        }
    }
    let values: Vec<&[u8]> = match input.0 {
        [] => Vec::new(),
        text => text.split(|&byte| byte == b'\n').collect(),
    };
    let read = Pushback::read(values.iter().copied());
    assert_eq!(read, asked(&values), "{values:?}");
}

/// What gRPC A6 makes of the values of `grpc-retry-pushback-ms`.
fn asked(values: &[&[u8]]) -> Pushback {
    let [value] = values else {
        return match values.is_empty() {
            true => Pushback::Unsaid,
            false => Pushback::Stop,
        };
    };
    let text = String::from_utf8_lossy(value);
    match text.parse::<i32>() {
        // Written as it would be written.
        Ok(millis @ 0..) if millis.to_string() == text => {
            Pushback::After(Duration::from_millis(millis as u64))
        }
        _ => Pushback::Stop,
    }
}

fn written(left: Duration) {
    let value = write_timeout(left);
    let digits = &value.as_bytes()[..value.len() - 1];
    assert!(
        (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
        "{value:?} for {left:?}"
    );
    let read = read_timeout(&value).expect("what is written can be read");
    assert!(read <= left, "{value:?} is more than {left:?}");
    // A unit is left for one a thousand times coarser at the most, and only with eight digits used up.
    let lost = left.min(MOST) - read;
    assert!(lost <= left / 100_000, "{value:?} for {left:?}");
}

/// gRPC's grammar, read as plainly as can be.
fn by_the_book(text: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(text).ok()?;
    let unit = text.chars().next_back()?;
    let digits = &text[..text.len() - unit.len_utf8()];
    let is_digit = |c: char| c.is_ascii_digit();
    if digits.is_empty() || digits.len() > 8 || !digits.chars().all(is_digit) {
        return None;
    }
    let nanos_per_unit: u128 = match unit {
        'H' => 3_600_000_000_000,
        'M' => 60_000_000_000,
        'S' => 1_000_000_000,
        'm' => 1_000_000,
        'u' => 1_000,
        'n' => 1,
        _ => return None,
    };
    let nanos = digits.parse::<u128>().ok()? * nanos_per_unit;
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    Some(Duration::new(seconds as u64, rest as u32))
}
