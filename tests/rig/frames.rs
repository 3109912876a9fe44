//! A scripted HTTP/2 server at the level of frames: it does what a test says, right or wrong, and
//! writes down what it received.
//!
//! ```ignore
//! // Well-behaved by default: SETTINGS at once, no stream limit, every call answered with one empty
//! // message and OK. `script` decides per stream what is sent instead.
//! let server = FrameServer::start(Script {
//!     limit: Some(10),
//!     stream: stream(|call| match call.nth {
//!         0 => vec![Step::Reset(code::REFUSED_STREAM)],
//!         _ => Step::reply(b"hello"),
//!     }),
//!     ..Script::default()
//! })
//! .await;
//! server.address();                         // where to connect to
//! let peer = server.peer(0).await;          // the first connection, as soon as there is one
//! let frame = peer.wait(|f| f.is(kind::RST_STREAM)).await;   // the first such frame, past or future
//! assert_eq!(frame.code(), code::CANCEL);
//! peer.goaway(1, code::NO_ERROR, b"");      // and by hand, whenever the test likes
//! ```
//!
//! * [`Script`]: what happens by itself. `settings: false` sends no SETTINGS until `peer.settings(..)`;
//!   `pongs: false` answers no PING; `room: false` gives no window back for uploads; `stream` gives the
//!   [`Step`]s that answer a call, run one after another in a task of that call's own.
//! * [`Step`]: `UntilEnd` waits for the request's end, `Pause` for a time (a slow handler, not a means to
//!   wait for something), `Gate` for [`FrameServer::open_gate`]; the others send.
//! * [`Peer`]: one connection. `headers message trailers reset goaway settings window ping raw` send,
//!   `close` ends it in order (FIN), `kill` with a TCP reset (SO_LINGER 0).
//!   `frames()` is the record so far, `wait(..)` and `until(..)` wait for a frame or for a state of the
//!   record, `closed()` for the client's end. Waits panic after [`PATIENCE`].
//! * Request header blocks are recorded but not decoded: use the `h2` crate's server to look at headers.

#![allow(dead_code, unreachable_pub, missing_docs)] // Each test binary uses its own part of it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// How long a wait lasts before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Frame types.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Error codes.
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

pub const END_STREAM: u8 = 1;
const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame that was received.
#[derive(Clone, Debug)]
pub struct Frame {
    pub at: Instant,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Bytes,
}

impl Frame {
    pub fn is(&self, kind: u8) -> bool {
        self.kind == kind
    }

    /// Whether it ends the client's half of its stream.
    pub fn ends_stream(&self) -> bool {
        (self.is(kind::DATA) || self.is(kind::HEADERS)) && self.flags & END_STREAM != 0
    }

    /// A PING or SETTINGS that answers ours.
    pub fn is_ack(&self) -> bool {
        (self.is(kind::PING) || self.is(kind::SETTINGS)) && self.flags & ACK != 0
    }

    /// The error code of a RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let mut payload = self.payload.clone();
        match self.kind {
            kind::RST_STREAM => payload.get_u32(),
            kind::GOAWAY => {
                payload.advance(4);
                payload.get_u32()
            }
            other => panic!("frame of type {other} has no error code"),
        }
    }
}

/// A call as a script sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its stream id.
    pub id: u32,
    /// Its place among the calls of its connection, from 0.
    pub nth: usize,
    /// The place of its connection, from 0.
    pub connection: usize,
}

/// Header fields, in their order.
pub type Fields = &'static [(&'static str, &'static str)];

