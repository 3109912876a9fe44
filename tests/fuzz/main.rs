//! The fuzz targets' corpora, replayed: what was found once stays found.
//!
//! Searching for more is `fuzz/run`. The sequences of the policies are replayed where they are made, in
//! `tests/policies/ops.rs`.

mod bodies;

use std::path::{Path, PathBuf};

/// One test per target, by the target's name.
macro_rules! replayed {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target), bodies::$target::run);
        })*
    };
}

replayed! {
    hostile_server
    response_headers
    target_string
    timeouts_and_pushback
}

/// Names the input when the test fails in it.
struct Replaying(PathBuf);

impl Drop for Replaying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was {}", self.0.display());
        }
    }
}

fn replay(target: &str, run: fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = root.join("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&corpus).expect("the target has a corpus");
    let mut inputs: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the entry is readable").path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    for path in inputs {
        let input = std::fs::read(&path).expect("the input is readable");
        let replaying = Replaying(path);
        run(&input);
        drop(replaying);
    }
}
