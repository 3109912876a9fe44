//! How busy is this endpoint?
//!
//! A [`Load`] holds the live facts of one endpoint: calls in flight, how they ended, how long they took,
//! and the *score* that the load-aware policies compare. Everything in it is changed by the calls
//! themselves, without a lock, and read at any time. Where a channel has several policies, each endpoint has
//! a `Load` for each of them, and [`Loads`] keeps them together.
//!
//! **Errors never look like speed.** A server that fails at once would be the fastest of all. So a
//! server fault (a status that speaks of the server or its load, see [`Classifier`]) never lowers a
//! score, and raises it by a ladder: each of the first four in a row makes the endpoint look four times
//! as slow as it, the failed call or the fastest endpoint is; from the fifth on it counts as one that takes 5 s (for
//! in-flight scores: as busier than all others) and gets a single trial call every 5 s. A success of a
//! call that began after the last fault ends that. A penalty at the first fault would be simpler, and wrong:
//! where every endpoint errs now and then, all traffic would herd onto whichever was cleared last.
//!
//! **Nobody knows a newcomer.** Its latency score begins at the fleet's median, and it gets one call at a time
//! until the first that is answered without a server fault.

mod cells;
mod gate;
mod histogram;
mod loads;
mod measured;
mod number;
mod outcomes;
mod reported;
mod score;

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

pub use cells::{Cell, Cells};
pub use gate::{Admission, Entrance, Notice, Terms};
pub use histogram::Latency;
pub use loads::Loads;
pub use outcomes::Outcomes;

pub(crate) use cells::{CHUNK, Chunk, Shared};
pub(crate) use gate::Entry;
pub(crate) use histogram::{BUCKETS, bucket, bucket_end};
pub(crate) use measured::MEASURED_EVERY;
pub(crate) use score::{Word, handicap};

use histogram::Histogram;
use measured::Flow;
use outcomes::Counters;
use reported::Reported;
use score::{Event, log2, log2_of, units};

use crate::classifier::{Blame, Classifier};
use crate::report::{Completion, Outcome};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::timestamp::Timestamp;

/// How slow a penalised endpoint counts as, and how long it waits for a trial call. 5 s is
/// Linkerd's penalty for a failure.
const PENALTY: Duration = Duration::from_secs(5);

/// A latency sample counts as at most 2^6 times the fastest endpoint's mean, so that one peak is forgotten after
/// 21 s at the default window whatever its height; uncapped, a minute beside 10 ms takes 43 s. With 2^4 a server at a
/// tenth of its speed could not be told from a fast one with a slow answer: where service times vary (log-normal,
/// sigma 1), it kept 1.1 % of the calls, and p99.9 was 1.3 times what it is now.
const CAP: u64 = units(6);

/// A fault counts as 2^2 times what an answer takes: enough to lose against idle endpoints, too little to
/// empty an endpoint that fails a few calls in a hundred, as all of them may.
const FAULT: u64 = units(2);

/// The mean latency moves by a 32nd of the difference per answer: steady against single answers
/// (it bounds the scores of all endpoints), and past a slow first answer after a hundred.
const MEAN_SHIFT: u32 = 5;

/// What the score cells of a channel hold, for the sake of its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Calls in flight. Penalties put an endpoint behind all others; newcomers need no trial, since
    /// few calls in flight say nothing of their speed.
    InFlight,
    /// Decayed maximum of the latency × (calls in flight + 1).
    Latency {
        /// How long it takes a peak to fade to 37 % of itself.
        window: Duration,
    },
    /// Calls in flight, as above; and beside the score the bytes per second that pass between us and the endpoint are
    /// measured ([`Load::bandwidth`]).
    Bandwidth {
        /// How long it takes a sample of the rate to fade to 37 % of itself.
        window: Duration,
    },
}

/// An endpoint's estimate of its latency, good for one thing: comparing it with those of endpoints of
/// the same channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Estimate(u64);

/// The median estimate of endpoints that have one: what a newcomer among them should begin with.
/// `None` when none has answered yet.
pub fn median<'a>(loads: impl IntoIterator<Item = &'a Load>) -> Option<Estimate> {
    let mut estimates: Vec<Estimate> = loads.into_iter().filter_map(Load::estimate).collect();
    let middle = estimates.len().checked_sub(1)? / 2;
    Some(*estimates.select_nth_unstable(middle).1)
}

