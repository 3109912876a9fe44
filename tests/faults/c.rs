//! C: TLS and identity.

mod moved;
mod naive;
mod rotated;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use equipoise::policy::RoundRobin;
use equipoise::resolver::{Hints, Resolver, Update};
use equipoise::{Builder, Channel, Connectivity, Endpoint, ResolveError, Target, Tls};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tonic::Code;

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::{Options, Server};
use crate::rig::holes;
use crate::rig::ledger::Ledger;
use crate::rig::load::Load;
use crate::rig::tls::{Acceptor, Ca, Pair, gullible};
use crate::size;
use crate::{clean, is_ready, reference, report, status, until};

/// The service that is meant, and another one of the same owner.
const NAME: &str = "greeter.test";
const OTHER: &str = "other.test";

/// The connect budget of [`reference`].
const BUDGET: Duration = Duration::from_secs(1);

fn load() -> Load {
    Load::of(size::calls(1_000))
}

/// A server named `name` behind TLS, that writes to `ledger`.
fn serve(acceptor: &Acceptor, name: &str, ledger: &Ledger) -> Server {
    Server::start_behind(acceptor.clone(), options(name, ledger))
}

fn options(name: &str, ledger: &Ledger) -> Options {
    Options {
        ledger: Some(ledger.path().into()),
        ..Options::new(name)
    }
}

/// A channel that trusts `ca` and asks every server for [`NAME`].
fn secured(addresses: &[SocketAddr], ca: &Ca) -> Builder<Channel> {
    let tls = Tls::new().with_roots_pem(ca.pem.clone());
    reference(addresses).authority(NAME).tls(tls)
}

/// The same without any check of who the servers are.
fn naive(addresses: &[SocketAddr]) -> Builder<Channel> {
    let tls = Tls::from_config(gullible());
    // In turn: a slow first answer must not keep it from being fooled.
    let builder = reference(addresses).policy(RoundRobin::default());
    builder.authority(NAME).tls(tls)
}

/// Waits for the failure of an endpoint, and says why it failed and how long that took.
async fn failed(channel: &Channel, address: SocketAddr) -> (String, Duration) {
    let took = until("the endpoint fails", || {
        let endpoints = channel.endpoints();
        let mut failed = endpoints
            .iter()
            .filter(|e| e.state == Connectivity::TransientFailure);
        failed.any(|e| e.address == address.into())
    })
    .await;
    let why = status(channel, address).why;
    (why.expect("a failed endpoint says why"), took)
}

#[track_caller]
fn says(why: &str, address: SocketAddr, words: &[&str]) {
    println!("why: {why}");
    assert!(why.starts_with(&address.to_string()), "{why}");
    for word in words {
        assert!(why.contains(word), "{word:?} is not in {why:?}");
    }
}

/// C1, one of three servers has an expired certificate: nobody notices, it gets not a byte of HTTP/2, and
/// its state says what is wrong.
#[test]
fn c1_expired_certificate() {
    alone(async {
        let before = Footprint::take();
        let (ca, ledger) = (Ca::new("ca"), Ledger::create());
        let good = Acceptor::new(&ca.issue(&[NAME]));
        let expired = Acceptor::new(&ca.issue_expired(&[NAME]));
        let b1 = serve(&good, "b1", &ledger);
        let b2 = serve(&good, "b2", &ledger);
        let b3 = serve(&expired, "b3", &ledger);
        let addresses = [b1.address, b2.address, b3.address];

        let channel = secured(&addresses, &ca).build().expect("in range");
        let verdict = ledger.audit(&load().run(&channel).await);
        println!("{verdict}");
        verdict.assert_unnoticed();
        assert_eq!(verdict.server("b3"), 0, "{verdict}");
        let (why, _) = failed(&channel, b3.address).await;
        says(&why, b3.address, &["TLS handshake", NAME, "expired"]);
        let b3_status = status(&channel, b3.address);
        assert_eq!((b3_status.picks, b3_status.traffic.sent), (0, 0));
        assert_eq!(expired.seen.handshakes(), 0);
        assert!(!expired.seen.refused().is_empty(), "it was dialled");
        drop((b1, b2, b3));
        clean(channel, &before).await;
    });
}

