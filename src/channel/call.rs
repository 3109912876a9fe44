//! One call: its deadline, its turn in the line, its endpoint, and another one when the first was never reached.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use tonic::Status;
use tracing::{Span, field};

use crate::clock::Clock;
use crate::endpoint::{Address, Endpoint, EndpointId};
use crate::policy::HashKey;
use crate::report::{Outcome, StatusCode};
use crate::rng;
use crate::timestamp::Timestamp;
use crate::transport::{
    CallError, Connection, Failure, Outgoing, Payload, Phase, Reached, outcome,
};

mod look;
mod repeat;

use look::Look;
use repeat::Trail;

use super::deadline::{self, Deadline};
use super::extensions::{Avoid, Override, Served, WaitForReady};
use super::foreign::{self, Word};
use super::labels::Labels;
use super::routes::Repeat;
use super::shared::{Core, Shared};
use super::snapshot::Admitted;
use super::tracked::{InFlight, ResponseBody, Tracking};
use super::waiters::{Need, Told};

/// How often a call may go elsewhere for want of its connection: it never left this process, or was left out by a
/// GOAWAY. A connection is lost for good each time, so this adds nothing to the load of servers that stay; more than one
/// since connections that were made together also end together.
const UNCARRIED_RETRIES: u32 = 3;
/// How often a call that a server turned away may go elsewhere (gRFC A6: once).
const REFUSED_RETRIES: u32 = 1;
/// How long a waiting call relies on being told. News may be with a call before it that was told and is not
/// polled by its owner (a loser of a `select` that is kept, say), and nothing else may ever happen.
const LOOK_ANYWAY: Duration = Duration::from_millis(50);

/// Carries one call to its response's head.
///
/// What this gives is boxed for every call, so it is kept under the kilobyte that allocators serve quickly:
/// what is rare is boxed once more, and nothing is held twice.
pub(super) fn run<N: Connection>(
    shared: Arc<Shared<N>>,
    request: http::Request<tonic::body::Body>,
    random: u64,
    span: Span,
) -> impl Future<Output = Result<http::Response<ResponseBody<N>>, Status>> + Send {
    let (parts, body) = request.into_parts();
    let head = Box::new(http::Request::from_parts(parts, ()));
    async move {
        let core = &*shared.core;
        let (mut call, repeat) = match Call::read(core, &head, random, span) {
            Ok(read) => read,
            Err(status) => return Err(refused(status).await),
        };
        if let Some(throttle) = &core.throttle
            && !throttle.admit(call.now, rng::remix(call.random))
        {
            let status = call.made(Failure::Throttled.status(
                Phase::Queued,
                "the servers turn most calls away, and this one was not sent",
            ));
            return Err(refused(status).await);
        }
        if let Some(repeat) = repeat {
            let repeat = repeat.clone();
            return Box::pin(repeat::run(shared, call, head, body, repeat)).await;
        }
        let payload = Payload::Untouched(body);
        match call.attempt(&shared, Outgoing { head, payload }).await {
            Ok((response, in_flight)) => call.respond(response, in_flight),
            Err(failed) => Err(failed.status),
        }
    }
}

/// An attempt that came to nothing.
struct Failed {
    status: Status,
    others: Others,
}

/// What an attempt that came to nothing says of others of the same call.
#[derive(Clone, Copy, Debug)]
enum Others {
    /// Another may do better.
    Possible,
    /// No other should begin: as many calls wait as may. Those under way have their endpoint.
    UnderWay,
    /// None could do better: the deadline has passed, or the caller's own request is at fault.
    Useless,
}

impl Failed {
    fn once(status: Status) -> Self {
        let others = Others::Possible;
        Self { status, others }
    }

    fn turned_away(status: Status) -> Self {
        let others = Others::UnderWay;
        Self { status, others }
    }

    fn for_good(status: Status) -> Self {
        let others = Others::Useless;
        Self { status, others }
    }
}

/// The end of a call that never left. A caller that tries again at once, without a pause, must not keep the driver
/// from running, which may share its thread.
async fn refused(status: Status) -> Status {
    tokio::task::coop::consume_budget().await;
    status
}

