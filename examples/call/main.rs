//! A load client for any gRPC server: so many health checks through a balanced channel, and what became of them.
//!
//! `cargo run --release --example call -- static:127.0.0.1:50051,127.0.0.1:50052 --calls 10000`;
//! `--help` tells the rest.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use equipoise::resolver::Dns;
use equipoise::{Channel, Connectivity, Error, Target, Tls, policy};
use indicatif::{ProgressBar, ProgressStyle};

use arguments::{MOST_AT_A_TIME, Options, Pace, Policy, Request, USAGE};
use load::Load;
use report::Tally;

mod arguments;
mod load;
mod report;

/// What a program ends with that SIGINT ended.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let options = match arguments::read(std::env::args_os().skip(1)) {
        Ok(Request::Run(options)) => options,
        Ok(Request::Help) => return print(USAGE, ExitCode::SUCCESS),
        Err(why) => return refuse(&why),
    };
    match channel(&options) {
        Ok(channel) => run(&options, channel).await,
        Err(why) => refuse(&why.to_string()),
    }
}

/// Nothing was sent.
fn refuse(why: &str) -> ExitCode {
    eprintln!("call: {why}");
    ExitCode::from(2)
}

fn channel(options: &Options) -> Result<Channel, Error> {
    // With a resolver of one's own any scheme would do.
    options.target.parse::<Target>()?;
    let mut builder = Channel::builder(&options.target)?
        // Who types the name of a server may well mean one on this machine.
        .resolver(Dns::default().allow_loopback())
        .queue_limit(MOST_AT_A_TIME as usize);
    if let Some(file) = &options.tls_ca {
        builder = builder.tls(Tls::new().with_roots_file(file));
    }
    if let Some(authority) = &options.authority {
        builder = builder.authority(authority);
    }
    let key = options.hash_on.as_ref().map_or("", |name| name.as_str());
    match options.policy {
        Policy::Adaptive => builder.policy(policy::Adaptive::default()),
        Policy::LeastBandwidth => builder.policy(policy::LeastBandwidth::default()),
        Policy::LeastRequest => builder.policy(policy::LeastRequest::default()),
        Policy::Maglev => builder.policy(policy::Maglev::on_metadata(key)),
        Policy::PeakEwma => builder.policy(policy::PeakEwma::default()),
        Policy::PickFirst => builder.policy(policy::PickFirst::default()),
        Policy::Random => builder.policy(policy::Random),
        Policy::Rendezvous => builder.policy(policy::Rendezvous::on_metadata(key)),
        Policy::RingHash => builder.policy(policy::RingHash::on_metadata(key)),
        Policy::RoundRobin => builder.policy(policy::RoundRobin::default()),
    }
    .build()
}

async fn run(options: &Options, channel: Channel) -> ExitCode {
    let mut tally = match Tally::new() {
        Ok(tally) => tally,
        Err(why) => return refuse(&why.to_string()),
    };
    let ended = tokio::select! {
        () = calls(options, &channel, &mut tally) => true,
        _ = tokio::signal::ctrl_c() => false,
    };
    let endpoints = channel.endpoints();
    let text = format!(
        "{}{}{}\n",
        tally.table(&endpoints),
        tally.failures(),
        tally.result(&endpoints)
    );
    let status = match ended {
        true if tally.ok() == options.calls => ExitCode::SUCCESS,
        true => ExitCode::FAILURE,
        false => ExitCode::from(INTERRUPTED),
    };
    if ended {
        // No call is under way: this does not wait for anybody.
        channel.close().await;
    }
    print(&text, status)
}

async fn calls(options: &Options, channel: &Channel, tally: &mut Tally) {
    // The first connection is not what is measured. Where there is none to be had, the calls say so.
    let mut state = channel.state();
    while matches!(state, Connectivity::Idle | Connectivity::Connecting) {
        state = channel.state_changed(state).await;
    }
    let bar = progress(options);
    let mut load = Load::start(channel, options);
    while let Some(call) = load.ended.recv().await {
        tally.count(call);
        bar.inc(1);
        if tally.failed() > 0 {
            bar.set_message(format!("{} failed", tally.failed()));
        }
    }
    bar.finish_and_clear();
}

/// On a terminal only.
fn progress(options: &Options) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(options.calls);
    let pace = match options.pace {
        Pace::Closed(at_a_time) => format!("{at_a_time} at a time"),
        Pace::Open(rps) => format!("{rps}/s"),
    };
    let shape = format!(
        "{} {pace} [{{bar:40}}] {{human_pos}}/{{human_len}} {{eta}} {{msg}}",
        options.policy
    );
    if let Ok(style) = ProgressStyle::with_template(&shape) {
        bar.set_style(style);
    }
    bar
}

/// A reader that has gone away (`call .. | head`) has not seen the result: no success.
fn print(text: &str, status: ExitCode) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}
