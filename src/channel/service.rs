//! The channel: what a generated client is built on.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tonic::Status;
use tower_service::Service;
use tracing::Instrument;

use crate::endpoint::{Address, Connectivity, Endpoint};
use crate::error::Error;
use crate::policy::Policy;
use crate::report::LoadReport;
use crate::target::Target;
use crate::transport::{Connector, Http2Connector};

use super::builder::Builder;
use super::call;
use super::observe::EndpointStatus;
use super::resolution::Resolution;
use super::routes::Scope;
use super::shared::{Command, Shared};
use super::tracked::ResponseBody;

/// One balanced gRPC channel over many endpoints.
///
/// Clone it freely: clones share everything. Generated clients take it as their transport, with
/// interceptors or without. A call is sent to an endpoint chosen for that call; while none is ready it waits
/// in a bounded line, up to its deadline. See [`Builder`] for the settings and [the crate](crate) for the
/// whole picture.
///
/// When the last clone is dropped, calls under way go on to their end (or to the drain deadline), and then
/// the connections are closed. [`close`](Self::close) does the same and tells when it is done. When the
/// runtime it ran on is shut down, calls end UNAVAILABLE.
///
/// ```no_run
/// # async fn example() -> Result<(), equipoise::Error> {
/// let channel = equipoise::Channel::builder("static:10.0.0.1:50051,10.0.0.2:50051")?.build()?;
/// for endpoint in channel.endpoints() {
///     println!("{} {} in flight {}", endpoint.address, endpoint.state, endpoint.in_flight);
/// }
/// # Ok(()) }
/// ```
pub struct Channel<C: Connector = Http2Connector> {
    pub(super) shared: Arc<Shared<C::Connection>>,
    random: u64,
}

impl Channel {
    /// Begins a channel to `target`; see [`Target`] for what can be written.
    ///
    /// # Errors
    ///
    /// When the target cannot be read; the error names the value and the rule.
    pub fn builder(target: impl AsRef<str>) -> Result<Builder<Self>, Error> {
        Builder::new(target.as_ref())
    }

    /// Begins a channel to a list of endpoints kept by hand; change it with
    /// [`set_endpoints`](Self::set_endpoints).
    pub fn from_endpoints(endpoints: impl IntoIterator<Item = Endpoint>) -> Builder<Self> {
        Builder::over(Target::from_endpoints(endpoints.into_iter().collect()))
    }
}

impl<C: Connector> Channel<C> {
    pub(super) fn new(shared: Arc<Shared<C::Connection>>, seed: u64) -> Self {
        Self {
            shared,
            random: seed,
        }
    }

