//! What of a request decides where it is placed?

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderName;
use http::header::COOKIE;
use xxhash_rust::xxh64::{Xxh64, xxh64};

use crate::error::Error;

/// What one call is to be placed by, whatever the policy hashes otherwise: a request extension.
///
/// ```
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(equipoise::HashKey::bytes("cart-4711"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashKey(u64);

impl HashKey {
    /// The hash of these bytes: xxHash64 with seed 0, which gRPC's other implementations use.
    pub fn bytes(key: impl AsRef<[u8]>) -> Self {
        Self(xxh64(key.as_ref(), 0))
    }

    /// A hash made elsewhere; it should be spread over all 64 bits.
    pub const fn raw(hash: u64) -> Self {
        Self(hash)
    }

    pub(crate) const fn hash(self) -> u64 {
        self.0
    }
}

/// On whose behalf a call is made, for [`HashOn::client_ip`]: a request extension, for a server that makes calls
/// for others.
///
/// ```
/// let peer: std::net::IpAddr = "192.0.2.7".parse()?;
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(equipoise::ClientIp(peer));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientIp(pub IpAddr);

/// What of a request is hashed: xxHash64, seed 0, as gRPC and Envoy do. A [`HashKey`] of the call's own comes
/// before it.
///
/// Where a request has nothing of it, the policy chooses by chance.
///
/// ```
/// use equipoise::HashKey;
/// use equipoise::policy::{HashOn, RingHash};
///
/// // By the session where there is one, else by the client's address and the method together.
/// let hash_on = HashOn::cookie("session")
///     .terminal()
///     .and(HashOn::client_ip())
///     .and(HashOn::method());
/// let policy = RingHash::on(hash_on);
///
/// // By the first part of a name.
/// let by_shard = HashOn::with(|head| {
///     let name = head.headers().get("x-object")?.to_str().ok()?;
///     Some(HashKey::bytes(name.split('/').next()?))
/// });
/// ```
#[derive(Clone, Default)]
pub struct HashOn {
    parts: Arc<[Part]>,
}

#[derive(Clone)]
struct Part {
    what: What,
    terminal: bool,
}

/// One thing to look at.
#[derive(Clone)]
enum What {
    Metadata(HeaderName),
    Binary(HeaderName),
    Cookie(String),
    ClientIp,
    Method,
    With(With),
    /// No name of metadata.
    Illegal(String),
}

type With = Arc<dyn Fn(&http::Request<()>) -> Option<HashKey> + Send + Sync>;

impl HashOn {
    /// A metadata entry, such as `x-session-id`: its values, joined by commas where there are several. Of a binary
    /// one, whose name ends in `-bin`, the bytes that it stands for, however they were padded.
    ///
    /// A name that metadata cannot have is found when the channel is built.
    pub fn metadata(name: impl Into<String>) -> Self {
        let name = name.into();
        Self::of(match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) if name.as_str().ends_with("-bin") => What::Binary(name),
            Ok(name) => What::Metadata(name),
            Err(_) => What::Illegal(name),
        })
    }

    /// The value of the cookie of this name in the `cookie` metadata entry. Case matters.
    ///
    /// A name that a cookie cannot have is found when the channel is built.
    pub fn cookie(name: impl Into<String>) -> Self {
        Self::of(What::Cookie(name.into()))
    }

    /// The address of the client on whose behalf the call is made: that of the [`ClientIp`] extension, else the
    /// first in the metadata entry `x-forwarded-for`. IPv4 in an IPv6 address counts as IPv4, ports do not count.
    ///
    /// That entry is what a client wrote, unless a proxy of yours wrote it: whoever passes it on as it came lets
    /// clients choose their server. Where that matters, set [`ClientIp`] from the peer's own address.
    pub fn client_ip() -> Self {
        Self::of(What::ClientIp)
    }

    /// The path, `/package.Service/Method`.
    pub fn method() -> Self {
        Self::of(What::Method)
    }

    /// What this function makes of a request's URI, metadata and extensions. It is called in every call, so it
    /// should be quick.
    pub fn with(
        make: impl Fn(&http::Request<()>) -> Option<HashKey> + Send + Sync + 'static,
    ) -> Self {
        Self::of(What::With(Arc::new(make)))
    }

    /// This and then `other`: where a request has both, the hash is of both, and their order matters (gRPC's
    /// rule for several hash policies: rotated left by one bit, exclusive or).
    pub fn and(self, other: Self) -> Self {
        let parts = self.parts.iter().chain(other.parts.iter());
        Self {
            parts: parts.cloned().collect(),
        }
    }

    /// What comes after this counts only where there is nothing up to here (gRPC's `terminal`).
    pub fn terminal(self) -> Self {
        let mut parts = self.parts.to_vec();
        if let Some(last) = parts.last_mut() {
            last.terminal = true;
        }
        Self {
            parts: parts.into(),
        }
    }

    fn of(what: What) -> Self {
        let terminal = false;
        Self {
            parts: [Part { what, terminal }].into(),
        }
    }

    /// Whether the names in it can be those of metadata and cookies.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for part in &*self.parts {
            let (kind, name) = match &part.what {
                What::Illegal(name) => ("metadata", name),
                What::Cookie(name) if !is_token(name) => ("cookie", name),
                _ => continue,
            };
            return Err(Error::config(format!(
                "hash on {kind} {name:?}: not a legal name"
            )));
        }
        Ok(())
    }

    /// The hash of what the head of a request has of it; `None` where it has nothing.
    #[inline]
    pub fn hash(&self, head: &http::Request<()>) -> Option<u64> {
        let mut hash: Option<u64> = None;
        for part in &*self.parts {
            if let Some(new) = part.what.hash(head) {
                hash = Some(hash.map_or(new, |hash| hash.rotate_left(1) ^ new));
            }
            if part.terminal && hash.is_some() {
                break;
            }
        }
        hash
    }
}

