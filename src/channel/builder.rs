//! The settings of a channel, checked before anything runs.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use http::uri::InvalidUri;

use crate::balancer::{Backoff, OutlierDetection, Panic};
use crate::classifier::Classifier;
use crate::error::Error;
use crate::policy::{Adaptive, Policy};
use crate::probe::HealthCheck;
use crate::resolver::{Dns, Resolver};
use crate::retry::{RetryBudget, RetryPolicy, Throttling};
use crate::target::Target;
#[cfg(feature = "tls")]
use crate::transport::Tls;
use crate::transport::{Http2Connector, Http2Options};

use super::layer::BalanceLayer;
use super::plan::{Plan, Settings};
use super::replay::BufferLimits;
use super::routes::{MakePolicy, MethodConfig, Wanted};
use super::service::Channel;

/// Collects the settings of a [`Channel`] or a [`BalanceLayer`]; `build` checks them all.
///
/// ```
/// use equipoise::Channel;
/// use equipoise::policy::LeastRequest;
/// use std::time::Duration;
///
/// let channel = Channel::builder("static:127.0.0.1:50051,127.0.0.1:50052")?
///     .policy(LeastRequest::default())
///     .timeout(Duration::from_secs(5))
///     .build()?;
///
/// let error = Channel::builder("static:127.0.0.1:50051")?
///     .connect_timeout(Duration::ZERO)
///     .build()
///     .unwrap_err();
/// assert_eq!(error.to_string(), "connect_timeout 0ns is not in 1ms..=1h");
/// # Ok::<(), equipoise::Error>(())
/// ```
pub struct Builder<K> {
    target: Target,
    // A target that only a resolver of the user's own can make sense of: an error unless one comes.
    unresolved: Option<Error>,
    resolver: Option<Arc<dyn Resolver>>,
    policy: MakePolicy,
    wanted: Wanted,
    settings: Settings,
    // How connections are made, or what was wrong with what was asked for: told by `build`.
    http2: Result<Http2Options, Error>,
    // The first shortcut that changed them: whole options that come later would undo it.
    shortcut: Option<&'static str>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Builder<K> {
    pub(super) fn new(target: &str) -> Result<Self, Error> {
        match target.parse::<Target>() {
            Ok(target) => Ok(Self::over(target)),
            Err(error) => {
                let lenient = Target::for_resolver(target)?;
                if lenient.is_built_in() {
                    return Err(error);
                }
                let mut builder = Self::over(lenient);
                builder.unresolved = Some(error);
                Ok(builder)
            }
        }
    }

    pub(super) fn over(target: Target) -> Self {
        Self {
            target,
            unresolved: None,
            resolver: None,
            policy: Arc::new(|| Box::new(Adaptive::default())),
            wanted: Wanted::default(),
            settings: Settings::default(),
            http2: Ok(Http2Options::default()),
            shortcut: None,
            kind: PhantomData,
        }
    }

    /// Who gets which call. Default: [`Adaptive`].
    ///
    /// It may be exchanged while the channel runs ([`Channel::set_policy`]). A `Box<dyn Policy>` cannot be
    /// cloned: build the channel with any policy, and set that one after.
    pub fn policy(mut self, policy: impl Policy + Clone + Sync + 'static) -> Self {
        self.policy = maker(policy);
        self
    }

    /// Who gets the calls of one service, such as `shop.Cart`, rather than the channel's policy.
    ///
    /// All policies of a channel share its endpoints, their connections and their calls in flight; latencies and
    /// failures count for the policy alone that made the choice. Each policy costs every call of the channel some
    /// ten nanoseconds.
    ///
    /// It may be exchanged while the channel runs ([`Channel::set_service_policy`]). A `Box<dyn Policy>` cannot be
    /// cloned: give the service any policy here, and set that one after.
    ///
    /// ```
    /// use equipoise::Channel;
    /// use equipoise::policy::{LeastRequest, RoundRobin};
    ///
    /// let channel = Channel::builder("static:127.0.0.1:50051,127.0.0.1:50052")?
    ///     .service_policy("shop.Cart", RoundRobin::default())
    ///     .method_policy("/shop.Catalog/Search", LeastRequest::default())
    ///     .build()?;
    /// # Ok::<(), equipoise::Error>(())
    /// ```
    pub fn service_policy(
        mut self,
        service: impl Into<String>,
        policy: impl Policy + Clone + Sync + 'static,
    ) -> Self {
        let wishes = self.wanted.services.entry(service.into()).or_default();
        wishes.policy = Some(maker(policy));
        self
    }

