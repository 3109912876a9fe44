//! One call: its deadline, its turn in the line, its endpoint, and another one when the first was never reached.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Sleep;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};

use crate::endpoint::{Address, Connectivity, EndpointId};
use crate::policy::{PickInfo, PickResult};
use crate::report::{Outcome, StatusCode};
use crate::rng;
use crate::timestamp::Timestamp;
use crate::transport::{CallError, Connection, Outgoing, Payload, Reached, Slot};

use super::deadline;
use super::extensions::{Avoid, Override, Served, WaitForReady};
use super::service::{Core, Shared};
use super::snapshot::{Live, Room, Seat, Snapshot};
use super::tracked::{InFlight, ResponseBody, Tracking, head_code};
use super::waiters::{Need, Ticket, Told};

/// How often a call that never left this process may go elsewhere (DESIGN: up to 3 times).
const UNSENT_RETRIES: u32 = 3;
/// How often a call that a server says it did not process may go elsewhere (gRFC A6: once).
const REFUSED_RETRIES: u32 = 1;
/// How many endpoints that turn out to be full or gone are passed over before the call waits for room.
const PICKS: usize = 32;

/// Carries one call to its response's head.
pub(super) async fn run<N: Connection>(
    shared: Arc<Shared<N>>,
    request: http::Request<tonic::body::Body>,
    random: u64,
) -> Result<http::Response<ResponseBody<N>>, Status> {
    let core = &*shared.core;
    let (parts, body) = request.into_parts();
    let mut head = http::Request::from_parts(parts, ());
    let mut call = Call::read(core, &head, random);
    if let Some(deadline) = &call.deadline
        && deadline.at <= call.started
    {
        return Err(call.labels.deadline_exceeded("before the call began"));
    }

    let mut payload = Payload::Untouched(body);
    let (mut unsent, mut refused) = (0, 0);
    loop {
        let admitted = call.admit(&shared, head.uri().path()).await?;
        call.labels.attempts += 1;
        call.labels.endpoint = Some(admitted.seat.endpoint());
        call.write_timeout(head.headers_mut());

        let id = admitted.seat.id;
        let in_flight = InFlight::begin(admitted.seat, core.clock, call.now);
        let sending = admitted
            .live
            .connection
            .call(Outgoing { head, payload }, admitted.slot);
        // The stream keeps what it needs; holding the connection would keep it from closing.
        drop(admitted.live);
        match call.in_time(sending).await {
            Some(Ok(response)) => return Ok(call.respond(response, in_flight)),
            None => {
                in_flight.end(Outcome::Answered(StatusCode::DEADLINE_EXCEEDED));
                return Err(call
                    .labels
                    .deadline_exceeded("while waiting for the response"));
            }
            Some(Err(CallError {
                mut status,
                reached,
                request,
            })) => {
                let budget = match reached {
                    Reached::No => unsent < UNSENT_RETRIES,
                    Reached::Refused => refused < REFUSED_RETRIES,
                    Reached::Maybe => false,
                };
                let Some(again) = request.filter(|_| budget) else {
                    let code = StatusCode::new(status.code() as u8);
                    in_flight.end(Outcome::Answered(code));
                    call.labels.put_on(&mut status);
                    return Err(status);
                };
                in_flight.end(Outcome::Refused);
                unsent += u32::from(reached == Reached::No);
                refused += u32::from(reached == Reached::Refused);
                call.avoid.push(id);
                head = again.head;
                payload = again.payload;
                call.now = core.clock.now();
            }
        }
    }
}

/// What an error of our own says of the call's journey.
#[derive(Debug, Default)]
pub(super) struct Labels {
    endpoint: Option<Arc<crate::Endpoint>>,
    attempts: u32,
    timeout: Duration,
}

impl Labels {
    /// DEADLINE_EXCEEDED, saying in which phase.
    pub(super) fn deadline_exceeded(&self, phase: &str) -> Status {
        let mut status =
            Status::deadline_exceeded(format!("deadline of {:?} exceeded {phase}", self.timeout));
        self.put_on(&mut status);
        status
    }

    /// Adds `equipoise-endpoint` and `equipoise-attempts` to an error that this process made.
    pub(super) fn put_on(&self, status: &mut Status) {
        let metadata = status.metadata_mut();
        if let Some(endpoint) = &self.endpoint {
            let name = endpoint.address().to_string();
            // A unix path may hold what a header cannot; then the name is left out.
            if let Ok(name) = name.parse::<MetadataValue<Ascii>>() {
                metadata.insert("equipoise-endpoint", name);
            }
        }
        metadata.insert("equipoise-attempts", self.attempts.into());
    }
}

/// When the call must be over.
#[derive(Debug)]
struct Deadline {
    at: Timestamp,
    sleep: Pin<Box<Sleep>>,
}

/// What stays the same from attempt to attempt.
struct Call {
    started: Timestamp,
    /// The newest time known: read when the call began, after each wait and before each new attempt.
    now: Timestamp,
    random: u64,
    deadline: Option<Deadline>,
    labels: Labels,
    wait_for_ready: bool,
    wanted: Option<Override>,
    avoid: Vec<EndpointId>,
}