/// One thing a server does for a call.
#[derive(Clone, Debug)]
pub enum Step {
    /// Waits for END_STREAM of the request.
    UntilEnd,
    /// Takes its time.
    Pause(Duration),
    /// Waits for [`FrameServer::open_gate`].
    Gate,
    /// `:status 200` and `content-type: application/grpc`.
    Headers,
    /// One gRPC message.
    Message(Bytes),
    /// A DATA frame as it is.
    Data(Bytes),
    /// A head with this `:status` and nothing else but these fields.
    Head(u16, Fields),
    /// The same, and it is the end as well.
    LastHead(u16, Fields),
    /// Any trailers, or a head without `:status`.
    LastFields(Fields),
    /// Any frame on the call's stream: type, flags, payload.
    Frame(u8, u8, Bytes),
    /// Trailers with this `grpc-status`.
    Trailers(u32),
    /// A head that is the end as well, with this `grpc-status`.
    TrailersOnly(u32),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY: last stream id, code, debug data.
    GoAway(u32, u32, &'static [u8]),
    /// Ends the connection with FIN.
    Close,
    /// Ends the connection with a TCP reset.
    Kill,
}

impl Step {
    /// A whole unary answer, after the whole request.
    pub fn reply(message: &[u8]) -> Vec<Self> {
        vec![
            Self::UntilEnd,
            Self::Headers,
            Self::Message(Bytes::copy_from_slice(message)),
            Self::Trailers(0),
        ]
    }
}

type Answer = Arc<dyn Fn(Call) -> Vec<Step> + Send + Sync>;

/// The answer to each call, for [`Script::stream`].
pub fn stream(answer: impl Fn(Call) -> Vec<Step> + Send + Sync + 'static) -> Answer {
    Arc::new(answer)
}

/// What the server does by itself.
#[derive(Clone)]
pub struct Script {
    /// Sends SETTINGS as soon as a connection is there.
    pub settings: bool,
    /// MAX_CONCURRENT_STREAMS in these SETTINGS.
    pub limit: Option<u32>,
    /// Answers pings.
    pub pongs: bool,
    /// Gives back the window of uploads.
    pub room: bool,
    /// Answers calls.
    pub stream: Answer,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            settings: true,
            limit: None,
            pongs: true,
            room: true,
            stream: stream(|_| Step::reply(b"")),
        }
    }
}

/// The server. Dropping it leaves its connections to their scripts and accepts no more.
pub struct FrameServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::AbortHandle,
}

struct Shared {
    peers: watch::Sender<Vec<Peer>>,
    gate: watch::Sender<bool>,
}

impl FrameServer {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            peers: watch::Sender::new(Vec::new()),
            gate: watch::Sender::new(false),
        });
        let accepted = shared.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                let nth = accepted.peers.borrow().len();
                let peer = Peer::serve(socket, script.clone(), nth, accepted.gate.subscribe());
                accepted.peers.send_modify(|peers| peers.push(peer));
            }
        });
        Self {
            address,
            shared,
            accepting: accepting.abort_handle(),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.peers.borrow().len()
    }

    /// The `nth` connection, from 0; waits for it.
    pub async fn peer(&self, nth: usize) -> Peer {
        let mut peers = self.shared.peers.subscribe();
        let peers = tokio::time::timeout(PATIENCE, peers.wait_for(|peers| peers.len() > nth));
        let peers = peers.await;
        peers
            .unwrap_or_else(|_| panic!("connection {nth} never came"))
            .unwrap()[nth]
            .clone()
    }

    /// Lets every [`Step::Gate`] go on, also those still to come.
    pub fn open_gate(&self) {
        self.shared.gate.send_replace(true);
    }
}

impl Drop for FrameServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection, seen from the server.
#[derive(Clone)]
pub struct Peer {
    orders: mpsc::UnboundedSender<Order>,
    record: watch::Receiver<Record>,
}

enum Order {
    Send(Bytes),
    // A head and a payload that many frames share.
    Frame(Bytes, Bytes),
    Close,
    Kill,
}

#[derive(Default)]
struct Record {
    frames: Vec<Frame>,
    // Streams whose client half is over, by END_STREAM or by a reset.
    ended: HashSet<u32>,
    closed: bool,
}

