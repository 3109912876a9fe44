//! Imports point down: reads the sources and fails when a room imports from above itself, or when a
//! pure room names a runtime, a socket, a clock or a logger.
//!
//! What counts is what the paths say: `use` trees, `crate::` and `super::` paths inline, and names that
//! the front door re-exports, which belong to the room they come from. Comments and strings say nothing.
//! Code under `#[cfg(test)]` obeys the order of the rooms too; it may read a clock.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The house from the ground up. A room imports from rooms before it; rooms on one step not from each
/// other. The files beside `lib.rs` are the nouns; `lib.rs` stands on top of everything.
const STEPS: &[&[&str]] = &[
    &["nouns"],
    &["load"],
    &["policy", "retry"],
    &["balancer"],
    &["transport"],
    &["resolver", "probe"],
    &["channel"],
    &["lib"],
];

/// Rooms without I/O. Among the nouns, the clock is the exception that makes the rule possible.
const PURE: &[&str] = &["nouns", "load", "policy", "retry", "balancer"];
const CLOCK: &str = "src/clock.rs";

/// What pure rooms do not name, and whether their tests may.
const IMPURE: &[(&str, bool)] = &[
    ("tokio", false),
    ("tracing", false),
    ("log", false),
    ("socket2", false),
    ("h2", false),
    ("std::os::unix::net", false),
    ("std::time::Instant", true),
    ("std::time::SystemTime", true),
    ("std::thread", true),
    ("std::fs", true),
    ("std::env", true),
    ("std::process", true),
    ("crate::clock", false),
];

/// What pure rooms may name of `std::net`: addresses are data.
const ADDRESSES: &[&str] = &[
    "SocketAddr",
    "SocketAddrV4",
    "SocketAddrV6",
    "IpAddr",
    "Ipv4Addr",
    "Ipv6Addr",
];

#[test]
fn rooms_import_downwards_and_pure_rooms_stay_pure() {
    let house = House::read();
    let mut offences = Vec::new();
    for (path, text) in &house.files {
        offences.extend(house.offences(path, text));
    }
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
    assert!(
        house.files.len() > 10,
        "too few files to be the whole house"
    );
}

#[test]
fn every_room_has_a_step_and_every_step_a_room() {
    let house = House::read();
    for path in house.files.keys() {
        assert!(
            step(room(path)).is_some(),
            "{path}: give its room a step in STEPS"
        );
    }
    for room_named in STEPS.iter().copied().flatten() {
        let lived_in = house.files.keys().any(|path| room(path) == *room_named);
        assert!(lived_in, "{room_named} has a step but no file");
    }
}

