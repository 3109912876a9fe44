//! Whose turn is it, where some have more turns than others?

use std::sync::atomic::{AtomicU32, Ordering};

/// Turns by weight: gRPC's static stride scheduler, as its C-core reckons it.
///
/// Every endpoint is visited in turn, and at the `g`-th visit it is taken where `weight × g` has just passed a multiple
/// of 65,535, the greatest weight there is after scaling: so the heaviest is taken at every visit, and each of the
/// others whenever its share has added up to a call. All state is the number of the visit, which threads share.
#[derive(Debug)]
pub(super) struct Stride {
    // By position; the heaviest is `FULL`, none is 0.
    weights: Vec<u16>,
}

const FULL: u16 = u16::MAX;

/// What C-core bounds a weight by, as multiples of the mean: below, so that nobody starves; above, so that picks need
/// few visits.
const LEAST: f64 = 0.01;
const MOST: f64 = 10.0;

/// C-core's bounds alone let one huge weight push all others to a thousandth of it, and a pick among thousands takes
/// a thousand visits then. Where the greatest weight is more than this many times the mean of what is used, it is
/// lowered to `MOST` times that mean, until it is not.
const VISITS: f64 = 32.0;

/// Neighbours begin half a round apart.
const OFFSET: u64 = FULL as u64 / 2;

impl Stride {
    /// By what each weighs. One whose weight is not known, and one that is no weight (not above 0, not finite), counts
    /// as the mean of the others; where fewer than two are known, all have their turns alike.
    pub(super) fn new(weights: &[Option<f64>]) -> Self {
        let known = |weight: &Option<f64>| weight.filter(|w| w.is_finite() && *w > 0.0);
        let known: Vec<Option<f64>> = weights.iter().map(known).collect();
        let heaviest = known.iter().flatten().copied().fold(0.0, f64::max);
        let count = known.iter().flatten().count();
        if count < 2 {
            return Self {
                weights: vec![FULL; weights.len()],
            };
        }
        // Of the heaviest, so that no sum is too great for a float.
        let known: Vec<Option<f64>> = known.iter().map(|w| w.map(|w| w / heaviest)).collect();
        let mean = |bounded: &dyn Fn(f64) -> f64| {
            let sum: f64 = known.iter().flatten().map(|&w| bounded(w)).sum();
            sum / count as f64
        };
        let usual = mean(&|w| w);
        let least = LEAST * usual;
        let mut most = f64::min(1.0, MOST * usual);
        loop {
            let used = mean(&|w| w.clamp(least, most));
            if most <= VISITS * used {
                break;
            }
            most = MOST * used;
        }
        let full = f64::from(FULL);
        let scaled = |weight: f64| (weight / most * full).round();
        let least = scaled(least).max(1.0);
        let weight = |known: &Option<f64>| {
            let weight = scaled(known.unwrap_or(usual));
            weight.clamp(least, full) as u16
        };
        Self {
            weights: known.iter().map(weight).collect(),
        }
    }

    /// The next position; `visits` counts the visits of all pickers of the policy.
    #[inline]
    pub(super) fn next(&self, visits: &AtomicU32) -> usize {
        let n = self.weights.len() as u32;
        // The heaviest is among any n visits in a row; only where other threads take some of them is none found.
        for _ in 1..n {
            let (at, taken) = self.visit(visits, n);
            if taken {
                return at;
            }
        }
        self.visit(visits, n).0
    }

    #[inline]
    fn visit(&self, visits: &AtomicU32, n: u32) -> (usize, bool) {
        // Relaxed: a visit orders nothing but itself. 32 bits, because dividing takes longer than all the rest. Once
        // in four thousand million visits they wrap, and the order jumps.
        let visit = visits.fetch_add(1, Ordering::Relaxed);
        let (at, round) = ((visit % n) as usize, u64::from(visit / n));
        let weight = u64::from(self.weights[at]);
        let sum = weight * round + at as u64 * OFFSET;
        let full = u64::from(FULL);
        (at, sum % full >= full - weight)
    }

