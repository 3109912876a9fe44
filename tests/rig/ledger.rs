//! The ledger: what the client was told and what the servers did, joined call by call.
//!
//! A server writes a line when it takes a call and one before it answers, straight to the file: what it
//! did stays known after `kill -9`. The client's part is the list of its [`Call`]s. [`audit`] joins both
//! by the id that each call carries in its message; the rows of the fault matrix judge the [`Verdict`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tonic::Code;

use super::now;

/// One call as the client saw it; times are those of [`now`].
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Unique in one scenario, and never 0.
    pub id: u64,
    /// When the schedule wanted it; latency counts from here, so that a late start is not forgotten.
    pub due: Duration,
    /// When the client was asked; the deadline counts from here.
    pub start: Duration,
    /// The deadline the client was given.
    pub deadline: Option<Duration>,
    /// `None`: the client never ended.
    pub end: Option<End>,
}

/// How a call ended for the client.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub at: Duration,
    pub code: Code,
    /// The name of the server in the answer; empty where there was none.
    pub server: String,
    /// The client says that no server ever saw the call.
    pub not_sent: bool,
    /// The text of the status; empty on success.
    pub message: String,
}

/// One time a server took a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    pub id: u64,
    /// 1, and one more for each retry that the client announced.
    pub attempt: u32,
    pub server: String,
    pub start: Duration,
    /// When the server answered and how; `None` if it died first. CANCELLED where the client left.
    pub end: Option<(Duration, Code)>,
}

/// The servers' side: a file that any number of processes append to.
#[derive(Clone, Debug)]
pub struct Writer {
    file: Arc<File>,
    server: Arc<str>,
    run: u32,
    entries: Arc<AtomicU32>,
}

impl Writer {
    /// Opens `path` for the lines of `server`, and makes it where it does not exist.
    pub fn open(path: &Path, server: &str) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self {
            file: Arc::new(file),
            server: server.into(),
            run: std::process::id(),
            entries: Arc::default(),
        })
    }

    /// Writes that the server was asked how it is.
    pub fn asked(&self) {
        let line = format!("asked {} {}\n", self.server, now().as_nanos());
        let written = (&*self.file).write_all(line.as_bytes());
        written.expect("the ledger's disk takes a line");
    }

    /// Writes that the server takes a call. Dropping the entry unfinished writes CANCELLED.
    pub fn begin(&self, id: u64, attempt: u32) -> Entry {
        // Only uniqueness is asked for, so nothing has to be ordered.
        let number = self.entries.fetch_add(1, Ordering::Relaxed);
        let key = format!("{} {}.{number}", self.server, self.run);
        let entry = Entry {
            file: self.file.clone(),
            key,
            open: true,
        };
        entry.write(format_args!(
            "begin {} {id} {attempt} {}",
            entry.key,
            now().as_nanos()
        ));
        entry
    }
}

/// A call that a server has taken and not answered yet.
#[derive(Debug)]
pub struct Entry {
    file: Arc<File>,
    key: String,
    open: bool,
}

impl Entry {
    /// Writes the answer; to be called before it is sent.
    pub fn finish(mut self, code: Code) {
        self.end(code);
    }

    fn end(&mut self, code: Code) {
        self.open = false;
        self.write(format_args!(
            "end {} {} {}",
            self.key,
            now().as_nanos(),
            code as i32
        ));
    }

    /// One line in one write, so that lines of several processes never mix.
    fn write(&self, line: fmt::Arguments<'_>) {
        let line = format!("{line}\n");
        (&*self.file)
            .write_all(line.as_bytes())
            .expect("the ledger's disk takes a line");
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.open {
            self.end(Code::Cancelled);
        }
    }
}

