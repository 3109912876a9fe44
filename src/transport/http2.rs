//! The transport of this crate: HTTP/2 over TCP and Unix sockets, in plain text or on TLS, on the `h2` crate.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use h2::client::SendRequest;
use http::uri::{Authority, Scheme};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::body::ResponseBody;
use super::dial::{Socket, dial};
use super::driver::{Driver, NO_SETTINGS};
use super::keepalive::Keepalive;
use super::link::{Link, Order};
use super::meter::Metered;
use super::stream::Stream;
#[cfg(feature = "tls")]
use super::tls::{self, Credentials, Tls};
use super::wear::{RESETS_KEPT, RESETS_REMEMBERED};
use super::{CallError, Condition, Connection, Connector, Control, Outgoing, Slot, Slots, call};
use crate::endpoint::{Address, Endpoint};
use crate::error::{ConnectError, Error};

/// The largest window HTTP/2 knows, in bytes (RFC 9113 §6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// The smallest that HTTP/2 starts with; less would stall every message.
const WINDOW_MIN: u32 = (1 << 16) - 1;

/// Bookkeeping that small unread DATA frames may cost, in bytes. h2's own budget, half the connection's
/// window, lets one slow reader of a stream of tiny messages kill the whole connection. Not endless: it
/// bounds what a hostile server can make us remember.
const SMALL_FRAMES: usize = 64 << 20;

/// The largest header list accepted, in bytes; the 16 KiB of other gRPC implementations.
const HEADER_LIST: u32 = 16 << 10;

/// How [`Http2Connector`] makes its connections.
///
/// ```
/// use std::time::Duration;
///
/// use equipoise::transport::{Http2Connector, Http2Options};
///
/// let options = Http2Options::default()
///     .with_authority("greeter.prod.svc")?
///     .with_keepalive(Duration::from_secs(30), Duration::from_secs(5))?;
/// let connector = Http2Connector::new(options);
/// # let _ = connector;
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Http2Options {
    authority: Option<Authority>,
    // The target as written, where it is a name: what calls go under where there is no authority.
    target: Option<Authority>,
    keepalive: (Duration, Duration),
    keepalive_idle: bool,
    stream_window: u32,
    connection_window: u32,
    #[cfg(feature = "tls")]
    tls: Option<Arc<Credentials>>,
    // The name to check certificates for, where it is not the authority's host.
    #[cfg(feature = "tls")]
    host: Option<String>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            authority: None,
            target: None,
            keepalive: (Duration::from_secs(10), Duration::from_secs(20)),
            keepalive_idle: false,
            stream_window: 1 << 20,
            connection_window: 16 << 20,
            #[cfg(feature = "tls")]
            tls: None,
            #[cfg(feature = "tls")]
            host: None,
        }
    }
}

impl Http2Options {
    /// The `:authority` of every request that has none of its own. Default: the address dialled, and
    /// `localhost` for Unix sockets, as in gRPC. An error when it is no `host` or `host:port`.
    pub fn with_authority(mut self, authority: &str) -> Result<Self, Error> {
        self.authority = Some(parse_authority(authority)?);
        Ok(self)
    }

    /// Names the target: the `:authority` where there is no other, whichever address takes the call.
    pub(crate) fn with_target(mut self, written: &str) -> Result<Self, Error> {
        self.target = Some(parse_authority(written)?);
        Ok(self)
    }

    /// Asks by an HTTP/2 PING whether the server lives when calls are open and nothing was read for
    /// `interval`, and gives the connection up when nothing comes within `timeout`. At most two pings go
    /// out until a response makes progress or a new call opens: servers take more for abuse.
    ///
    /// Default 10 s and 20 s (gRPC's A8 and A18). Neither may be zero. An interval under 10 s makes
    /// pings out of the pauses of healthy calls; a long one finds dead servers late.
    pub fn with_keepalive(mut self, interval: Duration, timeout: Duration) -> Result<Self, Error> {
        for (name, value) in [("interval", interval), ("timeout", timeout)] {
            if value.is_zero() {
                return Err(Error::config(format!(
                    "keepalive {name} {value:?} must be more than zero"
                )));
            }
        }
        self.keepalive = (interval, timeout);
        Ok(self)
    }

    /// Sends keepalive pings on connections without open calls too, still at most two. Default off:
    /// grpc-go servers do not allow it unless told to.
    pub fn with_idle_keepalive(mut self) -> Self {
        self.keepalive_idle = true;
        self
    }

