//! tonic's own channels as connections: what a user of `tonic::transport::Endpoint` has set up goes on working.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use http::HeaderValue;
use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tonic::transport::Endpoint as TonicEndpoint;

use super::dial::{Dialler, Probes, TcpOptions, dial};
use super::link::Link;
use super::options::authority_of;
use super::wear::{RESETS_KEPT, RESETS_REMEMBERED};
use super::{Condition, Connector};
use crate::endpoint::{Address, Endpoint};
use crate::error::{ConnectError, Error};

mod connection;
mod errors;
mod guard;
mod peek;
mod upload;

pub use connection::{TonicBody, TonicConnection};

use errors::chain;
use guard::{Guarded, Once};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Configure = dyn Fn(TonicEndpoint) -> Result<TonicEndpoint, BoxError> + Send + Sync;

/// Dials as `tonic::transport::Endpoint` is set up, with a `tonic::transport::Channel` for each connection.
///
/// For those who have such a set-up (TLS, windows, keepalive, a rate limit) and want it balanced. Who begins anew is
/// better served by [`Http2Connector`](super::Http2Connector): it costs less processor time per call and sees
/// more.
///
/// # Coming from `balance_list`
///
/// ```no_run
/// use equipoise::BalanceLayer;
/// use equipoise::transport::TonicConnector;
/// use tower_layer::Layer;
///
/// // let endpoints = ["http://10.0.0.1:50051", "http://10.0.0.2:50051"].map(Endpoint::from_static);
/// // let channel = Channel::balance_list(endpoints.into_iter());
/// let layer = BalanceLayer::builder("static:10.0.0.1:50051,10.0.0.2:50051")?.build()?;
/// let channel = layer.layer(TonicConnector::new(|endpoint| endpoint.tcp_nodelay(true)));
/// # Ok::<(), equipoise::Error>(())
/// ```
///
/// # An existing endpoint, and TLS
///
/// An endpoint that is set up already serves as the pattern for all, by `TonicConnector::from`. Its URI gives the
/// scheme, the `:authority` and the name that TLS verifies; which address is dialled is the balancer's affair.
///
/// ```
/// use equipoise::transport::TonicConnector;
/// use tonic::transport::Endpoint;
///
/// let endpoint = Endpoint::from_static("https://greeter.prod.svc")
///     .user_agent("shop/2.1")?
///     .keep_alive_while_idle(true);
/// // With TLS: endpoint.tls_config(ClientTlsConfig::new().ca_certificate(ca))?
/// let connector = TonicConnector::from(endpoint);
/// # let _ = connector;
/// # Ok::<(), tonic::transport::Error>(())
/// ```
///
/// **This is the only way to TLS.** tonic ignores `tls_config` on an endpoint whose URI does not begin with
/// `https://`, and those that [`new`](Self::new) and [`try_new`](Self::try_new) hand out begin with `http://`: with
/// `try_new(|endpoint| endpoint.tls_config(tls))` every call goes out **in plain text**, and nothing says so.
///
/// # What holds as with `Http2Connector`
///
/// * tonic gets one socket per connection and never a second: it does not connect behind the balancer's back. A
///   lost connection is seen at once, without a call, and made anew with the balancer's backoff.
/// * Without TLS, a connection is made when the server's SETTINGS were received; its stream limit is kept; GOAWAY
///   takes the connection out of use at once.
/// * A call that hyper had not begun to send, or that the server says it did not process, goes elsewhere. Deadlines,
///   cancelling, in-flight counts to the end of the stream, draining and byte counts are the same. Errors are
///   read from the chain of sources and follow the same table of codes.
///
/// # What is lost against it
///
/// * Under tonic's TLS nothing of the server's frames can be seen. A connection is made when the handshake is, and
///   takes [100 calls](Self::with_max_streams) at a time; a GOAWAY is noticed by the first call after it, which
///   then goes elsewhere.
/// * Whether a call that broke with its connection was written at all is known less often: other calls' bytes count
///   against it. It is then not sent again.
/// * A stream that the server resets with CANCEL or NO_ERROR after its response began looks like one that ended
///   without a status: hyper hides the difference.
/// * An upload that waits for the server's window when its call is cancelled goes on waiting: hyper asks for nothing
///   else then. Its stream stays open and its slot taken until the server opens the window, resets the stream or
///   the connection ends. `Http2Connector` resets it at once.
/// * Keepalive pings are hyper's, off unless set, and not limited in number: a short interval earns GOAWAY
///   `too_many_pings` from servers that enforce gRPC's rule.
/// * The request's own authority is replaced by that of the endpoint, and tonic adds its name to the `user-agent`.
/// * An endpoint's `local_address` cannot be read from outside of tonic: use
///   [`with_local_address`](Self::with_local_address). A connector given to `connect_with_connector` becomes
///   [`with_dialler`](Self::with_dialler). Of an endpoint's `connect_timeout` and the builder's, the shorter holds.
#[derive(Clone)]
pub struct TonicConnector {
    configure: Arc<Configure>,
    name: Option<Authority>,
    streams: Option<u32>,
    tcp: TcpOptions,
    dialler: Option<Dialler>,
}

