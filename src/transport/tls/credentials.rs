//! From PEM to a configuration, and again when the files have changed.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, InconsistentKeys, RootCertStore};

use super::{Identity, Pem, Tls};
use crate::error::Error;

/// How often files are looked at, at the most.
const EVERY: Duration = Duration::from_secs(1);

/// How long a new connection waits for such a look: a file system may hang.
const WAIT: Duration = Duration::from_secs(1);

/// The protocol that a server must choose, in the words of ALPN.
pub(super) const H2: &[u8] = b"h2";

/// The configuration in force, made of what the user named. One for each channel: its connections share
/// the sessions that can be resumed.
pub(in crate::transport) struct Credentials {
    source: Tls,
    digests: RandomState,
    state: Mutex<State>,
}

struct State {
    config: Arc<ClientConfig>,
    /// A digest of what was found at the last look, good or not: only a change is worth another try. Keyed at
    /// random, and not the text itself: that may be a private key.
    seen: u64,
    looked: Instant,
    /// A look is under way: no other begins, so that none that is slow undoes a newer one.
    looking: bool,
}

/// A look under way, and over when dropped.
struct Look(Arc<Credentials>);

impl Drop for Look {
    fn drop(&mut self) {
        self.0.state().looking = false;
    }
}

/// What is in the files at one moment, or why one of them cannot be read.
type Contents = Result<Vec<Vec<u8>>, String>;

impl Credentials {
    /// Reads and checks everything; blocks for the time that files take.
    ///
    /// # Errors
    ///
    /// When something cannot be read or used; the error names the file and the rule.
    pub(in crate::transport) fn load(source: Tls) -> Result<Arc<Self>, Error> {
        let contents = contents(&source);
        let config =
            configuration(&source, &contents).map_err(|e| Error::config(format!("TLS: {e}")))?;
        let digests = RandomState::new();
        let state = State {
            config,
            seen: digests.hash_one(&contents),
            looked: Instant::now(),
            looking: false,
        };
        Ok(Arc::new(Self {
            source,
            digests,
            state: Mutex::new(state),
        }))
    }

    /// The configuration for a new connection. Where files were named, and not looked at for a second, one
    /// caller looks again first, for a second at the most; others take what there is meanwhile.
    pub(super) async fn current(self: &Arc<Self>) -> Arc<ClientConfig> {
        if let Some(look) = self.due() {
            let (done, is_done) = oneshot::channel::<()>();
            // On a thread of its own: the workers must not wait for a disk, and a runtime that shuts down waits
            // for its blocking threads, however long a file system hangs.
            let looking = std::thread::Builder::new()
                .name("equipoise-tls".to_owned())
                .spawn(move || {
                    look.0.look_again();
                    drop((look, done));
                });
            match looking {
                // Over when the other side is dropped.
                Ok(_) => match tokio::time::timeout(WAIT, is_done).await {
                    Ok(_) => {}
                    Err(_) => {
                        tracing::warn!(target: "equipoise", "TLS files cannot be read yet; the last good ones stay in use");
                    }
                },
                Err(error) => {
                    tracing::warn!(target: "equipoise", %error, "no thread to read TLS files; the last good ones stay in use");
                }
            }
        }
        self.state().config.clone()
    }

    /// A look at the files, if it is time for one and none is under way.
    fn due(self: &Arc<Self>) -> Option<Look> {
        if !self.source.pems().any(|pem| matches!(pem, Pem::File(_))) {
            return None;
        }
        let now = Instant::now();
        let mut state = self.state();
        if state.looking || now.saturating_duration_since(state.looked) < EVERY {
            return None;
        }
        (state.looked, state.looking) = (now, true);
        Some(Look(self.clone()))
    }

