//! B5: servers that refuse the first attempt of each call.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use equipoise::Override;
use h2::{Reason, RecvStream, server};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tonic::Code;

use crate::rig::clean::{Footprint, alone};
use crate::rig::greeter::proto::greeter_client::GreeterClient;
use crate::rig::greeter::proto::{HelloReply, HelloRequest};
use crate::rig::ledger::{Ledger, Writer};
use crate::rig::load::Load;
use crate::rig::rivals::tonic_balance;
use crate::size;
use crate::{all_ready, clean, status};

/// B5, REFUSED_STREAM on the first attempt of each call. tonic makes no second one.
#[test]
fn b5_control_tonic_fails_refused_calls() {
    alone(async {
        let (ledger, seen) = (Ledger::create(), Seen::default());
        let servers = Refusing::start_two(&ledger, &seen).await;
        let client = tonic_balance(&servers.addresses);
        let verdict = ledger.audit(&Load::of(1_000).run(&client).await);
        println!("{verdict}");
        verdict.assert_true();
        assert_eq!(verdict.code(Code::Unavailable), 1_000, "{verdict}");
        assert_eq!(verdict.executed, [1_000, 0, 0], "{verdict}");
        assert_eq!(seen.attempts(), 1_000);
    });
}

/// The same on our channel: the second attempt goes to the other server, and is the only one executed.
#[test]
fn b5_refused_on_the_first_attempt() {
    alone(async {
        // Many, since a server joins some milliseconds after it is ready.
        let made = size::calls(5_000);
        let before = Footprint::take();
        let (ledger, seen) = (Ledger::create(), Seen::default());
        let servers = Refusing::start_two(&ledger, &seen).await;
        let channel = all_ready(&servers.addresses).await;
        let verdict = ledger.audit(&Load::of(made).run(&channel).await);
        println!("{verdict}");
        verdict.assert_unnoticed();
        // Not announced as retries: no server has seen these calls before.
        assert_eq!(
            (seen.attempts(), verdict.retries),
            (2 * made as usize, 0),
            "{verdict}"
        );
        // A server joins the round some milliseconds after it is ready; from the first call on that both
        // have joined, the other one is asked.
        let joined = ["r1", "r2"]
            .map(|server| seen.first_refused_by(server))
            .into_iter()
            .max();
        let joined = joined.expect("there are two");
        assert!(joined < made / 2, "one server joined with call {joined}");
        for execution in ledger.executions().into_iter().filter(|e| e.id > joined) {
            let refused = seen.refused_by(execution.id).expect("the first attempt is");
            assert_ne!(refused, execution.server, "{execution:?}");
        }
        let endpoints = servers.addresses.iter().map(|&a| status(&channel, a));
        let (mut refused, mut ok) = (0, 0);
        for endpoint in endpoints {
            refused += endpoint.refused;
            ok += endpoint.outcome(Code::Ok);
            assert_eq!(
                endpoint.picks,
                endpoint.refused + endpoint.outcome(Code::Ok)
            );
            assert!(endpoint.last_error.is_none(), "{endpoint:?}");
        }
        assert_eq!((refused, ok), (made, made));
        drop(servers);
        clean(channel, &before).await;
    });
}

/// A wish for one endpoint is no reason to go back to it when it has just turned the call away.
#[test]
fn b5_a_refused_call_goes_elsewhere_against_its_own_wish() {
    alone(async {
        let before = Footprint::take();
        let (ledger, seen) = (Ledger::create(), Seen::default());
        let servers = Refusing::start_two(&ledger, &seen).await;
        let channel = all_ready(&servers.addresses).await;
        let mut client = GreeterClient::new(channel.clone());
        let wished = Override::prefer(servers.addresses[0]);
        // In turn until both have joined the picker; what is judged comes after that.
        for id in 1..=500 {
            let mut request = tonic::Request::new(HelloRequest {
                id,
                ..HelloRequest::default()
            });
            request.extensions_mut().insert(wished.clone());
            client
                .say_hello(request)
                .await
                .expect("the second attempt is taken");
        }
        let late = ledger.executions().into_iter().filter(|e| e.id > 250);
        let late: Vec<_> = late.map(|e| (seen.refused_by(e.id), e.server)).collect();
        assert_eq!(late.len(), 250);
        for (refused, served) in late {
            assert_eq!((refused, served.as_str()), (Some("r1"), "r2"));
        }
        drop((servers, client));
        clean(channel, &before).await;
    });
}

