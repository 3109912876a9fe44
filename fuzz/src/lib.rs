//! The bodies of the fuzz targets, which the tests of the crate replay the corpora through.

#[path = "../../tests/fuzz/bodies/mod.rs"]
pub mod bodies;
// Its tests are not built here, and what only they use is used by nobody.
#[allow(dead_code, unused_imports)]
#[path = "../../tests/policies/ops.rs"]
pub mod ops;

mod leader {
    pub(crate) use crate::leader_policy as policy;
}
#[allow(dead_code)]
#[path = "../../examples/leader/policy.rs"]
mod leader_policy;
