//! Which policy and which settings a call goes by: those of its method, else of its service, else of the channel.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::policy::Policy;
use crate::retry::{HedgingPolicy, RecentLatency, RetryPolicy};

/// What the calls of one service or one method are given beyond a policy; see
/// [`Builder::service_config`](super::Builder::service_config).
///
/// Each setting stands by itself: one that is not given is that of the service, else of the channel.
///
/// ```
/// use equipoise::{Channel, MethodConfig};
/// use std::time::Duration;
///
/// let quick = MethodConfig::default().with_timeout(Duration::from_millis(200));
/// let channel = Channel::builder("static:127.0.0.1:50051")?
///     .service_config("shop.Cart", MethodConfig::default().with_wait_for_ready(true))
///     .method_config("/shop.Cart/Show", quick)
///     .build()?;
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MethodConfig {
    timeout: Option<Duration>,
    wait_for_ready: Option<bool>,
    idempotent: Option<bool>,
    repeat: Option<RepeatPolicy>,
}

/// How calls that may be carried out twice are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RepeatPolicy {
    Retry(RetryPolicy),
    Hedge(HedgingPolicy),
}

impl RepeatPolicy {
    pub(super) fn validate(&self) -> Result<(), Error> {
        match self {
            Self::Retry(policy) => policy.validate(),
            Self::Hedge(policy) => policy.validate(),
        }
    }
}

impl MethodConfig {
    /// The longest such a call may take, all attempts and its response's body included; a shorter
    /// `grpc-timeout` of the call's own wins. Default: the service's, else that of
    /// [`Builder::timeout`](super::Builder::timeout), which this may exceed. Above zero.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Whether such a call waits for an endpoint that is ready, up to its deadline, rather than fail while there
    /// is none. Default: the service's, else not. A call with [`WaitForReady`](crate::WaitForReady) waits anyway.
    pub fn with_wait_for_ready(mut self, wait: bool) -> Self {
        self.wait_for_ready = Some(wait);
        self
    }

    /// Declares that it does no harm when a server carries out such a call twice, or one carries it out that seemed to
    /// have failed: calls that fail are then tried again, three times in all unless a policy says otherwise. Default: the
    /// service's, else not, since only you can know.
    ///
    /// A call that surely never reached a server is sent again in any case.
    pub fn with_idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = Some(idempotent);
        self
    }

    /// How calls that fail are tried again; only where they are [idempotent](Self::with_idempotent). Takes the place of
    /// [`with_hedging`](Self::with_hedging). Default: the service's, else that of
    /// [`Builder::retry`](super::Builder::retry).
    ///
    /// A retry of your own around the channel, by a tower layer say, multiplies: each of its attempts is a call of its own
    /// here, with as many attempts as this allows. Keep one of the two. `grpc-previous-rpc-attempts` counts on from the
    /// number that such a layer has set, and from none where it set no such header.
    pub fn with_retry(mut self, policy: RetryPolicy) -> Self {
        self.repeat = Some(RepeatPolicy::Retry(policy));
        self
    }

    /// How calls that take long are sent to a second endpoint as well; only where they are
    /// [idempotent](Self::with_idempotent). Takes the place of [`with_retry`](Self::with_retry). Default: the service's,
    /// else calls are not hedged.
    pub fn with_hedging(mut self, policy: HedgingPolicy) -> Self {
        self.repeat = Some(RepeatPolicy::Hedge(policy));
        self
    }

    /// These settings, and those of `general` where there are none.
    fn over(self, general: Self) -> Self {
        Self {
            timeout: self.timeout.or(general.timeout),
            wait_for_ready: self.wait_for_ready.or(general.wait_for_ready),
            idempotent: self.idempotent.or(general.idempotent),
            repeat: self.repeat.or(general.repeat),
        }
    }

    /// Whether what it says of repeating makes sense: how is of no use where whether was not said.
    fn check_repeat(&self, above: Self, whose: &str) -> Result<(), Error> {
        match (self.repeat, self.over(above).idempotent) {
            (Some(_), None) => Err(Error::config(format!(
                "{whose}: calls are retried and hedged only where they are declared with_idempotent(true)"
            ))),
            _ => Ok(()),
        }
    }

    /// How such calls are repeated, if they may be.
    fn repeat(&self) -> Option<Repeat> {
        let repeated = self.idempotent.unwrap_or(false);
        let policy = self.repeat.filter(|_| repeated)?;
        Some(Repeat {
            policy,
            latency: match policy {
                RepeatPolicy::Hedge(policy) if policy.is_live() => Some(Arc::default()),
                RepeatPolicy::Hedge(_) | RepeatPolicy::Retry(_) => None,
            },
        })
    }
}

/// What a call goes by.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The number of its policy.
    pub(super) policy: usize,
    pub(super) timeout: Option<Duration>,
    pub(super) wait_for_ready: bool,
    /// How it is repeated, if it may be.
    pub(super) repeat: Option<Repeat>,
}

