//! What the runs came to: tables and advice for people, and one line for programs.

use std::fmt::Write;

use super::contenders::BASELINE;
use super::outcome::{Figure, Figures};
use super::runs::Results;

/// A policy without errors: at most this part of its calls failed.
const ERRORS: f64 = 0.001;
/// Closer together than this, two policies are as good as each other.
const TIE: f64 = 1.05;

/// How a figure is written.
#[derive(Clone, Copy)]
enum Unit {
    Millis,
    Percent,
    Ratio,
}

const COLUMNS: [(&str, Figure, Unit); 14] = [
    ("mean ms", Figure::Mean, Unit::Millis),
    ("p50 ms", Figure::P50, Unit::Millis),
    ("p90 ms", Figure::P90, Unit::Millis),
    ("p99 ms", Figure::P99, Unit::Millis),
    ("p99.9 ms", Figure::P999, Unit::Millis),
    ("timeouts %", Figure::Timeouts, Unit::Percent),
    ("unavailable %", Figure::Unavailable, Unit::Percent),
    ("least share %", Figure::LeastShare, Unit::Percent),
    ("most share %", Figure::MostShare, Unit::Percent),
    ("spread", Figure::Spread, Unit::Ratio),
    ("moved %", Figure::Moved, Unit::Percent),
    ("needless %", Figure::Needless, Unit::Percent),
    ("broken: 1st s %", Figure::Early, Unit::Percent),
    ("after 5 s %", Figure::Late, Unit::Percent),
];

/// A policy's p99 by round robin's.
fn ratio(results: &Results, figures: &Figures) -> Option<f64> {
    let base = results.baseline()?.get(Figure::P99)?;
    Some(figures.get(Figure::P99)? / base)
}

/// One row for each policy, under a heading; columns that nobody has are left out.
pub fn table(results: &Results) -> String {
    let scenario = &results.scenario;
    let mut text = format!("{}: {}\n", scenario.name, scenario.about);
    let _ = writeln!(
        text,
        "{} servers, {} clients, {} calls at {:.0}/s",
        scenario.servers.len(),
        scenario.clients,
        scenario.requests,
        scenario.per_second(),
    );
    let known = |figure| results.rows.iter().any(|(_, f)| f.get(figure).is_some());
    let columns = COLUMNS.iter().filter(|(_, figure, _)| known(*figure));
    let columns: Vec<_> = columns.collect();
    let mut rows = vec![vec!["policy".to_owned(), format!("p99/{BASELINE}")]];
    rows[0].extend(columns.iter().map(|(heading, ..)| (*heading).to_owned()));
    for (name, figures) in &results.rows {
        let mut row = vec![
            (*name).to_owned(),
            written(ratio(results, figures), Unit::Ratio),
        ];
        let cells = columns.iter();
        row.extend(cells.map(|(_, figure, unit)| written(figures.get(*figure), *unit)));
        rows.push(row);
    }
    text + &aligned(&rows) + &overloaded(results)
}

/// Whose p99 is the deadline: their ratios tell nothing but that.
fn overloaded(results: &Results) -> String {
    let deadline = results.scenario.deadline.as_secs_f64() * 1e3;
    let rows = results.rows.iter();
    let at_it = rows.filter(|(_, f)| f.get(Figure::P99).is_some_and(|p99| p99 >= deadline));
    let names: Vec<&str> = at_it.map(|(name, _)| *name).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!(
            "overloads servers, so that p99 is the deadline: {}\n",
            names.join(", ")
        ),
    }
}

fn written(value: Option<f64>, unit: Unit) -> String {
    match (value, unit) {
        (None, _) => "-".to_owned(),
        (Some(value), Unit::Millis) => format!("{value:.1}"),
        (Some(value), Unit::Percent) => format!("{:.2}", value * 100.0),
        (Some(value), Unit::Ratio) => format!("{value:.3}"),
    }
}

/// Which policy to take, and why.
pub fn advice(results: &Results) -> String {
    let errors = |f: &Figures| {
        let [late, failed] = [Figure::Timeouts, Figure::Unavailable];
        f.get(late).unwrap_or(0.0) + f.get(failed).unwrap_or(0.0)
    };
    let p99 = |f: &Figures| f.get(Figure::P99).unwrap_or(f64::INFINITY);
    let rows = || results.rows.iter().map(|(name, figures)| (*name, figures));
    let fewest = rows().map(|(_, f)| errors(f)).fold(f64::INFINITY, f64::min);
    // Nor is a deadline that every call ran into a latency.
    let nobody = rows().all(|(_, f)| errors(f) >= 1.0 || !p99(f).is_finite());
    if nobody {
        return "recommended: none, no call was answered\n".to_owned();
    }
    let clean = fewest <= ERRORS;
    let limit = if clean { ERRORS } else { fewest * TIE };
    let fit = || rows().filter(|(_, f)| errors(f) <= limit);
    let Some((best, least)) = fit().min_by(|(_, a), (_, b)| p99(a).total_cmp(&p99(b))) else {
        return String::new();
    };
    // They come in the order of simplicity.
    let Some((name, figures)) = fit().find(|(_, f)| p99(f) <= p99(least) * TIE) else {
        return String::new();
    };
    let among = match clean {
        true => format!("among those with at most {} % errors", ERRORS * 100.0),
        false => format!(
            "among those with the fewest errors, {:.2} %",
            fewest * 100.0
        ),
    };
    let why = match name == best {
        true => format!("lowest p99, {:.1} ms, {among}", p99(figures)),
        false => format!(
            "p99 {:.1} ms is within 5 % of the lowest ({best}, {:.1} ms) {among}, and it is simpler",
            p99(figures),
            p99(least),
        ),
    };
    format!("recommended: {name} ({why})\n")
}

/// The last line of the output.
pub fn result(all: &[Results], seeds: &[u64]) -> String {
    let first = seeds.first().copied().unwrap_or(0);
    let mut line = format!("RESULT policy_lab seed={first} seeds={}", seeds.len());
    for results in all {
        for (name, figures) in &results.rows {
            let ratio = written(ratio(results, figures), Unit::Ratio);
            let _ = write!(line, " {}_{name}={ratio}", results.scenario.name);
        }
        // A sinkhole shows in its share, not in the latency.
        for (name, figures) in &results.rows {
            for (word, figure) in [("early", Figure::Early), ("late", Figure::Late)] {
                if let Some(share) = figures.get(figure) {
                    let scenario = &results.scenario.name;
                    let _ = write!(line, " {scenario}_{name}_{word}={share:.5}");
                }
            }
        }
    }
    line.push('\n');
    line
}

/// The rows with their columns below each other: the first to the left, numbers to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
