//! N9: a client that may open no more files.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use equipoise::transport::Http2Options;
use equipoise::{Address, Connectivity, Endpoint};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

use crate::balanced::over;
use crate::child::{Client, task, tell};
use crate::rig::clean::{Footprint, alone};
use crate::rig::ledger::{Verdict, audit};
use crate::rig::load::Load;
use crate::rig::rivals::tonic_balance;
use crate::rig::timer;
use crate::size::{self, figure};
use crate::{Fleet, is_ready, reference_backoff, report, status, until};

/// N9: one of three servers is killed and is back at once, and the client can open no socket to it. The others go on as if
/// nothing were, it is dialled by the backoff, and once there is room again it is soon ready.
#[test]
fn n9_no_more_files_can_be_opened() {
    alone(async {
        let before = Footprint::take();
        let mut fleet = Fleet::start(Duration::from_millis(1));
        let task = addresses_of(&fleet);
        let mut client = Client::start("n::files::client_without_files", &task, &[]);
        replace_third(&mut client, &mut fleet);
        let (calls, failed) = (client.told("CALLS"), client.told("FAILED"));
        println!("calls {calls} ok {} failed {failed}", client.told("OK"));
        let why = client.told("WHY");
        assert!(why.contains("os error 24"), "{why}");
        assert_eq!(failed, "0");
        let (dials, most) = (client.told("DIALS"), client.told("MOST"));
        let number = |text: &str| -> usize { text.parse().expect("a number") };
        figure("connects without a file", number(&dials) as f64, "");
        assert!((2..=number(&most)).contains(&number(&dials)), "{dials}");
        let ready = Duration::from_millis(number(&client.told("READY-MS")) as u64);
        client.ended();
        report("ready again", ready, Duration::from_secs(3));
        drop(fleet);
        before
            .restored(crate::PATIENCE)
            .await
            .expect("nothing is left");
    });
}

/// N9, the control. tonic goes on picking the server that it cannot connect.
#[test]
fn n9_control_tonic_fails_calls() {
    alone(async {
        let mut fleet = Fleet::start(Duration::from_millis(1));
        let task = addresses_of(&fleet);
        let mut client = Client::start("n::files::tonic_without_files", &task, &[]);
        replace_third(&mut client, &mut fleet);
        let (calls, failed) = (client.told("CALLS"), client.told("FAILED"));
        println!("calls {calls} ok {} failed {failed}", client.told("OK"));
        let failed: usize = failed.parse().expect("a number");
        assert!(failed > 20, "{failed} of {calls} failed");
        client.ended();
    });
}

fn addresses_of(fleet: &Fleet) -> String {
    let addresses = fleet.addresses();
    let addresses = addresses.iter().map(SocketAddr::to_string);
    addresses.collect::<Vec<_>>().join(",")
}

/// As soon as the client can open no more sockets.
fn replace_third(client: &mut Client, fleet: &mut Fleet) {
    let naive = client.told("FULL");
    assert!(naive.contains("os error 24"), "{naive}");
    fleet.kill(2);
    fleet.restart(2);
}

/// Lets the process open nothing more, and tells what comes of trying. A limit of no files leaves those alone that are
/// open. Gives the limit there was.
async fn open_no_more(address: SocketAddr) -> Rlimit {
    let usual = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        maximum: usual.maximum,
    };
    setrlimit(Resource::Nofile, none).expect("less is always allowed");
    let naive = TcpStream::connect(address).await;
    tell("FULL", &naive.expect_err("there is no room").to_string());
    usual
}

/// Tells what became of the calls.
fn tell_of(verdict: &Verdict) {
    println!("{verdict}");
    tell("CALLS", &verdict.calls.to_string());
    tell("FAILED", &(verdict.failed + verdict.lost.len()).to_string());
    tell("OK", &verdict.ok.to_string());
}

/// The client of the control.
#[test]
fn tonic_without_files() {
    let Some(list) = task() else { return };
    alone(async move {
        let addresses = list.split(',').map(|a| a.parse().expect("an address"));
        let addresses: Vec<SocketAddr> = addresses.collect();
        let channel = tonic_balance(&addresses);
        // It connects with the first calls.
        let warm = audit(&Load::of(100).run(&channel).await, &[]);
        assert_eq!(warm.failed, 0, "{warm}");
        open_no_more(addresses[0]).await;
        let load = Load {
            rate: 500,
            ..Load::of(500)
        };
        tell_of(&audit(&load.run(&channel).await, &[]));
    });
}

/// The client of that test.
#[test]
fn client_without_files() {
    let Some(list) = task() else { return };
    alone(async move {
        let addresses = list.split(',').map(|a| a.parse().expect("an address"));
        let addresses: Vec<SocketAddr> = addresses.collect();
        let dials = Arc::new(AtomicUsize::new(0));
        let dialled = dials.clone();
        let options = Http2Options::default().with_dialler(move |_: &Endpoint, to: &Address| {
            // A counter on its own: nothing else is read in its order.
            dialled.fetch_add(1, Ordering::Relaxed);
            TcpStream::connect(to.to_string())
        });
        let channel = over(&addresses)
            .http2(options)
            .backoff(reference_backoff())
            .connect_timeout(Duration::from_secs(1));
        let channel = channel.build().expect("in range");
        until("every endpoint is ready", || is_ready(&channel)).await;

        let made = dials.load(Ordering::Relaxed);
        let usual = open_no_more(addresses[0]).await;
        until("the third is lost", || {
            status(&channel, addresses[2]).state != Connectivity::Ready
        })
        .await;
        let lost = Instant::now();
        let load = Load {
            rate: size::of(500, 2_000),
            ..Load::of(size::calls(500))
        };
        let calls = load.run(&channel).await;
        // Time enough for a dial after the first, which comes at once.
        timer::until(lost + Duration::from_millis(600)).await;
        tell_of(&audit(&calls, &[]));
        let third = status(&channel, addresses[2]);
        tell("WHY", &third.why.unwrap_or_default());
        let dialled = dials.load(Ordering::Relaxed) - made;
        tell("DIALS", &dialled.to_string());
        // With the shortest pauses of the reference settings, as in H13; and once more, where it was lost.
        let most = 7 + 1 + (lost.elapsed().as_secs_f64() / 1.6) as usize;
        tell("MOST", &most.to_string());

        setrlimit(Resource::Nofile, usual).expect("it was so before");
        let took = until("every endpoint is ready again", || is_ready(&channel)).await;
        tell("READY-MS", &took.as_millis().to_string());
        channel.close().await;
    });
}
