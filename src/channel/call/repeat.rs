//! A call that may be carried out twice: tried again when it has failed, sent once more when it takes long.
//!
//! What to do next is for [`Attempts`] to say; here the attempts are made, side by side in the caller's own task, and the
//! first that gives a response's head is the call. The others are dropped, which cancels them.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::HeaderValue;
use http::header::HeaderName;
use tonic::Status;

use super::super::deadline::Deadline;
use super::super::replay::{self, Replay};
use super::super::routes::{Repeat, RepeatPolicy};
use super::super::shared::Shared;
use super::super::tracked::{InFlight, ResponseBody};
use super::super::trailers;
use super::{Call, Failed, Labels, Others, REFUSED_RETRIES};
use crate::endpoint::{Connectivity, EndpointId};
use crate::report::StatusCode;
use crate::retry::{Attempts, Pushback, Step};
use crate::rng;
use crate::timestamp::Timestamp;
use crate::transport::{Connection, Outgoing, Payload};

const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

type Answer<N> = Result<http::Response<ResponseBody<N>>, Status>;

/// What became of an attempt.
enum End<N: Connection> {
    /// It has its response's head, and the call is committed.
    Head(Box<(Call, http::Response<N::Body>, InFlight<N>)>),
    /// It failed, and another may do better.
    Failed {
        code: StatusCode,
        pushback: Pushback,
        answer: Box<Answer<N>>,
    },
    /// It was not sent, for want of a place in the line of those who wait; others may be under way.
    TurnedAway(Status),
    /// It failed, and so would any other.
    Final(Status),
}

/// An attempt that is under way.
struct Running<N: Connection> {
    attempt: u32,
    /// When it left for a server.
    left: Option<Timestamp>,
    future: BoxFuture<'static, End<N>>,
}

/// Where the attempts of one call have been sent, in their order.
#[derive(Debug, Default)]
pub(super) struct Trail(Mutex<Left>);

#[derive(Debug, Default)]
struct Left {
    endpoints: Vec<EndpointId>,
    /// Attempts that have left, and were not told of yet.
    news: Vec<u32>,
}

impl Trail {
    fn lock(&self) -> std::sync::MutexGuard<'_, Left> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt leaves for this endpoint.
    pub(super) fn note(&self, attempt: u32, id: EndpointId) {
        let mut left = self.lock();
        left.endpoints.push(id);
        left.news.push(attempt);
    }

    fn take_news(&self) -> Option<u32> {
        self.lock().news.pop()
    }

    fn endpoints(&self) -> Vec<EndpointId> {
        self.lock().endpoints.clone()
    }
}

/// What the call waits for.
enum News<N: Connection> {
    Left(u32),
    Ended(Running<N>, End<N>),
    /// The request is too large to be sent again.
    Overflow,
    Time,
}