    /// Replaces the endpoint list. Endpoints in both lists keep their connections, load and standing;
    /// those that left take no new calls and finish what they carry. Where no endpoint of the new list is
    /// ready yet, those of the old list that are stay in use until one is, up to the
    /// [drain deadline](Builder::drain_deadline). An empty list takes effect at once, whatever
    /// [`keep_last_good`](Builder::keep_last_good) is: it is meant.
    ///
    /// # Errors
    ///
    /// When the list comes from a resolver, which would overrule it at its next update, or when the channel
    /// is closed.
    pub fn set_endpoints(
        &self,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Result<(), Error> {
        if !self.shared.by_hand {
            return Err(Error::config(
                "the endpoint list belongs to the channel's resolver and cannot be set by hand",
            ));
        }
        if self.state() == Connectivity::Shutdown {
            return Err(Error::closed());
        }
        self.shared
            .order(Command::SetEndpoints(endpoints.into_iter().collect()))
    }

    /// Gives the channel another policy, while it runs.
    ///
    /// The policy in force goes on until the new one has somebody for a call, or the one before has nobody, so that
    /// none fails or waits for the change; one that is set meanwhile takes the new one's place. `Ok` comes before the
    /// new one is in force, which the `tracing` event "policy switched" tells. Services and methods with a policy of
    /// their own keep it.
    ///
    /// Endpoints keep their connections where the new policy does not let go of them, their calls in flight and their
    /// counts. Scores that held something else begin anew from the latency that was seen; penalties stay.
    ///
    /// ```
    /// use equipoise::Channel;
    /// use equipoise::policy::{LeastRequest, RingHash};
    ///
    /// let channel = Channel::builder("static:127.0.0.1:50051,127.0.0.1:50052")?
    ///     .service_policy("shop.Cart", RingHash::on_metadata("x-session-id"))
    ///     .build()?;
    /// channel.set_policy(LeastRequest::default())?;
    /// channel.set_service_policy("shop.Cart", RingHash::on_metadata("x-user-id"))?;
    /// # Ok::<(), equipoise::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the policy cannot work as it was made ([`Policy::check`]), or when the channel is closed.
    pub fn set_policy(&self, policy: impl Policy + 'static) -> Result<(), Error> {
        self.switch(Scope::Channel, Box::new(policy))
    }

    /// Gives a service another policy, as [`set_policy`](Self::set_policy) does the channel: for the calls of all its
    /// methods that have none of their own.
    ///
    /// # Errors
    ///
    /// As those of `set_policy`; and when the service was given no policy of its own by
    /// [`Builder::service_policy`].
    pub fn set_service_policy(
        &self,
        service: &str,
        policy: impl Policy + 'static,
    ) -> Result<(), Error> {
        self.switch(Scope::Service(service), Box::new(policy))
    }

    /// Gives a method another policy, as [`set_policy`](Self::set_policy) does the channel.
    ///
    /// # Errors
    ///
    /// As those of `set_policy`; and when the method was given no policy of its own by
    /// [`Builder::method_policy`].
    pub fn set_method_policy(
        &self,
        path: &str,
        policy: impl Policy + 'static,
    ) -> Result<(), Error> {
        self.switch(Scope::Method(path), Box::new(policy))
    }

    fn switch(&self, scope: Scope<'_>, policy: Box<dyn Policy>) -> Result<(), Error> {
        policy.check()?;
        let number = self.shared.core.routes.policy_of(scope)?;
        if self.state() == Connectivity::Shutdown {
            return Err(Error::closed());
        }
        self.shared.order(Command::SetPolicy(number, policy))
    }

    /// Tells the channel's policies what the server at `address` said of itself, for those that go by it
    /// ([`LeastUtilization`](crate::policy::LeastUtilization), [`LeastLoad`](crate::policy::LeastLoad),
    /// [`WeightedRoundRobin::reported`](crate::policy::WeightedRoundRobin::reported)). It counts for as long as the
    /// policy says: from the next call on, and as a turn's weight from the policy's next update.
    ///
    /// Report at intervals: what was reported is forgotten when the endpoint becomes ready, which takes effect up to
    /// 5 ms after [`endpoints`](Self::endpoints) shows it.
    ///
    /// `false`: no endpoint in use has that address, or the channel is closed, and the report is of no use. A list that
    /// was just set may take a few milliseconds to be in use.
    ///
    /// A poller, which asks every server in turn by whatever means there are:
    ///
    /// ```no_run
    /// # async fn example(channel: equipoise::Channel) {
    /// use equipoise::{Address, LoadReport};
    /// use std::time::Duration;
    ///
    /// # struct Vitals { cpu: f64, rps: f64 }
    /// async fn ask(server: &Address) -> Option<Vitals> {
    ///     // A call of your own, or a query to what watches over the servers.
    /// #   let _ = server;
    /// #   None
    /// }
    ///
    /// loop {
    ///     for endpoint in channel.endpoints() {
    ///         // A server that does not answer has said nothing: no report.
    ///         if let Some(vitals) = ask(&endpoint.address).await {
    ///             let report = LoadReport {
    ///                 cpu_utilization: vitals.cpu,
    ///                 rps: vitals.rps,
    ///                 ..LoadReport::default()
    ///             };
    ///             channel.report_load(&endpoint.address, &report);
    ///         }
    ///     }
    ///     tokio::time::sleep(Duration::from_secs(1)).await;
    /// }
    /// # }
    /// ```
    pub fn report_load(&self, address: &Address, report: &LoadReport) -> bool {
        let core = &self.shared.core;
        let snapshot = core.snapshot.load();
        let Some(seat) = snapshot.seats.at(address) else {
            return false;
        };
        seat.loads.report(report, core.clock.now());
        true
    }

    /// Every endpoint in use, as it stands now, in the order of their slots.
    ///
    /// An endpoint shows READY as soon as it is; its first call may come up to 5 ms later, since changes that can
    /// wait are put in force together.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let core = &self.shared.core;
        let now = core.clock.now();
        let snapshot = core.snapshot.load_full();
        snapshot
            .seats
            .iter()
            .map(|seat| EndpointStatus::of(seat, now))
            .collect()
    }

