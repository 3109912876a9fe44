//! The narrow link is as narrow as it says.

use std::time::{Duration, Instant};

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::HelloRequest;
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::{Options, Server, tonic_endpoint};
use crate::rig::narrow::Narrow;

#[test]
fn each_way_takes_as_long_as_its_bytes() {
    alone(async {
        let before = Footprint::take();
        let server = Server::start(Options::new("b1"));
        let link = Narrow::start(server.address, 32 * 1_024);
        let channel = tonic_endpoint(link.address)
            .connect()
            .await
            .expect("it listens");
        let mut client = GreeterClient::new(channel);
        let payload: Vec<u8> = (0..8 * 1_024).map(|n| n as u8).collect();
        for (echo, ways) in [(false, 1), (true, 2)] {
            let begin = Instant::now();
            let request = HelloRequest {
                payload: payload.clone(),
                echo,
                ..HelloRequest::default()
            };
            let reply = client.say_hello(request).await.expect("it arrives");
            let took = begin.elapsed();
            assert_eq!(reply.into_inner().payload == payload, echo, "unchanged");
            let least = Duration::from_millis(250) * ways;
            assert!((least..3 * least).contains(&took), "{took:?}");
        }
        assert_eq!(link.accepted(), 1);
        drop((client, link, server));
        before
            .restored(Duration::from_secs(5))
            .await
            .expect("nothing is left");
    });
}