/// What scores hold has changed for these, which are compared with one another: they begin anew by what is known of
/// the endpoints. Calls in flight stay, and so do penalties; who has not answered yet begins at the median.
pub(crate) fn rescore<'a>(loads: impl IntoIterator<Item = &'a Load> + Clone, now: Timestamp) {
    // Twice: only then it is known what the median is.
    loads
        .clone()
        .into_iter()
        .for_each(|load| load.rescore(None, now));
    let known = |load: &&Load| load.mean.load(Ordering::Relaxed) != 0;
    let median = median(loads.clone().into_iter().filter(known));
    loads.into_iter().for_each(|load| load.rescore(median, now));
}

/// The live facts of one endpoint, as one policy of its channel sees them: how the calls that it gave to the
/// endpoint went, and how many calls are under way there, whoever gave them.
pub struct Load {
    cell: Cell,
    // Of successful answers, in nanoseconds; 0 before the first.
    mean: AtomicU64,
    faults_in_a_row: AtomicU32,
    last_fault: AtomicU64,
    // Means something while the cell says that the endpoint is penalised.
    trial_due: AtomicU64,
    // Allocated when the first call ends: an endpoint that is never used stays small.
    record: OnceLock<Box<Record>>,
    // Allocated at the first report: most servers make none.
    reported: OnceLock<Box<Reported>>,
    // Allocated at the first measurement: most policies want none.
    flow: OnceLock<Box<Flow>>,
}

#[derive(Debug)]
struct Record {
    latencies: Histogram,
    counters: Counters,
}

impl Load {
    /// The load of an endpoint that has had no calls, with its score in `cell`.
    pub fn new(cell: Cell) -> Self {
        Self {
            cell,
            mean: AtomicU64::new(0),
            faults_in_a_row: AtomicU32::new(0),
            last_fault: AtomicU64::new(0),
            trial_due: AtomicU64::new(0),
            record: OnceLock::new(),
            reported: OnceLock::new(),
            flow: OnceLock::new(),
        }
    }

    /// The endpoint has become ready, for the first time or again. Its score forgets what was, and
    /// begins at `median`; it is on trial until its first answer. What the server said of itself is forgotten,
    /// but for the weight drawn from it: that waits for its blackout anew. Counts stay.
    pub fn join(&self, median: Option<Estimate>, now: Timestamp) {
        // Relaxed throughout: see `failed`.
        self.faults_in_a_row.store(0, Ordering::Relaxed);
        if let Some(reported) = self.reported.get() {
            reported.forget();
        }
        if let Some(flow) = self.flow.get() {
            flow.forget();
        }
        self.cell.apply(match self.cell.shared().ascent() {
            None => Event::Joined {
                key: 0,
                on_trial: false,
            },
            Some(ascent) => Event::Joined {
                // With no median, nobody has answered: as if it took no time at all, so that its
                // one call comes soon.
                key: median.map_or(ascent.at(now), |Estimate(key)| key),
                on_trial: true,
            },
        });
    }

    /// The score begins anew: see [`rescore`].
    fn rescore(&self, median: Option<Estimate>, now: Timestamp) {
        // Relaxed: a mean that is a moment old is as good.
        let mean = self.mean.load(Ordering::Relaxed);
        self.cell.apply(match self.cell.shared().ascent() {
            None => Event::Rescored {
                key: 0,
                hard: score::SHUNNED,
                on_trial: false,
            },
            Some(ascent) => Event::Rescored {
                key: match (mean, median) {
                    (0, Some(Estimate(key))) => key,
                    _ => ascent.at(now) + log2(mean),
                },
                hard: ascent.at(now) + log2_of(PENALTY),
                on_trial: mean == 0,
            },
        });
    }

    /// A call was given to this endpoint. Each `begin` needs one [`end`](Self::end).
    #[inline]
    pub fn begin(&self) {
        self.cell.apply(Event::Begun);
    }

