//! What happens to whom: the servers, clients, calls and events of one run.

use std::time::Duration;

/// Everything that makes up a run but the policy and the seed. The same for a fleet in virtual time and one of
/// real servers.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// A word: it begins the keys of the last line of output.
    pub name: String,
    pub about: String,
    /// Those there are at the beginning; events may add more, which are numbered on.
    pub servers: Vec<Server>,
    /// Each has a policy of its own, and knows only what became of its own calls.
    pub clients: usize,
    pub requests: u64,
    pub arrivals: Arrivals,
    pub service: Service,
    pub round_trip: Duration,
    pub deadline: Duration,
    pub antagonist: Option<Antagonist>,
    pub keys: Keys,
    /// By time.
    pub events: Vec<Event>,
}

/// One server: a queue in front of so many slots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Server {
    /// A call takes its service time divided by this.
    pub speed: f64,
    /// Calls served at a time.
    pub slots: usize,
    /// What the operator gave it; policies "with true weights" are told speed × 100 instead.
    pub weight: u32,
    /// It answers UNAVAILABLE, at once.
    pub broken: bool,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            speed: 1.0,
            slots: 4,
            weight: 1,
            broken: false,
        }
    }
}

/// How many calls a second, all clients together: Poisson.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    PerSecond(f64),
    /// A part of what the servers of the beginning can do, those that are broken left out.
    Rho(f64),
}

/// How long a server of speed 1 takes for a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Service {
    pub mean: Duration,
    pub shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    Constant,
    Exponential,
    /// `sigma` of the logarithm.
    LogNormal {
        sigma: f64,
    },
    /// A tail that falls with the power `alpha`, above 1.
    Pareto {
        alpha: f64,
    },
}

/// What else runs beside each server, independently: off and on for exponential times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Antagonist {
    pub off: Duration,
    pub on: Duration,
    /// The server's speed is multiplied by this while it is on.
    pub factor: f64,
}

impl Antagonist {
    /// What it leaves of a server, on average.
    pub fn mean_factor(&self) -> f64 {
        let (off, on) = (self.off.as_secs_f64(), self.on.as_secs_f64());
        (off + on * self.factor) / (off + on)
    }
}

/// What calls are placed by, under the policies that hash.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keys {
    pub distinct: u64,
    /// Zipf's exponent: 0 makes all as frequent.
    pub exponent: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub at: Duration,
    pub change: Change,
}

/// Servers by number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Its connections are lost, calls there end UNAVAILABLE, and it can be reached no more.
    Kill(usize),
    /// Its speed is what it began with times this, from the next call that it begins.
    Slow { server: usize, factor: f64 },
    /// A new one joins the list.
    Add(Server),
    /// It leaves the list; calls there go on.
    Remove(usize),
}

/// Each client knows a few hundred bytes of each server, and 2 KiB of those it has called.
const PAIRS: usize = 4_000_000;

impl Scenario {
    /// Calls a second, all clients together.
    pub fn per_second(&self) -> f64 {
        let rho = match self.arrivals {
            Arrivals::PerSecond(calls) => return calls,
            Arrivals::Rho(rho) => rho,
        };
        let serving = self.servers.iter().filter(|server| !server.broken);
        let slots: f64 = serving.map(|s| s.speed * s.slots as f64).sum();
        let left = self.antagonist.map_or(1.0, |a| a.mean_factor());
        rho * slots * left / self.service.mean.as_secs_f64()
    }

