//! When to ask a silent connection whether it still lives, and when to give it up.

use std::time::Duration;

use tokio::time::Instant;

/// Pings between two signs of life on a stream. grpc-go servers count every further one as abuse and
/// answer the third strike with GOAWAY too_many_pings; without the cap an idle stream would be cut.
pub(super) const PINGS: u8 = 2;

/// A wait too long to be expressed; ends the sum of an instant and a huge duration.
const FAR: Duration = Duration::from_secs(86_400 * 365);

/// The keepalive of one connection. It reads no clock and sends nothing: the connection's task does.
#[derive(Debug)]
pub(super) struct Keepalive {
    interval: Duration,
    timeout: Duration,
    idle: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody waits for anything.
    Off,
    /// Calls are open (or idle pings asked for) since this time.
    Watching(Instant),
    /// A ping was sent at this time.
    Asked(Instant),
}

/// What the task knows when it asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signs {
    pub(super) now: Instant,
    /// Calls are open.
    pub(super) open: bool,
    /// When bytes were last read.
    pub(super) read: Instant,
    /// Pings sent since a stream last showed life.
    pub(super) pings: u8,
}

/// What the task is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing until a call opens.
    Rest,
    /// Ask again at this time.
    At(Instant),
    /// Send a ping, note it with [`Keepalive::asked`], and ask again.
    Ping,
    /// The peer did not answer.
    Dead,
}

impl Keepalive {
    pub(super) fn new(interval: Duration, timeout: Duration, idle: bool) -> Self {
        Self {
            interval: interval.min(FAR),
            timeout: timeout.min(FAR),
            idle,
            state: State::Off,
        }
    }

    /// Nothing is watched; a call that opens is a reason to [`step`](Self::step).
    pub(super) fn is_off(&self) -> bool {
        self.state == State::Off
    }

    pub(super) fn is_idle(&self) -> bool {
        self.idle
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// An answer is awaited.
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.state, State::Asked(_))
    }

    pub(super) fn asked(&mut self, now: Instant) {
        self.state = State::Asked(now);
    }

    /// The ping was answered.
    pub(super) fn answered(&mut self, now: Instant) {
        self.state = State::Watching(now);
    }

    pub(super) fn step(&mut self, signs: Signs) -> Step {
        match self.state {
            State::Off if signs.open || self.idle => {
                self.state = State::Watching(signs.now);
                Step::At(signs.now + self.interval)
            }
            State::Off => Step::Rest,
            // Whatever is read after the ping shows life: on a slow line the answer may stand in the
            // queue behind a large message.
            State::Asked(sent) => match sent.max(signs.read) + self.timeout {
                end if end <= signs.now => Step::Dead,
                end => Step::At(end),
            },
            State::Watching(_) if !signs.open && !self.idle => {
                self.state = State::Off;
                Step::Rest
            }
            State::Watching(since) => match since.max(signs.read) + self.interval {
                due if due > signs.now => Step::At(due),
                _ if signs.pings < PINGS => Step::Ping,
                _ => Step::At(signs.now + self.interval),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn signs(start: Instant, now: u32, open: bool, read: u32, pings: u8) -> Signs {
        Signs {
            now: start + S * now,
            open,
            read: start + S * read,
            pings,
        }
    }

    #[test]
    fn a_silent_stream_is_asked_after_ten_seconds_and_given_up_twenty_later() {
        let t = Instant::now();
        let mut keepalive = Keepalive::new(10 * S, 20 * S, false);
        assert_eq!(keepalive.step(signs(t, 0, false, 0, 0)), Step::Rest);
        // A call after a long silence starts the count: the silence before it means nothing.
        assert_eq!(
            keepalive.step(signs(t, 60, true, 0, 0)),
            Step::At(t + 70 * S)
        );
        assert_eq!(
            keepalive.step(signs(t, 70, true, 65, 0)),
            Step::At(t + 75 * S)
        );
        assert_eq!(keepalive.step(signs(t, 75, true, 65, 0)), Step::Ping);
        keepalive.asked(t + 75 * S);
        assert_eq!(
            keepalive.step(signs(t, 76, true, 65, 1)),
            Step::At(t + 95 * S)
        );
        // Other bytes put the end off, silence does not.
        assert_eq!(
            keepalive.step(signs(t, 95, true, 80, 1)),
            Step::At(t + 100 * S)
        );
        assert_eq!(keepalive.step(signs(t, 100, true, 80, 1)), Step::Dead);
    }

    #[test]
    fn two_pings_and_no_more_until_a_stream_shows_life() {
        let t = Instant::now();
        let mut keepalive = Keepalive::new(10 * S, 20 * S, false);
        keepalive.step(signs(t, 0, true, 0, 0));
        for ping in 0..2 {
            let at = 10 + 10 * u32::from(ping);
            assert_eq!(
                keepalive.step(signs(t, at, true, at - 10, ping)),
                Step::Ping
            );
            keepalive.asked(t + S * at);
            keepalive.answered(t + S * at);
        }
        assert_eq!(
            keepalive.step(signs(t, 30, true, 20, 2)),
            Step::At(t + 40 * S)
        );
        assert_eq!(keepalive.step(signs(t, 40, true, 20, 0)), Step::Ping);
    }

    #[test]
    fn an_idle_connection_is_asked_only_by_option() {
        let t = Instant::now();
        let mut quiet = Keepalive::new(10 * S, 20 * S, false);
        quiet.step(signs(t, 0, true, 0, 0));
        assert_eq!(quiet.step(signs(t, 10, false, 0, 0)), Step::Rest);
        assert!(quiet.is_off());
        let mut eager = Keepalive::new(10 * S, 20 * S, true);
        assert_eq!(eager.step(signs(t, 0, false, 0, 0)), Step::At(t + 10 * S));
        assert_eq!(eager.step(signs(t, 10, false, 0, 0)), Step::Ping);
    }

    #[test]
    fn an_endless_interval_is_no_overflow() {
        let t = Instant::now();
        let mut keepalive = Keepalive::new(Duration::MAX, Duration::MAX, true);
        assert!(matches!(
            keepalive.step(signs(t, 0, true, 0, 0)),
            Step::At(_)
        ));
    }
}