    /// Who gets the calls of one method, such as `/shop.Catalog/Search`, rather than its service's policy; see
    /// [`service_policy`](Self::service_policy). It may be exchanged while the channel runs
    /// ([`Channel::set_method_policy`]), for a `Box<dyn Policy>` too.
    pub fn method_policy(
        mut self,
        path: impl Into<String>,
        policy: impl Policy + Clone + Sync + 'static,
    ) -> Self {
        let wishes = self.wanted.methods.entry(path.into()).or_default();
        wishes.policy = Some(maker(policy));
        self
    }

    /// What else is different for the calls of one service, such as `shop.Cart`.
    pub fn service_config(mut self, service: impl Into<String>, config: MethodConfig) -> Self {
        let wishes = self.wanted.services.entry(service.into()).or_default();
        wishes.config = config;
        self
    }

    /// What else is different for the calls of one method, such as `/shop.Catalog/Search`. What is not given is
    /// that of its service.
    pub fn method_config(mut self, path: impl Into<String>, config: MethodConfig) -> Self {
        let wishes = self.wanted.methods.entry(path.into()).or_default();
        wishes.config = config;
        self
    }

    /// Where the endpoints come from, for a target of any scheme. Default: the target itself lists them, or
    /// names a host, which [`Dns`] looks up.
    pub fn resolver(mut self, resolver: impl Resolver + 'static) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self.unresolved = None;
        self
    }