/// How a call is repeated.
#[derive(Clone, Debug)]
pub(super) struct Repeat {
    pub(super) policy: RepeatPolicy,
    /// How long such calls take, where that matters.
    pub(super) latency: Option<Arc<RecentLatency>>,
}

/// Makes a policy for one more channel.
pub(super) type MakePolicy = Arc<dyn Fn() -> Box<dyn Policy> + Send + Sync>;

/// What was asked for one service or one method.
#[derive(Clone, Default)]
pub(super) struct Wishes {
    pub(super) policy: Option<MakePolicy>,
    pub(super) config: MethodConfig,
}

/// All that was asked for, by the name of the service and the path of the method.
#[derive(Clone, Default)]
pub(super) struct Wanted {
    pub(super) services: BTreeMap<String, Wishes>,
    pub(super) methods: BTreeMap<String, Wishes>,
}

impl Wanted {
    /// Whether every name can be met in a request, and every wish be granted.
    pub(super) fn check(&self) -> Result<(), Error> {
        for (name, wishes) in &self.services {
            let whose = format!("service {name:?}");
            if !is_name(name) {
                return Err(Error::config(format!(
                    "{whose}: expected a name such as package.Service, without slashes"
                )));
            }
            wishes.check(&whose)?;
            let general = MethodConfig::default();
            wishes.config.check_repeat(general, &whose)?;
        }
        for (path, wishes) in &self.methods {
            let whose = format!("method {path:?}");
            let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
            if !parts.is_some_and(|(service, method)| is_name(service) && is_name(method)) {
                return Err(Error::config(format!(
                    "{whose}: expected a path such as /package.Service/Method"
                )));
            }
            wishes.check(&whose)?;
            let above = self.services.get(service(path)).map(|wishes| wishes.config);
            wishes
                .config
                .check_repeat(above.unwrap_or_default(), &whose)?;
        }
        Ok(())
    }

    /// The routes, and the policies they name beyond the channel's, which is number 0.
    pub(super) fn routes(
        &self,
        timeout: Option<Duration>,
        retry: RetryPolicy,
    ) -> (Routes, Vec<Box<dyn Policy>>) {
        let mut more = Vec::new();
        let general = MethodConfig {
            timeout,
            repeat: Some(RepeatPolicy::Retry(retry)),
            ..MethodConfig::default()
        };
        let otherwise = Route {
            policy: 0,
            timeout,
            wait_for_ready: false,
            repeat: None,
        };
        let mut services = HashMap::new();
        for (name, wishes) in &self.services {
            let route = wishes.route(&otherwise, wishes.config.over(general), &mut more);
            services.insert(name.clone(), route);
        }
        let mut methods = HashMap::new();
        for (path, wishes) in &self.methods {
            let service = service(path);
            let above = services.get(service).unwrap_or(&otherwise);
            let asked = self.services.get(service).map(|wishes| wishes.config);
            let config = wishes.config.over(asked.unwrap_or_default()).over(general);
            methods.insert(path.clone(), wishes.route(above, config, &mut more));
        }
        let routes = Routes {
            otherwise,
            services,
            methods,
        };
        (routes, more)
    }
}

impl Wishes {
    fn check(&self, whose: &str) -> Result<(), Error> {
        if let Some(make) = &self.policy {
            let named = |error| Error::config(format!("{whose}: {error}"));
            make().check().map_err(named)?;
        }
        if let Some(Duration::ZERO) = self.config.timeout {
            return Err(Error::config(format!(
                "{whose}: timeout 0ns is not above zero"
            )));
        }
        match &self.config.repeat {
            Some(repeat) => repeat
                .validate()
                .map_err(|error| Error::config(format!("{whose}: {error}"))),
            None => Ok(()),
        }
    }

    fn route(&self, above: &Route, config: MethodConfig, more: &mut Vec<Box<dyn Policy>>) -> Route {
        let policy = match &self.policy {
            None => above.policy,
            Some(make) => {
                more.push(make());
                more.len()
            }
        };
        Route {
            policy,
            timeout: config.timeout,
            wait_for_ready: config.wait_for_ready.unwrap_or(false),
            repeat: config.repeat(),
        }
    }
}

