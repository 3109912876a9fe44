//! Fault rows.
#[path = "../rig/mod.rs"]
mod rig;
