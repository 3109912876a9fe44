//! D1 to D3: resolvers that fail, and lists that are empty.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use equipoise::{Connectivity, WaitForReady};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tower::balance::p2c::Balance;
use tower::buffer::Buffer;
use tower::discover::Change;
use tower::load::{CompleteOnResponse, PendingRequests};

use crate::Fleet;
use crate::balanced::{clean, named, ready, report, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::tonic_endpoint;
use crate::rig::ledger::Call;
use crate::rig::load::Load;
use crate::rig::names::{Found, Name};
use crate::rig::now;
use crate::size::{self, figure};

const MS: Duration = Duration::from_millis(1);
const WORK: Duration = MS;
/// How often the names of these tests are looked up.
const REFRESH: Duration = Duration::from_millis(40);

fn code(call: &Call) -> Option<Code> {
    call.end.as_ref().map(|end| end.code)
}

/// D1, the resolver errs after a good answer. Nobody notices, and the age of the list tells. Sixty seconds
/// of it are judged in virtual time.
#[test]
fn d1_errors_after_a_good_answer() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(WORK);
        let name = Name::of(&fleet.addresses());
        let channel = ready(named(&name, REFRESH)).await;
        // Sixty seconds of errors in the full run.
        let load = Load::of(size::of(2_000, 120_000));
        let calls = load.run_with(channel.clone(), |number| {
            if number == 400 {
                name.set(Found::Failure);
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let verdict = fleet.ledger.audit(&calls);
        let stale = channel.resolution().expect("a name has a resolver");
        println!("{verdict}\n  {stale:?}");
        verdict.assert_unnoticed();
        // The errors took 0.8 s, and a list may have come just before them.
        assert!(stale.failures > 3, "{stale:?}");
        assert!(stale.age > Some(700 * MS), "{stale:?}");
        let error = stale.last_error.expect("it failed");
        assert!(error.contains("greeter.test:80: SERVFAIL"), "{error}");

        name.moves_to(&fleet.addresses());
        until("the resolver answers again", || {
            let fresh = channel.resolution().expect("a name has a resolver");
            fresh.failures == 0 && fresh.last_error.is_none()
        })
        .await;
        let fresh = channel.resolution().expect("a name has a resolver");
        assert!(fresh.age < stale.age, "{fresh:?}");
        clean(channel, fleet, &before).await;
    });
}

/// D1, the control: tower's balancer takes a discovery's error for its own end, and every call after it fails.
#[test]
fn d1_control_an_error_ends_towers_balancer() {
    alone(async {
        let fleet = Fleet::start(WORK);
        let (news, discovery) = tokio::sync::mpsc::unbounded_channel();
        for address in fleet.addresses() {
            let channel = tonic_endpoint(address).connect_lazy();
            let service = PendingRequests::new(channel, CompleteOnResponse::default());
            news.send(Ok(Change::Insert(address, service)))
                .expect("it listens");
        }
        let balance = Balance::new(UnboundedReceiverStream::new(discovery));
        let client = Buffer::<http::Request<Body>, _>::new(balance, 1_024);
        let load = Load::of(1_000);
        let calls = load.run_with(client, |number| {
            if number == 500 {
                news.send(Err(io::Error::other("SERVFAIL")))
                    .expect("it listens");
            }
            ControlFlow::Continue(())
        });
        let calls = calls.await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        verdict.assert_true();
        assert!(verdict.ok > 0, "{verdict}");
        // The buffer may hold calls from before and one that was placed already.
        let failed = |call: &Call| code(call) != Some(Code::Ok);
        assert!(calls[510..].iter().all(failed), "{verdict}");
    });
}

/// A call that waits for an endpoint as long as it may; how it ended, and after how long.
async fn patient(
    channel: equipoise::Channel,
    deadline: Duration,
) -> (Result<String, tonic::Status>, Duration) {
    let mut request = Request::new(HelloRequest::default());
    request.extensions_mut().insert(WaitForReady);
    request.set_timeout(deadline);
    let begin = Instant::now();
    let reply = GreeterClient::new(channel).say_hello(request).await;
    (reply.map(|r| r.into_inner().server), begin.elapsed())
}

/// D2, the resolver errs before anything is known. Calls that do not wait fail at once and say why; those that
/// do wait end at their deadline, or as soon as the name is found.
#[test]
fn d2_errors_before_any_answer() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(WORK);
        let name = Name::new(Found::Failure);
        let channel = named(&name, REFRESH).build().expect("all is in range");
        let begin = Instant::now();
        let calls = Load::of(100).run(&channel).await;
        assert!(begin.elapsed() >= 49 * MS, "100 calls at 2,000/s");
        for call in &calls {
            let end = call.end.as_ref().expect("it ended");
            assert_eq!((end.code, end.not_sent), (Code::Unavailable, true));
            assert!(end.message.contains("greeter.test:80: SERVFAIL"), "{end:?}");
        }
        let slowest = calls
            .iter()
            .map(|call| call.end.as_ref().unwrap().at - call.start);
        report("to fail", slowest.max().unwrap(), 50 * MS);

        let deadline = 200 * MS;
        let (reply, took) = patient(channel.clone(), deadline).await;
        let status = reply.expect_err("there is nobody");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(status.message().contains("SERVFAIL"), "{status:?}");
        assert!(took >= deadline, "{took:?}");
        report("past the deadline", took - deadline, 20 * MS);

        let waiting = tokio::spawn(patient(channel.clone(), Duration::from_secs(10)));
        until("it waits", || channel.waiting() == 1).await;
        let found = Instant::now();
        name.moves_to(&fleet.addresses());
        let (reply, _) = waiting.await.expect("it does not panic");
        reply.expect("there is somebody now");
        report(
            "from the answer to the reply",
            found.elapsed(),
            REFRESH + 50 * MS,
        );
        clean(channel, fleet, &before).await;
    });
}