impl TonicConnector {
    /// Sets up the endpoint made for each address, which comes with this crate's values for TCP keepalive and for
    /// what h2 remembers of cancelled calls, and for the rest with tonic's. Its URI is `http://<address>`, or
    /// `http://<name>` where the target of the channel is a name: what calls go under.
    ///
    /// Never in TLS: tonic ignores a `tls_config` on an `http://` endpoint and connects in plain text. For TLS
    /// use [`TonicConnector::from`](#method.from) with an `https://` endpoint.
    pub fn new(configure: impl Fn(TonicEndpoint) -> TonicEndpoint + Send + Sync + 'static) -> Self {
        Self::over(move |endpoint| Ok(configure(endpoint)))
    }

    /// The same where setting up can fail: the attempt to connect then fails with that error, and is made again
    /// after the backoff. Not for `tls_config`, which has no effect here either; see [`new`](Self::new).
    ///
    /// ```
    /// use equipoise::transport::TonicConnector;
    ///
    /// let connector = TonicConnector::try_new(|endpoint| endpoint.user_agent("shop/2.1"));
    /// # let _ = connector;
    /// ```
    pub fn try_new<E: Into<BoxError>>(
        configure: impl Fn(TonicEndpoint) -> Result<TonicEndpoint, E> + Send + Sync + 'static,
    ) -> Self {
        Self::over(move |endpoint| configure(endpoint).map_err(Into::into))
    }

    fn over(
        configure: impl Fn(TonicEndpoint) -> Result<TonicEndpoint, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            configure: Arc::new(configure),
            name: None,
            streams: None,
            tcp: TcpOptions::default(),
            dialler: None,
        }
    }

    /// The most calls at a time on one connection; more wait in the channel's line, or go to another endpoint.
    ///
    /// Default: the server's own limit, and 100 where TLS hides it (RFC 9113 §6.5.2 advises servers to allow no
    /// fewer). From 1 to 2^31 - 1. Above what the server allows, calls are held inside hyper, out of sight.
    ///
    /// # Errors
    ///
    /// When it is out of range.
    pub fn with_max_streams(mut self, calls: u32) -> Result<Self, Error> {
        const MOST: u32 = (1 << 31) - 1;
        if !(1..=MOST).contains(&calls) {
            return Err(Error::config(format!(
                "max streams {calls} is not in 1..={MOST}"
            )));
        }
        self.streams = Some(calls);
        Ok(self)
    }

    /// The address that TCP connections leave from; see
    /// [`Http2Options::with_local_address`](super::Http2Options::with_local_address).
    ///
    /// # Errors
    ///
    /// When it is unspecified, multicast or broadcast.
    pub fn with_local_address(mut self, address: IpAddr) -> Result<Self, Error> {
        self.tcp.set_local(address)?;
        Ok(self)
    }

    /// Makes the byte streams in place of our own sockets; see
    /// [`Http2Options::with_dialler`](super::Http2Options::with_dialler).
    pub fn with_dialler<F, D, S>(mut self, dial: F) -> Self
    where
        F: Fn(&Endpoint, &Address) -> D + Send + Sync + 'static,
        D: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.dialler = Some(Dialler::new(dial));
        self
    }

    async fn attempt(
        self,
        endpoint: Endpoint,
        address: Address,
    ) -> Result<TonicConnection, ConnectError> {
        let Ok(runtime) = Handle::try_current() else {
            let text = format!("{address}: dialling needs a tokio runtime");
            return Err(ConnectError::new(text));
        };
        let failed = |error: &BoxError| {
            ConnectError::new(format!("{address}: endpoint: {}", chain(error.as_ref())))
        };
        let authority = match &self.name {
            Some(name) => name.clone(),
            None => authority_of(&address)?,
        };
        let plain = TonicEndpoint::from_shared(format!("http://{authority}"))
            .map_err(|error| failed(&error.into()))?;
        let pattern = (self.configure)(preset(plain)).map_err(|error| failed(&error))?;
        let patience = pattern.get_connect_timeout();
        let connecting = self.connect(runtime, &pattern, &endpoint, &address);
        match patience {
            None => connecting.await,
            Some(patience) => match tokio::time::timeout(patience, connecting).await {
                Ok(result) => result,
                Err(_) => Err(ConnectError::new(format!(
                    "{address}: not connected within the {patience:?} of its endpoint"
                ))),
            },
        }
    }

    async fn connect(
        &self,
        runtime: Handle,
        pattern: &TonicEndpoint,
        endpoint: &Endpoint,
        address: &Address,
    ) -> Result<TonicConnection, ConnectError> {
        let uri = pattern.uri();
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(ConnectError::new(format!(
                "{address}: endpoint: its uri {uri} has no scheme or no authority"
            )));
        };
        let socket = match &self.dialler {
            Some(dialler) => dialler.dial(endpoint, address).await?,
            None => dial(address, &tcp_of(pattern, &self.tcp)).await?,
        };
        // tonic writes scheme, authority and user agent itself.
        let (scheme, authority) = (scheme.clone(), authority.clone());
        let agent = HeaderValue::from_static("tonic");
        let link = Link::new(address.clone(), scheme, authority, agent, runtime);
        let link = Arc::new(link);
        let (io, hearing) = Guarded::new(socket, link.clone(), self.streams);
        let connected = pattern.connect_with_connector(Once::new(io)).await;
        let channel = connected.map_err(|error| link.error(chain(&error)))?;
        if hearing.await.is_err() {
            let reason = link.lost().map_or_else(String::new, ToString::to_string);
            let prefix = format!("{address}: ");
            let cause = reason.strip_prefix(&prefix).unwrap_or(&reason);
            return Err(link.error(format_args!("no HTTP/2 settings: {cause}")));
        }
        match &*link.condition().borrow() {
            Condition::Open | Condition::Worn(_) => {}
            Condition::Draining(why) | Condition::Closed(why) => return Err(why.clone()),
        }
        Ok(TonicConnection::new(channel, link))
    }
}

