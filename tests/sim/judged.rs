//! How must an endpoint stand, as the model has it: admitted, on probation or ejected, well or not, in panic or not?

use std::time::Duration;

use equipoise::balancer::{
    FailurePercentage, HealthSource, MaxEjection, OutlierDetection, Panic, Standing, SuccessRate,
};
use equipoise::load::Notice;
use equipoise::{Connectivity, Health, Timestamp};

use crate::world::{ms, secs};

/// The longest that good news must stand before it counts.
const LONGEST_HOLD: Duration = secs(4);

/// Who is ejected, in words that the model can read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ejection {
    pub(crate) interval: Duration,
    pub(crate) base: Duration,
    pub(crate) longest: Duration,
    pub(crate) most: MaxEjection,
    pub(crate) in_a_row: Option<u32>,
    pub(crate) by_rate: Option<SuccessRate>,
    pub(crate) by_share: Option<FailurePercentage>,
    pub(crate) slow_start: Duration,
}

impl Default for Ejection {
    /// The documented defaults.
    fn default() -> Self {
        Self {
            interval: secs(10),
            base: secs(30),
            longest: secs(300),
            most: MaxEjection::Share(50),
            in_a_row: Some(5),
            by_rate: None,
            by_share: Some(FailurePercentage::default()),
            slow_start: secs(5),
        }
    }
}

impl Ejection {
    pub(crate) fn detection(self) -> OutlierDetection {
        OutlierDetection::default()
            .with_interval(self.interval)
            .with_base_ejection_time(self.base)
            .with_max_ejection_time(self.longest)
            .with_max_ejection(self.most)
            .with_consecutive_failures(self.in_a_row)
            .with_success_rate(self.by_rate)
            .with_failure_percentage(self.by_share)
            .with_slow_start(self.slow_start)
    }

    /// How many of `all` may be out.
    pub(crate) fn cap(&self, all: usize) -> usize {
        match self.most {
            MaxEjection::Share(percent) => {
                let share = (all * percent as usize).div_ceil(100);
                share.min(all.saturating_sub(1))
            }
            MaxEjection::A50(percent) => (all * percent as usize).div_ceil(100),
            _ => unreachable!("there are two"),
        }
    }

    /// Whether an ejection may last so long.
    fn may_last(&self, time: Duration) -> bool {
        let longest = self.longest.max(self.base);
        time == longest || (time < longest && time.as_nanos().is_multiple_of(self.base.as_nanos()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Calm,
    UseAll,
    Fail,
}

/// What counts as its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Unknown,
    Serving,
    NotServing,
}

impl Shown {
    fn of(health: &Health) -> Self {
        match health {
            Health::Unknown => Self::Unknown,
            Health::Serving | Health::Unchecked => Self::Serving,
            Health::NotServing(_) => Self::NotServing,
        }
    }
}

/// The model of one endpoint's standing and health.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) standing: Standing,
    /// How often calls were let in by another rule than before.
    epoch: u64,
    /// Of this epoch, under way.
    trials: u32,
    /// When the last of them was let in.
    tried: Timestamp,
    /// Server faults since it was last let back.
    faults: u32,
    /// How a trial ended that was told of.
    passed: bool,
    failed: bool,
    /// It was lost and is connected anew, and that was not yet taken account of.
    anew: bool,
    said: Shown,
    said_since: Timestamp,
    shown: Shown,
    /// It was just judged otherwise, so its state may jump.
    pub(crate) rejudged: bool,
}

impl Judged {
    pub(crate) const NEW: Self = Self {
        standing: Standing::Admitted,
        epoch: 0,
        trials: 0,
        tried: Timestamp::ZERO,
        faults: 0,
        passed: false,
        failed: false,
        anew: false,
        said: Shown::Unknown,
        said_since: Timestamp::ZERO,
        shown: Shown::Unknown,
        rejudged: false,
    };

    /// It has its first connection, or the first after it was lost: who is ejected is on probation then.
    pub(crate) fn connected_anew(&mut self) {
        self.anew = matches!(self.standing, Standing::Ejected { .. });
    }

    pub(crate) fn fault(&mut self) {
        self.faults += 1;
    }

    pub(crate) fn noticed(&mut self, notice: Notice) {
        if let Notice::Trial { passed } = notice {
            self.passed |= passed;
            self.failed |= !passed;
        }
    }

    /// Its first connection was made: nothing is known of its health. A trial on the connection before is none of this one.
    pub(crate) fn forget_health(&mut self) {
        self.epoch += 1;
        self.trials = 0;
        self.said = Shown::Unknown;
        self.shown = Shown::Unknown;
    }

    pub(crate) fn said(&mut self, health: &Health, now: Timestamp) {
        let said = Shown::of(health);
        if std::mem::replace(&mut self.said, said) != said {
            self.said_since = now;
        }
    }

    pub(crate) fn shown(&mut self, health: &Health) {
        self.shown = Shown::of(health);
        self.rejudged = true;
    }