/// C1, the control: that server serves whoever does not look.
#[test]
fn c1_control_whoever_does_not_look_is_served() {
    alone(async {
        let (ca, ledger) = (Ca::new("ca"), Ledger::create());
        let expired = Acceptor::new(&ca.issue_expired(&[NAME]));
        let b3 = serve(&expired, "b3", &ledger);
        let fooled = naive(&[b3.address]).connect().await.expect("it runs");
        let verdict = ledger.audit(&Load::of(10).run(&fooled).await);
        verdict.assert_unnoticed();
        assert_eq!(expired.seen.handshakes(), 1);
    });
}

/// Two servers, and the second one's address is another service's from now on, with a certificate of the same CA.
struct Reused {
    ledger: Ledger,
    addresses: [SocketAddr; 2],
    wrong: Acceptor,
    _b1: Server,
    b2: Option<Server>,
    squatter: Option<Server>,
}

impl Reused {
    /// Before it is.
    fn soon(ca: &Ca) -> Self {
        let ledger = Ledger::create();
        let good = Acceptor::new(&ca.issue(&[NAME]));
        let b1 = serve(&good, "b1", &ledger);
        let b2 = serve(&good, "b2", &ledger);
        Self {
            addresses: [b1.address, b2.address],
            wrong: Acceptor::new(&ca.issue(&[OTHER])),
            _b1: b1,
            b2: Some(b2),
            squatter: None,
            ledger,
        }
    }

    fn now(&mut self) {
        let b2 = self.b2.take().expect("once");
        b2.abort();
        let options = Options {
            listen: self.addresses[1],
            ..options("wrong", &self.ledger)
        };
        self.squatter = Some(Server::start_behind(self.wrong.clone(), options));
    }
}

/// C2, the address of a server is another service's now: no call gets there.
#[test]
fn c2_address_reused_by_another_service() {
    alone(async {
        let before = Footprint::take();
        let ca = Ca::new("ca");
        let mut servers = Reused::soon(&ca);
        let reused = servers.addresses[1];
        let channel = secured(&servers.addresses, &ca).build().expect("in range");
        until("all are ready", || is_ready(&channel)).await;

        let at = Instant::now();
        servers.now();
        until("the wrong service was found out", || {
            let b2 = status(&channel, reused);
            b2.why.is_some_and(|why| why.contains("another name"))
        })
        .await;
        report("TRANSIENT_FAILURE", at.elapsed(), Duration::from_secs(1));
        let b2 = status(&channel, reused);
        assert_eq!(b2.state, Connectivity::TransientFailure, "{b2:?}");
        let why = b2.why.unwrap_or_default();
        says(
            &why,
            reused,
            &["TLS handshake", NAME, "another name", OTHER],
        );

        let verdict = servers.ledger.audit(&load().run(&channel).await);
        println!("{verdict}");
        verdict.assert_unnoticed();
        assert_eq!(verdict.server("wrong"), 0, "{verdict}");
        // Dialled again and again in the meantime, and refused each time by us.
        assert!(!servers.wrong.seen.refused().is_empty());
        drop(servers);
        clean(channel, &before).await;
    });
}

/// C2, the control: a client that does not check the name calls the wrong service.
#[test]
fn c2_control_a_naive_client_calls_the_wrong_service() {
    alone(async {
        let ca = Ca::new("ca");
        let mut servers = Reused::soon(&ca);
        let fooled = naive(&servers.addresses).build().expect("in range");
        until("all are ready", || is_ready(&fooled)).await;
        servers.now();
        until("it is connected again", || {
            servers.wrong.seen.handshakes() > 0 && is_ready(&fooled)
        })
        .await;
        let verdict = servers.ledger.audit(&load().run(&fooled).await);
        println!("{verdict}");
        assert!(verdict.server("wrong") > 100, "{verdict}");
    });
}

