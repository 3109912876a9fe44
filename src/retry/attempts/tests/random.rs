//! One call under arbitrary events.

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;

#[derive(Clone, Copy, Debug)]
enum Event {
    Started(u32),
    Head(u32),
    Ended(u32, StatusCode, Pushback),
    Overflow(u32),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let attempt = || 0u32..6;
    let code = prop_oneof![
        6 => Just(UNAVAILABLE),
        1 => Just(INTERNAL),
        1 => Just(StatusCode::OK),
    ];
    let pushback = prop_oneof![
        6 => Just(UNSAID),
        2 => (0u64..300).prop_map(|wait| Pushback::After(millis(wait))),
        1 => Just(Pushback::Stop),
    ];
    let event = prop_oneof![
        8 => attempt().prop_map(Event::Started),
        1 => attempt().prop_map(Event::Head),
        10 => (attempt(), code, pushback)
            .prop_map(|(attempt, code, pushback)| Event::Ended(attempt, code, pushback)),
        1 => attempt().prop_map(Event::Overflow),
        10 => (0u64..200).prop_map(Event::Pass),
    ];
    vec(event, 0..60)
}

/// What was seen of a call.
#[derive(Debug, Default)]
struct Seen {
    begun: u32,
    running: Vec<u32>,
    failures: u32,
    end: Option<Step>,
    /// Nothing may begin any more.
    closed: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Fault matrix H9, V11, V12: one end, bounded attempts, none after the end, never stuck.
    #[test]
    fn a_call_ends_once_whatever_happens(
        events in events(),
        hedging in any::<bool>(),
        max_attempts in 2u32..=5,
        delay in 0u64..100,
        deadline in prop_oneof![Just(None), (0u64..2_000).prop_map(Some)],
        (retries, copies, reserve) in (any::<bool>(), any::<bool>(), any::<bool>()),
        random in any::<u64>(),
    ) {
        let shares = RetryBudget::default()
            .with_share(f64::from(u8::from(retries)))
            .with_hedges(f64::from(u8::from(copies)))
            .with_reserve(u32::from(reserve));
        let budget = Budget::new(&shares);
        budget.call(Timestamp::ZERO);
        let may_add = u32::from(retries) + 10 * u32::from(reserve);

        let deadline = deadline.map(ms);
        let mut attempts = match hedging {
            true => Attempts::hedging(
                &HedgingPolicy::after(millis(delay)).with_max_attempts(max_attempts), None, deadline,
            ),
            false => Attempts::retrying(
                &RetryPolicy::default().with_max_attempts(max_attempts), deadline, random,
            ),
        };
        let mut seen = Seen::default();
        let mut now = 0;
        // Whatever is still open in the end fails, and time passes as far as it is waited for.
        let mut events = events.into_iter();
        let mut rounds = 0;
        loop {
            // What it says of this moment.
            let until = loop {
                match attempts.poll(&budget, ms(now)) {
                    Start { attempt } => {
                        prop_assert!(!seen.closed && seen.end.is_none());
                        prop_assert!(deadline.is_none_or(|deadline| ms(now) < deadline));
                        prop_assert_eq!(attempt, seen.begun);
                        seen.begun += 1;
                        prop_assert!(seen.begun <= max_attempts);
                        prop_assert!(seen.begun <= 1 + may_add);
                        prop_assert!(hedging || seen.running.is_empty());
                        prop_assert!(
                            seen.failures > 0 || seen.begun <= 1 + u32::from(copies).min(may_add)
                        );
                        seen.running.push(attempt);
                    }
                    Wait { until } => {
                        prop_assert!(seen.end.is_none());
                        prop_assert!(until > ms(now));
                        prop_assert!(deadline.is_none_or(|deadline| until <= deadline));
                        prop_assert!(!seen.running.is_empty() || until < Timestamp::MAX);
                        break Some(until);
                    }
                    end => {
                        prop_assert_eq!(*seen.end.get_or_insert(end), end);
                        match end {
                            Commit { attempt } => prop_assert!(seen.running.contains(&attempt)),
                            Finish { attempt } => prop_assert!(
                                attempt < seen.begun && !seen.running.contains(&attempt)
                            ),
                            _ => prop_assert!(deadline.is_some_and(|deadline| ms(now) >= deadline)),
                        }
                        break None;
                    }
                }
            };
            prop_assert_eq!(attempts.begun(), seen.begun);
            let event = match (events.next(), until) {
                (Some(event), _) => event,
                (None, None) => break,
                (None, Some(_)) if !seen.running.is_empty() => {
                    Event::Ended(seen.running[0], UNAVAILABLE, UNSAID)
                }
                (None, Some(until)) => Event::Pass(until.since(ms(now)).as_nanos().div_ceil(1_000_000) as u64),
            };
            rounds += 1;
            prop_assert!(rounds < 100, "it does not end");
            let over = seen.end.is_some();
            match event {
                Event::Started(attempt) => attempts.handle_started(attempt, ms(now)),
                Event::Head(attempt) => {
                    attempts.handle_head(attempt);
                    seen.closed |= seen.running.contains(&attempt);
                }
                Event::Ended(attempt, code, pushback) => {
                    attempts.handle_ended(attempt, code, pushback, &budget, ms(now));
                    if let (false, Some(at)) = (over, seen.running.iter().position(|&it| it == attempt)) {
                        seen.running.remove(at);
                        seen.failures += 1;
                        seen.closed |= code != UNAVAILABLE || pushback == Pushback::Stop;
                    }
                }
                Event::Overflow(attempt) => {
                    attempts.handle_overflow(attempt);
                    seen.closed |= seen.begun > 0;
                }
                Event::Pass(millis) => now += millis,
            }
        }
        prop_assert!(seen.end.is_some());
    }
}
