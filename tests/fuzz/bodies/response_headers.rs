//! Any response at all, from its head to its trailers, through the channel and tonic on top of it.
//!
//! Nobody panics, the caller is told what the server said where that can be read, the endpoint's count comes back,
//! and what is quoted of a server stays short.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use equipoise::fuzzing::read_status;
use equipoise::transport::{
    CallError, Condition, Connection, Connector, Control, Outgoing, Slot, Slots, Traffic,
};
use equipoise::{Address, BalanceLayer, ConnectError, Endpoint};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use tokio::sync::watch;
use tonic::{Code, Status};
use tower_layer::Layer;

use super::input::Input;

/// How long a call may take, in the runtime's own time.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How much of a body may be quoted, and how large a byte of a server's can become.
const QUOTED: usize = 4 * 1024;
const ESCAPED: usize = 8;

/// What a server answers: its head, its frames, and whether its end ever comes.
#[derive(Clone, Debug)]
struct Answer {
    status: u16,
    head: HeaderMap,
    frames: VecDeque<Piece>,
    ends: bool,
}

#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    Error(Code),
}

impl Answer {
    fn read(input: &mut Input<'_>) -> Self {
        const STATUSES: [u16; 12] = [200, 200, 200, 204, 301, 400, 401, 403, 404, 429, 503, 999];
        let status = input.choice(&STATUSES);
        let ends = input.byte() < 0xe0;
        let head = fields(input);
        let mut frames = VecDeque::new();
        while !input.is_over() && frames.len() < 64 {
            frames.push_back(match input.byte() % 8 {
                0..4 => Piece::Trailers(fields(input)),
                4..7 => Piece::Data(Bytes::from(input.text(64 * 1024))),
                _ => Piece::Error(Code::from_i32(i32::from(input.byte() % 18))),
            });
        }
        Self {
            status,
            head,
            frames,
            ends,
        }
    }

    fn response(&self) -> Response<Scripted> {
        let mut response = Response::new(Scripted(Some(self.clone())));
        *response.status_mut() = self.status.try_into().expect("a status of three digits");
        *response.headers_mut() = self.head.clone();
        response
    }

    /// The code that the caller must be told, where the protocol leaves no doubt.
    fn expected(&self) -> Option<Code> {
        if self.head.contains_key("grpc-encoding") {
            // tonic may know nothing of that, and then looks no further.
            return None;
        }
        let first = |frames: &VecDeque<Piece>| match frames.front() {
            Some(Piece::Trailers(trailers)) => Some(trailers.clone()),
            _ => None,
        };
        match said(&self.head) {
            // Nothing more is asked.
            Some(code) if code != Code::Ok => return Some(code),
            Some(_) => return None,
            None => {}
        }
        let kind = self.head.get(CONTENT_TYPE);
        let kind = kind.map(|kind| kind.as_bytes().to_ascii_lowercase());
        match kind.as_deref() {
            None | Some(b"application/grpc") if self.status == 200 => {
                return said(&first(&self.frames)?);
            }
            Some(kind) if self.status == 200 && kind.starts_with(b"application/grpc") => {
                return None;
            }
            _ => {}
        }
        match (first(&self.frames), self.frames.is_empty() && self.ends) {
            (Some(trailers), _) => match said(&trailers) {
                None | Some(Code::Ok) => Some(of_http(self.status)),
                given => given,
            },
            (None, true) => Some(of_http(self.status)),
            (None, false) => None,
        }
    }

    /// The most that may be told of it: all that its headers say, and the start of its body.
    fn longest_message(&self) -> usize {
        let trailers = self.frames.iter().filter_map(|piece| match piece {
            Piece::Trailers(trailers) => Some(trailers),
            Piece::Data(_) | Piece::Error(_) => None,
        });
        let headers = trailers.chain([&self.head]).flat_map(HeaderMap::values);
        let headers: usize = headers.map(HeaderValue::len).sum();
        ESCAPED * (headers + QUOTED) + 256
    }
}