/// An endpoint and a slot on one of its connections.
struct Admitted<N> {
    seat: Arc<Seat<N>>,
    live: Arc<Live<N>>,
    slot: Slot,
}

/// What one look at the snapshot gave.
enum Look<N> {
    Admitted(Admitted<N>),
    Wait(Need),
    Fail(Status),
}

impl Call {
    fn read<N: Connection>(core: &Core<N>, head: &http::Request<()>, random: u64) -> Self {
        let started = core.clock.now();
        let asked = head
            .headers()
            .get(deadline::GRPC_TIMEOUT)
            .and_then(deadline::parse);
        let timeout = match (asked, core.timeout) {
            (Some(asked), Some(channel)) => Some(asked.min(channel)),
            (asked, channel) => asked.or(channel),
        };
        let extensions = head.extensions();
        let avoid = match extensions.get::<Avoid>() {
            None => Vec::new(),
            Some(Avoid(addresses)) => {
                let snapshot = core.snapshot.load();
                let ids = addresses.iter().filter_map(|a| snapshot.seats.at(a));
                ids.map(|seat| seat.id).collect()
            }
        };
        Self {
            started,
            now: started,
            random,
            deadline: timeout.map(|timeout| {
                let at = started + timeout;
                Deadline {
                    at,
                    sleep: Box::pin(tokio::time::sleep_until(core.clock.instant(at))),
                }
            }),
            labels: Labels {
                timeout: timeout.unwrap_or_default(),
                ..Labels::default()
            },
            wait_for_ready: extensions.get::<WaitForReady>().is_some(),
            wanted: extensions.get::<Override>().cloned(),
            avoid,
        }
    }

    /// Tells the server what is left of the time, never more.
    fn write_timeout(&self, headers: &mut HeaderMap) {
        if let Some(deadline) = &self.deadline {
            let left = deadline.at.since(self.now);
            headers.insert(deadline::GRPC_TIMEOUT, deadline::format(left));
        }
    }

