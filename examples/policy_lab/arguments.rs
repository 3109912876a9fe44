//! What the user asked for, checked before anything runs.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;

use super::contenders::{self, BASELINE, Contender};
use super::scenario::{self, Scenario};
use super::scenario_file;

pub const USAGE: &str = "\
Compares the balancing policies over fleets of servers, in virtual time or real.

usage: policy_lab [options]

  --virtual           a simulated fleet in virtual time (default): the same seed gives the same output
  --real              real servers on loopback and the real channel, in real time (a run of s1 takes 38 s): the
                      same calls and disturbances, but nothing comes out twice the same. At most 100 servers,
                      200 clients and 4000 calls/s
  --scenario S        s1 to s6, or a TOML file (examples/policy_lab/scenarios has some); may be repeated;
                      default: s1 to s6
  --policy P          one of those below; may be repeated; default: all. round_robin, which the others are
                      measured by, always runs
                        round_robin, random, least_request, least_request_full_scan, peak_ewma, adaptive,
                        least_bandwidth
                        pick_first: in an order of each client's own
                        weighted_random, weighted_round_robin, weighted_least_request, weighted_adaptive:
                        told each server's speed as its weight
                        least_utilization, weighted_round_robin_reported: by what servers say of themselves
                        ring_hash, maglev, rendezvous, rendezvous_top_2, ring_hash_bounded,
                        maglev_bounded, rendezvous_bounded: by the calls' keys
  --requests N        calls of each run, 100 to 10000000, instead of the scenario's
  --servers N         1 to 10000: the scenario's list of servers over and over, up to so many
  --clients N         1 to 10000, instead of the scenario's; clients x servers is 4000000 at the most
                      (1000 x 1000 and 1000000 calls: 5 to 50 s a policy, and 2.4 GB)
  --seed N            the first seed; default 1
  --seeds N           so many seeds, 1 to 100, one after the other; figures are medians; default 1
  --plot FILE         draw latencies and shares, to a .svg or a .png; with several scenarios to a file
                      for each, its name before the ending
  --gates             run s1 to s6 in full (60000 calls, 5 seeds unless --seeds says otherwise), and hold
                      what comes out to what is known of each policy
  --help              this text

s1 uniform, s2 mixed speeds, s3 noisy neighbours, s4 one server at a tenth of its speed, s5 = s3 with 64
clients, s6 one server that answers UNAVAILABLE at once. Ten servers of four slots, log-normal service times
with a mean of 20 ms, Poisson arrivals, a deadline of 2 s. The first fifth of the calls is not counted, and
all policies of a seed see the same calls and the same disturbances.

What servers are read for: least_utilization and weighted_round_robin_reported get what each server says of
itself, its busy slots, calls and errors over about the last second, with each of its answers (--real: every
250 ms). least_bandwidth gets the bytes of each server's answers, counted every 250 ms: an answer has one for each
10 us of its work, 1 MB at the most. The reported weights have a blackout of 2 s rather than gRPC's 10 s, which
would be a quarter of the run. pick_first gives all calls of a client to one server, so that 4 clients use 4
servers at the most.

Latencies are those of the calls that were answered or ran out of time, which count as the deadline.
\"spread\" is the busiest server's utilisation over the mean. \"moved\" is the part of the keys that change
hands when the list changes, \"needless\" the part that need not have.

The last line of stdout is for programs: RESULT policy_lab, then key=value, among them each policy's p99
by round robin's, as in s3_adaptive=0.149; - where there is none.

Exit status: 0 if all runs were made (and all gates hold), 1 if not, 2 if the arguments are wrong.
";

/// What is to be run.
#[derive(Clone)]
pub struct Options {
    pub scenarios: Vec<Scenario>,
    pub contenders: Vec<&'static Contender>,
    pub seeds: Vec<u64>,
    pub real: bool,
    pub plot: Option<Plot>,
    pub gates: bool,
}