/// The negative control: each of these must be flagged, or the test above proves nothing.
#[test]
fn offenders_are_flagged() {
    for (path, text, expected) in [
        ("src/load/mod.rs", "use crate::policy::Policy;", "policy"),
        (
            "src/load/a.rs",
            "use crate::{endpoint::Address, channel};",
            "channel",
        ),
        (
            "src/load/a.rs",
            "use crate::{\n  rng::Rng,\n  transport::{Slots, Slot},\n};",
            "transport",
        ),
        (
            "src/policy/a.rs",
            "fn f() { let x = crate::balancer::Balancer::new(); }",
            "balancer",
        ),
        (
            "src/policy/a.rs",
            "fn f(x: &crate::transport::Slots) {}",
            "transport",
        ),
        (
            "src/policy/a.rs",
            "use super::super::balancer::Config;",
            "balancer",
        ),
        (
            "src/policy/mod.rs",
            "mod inner { use super::super::balancer::Config; }",
            "balancer",
        ),
        ("src/policy/a.rs", "use crate::retry::Budget;", "retry"),
        ("src/retry/a.rs", "use crate::policy::Policy;", "policy"),
        ("src/retry/a.rs", "use crate::transport::Slot;", "transport"),
        ("src/retry/a.rs", "use tokio::time::sleep;", "tokio"),
        ("src/policy/a.rs", "use crate::Channel;", "channel"),
        ("src/policy/a.rs", "use crate::*;", "everything"),
        ("src/policy/a.rs", "use crate::nowhere::X;", "nowhere"),
        (
            "src/policy/a.rs",
            "#[cfg(test)]\nmod tests { use crate::balancer::Balancer; }",
            "balancer",
        ),
        ("src/endpoint.rs", "use crate::load::Load;", "load"),
        (
            "src/transport/mod.rs",
            "pub(crate) use crate::resolver::Hints;",
            "resolver",
        ),
        (
            "src/resolver/mod.rs",
            "use crate::channel::Channel as C;",
            "channel",
        ),
        (
            "src/probe/mod.rs",
            "use crate::resolver::Hints;",
            "resolver",
        ),
        ("src/balancer/mod.rs", "use tokio::time::sleep;", "tokio"),
        ("src/balancer/mod.rs", "use tokio as t;", "tokio"),
        (
            "src/balancer/mod.rs",
            "async fn f() { tokio::spawn(g()).await; }",
            "tokio",
        ),
        (
            "src/balancer/mod.rs",
            "fn f() { tracing::info!(\"x\"); }",
            "tracing",
        ),
        (
            "src/balancer/mod.rs",
            "use std::time::{Duration, Instant};",
            "Instant",
        ),
        (
            "src/balancer/mod.rs",
            "use std::{fmt, time::SystemTime as S};",
            "SystemTime",
        ),
        ("src/balancer/mod.rs", "use std::time;", "std::time"),
        ("src/balancer/mod.rs", "use std::time::*;", "std::time"),
        (
            "src/load/mod.rs",
            "fn f() { ::std::time::Instant::now(); }",
            "Instant",
        ),
        (
            "src/load/mod.rs",
            "use std::net::{SocketAddr, TcpStream};",
            "TcpStream",
        ),
        ("src/load/mod.rs", "use std::net;", "std::net"),
        (
            "src/load/mod.rs",
            "use std::os::unix::net::UnixStream;",
            "UnixStream",
        ),
        ("src/load/mod.rs", "use crate::clock::Clock;", "clock"),
        ("src/timestamp.rs", "use std::time::Instant;", "Instant"),
        (
            "src/load/mod.rs",
            "#[cfg(test)]\nmod tests { use tokio::test; }",
            "tokio",
        ),
        (
            "src/load/mod.rs",
            "const S: &str = \"//\"; use tokio::test;",
            "tokio",
        ),
        (
            "src/load/mod.rs",
            "const S: &str = r#\"\"/*\"#; const C: char = '\"'; use tokio::x;",
            "tokio",
        ),
        (
            "src/load/mod.rs",
            "#[cfg(test)]\nmod tests;\nuse std::time::Instant;",
            "Instant",
        ),
    ] {
        let offences = House::model().offences(path, text);
        let named = offences.iter().any(|offence| offence.contains(expected));
        assert!(
            named,
            "{path}: {text}\nnot flagged for {expected}: {offences:?}"
        );
    }
}

/// And the other way round: a checker that flags everything proves as little.
#[test]
fn the_innocent_are_left_alone() {
    for (path, text) in [
        (
            "src/policy/a.rs",
            "use crate::load::{Load, Scoring};\nuse super::{Member, Picker};",
        ),
        (
            "src/policy/a.rs",
            "// use crate::balancer::X;\n/* tokio::spawn /* crate::channel */ */",
        ),
        (
            "src/policy/a.rs",
            "/// [`crate::channel::Channel`] and `tokio::spawn`\nfn f() {}",
        ),
        (
            "src/policy/a.rs",
            "const T: &str = \"crate::channel tokio::spawn \\\" std::time::Instant\";",
        ),
        (
            "src/policy/a.rs",
            "#[cfg(test)]\nmod tests { use super::*; use std::time::Instant; }",
        ),
        (
            "src/policy/a.rs",
            "fn f<'a>(x: &'a str) { x.log(); tokio(); self.tracing; }",
        ),
        ("src/policy/a.rs", "use crate::Endpoint;"),
        ("src/retry/a.rs", "use crate::load::Load;"),
        (
            "src/endpoint.rs",
            "use std::net::SocketAddr; use crate::error::Error;",
        ),
        ("src/clock.rs", "use tokio::time::Instant;"),
        (
            "src/balancer/tests.rs",
            "use std::time::Instant; use super::*;",
        ),
        (
            "src/balancer/tests/lists.rs",
            "use std::time::Instant; use super::*;",
        ),
        (
            "src/channel/mod.rs",
            "use crate::{balancer, clock::Clock, resolver, transport}; use tokio::sync;",
        ),
        (
            "src/lib.rs",
            "pub use channel::Channel; pub use crate::balancer::Balancer;",
        ),
    ] {
        let offences = House::model().offences(path, text);
        assert!(offences.is_empty(), "{path}: {text}\n{offences:?}");
    }
}

/// The sources, and which room each name of the front door comes from.
struct House {
    files: BTreeMap<String, String>,
    /// Modules at the root and re-exported names, to rooms.
    names: BTreeMap<String, String>,
}

