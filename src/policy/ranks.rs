//! In which order do endpoints come for one key?

use xxhash_rust::xxh64::xxh64;

use crate::rng::remix;

/// Endpoints by place, each of which has a rank of its own for every key: rendezvous hashing.
///
/// An endpoint's rank for a key follows from its own hash key and weight alone, so that whoever else comes, goes or
/// is weighed anew does not change which of two comes first.
#[derive(Clone, Debug)]
pub(super) struct Ranks {
    /// What of each endpoint goes into a draw.
    marks: Box<[u64]>,
    /// `None` where all are the same.
    weights: Option<Box<[f64]>>,
}

/// Another seed than keys have: the two are mixed.
const SEED: u64 = 2;

/// Where an endpoint comes for one key: the least is first.
///
/// As if each endpoint drew how long it takes, at a rate that is its weight: the first to arrive is each of them
/// with the chance that its weight says. Where all weights are the same the draws themselves say as much.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Rank {
    time: f64,
    draw: u64,
}

impl Rank {
    /// After all that can be drawn.
    const LAST: Self = Self {
        time: f64::INFINITY,
        draw: u64::MAX,
    };
}

impl Ranks {
    /// The ranks of these endpoints, each a hash key and a weight. Where two have one hash key and one weight, the
    /// first comes first.
    pub(super) fn new(endpoints: &[(String, u32)]) -> Self {
        let weight = |(_, weight): &(String, u32)| (*weight).max(1);
        let first = endpoints.first().map(weight);
        let differ = endpoints.iter().map(weight).any(|w| Some(w) != first);
        Self {
            marks: endpoints
                .iter()
                .map(|(key, _)| xxh64(key.as_bytes(), SEED))
                .collect(),
            weights: differ.then(|| endpoints.iter().map(|e| f64::from(weight(e))).collect()),
        }
    }

    /// Who comes first for `hash` of those whom `accept` takes.
    #[inline]
    pub(super) fn first(&self, hash: u64, accept: impl Fn(usize) -> bool) -> Option<usize> {
        let mut first = None;
        self.visit(hash, accept, Rank::LAST, |rank, place| {
            first = Some(place);
            rank
        });
        first
    }

    /// The first of those whom `accept` takes, as many as `into` has room for, in their order.
    pub(super) fn top<'a>(
        &self,
        hash: u64,
        accept: impl Fn(usize) -> bool,
        into: &'a mut [usize],
    ) -> &'a [usize] {
        let mut ranks = [Rank::LAST; MOST];
        let room = into.len().min(MOST);
        let mut count = 0;
        self.visit(hash, accept, Rank::LAST, |rank, place| {
            let at = ranks[..count].partition_point(|other| *other <= rank);
            count = (count + 1).min(room);
            if at < count {
                ranks.copy_within(at..count - 1, at + 1);
                into.copy_within(at..count - 1, at + 1);
                (ranks[at], into[at]) = (rank, place);
            }
            ranks[room - 1]
        });
        &into[..count]
    }

    /// Shows `see` everybody in turn who is before `limit`, which is from then on what `see` says.
    #[inline]
    fn visit(
        &self,
        hash: u64,
        accept: impl Fn(usize) -> bool,
        mut limit: Rank,
        mut see: impl FnMut(Rank, usize) -> Rank,
    ) {
        let marks = self.marks.iter().enumerate();
        let draws = marks.filter(|(place, _)| accept(*place));
        // Without the lowest bit: whatever is drawn comes before `LAST`.
        let draws = draws.map(|(place, mark)| (place, remix(hash ^ mark) >> 1));
        let Some(weights) = &self.weights else {
            for (place, draw) in draws {
                if draw < limit.draw {
                    limit = see(Rank { time: 0.0, draw }, place);
                }
            }
            return;
        };
        for (place, draw) in draws {
            let weight = weights[place];
            // In (0, 1): 52 bits and a half are exact, and one bit more would be rounded up to 1.
            let unit = ((draw >> 11) as f64 + 0.5) / (1_u64 << 52) as f64;
            // The logarithm is never nearer to 0 than this, and most need not be asked for it.
            if unit > limit.time * weight * ALMOST_ONE {
                continue;
            }
            let time = -(-unit).ln_1p() / weight;
            let rank = Rank { time, draw };
            if rank < limit {
                limit = see(rank, place);
            }
        }
    }
}

/// The most that [`Ranks::top`] can tell.
pub(super) const MOST: usize = 16;

/// From above: what rounding cannot bridge.
const ALMOST_ONE: f64 = 1.0 + 1e-9;

#[cfg(test)]
mod tests;
