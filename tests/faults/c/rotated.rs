//! C7: certificates, keys and roots that are replaced while calls are made.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use equipoise::{Builder, Channel, Endpoint, Tls};
use tokio_rustls::rustls::client::{ResolvesClientCert, Resumption};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SignatureScheme};

use super::{NAME, failed, options, says, serve};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::{Options, Server};
use crate::rig::ledger::Ledger;
use crate::rig::load::{Load, Running};
use crate::rig::timer;
use crate::rig::tls::{Acceptor, Ca, Pair, provider};
use crate::{clean, is_ready, reference, report, size, status, until};

/// How often files are looked at, at the most.
const LOOK: Duration = Duration::from_secs(1);

/// How long after that they may take effect.
const EFFECT: Duration = Duration::from_secs(1);

/// Connections are replaced at this age, so that handshakes go on and on. By us: a call that two servers in a row send
/// away by GOAWAY fails, whatever is in the files.
const AGE: Duration = Duration::from_secs(1);

/// A directory for one test, gone with the value.
struct Files(PathBuf);

impl Files {
    fn create(test: &str) -> Self {
        let name = format!("equipoise-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("the directory for temporary files takes one more");
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Puts a file in place of another, whole, as those do who replace certificates.
    fn replace(&self, name: &str, text: &str) -> PathBuf {
        let fresh = self.at("fresh");
        fs::write(&fresh, text).expect("the directory is ours");
        fs::rename(fresh, self.at(name)).expect("and so are its files");
        self.at(name)
    }

    /// Trusts what is in `ca.pem`.
    fn trusting(&self, ca: &Ca) -> Tls {
        Tls::new().with_roots_file(self.replace("ca.pem", &ca.pem))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Three servers behind `acceptor`.
fn three(acceptor: &Acceptor, names: [&str; 3], ledger: &Ledger) -> [Server; 3] {
    names.map(|name| serve(acceptor, name, ledger))
}

fn over(servers: &[Server], tls: Tls) -> Builder<Channel> {
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let builder = reference(&addresses).max_connection_age(AGE);
    builder.authority(NAME).tls(tls)
}

/// That channel once it is ready, and a load on it.
async fn loaded(builder: Builder<Channel>) -> (Channel, Running) {
    let channel = builder.build().expect("in range");
    until("every endpoint is ready", || is_ready(&channel)).await;
    let load = Load {
        rate: size::of(300, 2_000),
        ..Load::default()
    };
    let running = load.run_until_stopped(&channel);
    (channel, running)
}

/// Long enough for a look at the files, and for handshakes after it.
async fn looked() {
    timer::pause(LOOK + size::of(1, 3) * AGE).await;
}

/// C7, our own certificate: its key comes first and does not belong to it, so the old pair goes on. With the certificate
/// the new pair serves, and no call notices.
#[test]
fn c7_a_key_before_its_certificate() {
    alone(async {
        let before = Footprint::take();
        let (ca, clients, ledger) = (Ca::new("ca"), Ca::new("clients"), Ledger::create());
        let (old, new) = (clients.issue(&["one.test"]), clients.issue(&["two.test"]));
        let files = Files::create("key-first");
        let tls = files.trusting(&ca).with_identity_files(
            files.replace("cert.pem", &old.cert),
            files.replace("key.pem", &old.key),
        );
        let acceptor = Acceptor::asking(&ca.issue(&[NAME]), &clients);
        let shown = || acceptor.seen.clients();
        let is = |pair: &Pair| {
            let chain = pair.chain();
            move |shown: &CertificateDer<'_>| *shown == chain[0]
        };
        let servers = three(&acceptor, ["b1", "b2", "b3"], &ledger);
        let (channel, load) = loaded(over(&servers, tls)).await;

        let whole = shown().len();
        files.replace("key.pem", &new.key);
        looked().await;
        // A pair that does not fit is found out by the server.
        assert_eq!(acceptor.seen.refused(), [""; 0]);
        let half = shown();
        let meanwhile = half.len() - whole;
        size::figure("handshakes with half a pair", meanwhile as f64, "");
        assert!(meanwhile >= 3, "{meanwhile}");
        assert!(half.iter().all(is(&old)), "a certificate nobody named");

        files.replace("cert.pem", &new.cert);
        let took = until("the new pair is shown", || shown().iter().any(is(&new))).await;
        report("the new pair", took, LOOK + EFFECT);
        // Handshakes that were under way end.
        timer::pause(AGE / 4).await;
        let known = shown().len();
        until("others have followed", || shown().len() >= known + 3).await;
        assert!(shown()[known..].iter().all(is(&new)), "the old certificate");

        let verdict = ledger.audit(&load.stop().await);
        println!("{verdict}");
        verdict.assert_unnoticed();
        assert_eq!(acceptor.seen.refused(), [""; 0]);
        drop(servers);
        clean(channel, &before).await;
    });
}

/// C7, the root: the new one joins the old one, servers follow, the old one goes; and no call notices.
#[test]
fn c7_a_new_root_and_servers_that_follow() {
    alone(async {
        let before = Footprint::take();
        let (old, new, ledger) = (Ca::new("old"), Ca::new("new"), Ledger::create());
        let files = Files::create("roots");
        let acceptors = [&old, &new].map(|ca| Acceptor::new(&ca.issue(&[NAME])));
        let old_servers = three(&acceptors[0], ["b1", "b2", "b3"], &ledger);
        let new_servers = three(&acceptors[1], ["b4", "b5", "b6"], &ledger);
        let (channel, load) = loaded(over(&old_servers, files.trusting(&old))).await;
        let list = |servers: &[&Server]| {
            let servers = servers.iter().map(|server| Endpoint::from(server.address));
            channel.set_endpoints(servers).expect("it is in our hands");
        };
        let [b1, b2, b3] = &old_servers;
        let [b4, b5, b6] = &new_servers;
        let ready = |count| channel.endpoints().len() == count && is_ready(&channel);

        files.replace("ca.pem", &format!("{}{}", old.pem, new.pem));
        list(&[b1, b2, b3, b4]);
        let took = until("a server of the new root is ready", || ready(4)).await;
        report("the new root", took, LOOK + EFFECT);
        list(&[b4, b5, b6]);
        until("all servers are new", || ready(3)).await;

        // Nobody is left who needs the old one.
        files.replace("ca.pem", &new.pem);
        looked().await;
        list(&[b4, b5, b6, b1]);
        let (why, _) = failed(&channel, b1.address).await;
        says(&why, b1.address, &["TLS handshake", "unknown issuer"]);

        let verdict = ledger.audit(&load.stop().await);
        println!("{verdict}");
        verdict.assert_unnoticed();
        drop((old_servers, new_servers));
        clean(channel, &before).await;
    });
}

/// What reads the files for each handshake anew, and does not look what it finds there.
#[derive(Debug)]
struct Careless {
    cert: PathBuf,
    key: PathBuf,
}

impl ResolvesClientCert for Careless {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let read = |path| fs::read_to_string(path).expect("it is there");
        let pair = Pair {
            cert: read(&self.cert),
            key: read(&self.key),
        };
        let key = provider().key_provider.load_private_key(pair.private_key());
        let key = key.expect("it is a key");
        Some(Arc::new(CertifiedKey::new(pair.chain(), key)))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// C7, the control: who uses what is in the files is refused as soon as half of the pair is another, and calls fail.
#[test]
fn c7_control_who_does_not_look_shows_half_a_pair() {
    alone(async {
        let (ca, clients, ledger) = (Ca::new("ca"), Ca::new("clients"), Ledger::create());
        let (old, new) = (clients.issue(&["one.test"]), clients.issue(&["two.test"]));
        let files = Files::create("careless");
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(ca.pem.as_bytes()).expect("the rig made it");
        roots.add(root).expect("and it is a CA's");
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions")
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(Careless {
                cert: files.replace("cert.pem", &old.cert),
                key: files.replace("key.pem", &old.key),
            }));
        // A session that is resumed needs no certificate.
        config.resumption = Resumption::disabled();
        let acceptor = Acceptor::asking(&ca.issue(&[NAME]), &clients);
        // Who has a connection keeps it until another is made: here the servers end them.
        let servers = ["b1", "b2", "b3"].map(|name| {
            let options = Options {
                max_connection_age: Some(AGE),
                ..options(name, &ledger)
            };
            Server::start_behind(acceptor.clone(), options)
        });
        let (_channel, load) = loaded(over(&servers, Tls::from_config(config))).await;
        assert_eq!(acceptor.seen.refused(), [""; 0]);
        files.replace("key.pem", &new.key);
        looked().await;
        let verdict = ledger.audit(&load.stop().await);
        println!("{verdict}");
        let refused = acceptor.seen.refused();
        println!("{refused:?}");
        assert!(refused.len() >= 3, "{refused:?}");
        assert!(verdict.failed > 0, "{verdict}");
    });
}

/// C7, the control: a root that was given, and not named as a file, stays what it is.
#[test]
fn c7_control_a_root_that_was_given_stays() {
    alone(async {
        let (old, new, ledger) = (Ca::new("old"), Ca::new("new"), Ledger::create());
        let acceptor = Acceptor::new(&new.issue(&[NAME]));
        let servers = three(&acceptor, ["b1", "b2", "b3"], &ledger);
        let files = Files::create("given");
        files.replace("ca.pem", &format!("{}{}", old.pem, new.pem));
        let given = Tls::new().with_roots_pem(old.pem.clone());
        let channel = over(&servers, given).build().expect("in range");
        looked().await;
        let (why, _) = failed(&channel, servers[0].address).await;
        says(&why, servers[0].address, &["unknown issuer"]);
        assert_eq!(status(&channel, servers[0].address).picks, 0);
        assert_eq!(acceptor.seen.handshakes(), 0);
    });
}
