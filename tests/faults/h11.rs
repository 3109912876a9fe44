//! H11: deadlines that are no deadlines.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::{Code, Request};

use crate::frames::{FrameServer, Script, kind};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::{all_ready, clean, reference, status};

/// An hour, a billion times: more than `grpc-timeout` has digits for. tonic panics when asked to send it, so it can only be
/// the channel's own.
const AGES: Duration = Duration::from_secs(3_600 * 1_000_000_000);
/// The longest it has.
const LONG: Duration = Duration::from_secs(3_600 * 99_999_999);

/// Passed already, or before anything could be sent: nothing is.
#[test]
fn h11_deadlines_of_nothing() {
    alone(async {
        let before = Footprint::take();
        let server = FrameServer::start(Script::default()).await;
        let channel = all_ready(&[server.address()]).await;
        let mut client = GreeterClient::new(channel.clone());
        let mut call = async |deadline| {
            let mut request = Request::new(HelloRequest::default());
            request.set_timeout(deadline);
            client.say_hello(request).await
        };
        let peer = server.peer(0).await;
        for deadline in [Duration::ZERO, Duration::from_nanos(1)] {
            for _ in 0..20 {
                let told = call(deadline).await.expect_err("there is no time");
                assert_eq!(told.code(), Code::DeadlineExceeded, "{told:?}");
            }
            assert_eq!(peer.count(|f| f.is(kind::HEADERS)), 0, "a call was sent");
            assert_eq!(status(&channel, server.address()).picks, 0);
        }
        drop((server, peer, client));
        clean(channel, &before).await;
    });
}

/// The control: with time they are sent.
#[test]
fn h11_control_with_time_they_are_sent() {
    alone(async {
        let before = Footprint::take();
        let server = FrameServer::start(Script::default()).await;
        let channel = all_ready(&[server.address()]).await;
        let mut client = GreeterClient::new(channel.clone());
        for nth in 1..=20 {
            let mut request = Request::new(HelloRequest::default());
            request.set_timeout(LONG);
            let answer = client.say_hello(request).await;
            answer.expect("there is time enough");
            let picks = status(&channel, server.address()).picks;
            assert_eq!(picks, nth);
        }
        let peer = server.peer(0).await;
        assert_eq!(peer.count(|f| f.is(kind::HEADERS)), 20);
        drop((server, peer, client));
        clean(channel, &before).await;
    });
}

/// What a server is told is what is left, and never more digits than it may have.
#[test]
fn h11_what_is_sent_is_what_is_left() {
    alone(async {
        let before = Footprint::take();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        let serving = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.expect("a client");
            let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let timeout = request.headers().get("grpc-timeout").cloned();
                heard.lock().expect("no holder panics").push(timeout);
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        });
        let channel = reference(&[address]).timeout(AGES);
        let channel = channel.build().expect("in range");
        let deadlines = [
            Duration::from_millis(300),
            Duration::from_secs(7),
            Duration::from_secs(100 * 3_600),
            LONG,
            AGES,
        ];
        for deadline in deadlines {
            let mut request = Request::new(HelloRequest::default());
            if deadline < AGES {
                request.set_timeout(deadline);
            }
            let answer = GreeterClient::new(channel.clone()).say_hello(request).await;
            assert_eq!(answer.expect_err("it is reset").code(), Code::Internal);
        }
        let told = std::mem::take(&mut *told.lock().expect("no holder panics"));
        for (header, deadline) in told.into_iter().zip(deadlines) {
            let header = header.expect("there is a deadline");
            let header = header.to_str().expect("text");
            let (digits, unit) = header.split_at(header.len() - 1);
            println!("{deadline:?}: {header}");
            assert!((1..=8).contains(&digits.len()), "{header}");
            let number: u64 = digits.parse().expect("a number");
            let nanos = match unit {
                "n" => 1,
                "u" => 1_000,
                "m" => 1_000_000,
                "S" => 1_000_000_000,
                "M" => 60_000_000_000,
                "H" => 3_600_000_000_000_u128,
                _ => panic!("{header}"),
            };
            let left = u128::from(number) * nanos;
            // Rounded up to a millisecond, or whatever else its digits are enough for.
            assert!(
                left <= deadline.as_nanos() + 1_000_000,
                "{header} of {deadline:?}"
            );
        }
        serving.abort();
        // It was told to end, and that is its end.
        let _ = serving.await;
        clean(channel, &before).await;
    });
}