/// The server that refused each call, and all attempts.
#[derive(Clone, Default)]
struct Seen {
    calls: Arc<Mutex<(HashMap<u64, &'static str>, usize)>>,
}

impl Seen {
    /// Whether it is the first attempt, and so refused.
    fn refuse(&self, id: u64, server: &'static str) -> bool {
        let (refused, attempts) = &mut *self.calls.lock().expect("no holder panics");
        *attempts += 1;
        match refused.entry(id) {
            Entry::Occupied(_) => false,
            Entry::Vacant(first) => {
                first.insert(server);
                true
            }
        }
    }

    fn refused_by(&self, id: u64) -> Option<&'static str> {
        self.calls
            .lock()
            .expect("no holder panics")
            .0
            .get(&id)
            .copied()
    }

    fn first_refused_by(&self, server: &str) -> u64 {
        let calls = self.calls.lock().expect("no holder panics");
        let by_it = calls.0.iter().filter(|(_, by)| **by == server);
        by_it.map(|(id, _)| *id).min().expect("each refuses some")
    }

    fn attempts(&self) -> usize {
        self.calls.lock().expect("no holder panics").1
    }
}

/// Two servers on h2 itself, which can refuse a stream.
struct Refusing {
    addresses: Vec<SocketAddr>,
    accepting: Vec<AbortHandle>,
}

impl Refusing {
    async fn start_two(ledger: &Ledger, seen: &Seen) -> Self {
        let mut servers = Self {
            addresses: Vec::new(),
            accepting: Vec::new(),
        };
        for name in ["r1", "r2"] {
            let listener = TcpListener::bind("127.0.0.1:0").await;
            let listener = listener.expect("loopback has a free port");
            let address = listener
                .local_addr()
                .expect("a bound socket has an address");
            let writer = Writer::open(ledger.path(), name).expect("the ledger is there");
            let server = Refuser {
                name,
                writer,
                seen: seen.clone(),
            };
            let accepting = tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    tokio::spawn(server.clone().serve(socket));
                }
            });
            servers.addresses.push(address);
            servers.accepting.push(accepting.abort_handle());
        }
        servers
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        for accepting in &self.accepting {
            accepting.abort();
        }
    }
}

#[derive(Clone)]
struct Refuser {
    name: &'static str,
    writer: Writer,
    seen: Seen,
}

impl Refuser {
    async fn serve(self, socket: TcpStream) {
        socket.set_nodelay(true).expect("a TCP socket takes it");
        let mut connection = server::handshake(socket).await.expect("an HTTP/2 client");
        // An error of a connection is its end.
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(self.clone().answer(request, respond));
        }
    }

    /// A call that its client gave up meanwhile needs no answer.
    async fn answer(
        self,
        request: Request<RecvStream>,
        mut respond: server::SendResponse<Bytes>,
    ) -> Option<()> {
        let announced = request.headers().get("grpc-previous-rpc-attempts");
        let attempt = 1 + u32::from(announced.is_some());
        let id = id(request.into_body()).await?;
        if self.seen.refuse(id, self.name) {
            respond.send_reset(Reason::REFUSED_STREAM);
            return None;
        }
        let entry = self.writer.begin(id, attempt);
        let reply = HelloReply {
            id,
            server: self.name.into(),
            ..HelloReply::default()
        };
        let mut message = BytesMut::new();
        message.put_u8(0);
        message.put_u32(reply.encoded_len() as u32);
        reply.encode(&mut message).expect("a buffer that grows");
        entry.finish(Code::Ok);
        let head = Response::builder().header("content-type", "application/grpc");
        let mut stream = respond
            .send_response(head.body(()).expect("a head"), false)
            .ok()?;
        stream.send_data(message.freeze(), false).ok()?;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a header value"));
        stream.send_trailers(trailers).ok()
    }
}

/// The id in a small request, which comes whole.
async fn id(mut body: RecvStream) -> Option<u64> {
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        bytes.extend_from_slice(&data.ok()?);
    }
    let request = HelloRequest::decode(&bytes[5..]).expect("our own client sent it");
    Some(request.id)
}