/// What `future` resolves to, or `None` when the deadline passes first. The clock is asked only when the
/// call has to wait.
fn bounded<F: Future>(
    future: Pin<&mut F>,
    deadline: &mut Option<Deadline>,
    cx: &mut Context<'_>,
) -> Poll<Option<F::Output>> {
    if let Poll::Ready(output) = future.poll(cx) {
        return Poll::Ready(Some(output));
    }
    match deadline {
        Some(deadline) => deadline.sleep.as_mut().poll(cx).map(|()| None),
        None => Poll::Pending,
    }
}

/// What stays the same from attempt to attempt.
struct Call {
    /// The newest time known: read when the call began, after each wait and before each new attempt.
    now: Timestamp,
    random: u64,
    /// The number of its policy.
    policy: usize,
    /// Its own key, which comes before what the policy places calls by.
    key: Option<u64>,
    deadline: Option<Deadline>,
    labels: Labels,
    wait_for_ready: bool,
    wanted: Option<Override>,
    /// Endpoints that turned this call away.
    avoid: Vec<EndpointId>,
    /// What the caller asked to stay away from.
    avoid_addresses: Option<Vec<Address>>,
    /// The endpoint of the last attempt that failed, and how often each kind of failure let it go on.
    tried: Option<Arc<Endpoint>>,
    uncarried: u32,
    refused: u32,
    /// The call's own, to be told where it went.
    span: Span,
    /// Which of several attempts this is, and where they all go.
    trail: Option<(u32, Arc<Trail>)>,
}

