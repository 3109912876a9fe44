//! Names, looked up and looked up again.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::refusal::Refusal;
use super::{Hints, Resolver, Update};
use crate::balancer::Backoff;
use crate::endpoint::Endpoint;
use crate::error::ResolveError;
use crate::rng::Rng;
use crate::target::Target;

/// The part of a wait between two look-ups of a healthy name that chance may take away.
const JITTER: f64 = 0.2;

/// Looks names up through the system's resolver (`getaddrinfo`: `/etc/hosts`, DNS, whatever the machine is set
/// up for), and goes on doing so. It is what [`Target`]s with a name use unless told otherwise.
///
/// Every address that a name has is an endpoint of its own, in no particular order. The name is looked up
///
/// * every [refresh interval](Self::with_refresh), so that new servers get their share though nobody
///   has disconnected;
/// * at once when a connection is lost or cannot be made;
/// * after an error or an empty answer, with growing pauses: gRPC's 1 s × 1.6 ± 20 %, up to the refresh
///   interval;
///
/// but never twice within the [minimum interval](Self::with_min_interval), and one look-up at a time.
///
/// An error leaves the last addresses in use. So does an empty answer, for
/// [`keep_last_good`](crate::Builder::keep_last_good). The system reports a name that does not exist as an
/// error like any other; a [look-up of one's own](Self::with_lookup) can tell the two apart.
///
/// Some addresses are never used, whoever answers with them: unspecified, multicast, broadcast and link-local
/// ones. Loopback is used for `localhost` and names that end in `.localhost`, else only
/// [where allowed](Self::allow_loopback). A refused address is logged; when all are refused it is an error
/// that says why.
///
/// On a target that lists its addresses it gives that list.
///
/// ```
/// use std::time::Duration;
///
/// use equipoise::Channel;
/// use equipoise::resolver::Dns;
///
/// let dns = Dns::default().with_refresh(Duration::from_secs(10));
/// let channel = Channel::builder("dns:///greeter.prod.svc:50051")?.resolver(dns).build()?;
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone)]
pub struct Dns {
    lookup: LookUp,
    refresh: Duration,
    min_interval: Duration,
    timeout: Duration,
    allow_loopback: bool,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            lookup: LookUp::system(),
            refresh: Duration::from_secs(30),
            min_interval: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
            allow_loopback: false,
        }
    }
}

impl Dns {
    /// Asks `lookup` instead of the system. It gets host and port of the target and answers with
    /// addresses to dial; port 0 stands for the target's. [`io::ErrorKind::NotFound`], or no address at all,
    /// means that there is nobody; any other error that it does not know.
    ///
    /// It must not block. Dropping its future must end the look-up: that is how one that takes too long is
    /// given up.
    ///
    /// ```
    /// use equipoise::resolver::Dns;
    ///
    /// let dns = Dns::default().with_lookup(|host, port| async move {
    ///     tokio::net::lookup_host((host, port)).await.map(Iterator::collect)
    /// });
    /// ```
    pub fn with_lookup<F, A>(mut self, lookup: F) -> Self
    where
        F: Fn(String, u16) -> A + Send + Sync + 'static,
        A: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        self.lookup = LookUp {
            ask: Arc::new(move |host, port| lookup(host, port).boxed()),
            is_cancellable: true,
        };
        self
    }

    /// How long an answer is good for. Default 30 s, the interval of gRPC's resolvers and of many a
    /// record's TTL, which the system does not tell. Each wait is shortened by up to a fifth by chance, so that
    /// clients started together do not ask together. From the minimum interval to 24 h. Too short
    /// burdens the name servers; too long, and new servers wait for their share.
    pub fn with_refresh(mut self, interval: Duration) -> Self {
        self.refresh = interval;
        self
    }

    /// The least time from one look-up to the next, whatever happens. Default 5 s. From 1 ms to 24 h. It
    /// bounds how long servers that have all moved stay unfound.
    pub fn with_min_interval(mut self, interval: Duration) -> Self {
        self.min_interval = interval;
        self
    }

    /// How long a look-up may take before it counts as failed. Default 10 s: the two attempts of 5 s each
    /// that a system makes by default at a name server that is silent (gRPC allows 30 s). From 1 ms to 1 h.
    /// The connect timeout does not include it.
    ///
    /// The system's look-ups cannot be interrupted: one that takes longer is waited for, and its answer
    /// used, before there is another.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Uses loopback addresses (`127.0.0.0/8`, `::1`) for names other than `localhost` too. Default: they
    /// are refused, since an answer from the network has no business naming this machine.
    pub fn allow_loopback(mut self) -> Self {
        self.allow_loopback = true;
        self
    }

    fn check_settings(&self) -> Result<(), ResolveError> {
        const MS: Duration = Duration::from_millis(1);
        const HOUR: Duration = Duration::from_secs(3_600);
        const DAY: Duration = Duration::from_secs(86_400);
        for (name, value, low, high, range) in [
            ("min_interval", self.min_interval, MS, DAY, "1ms..=24h"),
            ("timeout", self.timeout, MS, HOUR, "1ms..=1h"),
            ("refresh", self.refresh, MS, DAY, "1ms..=24h"),
        ] {
            if !(low..=high).contains(&value) {
                let text = format!("dns {name} {value:?} is not in {range}");
                return Err(ResolveError::new(text));
            }
        }
        if self.refresh < self.min_interval {
            return Err(ResolveError::new(format!(
                "dns refresh {:?} is less than the min_interval, {:?}",
                self.refresh, self.min_interval
            )));
        }
        Ok(())
    }
}