impl House {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = BTreeMap::new();
        collect(root, &root.join("src"), &mut files);
        Self::of(files)
    }

    /// A house in miniature, for the controls.
    fn model() -> Self {
        let mut files = BTreeMap::new();
        let rooms = [
            "load",
            "policy",
            "retry",
            "balancer",
            "transport",
            "resolver",
            "probe",
            "channel",
        ];
        for room in rooms {
            files.insert(format!("src/{room}/mod.rs"), String::new());
        }
        for noun in ["endpoint", "error", "rng", "timestamp", "clock"] {
            files.insert(format!("src/{noun}.rs"), String::new());
        }
        let door = "pub use channel::{Channel, Builder};\npub use endpoint::Endpoint;";
        files.insert("src/lib.rs".into(), door.into());
        Self::of(files)
    }

    fn of(files: BTreeMap<String, String>) -> Self {
        let mut names = BTreeMap::new();
        for path in files.keys() {
            let module = path["src/".len()..].split('/').next().unwrap_or_default();
            let module = module.trim_end_matches(".rs");
            names.insert(module.to_owned(), room(path).to_owned());
        }
        for found in paths(&tokens(&files["src/lib.rs"]), &[]) {
            let relative = found.path.strip_prefix("crate::").unwrap_or(&found.path);
            let origin = relative
                .split("::")
                .next()
                .and_then(|module| names.get(module));
            let name = relative.split("::").last();
            if let (true, Some(origin), Some(name)) = (found.is_use, origin.cloned(), name) {
                names.entry(name.to_owned()).or_insert(origin);
            }
        }
        Self { files, names }
    }

    /// Everything `text` does as `path` that it must not.
    fn offences(&self, path: &str, text: &str) -> Vec<String> {
        let here = room(path);
        let module: Vec<String> = path
            .trim_start_matches("src/")
            .trim_end_matches(".rs")
            .split('/')
            .filter(|part| *part != "mod" && *part != "lib")
            .map(str::to_owned)
            .collect();
        let mut offences = Vec::new();
        for found in paths(&tokens(text), &module) {
            let in_test = found.in_test || path.ends_with("/tests.rs") || path.contains("/tests/");
            let complaint = self.order(here, &found.path).or_else(|| {
                match PURE.contains(&here) && path != CLOCK {
                    true => impurity(&found, in_test),
                    false => None,
                }
            });
            offences.extend(complaint.map(|why| format!("{path}: {}: {why}", found.path)));
        }
        offences
    }

    /// Whether `here` may name `path`.
    fn order(&self, here: &str, path: &str) -> Option<String> {
        let name = path.strip_prefix("crate::")?.split("::").next()?;
        if here == "lib" {
            return None;
        }
        if name == "*" {
            return Some("takes everything, whichever room it is from".into());
        }
        let Some(there) = self.names.get(name) else {
            return Some(format!("no room of this house has {name}"));
        };
        if here != there && step(there) >= step(here) {
            return Some(format!(
                "{here} imports from {there}, which is not below it"
            ));
        }
        None
    }
}

/// Why a pure room must not name this.
fn impurity(found: &Found, in_test: bool) -> Option<String> {
    let path = found.path.as_str();
    let below = |root: &str| path == root || path.starts_with(&format!("{root}::"));
    let named = IMPURE
        .iter()
        .find(|(root, in_tests)| below(root) && !(*in_tests && in_test));
    if let Some((root, _)) = named {
        return Some(format!("pure rooms do not name {root}"));
    }
    if below("std::net") && !ADDRESSES.contains(&path.split("::").nth(2).unwrap_or_default()) {
        return Some("pure rooms name addresses of std::net, nothing else".into());
    }
    let whole = ["std", "std::time", "std::time::*", "std::*"].contains(&path);
    (found.is_use && whole && !in_test).then(|| "brings the clock along".into())
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the entry is readable").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("it lies below the root");
            let text = fs::read_to_string(&path).expect("the file is readable");
            files.insert(name.to_string_lossy().into_owned(), text);
        }
    }
}

/// The room a file is in.
fn room(path: &str) -> &str {
    match path["src/".len()..].split_once('/') {
        Some((folder, _)) => folder,
        None if path == "src/lib.rs" => "lib",
        None => "nouns",
    }
}

fn step(room: &str) -> Option<usize> {
    STEPS.iter().position(|rooms| rooms.contains(&room))
}

