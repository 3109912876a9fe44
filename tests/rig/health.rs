//! What a server says of itself: `grpc.health.v1.Health`, as well or badly as a test asks for.

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::greeter::Behaviour;
use super::ledger::Writer;
use super::timer;

/// What is said to whoever watches, whatever service it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Serving,
    NotServing,
    UnknownService,
    /// The stream is opened, and nothing comes.
    Silence,
    /// That it serves; and after this time the stream ends UNAVAILABLE.
    Cut(Duration),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving => f.write_str("serving"),
            Self::NotServing => f.write_str("not_serving"),
            Self::UnknownService => f.write_str("unknown_service"),
            Self::Silence => f.write_str("silence"),
            Self::Cut(after) => write!(f, "cut/{}", after.as_nanos()),
        }
    }
}

impl FromStr for Word {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "serving" => Self::Serving,
            "not_serving" => Self::NotServing,
            "unknown_service" => Self::UnknownService,
            "silence" => Self::Silence,
            _ => {
                let nanos = text.strip_prefix("cut/").ok_or(())?;
                Self::Cut(Duration::from_nanos(nanos.parse().map_err(|_| ())?))
            }
        })
    }
}

impl Word {
    fn status(self) -> Option<ServingStatus> {
        match self {
            Self::Serving | Self::Cut(_) => Some(ServingStatus::Serving),
            Self::NotServing => Some(ServingStatus::NotServing),
            Self::UnknownService => Some(ServingStatus::ServiceUnknown),
            Self::Silence => None,
        }
    }
}

/// The health service of `server`, which says what its behaviour asks for and notes in the ledger that it was asked.
pub(super) fn service(
    behaviour: watch::Receiver<Behaviour>,
    ledger: Option<&Path>,
    server: &str,
) -> HealthServer<impl Health> {
    let ledger = ledger.map(|path| Writer::open(path, server).expect("the ledger can be opened"));
    HealthServer::new(Service { behaviour, ledger })
}

struct Service {
    behaviour: watch::Receiver<Behaviour>,
    ledger: Option<Writer>,
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Err(Status::unimplemented("only watched"))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if let Some(ledger) = &self.ledger {
            ledger.asked();
        }
        let words = Some((self.behaviour.clone(), None));
        let words = stream::unfold(words, |state| async {
            let (mut behaviour, told) = state?;
            match next(&mut behaviour, told).await? {
                Ok(word) => {
                    let answer = HealthCheckResponse {
                        status: word.status().unwrap_or_default().into(),
                    };
                    Some((Ok(answer), Some((behaviour, Some(word)))))
                }
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(words)))
    }
}

/// What is said after `told`; nothing where the server ends.
async fn next(
    behaviour: &mut watch::Receiver<Behaviour>,
    told: Option<Word>,
) -> Option<Result<Word, Status>> {
    loop {
        let word = behaviour.borrow_and_update().health?;
        if told != Some(word) && word.status().is_some() {
            return Some(Ok(word));
        }
        if let Word::Cut(after) = word {
            timer::pause(after).await;
            return Some(Err(Status::unavailable("the watch is cut")));
        }
        behaviour.changed().await.ok()?;
    }
}
