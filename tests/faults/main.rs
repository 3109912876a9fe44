//! The rows of the fault matrix that need real sockets, one file for each group of rows.
//!
//! Each row stands beside its negative control: the same fault against stock tonic or tower, which shows
//! that the rig really makes the fault and that the ledger sees it.

mod b;
mod balanced;
mod d;
mod g;
mod h;
mod h10;
mod h16;
mod h17;
mod lifecycle;
mod n;
mod rig_itself;

#[path = "../rig/frames.rs"]
mod frames;
#[path = "../rig/mod.rs"]
mod rig;

use std::net::SocketAddr;
use std::time::Duration;

use rig::greeter::Options;
use rig::ledger::{Call, Ledger};
use rig::process::ServerProcess;
use tonic::Code;

/// Three servers, each a process of its own, that write to one ledger.
struct Fleet {
    ledger: Ledger,
    options: Vec<Options>,
    servers: Vec<Option<ServerProcess>>,
}

impl Fleet {
    /// `b1`, `b2` and `b3`, which take `work` for a call.
    fn start(work: Duration) -> Self {
        Self::of(Options::three(work).into())
    }

    /// A process for each of the options.
    fn of(mut options: Vec<Options>) -> Self {
        let ledger = Ledger::create();
        let mut servers = Vec::new();
        for options in &mut options {
            options.ledger = Some(ledger.path().into());
            let server = ServerProcess::start(options);
            // It comes back at the same place.
            options.listen = server.address();
            servers.push(Some(server));
        }
        Self {
            ledger,
            options,
            servers,
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.options.iter().map(|options| options.listen).collect()
    }

    /// `kill -9`.
    fn kill(&mut self, index: usize) {
        self.servers[index].take().expect("it runs").kill();
    }

    /// SIGTERM, and waits for the end.
    async fn terminate(&mut self, index: usize) {
        let server = self.servers[index].take().expect("it runs");
        server.terminate();
        assert!(server.ended().await.success());
    }

    /// Starts a server again that was killed or terminated.
    fn restart(&mut self, index: usize) {
        self.servers[index] = Some(ServerProcess::start(&self.options[index]));
    }
}

/// How many of the calls from `first` on did not end with OK.
fn failed_from(calls: &[Call], first: u64) -> usize {
    let failed = |call: &&Call| call.end.as_ref().is_none_or(|end| end.code != Code::Ok);
    calls
        .iter()
        .filter(|call| call.id >= first)
        .filter(failed)
        .count()
}
