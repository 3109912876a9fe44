//! The ready members of a load-aware picker, laid out so that comparing them is a walk through memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Member, PickInfo};
use crate::endpoint::EndpointId;
use crate::load::{CHUNK, Chunk, Load, Shared, Word};
use crate::rng::{remix, scale};

/// Ready members by position: in the order of their score cells.
pub(super) struct Roster {
    ids: Vec<EndpointId>,
    loads: Vec<Arc<Load>>,
    runs: Vec<Run>,
    // Where each score is: which run's chunk, and the offset in it. Reading it through the load instead would touch
    // two more lines of memory per endpoint.
    places: Vec<(u32, u32)>,
    shared: Arc<Shared>,
}

/// As long as cells lie side by side.
pub(super) const UNBROKEN: usize = usize::MAX;

/// Members whose cells lie side by side.
pub(super) struct Run {
    chunk: Arc<Chunk>,
    // Offset of the first cell, and how many there are.
    start: usize,
    len: usize,
    // Position of the first member.
    position: usize,
}

impl Roster {
    /// Sorts `ready`, which must not be empty, into the order of positions. A run ends at multiples of
    /// `aligned` cells.
    pub(super) fn new(ready: &mut [&Member], aligned: usize) -> Self {
        ready.sort_by_key(|member| member.id.slot());
        let shared = ready[0].load.cell().shared().clone();
        let loads: Vec<_> = ready.iter().map(|member| member.load.clone()).collect();
        let mut runs: Vec<Run> = Vec::new();
        let mut places = Vec::with_capacity(loads.len());
        for (position, load) in loads.iter().enumerate() {
            let (chunk, offset) = (load.cell().chunk(), load.cell().offset());
            match runs.last_mut() {
                Some(run) if run.takes(chunk, offset, aligned) => run.len += 1,
                _ => runs.push(Run {
                    chunk: chunk.clone(),
                    start: offset,
                    len: 1,
                    position,
                }),
            }
            places.push(((runs.len() - 1) as u32, offset as u32));
            // A member that was penalised and away comes back with a trial still to come.
            if let Some(due) = load.trial_due() {
                shared.trials.announce(due);
            }
        }
        Self {
            ids: ready.iter().map(|member| member.id).collect(),
            loads,
            runs,
            places,
            shared,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn id(&self, position: usize) -> EndpointId {
        self.ids[position]
    }

    pub(super) fn avoided(&self, position: usize, info: &PickInfo<'_>) -> bool {
        info.avoid.contains(&self.ids[position])
    }

    #[inline]
    pub(super) fn score(&self, position: usize) -> u64 {
        let (run, offset) = self.places[position];
        read(&self.runs[run as usize].chunk.words()[offset as usize % CHUNK])
    }

    /// Calls that the member at `position` has in flight.
    #[inline]
    pub(super) fn in_flight(&self, position: usize) -> u32 {
        Word(self.score(position)).in_flight() as u32
    }

    /// Calls that all of them have in flight together.
    pub(super) fn total_in_flight(&self) -> u64 {
        let of_run = |run: &Run| -> u64 {
            let words = run.cells().iter().map(read);
            words.map(|word| Word(word).in_flight()).sum()
        };
        self.runs.iter().map(of_run).sum()
    }

    /// All scores, with their positions.
    #[inline]
    pub(super) fn words(&self) -> impl Iterator<Item = (Word, usize)> {
        let words = self.runs.iter().flat_map(Run::words);
        words.map(|(word, position)| (Word(word), position))
    }

    #[inline]
    pub(super) fn word(&self, position: usize) -> Word {
        Word(self.score(position))
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The position with the least score of all that need not be avoided; else of all.
    #[inline]
    pub(super) fn least(&self, info: &PickInfo<'_>, handicap: impl Fn(usize) -> u64) -> usize {
        self.least_of(self.runs.iter(), info, &handicap)
            .or_else(|| least(self.runs.iter(), info.random, |w, at| w + handicap(at)))
            .unwrap_or(0)
    }

    /// The same among the members of some runs; `None` when all of them should be avoided.
    #[inline]
    pub(super) fn least_of<'a>(
        &'a self,
        runs: impl Iterator<Item = &'a Run> + Clone,
        info: &PickInfo<'_>,
        handicap: impl Fn(usize) -> u64,
    ) -> Option<usize> {
        if info.avoid.is_empty() {
            return least(runs, info.random, |word, at| word + handicap(at));
        }
        least(runs, info.random, |word, at| match self.avoided(at, info) {
            true => NOBODY,
            false => word + handicap(at),
        })
    }

    /// A penalised member whose trial call is due, claimed for this pick. One load where none is.
    #[inline]
    pub(super) fn trial(&self, info: &PickInfo<'_>) -> Option<EndpointId> {
        match self.shared.trials.due(info.now) {
            true => self.claim_trial(info),
            false => None,
        }
    }

    #[cold]
    fn claim_trial(&self, info: &PickInfo<'_>) -> Option<EndpointId> {
        self.shared.trials.restart();
        let mut claimed = None;
        for (position, load) in self.loads.iter().enumerate() {
            let Some(mut due) = load.trial_due() else {
                continue;
            };
            if claimed.is_none()
                && due <= info.now
                && !self.avoided(position, info)
                && let Some(next) = load.claim_trial(due, info.now)
            {
                claimed = Some(self.ids[position]);
                due = next;
            }
            self.shared.trials.announce(due);
        }
        claimed
    }
}

impl Run {
    /// Whether the cell at `offset` of `chunk` continues this run.
    fn takes(&self, chunk: &Arc<Chunk>, offset: usize, aligned: usize) -> bool {
        // The pointer says where the cell is, not who the endpoint is.
        Arc::ptr_eq(&self.chunk, chunk)
            && offset == self.start + self.len
            && !offset.is_multiple_of(aligned)
    }
}

/// No score: the key leaves the topmost bits of a word unused.
const NOBODY: u64 = u64::MAX;

/// The position of least cost, `NOBODY` excepted. Where several are least, each has the same chance.
#[inline]
fn least<'a>(
    runs: impl Iterator<Item = &'a Run> + Clone,
    random: u64,
    cost: impl Fn(u64, usize) -> u64,
) -> Option<usize> {
    let mut least = Least::default();
    for run in runs.clone() {
        let (eights, rest) = run.eights();
        let mut position = run.position;
        for eight in eights {
            let costs: [u64; 8] = std::array::from_fn(|i| cost(read(&eight[i]), position + i));
            // Most eights hold none that is less than the best so far: one jump passes all of them.
            if costs.into_iter().fold(NOBODY, u64::min) <= least.cost {
                for (i, cost) in costs.into_iter().enumerate() {
                    least.see(cost, position + i);
                }
            }
            position += 8;
        }
        for (i, cell) in rest.iter().enumerate() {
            least.see(cost(read(cell), position + i), position + i);
        }
    }
    if least.cost == NOBODY {
        return None;
    }
    let mut at = least.position;
    if least.ties == 0 {
        return Some(at);
    }
    // Walked again rather than begun at random: of two that tie, a random start favours the one that
    // comes after the longer gap.
    // The complement: a caller may have drawn from `random` and its remix before.
    let mut left = scale(remix(!random), least.ties + 1);
    for run in runs {
        for (word, position) in run.words() {
            if cost(word, position) <= least.cost {
                at = position;
                if left == 0 {
                    return Some(at);
                }
                left -= 1;
            }
        }
    }
    // Calls have begun meanwhile, and fewer tie.
    Some(at)
}

/// The least cost so far, the first position that has it, and how many more have.
struct Least {
    cost: u64,
    position: usize,
    ties: usize,
}

impl Default for Least {
    fn default() -> Self {
        Self {
            cost: NOBODY,
            position: 0,
            ties: 0,
        }
    }
}

impl Least {
    /// Without a jump: among a few endpoints nothing foretells which is least, and a jump mispredicted
    /// costs as much as the whole walk.
    #[inline]
    fn see(&mut self, cost: u64, position: usize) {
        let less = cost < self.cost;
        let same = usize::from(cost == self.cost);
        self.position = std::hint::select_unpredictable(less, position, self.position);
        self.ties = std::hint::select_unpredictable(less, 0, self.ties + same);
        self.cost = self.cost.min(cost);
    }
}

impl Run {
    /// The cells in groups of eight, and those left over: all of them, where they are few.
    #[inline]
    fn eights(&self) -> (&[[AtomicU64; 8]], &[AtomicU64]) {
        match self.len <= 16 {
            true => (&[], self.cells()),
            false => self.cells().as_chunks(),
        }
    }

