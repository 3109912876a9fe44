//! What the balancer balances over: endpoints, their addresses, their names for one another.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::Error;

/// One place a connection can be made to.
///
/// ```
/// use equipoise::Address;
///
/// let tcp: Address = "127.0.0.1:50051".parse()?;
/// let unix: Address = "unix:/run/greeter.sock".parse()?;
/// assert_eq!(tcp.to_string(), "127.0.0.1:50051");
/// assert_eq!(unix.to_string(), "unix:/run/greeter.sock");
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and port.
    Tcp(SocketAddr),
    /// A Unix domain socket's path.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Error;

    /// Reads `ip:port`, `[v6]:port` or `unix:path`. A host name is no address: names are what
    /// resolvers turn into addresses.
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(Error::address(text, "a unix address needs a path"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| Error::address(text, broken_rule(text)))?;
        if address.port() == 0 {
            return Err(Error::address(text, "port 0 cannot be dialled"));
        }
        if address.ip().is_unspecified() {
            return Err(Error::address(
                text,
                "the unspecified address cannot be dialled",
            ));
        }
        Ok(Self::Tcp(address))
    }
}

/// What a text that is no address should have been.
fn broken_rule(text: &str) -> &'static str {
    match text.starts_with('[') && text.contains('%') {
        true => "a zone is the number of an interface, as in [fe80::1%2]:50051",
        false => "expected ip:port, [ipv6]:port or unix:path",
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One logical server: one or more addresses that reach it, and what the operator said of it.
///
/// Two endpoints are the same one when they have the same id, where given, and the same set of
/// addresses in any order. Weight may change without making it another endpoint.
///
/// ```
/// use equipoise::{Address, Endpoint};
///
/// let address: Address = "10.0.0.7:50051".parse()?;
/// let endpoint = Endpoint::new(address).with_weight(3)?.with_id("greeter-7");
/// assert_eq!(endpoint.weight(), 3);
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    addresses: Vec<Address>,
    weight: NonZeroU32,
    id: Option<Arc<str>>,
    hash_key: Option<Arc<str>>,
}

impl Endpoint {
    /// A server at one address, with weight 1 and no id.
    pub fn new(address: impl Into<Address>) -> Self {
        Self {
            addresses: vec![address.into()],
            weight: NonZeroU32::MIN,
            id: None,
            hash_key: None,
        }
    }

    /// A server reachable at any of several addresses, tried in this order, a quarter of a second apart.
    ///
    /// # Errors
    ///
    /// When `addresses` is empty.
    pub fn with_addresses(addresses: impl IntoIterator<Item = Address>) -> Result<Self, Error> {
        let mut distinct: Vec<Address> = Vec::new();
        for address in addresses {
            if !distinct.contains(&address) {
                distinct.push(address);
            }
        }
        if distinct.is_empty() {
            return Err(Error::config(
                "an endpoint needs at least one address, got none",
            ));
        }
        Ok(Self {
            addresses: distinct,
            weight: NonZeroU32::MIN,
            id: None,
            hash_key: None,
        })
    }

    /// How much traffic this server should get beside the others: twice the weight, twice the calls,
    /// for policies that heed weights. Default 1.
    ///
    /// # Errors
    ///
    /// When `weight` is 0: leave the endpoint out of the list to drain it.
    pub fn with_weight(mut self, weight: u32) -> Result<Self, Error> {
        self.weight = NonZeroU32::new(weight).ok_or_else(|| {
            Error::config(format!(
                "endpoint {}: weight 0 is not in 1..={}; leave the endpoint out to drain it",
                self.addresses[0],
                u32::MAX
            ))
        })?;
        Ok(self)
    }

