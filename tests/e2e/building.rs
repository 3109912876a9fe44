//! What cannot work is said when the channel is built, naming the value and the rule; never by a panic.

use std::time::Duration;

use equipoise::balancer::Backoff;
use equipoise::policy::{Adaptive, LeastRequest};
use equipoise::resolver::Dns;
use equipoise::transport::Http2Options;
use equipoise::{BalanceLayer, Builder, Channel, Endpoint, Error, Tls};

use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::tls::Ca;

fn builder() -> Builder<Channel> {
    Channel::builder("static:127.0.0.1:50051").expect("a good target")
}

fn says(error: Error, words: &[&str]) {
    assert!(error.is_config(), "{error:?}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn bad_targets() {
    for (target, rule) in [
        ("", "must not be empty"),
        ("static:127.0.0.1", "expected ip:port"),
        ("static:127.0.0.1:0", "port 0"),
        ("static:127.0.0.1:50051,,", "empty entry"),
        ("ipv4:[::1]:50051", "not an IPv4 address"),
        ("unix:", "needs a path"),
        ("http://greeter", "the port is missing"),
        ("https://greeter/path", "without path"),
    ] {
        says(
            Channel::builder(target).unwrap_err(),
            &[rule, &format!("{target:?}")],
        );
        says(BalanceLayer::builder(target).unwrap_err(), &[rule]);
    }
    // A scheme nobody knows may have a resolver of its own, so it is judged when the channel is built.
    for target in ["sttic:127.0.0.1:50051", "consul:///greeter"] {
        let error = Channel::builder(target).unwrap().build().unwrap_err();
        says(error, &["known", "static", &format!("{target:?}")]);
    }
    // And so is a name that none of ours could look up.
    for (target, rule) in [
        ("greeter", "the port is missing"),
        ("dns:///:80", "the host is missing"),
        ("gree ter:80", "white space"),
    ] {
        let build = |builder: Builder<Channel>| says(builder.build().unwrap_err(), &[rule, target]);
        build(Channel::builder(target).unwrap());
        build(Channel::builder(target).unwrap().resolver(Dns::default()));
    }
}

#[test]
fn bad_durations_and_numbers() {
    let zero = Duration::ZERO;
    let day = Duration::from_secs(86_400);
    says(
        builder().timeout(zero).build().unwrap_err(),
        &["timeout", "0ns"],
    );
    says(
        builder().connect_timeout(zero).build().unwrap_err(),
        &["connect_timeout", "0ns", "1h"],
    );
    says(
        builder().connect_timeout(day).build().unwrap_err(),
        &["connect_timeout", "86400s"],
    );
    says(
        builder().drain_deadline(2 * day).build().unwrap_err(),
        &["drain_deadline", "24h"],
    );
    says(
        builder().keep_last_good(2 * day).build().unwrap_err(),
        &["keep_last_good", "172800s", "24h"],
    );
    let dns = Dns::default().with_refresh(Duration::from_secs(1));
    says(
        builder().resolver(dns).build().unwrap_err(),
        &["refresh 1s", "min_interval, 5s"],
    );
    says(
        builder().connect_rate(0).build().unwrap_err(),
        &["connect", "rate", "0"],
    );
    says(
        builder().max_endpoints(0).build().unwrap_err(),
        &["max", "endpoints", "0"],
    );
    says(
        builder().keepalive(zero, day).build().unwrap_err(),
        &["keepalive", "0ns"],
    );
    says(
        builder().authority("not an authority").build().unwrap_err(),
        &["authority", "not an authority"],
    );
    says(
        builder().user_agent("a\u{e9}").build().unwrap_err(),
        &["user agent", "visible ASCII"],
    );
    // Options that come later do not hide what was wrong before.
    let options = Http2Options::default();
    says(
        builder().user_agent("").http2(options).build().unwrap_err(),
        &["user agent", "empty"],
    );
    // Nor do they undo what was right.
    let second = Duration::from_secs(1);
    let tls = Tls::new().with_roots_pem(Ca::new("ca").pem);
    for (shortcut, builder) in [
        ("authority", builder().authority("greeter.test")),
        ("keepalive", builder().keepalive(second, second)),
        ("user_agent", builder().user_agent("shop/2.1")),
        // In plaintext, of all things; what was called first is named.
        ("tls", builder().tls(tls).authority("greeter.test")),
    ] {
        let options = Http2Options::default();
        says(
            builder.http2(options).build().unwrap_err(),
            &[&format!("http2 would undo {shortcut}: call http2 before")],
        );
    }
    for (bad, word) in [
        (
            Backoff {
                base: zero,
                ..Backoff::default()
            },
            "base",
        ),
        (
            Backoff {
                multiplier: 0.5,
                ..Backoff::default()
            },
            "multiplier",
        ),
        (
            Backoff {
                multiplier: f64::NAN,
                ..Backoff::default()
            },
            "multiplier",
        ),
        (
            Backoff {
                jitter: 1.5,
                ..Backoff::default()
            },
            "jitter",
        ),
        (
            Backoff {
                cap: zero,
                ..Backoff::default()
            },
            "cap",
        ),
    ] {
        says(builder().backoff(bad).build().unwrap_err(), &[word]);
    }
}

#[test]
fn bad_policies_weights_and_addresses() {
    says(LeastRequest::choices(1).unwrap_err(), &["1", "2..="]);
    says(LeastRequest::choices(1_000).unwrap_err(), &["1000"]);
    says(
        Adaptive::with_window(Duration::ZERO).unwrap_err(),
        &["window", "0ns"],
    );
    says(
        Adaptive::with_window(Duration::from_secs(3_600)).unwrap_err(),
        &["window", "3600s"],
    );
    let address: equipoise::Address = "127.0.0.1:1".parse().unwrap();
    says(
        Endpoint::new(address).with_weight(0).unwrap_err(),
        &["127.0.0.1:1", "weight 0"],
    );
    says(
        "localhost:1".parse::<equipoise::Address>().unwrap_err(),
        &["localhost:1", "expected ip:port"],
    );
}

#[test]
fn a_list_that_belongs_to_a_resolver_is_not_set_by_hand() {
    let channel = Channel::builder("shop:cart")
        .unwrap()
        .resolver(crate::Undecided)
        .build()
        .unwrap();
    says(channel.set_endpoints([]).unwrap_err(), &["resolver"]);
}

/// The shortcuts change the options that were given, and nothing else of them.
#[tokio::test]
async fn options_and_shortcuts_come_to_the_same() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let head = tokio::spawn(async move {
        let (socket, from) = listener.accept().await.unwrap();
        let mut h2 = h2::server::handshake(socket).await.unwrap();
        let (request, mut answer) = h2.accept().await.unwrap().unwrap();
        let ok = http::Response::builder().header("grpc-status", "0");
        answer.send_response(ok.body(()).unwrap(), true).unwrap();
        // To the client's end, so that it hears the answer.
        while h2.accept().await.is_some() {}
        (from.ip(), request.map(|_| ()))
    });
    let local = "127.0.0.9".parse().unwrap();
    let options = Http2Options::default().with_local_address(local).unwrap();
    let channel = Channel::builder(format!("static:{address}"))
        .unwrap()
        .http2(options)
        .user_agent("shop/2.1")
        .authority("greeter.test:7")
        .keepalive(Duration::from_secs(30), Duration::from_secs(5))
        .connect()
        .await
        .unwrap();
    let mut client = GreeterClient::new(channel.clone());
    // No message: the answer is all head.
    client.say_hello(HelloRequest::default()).await.unwrap_err();
    channel.close().await;
    drop((client, channel));
    let (from, head) = tokio::time::timeout(crate::PATIENCE, head)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(from, local);
    assert_eq!(head.uri().authority().unwrap().as_str(), "greeter.test:7");
    let agent = concat!("shop/2.1 grpc-rust-equipoise/", env!("CARGO_PKG_VERSION"));
    assert_eq!(head.headers()["user-agent"], agent);
}
