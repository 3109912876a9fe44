//! D8: ten thousand endpoints in one list.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use equipoise::transport::Http2Options;
use equipoise::{Address, Builder, Channel, Endpoint};
use tokio::net::TcpStream;

use super::hostile::many;
use crate::balanced::{clean, report, until};
use crate::cost::{memory, processor};
use crate::rig::clean::{Footprint, alone};
use crate::rig::timer;
use crate::size::{self, figure};

const ENDPOINTS: usize = 10_000;
/// What an endpoint may take that is not connected, in KiB.
const EACH: usize = 4;
/// Connects a second, by default; a tenth of that may come at once.
const RATE: usize = 200;

/// A channel without endpoints, that only counts what it is to connect to: nobody is there, and nothing comes of it.
fn counting() -> (Builder<Channel>, Arc<AtomicUsize>) {
    let dials = Arc::new(AtomicUsize::new(0));
    let dialled = dials.clone();
    let options = Http2Options::default().with_dialler(move |_: &Endpoint, _: &Address| {
        // A counter on its own: nothing else is read in its order.
        dialled.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<io::Result<TcpStream>>()
    });
    (Channel::from_endpoints([]).http2(options), dials)
}

/// D8: taken up at once, with little memory, and connected to at a bounded rate.
#[test]
fn d8_ten_thousand_in_one_list() {
    alone(async {
        let before = Footprint::take();
        let (channel, dials) = counting();
        let channel = channel.build().expect("in range");
        let dialled = || dials.load(Ordering::Relaxed);
        let start = memory("VmRSS:");
        let list = many(ENDPOINTS as u32);
        let begin = Instant::now();
        channel.set_endpoints(list).expect("it is open");
        // Not by asking for ten thousand states, which takes time and memory of its own.
        until("the first is dialled", || dialled() > 0).await;
        report("applied", begin.elapsed(), Duration::from_millis(100));
        // Less where a test before it in this process has left some; in the full run each has its own.
        let grown = memory("VmRSS:").saturating_sub(start);
        figure(
            "memory for each endpoint",
            grown as f64 / ENDPOINTS as f64,
            "KiB",
        );
        assert_eq!(channel.endpoints().len(), ENDPOINTS);
        assert!(grown <= EACH * ENDPOINTS, "{grown} KiB");

        let used = processor();
        let since = Instant::now();
        timer::until(begin + size::of(Duration::from_secs(2), Duration::from_secs(10))).await;
        let (dialled, took) = (dialled(), begin.elapsed());
        let used = (processor() - used).as_secs_f64() / since.elapsed().as_secs_f64();
        println!("{dialled} connects in {took:?}");
        figure("connects a second", dialled as f64 / took.as_secs_f64(), "");
        // Each makes a new picker of ten thousand.
        figure("of a processor meanwhile", 100.0 * used, "%");
        assert!(dialled > RATE / 10, "no more than come at once: {dialled}");
        let most = RATE / 10 + (RATE as f64 * took.as_secs_f64()) as usize + 1;
        assert!(
            dialled <= most,
            "{dialled} connects in {took:?}, bound {most}"
        );
        clean(channel, (), &before).await;
    });
}

/// The control: by leave of the user all are connected to as fast as can be, and it is seen.
#[test]
fn d8_control_without_a_rate_all_are_connected_to_at_once() {
    alone(async {
        let before = Footprint::take();
        let (channel, dials) = counting();
        let channel = channel.connect_rate(u32::MAX).build().expect("in range");
        let list = many(ENDPOINTS as u32);
        channel.set_endpoints(list).expect("it is open");
        let begin = Instant::now();
        until("all are dialled", || {
            dials.load(Ordering::Relaxed) == ENDPOINTS
        })
        .await;
        let rate = ENDPOINTS as f64 / begin.elapsed().as_secs_f64();
        figure("connects a second", rate, "");
        assert!(rate > 5.0 * RATE as f64, "{rate}");
        clean(channel, (), &before).await;
    });
}
