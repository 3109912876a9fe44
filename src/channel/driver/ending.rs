//! How a driver ends: by `close`, with the last clone of its channel, or with its runtime.

use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::oneshot;

use crate::balancer::AttemptId;
use crate::endpoint::Connectivity;
use crate::transport::{Condition, Connector};

use super::{Command, Driver, Seats, Snapshot, sleep_until, watch};

impl<C: Connector> Driver<C> {
    /// Takes no more calls, lets those under way end, and says so.
    pub(super) async fn finish(&mut self, mut farewells: Vec<oneshot::Sender<()>>) {
        self.shut("the channel is closed");
        self.asking.stop();
        self.dials.abandon_all();
        self.probes.clear();
        let now = self.core.clock.now();
        let open: Vec<AttemptId> = self.connections.keys().copied().collect();
        for id in open {
            self.retire(id, now);
        }
        self.seats.clear();
        let mut abandoned = false;
        while !self.connections.is_empty() {
            let cut_off = self
                .cut_offs
                .first()
                .map(|&(at, _)| self.core.clock.instant(at));
            tokio::select! {
                command = self.commands.recv(), if !abandoned => match command {
                    Some(Command::Close(done)) => farewells.push(done),
                    Some(_) => {}
                    None => abandoned = true,
                },
                Some((id, condition, receiver)) = self.conditions.next() => match condition {
                    Condition::Closed(_) => {
                        if let Some(known) = self.connections.remove(&id) {
                            known.seat.settle(id);
                        }
                    }
                    _ => self.conditions.push(Box::pin(watch(id, receiver))),
                },
                () = sleep_until(cut_off) => self.cut_off(self.core.clock.now()),
            }
        }
        for done in farewells {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }

    fn shut(&self, why: &str) {
        let last = self.core.snapshot.load();
        if last.state == Connectivity::Shutdown {
            return;
        }
        self.core.snapshot.store(Arc::new(Snapshot {
            pickers: last.pickers.clone(),
            hash_on: last.hash_on.clone(),
            seats: Arc::new(Seats::new(Vec::new())),
            state: Connectivity::Shutdown,
            why: Some(why.into()),
        }));
        self.core.tell_of_snapshot();
        self.core.state.send_replace(Connectivity::Shutdown);
    }
}

/// A driver that is dropped before it finished was on a runtime that was shut down: its calls must hear of it.
impl<C: Connector> Drop for Driver<C> {
    fn drop(&mut self) {
        self.shut("the runtime it ran on was shut down");
        for seat in self.seats.iter().flatten() {
            seat.clear();
        }
    }
}