impl Resolver for Dns {
    fn check(&self, target: &Target) -> Result<(), ResolveError> {
        self.check_settings()?;
        if target.name().is_some() || target.fixed().is_some() {
            return Ok(());
        }
        // A target that was taken for another resolver's: what is wrong with it as ours?
        match target.to_string().parse::<Target>() {
            Ok(_) => Ok(()),
            Err(error) => Err(ResolveError::new(error.to_string())),
        }
    }

    fn watch(
        &self,
        target: &Target,
        hints: Hints,
    ) -> BoxStream<'static, Result<Update, ResolveError>> {
        if let Some((host, port)) = target.name() {
            let name = target.host().unwrap_or(host).to_ascii_lowercase();
            let local = name == "localhost" || name.ends_with(".localhost");
            let watch = Watch {
                host: host.to_owned(),
                port,
                allow_loopback: self.allow_loopback || local,
                dns: self.clone(),
                hints,
                rng: Rng::new(fastrand::u64(..)),
                schedule: None,
                overdue: None,
                failures: 0,
                refused: BTreeSet::new(),
            };
            return stream::unfold(watch, |mut watch| async {
                let found = watch.next().await;
                Some((found, watch))
            })
            .boxed();
        }
        let found = match target.fixed() {
            Some(endpoints) => Ok(Update {
                endpoints: endpoints.to_vec(),
            }),
            None => Err(ResolveError::new(format!("{target}: not a name"))),
        };
        stream::iter([found]).boxed()
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns")
            .field("refresh", &self.refresh)
            .field("min_interval", &self.min_interval)
            .field("timeout", &self.timeout)
            .field("allow_loopback", &self.allow_loopback)
            .finish_non_exhaustive()
    }
}

/// Who is asked.
#[derive(Clone)]
struct LookUp {
    ask: Arc<dyn Fn(String, u16) -> Asking + Send + Sync>,
    /// Whether a look-up ends with its future.
    is_cancellable: bool,
}

/// A look-up under way.
type Asking = BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

impl LookUp {
    fn system() -> Self {
        let ask = |host: String, port| {
            let found = tokio::net::lookup_host((host, port));
            found.map(|found| found.map(Iterator::collect)).boxed()
        };
        Self {
            ask: Arc::new(ask),
            // It runs on a thread of the blocking pool until the system gives up.
            is_cancellable: false,
        }
    }

    fn begin(&self, host: String, port: u16) -> Asking {
        let ask = self.ask.clone();
        // Perhaps somebody else's code: its panic is not to take the channel's task along.
        AssertUnwindSafe(async move { ask(host, port).await })
            .catch_unwind()
            .map(|answer| answer.unwrap_or_else(|_| Err(io::Error::other("the look-up panicked"))))
            .boxed()
    }
}

