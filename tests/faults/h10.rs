//! H10: a deadline holds in each phase a call can be in, and its end is DEADLINE_EXCEEDED.

mod between;

use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use equipoise::resolver::{Hints, Resolver, Update};
use equipoise::{Channel, Connectivity, ResolveError, Target, WaitForReady};
use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream};
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};

use crate::Fleet;
use crate::balanced::{all_ready, clean, in_flight, over, ready, report, until};
use crate::frames::{self, END_HEADERS, END_STREAM, FrameServer, Script, Step, block, code, kind};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::ledger::{Call, End, Execution, Ledger, Verdict, audit};
use crate::rig::load::{Client, Load};
use crate::rig::{holes, now};

const DEADLINE: Duration = Duration::from_millis(150);
const CALLS: u64 = 50;

fn load() -> Load {
    Load {
        deadline: DEADLINE,
        rate: 1_000,
        ..Load::of(CALLS)
    }
}

/// The channel, for calls that wait for readiness.
fn patient(channel: &Channel) -> impl Client + Sync + use<> {
    let wait = |mut request: Request<()>| {
        request.extensions_mut().insert(WaitForReady);
        Ok::<_, Status>(request)
    };
    InterceptedService::new(channel.clone(), wait)
}

/// All calls ran out of time, none before it was over, and `executions` of them were taken by a server.
fn ran_out(calls: &[Call], executions: &[Execution], executed: usize) -> Verdict {
    let verdict = audit(calls, executions);
    println!("{verdict}");
    verdict.assert_true();
    assert_eq!(
        verdict.code(Code::DeadlineExceeded),
        calls.len(),
        "{verdict}"
    );
    assert_eq!(
        verdict.executed,
        [calls.len() - executed, executed, 0],
        "{verdict}"
    );
    for call in calls {
        let end = call.end.as_ref().expect("none is lost");
        let deadline = call.deadline.expect("each has one");
        assert!(end.at >= call.start + deadline, "too early: {call:?}");
    }
    report(
        "past the deadline",
        verdict.overrun,
        Duration::from_millis(20),
    );
    verdict
}

/// Calls where no server can be reached run out of time.
async fn run_out_unsent<T>(channel: Channel, hole: T, before: &Footprint) {
    let calls = load().run(&patient(&channel)).await;
    ran_out(&calls, &[], 0);
    clean(channel, hole, before).await;
}

/// Never answers.
#[derive(Debug)]
struct Silent;

impl Resolver for Silent {
    fn watch(&self, _: &Target, _: Hints) -> BoxStream<'static, Result<Update, ResolveError>> {
        Box::pin(stream::pending())
    }
}

#[test]
fn h10_while_resolving() {
    alone(async {
        let before = Footprint::take();
        let builder = Channel::builder("shop:cart").expect("a target for a resolver");
        let channel = builder.resolver(Silent).build().expect("there is one");
        run_out_unsent(channel, (), &before).await;
    });
}

#[test]
fn h10_while_connecting() {
    alone(async {
        let before = Footprint::take();
        let hole = holes::black_hole();
        let channel = over(&[hole.address]).build().expect("all is in range");
        run_out_unsent(channel, hole, &before).await;
    });
}

#[test]
fn h10_while_waiting_for_ready() {
    alone(async {
        let before = Footprint::take();
        // Connected, but SETTINGS never come.
        let hole = holes::silent();
        let channel = over(&[hole.address]).build().expect("all is in range");
        run_out_unsent(channel, hole, &before).await;
    });
}

#[test]
fn h10_while_in_backoff() {
    alone(async {
        let before = Footprint::take();
        let hole = holes::refused();
        let channel = over(&[hole.address]).build().expect("all is in range");
        until("the first attempt has failed", || {
            channel.state() == Connectivity::TransientFailure
        })
        .await;
        run_out_unsent(channel, hole, &before).await;
    });
}

/// One server, with these options.
fn one(options: Options) -> Fleet {
    Fleet::of(vec![options])
}

/// Waits until the servers have taken so many calls, and given up all but `kept` of them.
async fn given_up(ledger: &Ledger, taken: usize, kept: usize) -> Vec<Execution> {
    until("the servers have given up what ran out of time", || {
        let executions = ledger.executions();
        let open = executions.iter().filter(|e| e.end.is_none()).count();
        executions.len() == taken && open == kept
    })
    .await;
    ledger.executions()
}

