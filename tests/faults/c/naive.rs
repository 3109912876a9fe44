//! The controls of C4, C5 and C6: what clients see that look less closely.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::Code;

use super::{BUDGET, NAME, serve};
use crate::rig::clean::alone;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::tonic_endpoint;
use crate::rig::ledger::Ledger;
use crate::rig::tls::{Acceptor, Ca, gullible};
use crate::rig::{holes, load, now};

/// A client's side of TLS that believes everything and offers no protocol.
async fn handshake(address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    let name = ServerName::try_from(NAME).expect("it is a name");
    let connector = TlsConnector::from(Arc::new(gullible()));
    connector.connect(name, socket).await
}

/// C4: tonic takes a server behind TLS for connected, gives it the call, and does not say what is wrong.
#[test]
fn c4_control_tonic_connects_and_does_not_say_why_it_fails() {
    alone(async {
        let (ca, ledger) = (Ca::new("ca"), Ledger::create());
        let secure = serve(&Acceptor::new(&ca.issue(&[NAME])), "secure", &ledger);
        let channel = tonic_endpoint(secure.address).connect().await;
        let channel = channel.expect("it says that it is connected");
        let ended = load::call(channel, HelloRequest::default(), BUDGET, now()).await;
        let end = ended.end.expect("it ended");
        println!("{end:?}");
        assert_ne!(end.code, Code::Ok);
        for word in ["TLS", "tls", "plaintext"] {
            assert!(!end.message.contains(word), "{end:?}");
        }
    });
}

/// C5: a handshake without a limit of its own waits for as long as it is let.
#[test]
fn c5_control_a_handshake_has_no_end_of_its_own() {
    alone(async {
        let silent = holes::silent();
        let handshake = tokio::time::timeout(BUDGET * 3 / 2, handshake(silent.address));
        assert!(handshake.await.is_err(), "it ended");
    });
}

/// C6: who does not look at the protocol that was chosen finds that they all speak HTTP/2.
#[test]
fn c6_control_without_alpn_they_all_speak_http_2() {
    alone(async {
        let (ca, ledger) = (Ca::new("ca"), Ledger::create());
        let pair = ca.issue(&[NAME]);
        for alpn in [&["http/1.1", "h2"][..], &["http/1.1"], &[]] {
            let server = serve(&Acceptor::speaking(&pair, alpn), "any", &ledger);
            let stream = handshake(server.address).await;
            let stream = stream.expect("it believes everything");
            assert_eq!(stream.get_ref().1.alpn_protocol(), None);
            let (mut sender, connection) = h2::client::handshake(stream)
                .await
                .expect("the preface is written");
            let connection = tokio::spawn(connection);
            let request = http::Request::post("https://greeter.test/a/b").body(());
            let request = request.expect("a request");
            let (response, _) = sender.send_request(request, true).expect("it is open");
            let response = response.await.expect("it answers");
            assert_eq!(response.status(), http::StatusCode::OK, "{alpn:?}");
            connection.abort();
        }
    });
}
