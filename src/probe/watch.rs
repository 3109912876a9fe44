//! What a server says of itself: `grpc.health.v1.Health/Watch` on one of our own connections (gRFC A17).

use std::marker::PhantomData;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, Stream};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::codec::Streaming;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower_service::Service;

use super::pace::Pace;
use crate::balancer::Backoff;
use crate::endpoint::Address;
use crate::report::{Health, Unfit};
use crate::rng::Rng;
use crate::transport::{Connection, Outgoing, Payload, Slot};

/// The largest answer taken, in bytes; a real one has two.
const LARGEST: usize = 4 << 10;

/// The pause after what was heard, and how many answers are read together after it. A server that says something ten
/// thousand times a second is heard a hundred times, and what it said last counts.
const BREATH: Duration = Duration::from_millis(10);
const TOGETHER: usize = 256;

/// Pauses between two looks for a free stream: the first, doubled up to the last.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// The most that is kept of what a server gives as its reason, in characters.
const REASON: usize = 200;

/// What the server at the other end of `connection` says of `service`, as it changes. It never ends by itself before
/// the connection is dropped.
pub(super) fn watch<N, H>(
    connection: Weak<H>,
    service: Arc<str>,
    address: Address,
    backoff: Backoff,
    seed: u64,
) -> impl Stream<Item = Health> + Send + 'static
where
    N: Connection,
    H: AsRef<N> + Send + Sync + 'static,
{
    let watch = Watch {
        connection,
        service,
        address,
        pace: Pace::new(backoff),
        rng: Rng::new(seed),
        state: State::Closed(Instant::now()),
        told: Health::Unknown,
        made_by: PhantomData,
    };
    stream::unfold(watch, |mut watch| async move {
        let news = watch.next().await?;
        Some((news, watch))
    })
}

struct Watch<N, H> {
    connection: Weak<H>,
    service: Arc<str>,
    address: Address,
    pace: Pace,
    rng: Rng,
    state: State,
    /// What was said last.
    told: Health,
    made_by: PhantomData<fn() -> N>,
}

enum State {
    /// To be opened at this time.
    Closed(Instant),
    Open(Box<Open>),
    /// There is nothing more to learn on this connection.
    Over,
}

struct Open {
    answers: Streaming<HealthCheckResponse>,
    since: Instant,
    answered: bool,
    /// When to listen again.
    next: Instant,
}

/// What was heard on a stream.
enum Heard {
    Status(i32),
    End(Status),
}