/// One name, watched.
struct Watch {
    dns: Dns,
    host: String,
    port: u16,
    allow_loopback: bool,
    hints: Hints,
    rng: Rng,
    /// Nothing before the first look-up.
    schedule: Option<Schedule>,
    /// A look-up that took too long and could not be stopped.
    overdue: Option<Asking>,
    /// Look-ups in a row that found nobody.
    failures: u32,
    /// What was refused of the last answer.
    refused: BTreeSet<(IpAddr, Refusal)>,
}

/// When the next look-up is.
struct Schedule {
    due: Instant,
    /// Somebody wants it sooner; not before this.
    earliest: Instant,
}

impl Watch {
    /// The next thing there is to tell.
    async fn next(&mut self) -> Result<Update, ResolveError> {
        let answer = match self.overdue.take() {
            Some(asking) => asking.await,
            None => self.look().await,
        };
        let found = self.read(answer);
        let wait = match &found {
            Ok(update) if !update.endpoints.is_empty() => {
                self.failures = 0;
                let refresh = self.dns.refresh;
                self.wait(refresh.mul_f64(1.0 - JITTER), refresh.mul_f64(JITTER))
            }
            Ok(_) | Err(_) => {
                self.failures = self.failures.saturating_add(1);
                let backoff = Backoff::default();
                let pause = backoff.nominal(self.failures).min(self.dns.refresh);
                let least = pause.mul_f64(1.0 - backoff.jitter);
                self.wait(least, pause.mul_f64(2.0 * backoff.jitter))
            }
        };
        if let Some(schedule) = &mut self.schedule {
            schedule.due = Instant::now() + wait;
        }
        found
    }

    /// A time to wait, of `least` and at most `spread` more, by chance. Also where the minimum interval is
    /// longer, there is chance in it.
    fn wait(&mut self, least: Duration, spread: Duration) -> Duration {
        least.max(self.dns.min_interval) + spread.mul_f64(self.rng.unit())
    }

    /// Waits until it is time, and looks the name up.
    async fn look(&mut self) -> io::Result<Vec<SocketAddr>> {
        if let Some(schedule) = &self.schedule {
            tokio::select! {
                () = sleep_until(schedule.due) => {}
                () = self.hints.wanted() => sleep_until(schedule.earliest).await,
            }
        }
        // What was wished for up to here, this look-up is the answer to.
        let _ = self.hints.wanted().now_or_never();
        let earliest = Instant::now() + self.dns.min_interval;
        self.schedule = Some(Schedule {
            due: earliest,
            earliest,
        });
        let mut asking = self.dns.lookup.begin(self.host.clone(), self.port);
        match timeout(self.dns.timeout, &mut asking).await {
            Ok(answer) => answer,
            Err(_) => {
                if !self.dns.lookup.is_cancellable {
                    self.overdue = Some(asking);
                }
                let text = format!("no answer within {:?}", self.dns.timeout);
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }

    /// What an answer means.
    fn read(&mut self, answer: io::Result<Vec<SocketAddr>>) -> Result<Update, ResolveError> {
        let answers = match answer {
            Ok(answers) => answers,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let text = format!("{}:{}: {error}", self.host, self.port);
                return Err(ResolveError::new(text));
            }
        };
        let (mut good, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for answer in answers {
            let ip = answer.ip().to_canonical();
            match Refusal::of(ip, self.allow_loopback) {
                Some(refusal) => _ = refused.insert((ip, refusal)),
                None => {
                    let port = match answer.port() {
                        0 => self.port,
                        port => port,
                    };
                    good.insert(SocketAddr::new(ip, port));
                }
            }
        }
        if refused != self.refused {
            self.refused = refused;
            self.tell_refused();
        }
        match self.refused.first() {
            Some((ip, refusal)) if good.is_empty() => Err(ResolveError::new(format!(
                "{}:{}: none of its {} addresses may be used: {ip} is {refusal}",
                self.host,
                self.port,
                self.refused.len(),
            ))),
            _ => Ok(Update {
                endpoints: good.into_iter().map(Endpoint::from).collect(),
            }),
        }
    }

    fn tell_refused(&self) {
        let Some((ip, refusal)) = self.refused.first() else {
            return;
        };
        tracing::warn!(
            target: "equipoise",
            name = %self.host,
            refused = self.refused.len(),
            first = %ip,
            rule = %refusal,
            "addresses of a name are refused"
        );
    }
}

#[cfg(test)]
mod tests;
