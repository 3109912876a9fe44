//! Servers that fail are ejected, tried, and let back; and what an operator sees of it.

use std::time::Duration;

use equipoise::balancer::{OutlierDetection, Standing};
use equipoise::policy::RoundRobin;
use equipoise::{Blame, Channel, Classifier, Connectivity, EndpointStatus, Override, StatusCode};
use tonic::{Code, Request};

use crate::rig::greeter::Server;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::{endpoints, quiet, server, until};

/// Ejects for runs of failures alone.
fn runs() -> OutlierDetection {
    OutlierDetection::default()
        .with_success_rate(None)
        .with_failure_percentage(None)
        .with_slow_start(Duration::ZERO)
}

async fn channel(
    servers: &[&Server],
    detection: OutlierDetection,
    classifier: Classifier,
) -> (Channel, GreeterClient<Channel>) {
    let channel = Channel::from_endpoints(endpoints(servers))
        .policy(RoundRobin::default())
        .outlier_detection(detection)
        .classifier(classifier)
        .connect()
        .await
        .expect("the servers run");
    until("every endpoint is ready", || {
        let all = channel.endpoints();
        all.iter().all(|e| e.state == Connectivity::Ready)
    })
    .await;
    (channel.clone(), GreeterClient::new(channel))
}

fn status(channel: &Channel, server: &Server) -> EndpointStatus {
    let all = channel.endpoints();
    let found = all.into_iter().find(|e| e.address == server.address.into());
    found.expect("it is in the list")
}

fn is_ejected(channel: &Channel, server: &Server) -> bool {
    matches!(status(channel, server).standing, Standing::Ejected { .. })
}

/// A call that goes to `server` and is answered with `code`.
async fn answered(client: &mut GreeterClient<Channel>, server: &Server, code: Code) {
    let mut request = Request::new(HelloRequest {
        code: code as u32,
        ..HelloRequest::default()
    });
    request
        .extensions_mut()
        .insert(Override::strict(server.address));
    let got = client.say_hello(request).await;
    assert_eq!(got.err().map_or(Code::Ok, |status| status.code()), code);
}

#[tokio::test]
async fn five_faults_in_a_row_eject_and_a_named_call_still_gets_there() {
    let (a, b, c) = (server("a"), server("b"), server("c"));
    let (channel, mut client) = channel(&[&a, &b, &c], runs(), Classifier::default()).await;
    for _ in 0..4 {
        answered(&mut client, &a, Code::Unavailable).await;
    }
    // An answer that is the request's own fault ends the run.
    answered(&mut client, &a, Code::NotFound).await;
    answered(&mut client, &a, Code::Unavailable).await;
    assert_eq!(status(&channel, &a).standing, Standing::Admitted);
    for _ in 0..4 {
        answered(&mut client, &a, Code::Unavailable).await;
    }
    until("it is ejected", || is_ejected(&channel, &a)).await;
    until("it is shown", || {
        status(&channel, &a).state == Connectivity::TransientFailure
    })
    .await;
    let seen = status(&channel, &a);
    assert!(
        seen.why
            .as_deref()
            .is_some_and(|why| why.starts_with("ejected for")),
        "{seen:?}"
    );
    assert_eq!(channel.state(), Connectivity::Ready);
    let before = seen.picks;
    for _ in 0..60 {
        let reply = client.say_hello(HelloRequest::default()).await.unwrap();
        assert_ne!(reply.get_ref().server, "a");
    }
    assert_eq!(status(&channel, &a).picks, before);
    answered(&mut client, &a, Code::Ok).await;
    assert!(is_ejected(&channel, &a), "a call by name is no trial");
    quiet(&channel).await;
}