    /// The longest a call may take, all attempts and its response's body included, unless its method or service has a
    /// [`MethodConfig`] with another; a shorter `grpc-timeout` of the call's own wins. Default: no limit but the call's
    /// own, as in gRPC. Above zero.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = Some(timeout);
        self
    }

    /// The longest one attempt to connect may take: TCP, TLS and the server's settings. Default 10 s
    /// (tonic has none; gRPC's 20 s outlasts most callers' patience). From 1 ms to 1 h. Too short, and a far
    /// server is never reached; too long, and a silent one is not given up.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// The pauses between attempts to connect to an endpoint that failed. Default: gRPC's, 1 s × 1.6 ± 20 %
    /// up to 120 s.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.settings.balancer.backoff = backoff;
        self
    }

    /// New connections per second, over all endpoints. Default 200. At least 1.
    pub fn connect_rate(mut self, per_second: u32) -> Self {
        self.settings.balancer.connect_rate = per_second;
        self
    }

    /// The most endpoints taken from a list; the rest is left out and logged. Default 10,000. At least 1.
    pub fn max_endpoints(mut self, endpoints: usize) -> Self {
        self.settings.balancer.max_endpoints = endpoints;
        self
    }

    /// The most connections to one endpoint. Another is made when calls find those there are at the limit of streams
    /// that the server set for each (SETTINGS_MAX_CONCURRENT_STREAMS, often 100), one at a time; calls go to the
    /// oldest that has room, and one that carried nothing for 30 s is closed again.
    ///
    /// Default 1, as in gRPC (A105): the limit is the server's word on how much it wants from a client, calls go to
    /// other endpoints meanwhile, and a server that has become slow is not helped by more connections. Up to 10. More
    /// than 1 is for servers whose limit is smaller than what they can carry: many long streams, or a proxy before
    /// them.
    ///
    /// ```
    /// let channel = equipoise::Channel::builder("static:127.0.0.1:50051")?
    ///     .max_connections_per_endpoint(4)
    ///     .build()?;
    /// # Ok::<(), equipoise::Error>(())
    /// ```
    pub fn max_connections_per_endpoint(mut self, connections: usize) -> Self {
        self.settings.balancer.max_connections_per_endpoint = connections;
        self
    }

    /// The most calls that may wait for an endpoint; one more ends RESOURCE_EXHAUSTED at once.
    /// Default 1,000. 0 means that no call waits.
    pub fn queue_limit(mut self, calls: usize) -> Self {
        self.settings.calls.queue = calls;
        self
    }

    /// The most calls that the channel may have in flight, all endpoints together; more wait in the line, and beyond
    /// [`queue_limit`](Self::queue_limit) end RESOURCE_EXHAUSTED at once. Default: no limit. At least 1.
    ///
    /// A call is in flight until its response's body has ended. With `queue_limit(0)` the excess is turned away, and
    /// none waits.
    pub fn max_in_flight(mut self, calls: u32) -> Self {
        self.settings.calls.in_flight = Some(calls);
        self
    }

    /// The most calls that one endpoint may have in flight; more go to another, and wait in the line when all are at
    /// their limit. Default: no limit but the server's own, of streams. At least 1.
    ///
    /// A server that hangs then costs so many calls, and not all of them.
    pub fn max_in_flight_per_endpoint(mut self, calls: u32) -> Self {
        self.settings.balancer.max_in_flight_per_endpoint = Some(calls);
        self
    }

    /// Whom the codes of calls that end speak of: of the server (which is ejected for them), of its load, or of nobody.
    /// Default: see [`Classifier`].
    pub fn classifier(mut self, classifier: Classifier) -> Self {
        self.settings.balancer.classifier = classifier;
        self
    }

    /// How long no call is made before the channel closes its connections and asks its resolver no more: it is IDLE
    /// then, and the next call wakes it, and waits while it connects. Default 30 min, as in gRPC; `None` is never. From
    /// 1 ms to 24 h. It is noticed up to an eighth of that time late.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.settings.idle_timeout = timeout.into();
        self
    }

    /// Whether and how servers that are connected are asked if they can take calls. Default: they are not.
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.settings.balancer.health = check.source();
        self.settings.health = Some(check);
        self
    }

    /// What happens when too few endpoints can be used. Default: calls go to all that are connected when fewer than half
    /// can; see [`Panic`].
    pub fn panic(mut self, panic: Panic) -> Self {
        self.settings.balancer.panic = panic;
        self
    }

    /// How long an endpoint that joins others is spared: it is given a share of its calls that grows from a tenth to the
    /// whole. Default 0, as in gRPC: servers that start slowly, with cold caches or a just-in-time compiler, need it. Up
    /// to 1 h. Where calls are placed by a key it is without effect, since keys would move twice.
    ///
    /// One that comes back from an ejection is spared by [`OutlierDetection::with_slow_start`] instead.
    ///
    /// [`OutlierDetection::with_slow_start`]: crate::balancer::OutlierDetection::with_slow_start
    pub fn slow_start(mut self, window: Duration) -> Self {
        self.settings.balancer.slow_start = window;
        self
    }

    /// Who is ejected for failing, and for how long; `None` is nobody. Default: [`OutlierDetection::default`].
    pub fn outlier_detection(mut self, detection: impl Into<Option<OutlierDetection>>) -> Self {
        self.settings.balancer.outliers = detection.into();
        self
    }

    /// How calls that fail are tried again, where their method is declared
    /// [idempotent](MethodConfig::with_idempotent) and has no policy of its own. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry = policy;
        self
    }

    /// What all calls together may send beyond what they were asked to: retries and hedges. Default:
    /// [`RetryBudget::default`]. The calls it counts are those of methods declared idempotent.
    pub fn retry_budget(mut self, budget: RetryBudget) -> Self {
        self.settings.calls.retry_budget = budget;
        self
    }

    /// How many bytes of their requests calls may keep so that they can be sent again: each call, and all calls of the
    /// channel together. Default 256 KiB, as in grpc-go and gRPC's C-core, and 16 MiB, as in grpc-java. Any number.
    ///
    /// Only calls of methods declared idempotent keep anything, and only until the call is committed to an attempt. One whose
    /// request does not fit is sent all the same, to the server it is at, and is not tried again.
    ///
    /// ```
    /// let channel = equipoise::Channel::builder("static:127.0.0.1:50051")?
    ///     .retry_buffer(1 << 20, 64 << 20)
    ///     .build()?;
    /// # Ok::<(), equipoise::Error>(())
    /// ```
    pub fn retry_buffer(mut self, per_call: usize, per_channel: usize) -> Self {
        self.settings.calls.retry_buffer = BufferLimits {
            per_call,
            per_channel,
        };
        self
    }

    /// Keeps calls from servers that turn most of them away: such a call fails at once, UNAVAILABLE, and is not sent.
    /// Default: all calls are sent.
    pub fn throttling(mut self, throttling: Throttling) -> Self {
        self.settings.calls.throttling = Some(throttling);
        self
    }

    /// How long the calls on an endpoint that left the list, or of a channel that was closed, may go on;
    /// then they end UNAVAILABLE. Default 30 s. Up to 24 h; 0 ends them at once.
    ///
    /// It also bounds how long endpoints that left the list stay in use while none that is in it is ready.
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.settings.drain_deadline = deadline;
        self.settings.balancer.linger = deadline;
        self
    }

    /// When the resolver answers that there is nobody: how long its last list with somebody in it stays in
    /// use, counted from the first such answer. Then calls fail until there is somebody again. Default 5 min:
    /// an empty answer is more often a mistake of the discovery than the end of a service. Up to 24 h; 0 lets
    /// an empty answer take effect at once, as in gRPC.
    ///
    /// An error of the resolver is no answer: it leaves the last list in use for as long as it takes. Lists
    /// by hand are meant as they are.
    pub fn keep_last_good(mut self, max_age: Duration) -> Self {
        self.settings.keep_last_good = max_age;
        self
    }

    fn plan(mut self) -> Result<Plan, Error> {
        if let Some(error) = self.unresolved {
            return Err(error);
        }
        if self.resolver.is_none() && self.target.name().is_some() {
            self.resolver = Some(Arc::new(Dns::default()));
        }
        // Checked with the rest of what the balancer heeds.
        self.settings.balancer.keep_last_good = self.settings.keep_last_good;
        self.settings.check()?;
        (self.policy)().check()?;
        self.wanted.check()?;
        match &self.resolver {
            Some(resolver) => resolver
                .check(&self.target)
                .map_err(|error| Error::config(error.to_string()))?,
            None => self.settings.balancer.keep_last_good = Duration::ZERO,
        }
        let name = self.target.authority().map(str::parse).transpose();
        let name =
            name.map_err(|error: InvalidUri| Error::target(&self.target.to_string(), error))?;
        Ok(Plan {
            target: self.target,
            name,
            resolver: self.resolver,
            policy: self.policy,
            wanted: self.wanted,
            settings: self.settings,
        })
    }
}