impl What {
    fn hash(&self, head: &http::Request<()>) -> Option<u64> {
        match self {
            Self::Metadata(name) => {
                let mut values = head.headers().get_all(name).iter();
                let first = values.next()?.as_bytes();
                match values.next() {
                    None => Some(xxh64(first, 0)),
                    Some(second) => {
                        let rest = values.map(|value| value.as_bytes());
                        Some(joined([first, second.as_bytes()].into_iter().chain(rest)))
                    }
                }
            }
            Self::Binary(name) => {
                let values = head.headers().get_all(name).iter();
                let mut values = values.flat_map(|v| v.as_bytes().split(|&byte| byte == b','));
                let mut values = values.by_ref().map(decoded).peekable();
                values.peek()?;
                Some(joined(values))
            }
            Self::Cookie(name) => {
                let cookies = head.headers().get_all(COOKIE).iter();
                let mut pairs = cookies.flat_map(|c| c.as_bytes().split(|&byte| byte == b';'));
                let value = pairs.find_map(|pair| {
                    let value = pair.trim_ascii().strip_prefix(name.as_bytes())?;
                    value.strip_prefix(b"=")
                })?;
                Some(xxh64(value, 0))
            }
            Self::ClientIp => {
                let own = head.extensions().get::<ClientIp>();
                let ip = own.map(|own| own.0).or_else(|| forwarded_for(head))?;
                let mut text = Hashed(Xxh64::new(0));
                // Hashing does not fail.
                let _ = write!(text, "{}", ip.to_canonical());
                Some(text.0.digest())
            }
            Self::Method => Some(xxh64(head.uri().path().as_bytes(), 0)),
            Self::With(make) => make(head).map(HashKey::hash),
            Self::Illegal(_) => None,
        }
    }
}