/// C4, one side speaks TLS and the other plaintext: the attempt ends within its budget, no call is sent, and
/// the reason says which side speaks what.
#[test]
fn c4_tls_on_one_side_only() {
    alone(async {
        let before = Footprint::take();
        let (ca, ledger) = (Ca::new("ca"), Ledger::create());
        let tls = Acceptor::new(&ca.issue(&[NAME]));
        let secure = serve(&tls, "secure", &ledger);
        let plain = Server::start(options("plain", &ledger));
        let both = [secure.address, plain.address];
        for (channel, good, bad, words) in [
            (
                secured(&both, &ca),
                secure.address,
                plain.address,
                "expected TLS, and the server at ADDRESS speaks plaintext",
            ),
            (
                reference(&both),
                plain.address,
                secure.address,
                "the server speaks TLS, and this channel plaintext",
            ),
        ] {
            let begin = Instant::now();
            let channel = channel.build().expect("in range");
            let (why, _) = failed(&channel, bad).await;
            report("the attempt", begin.elapsed(), BUDGET + BUDGET / 10);
            let words = words.replace("ADDRESS", &bad.to_string());
            says(&why, bad, &[&words]);
            // The control: the one that speaks the same serves all calls.
            let verdict = ledger.audit(&load().run(&channel).await);
            let wrong = status(&channel, bad);
            assert_eq!(
                (verdict.ok as u64, wrong.picks),
                (load().calls, 0),
                "{verdict}"
            );
            assert_eq!(status(&channel, good).state, Connectivity::Ready);
        }
        // All that the TLS server took came by TLS, and vice versa.
        let served = ledger.executions();
        assert_eq!(
            served.iter().filter(|e| e.server == "secure").count() as u64,
            load().calls
        );
        assert_eq!(
            served.iter().filter(|e| e.server == "plain").count() as u64,
            load().calls
        );
        drop((secure, plain));
        before
            .restored(crate::PATIENCE)
            .await
            .expect("nothing is left");
    });
}

/// The same against servers that answer in HTTP/1.1: those that want TLS (so do nginx and Go) and those
/// that know no HTTP/2.
#[test]
fn c4_http_1_answers_to_plaintext() {
    alone(async {
        let wants_tls =
            "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
        let knows_no_h2 = "HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-length: 0\r\n\r\n";
        for (answer, words) in [
            (
                wants_tls,
                "the server speaks TLS, and this channel plaintext",
            ),
            (knows_no_h2, "the server speaks HTTP/1.x, not HTTP/2"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("it is bound");
            let serving = tokio::spawn(async move {
                while let Ok((mut socket, _)) = listener.accept().await {
                    let mut preface = [0; 24];
                    let _ = socket.read_exact(&mut preface).await;
                    let _ = socket.write_all(answer.as_bytes()).await;
                }
            });
            let channel = reference(&[address]).build().expect("in range");
            let (why, took) = failed(&channel, address).await;
            says(
                &why,
                address,
                &[words, answer.lines().next().unwrap_or_default()],
            );
            report("the attempt", took, BUDGET);
            serving.abort();
        }
    });
}

/// C5, a server takes connections and stalls, in the handshake or after it: the budget covers both, and
/// the calls go elsewhere as if it were not there.
#[test]
fn c5_stalled_handshake() {
    alone(async {
        let before = Footprint::take();
        let (ca, ledger) = (Ca::new("ca"), Ledger::create());
        let good = Acceptor::new(&ca.issue(&[NAME]));
        let (b1, b2) = (serve(&good, "b1", &ledger), serve(&good, "b2", &ledger));
        // What the calls take without it.
        let channel = secured(&[b1.address, b2.address], &ca);
        let channel = channel.connect().await.expect("they run");
        let before_it = load().run(&channel).await;
        drop(channel);

        let silent = holes::silent();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mute = listener.local_addr().expect("it is bound");
        let acceptor = good.clone();
        let muted = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((socket, _)) = listener.accept().await {
                // A handshake, and no SETTINGS.
                held.push(acceptor.accept(socket).await);
            }
        });
        let addresses = [b1.address, b2.address, silent.address, mute];
        let begin = Instant::now();
        let channel = secured(&addresses, &ca).build().expect("in range");
        let calls = Load {
            first: 10_001,
            ..load()
        };
        let given_up = async {
            for stalled in [silent.address, mute] {
                let (why, _) = failed(&channel, stalled).await;
                says(&why, stalled, &["not connected within 1s"]);
            }
            begin.elapsed()
        };
        let (calls, took) = tokio::join!(calls.run(&channel), given_up);
        for stalled in [silent.address, mute] {
            assert_eq!(status(&channel, stalled).picks, 0);
        }
        assert!(took >= BUDGET, "given up early, after {took:?}");
        report("both attempts, beyond 1 s", took - BUDGET, BUDGET / 10);
        let p99 = |calls| ledger.audit(calls).latency(0.99);
        let bound = p99(&before_it).max(Duration::from_millis(5));
        report("p99 beside it", p99(&calls), bound);
        let verdict = ledger.audit(&[before_it, calls].concat());
        println!("{verdict}");
        verdict.assert_unnoticed();
        muted.abort();
        let _ = muted.await;
        drop((b1, b2, silent));
        clean(channel, &before).await;
    });
}