    /// The channel's state: READY while any endpoint is.
    pub fn state(&self) -> Connectivity {
        *self.shared.core.state.borrow()
    }

    /// Waits until the state is another than `from`, and answers with it.
    ///
    /// ```no_run
    /// # use equipoise::{Channel, Connectivity};
    /// # async fn example(channel: Channel) {
    /// let mut state = channel.state();
    /// while state != Connectivity::Ready {
    ///     state = channel.state_changed(state).await;
    /// }
    /// # }
    /// ```
    pub async fn state_changed(&self, from: Connectivity) -> Connectivity {
        self.shared.start();
        let mut states = self.shared.core.state.subscribe();
        let changed = states.wait_for(|state| *state != from).await.map(|s| *s);
        // The sender lives in what this channel holds; it cannot be gone.
        changed.unwrap_or(Connectivity::Shutdown)
    }

    /// How current the endpoint list is, and what its resolver has to say. `None` where there is no resolver:
    /// a list by hand, or one in the target, does not age.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn example(channel: equipoise::Channel) {
    /// if let Some(resolution) = channel.resolution() {
    ///     if resolution.age > Some(Duration::from_secs(120)) {
    ///         println!("stale: {:?}", resolution.last_error);
    ///     }
    /// }
    /// # }
    /// ```
    pub fn resolution(&self) -> Option<Resolution> {
        let core = &self.shared.core;
        (!self.shared.by_hand).then(|| core.heard.load().at(core.clock.now()))
    }

    /// Calls that wait for an endpoint now.
    pub fn waiting(&self) -> usize {
        self.shared.core.waiters.len()
    }

    /// Takes no more calls on any clone, lets those under way end, and resolves when every connection is
    /// closed: at the drain deadline at the latest, when calls still under way end UNAVAILABLE. Calls that
    /// wait for an endpoint end UNAVAILABLE at once.
    pub async fn close(&self) {
        self.shared.start();
        if self.shared.give_up() {
            return;
        }
        let (done, closed) = oneshot::channel();
        if self.shared.commands.send(Command::Close(done)).is_ok() {
            // An error means that the driver is gone, and with it every connection.
            let _ = closed.await;
        }
    }

    /// Waits for READY; the first failure of every endpoint is an error.
    pub(super) async fn ready(self) -> Result<Self, Error> {
        let mut state = self.state();
        loop {
            match state {
                Connectivity::Ready => return Ok(self),
                Connectivity::Idle | Connectivity::Connecting => {}
                Connectivity::Shutdown => return Err(Error::closed()),
                Connectivity::TransientFailure => {
                    let snapshot = self.shared.core.snapshot.load();
                    let why = snapshot.why.as_deref().unwrap_or("no endpoint is ready");
                    return Err(Error::unavailable(why));
                }
            }
            state = self.state_changed(state).await;
        }
    }
}

impl<C: Connector> Clone for Channel<C> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            // Clones must not walk through the same random words.
            random: fastrand::u64(..),
        }
    }
}

impl<C: Connector> fmt::Debug for Channel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("state", &self.state())
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

impl<C: Connector> Service<http::Request<tonic::body::Body>> for Channel<C> {
    type Response = http::Response<ResponseBody<C::Connection>>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    /// Always ready: which endpoint must be ready depends on the call, so the call itself waits.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.shared.start();
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        self.shared.start();
        self.random = crate::rng::remix(self.random);
        let span = tracing::debug_span!(
            target: "equipoise::call",
            "call",
            path = request.uri().path(),
            endpoint = tracing::field::Empty,
            attempts = tracing::field::Empty,
        );
        let call = call::run(self.shared.clone(), request, self.random, span.clone());
        match span.is_disabled() {
            true => Box::pin(call),
            false => Box::pin(call.instrument(span)),
        }
    }
}
