//! The demo service as a real tonic server, with the faults a test asks for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt, future, stream};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

use super::health::{self, Word};
pub use super::inside::{Server, UnixServer, unix_server};
use super::ledger::{Entry, Writer};
use super::timer;
use super::tls::Acceptor;
use super::trailers::InTrailers;

pub mod proto {
    //! The generated code of the demo service.
    tonic::include_proto!("equipoise.demo.v1");
}

use proto::greeter_server::{Greeter, GreeterServer};
use proto::{CountdownRequest, GatherReply, HelloReply, HelloRequest};

/// Where a server listens and how it behaves. The text form is what a child process is started with.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// In each reply and in the ledger; without blanks and semicolons.
    pub name: String,
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// What each call takes, on top of what it asks for.
    pub work: Duration,
    /// Calls in work at a time; further ones wait in order.
    pub concurrency: Option<usize>,
    /// The code of the calls that fail, and how many of 1,000 do, evenly spread. They take `work` too.
    pub fail: Option<(Code, u64)>,
    /// Failures come as gRPC allows it: after a head that says nothing of them, in trailers alone.
    pub late_status: bool,
    /// What it says of itself when it is asked by the health service; none where it has no such service.
    pub health: Option<Word>,
    /// How long a connection that was made waits for the server's first byte.
    pub greeting: Duration,
    /// The pause before each message of a stream, on top of what the call asks for.
    pub pace: Duration,
    /// The SETTINGS of that name.
    pub max_concurrent_streams: Option<u32>,
    /// GOAWAY at this age of a connection.
    pub max_connection_age: Option<Duration>,
    /// Where to write what was executed.
    pub ledger: Option<PathBuf>,
    /// TLS with the certificate and the key in this PEM file.
    pub tls: Option<PathBuf>,
}

impl Options {
    /// A quick and sound server on a free port of 127.0.0.1.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            work: Duration::ZERO,
            concurrency: None,
            fail: None,
            late_status: false,
            health: None,
            greeting: Duration::ZERO,
            pace: Duration::ZERO,
            max_concurrent_streams: None,
            max_connection_age: None,
            ledger: None,
            tls: None,
        }
    }

    /// Three servers `b1`, `b2`, `b3` on 127.0.0.2, .3 and .4, each taking `work` for a call.
    pub fn three(work: Duration) -> [Self; 3] {
        [1, 2, 3].map(|n| {
            let host = IpAddr::from([127, 0, 0, n + 1]);
            Self {
                work,
                listen: (host, 0).into(),
                ..Self::new(&format!("b{n}"))
            }
        })
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            listen,
            work,
            pace,
            ..
        } = self;
        write!(
            f,
            "name={name};listen={listen};work={};pace={}",
            work.as_nanos(),
            pace.as_nanos()
        )?;
        if let Some(concurrency) = self.concurrency {
            write!(f, ";concurrency={concurrency}")?;
        }
        if let Some((code, share)) = self.fail {
            write!(f, ";fail={}/{share}", code as i32)?;
        }
        if self.late_status {
            f.write_str(";late_status=true")?;
        }
        if let Some(word) = self.health {
            write!(f, ";health={word}")?;
        }
        if !self.greeting.is_zero() {
            write!(f, ";greeting={}", self.greeting.as_nanos())?;
        }
        if let Some(streams) = self.max_concurrent_streams {
            write!(f, ";streams={streams}")?;
        }
        if let Some(age) = self.max_connection_age {
            write!(f, ";age={}", age.as_nanos())?;
        }
        if let Some(ledger) = &self.ledger {
            write!(f, ";ledger={}", ledger.display())?;
        }
        if let Some(tls) = &self.tls {
            write!(f, ";tls={}", tls.display())?;
        }
        Ok(())
    }
}

impl FromStr for Options {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut options = Self::new("");
        for field in text.split(';') {
            options
                .set(field)
                .ok_or_else(|| format!("server option {field:?}: not understood"))?;
        }
        Ok(options)
    }
}

impl Options {
    fn set(&mut self, field: &str) -> Option<()> {
        let (key, value) = field.split_once('=')?;
        let nanos = || value.parse().ok().map(Duration::from_nanos);
        match key {
            "name" => self.name = value.into(),
            "listen" => self.listen = value.parse().ok()?,
            "work" => self.work = nanos()?,
            "pace" => self.pace = nanos()?,
            "concurrency" => self.concurrency = Some(value.parse().ok()?),
            "fail" => {
                let (code, share) = value.split_once('/')?;
                self.fail = Some((Code::from(code.parse::<i32>().ok()?), share.parse().ok()?));
            }
            "late_status" => self.late_status = value.parse().ok()?,
            "health" => self.health = Some(value.parse().ok()?),
            "greeting" => self.greeting = nanos()?,
            "streams" => self.max_concurrent_streams = Some(value.parse().ok()?),
            "age" => self.max_connection_age = Some(nanos()?),
            "ledger" => self.ledger = Some(value.into()),
            "tls" => self.tls = Some(value.into()),
            _ => return None,
        }
        Some(())
    }
}

