//! The options of our transport's connections, each checked where it is set.

use std::future::Future;
use std::io;
use std::net::IpAddr;
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::uri::{Authority, Scheme};
use tokio::io::{AsyncRead, AsyncWrite};

use super::dial::{Dialler, Socket, TcpOptions, dial};
use super::driver::NO_SETTINGS;
use super::meter::Counted;
use super::stream::Stream;
#[cfg(feature = "tls")]
use super::tls::{self, Credentials, Tls};
use super::wear::{RESETS_KEPT, RESETS_REMEMBERED};
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

/// The largest header list accepted unless told otherwise, and what can be told, in bytes.
const HEADER_LIST: u32 = 16 << 10;
const HEADER_LIST_MIN: u32 = 1 << 10;
const HEADER_LIST_MAX: u32 = 16 << 20;

/// What a connection's age may be set to, and by which share of it chance lengthens or shortens it: that of gRPC's
/// connection backoff.
const AGE_MIN: Duration = Duration::from_secs(1);
const AGE_MAX: Duration = Duration::from_secs(365 * 86_400);
const AGE_SPREAD: f64 = 0.2;

/// gRPC's form of it: `grpc-`, the language, a variant, and the version of the library.
const AGENT: &str = concat!("grpc-rust-equipoise/", env!("CARGO_PKG_VERSION"));

/// How [`Http2Connector`](super::Http2Connector) makes its connections.
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
    pub(super) target: Option<Authority>,
    pub(super) keepalive: (Duration, Duration),
    pub(super) keepalive_idle: bool,
    age: Option<Duration>,
    stream_window: u32,
    connection_window: u32,
    pub(super) user_agent: HeaderValue,
    header_list: u32,
    tcp: TcpOptions,
    dialler: Option<Dialler>,
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
            age: None,
            stream_window: 1 << 20,
            connection_window: 16 << 20,
            user_agent: HeaderValue::from_static(AGENT),
            header_list: HEADER_LIST,
            tcp: TcpOptions::default(),
            dialler: None,
            #[cfg(feature = "tls")]
            tls: None,
            #[cfg(feature = "tls")]
            host: None,
        }
    }
}

impl Http2Options {
    /// The `:authority` of every request that has none of its own. Default: the target of the channel where it
    /// is a name, else the address dialled, and `localhost` for Unix sockets, as in gRPC. An error when it is no `host` or `host:port`.
    pub fn with_authority(mut self, authority: &str) -> Result<Self, Error> {
        self.authority = Some(parse_authority(authority)?);
        Ok(self)
    }

    /// Asks by an HTTP/2 PING whether the server lives when calls are open and nothing was read for
    /// `interval`, and gives the connection up when nothing comes within `timeout`. At most two pings go
    /// out until a response makes progress or a new call opens: servers take more for abuse.
    ///
    /// A server that ends a connection with GOAWAY too_many_pings is asked half as often on the connector's next
    /// connections to that address, and so on up to every two hours (as A8 asks); a warning is logged.
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

    /// How long a connection is used before another takes its place, give or take a fifth, by chance, so that the
    /// clients of a fleet do not all reconnect at once. The other is made first; calls under way on the old one go on to
    /// their end, and none fails for it.
    ///
    /// Default: no limit. From 1 s to 365 days. For servers behind one address that balances by connections (a
    /// Kubernetes ClusterIP, a load balancer in TCP mode): there a client keeps the server that it got first, and one
    /// that joins later gets nothing. Minutes are enough; each turn costs a connection, and a handshake with TLS.
    pub fn with_max_connection_age(mut self, age: Duration) -> Result<Self, Error> {
        if !(AGE_MIN..=AGE_MAX).contains(&age) {
            return Err(Error::config(format!(
                "max connection age {age:?} is not in 1s..=365d"
            )));
        }
        self.age = Some(age);
        Ok(self)
    }

    /// The age of one connection, by chance in `0.0..1.0`.
    pub(super) fn draw_age(&self, chance: f64) -> Option<Duration> {
        let share = 1.0 + AGE_SPREAD * (2.0 * chance - 1.0);
        self.age.map(|age| age.mul_f64(share))
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

    /// Puts `prefix` before the `user-agent` of every request that has none of its own:
    /// `<prefix> grpc-rust-equipoise/<version>`. Default: no prefix. gRPC asks every client to say who it is
    /// (PROTOCOL-HTTP2.md, "User Agents"). An error when it is empty or not of visible ASCII and blanks.
    pub fn with_user_agent(mut self, prefix: &str) -> Result<Self, Error> {
        let wrong = |rule| Error::config(format!("user agent {prefix:?} {rule}"));
        let prefix = prefix.trim();
        if prefix.is_empty() {
            return Err(wrong("is empty"));
        }
        if !prefix.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(wrong("is not visible ASCII"));
        }
        self.user_agent = HeaderValue::try_from(format!("{prefix} {AGENT}"))
            .map_err(|_| wrong("is no header value"))?;
        Ok(self)
    }

