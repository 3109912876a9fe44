//! What a channel holds is given back when it ends: open files and tasks are as before.

use std::net::SocketAddr;

use equipoise::{Channel, Connectivity, Endpoint, WaitForReady};
use tonic::{Code, Request};

use crate::balanced::{PATIENCE, endpoints, in_flight, over, ready, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{CountdownRequest, HelloRequest};
use crate::rig::greeter::{Options, Server};
use crate::rig::holes;

async fn client(server: SocketAddr) -> (Channel, GreeterClient<Channel>) {
    let channel = ready(over(&[server])).await;
    (channel.clone(), GreeterClient::new(channel))
}

#[test]
fn the_last_clone_dropped_closes_everything() {
    alone(async {
        let a = Server::start(Options::new("a"));
        let before = Footprint::take();
        let (channel, mut client) = client(a.address).await;
        let request = CountdownRequest {
            count: 30,
            pause_us: 5_000,
            ..CountdownRequest::default()
        };
        let mut replies = client.countdown(request).await.unwrap().into_inner();
        drop((channel, client));
        // What is under way goes on to its end.
        let mut seen = 0;
        while replies.message().await.unwrap().is_some() {
            seen += 1;
        }
        assert_eq!(seen, 30);
        drop(replies);
        before.restored(PATIENCE).await.unwrap();
    });
}

#[test]
fn close_ends_waiting_calls_lets_others_finish_and_is_final() {
    alone(async {
        let a = Server::start(Options::new("a"));
        let hole = holes::black_hole();
        let before = Footprint::take();
        let (channel, mut client) = client(a.address).await;
        channel
            .set_endpoints([Endpoint::from(a.address), Endpoint::from(hole.address)])
            .unwrap();
        let mut busy = client.clone();
        let under_way = tokio::spawn(async move {
            let request = HelloRequest {
                work_us: 200_000,
                ..HelloRequest::default()
            };
            busy.say_hello(request).await
        });
        let mut patient = client.clone();
        let waiting = tokio::spawn(async move {
            let mut request = Request::new(HelloRequest::default());
            request
                .extensions_mut()
                .insert(equipoise::Override::strict(hole.address));
            request.extensions_mut().insert(WaitForReady);
            let result = patient.say_hello(request).await;
            drop(hole);
            result
        });
        until("one is under way and one waits", || {
            in_flight(&channel) == 1 && channel.waiting() == 1
        })
        .await;

        let (one, two) = tokio::join!(channel.close(), channel.close());
        let ((), ()) = (one, two);
        assert_eq!(channel.state(), Connectivity::Shutdown);
        under_way.await.unwrap().expect("it was accepted before");
        let status = waiting.await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("closed"), "{status:?}");
        let status = client.say_hello(HelloRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(
            channel
                .set_endpoints(endpoints(&[a.address]))
                .unwrap_err()
                .is_closed()
        );
        assert!(channel.endpoints().is_empty());
        channel.close().await;
        drop((channel, client));
        before.restored(PATIENCE).await.unwrap();
    });
}
