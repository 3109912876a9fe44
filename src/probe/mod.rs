//! How do they say they are?
//!
//! A [`HealthCheck`] is what a channel asks of each server it is connected to: a stream of [`Health`], for as long as
//! the connection lasts. What follows from the answers is the balancer's affair.

mod pace;
mod tcp;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt};
use tokio::sync::watch::Receiver;

use crate::balancer::{Backoff, HealthSource};
use crate::endpoint::Address;
use crate::error::Error;
use crate::report::Health;
use crate::transport::{Condition, Connection};

/// What the interval of a [`TcpCheck`] may be: a shorter one is load rather than a check.
const INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(86_400);

/// How each server is asked whether it can take calls. One that cannot gets none, though it is connected.
///
/// The default asks it by gRPC's health service, `grpc.health.v1.Health/Watch`, about the server as a whole: the
/// answer comes at once and again with each change, over the connection that carries the calls (gRFC A17). Until it
/// comes, no call is sent to the server.
///
/// * A server without a health service counts as healthy, and a warning is logged.
/// * Any answer but SERVING means no calls from the next moment on. So does the end of the answers; then they are
///   asked for again, at once and then with growing pauses.
/// * A server that flaps gets calls again when it has been well for up to 4 s.
/// * The question takes one of the streams that the server allows on a connection. One that allows a single stream is
///   not asked, and counts as healthy.
///
/// For servers that cannot be asked there is a [`TcpCheck`].
///
/// ```
/// use equipoise::{HealthCheck, TcpCheck};
/// use std::time::Duration;
///
/// let whole_server = HealthCheck::default();
/// let one_service = HealthCheck::of_service("shop.Cart")?;
/// let by_tcp: HealthCheck = TcpCheck::default()
///     .with_times(Duration::from_secs(5), Duration::from_millis(500))?
///     .into();
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    way: Way,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// By `Watch`, with this name; empty for the whole server.
    Watch(Arc<str>),
    Tcp(TcpCheck),
}

impl Default for HealthCheck {
    /// The health service, about the server as a whole.
    fn default() -> Self {
        Self {
            way: Way::Watch("".into()),
        }
    }
}

impl HealthCheck {
    /// Asks the health service about one name, usually that of a service, such as `shop.Cart`: any name that the
    /// servers report a status under. The empty name stands for the whole server, as in the default. A name that a
    /// server does not know makes it unhealthy.
    ///
    /// # Errors
    ///
    /// When `service` begins with a slash: that is a path.
    pub fn of_service(service: impl Into<Arc<str>>) -> Result<Self, Error> {
        let service = service.into();
        if service.starts_with('/') {
            return Err(Error::config(format!(
                "health check of {service:?}: a path, not the name of a service"
            )));
        }
        Ok(Self {
            way: Way::Watch(service),
        })
    }

    /// Whose word it is.
    pub(crate) fn source(&self) -> HealthSource {
        match self.way {
            Way::Watch(_) => HealthSource::Server,
            Way::Tcp(_) => HealthSource::Port,
        }
    }

    /// Begins to ask on one connection, just made to `address`: what is found, as it changes. Nothing is said twice
    /// in a row.
    ///
    /// The stream ends when the connection takes no more calls. Its owner drops it then, or when it makes no use of
    /// the connection any more: a question still open keeps a connection from closing, as any call does. It does not
    /// hold on to `connection` itself.
    pub(crate) fn begin<N, H>(
        &self,
        connection: &Arc<H>,
        address: &Address,
        backoff: Backoff,
        seed: u64,
    ) -> BoxStream<'static, Health>
    where
        N: Connection,
        H: AsRef<N> + Send + Sync + 'static,
    {
        let over = over(H::as_ref(connection).condition());
        let address = address.clone();
        match &self.way {
            Way::Watch(service) => {
                let connection = Arc::downgrade(connection);
                watch::watch(connection, service.clone(), address, backoff, seed)
                    .take_until(over)
                    .boxed()
            }
            Way::Tcp(check) => tcp::check(address, *check, seed).take_until(over).boxed(),
        }
    }
}

impl From<TcpCheck> for HealthCheck {
    fn from(check: TcpCheck) -> Self {
        Self {
            way: Way::Tcp(check),
        }
    }
}

/// Resolves when a connection takes no more calls.
async fn over(mut condition: Receiver<Condition>) {
    let over = |now: &Condition| matches!(now, Condition::Draining(_) | Condition::Closed(_));
    // An error means that the connection's task ended without a word.
    let _ = condition.wait_for(over).await;
}

/// A check for servers without a health service: whether the address still takes new connections.
///
/// It finds a server that has stopped listening though its connections live on, not one that is up and unwell. Each
/// check is a connection of its own, made directly (not through a connector of one's own, and without TLS) and closed
/// at once; the server may log it.
///
/// A server counts as healthy when it is connected: the dial was the first check.
///
/// ```
/// use equipoise::TcpCheck;
/// use std::time::Duration;
///
/// let check = TcpCheck::default()
///     .with_times(Duration::from_secs(2), Duration::from_millis(300))?
///     .with_thresholds(2, 1)?;
/// # let _ = check;
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpCheck {
    interval: Duration,
    timeout: Duration,
    fall: u32,
    rise: u32,
}

impl Default for TcpCheck {
    /// Every 10 s for 1 s; unhealthy by 3 failures, healthy by 2 successes in a row.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            fall: 3,
            rise: 2,
        }
    }
}

impl TcpCheck {
    /// The pause between two checks, which chance makes up to a tenth longer or shorter, and how long one may take
    /// before it has failed. Default 10 s and 1 s.
    ///
    /// # Errors
    ///
    /// When `interval` is not in 100 ms..=24 h, or `timeout` not above zero and at most `interval`.
    pub fn with_times(mut self, interval: Duration, timeout: Duration) -> Result<Self, Error> {
        if !INTERVAL.contains(&interval) {
            return Err(Error::config(format!(
                "tcp check interval {interval:?} is not in 100ms..=24h"
            )));
        }
        if timeout.is_zero() || timeout > interval {
            return Err(Error::config(format!(
                "tcp check timeout {timeout:?} must be more than zero and at most the interval, {interval:?}"
            )));
        }
        (self.interval, self.timeout) = (interval, timeout);
        Ok(self)
    }

    /// After how many failures in a row a server counts as unhealthy, and after how many successes as healthy again.
    /// Default 3 and 2.
    ///
    /// # Errors
    ///
    /// When one of them is 0.
    pub fn with_thresholds(mut self, fall: u32, rise: u32) -> Result<Self, Error> {
        for (name, value) in [("fall", fall), ("rise", rise)] {
            if value == 0 {
                return Err(Error::config(format!(
                    "tcp check {name} 0 must be at least 1"
                )));
            }
        }
        (self.fall, self.rise) = (fall, rise);
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
