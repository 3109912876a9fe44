//! Whoever exchanges fewest bytes with us.

use std::time::Duration;

use super::lagging::{Reading, least_by_reading};
use super::least_load::Choices;
use super::{Decision, Member, Policy};
use crate::error::Error;
use crate::load::Scoring;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Gives each call to the endpoint that carries the least bytes per second ÷ weight, sent and received together: of
/// two drawn at random, or of more.
///
/// For calls whose size tells more than their number: files, pictures, long streams. Bytes are counted on the
/// connections of this channel every 250 ms (with TLS those of its records), and averaged over a window of 5 s. Between
/// two counts, calls given since count as well, each for two typical ones, so that not all go to the same endpoint. One
/// that was not counted yet counts as the median of the others. An endpoint that fails call after call loses against
/// all others; it gets one trial call every 5 s until one succeeds.
///
/// ```
/// use equipoise::policy::LeastBandwidth;
/// use std::time::Duration;
///
/// let policy = LeastBandwidth::default();
/// let quicker = LeastBandwidth::default().with_window(Duration::from_secs(1))?;
/// let of_five = LeastBandwidth::default().with_choices(5)?;
/// assert!(LeastBandwidth::default().with_window(Duration::from_millis(10)).is_err());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LeastBandwidth {
    window: Duration,
    choices: Choices,
}

/// [`Adaptive`](super::Adaptive)'s window.
const WINDOW: Duration = Duration::from_secs(5);
/// Below, a few counts are all there is to average; above, a transfer that has ended keeps calls away for minutes.
const WINDOWS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60);

impl Default for LeastBandwidth {
    /// A window of 5 s and two choices.
    fn default() -> Self {
        Self {
            window: WINDOW,
            choices: Choices::default(),
        }
    }
}

impl LeastBandwidth {
    /// Averages over `window`: the time in which what passed fades to 37 % of itself. Default 5 s. Shorter windows
    /// follow bursts, longer ones even them out.
    ///
    /// # Errors
    ///
    /// When `window` is not in 1 s ..= 60 s.
    pub fn with_window(mut self, window: Duration) -> Result<Self, Error> {
        if !WINDOWS.contains(&window) {
            return Err(Error::config(format!(
                "least bandwidth: window {window:?} is not in {WINDOWS:?}"
            )));
        }
        self.window = window;
        Ok(self)
    }

    /// Compares `count` different endpoints, drawn at random for each call; all, where there are no more than that.
    /// Default 2.
    ///
    /// # Errors
    ///
    /// When `count` is not in `2..=10`.
    pub fn with_choices(mut self, count: usize) -> Result<Self, Error> {
        self.choices = Choices::new("least bandwidth", count)?;
        Ok(self)
    }
}

impl Policy for LeastBandwidth {
    fn update(&mut self, members: &[Member], now: Timestamp, _rng: &mut Rng) -> Decision {
        least_by_reading(members, self.choices, now, |load, weight, now| Reading {
            load: load.bandwidth(now).map(|rate| rate / weight),
            since: load.calls_since_measured(),
        })
    }

