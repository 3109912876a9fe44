//! C2 and C3: an address that is another server's now, as the addresses of pods are.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use equipoise::{Channel, Connectivity, Endpoint, Override, Tls};
use tonic::{Code, Request};

use super::{NAME, OTHER};
use crate::namespace::{network, shell};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::CountdownRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{Options, Server};
use crate::rig::ledger::{Ledger, audit};
use crate::rig::load::Load;
use crate::rig::middlebox::Middlebox;
use crate::rig::process::ServerProcess;
use crate::rig::tls::{Ca, Pair};
use crate::{clean, is_ready, reference, report, size, status, until};

/// The stream's id lies above those of the calls.
const STREAM: u64 = 1_000_000;

fn pod(address: SocketAddr, id: &str) -> Endpoint {
    Endpoint::from(address).with_id(id)
}

/// Two servers, one after the other at the same address, and a stream that is open when it changes hands. Gives what
/// was executed by whom after the list said so, and how the stream ended.
async fn changes_hands(id_after: &str, drain: Duration) -> Outcome {
    let before = Footprint::take();
    let ledger = Ledger::create();
    let options = |name: &str| Options {
        ledger: Some(ledger.path().into()),
        ..Options::new(name)
    };
    let (old, new) = (Server::start(options("old")), Server::start(options("new")));
    let address = Middlebox::before(old.address);
    let channel = Channel::from_endpoints([pod(address.address, "pod-1")])
        .drain_deadline(drain)
        .connect()
        .await
        .expect("it runs");
    let request = CountdownRequest {
        id: STREAM,
        count: u32::MAX,
        pause_us: 2_000,
        ..Default::default()
    };
    let mut stream = GreeterClient::new(channel.clone())
        .countdown(request)
        .await
        .expect("it serves")
        .into_inner();
    let load = Load::of(size::calls(1_000));
    let at = size::fault_before(load.calls);
    let (mut listed, mut applied, mut begin) = (false, None, None);
    let calls = load.run_with(channel.clone(), |number| {
        if number == at {
            // The old one still lives, as one that is about to end does.
            address.moves_to(new.address);
            let list = [pod(address.address, id_after)];
            channel.set_endpoints(list).expect("it is open");
            (listed, begin) = (true, Some(Instant::now()));
        }
        let endpoints = channel.endpoints();
        let shown = endpoints.iter().any(|e| e.endpoint.id() == Some(id_after));
        let ready = endpoints.iter().any(|e| e.state == Connectivity::Ready);
        if listed && shown && ready && applied.is_none() {
            applied = Some(number + 1);
        }
        ControlFlow::Continue(())
    });
    let read = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => unreachable!("it has no end"),
                Err(status) => return (status.code(), Instant::now()),
            }
        }
    };
    let (calls, ended) = tokio::join!(
        calls,
        tokio::time::timeout(drain * 4 + Duration::from_secs(1), read)
    );
    drop(stream);
    let mut executions = ledger.executions();
    executions.retain(|e| e.id < STREAM);
    let verdict = audit(&calls, &executions);
    println!("{verdict}");
    verdict.assert_unnoticed();
    let applied = applied.expect("it was applied under load");
    // The picker may come 5 ms after the states: ten calls and some.
    let late = executions.iter().filter(|e| e.id > applied + 20);
    let on_old = late.filter(|e| e.server == "old").count();
    let outcome = Outcome {
        on_old,
        connections: address.accepted(),
        stream: ended
            .ok()
            .map(|(code, at)| (code, at - begin.expect("it changed hands"))),
    };
    drop((old, new, address));
    clean(channel, &before).await;
    outcome
}

struct Outcome {
    on_old: usize,
    connections: usize,
    stream: Option<(Code, Duration)>,
}

/// C3: the resolver names another pod at the same address, without TLS. No call goes over the old connection any more,
/// and what is open on it has until the drain deadline.
#[test]
fn c3_another_identity_at_the_same_address() {
    alone(async {
        let drain = Duration::from_millis(700);
        let outcome = changes_hands("pod-2", drain).await;
        assert_eq!(outcome.on_old, 0, "calls on the old connection");
        assert_eq!(outcome.connections, 2);
        let (code, after) = outcome.stream.expect("it was cut off");
        assert_eq!(code, Code::Unavailable);
        assert!(after >= drain, "{after:?}");
        report("drained after", after, drain + Duration::from_millis(50));
    });
}