/// Stock tonic's way to a server, with the windows that this crate uses.
pub fn tonic_endpoint(address: SocketAddr) -> tonic::transport::Endpoint {
    tonic_endpoint_by("http", address)
}

/// The same by a scheme of the caller's choice.
pub fn tonic_endpoint_by(scheme: &str, address: SocketAddr) -> tonic::transport::Endpoint {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("{scheme}://{address}"));
    endpoint
        .expect("an address is an authority")
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
}

/// The runtime of servers: one thread, so that a bench can give it one core.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime can be had")
}

/// What of a server's options may change while it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behaviour {
    work: Duration,
    fail: Option<(Code, u64)>,
    pub health: Option<Word>,
}

impl From<&Options> for Behaviour {
    fn from(options: &Options) -> Self {
        let &Options {
            work, fail, health, ..
        } = options;
        Self { work, fail, health }
    }
}

/// A server that listens and does not answer yet.
pub(super) struct Bound {
    pub address: SocketAddr,
    /// How it is told to behave otherwise.
    pub behaviour: watch::Sender<Behaviour>,
    listener: TcpListener,
    pub acceptor: Option<Acceptor>,
    options: Options,
}

impl Bound {
    pub async fn bind(options: Options) -> Self {
        let listener = TcpListener::bind(options.listen).await;
        let listener = listener.unwrap_or_else(|error| panic!("bind {}: {error}", options.listen));
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        Self {
            address,
            behaviour: watch::Sender::new(Behaviour::from(&options)),
            listener,
            acceptor: options.tls.as_deref().map(Acceptor::from_file),
            options,
        }
    }

    /// Serves until the sender of `drain` is gone, and then until the last stream has finished.
    pub async fn serve(self, mut drain: watch::Receiver<()>) {
        let Self {
            listener,
            acceptor,
            options,
            behaviour,
            ..
        } = self;
        // 1 MiB and 16 MiB, as the client has them: uploads wait for the network alone.
        let mut server = tonic::transport::Server::builder()
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(16 << 20)
            // A server that got no core for some milliseconds finds calls and their resets side by side,
            // and takes more than 20 of them for an attack.
            .http2_max_pending_accept_reset_streams(Some(10_000))
            .max_concurrent_streams(options.max_concurrent_streams);
        if let Some(age) = options.max_connection_age {
            server = server.max_connection_age(age);
        }
        let drained = async move { while drain.changed().await.is_ok() {} };
        let health = options.health.map(|_| {
            let words = behaviour.subscribe();
            health::service(words, options.ledger.as_deref(), &options.name)
        });
        let (late_status, greeting) = (options.late_status, options.greeting);
        let greeter = GreeterServer::new(Service::new(options, behaviour.subscribe()));
        let router = match late_status {
            false => server.add_service(greeter),
            true => server.add_service(InTrailers(greeter)),
        };
        let router = router.add_optional_service(health);
        let served = match acceptor {
            None => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                let incoming = incoming.then(|connection| async move {
                    timer::pause(greeting).await;
                    connection
                });
                router.serve_with_incoming_shutdown(incoming, drained).await
            }
            Some(acceptor) => {
                let incoming = acceptor.incoming(listener);
                router.serve_with_incoming_shutdown(incoming, drained).await
            }
        };
        served.expect("serving an open listener does not fail");
    }
}

/// The service as it stands, for servers that a test puts together itself.
pub fn service(options: Options) -> GreeterServer<impl Greeter> {
    // It goes on behaving so: nobody keeps the other end.
    let (_, behaviour) = watch::channel(Behaviour::from(&options));
    GreeterServer::new(Service::new(options, behaviour))
}

pub(super) struct Service {
    options: Options,
    behaviour: watch::Receiver<Behaviour>,
    permits: Option<Arc<Semaphore>>,
    ledger: Option<Writer>,
    calls: AtomicU64,
}

/// What a call holds until its end.
struct Held {
    entry: Option<Entry>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    fn finish(&mut self, code: Code) {
        if let Some(entry) = self.entry.take() {
            entry.finish(code);
        }
    }
}

impl Service {
    /// One that stays as its options say.
    pub(super) fn of(options: Options) -> Self {
        let behaviour = watch::Sender::new(Behaviour::from(&options)).subscribe();
        Self::new(options, behaviour)
    }

    fn new(options: Options, behaviour: watch::Receiver<Behaviour>) -> Self {
        let ledger = options.ledger.as_ref().map(|path| {
            Writer::open(path, &options.name)
                .unwrap_or_else(|error| panic!("ledger {}: {error}", path.display()))
        });
        let permits = options
            .concurrency
            .map(|permits| Arc::new(Semaphore::new(permits)));
        Self {
            options,
            behaviour,
            permits,
            ledger,
            calls: AtomicU64::new(0),
        }
    }

