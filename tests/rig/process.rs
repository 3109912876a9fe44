//! Servers as a real child process, so that they can be killed, frozen and pinned to a core.
//!
//! The binary runs itself again with an environment variable that says what to serve: a test binary as
//! its own test [`server_process`], a bench by calling [`serve_if_asked`] first thing in `main`.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::greeter::{Behaviour, Bound, Options, runtime};

/// The options of the servers, one on each line.
const SERVE: &str = "EQUIPOISE_RIG_SERVER";
/// The core to run on.
const CORE: &str = "EQUIPOISE_RIG_CORE";

/// A child process with one or more servers; killed and reaped when dropped.
#[derive(Debug)]
pub struct ServerProcess {
    /// Where the servers listen, in the order of their options.
    pub addresses: Vec<SocketAddr>,
    child: Child,
}

impl ServerProcess {
    /// One server; returns once it listens.
    pub fn start(options: &Options) -> Self {
        Self::start_all(std::slice::from_ref(options), None)
    }

    /// Several servers in one process, on `core` alone where one is given.
    pub fn start_all(options: &[Options], core: Option<usize>) -> Self {
        let binary = std::env::current_exe().expect("a running binary knows its path");
        Self::start_by(Command::new(binary), options, core)
    }

    /// One server in a network namespace that `ip netns` knows by this name.
    pub fn start_in(namespace: &str, options: &Options) -> Self {
        let binary = std::env::current_exe().expect("a running binary knows its path");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(binary);
        Self::start_by(command, std::slice::from_ref(options), None)
    }

    fn start_by(mut command: Command, options: &[Options], core: Option<usize>) -> Self {
        // Without the name of the crate, as the harness wants it. A bench ignores the arguments.
        let test = concat!(module_path!(), "::server_process");
        let test = test.split_once("::").map_or(test, |(_, test)| test);
        let options: Vec<String> = options.iter().map(Options::to_string).collect();
        command.args([test, "--exact", "--nocapture"]);
        command.env(SERVE, options.join("\n"));
        if let Some(core) = core {
            command.env(CORE, core.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().expect("the binary runs once more");
        let mut process = Self {
            addresses: Vec::new(),
            child,
        };
        process.addresses = process.listening();
        assert_eq!(
            process.addresses.len(),
            options.len(),
            "the server process died at its start"
        );
        process
    }

    /// Reads up to the line that says all servers listen; the harness writes lines of its own.
    fn listening(&mut self) -> Vec<SocketAddr> {
        let stdout = self.child.stdout.as_mut().expect("it was asked for");
        let mut addresses = Vec::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(address) = line.strip_prefix("LISTENING ") {
                addresses.push(address.parse().expect("the child writes an address"));
            }
            if line == "SERVING" {
                break;
            }
        }
        addresses
    }

    /// The address of the first server.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From now on its servers work, fail and speak of their health as these options say; the others stay as they are.
    pub fn tell(&self, options: &Options) {
        let mut stdin = self.child.stdin.as_ref().expect("it was asked for");
        writeln!(stdin, "{options}").expect("a child that runs reads");
    }

    /// `kill -9`, and waits until it is gone: its sockets are closed.
    pub fn kill(mut self) {
        self.reap();
    }

    /// SIGSTOP, and waits until it has stopped: the kernel still takes connections for it.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let stopped = waitid(WaitId::Pid(self.raw()), WaitIdOptions::STOPPED);
        stopped.expect("a child of ours stops");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM: GOAWAY, streams finish, and the process ends. [`ended`](Self::ended) waits for it.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(mut self) -> ExitStatus {
        let (pid, (end, ended)) = (self.raw(), oneshot::channel());
        // The thread only watches: should the wait be given up, the child is still ours to kill, and the
        // thread ends with it.
        thread::spawn(move || {
            let _ = end.send(waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            ));
        });
        ended
            .await
            .expect("the watching thread answers")
            .expect("it is our child");
        self.child.wait().expect("it is our child")
    }

    fn raw(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.raw(), signal).expect("a child that is not reaped takes signals");
    }

    fn reap(&mut self) {
        // Both fail only where the child has been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.reap();
    }
}

/// What the child runs; in the parent's own list of tests it returns at once.
#[cfg(test)]
#[test]
fn server_process() {
    serve_if_asked();
}

/// Serves until told to end and returns true, where this process was started to serve.
pub fn serve_if_asked() -> bool {
    let Ok(options) = std::env::var(SERVE) else {
        return false;
    };
    if let Ok(core) = std::env::var(CORE) {
        let core = core.parse().expect("the parent writes a number");
        pin(core).expect("the parent chose a core it may use");
    }
    let options = options
        .lines()
        .map(|line| line.parse().expect("the parent writes options"));
    runtime().block_on(serve(options.collect()));
    true
}

async fn serve(options: Vec<Options>) {
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
    let (drain, drained) = watch::channel(());
    let mut stdout = std::io::stdout();
    let mut servers = tokio::task::JoinSet::new();
    let mut behaviours = Vec::new();
    for options in options {
        let bound = Bound::bind(options).await;
        behaviours.push(bound.behaviour.clone());
        // The harness may have begun a line of its own.
        writeln!(stdout, "\nLISTENING {}", bound.address).expect("the parent reads");
        servers.spawn(bound.serve(drained.clone()));
    }
    obey_parent(behaviours);
    writeln!(stdout, "SERVING").expect("the parent reads");
    drop(drained);
    terminate.recv().await;
    drop(drain);
    servers.join_all().await;
}

/// The parent holds the other end of stdin: what it writes there is obeyed, and however it ends, the child goes too.
fn obey_parent(behaviours: Vec<watch::Sender<Behaviour>>) {
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let told: Options = line.parse().expect("the parent writes options");
            for behaviour in &behaviours {
                behaviour.send_replace(Behaviour::from(&told));
            }
        }
        std::process::exit(0);
    });
}

/// Keeps the current thread, and those it starts from now on, on one core.
pub fn pin(core: usize) -> std::io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}
