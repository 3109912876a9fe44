//! G15: the owner of a key is away.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use equipoise::balancer::Backoff;
use equipoise::policy::{Policy, RingHash, RoundRobin};
use equipoise::{Channel, Connectivity, Served};
use tonic::{Request, Status};

use crate::balanced::{clean, over, report};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::size::{self, figure};
use crate::{Fleet, status, until};

const KEY: &str = "x-session-id";
const MS: Duration = Duration::from_millis(1);

/// A call of that session, and who served it.
async fn call(channel: &Channel, session: &str) -> Result<SocketAddr, Status> {
    let mut request = Request::new(HelloRequest::default());
    let metadata = request.metadata_mut();
    metadata.insert(KEY, session.parse().expect("plain text"));
    let mut client = GreeterClient::new(channel.clone());
    let response = client.say_hello(request).await?;
    let served = response.extensions().get::<Served>();
    let address = served.expect("ours says so").endpoint().address();
    Ok(address.to_string().parse().expect("an IP address"))
}

/// Who served one session, call by call, while its owner is away: `None` where a call failed.
struct Seen {
    owner: SocketAddr,
    meanwhile: Vec<Option<SocketAddr>>,
    /// From the owner's return, without a call in between, to its first call; none where others had the key long after.
    back: Option<Duration>,
}

async fn owner_away(policy: impl Policy + Clone + Sync + 'static) -> Seen {
    let before = Footprint::take();
    let mut fleet = Fleet::start(MS);
    let addresses = fleet.addresses();
    let backoff = Backoff {
        base: 100 * MS,
        cap: 400 * MS,
        ..Backoff::default()
    };
    let builder = over(&addresses).policy(policy).backoff(backoff);
    let channel = builder.connect().await.expect("the servers run");
    let session = format!("session {}", size::seed());
    let owner = call(&channel, &session).await.expect("it serves");
    let at = addresses.iter().position(|&a| a == owner);
    let at = at.expect("it is one of them");
    fleet.kill(at);
    let state = || status(&channel, owner).state;
    until("its loss is known", || state() != Connectivity::Ready).await;
    // A ring dials whom a call wants.
    let mut meanwhile = Vec::new();
    for _ in 0..size::calls(500) {
        meanwhile.push(call(&channel, &session).await.ok());
    }
    assert_eq!(state(), Connectivity::TransientFailure);
    fleet.restart(at);
    let begin = Instant::now();
    // Nobody calls: it is dialled all the same.
    until("it is back", || state() == Connectivity::Ready).await;
    let mut back = None;
    while back.is_none() && begin.elapsed() < Duration::from_secs(10) {
        let by = call(&channel, &session).await.expect("all are well");
        back = (by == owner).then(|| begin.elapsed());
    }
    // And it stays.
    for _ in 0..20 {
        let by = call(&channel, &session).await.expect("all are well");
        if by != owner {
            back = None;
        }
    }
    clean(channel, fleet, &before).await;
    Seen {
        owner,
        meanwhile,
        back,
    }
}

/// G15: the next on the ring stands in, always the same, and no call fails; the owner is dialled without a call that asks
/// for it, and has its key again soon.
#[test]
fn g15_the_next_on_the_ring_stands_in() {
    alone(async {
        let seen = owner_away(RingHash::on_metadata(KEY)).await;
        let failed = seen.meanwhile.iter().filter(|by| by.is_none()).count();
        figure("failed while the owner was away", failed as f64, "");
        assert_eq!(failed, 0);
        let first = seen.meanwhile[0];
        assert_ne!(first, Some(seen.owner));
        assert!(seen.meanwhile.iter().all(|&by| by == first), "it moves");
        let back = seen.back.expect("it came back to its owner, and stayed");
        report("the key is back", back, Duration::from_secs(1));
    });
}

/// The control: by turns a session has no owner, and it is seen.
#[test]
fn g15_control_by_turns_a_session_wanders() {
    alone(async {
        let seen = owner_away(RoundRobin::default()).await;
        let first = seen.meanwhile[0];
        assert!(seen.meanwhile.iter().any(|&by| by != first));
        assert_eq!(seen.back, None, "it stayed with one");
    });
}
