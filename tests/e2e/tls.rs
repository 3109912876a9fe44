//! TLS and mTLS against real tonic servers, with certificates made on the spot.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;
use equipoise::policy::RoundRobin;
use equipoise::transport::rustls::{ClientConfig, RootCertStore};
use equipoise::transport::{
    Connection, Connector, Http2Connector, Http2Options, Outgoing, Payload, Reached,
};
use equipoise::{Address, BalanceLayer, Channel, Connectivity, Endpoint, Error, Tls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tonic::Request;
use tower::Layer;

use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, Server};
use crate::rig::tls::{Acceptor, Ca, Pair, provider};
use crate::{quick, quiet, until};

/// The name that the servers here have certificates for.
const NAME: &str = "greeter.test";

fn server(acceptor: &Acceptor, name: &str) -> Server {
    Server::start_behind(acceptor.clone(), Options::new(name))
}

/// A channel by TLS to `servers`, not connected yet.
fn secured(servers: &[&Server], tls: Tls) -> equipoise::Builder<Channel> {
    Channel::from_endpoints(servers.iter().map(|s| Endpoint::from(s.address)))
        .authority(NAME)
        .backoff(quick())
        .tls(tls)
}

async fn hello(channel: &Channel) -> String {
    let answer = GreeterClient::new(channel.clone())
        .say_hello(HelloRequest::default())
        .await;
    answer.expect("a server is ready").into_inner().server
}

/// Why the only endpoint is not ready, once it has failed.
async fn failure(channel: &Channel) -> String {
    let mut why = None;
    until("an attempt has failed", || {
        why = channel.endpoints().into_iter().find_map(|e| e.why);
        why.is_some()
    })
    .await;
    why.unwrap_or_default()
}

/// Makes every connection anew: the endpoint leaves the list and comes back.
async fn reconnect(channel: &Channel, server: &Server) {
    channel.set_endpoints([]).unwrap();
    until("the endpoint has left", || channel.endpoints().is_empty()).await;
    channel.set_endpoints([server.address.into()]).unwrap();
    until("it is ready again", || {
        channel.state() == Connectivity::Ready
    })
    .await;
}

/// A directory for one test, gone with the value.
struct Files(PathBuf);

impl Files {
    fn new(test: &str) -> Self {
        let name = format!("equipoise-tls-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("the directory for temporary files takes one more");
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.at(name), text).expect("the directory is ours");
        self.at(name)
    }