    /// How many bytes of responses a server may send ahead of what was read, per call and per
    /// connection.
    ///
    /// Default 1 MiB and 16 MiB: a single call fills a line of 1 Gbit/s at 8 ms, and several stalled
    /// readers do not block their neighbours. Range of both: 65,535 to 2^31 - 1, and no call more than
    /// the connection. Less slows large messages down; more costs memory for slow readers.
    pub fn with_windows(mut self, stream: u32, connection: u32) -> Result<Self, Error> {
        for (name, value) in [("stream", stream), ("connection", connection)] {
            if !(WINDOW_MIN..=WINDOW_MAX).contains(&value) {
                return Err(Error::config(format!(
                    "{name} window {value} is not in {WINDOW_MIN}..={WINDOW_MAX}"
                )));
            }
        }
        if stream > connection {
            return Err(Error::config(format!(
                "stream window {stream} is larger than the connection's {connection}"
            )));
        }
        self.stream_window = stream;
        self.connection_window = connection;
        Ok(self)
    }

    /// Secures every connection. Default: plaintext, as in tonic.
    ///
    /// The certificate of each server is checked for the host of [`with_authority`](Self::with_authority);
    /// without one, a [`Channel`](crate::Channel) checks for the host of its target, and a connector of its own
    /// refuses to dial.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or something in it or beside it cannot be used: see [`Tls`]. The error
    /// names the file and the rule.
    #[cfg(feature = "tls")]
    pub fn with_tls(mut self, tls: Tls) -> Result<Self, Error> {
        self.tls = Some(Credentials::load(tls)?);
        Ok(self)
    }

    /// Names the host of the target, which certificates are checked for where there is no authority.
    ///
    /// # Errors
    ///
    /// When neither is there to name the servers, or certificates cannot be for such a name.
    #[cfg(feature = "tls")]
    pub(crate) fn with_host(mut self, host: Option<&str>) -> Result<Self, Error> {
        self.host = host.map(str::to_owned);
        self.server_name()?;
        Ok(self)
    }

    #[cfg(feature = "tls")]
    pub(crate) fn is_secured(&self) -> bool {
        self.tls.is_some()
    }

    /// Whom a server must prove to be. Never what a resolver said of it.
    #[cfg(feature = "tls")]
    fn server_name(&self) -> Result<tls::ServerName<'static>, Error> {
        let named = self.authority.as_ref().map(Authority::host);
        let host = named.or(self.host.as_deref()).ok_or_else(|| {
            Error::config(
                "TLS: a list of addresses has no name to check certificates for; set an authority",
            )
        })?;
        tls::server_name(host)
    }

    fn scheme(&self) -> Scheme {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return Scheme::HTTPS;
        }
        Scheme::HTTP
    }

    /// What h2 is to speak on: the socket, secured where that was asked for.
    #[cfg_attr(
        not(feature = "tls"),
        expect(clippy::unused_async, reason = "only TLS waits")
    )]
    async fn secure(&self, socket: Socket, address: &Address) -> Result<Stream, ConnectError> {
        #[cfg(feature = "tls")]
        if let Some(credentials) = &self.tls {
            let name = self.server_name();
            let name = name.map_err(|e| ConnectError::new(format!("{address}: {e}")))?;
            let session = tls::handshake(credentials, name, address, socket).await?;
            return Ok(Stream::Tls(session));
        }
        #[cfg(not(feature = "tls"))]
        let _ = address;
        Ok(Stream::Plain(socket))
    }

    fn builder(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_max_send_streams(NO_SETTINGS)
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_header_list_size(HEADER_LIST)
            .enable_push(false)
            // Cancelling many calls, as hedging and short deadlines do, must not kill the others.
            .max_concurrent_reset_streams(RESETS_REMEMBERED)
            .reset_stream_duration(RESETS_KEPT)
            .max_local_error_reset_streams(None)
            .data_frame_budget(SMALL_FRAMES);
        builder
    }
}

/// Dials over TCP and Unix sockets and speaks HTTP/2, in plain text unless the options have TLS.
///
/// A connection is made when the server's SETTINGS were received, so that one which accepts and says
/// nothing never counts as ready. It must be used inside a tokio runtime with time and IO enabled.
#[derive(Clone, Debug, Default)]
pub struct Http2Connector {
    options: Arc<Http2Options>,
}

impl Http2Connector {
    /// A connector with these options; `default()` has the default ones.
    pub fn new(options: Http2Options) -> Self {
        Self {
            options: Arc::new(options),
        }
    }
}

impl Connector for Http2Connector {
    type Connection = Http2Connection;

    fn connect(
        &self,
        _endpoint: &Endpoint,
        address: &Address,
    ) -> BoxFuture<'static, Result<Http2Connection, ConnectError>> {
        connect(self.options.clone(), address.clone()).boxed()
    }
}

