//! A laboratory for balancing policies: the crate's own policies over simulated fleets, compared.
//!
//! `cargo run --release --example policy_lab -- --scenario s3 --seeds 5 --plot lab.svg`; `--help` tells the rest.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};

use arguments::{Options, Request, USAGE};
use runs::Results;

mod arguments;
mod client;
mod contenders;
mod fleet;
mod gates;
mod moves;
mod outcome;
mod plot;
mod readings;
mod real;
mod report;
mod runs;
mod scenario;
mod scenario_file;
mod server;
mod workload;
mod world;

mod proto {
    include!(concat!(env!("OUT_DIR"), "/equipoise.demo.v1.rs"));
}

fn main() -> ExitCode {
    match arguments::read(std::env::args_os().skip(1)) {
        Ok(Request::Run(options)) => run(&options),
        Ok(Request::Help) => print(USAGE, ExitCode::SUCCESS),
        Err(why) => {
            complain(&why);
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> ExitCode {
    let bar = progress(options);
    let mut all: Vec<Results> = Vec::new();
    let mut status = ExitCode::SUCCESS;
    for scenario in &options.scenarios {
        bar.set_message(scenario.name.clone());
        let advance = |calls| bar.inc(calls);
        let (contenders, seeds) = (&options.contenders, &options.seeds);
        let results = match options.real {
            false => runs::run(scenario, contenders, seeds, &advance),
            true => match real::runs(scenario, contenders, seeds, &advance) {
                Ok(results) => results,
                Err(why) => {
                    complain(&format!("{}: {why}", scenario.name));
                    return ExitCode::FAILURE;
                }
            },
        };
        let text = report::table(&results) + &report::advice(&results) + "\n";
        // Each as soon as it is there: long runs are many.
        if bar.suspend(|| print(&text, ExitCode::SUCCESS)) != ExitCode::SUCCESS {
            return ExitCode::FAILURE;
        }
        all.push(results);
    }
    bar.finish_and_clear();
    let mut text = String::new();
    if options.gates {
        let gates = gates::full();
        text += &gates::table(&gates, &all);
        text.push('\n');
        if !gates.iter().all(|gate| gate.holds(&all)) {
            status = ExitCode::FAILURE;
        }
    }
    if let Some(plot) = &options.plot {
        match plot::draw(plot, &all) {
            Ok(paths) => paths
                .iter()
                .for_each(|path| text += &format!("drawn: {}\n", path.display())),
            Err(why) => {
                complain(&why);
                status = ExitCode::FAILURE;
            }
        }
    }
    print(&(text + &report::result(&all, &options.seeds)), status)
}

/// On a terminal only.
fn progress(options: &Options) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let calls: u64 = options.scenarios.iter().map(|s| s.requests).sum();
    let runs = options.contenders.len() * options.seeds.len();
    let bar = ProgressBar::new(calls * runs as u64);
    let shape = "{msg} [{bar:40}] {human_pos}/{human_len} calls {eta}";
    if let Ok(style) = ProgressStyle::with_template(shape) {
        bar.set_style(style);
    }
    bar
}

/// With nobody there to read it, the exit status still tells.
fn complain(why: &str) {
    let _ = writeln!(std::io::stderr(), "policy_lab: {why}");
}

/// A reader that has gone away (`policy_lab .. | head`) has not seen the result: no success.
fn print(text: &str, status: ExitCode) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}
