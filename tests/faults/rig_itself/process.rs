//! A server process can be killed, frozen and ended.

use std::time::Duration;

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, tonic_endpoint};
use crate::rig::process::ServerProcess;

#[test]
fn a_process_serves_freezes_thaws_and_finishes_its_streams() {
    alone(whole_life());
}

async fn whole_life() {
    let before = Footprint::take();
    let process = ServerProcess::start(&Options::new("b1"));
    let channel = tonic_endpoint(process.address())
        .connect()
        .await
        .expect("it listens");
    let mut client = GreeterClient::new(channel);
    let reply = client
        .say_hello(HelloRequest::default())
        .await
        .expect("it serves");
    assert_eq!(reply.into_inner().server, "b1");

    process.freeze();
    let call = client.say_hello(HelloRequest::default());
    let frozen = tokio::time::timeout(Duration::from_millis(100), call).await;
    assert!(frozen.is_err(), "a stopped process answered: {frozen:?}");
    process.thaw();
    client
        .say_hello(HelloRequest::default())
        .await
        .expect("it goes on");

    let request = CountdownRequest {
        count: 50,
        pause_us: 2_000,
        ..Default::default()
    };
    let mut stream = client
        .countdown(request)
        .await
        .expect("it serves")
        .into_inner();
    process.terminate();
    let mut messages = 0;
    while stream.message().await.expect("streams finish").is_some() {
        messages += 1;
    }
    assert_eq!(messages, 50);
    assert!(process.ended().await.success());
    drop((client, stream));
    before
        .restored(Duration::from_secs(5))
        .await
        .expect("nothing is left");
}

#[test]
fn a_killed_process_refuses_and_its_port_can_be_taken_again() {
    alone(kill_and_restart());
}

async fn kill_and_restart() {
    let mut options = Options::new("b1");
    let process = ServerProcess::start(&options);
    options.listen = process.address();
    process.kill();
    let refused = std::net::TcpStream::connect(options.listen).expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(ServerProcess::start(&options).address(), options.listen);
}