    /// The first message of a call that goes on has arrived: a newcomer has answered. Without this
    /// its trial lasts until the call ends, which for a stream may be never.
    pub fn spoke(&self) {
        if self.cell.word().on_trial() {
            self.cell.apply(Event::Spoke);
        }
    }

    /// A call was given to this endpoint, if fewer than `limit` are under way.
    #[inline]
    fn try_begin(&self, limit: u32) -> bool {
        self.cell.begin_below(limit)
    }

    /// A call that began at `started` has ended at `now`. Codes speak of whom they usually do
    /// ([`Classifier::default`]).
    #[inline]
    pub fn end(&self, completion: &Completion, started: Timestamp, now: Timestamp) {
        let blame = match completion.outcome {
            Outcome::Answered(code) => Some(Classifier::USUAL.blame(code)),
            Outcome::Pushed(_) => Some(Blame::Load),
            Outcome::Cancelled | Outcome::Refused => None,
        };
        self.end_by(completion, blame, started, now);
    }

    /// The same, where the end speaks of whom `blame` says.
    #[inline]
    fn end_by(
        &self,
        completion: &Completion,
        blame: Option<Blame>,
        started: Timestamp,
        now: Timestamp,
    ) {
        let slope = self.cell.shared().slope();
        let record = self.record.get_or_init(Record::boxed);
        let nanos = u64::try_from(completion.latency.as_nanos()).unwrap_or(u64::MAX);
        match completion.outcome {
            Outcome::Answered(code) | Outcome::Pushed(code) => {
                // The locked operations come last: a processor does little else beside one.
                let good = blame == Some(Blame::Nobody);
                let answer = good.then(|| self.answered(nanos, started, now));
                record.counters.answered(code);
                record.latencies.record(nanos);
                match answer {
                    Some(event) => _ = self.cell.apply(event),
                    None => self.failed(nanos, now),
                }
            }
            Outcome::Cancelled => {
                record.counters.cancelled();
                self.cancelled(nanos, now);
            }
            Outcome::Refused => {
                record.counters.refused();
                self.cell.apply(Event::Refused);
            }
        }
        self.settle(slope, now);
    }

    /// The end of a call was entered by this slope. If the scoring has changed meanwhile, the score is made anew: one of the
    /// old scoring may be beyond all of the new one, and would last.
    #[inline]
    fn settle(&self, slope: u64, now: Timestamp) {
        // Relaxed: where the word was rescored before the end was entered, entering it acquired what that released, the
        // new slope; where it is rescored after, all is well anyway.
        if self.cell.shared().slope() != slope {
            self.rescore(None, now);
        }
    }

    #[inline]
    fn answered(&self, nanos: u64, started: Timestamp, now: Timestamp) -> Event {
        let mean = self.include(nanos);
        if self.faults_in_a_row.load(Ordering::Relaxed) != 0 {
            self.faults_in_a_row.store(0, Ordering::Relaxed);
        }
        let shared = self.cell.shared();
        let key = match shared.ascent() {
            None => 0,
            Some(ascent) => {
                let height = ascent.at(now);
                let floor = shared.floor.note(log2(mean), height);
                height + log2(nanos).min(floor + CAP)
            }
        };
        Event::Answered {
            key,
            // Relaxed: read a moment too early, it ends a penalty that was just renewed, and the next
            // fault renews it again.
            clears: started.as_nanos() > self.last_fault.load(Ordering::Relaxed),
        }
    }

    /// The mean with this answer in it.
    #[inline]
    fn include(&self, nanos: u64) -> u64 {
        // Relaxed, a load and a store: two answers at once may lose one of them, which a mean can bear
        // and the hot path likes.
        let mean = match self.mean.load(Ordering::Relaxed) {
            0 => nanos,
            mean => mean - (mean >> MEAN_SHIFT) + (nanos >> MEAN_SHIFT),
        };
        let mean = mean.max(1);
        self.mean.store(mean, Ordering::Relaxed);
        mean
    }

