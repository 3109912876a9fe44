//! The full run: every row of the matrix at its own load, and the page that tells how they fared.
//!
//! ```text
//! cargo test --release --test faults -- --ignored
//!
//! rm -f tests/faults/results.jsonl
//! EQUIPOISE_FAULT_SEED=1,2,3 EQUIPOISE_FAULTS_OUT=tests/faults/results.jsonl cargo test --release --test faults -- --ignored
//! EQUIPOISE_FAULTS_PAGE=write cargo test --test faults full::the_page_is_that_of_the_results
//! ```
//!
//! There is an ignored test for each row. It starts the row's tests, each as a process of its own, at full size and
//! with seed 1, or with those in `EQUIPOISE_FAULT_SEED`: three of them for the page. The rows that are compared with tonic's balancer run
//! their control at the same load. The rows come one after another, whatever the number of threads, but for those that
//! do little else than wait, which are begun at once, and a few that carry a steady load for a minute, which are begun
//! together. Each adds a line to the file that `EQUIPOISE_FAULTS_OUT` names; the last one counts what was skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{Read, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::matrix::{IDLE, MAY_SKIP, P0, ROWS, Row, SIDE_BY_SIDE, State, TOGETHER};
use crate::rig::clean::alone;
use crate::size::{FIGURE, Figure, SEED, SIZE, SKIPPED, is_full};

/// Where the rows' results go, one line each.
const OUT: &str = "EQUIPOISE_FAULTS_OUT";
/// `write`: make the page anew.
const PAGE: &str = "EQUIPOISE_FAULTS_PAGE";
/// The last full run, from the root of the package.
const RESULTS: &str = "tests/faults/results.jsonl";
const PAGE_FILE: &str = "docs/FAULTS.md";

/// What one test may take at full size: the longest window is a minute.
const LIMIT: Duration = Duration::from_secs(180);

/// How a row fared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ending {
    /// All that was asserted held, and every time was within its bound.
    Held,
    /// All that was asserted held, but a time was over its bound, by less than ten times.
    Late,
    /// An assertion failed.
    Failed,
    /// What it asks for is not built.
    Pending,
    /// A unit test holds it.
    Unit,
}

/// A line of the results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    row: String,
    criterion: String,
    result: Ending,
    figures: Vec<Figure>,
    /// The same rig under tonic's own balancer, or under whatever else the row's control is.
    control: Vec<Figure>,
    seeds: Vec<u64>,
    skipped: Vec<String>,
    seconds: f64,
    /// Why it failed or what it lacks; else empty.
    note: String,
}

/// What was printed by a test.
#[derive(Debug, Default)]
struct Told {
    figures: Vec<Figure>,
    skipped: Vec<String>,
    failure: Option<String>,
}

/// Rows that spend their time with waiting, and are under way beside the others where all are run.
static UNDER_WAY: Mutex<BTreeMap<&str, thread::JoinHandle<Line>>> = Mutex::new(BTreeMap::new());

fn under_way() -> MutexGuard<'static, BTreeMap<&'static str, thread::JoinHandle<Line>>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins rows beside whatever else is run.
fn begin(rows: &[&'static str]) {
    for &id in rows {
        let begin = move || full_line(row(id), Instant::now());
        under_way().insert(id, thread::spawn(begin));
    }
}

/// Set where all rows are run. Relaxed: a row that does not see it is run by itself.
static WHOLE: AtomicBool = AtomicBool::new(false);
static TOGETHER_BEGUN: Once = Once::new();

/// Runs a row and writes its line.
pub(crate) fn run(id: &str) {
    // One at a time, and not beside the quick tests of this process either.
    alone(async {
        if TOGETHER.contains(&id) && WHOLE.load(Ordering::Relaxed) {
            TOGETHER_BEGUN.call_once(|| {
                begin(TOGETHER);
                // No other row is to have their load beside it.
                while under_way().values().any(|row| !row.is_finished()) {
                    thread::sleep(Duration::from_millis(100));
                }
            });
        }
        let row = row(id);
        let early = under_way().remove(id);
        let line = match early {
            Some(early) => early.join().expect("a row's line can be made"),
            None => full_line(row, Instant::now()),
        };
        write(&line);
        println!("{id}: {:?}", line.result);
        note(row.id, &line);
        assert!(line.result != Ending::Failed, "{id}: {}", line.note);
    });
}

fn row(id: &str) -> &'static Row {
    let mut rows = ROWS.iter();
    rows.find(|row| row.id == id)
        .expect("the row is in the table")
}

