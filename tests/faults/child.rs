//! A client as a process of its own, so that it can be frozen and lied to.
//!
//! It is a test of this binary that does nothing unless it was started so; what it finds it prints, line by line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// What the client is told; it is one only where this is set.
const TASK: &str = "EQUIPOISE_FAULT_CLIENT";

/// What this process was told to do, where it was started as a client.
pub(crate) fn task() -> Option<String> {
    std::env::var(TASK).ok()
}

/// Tells the parent something; its line begins with `name`.
pub(crate) fn tell(name: &str, what: &str) {
    // The harness may have begun a line of its own.
    println!("\n{name} {what}");
    std::io::stdout().flush().expect("the parent reads");
}

/// The running client; killed and reaped when dropped.
pub(crate) struct Client {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Client {
    /// Starts the test of that name as a client.
    pub(crate) fn start(test: &str, task: &str, environment: &[(&str, &str)]) -> Self {
        let binary = std::env::current_exe().expect("a running binary knows its path");
        let mut command = Command::new(binary);
        command.args([test, "--exact", "--nocapture"]);
        command.env(TASK, task).envs(environment.iter().copied());
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs once more");
        let stdout = child.stdout.take().expect("it was asked for");
        let lines = BufReader::new(stdout);
        Self { child, lines }
    }

    /// What it tells under that name; waits for it.
    pub(crate) fn told(&mut self, name: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.lines.read_line(&mut line).expect("it writes text");
            assert!(read > 0, "it ended and said no {name}");
            let told = line.trim_end().strip_prefix(name);
            if let Some(told) = told.and_then(|told| told.strip_prefix(' ')) {
                return told.into();
            }
            print!("  client: {line}");
        }
    }

    /// SIGSTOP, and waits until it has stopped.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let stopped = waitid(WaitId::Pid(self.pid()), WaitIdOptions::STOPPED);
        stopped.expect("a child of ours stops");
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Lets it run for a twentieth of each 50 ms, for so long.
    pub(crate) fn starve(&self, time: Duration) {
        let (run, rest) = (Duration::from_micros(2_500), Duration::from_micros(47_500));
        let end = std::time::Instant::now() + time;
        while std::time::Instant::now() < end {
            self.freeze();
            std::thread::sleep(rest);
            self.thaw();
            std::thread::sleep(run);
        }
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn ended(mut self) {
        let mut rest = String::new();
        while self.lines.read_line(&mut rest).expect("it writes text") > 0 {}
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "the client failed: {rest}");
    }

    /// Waits for its end, which must be a bad one; how it ended.
    pub(crate) fn died(mut self) -> ExitStatus {
        let mut rest = String::new();
        while self.lines.read_line(&mut rest).expect("it writes text") > 0 {}
        let status = self.child.wait().expect("it is our child");
        assert!(!status.success(), "the client lives: {rest}");
        status
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child that is not reaped takes signals");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail only where the child has been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
