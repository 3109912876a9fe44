//! Whoever says that it is least full.

use std::time::Duration;

use super::lagging::{Reading, least_by_reading};
use super::least_load::Choices;
use super::{Decision, Member, Policy};
use crate::error::Error;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Gives each call to the endpoint whose server reports the least utilization: of two drawn at random, or of more.
///
/// The utilization is what [`LoadReport::utilization`](crate::LoadReport::utilization) says; reports come from
/// [`Channel::report_load`](crate::Channel::report_load). A report that is 30 s old is stale. One without a report, or
/// with a stale one, counts as the median of the others; where nobody has a report, calls go to whoever has fewest in
/// flight. Calls given since the last report count as well, each for two typical ones, so that not all clients go to
/// the same endpoint until it reports again. Weights count only there: a utilization is a share of what the server can
/// do already. An endpoint that fails call after call loses against all others; it gets one trial call every 5 s until
/// one succeeds.
///
/// Reports should come at least every second or so. Against pauses shorter than that, a policy that looks at
/// latency or at calls in flight does better.
///
/// ```
/// use equipoise::policy::LeastUtilization;
/// use std::time::Duration;
///
/// let policy = LeastUtilization::default();
/// let strict = LeastUtilization::default().with_expiration(Duration::from_secs(3))?;
/// let of_five = LeastUtilization::default().with_choices(5)?;
/// assert!(LeastUtilization::default().with_expiration(Duration::ZERO).is_err());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LeastUtilization {
    expiration: Duration,
    choices: Choices,
}

/// Three reports late, at gRPC's default period of 10 s (`oobReportingPeriod`, gRFC A58).
const EXPIRATION: Duration = Duration::from_secs(30);
/// Below, reports a second apart come and go between each other; above, what they say is of another hour.
const EXPIRATIONS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(600);

impl Default for LeastUtilization {
    /// Reports count for 30 s; two choices.
    fn default() -> Self {
        Self {
            expiration: EXPIRATION,
            choices: Choices::default(),
        }
    }
}

impl LeastUtilization {
    /// Lets a report count for `expiration`: one exactly that old is stale. Default 30 s; three times the pause
    /// between reports is a good choice.
    ///
    /// # Errors
    ///
    /// When `expiration` is not in 1 s ..= 600 s.
    pub fn with_expiration(mut self, expiration: Duration) -> Result<Self, Error> {
        if !EXPIRATIONS.contains(&expiration) {
            return Err(Error::config(format!(
                "least utilization: expiration {expiration:?} is not in {EXPIRATIONS:?}"
            )));
        }
        self.expiration = expiration;
        Ok(self)
    }

    /// Compares `count` different endpoints, drawn at random for each call; all, where there are no more than that.
    /// Default 2.
    ///
    /// # Errors
    ///
    /// When `count` is not in `2..=10`.
    pub fn with_choices(mut self, count: usize) -> Result<Self, Error> {
        self.choices = Choices::new("least utilization", count)?;
        Ok(self)
    }
}

impl Policy for LeastUtilization {
    fn update(&mut self, members: &[Member], now: Timestamp, _rng: &mut Rng) -> Decision {
        let expiration = self.expiration;
        least_by_reading(members, self.choices, now, move |load, _, now| {
            let utilization = load.utilization(now, expiration);
            Reading {
                since: match utilization {
                    Some(_) => load.calls_since_report(),
                    None => load.in_flight(),
                },
                load: utilization,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::World;
    use super::*;
    use crate::report::LoadReport;

    #[test]
    fn bad_settings_name_value_and_range() {
        for expiration in [Duration::ZERO, Duration::from_millis(999), Duration::MAX] {
            let error = LeastUtilization::default()
                .with_expiration(expiration)
                .unwrap_err();
            assert!(error.is_config());
            let expected = format!("expiration {expiration:?} is not in 1s..=600s");
            assert!(error.to_string().contains(&expected), "{error}");
        }
        let five = LeastUtilization::default().with_choices(5).unwrap();
        let second = five.with_expiration(Duration::from_secs(1)).unwrap();
        assert!(format!("{second:?}").contains("1s, choices: Choices(5)"));
        let error = second.with_choices(11).unwrap_err().to_string();
        assert!(error.contains("least utilization: 11 choices"), "{error}");
    }

    /// Of three that report, with a fourth that did so before.
    #[test]
    fn the_least_full_is_taken_while_its_report_is_fresh() {
        let mut policy = LeastUtilization::default()
            .with_expiration(Duration::from_secs(2))
            .unwrap();
        let mut world = World::new(&policy, 4, 1);
        // A weight is no reason to be fuller than others.
        world.weigh(1, 50);
        for (i, application_utilization, secs) in
            [(0, 0.05, 1), (1, 0.3, 4), (2, 0.2, 4), (3, 0.1, 4)]
        {
            let report = LoadReport {
                application_utilization,
                ..LoadReport::default()
            };
            world.load(i).report(&report, Timestamp::from_secs(secs));
        }
        let members = world.members();
        let at = |policy: &mut LeastUtilization, secs: u64, nanos, avoid: &[crate::EndpointId]| {
            let now = Timestamp::from_nanos(secs * 1_000_000_000 + nanos);
            let picker = policy
                .update(members, Timestamp::from_secs(4), &mut Rng::new(1))
                .picker;
            let info = super::super::PickInfo {
                now,
                random: 7,
                path: "/",
                hash: None,
                avoid,
            };
            match picker.pick(&info) {
                super::super::PickResult::Pick(id) => id.slot(),
                other => panic!("{other:?}"),
            }
        };
        let mut ten = policy.with_choices(10).unwrap();
        assert_eq!(at(&mut ten, 2, 999_999_999, &[]), 0);
        // Stale: from then on as the median of the others.
        assert_eq!(at(&mut ten, 3, 0, &[]), 3);
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| members[i].id);
        assert_eq!(at(&mut ten, 5, 0, &[d, c]), 0);
        // With a call under way it is behind that.
        world.load(0).begin();
        assert_eq!(at(&mut ten, 5, 0, &[d]), 2);
        assert_eq!(at(&mut policy, 5, 0, &[d, c, a]), 1);
        assert_eq!(at(&mut policy, 5, 0, &[d, c, b]), 0);
    }
}