fn seeds() -> Vec<u64> {
    match std::env::var(SEED) {
        Ok(seeds) => {
            let seeds = seeds.split(',').map(str::parse);
            seeds
                .map(|seed| seed.expect("a seed is a number"))
                .collect()
        }
        Err(_) => vec![1],
    }
}

fn full_line(row: &Row, begin: Instant) -> Line {
    let mut line = Line {
        row: row.id.to_uppercase(),
        criterion: row.criterion.into(),
        result: Ending::Held,
        figures: Vec::new(),
        control: Vec::new(),
        seeds: Vec::new(),
        skipped: Vec::new(),
        seconds: 0.0,
        note: String::new(),
    };
    match &row.state {
        State::Pending(what) => {
            line.result = Ending::Pending;
            line.note = format!("needs {what}");
        }
        State::Unit { file, test } => {
            line.result = Ending::Unit;
            line.note = format!("`{test}` in `{file}`");
        }
        State::Tests {
            by,
            long,
            against,
            lacks,
        } => {
            line.seeds = seeds();
            let mut told = Told::default();
            for &seed in &line.seeds {
                for test in *by {
                    told.add(child(test, seed));
                }
            }
            // Their windows are long, and nothing in them is left to chance.
            let once = [*long, *against].concat();
            let seed = line.seeds[0];
            let mut once = match SIDE_BY_SIDE.contains(&row.id) {
                true => thread::scope(|scope| {
                    let started = once
                        .iter()
                        .map(|test| scope.spawn(move || child(test, seed)));
                    let started: Vec<_> = started.collect();
                    let told = started.into_iter().map(thread::ScopedJoinHandle::join);
                    told.map(|told| told.expect("no child panics here"))
                        .collect()
                }),
                false => once
                    .iter()
                    .map(|test| child(test, seed))
                    .collect::<Vec<_>>(),
            };
            let mut control = Told::default();
            for ended in once.split_off(long.len()) {
                control.add(ended);
            }
            for ended in once {
                told.add(ended);
            }
            let late = |f: &Figure| f.bound.is_some_and(|bound| f.value > bound);
            line.figures = worst(told.figures);
            line.control = worst(control.figures);
            line.skipped = told.skipped;
            line.note = lacks.map_or_else(String::new, |what| format!("lacks {what}"));
            if line.figures.iter().any(late) {
                line.result = Ending::Late;
            }
            if let Some(why) = told.failure.or(control.failure) {
                line.result = Ending::Failed;
                line.note = why;
            }
        }
    }
    line.seconds = begin.elapsed().as_secs_f64();
    line
}

impl Told {
    fn add(&mut self, other: Self) {
        self.figures.extend(other.figures);
        self.skipped.extend(other.skipped);
        self.failure = self.failure.take().or(other.failure);
    }

    /// Reads what a test printed.
    fn read(printed: &str) -> Self {
        let mut told = Self::default();
        for line in printed.lines() {
            // The harness leaves its own line open.
            let (before, rest) = line.split_once(" ... ").unwrap_or(("", line));
            let line = match before.starts_with("test ") {
                true => rest,
                false => line,
            };
            if let Some(figure) = line.strip_prefix(FIGURE) {
                told.figures
                    .push(serde_json::from_str(figure).expect("our own line"));
            } else if let Some(skipped) = line.strip_prefix(SKIPPED) {
                let test = skipped.split(": ").next();
                told.skipped.extend(test.map(str::to_owned));
            } else {
                told.figures.extend(failed_of(line));
            }
        }
        told
    }
}

/// The figure in the first line of a ledger's verdict: `calls 10 ok 9 failed 1 ..`.
fn failed_of(line: &str) -> Option<Figure> {
    let words: Vec<&str> = line.split(' ').collect();
    let ["calls", calls, "ok", _, "failed", failed, ..] = words[..] else {
        return None;
    };
    Some(Figure {
        what: format!("failed of {}", grouped(calls.parse().ok()?)),
        value: failed.parse().ok()?,
        unit: String::new(),
        bound: None,
    })
}

