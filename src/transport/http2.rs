//! The transport of this crate: HTTP/2 over TCP and Unix sockets, in plain text or on TLS, on the `h2` crate.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use h2::client::SendRequest;
use http::uri::Authority;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::body::ResponseBody;
use super::calm::Calm;
use super::driver::Driver;
use super::keepalive::Keepalive;
use super::link::{Link, Order};
use super::meter::{Counted, Watched};
use super::options::Http2Options;
use super::{CallError, Condition, Connection, Connector, Control, Outgoing, Slot, Slots, call};
use crate::endpoint::{Address, Endpoint};
use crate::error::ConnectError;

/// Dials over TCP and Unix sockets and speaks HTTP/2, in plain text unless the options have TLS.
///
/// A connection is made when the server's SETTINGS were received, so that one which accepts and says
/// nothing never counts as ready. It must be used inside a tokio runtime with time and IO enabled.
#[derive(Clone, Debug, Default)]
pub struct Http2Connector {
    options: Arc<Http2Options>,
    calm: Arc<Calm>,
}

impl Http2Connector {
    /// A connector with these options; `default()` has the default ones.
    pub fn new(options: Http2Options) -> Self {
        Self {
            options: Arc::new(options),
            calm: Arc::default(),
        }
    }
}

impl Connector for Http2Connector {
    type Connection = Http2Connection;

    fn named(mut self, name: &Authority) -> Self {
        Arc::make_mut(&mut self.options).target = Some(name.clone());
        self
    }

    fn connect(
        &self,
        endpoint: &Endpoint,
        address: &Address,
    ) -> BoxFuture<'static, Result<Http2Connection, ConnectError>> {
        let (options, calm) = (self.options.clone(), self.calm.clone());
        connect(options, calm, endpoint.clone(), address.clone()).boxed()
    }
}

async fn connect(
    options: Arc<Http2Options>,
    calm: Arc<Calm>,
    endpoint: Endpoint,
    address: Address,
) -> Result<Http2Connection, ConnectError> {
    let Ok(runtime) = Handle::try_current() else {
        let text = format!("{address}: dialling needs a tokio runtime");
        return Err(ConnectError::new(text));
    };
    let authority = options.authority(&address)?;
    let socket = options.dial(&endpoint, &address).await?;
    let agent = options.user_agent.clone();
    let link = Link::new(address, options.scheme(), authority, agent, runtime);
    let link = Arc::new(link);
    let socket = Counted::new(socket, link.clone());
    let stream = options.secure(socket, &link.address).await?;
    let io = Watched::new(stream, link.clone());
    let handshake = options.builder().handshake(io).await;
    let (sender, h2) = handshake.map_err(|error| link.error(error))?;
    let (interval, timeout) = options.keepalive;
    let interval = calm.interval(&link.address, interval);
    let keepalive = Keepalive::new(interval, timeout, options.keepalive_idle);
    let age = options.draw_age(fastrand::f64());
    let mut driver = Driver::new(h2, sender.clone(), link.clone(), keepalive, calm, age);
    poll_fn(|cx| driver.poll_settings(cx)).await?;
    link.runtime.spawn(driver);
    Ok(Http2Connection { sender, link })
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
    fn without_a_runtime_connecting_is_an_error() {
        let address: Address = "127.0.0.1:1".parse().unwrap();
        let connecting =
            Http2Connector::default().connect(&Endpoint::new(address.clone()), &address);
        let error = connecting.now_or_never().unwrap().unwrap_err().to_string();
        assert!(error.contains("needs a tokio runtime"), "{error}");
    }
}