/// D2, the control: tonic's balancer with nobody in it lets a call wait past its deadline, for ever.
#[test]
fn d2_control_tonic_waits_past_the_deadline() {
    alone(async {
        let (client, _changes) = Channel::balance_channel::<SocketAddr>(16);
        let mut request = Request::new(HelloRequest::default());
        request.set_timeout(20 * MS);
        let mut client = GreeterClient::new(client);
        let call = client.say_hello(request);
        let ended = tokio::time::timeout(300 * MS, call).await;
        figure("of one call, hung past its deadline", 1.0, "");
        assert!(ended.is_err(), "it ended: {ended:?}");
    });
}

/// A load during which the name is gone from call 400 on, and when that was.
async fn gone(channel: &equipoise::Channel, name: &Name) -> (Vec<Call>, Duration) {
    let mut since = None;
    let load = Load::of(2_000);
    let calls = load.run_with(channel.clone(), |number| {
        if number == 400 {
            name.set(Found::Gone);
            since = Some(now());
        }
        ControlFlow::Continue(())
    });
    (calls.await, since.expect("400 calls were made"))
}

/// What failed did so UNAVAILABLE and soon, and with no success after the first failure. When that began.
fn outage(calls: &[Call]) -> Option<Duration> {
    let first = calls.iter().position(|call| code(call) != Some(Code::Ok))?;
    for call in &calls[first..] {
        let end = call.end.as_ref().expect("it ended");
        assert_eq!(end.code, Code::Unavailable, "{end:?}");
        assert!(end.message.contains("no endpoints"), "{end:?}");
    }
    let slowest = calls[first..]
        .iter()
        .map(|call| call.end.as_ref().unwrap().at - call.start);
    report("to fail", slowest.max().unwrap_or_default(), 50 * MS);
    Some(calls[first].start)
}

/// D3, there is nobody after there was somebody. The last good list is kept for a while, and it shows.
#[test]
fn d3_an_empty_answer_after_a_good_one() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(WORK);
        let name = Name::of(&fleet.addresses());
        let keep = 400 * MS;
        let channel = ready(named(&name, REFRESH).keep_last_good(keep)).await;
        let watched = channel.clone();
        let shown = async move {
            let mut shown = None;
            until("it is said that the list is kept", || {
                shown = watched.resolution().and_then(|r| r.kept_for);
                shown.is_some()
            })
            .await;
            shown.expect("it was said")
        };
        let ((calls, since), kept_for) = tokio::join!(gone(&channel, &name), shown);
        println!("{}", fleet.ledger.audit(&calls));
        assert!(kept_for <= keep, "{kept_for:?}");
        let began = outage(&calls).expect("it does not last for ever");
        assert!(began - since >= keep, "only {:?}", began - since);
        report("past its time", began - since - keep, REFRESH + 10 * MS);
        assert_eq!(channel.state(), Connectivity::TransientFailure);
        let shown = channel.resolution().expect("a name has a resolver");
        assert_eq!((shown.kept_for, shown.failures), (None, 0), "{shown:?}");

        // And back.
        name.moves_to(&fleet.addresses());
        let (reply, _) = patient(channel.clone(), Duration::from_secs(10)).await;
        reply.expect("there is somebody again");
        clean(channel, fleet, &before).await;
    });
}

/// D3, the control: without keeping, as in gRPC, an empty answer is an outage at once.
#[test]
fn d3_control_without_keeping_an_empty_answer_takes_effect_at_once() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(WORK);
        let name = Name::of(&fleet.addresses());
        let channel = ready(named(&name, REFRESH).keep_last_good(Duration::ZERO)).await;
        let (calls, since) = gone(&channel, &name).await;
        let verdict = fleet.ledger.audit(&calls);
        println!("{verdict}");
        assert!(verdict.failed > 1_000, "{verdict}");
        let began = outage(&calls).expect("there is nobody");
        report("to the outage", began - since, REFRESH + 50 * MS);
        clean(channel, fleet, &before).await;
    });
}