/// A ledger file of its own, gone with the value.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// An empty ledger in the directory for temporary files.
    pub fn create() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Only uniqueness is asked for, so nothing has to be ordered.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("equipoise-ledger-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        File::create(&path).expect("the directory for temporary files takes one more");
        Self { path }
    }

    /// For the options of the servers.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the servers have written by now.
    pub fn executions(&self) -> Vec<Execution> {
        let text = std::fs::read_to_string(&self.path).expect("the ledger lives as long as we do");
        read(&text)
    }

    /// When `server` was asked how it is: the health watches that it opened.
    pub fn asked(&self, server: &str) -> Vec<Duration> {
        let text = std::fs::read_to_string(&self.path).expect("the ledger lives as long as we do");
        let lines = text.lines().filter_map(|line| {
            let time = line.strip_prefix("asked ")?.strip_prefix(server)?;
            time.strip_prefix(' ')?.parse().ok()
        });
        lines.map(Duration::from_nanos).collect()
    }

    /// Joins the client's part with what the servers have written by now.
    pub fn audit(&self, calls: &[Call]) -> Verdict {
        audit(calls, &self.executions())
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // Nothing depends on it: the directory is for temporary files.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Reads the lines that servers wrote.
pub fn read(text: &str) -> Vec<Execution> {
    let mut executions = Vec::new();
    let mut open = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let number = |field: &str| {
            field
                .parse::<u64>()
                .unwrap_or_else(|_| panic!("ledger line {line:?}"))
        };
        let time = |field: &str| Duration::from_nanos(number(field));
        match fields[..] {
            ["begin", server, key, id, attempt, start] => {
                open.insert((server, key), executions.len());
                executions.push(Execution {
                    id: number(id),
                    attempt: number(attempt) as u32,
                    server: server.into(),
                    start: time(start),
                    end: None,
                });
            }
            ["end", server, key, end, code] => {
                let index = open
                    .remove(&(server, key))
                    .unwrap_or_else(|| panic!("no begin of {line:?}"));
                executions[index].end = Some((time(end), Code::from(number(code) as i32)));
            }
            ["asked", ..] => {}
            _ => panic!("ledger line {line:?}"),
        }
    }
    executions
}

/// What became of all calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    pub calls: usize,
    pub ok: usize,
    /// Calls that ended with another code than OK.
    pub failed: usize,
    /// Calls that the client never ended.
    pub lost: Vec<u64>,
    /// Number of calls that no server, one, or more executed.
    pub executed: [usize; 3],
    /// The calls executed more than once.
    pub repeated: Vec<u64>,
    /// Executed although the client said that no server ever saw them.
    pub belied: Vec<u64>,
    /// The client got OK, but no server gave it.
    pub invented: Vec<u64>,
    /// Executed, but nobody made such a call.
    pub unasked: Vec<u64>,
    /// Codes the client got, by number.
    pub codes: BTreeMap<i32, usize>,
    /// Executions by server.
    pub servers: BTreeMap<String, usize>,
    /// How often the client announced a retry.
    pub retries: usize,
    /// From due to end, sorted; the calls that ended.
    pub latencies: Vec<Duration>,
    /// The longest that a call went on past its deadline.
    pub overrun: Duration,
    /// A text for each code, to be shown where a test fails.
    pub messages: BTreeMap<i32, String>,
}

/// Joins what the client was told with what the servers did.
pub fn audit(calls: &[Call], executions: &[Execution]) -> Verdict {
    let mut verdict = Verdict {
        calls: calls.len(),
        ..Verdict::default()
    };
    let mut by_id: BTreeMap<u64, Vec<&Execution>> = BTreeMap::new();
    for execution in executions {
        by_id.entry(execution.id).or_default().push(execution);
        *verdict.servers.entry(execution.server.clone()).or_default() += 1;
        verdict.retries += usize::from(execution.attempt > 1);
    }
    for call in calls {
        let executions = by_id.remove(&call.id).unwrap_or_default();
        verdict.executed[executions.len().min(2)] += 1;
        if executions.len() > 1 {
            verdict.repeated.push(call.id);
        }
        match &call.end {
            None => verdict.lost.push(call.id),
            Some(end) => verdict.add_end(call, end, &executions),
        }
    }
    verdict.unasked = by_id.into_keys().collect();
    verdict.latencies.sort_unstable();
    verdict
}

