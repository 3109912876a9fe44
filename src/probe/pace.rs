//! When may a question whose answers ended be asked again?

use std::time::Duration;

use crate::balancer::Backoff;
use crate::rng::Rng;

/// A stream of answers that lived as long as this was none that is cut again and again.
const LONG_LIVED: Duration = Duration::from_secs(10);

/// The longest pause after a stream that had answered: the server is there, whatever cuts its streams.
const LONGEST: Duration = Duration::from_secs(10);

/// The pauses of one watch.
///
/// A17 asks again at once where there was an answer. A server whose streams are cut after a second would then be asked
/// every second for ever; so the second in a row that was short waits, and each further one longer.
#[derive(Debug)]
pub(super) struct Pace {
    backoff: Backoff,
    /// Streams in a row without an answer.
    silent: u32,
    /// Streams in a row, but for those, that lived for a short time.
    short: u32,
}

impl Pace {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            silent: 0,
            short: 0,
        }
    }

    /// How long to wait after a stream that ended; `lived` is how long it did, where the server had answered on it.
    pub(super) fn ended(&mut self, lived: Option<Duration>, rng: &mut Rng) -> Duration {
        let Some(lived) = lived else {
            self.silent = self.silent.saturating_add(1);
            return self.backoff.delay(self.silent, rng);
        };
        self.silent = 0;
        let short = match lived < LONG_LIVED {
            true => self.short,
            false => 0,
        };
        self.short = short.saturating_add(u32::from(lived < LONG_LIVED));
        if short == 0 {
            return Duration::ZERO;
        }
        let backoff = Backoff {
            base: self.backoff.base.min(LONGEST),
            cap: self.backoff.cap.min(LONGEST),
            ..self.backoff
        };
        backoff.delay(short, rng)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Without chance, so that waits are literal.
    fn pace() -> (Pace, Rng) {
        let backoff = Backoff {
            jitter: 0.0,
            ..Backoff::default()
        };
        (Pace::new(backoff), Rng::new(1))
    }

    #[test]
    fn without_an_answer_the_pauses_are_those_of_connections() {
        let (mut pace, mut rng) = pace();
        let mut seconds = || pace.ended(None, &mut rng).as_secs_f64();
        for wait in [1.0, 1.6, 2.56, 4.096] {
            assert!((seconds() - wait).abs() < 1e-6);
        }
        let last = (0..20).map(|_| seconds()).last();
        assert_eq!(last, Some(120.0));
    }

    #[test]
    fn an_answered_stream_is_opened_again_at_once_unless_it_is_cut_again_and_again() {
        let (mut pace, mut rng) = pace();
        assert_eq!(pace.ended(Some(60 * S), &mut rng), Duration::ZERO);
        assert_eq!(pace.ended(Some(60 * S), &mut rng), Duration::ZERO);
        let mut cut = |lived| pace.ended(Some(lived), &mut rng).as_secs_f64();
        let waits: Vec<f64> = (0..8).map(|_| cut(S)).collect();
        let expected = [0.0, 1.0, 1.6, 2.56, 4.096, 6.5536, 10.0, 10.0];
        for (got, wait) in waits.iter().zip(expected) {
            assert!((got - wait).abs() < 1e-6, "{waits:?}");
        }
        assert_eq!(cut(10 * S), 0.0, "long enough: forgiven");
        assert_eq!(cut(S), 0.0);
        assert_eq!(cut(S), 1.0);
        // An answer ends the row of those without.
        pace.ended(None, &mut rng);
        pace.ended(None, &mut rng);
        pace.ended(Some(60 * S), &mut rng);
        assert_eq!(pace.ended(None, &mut rng), S);
    }

    /// G7: a stream that is reset each second is opened again ten times a minute at most, in every minute and
    /// whatever chance makes of the pauses.
    #[test]
    fn ten_a_minute_when_each_lives_a_second() {
        for seed in 0..300 {
            let mut pace = Pace::new(Backoff::default());
            let mut rng = Rng::new(seed);
            let mut now = Duration::ZERO;
            let mut opened = Vec::new();
            while now < 600 * S {
                now += S;
                now += pace.ended(Some(S), &mut rng);
                opened.push(now);
            }
            let minutes = opened.iter().map(|start| {
                let within = |at: &&Duration| **at >= *start && **at < *start + 60 * S;
                opened.iter().filter(within).count()
            });
            let most = minutes.max();
            assert!(most <= Some(10), "seed {seed}: {most:?} of {opened:?}");
        }
    }
}