impl Call {
    /// What the head of a request asks for, and how it is repeated if it may be.
    ///
    /// # Errors
    ///
    /// When it has no time at all.
    fn read<'a, N: Connection>(
        core: &'a Core<N>,
        head: &http::Request<()>,
        random: u64,
        span: Span,
    ) -> Result<(Self, Option<&'a Repeat>), Status> {
        let started = core.clock.now();
        let asked = head
            .headers()
            .get(deadline::GRPC_TIMEOUT)
            .and_then(deadline::parse);
        let route = core.routes.find(head.uri().path());
        let timeout = match (asked, route.timeout) {
            (Some(asked), Some(limit)) => Some(asked.min(limit)),
            (asked, limit) => asked.or(limit),
        };
        let extensions = head.extensions();
        let labels = Labels {
            attempts: 0,
            timeout: timeout.unwrap_or_default(),
        };
        if timeout == Some(Duration::ZERO) {
            return Err(labels.deadline_exceeded("before the call began", None));
        }
        let timed = timeout.is_some() || route.repeat.is_some();
        if timed && tokio::runtime::Handle::try_current().is_err() {
            return Err(Status::unavailable(
                "a call with a deadline, or one that is retried, needs a tokio runtime to run on",
            ));
        }
        let call = Self {
            now: started,
            random,
            policy: route.policy,
            key: extensions.get::<HashKey>().map(|key| key.hash()),
            deadline: timeout.map(|timeout| Deadline::at(started + timeout, core.clock)),
            labels,
            wait_for_ready: route.wait_for_ready || extensions.get::<WaitForReady>().is_some(),
            wanted: extensions.get::<Override>().cloned(),
            avoid: Vec::new(),
            avoid_addresses: extensions.get::<Avoid>().map(|avoid| avoid.0.clone()),
            tried: None,
            uncarried: 0,
            refused: 0,
            span,
            trail: None,
        };
        Ok((call, route.repeat.as_ref()))
    }

    /// One attempt, to the head of its response. It goes elsewhere by itself where it never reached a server.
    async fn attempt<N: Connection>(
        &mut self,
        shared: &Shared<N>,
        request: Outgoing,
    ) -> Result<(http::Response<N::Body>, InFlight<N>), Failed> {
        let mut outgoing = Some(request);
        while let Some(mut request) = outgoing.take() {
            if self.is_short_of_time(shared.core.clock) {
                let tried = self.tried.as_deref();
                let status = self.labels.deadline_exceeded("before it was sent", tried);
                return Err(Failed::for_good(refused(status).await));
            }
            let admitted = match self.look_first(shared, &request.head) {
                Ok(Ok(admitted)) => Ok(admitted),
                Ok(Err(need)) => Box::pin(self.wait(shared, &request.head, need)).await,
                Err(status) => Err(Failed::once(status)),
            };
            let Admitted {
                in_flight,
                live,
                slot,
            } = match admitted {
                Ok(admitted) => admitted,
                Err(Failed { status, others }) => {
                    let status = refused(status).await;
                    return Err(Failed { status, others });
                }
            };
            self.labels.attempts += 1;
            if let Some((attempt, trail)) = &self.trail {
                trail.note(*attempt, in_flight.seat().id);
            }
            self.write_timeout(request.head.headers_mut());
            let sending = live.connection.call(request, slot);
            // The stream keeps what it needs; holding the connection would keep it from closing.
            drop(live);
            let mut sending = pin!(sending);
            let deadline = &mut self.deadline;
            match poll_fn(|cx| bounded(sending.as_mut(), deadline, cx)).await {
                Some(Ok(response)) if foreign::is_grpc(&response) => {
                    return Ok((response, in_flight));
                }
                Some(Ok(response)) => {
                    return Err(Box::pin(self.reject(response, in_flight)).await);
                }
                Some(Err(error)) => outgoing = self.again(error, in_flight)?,
                None => {
                    let status = self.expired(in_flight, "while waiting for the response");
                    return Err(Failed::for_good(status));
                }
            }
        }
        Err(Failed::for_good(Status::internal(
            "the call has no request",
        )))
    }

    /// Whether the deadline has passed. The clock is asked only where it may have: what was read when the call began is
    /// good enough for all that have more than a moment.
    fn is_short_of_time(&mut self, clock: Clock) -> bool {
        const MOMENT: Duration = Duration::from_millis(1);
        let Some(deadline) = &self.deadline else {
            return false;
        };
        if deadline.at.since(self.now) >= MOMENT {
            return false;
        }
        self.now = clock.now();
        deadline.at <= self.now
    }

    /// Tells the server what is left of the time, never more.
    fn write_timeout(&self, headers: &mut HeaderMap) {
        if let Some(deadline) = &self.deadline {
            let left = deadline.at.since(self.now);
            headers.insert(deadline::GRPC_TIMEOUT, deadline::format(left));
        }
    }

    /// Finds an endpoint with a free slot at once, or says what to wait for.
    fn look_first<N: Connection>(
        &mut self,
        shared: &Shared<N>,
        head: &http::Request<()>,
    ) -> Result<Result<Admitted<N>, Need>, Status> {
        // Whoever waits for room was here first.
        if shared.core.waiters.anyone_for_room() {
            return Ok(Err(Need::Room));
        }
        match self.look(shared, head) {
            Look::Admitted(admitted) => Ok(Ok(admitted)),
            Look::Wait(need) => Ok(Err(need)),
            Look::Fail(status) => Err(self.made(status)),
        }
    }

    /// Stands in the line until there is an endpoint with a free slot.
    async fn wait<N: Connection>(
        &mut self,
        shared: &Shared<N>,
        head: &http::Request<()>,
        need: Need,
    ) -> Result<Admitted<N>, Failed> {
        let waiters = &shared.core.waiters;
        let ticket = waiters.join(need).map_err(|_| {
            let text = format!(
                "{} calls are waiting for an endpoint already, the most this channel holds",
                waiters.len()
            );
            Failed::turned_away(self.made(Failure::LineFull.status(Phase::Queued, text)))
        })?;
        let mut turn = ticket.may_look().then_some(Told::NOTHING);
        let mut blocker = None;
        loop {
            if let Some(told) = turn {
                match self.look(shared, head) {
                    Look::Admitted(admitted) => {
                        ticket.served();
                        return Ok(admitted);
                    }
                    Look::Fail(status) => {
                        ticket.given_up(told);
                        return Err(Failed::once(self.made(status)));
                    }
                    Look::Wait(need) => {
                        if ticket.stay(need, told) {
                            turn = Some(Told::NOTHING);
                            continue;
                        }
                    }
                }
            }
            let mut anyway = pin!(look_anyway());
            let mut news = pin!(poll_fn(|cx| match ticket.poll_news(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => anyway.as_mut().poll(cx),
            }));
            let deadline = &mut self.deadline;
            let woken = poll_fn(|cx| bounded(news.as_mut(), deadline, cx)).await;
            self.now = shared.core.clock.now();
            if woken.is_none() || self.is_short_of_time(shared.core.clock) {
                let why = shared.core.snapshot.load().why.clone();
                let phase = match why {
                    Some(why) => format!("while waiting for an endpoint: {why}"),
                    None => "while waiting for an endpoint".to_owned(),
                };
                let status = self.labels.deadline_exceeded(&phase, self.tried.as_deref());
                return Err(Failed::for_good(status));
            }
            turn = ticket.take_turn(&mut blocker);
        }
    }

    /// An error of our own, marked as such.
    fn made(&self, mut status: Status) -> Status {
        self.labels.put_on(&mut status, self.tried.as_deref());
        status
    }

    /// The request again, if it may go to another endpoint after this failure.
    fn again<N: Connection>(
        &mut self,
        error: CallError,
        in_flight: InFlight<N>,
    ) -> Result<Option<Outgoing>, Failed> {
        let CallError {
            mut status,
            reached,
            request,
        } = error;
        let code = StatusCode::new(status.code() as u8);
        let clock = in_flight.clock();
        if self
            .deadline
            .as_ref()
            .is_some_and(|d| reached != Reached::Local && d.explains(code, clock))
        {
            let status = self.expired(in_flight, "while waiting for the response");
            return Err(Failed::for_good(status));
        }
        let budget = match reached {
            Reached::No | Reached::LeftOut => self.uncarried < UNCARRIED_RETRIES,
            Reached::Refused => self.refused < REFUSED_RETRIES,
            Reached::Maybe | Reached::Local => false,
        };
        let seat = in_flight.seat().clone();
        if request.is_none() || !budget {
            in_flight.end(outcome(code, reached));
            self.labels.put_on(&mut status, Some(&seat.endpoint()));
            return Err(match reached {
                Reached::Local => Failed::for_good(status),
                Reached::No | Reached::LeftOut | Reached::Refused | Reached::Maybe => {
                    Failed::once(status)
                }
            });
        }
        self.now = in_flight.end(Outcome::Refused);
        match reached {
            Reached::Refused => self.refused += 1,
            _ => self.uncarried += 1,
        }
        self.avoid.push(seat.id);
        self.tried = Some(seat.endpoint());
        Ok(request)
    }

    /// The deadline passed before there was a response to hand on.
    fn expired<N: Connection>(&self, in_flight: InFlight<N>, when: &str) -> Status {
        let endpoint = in_flight.seat().endpoint();
        let phase = Phase::Waiting { written: true };
        in_flight.end(Failure::Deadline.verdict(phase).outcome());
        self.labels.deadline_exceeded(when, Some(&endpoint))
    }

    /// Makes an error of a response that is not gRPC's.
    async fn reject<N: Connection>(
        &mut self,
        response: http::Response<N::Body>,
        in_flight: InFlight<N>,
    ) -> Failed {
        let endpoint = in_flight.seat().endpoint();
        let (status, outcome) = match foreign::judge(response, &mut self.deadline).await {
            Word::Given(status) => {
                let code = StatusCode::new(status.code() as u8);
                let clock = in_flight.clock();
                let deadline = self.deadline.as_ref();
                if deadline.is_some_and(|deadline| deadline.explains(code, clock)) {
                    let status = self.expired(in_flight, "while the response was under way");
                    return Failed::for_good(status);
                }
                (status, Outcome::Answered(code))
            }
            Word::Made(mut status, outcome) => {
                self.labels.put_on(&mut status, Some(&endpoint));
                (status, outcome)
            }
        };
        in_flight.end(outcome);
        Failed::once(status)
    }

    /// Follows the response; one that is all head is judged here.
    fn respond<N: Connection>(
        self,
        response: http::Response<N::Body>,
        in_flight: InFlight<N>,
    ) -> Result<http::Response<ResponseBody<N>>, Status> {
        let (mut parts, body) = response.into_parts();
        let endpoint = in_flight.seat().endpoint();
        if !self.span.is_disabled() {
            self.span
                .record("endpoint", field::display(endpoint.address()));
            self.span.record("attempts", self.labels.attempts);
        }
        parts.extensions.insert(Served {
            endpoint,
            attempts: self.labels.attempts,
        });
        let tracking = Tracking {
            in_flight,
            deadline: self.deadline,
            labels: self.labels,
            ok: false,
        };
        let body = ResponseBody::follow(&mut parts.headers, body, tracking)?;
        Ok(http::Response::from_parts(parts, body))
    }
}

/// Resolves when a call should look even though it was told nothing.
async fn look_anyway() {
    // Timers need a runtime; without one only news wakes a call.
    match tokio::runtime::Handle::try_current() {
        Ok(_) => tokio::time::sleep(LOOK_ANYWAY).await,
        Err(_) => std::future::pending().await,
    }
}
