//! A server that sends anything: frames of any kind and order, floods, nonsense, silence.
//!
//! The whole client stands on a pipe in memory and the runtime's own time. Nobody panics, each call ends by its
//! deadline, in flight comes back to nothing, the channel can be closed, and memory stays bounded (the fuzzer's own
//! limits watch that).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use equipoise::transport::{Http2Connector, Http2Options};
use equipoise::{Address, BalanceLayer, Channel, Endpoint};
use http::uri::PathAndQuery;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower_layer::Layer;

use super::input::Input;

/// How long a call may take, and how much later it may learn of that.
const TIMEOUT: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_millis(5);
/// How long calls under way may hold up the end of the channel.
const DRAIN: Duration = Duration::from_secs(1);
/// The most bytes that a script comes to, floods included.
const MOST: usize = 1 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const PREFACE: &[u8] = &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];

/// One thing that the server does.
#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    /// Waits for so many bytes more of the client.
    Hear(usize),
    Pause(Duration),
    Close,
}

/// What a server does on each of its connections, one after another.
#[derive(Debug)]
struct Script {
    steps: Vec<Step>,
    /// Whether it reads what nobody waits for.
    reads: bool,
    /// Whether it closes at the end of its script rather than falling silent.
    closes: bool,
    /// How many calls are made at once.
    calls: usize,
}

impl Script {
    fn read(input: &mut Input<'_>) -> Self {
        let manner = input.byte();
        let mut steps = Vec::new();
        // Most scripts begin as HTTP/2 does, and answer a call that was heard, or none would come far.
        if manner & 1 == 0 {
            steps.push(Step::Send(PREFACE.to_vec()));
        }
        if manner & 2 == 0 {
            // The client's preface and settings, and its call.
            steps.push(Step::Hear(120));
        }
        let mut sum = 0;
        while !input.is_over() && sum < MOST {
            let step = step(input);
            if let Step::Send(bytes) = &step {
                sum += bytes.len();
            }
            steps.push(step);
        }
        Self {
            steps,
            reads: manner & 4 == 0,
            closes: manner & 8 == 0,
            calls: 1 + usize::from(manner >> 4) % 4,
        }
    }
}

fn step(input: &mut Input<'_>) -> Step {
    match input.byte() % 16 {
        0..3 => Step::Send(frame(input)),
        3..6 => Step::Send(fields(input, HEADERS)),
        6 => Step::Send(fields(input, CONTINUATION)),
        7 | 8 => Step::Send(message(input)),
        9 | 10 => {
            // A flood: the same over and over.
            let times = 1 << (input.byte() % 15);
            let piece = frame(input);
            let times = times.min(MOST / piece.len());
            Step::Send(piece.repeat(times))
        }
        11 => Step::Send(input.bytes(255).to_vec()),
        12 => Step::Hear(usize::from(input.byte())),
        13 => Step::Pause(Duration::from_millis(input.byte().into())),
        14 => Step::Pause(Duration::from_secs(input.byte().into())),
        _ => Step::Close,
    }
}

fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Mostly a stream that is open.
fn stream(input: &mut Input<'_>) -> u32 {
    match input.byte() {
        open @ 0..0xa0 => 1 + 2 * u32::from(open % 5),
        0xa0..0xe0 => 0,
        _ => (input.word() >> 32) as u32,
    }
}

fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let kind = match input.byte() {
        known @ 0..0xf0 => known % 10,
        other => other,
    };
    let (flags, stream) = (input.byte(), stream(input));
    let payload = input.text(20_000);
    let mut frame = framed(kind, flags, stream, &payload);
    // Sometimes the length is a lie.
    if input.byte() >= 0xf0 {
        frame[2] = input.byte();
    }
    frame
}

/// A gRPC message, whole or nearly.
fn message(input: &mut Input<'_>) -> Vec<u8> {
    let stream = stream(input);
    let (flags, said) = (input.byte() & 9, input.byte());
    let text = input.text(15_000);
    let mut payload = vec![input.byte() & 3, 0, 0, 0, 0];
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    // Mostly the truth.
    let length = length << if said >= 0xf0 { said & 0xf } else { 0 };
    payload[1..5].copy_from_slice(&length.to_be_bytes());
    payload.extend(text);
    framed(DATA, flags, stream, &payload)
}