    fn scoring(&self) -> Scoring {
        Scoring::Bandwidth {
            window: self.window,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::{OK, World};
    use super::super::{PickResult, RoundRobin};
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const KIB: u64 = 1_024;

    #[test]
    fn bad_settings_name_value_and_range() {
        for window in [Duration::ZERO, 999 * MS, 60_001 * MS, Duration::MAX] {
            let error = LeastBandwidth::default().with_window(window).unwrap_err();
            assert!(error.is_config());
            let expected = format!("window {window:?} is not in 1s..=60s");
            assert!(error.to_string().contains(&expected), "{error}");
        }
        let five = LeastBandwidth::default().with_choices(5).unwrap();
        let minute = five.with_window(60_000 * MS).unwrap();
        assert!(format!("{minute:?}").contains("60s, choices: Choices(5)"));
        let error = minute.with_choices(1).unwrap_err().to_string();
        assert!(error.contains("least bandwidth: 1 choices"), "{error}");
    }

    /// Ten seconds of 1,000 calls a second, in which a call to `i` takes 2 ms and moves `size(i)` bytes, while a stream
    /// of 8 MiB/s runs over the first. Picks and bytes by endpoint, those of the last five seconds.
    fn beside_a_stream(
        policy: &mut dyn Policy,
        mut size: impl FnMut(usize) -> u64,
        weights: &[u32],
    ) -> (Vec<u64>, Vec<u64>) {
        let mut world = World::new(policy, weights.len(), 11);
        for (i, &weight) in weights.iter().enumerate() {
            world.weigh(i, weight);
        }
        let mut bytes = vec![0; weights.len()];
        let mut picks = vec![0; weights.len()];
        let mut before = bytes.clone();
        world.load(0).begin();
        for quarter in 0..40 {
            if quarter == 20 {
                before.clone_from(&bytes);
                picks.fill(0);
            }
            for (i, &bytes) in bytes.iter().enumerate() {
                world.load(i).measure(bytes, world.now());
            }
            let picker = world.picker(policy);
            let picked = world.run(&*picker, 1_000, 250 * MS, |i| {
                bytes[i] += size(i);
                (2 * MS, OK)
            });
            picks.iter_mut().zip(picked).for_each(|(sum, n)| *sum += n);
            bytes[0] += 2_048 * KIB;
        }
        let since = bytes.iter().zip(&before).map(|(now, then)| now - then);
        (picks, since.collect())
    }

    #[test]
    fn calls_keep_away_from_a_stream_and_bytes_are_even() {
        let even = [1; 5];
        // A fortieth of the calls is large.
        let sizes = || {
            let mut dice = Rng::new(5);
            move |_| if dice.below(40) == 0 { 400 * KIB } else { KIB }
        };
        let (picks, bytes) = beside_a_stream(&mut LeastBandwidth::default(), sizes(), &even);
        assert!(picks[0] <= 300, "of 5,000: {picks:?}");
        let (least, most) = (bytes[1..].iter().min(), bytes[1..].iter().max());
        assert!(most < least.map(|n| n * 2).as_ref(), "{bytes:?}");
        let (picks, _) = beside_a_stream(&mut RoundRobin::default(), sizes(), &even);
        assert_eq!(picks[0], 1_000, "control");
    }

    #[test]
    fn weights_are_shares_of_the_bytes() {
        let (_, bytes) =
            beside_a_stream(&mut LeastBandwidth::default(), |_| 10 * KIB, &[1, 1, 1, 3]);
        let share = bytes[3] as f64 / bytes[1..].iter().sum::<u64>() as f64;
        // Half of all for 3 of 6; it is in no more than half of the pairs that are drawn.
        assert!((0.45..=0.51).contains(&share), "{bytes:?}");
    }

    #[test]
    fn one_not_counted_yet_is_no_magnet() {
        let mut policy = LeastBandwidth::default().with_choices(10).unwrap();
        let world = World::new(&policy, 4, 2);
        for (millis, bytes) in [(0, 0), (250, 1_000_000)] {
            for i in 0..3 {
                let at = Timestamp::from_millis(1_000 + millis);
                world.load(i).measure(bytes, at);
            }
        }
        let decision = policy.update(world.members(), world.now(), &mut Rng::new(1));
        let mut picks = [0; 4];
        for random in 0..400u64 {
            let info = super::super::PickInfo {
                now: Timestamp::from_millis(1_300),
                random: crate::rng::remix(random),
                path: "/",
                hash: None,
                avoid: &[],
            };
            match decision.picker.pick(&info) {
                PickResult::Pick(id) => {
                    world.load(id.slot()).begin();
                    picks[id.slot()] += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(picks.iter().all(|&n| n == 100), "{picks:?}");
    }
}
