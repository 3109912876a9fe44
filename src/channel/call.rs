//! One call: its deadline, its turn in the line, its endpoint, and another one when the first was never reached.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use tonic::Status;
use tracing::{Span, field};

use crate::balancer::spared;
use crate::endpoint::{Address, Connectivity, Endpoint, EndpointId};
use crate::policy::{HashKey, PickInfo, PickResult};
use crate::report::{Outcome, StatusCode};
use crate::rng;
use crate::timestamp::Timestamp;
use crate::transport::{
    CallError, Connection, Failure, Outgoing, Payload, Phase, Reached, outcome,
};

mod repeat;

use repeat::Trail;

use super::deadline::{self, Deadline};
use super::extensions::{Avoid, Override, Served, WaitForReady};
use super::foreign::{self, Word};
use super::labels::Labels;
use super::routes::Repeat;
use super::shared::{Core, Shared};
use super::snapshot::{Admitted, Ground, Room, Seat, Snapshot};
use super::tracked::{InFlight, ResponseBody, Tracking};
use super::waiters::{Need, Told};

/// How often a call that never left this process may go elsewhere (DESIGN: up to 3 times).
const UNSENT_RETRIES: u32 = 3;
/// How often a call that a server says it did not process may go elsewhere (gRFC A6: once).
const REFUSED_RETRIES: u32 = 1;
/// How many endpoints that turn out to be full or gone are passed over before the call waits for room.
const PICKS: usize = 32;
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
    unsent: u32,
    refused: u32,
    /// The call's own, to be told where it went.
    span: Span,
    /// Which of several attempts this is, and where they all go.
    trail: Option<(u32, Arc<Trail>)>,
}

/// What one look at the snapshot gave.
enum Look<N: Connection> {
    Admitted(Admitted<N>),
    Wait(Need),
    Fail(Status),
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
            unsent: 0,
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
        let mut told = Told::NOTHING;
        let mut may_look = ticket.may_look();
        let mut blocker = None;
        loop {
            if may_look {
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
                            told = Told::NOTHING;
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
            if woken.is_none() {
                let why = shared.core.snapshot.load().why.clone();
                let phase = match why {
                    Some(why) => format!("while waiting for an endpoint: {why}"),
                    None => "while waiting for an endpoint".to_owned(),
                };
                let status = self.labels.deadline_exceeded(&phase, self.tried.as_deref());
                return Err(Failed::for_good(status));
            }
            told = ticket.take_news();
            // Untold, it looks only when nobody before it was told something, or the same one was at the last
            // time too and has not come.
            let ahead = ticket.blocker().filter(|_| told.is_nothing());
            may_look = ahead.is_none() || ahead == blocker;
            blocker = ahead;
            self.now = shared.core.clock.now();
        }
    }

    /// One look at what is published now: pick, and reserve a slot.
    fn look<N: Connection>(&mut self, shared: &Shared<N>, head: &http::Request<()>) -> Look<N> {
        let core = &*shared.core;
        let snapshot = core.snapshot.load();
        if snapshot.state == Connectivity::Shutdown {
            return Look::Fail(unavailable(
                snapshot.why.as_deref(),
                "the channel is closed",
            ));
        }
        if snapshot.state == Connectivity::Idle {
            shared.wake();
            return Look::Wait(Need::State);
        }
        if core
            .breaker
            .as_ref()
            .is_some_and(|breaker| breaker.is_full())
        {
            return Look::Wait(Need::Room);
        }
        // Endpoints named to be avoided, and those found full or gone, are passed over in this look only: the
        // next may see another list.
        let tried = self.avoid.len();
        let named = self.avoid_addresses.iter().flatten();
        let named = named.filter_map(|address| snapshot.seats.at(address));
        self.avoid.extend(named.map(|seat| seat.id));
        let look = match self.look_at_wanted(shared, &snapshot) {
            Some(look) => look,
            None => self.pick(shared, &snapshot, head),
        };
        self.avoid.truncate(tried);
        look
    }

