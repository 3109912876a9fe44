//! Anyone, the heavy ones more often.

use super::chances::{Chances, draw_among};
use super::{Decision, Member, PickInfo, PickResult, Picker, Policy, among_ready};
use crate::endpoint::EndpointId;
use crate::rng::{Rng, remix};
use crate::timestamp::Timestamp;

/// Gives each call to any ready endpoint, with a chance in proportion to its weight, whatever its load.
///
/// An endpoint of weight 3 gets three times the calls of one of weight 1, in the long run; over a short one
/// [`WeightedRoundRobin`](super::WeightedRoundRobin) keeps closer to the weights. A pick costs the same for two
/// endpoints and for ten thousand, and whatever the weights are: nothing is rounded. With equal weights it is
/// [`Random`](super::Random).
///
/// ```
/// use equipoise::policy::WeightedRandom;
/// use equipoise::{Address, Endpoint};
///
/// let [large, small] = ["10.0.0.1:50051", "10.0.0.2:50051"].map(str::parse::<Address>);
/// let channel = equipoise::Channel::from_endpoints([
///     Endpoint::new(large?).with_weight(3)?,
///     Endpoint::new(small?),
/// ])
/// .policy(WeightedRandom)
/// .build()?;
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct WeightedRandom;

impl Policy for WeightedRandom {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        among_ready(members, |ready| Drawn {
            ids: ready.iter().map(|member| member.id).collect(),
            chances: Chances::new(&ready),
        })
    }
}

#[derive(Debug)]
struct Drawn {
    ids: Vec<EndpointId>,
    chances: Chances,
}

impl Picker for Drawn {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let any = self.ids[self.chances.draw(info.random)];
        if !info.avoid.contains(&any) {
            return PickResult::Pick(any);
        }
        PickResult::Pick(self.another(info).unwrap_or(any))
    }
}

impl Drawn {
    /// Any that need not be avoided: counted out rather than drawn again, so that it ends.
    #[cold]
    fn another(&self, info: &PickInfo<'_>) -> Option<EndpointId> {
        let others = (0..self.ids.len()).filter(|&at| !info.avoid.contains(&self.ids[at]));
        let others = others.map(|at| (at, self.chances.weight(at)));
        let at = draw_among(remix(info.random), others)?;
        Some(self.ids[at])
    }
}

#[cfg(test)]
mod tests {
    use super::super::Random;
    use super::super::world::World;
    use super::*;

    const DRAWS: u32 = 200_000;

    /// How often each is picked, and how far that is from what the weights say: Pearson's sum.
    fn picks(weights: &[u32], avoid: &[usize], seed: u64) -> (Vec<f64>, f64) {
        let mut world = World::new(&WeightedRandom, weights.len(), seed);
        for (i, &weight) in weights.iter().enumerate() {
            world.weigh(i, weight);
        }
        let picker = world.picker(&mut WeightedRandom);
        let avoided: Vec<_> = avoid.iter().map(|&i| world.id(i)).collect();
        let mut picks = vec![0.0; weights.len()];
        for _ in 0..DRAWS {
            picks[world.pick(&*picker, &avoided)] += 1.0;
        }
        let others = (0..weights.len()).filter(|i| !avoid.contains(i));
        let sum: f64 = others.clone().map(|i| f64::from(weights[i])).sum();
        let distance = others.map(|i| {
            let expected = f64::from(DRAWS) * f64::from(weights[i]) / sum;
            (picks[i] - expected).powi(2) / expected
        });
        let distance = distance.sum();
        (picks, distance)
    }

    #[test]
    fn picks_are_in_proportion_to_weight() {
        // With k degrees of freedom the sum is k on average, and beyond k + 6 √(2k) practically never.
        for (seed, weights) in [
            vec![1, 1],
            vec![1, 9],
            vec![5, 1, 1, 1, 1, 1],
            vec![u32::MAX, u32::MAX / 2, u32::MAX / 1_000],
            (1..=100).collect(),
        ]
        .into_iter()
        .enumerate()
        {
            let free = weights.len() as f64 - 1.0;
            let bound = free + 6.0 * (2.0 * free).sqrt();
            let (picks, distance) = picks(&weights, &[], seed as u64);
            assert!(distance < bound, "{weights:?}: {distance}, {picks:?}");
        }
    }

    #[test]
    fn the_avoided_leave_their_share_to_the_others_in_proportion() {
        let weights = [4, 1, 2, 1_000, 3];
        let (picks, distance) = picks(&weights, &[3, 1], 9);
        assert_eq!((picks[1], picks[3]), (0.0, 0.0));
        assert!(distance < 2.0 + 6.0 * 2.0, "{distance}: {picks:?}");
    }

    #[test]
    fn where_all_are_to_be_avoided_none_is() {
        let (picks, distance) = picks(&[1, 2, 5], &[], 10);
        let mut world = World::new(&WeightedRandom, 3, 10);
        for (i, weight) in [1, 2, 5].into_iter().enumerate() {
            world.weigh(i, weight);
        }
        let picker = world.picker(&mut WeightedRandom);
        let all = [0, 1, 2].map(|i| world.id(i));
        let mut same = vec![0.0; 3];
        for _ in 0..DRAWS {
            same[world.pick(&*picker, &all)] += 1.0;
        }
        assert_eq!(picks, same);
        assert!(distance < 14.0, "{distance}");
    }

    #[test]
    fn ten_thousand_with_one_that_outweighs_them_all() {
        let mut world = World::new(&WeightedRandom, 10_000, 11);
        world.weigh(77, u32::MAX);
        let picker = world.picker(&mut WeightedRandom);
        let heavy = [world.id(77)];
        assert!((0..1_000).all(|_| world.pick(&*picker, &[]) == 77));
        let mut others: Vec<_> = (0..1_000).map(|_| world.pick(&*picker, &heavy)).collect();
        others.sort_unstable();
        others.dedup();
        assert!(
            others.len() > 900 && !others.contains(&77),
            "{}",
            others.len()
        );
    }

    #[test]
    fn equal_weights_are_picked_as_at_random() {
        let mut world = World::new(&WeightedRandom, 5, 12);
        let (weighted, plain) = (world.picker(&mut WeightedRandom), world.picker(&mut Random));
        let mut twin = World::new(&WeightedRandom, 5, 12);
        for _ in 0..1_000 {
            assert_eq!(world.pick(&*weighted, &[]), twin.pick(&*plain, &[]));
        }
    }
}
