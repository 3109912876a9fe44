//! The servers of a real run: tonic on loopback, each in a runtime of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::Stream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::proto::greeter_server::{Greeter, GreeterServer};
use super::proto::{CountdownRequest, GatherReply, HelloReply, HelloRequest};
use super::real::Picked;
use super::scenario::{Antagonist, Scenario, Server};
use super::workload::Noise;

pub struct Fleet {
    servers: Vec<Running>,
    antagonist: Option<Antagonist>,
    seed: u64,
    picked: Picked,
    /// When the warm-up was over.
    warm: Option<Instant>,
    counting: Arc<AtomicBool>,
}

struct Running {
    /// Dropped with all its connections when the server is killed.
    runtime: Option<Runtime>,
    works: Arc<Works>,
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
}

impl Fleet {
    pub fn new(scenario: &Scenario, seed: u64, picked: Picked) -> Self {
        Self {
            servers: Vec::new(),
            antagonist: scenario.antagonist,
            seed,
            picked,
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
        if self.facts.broken {
            return Err(Status::unavailable("broken, as the scenario says"));
        }
        let slot = self.slots.acquire().await;
        let _slot = slot.map_err(|_| Status::internal("the slots are closed"))?;
        let takes = Duration::from_micros(request.work_us).div_f64(self.speed());
        if self.counting.load(Ordering::Relaxed) {
            let nanos = u64::try_from(takes.as_nanos()).unwrap_or(u64::MAX);
            self.busy.fetch_add(nanos, Ordering::Relaxed);
        }
        tokio::time::sleep(takes).await;
        Ok(Response::new(HelloReply {
            id: request.id,
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
