//! What cannot work is said when the channel is built, naming the value and the rule; never by a panic.

use std::time::Duration;

use equipoise::balancer::Backoff;
use equipoise::policy::{Adaptive, LeastRequest};
use equipoise::resolver::Dns;
use equipoise::{BalanceLayer, Builder, Channel, Endpoint, Error};

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