/// Where pictures go, and of what kind they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plot {
    pub path: PathBuf,
    pub kind: Kind,
}

impl Plot {
    /// Where the picture of each of so many scenarios goes: with several, `a/b.svg` for s1 is `a/b-s1.svg`.
    pub fn at(&self, scenario: &str, scenarios: usize) -> PathBuf {
        if scenarios == 1 {
            return self.path.clone();
        }
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let ending = self.path.extension().unwrap_or_default().to_string_lossy();
        let name = format!("{stem}-{scenario}.{ending}");
        self.path.with_file_name(name)
    }

    /// Whether all of them can be written: the runs before may take hours. Leaves what is there as it is.
    fn writable(&self, scenarios: &[Scenario]) -> Result<(), String> {
        for scenario in scenarios {
            let path = self.at(&scenario.name, scenarios.len());
            let there = path.exists();
            openable(&path)?;
            if !there {
                // One that stays is written over in the end.
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(())
    }
}

/// Whether a picture can be written here. It makes the file, and leaves one that is there as it is.
pub fn openable(path: &Path) -> Result<(), String> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    let wrong = |error| format!("--plot {}: {}", path.display(), plainly(&error));
    opened.map(drop).map_err(wrong)
}

/// What the system says of a file, without its number for it.
fn plainly(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Svg,
    Png,
}

/// What the arguments come to.
pub enum Request {
    Run(Box<Options>),
    Help,
}

/// Reads the arguments, the name of the program not among them, and the scenarios they name.
///
/// # Errors
///
/// One line that names the argument and the rule it breaks.
pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    match parse(lexopt::Parser::from_args(arguments)) {
        // An argument may hold a line break; what is said of it must not.
        Err(error) => {
            use lexopt::Error::{MissingValue, UnexpectedOption, UnexpectedValue};
            let more = match error {
                MissingValue { .. } | UnexpectedOption(_) | UnexpectedValue { .. } => {
                    "; --help tells more"
                }
                _ => "",
            };
            Err(error.to_string().replace(char::is_control, " ") + more)
        }
        done => done.map_err(|e| e.to_string()),
    }
}

fn parse(mut parser: lexopt::Parser) -> Result<Request, lexopt::Error> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    let mut chosen: Vec<&'static str> = Vec::new();
    let (mut requests, mut servers, mut clients) = (None, None, None);
    let (mut seed, mut seeds, mut plot, mut gates, mut real) = (1, None, None, false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(Request::Help),
            // Of the two the last one counts.
            Long("virtual") => real = false,
            Long("real") => real = true,
            Long("scenario") => {
                let new = scenario_named(&parser.value()?)?;
                if scenarios.iter().any(|other| other.name == new.name) {
                    return Err(format!("--scenario: two are named {:?}", new.name).into());
                }
                scenarios.push(new);
            }
            Long("policy") => {
                let name = text("--policy", &mut parser)?;
                let contender = contenders::named(&name);
                chosen.push(contender.map_err(|why| format!("--policy {why}"))?.name);
            }
            Long("requests") => {
                requests = Some(number("--requests", 100..=10_000_000, &mut parser)?);
            }
            Long("servers") => servers = Some(number("--servers", 1..=10_000, &mut parser)?),
            Long("clients") => clients = Some(number("--clients", 1..=10_000, &mut parser)?),
            Long("seed") => seed = number("--seed", 0..=u64::MAX - 100, &mut parser)?,
            Long("seeds") => seeds = Some(number("--seeds", 1..=100, &mut parser)?),
            Long("plot") => plot = Some(plot_at(parser.value()?.into())?),
            Long("gates") => gates = true,
            Value(value) => {
                let rule = format!("{value:?} belongs to no option; --help tells more");
                return Err(rule.into());
            }
            Long(_) | Short(_) => return Err(argument.unexpected()),
        }
    }
    let changed = requests.or(servers).or(clients).is_some();
    if gates && (changed || !scenarios.is_empty() || !chosen.is_empty()) {
        let rule = "--gates runs all policies over s1 to s6 as they are: \
                    no --scenario, --policy, --requests, --servers or --clients beside it";
        return Err(rule.into());
    }
    if gates && real {
        return Err("--gates is for --virtual: real machines differ".into());
    }
    if scenarios.is_empty() {
        scenarios = scenario::built_in();
    }
    for scenario in &mut scenarios {
        scenario.requests = requests.unwrap_or(scenario.requests);
        scenario.clients = clients.map_or(scenario.clients, |n| n as usize);
        if let Some(servers) = servers {
            scenario.repeat_servers(servers as usize);
        }
        scenario.check().map_err(|(event, rule)| match event {
            Some(number) => format!("scenario {}: event {}{rule}", scenario.name, number + 1),
            None => format!("scenario {}: {rule}", scenario.name),
        })?;
        if real {
            let wrong = |rule| format!("scenario {}: --real {rule}", scenario.name);
            real_bounds(scenario).map_err(wrong)?;
        }
    }
    let wanted = |contender: &&Contender| {
        chosen.is_empty() || contender.name == BASELINE || chosen.contains(&contender.name)
    };
    if let Some(plot) = &plot {
        plot.writable(&scenarios)?;
    }
    let seeds = seeds.unwrap_or(if gates { 5 } else { 1 });
    Ok(Request::Run(Box::new(Options {
        scenarios,
        contenders: contenders::ALL.iter().filter(wanted).collect(),
        seeds: (seed..seed + seeds).collect(),
        real,
        plot,
        gates,
    })))
}

