//! Everyone in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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
    cursor: Option<Arc<AtomicU32>>,
}

/// A clone is a policy for another channel: it begins at a random endpoint of its own.
impl Clone for RoundRobin {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Policy for RoundRobin {
    fn update(&mut self, members: &[Member], _now: Timestamp, rng: &mut Rng) -> Decision {
        let start = || Arc::new(AtomicU32::new(rng.word() as u32));
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
    cursor: Arc<AtomicU32>,
}

impl Picker for Turns {
    #[inline]
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        // Relaxed: the turn orders nothing but itself.
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed);
        // 32 bits, because dividing takes longer than all the rest. Once in four thousand million calls
        // it wraps, and the order jumps.
        let at = (turn % self.ids.len() as u32) as usize;
        if info.avoid.is_empty() {
            return PickResult::Pick(self.ids[at]);
        }
        PickResult::Pick(self.unavoided(at, info).unwrap_or(self.ids[at]))
    }
}

impl Turns {
    /// The first from `at` on that need not be avoided.
    #[cold]
    fn unavoided(&self, at: usize, info: &PickInfo<'_>) -> Option<EndpointId> {
        let (before, from) = self.ids.split_at(at);
        let mut turns = from.iter().chain(before);
        turns.find(|id| !info.avoid.contains(id)).copied()
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