/// Carries the call to its response's head, by as many attempts as it takes and may take.
pub(super) async fn run<N: Connection>(
    shared: Arc<Shared<N>>,
    call: Call,
    head: Box<http::Request<()>>,
    body: tonic::body::Body,
    repeat: Repeat,
) -> Answer<N> {
    let core = shared.core.clone();
    core.budget.call(call.now);
    let deadline = call.deadline.as_ref().map(|deadline| deadline.at);
    let mut attempts = match &repeat.policy {
        RepeatPolicy::Retry(policy) => {
            Attempts::retrying(policy, deadline, rng::remix(!call.random))
        }
        RepeatPolicy::Hedge(policy) => {
            let latency = repeat.latency.as_ref();
            let p95 = latency.and_then(|latency| latency.p95(call.now));
            Attempts::hedging(policy, p95, deadline)
        }
    };
    // Retries of the caller's own, around ours: those count too.
    let before = head.headers().get(PREVIOUS_ATTEMPTS);
    let before = before.and_then(|count| count.to_str().ok()?.parse().ok());
    let before: u32 = before.unwrap_or(0);
    let replay = Replay::new(body, core.allowance.clone());
    let trail = Arc::new(Trail::default());
    // By the numbers of the attempts, as are the readers of the request.
    let mut readers: Vec<replay::Attempt> = Vec::new();
    let mut answers: Vec<Option<Answer<N>>> = Vec::new();
    let mut running: Vec<Running<N>> = Vec::new();
    let mut chosen = None;
    let unknown = || Err(Status::internal("the attempt has no end"));
    loop {
        // Before anything else is begun: an attempt that begins later has no request to send.
        heed_overflow(&replay, &readers, &mut chosen, &mut attempts);
        let now = core.clock.now();
        let until = match attempts.poll(&core.budget, now) {
            Step::Start { attempt } => {
                let (reader, body) = replay.attempt();
                readers.push(reader);
                answers.push(None);
                let mut head = head.clone();
                if attempt > 0 {
                    let previous = HeaderValue::from(before.saturating_add(attempt));
                    head.headers_mut().insert(PREVIOUS_ATTEMPTS, previous);
                }
                let payload = Payload::Untouched(body);
                let call = call.again_at(attempt, trail.clone(), now, core.clock);
                let outgoing = Outgoing { head, payload };
                running.push(Running {
                    attempt,
                    left: None,
                    future: Box::pin(make(shared.clone(), call, outgoing)),
                });
                continue;
            }
            Step::Wait { until } => until,
            // Too large to be sent again: whatever becomes of this one.
            Step::Commit { attempt } => {
                running.retain(|other| other.attempt == attempt);
                Timestamp::MAX
            }
            Step::Finish { attempt } => {
                let answer = answers.get_mut(attempt as usize).and_then(Option::take);
                return answer.unwrap_or_else(unknown);
            }
            // Those under way say where the time went.
            Step::Expire if !running.is_empty() => Timestamp::MAX,
            Step::Expire => {
                let attempts = trail.endpoints().len() as u32;
                let labels = Labels {
                    attempts,
                    ..call.labels
                };
                return Err(labels.deadline_exceeded("between attempts", None));
            }
        };
        let wake = (until != Timestamp::MAX).then(|| core.clock.instant(until));
        let overflown = || chosen.is_none() && replay.is_committed();
        let (ended, end) = match next(&mut running, &trail, wake, overflown).await {
            News::Time | News::Overflow => continue,
            News::Left(attempt) => {
                let now = core.clock.now();
                let mut running = running.iter_mut();
                if let Some(running) = running.find(|running| running.attempt == attempt) {
                    running.left.get_or_insert(now);
                }
                attempts.handle_started(attempt, now);
                continue;
            }
            News::Ended(ended, end) => (ended, end),
        };
        let attempt = ended.attempt;
        heed_overflow(&replay, &readers, &mut chosen, &mut attempts);
        if chosen.is_some_and(|chosen| chosen != attempt) {
            // Its request was cut off in the middle: whatever it says is of no account.
            continue;
        }
        match end {
            End::Head(head) => {
                let (call, response, in_flight) = *head;
                if let Some(reader) = readers.get(attempt as usize)
                    && !replay.commit(*reader)
                {
                    // Another was chosen in this very moment.
                    continue;
                }
                let now = core.clock.now();
                if let Some(latency) = &repeat.latency {
                    // Those that lost would have taken at least as long.
                    let others = running.iter().filter_map(|running| running.left);
                    for left in ended.left.into_iter().chain(others) {
                        latency.record(now.since(left), now);
                    }
                }
                core.budget.succeeded();
                drop(running);
                return call.respond(response, in_flight);
            }
            End::Failed {
                code,
                pushback,
                answer,
            } => {
                // Committed to before it had a head; or nothing is sent any more.
                if chosen.is_some() || is_closed(&shared) {
                    return *answer;
                }
                if let Some(place) = answers.get_mut(attempt as usize) {
                    *place = Some(*answer);
                }
                let now = core.clock.now();
                attempts.handle_ended(attempt, code, pushback, &core.budget, now);
            }
            // A copy for which there is no room is no reason to give up what it was to be a copy of.
            End::TurnedAway(status) if running.is_empty() || chosen.is_some() => {
                return Err(status);
            }
            End::TurnedAway(status) => {
                if let Some(place) = answers.get_mut(attempt as usize) {
                    *place = Some(Err(status));
                }
                attempts.handle_turned_away(attempt);
            }
            End::Final(status) => return Err(status),
        }
    }
}