    /// The name its resolver knows it by. A changed id at the same address is another server: its
    /// connections are made anew.
    pub fn with_id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Where the policies that place calls by a key put it follows from this. Default: its first address, as in gRPC
    /// (A42). A name that outlives the address keeps the keys of a server that moves, and where a server has several
    /// addresses, only a name is the same whatever order they come in. It may change without making it another
    /// endpoint.
    pub fn with_hash_key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.hash_key = Some(key.into());
        self
    }

    /// The addresses, in the order they are tried; never empty.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The first address: the one this endpoint is called by in logs and tables.
    pub fn address(&self) -> &Address {
        &self.addresses[0]
    }

    /// The configured weight.
    pub fn weight(&self) -> u32 {
        self.weight.get()
    }

    /// What policies that place calls by a key go by: the key it was given, else its first address.
    pub fn hash_key(&self) -> Cow<'_, str> {
        match &self.hash_key {
            Some(key) => Cow::Borrowed(key),
            None => Cow::Owned(self.address().to_string()),
        }
    }

    /// Whether the operator says the same of both, wherever they are.
    pub(crate) fn is_described_as(&self, other: &Self) -> bool {
        self.weight == other.weight && self.hash_key == other.hash_key
    }

    /// The resolver's name for it, where it gave one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address)
    }
}

/// The order in which things that have an address are tried: families take turns, beginning with the family of
/// the first, so that one broken family costs one stagger and not one for each of its addresses (RFC 8305).
pub(crate) fn interleave<T>(things: Vec<T>, address: impl Fn(&T) -> &Address) -> Vec<T> {
    // An IPv4 address in IPv6's clothes is dialled as what it is (gRPC A61).
    let family = |address: &Address| match address {
        Address::Tcp(at) => match at.ip().to_canonical() {
            IpAddr::V4(_) => 4,
            IpAddr::V6(_) => 6,
        },
        Address::Unix(_) => 0,
    };
    let count = things.len();
    let mut families: Vec<(u8, VecDeque<T>)> = Vec::new();
    for thing in things {
        let its = family(address(&thing));
        match families.iter_mut().find(|(known, _)| *known == its) {
            Some((_, members)) => members.push_back(thing),
            None => families.push((its, VecDeque::from([thing]))),
        }
    }
    let mut order = Vec::with_capacity(count);
    while order.len() < count {
        let turn = families
            .iter_mut()
            .filter_map(|(_, members)| members.pop_front());
        order.extend(turn);
    }
    order
}

/// What one channel calls one of its endpoints: a slot and the generation of its tenant.
///
/// Cheap to copy and harmless when stale: an id whose endpoint has left names nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    slot: u32,
    generation: u32,
}

impl EndpointId {
    /// The id of the `generation`-th tenant of `slot`.
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    /// Where its things are kept: small, dense, reused after the endpoint has left.
    pub const fn slot(self) -> usize {
        self.slot as usize
    }

    /// Which tenant of the slot it is.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// gRPC's connectivity states, of an endpoint or of a whole channel.
///
/// An endpoint shows its *effective* state: one that failed and is being dialled again still shows
/// [`TransientFailure`](Self::TransientFailure) until it is ready, so that nobody waits for it in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Connectivity {
    /// No connection, and none being made.
    Idle,
    /// A first connection is being made.
    Connecting,
    /// At least one connection has exchanged settings with the server.
    Ready,
    /// The last attempt failed; another follows after a pause.
    TransientFailure,
    /// The channel was closed. Endpoints never show this.
    Shutdown,
}

impl fmt::Display for Connectivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "IDLE",
            Self::Connecting => "CONNECTING",
            Self::Ready => "READY",
            Self::TransientFailure => "TRANSIENT_FAILURE",
            Self::Shutdown => "SHUTDOWN",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_show_alike() {
        for text in ["127.0.0.1:1", "[::1]:65535", "unix:/a b/c", "unix:rel"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn bad_addresses_name_value_and_rule() {
        for (text, rule) in [
            ("", "expected ip:port"),
            ("127.0.0.1", "expected ip:port"),
            ("localhost:80", "expected ip:port"),
            ("127.0.0.1:0", "port 0"),
            ("127.0.0.1:70000", "expected ip:port"),
            ("0.0.0.0:80", "unspecified"),
            ("[::]:80", "unspecified"),
            ("unix:", "needs a path"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(rule), "{text}: {error}");
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn an_endpoint_needs_an_address_and_a_weight() {
        assert!(Endpoint::with_addresses([]).is_err());
        let a: Address = "127.0.0.1:1".parse().unwrap();
        let twice = Endpoint::with_addresses([a.clone(), a.clone()]).unwrap();
        assert_eq!(twice.addresses(), std::slice::from_ref(&a));
        let error = Endpoint::new(a).with_weight(0).unwrap_err().to_string();
        assert!(error.contains("weight 0 is not in 1..="), "{error}");
    }
}
