//! What a release promises to those who build on it: the oldest Rust, the licences, the files, the features.
//!
//! Only one Rust is at hand, so the oldest is checked by what everybody says of himself: each dependency its
//! `rust-version`, and the standard library the version that each of its items is from (clippy's
//! `incompatible_msrv`, which `Cargo.toml` turns on).

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::process::Command;

use serde_json::Value;

/// Licences under which nothing is asked of users but to keep the notices.
const ALLOWED: [&str; 9] = [
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    // The list of the web's certificate authorities.
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
];

fn cargo(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("cargo writes text")
}

fn metadata() -> Value {
    let rustc = Command::new("rustc").arg("-vV").output();
    let rustc = String::from_utf8(rustc.expect("rustc runs").stdout).expect("rustc writes text");
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: "));
    let text = cargo(&[
        "metadata",
        "--format-version=1",
        "--locked",
        "--all-features",
        // Crates of other platforms may not be on the machine.
        "--filter-platform",
        host.expect("rustc knows its host"),
    ]);
    serde_json::from_str(&text).expect("cargo writes JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn items(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// The packages that somebody who depends on this one builds, with every feature.
fn dependencies(metadata: &Value) -> Vec<&Value> {
    let by_id = |list: &'static str, from: &Value| -> BTreeMap<String, Value> {
        let items = items(&from[list]).iter();
        items
            .map(|item| (text(&item["id"]).to_owned(), item.clone()))
            .collect()
    };
    let nodes = by_id("nodes", &metadata["resolve"]);
    let root = text(&metadata["resolve"]["root"]);
    let (mut found, mut open) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(id) = open.pop() {
        for dependency in items(&nodes[&id]["deps"]) {
            let mut kinds = items(&dependency["dep_kinds"]).iter().map(|k| &k["kind"]);
            // Our own build dependencies are those of the demo, which a user does not build.
            let builds = |kind: &Value| kind.is_null() || (kind == "build" && id != root);
            let package = text(&dependency["pkg"]);
            if kinds.any(builds) && found.insert(package.to_owned()) {
                open.push(package.to_owned());
            }
        }
    }
    let packages = items(&metadata["packages"]).iter();
    let found: Vec<&Value> = packages
        .filter(|package| found.contains(text(&package["id"])))
        .collect();
    let names: BTreeSet<&str> = found.iter().map(|package| text(&package["name"])).collect();
    for name in ["tonic", "h2", "ring", "webpki-roots"] {
        assert!(names.contains(name), "{name} is missing in {names:?}");
    }
    found
}

fn ours(metadata: &Value) -> &Value {
    let root = &metadata["resolve"]["root"];
    let mut packages = items(&metadata["packages"]).iter();
    packages
        .find(|package| package["id"] == *root)
        .expect("our own is among them")
}

fn version(text: &str) -> Vec<u32> {
    let mut parts: Vec<u32> = text
        .split('.')
        .map(|part| part.parse().expect("a number"))
        .collect();
    parts.resize(3, 0);
    parts
}

#[test]
fn every_dependency_builds_with_the_oldest_rust_we_promise() {
    let metadata = metadata();
    let promised = text(&ours(&metadata)["rust_version"]);
    for package in dependencies(&metadata) {
        if let Some(needed) = package["rust_version"].as_str() {
            let name = text(&package["name"]);
            assert!(
                version(needed) <= version(promised),
                "{name} needs Rust {needed}, we promise {promised}"
            );
        }
    }
    let readme = include_str!("../README.md");
    assert!(readme.contains(&format!("Rust {promised} or newer")));
}

#[test]
fn every_licence_is_one_that_asks_nothing_of_users() {
    let metadata = metadata();
    for package in dependencies(&metadata) {
        let (name, licence) = (text(&package["name"]), package["license"].as_str());
        let licence = licence.unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_allowed(licence), "{name} is under {licence}");
    }
}

/// Whether an SPDX expression can be met by allowed licences alone.
fn is_allowed(expression: &str) -> bool {
    // The slash is how `OR` was written once.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let allowed = any(&mut words);
    assert_eq!(words.next(), None, "cannot read {expression:?}");
    allowed
}

fn any<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>) -> bool {
    let mut allowed = all(words);
    while words.next_if_eq(&"OR").is_some() {
        allowed |= all(words);
    }
    allowed
}

fn all<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>) -> bool {
    let mut allowed = one(words);
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words);
    }
    allowed
}

fn one<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let allowed = any(words);
        assert_eq!(words.next(), Some(")"));
        return allowed;
    }
    let name = words.next().expect("a licence");
    // An exception only gives more leave: `Apache-2.0 WITH LLVM-exception`.
    if words.next_if_eq(&"WITH").is_some() {
        words.next();
    }
    ALLOWED.contains(&name)
}

#[test]
fn licence_expressions_are_read() {
    for (expression, allowed) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("GPL-3.0-only AND MIT", false),
        ("MIT/Apache-2.0", true),
        ("(GPL-3.0-only OR MIT) AND Unicode-3.0", true),
        ("GPL-3.0-only OR MIT AND MPL-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
    ] {
        assert_eq!(is_allowed(expression), allowed, "{expression}");
    }
}

/// Everything else cannot be built from a package: the tests, benches and examples need the demo service, by
/// a dependency on ourselves that is not published.
#[test]
fn the_package_holds_the_library_and_its_documents() {
    let list = cargo(&["package", "--list", "--allow-dirty", "--offline"]);
    let files: Vec<&str> = list.lines().collect();
    for file in [
        "src/lib.rs",
        "build.rs",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "docs/DESIGN.md",
        "proto/equipoise/demo/v1/greeter.proto",
    ] {
        assert!(files.contains(&file), "{file} is missing in {files:?}");
    }
    let added_by_cargo = [
        ".cargo_vcs_info.json",
        "Cargo.lock",
        "Cargo.toml",
        "Cargo.toml.orig",
    ];
    for file in files {
        let ours = ["src/", "proto/", "docs/"]
            .iter()
            .any(|folder| file.starts_with(folder));
        let document = ["build.rs", "README.md", "CHANGELOG.md", "LICENSE"].contains(&file);
        let known = ours || document || added_by_cargo.contains(&file);
        assert!(known, "{file} does not belong into the package");
    }
}

#[test]
fn every_feature_is_documented() {
    let metadata = metadata();
    let features = ours(&metadata)["features"].as_object().expect("a table");
    let guide = include_str!("../src/lib.rs");
    let public = features.keys().filter(|name| !name.starts_with("__"));
    let mut seen = 0;
    for name in public.filter(|name| *name != "default") {
        let row = format!("//! | `{name}` |");
        assert!(guide.contains(&row), "src/lib.rs has no row for {name}");
        seen += 1;
    }
    assert!(seen > 0, "there are features");
    assert_eq!(features["default"], serde_json::json!([]), "none is on");
}
