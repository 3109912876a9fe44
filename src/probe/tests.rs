//! The checks over real sockets, against tonic's own health service.

use std::net::SocketAddr;

use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::*;
use crate::endpoint::Endpoint;
use crate::report::Unfit;
use crate::transport::{Connector, Http2Connection, Http2Connector};

const PATIENCE: Duration = Duration::from_secs(20);

struct Kept(Http2Connection);

impl AsRef<Http2Connection> for Kept {
    fn as_ref(&self) -> &Http2Connection {
        &self.0
    }
}

/// A real server, which ends in order when told to.
struct Real {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Real {
    /// With a health service, or only with another one.
    async fn start(health: bool) -> (Self, HealthReporter) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        let mut server = Server::builder();
        let routes = match health {
            true => tonic::service::Routes::new(service),
            false => tonic::service::Routes::default(),
        };
        let serving = server
            .add_routes(routes)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped);
        let task = tokio::spawn(async move { serving.await.unwrap() });
        let real = Self {
            address,
            stop,
            task,
        };
        (real, reporter)
    }
}

async fn connect(address: SocketAddr) -> Arc<Kept> {
    let address = Address::from(address);
    let connector = Http2Connector::default();
    let connection = within(connector.connect(&Endpoint::new(address.clone()), &address)).await;
    Arc::new(Kept(connection.unwrap()))
}

fn begin(
    check: &HealthCheck,
    connection: &Arc<Kept>,
    to: SocketAddr,
) -> BoxStream<'static, Health> {
    check.begin(connection, &to.into(), Backoff::default(), 1)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    let result = timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("not done in {PATIENCE:?}"))
}

async fn closed(connection: &mut Receiver<Condition>) {
    let closed = |now: &Condition| matches!(now, Condition::Closed(_));
    // An error is the end of the connection's task.
    let _ = within(connection.wait_for(closed)).await;
}

#[tokio::test]
async fn a_real_server_is_believed_word_for_word() {
    let (server, reporter) = Real::start(true).await;
    let connection = connect(server.address).await;
    let mut whole = begin(&HealthCheck::default(), &connection, server.address);
    let check = HealthCheck::of_service("shop.Cart").unwrap();
    let mut one = begin(&check, &connection, server.address);
    assert_eq!(within(whole.next()).await, Some(Health::Serving));
    // tonic's service ends the watch of a name that it does not know, where A17 wants SERVICE_UNKNOWN.
    let said = within(one.next()).await;
    let Some(Health::NotServing(Unfit::WatchEnded(why))) = said else {
        panic!("{said:?}")
    };
    assert!(why.contains("NotFound"), "{why}");
    for (status, health) in [
        (ServingStatus::Serving, Health::Serving),
        (ServingStatus::NotServing, Health::NotServing(Unfit::SaysSo)),
        (ServingStatus::Serving, Health::Serving),
    ] {
        reporter.set_service_status("shop.Cart", status).await;
        assert_eq!(within(one.next()).await, Some(health), "{status}");
    }
    drop((whole, one));
    let mut condition = connection.0.condition();
    drop(connection);
    closed(&mut condition).await;
}

#[tokio::test]
async fn a_server_without_a_health_service_counts_as_healthy() {
    let (server, _) = Real::start(false).await;
    let connection = connect(server.address).await;
    let mut check = begin(&HealthCheck::default(), &connection, server.address);
    assert_eq!(within(check.next()).await, Some(Health::Unchecked));
    // The stream came back, and no other was opened.
    assert_eq!(connection.0.slots().open(), 0);
    assert!(check.next().now_or_never().is_none(), "it stays");
}

#[tokio::test]
async fn the_end_of_a_connection_is_the_end_of_its_checks() {
    for (check, kill) in [
        (HealthCheck::default(), false),
        (HealthCheck::default(), true),
        (TcpCheck::default().into(), true),
    ] {
        let (server, _reporter) = Real::start(true).await;
        let connection = connect(server.address).await;
        let mut said = begin(&check, &connection, server.address);
        assert_eq!(within(said.next()).await, Some(Health::Serving));
        match kill {
            // GOAWAY: the server waits for its calls, the watch among them.
            false => server.stop.send(()).unwrap(),
            true => connection.0.control().abort("cut"),
        }
        assert_eq!(within(said.next()).await, None, "{check:?}");
        drop(said);
        if !kill {
            within(server.task).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_let_go_closes_once_its_watch_is_dropped() {
    let (server, reporter) = Real::start(true).await;
    let connection = connect(server.address).await;
    let mut said = begin(&HealthCheck::default(), &connection, server.address);
    assert_eq!(within(said.next()).await, Some(Health::Serving));
    let mut condition = connection.0.condition();
    drop(connection);
    // It is still open: the watch is a call like any other.
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
    let unwell = Health::NotServing(Unfit::SaysSo);
    assert_eq!(within(said.next()).await, Some(unwell));
    assert!(matches!(*condition.borrow(), Condition::Open));
    drop(said);
    closed(&mut condition).await;
}

#[test]
fn what_cannot_be_meant_is_refused_by_value_and_rule() {
    let ms = Duration::from_millis;
    let check = TcpCheck::default();
    for (made, text) in [
        (
            check.with_times(ms(99), ms(50)).err(),
            "tcp check interval 99ms is not in 100ms..=24h",
        ),
        (
            check.with_times(Duration::MAX, ms(50)).err(),
            "is not in 100ms..=24h",
        ),
        (
            check.with_times(ms(100), ms(101)).err(),
            "timeout 101ms must be more than zero and at most the interval, 100ms",
        ),
        (check.with_times(ms(100), ms(0)).err(), "timeout 0ns must"),
        (
            check.with_thresholds(0, 1).err(),
            "tcp check fall 0 must be at least 1",
        ),
        (
            check.with_thresholds(1, 0).err(),
            "tcp check rise 0 must be at least 1",
        ),
        (
            HealthCheck::of_service("/shop.Cart/Show").err(),
            "health check of \"/shop.Cart/Show\": a path, not the name of a service",
        ),
    ] {
        let error = made.unwrap();
        assert!(
            error.is_config() && error.to_string().contains(text),
            "{error}"
        );
    }
    assert!(check.with_times(ms(100), ms(100)).is_ok());
    assert!(check.with_thresholds(1, 1).is_ok());
    assert_eq!(HealthCheck::of_service("").unwrap(), HealthCheck::default());
}