    fn look_again(&self) {
        let contents = contents(&self.source);
        let seen = self.digests.hash_one(&contents);
        if self.state().seen == seen {
            return;
        }
        let made = configuration(&self.source, &contents);
        let mut state = self.state();
        state.seen = seen;
        match made {
            Ok(config) => {
                state.config = config;
                tracing::info!(target: "equipoise", "TLS files changed; new connections use them");
            }
            Err(error) => {
                tracing::warn!(target: "equipoise", %error, "TLS files changed and cannot be used; the last good ones stay in use");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Where things are from, and nothing of what is in them: options and connectors are logged.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

fn contents(tls: &Tls) -> Contents {
    tls.pems()
        .map(|pem| match pem {
            // What was given does not change.
            Pem::Given(_) => Ok(Vec::new()),
            Pem::File(path) => std::fs::read(path).map_err(|e| format!("{}: {e}", path.display())),
        })
        .collect()
}

/// The configuration that `tls` asks for, with `contents` in its files.
fn configuration(tls: &Tls, contents: &Contents) -> Result<Arc<ClientConfig>, String> {
    if let Some(own) = &tls.config {
        return match tls.roots.is_empty() && tls.identity.is_none() {
            true => Ok(with_h2(own)),
            false => Err("roots or an identity are named beside a whole rustls::ClientConfig; put them into it".into()),
        };
    }
    let provider = Arc::new(provider()?);
    let mut contents = contents.as_ref().map_err(Clone::clone)?.iter();
    let mut next = |pem: &'_ Pem| -> Text {
        let read = contents.next().map(Vec::as_slice).unwrap_or_default();
        Text {
            from: pem.to_string(),
            pem: match pem {
                Pem::Given(given) => given.to_vec(),
                Pem::File(_) => read.to_vec(),
            },
        }
    };
    let mut roots = RootCertStore::empty();
    for pem in &tls.roots {
        trust(&mut roots, &next(pem))?;
    }
    if tls.roots.is_empty() {
        roots = roots_by_feature()?;
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(Identity { chain, key }) => {
            let (chain, key) = (next(chain), next(key));
            builder
                .with_client_auth_cert(chain.certificates()?, key.key()?)
                .map_err(|error| unfit(&chain, &key, error))?
        }
    };
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(Arc::new(config))
}

/// Where cryptography comes from: always said, since rustls panics when it must choose between two.
fn provider() -> Result<CryptoProvider, String> {
    #[cfg(feature = "tls-ring")]
    let provider = Ok(rustls::crypto::ring::default_provider());
    #[cfg(all(feature = "tls-aws-lc", not(feature = "tls-ring")))]
    let provider = Ok(rustls::crypto::aws_lc_rs::default_provider());
    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    let provider = Err(
        "no cryptography is built in: enable feature tls-ring or tls-aws-lc of equipoise, \
         or give a whole rustls::ClientConfig"
            .to_owned(),
    );
    provider
}

/// Whom to trust where nobody is named.
fn roots_by_feature() -> Result<RootCertStore, String> {
    #[allow(unused_mut, reason = "not all features bring roots")]
    let mut roots = RootCertStore::empty();
    #[cfg(feature = "tls-webpki-roots")]
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    #[cfg(feature = "tls-native-roots")]
    {
        let found = rustls_native_certs::load_native_certs();
        // A system's store holds what it holds: what rustls cannot read is passed over.
        roots.add_parsable_certificates(found.certs);
        if let (true, Some(error)) = (roots.is_empty(), found.errors.first()) {
            return Err(format!("the system's roots cannot be read: {error}"));
        }
    }
    match roots.is_empty() {
        false => Ok(roots),
        true => Err(
            "nobody is trusted: name roots, or enable feature tls-native-roots or tls-webpki-roots of equipoise"
                .into(),
        ),
    }
}

fn trust(roots: &mut RootCertStore, text: &Text) -> Result<(), String> {
    for (index, certificate) in text.certificates()?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            format!(
                "{}: certificate {} cannot be trusted: {error}",
                text.from,
                index + 1
            )
        })?;
    }
    Ok(())
}

/// PEM text, and where it is from.
struct Text {
    from: String,
    pem: Vec<u8>,
}

impl Text {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.pem).collect();
        match read {
            Ok(found) if found.is_empty() => Err(format!(
                "{}: no certificate in it (expected PEM, -----BEGIN CERTIFICATE-----)",
                self.from
            )),
            Ok(found) => Ok(found),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        match PrivateKeyDer::from_pem_slice(&self.pem) {
            Ok(key) => Ok(key),
            Err(pem::Error::NoItemsFound) => Err(format!(
                "{}: no private key in it (expected PEM, -----BEGIN PRIVATE KEY-----, not encrypted)",
                self.from
            )),
            Err(error) => Err(self.broken(&error)),
        }
    }

    /// In words of our own: the parser's may quote the text, and this may be a key.
    fn broken(&self, error: &pem::Error) -> String {
        let what: Cow<'_, str> = match error {
            pem::Error::MissingSectionEnd { .. } => "a section has no end line".into(),
            pem::Error::IllegalSectionStart { .. } => {
                "a section begins with a malformed line".into()
            }
            pem::Error::Base64Decode(_) => "a section is not base64".into(),
            _ => "not PEM".into(),
        };
        format!("{}: broken PEM: {what}", self.from)
    }
}