    fn pick<N: Connection>(
        &mut self,
        shared: &Shared<N>,
        snapshot: &Snapshot<N>,
        head: &http::Request<()>,
    ) -> Look<N> {
        let (policy, path) = (self.policy, head.uri().path());
        let (Some(picker), Some(hash_on)) =
            (snapshot.pickers.get(policy), snapshot.hash_on.get(policy))
        else {
            return Look::Wait(Need::State);
        };
        // By what this picker's policy says: it may be another than at the last look.
        let hash = self.key.or_else(|| hash_on.hash(head));
        let mut room = Need::State;
        // Whom to avoid: at first everyone in `avoid`; when nobody else is left, only those tried in this look.
        let (mut from, tried) = (0, self.avoid.len());
        // Whom it passed over to spare them, once: where nobody else is left, one of them has to do.
        let mut spared = Vec::new();
        for _ in 0..PICKS {
            self.random = rng::remix(self.random);
            let info = PickInfo {
                now: self.now,
                random: self.random,
                path,
                hash,
                avoid: &self.avoid[from..],
            };
            // It may be the user's own: where it panics that is one call's end, and not the end of the caller's task.
            let Ok(picked) = catch_unwind(AssertUnwindSafe(|| picker.pick(&info))) else {
                tracing::error!(target: "equipoise", policy, "picker panicked");
                return Look::Fail(Status::internal("the policy's picker panicked"));
            };
            let id = match picked {
                PickResult::Pick(id) => id,
                PickResult::PickAndConnect { id, connect } => {
                    shared.want(connect);
                    id
                }
                PickResult::Queue { connect } => {
                    if let Some(id) = connect {
                        shared.want(id);
                    }
                    // Whoever was found full may be sooner than whoever is not ready yet.
                    return Look::Wait(room);
                }
                PickResult::Fail if self.wait_for_ready => return Look::Wait(room),
                PickResult::Fail => {
                    let why = snapshot.why.as_deref();
                    return Look::Fail(unavailable(why, "no endpoint is ready"));
                }
            };
            let again = self.avoid[tried..].contains(&id);
            let id = match again && !spared.contains(&id) {
                false => id,
                // Nobody is left to try, but for those who were spared.
                true => match spared.last() {
                    Some(&id) => id,
                    None => break,
                },
            };
            if self.avoid[..tried].contains(&id) {
                from = tried;
            }
            let Some(seat) = snapshot.seats.get(id) else {
                // The policy named somebody who is not there: its picker is older than this list.
                return Look::Wait(Need::State);
            };
            // Calls that are placed by a key stay where they are: theirs would move twice.
            if !again && hash.is_none() && self.spares(seat) {
                spared.push(id);
                self.avoid.push(id);
                continue;
            }
            spared.retain(|&other| other != id);
            match seat.take(Ground::Picked, &shared.core, policy, self.now) {
                Room::Taken(admitted) => return Look::Admitted(admitted),
                Room::Full => room = Need::Room,
                Room::Gone => {}
            }
            self.avoid.push(id);
        }
        Look::Wait(room)
    }

    /// Whether an endpoint that has come back, or has just come, is to be spared this call.
    #[inline]
    fn spares<N: Connection>(&self, seat: &Seat<N>) -> bool {
        let Some((elapsed, window)) = seat.loads.spared(self.now) else {
            return false;
        };
        // Turned round: the policy drew from the word as it is.
        spared(elapsed, window, self.random.rotate_left(32))
    }

    /// The endpoint an [`Override`] asks for; `None` when the policy should choose.
    fn look_at_wanted<N: Connection>(
        &self,
        shared: &Shared<N>,
        snapshot: &Snapshot<N>,
    ) -> Option<Look<N>> {
        let wanted = self.wanted.as_ref()?;
        let seat = snapshot.seats.at(&wanted.address);
        // A wish is no reason to go back to where the call was just turned away.
        if !wanted.strict && seat.is_some_and(|seat| self.avoid.contains(&seat.id)) {
            return None;
        }
        let ground = match wanted.strict {
            true => Ground::Named,
            false => Ground::Picked,
        };
        let take = |seat: &Arc<Seat<N>>| seat.take(ground, &shared.core, self.policy, self.now);
        let room = seat.map(|seat| (seat, take(seat)));
        if let Some((_, Room::Taken(admitted))) = room {
            return Some(Look::Admitted(admitted));
        }
        if !wanted.strict {
            return None;
        }
        Some(match room {
            Some((_, Room::Full)) => Look::Wait(Need::Room),
            Some((seat, _)) => self.missing(shared, seat, &wanted.address),
            None if self.wait_for_ready => Look::Wait(Need::State),
            None if snapshot.state == Connectivity::Connecting && snapshot.seats.is_empty() => {
                Look::Wait(Need::State)
            }
            None => Look::Fail(Status::unavailable(format!(
                "the endpoint asked for, {}, is not in the list",
                wanted.address
            ))),
        })
    }

    /// Why a strictly wanted endpoint cannot take the call, or that it soon may.
    fn missing<N: Connection>(
        &self,
        shared: &Shared<N>,
        seat: &Seat<N>,
        address: &Address,
    ) -> Look<N> {
        let notes = seat.notes();
        match notes.state {
            Connectivity::TransientFailure if !self.wait_for_ready => {
                let why = notes.last_error.as_ref().map(ToString::to_string);
                Look::Fail(unavailable(
                    why.as_deref(),
                    &format!("the endpoint asked for, {address}, is not ready"),
                ))
            }
            // One that has failed is dialled again after its backoff, if anybody wishes for it: this call does.
            Connectivity::Idle | Connectivity::TransientFailure => {
                shared.want(seat.id);
                Look::Wait(Need::State)
            }
            _ => Look::Wait(Need::State),
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
            Reached::No => self.unsent < UNSENT_RETRIES,
            Reached::Refused => self.refused < REFUSED_RETRIES,
            Reached::Maybe | Reached::Local => false,
        };
        let seat = in_flight.seat().clone();
        if request.is_none() || !budget {
            in_flight.end(outcome(code, reached));
            self.labels.put_on(&mut status, Some(&seat.endpoint()));
            return Err(match reached {
                Reached::Local => Failed::for_good(status),
                Reached::No | Reached::Refused | Reached::Maybe => Failed::once(status),
            });
        }
        self.now = in_flight.end(Outcome::Refused);
        self.unsent += u32::from(reached == Reached::No);
        self.refused += u32::from(reached == Reached::Refused);
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

fn unavailable(why: Option<&str>, otherwise: &str) -> Status {
    let text = match why {
        Some(why) => format!("{otherwise}: {why}"),
        None => otherwise.to_owned(),
    };
    Failure::NoEndpoint.status(Phase::Queued, text)
}
