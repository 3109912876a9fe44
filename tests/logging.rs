//! What the channel logs. In a process of its own: `tracing` remembers for all threads of a process who wants
//! to hear a span, and neighbours that want none would decide that here.

#[path = "rig/frames.rs"]
mod frames;
#[path = "rig/mod.rs"]
mod rig;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use equipoise::balancer::{OutlierDetection, Panic, Standing};
use equipoise::resolver::Dns;
use equipoise::{Channel, Endpoint, HealthCheck, Override, Resolution};
use tonic::Request;

use frames::{FrameServer, Script, code};
use rig::greeter::proto::HelloRequest;
use rig::greeter::proto::greeter_client::GreeterClient;
use rig::greeter::{Options, Server};
use rig::names::{Found, Name};

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

/// Runs `test` on one thread, so that its subscriber hears everything the channel says, and gives the lines that
/// are ours.
fn logged<T>(test: impl Future<Output = T>) -> String {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_writer(move || writer.clone())
        .finish();
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

/// D1: a resolver that fails is a line when it begins to and one when it answers again, not one for each error.
#[test]
fn a_resolver_that_fails_is_logged_once() {
    let a = Server::start(Options::new("a"));
    let name = Name::of(&[a.address]);
    let dns = Dns::default()
        .with_lookup(name.look_up())
        .with_min_interval(Duration::from_millis(1))
        .with_refresh(Duration::from_millis(2))
        .allow_loopback();
    let all = logged(async {
        let builder = Channel::builder("greeter:80").unwrap().resolver(dns);
        let channel = builder.connect().await.unwrap();
        let shown = async |what: &dyn Fn(Resolution) -> bool| {
            while !what(channel.resolution().unwrap()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        for _ in 0..2 {
            name.set(Found::Failure);
            shown(&|resolution| resolution.failures > 20).await;
            name.moves_to(&[a.address, "127.0.0.2:1".parse().unwrap()]);
            shown(&|resolution| resolution.failures == 0).await;
            name.set(Found::Gone);
            shown(&|resolution| resolution.kept_for.is_some()).await;
            let asked = name.asked();
            shown(&|_| name.asked() > asked + 20).await;
            name.moves_to(&[a.address, "169.254.169.254:80".parse().unwrap()]);
            shown(&|resolution| resolution.kept_for.is_none()).await;
            let asked = name.asked();
            shown(&|_| name.asked() > asked + 20).await;
        }
    });
    let told = |level: &str, words: &str| {
        let lines = all
            .lines()
            .filter(|l| l.contains(level) && l.contains(words));
        lines.count()
    };
    assert_eq!(told("WARN", "resolver failed"), 2, "{all}");
    assert_eq!(
        told("WARN", "found no endpoints; the last list stays"),
        2,
        "{all}"
    );
    let refused = "addresses of a name are refused name=greeter refused=1 first=169.254.169.254 rule=link-local";
    assert_eq!(told("WARN", refused), 2, "{all}");
    // The first list, and the four times that it came back.
    assert_eq!(told("INFO", " endpoint list "), 5, "{all}");
    assert!(told("DEBUG", "same endpoint list") > 40, "{all}");
}

/// What is decided over an endpoint is told with its address, once: the bad as a warning.
#[test]
fn ejection_health_and_panic_are_told() {
    let (a, b) = (
        Server::start(Options::new("a")),
        Server::start(Options::new("b")),
    );
    let detection = OutlierDetection::default()
        .with_success_rate(None)
        .with_failure_percentage(None)
        .with_base_ejection_time(Duration::from_millis(50));
    let all = logged(async {
        let list = [a.address, b.address].map(Endpoint::from);
        let channel = Channel::from_endpoints(list)
            .outlier_detection(detection)
            .health_check(HealthCheck::default())
            .panic(Panic::use_all_below(100))
            .connect()
            .await
            .unwrap();
        let standing = || {
            let all = channel.endpoints();
            let found = all.iter().find(|e| e.address == a.address.into());
            found.map(|e| e.standing)
        };
        let mut client = GreeterClient::new(channel.clone());
        let mut call = async |code: u32| {
            let mut request = Request::new(HelloRequest {
                code,
                ..HelloRequest::default()
            });
            let strict = Override::strict(a.address);
            request.extensions_mut().insert(strict);
            let _ = client.say_hello(request).await;
        };
        for _ in 0..5 {
            call(14).await;
        }
        while standing() != Some(Standing::Probation) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut client = GreeterClient::new(channel.clone());
        while standing() != Some(Standing::Admitted) {
            client.say_hello(HelloRequest::default()).await.unwrap();
        }
        tokio::time::timeout(Duration::from_secs(20), channel.close())
            .await
            .unwrap();
    });
    let told = |level: &str, words: &str| {
        let lines = all.lines();
        let told = lines.filter(|l| l.contains(level) && l.contains(words));
        told.count()
    };
    let of_a = |words: &str| format!("{words} address={}", a.address);
    assert_eq!(told("WARN", &of_a("endpoint ejected")), 1, "{all}");
    assert_eq!(told("INFO", &of_a("endpoint on probation")), 1, "{all}");
    assert_eq!(told("INFO", &of_a("endpoint admitted")), 1, "{all}");
    assert_eq!(told("INFO", &of_a("endpoint health")), 1, "{all}");
    assert_eq!(told("WARN", "has no health service"), 2, "{all}");
    let panic = "panic: too few endpoints can be used usable=1 of=2";
    assert_eq!(told("WARN", panic), 1, "{all}");
    assert_eq!(told("INFO", "panic is over usable=2 of=2"), 1, "{all}");
}