    fn ejected(&self) -> bool {
        matches!(self.standing, Standing::Ejected { .. })
    }

    fn reopen(&mut self) {
        self.epoch += 1;
        self.trials = 0;
        self.rejudged = true;
    }

    /// A trial of this epoch has ended.
    pub(crate) fn trial_ended(&mut self, epoch: u64) {
        if self.epoch == epoch {
            self.trials -= 1;
        }
    }
}

/// What judges all of them.
#[derive(Debug)]
pub(crate) struct Bench {
    ejection: Option<Ejection>,
    health: HealthSource,
    panic_below: u32,
    panic_fails: bool,
    panic_over_health: bool,
    pub(crate) limit: Option<u32>,
    prompt: bool,
    pub(crate) mood: Mood,
    pub(crate) asleep: bool,
    /// Since the last look: who was ejected, who was let back without a trial, and whether somebody left.
    ejections: u32,
    untried: u32,
    early: u32,
    pub(crate) shrunk: bool,
    /// Of all times.
    pub(crate) all_ejections: u32,
    pub(crate) all_changes_of_health: u32,
}

impl Bench {
    pub(crate) fn new(settings: &crate::world::Settings) -> Self {
        let panic = settings.config.panic;
        // What a panic is made of cannot be asked; what it equals can.
        let kinds = (0..=100).flat_map(|below| {
            [false, true]
                .into_iter()
                .flat_map(move |fails| [(below, fails, false), (below, fails, true)])
        });
        let made = |&(below, fails, over): &(u32, bool, bool)| {
            let made = match fails {
                true => Panic::fail_below(below),
                false => Panic::use_all_below(below),
            };
            made.over_not_serving(over) == panic
        };
        let mut kinds = kinds;
        let (panic_below, panic_fails, panic_over_health) =
            kinds.find(made).expect("there are no other kinds of panic");
        Self {
            ejection: settings.ejection,
            health: settings.config.health,
            panic_below,
            panic_fails,
            panic_over_health,
            limit: settings.config.max_in_flight_per_endpoint,
            prompt: settings.lag.is_zero(),
            mood: Mood::Calm,
            asleep: false,
            ejections: 0,
            untried: 0,
            early: 0,
            shrunk: false,
            all_ejections: 0,
            all_changes_of_health: 0,
        }
    }

    /// Whether health counts at all.
    pub(crate) fn checks_health(&self) -> bool {
        self.health != HealthSource::None
    }

    /// The balancer says that it panics, or no longer does.
    pub(crate) fn panic(&mut self, on: bool) {
        let mood = match (on, self.panic_fails) {
            (false, _) => Mood::Calm,
            (true, false) => Mood::UseAll,
            (true, true) => Mood::Fail,
        };
        assert_ne!(self.mood, mood, "told of a mood twice");
        self.mood = mood;
    }

    /// Everybody lets calls in by the mood.
    pub(crate) fn reopen<'a>(&self, all: impl Iterator<Item = &'a mut Judged>) {
        all.for_each(Judged::reopen);
    }

    /// The balancer says that an endpoint stands otherwise.
    pub(crate) fn stands(&mut self, judged: &mut Judged, standing: Standing, now: Timestamp) {
        use Standing::{Admitted, Ejected, Probation};
        let ejection = self.ejection.expect("nobody is judged in this world");
        if let Ejected { until } = standing {
            self.all_ejections += 1;
            // While the work waits, time goes on.
            let lasts = until.since(now);
            assert!(
                !self.prompt || ejection.may_last(lasts),
                "{now:?}: ejected for {lasts:?} by {ejection:?}"
            );
        }
        match (judged.standing, standing) {
            (Admitted, Ejected { .. }) => {
                self.ejections += 1;
                let rules = ejection.by_rate.is_some() || ejection.by_share.is_some();
                let needed = match ejection.in_a_row {
                    Some(in_a_row) if !rules => in_a_row,
                    _ => 1,
                };
                assert!(
                    !self.prompt || judged.faults >= needed,
                    "{now:?}: ejected after {} faults",
                    judged.faults
                );
            }
            (Probation, Ejected { .. }) => {
                // While the work waits, it may be let back and fail again before it is told of the first time.
                let failed = judged.failed || !self.prompt;
                assert!(failed, "{now:?}: ejected again, and no trial failed");
            }
            (Ejected { until }, Probation) => {
                // While the work waits, a new connection may come before it is told that it was out.
                let due = until <= now || judged.anew || !self.prompt;
                assert!(due, "{now:?}: out until {until:?} and back");
            }
            (Ejected { .. }, Admitted) => self.early += 1,
            (Probation, Admitted) => self.untried += u32::from(!judged.passed),
            (from, to) => panic!("{now:?}: from {from:?} to {to:?}"),
        }
        if judged.standing != Probation || standing != Admitted {
            judged.faults = 0;
        }
        judged.passed = false;
        judged.failed = false;
        judged.anew = false;
        judged.standing = standing;
        judged.reopen();
    }

