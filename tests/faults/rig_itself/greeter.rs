//! The servers do what their options say.

use std::net::Ipv4Addr;
use std::time::Duration;

use tonic::Code;

use crate::rig::greeter::{Options, fails};
use crate::rig::health::Word;

#[test]
fn options_survive_the_way_to_a_child_process() {
    let plain = Options::new("b1");
    let full = Options {
        listen: (Ipv4Addr::new(127, 0, 0, 3), 4_711).into(),
        work: Duration::from_micros(1_500),
        concurrency: Some(8),
        fail: Some((Code::Unavailable, 250)),
        late_status: true,
        health: Some(Word::Cut(Duration::from_millis(200))),
        greeting: Duration::from_millis(7),
        pace: Duration::from_millis(3),
        max_concurrent_streams: Some(10),
        max_connection_age: Some(Duration::from_secs(1)),
        ledger: Some("/tmp/a b".into()),
        tls: Some("/tmp/c d".into()),
        ..plain.clone()
    };
    for options in [plain, full] {
        assert_eq!(options.to_string().parse(), Ok(options));
    }
    for word in [
        Word::Serving,
        Word::NotServing,
        Word::UnknownService,
        Word::Silence,
    ] {
        assert_eq!(word.to_string().parse(), Ok(word));
    }
    assert_eq!(
        "work=fast".parse::<Options>(),
        Err(r#"server option "work=fast": not understood"#.into())
    );
}

#[test]
fn the_share_of_failures_is_exact() {
    for share in [0, 1, 250, 999, 1_000] {
        let failed = (0..1_000).filter(|&call| fails(call, share)).count();
        assert_eq!(failed as u64, share);
    }
}
