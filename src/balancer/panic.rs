//! And if too few of them are fit to be used?
//!
//! Ejection and health checks keep calls from some endpoints for the good of the calls. When most are kept out, the rest
//! would be buried under their calls, and more likely than that most servers broke is that the judgement did.

use crate::error::Error;

/// What happens when too few endpoints can be used; see [`Builder::panic`](crate::Builder::panic).
///
/// An endpoint counts as unusable when it cannot be connected, is ejected, or says that it is not serving. One that is idle
/// or still connecting counts as usable: nothing bad is known of it.
///
/// ```
/// use equipoise::Channel;
/// use equipoise::balancer::Panic;
///
/// // A store whose answers are wrong where a quorum is missing: better none than those.
/// let channel = Channel::builder("static:10.0.0.1:1,10.0.0.2:1,10.0.0.3:1")?
///     .panic(Panic::fail_below(50))
///     .build()?;
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panic {
    below: u32,
    then: Then,
    over_health: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    UseAll,
    Fail,
}

/// Whether it is time to panic, and what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Calm,
    /// Whoever is connected gets calls.
    UseAll,
    /// Nobody does.
    Fail,
}

impl Default for Panic {
    /// [`use_all_below`](Self::use_all_below) 50 %, as Envoy and Finagle do.
    fn default() -> Self {
        Self::use_all_below(50)
    }
}

impl Panic {
    /// When fewer than `percent` of all endpoints can be used, calls go to all that are connected: those that are
    /// ejected, and those whose port alone is watched. 0 to 100; 0 is never.
    pub fn use_all_below(percent: u32) -> Self {
        Self {
            below: percent,
            then: Then::UseAll,
            over_health: false,
        }
    }

    /// When fewer than `percent` of all endpoints can be used, calls fail at once, UNAVAILABLE, rather than bury those
    /// that are left. 0 to 100; 0 is never.
    pub fn fail_below(percent: u32) -> Self {
        Self {
            then: Then::Fail,
            ..Self::use_all_below(percent)
        }
    }

    /// Whether calls go to servers then that say of themselves that they are not serving. Default: no, since who says
    /// so means it.
    pub fn over_not_serving(mut self, over: bool) -> Self {
        self.over_health = over;
        self
    }

    pub(super) fn overrides_health(&self) -> bool {
        self.over_health
    }

    /// # Errors
    ///
    /// When the share is none.
    pub(super) fn validate(&self) -> Result<(), Error> {
        match self.below {
            0..=100 => Ok(()),
            percent => Err(Error::config(format!(
                "panic below {percent} percent is not in 0..=100"
            ))),
        }
    }

    /// The mood where `unusable` of `all` endpoints are.
    pub(super) fn mood(&self, unusable: usize, all: usize) -> Mood {
        // Exact: both are bounded by the limit of endpoints.
        let usable = all.saturating_sub(unusable) as u64;
        if all == 0 || usable * 100 >= u64::from(self.below) * all as u64 {
            return Mood::Calm;
        }
        match self.then {
            Then::UseAll => Mood::UseAll,
            Then::Fail => Mood::Fail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_than_the_share_and_not_as_many() {
        let half = Panic::default();
        for (unusable, all, mood) in [
            (0, 0, Mood::Calm),
            (0, 1, Mood::Calm),
            (1, 1, Mood::UseAll),
            (1, 2, Mood::Calm),
            (2, 3, Mood::UseAll),
            (1, 3, Mood::Calm),
            (5_000, 10_000, Mood::Calm),
            (5_001, 10_000, Mood::UseAll),
        ] {
            assert_eq!(half.mood(unusable, all), mood, "{unusable} of {all}");
        }
        assert_eq!(Panic::use_all_below(0).mood(3, 3), Mood::Calm, "never");
        assert_eq!(Panic::fail_below(100).mood(1, 100), Mood::Fail);
        assert_eq!(Panic::fail_below(100).mood(0, 100), Mood::Calm);
    }

    #[test]
    fn a_share_of_more_than_all_is_none() {
        assert!(Panic::use_all_below(100).validate().is_ok());
        let text = Panic::fail_below(101).validate().unwrap_err().to_string();
        assert!(
            text.contains("panic below 101 percent is not in 0..=100"),
            "{text}"
        );
    }
}