/// The largest of each name, in the order of their first mention.
fn worst(figures: Vec<Figure>) -> Vec<Figure> {
    let mut worst: Vec<Figure> = Vec::new();
    for figure in figures {
        match worst.iter_mut().find(|known| known.what == figure.what) {
            Some(known) if known.value < figure.value => *known = figure,
            Some(_) => {}
            None => worst.push(figure),
        }
    }
    worst
}

/// Runs one test of this binary at full size, and reads what it prints.
fn child(test: &str, seed: u64) -> Told {
    let binary = std::env::current_exe().expect("a running binary knows its path");
    let mut command = Command::new(binary);
    command.args([test, "--exact", "--nocapture"]);
    command.env(SIZE, "full").env(SEED, seed.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs once more");
    fn reader(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // What came before an error counts.
            let _ = stream.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let stdout = reader(child.stdout.take().expect("it was asked for"));
    let stderr = reader(child.stderr.take().expect("it was asked for"));
    let end = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait().expect("it is our child") {
            Some(status) => break Some(status),
            None if Instant::now() >= end => {
                // Fails only where it has just ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let printed = stdout.join().expect("reading does not panic");
    let errors = stderr.join().expect("reading does not panic");
    print!("{printed}");
    let mut told = Told::read(&printed);
    told.failure = match status {
        None => Some(format!(
            "{test} with seed {seed} took longer than {LIMIT:?}"
        )),
        Some(status) if status.success() && printed.contains("1 passed") => None,
        Some(_) => {
            eprint!("{errors}");
            let panicked = errors
                .lines()
                .skip_while(|line| !line.contains("panicked at"));
            let why: Vec<&str> = panicked.take(2).collect();
            Some(format!("{test} with seed {seed}: {}", why.join(" ")))
        }
    };
    told
}

fn write(line: &Line) {
    let Ok(path) = std::env::var(OUT) else { return };
    let file = OpenOptions::new().append(true).create(true).open(&path);
    let mut file = file.unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = serde_json::to_string(line).expect("text and numbers");
    writeln!(file, "{line}").unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// What has ended in this process, and with what.
static ENDED: Mutex<BTreeMap<&str, (Ending, Vec<String>)>> = Mutex::new(BTreeMap::new());

fn note(id: &'static str, line: &Line) {
    let ended = (line.result.clone(), line.skipped.clone());
    let mut all = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
    all.insert(id, ended);
}

/// The end of the full run: waits for every row, and counts.
#[test]
#[ignore = "the end of the full run"]
fn the_sum() {
    WHOLE.store(true, Ordering::Relaxed);
    begin(IDLE);
    let (mut last, mut since) = (0, Instant::now());
    let ended = loop {
        let ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if ended.len() == ROWS.len() {
            break ended;
        }
        if ended.len() > last {
            (last, since) = (ended.len(), Instant::now());
        }
        // A row has many tests.
        let missing = || {
            ROWS.iter()
                .map(|row| row.id)
                .filter(|id| !ended.contains_key(id))
        };
        assert!(
            since.elapsed() < 5 * LIMIT,
            "these rows never came to an end: {:?}",
            missing().collect::<Vec<_>>()
        );
        thread::sleep(Duration::from_millis(100));
    };
    let mut sums: BTreeMap<String, usize> = BTreeMap::new();
    let mut skipped = BTreeSet::new();
    for (ending, skips) in ended.values() {
        *sums.entry(format!("{ending:?}")).or_default() += 1;
        skipped.extend(skips.iter().cloned());
    }
    // To the stream itself: the harness keeps what a test prints that passes.
    let mut stderr = std::io::stderr();
    for test in &skipped {
        let _ = writeln!(stderr, "skipped: {test}");
    }
    let _ = writeln!(stderr, "\nrows {sums:?}\n{SKIPPED}{}", skipped.len());
    let unknown: Vec<&String> = skipped
        .iter()
        .filter(|test| !MAY_SKIP.contains(&test.as_str()))
        .collect();
    assert!(
        unknown.is_empty(),
        "skipped and not known to be: {unknown:?}"
    );
}

fn root(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// The last line of each row.
fn results() -> BTreeMap<String, Line> {
    let text = std::fs::read_to_string(root(RESULTS)).unwrap_or_default();
    let lines = text.lines().map(|line| {
        let line: Line = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        (line.row.to_lowercase(), line)
    });
    lines.collect()
}

/// 10000 as 10,000.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn shown(figures: &[Figure]) -> String {
    let number = |value: f64| match value {
        whole if whole.fract() == 0.0 && whole >= 0.0 => grouped(whole as u64),
        large if large >= 100.0 => format!("{large:.0}"),
        small => format!("{small:.1}"),
    };
    let unit = |figure: &Figure| match figure.unit.as_str() {
        "" => String::new(),
        "%" => "%".into(),
        unit => format!(" {unit}"),
    };
    let shown = figures.iter().map(|figure| {
        let value = format!("{}{}", number(figure.value), unit(figure));
        let bound = figure
            .bound
            .map(|bound| format!(" (≤ {}{})", number(bound), unit(figure)));
        format!("{}: {value}{}", figure.what, bound.unwrap_or_default())
    });
    let shown: Vec<String> = shown.collect();
    shown.join("<br>").replace('|', "\\|")
}

/// The page.
fn page() -> String {
    let results = results();
    let mut sums: BTreeMap<&str, usize> = BTreeMap::new();
    let mut table = String::new();
    for row in ROWS {
        let line = results.get(row.id);
        let (result, note) = match (&row.state, line) {
            (State::Pending(what), _) => ("pending", format!("needs {what}")),
            (State::Unit { file, test }, _) => ("held", format!("unit test `{test}` in `{file}`")),
            (State::Tests { .. }, None) => ("not run", String::new()),
            (State::Tests { lacks, .. }, Some(line)) => {
                let result = match (&line.result, lacks) {
                    (Ending::Held, None) => "held",
                    (Ending::Held | Ending::Late, Some(_)) => "held in part",
                    (Ending::Late, None) => "held, late",
                    _ => "failed",
                };
                let skipped = match line.skipped.len() {
                    0 => String::new(),
                    n => format!(" (skipped: {n})"),
                };
                (result, format!("{}{skipped}", line.note))
            }
        };
        *sums.entry(result).or_default() += 1;
        let mut told = line.map_or_else(String::new, |line| shown(&line.figures));
        let control = line.map_or_else(String::new, |line| shown(&line.control));
        if !note.is_empty() {
            let gap = if told.is_empty() { "" } else { "<br>" };
            let _ = write!(told, "{gap}{note}");
        }
        let priority = if P0.split_whitespace().any(|id| id == row.id) {
            "P0"
        } else {
            "P1"
        };
        let _ = writeln!(
            table,
            "| {} {priority} | {} | {} | {result} | {told} | {control} |",
            row.id.to_uppercase(),
            row.fault,
            row.criterion,
        );
    }
    let sums: Vec<String> = sums.iter().map(|(what, n)| format!("{n} {what}")).collect();
    format!(
        "# Faults\n\n\
         What the channel does when things go wrong, row by row of our fault matrix: what is broken, what must hold, whether it \
         did in the last full run, and what was measured. P0 rows must hold before any release, P1 rows before 1.0. The last \
         column is the negative control on the same rig: tonic's own balancer for N1, N2, N3, N6, B1, B2, B8, B10, D2, D11, G1 and \
         H10, elsewhere what the row's control is.\n\n\
         *held*: all counts and codes were as they must be and every time was within its bound. *late*: a time was not, by less \
         than ten times. *held in part*: the row asks for something that is not built yet. *pending*: all of it is. *not run*: \
         there is a test, and no result of a full run. Figures are the worst of all seeds.\n\n\
         Unless a row is about one of them, the channel has the matrix' settings, which are shorter than our defaults: 1 s to \
         connect, backoff 0.2 s × 1.6 up to 2 s, pings after 1 s and given up after 1 s, 5 s to drain, 1,000 calls in line, \
         failures judged each second, ejections of 2 s and a slow start of 1 s after them. With the default slow start of 5 s \
         a server that was frozen (N3, N5) has its fair share again after 7.5 s.\n\n\
         Made from `{RESULTS}` by `tests/faults/full.rs`, which says how to run it.\n\n\
         {}.\n\n\
         | row | fault | criterion | result | figures | control |\n|---|---|---|---|---|---|\n{table}",
        sums.join(", "),
    )
}

#[test]
fn the_page_is_that_of_the_results() {
    let page = page();
    if std::env::var(PAGE).is_ok_and(|page| page == "write") {
        std::fs::write(root(PAGE_FILE), page).expect("the docs can be written");
        return;
    }
    let known = std::fs::read_to_string(root(PAGE_FILE)).unwrap_or_default();
    assert!(
        known == page,
        "{PAGE_FILE} is not what {RESULTS} and the table of rows give: make it anew with \
         {PAGE}=write cargo test --test faults full::the_page_is_that_of_the_results"
    );
}

/// The tests of this binary, as the harness lists them.
fn listed() -> BTreeSet<String> {
    let binary = std::env::current_exe().expect("a running binary knows its path");
    let output = Command::new(binary)
        .args(["--list", "--format", "terse"])
        .output();
    let output = output.expect("the binary runs once more");
    let text = String::from_utf8(output.stdout).expect("names are text");
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    names.map(str::to_owned).collect()
}

/// The row a test says it is of: `n1` of `n::n1_refused_from_the_start`.
fn row_of(test: &str) -> Option<&str> {
    let name = test.rsplit("::").next()?;
    let (id, _) = name.split_once('_')?;
    let number = id.strip_prefix(|letter| matches!(letter, 'b'..='i' | 'n'))?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some(id)
}

/// Every P0 row of the matrix is in the table, tests that the table names exist, and no row's test is left out.
#[test]
fn no_row_is_forgotten() {
    let ids: BTreeSet<&str> = ROWS.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), ROWS.len(), "a row is there twice");
    for id in P0.split_whitespace() {
        assert!(ids.contains(id), "{id} is not in the table");
    }
    let listed = listed();
    let mut named = BTreeSet::new();
    for row in ROWS {
        match &row.state {
            State::Pending(_) => {}
            State::Unit { file, test } => {
                let source = std::fs::read_to_string(root(file)).expect("the file is there");
                assert!(
                    source.contains(&format!("fn {test}()")),
                    "{test} is not in {file}"
                );
            }
            State::Tests {
                by, long, against, ..
            } => {
                assert!(!by.is_empty() || !long.is_empty(), "{} has no test", row.id);
                assert!(!against.is_empty(), "{} has no negative control", row.id);
                for test in by.iter().chain(*long).chain(*against) {
                    assert!(listed.contains(*test), "{}: there is no {test}", row.id);
                    assert_eq!(row_of(test), Some(row.id), "{test} is of another row");
                    assert!(named.insert(*test), "{test} is there twice");
                }
            }
        }
    }
    for test in &listed {
        if let Some(id) = row_of(test) {
            assert!(
                named.contains(test.as_str()),
                "{test} is not named by its row {id} in tests/faults/matrix.rs"
            );
        }
    }
    for test in MAY_SKIP {
        assert!(named.contains(test), "{test} is of no row");
    }
}

#[test]
fn what_a_test_prints_is_read() {
    assert!(!is_full(), "this is the quick run");
    let verdict = crate::rig::ledger::Verdict {
        calls: 10_000,
        failed: 7,
        ..Default::default()
    };
    let printed = format!(
        "test n::x ... {verdict}\nFIGURE {{\"what\":\"a\",\"value\":1.5,\"unit\":\"ms\",\"bound\":2.0}}\nSKIPPED n::x: no right\n\
         FIGURE {{\"what\":\"a\",\"value\":3.0,\"unit\":\"ms\",\"bound\":2.0}}"
    );
    let told = Told::read(&printed);
    assert_eq!(told.skipped, ["n::x"]);
    assert_eq!(
        shown(&worst(told.figures)),
        "failed of 10,000: 7<br>a: 3 ms (≤ 2 ms)"
    );
    assert_eq!(row_of("b::goaway::b2_unprocessed"), Some("b2"));
    assert_eq!(row_of("rig_itself::load::a_client_that"), None);
    assert_eq!(row_of("full::the_sum"), None);
    assert_eq!(grouped(1_234_567), "1,234,567");
}