    /// A call was let in; `in_flight` are, with it. Gives the epoch where it is a trial.
    pub(crate) fn let_in(
        &self,
        judged: &mut Judged,
        trial: bool,
        in_flight: u32,
        now: Timestamp,
    ) -> Option<u64> {
        if let Some(limit) = self.limit.filter(|_| !trial) {
            assert!(in_flight <= limit, "{in_flight} calls where {limit} may be");
        }
        if self.prompt {
            assert!(!self.asleep, "a call, and the channel is idle");
            assert_ne!(self.mood, Mood::Fail, "a call that should have failed");
            let expected = match (judged.standing, self.mood) {
                (_, Mood::UseAll) | (Standing::Admitted, _) => false,
                (Standing::Probation, _) => true,
                (Standing::Ejected { .. }, _) => panic!("a call to one that is ejected"),
            };
            assert_eq!(trial, expected, "{judged:?}");
            if trial && judged.trials > 0 {
                // One that lasts for an interval is not waited for, and its end says nothing.
                let interval = self.ejection.as_ref().map(|ejection| ejection.interval);
                let lasts = interval.is_some_and(|interval| now >= judged.tried + interval);
                assert!(lasts, "{now:?}: two trials at a time, {judged:?}");
                judged.epoch += 1;
                judged.trials = 0;
            }
        }
        trial.then(|| {
            judged.trials += 1;
            judged.tried = now;
            judged.epoch
        })
    }

    /// The state that policies must see, where it follows from these: not where it is not connected.
    pub(crate) fn expected(&self, judged: &Judged, connected: bool) -> Option<Connectivity> {
        let use_all = self.mood == Mood::UseAll;
        if judged.ejected() && !use_all {
            return Some(Connectivity::TransientFailure);
        }
        let over = use_all && (self.health == HealthSource::Port || self.panic_over_health);
        connected.then_some(match judged.shown {
            _ if !self.checks_health() => Connectivity::Ready,
            Shown::Unknown => Connectivity::Connecting,
            Shown::Serving => Connectivity::Ready,
            Shown::NotServing if over => Connectivity::Ready,
            Shown::NotServing => Connectivity::TransientFailure,
        })
    }

    /// Whether it counts as one that can be used.
    pub(crate) fn usable(&self, judged: &Judged, connected: bool, state: Connectivity) -> bool {
        let unwell = self.checks_health() && judged.shown == Shown::NotServing;
        match connected {
            true => !judged.ejected() && !unwell,
            false => !judged.ejected() && state != Connectivity::TransientFailure,
        }
    }

    /// The mood there must be where `usable` of `all` can be used.
    pub(crate) fn due_mood(&self, usable: usize, all: usize) -> Mood {
        match usable * 100 < self.panic_below as usize * all {
            false => Mood::Calm,
            true if self.panic_fails => Mood::Fail,
            true => Mood::UseAll,
        }
    }

    /// After the work has been done: one endpoint. `timed`: the news was that time has passed.
    pub(crate) fn settled(&self, judged: &Judged, timed: bool, now: Timestamp) {
        if let Standing::Ejected { until } = judged.standing {
            let overdue = self.prompt && timed && until <= now;
            assert!(!overdue, "{now:?}: still out, and only until {until:?}");
        }
        if !self.checks_health() {
            return;
        }
        let stood = now.since(judged.said_since) >= LONGEST_HOLD;
        let may_be = match (judged.said, judged.shown) {
            (said, shown) if said == shown => true,
            // Good news may have to stand for a while.
            (Shown::Serving, Shown::NotServing) => !(stood && timed && self.prompt),
            _ => false,
        };
        assert!(
            may_be,
            "{now:?}: said {:?} since {:?}, and counts as {:?}",
            judged.said, judged.said_since, judged.shown
        );
    }

    /// The same: all of them, of whom `out` are ejected or on probation.
    pub(crate) fn all_settled(&mut self, out: usize, all: usize, now: Timestamp) {
        if let Some(ejection) = self.ejection {
            let cap = ejection.cap(all);
            assert!(out <= cap, "{now:?}: {out} of {all} are out, {cap} may be");
        }
        assert!(
            self.shrunk || (self.early == 0 && self.untried <= self.ejections),
            "{now:?}: {} were let back early and {} untried, for {} others",
            self.early,
            self.untried,
            self.ejections
        );
        self.shrunk = false;
        self.early = 0;
        self.untried = 0;
        self.ejections = 0;
    }
}

/// How long after the end of all faults an endpoint may still be held back.
pub(crate) fn longest_out(settings: &crate::world::Settings) -> Duration {
    let out = settings.ejection.map_or(Duration::ZERO, |ejection| {
        ejection.longest.max(ejection.base) + ejection.slow_start
    });
    let held = match settings.config.health {
        HealthSource::None => Duration::ZERO,
        _ => LONGEST_HOLD,
    };
    out + held + ms(100)
}