#[test]
fn h10_while_in_the_queue() {
    alone(async {
        let before = Footprint::take();
        let fleet = one(Options {
            max_concurrent_streams: Some(1),
            ..Options::new("b1")
        });
        let channel = ready(over(&fleet.addresses())).await;
        let holding = HelloRequest {
            id: CALLS + 1,
            work_us: 20_000_000,
            ..Default::default()
        };
        let mut holder = GreeterClient::new(channel.clone());
        let holder = tokio::spawn(async move { holder.say_hello(holding).await });
        until("the only slot is taken", || in_flight(&channel) == 1).await;
        let calls = load().run(&channel).await;
        let mut executions = given_up(&fleet.ledger, 1, 1).await;
        executions.retain(|execution| execution.id <= CALLS);
        ran_out(&calls, &executions, 0);
        // All are out of the line, and only the holder was ever picked for.
        assert_eq!((channel.waiting(), channel.endpoints()[0].picks), (0, 1));
        holder.abort();
        // It leaves the channel's hands with the task.
        assert!(holder.await.is_err_and(|error| error.is_cancelled()));
        clean(channel, fleet, &before).await;
    });
}

#[test]
fn h10_after_the_headers_were_sent() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(Duration::from_secs(20));
        let channel = ready(over(&fleet.addresses())).await;
        let calls = load().run(&channel).await;
        let executions = given_up(&fleet.ledger, CALLS as usize, 0).await;
        ran_out(&calls, &executions, CALLS as usize);
        let cancelled = |e: &Execution| e.end.is_some_and(|(_, code)| code == Code::Cancelled);
        assert!(executions.iter().all(cancelled), "{executions:?}");
        let endpoints = channel.endpoints();
        let expired = endpoints.iter().map(|e| e.outcome(Code::DeadlineExceeded));
        assert_eq!(expired.sum::<u64>(), CALLS);
        clean(channel, fleet, &before).await;
    });
}

/// Replies without an end, read until one is none.
async fn endless(channel: Channel, id: u64) -> Call {
    let mut request = Request::new(CountdownRequest {
        id,
        count: u32::MAX,
        pause_us: 5_000,
        ..Default::default()
    });
    request.set_timeout(DEADLINE);
    let start = now();
    let replies = GreeterClient::new(channel).countdown(request).await;
    let mut replies = replies.expect("the head is there at once").into_inner();
    let mut messages = 0;
    let status = loop {
        match replies.message().await {
            Ok(reply) => messages += u32::from(reply.is_some()),
            Err(status) => break status,
        }
    };
    assert!(messages > 0, "not in mid-body: {status:?}");
    ended(id, start, status)
}

/// A request that is never complete.
async fn unfinished(channel: Channel, id: u64) -> Call {
    let first = HelloRequest {
        id,
        ..Default::default()
    };
    let messages = stream::StreamExt::chain(stream::iter([first]), stream::pending());
    let mut request = Request::new(messages);
    request.set_timeout(DEADLINE);
    let start = now();
    let answer = GreeterClient::new(channel).gather(request).await;
    ended(id, start, answer.expect_err("the request has no end"))
}

fn ended(id: u64, start: Duration, status: Status) -> Call {
    let end = End {
        at: now(),
        code: status.code(),
        server: String::new(),
        not_sent: false,
        message: status.message().into(),
    };
    Call {
        id,
        due: start,
        start,
        deadline: Some(DEADLINE),
        end: Some(end),
    }
}

async fn run_out_in_mid_body<F: Future<Output = Call>>(call: fn(Channel, u64) -> F) {
    let before = Footprint::take();
    let fleet = Fleet::start(Duration::ZERO);
    let channel = ready(over(&fleet.addresses())).await;
    assert!(all_ready(&channel));
    let calls = join_all((1..=CALLS).map(|id| call(channel.clone(), id))).await;
    let executions = given_up(&fleet.ledger, CALLS as usize, 0).await;
    ran_out(&calls, &executions, CALLS as usize);
    clean(channel, fleet, &before).await;
}

#[test]
fn h10_in_the_middle_of_the_response() {
    alone(run_out_in_mid_body(endless));
}

#[test]
fn h10_in_the_middle_of_the_request() {
    alone(run_out_in_mid_body(unfinished));
}

/// A server counts the time as well, and may end the call before our own timer has fired: tonic's with
/// CANCELLED, others with a reset. It still is the deadline that ended the call.
#[test]
fn h10_a_server_that_ends_it_first() {
    alone(async {
        let message = Step::Message(Bytes::new());
        for ending in [
            vec![Step::TrailersOnly(1)],
            vec![Step::Reset(code::CANCEL)],
            vec![Step::Headers, message.clone(), Step::Trailers(1)],
            vec![Step::Headers, message, Step::Reset(code::CANCEL)],
            // A proxy that says so below a page.
            vec![
                Step::Head(502, &[("content-type", "text/html")]),
                Step::Data(Bytes::from_static(b"late")),
                Step::LastFields(&[("grpc-status", "1")]),
            ],
        ] {
            let status = cancelled_by_server(ending.clone(), DEADLINE, DEADLINE).await;
            assert_eq!(
                status.code(),
                Code::DeadlineExceeded,
                "{ending:?}: {status:?}"
            );
            assert!(
                status.metadata().contains_key("equipoise-endpoint"),
                "{status:?}"
            );
        }
    });
}