/// Whose calls a policy chooses for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scope<'a> {
    Channel,
    Service(&'a str),
    Method(&'a str),
}

/// The routes of one channel.
pub(super) struct Routes {
    otherwise: Route,
    services: HashMap<String, Route>,
    methods: HashMap<String, Route>,
}

impl Routes {
    /// The number of the policy of this scope's own.
    ///
    /// # Errors
    ///
    /// When it was given none: its calls go by the policy of a wider scope, which is not to be changed by its name.
    pub(super) fn policy_of(&self, scope: Scope<'_>) -> Result<usize, Error> {
        let missing = |what: &str, name: &str, setter: &str| {
            Error::config(format!(
                "{what} {name:?} has no policy of its own: give it one by {setter} when the channel is built"
            ))
        };
        let route = |routes: &HashMap<String, Route>, name: &str, above: usize| {
            let own = routes.get(name).map(|route| route.policy);
            own.filter(|&policy| policy != above)
        };
        match scope {
            Scope::Channel => Ok(self.otherwise.policy),
            Scope::Service(name) => route(&self.services, name, self.otherwise.policy)
                .ok_or_else(|| missing("service", name, "service_policy")),
            Scope::Method(path) => {
                let above = self.services.get(service(path)).unwrap_or(&self.otherwise);
                route(&self.methods, path, above.policy)
                    .ok_or_else(|| missing("method", path, "method_policy"))
            }
        }
    }

    /// What a call to `path` goes by.
    #[inline]
    pub(super) fn find(&self, path: &str) -> &Route {
        if self.services.is_empty() && self.methods.is_empty() {
            return &self.otherwise;
        }
        let of_method = self.methods.get(path);
        of_method
            .or_else(|| self.services.get(service(path)))
            .unwrap_or(&self.otherwise)
    }
}

/// The service in `/package.Service/Method`.
fn service(path: &str) -> &str {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.split_once('/').map_or(path, |(service, _)| service)
}

/// Whether it is made of what names in a path are made of.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    !text.is_empty() && text.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{LeastRequest, Random, RoundRobin};

    const MS: Duration = Duration::from_millis(1);

    fn wanted() -> Wanted {
        let mut wanted = Wanted::default();
        let cart = wanted.services.entry("shop.Cart".into()).or_default();
        cart.policy = Some(Arc::new(|| Box::new(RoundRobin::default())));
        cart.config = MethodConfig::default()
            .with_timeout(200 * MS)
            .with_wait_for_ready(true);
        let add = wanted.methods.entry("/shop.Cart/Add".into()).or_default();
        add.config = MethodConfig::default().with_timeout(9_000 * MS);
        let search = wanted.methods.entry("/shop.Catalog/Search".into());
        let search = search.or_default();
        search.policy = Some(Arc::new(|| Box::new(LeastRequest::default())));
        search.config = MethodConfig::default().with_wait_for_ready(true);
        let show = wanted.methods.entry("/shop.Cart/Show".into()).or_default();
        show.policy = Some(Arc::new(|| Box::new(Random)));
        show.config = MethodConfig::default().with_wait_for_ready(false);
        wanted
    }

    #[test]
    fn each_setting_is_the_methods_else_the_services_else_the_channels() {
        let (routes, more) = wanted().routes(Some(1_000 * MS), RetryPolicy::default());
        assert_eq!(more.len(), 3);
        let policy = |number: usize| match number {
            0 => "Random".to_owned(),
            n => format!("{:?}", more[n - 1]),
        };
        for (path, name, timeout, waits) in [
            ("/shop.Cart/Remove", "RoundRobin", 200, true),
            ("/shop.Cart/Add", "RoundRobin", 9_000, true),
            ("/shop.Cart/Show", "Random", 200, false),
            ("/shop.Catalog/Search", "LeastRequest", 1_000, true),
            ("/shop.Catalog/List", "Random", 1_000, false),
            ("/shop.CartX/Add", "Random", 1_000, false),
            ("/", "Random", 1_000, false),
            ("", "Random", 1_000, false),
        ] {
            let route = routes.find(path);
            assert!(policy(route.policy).starts_with(name), "{path}: {route:?}");
            assert_eq!(route.timeout, Some(timeout * MS), "{path}");
            assert_eq!(route.wait_for_ready, waits, "{path}");
        }
        assert_ne!(
            routes.find("/shop.Cart/Show").policy,
            0,
            "its own, not the channel's"
        );
    }

    #[test]
    fn bad_names_and_settings_are_told_apart() {
        let service = |name: &str, config| {
            let mut wanted = Wanted::default();
            wanted.services.entry(name.into()).or_default().config = config;
            wanted.check()
        };
        let method = |path: &str| {
            let mut wanted = Wanted::default();
            wanted.methods.entry(path.into()).or_default();
            wanted.check()
        };
        let plain = MethodConfig::default();
        assert!(service("shop.Cart", plain).is_ok() && method("/shop.Cart/Add").is_ok());
        for name in ["", "/shop.Cart", "shop.Cart/", "shop Cart", "shop.Cart/Add"] {
            let text = service(name, plain).unwrap_err().to_string();
            assert!(
                text.contains(&format!("service {name:?}: expected")),
                "{text}"
            );
        }
        for path in [
            "",
            "/",
            "shop.Cart/Add",
            "/shop.Cart",
            "/shop.Cart/",
            "//Add",
            "/a/b/c",
        ] {
            let text = method(path).unwrap_err().to_string();
            assert!(
                text.contains(&format!("method {path:?}: expected")),
                "{text}"
            );
        }
        let text = service("a.B", plain.with_timeout(Duration::ZERO)).unwrap_err();
        assert_eq!(
            text.to_string(),
            "service \"a.B\": timeout 0ns is not above zero"
        );
    }
}
