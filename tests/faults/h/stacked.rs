//! H14: retries around retries.

use std::time::Duration;

use equipoise::MethodConfig;
use equipoise::retry::RetryPolicy;
use tonic::Code;

use super::retries::{Again, reading, repeated};
use crate::balanced::{over, ready};
use crate::rig::clean::alone;
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::tonic_endpoint;
use crate::rig::{load, now};

const MS: Duration = Duration::from_millis(1);
/// What the caller's layer makes of a call, and what the channel makes of each of these.
const OUTER: usize = 4;
const INNER: u32 = 3;

/// The counts that the server saw, of a call that the caller's own layer makes four times over `client`; none is 0.
async fn counts(outer: Option<&'static str>) -> Vec<u32> {
    let (address, mut heads) = reading().await;
    let policy = RetryPolicy::default()
        .with_max_attempts(INNER)
        .with_backoff(MS, MS);
    let config = MethodConfig::default().with_retry(policy);
    let channel = ready(repeated(over(&[address]), config)).await;
    let client = Again::new(channel, outer);
    let ended = load::call(client, HelloRequest::default(), 10_000 * MS, now()).await;
    assert_eq!(ended.end.expect("it ended").code, Code::Unavailable);
    let mut counts = Vec::new();
    while let Ok(head) = heads.try_recv() {
        let count = head.previous.map(|count| count.parse().expect("a number"));
        assert_ne!(count, Some(0), "the first has none");
        counts.push(count.unwrap_or(0));
    }
    counts
}

/// H14: a layer that says nothing of its attempts makes a new call each time, and its attempts are counted from the
/// start. One that counts is added to: what it has sent before was before each of ours, too.
#[test]
fn h14_attempts_are_counted_within_each_call_of_an_outer_layer() {
    alone(async {
        let counted = counts(None).await;
        assert_eq!(counted, [0, 1, 2].repeat(OUTER));
        let counted = counts(Some("grpc-previous-rpc-attempts")).await;
        let expected =
            (0..OUTER as u32).flat_map(|outer| (0..INNER).map(move |inner| outer + inner));
        assert_eq!(counted, expected.collect::<Vec<_>>());
    });
}

/// The control: around a client that does not count, none of them shows.
#[test]
fn h14_control_around_tonic_no_attempt_is_counted() {
    alone(async {
        let (address, mut heads) = reading().await;
        let client = Again::new(tonic_endpoint(address).connect_lazy(), None);
        let ended = load::call(client, HelloRequest::default(), 10_000 * MS, now()).await;
        assert_eq!(ended.end.expect("it ended").code, Code::Unavailable);
        for _ in 0..OUTER {
            let head = heads.try_recv().expect("four attempts");
            assert_eq!(head.previous, None);
        }
    });
}