    /// About how long the calls arrive.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.requests as f64 / self.per_second())
    }

    /// The number of the server that is broken, where there is one such.
    pub fn broken(&self) -> Option<usize> {
        self.servers.iter().position(|server| server.broken)
    }

    /// The list of servers over and over, until there are so many.
    pub fn repeat_servers(&mut self, count: usize) {
        let servers = self.servers.iter().copied().cycle();
        self.servers = servers.take(count).collect();
    }

    /// Whether it makes sense as a whole.
    ///
    /// # Errors
    ///
    /// The rule that it breaks, and the number of the event that breaks it, if it is one.
    pub fn check(&self) -> Result<(), (Option<usize>, String)> {
        if self.servers.iter().all(|server| server.broken) {
            return Err((None, "no server that works".into()));
        }
        let pairs = self.servers.len() * self.clients;
        if pairs > PAIRS {
            let rule = format!("clients × servers is {pairs}, more than {PAIRS}");
            return Err((None, rule));
        }
        let mut there = vec![true; self.servers.len()];
        let (mut last, end) = (Duration::ZERO, self.duration());
        for (number, event) in self.events.iter().enumerate() {
            let wrong = |rule: String| Err((Some(number), rule));
            if event.at < last {
                return wrong(" is before the one above it".into());
            }
            if event.at > end {
                return wrong(format!(
                    " is after the last call, at about {end:.1?}: more --requests, or earlier events"
                ));
            }
            last = event.at;
            let (server, stays) = match event.change {
                Change::Add(_) => {
                    there.push(true);
                    continue;
                }
                Change::Kill(server) | Change::Remove(server) => (server, false),
                Change::Slow { server, .. } => (server, true),
            };
            match there.get_mut(server) {
                Some(is) if *is => *is = stays,
                Some(_) => return wrong(format!(": server {server} has gone by then")),
                None => {
                    let rule = match there.len() {
                        1 => "there is only server 0".to_owned(),
                        n => format!("there is no server {server}; they are 0 to {}", n - 1),
                    };
                    return wrong(format!(": {rule}"));
                }
            }
        }
        Ok(())
    }
}

const MS: Duration = Duration::from_millis(1);

/// The scenarios that come with the lab: S1 to S6.
pub fn built_in() -> Vec<Scenario> {
    let plain = Scenario {
        name: String::new(),
        about: String::new(),
        servers: vec![Server::default(); 10],
        clients: 4,
        requests: 60_000,
        arrivals: Arrivals::Rho(0.8),
        service: Service {
            mean: 20 * MS,
            shape: Shape::LogNormal { sigma: 1.0 },
        },
        round_trip: MS / 2,
        deadline: 2_000 * MS,
        antagonist: None,
        keys: Keys {
            distinct: 10_000,
            exponent: 0.0,
        },
        events: Vec::new(),
    };
    let named = |name: &str, about: &str, rho| Scenario {
        name: name.into(),
        about: about.into(),
        arrivals: Arrivals::Rho(rho),
        ..plain.clone()
    };
    let fast = |speed| Server {
        speed,
        ..Server::default()
    };
    let mixed = [1.5, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5];
    let noise = Antagonist {
        off: 2_000 * MS,
        on: 500 * MS,
        factor: 0.3,
    };
    let mut gray = vec![Server::default(); 10];
    gray[0].speed = 0.1;
    let mut sinkhole = vec![Server::default(); 10];
    sinkhole[0].broken = true;
    vec![
        named("s1", "uniform: equal servers", 0.8),
        Scenario {
            servers: mixed.map(fast).into(),
            ..named("s2", "mixed: speeds 1.5, 1 and 0.5", 0.7)
        },
        Scenario {
            antagonist: Some(noise),
            ..named(
                "s3",
                "noisy: each server at 0.3 for a fifth of the time",
                0.75,
            )
        },
        Scenario {
            servers: gray,
            ..named("s4", "gray: one server of ten at a tenth of its speed", 0.7)
        },
        Scenario {
            antagonist: Some(noise),
            clients: 64,
            ..named("s5", "sparse: s3 with 64 clients", 0.75)
        },
        Scenario {
            servers: sinkhole,
            ..named(
                "s6",
                "sinkhole: one server of ten answers UNAVAILABLE at once",
                0.7,
            )
        },
    ]
}