    /// The largest list of headers or trailers taken from a server, in bytes: names, values and 32 for each
    /// entry (RFC 9113 §6.5.2). The server is told. A call whose response's head has more ends INTERNAL; of longer
    /// trailers the entries that no longer fit are left out.
    ///
    /// Default 16 KiB, as other gRPC libraries have it (tonic's Endpoint leaves it to hyper, which takes
    /// the same). Range 1 KiB to 16 MiB. Less cuts off servers that send much metadata or long error
    /// details; each open call may cost that much memory.
    pub fn with_max_header_list(mut self, bytes: u32) -> Result<Self, Error> {
        if !(HEADER_LIST_MIN..=HEADER_LIST_MAX).contains(&bytes) {
            return Err(Error::config(format!(
                "header list of {bytes} bytes is not in {HEADER_LIST_MIN}..={HEADER_LIST_MAX}"
            )));
        }
        self.header_list = bytes;
        Ok(self)
    }

    /// The address that TCP connections leave from, as tonic's `Endpoint::local_address`. Default: the
    /// system chooses. One of each family may be given, by two calls; connecting to an address of a family
    /// that has none is then an error, rather than a connection from an address that nobody chose. Unix
    /// sockets have none. An error when it is unspecified, multicast or broadcast.
    pub fn with_local_address(mut self, address: IpAddr) -> Result<Self, Error> {
        self.tcp.set_local(address)?;
        Ok(self)
    }

    /// Whether small writes leave at once (TCP_NODELAY) rather than wait for acknowledgements. Default true, as
    /// in tonic: calls are small, and h2 gathers what belongs together itself.
    pub fn with_tcp_nodelay(mut self, nodelay: bool) -> Self {
        self.tcp.nodelay = nodelay;
        self
    }

    /// How the kernel asks a silent peer whether it is there: after `time` without a byte, each `interval`,
    /// giving up after `retries` questions. The last two work on Linux, macOS and Windows.
    ///
    /// Default 20 s, 5 s and 4 (tonic has it off; gRPC's A18 gives the 20 s). Times in whole seconds from 1 s
    /// to 32,767 s, retries from 1 to 127: what Linux takes. It keeps entries of NATs and firewalls alive
    /// and finds dead peers of idle connections; [`with_keepalive`](Self::with_keepalive) asks the server
    /// itself.
    pub fn with_tcp_keepalive(
        mut self,
        time: Duration,
        interval: Duration,
        retries: u32,
    ) -> Result<Self, Error> {
        self.tcp.set_keepalive(time, interval, retries)?;
        Ok(self)
    }

    /// Lets the kernel ask nothing of silent peers.
    pub fn without_tcp_keepalive(mut self) -> Self {
        self.tcp.keepalive = None;
        self
    }

    /// How long sent data may stay unacknowledged before the kernel gives the connection up
    /// (TCP_USER_TIMEOUT; Linux only).
    ///
    /// Default 20 s (gRPC's A18; tonic leaves it to the system, about 15 minutes). From 1 ms to 24 h. It
    /// also bounds how long unanswered [TCP keepalive](Self::with_tcp_keepalive) goes on.
    pub fn with_tcp_user_timeout(mut self, timeout: Duration) -> Result<Self, Error> {
        self.tcp.set_user_timeout(timeout)?;
        Ok(self)
    }

    /// Makes the byte streams in place of our own TCP and Unix sockets: for proxies, pipes in memory, vsock.
    ///
    /// It is given the endpoint and which of its addresses is tried, and is dropped when the connect budget
    /// is used up. The options of TCP and the local address are its own affair.
    ///
    /// ```
    /// use equipoise::transport::Http2Options;
    /// use equipoise::{Address, Endpoint};
    /// use tokio::net::TcpStream;
    ///
    /// // Everything through a tunnel that listens at one place.
    /// let options = Http2Options::default().with_dialler(|_: &Endpoint, address: &Address| {
    ///     println!("dialling {address} through the tunnel");
    ///     TcpStream::connect("127.0.0.1:7000")
    /// });
    /// # let _ = options;
    /// ```
    pub fn with_dialler<F, D, S>(mut self, dial: F) -> Self
    where
        F: Fn(&Endpoint, &Address) -> D + Send + Sync + 'static,
        D: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.dialler = Some(Dialler::new(dial));
        self
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

    /// What calls to `address` go under.
    pub(super) fn authority(&self, address: &Address) -> Result<Authority, ConnectError> {
        match self.authority.as_ref().or(self.target.as_ref()) {
            Some(authority) => Ok(authority.clone()),
            None => authority_of(address),
        }
    }

