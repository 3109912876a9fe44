//! B7: a server that resets every stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use equipoise::Channel;
use equipoise::balancer::Standing;
use equipoise::policy::RoundRobin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tonic::Code;

use crate::child::{Client, task, tell};
use crate::cost::{forget_peak, memory, processor};
use crate::frames::{FrameServer, Script, Step, code, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::load::Load;
use crate::rig::timer;
use crate::size::{self, figure};
use crate::{Fleet, all_ready, clean, is_ready, reference, report, status, until};

/// B7 beside two sound ones: out within two intervals of a second, and the calls elsewhere do not notice.
#[test]
fn b7_a_server_that_resets_every_stream_is_ejected() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::of(Options::three(Duration::from_millis(1))[..2].to_vec());
        let bad = FrameServer::start(Script {
            stream: stream(|_| vec![Step::Reset(code::INTERNAL_ERROR)]),
            ..Script::default()
        })
        .await;
        let addresses = [&fleet.addresses()[..], &[bad.address()]].concat();
        let builder = reference(&addresses).policy(RoundRobin::default());
        let channel = builder.build().expect("in range");
        until("every endpoint is ready", || is_ready(&channel)).await;
        let load = Load::of(size::calls(1_000));
        let begin = Instant::now();
        let ejection = async {
            until("it is ejected", || {
                let standing = status(&channel, bad.address()).standing;
                matches!(standing, Standing::Ejected { .. })
            })
            .await;
            begin.elapsed()
        };
        let (calls, ejected) = tokio::join!(load.run(&channel), ejection);
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        report("ejected after", ejected, Duration::from_secs(2));
        // Each call that failed is one that was sent there, and no sound server ever saw it.
        let peer = bad.peer(0).await;
        let sent = peer.streams().len();
        assert_eq!((verdict.failed, bad.connections()), (sent, 1), "{verdict}");
        assert_eq!(verdict.code(Code::Internal), verdict.failed, "{verdict}");
        assert_eq!(verdict.executed, [sent, verdict.ok, 0], "{verdict}");
        // The fault was there; a third of all calls would have failed.
        assert!(verdict.failed >= 5, "{verdict}");
        assert!(verdict.failed <= verdict.calls / 20, "{verdict}");
        assert_eq!(peer.count(|f| f.is(kind::GOAWAY)), 0);
        drop((fleet, bad, peer));
        clean(channel, &before).await;
    });
}

/// The control: nobody is ejected, and every third call fails.
#[test]
fn b7_control_without_ejection_a_third_fails() {
    alone(async {
        let fleet = Fleet::of(Options::three(Duration::from_millis(1))[..2].to_vec());
        let bad = FrameServer::start(Script {
            stream: stream(|_| vec![Step::Reset(code::INTERNAL_ERROR)]),
            ..Script::default()
        })
        .await;
        let addresses = [&fleet.addresses()[..], &[bad.address()]].concat();
        let builder = reference(&addresses).policy(RoundRobin::default());
        let channel = builder.outlier_detection(None).build().expect("in range");
        until("every endpoint is ready", || is_ready(&channel)).await;
        let verdict = fleet.ledger.audit(&Load::of(600).run(&channel).await);
        println!("{verdict}");
        verdict.assert_true();
        assert!(verdict.failed > 150, "{verdict}");
    });
}

/// A server that answers each head with a reset. It writes nothing down, so that it may go on for long.
struct Resetting {
    address: SocketAddr,
    seen: Arc<Seen>,
    accepting: AbortHandle,
}

#[derive(Debug, Default)]
struct Seen {
    connections: AtomicUsize,
    streams: AtomicUsize,
    /// Those that name an error.
    goaways: AtomicUsize,
}

impl Resetting {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback has a free port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let seen = Arc::new(Seen::default());
        let watched = seen.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                // Counters, each on its own.
                watched.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(reset_all(socket, watched.clone()));
            }
        });
        Self {
            address,
            seen,
            accepting: accepting.abort_handle(),
        }
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn frame(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
}

/// Serves one connection to its end.
async fn reset_all(mut socket: TcpStream, seen: Arc<Seen>) -> std::io::Result<()> {
    const PREFACE: usize = 24;
    const ACK: u8 = 1;
    socket.set_nodelay(true)?;
    let (mut received, mut out) = (BytesMut::new(), BytesMut::new());
    frame(&mut out, kind::SETTINGS, 0, 0, b"");
    let mut preface = true;
    loop {
        socket.write_all_buf(&mut out).await?;
        if socket.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
        if preface && received.len() >= PREFACE {
            received.advance(PREFACE);
            preface = false;
        }
        while !preface && received.len() >= 9 {
            let length = (&received[..3]).get_uint(3) as usize;
            if received.len() < 9 + length {
                break;
            }
            let mut head = received.split_to(9);
            head.advance(3);
            let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32());
            let payload = received.split_to(length);
            match kind {
                kind::HEADERS => {
                    seen.streams.fetch_add(1, Ordering::Relaxed);
                    let code = code::INTERNAL_ERROR.to_be_bytes();
                    frame(&mut out, kind::RST_STREAM, 0, stream, &code);
                }
                kind::DATA if length > 0 => {
                    let bytes = (length as u32).to_be_bytes();
                    frame(&mut out, kind::WINDOW_UPDATE, 0, 0, &bytes);
                }
                kind::SETTINGS if flags & ACK == 0 => frame(&mut out, kind, ACK, 0, b""),
                kind::PING if flags & ACK == 0 => frame(&mut out, kind, ACK, 0, &payload),
                // A channel that ends says so, and has nothing to complain of.
                kind::GOAWAY if payload[4..8] != code::NO_ERROR.to_be_bytes() => {
                    seen.goaways.fetch_add(1, Ordering::Relaxed);
                }
                _ => {}
            }
        }
    }
}

