//! Any order of what can happen to a request and those who read it.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What happens to a call and its attempts.
#[derive(Clone, Debug)]
enum Move {
    Attempt,
    Read(usize),
    Drop(usize),
    Commit(usize),
    GoOn,
    Leave,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        5 => (0usize..40).prop_map(|len| Turn::Data(Bytes::from(vec![b'.'; len]))),
        2 => Just(Turn::Nothing(Wakes::Told)),
        1 => Just(Turn::Nothing(Wakes::Early)),
    ];
    let last = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Turn::Trailers)),
        1 => Just(Some(Turn::Error)),
    ];
    (vec(turn, 0..25), last).prop_map(|(mut turns, last)| {
        turns.extend(last);
        turns
    })
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let step = prop_oneof![
        3 => Just(Move::Attempt),
        20 => (0usize..8).prop_map(Move::Read),
        2 => (0usize..8).prop_map(Move::Drop),
        1 => (0usize..8).prop_map(Move::Commit),
        4 => Just(Move::GoOn),
        1 => Just(Move::Leave),
    ];
    vec(step, 0..150)
}

/// What a script gives to whoever reads all of it.
fn whole(turns: &[Turn]) -> Vec<Seen> {
    let mut seen: Vec<Seen> = turns
        .iter()
        .filter_map(|turn| match turn {
            Turn::Data(data) => Some(Seen::Data(data.clone())),
            Turn::Trailers => Some(Seen::Trailers),
            Turn::Error => Some(Seen::Error(tonic::Code::DataLoss)),
            Turn::Nothing(_) | Turn::Panic => None,
        })
        .collect();
    if !matches!(seen.last(), Some(Seen::Error(_))) {
        seen.push(Seen::End);
    }
    seen
}

proptest! {
    #[test]
    fn whatever_happens_each_reads_the_whole_or_learns_that_it_lost(
        turns in turns(),
        moves in moves(),
        per_call in 0usize..3_000,
        per_channel in 0usize..3_000,
    ) {
        let expected = whole(&turns);
        let Bench { replay, allowance, asleep, .. } =
            Bench::with(allowance(per_call, per_channel), turns);
        let mut replay = Some(replay);
        let mut hands: Vec<Hand> = Vec::new();
        let mut winner = None;
        let go_on = || asleep.lock().unwrap().take().map(Waker::wake).is_some();
        for step in moves {
            let at = |n: usize| (!hands.is_empty()).then(|| n % hands.len());
            match step {
                Move::Attempt => hands.extend(replay.as_ref().map(Hand::of)),
                Move::Read(n) => if let Some(n) = at(n) && !hands[n].is_over() {
                    hands[n].read();
                },
                Move::Drop(n) => if let Some(n) = at(n) {
                    hands.remove(n);
                },
                Move::Commit(n) => if let (Some(n), Some(replay)) = (at(n), &replay) {
                    let before = replay.winner();
                    let agreed = replay.commit(hands[n].attempt);
                    prop_assert_eq!(agreed, before.is_none_or(|w| w == hands[n].attempt));
                },
                Move::GoOn => { go_on(); }
                Move::Leave => replay = None,
            }
            if let Some(replay) = &replay {
                let now = replay.winner();
                prop_assert!(winner.is_none() || winner == now, "a winner stays");
                prop_assert_eq!(replay.is_committed(), now.is_some());
                winner = now;
            }
            prop_assert!(allowance.held() <= per_call.min(per_channel));
            for hand in &hands {
                let lost = hand.seen.last() == Some(&LOST);
                let read = &hand.seen[..hand.seen.len() - usize::from(lost)];
                prop_assert!(expected.starts_with(read), "{read:?} of {expected:?}");
                prop_assert!(!(lost && winner == Some(hand.attempt)));
            }
        }
        // Only who is woken looks again: nobody must be forgotten.
        loop {
            let mut moved = false;
            for hand in &mut hands {
                while !hand.is_over() && (!hand.pending || hand.is_woken()) {
                    hand.read();
                    moved = true;
                }
            }
            if !moved && !go_on() {
                break;
            }
        }
        let read_all = hands.iter().filter(|hand| hand.seen == expected).count();
        let lost = hands.iter().filter(|hand| hand.seen.last() == Some(&LOST)).count();
        prop_assert_eq!(read_all + lost, hands.len(), "somebody was forgotten");
        drop((replay, hands));
        prop_assert_eq!(allowance.held(), 0);
    }
}