    /// `future`, or `None` when the deadline passes first. The clock is only asked where the call waits.
    async fn bounded<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let deadline = &mut self.deadline;
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            match deadline {
                Some(deadline) => deadline.sleep.as_mut().poll(cx).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// What an attempt gave, or `None` when the deadline ended it: by our timer or by the server's.
    async fn in_time<B>(
        &mut self,
        sending: impl Future<Output = Result<http::Response<B>, CallError>>,
    ) -> Option<Result<http::Response<B>, CallError>> {
        let answer = self.bounded(sending).await?;
        let code = match &answer {
            Ok(response) => head_code(response.headers()),
            Err(error) => Some(StatusCode::new(error.status.code() as u8)),
        };
        let deadline = self.deadline.as_ref().map(|deadline| &*deadline.sleep);
        match code.is_some_and(|code| deadline::is_behind(code, deadline)) {
            true => None,
            false => Some(answer),
        }
    }

    /// Finds an endpoint with a free slot, waiting in the line where that may help.
    async fn admit<N: Connection>(
        &mut self,
        shared: &Shared<N>,
        path: &str,
    ) -> Result<Admitted<N>, Status> {
        let core = &*shared.core;
        // Whoever waits for room was here first.
        if !core.waiters.anyone_for_room() {
            match self.look(shared, path) {
                Look::Admitted(admitted) => return Ok(admitted),
                Look::Fail(status) => return Err(self.made(status)),
                Look::Wait(need) => return self.wait(shared, path, need).await,
            }
        }
        self.wait(shared, path, Need::Room).await
    }

    async fn wait<N: Connection>(
        &mut self,
        shared: &Shared<N>,
        path: &str,
        need: Need,
    ) -> Result<Admitted<N>, Status> {
        let waiters = &shared.core.waiters;
        let ticket = waiters.join(need).map_err(|_| {
            self.made(Status::resource_exhausted(format!(
                "{} calls are waiting for an endpoint already, the most this channel holds",
                waiters.len()
            )))
        })?;
        let mut told = Told::NOTHING;
        let mut may_look = ticket.may_look();
        loop {
            if may_look {
                match self.look(shared, path) {
                    Look::Admitted(admitted) => {
                        ticket.served(told);
                        return Ok(admitted);
                    }
                    Look::Fail(status) => {
                        ticket.served(told);
                        return Err(self.made(status));
                    }
                    Look::Wait(need) => {
                        if ticket.stay(need, told) {
                            told = Told::NOTHING;
                            continue;
                        }
                    }
                }
            }
            if self.bounded(news(&ticket)).await.is_none() {
                let why = shared.core.snapshot.load().why.clone();
                let phase = match why {
                    Some(why) => format!("while waiting for an endpoint: {why}"),
                    None => "while waiting for an endpoint".to_owned(),
                };
                return Err(self.labels.deadline_exceeded(&phase));
            }
            told = ticket.take_news();
            may_look = true;
            self.now = shared.core.clock.now();
        }
    }

    /// One look at what is published now: pick, and reserve a slot.
    fn look<N: Connection>(&mut self, shared: &Shared<N>, path: &str) -> Look<N> {
        let core = &*shared.core;
        let snapshot = core.snapshot.load();
        if snapshot.state == Connectivity::Shutdown {
            return Look::Fail(unavailable(
                snapshot.why.as_deref(),
                "the channel is closed",
            ));
        }
        if let Some(look) = self.look_at_wanted(&snapshot) {
            return look;
        }
        // Endpoints found full or gone are passed over in this look only.
        let tried = self.avoid.len();
        let look = self.pick(shared, &snapshot, path);
        self.avoid.truncate(tried);
        look
    }

    fn pick<N: Connection>(
        &mut self,
        shared: &Shared<N>,
        snapshot: &Snapshot<N>,
        path: &str,
    ) -> Look<N> {
        let mut full = false;
        for _ in 0..PICKS {
            self.random = rng::remix(self.random);
            let info = PickInfo {
                now: self.now,
                random: self.random,
                path,
                avoid: &self.avoid,
            };
            let id = match snapshot.picker.pick(&info) {
                PickResult::Pick(id) => id,
                PickResult::Queue { connect } => {
                    if let Some(id) = connect {
                        shared.want(id);
                    }
                    return Look::Wait(Need::State);
                }
                PickResult::Fail if self.wait_for_ready => return Look::Wait(Need::State),
                PickResult::Fail => {
                    let why = snapshot.why.as_deref();
                    return Look::Fail(unavailable(why, "no endpoint is ready"));
                }
            };
            let Some(seat) = snapshot.seats.get(id) else {
                // The policy named somebody who is not there: its picker is older than this list.
                return Look::Wait(Need::State);
            };
            match seat.try_reserve() {
                Room::Taken(live, slot) => {
                    let seat = seat.clone();
                    return Look::Admitted(Admitted { seat, live, slot });
                }
                Room::Full => full = true,
                Room::Gone => {}
            }
            if self.avoid.contains(&id) {
                // Nobody else is left to pick.
                break;
            }
            self.avoid.push(id);
        }
        Look::Wait(match full {
            true => Need::Room,
            false => Need::State,
        })
    }

    /// The endpoint an [`Override`] asks for; `None` when the policy should choose.
    fn look_at_wanted<N: Connection>(&self, snapshot: &Snapshot<N>) -> Option<Look<N>> {
        let wanted = self.wanted.as_ref()?;
        let seat = snapshot.seats.at(&wanted.address);
        let room = seat.map(|seat| (seat, seat.try_reserve()));
        if let Some((seat, Room::Taken(live, slot))) = room {
            let seat = seat.clone();
            return Some(Look::Admitted(Admitted { seat, live, slot }));
        }
        if !wanted.strict {
            return None;
        }
        Some(match room {
            Some((_, Room::Full)) => Look::Wait(Need::Room),
            _ if self.wait_for_ready => Look::Wait(Need::State),
            Some((seat, _)) => missing(seat, &wanted.address),
            None if snapshot.state == Connectivity::Connecting && snapshot.seats.is_empty() => {
                Look::Wait(Need::State)
            }
            None => Look::Fail(Status::unavailable(format!(
                "the endpoint asked for, {}, is not in the list",
                wanted.address
            ))),
        })
    }

    /// An error of our own, marked as such.
    fn made(&self, mut status: Status) -> Status {
        self.labels.put_on(&mut status);
        status
    }

    fn respond<N: Connection>(
        self,
        response: http::Response<N::Body>,
        in_flight: InFlight<N>,
    ) -> http::Response<ResponseBody<N>> {
        let (mut parts, body) = response.into_parts();
        if let Some(endpoint) = &self.labels.endpoint {
            parts.extensions.insert(Served {
                endpoint: endpoint.clone(),
                attempts: self.labels.attempts,
            });
        }
        let tracking = Tracking {
            in_flight,
            deadline: self.deadline.map(|d| d.sleep),
            labels: self.labels,
        };
        let body = ResponseBody::follow(&mut parts.headers, body, tracking);
        http::Response::from_parts(parts, body)
    }
}

/// Why a strictly wanted endpoint cannot take the call, or that it soon may.
fn missing<N>(seat: &Seat<N>, address: &Address) -> Look<N> {
    let notes = seat.notes();
    match notes.state {
        Connectivity::TransientFailure => {
            let why = notes.last_error.as_ref().map(ToString::to_string);
            Look::Fail(unavailable(
                why.as_deref(),
                &format!("the endpoint asked for, {address}, is not ready"),
            ))
        }
        _ => Look::Wait(Need::State),
    }
}

fn unavailable(why: Option<&str>, otherwise: &str) -> Status {
    match why {
        Some(why) => Status::unavailable(format!("{otherwise}: {why}")),
        None => Status::unavailable(otherwise),
    }
}

async fn news(ticket: &Ticket) {
    poll_fn(|cx| ticket.poll_news(cx)).await;
}
