//! The servers of a real run: tonic on loopback, each in a runtime of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use equipoise::{Address, LoadReport, Timestamp};
use futures_util::Stream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::proto::greeter_server::{Greeter, GreeterServer};
use super::proto::{CountdownRequest, GatherReply, HelloReply, HelloRequest};
use super::readings::{Meter, answer_bytes};
use super::real::Picked;
use super::scenario::{Antagonist, Scenario, Server};
use super::workload::Noise;

pub struct Fleet {
    servers: Vec<Running>,
    antagonist: Option<Antagonist>,
    seed: u64,
    picked: Picked,
    /// Whether they are to say how they are doing.
    reports: bool,
    /// When the warm-up was over.
    warm: Option<Instant>,
    counting: Arc<AtomicBool>,
}

struct Running {
    /// Dropped with all its connections when the server is killed.
    runtime: Option<Runtime>,
    works: Arc<Works>,
    address: Address,
    from: Instant,
    until: Option<Instant>,
}

/// How one server works: first come first served, so many at a time.
struct Works {
    facts: Server,
    number: u32,
    slots: Semaphore,
    /// What the antagonist and the scenario's events leave of its speed, as the bits of two factors.
    noise: AtomicU64,
    slowed: AtomicU64,
    busy: AtomicU64,
    counting: Arc<AtomicBool>,
    picked: Picked,
    began: Instant,
    /// Where it is to say how it is doing.
    meter: Option<Mutex<Meter>>,
}

impl Fleet {
    pub fn new(scenario: &Scenario, seed: u64, picked: Picked, reports: bool) -> Self {
        Self {
            servers: Vec::new(),
            antagonist: scenario.antagonist,
            seed,
            picked,
            reports,
            warm: None,
            counting: Arc::new(AtomicBool::new(false)),
        }
    }

    /// One more server: its address.
    ///
    /// # Errors
    ///
    /// When there is no thread or no port for it.
    pub fn start(&mut self, facts: Server) -> Result<SocketAddr, String> {
        let number = self.servers.len();
        let works = Arc::new(Works {
            facts,
            number: u32::try_from(number).unwrap_or(u32::MAX),
            slots: Semaphore::new(facts.slots),
            noise: AtomicU64::new(1f64.to_bits()),
            slowed: AtomicU64::new(1f64.to_bits()),
            busy: AtomicU64::new(0),
            counting: self.counting.clone(),
            picked: self.picked.clone(),
            began: Instant::now(),
            meter: self
                .reports
                .then(|| Mutex::new(Meter::new(facts.slots, Timestamp::ZERO))),
        });
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|why| format!("server {number}: no runtime: {why}"))?;
        let within = runtime.enter();
        let incoming = TcpIncoming::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let incoming = incoming.map_err(|why| format!("server {number}: no port: {why}"))?;
        let incoming = incoming.with_nodelay(Some(true));
        let address = incoming.local_addr();
        let address = address.map_err(|why| format!("server {number}: no address: {why}"))?;
        drop(within);
        let service = GreeterServer::from_arc(works.clone());
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            // It ends with its runtime; an error before that shows in the calls.
            let _ = server.serve_with_incoming(incoming).await;
        });
        if let Some(antagonist) = self.antagonist {
            let noise = Noise::new(antagonist, self.seed, number);
            runtime.spawn(disturb(noise, works.clone()));
        }
        self.servers.push(Running {
            runtime: Some(runtime),
            works,
            address: address.into(),
            from: Instant::now(),
            until: None,
        });
        Ok(address)
    }

    /// Gone at once, with its connections and the calls on them.
    pub fn kill(&mut self, server: usize) {
        self.leave(server);
        if let Some(runtime) = self.servers[server].runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// It has left the list, and goes on.
    pub fn leave(&mut self, server: usize) {
        let server = &mut self.servers[server];
        server.until.get_or_insert_with(Instant::now);
    }

    pub fn slow(&mut self, server: usize, factor: f64) {
        // Relaxed: nothing else is told by it, here and for all that follow.
        let slowed = &self.servers[server].works.slowed;
        slowed.store(factor.to_bits(), Ordering::Relaxed);
    }

    /// What each says of itself at this moment, if it is there and is to say it.
    pub fn reports(&self) -> impl Iterator<Item = (&Address, LoadReport)> {
        let there = self.servers.iter().filter(|s| s.runtime.is_some());
        there.filter_map(|server| {
            let report = server.works.measure(Meter::report)?;
            Some((&server.address, report))
        })
    }

    /// From now on what is done is counted.
    pub fn warm(&mut self) {
        self.warm = Some(Instant::now());
        self.counting.store(true, Ordering::Relaxed);
    }

    /// By server: the part of the time since the warm-up that its slots were busy.
    pub fn utilisations(&self) -> Vec<Option<f64>> {
        let now = Instant::now();
        let of = |server: &Running| {
            let from = self.warm?.max(server.from);
            let there = server.until.unwrap_or(now).saturating_duration_since(from);
            let slots = there.as_secs_f64() * server.works.facts.slots as f64;
            let busy = Duration::from_nanos(server.works.busy.load(Ordering::Relaxed));
            (slots > 0.0).then(|| busy.as_secs_f64() / slots)
        };
        self.servers.iter().map(of).collect()
    }
}

