//! Connecting: the dials of a channel that are under way.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::balancer::AttemptId;
use crate::endpoint::{Address, Endpoint, EndpointId};
use crate::error::ConnectError;
use crate::transport::Connector;

type Dialled<C> = Result<<C as Connector>::Connection, ConnectError>;

/// What is being dialled, each in a task of its own.
pub(super) struct Dials<C: Connector> {
    connector: C,
    /// One attempt to connect: TCP, TLS and the server's settings.
    budget: Duration,
    tasks: JoinSet<(AttemptId, Dialled<C>)>,
    under_way: HashMap<AttemptId, Dial>,
}

struct Dial {
    to: (EndpointId, Address),
    task: AbortHandle,
}

impl<C: Connector> Dials<C> {
    pub(super) fn new(connector: C, budget: Duration) -> Self {
        Self {
            connector,
            budget,
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
        }
    }

    pub(super) fn begin(
        &mut self,
        attempt: AttemptId,
        id: EndpointId,
        endpoint: &Endpoint,
        address: Address,
    ) {
        let budget = self.budget;
        let connecting = self.connector.connect(endpoint, &address);
        let named = address.clone();
        let task = self.tasks.spawn(async move {
            let result = match tokio::time::timeout(budget, connecting).await {
                Ok(result) => result,
                Err(_) => Err(ConnectError::new(format!(
                    "{named}: not connected within {budget:?}"
                ))),
            };
            (attempt, result)
        });
        let to = (id, address);
        self.under_way.insert(attempt, Dial { to, task });
    }

    pub(super) fn abandon(&mut self, attempt: AttemptId) {
        if let Some(dial) = self.under_way.remove(&attempt) {
            dial.task.abort();
        }
    }

    /// Drops all of them, and what they made with them.
    pub(super) fn abandon_all(&mut self) {
        self.tasks = JoinSet::new();
        self.under_way.clear();
    }

    /// The next that ends and was not abandoned: to whom it was, and what came of it. Nothing is lost when this is
    /// dropped before it resolves.
    pub(super) async fn next(&mut self) -> (AttemptId, (EndpointId, Address), Dialled<C>) {
        loop {
            let (attempt, result) = match self.tasks.join_next().await {
                None => std::future::pending().await,
                Some(Ok(ended)) => ended,
                Some(Err(error)) => match self.broken(&error) {
                    Some(attempt) => (attempt, Err(ConnectError::new("the connector panicked"))),
                    None => continue,
                },
            };
            if let Some(dial) = self.under_way.remove(&attempt) {
                return (attempt, dial.to, result);
            }
        }
    }

    /// The attempt whose task ended without an answer, if anybody still waits for it: the connector panicked.
    fn broken(&self, error: &JoinError) -> Option<AttemptId> {
        let mut under_way = self.under_way.iter();
        let (&attempt, _) = under_way.find(|(_, dial)| dial.task.id() == error.id())?;
        Some(attempt)
    }
}
