//! The rig's own tests. They are here, and not in the rig, so that they run in this binary alone, and
//! not beside the tests of every binary that mounts it.

mod clean;
mod delay;
mod greeter;
mod holes;
mod ledger;
mod load;
mod narrow;
mod process;
