//! Does a connected endpoint count as healthy? What it is said to be, without the flapping.
//!
//! Bad news counts at once. Good news after bad counts when it has stood for a while: not at all long after one bad
//! spell, longer the more often it was followed by bad news again. So an endpoint that flaps is out until it has
//! calmed down, and whoever publishes its state is not kept busy by it.

use std::time::Duration;

use crate::report::Health;
use crate::timestamp::Timestamp;

/// What was said stands as settled after this time, and the flapping before it is forgotten.
const CALM: Duration = Duration::from_secs(10);

/// How long good news must stand after the second bad spell in a row. It doubles with each further one. Of any three
/// changes the last is then at least this long after the first, but where a settled endpoint falls.
const FIRST_HOLD: Duration = Duration::from_secs(1);

/// The longest that good news must stand: a server that is well for a few seconds at a time still gets calls.
const LONGEST_HOLD: Duration = Duration::from_secs(4);

/// The health of one endpoint on one connection, damped.
///
/// On another connection it starts anew. Time must not go backwards.
#[derive(Debug, Default)]
pub(crate) struct Damped {
    state: State,
    /// Since when it has been said to serve, or else not to.
    since: Timestamp,
    /// Bad spells in a row, beyond the first, that followed on good ones shorter than [`CALM`].
    relapses: u32,
}

#[derive(Debug)]
enum State {
    /// What was said last counts.
    Settled(Health),
    /// It is said to serve (`next`), which counts from `until` on; before that `shown` does.
    Held {
        shown: Health,
        next: Health,
        until: Timestamp,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Settled(Health::Unknown)
    }
}

impl Damped {
    /// What counts. Its reason, where it has one, is the latest.
    pub(crate) fn health(&self) -> &Health {
        match &self.state {
            State::Settled(health) | State::Held { shown: health, .. } => health,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        match self.state {
            State::Settled(_) => None,
            State::Held { until, .. } => Some(until),
        }
    }

    /// Takes in what is said now. `true` when something else counts from now on: another state, not only another
    /// reason for it.
    pub(crate) fn handle(&mut self, said: Health, now: Timestamp) -> bool {
        let before = std::mem::discriminant(self.health());
        self.note(said.is_serving(), now);
        self.state = match std::mem::take(&mut self.state) {
            State::Settled(shown @ Health::NotServing(_)) if said.is_serving() => State::Held {
                shown,
                next: said,
                until: self.since + self.hold(),
            },
            State::Held { shown, until, .. } if said.is_serving() => State::Held {
                shown,
                next: said,
                until,
            },
            State::Settled(_) | State::Held { .. } => State::Settled(said),
        };
        self.settle(now);
        before != std::mem::discriminant(self.health())
    }

    /// Says that time has passed. `true` as in [`handle`](Self::handle).
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) -> bool {
        let before = std::mem::discriminant(self.health());
        self.settle(now);
        before != std::mem::discriminant(self.health())
    }

    /// Counts how often good news was soon followed by bad.
    fn note(&mut self, serving: bool, now: Timestamp) {
        let was_serving = match &self.state {
            State::Settled(health) => health.is_serving(),
            State::Held { .. } => true,
        };
        if was_serving == serving {
            return;
        }
        if now.since(self.since) >= CALM {
            self.relapses = 0;
        } else if was_serving {
            self.relapses = self.relapses.saturating_add(1);
        }
        self.since = now;
    }

