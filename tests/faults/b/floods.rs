//! B15: response headers without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use equipoise::Override;
use tokio::net::TcpStream;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};

use crate::cost::{forget_peak, memory};
use crate::frames::{END_HEADERS, FrameServer, Script, Step, block, kind, stream};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::ledger::audit;
use crate::rig::load::Load;
use crate::{all_ready, clean, status, until};

/// The most that a flood may take, in KiB.
const MEMORY: usize = 4 * 1024;

/// A header block cut into frames as large as are allowed.
fn frames(block: &[u8]) -> Vec<Step> {
    let pieces: Vec<&[u8]> = block.chunks(16 * 1024).collect();
    let last = pieces.len() - 1;
    let frame = |(nth, piece): (usize, &&[u8])| {
        let kind = match nth {
            0 => kind::HEADERS,
            _ => kind::CONTINUATION,
        };
        let flags = if nth == last { END_HEADERS } else { 0 };
        Step::Frame(kind, flags, Bytes::copy_from_slice(piece))
    };
    pieces.iter().enumerate().map(frame).collect()
}

/// A head with so many fields, each with a value of so many bytes.
fn head(fields: usize, length: usize) -> Vec<Step> {
    let value = "v".repeat(length);
    let names: Vec<String> = (0..fields).map(|n| format!("x-{n}")).collect();
    let mut all = vec![("content-type", "application/grpc")];
    all.extend(names.iter().map(|name| (name.as_str(), value.as_str())));
    frames(&block(&all, true))
}

/// CONTINUATION after CONTINUATION: 64 MiB, or as many empty ones.
fn continuations(payload: Bytes) -> Vec<Step> {
    let mut steps = vec![Step::Frame(kind::HEADERS, 0, Bytes::from(block(&[], true)))];
    let next = Step::Frame(kind::CONTINUATION, 0, payload);
    steps.extend(std::iter::repeat_n(next, 4 * 1024));
    steps
}

/// A name, the answer, and whether the connection survives it: where h2 can still skip the headers, only the stream
/// is lost.
fn floods() -> [(&'static str, Vec<Step>, bool); 6] {
    // The value of a field whose end never comes: 0, a name, and a length of 2^28.
    let endless = [b"\0\x01x\x7f".as_slice(), &[0xff, 0xff, 0xff, 0x7f]].concat();
    let filler = Bytes::from(vec![b'v'; 16 * 1024]);
    let mut one_value = continuations(filler);
    one_value[0] = Step::Frame(
        kind::HEADERS,
        0,
        Bytes::from([block(&[], true), endless].concat()),
    );
    [
        ("a list of 20 KiB", head(20, 1_000), true),
        ("a list of 1 MiB in one value", head(1, 1 << 20), false),
        ("a list of 1 MiB in many values", head(1_024, 1_000), false),
        ("10,000 headers", head(10_000, 1), false),
        ("a value without end", one_value, false),
        ("empty CONTINUATIONs", continuations(Bytes::new()), false),
    ]
}

async fn flooding(flood: Vec<Step>) -> FrameServer {
    // Of each connection the first call is well, and holds on while the second is flooded.
    let script = stream(move |call| match call.nth % 2 {
        0 => Step::reply(b""),
        _ => [vec![Step::UntilEnd], flood.clone()].concat(),
    });
    FrameServer::start(Script {
        stream: script,
        ..Script::default()
    })
    .await
}

/// B15: the flooded call fails and says so, those beside it do not, and nothing grows. The controls: each server answers
/// its other calls as it should.
#[test]
fn b15_header_floods() {
    alone(async {
        let before = Footprint::take();
        let good = [
            FrameServer::start(Script::default()).await,
            FrameServer::start(Script::default()).await,
        ];
        for (what, flood, survives) in floods() {
            let bad = flooding(flood).await;
            let addresses = [bad.address(), good[0].address(), good[1].address()];
            let channel = all_ready(&addresses).await;
            // The best of three: neighbours in this process take memory, too.
            let mut grown = usize::MAX;
            for round in 0..3 {
                until("it is ready", || crate::is_ready(&channel)).await;
                // Pinned in turn: an endpoint that is ready may join the picker some milliseconds later.
                let (turn, others) = (AtomicUsize::new(0), [addresses[1], addresses[2]]);
                let pin = move |mut request: Request<()>| {
                    // A counter on its own: nothing else is read in its order.
                    let other = others[turn.fetch_add(1, Ordering::Relaxed) % 2];
                    request.extensions_mut().insert(Override::strict(other));
                    Ok::<_, Status>(request)
                };
                let pin = Arc::new(pin);
                let beside = InterceptedService::new(channel.clone(), move |r| pin(r));
                let load = Load::of(100);
                let there = || {
                    let mut request = Request::new(HelloRequest::default());
                    let there = Override::strict(bad.address());
                    request.extensions_mut().insert(there);
                    request
                };
                let mut client = GreeterClient::new(channel.clone());
                let well = client.say_hello(there()).await;
                well.expect("the first call of a connection is well");
                forget_peak();
                let start = memory("VmRSS:");
                let (told, calls) = tokio::join!(client.say_hello(there()), load.run(&beside));
                grown = grown.min(memory("VmHWM:").saturating_sub(start));
                let told = told.expect_err("it was flooded");
                println!("{what}, round {round}: {told}");
                let code = match survives {
                    true => Code::Internal,
                    false => Code::ResourceExhausted,
                };
                assert_eq!(told.code(), code, "{what}: {told}");
                let verdict = audit(&calls, &[]);
                assert_eq!((verdict.ok, verdict.failed), (100, 0), "{what}: {verdict}");
                let made = 1 + if survives { 0 } else { round + 1 };
                until("the connection is as it should be", || {
                    bad.connections() == made
                })
                .await;
            }
            println!("{what}: {grown} KiB");
            assert!(grown <= MEMORY, "{what}: {grown} KiB");
            assert_eq!(status(&channel, bad.address()).in_flight, 0);
            drop(bad);
            channel.close().await;
        }
        let channel = all_ready(&[good[0].address()]).await;
        drop(good);
        clean(channel, &before).await;
    });
}

/// B15, the control: a client without limits takes in all that it is sent.
#[test]
fn b15_control_without_limits_the_flood_is_kept() {
    alone(async {
        let floods = floods().into_iter();
        let mut endless = floods.filter(|flood| flood.0 == "a value without end");
        let (_, flood, _) = endless.next().expect("it is one of them");
        let bad = flooding(flood).await;
        let socket = TcpStream::connect(bad.address()).await;
        let (mut sender, connection) = h2::client::Builder::new()
            .max_header_list_size(u32::MAX)
            .handshake::<_, Bytes>(socket.expect("it listens"))
            .await
            .expect("the preface is written");
        let connection = tokio::spawn(connection);
        let mut call = || {
            let request = http::Request::post("http://a/b").body(());
            let request = request.expect("a request");
            let (response, _) = sender.send_request(request, true).expect("it is open");
            response
        };
        call().await.expect("the first call is well");
        forget_peak();
        let start = memory("VmRSS:");
        let flooded = call();
        until("it grows by what we would never take", || {
            memory("VmHWM:").saturating_sub(start) > 4 * MEMORY
        })
        .await;
        connection.abort();
        flooded.await.expect_err("it has no end");
    });
}
