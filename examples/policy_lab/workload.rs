//! Who calls when, with how much work, and what disturbs the servers: the same for every policy of one seed.

use std::time::Duration;

use equipoise::Timestamp;
use equipoise::rng::remix;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp, LogNormal, Pareto, Zipf};
use rand_pcg::Pcg64;

use super::scenario::{Antagonist, Keys, Scenario, Service, Shape};

/// A call to be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    pub number: u64,
    pub at: Timestamp,
    pub client: usize,
    /// What a server of speed 1 takes for it.
    pub work: Duration,
    /// The hash of its key.
    pub key: u64,
}

/// One stream of chance among several of one seed. None of them depends on what a policy does.
pub fn stream(seed: u64, of: u64) -> u64 {
    remix(remix(seed) ^ of)
}

/// The streams' numbers. Those of clients and servers are one for each, from here on.
const CALLS: u64 = 1;
const ANTAGONISTS: u64 = 1 << 32;
pub const CLIENTS: u64 = 2 << 32;

/// Poisson arrivals, each at any client: so each client's are Poisson too.
#[derive(Debug)]
pub struct Workload {
    rng: Pcg64,
    gap: Exp<f64>,
    service: Work,
    keys: KeyChoice,
    clients: usize,
    number: u64,
    at: f64,
}

impl Workload {
    pub fn new(scenario: &Scenario, seed: u64) -> Self {
        Self {
            rng: Pcg64::seed_from_u64(stream(seed, CALLS)),
            gap: Exp::new(scenario.per_second()).expect("the rate is above 0"),
            service: Work::new(scenario.service),
            keys: KeyChoice::new(scenario.keys),
            clients: scenario.clients,
            number: 0,
            at: 0.0,
        }
    }

    /// Calls without end.
    pub fn next_call(&mut self) -> Call {
        self.at += self.gap.sample(&mut self.rng);
        let call = Call {
            number: self.number,
            at: Timestamp::ZERO + Duration::from_secs_f64(self.at),
            client: self.rng.random_range(0..self.clients),
            work: self.service.sample(&mut self.rng),
            key: key(self.keys.sample(&mut self.rng)),
        };
        self.number += 1;
        call
    }
}

/// The hash of the key of this rank, from 0.
pub fn key(rank: u64) -> u64 {
    remix(rank)
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Constant(f64),
    Exponential(Exp<f64>),
    LogNormal(LogNormal<f64>),
    Pareto(Pareto<f64>),
}

impl Work {
    fn new(service: Service) -> Self {
        let mean = service.mean.as_secs_f64();
        match service.shape {
            Shape::Constant => Self::Constant(mean),
            Shape::Exponential => {
                Self::Exponential(Exp::new(1.0 / mean).expect("the mean is above 0"))
            }
            Shape::LogNormal { sigma } => {
                let mu = mean.ln() - sigma * sigma / 2.0;
                Self::LogNormal(LogNormal::new(mu, sigma).expect("sigma is a number"))
            }
            Shape::Pareto { alpha } => {
                let least = mean * (alpha - 1.0) / alpha;
                Self::Pareto(Pareto::new(least, alpha).expect("alpha is above 1"))
            }
        }
    }

    fn sample(&self, rng: &mut Pcg64) -> Duration {
        let seconds = match self {
            Self::Constant(seconds) => *seconds,
            Self::Exponential(of) => of.sample(rng),
            Self::LogNormal(of) => of.sample(rng),
            Self::Pareto(of) => of.sample(rng),
        };
        // A day is as good as never, and a sum of days is still a time.
        Duration::from_secs_f64(seconds.min(86_400.0))
    }
}

#[derive(Clone, Copy, Debug)]
enum KeyChoice {
    Even(u64),
    Skewed(Zipf<f64>),
}

impl KeyChoice {
    fn new(keys: Keys) -> Self {
        match keys.exponent == 0.0 {
            true => Self::Even(keys.distinct),
            false => {
                let zipf = Zipf::new(keys.distinct as f64, keys.exponent);
                Self::Skewed(zipf.expect("the exponent is above 0"))
            }
        }
    }

    fn sample(&self, rng: &mut Pcg64) -> u64 {
        match self {
            Self::Even(distinct) => rng.random_range(0..*distinct),
            Self::Skewed(zipf) => zipf.sample(rng) as u64 - 1,
        }
    }
}

/// When one server's antagonist comes and goes.
#[derive(Debug)]
pub struct Noise {
    rng: Pcg64,
    off: Exp<f64>,
    on: Exp<f64>,
    factor: f64,
    is_on: bool,
}

impl Noise {
    /// That of the server with this number. It begins as likely on as it is at any other time.
    pub fn new(antagonist: Antagonist, seed: u64, server: usize) -> Self {
        let mut rng = Pcg64::seed_from_u64(stream(seed, ANTAGONISTS + server as u64));
        let (off, on) = (antagonist.off.as_secs_f64(), antagonist.on.as_secs_f64());
        let times = |mean: f64| Exp::new(1.0 / mean).expect("times are above 0");
        Self {
            is_on: rng.random::<f64>() < on / (off + on),
            off: times(off),
            on: times(on),
            factor: antagonist.factor,
            rng,
        }
    }

    /// What it leaves of the server's speed.
    pub fn factor(&self) -> f64 {
        match self.is_on {
            true => self.factor,
            false => 1.0,
        }
    }

    /// How long it stays as it is.
    pub fn stays(&mut self) -> Duration {
        let times = if self.is_on { self.on } else { self.off };
        Duration::from_secs_f64(times.sample(&mut self.rng))
    }

    pub fn turn(&mut self) {
        self.is_on = !self.is_on;
    }
}
