//! What is read of servers: what each says of itself, and how many bytes its answers have.

use std::time::Duration;

use equipoise::{LoadReport, Timestamp};

/// How often the bytes of an endpoint are counted, as in a channel, and how often a real server is asked.
pub const EVERY: Duration = Duration::from_millis(250);

/// A server's figures are moving averages: what was fades to 37 % in this time. They are as old, on average, as those of
/// a plain average over the last second.
const WINDOW: Duration = Duration::from_millis(500);

/// An answer has a byte for each 10 µs of its work, 2 kB where that is 20 ms, and at the most 1 MB: who works more
/// sends more, and what tonic takes in one message is never reached.
pub fn answer_bytes(work: Duration) -> usize {
    (work.as_micros() / 10).min(1_000_000) as usize
}

/// How one server measures itself.
#[derive(Clone, Debug)]
pub struct Meter {
    slots: f64,
    at: Timestamp,
    serving: u32,
    /// Of its slots, on average.
    busy: f64,
    /// Calls and errors per second.
    rps: f64,
    eps: f64,
}

impl Meter {
    pub fn new(slots: usize, now: Timestamp) -> Self {
        Self {
            slots: slots as f64,
            at: now,
            serving: 0,
            busy: 0.0,
            rps: 0.0,
            eps: 0.0,
        }
    }

    /// It takes up a call.
    pub fn begin(&mut self, now: Timestamp) {
        self.advance(now);
        self.serving += 1;
    }

    /// It has served a call that it took up.
    pub fn finish(&mut self, now: Timestamp) {
        self.advance(now);
        self.serving -= 1;
        self.rps += 1.0 / WINDOW.as_secs_f64();
    }

    /// It has turned a call away without taking it up.
    pub fn fail(&mut self, now: Timestamp) {
        self.advance(now);
        self.rps += 1.0 / WINDOW.as_secs_f64();
        self.eps += 1.0 / WINDOW.as_secs_f64();
    }

    /// What it says of itself.
    pub fn report(&mut self, now: Timestamp) -> LoadReport {
        self.advance(now);
        LoadReport {
            cpu_utilization: self.busy / self.slots,
            rps: self.rps,
            eps: self.eps,
            ..LoadReport::default()
        }
    }

    fn advance(&mut self, now: Timestamp) {
        let elapsed = now.since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let keep = (-elapsed / WINDOW.as_secs_f64()).exp();
        self.busy = self.busy * keep + f64::from(self.serving) * (1.0 - keep);
        self.rps *= keep;
        self.eps *= keep;
    }
}