async fn connect(
    options: Arc<Http2Options>,
    address: Address,
) -> Result<Http2Connection, ConnectError> {
    let Ok(runtime) = Handle::try_current() else {
        let text = format!("{address}: dialling needs a tokio runtime");
        return Err(ConnectError::new(text));
    };
    let authority = authority(&options, &address)?;
    let socket = dial(&address).await?;
    let stream = options.secure(socket, &address).await?;
    let link = Arc::new(Link::new(address, options.scheme(), authority, runtime));
    let io = Metered::new(stream, link.clone());
    let handshake = options.builder().handshake(io).await;
    let (sender, h2) = handshake.map_err(|error| link.error(error))?;
    let (interval, timeout) = options.keepalive;
    let keepalive = Keepalive::new(interval, timeout, options.keepalive_idle);
    let mut driver = Driver::new(h2, sender.clone(), link.clone(), keepalive);
    poll_fn(|cx| driver.poll_settings(cx)).await?;
    link.runtime.spawn(driver);
    Ok(Http2Connection { sender, link })
}

fn parse_authority(text: &str) -> Result<Authority, Error> {
    text.parse()
        .map_err(|error| Error::config(format!("authority {text:?}: {error}")))
}

fn authority(options: &Http2Options, address: &Address) -> Result<Authority, ConnectError> {
    if let Some(authority) = options.authority.as_ref().or(options.target.as_ref()) {
        return Ok(authority.clone());
    }
    let text = match address {
        // Without the scope of a link-local address, which means nothing to the other side.
        Address::Tcp(to) => std::net::SocketAddr::new(to.ip(), to.port()).to_string(),
        Address::Unix(_) => "localhost".to_owned(),
    };
    text.parse().map_err(|error| {
        ConnectError::with_source(format!("{address}: no authority can be made of it"), error)
    })
}

/// A connection made by [`Http2Connector`].
///
/// Dropping it lets the calls on it finish, and then closes it with GOAWAY.
pub struct Http2Connection {
    sender: SendRequest<Bytes>,
    link: Arc<Link>,
}

impl Connection for Http2Connection {
    type Body = ResponseBody;

    fn call(
        &self,
        request: Outgoing,
        slot: Slot,
    ) -> impl Future<Output = Result<http::Response<ResponseBody>, CallError>> + Send + 'static
    {
        call::call(self.sender.clone(), self.link.clone(), request, slot)
    }

    fn slots(&self) -> &Arc<Slots> {
        &self.link.slots
    }

    fn condition(&self) -> watch::Receiver<Condition> {
        self.link.condition()
    }

    fn control(&self) -> Arc<dyn Control> {
        self.link.clone()
    }
}

impl Drop for Http2Connection {
    fn drop(&mut self) {
        self.link.tell(Order::Finish);
    }
}

impl fmt::Debug for Http2Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Connection")
            .field("address", &self.link.address)
            .field("slots", &self.link.slots)
            .field("condition", &*self.link.condition().borrow())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_name_value_and_rule() {
        let options = Http2Options::default;
        let second = Duration::from_secs(1);
        for (result, text) in [
            (options().with_authority("a b"), "authority \"a b\""),
            (
                options().with_keepalive(Duration::ZERO, second),
                "interval 0ns",
            ),
            (
                options().with_keepalive(second, Duration::ZERO),
                "timeout 0ns",
            ),
            (
                options().with_windows(65_534, 1 << 20),
                "stream window 65534 is not in 65535..=",
            ),
            (
                options().with_windows(1 << 20, 1 << 31),
                "connection window 2147483648",
            ),
            (
                options().with_windows(1 << 20, 1 << 19),
                "larger than the connection's 524288",
            ),
        ] {
            let error = result.unwrap_err();
            assert!(
                error.is_config() && error.to_string().contains(text),
                "{error}"
            );
        }
    }

    #[test]
    fn the_authority_is_the_option_or_the_address() {
        let of = |options: &Http2Options, address: &str| {
            authority(options, &address.parse().unwrap())
                .unwrap()
                .to_string()
        };
        let plain = Http2Options::default();
        assert_eq!(of(&plain, "127.0.0.1:80"), "127.0.0.1:80");
        assert_eq!(of(&plain, "[::1]:50051"), "[::1]:50051");
        assert_eq!(of(&plain, "unix:/x"), "localhost");
        let named = plain.with_authority("greeter:1").unwrap();
        assert_eq!(of(&named, "unix:/x"), "greeter:1");
    }

    #[test]
    fn without_a_runtime_connecting_is_an_error() {
        let address: Address = "127.0.0.1:1".parse().unwrap();
        let connecting =
            Http2Connector::default().connect(&Endpoint::new(address.clone()), &address);
        let error = connecting.now_or_never().unwrap().unwrap_err().to_string();
        assert!(error.contains("needs a tokio runtime"), "{error}");
    }
}