    fn hold(&self) -> Duration {
        match self.relapses.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_HOLD
                .saturating_mul(2u32.saturating_pow(doublings))
                .min(LONGEST_HOLD),
        }
    }

    fn settle(&mut self, now: Timestamp) {
        match &mut self.state {
            State::Held { next, until, .. } if *until <= now => {
                self.state = State::Settled(std::mem::take(next));
            }
            State::Settled(_) | State::Held { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::Unfit;

    const BAD: Health = Health::NotServing(Unfit::SaysSo);

    fn ms(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    /// A settled endpoint: it has been serving since 0.
    fn serving() -> Damped {
        let mut health = Damped::default();
        assert!(health.handle(Health::Serving, ms(0)));
        health
    }

    #[test]
    fn nothing_counts_before_something_is_said() {
        let mut health = Damped::default();
        assert_eq!(
            (health.health(), health.deadline()),
            (&Health::Unknown, None)
        );
        assert!(!health.handle_timeout(ms(60_000)));
        assert!(health.handle(Health::Unchecked, ms(60_000)), "at once");
        assert_eq!(health.health(), &Health::Unchecked);
    }

    #[test]
    fn bad_news_counts_at_once_and_so_does_the_end_of_one_bad_spell() {
        let mut health = serving();
        assert!(health.handle(BAD, ms(20_000)));
        assert_eq!(health.health(), &BAD);
        assert!(!health.handle(BAD, ms(20_040)), "no news");
        assert!(health.handle(Health::Serving, ms(20_050)));
        assert_eq!(
            (health.health(), health.deadline()),
            (&Health::Serving, None)
        );
        // One that begins with bad news has no spell behind it.
        let mut health = Damped::default();
        assert!(health.handle(BAD, ms(0)));
        assert!(health.handle(Health::Serving, ms(1)));
    }

    #[test]
    fn good_news_must_stand_longer_after_each_relapse() {
        let mut health = serving();
        health.handle(BAD, ms(20_000));
        let mut at = 20_000;
        for hold in [0, 1_000, 2_000, 4_000, 4_000, 4_000] {
            at += 100;
            assert_eq!(health.handle(Health::Serving, ms(at)), hold == 0);
            if hold > 0 {
                assert_eq!(health.deadline(), Some(ms(at + hold)));
                assert!(!health.handle_timeout(ms(at + hold - 1)));
                assert_eq!(health.health(), &BAD, "{hold}");
                assert!(health.handle_timeout(ms(at + hold)));
            }
            assert_eq!(health.health(), &Health::Serving);
            assert_eq!(health.deadline(), None);
            at += hold + 100;
            assert!(health.handle(BAD, ms(at)));
        }
        // Ten quiet seconds, good or bad, and all is forgotten.
        assert!(health.handle(Health::Serving, ms(at + 10_000)));
        assert!(health.handle(BAD, ms(at + 20_000)));
        assert!(health.handle(Health::Serving, ms(at + 20_001)));
    }

    #[test]
    fn bad_news_ends_the_wait_and_the_next_is_longer() {
        let mut health = serving();
        for at in [100, 300] {
            health.handle(BAD, ms(at));
            assert!(!health.handle(Health::Serving, ms(at + 100)));
            assert!(health.deadline().is_some());
        }
        let why = Health::NotServing(Unfit::WatchEnded("reset".into()));
        assert!(
            !health.handle(why.clone(), ms(500)),
            "another reason is no other state"
        );
        assert_eq!((health.health(), health.deadline()), (&why, None));
        health.handle(Health::Serving, ms(600));
        assert_eq!(health.deadline(), Some(ms(4_600)));
        // Late in coming, it counts by when it was said all the same.
        assert!(health.handle(Health::Unchecked, ms(9_000)));
        assert_eq!(health.health(), &Health::Unchecked);
    }

    #[test]
    fn ten_flaps_a_second_are_three_changes_and_then_none() {
        let mut health = serving();
        let mut changes = Vec::new();
        for tick in 0..600 {
            let at = ms(20_000 + 50 * tick);
            if health.deadline().is_some_and(|due| due <= at) {
                changes.extend(health.handle_timeout(at).then_some(at));
            }
            let said = if tick % 2 == 0 { BAD } else { Health::Serving };
            changes.extend(health.handle(said, at).then_some(at));
        }
        assert_eq!(changes, [ms(20_000), ms(20_050), ms(20_100)]);
        // The flapping ends with good news at 49,950.
        assert_eq!(health.deadline(), Some(ms(53_950)));
        assert!(health.handle_timeout(ms(53_950)));
    }

    fn said() -> impl Strategy<Value = Health> {
        prop_oneof![
            3 => Just(Health::Serving),
            1 => Just(Health::Unchecked),
            3 => Just(BAD),
            1 => Just(Health::NotServing(Unfit::UnknownService)),
            1 => Just(Health::NotServing(Unfit::WatchEnded("reset".into()))),
        ]
    }

    /// Plays what is said after these pauses, and each deadline when it is due.
    fn play(news: &[(u64, Health)], mut seen: impl FnMut(&Damped, Timestamp)) -> Damped {
        let mut health = Damped::default();
        let mut now = Timestamp::ZERO;
        for (pause, said) in news {
            let next = now + Duration::from_millis(*pause);
            if let Some(due) = health.deadline().filter(|&due| due <= next) {
                assert!(due >= now);
                health.handle_timeout(due);
                seen(&health, due);
            }
            now = next;
            health.handle(said.clone(), now);
            seen(&health, now);
        }
        health
    }

    fn pause() -> impl Strategy<Value = u64> {
        prop_oneof![4 => 1u64..200, 2 => 200u64..3_000, 1 => 3_000u64..30_000]
    }

    proptest! {
        #[test]
        fn two_changes_a_second_at_most(
            news in prop::collection::vec((pause(), said()), 1..200),
        ) {
            // When calls could be sent, and no longer could.
            let mut changes: Vec<(Timestamp, bool)> = Vec::new();
            let mut began = None;
            play(&news, |health, now| {
                let serving = health.health().is_serving();
                began.get_or_insert(now);
                if changes.last().map_or(serving, |&(_, last)| last != serving) {
                    changes.push((now, serving));
                }
            });
            for (i, three) in changes.windows(3).enumerate() {
                let settled = match i {
                    0 => began,
                    _ => Some(changes[i - 1].0),
                };
                // The fall of one that had been well for long, its return, and the next fall.
                let first = !three[0].1
                    && settled.is_some_and(|since| {
                        three[0].0.since(since) >= CALM - LONGEST_HOLD
                    });
                let apart = three[2].0.since(three[0].0);
                prop_assert!(
                    first || apart >= Duration::from_secs(1),
                    "{changes:?}"
                );
            }
            for four in changes.windows(4) {
                let apart = four[3].0.since(four[0].0);
                prop_assert!(apart >= Duration::from_secs(1), "{changes:?}");
            }
        }

        #[test]
        fn bad_news_always_counts_at_once_and_good_news_in_the_end(
            news in prop::collection::vec((pause(), said()), 0..200),
        ) {
            let mut health = play(&news, |_, _| {});
            let now = news.iter().fold(Timestamp::ZERO, |now, (pause, _)| {
                now + Duration::from_millis(*pause)
            });
            if let Some((_, last)) = news.last() && !last.is_serving() {
                prop_assert_eq!(health.health(), last);
            }
            health.handle(Health::Serving, now);
            if let Some(due) = health.deadline() {
                prop_assert!(due.since(now) <= LONGEST_HOLD);
                prop_assert!(health.handle_timeout(due));
            }
            prop_assert_eq!(health.health(), &Health::Serving);
            prop_assert_eq!(health.deadline(), None);
        }
    }
}
