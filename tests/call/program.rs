//! The program as a process: its status, its last line, and what it sends.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener as Listener, TcpSocket};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;

use super::arguments::USAGE;
use super::rig::tls::{Acceptor, Ca};

/// Where cargo puts the example that belongs to this test, once it is up to date.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // `<target>/<profile>/deps/call-<hash>`: cargo names the folder of binaries only, and not this one.
        let test = std::env::current_exe().expect("a running binary knows its path");
        let profile = test.ancestors().nth(2).expect("tests are in deps");
        let target = profile.parent().expect("profiles are in target");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "call", "--target-dir"]);
        build.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
        // What cargo told us of our own package: the build scripts of others would take it for a change.
        for (name, _) in std::env::vars() {
            if name == "OUT_DIR"
                || ["CARGO_PKG_", "CARGO_MANIFEST_"]
                    .iter()
                    .any(|p| name.starts_with(p))
            {
                build.env_remove(name);
            }
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success());
        profile.join("examples").join("call")
    })
}

fn call(arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    command.output().expect("the example was built")
}

/// The same beside a server of this process.
async fn call_meanwhile(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let run = move || call(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.expect("it ends")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it writes text")
}

/// A value of the last line.
fn value<'a>(output: &'a Output, name: &str) -> &'a str {
    let line = text(&output.stdout).lines().last().expect("a last line");
    let mut words = line.split(' ');
    assert_eq!((words.next(), words.next()), (Some("RESULT"), Some("call")));
    let pairs = words.map(|word| word.split_once('=').expect("name=value"));
    let found = pairs.into_iter().find(|(found, _)| *found == name);
    found.unwrap_or_else(|| panic!("no {name} in {line}")).1
}

fn number(output: &Output, name: &str) -> u64 {
    let value = value(output, name);
    value
        .parse()
        .unwrap_or_else(|_| panic!("{name}={value} is no number"))
}

/// A real health service that says this of itself.
async fn server(status: ServingStatus) -> SocketAddr {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("", status).await;
    let listener = Listener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    address
}

/// A port that refuses connections, and that nobody else gets while the socket is held: bound, not listening.
fn dead() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(any).expect("a free port");
    let address = socket.local_addr().expect("it is bound");
    (socket, address)
}