    #[inline]
    fn cells(&self) -> &[AtomicU64] {
        &self.chunk.words()[self.start..][..self.len]
    }

    #[inline]
    fn words(&self) -> impl Iterator<Item = (u64, usize)> {
        self.cells().iter().map(read).zip(self.position..)
    }
}

#[inline]
fn read(cell: &AtomicU64) -> u64 {
    // Relaxed: a score guards no other data, and one that is a moment old is as good.
    cell.load(Ordering::Relaxed)
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.ids).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Connectivity;
    use crate::load::{Cells, Scoring};
    use crate::rng::Rng;
    use crate::timestamp::Timestamp;

    fn members(slots: &[usize]) -> Vec<Member> {
        let mut cells = Cells::new(Scoring::InFlight);
        let member = |&slot: &usize| Member {
            id: EndpointId::new(slot as u32, 1),
            state: Connectivity::Ready,
            weight: 1,
            place: Some(slot),
            endpoint: Arc::new(super::super::world::endpoint(slot)),
            load: Arc::new(Load::new(cells.cell(slot))),
        };
        slots.iter().map(member).collect()
    }

    fn info(random: u64, avoid: &[EndpointId]) -> PickInfo<'_> {
        PickInfo {
            now: Timestamp::ZERO,
            random,
            path: "/",
            hash: None,
            avoid,
        }
    }

    #[test]
    fn a_scan_finds_what_a_naive_one_finds() {
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let n = 1 + rng.below(300);
            let density = 1 + rng.below(3);
            let slots: Vec<_> = (0..n * density)
                .filter(|_| rng.below(density) == 0)
                .collect();
            if slots.is_empty() {
                continue;
            }
            let members = members(&slots);
            for member in &members {
                for _ in 0..rng.below(5) {
                    member.load.begin();
                }
            }
            let mut shuffled: Vec<_> = members.iter().collect();
            shuffled.rotate_left(rng.below(members.len()));
            let roster = Roster::new(&mut shuffled, [8, UNBROKEN][rng.below(2)]);
            let handicaps: Vec<_> = slots.iter().map(|_| (rng.below(2) as u64) << 24).collect();
            let avoid: Vec<_> = (0..rng.below(3))
                .map(|_| members[rng.below(members.len())].id)
                .collect();
            let cost = |i: usize| match avoid.contains(&members[i].id) {
                true => u64::MAX,
                false => members[i].load.score() + handicaps[i],
            };
            let least = (0..members.len()).map(cost).min().unwrap();
            for _ in 0..20 {
                let at = roster.least(&info(rng.word(), &avoid), |at| handicaps[at]);
                assert_eq!(cost(at), least, "seed {seed}");
                assert_eq!(roster.id(at), members[at].id, "seed {seed}");
            }
        }
    }

    #[test]
    fn ties_are_broken_without_favour() {
        // Two neighbours and one far away: a random start would give the first and the last nearly all.
        let members = members(&(0..100).collect::<Vec<_>>());
        for (slot, member) in members.iter().enumerate() {
            if ![10, 11, 90].contains(&slot) {
                member.load.begin();
            }
        }
        let roster = Roster::new(&mut members.iter().collect::<Vec<_>>(), UNBROKEN);
        let mut rng = Rng::new(3);
        let mut picks = [0; 100];
        for _ in 0..30_000 {
            picks[roster.least(&info(rng.word(), &[]), |_| 0)] += 1;
        }
        for slot in [10, 11, 90] {
            assert!(
                (9_600..10_400).contains(&picks[slot]),
                "{slot}: {}",
                picks[slot]
            );
        }
    }

    #[test]
    fn runs_end_at_gaps_and_borders() {
        let lengths = |slots: &[usize], aligned| {
            let members = members(slots);
            let roster = Roster::new(&mut members.iter().collect::<Vec<_>>(), aligned);
            roster.runs().iter().map(|run| run.len).collect::<Vec<_>>()
        };
        assert_eq!(
            lengths(&(0..130).collect::<Vec<_>>(), UNBROKEN),
            [64, 64, 2]
        );
        assert_eq!(lengths(&(3..20).collect::<Vec<_>>(), 8), [5, 8, 4]);
        assert_eq!(lengths(&[0, 1, 3, 64], UNBROKEN), [2, 1, 1]);
    }
}