/// A runtime must not be dropped where others are at work.
impl Drop for Fleet {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Some(runtime) = server.runtime.take() {
                runtime.shutdown_background();
            }
        }
    }
}

/// Comes and goes.
async fn disturb(mut noise: Noise, works: Arc<Works>) {
    loop {
        let factor = noise.factor().to_bits();
        works.noise.store(factor, Ordering::Relaxed);
        tokio::time::sleep(noise.stays()).await;
        noise.turn();
    }
}

impl Works {
    /// The speed of this moment.
    fn speed(&self) -> f64 {
        let factor = |bits: &AtomicU64| f64::from_bits(bits.load(Ordering::Relaxed));
        self.facts.speed * factor(&self.noise) * factor(&self.slowed)
    }

    /// At its meter, if it has one.
    fn measure<T>(&self, with: impl FnOnce(&mut Meter, Timestamp) -> T) -> Option<T> {
        let mut meter = self
            .meter
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Some(with(&mut meter, Timestamp::ZERO + self.began.elapsed()))
    }
}

/// A call that is at its server, for the meter: it may end at any point, when its caller gives up.
struct Visit<'a> {
    works: &'a Works,
    taken_up: bool,
}

impl Visit<'_> {
    fn take_up(&mut self) {
        self.works.measure(Meter::begin);
        self.taken_up = true;
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.works.measure(match self.taken_up {
            true => Meter::finish,
            false => Meter::fail,
        });
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<HelloReply, Status>> + Send>>;

#[tonic::async_trait]
impl Greeter for Works {
    async fn say_hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloReply>, Status> {
        let request = request.into_inner();
        let at = usize::try_from(request.id).ok();
        if let Some(picked) = at.and_then(|at| self.picked.get(at)) {
            picked.store(self.number, Ordering::Relaxed);
        }
        let mut visit = Visit {
            works: self,
            taken_up: false,
        };
        if self.facts.broken {
            return Err(Status::unavailable("broken, as the scenario says"));
        }
        let slot = self.slots.acquire().await;
        let _slot = slot.map_err(|_| Status::internal("the slots are closed"))?;
        visit.take_up();
        let work = Duration::from_micros(request.work_us);
        let takes = work.div_f64(self.speed());
        if self.counting.load(Ordering::Relaxed) {
            let nanos = u64::try_from(takes.as_nanos()).unwrap_or(u64::MAX);
            self.busy.fetch_add(nanos, Ordering::Relaxed);
        }
        tokio::time::sleep(takes).await;
        Ok(Response::new(HelloReply {
            id: request.id,
            payload: vec![0; answer_bytes(work)],
            ..HelloReply::default()
        }))
    }

    type CountdownStream = Replies;

    async fn countdown(&self, _: Request<CountdownRequest>) -> Result<Response<Replies>, Status> {
        Err(Status::unimplemented("the lab says hello only"))
    }

    async fn gather(
        &self,
        _: Request<Streaming<HelloRequest>>,
    ) -> Result<Response<GatherReply>, Status> {
        Err(Status::unimplemented("the lab says hello only"))
    }

    type ChatStream = Replies;

    async fn chat(&self, _: Request<Streaming<HelloRequest>>) -> Result<Response<Replies>, Status> {
        Err(Status::unimplemented("the lab says hello only"))
    }
}
