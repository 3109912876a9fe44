//! The rig of the tests that use real sockets: real servers, a load, and a ledger that cannot be fooled.
//!
//! Mounted by each test binary and each bench with `#[path = "../rig/mod.rs"] mod rig;`. Nothing here
//! knows a balancer: a client is anything that [`load::Client`] describes.

// Each binary that mounts the rig uses its own part of it. The rig's own tests are in `tests/faults`.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod clean;
pub mod delay;
pub mod greeter;
pub mod health;
pub mod holes;
pub mod inside;
pub mod ledger;
pub mod load;
pub mod middlebox;
pub mod names;
pub mod narrow;
pub mod process;
pub mod rivals;
pub mod timer;
pub mod tls;
pub mod trailers;

use std::time::Duration;

/// The monotonic clock of the machine: one time for all processes of a test.
pub fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).expect("the monotonic clock starts at zero")
}