/// Where time is left it is the server's own affair.
#[test]
fn h10_control_a_server_may_cancel_in_time() {
    alone(async {
        let ample = DEADLINE * 200;
        for ending in [
            vec![Step::TrailersOnly(1)],
            vec![
                Step::Headers,
                Step::Message(Bytes::new()),
                Step::Trailers(1),
            ],
            vec![
                Step::Head(502, &[("content-type", "text/html")]),
                Step::LastFields(&[("grpc-status", "1")]),
            ],
        ] {
            let status = cancelled_by_server(ending, ample, Duration::ZERO).await;
            assert_eq!(status.code(), Code::Cancelled, "{status:?}");
        }
    });
}

/// A call that its caller looks at first, and not again before its end has come and then for so long.
async fn cancelled_by_server(ending: Vec<Step>, deadline: Duration, unseen: Duration) -> Status {
    let before = Footprint::take();
    let server = FrameServer::start(Script {
        // By hand: an answer that is quick enough is there at the first look.
        stream: frames::stream(|_| Vec::new()),
        ..Script::default()
    })
    .await;
    let channel = ready(over(&[server.address()])).await;
    let mut request = Request::new(HelloRequest::default());
    request.set_timeout(deadline);
    let mut client = GreeterClient::new(channel.clone());
    let mut call = Box::pin(client.say_hello(request));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(call.as_mut().poll(&mut cx).is_pending());
    let peer = server.peer(0).await;
    let id = peer.wait(|frame| frame.is(kind::HEADERS)).await.stream;
    peer.play(id, ending).await;
    tokio::time::sleep(unseen).await;
    let status = call.await.expect_err("the server ended it");
    drop(client);
    clean(channel, server, &before).await;
    status
}

/// A head with a status that is not the end of the stream, against the protocol, and the stream left open: the call
/// still is over in time, and its slot, the only one, free. The control: what tonic reads after an OK in the head still
/// arrives.
#[test]
fn h10_after_a_head_that_is_not_the_end() {
    alone(async {
        let deadline = Duration::from_millis(300);
        let before = Footprint::take();
        for (status, expected) in [("0", Code::DeadlineExceeded), ("13", Code::Internal)] {
            let head = || {
                let fields = [
                    ("content-type", "application/grpc"),
                    ("grpc-status", status),
                ];
                let block = Bytes::from(block(&fields, true));
                Step::Frame(kind::HEADERS, END_HEADERS, block)
            };
            let whole = move || {
                let end = Step::Frame(kind::DATA, END_STREAM, Bytes::new());
                vec![head(), Step::Message(Bytes::new()), end]
            };
            let server = FrameServer::start(Script {
                limit: Some(1),
                stream: frames::stream(move |call| match call.nth {
                    0 => vec![Step::UntilEnd, head()],
                    _ => [vec![Step::UntilEnd], whole()].concat(),
                }),
                ..Script::default()
            })
            .await;
            let channel = ready(over(&[server.address()])).await;
            let client = GreeterClient::new(channel.clone());
            let call = |timeout| {
                let mut request = Request::new(HelloRequest::default());
                request.set_timeout(timeout);
                let mut client = client.clone();
                let call = async move { client.say_hello(request).await };
                tokio::time::timeout(frames::PATIENCE, call)
            };
            let told = call(deadline).await.expect("it hangs past its deadline");
            let told = told.expect_err("there is no message");
            assert_eq!(told.code(), expected, "{told:?}");
            let peer = server.peer(0).await;
            let reset = peer.wait(|frame| frame.is(kind::RST_STREAM)).await;
            assert_eq!(reset.code(), code::CANCEL);
            let next = call(frames::PATIENCE).await.expect("the slot is free");
            assert_eq!(next.is_ok(), status == "0", "{next:?}");
            let endpoint = &channel.endpoints()[0];
            let ended = |code| endpoint.outcome(code);
            match status {
                "0" => assert_eq!((ended(expected), ended(Code::Ok)), (1, 1), "{endpoint:?}"),
                _ => assert_eq!(ended(expected), 2, "{endpoint:?}"),
            }
            drop(client);
            clean(channel, server, &before).await;
        }
    });
}
