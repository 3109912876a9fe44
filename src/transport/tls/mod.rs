//! Whom do we trust, and who do we say we are? TLS by rustls.

mod credentials;
mod handshake;
mod secured;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::ClientConfig;
pub(super) use tokio_rustls::rustls::pki_types::ServerName;

use crate::error::Error;

pub(super) use credentials::Credentials;
use handshake::explain;
pub(super) use handshake::handshake;
pub(super) use secured::Secured;

/// How connections are secured: whose certificates are trusted, and which one we show.
///
/// Give it to [`Builder::tls`](crate::Builder::tls) or to
/// [`Http2Options::with_tls`](super::Http2Options::with_tls); that is where files are read and everything
/// is checked. A channel to an `https://` target has `Tls::new()` unless told otherwise.
///
/// * *Trust.* The roots named here, and only those; with none named, those that the features
///   `tls-native-roots` (the system's) and `tls-webpki-roots` (Mozilla's, compiled in) bring, both where
///   both are on.
/// * *The name* in the server's certificate must be the host of
///   [`authority`](crate::Builder::authority), else the target's host; what a resolver says never decides
///   whom we trust.
/// * *Versions and ciphers* are rustls's defaults (TLS 1.2 and 1.3), with the cryptography of feature
///   `tls-ring`, else of `tls-aws-lc`, whatever else is linked.
/// * *ALPN* offers `h2`, and a server that does not choose it is refused.
/// * *Files* are read again when a connection is made, at most once a second: new roots, a new
///   certificate or key serve from the next connection on. What cannot be used (a broken file, a
///   certificate without its key) is logged once, and the last good ones stay in use; so they do where a
///   file system does not answer within a second.
/// * *Sessions* are resumed where the server gives tickets: the connections of a channel share them.
///   Changed files begin anew.
///
/// # Features
///
/// An `https://` target needs cryptography, `tls-ring` or `tls-aws-lc`, and roots, `tls-native-roots` or
/// `tls-webpki-roots`; none is on by default, since a program has one of each for all its libraries. What is
/// missing is a configuration error where the channel is built, never a connection in plaintext:
///
/// | on | `https://greeter.prod.svc` says |
/// |---|---|
/// | no feature of TLS | `https needs TLS: enable feature tls-ring or tls-aws-lc of equipoise` |
/// | `tls` alone | `TLS: no cryptography is built in: enable feature tls-ring or tls-aws-lc of equipoise, or give a whole rustls::ClientConfig` |
/// | `tls-ring` or `tls-aws-lc`, no roots | `TLS: nobody is trusted: name roots, or enable feature tls-native-roots or tls-webpki-roots of equipoise` |
///
/// Roots named here take the place of the features for roots, and [`from_config`](Self::from_config), with
/// feature `tls`, that of both.
///
/// ```
/// # fn example(pem: Vec<u8>) -> Result<(), equipoise::Error> {
/// use equipoise::{Channel, transport::Tls};
///
/// let tls = Tls::new()
///     .with_roots_file("/etc/greeter/ca.pem")
///     .with_identity_files("/etc/greeter/client.pem", "/etc/greeter/client.key");
/// let channel = Channel::builder("static:10.0.0.1:443,10.0.0.2:443")?
///     .authority("greeter.prod.svc")
///     .tls(tls)
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Tls {
    config: Option<Arc<ClientConfig>>,
    roots: Vec<Pem>,
    identity: Option<Identity>,
}

/// PEM text, or where to find it.
#[derive(Clone)]
enum Pem {
    Given(Arc<[u8]>),
    File(PathBuf),
}

/// What we show to servers that ask who we are.
#[derive(Clone, Debug)]
struct Identity {
    chain: Pem,
    key: Pem,
}

impl Tls {
    /// The roots that come with the features, and no certificate of our own.
    pub fn new() -> Self {
        Self::default()
    }

    /// A whole configuration of one's own, with its verifier, versions, cipher suites and cryptography. `h2`
    /// is added to its ALPN protocols where it is missing; all else is used as it is.
    ///
    /// Roots and identity belong into it: naming them beside it is an error where the channel is built.
    /// [`rustls`](super::rustls) is the crate in the version this takes.
    pub fn from_config(config: impl Into<Arc<ClientConfig>>) -> Self {
        Self {
            config: Some(config.into()),
            ..Self::default()
        }
    }

    /// Trusts the certificates in this PEM text, besides others named.
    pub fn with_roots_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(Pem::given(pem));
        self
    }

    /// Trusts the certificates in this PEM file, besides others named.
    pub fn with_roots_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.roots.push(Pem::File(path.into()));
        self
    }

    /// Shows this certificate to servers that ask for one (mTLS): PEM text of the chain, our own
    /// certificate first, and of its private key (PKCS#8, PKCS#1 or SEC1, not encrypted). Default: none.
    pub fn with_identity_pem(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some(Identity {
            chain: Pem::given(chain),
            key: Pem::given(key),
        });
        self
    }

    /// The same from PEM files. While only one of the two has changed, the last pair that fits stays in use.
    pub fn with_identity_files(
        mut self,
        chain: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identity = Some(Identity {
            chain: Pem::File(chain.into()),
            key: Pem::File(key.into()),
        });
        self
    }

    /// All PEM there is, in a fixed order.
    fn pems(&self) -> impl Iterator<Item = &Pem> {
        let identity = self.identity.iter().flat_map(|own| [&own.chain, &own.key]);
        self.roots.iter().chain(identity)
    }
}

impl Pem {
    fn given(pem: impl Into<Vec<u8>>) -> Self {
        Self::Given(pem.into().into())
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("the PEM given"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

// Neither keys nor whole bundles belong into logs.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(pem) => write!(f, "{} bytes", pem.len()),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("own_config", &self.config.is_some())
            .field("roots", &self.roots)
            .field("identity", &self.identity)
            .finish()
    }
}

/// The name to check certificates for, of the host of an authority or a target.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, Error> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    ServerName::try_from(bare.unwrap_or(host).to_owned()).map_err(|_| {
        Error::config(format!(
            "TLS: {host:?} is no DNS name or IP address that a certificate could be checked for"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts() {
        for (host, name) in [
            ("greeter.test", "greeter.test"),
            ("10.0.0.1", "10.0.0.1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(server_name(host).unwrap().to_str(), name);
        }
        let error = server_name("a b").unwrap_err();
        assert!(
            error.is_config() && error.to_string().contains("\"a b\""),
            "{error}"
        );
    }

    #[test]
    fn what_is_logged_of_it_holds_no_key() {
        let tls = Tls::new().with_identity_pem("a chain", "a secret");
        let text = format!("{tls:?}");
        assert!(
            !text.contains("secret") && text.contains("8 bytes"),
            "{text}"
        );
    }
}
