//! CLEAN: after a scenario everything is back to what it was before.
//!
//! Open files are a fact of the whole process, and the timing of all tests suffers from neighbours. So a
//! test on real sockets runs [`alone`], in place of `#[tokio::test]`: that would open the files of its
//! runtime while it waits for its turn.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};

/// Runs `test` on a runtime with two workers, while no other test of this binary runs so.
pub fn alone(test: impl Future<Output = ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed before leaves nothing that this one depends on.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = Builder::new_multi_thread();
    let runtime = builder
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be had");
    runtime.block_on(test);
    // Not a plain drop: a thread that hangs must not hide the test's own result.
    runtime.shutdown_timeout(Duration::from_secs(5));
}

/// What this process holds: open files, and the tasks of the current runtime that live.
#[derive(Clone, PartialEq, Eq)]
pub struct Footprint {
    files: BTreeMap<u32, String>,
    tasks: usize,
}

impl Footprint {
    /// What is held now; called inside the runtime whose tasks are to be counted.
    pub fn take() -> Self {
        let mut files = BTreeMap::new();
        let entries = std::fs::read_dir("/proc/self/fd").expect("linux lists open files there");
        for entry in entries.flatten() {
            // The directory that is being read is gone when its link is asked for, unless the number
            // was taken again; its own line names it.
            let Ok(link) = std::fs::read_link(entry.path()) else {
                continue;
            };
            let link = link.to_string_lossy().into_owned();
            let number = entry.file_name().to_string_lossy().parse::<u32>();
            if let Ok(number) = number
                && !(link.starts_with("/proc/") && link.ends_with("/fd"))
            {
                files.insert(number, link);
            }
        }
        Self {
            files,
            tasks: Handle::current().metrics().num_alive_tasks(),
        }
    }

    /// Waits until no more is held than then, and says what is still held when `limit` has gone by.
    pub async fn restored(&self, limit: Duration) -> Result<(), Leak> {
        let end = Instant::now() + limit;
        loop {
            let now = Self::take();
            if now.files.len() <= self.files.len() && now.tasks <= self.tasks {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(self.leak(now));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn leak(&self, now: Self) -> Leak {
        let files = now
            .files
            .into_iter()
            .filter(|(number, link)| self.files.get(number) != Some(link));
        Leak {
            files: files.map(|(_, link)| link).collect(),
            tasks: (self.tasks, now.tasks),
        }
    }
}

/// What a scenario left behind.
pub struct Leak {
    /// Files that are open now and were not before.
    pub files: Vec<String>,
    /// Tasks before and now.
    pub tasks: (usize, usize),
}

impl fmt::Debug for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, now) = self.tasks;
        write!(
            f,
            "not clean: {before} tasks before and {now} now; opened since: {:?}",
            self.files
        )
    }
}