/// What the storm may cost: memory in KiB, and processor in hundredths of a core.
const MEMORY: usize = 10 * 1024;
const PROCESSOR: f64 = 100.0;

const RATE: u32 = 5_000;

/// B7 alone: the only endpoint is never ejected, so the storm goes on, 5,000 calls a second. It costs neither memory nor
/// more than a core, generator and all, and no connection. The client is a process of its own.
#[test]
fn b7_a_storm_of_resets_is_cheap() {
    alone(async {
        let before = Footprint::take();
        let server = Resetting::start().await;
        let seconds = size::of(2, 60);
        let task = format!("{} {seconds} forgets", server.address);
        let mut client = Client::start("b::storm::client_in_a_storm", &task, &[]);
        let told =
            |client: &mut Client, name| -> f64 { client.told(name).parse().expect("a number") };
        let made = told(&mut client, "CALLS");
        let (failed, ejected) = (told(&mut client, "INTERNAL"), told(&mut client, "EJECTED"));
        let (rate, memory) = (told(&mut client, "RATE"), told(&mut client, "GROWN-KIB"));
        let processor = told(&mut client, "PROCESSOR");
        client.ended();
        figure("calls a second", rate.round(), "");
        figure("memory grown by", memory, "KiB");
        figure("processor", processor, "% of a core");
        let seen = &server.seen;
        println!("{made} calls, {failed} INTERNAL; {seen:?}");
        assert_eq!((failed, ejected), (made, 0.0));
        assert!(rate > 0.9 * f64::from(RATE), "{rate} calls a second");
        assert_eq!(seen.streams.load(Ordering::Relaxed) as f64, made);
        assert_eq!(seen.goaways.load(Ordering::Relaxed), 0);
        assert_eq!(seen.connections.load(Ordering::Relaxed), 1);
        assert!(memory < MEMORY as f64, "{memory} KiB");
        assert!(processor <= PROCESSOR, "{processor} % of a core");
        drop(server);
        before
            .restored(crate::PATIENCE)
            .await
            .expect("nothing is left");
    });
}

/// The control: two kilobytes that are kept of each call are seen.
#[test]
fn b7_control_what_is_kept_of_each_call_is_seen() {
    alone(async {
        let server = Resetting::start().await;
        let task = format!("{} 2 keeps", server.address);
        let mut client = Client::start("b::storm::client_in_a_storm", &task, &[]);
        let grown: usize = client.told("GROWN-KIB").parse().expect("a number");
        client.ended();
        figure("memory grown by", grown as f64, "KiB");
        assert!(grown >= MEMORY, "{grown} KiB");
    });
}

/// Calls that were made, how many of them ended INTERNAL, and what was kept of them.
#[derive(Default)]
struct Made {
    calls: usize,
    internal: usize,
    kept: Vec<Vec<u8>>,
}

/// Calls at the rate for so long, of which only a number is kept, and some bytes by option.
async fn storm(channel: &Channel, window: Duration, keeps: bool) -> Made {
    let (begin, mut made) = (Instant::now(), Made::default());
    let mut running = JoinSet::new();
    let note = |made: &mut Made, internal: bool| {
        made.internal += usize::from(internal);
        if keeps {
            made.kept.push(vec![1; 2_048]);
        }
    };
    while begin.elapsed() < window {
        // Five for each millisecond.
        timer::until(begin + Duration::from_secs(1) * made.calls as u32 / RATE).await;
        for _ in 0..5 {
            made.calls += 1;
            let mut client = GreeterClient::new(channel.clone());
            running.spawn(async move {
                let told = client.say_hello(HelloRequest::default()).await;
                told.is_err_and(|status| status.code() == Code::Internal)
            });
        }
        while let Some(ended) = running.try_join_next() {
            note(&mut made, ended.expect("no panic"));
        }
    }
    while let Some(ended) = running.join_next().await {
        note(&mut made, ended.expect("no panic"));
    }
    made
}

/// The client of these tests.
#[test]
fn client_in_a_storm() {
    let Some(task) = task() else { return };
    alone(async move {
        let mut words = task.split(' ');
        let mut word = || words.next().expect("the parent writes three words");
        let address: SocketAddr = word().parse().expect("an address");
        let seconds: u64 = word().parse().expect("a number");
        let keeps = word() == "keeps";
        let channel = all_ready(&[address]).await;
        // What the first calls take, the next ones use again.
        let warm = storm(&channel, Duration::from_millis(500), false).await;
        forget_peak();
        let (resident, used, begin) = (memory("VmRSS:"), processor(), Instant::now());
        let window = Duration::from_secs(seconds);
        let ejections = async {
            let end = begin + window;
            let mut ejected = 0;
            while Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let standing = status(&channel, address).standing;
                ejected += u32::from(standing != Standing::Admitted);
            }
            ejected
        };
        let (made, ejected) = tokio::join!(storm(&channel, window, keeps), ejections);
        let (took, used) = (begin.elapsed(), processor() - used);
        let grown = memory("VmHWM:").saturating_sub(resident);
        println!("{} kept", made.kept.len());
        tell("CALLS", &(warm.calls + made.calls).to_string());
        tell("INTERNAL", &(warm.internal + made.internal).to_string());
        tell("EJECTED", &ejected.to_string());
        tell(
            "RATE",
            &(made.calls as f64 / took.as_secs_f64()).to_string(),
        );
        tell("GROWN-KIB", &grown.to_string());
        let share = 100.0 * used.as_secs_f64() / took.as_secs_f64();
        tell("PROCESSOR", &share.to_string());
    });
}