/// A block of header fields, as literals that leave HPACK's table alone, and now and then anything.
fn fields(input: &mut Input<'_>, kind: u8) -> Vec<u8> {
    const NAMES: [&str; 8] = [
        ":status",
        "content-type",
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "grpc-encoding",
        "connection",
        "x-odd",
    ];
    const VALUES: [&str; 8] = [
        "200",
        "application/grpc",
        "0",
        "14",
        "503",
        "text/html",
        "100",
        "gzip",
    ];
    let (flags, stream) = (input.byte(), stream(input));
    // The usual head, so that what follows it is looked at.
    let mut block = match flags & 0x40 {
        0 => vec![],
        _ => [
            literal(b":status", b"200"),
            literal(b"content-type", b"application/grpc"),
        ]
        .concat(),
    };
    for _ in 0..input.byte() % 8 {
        match input.byte() {
            raw @ 0xe0.. => block.extend(input.bytes(usize::from(raw & 0x1f))),
            name => {
                let value = match input.byte() {
                    known @ 0..0xc0 => VALUES[usize::from(known % 8)].as_bytes().to_vec(),
                    _ => input.text(16_000),
                };
                let name = NAMES[usize::from(name % 8)];
                block.extend(literal(name.as_bytes(), &value));
            }
        }
    }
    // END_STREAM as asked; END_HEADERS mostly.
    let flags = flags & 0x29 | if flags & 0x80 == 0 { 4 } else { 0 };
    framed(kind, flags, stream, &block)
}

/// A literal field without indexing (RFC 7541 §6.2.2).
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        // An integer with a prefix of seven bits (§5.1).
        match text.len() {
            short @ 0..127 => field.push(short as u8),
            long => {
                field.push(127);
                let mut rest = long - 127;
                while rest >= 128 {
                    field.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                field.push(rest as u8);
            }
        }
        field.extend(text);
    }
    field
}

pub fn run(data: &[u8]) {
    let script = Arc::new(Script::read(&mut Input(data)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(called(script));
}

async fn called(script: Arc<Script>) {
    let served = script.clone();
    let options = Http2Options::default().with_dialler(move |_: &Endpoint, _: &Address| {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(theirs, served.clone()));
        std::future::ready(io::Result::Ok(ours))
    });
    let address: Address = "127.0.0.1:1".parse().expect("an address");
    let layer = BalanceLayer::from_endpoints([Endpoint::new(address)])
        .drain_deadline(DRAIN)
        .build()
        .expect("nothing is wrong with it");
    let channel = layer.layer(Http2Connector::new(options));
    let calls = (0..script.calls).map(|nth| call(channel.clone(), nth));
    futures_util::future::join_all(calls).await;
    // Once more, on whatever is left of it.
    call(channel.clone(), script.calls).await;
    for endpoint in channel.endpoints() {
        assert_eq!(endpoint.in_flight, 0, "{endpoint:?}");
        let ended: u64 = endpoint.outcomes.iter().map(|(_, count)| count).sum();
        assert_eq!(
            endpoint.picks,
            ended + endpoint.cancelled + endpoint.refused,
            "{endpoint:?}"
        );
    }
    assert_eq!(channel.waiting(), 0);
    let closing = tokio::time::timeout(2 * DRAIN, channel.close());
    closing.await.expect("it closes by the drain deadline");
}

/// One call, which ends in time whatever is sent.
async fn call(channel: Channel, nth: usize) {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("it is always ready");
    let mut request = tonic::Request::new(());
    request.set_timeout(TIMEOUT);
    let path = PathAndQuery::from_static("/fuzz.Service/Method");
    let started = Instant::now();
    let ended = match nth % 2 {
        0 => client
            .unary(request, path, ProstCodec::<(), ()>::default())
            .await
            .map(|_| ()),
        _ => stream_of(&mut client, request, path).await,
    };
    let took = started.elapsed();
    assert!(took <= TIMEOUT + LATE, "{took:?}: {ended:?}");
    if let Err(status) = ended
        && status.code() == Code::DeadlineExceeded
        && status.metadata().contains_key("equipoise-attempts")
    {
        let early = took + LATE < TIMEOUT;
        assert!(!early, "{status:?} after {took:?} only");
    }
}

async fn stream_of(
    client: &mut tonic::client::Grpc<Channel>,
    request: tonic::Request<()>,
    path: PathAndQuery,
) -> Result<(), Status> {
    let codec = ProstCodec::<(), ()>::default();
    let response = client.server_streaming(request, path, codec).await?;
    let mut messages = response.into_inner();
    while messages.message().await?.is_some() {}
    Ok(())
}

async fn serve(pipe: DuplexStream, script: Arc<Script>) {
    let (mut reading, mut writing) = tokio::io::split(pipe);
    let (heard, mut hearing) = tokio::sync::watch::channel(0);
    let reads = script.reads;
    let reader = tokio::spawn(async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match reading.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(more) => heard.send_modify(|sum| *sum += more),
            }
            // Enough for the call, and then never again.
            if !reads && *heard.borrow() > 200 {
                std::future::pending::<()>().await;
            }
        }
    });
    let mut expected = 0;
    for step in &script.steps {
        match step {
            Step::Send(bytes) => {
                if writing.write_all(bytes).await.is_err() {
                    break;
                }
            }
            Step::Hear(more) => {
                expected += more;
                if hearing.wait_for(|sum| *sum >= expected).await.is_err() {
                    break;
                }
            }
            Step::Pause(time) => tokio::time::sleep(*time).await,
            Step::Close => break,
        }
    }
    let closed = script.closes || script.steps.iter().any(|step| matches!(step, Step::Close));
    if !closed {
        std::future::pending::<()>().await;
    }
    drop(writing);
    reader.abort();
}