impl Verdict {
    fn add_end(&mut self, call: &Call, end: &End, executions: &[&Execution]) {
        *self.codes.entry(end.code as i32).or_default() += 1;
        self.latencies.push(end.at.saturating_sub(call.due));
        if let Some(deadline) = call.deadline {
            self.overrun = self
                .overrun
                .max(end.at.saturating_sub(call.start + deadline));
        }
        if end.not_sent && !executions.is_empty() {
            self.belied.push(call.id);
        }
        if end.code == Code::Ok {
            self.ok += 1;
            let given = |execution: &&Execution| matches!(execution.end, Some((_, Code::Ok)));
            if !executions.iter().any(given) {
                self.invented.push(call.id);
            }
        } else {
            self.failed += 1;
            self.messages
                .entry(end.code as i32)
                .or_insert_with(|| end.message.clone());
        }
    }

    /// How many calls ended with `code`.
    pub fn code(&self, code: Code) -> usize {
        self.codes.get(&(code as i32)).copied().unwrap_or(0)
    }

    /// How many calls `server` executed.
    pub fn server(&self, server: &str) -> usize {
        self.servers.get(server).copied().unwrap_or(0)
    }

    /// The latency that a share of `quantile` of the calls stayed within; zero where none ended.
    pub fn latency(&self, quantile: f64) -> Duration {
        let rank = (quantile * self.latencies.len() as f64).ceil() as usize;
        let index = rank.clamp(1, self.latencies.len().max(1)) - 1;
        self.latencies.get(index).copied().unwrap_or_default()
    }

    /// The longest latency.
    pub fn worst(&self) -> Duration {
        self.latency(1.0)
    }

    /// What no scenario may show, whatever its faults: a lost call, or a ledger that tells another
    /// story than the client.
    #[track_caller]
    pub fn assert_true(&self) {
        assert!(
            self.lost.is_empty(),
            "the client never ended {:?}\n{self}",
            self.lost
        );
        assert!(
            self.belied.is_empty(),
            "said not sent, but executed: {:?}\n{self}",
            self.belied
        );
        assert!(
            self.invented.is_empty(),
            "OK without a server: {:?}\n{self}",
            self.invented
        );
        assert!(
            self.unasked.is_empty(),
            "executed unasked: {:?}\n{self}",
            self.unasked
        );
    }

    /// That nobody noticed anything: all calls OK, each executed once.
    #[track_caller]
    pub fn assert_unnoticed(&self) {
        self.assert_true();
        assert_eq!(self.failed, 0, "calls failed\n{self}");
        assert_eq!(
            self.executed,
            [0, self.calls, 0],
            "not each call once\n{self}"
        );
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [never, once, more] = self.executed;
        writeln!(
            f,
            "calls {} ok {} failed {} lost {} · executed 0/1/2+ {never}/{once}/{more} · retries {} · belied {} \
             · invented {} · unasked {}",
            self.calls,
            self.ok,
            self.failed,
            self.lost.len(),
            self.retries,
            self.belied.len(),
            self.invented.len(),
            self.unasked.len(),
        )?;
        for (code, count) in &self.codes {
            let message = self.messages.get(code).map_or("", String::as_str);
            writeln!(f, "  {:?} × {count} {message}", Code::from(*code))?;
        }
        write!(
            f,
            "  servers {:?} · p50 {:?} p99 {:?} p99.9 {:?} worst {:?} · overrun {:?}",
            self.servers,
            self.latency(0.5),
            self.latency(0.99),
            self.latency(0.999),
            self.worst(),
            self.overrun,
        )
    }
}
