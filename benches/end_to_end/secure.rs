//! The main cell over TLS: what securing the bytes costs is the same for all, so that the lanes are closer.

use std::path::PathBuf;

use equipoise::{Channel, Endpoint, Tls};
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::common::stats::Spread;
use crate::rig::greeter::{Options, tonic_endpoint_by};
use crate::rig::process::ServerProcess;
use crate::rig::tls::Ca;
use crate::rivals::TonicInTurn;
use crate::{Lane, MAIN, Rounds, common, lane, measure, print, rounds_of};

/// The name in the certificate of the servers.
const NAME: &str = "bench.test";

const TONIC_BALANCE: &str = "tonic balance TLS";
const OURS: &str = "equipoise TLS";

/// Measures the main cell, and gives the figure that is held to account.
pub(crate) fn run(rounds: Rounds, server_core: usize) -> Option<String> {
    let ca = Ca::new("bench");
    let pair = ca.issue(&[NAME]);
    let file = PemFile::write(&format!("{}{}", pair.cert, pair.key));
    let options: Vec<_> = (0..MAIN.endpoints)
        .map(|n| Options {
            tls: Some(file.0.clone()),
            ..Options::new(&format!("b{n}"))
        })
        .collect();
    let servers = ServerProcess::start_all(&options, Some(server_core));
    common::runtime().block_on(async {
        let lanes = lanes(&servers, &ca).await;
        println!("\nover TLS:");
        let measured = measure(&lanes, MAIN, rounds).await;
        print(MAIN, rounds, &measured);
        let (ours, balance) = (
            rounds_of(&measured, OURS)?,
            rounds_of(&measured, TONIC_BALANCE)?,
        );
        let ratio = Spread::of_ratios(ours, balance, |round| round.cpu).median;
        Some(format!("cpu_tls_vs_tonic_tls={ratio:.3}"))
    })
}

async fn lanes(servers: &ServerProcess, ca: &Ca) -> Vec<Lane> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&ca.pem))
        .domain_name(NAME);
    let endpoints = servers.addresses.iter().map(|&address| {
        let endpoint = tonic_endpoint_by("https", address).tls_config(tls.clone());
        endpoint.expect("the certificate is a CA's")
    });
    let endpoints: Vec<_> = endpoints.collect();
    let balance = tonic::transport::Channel::balance_list(endpoints.iter().cloned());
    let ours = Channel::from_endpoints(servers.addresses.iter().map(|&a| Endpoint::from(a)))
        .authority(NAME)
        .tls(Tls::new().with_roots_pem(ca.pem.clone()))
        .connect()
        .await;
    vec![
        lane(TONIC_BALANCE, balance),
        lane("tonic in turn TLS", TonicInTurn::connect(endpoints).await),
        lane(OURS, ours.expect("the servers are up")),
    ]
}

/// The certificate and key of the servers, which are another process; gone with the value.
struct PemFile(PathBuf);

impl PemFile {
    fn write(text: &str) -> Self {
        let name = format!("equipoise-bench-{}.pem", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("the directory for temporary files takes one more");
        Self(path)
    }
}

impl Drop for PemFile {
    fn drop(&mut self) {
        // Nothing depends on it: the directory is for temporary files.
        let _ = std::fs::remove_file(&self.0);
    }
}
