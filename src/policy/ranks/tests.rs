//! Ranks against a sort by the formula.

use super::*;
use crate::rng::Rng;

/// Everybody, by the highest `-weight / ln(u)`, with u in (0, 1) made of the key and the endpoint.
fn sorted(endpoints: &[(String, u32)], hash: u64) -> Vec<usize> {
    let score = |(key, weight): &(String, u32)| {
        let draw = remix(hash ^ xxh64(key.as_bytes(), SEED));
        let u = 1.0 - ((draw >> 12) as f64 + 0.5) / 2.0_f64.powi(52);
        -f64::from((*weight).max(1)) / u.ln()
    };
    let scores: Vec<f64> = endpoints.iter().map(score).collect();
    let mut order: Vec<usize> = (0..endpoints.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

fn random(rng: &mut Rng) -> Vec<(String, u32)> {
    let heaviest = [1, 2, 50, u32::MAX as usize][rng.below(4)];
    (0..1 + rng.below(40))
        .map(|i| (format!("e-{i}"), rng.below(heaviest) as u32))
        .collect()
}

#[test]
fn the_order_is_that_of_the_formula() {
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let endpoints = random(&mut rng);
        let ranks = Ranks::new(&endpoints);
        let out: Vec<usize> = (0..rng.below(20)).map(|_| rng.below(40)).collect();
        for _ in 0..30 {
            let hash = rng.word();
            let mut expected = sorted(&endpoints, hash);
            let what = format!("seed {seed}: {endpoints:?} at {hash:#x}");
            assert_eq!(ranks.first(hash, |_| true), Some(expected[0]), "{what}");
            expected.retain(|place| !out.contains(place));
            let accept = |place: usize| !out.contains(&place);
            assert_eq!(
                ranks.first(hash, accept),
                expected.first().copied(),
                "{what}"
            );
            let mut room = [usize::MAX; MOST];
            let room = &mut room[..1 + rng.below(MOST)];
            expected.truncate(room.len());
            assert_eq!(ranks.top(hash, accept, room), expected, "{what}");
        }
    }
}

/// The order of two never depends on a third, nor on its weight: also where one weight makes all others count.
#[test]
fn of_two_the_first_stays_the_first_whatever_the_others_are() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let endpoints = random(&mut rng);
        let victim = rng.below(endpoints.len());
        let mut without = endpoints.clone();
        without.remove(victim);
        let mut heavier = endpoints.clone();
        heavier[victim].1 = heavier[victim].1.max(1).saturating_mul(3);
        let [all, without, heavier] = [&endpoints, &without, &heavier].map(|e| Ranks::new(e));
        for _ in 0..60 {
            let hash = rng.word();
            let what = format!("seed {seed}: {victim} of {endpoints:?} at {hash:#x}");
            let first = all.first(hash, |_| true);
            if first == Some(victim) {
                assert_eq!(heavier.first(hash, |_| true), first, "{what}");
            } else {
                let rest = without.first(hash, |_| true);
                let rest = rest.map(|place| place + usize::from(place >= victim));
                assert_eq!(rest, first, "{what}");
                let now = heavier.first(hash, |_| true);
                assert!(now == first || now == Some(victim), "{what}");
            }
        }
    }
}

#[test]
fn of_twins_the_first_comes_first() {
    let twins = ["a", "twin", "twin", "b"].map(|key| (key.to_owned(), 1));
    let mut heavier = twins.clone();
    heavier[0].1 = 2;
    for ranks in [Ranks::new(&twins), Ranks::new(&heavier)] {
        for hash in (0..500).map(remix) {
            assert_ne!(ranks.first(hash, |_| true), Some(2));
            let mut order = [0; 4];
            let order = ranks.top(hash, |_| true, &mut order);
            let at = |place| order.iter().position(|&p| p == place).unwrap();
            assert_eq!(at(1) + 1, at(2), "{order:?}");
        }
    }
    assert_eq!(Ranks::new(&[]).first(7, |_| true), None);
}

/// The words at the top end of what can be drawn leave nobody out.
#[test]
fn the_latest_draw_is_in_the_order_too() {
    let latest = 0x3162_8af6_7b21_31ab;
    assert_eq!(remix(latest), u64::MAX);
    for weights in [[1, 1], [1, 2]] {
        let endpoints = ["a", "b"].map(str::to_owned);
        let endpoints: Vec<_> = endpoints.into_iter().zip(weights).collect();
        let ranks = Ranks::new(&endpoints);
        for place in 0..2 {
            let hash = latest ^ ranks.marks[place];
            assert_eq!(ranks.first(hash, |at| at == place), Some(place));
            assert_eq!(ranks.top(hash, |_| true, &mut [0; 2]), [1 - place, place]);
        }
    }
}