impl Peer {
    fn serve(socket: TcpStream, script: Script, nth: usize, gate: watch::Receiver<bool>) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (record, watch) = watch::channel(Record::default());
        let peer = Self {
            orders,
            record: watch,
        };
        tokio::spawn(serve(
            socket,
            script,
            nth,
            gate,
            inbox,
            record,
            peer.clone(),
        ));
        peer
    }

    /// Everything received so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.record.borrow().frames.clone()
    }

    /// How many received frames match.
    pub fn count(&self, matches: impl Fn(&Frame) -> bool) -> usize {
        let record = self.record.borrow();
        record.frames.iter().filter(|frame| matches(frame)).count()
    }

    /// The first received frame that matches; waits for it.
    pub async fn wait(&self, matches: impl Fn(&Frame) -> bool) -> Frame {
        self.until(|frames| frames.iter().any(&matches)).await;
        let found = self.frames().into_iter().find(|frame| matches(frame));
        found.expect("the record only grows")
    }

    /// Waits until the record is as wished.
    pub async fn until(&self, wished: impl Fn(&[Frame]) -> bool) {
        let mut record = self.record.clone();
        let waiting = record.wait_for(|record| wished(&record.frames));
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => panic!("the connection ended first: {:#?}", self.frames()),
            Err(_) => panic!("not seen in {PATIENCE:?}: {:#?}", self.frames()),
        }
    }

    /// Waits for the client's end of the connection.
    pub async fn closed(&self) {
        let mut record = self.record.clone();
        let waiting = record.wait_for(|record| record.closed);
        let result = tokio::time::timeout(PATIENCE, waiting).await.map(|_| ());
        result.unwrap_or_else(|_| panic!("not closed in {PATIENCE:?}: {:#?}", self.frames()));
    }

    pub fn is_closed(&self) -> bool {
        self.record.borrow().closed
    }

    /// Sends bytes as they are.
    pub fn raw(&self, bytes: impl Into<Bytes>) {
        // A connection that is gone takes nothing; the test sees that by other means.
        let _ = self.orders.send(Order::Send(bytes.into()));
    }

    /// Sends one frame.
    pub fn frame(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = frame_head(payload.len(), kind, flags, stream);
        bytes.put_slice(payload);
        self.raw(bytes);
    }

    /// SETTINGS with this MAX_CONCURRENT_STREAMS, or empty.
    pub fn settings(&self, limit: Option<u32>) {
        let mut payload = BytesMut::new();
        if let Some(limit) = limit {
            payload.put_u16(3);
            payload.put_u32(limit);
        }
        self.frame(kind::SETTINGS, 0, 0, &payload);
    }

    /// A response head.
    pub fn headers(&self, id: u32) {
        let block = block(&[("content-type", "application/grpc")], true);
        self.frame(kind::HEADERS, END_HEADERS, id, &block);
    }

    /// Any header block, with `:status 200` in front where it is a head.
    pub fn fields(&self, id: u32, fields: &[(&str, &str)], head: bool, end: bool) {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.frame(kind::HEADERS, flags, id, &block(fields, head));
    }

    /// Any response head.
    fn head(&self, id: u32, status: u16, fields: Fields, flags: u8) {
        let status = status.to_string();
        let head = [(":status", &*status)];
        let block = block(&[&head, fields].concat(), false);
        self.frame(kind::HEADERS, END_HEADERS | flags, id, &block);
    }

    /// One gRPC message in one DATA frame.
    pub fn message(&self, id: u32, message: &[u8]) {
        let mut payload = BytesMut::with_capacity(5 + message.len());
        payload.put_u8(0);
        payload.put_u32(message.len() as u32);
        payload.put_slice(message);
        self.frame(kind::DATA, 0, id, &payload);
    }

    /// Trailers with this status.
    pub fn trailers(&self, id: u32, status: u32) {
        let fields = [("grpc-status", &*status.to_string())];
        self.fields(id, &fields, false, true);
    }

    pub fn reset(&self, id: u32, code: u32) {
        self.frame(kind::RST_STREAM, 0, id, &code.to_be_bytes());
    }

    pub fn goaway(&self, last: u32, code: u32, debug: &[u8]) {
        let mut payload = BytesMut::new();
        payload.put_u32(last);
        payload.put_u32(code);
        payload.put_slice(debug);
        self.frame(kind::GOAWAY, 0, 0, &payload);
    }

    /// Gives the client room to send; stream 0 is the connection.
    pub fn window(&self, id: u32, bytes: u32) {
        self.frame(kind::WINDOW_UPDATE, 0, id, &bytes.to_be_bytes());
    }

    pub fn ping(&self) {
        self.frame(kind::PING, 0, 0, b"rigrigri");
    }

    /// Sends what was ordered before, then FIN.
    pub fn close(&self) {
        let _ = self.orders.send(Order::Close);
    }

    /// Sends what was ordered before, then a TCP reset.
    pub fn kill(&self) {
        let _ = self.orders.send(Order::Kill);
    }

    /// Runs these steps on a stream by hand, and waits until the client has taken in what they sent.
    pub async fn play(&self, id: u32, steps: Vec<Step>) {
        let call = Call {
            id,
            nth: 0,
            connection: 0,
        };
        let (_open, gate) = watch::channel(true);
        self.clone().run(call, steps, gate).await;
        // The answer to a ping comes when all before it was read.
        let answers = |frames: &[Frame]| {
            let answers = frames.iter().filter(|f| f.is(kind::PING) && f.is_ack());
            answers.count()
        };
        let before = answers(&self.frames());
        self.ping();
        self.until(|frames| answers(frames) > before).await;
    }

    /// Streams the client opened, in order.
    pub fn streams(&self) -> Vec<u32> {
        let record = self.record.borrow();
        let headers = record.frames.iter().filter(|f| f.is(kind::HEADERS));
        headers.map(|f| f.stream).collect()
    }

    async fn run(self, call: Call, steps: Vec<Step>, mut gate: watch::Receiver<bool>) {
        for step in steps {
            match step {
                Step::UntilEnd => {
                    let mut record = self.record.clone();
                    let ended = record.wait_for(|r| r.closed || r.ended.contains(&call.id));
                    if ended.await.is_err() {
                        return;
                    }
                }
                Step::Pause(time) => tokio::time::sleep(time).await,
                Step::Gate => {
                    if gate.wait_for(|open| *open).await.is_err() {
                        return;
                    }
                }
                Step::Headers => self.headers(call.id),
                Step::Message(message) => self.message(call.id, &message),
                Step::Data(data) => self.frame(kind::DATA, 0, call.id, &data),
                Step::Head(status, fields) => self.head(call.id, status, fields, 0),
                Step::LastHead(status, fields) => self.head(call.id, status, fields, END_STREAM),
                Step::LastFields(fields) => self.fields(call.id, fields, false, true),
                Step::Frame(kind, flags, payload) => {
                    let head = frame_head(payload.len(), kind, flags, call.id);
                    let _ = self.orders.send(Order::Frame(head.freeze(), payload));
                }
                Step::Trailers(status) => self.trailers(call.id, status),
                Step::TrailersOnly(status) => {
                    let status = status.to_string();
                    let fields = [
                        ("content-type", "application/grpc"),
                        ("grpc-status", &status),
                    ];
                    self.fields(call.id, &fields, true, true);
                }
                Step::Reset(code) => self.reset(call.id, code),
                Step::GoAway(last, code, debug) => self.goaway(last, code, debug),
                Step::Close => self.close(),
                Step::Kill => self.kill(),
            }
        }
    }
}