#[tokio::test]
async fn an_ejection_ends_in_probation_and_an_answer_ends_that() {
    let (a, b, c) = (server("a"), server("b"), server("c"));
    let detection = runs().with_base_ejection_time(Duration::from_millis(300));
    let (channel, mut client) = channel(&[&a, &b, &c], detection, Classifier::default()).await;
    for _ in 0..5 {
        answered(&mut client, &a, Code::Internal).await;
    }
    until("it is ejected", || is_ejected(&channel, &a)).await;
    until("its time has passed", || {
        status(&channel, &a).standing == Standing::Probation
    })
    .await;
    // The first of these that is picked for it hangs for a while; no other goes there meanwhile.
    let slow = || {
        let mut client = client.clone();
        async move {
            let request = HelloRequest {
                work_us: 200_000,
                ..HelloRequest::default()
            };
            client.say_hello(request).await.unwrap().into_inner().server
        }
    };
    let served = futures_util::future::join_all((0..30).map(|_| slow())).await;
    assert_eq!(
        served.iter().filter(|server| *server == "a").count(),
        1,
        "{served:?}"
    );
    until("it is back", || {
        status(&channel, &a).standing == Standing::Admitted
    })
    .await;
    let served = futures_util::future::join_all((0..30).map(|_| slow())).await;
    assert!(
        served.iter().filter(|server| *server == "a").count() >= 8,
        "{served:?}"
    );
    quiet(&channel).await;
}

/// Calls that wait while another's trial goes on are let in together when it has passed, long before the next one
/// ends.
#[tokio::test]
async fn those_who_wait_for_a_trial_go_on_when_it_has_passed() {
    let (a, b) = (server("a"), server("b"));
    let detection = runs().with_base_ejection_time(Duration::from_millis(200));
    let (channel, mut client) = channel(&[&a, &b], detection, Classifier::default()).await;
    for _ in 0..5 {
        answered(&mut client, &a, Code::Internal).await;
    }
    until("it is ejected", || is_ejected(&channel, &a)).await;
    channel.set_endpoints(endpoints(&[&a, &b])).unwrap();
    drop(b);
    until("its time has passed", || {
        status(&channel, &a).standing == Standing::Probation
    })
    .await;
    let call = |work_us| {
        let mut client = client.clone();
        let request = HelloRequest {
            work_us,
            ..HelloRequest::default()
        };
        tokio::spawn(async move { client.say_hello(request).await })
    };
    let trial = call(100_000);
    until("the trial is under way", || {
        status(&channel, &a).in_flight == 1
    })
    .await;
    let others: Vec<_> = (0..20).map(|_| call(10_000_000)).collect();
    until("the others wait", || channel.waiting() == 20).await;
    trial.await.unwrap().unwrap();
    let passed = std::time::Instant::now();
    until("all are under way", || status(&channel, &a).in_flight == 20).await;
    // Untold, the second looks after 50 ms, and each further one no sooner.
    assert!(
        passed.elapsed() < Duration::from_millis(500),
        "{:?}",
        passed.elapsed()
    );
    others.iter().for_each(tokio::task::JoinHandle::abort);
    quiet(&channel).await;
}

#[tokio::test]
async fn what_counts_as_a_fault_can_be_said() {
    let (a, b, c) = (server("a"), server("b"), server("c"));
    let classifier = Classifier::default()
        .with(StatusCode::UNAVAILABLE, Blame::Nobody)
        .with(StatusCode::ABORTED, Blame::Server);
    let (channel, mut client) = channel(&[&a, &b, &c], runs(), classifier).await;
    for _ in 0..20 {
        answered(&mut client, &a, Code::Unavailable).await;
    }
    for _ in 0..5 {
        answered(&mut client, &b, Code::Aborted).await;
    }
    until("the other is ejected", || is_ejected(&channel, &b)).await;
    assert_eq!(status(&channel, &a).standing, Standing::Admitted);
}

#[tokio::test]
async fn a_newcomer_gets_a_growing_share() {
    let (a, b) = (server("a"), server("b"));
    let channel = Channel::from_endpoints(endpoints(&[&a]))
        .policy(RoundRobin::default())
        .slow_start(Duration::from_secs(3_600))
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    channel.set_endpoints(endpoints(&[&a, &b])).unwrap();
    until("both are ready", || {
        let all = channel.endpoints();
        all.len() == 2 && all.iter().all(|e| e.state == Connectivity::Ready)
    })
    .await;
    let mut newcomer = 0;
    for _ in 0..600 {
        let reply = client.say_hello(HelloRequest::default()).await.unwrap();
        newcomer += u32::from(reply.get_ref().server == "b");
    }
    // A tenth of every second call is 30; the whole of them would be 300.
    assert!((5..=80).contains(&newcomer), "{newcomer} of 600");
}
