//! Makes the calls, as many at a time or as often as was asked, and tells how each one ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use equipoise::{Address, Channel, Served, WaitForReady};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::arguments::{MOST_AT_A_TIME, Options, Pace};

/// One call that is over.
#[derive(Debug)]
pub struct Ended {
    /// From its place in the schedule, or from its start where there is none.
    pub took: Duration,
    pub answer: Result<Answer, Status>,
}

/// What a server said of itself.
#[derive(Debug)]
pub struct Answer {
    /// As on the wire: a newer server may say what this program has no name for.
    pub health: i32,
    pub from: Option<Address>,
}

/// Calls under way; dropping it makes no more, and cancels those.
#[derive(Debug)]
pub struct Load {
    /// Each call as it ends, and `None` after the last.
    pub ended: mpsc::UnboundedReceiver<Ended>,
    // Where the open loop takes leave to send; closed, it ends.
    leave: Arc<Semaphore>,
    _callers: JoinSet<()>,
}

impl Load {
    /// Begins to call.
    pub fn start(channel: &Channel, options: &Options) -> Self {
        let (tell, ended) = mpsc::unbounded_channel();
        let leave = Arc::new(Semaphore::new(MOST_AT_A_TIME as usize));
        let caller = Caller {
            client: HealthClient::new(channel.clone()),
            deadline: options.deadline,
            hash_on: options.hash_on.clone(),
            wait_for_ready: options.wait_for_ready,
            tell,
        };
        let mut callers = JoinSet::new();
        match options.pace {
            Pace::Closed(at_a_time) => {
                let next = Arc::new(AtomicU64::new(0));
                for _ in 0..at_a_time {
                    callers.spawn(caller.clone().in_turn(next.clone(), options.calls));
                }
            }
            Pace::Open(rps) => {
                let (calls, leave, handle) = (options.calls, leave.clone(), Handle::current());
                // tokio's timer counts in milliseconds, which would show as latency: the schedule is kept
                // by a thread, which wakes within some tens of microseconds.
                thread::spawn(move || caller.on_schedule(rps, calls, &leave, &handle));
            }
        }
        Self {
            ended,
            leave,
            _callers: callers,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.leave.close();
    }
}

#[derive(Clone)]
struct Caller {
    client: HealthClient<Channel>,
    deadline: Duration,
    hash_on: Option<MetadataKey<Ascii>>,
    wait_for_ready: bool,
    tell: mpsc::UnboundedSender<Ended>,
}

impl Caller {
    /// The closed loop: one call after another while there are numbers left.
    async fn in_turn(mut self, next: Arc<AtomicU64>, calls: u64) {
        loop {
            // A counter on its own: nothing else is read in its order.
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= calls {
                return;
            }
            self.call(number, Instant::now()).await;
        }
    }

    /// The open loop: a call's place in the schedule does not depend on what became of others. Where too
    /// many are under way the next ones are sent late, and count from their places all the same.
    fn on_schedule(self, rps: u32, calls: u64, leave: &Arc<Semaphore>, handle: &Handle) {
        let begin = Instant::now();
        for number in 0..calls {
            let due = begin + place(number, rps);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let Ok(leave) = handle.block_on(leave.clone().acquire_owned()) else {
                return;
            };
            let (mut caller, listener) = (self.clone(), self.tell.clone());
            handle.spawn(async move {
                // Where nobody listens any more the run was ended, and the call with it.
                tokio::select! {
                    () = caller.call(number, due) => {}
                    () = listener.closed() => {}
                }
                drop(leave);
            });
        }
    }

    async fn call(&mut self, number: u64, due: Instant) {
        let mut request = Request::new(HealthCheckRequest::default());
        request.set_timeout(self.deadline);
        if self.wait_for_ready {
            request.extensions_mut().insert(WaitForReady);
        }
        if let Some(name) = &self.hash_on {
            let key = format!("key-{}", number % 1_000);
            if let Ok(key) = key.parse::<MetadataValue<Ascii>>() {
                request.metadata_mut().insert(name.clone(), key);
            }
        }
        let answer = self.client.check(request).await.map(|response| Answer {
            from: response
                .extensions()
                .get::<Served>()
                .map(|served| served.endpoint().address().clone()),
            health: response.into_inner().status,
        });
        // An error means that the run was ended.
        let _ = self.tell.send(Ended {
            took: due.elapsed(),
            answer,
        });
    }
}

/// When a call is due, from the begin.
fn place(number: u64, rps: u32) -> Duration {
    let (seconds, rest) = (number / u64::from(rps), number % u64::from(rps));
    Duration::from_secs(seconds) + Duration::from_secs(1) * rest as u32 / rps
}