/// The head of a frame.
fn frame_head(length: usize, kind: u8, flags: u8, stream: u32) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(9);
    bytes.put_uint(length as u64, 3);
    bytes.put_u8(kind);
    bytes.put_u8(flags);
    bytes.put_u32(stream);
    bytes
}

/// An HPACK block of literals that are neither indexed nor Huffman-coded; as a head with `:status 200` in front.
pub fn block(fields: &[(&str, &str)], head: bool) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        match text.len() {
            short @ 0..=126 => out.push(short as u8),
            mut long => {
                out.push(127);
                long -= 127;
                while long >= 128 {
                    out.push((long % 128) as u8 | 128);
                    long /= 128;
                }
                out.push(long as u8);
            }
        }
        out.extend_from_slice(text.as_bytes());
    }
    let mut out = Vec::new();
    if head {
        out.push(0x88); // :status 200, from the static table
    }
    for (name, value) in fields {
        out.push(0);
        text(&mut out, name);
        text(&mut out, value);
    }
    out
}

/// How the writing half ended.
enum End {
    Order,
    Kill,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn serve(
    socket: TcpStream,
    script: Script,
    connection: usize,
    gate: watch::Receiver<bool>,
    mut inbox: mpsc::UnboundedReceiver<Order>,
    record: watch::Sender<Record>,
    peer: Peer,
) {
    if script.settings {
        peer.settings(script.limit);
    }
    let (mut reader, mut writer) = socket.into_split();
    let writing = tokio::spawn(async move {
        while let Some(order) = inbox.recv().await {
            match order {
                Order::Send(bytes) => {
                    if writer.write_all(&bytes).await.is_err() {
                        return End::Order;
                    }
                }
                Order::Frame(head, payload) => {
                    let mut frame = head.chain(payload);
                    if writer.write_all_buf(&mut frame).await.is_err() {
                        return End::Order;
                    }
                }
                // Dropped, the half shuts the socket down for writing: FIN.
                Order::Close => return End::Order,
                Order::Kill => {
                    let linger = Some(Duration::ZERO);
                    let _ = socket2::SockRef::from(writer.as_ref()).set_linger(linger);
                    writer.forget();
                    return End::Kill;
                }
            }
        }
        End::Order
    });
    tokio::pin!(writing);
    let calls = AtomicUsize::new(0);
    let mut buffer = BytesMut::new();
    let mut preface = false;
    let mut written = false;
    loop {
        tokio::select! {
            read = reader.read_buf(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            },
            end = &mut writing, if !written => {
                written = true;
                // With this half the socket goes, and linger 0 makes it a reset.
                if matches!(end, Ok(End::Kill)) {
                    break;
                }
            }
        }
        if !preface && buffer.len() >= PREFACE.len() {
            assert_eq!(&buffer[..PREFACE.len()], PREFACE, "not an HTTP/2 client");
            buffer.advance(PREFACE.len());
            preface = true;
        }
        while let Some(frame) = preface.then(|| take(&mut buffer)).flatten() {
            let (opens, stream) = (frame.is(kind::HEADERS), frame.stream);
            respond(&frame, &script, &peer);
            record.send_modify(|record| {
                if frame.ends_stream() || frame.is(kind::RST_STREAM) {
                    record.ended.insert(stream);
                }
                record.frames.push(frame);
            });
            if opens {
                let nth = calls.fetch_add(1, Ordering::Relaxed);
                let call = Call {
                    id: stream,
                    nth,
                    connection,
                };
                let steps = (script.stream)(call);
                tokio::spawn(peer.clone().run(call, steps, gate.clone()));
            }
        }
    }
    if !written {
        writing.abort();
    }
    // First the socket, then the word of it.
    drop(reader);
    record.send_modify(|record| record.closed = true);
}

fn take(buffer: &mut BytesMut) -> Option<Frame> {
    if buffer.len() < 9 {
        return None;
    }
    let length = buffer[..3]
        .iter()
        .fold(0, |all, byte| all << 8 | usize::from(*byte));
    if buffer.len() < 9 + length {
        return None;
    }
    let mut frame = buffer.split_to(9 + length).freeze();
    frame.advance(3);
    Some(Frame {
        at: Instant::now(),
        kind: frame.get_u8(),
        flags: frame.get_u8(),
        stream: frame.get_u32() & 0x7fff_ffff,
        payload: frame,
    })
}

fn respond(frame: &Frame, script: &Script, peer: &Peer) {
    match frame.kind {
        kind::SETTINGS if !frame.is_ack() => peer.frame(kind::SETTINGS, ACK, 0, b""),
        kind::PING if !frame.is_ack() && script.pongs => {
            peer.frame(kind::PING, ACK, 0, &frame.payload);
        }
        kind::DATA if script.room && !frame.payload.is_empty() => {
            let bytes = frame.payload.len() as u32;
            peer.window(0, bytes);
            if !frame.ends_stream() {
                peer.window(frame.stream, bytes);
            }
        }
        _ => {}
    }
}
