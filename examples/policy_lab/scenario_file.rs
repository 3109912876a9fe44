//! Scenarios that users write: TOML, every value checked, and errors that name the line.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::scenario::{
    Antagonist, Arrivals, Change, Event, Keys, Scenario, Server, Service, Shape,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Spanned<String>,
    #[serde(default)]
    about: String,
    clients: Option<Spanned<i64>>,
    requests: Option<Spanned<i64>>,
    rho: Option<Spanned<f64>>,
    rate: Option<Spanned<f64>>,
    round_trip_ms: Option<Spanned<f64>>,
    deadline_ms: Option<Spanned<f64>>,
    server: Vec<Group>,
    service: Option<Spanned<Latency>>,
    antagonist: Option<Noise>,
    keys: Option<Hashed>,
    #[serde(default)]
    event: Vec<Spanned<Happening>>,
}

/// So many servers that are alike.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    count: Option<Spanned<i64>>,
    speed: Option<Spanned<f64>>,
    slots: Option<Spanned<i64>>,
    weight: Option<Spanned<i64>>,
    #[serde(default)]
    broken: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Latency {
    distribution: Option<Distribution>,
    mean_ms: Option<Spanned<f64>>,
    sigma: Option<Spanned<f64>>,
    alpha: Option<Spanned<f64>>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Distribution {
    Constant,
    Exponential,
    LogNormal,
    Pareto,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Noise {
    off_ms: Spanned<f64>,
    on_ms: Spanned<f64>,
    factor: Spanned<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hashed {
    distinct: Option<Spanned<i64>>,
    zipf: Option<Spanned<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Happening {
    at_s: Spanned<f64>,
    kill: Option<Spanned<i64>>,
    remove: Option<Spanned<i64>>,
    slow: Option<Slow>,
    add: Option<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slow {
    server: Spanned<i64>,
    factor: Spanned<f64>,
}

/// Reads the scenario in this text, which is called `file` in errors.
///
/// # Errors
///
/// One line: the file, the line in it where that is known, the key, and the rule.
pub fn parse(file: &str, text: &str) -> Result<Scenario, String> {
    let page = Page { file, text };
    let read: File = toml::from_str(text).map_err(|error| page.illegible(&error))?;
    let mut servers = Vec::new();
    for group in &read.server {
        let server = page.server(group)?;
        let count = page.count("count", group.count.as_ref(), 1, 1..=10_000)?;
        servers.extend(std::iter::repeat_n(server, count));
    }
    let (mut events, mut lines) = (Vec::new(), Vec::new());
    for (number, happening) in (1..).zip(&read.event) {
        for event in page.event(number, happening)? {
            events.push(event);
            lines.push((number, happening.span()));
        }
    }
    let scenario = Scenario {
        name: page.name(&read.name)?,
        about: read.about.clone(),
        servers,
        clients: page.count("clients", read.clients.as_ref(), 4, 1..=10_000)?,
        requests: page.count("requests", read.requests.as_ref(), 60_000, 100..=10_000_000)? as u64,
        arrivals: page.arrivals(&read)?,
        service: page.service(read.service.as_ref())?,
        round_trip: page.millis("round_trip_ms", read.round_trip_ms.as_ref(), 0.5, 0.0)?,
        deadline: page.millis("deadline_ms", read.deadline_ms.as_ref(), 2_000.0, 1.0)?,
        antagonist: page.antagonist(read.antagonist.as_ref())?,
        keys: page.keys(read.keys.as_ref())?,
        events,
    };
    let broken = |(event, rule): (Option<usize>, String)| match event {
        Some(event) => {
            let (number, at) = &lines[event];
            format!("{file}:{}: event {number}{rule}", page.line(at))
        }
        None => format!("{file}: {rule}"),
    };
    scenario.check().map_err(broken)?;
    Ok(scenario)
}

/// serde's words for types and choices, in those of people who write files.
fn plainer(message: &str) -> String {
    [
        ("expected f64", "expected a number"),
        ("expected i64", "expected a whole number"),
        ("floating point `", "number `"),
        ("unknown variant `", "unknown choice `"),
        ("invalid type: ", "wrong type: "),
        ("expected struct Latency", "expected a table"),
        ("expected struct Noise", "expected a table"),
        ("expected struct Hashed", "expected a table"),
        ("expected struct Slow", "expected a table"),
        ("expected struct Group", "expected a table"),
        ("expected a sequence", "expected a list"),
        ("missing field `", "missing key `"),
        ("unknown field `", "unknown key `"),
    ]
    .iter()
    .fold(message.to_owned(), |text, (theirs, ours)| {
        text.replace(theirs, ours)
    })
}

/// A file that is being read.
struct Page<'a> {
    file: &'a str,
    text: &'a str,
}

impl Page<'_> {
    fn line(&self, at: &Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..at.start.min(self.text.len())];
        1 + before.iter().filter(|&&byte| byte == b'\n').count()
    }

    fn wrong(&self, at: &Range<usize>, what: impl std::fmt::Display, rule: String) -> String {
        format!("{}:{}: {what} {rule}", self.file, self.line(at))
    }

    /// What toml says, and the line it says it of, since its words do not always name the key.
    fn illegible(&self, error: &toml::de::Error) -> String {
        let message = plainer(&error.message().replace('\n', "; "));
        let Some(at) = error.span() else {
            return format!("{}: {message}", self.file);
        };
        let line = self.line(&at);
        let quoted = self.text.lines().nth(line - 1).unwrap_or("").trim();
        format!("{}:{line}: {message}: {quoted}", self.file)
    }

    fn within(
        &self,
        key: &str,
        value: Option<&Spanned<f64>>,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> Result<f64, String> {
        let Some(value) = value else {
            return Ok(default);
        };
        let number = *value.get_ref();
        match range.contains(&number) {
            true => Ok(number),
            false => {
                let rule = format!("{number} is not in {range:?}");
                Err(self.wrong(&value.span(), key, rule))
            }
        }
    }

    fn count(
        &self,
        key: &str,
        value: Option<&Spanned<i64>>,
        default: usize,
        range: RangeInclusive<i64>,
    ) -> Result<usize, String> {
        let Some(value) = value else {
            return Ok(default);
        };
        let number = *value.get_ref();
        let legal = range.contains(&number).then_some(number);
        legal.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
            let rule = format!("{number} is not in {range:?}");
            self.wrong(&value.span(), key, rule)
        })
    }

    fn millis(
        &self,
        key: &str,
        value: Option<&Spanned<f64>>,
        default: f64,
        least: f64,
    ) -> Result<Duration, String> {
        let millis = self.within(key, value, default, least..=3_600_000.0)?;
        Ok(Duration::from_secs_f64(millis / 1e3))
    }

    fn name(&self, name: &Spanned<String>) -> Result<String, String> {
        let word = name.get_ref();
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        match !word.is_empty() && word.len() <= 32 && word.chars().all(legal) {
            true => Ok(word.clone()),
            false => {
                let rule = format!("{word:?} is not 1 to 32 of a-z, 0-9 and _");
                Err(self.wrong(&name.span(), "name", rule))
            }
        }
    }

    fn arrivals(&self, file: &File) -> Result<Arrivals, String> {
        match (&file.rho, &file.rate) {
            (Some(_), Some(rate)) => {
                let rule = "and rho exclude each other".to_owned();
                Err(self.wrong(&rate.span(), "rate", rule))
            }
            (rho @ Some(_), None) => {
                let rho = self.within("rho", rho.as_ref(), 0.0, 0.01..=10.0)?;
                Ok(Arrivals::Rho(rho))
            }
            (None, rate @ Some(_)) => {
                let rate = self.within("rate", rate.as_ref(), 0.0, 0.01..=10_000_000.0)?;
                Ok(Arrivals::PerSecond(rate))
            }
            (None, None) => Err(format!(
                "{}: rho or rate is missing: how many calls there are",
                self.file
            )),
        }
    }

    fn server(&self, group: &Group) -> Result<Server, String> {
        let like = Server::default();
        let weight = self.count("weight", group.weight.as_ref(), 1, 1..=1_000_000)?;
        Ok(Server {
            speed: self.within("speed", group.speed.as_ref(), like.speed, 0.001..=1_000.0)?,
            slots: self.count("slots", group.slots.as_ref(), like.slots, 1..=10_000)?,
            weight: weight as u32,
            broken: group.broken,
        })
    }

    fn service(&self, latency: Option<&Spanned<Latency>>) -> Result<Service, String> {
        let given = latency.map(Spanned::get_ref);
        let mean = given.and_then(|l| l.mean_ms.as_ref());
        let sigma = given.and_then(|l| l.sigma.as_ref());
        let alpha = given.and_then(|l| l.alpha.as_ref());
        let shape = given.and_then(|l| l.distribution);
        let shape = shape.unwrap_or(Distribution::LogNormal);
        for (key, value, of) in [
            ("sigma", sigma, Distribution::LogNormal),
            ("alpha", alpha, Distribution::Pareto),
        ] {
            if let Some(value) = value
                && shape != of
            {
                let rule = "means nothing for this distribution".to_owned();
                return Err(self.wrong(&value.span(), key, rule));
            }
        }
        Ok(Service {
            mean: self.millis("mean_ms", mean, 20.0, 0.001)?,
            shape: match shape {
                Distribution::Constant => Shape::Constant,
                Distribution::Exponential => Shape::Exponential,
                Distribution::LogNormal => Shape::LogNormal {
                    sigma: self.within("sigma", sigma, 1.0, 0.0..=5.0)?,
                },
                Distribution::Pareto => Shape::Pareto {
                    alpha: self.within("alpha", alpha, 1.3, 1.05..=100.0)?,
                },
            },
        })
    }

    fn antagonist(&self, noise: Option<&Noise>) -> Result<Option<Antagonist>, String> {
        let Some(noise) = noise else {
            return Ok(None);
        };
        Ok(Some(Antagonist {
            off: self.millis("off_ms", Some(&noise.off_ms), 0.0, 0.1)?,
            on: self.millis("on_ms", Some(&noise.on_ms), 0.0, 0.1)?,
            factor: self.within("factor", Some(&noise.factor), 1.0, 0.001..=1.0)?,
        }))
    }

    fn keys(&self, hashed: Option<&Hashed>) -> Result<Keys, String> {
        let distinct = hashed.and_then(|h| h.distinct.as_ref());
        let zipf = hashed.and_then(|h| h.zipf.as_ref());
        Ok(Keys {
            distinct: self.count("distinct", distinct, 10_000, 1..=10_000_000)? as u64,
            exponent: self.within("zipf", zipf, 0.0, 0.0..=10.0)?,
        })
    }

    /// One event, or as many as servers are added.
    fn event(&self, number: usize, happening: &Spanned<Happening>) -> Result<Vec<Event>, String> {
        let what = happening.get_ref();
        let at = self.within("at_s", Some(&what.at_s), 0.0, 0.0..=1_000_000.0)?;
        let at = Duration::from_secs_f64(at);
        let server = |key: &str, value| self.count(key, Some(value), 0, 0..=1_000_000);
        let changes = match (&what.kill, &what.remove, &what.slow, &what.add) {
            (Some(number), None, None, None) => vec![Change::Kill(server("kill", number)?)],
            (None, Some(number), None, None) => vec![Change::Remove(server("remove", number)?)],
            (None, None, Some(slow), None) => vec![Change::Slow {
                server: server("server", &slow.server)?,
                factor: self.within("factor", Some(&slow.factor), 1.0, 0.001..=1_000.0)?,
            }],
            (None, None, None, Some(group)) => {
                let count = self.count("count", group.count.as_ref(), 1, 1..=10_000)?;
                vec![Change::Add(self.server(group)?); count]
            }
            _ => {
                let event = format!("event {number}");
                let rule = "needs exactly one of kill, remove, slow and add".to_owned();
                return Err(self.wrong(&happening.span(), event, rule));
            }
        };
        let event = |change| Event { at, change };
        Ok(changes.into_iter().map(event).collect())
    }
}
