//! What the benches over real sockets share: two cores, and statistics.

pub(crate) mod stats;

use rustix::thread::sched_getaffinity;

use crate::rig::process::pin;

/// Two cores: the servers' and, pinned to it from now on, this process's own. Ends the process with 2
/// where there are no two, as figures of a client and a server on one core mean nothing.
pub(crate) fn two_cores(bench: &str) -> usize {
    let allowed = sched_getaffinity(None).expect("a process may ask for its own cores");
    let count = usize::try_from(allowed.count()).unwrap_or(0);
    let mut cores = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
    let (Some(server), Some(client)) = (cores.next(), cores.next_back()) else {
        eprintln!("{bench}: two cores are needed, this process may use {count}");
        std::process::exit(2);
    };
    pin(client).expect("it is one of the cores this process may use");
    server
}

/// The runtime of the client: one thread, so that nothing else is in its CPU time.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime can be had")
}