    /// Takes a call: it is executed from here on, even while it waits for its turn.
    async fn begin(
        &self,
        id: u64,
        attempt: u32,
        work: Duration,
        code: u32,
    ) -> Result<Held, Status> {
        let entry = self.ledger.as_ref().map(|ledger| ledger.begin(id, attempt));
        let permit = match &self.permits {
            None => None,
            Some(permits) => Some(
                permits
                    .clone()
                    .acquire_owned()
                    .await
                    .expect("the semaphore stays open"),
            ),
        };
        let mut held = Held {
            entry,
            _permit: permit,
        };
        let usual = self.behaviour.borrow().work;
        timer::pause(usual + work).await;
        let code = match Code::from(code as i32) {
            Code::Ok => self.fault(),
            asked => asked,
        };
        if code == Code::Ok {
            return Ok(held);
        }
        held.finish(code);
        Err(Status::new(
            code,
            format!("{} was told to fail", self.options.name),
        ))
    }

    fn fault(&self) -> Code {
        let Some((code, share)) = self.behaviour.borrow().fail else {
            return Code::Ok;
        };
        // A counter on its own: nothing else is read in its order.
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        match fails(call, share) {
            true => code,
            false => Code::Ok,
        }
    }

    fn reply(&self, request: HelloRequest) -> HelloReply {
        HelloReply {
            id: request.id,
            message: format!("hello {}", request.name),
            server: self.options.name.clone(),
            payload: if request.echo {
                request.payload
            } else {
                Vec::new()
            },
        }
    }
}

/// Whether a server that fails `share` of 1,000 calls fails this one: they are evenly spread.
pub fn fails(call: u64, share: u64) -> bool {
    (call + 1) * share / 1_000 > call * share / 1_000
}

/// gRPC's own header for it counts from the first retry.
fn attempt<T>(request: &Request<T>) -> u32 {
    let previous = request.metadata().get("grpc-previous-rpc-attempts");
    let previous = previous.and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    previous.unwrap_or(0) + 1
}

type Replies = Pin<Box<dyn Stream<Item = Result<HelloReply, Status>> + Send>>;

#[tonic::async_trait]
impl Greeter for Service {
    async fn say_hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloReply>, Status> {
        let attempt = attempt(&request);
        let request = request.into_inner();
        let work = Duration::from_micros(request.work_us);
        let mut held = self.begin(request.id, attempt, work, request.code).await?;
        let reply = self.reply(request);
        held.finish(Code::Ok);
        Ok(Response::new(reply))
    }

    type CountdownStream = Replies;

    async fn countdown(
        &self,
        request: Request<CountdownRequest>,
    ) -> Result<Response<Replies>, Status> {
        let attempt = attempt(&request);
        let request = request.into_inner();
        let held = self.begin(request.id, attempt, Duration::ZERO, 0).await?;
        let pause = self.options.pace + Duration::from_micros(request.pause_us);
        let reply = HelloReply {
            id: request.id,
            message: String::new(),
            server: self.options.name.clone(),
            payload: vec![b'.'; request.payload_bytes as usize],
        };
        let replies = stream::unfold((request.count, held), move |(left, mut held)| {
            let reply = reply.clone();
            async move {
                if left == 0 {
                    held.finish(Code::Ok);
                    return None;
                }
                timer::pause(pause).await;
                Some((Ok(reply), (left - 1, held)))
            }
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn gather(
        &self,
        request: Request<Streaming<HelloRequest>>,
    ) -> Result<Response<GatherReply>, Status> {
        let attempt = attempt(&request);
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap_or_default();
        let work = Duration::from_micros(first.work_us);
        let mut held = self.begin(first.id, attempt, work, first.code).await?;
        let mut reply = GatherReply {
            messages: 1,
            bytes: first.payload.len() as u64,
            server: self.options.name.clone(),
        };
        while let Some(request) = requests.message().await? {
            timer::pause(self.options.pace).await;
            reply.messages += 1;
            reply.bytes += request.payload.len() as u64;
        }
        held.finish(Code::Ok);
        Ok(Response::new(reply))
    }

    type ChatStream = Replies;

    async fn chat(
        &self,
        request: Request<Streaming<HelloRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let attempt = attempt(&request);
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap_or_default();
        let work = Duration::from_micros(first.work_us);
        let held = self.begin(first.id, attempt, work, first.code).await?;
        let (server, pace) = (self.options.name.clone(), self.options.pace);
        let requests = stream::once(future::ready(Ok(first))).chain(requests);
        let replies = stream::unfold((requests, held), move |(mut requests, mut held)| {
            let server = server.clone();
            async move {
                let request = match requests.next().await {
                    Some(Ok(request)) => request,
                    Some(Err(status)) => {
                        held.finish(status.code());
                        return Some((Err(status), (requests, held)));
                    }
                    None => {
                        held.finish(Code::Ok);
                        return None;
                    }
                };
                timer::pause(pace).await;
                let message = format!("hello {}", request.name);
                let payload = if request.echo {
                    request.payload
                } else {
                    Vec::new()
                };
                let reply = HelloReply {
                    id: request.id,
                    message,
                    server,
                    payload,
                };
                Some((Ok(reply), (requests, held)))
            }
        });
        Ok(Response::new(Box::pin(replies)))
    }
}
