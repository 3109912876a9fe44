//! The pure core in a virtual world: balancer, policies and loads as the channel uses them, with
//! simulated servers, faults, list changes, clients and clock. No sockets, no threads, no real time.
//!
//! * `swarm` runs a thousand worlds, each made by a seed; the seed is printed with every failure.
//! * `stories` are scenarios with a name and bounds in virtual time.
//!
//! `EQUIPOISE_SIM_SEED=7 cargo test --test sim swarm` replays world 7 and prints its trace when it fails;
//! `EQUIPOISE_SIM_SEEDS=20000` runs so many instead of 1,000; `EQUIPOISE_SIM_FIRST=1000` begins there.

mod checks;
mod judged;
mod plan;
mod stories;
mod swarm;
mod track;
mod wishes;
mod world;