    /// A socket to `address`, by the user's dialler or by ours.
    pub(super) async fn dial(
        &self,
        endpoint: &Endpoint,
        address: &Address,
    ) -> Result<Socket, ConnectError> {
        match &self.dialler {
            Some(dialler) => dialler.dial(endpoint, address).await,
            None => dial(address, &self.tcp).await,
        }
    }

    pub(super) fn scheme(&self) -> Scheme {
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
    pub(super) async fn secure(
        &self,
        socket: Counted<Socket>,
        address: &Address,
    ) -> Result<Stream, ConnectError> {
        #[cfg(feature = "tls")]
        if let Some(credentials) = &self.tls {
            let name = self.server_name();
            let name = name.map_err(|e| ConnectError::new(format!("{address}: {e}")))?;
            let session = tls::handshake(credentials, name, address, socket).await?;
            return Ok(Stream::Tls(Box::new(tls::Secured::new(session))));
        }
        #[cfg(not(feature = "tls"))]
        let _ = address;
        Ok(Stream::Plain(socket))
    }

    pub(super) fn builder(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_max_send_streams(NO_SETTINGS)
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_header_list_size(self.header_list)
            .enable_push(false)
            // Cancelling many calls, as hedging and short deadlines do, must not kill the others.
            .max_concurrent_reset_streams(RESETS_REMEMBERED)
            .reset_stream_duration(RESETS_KEPT)
            .max_local_error_reset_streams(None)
            .data_frame_budget(SMALL_FRAMES);
        builder
    }
}

fn parse_authority(text: &str) -> Result<Authority, Error> {
    text.parse()
        .map_err(|error| Error::config(format!("authority {text:?}: {error}")))
}

/// The authority of an address that has no better name.
pub(super) fn authority_of(address: &Address) -> Result<Authority, ConnectError> {
    let text = match address {
        // Without the scope of a link-local address, which means nothing to the other side.
        Address::Tcp(to) => std::net::SocketAddr::new(to.ip(), to.port()).to_string(),
        Address::Unix(_) => "localhost".to_owned(),
    };
    text.parse().map_err(|error| {
        ConnectError::with_source(format!("{address}: no authority can be made of it"), error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_name_value_and_rule() {
        let options = Http2Options::default;
        let second = Duration::from_secs(1);
        let local = |ip: &str| options().with_local_address(ip.parse().unwrap());
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
            (
                options().with_max_connection_age(Duration::from_millis(999)),
                "max connection age 999ms is not in 1s..=365d",
            ),
            (
                options().with_max_connection_age(Duration::MAX),
                "is not in 1s..=365d",
            ),
            (options().with_user_agent(" "), "user agent \" \" is empty"),
            (options().with_user_agent("a\nb"), "is not visible ASCII"),
            (
                options().with_max_header_list(1_023),
                "header list of 1023 bytes is not in 1024..=16777216",
            ),
            (
                options().with_max_header_list(u32::MAX),
                "header list of 4294967295",
            ),
            (
                options().with_tcp_keepalive(Duration::ZERO, second, 1),
                "tcp keepalive time 0ns is not in 1s..=32767s",
            ),
            (
                options().with_tcp_keepalive(second, second * 32_768, 1),
                "tcp keepalive interval 32768s",
            ),
            (
                options().with_tcp_keepalive(second, second, 128),
                "tcp keepalive retries 128 is not in 1..=127",
            ),
            (
                options().with_tcp_user_timeout(Duration::ZERO),
                "tcp user timeout 0ns is not in 1ms..=24h",
            ),
            (local("0.0.0.0"), "local address 0.0.0.0 is not"),
            (local("::"), "local address :: is not"),
            (local("224.0.0.1"), "of one host"),
            (local("255.255.255.255"), "of one host"),
        ] {
            let error = result.unwrap_err();
            assert!(
                error.is_config() && error.to_string().contains(text),
                "{error}"
            );
        }
    }

    #[test]
    fn ages_are_a_fifth_apart_from_what_was_asked_for_at_the_most() {
        let minute = Http2Options::default().with_max_connection_age(Duration::from_secs(60));
        let minute = minute.unwrap();
        let drawn = [0.0, 0.5, 0.999_999].map(|chance| minute.draw_age(chance).unwrap());
        assert_eq!(drawn.map(|age| age.as_secs()), [48, 60, 71]);
        assert_eq!(Http2Options::default().draw_age(0.5), None);
    }

    #[test]
    fn the_authority_is_the_option_or_the_address() {
        let of = |options: &Http2Options, address: &str| {
            options
                .authority(&address.parse().unwrap())
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
}
