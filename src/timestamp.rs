//! A point in time as the pure rooms see it: a number handed in, never a clock read.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// Nanoseconds since the channel was built.
///
/// Everything that decides takes the time as an argument of this type, so that a test can
/// write it as a literal and a simulation can run at its own pace. Arithmetic saturates: a
/// huge duration means "the end of time", never a panic.
///
/// ```
/// use equipoise::Timestamp;
/// use std::time::Duration;
///
/// let start = Timestamp::from_millis(1_500);
/// assert_eq!(start + Duration::from_millis(500), Timestamp::from_secs(2));
/// assert_eq!(start.since(Timestamp::from_secs(9)), Duration::ZERO);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// When the channel was built.
    pub const ZERO: Self = Self(0);
    /// Never.
    pub const MAX: Self = Self(u64::MAX);

    /// `nanos` nanoseconds after the channel was built.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// `millis` milliseconds after the channel was built.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// `secs` seconds after the channel was built.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since the channel was built.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to here; zero when `earlier` is in fact later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::MAX {
            return f.write_str("never");
        }
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Timestamp::ZERO + Duration::MAX, Timestamp::MAX);
        assert_eq!(Timestamp::MAX + Duration::from_nanos(1), Timestamp::MAX);
        assert_eq!(Timestamp::ZERO.since(Timestamp::MAX), Duration::ZERO);
        assert_eq!(Timestamp::from_secs(u64::MAX), Timestamp::MAX);
    }

    #[test]
    fn shows_as_a_duration() {
        assert_eq!(format!("{:?}", Timestamp::from_millis(1_500)), "1.5s");
        assert_eq!(format!("{:?}", Timestamp::MAX), "never");
    }
}