impl<N, H> Watch<N, H>
where
    N: Connection,
    H: AsRef<N> + Send + Sync + 'static,
{
    /// What is known now, where that is something else than before; `None` when the connection was dropped.
    async fn next(&mut self) -> Option<Health> {
        loop {
            let found = match &mut self.state {
                State::Closed(at) => {
                    sleep_until(*at).await;
                    self.open().await?
                }
                State::Open(open) => match open.listen().await {
                    Heard::Status(status) => Some(judge(status)),
                    Heard::End(status) => {
                        let lived = open.answered.then(|| open.since.elapsed());
                        Some(self.ended(&status, lived))
                    }
                },
                State::Over => std::future::pending().await,
            };
            if let Some(found) = found.filter(|found| *found != self.told) {
                self.told = found.clone();
                return Some(found);
            }
        }
    }

    /// Opens a stream. `None` when the connection was dropped; what is found, where that is known without an answer.
    async fn open(&mut self) -> Option<Option<Health>> {
        let Some(slot) = self.slot().await? else {
            tracing::warn!(
                target: "equipoise",
                address = %self.address,
                "not health-checked: the server allows a single stream, which calls need"
            );
            self.state = State::Over;
            return Some(Some(Health::Unchecked));
        };
        let call = Once {
            connection: self.connection.clone(),
            slot: Some(slot),
            made_by: self.made_by,
        };
        let mut client = HealthClient::new(call).max_decoding_message_size(LARGEST);
        let request = HealthCheckRequest {
            service: self.service.to_string(),
        };
        let since = Instant::now();
        Some(match client.watch(request).await {
            Ok(response) => {
                self.state = State::Open(Box::new(Open {
                    answers: response.into_inner(),
                    since,
                    answered: false,
                    next: since,
                }));
                None
            }
            Err(status) => Some(self.ended(&status, None)),
        })
    }

    /// A slot for the stream, as soon as there is one; nothing where calls would have none beside it.
    async fn slot(&self) -> Option<Option<Slot>> {
        let mut pause = FIRST_LOOK;
        loop {
            let slots = self.connection.upgrade()?.as_ref().as_ref().slots().clone();
            if slots.limit() == 1 {
                return Some(None);
            }
            if let Some(slot) = slots.try_reserve() {
                return Some(Some(slot));
            }
            sleep(pause).await;
            pause = LAST_LOOK.min(pause * 2);
        }
    }

    /// The stream ended, or was not opened: what that says, and what is done next. `lived` is given where the server
    /// had answered.
    fn ended(&mut self, status: &Status, lived: Option<Duration>) -> Health {
        if status.code() == Code::Unimplemented {
            tracing::warn!(
                target: "equipoise",
                address = %self.address,
                "not health-checked: the server has no health service"
            );
            self.state = State::Over;
            return Health::Unchecked;
        }
        let pause = self.pace.ended(lived, &mut self.rng);
        self.state = State::Closed(Instant::now() + pause);
        let legible = |c: char| if c.is_control() { ' ' } else { c };
        let reason: String = status.message().chars().take(REASON).map(legible).collect();
        let why = format!("{:?}: {reason}", status.code());
        Health::NotServing(Unfit::WatchEnded(why.into()))
    }
}

impl Open {
    /// The newest of what has come.
    async fn listen(&mut self) -> Heard {
        sleep_until(self.next).await;
        let mut heard = read(self.answers.message().await);
        for _ in 1..TOGETHER {
            self.answered |= matches!(heard, Heard::Status(_));
            if let Heard::End(_) = heard {
                break;
            }
            match self.answers.message().now_or_never() {
                Some(more) => heard = read(more),
                None => break,
            }
        }
        self.next = Instant::now() + BREATH;
        heard
    }
}

fn read(answer: Result<Option<HealthCheckResponse>, Status>) -> Heard {
    match answer {
        Ok(Some(answer)) => Heard::Status(answer.status),
        Ok(None) => Heard::End(Status::ok("the server ended it")),
        Err(status) => Heard::End(status),
    }
}

/// What a server's word comes to.
fn judge(status: i32) -> Health {
    match ServingStatus::try_from(status) {
        Ok(ServingStatus::Serving) => Health::Serving,
        Ok(ServingStatus::ServiceUnknown) => Health::NotServing(Unfit::UnknownService),
        // A status from after our time says no more than that it is none of those.
        Ok(ServingStatus::NotServing | ServingStatus::Unknown) | Err(_) => {
            Health::NotServing(Unfit::SaysSo)
        }
    }
}

/// A connection as tonic's clients want it, for one call in a slot reserved before.
struct Once<N, H> {
    connection: Weak<H>,
    slot: Option<Slot>,
    made_by: PhantomData<fn() -> N>,
}

impl<N, H> Service<http::Request<tonic::body::Body>> for Once<N, H>
where
    N: Connection,
    H: AsRef<N>,
{
    type Response = http::Response<N::Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let (Some(connection), Some(slot)) = (self.connection.upgrade(), self.slot.take()) else {
            let gone = Status::unavailable("the connection is in use no more");
            return std::future::ready(Err(gone)).boxed();
        };
        let (parts, body) = request.into_parts();
        let request = Outgoing {
            head: Box::new(http::Request::from_parts(parts, ())),
            payload: Payload::Untouched(body),
        };
        let call = connection.as_ref().as_ref().call(request, slot);
        call.map(|answer| answer.map_err(|error| error.status))
            .boxed()
    }
}

#[cfg(test)]
mod tests;
