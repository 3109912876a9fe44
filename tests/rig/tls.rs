//! Certificates made on the spot, and the server's side of TLS, with a record of what clients did there.
//!
//! The provider is always explicit and never installed for the process, as in the library: rustls would
//! panic where two are linked, and an installed one would hide that.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::Stream;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, HandshakeKind, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::server::TlsStream;

/// The cryptography of the rig.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Somebody who issues certificates.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate and its private key, in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("randomness can be had");
        let mut params = params(&[], name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("the parameters are sound");
        Self {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// For these names, DNS or IP, and long valid.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.sign(params(names, "a server or client"))
    }

    /// The same, and expired since 2 January 2020.
    pub fn issue_expired(&self, names: &[&str]) -> Pair {
        let mut params = params(names, "a server of old");
        params.not_after = date_time_ymd(2020, 1, 2);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().expect("randomness can be had");
        let certificate = params.signed_by(&key, &self.issuer);
        Pair {
            cert: certificate.expect("the parameters are sound").pem(),
            key: key.serialize_pem(),
        }
    }
}

fn params(names: &[&str], subject: &str) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("tests use sound names");
    params.distinguished_name.push(DnType::CommonName, subject);
    params
}

impl Pair {
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        let chain: Result<_, _> = CertificateDer::pem_slice_iter(self.cert.as_bytes()).collect();
        chain.expect("it was made by the rig")
    }

    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("it was made by the rig")
    }
}

/// What clients did at a server; clones of its acceptor share it.
#[derive(Debug, Default)]
pub struct Seen {
    handshakes: AtomicUsize,
    resumed: AtomicUsize,
    refused: Mutex<Vec<String>>,
    clients: Mutex<Vec<CertificateDer<'static>>>,
}

impl Seen {
    // Relaxed throughout: counters on their own.

    /// Handshakes that came to their end: only on these did a client send anything of HTTP/2.
    pub fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// Those of them that resumed a session.
    pub fn resumed(&self) -> usize {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Why the others broke off.
    pub fn refused(&self) -> Vec<String> {
        lock(&self.refused).clone()
    }

    /// The certificates that clients showed, in order.
    pub fn clients(&self) -> Vec<CertificateDer<'static>> {
        lock(&self.clients).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The server's side of handshakes.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    pub seen: Arc<Seen>,
}

impl Acceptor {
    /// Shows this certificate, speaks HTTP/2, and asks clients for nothing.
    pub fn new(pair: &Pair) -> Self {
        Self::of(pair, None, &["h2"])
    }

    /// The same, and admits only clients with a certificate of `clients`.
    pub fn asking(pair: &Pair, clients: &Ca) -> Self {
        Self::of(pair, Some(clients), &["h2"])
    }

    /// As [`new`](Self::new) with these protocols instead.
    pub fn speaking(pair: &Pair, alpn: &[&str]) -> Self {
        Self::of(pair, None, alpn)
    }

    /// From a file with both, the certificate and its key.
    pub fn from_file(path: &Path) -> Self {
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::new(&Pair {
            cert: text.clone(),
            key: text,
        })
    }

    fn of(pair: &Pair, clients: Option<&Ca>, alpn: &[&str]) -> Self {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                let root = CertificateDer::from_pem_slice(clients.pem.as_bytes());
                let added = roots.add(root.expect("it was made by the rig"));
                added.expect("and is a CA's");
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                builder.with_client_cert_verifier(verifier.build().expect("there is a root"))
            }
        };
        let config = builder.with_single_cert(pair.chain(), pair.private_key());
        let mut config = config.expect("the key belongs to the certificate");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self {
            tls: TlsAcceptor::from(Arc::new(config)),
            seen: Arc::default(),
        }
    }

    /// One handshake, written down.
    pub async fn accept(&self, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        // A socket whose peer is gone already says so below.
        let _ = socket.set_nodelay(true);
        let stream = self.tls.accept(socket).await.inspect_err(|error| {
            lock(&self.seen.refused).push(error.to_string());
        })?;
        let session = stream.get_ref().1;
        if let Some(client) = session.peer_certificates().and_then(<[_]>::first) {
            lock(&self.seen.clients).push(client.clone().into_owned());
        }
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.seen.resumed.fetch_add(1, Ordering::Relaxed);
        }
        self.seen.handshakes.fetch_add(1, Ordering::Relaxed);
        Ok(stream)
    }

    /// The connections of `listener` whose handshakes succeed; accepting ends with the stream.
    pub fn incoming(
        self,
        listener: TcpListener,
    ) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
        let (ready, connections) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            // Handshakes under way end with the set.
            let mut handshakes = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((socket, _)) = accepted else { continue };
                        let acceptor = self.clone();
                        handshakes.spawn(async move { acceptor.accept(socket).await });
                    }
                    Some(done) = handshakes.join_next() => {
                        if let Ok(Ok(stream)) = done {
                            // Nobody listens once the server has ended.
                            let _ = ready.send(Ok(stream));
                        }
                    }
                    () = ready.closed() => return,
                }
            }
        });
        tokio_stream::wrappers::UnboundedReceiverStream::new(connections)
    }
}

/// A client's configuration that takes any certificate from anybody: the negative control.
pub fn gullible() -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth()
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
