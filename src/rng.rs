//! Random words for the rooms that may not ask for entropy themselves.

/// A small seeded generator: the same seed gives the same words on every machine.
///
/// Not for secrets. The channel seeds one per policy and per balancer; a simulation seeds them itself.
#[derive(Clone, Debug)]
pub struct Rng {
    inner: fastrand::Rng,
}

impl Rng {
    /// A generator whose whole sequence follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            inner: fastrand::Rng::with_seed(seed),
        }
    }

    /// The next 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.inner.u64(..)
    }

    /// A number in `0..bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        match bound {
            0 => 0,
            _ => self.inner.usize(..bound),
        }
    }

    /// A number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        self.inner.f64()
    }
}

/// A fresh word made from `word`, for a second draw out of one random word: reusing the same bits
/// twice would tie the two choices together.
pub const fn remix(word: u64) -> u64 {
    // The finaliser of splitmix64: every output bit depends on every input bit.
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Maps a uniform word onto `0..bound` without a division; 0 when `bound` is 0.
pub const fn scale(word: u64, bound: usize) -> usize {
    ((word as u128 * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_one_sequence() {
        let words = |seed| {
            let mut rng = Rng::new(seed);
            (0..4).map(|_| rng.word()).collect::<Vec<_>>()
        };
        assert_eq!(words(7), words(7));
        assert_ne!(words(7), words(8));
    }

    #[test]
    fn scale_covers_the_range_evenly() {
        let mut hits = [0u32; 7];
        let mut rng = Rng::new(1);
        for _ in 0..70_000 {
            hits[scale(rng.word(), 7)] += 1;
        }
        assert!(
            hits.iter().all(|&h| (9_600..10_400).contains(&h)),
            "{hits:?}"
        );
        assert_eq!(scale(u64::MAX, 0), 0);
        assert_eq!(scale(u64::MAX, 5), 4);
    }
}
