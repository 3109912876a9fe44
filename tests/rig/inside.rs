//! Servers inside the process of the test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tokio::sync::{oneshot, watch};

use super::greeter::proto::greeter_server::GreeterServer;
use super::greeter::{Bound, Options, Service, runtime};
use super::tls::Acceptor;

/// A server inside the process of the test, on a thread and a runtime of its own, so that its tasks are
/// not counted as the client's.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    ending: Option<oneshot::Sender<Ending>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
enum Ending {
    /// GOAWAY; streams finish.
    Graceful,
    /// Connections break where they are.
    Abort,
}

impl Server {
    /// Returns once the server listens.
    pub fn start(options: Options) -> Self {
        let acceptor = options.tls.as_deref().map(Acceptor::from_file);
        Self::start_behind(acceptor, options)
    }

    /// The same behind TLS of the test's own; the options' does not count.
    pub fn start_behind(acceptor: impl Into<Option<Acceptor>>, options: Options) -> Self {
        let acceptor = acceptor.into();
        let (ending, ended) = oneshot::channel();
        let (listening, address) = std::sync::mpsc::channel();
        let serve = move || {
            let runtime = runtime();
            runtime.block_on(async {
                let mut bound = Bound::bind(options).await;
                bound.acceptor = acceptor;
                listening.send(bound.address).expect("start waits for it");
                let (drain, drained) = watch::channel(());
                let serving = bound.serve(drained);
                tokio::pin!(serving);
                tokio::select! {
                    () = &mut serving => return,
                    ending = ended => match ending.unwrap_or(Ending::Abort) {
                        Ending::Graceful => drop(drain),
                        Ending::Abort => return,
                    }
                }
                serving.await;
            });
            // Dropping the runtime drops the tasks of all connections.
        };
        let thread = thread::spawn(serve);
        let address = address
            .recv()
            .expect("the server's thread binds its address");
        Self {
            address,
            ending: Some(ending),
            thread: Some(thread),
        }
    }

    /// Says GOAWAY and waits until all streams have finished.
    pub async fn shutdown(mut self) {
        let thread = self.end(Ending::Graceful);
        let joined = tokio::task::spawn_blocking(move || thread.map(thread::JoinHandle::join));
        joined.await.expect("waiting does not panic");
    }

    /// Breaks all connections at once; dropping the server does the same.
    pub fn abort(self) {}

    fn end(&mut self, ending: Ending) -> Option<thread::JoinHandle<()>> {
        if let Some(sender) = self.ending.take() {
            // A server that has ended by itself needs no telling.
            let _ = sender.send(ending);
        }
        self.thread.take()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(thread) = self.end(Ending::Abort) {
            // A panic of the server has been printed by its own thread.
            let _ = thread.join();
        }
    }
}

/// A server on a Unix socket, on the current runtime; it ends with the value.
#[derive(Debug)]
pub struct UnixServer {
    pub path: PathBuf,
    serving: tokio::task::JoinHandle<()>,
}

/// Serves as `name` on a fresh path.
pub fn unix_server(name: &str) -> UnixServer {
    // Counted, so that two in one process differ; relaxed, since nothing else is read in its order.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("equipoise-{}-{count}.sock", std::process::id()));
    let listener = tokio::net::UnixListener::bind(&path).expect("the path is fresh");
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let service = GreeterServer::new(Service::of(Options::new(name)));
    let serving = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    let serving = tokio::spawn(async { serving.await.expect("serving does not fail") });
    UnixServer { path, serving }
}

impl Drop for UnixServer {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}
