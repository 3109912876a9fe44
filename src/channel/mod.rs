//! Carry the call.
//!
//! The journey of one call: [`service`] takes the request; [`routes`] knows its policy and settings; [`call`] works out its deadline, picks an
//! endpoint from the published [`snapshot`], reserves a slot on one of its connections, or waits in the
//! line of [`waiters`]; the connection opens the stream; [`tracked`] follows the response to its end and
//! tells the endpoint's load how it went, with [`trailers`] for the server's word and [`foreign`] for answers
//! that are not gRPC's. The journey of one update: [`driver`] carries news from the
//! resolver and the connections to the balancer, and does what the balancer says.

mod bell;
mod builder;
mod call;
mod deadline;
mod driver;
mod extensions;
mod foreign;
#[cfg(feature = "__fuzz")]
pub mod fuzzing;
mod idle;
mod labels;
mod layer;
mod observe;
mod plan;
mod replay;
mod resolution;
mod routes;
mod service;
mod shared;
mod snapshot;
mod tracked;
mod trailers;
mod waiters;

pub use builder::Builder;
pub use extensions::{Avoid, Override, Served, WaitForReady};
pub use layer::BalanceLayer;
pub use observe::EndpointStatus;
pub use resolution::Resolution;
pub use routes::MethodConfig;
pub use service::Channel;
pub use tracked::ResponseBody;
