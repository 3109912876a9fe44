//! Anyone.

use super::{Decision, Member, PickInfo, PickResult, Picker, Policy, among_ready};
use crate::endpoint::EndpointId;
use crate::rng::{Rng, remix, scale};
use crate::timestamp::Timestamp;

/// Gives each call to any ready endpoint with equal chance, whatever its load and weight.
///
/// ```
/// use equipoise::policy::Random;
///
/// let policy = Random;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Policy for Random {
    fn update(&mut self, members: &[Member], _now: Timestamp, _rng: &mut Rng) -> Decision {
        among_ready(members, |ready| Anyone {
            ids: ready.iter().map(|member| member.id).collect(),
        })
    }
}

#[derive(Debug)]
struct Anyone {
    ids: Vec<EndpointId>,
}

impl Picker for Anyone {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        let any = self.ids[scale(info.random, self.ids.len())];
        if !info.avoid.contains(&any) {
            return PickResult::Pick(any);
        }
        PickResult::Pick(self.another(info).unwrap_or(any))
    }
}

impl Anyone {
    /// Any that need not be avoided. Counted out rather than drawn again: each keeps the same chance,
    /// and it ends.
    #[cold]
    fn another(&self, info: &PickInfo<'_>) -> Option<EndpointId> {
        let mut others = self.ids.iter().filter(|id| !info.avoid.contains(id));
        let which = scale(remix(info.random), others.clone().count());
        others.nth(which).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::World;
    use super::*;

    fn shares(avoid: &[usize]) -> Vec<u64> {
        let mut world = World::new(&Random, 5, 7);
        let picker = world.picker(&mut Random);
        let avoid: Vec<_> = avoid.iter().map(|&i| world.id(i)).collect();
        let mut picks = vec![0; 5];
        for _ in 0..60_000 {
            picks[world.pick(&*picker, &avoid)] += 1;
        }
        picks
    }

    #[test]
    fn all_have_the_same_chance() {
        assert!(shares(&[]).iter().all(|n| (11_600..12_400).contains(n)));
        let picks = shares(&[1, 3]);
        assert_eq!((picks[1], picks[3]), (0, 0));
        assert!(
            [0, 2, 4]
                .iter()
                .all(|&i| (19_500..20_500).contains(&picks[i])),
            "{picks:?}"
        );
        assert!(
            shares(&[0, 1, 2, 3, 4])
                .iter()
                .all(|n| (11_600..12_400).contains(n))
        );
    }
}