/// What one machine can be asked for.
fn real_bounds(scenario: &Scenario) -> Result<(), String> {
    let (servers, clients) = (scenario.servers.len(), scenario.clients);
    let rate = scenario.per_second();
    match (servers, clients) {
        (101.., _) => Err(format!(
            "runs at most 100 servers, and {servers} are asked for"
        )),
        (_, 201..) => Err(format!(
            "runs at most 200 clients, and {clients} are asked for"
        )),
        _ if rate > 4_000.0 => Err(format!(
            "makes at most 4000 calls/s, and {rate:.0} are asked for"
        )),
        _ => Ok(()),
    }
}

fn scenario_named(name: &std::ffi::OsStr) -> Result<Scenario, String> {
    let built_in = scenario::built_in().into_iter().find(|s| *s.name == *name);
    match built_in {
        Some(scenario) => Ok(scenario),
        None => {
            let text = std::fs::read_to_string(name).map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    let why = plainly(&error);
                    format!("--scenario {name:?} is none of s1 to s6, and no file: {why}")
                }
                ErrorKind::InvalidData => format!("--scenario {name:?} is not UTF-8"),
                _ => format!("--scenario {name:?}: {}", plainly(&error)),
            })?;
            let read = scenario_file::parse(&Path::new(name).display().to_string(), &text);
            read.map_err(|why| format!("--scenario: {why}"))
        }
    }
}

fn plot_at(path: PathBuf) -> Result<Plot, String> {
    let kind = match path.extension().and_then(|ending| ending.to_str()) {
        Some("svg") => Kind::Svg,
        Some("png") => Kind::Png,
        _ => return Err(format!("--plot {path:?} ends in neither .svg nor .png")),
    };
    Ok(Plot { path, kind })
}

fn text(option: &str, parser: &mut lexopt::Parser) -> Result<String, lexopt::Error> {
    match parser.value()?.into_string() {
        Ok(text) => Ok(text),
        Err(value) => Err(format!("{option} {value:?} is not UTF-8").into()),
    }
}

fn number(
    option: &str,
    range: RangeInclusive<u64>,
    parser: &mut lexopt::Parser,
) -> Result<u64, lexopt::Error> {
    let text = text(option, parser)?;
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        let (least, most) = range.into_inner();
        format!("{option} {text:?} is not a number in {least}..={most}").into()
    })
}