/// C6, a server that does not choose HTTP/2 by ALPN.
#[test]
fn c6_alpn() {
    alone(async {
        let before = Footprint::take();
        let (ca, ledger) = (Ca::new("ca"), Ledger::create());
        let pair = ca.issue(&[NAME]);
        let server = |alpn: &[&str], name| serve(&Acceptor::speaking(&pair, alpn), name, &ledger);
        // tonic would speak HTTP/2 on all of them.
        let (good, old, none) = (
            server(&["http/1.1", "h2"], "good"),
            server(&["http/1.1"], "old"),
            server(&[], "none"),
        );
        let addresses = [good.address, old.address, none.address];
        let channel = secured(&addresses, &ca).build().expect("in range");
        let verdict = ledger.audit(&load().run(&channel).await);
        verdict.assert_unnoticed();
        assert_eq!(verdict.server("good") as u64, load().calls, "{verdict}");
        for (server, reason) in [
            (&old, "by ALPN it refused \"h2\""),
            (&none, "by ALPN the server chose none and not \"h2\""),
        ] {
            let (why, _) = failed(&channel, server.address).await;
            says(&why, server.address, &["ALPN", reason]);
        }
        drop((good, old, none));
        clean(channel, &before).await;
    });
}

/// C8, the server refuses our certificate when the handshake is over for us: never READY, dialled as seldom
/// as a server that is down.
#[test]
fn c8_client_certificate_refused_late() {
    alone(async {
        let before = Footprint::take();
        let (ca, clients, ledger) = (Ca::new("ca"), Ca::new("clients"), Ledger::create());
        let asking = Acceptor::asking(&ca.issue(&[NAME]), &clients);
        let server = serve(&asking, "b1", &ledger);
        let begin = Instant::now();
        let channel = secured(&[server.address], &ca).build().expect("in range");
        // The channel's task may begin later than the load.
        until("it is in the list", || !channel.endpoints().is_empty()).await;
        let mut states = Vec::new();
        let load = Load {
            rate: 400,
            ..Load::of(800)
        };
        let calls = load.run_with(channel.clone(), |_| {
            states.push(status(&channel, server.address).state);
            std::ops::ControlFlow::Continue(())
        });
        let calls = calls.await;
        let (took, dialled) = (begin.elapsed(), asking.seen.refused().len());
        println!("{dialled} attempts in {took:?}");
        assert!(!states.contains(&Connectivity::Ready));
        let first = states
            .iter()
            .position(|state| *state == Connectivity::TransientFailure);
        let first = first.expect("it failed");
        assert!(
            states[first..].iter().all(|state| *state == states[first]),
            "no flapping"
        );
        // As N1: with the shortest pauses at 0, 0.16, 0.42, 0.83, 1.48 s, then 1 s and more.
        let late = took.saturating_sub(Duration::from_secs(2)).as_secs() as usize;
        assert!((2..=6 + late).contains(&dialled), "{dialled} in {took:?}");
        let verdict = ledger.audit(&calls);
        assert_eq!(verdict.code(Code::Unavailable), 800, "{verdict}");
        let (why, _) = failed(&channel, server.address).await;
        says(&why, server.address, &["asks for a client certificate"]);
        drop(server);
        clean(channel, &before).await;
    });
}

