//! The load client `examples/call`, run as its users run it, and the parts of it that can be asked alone.

#[path = "../../examples/call/arguments.rs"]
mod arguments;

#[path = "../rig/mod.rs"]
mod rig;

mod program;

use std::path::Path;
use std::time::Duration;

use arguments::{Options, Pace, Policy, Request};

fn read(line: &str) -> Result<Request, String> {
    arguments::read(line.split_whitespace().map(Into::into))
}

fn run(line: &str) -> Options {
    match read(line) {
        Ok(Request::Run(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn a_target_is_enough() {
    let options = run("127.0.0.1:1");
    assert_eq!(
        options,
        Options {
            target: "127.0.0.1:1".into(),
            policy: Policy::Adaptive,
            calls: 10_000,
            pace: Pace::Closed(32),
            deadline: Duration::from_secs(5),
            hash_on: None,
            wait_for_ready: false,
            tls_ca: None,
            authority: None,
        }
    );
}

#[test]
fn every_option_is_read() {
    let options = run(
        "--policy round_robin --calls=7 --rps 100000 --deadline 1 static:127.0.0.1:1 \
         --hash-on X-User --wait-for-ready --authority greeter",
    );
    assert_eq!(options.target, "static:127.0.0.1:1");
    assert_eq!(options.policy, Policy::RoundRobin);
    assert_eq!((options.calls, options.pace), (7, Pace::Open(100_000)));
    assert_eq!(options.deadline, Duration::from_millis(1));
    assert_eq!(options.hash_on.expect("it was given"), "x-user");
    assert!(options.wait_for_ready);
    assert_eq!(options.authority.as_deref(), Some("greeter"));
    assert_eq!(run("a:1 --concurrency 10000").pace, Pace::Closed(10_000));
    let tls_ca = run("a:1 --tls-ca ca.pem").tls_ca.expect("it was given");
    assert_eq!(tls_ca, Path::new("ca.pem"));
    for name in [
        "adaptive",
        "least_bandwidth",
        "least_request",
        "maglev",
        "peak_ewma",
        "pick_first",
        "random",
        "rendezvous",
        "ring_hash",
        "round_robin",
    ] {
        let policy = run(&format!("a:1 --hash-on x --policy {name}")).policy;
        assert_eq!(policy.to_string(), name);
    }
    assert_eq!(read("a:1 --calls 0 --help"), read("--calls 0"), "in order");
    assert_eq!(read("--help --calls 0"), Ok(Request::Help));
}

/// What is wrong, and what is said of it.
const WRONG: &[(&str, &str)] = &[
    ("", "a target is missing"),
    ("a:1 b:1", "one target only, and \"b:1\" is another"),
    ("a:1 --calls 0", "--calls \"0\" is not a number in 1..="),
    ("a:1 --calls ten", "--calls \"ten\" is not a number"),
    ("a:1 --calls -1", "--calls \"-1\" is not a number"),
    ("a:1 --calls", "missing argument for option '--calls'"),
    ("a:1 --concurrency 0", "--concurrency \"0\""),
    ("a:1 --concurrency 10001", "is not a number in 1..=10000"),
    ("a:1 --rps 0", "--rps \"0\" is not a number in 1..=100000"),
    (
        "a:1 --rps 5 --concurrency 5",
        "--concurrency and --rps exclude each other",
    ),
    ("a:1 --deadline 0", "--deadline \"0\""),
    (
        "a:1 --policy fastest",
        "--policy \"fastest\" is unknown; known are adaptive, ",
    ),
    ("a:1 --hash-on grpc-timeout", "reserved"),
    ("a:1 --hash-on key-bin", "ends in -bin"),
    ("a:1 --hash-on :path", "is not a metadata name"),
    (
        "a:1 --policy ring_hash",
        "--policy ring_hash needs --hash-on NAME",
    ),
    ("a:1 --wait-for-ready=yes", "--wait-for-ready"),
    ("a:1 --verbose", "--verbose"),
];

#[test]
fn what_is_wrong_is_said_in_one_line() {
    for (line, said) in WRONG {
        let why = read(line).expect_err(line);
        assert!(why.contains(said), "{line}: {why}");
        assert!(!why.contains('\n'), "{line}: {why:?}");
    }
    let broken = ["a:1", "--no\nsuch"].map(Into::into);
    let why = arguments::read(broken).expect_err("there is no such option");
    assert!(!why.contains('\n'), "{why:?}");
}
