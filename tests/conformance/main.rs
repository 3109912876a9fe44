//! Golden data: what gRPC's other implementations do, number for number. `vectors/` says of each file where its
//! numbers come from.

mod connecting;
mod hashing;
mod picking;
mod retrying;
mod ring;

use serde_json::Value;

/// All of `ring_hash.json`.
fn ring_hash() -> Value {
    parse(include_str!("vectors/ring_hash.json"))
}

/// All of `misc.json`.
fn misc() -> Value {
    parse(include_str!("vectors/misc.json"))
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("the vectors are JSON")
}

fn rows(value: &Value) -> &[Value] {
    let rows = value.as_array().expect("a list");
    assert!(!rows.is_empty(), "an empty list tests nothing");
    rows
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn whole(value: &Value) -> u64 {
    value.as_u64().expect("a whole number")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// `0x` and sixteen digits.
fn hex(value: &Value) -> u64 {
    let digits = text(value).strip_prefix("0x").expect("0x first");
    u64::from_str_radix(digits, 16).expect("a hash")
}
