//! What the policies promise, over whole fleets: golden data, naive oracles, arbitrary sequences.

mod hash;
mod lab;
mod leader;
mod ops;