/// Words and signs; comments, strings and lifetimes left out, `::` as one.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 1;
                i += 2;
                while depth > 0 && i < chars.len() {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                }
            }
            'r' if at(i + 1) == '"'
                || (at(i + 1) == '#' && (at(i + 2) == '#' || at(i + 2) == '"')) =>
            {
                let hashes = (i + 1..).take_while(|&j| at(j) == '#').count();
                i += hashes + 2;
                let closes = |i: usize| at(i) == '"' && (1..=hashes).all(|j| at(i + j) == '#');
                while i < chars.len() && !closes(i) {
                    i += 1;
                }
                i += hashes + 1;
            }
            '"' => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            // A character, or else a lifetime, of which the quote alone is skipped.
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            c if c.is_alphabetic() || c == '_' => {
                let word: String = (i..)
                    .map(at)
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                i += word.chars().count();
                tokens.push(word);
            }
            ':' if at(i + 1) == ':' => {
                tokens.push("::".into());
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(c.into());
                }
                i += 1;
            }
        }
    }
    tokens
}

/// One path, with `self` and `super` worked out.
#[derive(Debug)]
struct Found {
    path: String,
    is_use: bool,
    in_test: bool,
}

/// Every path among `tokens`, read as a file that is `module`.
fn paths(tokens: &[String], module: &[String]) -> Vec<Found> {
    let is = |i: usize, text: &str| tokens.get(i).is_some_and(|token| token == text);
    let is_word = |i: usize| {
        let first = tokens.get(i).and_then(|token| token.chars().next());
        first.is_some_and(|c| c.is_alphabetic() || c == '_')
    };
    let mut found = Vec::new();
    // Braces open now: the module each one opens, and whether it holds test code.
    let mut open: Vec<(Option<String>, bool)> = Vec::new();
    let mut next_is_test = false;
    let mut opens_module = None;
    let mut i = 0;
    while i < tokens.len() {
        let in_test = next_is_test || open.iter().any(|(_, test)| *test);
        if tokens[i..]
            .iter()
            .take(7)
            .eq(["#", "[", "cfg", "(", "test", ")", "]"])
        {
            next_is_test = true;
            i += 7;
        } else if is(i, "{") {
            open.push((opens_module.take(), std::mem::take(&mut next_is_test)));
            i += 1;
        } else if is(i, "}") {
            open.pop();
            i += 1;
        } else if is(i, ";") {
            next_is_test = false;
            i += 1;
        } else if is(i, "mod") && is(i + 2, "{") {
            opens_module = Some(tokens[i + 1].clone());
            i += 2;
        } else if is(i, "use") {
            let inner = open.iter().filter_map(|(module, _)| module.clone());
            let module: Vec<String> = module.iter().cloned().chain(inner).collect();
            let mut trees = Vec::new();
            i = tree(tokens, i + 1, &[], &mut trees);
            found.extend(trees.into_iter().map(|path| Found {
                path: resolve(&path, &module),
                is_use: true,
                in_test,
            }));
        } else if is_word(i) && (is(i + 1, "::") || is(i + 1, "!")) && !is(i.wrapping_sub(1), ".") {
            let inner = open.iter().filter_map(|(module, _)| module.clone());
            let module: Vec<String> = module.iter().cloned().chain(inner).collect();
            let mut path = vec![tokens[i].clone()];
            i += 1;
            while is(i, "::") && is_word(i + 1) {
                path.push(tokens[i + 1].clone());
                i += 2;
            }
            // A macro or a path of one word says nothing of where it is from.
            if path.len() > 1 {
                found.push(Found {
                    path: resolve(&path, &module),
                    is_use: false,
                    in_test,
                });
            }
        } else {
            i += 1;
        }
    }
    found
}

/// Reads a `use` tree that continues `prefix` at `i`; gives the index after it.
fn tree(tokens: &[String], mut i: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(i).map(String::as_str) {
            Some("{") => {
                i += 1;
                while tokens.get(i).is_some_and(|token| token != "}") {
                    i = tree(tokens, i, &path, found);
                    if tokens.get(i).is_some_and(|token| token == ",") {
                        i += 1;
                    }
                }
                return i + 1;
            }
            Some("," | "}" | ";") | None => {
                found.push(path);
                return i;
            }
            Some("as") => i += 2,
            Some("::") => i += 1,
            Some("self") if !path.is_empty() => i += 1,
            Some(word) => {
                path.push(word.to_owned());
                i += 1;
            }
        }
    }
}

/// The path from the root of the crate, or as it is when it leads elsewhere.
fn resolve(path: &[String], module: &[String]) -> String {
    let relative = path
        .iter()
        .take_while(|part| *part == "super" || *part == "self");
    let (ups, skipped) = relative.fold((0, 0), |(ups, skipped), part| {
        (ups + usize::from(part == "super"), skipped + 1)
    });
    if skipped == 0 {
        return path.join("::");
    }
    let base = &module[..module.len().saturating_sub(ups)];
    let whole = std::iter::once("crate")
        .chain(base.iter().map(String::as_str))
        .chain(path[skipped..].iter().map(String::as_str));
    whole.collect::<Vec<_>>().join("::")
}
