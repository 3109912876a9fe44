//! What the user asked for, checked before anything is sent.

use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;
use tonic::metadata::{Ascii, MetadataKey};

pub const USAGE: &str = "\
Calls grpc.health.v1.Health/Check, which any gRPC server can serve, and says how it went.

usage: call <target> [options]

  <target>            host:port, dns:///host:port, https://host, ip:port, ipv4:.., ipv6:.., unix:..,
                      static:127.0.0.1:50051,127.0.0.1:50052
  --policy P          adaptive (default), least_bandwidth, least_request, peak_ewma, pick_first, random or
                      round_robin; maglev, rendezvous or ring_hash by the name of --hash-on. A target
                      cannot say weights, so that no weighted policy is among them
  --calls N           how many calls, 1 to 1000000000; default 10000
  --concurrency C     closed loop: so many calls at a time, 1 to 10000; default 32
  --rps R             open loop: so many calls a second, 1 to 100000, whatever becomes of them
  --deadline MS       the longest one call may take, 1 to 3600000; default 5000
  --hash-on NAME      send key-<i mod 1000> in the i-th call's metadata under this name
  --wait-for-ready    a call waits for an endpoint, to its deadline, where it would fail at once
  --tls-ca FILE       use TLS, and trust the certificates (PEM) in this file only
  --authority NAME    the name the calls go under, and that a certificate is verified for
  --help              this text

Every answer counts as ok, NOT_SERVING too; it is shown. With --rps a call's latency counts from its place in
the schedule, so one that is sent late (10000 calls may be under way) is not made to look quicker by it.
Ctrl-C ends the run and shows what there is.

The last line of stdout is for programs, all in one line:

  RESULT call ok=9990 failed=10 p50_us=310 p99_us=840 p999_us=2100 codes=OK:9990,UNAVAILABLE:10
    shares=127.0.0.1:50051@0.5004,127.0.0.1:50052@0.4996

  p50_us ..   latency of the calls that were ok, in microseconds, within 0.1 %; - where there was none
  codes       calls by gRPC status code, in the order of the codes' numbers; - where none ended
  shares      of the calls that ended on an endpoint in the list at the end, the fraction of each, in the
              order of the list; - where the list is empty

Exit status: 0 if every call was made and was ok, 1 if not, 2 if the arguments are wrong (nothing is sent),
130 after Ctrl-C.
";

/// The most calls under way at a time, in the closed loop and in the open one.
pub const MOST_AT_A_TIME: u32 = 10_000;

/// A whole run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub target: String,
    pub policy: Policy,
    pub calls: u64,
    pub pace: Pace,
    pub deadline: Duration,
    pub hash_on: Option<MetadataKey<Ascii>>,
    pub wait_for_ready: bool,
    pub tls_ca: Option<PathBuf>,
    pub authority: Option<String>,
}

/// When calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// So many at a time: the next when one has ended.
    Closed(u32),
    /// So many a second, whatever becomes of them.
    Open(u32),
}

/// Who gets which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Adaptive,
    LeastBandwidth,
    LeastRequest,
    Maglev,
    PeakEwma,
    PickFirst,
    Random,
    Rendezvous,
    RingHash,
    RoundRobin,
}

impl Policy {
    /// Each policy under the name it has here.
    const ALL: [(&str, Self); 10] = [
        ("adaptive", Self::Adaptive),
        ("least_bandwidth", Self::LeastBandwidth),
        ("least_request", Self::LeastRequest),
        ("maglev", Self::Maglev),
        ("peak_ewma", Self::PeakEwma),
        ("pick_first", Self::PickFirst),
        ("random", Self::Random),
        ("rendezvous", Self::Rendezvous),
        ("ring_hash", Self::RingHash),
        ("round_robin", Self::RoundRobin),
    ];

    /// Whether it places calls by what `--hash-on` names.
    fn is_keyed(self) -> bool {
        matches!(self, Self::Maglev | Self::Rendezvous | Self::RingHash)
    }

    fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, policy)| *policy).ok_or_else(|| {
            let known = Self::ALL.map(|(name, _)| name).join(", ");
            format!("--policy {name:?} is unknown; known are {known}")
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::ALL.iter().find(|(_, policy)| policy == self);
        f.write_str(found.map_or("?", |(name, _)| name))
    }
}

/// What the arguments come to.
#[derive(Debug, PartialEq)]
pub enum Request {
    Run(Box<Options>),
    Help,
}

/// Reads the arguments, the name of the program not among them.
///
/// # Errors
///
/// One line that names the argument and the rule it breaks.
pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    match parse(lexopt::Parser::from_args(arguments)) {
        // An argument may hold a line break; what is said of it must not.
        Err(error) => Err(error.to_string().replace(char::is_control, " ")),
        done => done.map_err(|e| e.to_string()),
    }
}

fn parse(mut parser: lexopt::Parser) -> Result<Request, lexopt::Error> {
    let (mut target, mut concurrency, mut rps) = (None, None, None);
    let mut options = Options {
        target: String::new(),
        policy: Policy::Adaptive,
        calls: 10_000,
        pace: Pace::Closed(32),
        deadline: Duration::from_secs(5),
        hash_on: None,
        wait_for_ready: false,
        tls_ca: None,
        authority: None,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(Request::Help),
            Long("policy") => options.policy = Policy::named(&text("--policy", &mut parser)?)?,
            Long("calls") => options.calls = number("--calls", 1..=1_000_000_000, &mut parser)?,
            Long("concurrency") => {
                let most = u64::from(MOST_AT_A_TIME);
                concurrency = Some(number("--concurrency", 1..=most, &mut parser)? as u32);
            }
            Long("rps") => rps = Some(number("--rps", 1..=100_000, &mut parser)? as u32),
            Long("deadline") => {
                let millis = number("--deadline", 1..=3_600_000, &mut parser)?;
                options.deadline = Duration::from_millis(millis);
            }
            Long("hash-on") => {
                options.hash_on = Some(metadata_name(&text("--hash-on", &mut parser)?)?)
            }
            Long("wait-for-ready") => options.wait_for_ready = true,
            Long("tls-ca") => options.tls_ca = Some(parser.value()?.into()),
            Long("authority") => options.authority = Some(text("--authority", &mut parser)?),
            Value(value) if target.is_none() => target = Some(value.string()?),
            Value(value) => return Err(format!("one target only, and {value:?} is another").into()),
            Long(_) | Short(_) => return Err(argument.unexpected()),
        }
    }
    options.target = target.ok_or("a target is missing; --help tells more")?;
    if options.policy.is_keyed() && options.hash_on.is_none() {
        return Err(format!("--policy {} needs --hash-on NAME", options.policy).into());
    }
    options.pace = match (concurrency, rps) {
        (Some(_), Some(_)) => return Err("--concurrency and --rps exclude each other".into()),
        (None, Some(rps)) => Pace::Open(rps),
        (Some(callers), None) => Pace::Closed(callers),
        (None, None) => options.pace,
    };
    Ok(Request::Run(Box::new(options)))
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

fn metadata_name(name: &str) -> Result<MetadataKey<Ascii>, String> {
    let wrong = |rule: &str| format!("--hash-on {name:?} {rule}");
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("grpc-") {
        return Err(wrong("is reserved: gRPC's own names begin with grpc-"));
    }
    if lower.ends_with("-bin") {
        return Err(wrong("ends in -bin: the keys sent are text"));
    }
    let name = MetadataKey::from_bytes(lower.as_bytes());
    name.map_err(|_| wrong("is not a metadata name"))
}