impl Builder<Channel> {
    /// How connections are made: everything that [`Http2Options`] knows. The shortcuts below change single
    /// options of it, and so come later: after one of them, `build` refuses whole options, which would undo
    /// it (of TLS nothing but plaintext would be left).
    ///
    /// ```
    /// use equipoise::Channel;
    /// use equipoise::transport::Http2Options;
    ///
    /// let options = Http2Options::default().with_windows(1 << 20, 32 << 20)?;
    /// let channel = Channel::builder("static:127.0.0.1:50051")?
    ///     .http2(options)
    ///     .authority("greeter.prod.svc")
    ///     .build()?;
    ///
    /// let error = Channel::builder("static:127.0.0.1:50051")?
    ///     .authority("greeter.prod.svc")
    ///     .http2(Http2Options::default())
    ///     .build()
    ///     .unwrap_err();
    /// assert!(error.to_string().starts_with("http2 would undo authority"));
    /// # Ok::<(), equipoise::Error>(())
    /// ```
    pub fn http2(mut self, options: Http2Options) -> Self {
        // What went wrong before is not forgiven: it would depend on the order of the calls.
        self.http2 = self.http2.and_then(|_| match self.shortcut {
            None => Ok(options),
            Some(name) => Err(Error::config(format!(
                "http2 would undo {name}: call http2 before {name}, or use Http2Options::with_{name}"
            ))),
        });
        self
    }

    /// Changes the options by the shortcut `name`, unless something was wrong before.
    fn with_http2(
        mut self,
        name: &'static str,
        change: impl FnOnce(Http2Options) -> Result<Http2Options, Error>,
    ) -> Self {
        self.http2 = self.http2.and_then(change);
        self.shortcut.get_or_insert(name);
        self
    }

    /// The name the calls go under (`:authority`), such as `greeter.prod.svc`. Default: host and port as the
    /// target has them; where it names no host, the address of the endpoint that takes the call, `localhost`
    /// on a Unix socket.
    pub fn authority(self, authority: impl AsRef<str>) -> Self {
        self.with_http2("authority", |options| {
            options.with_authority(authority.as_ref())
        })
    }

    /// When to ask a silent server whether it is still there: after `interval` without a byte while a call is
    /// open, giving it `timeout` to answer. Default 10 s and 20 s; see
    /// [`Http2Options::with_keepalive`].
    pub fn keepalive(self, interval: Duration, timeout: Duration) -> Self {
        self.with_http2("keepalive", |options| {
            options.with_keepalive(interval, timeout)
        })
    }

