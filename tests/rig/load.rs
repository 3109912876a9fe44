//! The load: calls on a fixed schedule, or as fast as some callers can.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::StdError;
use tonic::{Code, Request, Status};

use super::greeter::proto::HelloRequest;
use super::greeter::proto::greeter_client::GreeterClient;
use super::ledger::{Call, End};
use super::{now, timer};

/// What a generated client can be put on: tonic's channels, ours, and any tower service like them.
pub trait Client:
    GrpcService<
        Body,
        Error: Into<StdError> + Send,
        Future: Send,
        ResponseBody: http_body::Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<T> Client for T where
    T: GrpcService<
            Body,
            Error: Into<StdError> + Send,
            Future: Send,
            ResponseBody: http_body::Body<Data = Bytes, Error: Into<StdError> + Send>
                              + Send
                              + 'static,
        > + Clone
        + Send
        + 'static
{
}

/// A load of unary calls.
#[derive(Clone, Debug)]
pub struct Load {
    /// The id of the first call; the others follow.
    pub first: u64,
    pub calls: u64,
    /// Calls a second.
    pub rate: u32,
    pub deadline: Duration,
    /// What each call asks for; its id is filled in.
    pub request: HelloRequest,
}

impl Default for Load {
    /// The load of the fault matrix: 10,000 calls at 2,000/s with a deadline of 1 s.
    fn default() -> Self {
        Self {
            first: 1,
            calls: 10_000,
            rate: 2_000,
            deadline: Duration::from_secs(1),
            request: HelloRequest::default(),
        }
    }
}

/// How long after its deadline a call counts as lost.
const GRACE: Duration = Duration::from_secs(10);

impl Load {
    /// So many calls, else the default.
    pub fn of(calls: u64) -> Self {
        Self {
            calls,
            ..Self::default()
        }
    }

    /// Starts each call when it is due, whatever became of those before it, and returns when all have
    /// ended or count as lost.
    pub async fn run<C: Client>(&self, client: &C) -> Vec<Call> {
        self.run_with(client.clone(), |_| ControlFlow::Continue(()))
            .await
    }

    /// The same, and asks `progress` before each call how to go on, telling how many were started: a place
    /// for a fault to happen at a fixed point of the schedule, or for the load to end early.
    pub async fn run_with<C: Client>(
        &self,
        client: C,
        mut progress: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Vec<Call> {
        let (begin, clock) = (Instant::now(), now());
        let mut calls = Vec::new();
        let mut running = JoinSet::new();
        for number in 0..self.calls {
            let after = Duration::from_secs(1) * number as u32 / self.rate;
            timer::until(begin + after).await;
            if progress(number).is_break() {
                break;
            }
            let due = clock + after;
            let id = self.first + number;
            // What is known of the call should its task never end.
            calls.push(Call {
                id,
                due,
                start: due,
                deadline: Some(self.deadline),
                end: None,
            });
            let (request, deadline, client) = (self.request(id), self.deadline, client.clone());
            running.spawn(async move { (number, call(client, request, deadline, due).await) });
            while let Some(ended) = running.try_join_next() {
                note(&mut calls, ended);
            }
        }
        let all_ended = async {
            while let Some(ended) = running.join_next().await {
                note(&mut calls, ended);
            }
        };
        // Calls that have not ended by then stay without an end: the audit counts them as lost.
        let _ = tokio::time::timeout(self.deadline + GRACE, all_ended).await;
        calls
    }

    /// Keeps `callers` calls under way until each of the calls has been made; the rate is not used.
    pub async fn run_closed<C: Client>(&self, client: &C, callers: usize) -> Vec<Call> {
        let next = Arc::new(AtomicU64::new(0));
        let mut running = JoinSet::new();
        for _ in 0..callers {
            let (load, client, next) = (self.clone(), client.clone(), next.clone());
            running.spawn(async move {
                let mut calls = Vec::new();
                loop {
                    // A counter on its own: nothing else is read in its order.
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= load.calls {
                        return calls;
                    }
                    calls.push(load.bounded(client.clone(), load.first + number).await);
                }
            });
        }
        running.join_all().await.into_iter().flatten().collect()
    }

    /// Calls at the rate from a task of its own until told to stop; the number of calls is not used.
    pub fn run_until_stopped<C: Client>(&self, client: &C) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let load = Load {
            calls: u64::from(u32::MAX),
            ..self.clone()
        };
        let (client, stopped) = (client.clone(), stop.clone());
        let task = tokio::spawn(async move {
            // A flag on its own: nothing else is read in its order.
            let progress = |_| match stopped.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            load.run_with(client, progress).await
        });
        Running { stop, task }
    }

    async fn bounded<C: Client>(&self, client: C, id: u64) -> Call {
        let due = now();
        let lost = Call {
            id,
            due,
            start: due,
            deadline: Some(self.deadline),
            end: None,
        };
        let call = call(client, self.request(id), self.deadline, due);
        tokio::time::timeout(self.deadline + GRACE, call)
            .await
            .unwrap_or(lost)
    }

    fn request(&self, id: u64) -> HelloRequest {
        HelloRequest {
            id,
            ..self.request.clone()
        }
    }
}

/// Makes one call whose request carries its id.
pub async fn call<C: Client>(
    client: C,
    request: HelloRequest,
    deadline: Duration,
    due: Duration,
) -> Call {
    let id = request.id;
    let mut request = Request::new(request);
    request.set_timeout(deadline);
    let start = now();
    let answer = GreeterClient::new(client).say_hello(request).await;
    let at = now();
    let end = match answer {
        Ok(reply) => {
            let (server, message) = (reply.into_inner().server, String::new());
            End {
                at,
                code: Code::Ok,
                server,
                not_sent: false,
                message,
            }
        }
        Err(status) => {
            let (server, message) = (String::new(), status.message().into());
            End {
                at,
                code: status.code(),
                server,
                not_sent: not_sent(&status),
                message,
            }
        }
    };
    Call {
        id,
        due,
        start,
        deadline: Some(deadline),
        end: Some(end),
    }
}

/// A load that goes on.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<Call>>,
}

impl Running {
    /// Starts no more calls and waits for the last to end.
    pub async fn stop(self) -> Vec<Call> {
        // A flag on its own: see where it is read.
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load does not panic")
    }
}

/// The error is the client's own, and it counted no attempt.
fn not_sent(status: &Status) -> bool {
    let attempts = status.metadata().get("equipoise-attempts");
    status.code() == Code::Unavailable && attempts.is_some_and(|attempts| attempts == "0")
}

/// A call whose task panicked stays without an end: it is lost.
fn note(calls: &mut [Call], ended: Result<(u64, Call), tokio::task::JoinError>) {
    if let Ok((number, call)) = ended {
        calls[number as usize] = call;
    }
}