    fn write_pair(&self, pair: &Pair) {
        self.write("cert.pem", &pair.cert);
        self.write("key.pem", &pair.key);
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_logged_of_options_names_the_files_and_holds_no_key() {
    let files = Files::new("debug");
    let ca = Ca::new("ca");
    let pair = ca.issue(&["client.test"]);
    files.write_pair(&pair);
    let given = Tls::new()
        .with_roots_pem(ca.pem.clone())
        .with_identity_pem(pair.cert.clone(), pair.key.clone());
    let named = Tls::new()
        .with_roots_file(files.write("ca.pem", &ca.pem))
        .with_identity_files(files.at("cert.pem"), files.at("key.pem"));
    // As text, and as bytes are printed: a part is enough to give a key away.
    let text = pair.key.lines().nth(1).expect("a line of base64");
    let bytes = format!("{:?}", pair.key.as_bytes());
    let bytes = &bytes[1..200];
    for (tls, path) in [(given, None), (named, Some(files.at("key.pem")))] {
        let options = Http2Options::default().with_authority(NAME).unwrap();
        let options = options.with_tls(tls).unwrap();
        let builder = Channel::builder("static:127.0.0.1:1").unwrap();
        let builder = builder.http2(options.clone());
        let connector = Http2Connector::new(options.clone());
        let logged = format!("{builder:?} {options:?} {connector:?}");
        assert!(
            !logged.contains(text) && !logged.contains(bytes),
            "{logged}"
        );
        let path = path.map(|path| path.display().to_string());
        assert!(
            logged.contains(path.as_deref().unwrap_or("bytes")),
            "{logged}"
        );
    }
}

#[tokio::test]
async fn all_kinds_of_call_go_over_tls() {
    let ca = Ca::new("ca");
    let acceptor = Acceptor::new(&ca.issue(&[NAME]));
    let (a, b) = (server(&acceptor, "a"), server(&acceptor, "b"));
    let tls = Tls::new().with_roots_pem(ca.pem.clone());
    let builder = secured(&[&a, &b], tls).policy(RoundRobin::default());
    let channel = builder.connect().await.unwrap();
    let mut client = GreeterClient::new(channel.clone());

    let large = HelloRequest {
        payload: (0..3 << 20).map(|n| n as u8).collect(),
        echo: true,
        ..HelloRequest::default()
    };
    let mut large_client = client.clone().max_decoding_message_size(8 << 20);
    let reply = large_client.say_hello(large.clone()).await.unwrap();
    assert!(
        reply.into_inner().payload == large.payload,
        "3 MiB, unchanged"
    );

    let countdown = CountdownRequest {
        count: 50,
        payload_bytes: 20_000,
        ..CountdownRequest::default()
    };
    let mut replies = client.countdown(countdown).await.unwrap().into_inner();
    let mut bytes = 0;
    while let Some(reply) = replies.message().await.unwrap() {
        bytes += reply.payload.len();
    }
    assert_eq!(bytes, 1_000_000);

    let requests = (0..20).map(|id| HelloRequest {
        id,
        payload: vec![1; 1_000],
        ..HelloRequest::default()
    });
    let requests = || tokio_stream::iter(requests.clone().collect::<Vec<_>>());
    let gathered = client.gather(requests()).await.unwrap().into_inner();
    assert_eq!((gathered.messages, gathered.bytes), (20, 20_000));

    let mut replies = client.chat(requests()).await.unwrap().into_inner();
    let mut ids = Vec::new();
    while let Some(reply) = replies.message().await.unwrap() {
        ids.push(reply.id);
    }
    assert!(ids.into_iter().eq(0..20));

    until("both are ready", || {
        channel
            .endpoints()
            .iter()
            .all(|e| e.state == Connectivity::Ready)
    })
    .await;
    let (one, other) = (hello(&channel).await, hello(&channel).await);
    assert_ne!(one, other, "both serve");
    quiet(&channel).await;
}

#[tokio::test]
async fn an_https_target_turns_tls_on_and_its_address_is_verified() {
    let ca = Ca::new("ca");
    let by_ip = server(&Acceptor::new(&ca.issue(&["127.0.0.1"])), "a");
    let by_name = server(&Acceptor::new(&ca.issue(&[NAME])), "b");
    let channel = |server: &Server| {
        let target = format!("https://{}", server.address);
        let builder = Channel::builder(target).unwrap().backoff(quick());
        builder.tls(Tls::new().with_roots_pem(ca.pem.clone()))
    };
    let connected = channel(&by_ip).connect().await.unwrap();
    assert_eq!(hello(&connected).await, "a");
    // Not the address, but the name that stands for it.
    let named = channel(&by_name).authority(NAME).connect().await.unwrap();
    assert_eq!(hello(&named).await, "b");
    let error = channel(&by_name).connect().await.unwrap_err().to_string();
    let phase = format!("{}: TLS handshake for \"127.0.0.1\": ", by_name.address);
    assert!(
        error.contains(&phase) && error.contains("another name: DnsName(\"greeter.test\")"),
        "{error}"
    );
}

#[tokio::test]
async fn an_https_target_of_a_name_is_looked_up_and_the_name_verified() {
    let ca = Ca::new("ca");
    let by_name = server(&Acceptor::new(&ca.issue(&["localhost"])), "a");
    let by_ip = server(&Acceptor::new(&ca.issue(&["127.0.0.1"])), "b");
    let channel = |server: &Server| {
        let target = format!("https://localhost:{}", server.address.port());
        let builder = Channel::builder(target).unwrap().backoff(quick());
        builder.tls(Tls::new().with_roots_pem(ca.pem.clone()))
    };
    let connected = channel(&by_name).connect().await.unwrap();
    assert_eq!(hello(&connected).await, "a");
    // The address that the name stands for proves nothing.
    let connected = channel(&by_ip).build().unwrap();
    let mut why = None;
    until("its attempt has failed", || {
        // Where the name stands for an IPv6 address too, nobody listens there.
        let endpoints = connected.endpoints();
        let its = endpoints.iter().find(|e| e.address == by_ip.address.into());
        why = its.and_then(|e| e.why.clone());
        why.is_some()
    })
    .await;
    let why = why.unwrap_or_default();
    let phase = "TLS handshake for \"localhost\"";
    assert!(why.contains(phase) && why.contains("another name"), "{why}");
    let status = GreeterClient::new(connected)
        .say_hello(HelloRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
}

/// A socket that takes a number of bytes more once there is one, and then fails to write.
struct Failing {
    socket: TcpStream,
    left: Arc<Mutex<Option<usize>>>,
}

impl AsyncRead for Failing {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Failing {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut left = this.left.lock().unwrap();
        let buf = match *left {
            None => buf,
            Some(0) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Some(left) => &buf[..left.min(buf.len())],
        };
        let written = Pin::new(&mut this.socket).poll_write(cx, buf);
        if let (Some(left), Poll::Ready(Ok(written))) = (left.as_mut(), &written) {
            *left -= written;
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// TLS says that a write failed, and not that a part of it went out: such a call may have been made.
#[tokio::test]
async fn a_write_that_failed_halfway_counts_as_written() {
    let ca = Ca::new("ca");
    let server = server(&Acceptor::new(&ca.issue(&[NAME])), "a");
    for (bytes, reached) in [(0, Reached::No), (20, Reached::Maybe)] {
        let left = Arc::new(Mutex::new(None));
        let (to, shared) = (server.address, left.clone());
        let options = Http2Options::default()
            .with_authority(NAME)
            .and_then(|options| options.with_tls(Tls::new().with_roots_pem(ca.pem.clone())))
            .unwrap()
            .with_dialler(move |_: &Endpoint, _: &Address| {
                let left = shared.clone();
                async move {
                    let socket = TcpStream::connect(to).await?;
                    Ok(Failing { socket, left })
                }
            });
        let (endpoint, address) = (Endpoint::from(to), Address::from(to));
        let connector = Http2Connector::new(options);
        let connection = connector.connect(&endpoint, &address).await.unwrap();
        // What h2 has of its own to write (the SETTINGS are acknowledged) is out of the way with a call.
        let call = || {
            let head = http::Request::post("/greeter.Greeter/Nothing").body(());
            let request = Outgoing {
                head: Box::new(head.unwrap()),
                payload: Payload::Whole(Bytes::from_static(&[0; 5])),
            };
            connection.call(request, connection.slots().try_reserve().unwrap())
        };
        assert!(call().await.is_ok());
        *left.lock().unwrap() = Some(bytes);
        let Err(error) = call().await else {
            panic!("an answer to a call that was not sent")
        };
        assert_eq!(error.reached, reached, "{bytes}: {:?}", error.status);
        assert_eq!(error.request.is_some(), reached == Reached::No);
    }
}

#[tokio::test]
async fn the_scheme_of_requests_is_https() {
    let ca = Ca::new("ca");
    let acceptor = Acceptor::new(&ca.issue(&[NAME]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(socket).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let trailers = http::Response::builder().header("grpc-status", "5");
        respond
            .send_response(trailers.body(()).unwrap(), true)
            .unwrap();
        // Until the client leaves.
        let _ = connection.accept().await;
        request.uri().to_string()
    });
    let channel = Channel::from_endpoints([address.into()])
        .authority(format!("{NAME}:4711"))
        .tls(Tls::new().with_roots_pem(ca.pem.clone()))
        .build()
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let status = client.say_hello(HelloRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound, "{status:?}");
    drop((client, channel));
    let uri = serving.await.unwrap();
    assert_eq!(
        uri,
        "https://greeter.test:4711/equipoise.demo.v1.Greeter/SayHello"
    );
}

#[tokio::test]
async fn mutual_tls_shows_our_certificate() {
    let (ca, clients) = (Ca::new("servers"), Ca::new("clients"));
    let acceptor = Acceptor::asking(&ca.issue(&[NAME]), &clients);
    let a = server(&acceptor, "a");
    let ours = clients.issue(&["client.test"]);
    let trust = Tls::new().with_roots_pem(ca.pem.clone());
    let own = trust
        .clone()
        .with_identity_pem(ours.cert.clone(), ours.key.clone());
    let channel = secured(&[&a], own).connect().await.unwrap();
    let mut call = Request::new(HelloRequest::default());
    call.set_timeout(Duration::from_secs(10));
    let mut client = GreeterClient::new(channel.clone());
    assert_eq!(
        client.say_hello(call).await.unwrap().into_inner().server,
        "a"
    );
    assert_eq!(acceptor.seen.clients(), ours.chain());

    // Without one, and with one of somebody else's: never READY, and the reason is the server's.
    let stranger = Ca::new("strangers").issue(&["client.test"]);
    let foreign = trust.clone().with_identity_pem(stranger.cert, stranger.key);
    for (tls, reason) in [
        (
            trust,
            "the server asks for a client certificate, and none was named",
        ),
        (foreign, "the server does not accept our client certificate"),
    ] {
        let error = secured(&[&a], tls).connect().await.unwrap_err().to_string();
        assert!(
            error.contains(reason) && error.contains(&a.address.to_string()),
            "{error}"
        );
    }
    assert_eq!(acceptor.seen.handshakes(), 1);
}

#[tokio::test]
async fn a_second_connection_resumes_the_session() {
    let ca = Ca::new("ca");
    let acceptor = Acceptor::new(&ca.issue(&[NAME]));
    let a = server(&acceptor, "a");
    let channel = |tls| async { secured(&[&a], tls).connect().await.unwrap() };
    let tls = || Tls::new().with_roots_pem(ca.pem.clone());
    let first = channel(tls()).await;
    hello(&first).await;
    assert_eq!(
        (acceptor.seen.handshakes(), acceptor.seen.resumed()),
        (1, 0)
    );
    reconnect(&first, &a).await;
    hello(&first).await;
    assert_eq!(
        (acceptor.seen.handshakes(), acceptor.seen.resumed()),
        (2, 1)
    );
    // Another channel has sessions of its own.
    hello(&channel(tls()).await).await;
    assert_eq!(
        (acceptor.seen.handshakes(), acceptor.seen.resumed()),
        (3, 1)
    );
}

#[tokio::test]
async fn changed_files_serve_from_the_next_connection_on() {
    let files = Files::new("reload");
    let (old_ca, new_ca, clients) = (Ca::new("old"), Ca::new("new"), Ca::new("clients"));
    let (before, after) = (clients.issue(&["one.test"]), clients.issue(&["two.test"]));
    files.write_pair(&before);
    let tls = Tls::new()
        .with_roots_file(files.write("ca.pem", &old_ca.pem))
        .with_identity_files(files.at("cert.pem"), files.at("key.pem"));
    let old = Acceptor::asking(&old_ca.issue(&[NAME]), &clients);
    let new = Acceptor::asking(&new_ca.issue(&[NAME]), &clients);
    let (a, b) = (server(&old, "a"), server(&new, "b"));
    let channel = secured(&[&a], tls).connect().await.unwrap();
    assert_eq!(hello(&channel).await, "a");

    // The control: the new CA is unknown as long as the file is the old one.
    channel
        .set_endpoints([a.address.into(), b.address.into()])
        .unwrap();
    let why = failure(&channel).await;
    assert!(
        why.contains("unknown issuer") && why.contains(&b.address.to_string()),
        "{why}"
    );
    assert_eq!(new.seen.handshakes(), 0);

    // A broken file changes nothing.
    files.write("ca.pem", "-----BEGIN CERTIFICATE-----\nbroken");
    let failed = new.seen.refused().len();
    until("some attempts later", || {
        new.seen.refused().len() > failed + 15
    })
    .await;
    reconnect(&channel, &a).await;
    assert_eq!(hello(&channel).await, "a");

    files.write("ca.pem", &format!("{}{}", old_ca.pem, new_ca.pem));
    files.write_pair(&after);
    channel
        .set_endpoints([a.address.into(), b.address.into()])
        .unwrap();
    until("both CAs are trusted", || {
        let endpoints = channel.endpoints();
        endpoints.len() == 2 && endpoints.iter().all(|e| e.state == Connectivity::Ready)
    })
    .await;
    assert_eq!(
        new.seen.clients(),
        after.chain(),
        "the new certificate of ours"
    );
    assert_eq!(old.seen.clients()[0], before.chain()[0]);
}

#[tokio::test]
async fn no_provider_need_be_installed() {
    let ca = Ca::new("ca");
    let a = server(&Acceptor::new(&ca.issue(&[NAME])), "a");
    let tls = Tls::new().with_roots_pem(ca.pem.clone());
    let channel = secured(&[&a], tls).connect().await.unwrap();
    assert_eq!(hello(&channel).await, "a");
    assert!(
        CryptoProvider::get_default().is_none(),
        "nobody installed one"
    );
    // And with two linked rustls panics when asked to choose, which is what we must not do.
    assert!(std::panic::catch_unwind(ClientConfig::builder).is_err());
}

#[tokio::test]
async fn a_configuration_of_ones_own_is_used_as_it_is() {
    let ca = Ca::new("ca");
    let a = server(&Acceptor::new(&ca.issue(&[NAME])), "a");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert!(config.alpn_protocols.is_empty());
    let channel = secured(&[&a], Tls::from_config(config))
        .connect()
        .await
        .unwrap();
    assert_eq!(hello(&channel).await, "a");
}

#[tokio::test]
async fn a_layer_over_our_connector_has_tls_by_its_options() {
    let ca = Ca::new("ca");
    let a = server(&Acceptor::new(&ca.issue(&[NAME])), "a");
    let layer = || BalanceLayer::builder(format!("static:{}", a.address)).unwrap();
    let tls = || Tls::new().with_roots_pem(ca.pem.clone());
    let options = Http2Options::default().with_tls(tls()).unwrap();
    let named = options.clone().with_authority(NAME).unwrap();
    let channel = layer().build().unwrap().layer(Http2Connector::new(named));
    assert_eq!(hello(&channel).await, "a");
    // A connector knows no target: without a name nobody is dialled.
    let nameless = layer().build().unwrap().layer(Http2Connector::new(options));
    let mut client = GreeterClient::new(nameless);
    let status = client.say_hello(HelloRequest::default()).await.unwrap_err();
    assert!(status.message().contains("set an authority"), "{status:?}");
}

#[test]
fn what_cannot_be_verified_is_refused_when_the_channel_is_built() {
    let ca = Ca::new("ca");
    let tls = || Tls::new().with_roots_pem(ca.pem.clone());
    let says = |error: Error, words: &[&str]| {
        assert!(error.is_config(), "{error:?}");
        for word in words {
            assert!(
                error.to_string().contains(word),
                "{word:?} is not in {error}"
            );
        }
    };
    for target in [
        "static:127.0.0.1:443",
        "ipv4:127.0.0.1:443",
        "unix:/run/a.sock",
    ] {
        let builder = || Channel::builder(target).unwrap().tls(tls());
        says(
            builder().build().unwrap_err(),
            &[target, "set an authority"],
        );
        assert!(builder().authority(NAME).build().is_ok(), "{target}");
    }
    let list = Channel::from_endpoints([]).tls(tls());
    says(list.build().unwrap_err(), &["set an authority"]);
    let plain = Channel::builder("http://127.0.0.1:80").unwrap().tls(tls());
    says(
        plain.build().unwrap_err(),
        &["http://127.0.0.1:80", "plaintext"],
    );
    let odd = Channel::builder("static:127.0.0.1:443")
        .unwrap()
        .authority("a..b:1");
    says(
        odd.tls(tls()).build().unwrap_err(),
        &["a..b", "no DNS name"],
    );
    let layer = BalanceLayer::builder("https://127.0.0.1").unwrap();
    says(
        layer.build().unwrap_err(),
        &["https://127.0.0.1", "connector"],
    );
    // No roots are built in here.
    let https = Channel::builder("https://127.0.0.1").unwrap();
    says(
        https.build().unwrap_err(),
        &["TLS: nobody is trusted", "tls-native-roots"],
    );
    let bare = Channel::builder("127.0.0.1:443").unwrap().tls(tls());
    assert!(bare.build().is_ok(), "the address itself is verified");
}