    /// How long a connection is used before another takes its place, ± 20 %. Default: no limit; see
    /// [`Http2Options::with_max_connection_age`].
    pub fn max_connection_age(self, age: Duration) -> Self {
        self.with_http2("max_connection_age", |options| {
            options.with_max_connection_age(age)
        })
    }

    /// What servers see before our own name in `user-agent`, such as `shop/2.1`. Default: nothing; see
    /// [`Http2Options::with_user_agent`].
    pub fn user_agent(self, prefix: impl AsRef<str>) -> Self {
        self.with_http2("user_agent", |options| {
            options.with_user_agent(prefix.as_ref())
        })
    }

    /// Secures every connection. Default: plaintext, or `Tls::new()` for an `https://` target.
    ///
    /// The certificates of the servers are checked for the host of [`authority`](Self::authority), else for
    /// the host of the target. A list of addresses has no host: it needs an authority.
    ///
    /// ```
    /// use equipoise::{Channel, Tls};
    ///
    /// let error = Channel::builder("static:10.0.0.1:443")?
    ///     .authority("greeter.prod.svc")
    ///     .tls(Tls::new().with_roots_file("/no/such/ca.pem"))
    ///     .build()
    ///     .unwrap_err();
    /// assert!(error.to_string().contains("/no/such/ca.pem"));
    /// # Ok::<(), equipoise::Error>(())
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls(self, tls: Tls) -> Self {
        self.with_http2("tls", |options| options.with_tls(tls))
    }

    /// Makes the channel. Connecting begins at once inside a tokio runtime, else with the first call.
    ///
    /// # Errors
    ///
    /// When a setting is out of its range or no resolver knows the target; the error names value and rule.
    pub fn build(mut self) -> Result<Channel, Error> {
        let options = std::mem::replace(&mut self.http2, Ok(Http2Options::default()))?;
        let options = self.secure(options)?;
        Ok(self.plan()?.channel(Http2Connector::new(options)))
    }

    /// Adds TLS where it was asked for, by a setting or by the target, and the name to check.
    #[cfg(feature = "tls")]
    fn secure(&self, mut options: Http2Options) -> Result<Http2Options, Error> {
        let target = &self.target;
        if target.wants_tls() && !options.is_secured() {
            options = options.with_tls(Tls::new())?;
        }
        if !options.is_secured() {
            return Ok(options);
        }
        if target.scheme() == "http" {
            let rule = "http means plaintext, and TLS was set; write https://";
            return Err(Error::target(&target.to_string(), rule));
        }
        options
            .with_host(target.host())
            .map_err(|error| Error::target(&target.to_string(), error))
    }

    /// Refuses what cannot be secured.
    #[cfg(not(feature = "tls"))]
    fn secure(&self, options: Http2Options) -> Result<Http2Options, Error> {
        match self.target.wants_tls() {
            false => Ok(options),
            true => Err(Error::target(
                &self.target.to_string(),
                "https needs TLS: enable feature tls-ring or tls-aws-lc of equipoise",
            )),
        }
    }

    /// Makes the channel and waits until it is READY.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build), and when every endpoint has failed once: the error says why. Where the policies
    /// place calls by a key, without a bound, endpoints are tried one after the other until one is ready, each for
    /// [`connect_timeout`](Self::connect_timeout) at the most; under [`PickFirst`](crate::policy::PickFirst) the next
    /// joins in after its stagger.
    pub async fn connect(self) -> Result<Channel, Error> {
        self.build()?.ready().await
    }
}

impl Builder<BalanceLayer> {
    /// Makes the layer.
    ///
    /// # Errors
    ///
    /// When a setting is out of its range or no resolver knows the target; the error names value and rule.
    ///
    /// An `https://` target is one: whether connections are secured is the connector's own affair.
    pub fn build(self) -> Result<BalanceLayer, Error> {
        if self.target.wants_tls() {
            return Err(Error::target(
                &self.target.to_string(),
                "a layer's connector sees to TLS itself (Http2Options::with_tls); write the target without https",
            ));
        }
        Ok(BalanceLayer::new(self.plan()?))
    }
}

impl<K> fmt::Debug for Builder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("target", &self.target.to_string())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

fn maker(policy: impl Policy + Clone + Sync + 'static) -> MakePolicy {
    Arc::new(move || Box::new(policy.clone()))
}