fn unfit(chain: &Text, key: &Text, error: rustls::Error) -> String {
    let (chain, key) = (&chain.from, &key.from);
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            format!(
                "the certificate in {chain} and the private key in {key} do not belong together"
            )
        }
        error => format!("certificate in {chain}, private key in {key}: {error}"),
    }
}

fn with_h2(own: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    if own.alpn_protocols.iter().any(|protocol| protocol == H2) {
        return own.clone();
    }
    let mut config = ClientConfig::clone(own);
    // First: the order is our preference.
    config.alpn_protocols.insert(0, H2.to_vec());
    Arc::new(config)
}

// Needs cryptography: with feature `tls` alone nothing but a whole configuration can be loaded.
#[cfg(all(test, any(feature = "tls-ring", feature = "tls-aws-lc")))]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CertifiedKey, KeyPair};
    use std::fs;
    use std::path::{Path, PathBuf};

    /// A directory for the files of one test, gone with the value.
    struct Files(PathBuf);

    impl Files {
        fn new(test: &str) -> Self {
            let name = format!("equipoise-credentials-{test}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A certificate that signs itself, and its key, in PEM.
    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    fn error(tls: Tls) -> String {
        let error = Credentials::load(tls).unwrap_err();
        assert!(error.is_config(), "{error:?}");
        error.to_string()
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_rule() {
        let files = Files::new("bad");
        let (cert, key) = pair();
        let (_, other_key) = pair();
        let good = files.write("good.pem", &cert);
        let good_key = files.write("good.key", &key);
        let key_of_another = files.write("another.key", other_key);
        let cut = files.write("cut.pem", &cert[..cert.len() / 2]);
        let no_base64 = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        let no_base64 = files.write("base64.pem", no_base64);
        let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let no_der = files.write("der.pem", format!("{cert}{no_der}"));
        let missing = files.0.join("missing.pem");
        let roots = |path: &Path| Tls::new().with_roots_file(path);
        let own = |chain: &Path, key: &Path| roots(&good).with_identity_files(chain, key);
        for (tls, file, rule) in [
            (roots(&missing), &missing, "No such file"),
            (roots(&good_key), &good_key, "no certificate in it"),
            (roots(&cut), &cut, "no end line"),
            (roots(&no_base64), &no_base64, "not base64"),
            (roots(&no_der), &no_der, "certificate 2 cannot be trusted"),
            (own(&missing, &good_key), &missing, "No such file"),
            (own(&good, &missing), &missing, "No such file"),
            (own(&good_key, &good_key), &good_key, "no certificate in it"),
            (own(&good, &good), &good, "no private key in it"),
            (
                own(&good, &key_of_another),
                &key_of_another,
                "do not belong together",
            ),
        ] {
            let text = error(tls);
            let file = file.display().to_string();
            assert!(text.starts_with("TLS: ") && text.contains(&file), "{text}");
            assert!(text.contains(rule), "{rule}: {text}");
        }
        let text = error(Tls::new().with_roots_pem("nothing"));
        assert!(text.contains("the PEM given: no certificate"), "{text}");
        assert!(Credentials::load(own(&good, &good_key)).is_ok());
    }

    #[cfg(not(any(feature = "tls-native-roots", feature = "tls-webpki-roots")))]
    #[test]
    fn without_roots_of_any_kind_nobody_is_trusted() {
        assert!(error(Tls::new()).contains("nobody is trusted: name roots, or enable"));
    }

    /// The dev-dependencies link ring and aws-lc-rs, as a large program may: rustls's own choice panics then.
    #[test]
    fn two_providers_linked_are_no_trouble() {
        let chosen = std::panic::catch_unwind(ClientConfig::builder);
        assert!(chosen.is_err(), "only one provider is linked");
        let tls = Tls::new().with_roots_pem(pair().0);
        assert!(Credentials::load(tls).is_ok());
    }

    #[test]
    fn a_whole_configuration_gets_h2_and_nothing_else() {
        let own = |alpn: &[&str]| {
            let mut config = ClientConfig::builder_with_provider(Arc::new(provider().unwrap()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            config.enable_sni = false;
            config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
            Arc::new(config)
        };
        let loaded = |own: &Arc<ClientConfig>| {
            let credentials = Credentials::load(Tls::from_config(own.clone())).unwrap();
            credentials.state().config.clone()
        };
        let plain = own(&["istio"]);
        let config = loaded(&plain);
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"istio".to_vec()]);
        assert!(!config.enable_sni && plain.alpn_protocols.len() == 1);
        let complete = own(&["x", "h2"]);
        assert!(Arc::ptr_eq(&loaded(&complete), &complete));
        let text = error(Tls::from_config(plain).with_roots_pem(pair().0));
        assert!(
            text.contains("beside a whole rustls::ClientConfig"),
            "{text}"
        );
    }

    impl Credentials {
        /// As if a second had gone by since the last look.
        fn age(&self) {
            let mut state = self.state();
            state.looked = state.looked.checked_sub(EVERY).unwrap();
        }
    }

    #[tokio::test]
    async fn changed_files_serve_from_the_next_look_on_and_bad_ones_never() {
        let files = Files::new("reload");
        let ((cert, key), (new_cert, new_key)) = (pair(), pair());
        let (chain_file, key_file) = (files.write("c", &cert), files.write("k", &key));
        let tls = Tls::new()
            .with_roots_file(files.write("ca", &cert))
            .with_identity_files(chain_file, key_file);
        let credentials = Credentials::load(tls).unwrap();
        let first = credentials.current().await;
        let second = async || {
            credentials.age();
            credentials.current().await
        };
        let same = |a: &Arc<ClientConfig>, b: &Arc<ClientConfig>| Arc::ptr_eq(a, b);
        assert!(same(&second().await, &first), "nothing changed");

        // Only half of the pair, then both.
        files.write("k", &new_key);
        assert!(
            same(&second().await, &first),
            "a key of another certificate"
        );
        files.write("c", &new_cert);
        assert!(same(&credentials.current().await, &first), "not due yet");
        let renewed = second().await;
        assert!(!same(&renewed, &first), "the new pair");

        for broken in ["", "-----BEGIN CERTIFICATE-----\n"] {
            files.write("ca", broken);
            assert!(same(&second().await, &renewed), "{broken:?}");
        }
        fs::remove_file(files.0.join("ca")).unwrap();
        assert!(same(&second().await, &renewed), "the file is gone");
        files.write("ca", &new_cert);
        assert!(!same(&second().await, &renewed), "a file to be used");
    }

    /// A pipe that nobody writes to is a file that cannot be opened, as on a file system that hangs.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_file_system_that_hangs_holds_up_one_connection_and_for_a_second() {
        let files = Files::new("hung");
        let ((cert, _), (new_cert, _)) = (pair(), pair());
        let ca = files.write("ca", &cert);
        let tls = Tls::new().with_roots_file(&ca);
        let credentials = Credentials::load(tls).unwrap();
        let first = credentials.current().await;
        let same = |a: &Arc<ClientConfig>| Arc::ptr_eq(a, &first);

        fs::remove_file(&ca).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&ca).status();
        assert!(made.unwrap().success());
        credentials.age();
        let begin = Instant::now();
        assert!(same(&credentials.current().await), "the last good one");
        let took = begin.elapsed();
        assert!((WAIT..10 * WAIT).contains(&took), "{took:?}");

        // However late it gets, nobody looks beside it, nor waits for it.
        credentials.age();
        assert!(credentials.due().is_none(), "a look is under way");
        let mut waiting = std::pin::pin!(credentials.current());
        let at_once = futures_util::FutureExt::now_or_never(waiting.as_mut());
        assert!(at_once.is_some_and(|config| same(&config)));

        // It ends with the trouble, and what it read counts.
        fs::write(&ca, &new_cert).unwrap();
        let begin = Instant::now();
        while credentials.state().looking {
            assert!(begin.elapsed() < 10 * WAIT, "the look has not ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!same(&credentials.state().config), "the new root");
        assert!(credentials.due().is_some(), "looks go on");
    }

    #[tokio::test(start_paused = true)]
    async fn pem_that_was_given_is_not_looked_at_again() {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(["a.test".to_owned()]).unwrap();
        let cert = cert.self_signed(&key).unwrap();
        let tls = Tls::new()
            .with_roots_pem(cert.pem())
            .with_identity_pem(cert.pem(), key.serialize_pem());
        let credentials = Credentials::load(tls).unwrap();
        let first = credentials.current().await;
        tokio::time::advance(10 * EVERY).await;
        assert!(credentials.due().is_none());
        assert!(Arc::ptr_eq(&credentials.current().await, &first));
    }
}
