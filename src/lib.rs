//! x

pub mod balancer;
// mod channel;
mod clock;
mod endpoint;
mod error;
pub mod load;
pub mod policy;
mod report;
pub mod resolver;
pub mod rng;
mod target;
mod timestamp;
pub mod transport;

pub use endpoint::{Address, Connectivity, Endpoint, EndpointId};
pub use error::{ConnectError, Error, ResolveError};
pub use report::{Completion, Outcome, StatusCode};
pub use target::Target;
pub use timestamp::Timestamp;
