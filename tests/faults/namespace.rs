//! A network of a test's own: a namespace where it may do as it likes, gone with the test.
//!
//! It takes privilege, or a kernel that lets users make namespaces; without either the test is skipped, loudly. Each
//! such test has a sibling that needs neither.

use std::process::{Command, Stdio};

use crate::size::skipped;

/// Set inside.
const INSIDE: &str = "EQUIPOISE_FAULT_NAMESPACE";
/// What the shell ends with when something cannot be set up.
const NO_SET_UP: i32 = 77;

/// What `unshare` is asked for: a network and a view of `/run`, by our own right or as the root of our own users.
const NETWORK: [&[&str]; 2] = [
    &["--net", "--mount"],
    &["--user", "--map-root-user", "--net", "--mount"],
];

/// Whether this is the inside of the namespace, so that the test is to be done. Else it has been done there, or was
/// skipped, when this returns.
pub(crate) fn network(test: &str, set_up: &str) -> bool {
    let set_up = format!("mount -t tmpfs none /run && ip link set lo up\n{set_up}");
    inside(test, &NETWORK, &set_up)
}

/// The same where the monotonic clock has run for so many seconds.
pub(crate) fn uptime(test: &str, seconds: u64) -> bool {
    let seconds = seconds.to_string();
    let wanted: &[&str] = &[
        "--time",
        "--monotonic",
        &seconds,
        "--boottime",
        &seconds,
        "--fork",
    ];
    inside(test, &[wanted], "true")
}

fn inside(test: &str, ways: &[&[&str]], set_up: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let binary = std::env::current_exe().expect("a running binary knows its path");
    let script = format!("( set -e\n{set_up}\n) || exit {NO_SET_UP}\nexec \"$0\" \"$@\"");
    let mut why = String::new();
    for way in ways {
        let mut command = Command::new("unshare");
        command.args(*way).args(["sh", "-c", &script]).arg(&binary);
        command
            .args([test, "--exact", "--nocapture"])
            .env(INSIDE, "1");
        let output = match command.stdin(Stdio::null()).output() {
            Ok(output) => output,
            Err(error) => {
                why = format!("unshare: {error}");
                break;
            }
        };
        let printed = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        // The harness of the test inside has begun; else `unshare` or the shell has failed.
        if printed.contains("running 1 test") {
            // With its figures.
            println!("{printed}");
            assert!(output.status.success(), "inside: {errors}");
            return false;
        }
        why = errors.trim().replace('\n', "; ");
    }
    skipped(test, why);
    false
}

/// Runs a shell command in the namespace we are in, after it was set up.
pub(crate) fn shell(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output();
    let output = output.expect("there is a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
}