/// C8, the control: with a certificate the same server serves.
#[test]
fn c8_control_with_a_certificate_it_serves() {
    alone(async {
        let (ca, clients, ledger) = (Ca::new("ca"), Ca::new("clients"), Ledger::create());
        let asking = Acceptor::asking(&ca.issue(&[NAME]), &clients);
        let server = serve(&asking, "b1", &ledger);
        let Pair { cert, key } = clients.issue(&["client.test"]);
        let tls = Tls::new()
            .with_roots_pem(ca.pem.clone())
            .with_identity_pem(cert, key);
        let known = reference(&[server.address]).authority(NAME).tls(tls);
        let known = known.connect().await.expect("it is let in");
        let verdict = ledger.audit(&Load::of(10).run(&known).await);
        verdict.assert_unnoticed();
    });
}

/// What a registry that somebody else writes to could say.
#[derive(Debug)]
struct Registry(Vec<Endpoint>);

impl Resolver for Registry {
    fn watch(&self, _: &Target, _: Hints) -> BoxStream<'static, Result<Update, ResolveError>> {
        let endpoints = self.0.clone();
        let update = Ok(Update { endpoints });
        stream::iter([update]).chain(stream::pending()).boxed()
    }
}

/// A server of the name that is meant, one of another, and a resolver that tells of both.
struct Two {
    ca: Ca,
    ledger: Ledger,
    meant: Server,
    wrong: Server,
}

impl Two {
    fn start() -> Self {
        let (ca, ledger) = (Ca::new("ca"), Ledger::create());
        Self {
            meant: serve(&Acceptor::new(&ca.issue(&[NAME])), "meant", &ledger),
            wrong: serve(&Acceptor::new(&ca.issue(&[OTHER])), "wrong", &ledger),
            ca,
            ledger,
        }
    }

    /// To the name that is meant.
    fn channel(&self) -> Builder<Channel> {
        let registry = Registry(vec![
            Endpoint::from(self.meant.address),
            Endpoint::from(self.wrong.address).with_id(OTHER),
        ]);
        let tls = Tls::new().with_roots_pem(self.ca.pem.clone());
        let channel = Channel::builder(format!("{NAME}:443")).expect("a good target");
        channel.resolver(registry).tls(tls)
    }
}

/// C9, a resolver sends us to a server of another name, and even calls it by that name: the name that is
/// verified is the target's.
#[test]
fn c9_a_resolver_cannot_choose_the_name() {
    alone(async {
        let before = Footprint::take();
        let servers = Two::start();
        let channel = servers.channel().build().expect("in range");
        let verdict = servers.ledger.audit(&load().run(&channel).await);
        verdict.assert_unnoticed();
        assert_eq!(verdict.server("meant") as u64, load().calls, "{verdict}");
        let wrong = servers.wrong.address;
        let (why, _) = failed(&channel, wrong).await;
        says(&why, wrong, &[NAME, "another name", OTHER]);
        drop(servers);
        clean(channel, &before).await;
    });
}

/// C9, the control: asked for by the user, the other server is the good one.
#[test]
fn c9_control_the_user_can_choose_the_name() {
    alone(async {
        let servers = Two::start();
        let channel = servers.channel().authority(OTHER);
        let channel = channel.build().expect("in range");
        let verdict = servers.ledger.audit(&load().run(&channel).await);
        verdict.assert_unnoticed();
        assert_eq!(verdict.server("wrong") as u64, load().calls, "{verdict}");
    });
}