    /// What each counts as, the heaviest 65,535.
    pub(super) fn weights(&self) -> &[u16] {
        &self.weights
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::rng::Rng;

    /// What gRPC's implementations do, number for number.
    fn vectors(table: &str) -> Vec<Value> {
        let text = include_str!("../../tests/conformance/vectors/weighted_round_robin.json");
        let vectors: Value = serde_json::from_str(text).unwrap();
        let rows = vectors[table].as_array().unwrap();
        assert!(!rows.is_empty());
        rows.clone()
    }

    fn numbers(row: &Value) -> Vec<u64> {
        let numbers = row.as_array().unwrap().iter();
        numbers.map(|number| number.as_u64().unwrap()).collect()
    }

    /// By weights of which 0 is not known.
    fn stride(weights: &Value) -> Stride {
        let weights = weights.as_array().unwrap().iter();
        let weights: Vec<_> = weights
            .map(|weight| Some(weight.as_f64().unwrap()))
            .collect();
        Stride::new(&weights)
    }

    fn of(weights: &[f64]) -> Stride {
        let weights: Vec<_> = weights.iter().map(|&weight| Some(weight)).collect();
        Stride::new(&weights)
    }

    fn scaled(weights: &[u64]) -> Stride {
        Stride {
            weights: weights.iter().map(|&weight| weight as u16).collect(),
        }
    }

    #[test]
    fn weights_are_scaled_as_in_c_core() {
        for row in vectors("scaling") {
            let stride = stride(&row["weights"]);
            match row["core"]["mode"].as_str().unwrap() {
                // Every visit is taken: plain turns.
                "rr" => assert!(stride.weights().iter().all(|&w| w == FULL), "{row}"),
                "stride" => {
                    let ours: Vec<u64> = stride.weights().iter().map(|&w| w.into()).collect();
                    assert_eq!(ours, numbers(&row["core"]["scaled"]), "{row}");
                }
                other => panic!("no mode: {other}"),
            }
        }
    }

    #[test]
    fn turns_are_those_of_c_core() {
        for row in vectors("sequences") {
            let stride = stride(&row["weights"]);
            let visits = AtomicU32::new(row["start_sequence"].as_u64().unwrap() as u32);
            let row = &row["core"];
            let picks = numbers(&row["picks"]).into_iter();
            let mut before = visits.load(Ordering::Relaxed);
            for (pick, after) in picks.zip(numbers(&row["sequence_after"])) {
                assert_eq!(stride.next(&visits) as u64, pick, "{row}");
                let now = visits.load(Ordering::Relaxed);
                assert_eq!(u64::from(now), after, "{row}");
                let tries = now.wrapping_sub(before);
                assert!(
                    u64::from(tries) <= row["max_tries"].as_u64().unwrap(),
                    "{row}"
                );
                before = now;
            }
        }
    }

    #[test]
    fn a_period_holds_each_weight_exactly() {
        for row in vectors("period_exact") {
            let weights = numbers(&row["scaled_core"]);
            let stride = scaled(&weights);
            let visits = AtomicU32::new(0);
            let mut counts = vec![0; weights.len()];
            for _ in 0..weights.iter().sum() {
                counts[stride.next(&visits)] += 1;
            }
            let period = weights.len() as u32 * u32::from(FULL);
            assert!(visits.load(Ordering::Relaxed) <= period, "{row}");
            let expected = numbers(&row["counts_over_n_x_65535_sequence_numbers"]);
            assert_eq!(counts, expected, "{row}");
        }
    }

    #[test]
    fn what_is_not_known_counts_as_the_mean() {
        for unknown in [
            None,
            Some(f64::NAN),
            Some(f64::INFINITY),
            Some(-3.0),
            Some(0.0),
        ] {
            let stride = Stride::new(&[Some(4.0), unknown, Some(2.0)]);
            assert_eq!(stride.weights(), [65_535, 49_151, 32_768], "{unknown:?}");
            let stride = Stride::new(&[Some(4.0), unknown, None]);
            assert_eq!(
                stride.weights(),
                [FULL; 3],
                "{unknown:?}: one alone says nothing"
            );
        }
        assert_eq!(of(&[f64::MAX, f64::MAX]).weights(), [FULL; 2]);
        assert_eq!(of(&[f64::MAX, f64::MIN_POSITIVE]).weights(), [FULL, 328]);
    }

    /// Whatever the weights: nobody starves, a pick takes few visits on average, and never more than there are
    /// endpoints.
    #[test]
    fn nobody_starves_and_no_weight_makes_picks_dear() {
        let greatest = f64::from(u32::MAX);
        for n in [2, 10, 31, 33, 100, 1_000, 10_000] {
            let mut rng = Rng::new(n as u64);
            let mut one_heavy = vec![1.0; n];
            one_heavy[n / 2] = greatest;
            let mut few_heavy = one_heavy.clone();
            few_heavy[..n.div_ceil(50)].fill(greatest);
            let mut one_light = vec![greatest; n];
            one_light[n / 2] = 1.0;
            let doublings = (0..n).map(|_| 2f64.powi(rng.below(32) as i32)).collect();
            for weights in [one_heavy, few_heavy, one_light, doublings] {
                let stride = of(&weights);
                let sum: u64 = stride.weights().iter().map(|&w| u64::from(w)).sum();
                let visits = n as f64 * f64::from(FULL) / sum as f64;
                assert!(visits <= 1.1 * VISITS, "{n}: {visits} visits");
                let least = *stride.weights().iter().min().unwrap();
                // A hundredth of the mean.
                assert!(
                    f64::from(least) >= 0.009 * sum as f64 / n as f64,
                    "{n}: {least}"
                );
                let counter = AtomicU32::new(rng.word() as u32 >> 1);
                for _ in 0..100 {
                    let before = counter.load(Ordering::Relaxed);
                    let at = stride.next(&counter);
                    let tries = counter.load(Ordering::Relaxed) - before;
                    let exact = stride.weights()[at] == FULL || (tries as usize) < n;
                    assert!(tries as usize <= n && exact, "{n}: {tries}");
                }
            }
        }
    }

    #[test]
    fn weights_in_the_usual_range_are_kept() {
        for weights in [vec![1.0, 100.0], vec![1.0, 10.0, 5.0, 2.0]] {
            let stride = of(&weights);
            let heaviest = weights.iter().copied().fold(0.0, f64::max);
            for (&scaled, weight) in stride.weights().iter().zip(&weights) {
                let expected = weight / heaviest * f64::from(FULL);
                assert!((f64::from(scaled) - expected).abs() <= 0.5, "{weights:?}");
            }
        }
    }
}