/// Where the request has become too large to be kept, the call is the attempt that has read the most of it.
fn heed_overflow(
    replay: &Replay,
    readers: &[replay::Attempt],
    chosen: &mut Option<u32>,
    attempts: &mut Attempts,
) {
    if chosen.is_some() || !replay.is_committed() {
        return;
    }
    let winner = replay.winner();
    let winner = readers.iter().position(|&reader| Some(reader) == winner);
    if let Some(winner) = winner {
        let winner = winner as u32;
        *chosen = Some(winner);
        attempts.handle_overflow(winner);
    }
}

/// One attempt, and what its end means for the others.
async fn make<N: Connection>(shared: Arc<Shared<N>>, mut call: Call, outgoing: Outgoing) -> End<N> {
    match call.attempt(&shared, outgoing).await {
        Err(Failed { status, others }) => match others {
            Others::Useless => End::Final(status),
            Others::UnderWay => End::TurnedAway(status),
            Others::Possible => End::Failed {
                code: StatusCode::new(status.code() as u8),
                pushback: Pushback::Unsaid,
                answer: Box::new(Err(status)),
            },
        },
        Ok((mut response, in_flight)) => {
            // A head with nothing but a status, and no body: the call failed, and the caller has seen none of it.
            let code = trailers::read(response.headers_mut());
            match code.filter(|&code| code != StatusCode::OK) {
                Some(code) => End::Failed {
                    code,
                    pushback: trailers::pushback(response.headers()),
                    answer: Box::new(call.respond(response, in_flight)),
                },
                None => End::Head(Box::new((call, response, in_flight))),
            }
        }
    }
}

fn is_closed<N: Connection>(shared: &Shared<N>) -> bool {
    shared.core.snapshot.load().state == Connectivity::Shutdown
}

/// The next thing to be known.
async fn next<N: Connection>(
    running: &mut Vec<Running<N>>,
    trail: &Trail,
    wake: Option<tokio::time::Instant>,
    overflown: impl Fn() -> bool,
) -> News<N> {
    let mut sleep = pin!(async move {
        match wake {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    });
    poll_fn(|cx| poll_next(running, trail, sleep.as_mut(), &overflown, cx)).await
}

fn poll_next<N: Connection>(
    running: &mut Vec<Running<N>>,
    trail: &Trail,
    sleep: Pin<&mut impl Future<Output = ()>>,
    overflown: &impl Fn() -> bool,
    cx: &mut Context<'_>,
) -> Poll<News<N>> {
    // What was noted by an attempt that was polled before: it waits for nobody to wake us.
    if let Some(attempt) = trail.take_news() {
        return Poll::Ready(News::Left(attempt));
    }
    for at in 0..running.len() {
        if let Poll::Ready(end) = running[at].future.as_mut().poll(cx) {
            return Poll::Ready(News::Ended(running.remove(at), end));
        }
    }
    if let Some(attempt) = trail.take_news() {
        return Poll::Ready(News::Left(attempt));
    }
    if overflown() {
        return Poll::Ready(News::Overflow);
    }
    sleep.poll(cx).map(|()| News::Time)
}

impl Call {
    /// The same call, for one more attempt that begins `now`.
    fn again_at(
        &self,
        attempt: u32,
        trail: Arc<Trail>,
        now: Timestamp,
        clock: crate::clock::Clock,
    ) -> Self {
        let deadline = self.deadline.as_ref();
        // Another endpoint each time, as long as there is one.
        let avoid = trail.endpoints();
        Self {
            now,
            random: rng::remix(self.random ^ u64::from(attempt)),
            policy: self.policy,
            key: self.key,
            deadline: deadline.map(|deadline| Deadline::at(deadline.at, clock)),
            labels: Labels {
                // Those that found nobody were not sent, and some may have been sent twice.
                attempts: avoid.len() as u32,
                ..self.labels
            },
            wait_for_ready: self.wait_for_ready,
            wanted: self.wanted.clone(),
            avoid,
            avoid_addresses: self.avoid_addresses.clone(),
            tried: None,
            uncarried: 0,
            // Only the first attempt goes elsewhere by itself when a server refuses it; later ones are paid for.
            refused: match attempt {
                0 => 0,
                _ => REFUSED_RETRIES,
            },
            span: self.span.clone(),
            trail: Some((attempt, trail)),
        }
    }
}

#[cfg(test)]
mod tests;
