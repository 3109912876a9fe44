//! G11: streams that live long, while the fleet doubles.

use std::time::Duration;

use equipoise::policy::{LeastRequest, Policy, RoundRobin};
use equipoise::{Channel, Endpoint};
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::balanced::{clean, ready, report, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::Options;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{HelloReply, HelloRequest};
use crate::size::figure;
use crate::{Fleet, reference, status};

/// Streams that are opened at a time: ten for each of three servers.
const STREAMS: u64 = 30;

/// A stream that goes on until it is ended.
struct Stream {
    requests: mpsc::UnboundedSender<HelloRequest>,
    replies: Streaming<HelloReply>,
}

impl Stream {
    /// Opens one, and waits for its first message.
    async fn open(channel: &Channel) -> Self {
        let (requests, asked) = mpsc::unbounded_channel();
        let first = HelloRequest {
            id: 1,
            ..HelloRequest::default()
        };
        requests.send(first).expect("the other end is here");
        let asked = stream::unfold(asked, |mut asked| async move {
            let request = asked.recv().await?;
            Some((request, asked))
        });
        let replies = GreeterClient::new(channel.clone()).chat(asked).await;
        let mut replies = replies.expect("it is served").into_inner();
        let first = replies.message().await.expect("it goes on");
        assert!(first.is_some());
        Self { requests, replies }
    }

    async fn open_all(channel: &Channel) -> Vec<Self> {
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            streams.push(Self::open(channel).await);
        }
        streams
    }

    /// Asks for no more, and waits for the server's end.
    async fn end(mut self) {
        drop(self.requests);
        let end = self.replies.message().await.expect("a good end");
        assert!(end.is_none());
    }

    async fn end_all(streams: Vec<Self>) {
        for stream in streams {
            stream.end().await;
        }
    }
}

/// The streams of each server: what the channel counts, which must be what the servers say, who are told of an end a
/// moment later.
async fn counted(channel: &Channel, fleet: &Fleet) -> Vec<u32> {
    let counts = || -> Vec<u32> {
        let addresses = fleet.addresses().into_iter();
        let listed = addresses.take(channel.endpoints().len());
        listed.map(|a| status(channel, a).in_flight).collect()
    };
    let counted = counts();
    let open = || -> Vec<u32> {
        let executions = fleet.ledger.executions();
        let names = fleet.options.iter().take(counted.len());
        let open = names.map(|options| {
            let there = executions.iter().filter(|e| e.server == options.name);
            there.filter(|e| e.end.is_none()).count() as u32
        });
        open.collect()
    };
    let since = std::time::Instant::now();
    until("the servers count as the channel does", || {
        open() == counted
    })
    .await;
    report(
        "until the servers agree",
        since.elapsed(),
        Duration::from_millis(100),
    );
    assert_eq!(counts(), counted, "it has changed by itself");
    counted
}

/// Makes calls until each of so many endpoints has had one: it is ready up to 5 ms before calls are sent to it.
async fn all_chosen(channel: &Channel, count: usize) {
    let chosen = || {
        let endpoints = channel.endpoints();
        endpoints.len() == count && endpoints.iter().all(|e| e.picks > 0)
    };
    while !chosen() {
        // Side by side, so that it is nobody's turn twice.
        let streams = [Stream::open(channel).await, Stream::open(channel).await];
        Stream::end_all(streams.into()).await;
    }
}

/// What became of the streams when three servers were joined by three more.
struct Doubled {
    /// How many of the streams that were opened then went to the new ones.
    on_new: u32,
    /// The most and the fewest on one server, when the streams from before had ended and others had been opened.
    spread: (u32, u32),
}

async fn double(policy: impl Policy + Clone + Sync + 'static) -> Doubled {
    let before = Footprint::take();
    let options = (1..=6).map(|n| Options {
        listen: ([127, 0, 0, n + 1], 0).into(),
        ..Options::new(&format!("b{n}"))
    });
    let fleet = Fleet::of(options.collect());
    let addresses = fleet.addresses();
    let channel = ready(reference(&addresses[..3]).policy(policy)).await;
    all_chosen(&channel, 3).await;
    let old = Stream::open_all(&channel).await;
    let at_first = counted(&channel, &fleet).await;

    let all = addresses.iter().copied().map(Endpoint::from);
    channel
        .set_endpoints(all)
        .expect("the list is in our hands");
    all_chosen(&channel, 6).await;
    let young = Stream::open_all(&channel).await;
    let doubled = counted(&channel, &fleet).await;
    assert_eq!(
        doubled.iter().sum::<u32>() as u64,
        2 * STREAMS,
        "{doubled:?}"
    );
    let on_new = doubled[3..].iter().sum();

    // Those from before have come to their end, and others take their place.
    Stream::end_all(old).await;
    counted(&channel, &fleet).await;
    let late = Stream::open_all(&channel).await;
    let renewed = counted(&channel, &fleet).await;
    println!("streams: {at_first:?}, then {doubled:?}, then {renewed:?}");
    let spread = (
        renewed.iter().copied().max().unwrap_or_default(),
        renewed.iter().copied().min().unwrap_or_default(),
    );
    Stream::end_all(young).await;
    Stream::end_all(late).await;
    clean(channel, fleet, &before).await;
    Doubled { on_new, spread }
}

/// G11: a stream counts until its end, so new ones go where there are few; old ones stay where they are. By the policy
/// that looks at nothing else: those that look at latency, too, may choose otherwise for good reason.
#[test]
fn g11_streams_go_to_new_servers() {
    alone(async {
        let Doubled { on_new, spread } = double(LeastRequest::full_scan()).await;
        figure("of 30 new streams on new servers", on_new, "");
        assert!(on_new >= 29, "{on_new} of {STREAMS}");
        let (most, fewest) = spread;
        let ratio = f64::from(most) / f64::from(fewest.max(1));
        figure("most over fewest streams of a server", ratio, "");
        assert!(ratio <= 1.3, "{most} and {fewest}");
    });
}

/// The control: by turns the old ones, which have ten already, get half of the new.
#[test]
fn g11_control_by_turns_the_old_get_half() {
    alone(async {
        let Doubled { on_new, .. } = double(RoundRobin::default()).await;
        assert!((13..=17).contains(&on_new), "{on_new} of {STREAMS}");
    });
}