/// gRPC's own table.
fn of_http(status: u16) -> Code {
    match status {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// What `grpc-status` says, read as plainly as can be.
fn said(headers: &HeaderMap) -> Option<Code> {
    let all: Vec<&HeaderValue> = headers.get_all("grpc-status").iter().collect();
    let [one] = all[..] else {
        return (!all.is_empty()).then_some(Code::Unknown);
    };
    let known = (0..=16).find(|code: &i32| one == code.to_string().as_str());
    Some(known.map_or(Code::Unknown, Code::from_i32))
}

fn fields(input: &mut Input<'_>) -> HeaderMap {
    const NAMES: [&str; 8] = [
        "grpc-status",
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "content-type",
        "grpc-encoding",
        "endpoint-load-metrics-bin",
        "equipoise-endpoint",
    ];
    const VALUES: [&str; 8] = [
        "0",
        "14",
        "16",
        "017",
        "application/grpc",
        "application/grpc+proto",
        "text/html",
        "%F0%9F%92%A9%",
    ];
    let mut headers = HeaderMap::new();
    for _ in 0..input.byte() % 16 {
        let name = match input.byte() {
            known @ 0..0xc0 => HeaderName::from_static(NAMES[usize::from(known % 8)]),
            _ => match HeaderName::from_bytes(input.bytes(64)) {
                Ok(name) => name,
                Err(_) => continue,
            },
        };
        let value = match input.byte() {
            known @ 0..0x80 => HeaderValue::from_static(VALUES[usize::from(known % 8)]),
            _ => match HeaderValue::from_bytes(&input.text(256 * 1024)) {
                Ok(value) => value,
                Err(_) => continue,
            },
        };
        headers.append(name, value);
    }
    headers
}

pub fn run(data: &[u8]) {
    let answer = Answer::read(&mut Input(data));
    mended(&answer.head);
    for piece in &answer.frames {
        if let Piece::Trailers(trailers) = piece {
            mended(trailers);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime needs nothing");
    runtime.block_on(called(answer));
}

/// Once read, tonic reads the same, and reading again changes nothing.
fn mended(headers: &HeaderMap) {
    let mut read = headers.clone();
    let code = read_status(&mut read);
    let plain = said(headers).map(|code| code as usize);
    assert_eq!(code.map(|code| code.number()), plain, "{headers:?}");
    let Some(plain) = plain else {
        return assert_eq!(
            &read, headers,
            "what is no word of a server's is left alone"
        );
    };
    let status = Status::from_header_map(&read).expect("tonic reads it too");
    // tonic gives up the code where it cannot read the rest, so the rest must be readable.
    assert_eq!(status.code() as usize, plain, "{headers:?} {read:?}");
    let mut twice = read.clone();
    assert_eq!(
        read_status(&mut twice).map(|code| code.number()),
        Some(plain)
    );
    assert_eq!(twice, read);
}

async fn called(answer: Answer) {
    let expected = answer.expected();
    let endpoint: Address = "127.0.0.1:1".parse().expect("an address");
    let layer = BalanceLayer::from_endpoints([Endpoint::new(endpoint)])
        .build()
        .expect("nothing is wrong with it");
    let channel = layer.layer(Scripted(Some(answer.clone())));
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("it is always ready");
    let mut request = tonic::Request::new(());
    request.set_timeout(TIMEOUT);
    let path = http::uri::PathAndQuery::from_static("/fuzz.Service/Method");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let started = tokio::time::Instant::now();
    let status = match client.server_streaming(request, path, codec).await {
        Err(status) => Some(status),
        Ok(response) => {
            let mut messages = response.into_inner();
            loop {
                match messages.message().await {
                    Ok(Some(())) => {}
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            }
        }
    };
    let took = started.elapsed();
    assert!(took <= TIMEOUT + Duration::from_millis(2), "{took:?}");
    let code = status.as_ref().map_or(Code::Ok, Status::code);
    if let Some(expected) = expected {
        assert_eq!(code, expected, "{status:?} for {answer:?}");
    }
    if let Some(status) = &status {
        let told = status.message().len();
        assert!(told <= answer.longest_message(), "{told} bytes are told");
    }
    let endpoints = channel.endpoints();
    let [endpoint] = &endpoints[..] else {
        panic!("{endpoints:?}");
    };
    let ended: u64 = endpoint.outcomes.iter().map(|(_, count)| count).sum();
    assert_eq!(endpoint.in_flight, 0, "{answer:?}");
    assert_eq!(ended + endpoint.cancelled, 1, "{endpoint:?} {answer:?}");
}

/// A connector, its connection and the response's body: all there is of this server is what it answers.
#[derive(Clone, Debug, Default)]
struct Scripted(Option<Answer>);

impl Connector for Scripted {
    type Connection = Dialled;

    fn connect(
        &self,
        _: &Endpoint,
        _: &Address,
    ) -> BoxFuture<'static, Result<Dialled, ConnectError>> {
        let dialled = Dialled {
            scripted: self.clone(),
            slots: Slots::new(10),
            condition: watch::Sender::new(Condition::Open),
        };
        std::future::ready(Ok(dialled)).boxed()
    }
}

struct Dialled {
    scripted: Scripted,
    slots: Arc<Slots>,
    condition: watch::Sender<Condition>,
}

impl Connection for Dialled {
    type Body = Scripted;

    fn call(
        &self,
        _: Outgoing,
        slot: Slot,
    ) -> impl Future<Output = Result<Response<Scripted>, CallError>> + Send + 'static {
        drop(slot);
        let answer = self.scripted.0.as_ref().map(Answer::response);
        std::future::ready(Ok(answer.unwrap_or_default()))
    }

    fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::new(Nothing)
    }
}

struct Nothing;

impl Control for Nothing {
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    fn abort(&self, _: &str) {}
}

impl http_body::Body for Scripted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(answer) = &mut self.0 else {
            return Poll::Ready(None);
        };
        match answer.frames.pop_front() {
            Some(Piece::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Piece::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Piece::Error(code)) => Poll::Ready(Some(Err(Status::new(code, "lost")))),
            None if answer.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        let answer = self.0.as_ref();
        answer.is_none_or(|answer| answer.frames.is_empty() && answer.ends)
    }
}
