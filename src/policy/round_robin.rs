//! Everyone in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Decision, Member, PickInfo, PickResult, Picker, Policy, among_ready};
use crate::endpoint::EndpointId;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Gives each call to the next ready endpoint, whatever its load and weight.
///
/// A new policy begins at a random endpoint, so that clients that start together do not walk in step.
/// The position survives changes of the endpoints.
///
/// ```
/// use equipoise::policy::RoundRobin;
///
/// let policy = RoundRobin::default();
/// ```
#[derive(Debug, Default)]
pub struct RoundRobin {
    cursor: Option<Arc<AtomicU64>>,
}

impl Policy for RoundRobin {
    fn update(&mut self, members: &[Member], _now: Timestamp, rng: &mut Rng) -> Decision {
        // Half a word: no start is near enough to the end to wrap around.
        let start = || Arc::new(AtomicU64::new(rng.word() >> 32));
        let cursor = self.cursor.get_or_insert_with(start).clone();
        among_ready(members, |ready| Turns {
            ids: ready.iter().map(|member| member.id).collect(),
            cursor,
        })
    }
}

#[derive(Debug)]
struct Turns {
    ids: Vec<EndpointId>,
    cursor: Arc<AtomicU64>,
}

impl Picker for Turns {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        // Relaxed: the turn orders nothing but itself.
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed);
        let at = (turn % self.ids.len() as u64) as usize;
        if info.avoid.is_empty() {
            return PickResult::Pick(self.ids[at]);
        }
        let (before, from) = self.ids.split_at(at);
        let next = from
            .iter()
            .chain(before)
            .find(|id| !info.avoid.contains(id));
        PickResult::Pick(*next.unwrap_or(&self.ids[at]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::World;
    use super::*;

    #[test]
    fn everyone_in_turn_across_pickers_from_a_random_start() {
        let mut firsts = [0; 5];
        for seed in 0..500 {
            let mut policy = RoundRobin::default();
            let mut world = World::new(&policy, 5, seed);
            let picker = world.picker(&mut policy);
            let first = world.pick(&*picker, &[]);
            firsts[first] += 1;
            for i in 1..12 {
                assert_eq!(world.pick(&*picker, &[]), (first + i) % 5, "seed {seed}");
            }
            let next = world.picker(&mut policy);
            assert_eq!(world.pick(&*next, &[]), (first + 12) % 5, "seed {seed}");
            assert_eq!(world.pick(&*picker, &[]), (first + 13) % 5, "seed {seed}");
        }
        assert!(firsts.iter().all(|&n| (60..140).contains(&n)), "{firsts:?}");
    }

    #[test]
    fn the_avoided_are_skipped() {
        let mut policy = RoundRobin::default();
        let mut world = World::new(&policy, 3, 1);
        let picker = world.picker(&mut policy);
        let [a, b, c] = [0, 1, 2].map(|i| world.id(i));
        for _ in 0..9 {
            assert_eq!(world.pick(&*picker, &[a, c]), 1);
        }
        let picks: Vec<_> = (0..3).map(|_| world.pick(&*picker, &[a, b, c])).collect();
        assert_ne!(picks[0], picks[1], "all are to be avoided: none is skipped");
    }
}