/// The hash of all of these with commas between them.
fn joined<V: AsRef<[u8]>>(values: impl Iterator<Item = V>) -> u64 {
    let mut hash = Xxh64::new(0);
    for (n, value) in values.enumerate() {
        if n > 0 {
            hash.update(b",");
        }
        hash.update(value.as_ref());
    }
    hash.digest()
}

/// With or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The bytes that a binary value stands for; itself where it stands for none.
fn decoded(value: &[u8]) -> Vec<u8> {
    let value = value.trim_ascii();
    BASE64.decode(value).unwrap_or_else(|_| value.to_vec())
}

fn forwarded_for(head: &http::Request<()>) -> Option<IpAddr> {
    let value = head.headers().get("x-forwarded-for")?.to_str().ok()?;
    let first = value.split(',').next()?.trim();
    let with_port = || first.parse::<SocketAddr>().ok().map(|at| at.ip());
    first.parse::<IpAddr>().ok().or_else(with_port)
}

/// Whether it can be the name of a cookie (RFC 6265: a token).
fn is_token(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(fits)
}

/// Hashes what is written to it.
struct Hashed(Xxh64);

impl Write for Hashed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

impl fmt::Debug for HashOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.parts.iter()).finish()
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Metadata(name) | What::Binary(name) => write!(f, "metadata {name}")?,
            What::Cookie(name) => write!(f, "cookie {name:?}")?,
            What::ClientIp => f.write_str("client ip")?,
            What::Method => f.write_str("method")?,
            What::With(_) => f.write_str("a function")?,
            What::Illegal(name) => write!(f, "metadata {name:?}")?,
        }
        match self.terminal {
            true => f.write_str(", terminal"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &str)]) -> http::Request<()> {
        let mut request = http::Request::new(());
        *request.uri_mut() = "http://a/shop.Cart/Add".parse().unwrap();
        for &(name, value) in headers {
            let value = value.parse().unwrap();
            request.headers_mut().append(name, value);
        }
        request
    }

    fn of(text: impl AsRef<[u8]>) -> Option<u64> {
        Some(xxh64(text.as_ref(), 0))
    }

    #[test]
    fn metadata_is_hashed_as_it_is_and_joined_by_commas() {
        let hash_on = HashOn::metadata("X-Session");
        assert!(hash_on.check().is_ok());
        for (values, expected) in [
            (&[][..], None),
            (&[""], of("")),
            (&["some-value"], of("some-value")),
            (&["value1", "value2"], of("value1,value2")),
            (&["value1,value2"], of("value1,value2")),
            (&["a", "", "b"], of("a,,b")),
        ] {
            let headers: Vec<_> = values.iter().map(|&v| ("x-session", v)).collect();
            assert_eq!(hash_on.hash(&request(&headers)), expected, "{values:?}");
        }
        assert_eq!(hash_on.hash(&request(&[("x-sessions", "a")])), None);
    }

    #[test]
    fn binary_metadata_is_hashed_by_what_it_stands_for() {
        let hash_on = HashOn::metadata("session-bin");
        let bytes = [0, 255, 16, 7];
        for (values, expected) in [
            (&["AP8QBw=="][..], of(bytes)),
            (&["AP8QBw"], of(bytes)),
            (&["AP8QBw==", "YQ"], of([0, 255, 16, 7, b',', b'a'])),
            (&["AP8QBw, YQ=="], of([0, 255, 16, 7, b',', b'a'])),
            (&[""], of("")),
            (&["not base64!"], of("not base64!")),
            (&[], None),
        ] {
            let headers: Vec<_> = values.iter().map(|&v| ("session-bin", v)).collect();
            assert_eq!(hash_on.hash(&request(&headers)), expected, "{values:?}");
        }
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let hash_on = HashOn::cookie("id");
        for (cookies, expected) in [
            (&["id=7"][..], of("7")),
            (&["sid=1; id=7; ids=2"], of("7")),
            (&["ID=1;id=7;id=8"], of("7")),
            (&["sid=1", " id=a=b "], of("a=b")),
            (&["id="], of("")),
            (&["id"], None),
            (&["idx=1; x; ;="], None),
            (&[], None),
        ] {
            let headers: Vec<_> = cookies.iter().map(|&v| ("cookie", v)).collect();
            assert_eq!(hash_on.hash(&request(&headers)), expected, "{cookies:?}");
        }
    }

    #[test]
    fn a_client_is_known_by_its_address() {
        let hash_on = HashOn::client_ip();
        for (forwarded, expected) in [
            ("192.0.2.7", of("192.0.2.7")),
            (" 192.0.2.7 , 10.0.0.1", of("192.0.2.7")),
            ("192.0.2.7:4711", of("192.0.2.7")),
            ("::ffff:192.0.2.7", of("192.0.2.7")),
            ("2001:DB8:0::1", of("2001:db8::1")),
            ("[2001:db8::1]:4711", of("2001:db8::1")),
            ("unknown, 192.0.2.7", None),
            ("", None),
        ] {
            let request = request(&[("x-forwarded-for", forwarded)]);
            assert_eq!(hash_on.hash(&request), expected, "{forwarded:?}");
        }
        let mut request = request(&[("x-forwarded-for", "192.0.2.7")]);
        let own: IpAddr = "192.0.2.8".parse().unwrap();
        request.extensions_mut().insert(ClientIp(own));
        assert_eq!(hash_on.hash(&request), of("192.0.2.8"), "its own first");
    }

    #[test]
    fn method_and_function_see_the_request() {
        let request = request(&[("a", "1")]);
        assert_eq!(HashOn::method().hash(&request), of("/shop.Cart/Add"));
        let of_a = |name: &'static str| {
            HashOn::with(move |head| Some(HashKey::bytes(head.headers().get(name)?)))
        };
        assert_eq!(of_a("a").hash(&request), of("1"));
        assert_eq!(of_a("b").hash(&request), None);
        assert_eq!(HashOn::default().hash(&request), None);
    }

    #[test]
    fn several_are_combined_in_order() {
        let request = request(&[("a", "1"), ("b", "2")]);
        let on = HashOn::metadata;
        let (one, two) = (xxh64(b"1", 0), xxh64(b"2", 0));
        let both = Some(one.rotate_left(1) ^ two);
        for (hash_on, expected) in [
            (on("a").and(on("b")), both),
            (on("x").and(on("a")).and(on("y")).and(on("b")), both),
            (on("a").terminal().and(on("b")), Some(one)),
            (on("x").terminal().and(on("b")), Some(two)),
            (on("a").and(on("x")).terminal().and(on("b")), Some(one)),
            (on("x").and(on("y").terminal()), None),
            (HashOn::default().terminal().and(on("b")), Some(two)),
        ] {
            assert_eq!(hash_on.hash(&request), expected, "{hash_on:?}");
        }
    }

    #[test]
    fn names_that_cannot_be_are_told() {
        for (hash_on, text) in [
            (
                HashOn::metadata(""),
                "hash on metadata \"\": not a legal name",
            ),
            (HashOn::metadata(":path"), "metadata \":path\""),
            (HashOn::metadata("a b"), "metadata \"a b\""),
            (
                HashOn::method().and(HashOn::metadata("ä")),
                "metadata \"ä\"",
            ),
            (HashOn::cookie(""), "cookie \"\""),
            (HashOn::cookie("a=b"), "cookie \"a=b\""),
            (HashOn::cookie("a;"), "cookie \"a;\""),
        ] {
            let error = hash_on.check().unwrap_err();
            assert!(
                error.is_config() && error.to_string().contains(text),
                "{error}"
            );
        }
        let fine = HashOn::cookie("__Host-id").and(HashOn::metadata("x.y_z-1"));
        assert!(fine.and(HashOn::client_ip()).check().is_ok());
    }
}