    #[cold]
    fn failed(&self, nanos: u64, now: Timestamp) {
        let shared = self.cell.shared();
        let (soft, hard) = match shared.ascent() {
            None => (0, score::SHUNNED),
            Some(ascent) => {
                // The mean rather than the score: the score holds earlier faults, and four times that
                // and so on would never end.
                let usual = log2(self.mean.load(Ordering::Relaxed));
                let floor = shared.floor.get().unwrap_or(0);
                let slow = log2(nanos).max(usual).max(floor) + FAULT;
                let height = ascent.at(now);
                let penalty = log2_of(PENALTY);
                (height + slow.min(penalty), height + penalty)
            }
        };
        let due = now + PENALTY;
        // Relaxed: `announce` below publishes these to whoever looks for due trials.
        self.last_fault.store(now.as_nanos(), Ordering::Relaxed);
        self.trial_due.store(due.as_nanos(), Ordering::Relaxed);
        let in_a_row = self
            .faults_in_a_row
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        let word = self.cell.apply(Event::Failed {
            soft,
            hard,
            in_a_row,
        });
        if word.penalised() {
            shared.trials.announce(due);
        }
    }

    #[cold]
    fn cancelled(&self, nanos: u64, now: Timestamp) {
        let shared = self.cell.shared();
        let key = shared.ascent().map_or(0, |ascent| {
            let cap = shared.floor.get().map_or(u64::MAX, |floor| floor + CAP);
            ascent.at(now) + log2(nanos).min(cap)
        });
        self.cell.apply(Event::Cancelled { key });
    }

    /// A call that another policy gave to this endpoint has ended: one less under way. A newcomer that has
    /// answered anybody is known to answer; how fast is not this policy's concern.
    fn end_of_another(&self, answered: bool) {
        self.cell.apply(Event::EndedElsewhere { answered });
    }

    /// Calls given to this endpoint that have not ended, by whatever policy.
    pub fn in_flight(&self) -> u32 {
        self.cell.word().in_flight() as u32
    }

    /// How its calls ended.
    pub fn outcomes(&self) -> Outcomes {
        self.record.get().map_or_else(Outcomes::default, |record| {
            let answers = record.latencies.counts().sum();
            record.counters.read(answers)
        })
    }

    /// How long its calls took.
    pub fn latency(&self) -> Latency {
        self.record
            .get()
            .map_or_else(Latency::default, |record| Latency {
                buckets: record.latencies.counts().collect(),
                ewma: match self.mean.load(Ordering::Relaxed) {
                    0 => None,
                    mean => Some(Duration::from_nanos(mean)),
                },
            })
    }

    /// What the built-in policies compare: the endpoint with the lowest score looks least busy. Means
    /// nothing by itself, nor beside endpoints of another channel.
    #[inline]
    pub fn score(&self) -> u64 {
        self.cell.word().0
    }

    /// What it tells of its latency: `None` before its first answer, while it is penalised, and where
    /// scores hold no latency.
    pub fn estimate(&self) -> Option<Estimate> {
        let word = self.cell.word();
        let known = !word.on_trial() && !word.penalised() && word.key() != 0;
        known.then(|| Estimate(word.key()))
    }

    /// Whether server faults have put it behind the others, but for one trial call every 5 s.
    pub fn penalised(&self) -> bool {
        self.cell.word().penalised()
    }

    /// When it should get a trial call, if it is penalised.
    pub(crate) fn trial_due(&self) -> Option<Timestamp> {
        // Relaxed: whoever needs the newest came here through `Trials::restart`.
        let due = self.trial_due.load(Ordering::Relaxed);
        self.penalised().then_some(Timestamp::from_nanos(due))
    }

    /// Takes the trial that is `due` for the caller alone. The time of the next, if it was still there.
    pub(crate) fn claim_trial(&self, due: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let next = now + PENALTY;
        // Relaxed: only who wins matters.
        let won = self.trial_due.compare_exchange(
            due.as_nanos(),
            next.as_nanos(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        won.ok().map(|_| next)
    }

    pub(crate) fn cell(&self) -> &Cell {
        &self.cell
    }
}

impl Record {
    fn boxed() -> Box<Self> {
        Box::new(Self {
            latencies: Histogram::new(),
            counters: Counters::new(),
        })
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.cell.word();
        f.debug_struct("Load")
            .field("in_flight", &word.in_flight())
            .field("on_trial", &word.on_trial())
            .field("penalised", &word.penalised())
            .field("key", &word.key())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