#[test]
fn wrong_arguments_end_with_status_2_and_nothing_is_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a real socket");
    let address = listener.local_addr().expect("it is bound").to_string();
    let wrong = super::WRONG.iter().filter(|(line, _)| !line.is_empty());
    let lines = wrong.map(|(line, said)| (line.replacen("a:1", &address, 1), *said));
    let bad_targets = [
        (String::new(), "a target is missing"),
        (format!("sttic:{address}"), "unknown scheme \"sttic\""),
        (format!("static:{address},"), "empty entry"),
        (format!("{address} --authority a/b"), "authority"),
        (
            format!("{address} --authority a --tls-ca /no/ca.pem"),
            "/no/ca.pem",
        ),
        (
            format!("{address} --authority a --tls-ca Cargo.toml"),
            "Cargo.toml",
        ),
    ];
    for (line, said) in lines.chain(bad_targets) {
        let output = call(&line.split_whitespace().collect::<Vec<_>>());
        let why = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {why}");
        assert!(
            why.starts_with("call: ") && why.contains(said),
            "{line}: {why}"
        );
        assert_eq!(why.lines().count(), 1, "{line}: {why}");
        assert_eq!(text(&output.stdout), "", "{line}");
    }
    let nobody = listener.accept().expect_err("nobody came");
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn help_is_no_error() {
    let output = call(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), USAGE);
    assert_eq!(text(&output.stderr), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_run_ends_with_status_0_and_a_result() {
    let (one, two) = (
        server(ServingStatus::Serving).await,
        server(ServingStatus::NotServing).await,
    );
    let target = format!("static:{one},{two}");
    let output = call_meanwhile(&[&target, "--calls", "200", "--policy", "round_robin"]).await;
    let all = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{all}");
    assert_eq!((number(&output, "ok"), number(&output, "failed")), (200, 0));
    assert_eq!(value(&output, "codes"), "OK:200");
    let quantiles = ["p50_us", "p99_us", "p999_us"].map(|name| number(&output, name));
    assert!(quantiles.is_sorted() && quantiles[0] > 0, "{quantiles:?}");

    let shares = value(&output, "shares").split(',');
    let shares = shares.map(|share| share.split_once('@').expect("address@fraction"));
    let (addresses, shares): (Vec<&str>, Vec<f64>) = shares
        .map(|(address, share)| (address, share.parse::<f64>().expect("a fraction")))
        .unzip();
    assert_eq!(addresses, [one.to_string(), two.to_string()]);
    assert!(
        (shares.iter().sum::<f64>() - 1.0).abs() < 0.001,
        "{shares:?}"
    );
    assert!(shares.iter().all(|share| *share > 0.0), "{shares:?}");
    // It is no failure, and it is not hidden.
    assert!(
        all.contains("  NOT_SERVING:") && all.contains("  SERVING:"),
        "{all}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_open_loop_keeps_its_schedule() {
    let address = server(ServingStatus::Serving).await.to_string();
    let begin = Instant::now();
    let output = call_meanwhile(&[&address, "--calls", "101", "--rps", "200"]).await;
    assert_eq!(number(&output, "ok"), 101, "{}", text(&output.stdout));
    assert!(begin.elapsed() >= Duration::from_millis(500));
}

/// The closed loop would have waited with it, and called 100 times what was one delay.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_holds_up_every_call_of_the_schedule() {
    const STILL: Duration = Duration::from_millis(500);
    let listener = Listener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("", ServingStatus::Serving)
        .await;
    // The first call holds up the rest.
    let slowly = tower::ServiceBuilder::new()
        .layer(tonic::service::interceptor::InterceptorLayer::new({
            let first = Arc::new(Once::new());
            move |request: tonic::Request<()>| {
                first.call_once(|| std::thread::sleep(STILL));
                Ok(request)
            }
        }))
        .service(service);
    let serving = Server::builder()
        .add_service(slowly)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);

    let output = call_meanwhile(&[&address, "--calls", "100", "--rps", "200"]).await;
    assert_eq!(number(&output, "ok"), 100, "{}", text(&output.stdout));
    // Of 100 calls due in the 0.5 s, half were due in its first half.
    assert!(number(&output, "p50_us") >= 150_000);
}

/// A name, TLS and a ring at once: `localhost` may also be an address that nobody listens on.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_called_over_tls_and_by_hash() {
    let ca = Ca::new("the rig");
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/call-ca.pem");
    std::fs::write(file, &ca.pem).expect("cargo's folder can be written to");
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("", ServingStatus::Serving)
        .await;
    let listener = Listener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming(Acceptor::new(&ca.issue(&["localhost"])).incoming(listener));
    tokio::spawn(serving);

    let target = format!("https://localhost:{port}");
    let by_hash = ["--policy", "ring_hash", "--hash-on", "x-session"];
    let arguments = [&*target, "--tls-ca", file, "--calls", "100"];
    let output = call_meanwhile(&[&arguments[..], &by_hash[..]].concat()).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(value(&output, "codes"), "OK:100");

    let elsewhere = [&*target, "--calls", "5", "--authority", "other.example"];
    let output = call_meanwhile(&[&elsewhere[..], &["--tls-ca", file]].concat()).await;
    assert_eq!(output.status.code(), Some(1), "the name is verified");
    assert_eq!(value(&output, "codes"), "UNAVAILABLE:5");
}

#[test]
fn a_dead_port_ends_with_status_1_and_a_result() {
    let (_socket, address) = dead();
    let output = call(&[&address.to_string(), "--calls", "20"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((number(&output, "ok"), number(&output, "failed")), (0, 20));
    assert_eq!(value(&output, "codes"), "UNAVAILABLE:20");
    assert_eq!(value(&output, "p50_us"), "-");
    assert_eq!(value(&output, "shares"), format!("{address}@0.0000"));
    assert!(text(&output.stdout).contains("20 UNAVAILABLE, the first: "));
}

#[test]
fn waiting_for_a_dead_port_ends_with_the_deadline() {
    let (_socket, address) = dead();
    let waiting = [
        &*address.to_string(),
        "--calls",
        "2",
        "--wait-for-ready",
        "--deadline",
        "50",
    ];
    let output = call(&waiting);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(value(&output, "codes"), "DEADLINE_EXCEEDED:2");
}
