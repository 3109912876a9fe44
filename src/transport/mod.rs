//! Carry bytes: one connection to one address, and one stream on it per call.
//!
//! [`Connector`] and [`Connection`] are the seam: [`Http2Connector`] is the transport of this crate, on
//! the `h2` crate; others can stand in its place, as `TonicConnector` (feature `tonic-transport`) does. A connector dials *one* address; which, when and how
//! often is the balancer's affair.
//!
#![doc = include_str!("failure.md")]

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::Authority;
use tokio::sync::watch;
use tonic::Status;

use crate::endpoint::{Address, Endpoint};
use crate::error::ConnectError;

mod body;
mod call;
mod calm;
mod dial;
mod driver;
mod failure;
mod greeting;
mod http2;
mod keepalive;
mod link;
mod meter;
mod options;
mod pump;
mod slots;
mod stream;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tonic-transport")]
mod tonic_channel;
mod wear;

pub use body::ResponseBody;
pub use failure::CallersOwn;
pub(crate) use failure::{Failure, Phase, outcome};
pub use http2::{Http2Connection, Http2Connector};
pub use options::Http2Options;
pub use slots::{Slot, Slots};
#[cfg(feature = "tls")]
pub use tls::Tls;
/// The TLS library, for configurations of one's own: [`Tls::from_config`] takes those of this version.
#[cfg(feature = "tls")]
pub use tokio_rustls::rustls;
#[cfg(feature = "tonic-transport")]
pub use tonic_channel::{TonicBody, TonicConnection, TonicConnector};

/// Dials one address.
///
/// One around another, to see what is dialled:
///
/// ```
/// use equipoise::transport::{Connector, Http2Connection, Http2Connector};
/// use equipoise::{Address, BalanceLayer, ConnectError, Endpoint};
/// use futures_util::future::BoxFuture;
/// use http::uri::Authority;
/// use tower_layer::Layer;
///
/// #[derive(Clone, Debug, Default)]
/// struct Loud(Http2Connector);
///
/// impl Connector for Loud {
///     type Connection = Http2Connection;
///
///     fn named(self, name: &Authority) -> Self {
///         Self(self.0.named(name))
///     }
///
///     fn connect(
///         &self,
///         endpoint: &Endpoint,
///         address: &Address,
///     ) -> BoxFuture<'static, Result<Http2Connection, ConnectError>> {
///         println!("dialling {address}");
///         self.0.connect(endpoint, address)
///     }
/// }
///
/// let layer = BalanceLayer::builder("static:10.0.0.1:50051")?.build()?;
/// let channel = layer.layer(Loud::default());
/// # Ok::<(), equipoise::Error>(())
/// ```
pub trait Connector: Clone + Debug + Send + Sync + 'static {
    /// What dialling gives.
    type Connection: Connection;

    /// The same for a channel whose target is a name, such as `greeter.prod.svc:50051`: its calls go under that
    /// `:authority`, unless the connector was set up with another. Asked once, before anything is dialled.
    ///
    /// The default leaves the connector as it is, and its calls under what it has. A connector around another
    /// hands the name on.
    fn named(self, name: &Authority) -> Self {
        let _ = name;
        self
    }

    /// Dials `address` of `endpoint`, and resolves when calls can be sent on the connection. The
    /// caller bounds it in time and drops it to give up.
    fn connect(
        &self,
        endpoint: &Endpoint,
        address: &Address,
    ) -> BoxFuture<'static, Result<Self::Connection, ConnectError>>;
}

/// One connection that takes calls.
///
/// Dropping it means no more calls will come: those under way go on to their end, then it closes.
pub trait Connection: Send + Sync + 'static {
    /// The body of a response. `Default` is an empty one (tonic's interceptors ask for it). An error that is the
    /// caller's own doing is marked by [`CallersOwn`].
    type Body: http_body::Body<Data = Bytes, Error = Status> + Default + Send + 'static;

    /// Sends a call in a slot reserved in [`slots`](Self::slots), at once, and resolves with the response's
    /// head.
    ///
    /// The body of the response holds the slot, and whatever else belongs to the call; dropping either
    /// future or body cancels the call.
    fn call(
        &self,
        request: Outgoing,
        slot: Slot,
    ) -> impl Future<Output = Result<http::Response<Self::Body>, CallError>> + Send + 'static;

    /// How many calls it can take.
    fn slots(&self) -> &Arc<Slots>;

    /// What has become of it. Changes are seen here at once, whether or not calls are made.
    fn condition(&self) -> watch::Receiver<Condition>;

    /// What its owner keeps of it for as long as it exists, without keeping it open.
    fn control(&self) -> Arc<dyn Control>;
}

/// A hold on a connection that outlives its use for calls.
pub trait Control: Send + Sync {
    /// Bytes written and read since it was made.
    fn traffic(&self) -> Traffic;

    /// Ends every call still on the connection with UNAVAILABLE and this reason, and closes it.
    fn abort(&self, reason: &str);
}

/// What has become of a connection. It only moves down this list.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Takes calls.
    Open,
    /// Takes calls still, and should be replaced: it is near a limit of its own (stream ids, the budget
    /// of local resets).
    Worn(&'static str),
    /// Takes no new calls: the server said GOAWAY. Those under way go on.
    Draining(ConnectError),
    /// Gone.
    Closed(ConnectError),
}

/// Bytes of one connection, as its socket had them: with TLS those of its handshakes and records too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes written.
    pub sent: u64,
    /// Bytes read.
    pub received: u64,
}

impl Traffic {
    /// Bytes written and read.
    pub fn total(&self) -> u64 {
        self.sent + self.received
    }
}

impl std::ops::Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            received: self.received + other.received,
        }
    }
}

/// A request on its way out, in a form that can be sent again as long as that is possible.
#[derive(Debug)]
pub struct Outgoing {
    /// Method, URI, headers and extensions, as the client made them; the scheme and the authority are
    /// the connection's to fill in. Boxed, since it is handed on and back for every call.
    pub head: Box<http::Request<()>>,
    /// What follows.
    pub payload: Payload,
}

/// The body of a request on its way out.
#[derive(Debug)]
pub enum Payload {
    /// Nothing was taken from it yet.
    Untouched(tonic::body::Body),
    /// The whole of it: one message of a unary or server-streaming call.
    Whole(Bytes),
}

/// Why a call has no response head, and whether it may go elsewhere.
#[derive(Debug)]
pub struct CallError {
    /// What the caller is told if it goes nowhere else.
    pub status: Status,
    /// Whether the server can have seen it.
    pub reached: Reached,
    /// The request, where it can be sent again: only with [`Reached::No`], [`Reached::LeftOut`] and [`Reached::Refused`].
    pub request: Option<Outgoing>,
}

/// Whether a server can have seen a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Not a byte of it left.
    No,
    /// The server ended the connection, and says that it did not come to this call any more (GOAWAY).
    LeftOut,
    /// The server turned it away unprocessed, and keeps the connection (REFUSED_STREAM).
    Refused,
    /// It may have been processed.
    Maybe,
    /// It failed by the caller's own doing: its request stream ended in an error, or its head cannot be sent.
    /// Not held against the endpoint.
    Local,
}