/// What an endpoint of ours has that tonic's own has not.
fn preset(endpoint: TonicEndpoint) -> TonicEndpoint {
    let probes = TcpOptions::default().keepalive;
    endpoint
        .tcp_keepalive(probes.map(|probes| probes.time))
        .tcp_keepalive_interval(probes.and_then(|probes| probes.interval))
        .tcp_keepalive_retries(probes.and_then(|probes| probes.retries))
        // Cancelling many calls must not kill the others.
        .http2_max_concurrent_reset_streams(RESETS_REMEMBERED)
        .http2_reset_stream_duration(RESETS_KEPT)
        .http2_max_local_error_reset_streams(None)
}

/// What an endpoint of tonic's asks of its socket, and `ours` for the rest.
fn tcp_of(endpoint: &TonicEndpoint, ours: &TcpOptions) -> TcpOptions {
    let mut tcp = ours.clone();
    tcp.nodelay = endpoint.get_tcp_nodelay();
    tcp.keepalive = endpoint.get_tcp_keepalive().map(|time| Probes {
        time,
        interval: endpoint.get_tcp_keepalive_interval(),
        retries: endpoint.get_tcp_keepalive_retries(),
    });
    tcp
}

/// With this endpoint as the pattern for all addresses.
impl From<TonicEndpoint> for TonicConnector {
    fn from(endpoint: TonicEndpoint) -> Self {
        Self::over(move |_| Ok(endpoint.clone()))
    }
}

impl Connector for TonicConnector {
    type Connection = TonicConnection;

    /// Goes into the URI of the endpoints that [`new`](Self::new) hands out; one that exists keeps its own.
    fn named(mut self, name: &Authority) -> Self {
        self.name = Some(name.clone());
        self
    }

    fn connect(
        &self,
        endpoint: &Endpoint,
        address: &Address,
    ) -> BoxFuture<'static, Result<TonicConnection, ConnectError>> {
        self.clone()
            .attempt(endpoint.clone(), address.clone())
            .boxed()
    }
}

impl fmt::Debug for TonicConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TonicConnector")
            .field("streams", &self.streams)
            .field("tcp", &self.tcp)
            .field("dialler", &self.dialler)
            .finish_non_exhaustive()
    }
}
