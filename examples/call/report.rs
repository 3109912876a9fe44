//! What became of the calls: a table for people, and one line for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use equipoise::{Address, EndpointStatus};
use hdrhistogram::Histogram;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::load::Ended;

/// gRPC's names of the codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn name(code: Code) -> &'static str {
    CODES.get(code as usize).copied().unwrap_or("UNKNOWN")
}

/// Counts the calls that are over.
#[derive(Debug)]
pub struct Tally {
    latencies: Histogram<u64>,
    codes: BTreeMap<i32, u64>,
    /// The first message of each code.
    said: BTreeMap<i32, String>,
    health: BTreeMap<Address, BTreeMap<i32, u64>>,
}

impl Tally {
    /// Nothing counted.
    ///
    /// # Errors
    ///
    /// When the bounds of the histogram do not fit, which they do.
    pub fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            // From 1 µs to 2 h, an hour being the longest deadline there is.
            latencies: Histogram::new_with_bounds(1, 7_200_000_000, 3)?,
            codes: BTreeMap::new(),
            said: BTreeMap::new(),
            health: BTreeMap::new(),
        })
    }

    pub fn count(&mut self, call: Ended) {
        let code = match call.answer {
            Ok(answer) => {
                let micros = u64::try_from(call.took.as_micros()).unwrap_or(u64::MAX);
                self.latencies.saturating_record(micros);
                if let Some(from) = answer.from {
                    let health = self.health.entry(from).or_default();
                    *health.entry(answer.health).or_default() += 1;
                }
                Code::Ok
            }
            Err(status) => {
                let said = self.said.entry(status.code() as i32);
                said.or_insert_with(|| status.message().to_owned());
                status.code()
            }
        };
        *self.codes.entry(code as i32).or_default() += 1;
    }

    /// Calls that were answered.
    pub fn ok(&self) -> u64 {
        let ok = Code::Ok as i32;
        self.codes.get(&ok).copied().unwrap_or(0)
    }

    /// Calls that ended with any other code.
    pub fn failed(&self) -> u64 {
        self.codes.values().sum::<u64>() - self.ok()
    }

    /// Two lines for each code but OK: how many, and what the first of them said.
    pub fn failures(&self) -> String {
        let mut text = String::new();
        for (code, said) in &self.said {
            let count = self.codes.get(code).copied().unwrap_or(0);
            let code = name(Code::from_i32(*code));
            let _ = writeln!(text, "{count} {code}, the first: {said}");
        }
        text
    }

    /// The last line of the output.
    pub fn result(&self, endpoints: &[EndpointStatus]) -> String {
        let quantile = |q| match self.latencies.is_empty() {
            true => "-".to_owned(),
            false => self.latencies.value_at_quantile(q).to_string(),
        };
        let codes = self.codes.iter();
        let codes = codes.map(|(&code, count)| format!("{}:{count}", name(Code::from_i32(code))));
        let shares = shares(endpoints);
        let shares = shares.map(|(address, share)| format!("{address}@{share:.4}"));
        format!(
            "RESULT call ok={} failed={} p50_us={} p99_us={} p999_us={} codes={} shares={}",
            self.ok(),
            self.failed(),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            list(codes),
            list(shares),
        )
    }

    /// One row for each endpoint, under a row of headings.
    pub fn table(&self, endpoints: &[EndpointStatus]) -> String {
        let headings = [
            "endpoint",
            "state",
            "calls",
            "share",
            "codes",
            "health",
            "p50",
            "p99",
            "conns",
            "last error",
        ];
        let mut rows = vec![headings.map(str::to_owned)];
        for (endpoint, (_, share)) in endpoints.iter().zip(shares(endpoints)) {
            let codes = endpoint.outcomes.iter();
            let health = self.health.get(&endpoint.address).into_iter().flatten();
            rows.push([
                endpoint.address.to_string(),
                endpoint.state.to_string(),
                answered(endpoint).to_string(),
                format!("{:.2} %", share * 100.0),
                list(codes.map(|(code, count)| format!("{}:{count}", name(*code)))),
                list(health.map(|(health, count)| format!("{}:{count}", health_name(*health)))),
                time(endpoint.latency_p50),
                time(endpoint.latency_p99),
                endpoint.connections.to_string(),
                endpoint.last_error.clone().unwrap_or_default(),
            ]);
        }
        aligned(&rows)
    }
}

/// Calls that ended on this endpoint, with whatever code.
fn answered(endpoint: &EndpointStatus) -> u64 {
    endpoint.outcomes.iter().map(|(_, count)| count).sum()
}

/// Each endpoint's part of all the calls that ended on any of them.
fn shares(endpoints: &[EndpointStatus]) -> impl Iterator<Item = (&Address, f64)> {
    let all = endpoints.iter().map(answered).sum::<u64>().max(1);
    endpoints
        .iter()
        .map(move |e| (&e.address, answered(e) as f64 / all as f64))
}

fn health_name(health: i32) -> String {
    match ServingStatus::try_from(health) {
        Ok(known) => known.as_str_name().to_owned(),
        Err(_) => format!("status {health}"),
    }
}

/// `a,b,c`, and `-` for nothing.
fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    match items.is_empty() {
        true => "-".to_owned(),
        false => items.join(","),
    }
}

fn time(time: Option<Duration>) -> String {
    time.map_or("-".to_owned(), |t| {
        format!("{:.2} ms", t.as_secs_f64() * 1e3)
    })
}

/// The rows with their columns below each other.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.into_iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
