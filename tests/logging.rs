//! What the channel logs. In a process of its own: `tracing` remembers for all threads of a process who wants
//! to hear a span, and neighbours that want none would decide that here.

#[path = "rig/frames.rs"]
mod frames;
#[path = "rig/mod.rs"]
mod rig;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use equipoise::{Channel, Endpoint};
use tonic::Request;

use frames::{FrameServer, Script, code};
use rig::greeter::proto::HelloRequest;
use rig::greeter::proto::greeter_client::GreeterClient;
use rig::greeter::{Options, Server};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs `test` on one thread, and gives what was logged meanwhile.
fn logged(test: impl Future<Output = ()>) -> String {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_writer(move || writer.clone())
        .finish();
    // One thread, so that the subscriber of this thread hears everything the channel says.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tracing::subscriber::with_default(subscriber, || runtime.block_on(test));
    let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    // Other crates log what they like at this level (h2 prints header names and values): ours is judged.
    let ours: Vec<&str> = text.lines().filter(|l| l.contains(" equipoise")).collect();
    ours.join("\n")
}

#[test]
fn a_complaint_about_pings_is_a_warning() {
    let all = logged(async {
        let server = FrameServer::start(Script::default()).await;
        let address = server.address();
        let channel = Channel::from_endpoints([Endpoint::from(address)])
            .connect()
            .await
            .unwrap();
        let peer = server.peer(0).await;
        peer.goaway(0, code::ENHANCE_YOUR_CALM, b"too_many_pings");
        peer.closed().await;
        // Another complaint is none about pings.
        let peer = server.peer(1).await;
        peer.goaway(0, code::ENHANCE_YOUR_CALM, b"too_many_things");
        peer.closed().await;
        channel.close().await;
    });
    let warnings: Vec<&str> = all.lines().filter(|l| l.contains("WARN")).collect();
    let of_pings = warnings
        .iter()
        .filter(|l| l.contains("too_many_pings") && l.contains("interval=20s"));
    assert_eq!(of_pings.count(), 1, "{all}");
}

#[test]
fn logs_tell_of_states_and_calls_and_keep_secrets() {
    let a = Server::start(Options::new("a"));
    let all = logged(async {
        let channel = Channel::from_endpoints([Endpoint::from(a.address)])
            .connect()
            .await
            .unwrap();
        let mut client = GreeterClient::new(channel.clone());
        let mut request = Request::new(HelloRequest {
            name: "canary-in-the-body".into(),
            payload: b"canary-in-the-payload".to_vec(),
            ..HelloRequest::default()
        });
        let canary = "canary-in-the-metadata".parse().unwrap();
        request.metadata_mut().insert("authorization", canary);
        let canary = tonic::metadata::MetadataValue::from_bytes(b"canary-in-binary");
        request.metadata_mut().insert_bin("x-secret-bin", canary);
        client.say_hello(request).await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), channel.close())
            .await
            .unwrap();
    });
    assert!(
        all.contains("endpoint state") && all.contains("READY"),
        "{all}"
    );
    assert!(all.contains(&a.address.to_string()), "{all}");
    assert!(
        all.contains("path=\"/equipoise.demo.v1.Greeter/SayHello\""),
        "{all}"
    );
    let served = format!("endpoint={}", a.address);
    assert!(all.contains(&served) && all.contains("attempts=1"), "{all}");
    assert!(!all.contains("canary"), "{all}");
}