/// The control: with the same identity the old connection goes on, whoever is behind it.
#[test]
fn c3_control_the_same_identity_keeps_its_connection() {
    alone(async {
        let outcome = changes_hands("pod-1", Duration::from_millis(100)).await;
        assert!(outcome.on_old > 0);
        assert_eq!((outcome.connections, outcome.stream), (1, None));
    });
}

/// C2 with real addresses: the IP moves from one network namespace to another, and to another service.
#[test]
fn c2_an_ip_that_moves_between_namespaces() {
    // Two hosts on one switch, and us on it too.
    let hosts = "ip link add switch type bridge
ip addr add 10.253.8.1/24 dev switch
ip link set switch up
for host in a b; do
ip netns add $host
ip link add name port-$host type veth peer name eth0 netns $host
ip link set port-$host master switch
ip link set port-$host up
ip -n $host link set lo up
ip -n $host link set eth0 up
done
ip -n a addr add 10.253.8.9/24 dev eth0";
    if network("c::moved::c2_an_ip_that_moves_between_namespaces", hosts) {
        alone(moves_between_namespaces());
    }
}

async fn moves_between_namespaces() {
    let before = Footprint::take();
    let (ca, ledger) = (Ca::new("ca"), Ledger::create());
    let moving: SocketAddr = "10.253.8.9:7443".parse().expect("an address");
    let start = |namespace: &str, server: &str, name: &str, listen: SocketAddr| {
        let Pair { cert, key } = ca.issue(&[name]);
        let pem =
            std::env::temp_dir().join(format!("equipoise-{}-{server}.pem", std::process::id()));
        std::fs::write(&pem, format!("{cert}{key}")).expect("a temporary file");
        let options = Options {
            listen,
            ledger: Some(ledger.path().into()),
            tls: Some(pem.clone()),
            ..Options::new(server)
        };
        let process = match namespace {
            "" => ServerProcess::start(&options),
            namespace => ServerProcess::start_in(namespace, &options),
        };
        std::fs::remove_file(pem).expect("the server has read it");
        process
    };
    let here = start("", "here", NAME, "127.0.0.1:0".parse().expect("an address"));
    let a = start("a", "a", NAME, moving);
    let tls = Tls::new().with_roots_pem(ca.pem.clone());
    let second = Duration::from_secs(1);
    let channel = reference(&[here.address(), moving])
        .authority(NAME)
        .tls(tls);
    let channel = channel
        .keepalive(second / 5, second / 5)
        .build()
        .expect("in range");
    until("all are ready", || is_ready(&channel)).await;

    shell(
        "ip -n a addr del 10.253.8.9/24 dev eth0; ip -n b addr add 10.253.8.9/24 dev eth0; ip neigh flush dev switch",
    );
    let b = start("b", "b", OTHER, moving);
    let at = Instant::now();
    let load = Load::of(size::calls(1_000));
    let found_out = async {
        until("the other service was found out", || {
            let why = status(&channel, moving).why;
            why.is_some_and(|why| why.contains("another name"))
        })
        .await;
        at.elapsed()
    };
    let (calls, found_out) = tokio::join!(load.run(&channel), found_out);
    report("found out after", found_out, 2 * second);
    let verdict = ledger.audit(&calls);
    println!("{verdict}");
    verdict.assert_true();
    assert_eq!(verdict.server("b"), 0, "{verdict}");
    // The control: it serves whoever does not look.
    let fooled = super::naive(&[moving]).connect().await.expect("it runs");
    let mut request = Request::new(Default::default());
    request.extensions_mut().insert(Override::strict(moving));
    let answer = GreeterClient::new(fooled).say_hello(request).await;
    assert_eq!(answer.expect("it serves").into_inner().server, "b");
    drop((here, a, b));
    clean(channel, &before).await;
}
