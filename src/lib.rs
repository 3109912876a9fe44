//! Client-side load balancing for gRPC: one [tonic] channel over many endpoints.
//!
//! A [`Channel`] keeps a connection to every endpoint of a target (or to those that its [`policy`] needs), knows which
//! of them are ready and how busy each one is, and sends every call to the one that should have it. Generated tonic
//! clients take it as their transport, unchanged, with interceptors or without.
//!
//! # Ten seconds
//!
//! ```
//! # mod greeter { pub struct GreeterClient<T>(T); impl<T> GreeterClient<T> { pub fn new(t: T) -> Self { Self(t) } } }
//! # use greeter::GreeterClient;
//! # fn main() -> Result<(), equipoise::Error> {
//! let channel = equipoise::Channel::builder("dns:///greeter.prod.svc:50051")?.build()?;
//! let mut client = GreeterClient::new(channel);
//! # Ok(()) }
//! ```
//!
//! # Ten minutes
//!
//! * *Which endpoints?* A [`Target`] names or lists them: every address of a name, [looked up](resolver::Dns)
//!   again and again, or a fixed list; or [`Channel::from_endpoints`] and
//!   [`set_endpoints`](Channel::set_endpoints), by hand; or a [`Resolver`](resolver::Resolver) of your own.
//! * *Which of them gets the call?* A [`policy`], [`Adaptive`](policy::Adaptive) unless you say otherwise: by the
//!   channel, the service or the method, and exchanged while the channel runs ([`Channel::set_policy`]).
//! * *The server knows better?* Tell the channel: [`Channel::report_load`].
//! * *For how long?* The call's own `grpc-timeout`, bounded by that of its method or service
//!   ([`MethodConfig`]), else by [`Builder::timeout`]: it covers waiting for an endpoint, every attempt, and the
//!   response's body.
//! * *And if none is ready?* The call waits while some endpoint is connecting, and fails at once when all
//!   have failed; with [`WaitForReady`] it waits on.
//! * *One call, another rule?* Request extensions: [`WaitForReady`], [`Override`], [`Avoid`], [`HashKey`].
//! * *What is going on?* [`Channel::endpoints`], [`Channel::state`], [`Channel::resolution`], the [`Served`]
//!   extension of a response,
//!   and `tracing` events under the target `equipoise` (a span per call under `equipoise::call`, at debug
//!   level). Bodies and metadata values are never logged.
//!
//! # A day
//!
//! Four traits: [`Policy`](policy::Policy) with its [`Picker`](policy::Picker) chooses endpoints,
//! [`Resolver`](resolver::Resolver) finds them, [`Connector`](transport::Connector) dials them
//! ([`BalanceLayer`] balances over any). The [`balancer`] underneath is a value without I/O that can be
//! driven by hand.
//!
//! # What a call can count on
//!
//! * It is sent only to an endpoint that has exchanged HTTP/2 settings with us, and that has room under its
//!   own limit of concurrent streams.
//! * A call that never reached a server (its connection broke before a byte was written, or the server said
//!   GOAWAY or REFUSED_STREAM) goes to another endpoint by itself. A call that may have reached a server is
//!   never sent twice.
//! * It ends by its deadline, with DEADLINE_EXCEEDED, whatever it was waiting for.
//! * Each way it can fail has one gRPC code, whatever features tonic is built with: the table is in
//!   [`transport`]. An answer that is not gRPC (a proxy's error page, say) is quoted in the error.
//! * Dropping it, at any point, cancels it at the server and frees what it held.
//!
//! # Features
//!
//! None is on by default: a plaintext channel builds nothing that it does not need.
//!
//! | feature | brings |
//! |---|---|
//! | `tls` | TLS by rustls, with a `rustls::ClientConfig` of your own |
//! | `tls-ring` | `tls`, with ring for its cryptography |
//! | `tls-aws-lc` | `tls`, with aws-lc-rs for its cryptography; where both are on, ring does the work |
//! | `tls-native-roots` | `tls`, trusting the certificates of the machine where none are named |
//! | `tls-webpki-roots` | `tls`, trusting Mozilla's list of them, as built in |
//! | `tonic-transport` | tonic's own channels as the connections of a [`BalanceLayer`] |
//!
//! [tonic]: https://docs.rs/tonic

#![warn(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::unwrap_used
)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
// Says on docs.rs which feature an item needs; only nightly has it.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod balancer;
mod channel;
mod classifier;
mod clock;
mod endpoint;
mod error;
pub mod load;
pub mod policy;
mod probe;
mod report;
pub mod resolver;
pub mod retry;
pub mod rng;
mod sync;
mod target;
mod timestamp;
pub mod transport;

#[cfg(feature = "__fuzz")]
#[doc(hidden)]
pub use channel::fuzzing;
pub use channel::{
    Avoid, BalanceLayer, Builder, Channel, EndpointStatus, MethodConfig, Override, Resolution,
    ResponseBody, Served, WaitForReady,
};
pub use classifier::{Blame, Classifier};
pub use endpoint::{Address, Connectivity, Endpoint, EndpointId};
pub use error::{ConnectError, Error, ResolveError};
pub use policy::{ClientIp, HashKey};
pub use probe::{HealthCheck, TcpCheck};
pub use report::{Completion, Health, LoadReport, Outcome, StatusCode, Unfit};
pub use target::Target;
pub use timestamp::Timestamp;
#[cfg(feature = "tls")]
pub use transport::Tls;
